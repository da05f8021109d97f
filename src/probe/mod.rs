//! When to probe a link, what answers mean, and which questions deserve an answer. Sans-IO: it owns
//! no socket, no clock and no secret. The driver in `agent` owns them and loops:
//!
//! 1. sleep until [`Prober::next_deadline`] or a message arrives;
//! 2. call [`Prober::handle_timeout`], [`Prober::handle_reply`] or [`Responder::handle_request`];
//! 3. send everything that [`Prober::poll_transmit`] returns.
//!
//! `now` is the time since any fixed moment, of a clock that never goes back.

mod budget;
mod hearing;
mod lost;
mod prober;
mod proofs;
mod responder;

pub use budget::Budget;
pub use hearing::Hearing;
pub use lost::Lost;
pub use prober::{Liveness, Prober};
pub use proofs::Proofs;
pub use responder::{Responder, Source};

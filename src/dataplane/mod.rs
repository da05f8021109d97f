//! The three hallways, on OS threads.
//!
//! 1. **egress** (`ovd`, a thread for each TUN): a batch from the TUN; facts; verdicts; one
//!    `sendmmsg` with the GUE headers.
//! 2. **ingress** (`ovd`, one thread): a batch from the UDP socket; header; outer source; facts;
//!    verdicts; ECN; one write to the TUN for each packet.
//! 3. **transit** (`ovsap`, one thread): a batch from the UDP socket; header; outer source; facts;
//!    verdicts; outer TTL less one; one `sendmmsg` of the datagrams as they came.
//!
//! Every hallway first judges the whole batch, a pure function over bytes, and then moves it, so that
//! offloads can regroup what was judged. Sealed hops will stand between the two: `open` before the
//! judging, `seal` after it; the places are marked.
//!
//! Per packet there is no lock, no channel, no allocation and no log; the snapshot, the devices and
//! the time are read once a batch. Control messages leave the hallway by a bounded channel, under a
//! budget for sources that the node does not know.
//!
//! ```text
//! TUN ──> egress  ──> judge ──> send ──> UDP
//! TUN <── write  <── judge <── ingress <─┤         judge: wire::gue, wire::inner, forward::Snapshot
//!                    control <───────────┤
//! UDP <── send   <── judge <── transit <─┘
//! ```

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

mod control;
mod counters;
mod deliver;
mod ecn;
mod egress;
mod hallway;
mod ingress;
mod plane;
pub mod publish;
mod train;
mod transit;

pub use control::{ControlPort, ControlSender, PUNT_CAPACITY, Punted};
pub use counters::{Counters, HallwayCounters};
pub use hallway::now;
pub use plane::{EntityPlane, SapPlane};

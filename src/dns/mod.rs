//! Answers overlay names from the table in force, and passes the rest on to the system's resolvers.
//!
//! `NAME.NAMESPACE.OVERLAY.ov.internal`, for the namespace `default` also `NAME.OVERLAY.ov.internal`;
//! A, AAAA and PTR; of services all instances, and SRV for their named ports. Questions about our own suffix
//! or our own addresses never leave the host, whatever the answer. UDP and TCP; bounded in number, size and
//! time.
//!
//! Whom programs ask is for others to arrange: [`System`] is what the host's configuration says,
//! [`resolved`] tells systemd-resolved, [`crate::sys::redirect`] has the kernel bring questions here.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        reason = "questions must not panic"
    )
)]

mod listener;
mod message;
mod question;
pub mod resolved;
mod system;
mod upstream;
mod zone;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::types::OVERLAY_SUFFIX;
pub use listener::Listener;
use listener::{framed, read_message};
use message::{Code, MESSAGE_MAX, Query};
pub use question::{answers, has_address};
pub use system::System;
pub use upstream::Upstream;
use zone::Verdict;
pub use zone::Zone;

/// How many questions wait for other resolvers at a time, and how many connections there are; more are
/// dropped, and come again by who asked.
const AT_ONCE: usize = 1024;

/// Listeners, and what they answer from.
#[derive(Debug)]
pub struct Resolver {
    listeners: Vec<Listener>,
    shared: Arc<Shared>,
}

/// Where [`Resolver`] finds the names of the newest table.
#[derive(Clone, Debug)]
pub struct Names(Arc<Shared>);

impl Names {
    /// Answers from `zone` from now on.
    pub fn replace(&self, zone: Zone) {
        *self.0.zone.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(zone);
    }

    /// Passes the rest on to `upstream` from now on.
    pub fn pass_on_to(&self, upstream: Upstream) {
        let upstream = upstream.without(&self.0.own);
        *self.0.upstream.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(upstream);
    }

    /// Where questions are answered.
    #[must_use]
    pub fn listeners(&self) -> &[SocketAddr] {
        &self.0.own
    }
}

#[derive(Debug)]
struct Shared {
    zone: Mutex<Arc<Zone>>,
    turn: AtomicUsize,
    upstream: Mutex<Arc<Upstream>>,
    /// Our own listeners.
    own: Vec<SocketAddr>,
    places: Arc<Semaphore>,
}

/// What becomes of a message.
enum Outcome {
    /// This is the answer; none where there is to be none.
    Answer(Option<Vec<u8>>),
    /// Others know.
    PassOn(Query),
}

impl Shared {
    /// What can be said at once, in at most as many bytes as the asker takes.
    fn look_up(&self, message: &[u8], is_tcp: bool) -> Outcome {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(refusal) => return Outcome::Answer(refusal),
        };
        let zone = Arc::clone(&self.zone.lock().unwrap_or_else(PoisonError::into_inner));
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let max = if is_tcp { MESSAGE_MAX } else { query.datagram_max() };
        match zone.find(&query.name, query.kind, turn) {
            Verdict::Forward => Outcome::PassOn(query),
            Verdict::Answer(answer) if query.is_plain => {
                Outcome::Answer(Some(query.answer(&answer, OVERLAY_SUFFIX, max)))
            }
            Verdict::Answer(_) => Outcome::Answer(Some(query.refusal(Code::Unknown))),
        }
    }

    /// What others say.
    async fn ask_others(&self, query: &Query, message: &[u8], is_tcp: bool) -> Vec<u8> {
        let upstream = Arc::clone(&self.upstream.lock().unwrap_or_else(PoisonError::into_inner));
        let answer = upstream.ask(query, message, is_tcp).await;
        answer.unwrap_or_else(|| query.refusal(Code::Failed))
    }
}

impl Resolver {
    /// Answers at `listeners`, and passes the rest on to `upstream`.
    #[must_use]
    pub fn new(listeners: Vec<Listener>, upstream: Upstream) -> Self {
        let own: Vec<SocketAddr> = listeners.iter().map(Listener::at).collect();
        let shared = Shared {
            zone: Mutex::default(),
            turn: AtomicUsize::new(0),
            upstream: Mutex::new(Arc::new(upstream.without(&own))),
            own,
            places: Arc::new(Semaphore::new(AT_ONCE)),
        };
        Self { listeners, shared: Arc::new(shared) }
    }

    /// Its listeners.
    #[must_use]
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Where to put names.
    #[must_use]
    pub fn names(&self) -> Names {
        Names(Arc::clone(&self.shared))
    }

    /// Has it answer as long as the runtime lives.
    pub fn start(self) {
        for listener in self.listeners {
            listener.start(&self.shared);
        }
    }
}

#[cfg(test)]
mod tests;

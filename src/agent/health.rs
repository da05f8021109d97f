//! What `status` and the reports say of this node: the connection to the server, and problems.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::api::local::ServerStatus;
use crate::types::Timestamp;

/// What a problem is about. A new problem of a topic replaces the one before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// The state directory.
    State,
    /// The server's answers.
    Server,
    /// The newest table.
    Table,
    /// Where packets would travel.
    Underlay,
    /// Where this node receives packets.
    Endpoint,
    /// The guard.
    Guard,
    /// What brings programs' questions for names here.
    Names,
    /// One overlay's device and routes, by the overlay's name.
    Overlay(String),
}

/// Shared by the tasks of a node; cheap to read.
#[derive(Debug)]
pub struct Health {
    inner: Mutex<Inner>,
    changed: Notify,
    is_copy: AtomicBool,
}

#[derive(Debug)]
struct Inner {
    problems: BTreeMap<Topic, Vec<String>>,
    server: ServerStatus,
}

impl Health {
    /// Starts without problems, and with a server at `url` that was not asked yet.
    #[must_use]
    pub fn new(url: &str, now: Timestamp) -> Self {
        let server = ServerStatus {
            url: url.to_owned(),
            reachable: false,
            since: now,
            error: Some("not asked yet".to_owned()),
        };
        let inner = Inner { problems: BTreeMap::new(), server };
        Self { inner: Mutex::new(inner), changed: Notify::new(), is_copy: AtomicBool::new(false) }
    }

    /// Replaces what is known to be wrong with `topic`; empty means that all is well.
    pub fn set(&self, topic: Topic, lines: Vec<String>) {
        let mut inner = self.lock();
        let before = if lines.is_empty() {
            inner.problems.remove(&topic).unwrap_or_default()
        } else {
            inner.problems.insert(topic, lines.clone()).unwrap_or_default()
        };
        drop(inner);
        if before != lines {
            for line in &lines {
                tracing::warn!("{line}");
            }
            self.changed.notify_one();
        }
    }

    /// All problems, each a line for people.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.lock().problems.values().flatten().cloned().collect()
    }

    /// A request was answered (`error` is none) or not.
    pub fn server_answered(&self, url: &str, error: Option<String>, now: Timestamp) {
        let mut inner = self.lock();
        let server = &mut inner.server;
        let is_reachable = error.is_none();
        if server.reachable != is_reachable {
            server.since = now;
            if is_reachable {
                tracing::info!(server = url, "the server answers");
            } else {
                let why = error.as_deref().unwrap_or_default();
                tracing::warn!(server = url, why, "the server does not answer; going on without");
            }
        }
        url.clone_into(&mut server.url);
        server.reachable = is_reachable;
        server.error = error;
    }

    /// The server serves another process as this node, or this one again.
    pub fn set_copy(&self, is_copy: bool) {
        self.is_copy.store(is_copy, Ordering::Relaxed);
    }

    /// Whether another process is this node, so that this one keeps quiet.
    #[must_use]
    pub fn is_copy(&self) -> bool {
        self.is_copy.load(Ordering::Relaxed)
    }

    /// The connection to the server.
    #[must_use]
    pub fn server(&self) -> ServerStatus {
        self.lock().server.clone()
    }

    /// Asks for a report soon: something changed that the server should know.
    pub fn poke(&self) {
        self.changed.notify_one();
    }

    /// Waits until something changed that the server should know.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_holds_its_newest_problems_only() {
        let health = Health::new("https://192.0.2.1:7443", Timestamp(1));

        health.set(Topic::Table, vec!["a".to_owned()]);
        health.set(Topic::Table, vec!["b".to_owned()]);
        health.set(Topic::Overlay("x".to_owned()), vec!["c".to_owned()]);
        assert_eq!(health.problems(), ["b", "c"]);

        health.set(Topic::Table, Vec::new());
        assert_eq!(health.problems(), ["c"]);
    }

    #[test]
    fn since_moves_only_when_reachability_does() {
        let health = Health::new("u", Timestamp(1));

        health.server_answered("u", None, Timestamp(5));
        health.server_answered("u", None, Timestamp(9));
        assert_eq!((health.server().reachable, health.server().since), (true, Timestamp(5)));

        health.server_answered("u", Some("gone".to_owned()), Timestamp(12));
        assert_eq!((health.server().reachable, health.server().since), (false, Timestamp(12)));
    }
}

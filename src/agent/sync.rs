//! Pulls tables: from disk first, then by long-poll. What comes is judged, handed to the caller, and
//! persisted once the caller has applied it; the next poll acknowledges it.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::mpsc;

use super::client::{Client, Polled, TableQuery};
use super::health::{Health, Topic};
use super::state::{Identity, StateDir};
use crate::api::errand::Errand;
use crate::api::node::USED_TWICE;
use crate::api::table::NodeTable;
use crate::api::{Problem, ProblemCode};
use crate::types::{Incarnation, Revision, Serial, Timestamp};

/// First and longest wait after a request that failed, before chance makes it shorter.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Who is refused so often in a row is a copy, or has one.
const REFUSALS_OF_COPIES: u32 = 2;

/// Longest wait of a process whose node another one speaks for, before chance makes it shorter.
const COPY_WAITS: Duration = Duration::from_secs(60);

/// How long to wait after `failures` failures in a row: doubling, and up to a half less by chance, the
/// first time too, so that a thousand nodes do not come back in the same moment.
#[must_use]
pub fn backoff(failures: u32) -> Duration {
    let doubled = BACKOFF_MIN * 2_u32.pow(failures.saturating_sub(1).min(10));
    let full = doubled.min(BACKOFF_MAX);
    full.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// What to do with a table that the server offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Apply it.
    Newer,
    /// It is the one in force.
    Same,
    /// The same life of the server counted further before.
    Older,
    /// Another life of the server, which nobody accepted.
    OtherLife,
}

/// What is said of a table beside its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    incarnation: Incarnation,
    serial: Serial,
    revision: Revision,
}

impl Head {
    /// Of a table.
    pub(crate) fn of(table: &NodeTable) -> Self {
        let NodeTable { serial, revision, .. } = *table;
        Self { incarnation: table.incarnation.clone(), serial, revision }
    }
}

/// `in_force` is the table in force; `joined` the life of the server that this node joined, which it follows
/// while it has no table.
pub(crate) fn judge(
    in_force: Option<&Head>,
    joined: &Incarnation,
    offered: &NodeTable,
) -> Judgement {
    let followed = in_force.map_or(joined, |head| &head.incarnation);
    if *followed != offered.incarnation {
        let is_accepted = offered.succeeds.contains(followed);
        return if is_accepted { Judgement::Newer } else { Judgement::OtherLife };
    }
    match in_force.map(|head| offered.serial.cmp(&head.serial)) {
        None | Some(Ordering::Greater) => Judgement::Newer,
        Some(Ordering::Equal) => Judgement::Same,
        Some(Ordering::Less) => Judgement::Older,
    }
}

/// The loop's state; the caller owns the loop.
#[derive(Debug)]
pub struct Puller {
    client: Arc<Client>,
    state: Arc<StateDir>,
    identity: Identity,
    health: Arc<Health>,
    clock: fn() -> Timestamp,
    errands: mpsc::Sender<Errand>,
    in_force: Option<Head>,
    /// The life of the server of which a table was refused, for as long as the server stays with it.
    refused: Option<Incarnation>,
    failures: u32,
    /// How often in a row another process was served as this node.
    refused_as_copy: u32,
}

impl Puller {
    /// A puller for the node `identity` that has applied nothing yet. What the server asks for beside
    /// goes to `errands`; what finds no room there is not done, and the server asks again.
    #[must_use]
    pub fn new(
        client: Arc<Client>,
        state: Arc<StateDir>,
        identity: Identity,
        health: Arc<Health>,
        clock: fn() -> Timestamp,
        errands: mpsc::Sender<Errand>,
    ) -> Self {
        Self {
            client,
            state,
            identity,
            health,
            clock,
            errands,
            in_force: None,
            refused: None,
            failures: 0,
            refused_as_copy: 0,
        }
    }

    /// The table on disk, to be applied before anything is asked of the network.
    #[must_use]
    pub fn stored(&self) -> Option<NodeTable> {
        let (table, problems) = self.state.table();
        self.health.set(Topic::State, problems);
        table.filter(|table| self.is_ours(table))
    }

    /// The table before the one of [`Self::stored`], for when that one cannot be applied.
    #[must_use]
    pub fn stored_before(&self) -> Option<NodeTable> {
        self.state.table_before().filter(|table| self.is_ours(table))
    }

    /// The stored table is in force; it need not be written again.
    pub fn resume(&mut self, table: &NodeTable) {
        self.in_force = Some(Head::of(table));
    }

    /// Waits for the next table to apply; asks for ever. Asking acknowledges the one in force.
    pub async fn next(&mut self) -> NodeTable {
        loop {
            if self.health.is_copy() {
                tokio::time::sleep(COPY_WAITS.mul_f64(rand::rng().random_range(0.5..=1.0))).await;
            } else if self.failures > 0 {
                tokio::time::sleep(backoff(self.failures)).await;
            }
            match self.ask().await {
                Ok(Some(table)) => return table,
                Ok(None) => self.failures = 0,
                Err(()) => self.failures = self.failures.saturating_add(1),
            }
        }
    }

    /// `table` is applied: persists it, so that the next question acknowledges it.
    pub fn accept(&mut self, table: &NodeTable) {
        match self.state.save_table(table) {
            Ok(()) => {
                self.failures = 0;
                self.health.set(Topic::Table, Vec::new());
                self.resume(table);
            }
            Err(problem) => {
                self.failures = self.failures.saturating_add(1);
                let line =
                    format!("cannot keep the newest table: {}: {}", problem.what, problem.why);
                self.health.set(Topic::Table, vec![line]);
            }
        }
    }

    /// `table` cannot be applied: the one in force stays, and the server is asked again later.
    pub fn refuse(&mut self, table: &NodeTable, why: &str) {
        self.failures = self.failures.saturating_add(1);
        let line = format!("the table with serial {} cannot be applied: {why}", table.serial);
        self.health.set(Topic::Table, vec![line]);
    }

    async fn ask(&mut self) -> Result<Option<NodeTable>, ()> {
        let head = self.in_force.as_ref();
        let after = head.map_or(Serial(0), |head| head.serial);
        let query = TableQuery {
            after,
            incarnation: head.map_or(&self.identity.incarnation, |head| &head.incarnation),
            refused: self.refused.as_ref(),
            revision: head.filter(|_| self.refused.is_some()).map(|head| head.revision),
        };
        let answer = self.client.table(&self.identity.credential, &query).await;
        let now = (self.clock)();
        let offered = match answer {
            Ok(offered) => {
                self.refused_as_copy = 0;
                self.health.set_copy(false);
                self.health.server_answered(self.client.url(), None, now);
                offered
            }
            Err(problem) => {
                if problem.code == ProblemCode::Conflict && self.refused.is_some() {
                    // Its time to wait was over: it asks on at once, to hear the word when it falls.
                    self.failures = 0;
                }
                self.note(&problem, now);
                return Err(());
            }
        };
        // Who waits for an operator's word gets that word, or an error.
        let refused = self.refused.take();
        let table = match offered {
            Polled::Table(table) => *table,
            Polled::Errand(errand) => {
                drop(self.errands.try_send(errand));
                self.health.set(Topic::Server, Vec::new());
                return Ok(None);
            }
            Polled::Nothing => {
                self.health.set(Topic::Server, Vec::new());
                return Ok(None);
            }
        };
        if !self.is_ours(&table) {
            return self.complain("the server sent the table of another node");
        }
        match judge(self.in_force.as_ref(), &self.identity.incarnation, &table) {
            Judgement::Newer => {
                self.health.set(Topic::Server, Vec::new());
                Ok(Some(table))
            }
            // Not asked for; asking at once again would spin.
            Judgement::Same => Err(()),
            Judgement::Older => self.complain(&format!(
                "the server offers an older table (serial {}, in force {after}); \
                 keeping the one in force",
                table.serial
            )),
            Judgement::OtherLife => {
                // A server that offers it again did not listen: without a pause it would be asked for ever.
                let is_news = refused.as_ref() != Some(&table.incarnation);
                self.refused = Some(table.incarnation);
                self.failures = if is_news { 0 } else { self.failures };
                self.complain(NOT_ACCEPTED)
            }
        }
    }

    fn complain(&self, line: &str) -> Result<Option<NodeTable>, ()> {
        self.health.set(Topic::Server, vec![line.to_owned()]);
        Err(())
    }

    fn note(&mut self, problem: &Problem, now: Timestamp) {
        match problem.code {
            ProblemCode::Unreachable => {
                let why = if problem.why.is_empty() { &problem.what } else { &problem.why };
                self.health.server_answered(self.client.url(), Some(why.clone()), now);
            }
            ProblemCode::Unauthorized if problem.what.contains(WRONG_SERVER) => {
                self.health.server_answered(self.client.url(), Some(problem.what.clone()), now);
            }
            ProblemCode::Unauthorized => {
                self.health.server_answered(self.client.url(), None, now);
                let line = format!(
                    "this node was removed from the server ({}): leave and join again with a new token",
                    problem.what
                );
                self.health.set(Topic::Server, vec![line]);
            }
            ProblemCode::Conflict if problem.what.contains(USED_TWICE) => {
                self.health.server_answered(self.client.url(), None, now);
                // A word of a process that has ended may be in the way once.
                self.refused_as_copy = self.refused_as_copy.saturating_add(1);
                if self.refused_as_copy < REFUSALS_OF_COPIES {
                    return;
                }
                self.health.set_copy(true);
                let line = format!("{}: {}; {}", problem.what, problem.why, problem.fix);
                self.health.set(Topic::Server, vec![line]);
            }
            ProblemCode::Conflict if self.refused.is_some() => {
                self.health.server_answered(self.client.url(), None, now);
                self.health.set(Topic::Server, vec![NOT_ACCEPTED.to_owned()]);
            }
            ProblemCode::Failed
            | ProblemCode::Findings
            | ProblemCode::Usage
            | ProblemCode::NotFound
            | ProblemCode::Conflict => {
                self.health.server_answered(self.client.url(), None, now);
                let line = format!("the server answers with an error: {}", problem.what);
                self.health.set(Topic::Server, vec![line]);
            }
        }
    }

    fn is_ours(&self, table: &NodeTable) -> bool {
        table.body.node.id == self.identity.id && table.body.node.kind == self.identity.kind
    }
}

/// What is said for as long as a restored server is not accepted.
const NOT_ACCEPTED: &str = "the server was restored; keeping the table in force until it is accepted: \
                            run ovctl restore --accept";

/// How the client says that the pin does not fit.
const WRONG_SERVER: &str = "is not the one that made this token";

#[cfg(test)]
mod tests {
    use super::*;

    fn life(text: &str) -> Incarnation {
        Incarnation(text.to_owned())
    }

    fn offered(incarnation: &Incarnation, serial: u64, succeeds: &[&Incarnation]) -> NodeTable {
        let succeeds: Vec<String> = succeeds.iter().map(|life| life.to_string()).collect();
        serde_json::from_value(serde_json::json!({
            "apiVersion": "ovmesh/v1", "incarnation": incarnation, "succeeds": succeeds,
            "serial": serial, "revision": 7,
            "body": {"node": {"id": 3, "kind": "entity", "name": "a"},
                "saps": [], "links": [], "overlays": []},
        }))
        .unwrap()
    }

    #[test]
    fn truth_table_of_offered_tables() {
        use Judgement::{Newer, Older, OtherLife, Same};
        let (a, b, c) = (life("a"), life("b"), life("c"));
        // in force, joined, offered -> judgement
        let table = [
            (None, &a, offered(&a, 1, &[]), Newer),
            // It lost its tables, and knows whom it joined.
            (None, &a, offered(&b, 1, &[]), OtherLife),
            (None, &a, offered(&b, 1, &[&a]), Newer),
            (Some((&a, 5)), &a, offered(&a, 6, &[]), Newer),
            (Some((&a, 5)), &a, offered(&a, 5, &[]), Same),
            (Some((&a, 5)), &a, offered(&a, 4, &[]), Older),
            (Some((&a, 5)), &a, offered(&a, 4, &[&a]), Older),
            // A restore, before and after it is accepted; serials of another life mean nothing.
            (Some((&a, 5)), &a, offered(&b, 6, &[]), OtherLife),
            (Some((&a, 5)), &a, offered(&b, 6, &[&c]), OtherLife),
            (Some((&a, 5)), &a, offered(&b, 1, &[&c, &a]), Newer),
            // The server of before comes back: that it was joined once says nothing any more.
            (Some((&b, 1)), &a, offered(&a, 9, &[]), OtherLife),
            (Some((&b, 1)), &a, offered(&b, 2, &[&a]), Newer),
        ];
        for (in_force, joined, offered, expected) in table {
            let head = in_force.map(|(life, serial)| Head {
                incarnation: life.clone(),
                serial: Serial(serial),
                revision: Revision(1),
            });

            let judgement = judge(head.as_ref(), joined, &offered);

            assert_eq!(judgement, expected, "{in_force:?} {joined:?} {offered:?}");
        }
    }

    #[test]
    fn backoff_doubles_to_its_bound_and_no_two_nodes_wait_alike() {
        for (failures, longest_ms) in
            [(1, 200), (2, 400), (3, 800), (5, 3_200), (6, 5_000), (99, 5_000)]
        {
            let longest = Duration::from_millis(longest_ms);
            let waits: Vec<Duration> = (0..200).map(|_| backoff(failures)).collect();
            assert!(waits.iter().all(|wait| *wait >= longest / 2 && *wait <= longest), "{waits:?}");
            // Spread over the whole of it: none of ten parts stays empty.
            for part in 0..10 {
                let from = longest / 2 + longest / 20 * part;
                let is_here = |wait: &&Duration| **wait >= from && **wait <= from + longest / 20;
                assert!(waits.iter().any(|wait| is_here(&wait)), "{failures}: {part}: {waits:?}");
            }
        }
    }
}

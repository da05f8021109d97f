//! Pulls tables: from disk first, then by long-poll. What comes is judged, handed to the caller, and
//! persisted once the caller has applied it; the next poll acknowledges it.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::sync::mpsc;

use super::client::{Client, Polled};
use super::health::{Health, Topic};
use super::state::{Identity, StateDir};
use crate::api::errand::Errand;
use crate::api::table::NodeTable;
use crate::api::{Problem, ProblemCode};
use crate::types::{Incarnation, Serial, Timestamp};

/// First and longest wait after a request that failed.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long to wait after `failures` failures in a row: doubling, and up to a half less by chance, so
/// that a thousand nodes do not come back in the same moment.
#[must_use]
pub fn backoff(failures: u32) -> Duration {
    let doubled = BACKOFF_MIN * 2_u32.pow(failures.saturating_sub(1).min(10));
    let full = doubled.min(BACKOFF_MAX);
    full.mul_f64(rand::rng().random_range(0.5..=1.0)).max(BACKOFF_MIN)
}

/// What to do with a table that the server offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// Apply it.
    Newer,
    /// It is the one in force.
    Same,
    /// The same life of the server counted further before.
    Older,
    /// Another life of the server, which nobody accepted.
    OtherLife,
}

/// `in_force` is the table in force; `joined` the life of the server that this node joined.
fn judge(
    in_force: Option<(&Incarnation, Serial)>,
    joined: &Incarnation,
    offered: (&Incarnation, Serial),
) -> Judgement {
    match in_force {
        Some((incarnation, serial)) if incarnation == offered.0 => {
            if offered.1 > serial {
                Judgement::Newer
            } else if offered.1 == serial {
                Judgement::Same
            } else {
                Judgement::Older
            }
        }
        // The identity names the life that was joined or accepted since.
        Some(_) if offered.0 == joined => Judgement::Newer,
        Some(_) => Judgement::OtherLife,
        // Nothing to lose.
        None => Judgement::Newer,
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
    in_force: Option<(Incarnation, Serial)>,
    failures: u32,
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
        Self { client, state, identity, health, clock, errands, in_force: None, failures: 0 }
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
        self.in_force = Some((table.incarnation.clone(), table.serial));
    }

    /// Waits for the next table to apply; asks for ever. Asking acknowledges the one in force.
    pub async fn next(&mut self) -> NodeTable {
        loop {
            if self.failures > 0 {
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

    async fn ask(&self) -> Result<Option<NodeTable>, ()> {
        let (incarnation, after) = match &self.in_force {
            Some((incarnation, serial)) => (Some(incarnation), *serial),
            None => (None, Serial(0)),
        };
        let answer = self.client.table(&self.identity.credential, after, incarnation).await;
        let now = (self.clock)();
        let offered = match answer {
            Ok(offered) => {
                self.health.server_answered(self.client.url(), None, now);
                offered
            }
            Err(problem) => {
                self.note(&problem, now);
                return Err(());
            }
        };
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
        let in_force = self.in_force.as_ref().map(|(incarnation, serial)| (incarnation, *serial));
        let offered = (&table.incarnation, table.serial);
        match judge(in_force, &self.identity.incarnation, offered) {
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
            Judgement::OtherLife => self.complain(
                "the server was restored; keeping the table in force until it is accepted: \
                 run ovctl restore --accept",
            ),
        }
    }

    fn complain(&self, line: &str) -> Result<Option<NodeTable>, ()> {
        self.health.set(Topic::Server, vec![line.to_owned()]);
        Err(())
    }

    fn note(&self, problem: &Problem, now: Timestamp) {
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

/// How the client says that the pin does not fit.
const WRONG_SERVER: &str = "is not the one that made this token";

#[cfg(test)]
mod tests {
    use super::*;

    fn life(text: &str) -> Incarnation {
        Incarnation(text.to_owned())
    }

    #[test]
    fn truth_table_of_offered_tables() {
        use Judgement::{Newer, Older, OtherLife, Same};
        let (a, b) = (life("a"), life("b"));
        // in force, joined, offered -> judgement
        let table = [
            (None, &a, (&a, 1), Newer),
            (None, &a, (&b, 1), Newer),
            (Some((&a, 5)), &a, (&a, 6), Newer),
            (Some((&a, 5)), &a, (&a, 5), Same),
            (Some((&a, 5)), &a, (&a, 4), Older),
            (Some((&a, 5)), &a, (&b, 6), OtherLife),
            (Some((&a, 5)), &a, (&b, 1), OtherLife),
            (Some((&a, 5)), &b, (&b, 1), Newer),
        ];
        for (in_force, joined, offered, expected) in table {
            let in_force_serial = in_force.map(|(life, serial)| (life, Serial(serial)));
            let offered_serial = (offered.0, Serial(offered.1));

            let judgement = judge(in_force_serial, joined, offered_serial);

            assert_eq!(judgement, expected, "{in_force:?} {joined:?} {offered:?}");
        }
    }

    #[test]
    fn backoff_doubles_to_its_bound() {
        for (failures, longest_ms) in
            [(1, 200), (2, 400), (3, 800), (5, 3_200), (6, 5_000), (99, 5_000)]
        {
            let longest = Duration::from_millis(longest_ms);
            for _ in 0..50 {
                let wait = backoff(failures);
                assert!(wait >= BACKOFF_MIN && wait >= longest / 2 && wait <= longest, "{wait:?}");
            }
        }
    }
}

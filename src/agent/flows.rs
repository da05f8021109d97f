//! Reports what the hallways counted: once in 5 s, what changed, at most 1,000 records at a time. What
//! waits is bounded, and a report that may have been lost is sent again as it was.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::client::Client;
use crate::api::ProblemCode;
use crate::api::flows::{FlowReport, FlowRow, FlowVerdict, OverflowRow, REPORT_RECORDS_MAX};
use crate::forward::{Collected, Outcome, RecordKey, RecordTable, Sums, Target};
use crate::types::{Secret, Timestamp};

/// Between two reports.
const INTERVAL: Duration = Duration::from_secs(5);

/// Most records that wait for a server that is away.
const PENDING_MAX: usize = 20_000;

/// How long this node itself remembers what it collected, for its own answers, and how many records.
const RECENT_SECONDS: u64 = 600;
const RECENT_MAX: usize = 10_000;

/// What was collected and not delivered, and what happened lately.
#[derive(Debug)]
pub struct Reporter {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    run: u64,
    /// Of the last report that was made.
    number: u64,
    /// When the table was collected last.
    since: Timestamp,
    pending: BTreeMap<RecordKey, Sums>,
    overflow: BTreeMap<FlowVerdict, Sums>,
    /// The last record that was reported: the next report goes on behind it.
    cursor: Option<RecordKey>,
    /// A report that was not answered yet.
    in_flight: Option<FlowReport>,
    recent: VecDeque<(RecordKey, Sums)>,
}

impl Reporter {
    /// For a process that started at `run`, in milliseconds since 1970.
    #[must_use]
    pub fn new(run: u64) -> Self {
        let inner = Inner {
            run,
            number: 0,
            since: Timestamp(run / 1000),
            pending: BTreeMap::new(),
            overflow: BTreeMap::new(),
            cursor: None,
            in_flight: None,
            recent: VecDeque::new(),
        };
        Self { inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the hallways counted since the last time.
    pub fn collect(&self, table: &RecordTable, now: Timestamp) {
        self.inner().collect(table, now);
    }

    /// What was counted since `since`, as far as this process remembers, added up.
    #[must_use]
    pub fn recent(&self, since: Timestamp) -> BTreeMap<RecordKey, Sums> {
        let mut found: BTreeMap<RecordKey, Sums> = BTreeMap::new();
        for (key, sums) in self.inner().recent.iter().filter(|(_, sums)| sums.last >= since) {
            add(&mut found, *key, *sums);
        }
        found
    }
}

impl Inner {
    fn collect(&mut self, table: &RecordTable, now: Timestamp) {
        let since = self.since;
        table.collect(since, now, |what, sums| match what {
            Collected::Record(key) => self.take(key, sums),
            Collected::Overflow(outcome) => add(&mut self.overflow, verdict(outcome), sums),
        });
        self.since = now;
        let is_old = |sums: &Sums| now.0.saturating_sub(sums.last.0) > RECENT_SECONDS;
        while self.recent.front().is_some_and(|(_, sums)| is_old(sums))
            || self.recent.len() > RECENT_MAX
        {
            self.recent.pop_front();
        }
    }

    fn take(&mut self, key: RecordKey, sums: Sums) {
        self.recent.push_back((key, sums));
        if self.pending.len() < PENDING_MAX || self.pending.contains_key(&key) {
            add(&mut self.pending, key, sums);
        } else {
            add(&mut self.overflow, verdict(key.outcome), sums);
        }
    }

    /// The report to send now: the one that was not answered, else a new one; none when nothing
    /// changed.
    fn report(&mut self) -> Option<FlowReport> {
        if self.in_flight.is_none() && !(self.pending.is_empty() && self.overflow.is_empty()) {
            self.number += 1;
            let records = self.next_keys().into_iter().filter_map(|key| {
                let sums = self.pending.remove(&key)?;
                Some(row(key, sums))
            });
            let records = records.collect();
            let overflow = std::mem::take(&mut self.overflow).into_iter();
            let overflow = overflow.map(|(verdict, sums)| OverflowRow {
                verdict,
                packets: sums.packets,
                bytes: sums.bytes,
            });
            let overflow = overflow.collect();
            self.in_flight =
                Some(FlowReport { run: self.run, number: self.number, records, overflow });
        }
        self.in_flight.clone()
    }

    /// Whose turn it is: those behind the last one that was reported, then from the start.
    fn next_keys(&mut self) -> Vec<RecordKey> {
        let behind = match self.cursor {
            Some(cursor) => (Bound::Excluded(cursor), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        let mut keys: Vec<RecordKey> =
            self.pending.range(behind).map(|(key, _)| *key).take(REPORT_RECORDS_MAX).collect();
        if let Some(cursor) = self.cursor {
            let room = REPORT_RECORDS_MAX - keys.len();
            keys.extend(self.pending.range(..=cursor).map(|(key, _)| *key).take(room));
        }
        self.cursor = keys.last().copied().or(self.cursor);
        keys
    }
}

fn add<K: Ord>(into: &mut BTreeMap<K, Sums>, key: K, sums: Sums) {
    into.entry(key).and_modify(|known| *known = known.and(sums)).or_insert(sums);
}

/// The outcome without its reason.
#[must_use]
pub fn verdict(outcome: Outcome) -> FlowVerdict {
    match outcome {
        Outcome::Allowed => FlowVerdict::Allowed,
        Outcome::Open => FlowVerdict::AllowedOpen,
        Outcome::Audit => FlowVerdict::Audit,
        Outcome::Denied(_) => FlowVerdict::Denied,
    }
}

fn row(key: RecordKey, sums: Sums) -> FlowRow {
    let (to, address) = match key.to {
        Target::Member(id) => (Some(id), None),
        Target::Address(address) => (None, Some(address)),
    };
    FlowRow {
        overlay: key.overlay,
        rule: key.rule,
        from: key.from,
        to,
        address,
        protocol: key.protocol,
        port: key.port,
        verdict: verdict(key.outcome),
        reason: match key.outcome {
            Outcome::Denied(reason) => Some(reason.name().to_owned()),
            Outcome::Allowed | Outcome::Open | Outcome::Audit => None,
        },
        packets: sums.packets,
        bytes: sums.bytes,
        first: sums.first,
        last: sums.last,
    }
}

/// Collects and reports for ever; stops when it is dropped.
pub async fn run(
    client: &Client,
    credential: &Secret,
    reporter: &Reporter,
    table: &RecordTable,
    clock: fn() -> Timestamp,
) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        reporter.collect(table, clock());
        let Some(report) = reporter.inner().report() else { continue };
        match client.report_flows(credential, &report).await {
            Ok(()) => reporter.inner().in_flight = None,
            // Sent again it would be refused again; what it said is lost.
            Err(problem) if problem.code == ProblemCode::Usage => {
                tracing::warn!(what = %problem.what, why = %problem.why, "flow report refused");
                reporter.inner().in_flight = None;
            }
            Err(problem) => {
                tracing::debug!(what = %problem.what, why = %problem.why, "flow report waits");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DropReason, NodeId, OverlayId};

    const NOW: Timestamp = Timestamp(1_000);

    fn key(port: u16) -> RecordKey {
        RecordKey {
            overlay: OverlayId(1),
            rule: None,
            from: NodeId(1),
            to: Target::Member(NodeId(2)),
            protocol: 6,
            port: Some(port),
            outcome: Outcome::Denied(DropReason::NoRule),
        }
    }

    fn sums(packets: u64) -> Sums {
        Sums { packets, bytes: packets * 10, first: NOW, last: NOW }
    }

    fn inner(reporter: &Reporter) -> MutexGuard<'_, Inner> {
        reporter.inner()
    }

    #[test]
    fn a_report_is_repeated_as_it_was_until_it_is_answered() {
        let reporter = Reporter::new(1_000_000);
        let mut state = inner(&reporter);
        assert_eq!(state.report(), None, "nothing happened");
        state.take(key(80), sums(2));

        let first = state.report().unwrap();
        state.take(key(80), sums(5));
        assert_eq!(state.report(), Some(first.clone()));
        state.in_flight = None;

        let second = state.report().unwrap();
        assert_eq!((first.number, first.records[0].packets), (1, 2));
        assert_eq!((second.number, second.records[0].packets), (2, 5));
        assert_eq!(second.records[0].reason.as_deref(), Some("no_rule"));
    }

    #[test]
    fn many_records_are_reported_in_turn_and_all_of_them() {
        let reporter = Reporter::new(0);
        let mut state = inner(&reporter);
        let mut seen = std::collections::BTreeSet::new();
        for port in 0..2_500 {
            state.take(key(port), sums(1));
        }
        for round in 0..3 {
            // A busy one does not keep the others waiting.
            state.take(key(0), sums(1));
            let report = state.report().unwrap();
            assert!(report.records.len() <= REPORT_RECORDS_MAX, "round {round}");
            seen.extend(report.records.iter().map(|row| row.port));
            state.in_flight = None;
        }
        assert_eq!(seen.len(), 2_500);
    }

    #[test]
    fn what_waits_is_bounded_and_the_rest_is_counted() {
        let reporter = Reporter::new(0);
        let mut state = inner(&reporter);
        for port in 0..=u16::MAX {
            state.take(key(port), sums(1));
        }
        assert_eq!(state.pending.len(), PENDING_MAX);
        let report = state.report().unwrap();
        let rest = u64::from(u16::MAX) + 1 - PENDING_MAX as u64;
        let overflow =
            OverflowRow { verdict: FlowVerdict::Denied, packets: rest, bytes: 10 * rest };
        assert_eq!(report.overflow, [overflow]);
    }
}

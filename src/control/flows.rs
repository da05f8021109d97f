//! What nodes say that happened: checked, added up in memory for a second, then kept in the database.
//!
//! A node speaks of itself alone, a SaP of the overlays that it serves; what a report says beside that
//! is left out. A SaP and both ends see the same packets: [`settle`] decides whose count is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::flows::{FlowReport, FlowRow, FlowVerdict, REPORT_RECORDS_MAX};
use crate::policy::World;
use crate::types::{
    DropReason, NodeId, NodeKind, OverlayId, PortRange, Protocol, RuleId, Service, Timestamp,
};

/// Periods of counting, and those of records that are older than one hour.
pub(crate) const PERIOD_SECONDS: u64 = 300;
pub(crate) const HOUR_SECONDS: u64 = 3_600;

/// Most rows that are kept, and most of one node.
pub(crate) const ROWS_MAX: u64 = 200_000;
pub(crate) const ROWS_OF_NODE_MAX: u64 = ROWS_MAX / 8;

/// Most rows that wait for the database.
const INBOX_MAX: usize = 50_000;

/// Least time between two reports of a node.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// How much, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) first: Timestamp,
    pub(crate) last: Timestamp,
}

impl Sums {
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }
}

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FlowKey {
    pub(crate) overlay: OverlayId,
    pub(crate) from: NodeId,
    /// None where nobody has the address.
    pub(crate) to: Option<NodeId>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) protocol: u8,
    pub(crate) port: Option<u16>,
    pub(crate) rule: Option<RuleId>,
    pub(crate) verdict: FlowVerdict,
    pub(crate) reason: Option<&'static str>,
}

impl FlowKey {
    /// Protocol and port as rules name them; port 0 cannot be named and is left out.
    pub(crate) fn service(&self) -> Service {
        let number = self.protocol.to_string();
        let protocol = number.parse().unwrap_or(Protocol::Number(self.protocol));
        match self.port.filter(|&port| port != 0 && protocol.has_ports()) {
            Some(port) => Service::Ports(protocol, PortRange { first: port, last: port }),
            None => Service::Protocol(protocol),
        }
    }
}

/// A record of one node and one period.
pub(crate) type SeenKey = (FlowKey, NodeId, Timestamp);

/// What waits for the database.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub(crate) rows: BTreeMap<SeenKey, Sums>,
    pub(crate) hits: BTreeMap<RuleId, Sums>,
    /// The last report of each node: its run, its number, and when it came.
    reports: BTreeMap<NodeId, (u64, u64, Instant)>,
    /// Packets that nodes and this server had no room for, since the start.
    pub(crate) uncounted: u64,
    /// Rows that were evicted before their time, since the start.
    pub(crate) evicted: u64,
}

/// Why a report is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// It has more records than a report may have.
    TooLong,
    /// The node's last one came a moment ago, or the database is behind.
    TooSoon,
}

impl Inbox {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.hits.is_empty()
    }

    /// Hands over what waits.
    pub(crate) fn empty(&mut self) -> (BTreeMap<SeenKey, Sums>, BTreeMap<RuleId, Sums>) {
        (std::mem::take(&mut self.rows), std::mem::take(&mut self.hits))
    }

    /// What is missing, in words.
    pub(crate) fn problem(&self) -> Option<String> {
        let Self { uncounted, evicted, .. } = self;
        (uncounted + evicted > 0).then(|| {
            format!(
                "flow records are incomplete since the server's start: {uncounted} packets found no \
                 room at their node, {evicted} records were evicted for newer ones"
            )
        })
    }

    /// Takes what `observer` says.
    pub(crate) fn take(
        &mut self,
        world: &World,
        observer: NodeId,
        report: &FlowReport,
        now: Timestamp,
    ) -> Result<(), NotTaken> {
        if report.records.len() > REPORT_RECORDS_MAX || report.overflow.len() > 4 {
            return Err(NotTaken::TooLong);
        }
        let arrived = Instant::now();
        if let Some(&(run, number, at)) = self.reports.get(&observer) {
            if (run, number) == (report.run, report.number) {
                return Ok(());
            }
            if arrived < at + REPORT_EVERY {
                return Err(NotTaken::TooSoon);
            }
        }
        if self.rows.len() + report.records.len() > INBOX_MAX {
            return Err(NotTaken::TooSoon);
        }
        self.reports.retain(|id, _| world.nodes.contains_key(id));
        self.reports.insert(observer, (report.run, report.number, arrived));
        let lost: u64 =
            report.overflow.iter().map(|row| row.packets.min(u64::from(u32::MAX))).sum();
        self.uncounted = self.uncounted.saturating_add(lost);
        let mut addresses = None;
        for row in &report.records {
            let Some(key) = checked(world, observer, row, &mut addresses) else { continue };
            let sums = sums(row, now);
            let is_final = key.verdict == FlowVerdict::Denied || key.to == Some(observer);
            if let Some(rule) = key.rule.filter(|_| is_final) {
                add(&mut self.hits, rule, sums);
            }
            let period = Timestamp(sums.last.0 / PERIOD_SECONDS * PERIOD_SECONDS);
            add(&mut self.rows, (key, observer, period), sums);
        }
        Ok(())
    }
}

pub(crate) fn add<K: Ord>(into: &mut BTreeMap<K, Sums>, key: K, sums: Sums) {
    into.entry(key).and_modify(|known| *known = known.and(sums)).or_insert(sums);
}

/// A node's clock may be wrong: nothing of it lies in the future, or more than a day back.
fn sums(row: &FlowRow, now: Timestamp) -> Sums {
    let earliest = Timestamp(now.0.saturating_sub(24 * HOUR_SECONDS));
    let last = row.last.clamp(earliest, now);
    Sums {
        // SQLite counts in 63 bits, and adds up.
        packets: row.packets.min(u64::from(u32::MAX)),
        bytes: row.bytes.min(1 << 48),
        first: row.first.clamp(earliest, last),
        last,
    }
}

type Addresses = BTreeMap<(OverlayId, IpAddr), NodeId>;

/// The record's key, when `observer` may speak of it.
fn checked(
    world: &World,
    observer: NodeId,
    row: &FlowRow,
    addresses: &mut Option<Addresses>,
) -> Option<FlowKey> {
    let overlay = world.overlays.get(&row.overlay)?;
    let is_member = |id: NodeId| {
        world.nodes.get(&id).is_some_and(|node| node.addresses.contains_key(&row.overlay))
    };
    let facts = world.nodes.get(&observer)?;
    let may_speak = match facts.kind {
        NodeKind::Sap => facts.serves.contains(&row.overlay),
        NodeKind::Entity => row.from == observer || row.to == Some(observer),
    };
    if !may_speak || !is_member(row.from) {
        return None;
    }
    let (to, address) = match (row.to, row.address) {
        (Some(to), None) if is_member(to) && to != row.from => (Some(to), None),
        // Only the source itself asks for what it has no row for.
        (None, Some(address)) if row.from == observer && overlay.cidr.contains(&address) => {
            let known = addresses.get_or_insert_with(|| addresses_of(world));
            match known.get(&(row.overlay, address)) {
                Some(&to) if to == row.from => return None,
                Some(&to) => (Some(to), None),
                None => (None, Some(address)),
            }
        }
        _ => return None,
    };
    let reason = match (row.verdict, &row.reason) {
        (FlowVerdict::Denied, Some(name)) => Some(DropReason::named(name)?.name()),
        (FlowVerdict::Denied, None) | (_, Some(_)) => return None,
        (_, None) => None,
    };
    Some(FlowKey {
        overlay: row.overlay,
        from: row.from,
        to,
        address,
        protocol: row.protocol,
        port: row.port,
        rule: row.rule,
        verdict: row.verdict,
        reason,
    })
}

fn addresses_of(world: &World) -> Addresses {
    let of = |(&id, node): (&NodeId, &Arc<crate::policy::NodeFacts>)| {
        let own = node.addresses.iter().map(move |(&overlay, &address)| ((overlay, address), id));
        own.collect::<Vec<_>>()
    };
    world.nodes.iter().flat_map(of).collect()
}

/// A record with whose count it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) key: FlowKey,
    pub(crate) sums: Sums,
    pub(crate) seen_by: BTreeSet<NodeId>,
}

/// Adds up what several saw of the same thing, so that no packet counts twice, those with the most
/// packets first. What was denied was dropped in one place: all count. What passed was seen on the
/// way: the destination counts, else the SaP that saw most, else the source.
pub(crate) fn settle(world: &World, rows: impl Iterator<Item = (SeenKey, Sums)>) -> Vec<Settled> {
    let mut by_key: BTreeMap<FlowKey, BTreeMap<NodeId, Sums>> = BTreeMap::new();
    for ((key, observer, _), sums) in rows {
        add(by_key.entry(key).or_default(), observer, sums);
    }
    let is_sap = |id: NodeId| world.nodes.get(&id).is_some_and(|node| node.kind == NodeKind::Sap);
    let mut settled: Vec<Settled> = by_key
        .into_iter()
        .filter_map(|(key, seen)| {
            let rank = |id: NodeId| {
                if key.to == Some(id) { 2 } else { u8::from(is_sap(id)) }
            };
            let chosen: Vec<(NodeId, Sums)> = if key.verdict == FlowVerdict::Denied {
                seen.into_iter().collect()
            } else {
                seen.into_iter()
                    .max_by_key(|(id, sums)| (rank(*id), sums.packets))
                    .into_iter()
                    .collect()
            };
            let sums = chosen.iter().map(|(_, sums)| *sums).reduce(Sums::and)?;
            let seen_by = chosen.into_iter().map(|(id, _)| id).collect();
            Some(Settled { key, sums, seen_by })
        })
        .collect();
    settled.sort_by(|a, b| b.sums.packets.cmp(&a.sums.packets).then_with(|| a.key.cmp(&b.key)));
    settled
}

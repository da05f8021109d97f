//! A node: the table in force, the one on disk, a snapshot, flows, probes, a clock, and its way to the
//! server.

use std::net::SocketAddr;
use std::time::Duration;

use crate::agent::probes::{Heard, Probes, Transmit};
use crate::agent::sync::{self, Head, Judgement};
use crate::agent::{notices, snapshot};
use crate::api::table::NodeTable;
use crate::forward::{FlowTable, Now, Snapshot};
use crate::types::{Incarnation, NodeId, NodeKind, Secret, Serial, Timestamp};
use crate::wire::control::Message as Control;
use crate::wire::notice::NoPath;

/// Room for the flows of a story.
const FLOWS: usize = 128;

/// How often it looks at what its hallways did, as `app::control_loop` does.
const LOOK_MILLIS: u64 = 50;

/// For so long after a packet a SaP looks whether it hears to whom it went.
const LOOKS_FOR_MILLIS: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) is_up: bool,
    /// Whether it reaches the server.
    pub(super) is_connected: bool,
    /// Where packets reach it, whether or not anybody knows.
    pub(super) endpoint: SocketAddr,
    pub(super) in_force: Option<NodeTable>,
    pub(super) disk: Option<NodeTable>,
    snapshot: Snapshot,
    flows: FlowTable,
    probes: Probes,
    /// The version of the proofs that its snapshot knows.
    placed: u64,
    /// Whether packets left or arrived since it looked.
    has_moved: bool,
    looks_until: u64,
    /// When it wakes next.
    pub(super) woken: Option<u64>,
    /// How far its wall clock is ahead, in seconds.
    pub(super) ahead_seconds: i64,
    /// Counts its starts, and its connections to the server: what belongs to another one is void.
    pub(super) life: u32,
    pub(super) line: u32,
}

impl Node {
    pub(super) fn new(endpoint: SocketAddr, now: u64) -> Self {
        Self {
            is_up: true,
            is_connected: true,
            endpoint,
            in_force: None,
            disk: None,
            snapshot: Snapshot::empty(),
            flows: FlowTable::new(FLOWS),
            probes: probes(now),
            has_moved: false,
            placed: 0,
            looks_until: 0,
            woken: None,
            ahead_seconds: 0,
            life: 0,
            line: 0,
        }
    }

    /// What the matcher is asked with.
    pub(super) fn view(&self, now_millis: u64) -> (&Snapshot, &FlowTable, Now) {
        (&self.snapshot, &self.flows, self.clock(now_millis))
    }

    fn clock(&self, now_millis: u64) -> Now {
        let seconds = i64::try_from(now_millis / 1000).expect("not that late") + self.ahead_seconds;
        let wall = Timestamp(u64::try_from(seconds).unwrap_or(0));
        Now { monotonic_millis: now_millis, wall }
    }

    pub(super) fn serial(&self) -> Serial {
        self.in_force.as_ref().map_or(Serial(0), |table| table.serial)
    }

    /// A table that the server offered. Whether it is applied.
    pub(super) fn offer(&mut self, table: NodeTable, now: u64) -> Result<bool, String> {
        let head = self.in_force.as_ref().map(Head::of);
        let joined = Incarnation(super::server::LIFE.to_owned());
        if sync::judge(head.as_ref(), &joined, &table) != Judgement::Newer {
            return Ok(false);
        }
        if table.serial <= self.serial() {
            return Err(format!("applies serial {} after {}", table.serial, self.serial()));
        }
        let overlays = || table.body.overlays.iter();
        let of_destinations = overlays().flat_map(|overlay| &overlay.destination_keys);
        let of_pairs = overlays().flat_map(|overlay| &overlay.pair_generations);
        let of_destination = |to: u32| {
            let row = of_destinations.clone().find(|row| row.to == to);
            row.map_or(0, |row| row.accept.len())
        };
        let accepted = of_destinations.clone().map(|row| row.accept.len());
        let of_pairs = of_pairs.map(|row| row.accept.len() * of_destination(row.to));
        if accepted.chain(of_pairs).any(|count| count > 2) {
            return Err(format!("serial {} accepts more than two keys of a pair", table.serial));
        }
        self.put_in_force(table, now)?;
        Ok(true)
    }

    /// As `app::applier` does.
    fn put_in_force(&mut self, table: NodeTable, now: u64) -> Result<(), String> {
        let next = snapshot::build(&table)?;
        self.probes.replace_links(&table, millis(now));
        for change in self.probes.changes() {
            change.repeat(&next);
        }
        let before = self.started(now);
        self.snapshot = next;
        self.place();
        let moved = self.started(now);
        self.announce(moved.iter().filter(|flow| !before.contains(flow)));
        self.in_force = Some(table);
        Ok(())
    }

    /// At a SaP: entities are where they proved to be.
    fn place(&mut self) {
        if self.snapshot.owner().is_some_and(|(_, kind)| kind == NodeKind::Sap) {
            let proofs = self.probes.proofs();
            self.placed = proofs.version();
            self.snapshot = self.snapshot.with_proved(|entity| proofs.endpoint(entity));
        }
    }

    fn started(&self, now: u64) -> Vec<(NodeId, Control)> {
        notices::started(&self.snapshot, &self.flows, self.clock(now))
    }

    fn announce<'a>(&mut self, started: impl IntoIterator<Item = &'a (NodeId, Control)>) {
        for (sap, started) in started {
            self.probes.notify(*sap, started);
        }
    }

    /// A packet left, arrived or passed.
    pub(super) fn note_moved(&mut self, now: u64) {
        self.has_moved = true;
        let is_sap = self.snapshot.owner().is_some_and(|(_, kind)| kind == NodeKind::Sap);
        self.looks_until = if is_sap { now + LOOKS_FOR_MILLIS } else { now + LOOK_MILLIS };
    }

    /// When it wants to be woken.
    pub(super) fn wakes(&self, now: u64) -> Option<u64> {
        let deadline = self.probes.next_deadline().map(|at| {
            u64::try_from(at.as_micros().div_ceil(1_000)).expect("not that late").max(now + 1)
        });
        let look = (now / LOOK_MILLIS + 1) * LOOK_MILLIS;
        let look = (look <= self.looks_until || self.has_moved).then_some(look);
        deadline.into_iter().chain(look).min().filter(|_| self.is_up)
    }

    /// What `app::control_loop` does by itself. Gives the datagrams that leave.
    pub(super) fn talk(&mut self, now: u64) -> Vec<Transmit> {
        let at = millis(now);
        if now.is_multiple_of(LOOK_MILLIS) {
            if std::mem::take(&mut self.has_moved) {
                self.probes.handle_activity(at);
            }
            self.probes.handle_sent(&self.snapshot.take_sent_to(), at);
            let silent = self.probes.silent(at);
            if !silent.is_empty() {
                let told = notices::no_path(&self.snapshot, &self.flows, &silent, self.clock(now));
                for (sender, node) in told {
                    self.probes.notify(sender, &Control::NoPath(NoPath { node }));
                }
            }
        }
        self.probes.handle_timeout(at);
        let mut due: Vec<Transmit> = std::iter::from_fn(|| self.probes.poll_transmit(at)).collect();
        let changes = self.probes.changes();
        if !changes.is_empty() {
            for change in changes {
                change.apply(&self.snapshot, &self.flows);
            }
            let started = self.started(now);
            self.announce(&started);
            due.extend(std::iter::from_fn(|| self.probes.poll_transmit(at)));
        }
        due
    }

    /// A control datagram came.
    pub(super) fn hear(&mut self, from: SocketAddr, datagram: &[u8], now: u64) {
        let heard = self.probes.handle_datagram(from, datagram, millis(now));
        if let Ok(Some(Heard { peer, message: Control::Started(flow) })) = heard {
            self.snapshot.take_up(peer, &flow, &self.flows, self.clock(now));
        }
        if self.probes.proofs().version() != self.placed {
            self.place();
        }
    }

    /// At a SaP: where an entity proved to be.
    pub(super) fn proved(&self, entity: NodeId) -> Option<SocketAddr> {
        self.probes.proofs().endpoint(entity)
    }

    /// It notices that it has another address.
    pub(super) fn handle_moved(&mut self, now: u64) {
        self.probes.handle_moved(millis(now));
    }

    /// Ends as in a crash: what is not on disk is gone.
    pub(super) fn kill(&mut self) {
        self.is_up = false;
        self.life += 1;
    }

    /// Starts from the table on disk.
    pub(super) fn start(&mut self, now: u64) {
        self.is_up = true;
        self.flows = FlowTable::new(FLOWS);
        let proved = self.probes.proofs().all().clone();
        self.probes = probes(now);
        self.probes.remember(proved);
        (self.in_force, self.snapshot) = (None, Snapshot::empty());
        (self.has_moved, self.looks_until) = (false, 0);
        if let Some(table) = self.disk.clone() {
            self.put_in_force(table, now).expect("it was in force before");
        }
    }

    /// Loses the server, or finds it again. What is on its way between them is lost; what it does by itself
    /// goes on.
    pub(super) fn connect(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
        self.line += 1;
    }
}

/// Without links. Counters of messages begin at the time, which never goes back here. Everybody may be
/// anywhere: the addresses of the story are declared managed nowhere.
fn probes(now: u64) -> Probes {
    let mut probes = Probes::start(millis(now), millis(now), &Secret::new([7; 32]));
    probes.allow_open();
    probes
}

fn millis(now: u64) -> Duration {
    Duration::from_millis(now)
}

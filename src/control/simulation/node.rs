//! A node: the table in force, the one on disk, a snapshot, flows, a clock, and its way to the server.

use std::net::SocketAddr;

use crate::agent::snapshot;
use crate::api::table::NodeTable;
use crate::forward::{FlowTable, Now, Snapshot};
use crate::types::{Serial, Timestamp};

/// Room for the flows of a story.
const FLOWS: usize = 1024;

/// Something on its way between a node and the server.
#[derive(Debug)]
pub(super) enum Message {
    /// The server's answer to a poll.
    Table(Box<NodeTable>),
    /// The table in force is on disk; asking for the next one says so.
    Persisted,
    /// The next poll.
    Poll(Serial),
    /// Where it is reached.
    Endpoint(SocketAddr),
}

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
    /// How far its wall clock is ahead, in seconds.
    pub(super) ahead_seconds: i64,
    /// With their time; none outlives a kill or a cut.
    pub(super) messages: Vec<(u64, Message)>,
}

impl Node {
    pub(super) fn new(endpoint: SocketAddr) -> Self {
        Self {
            is_up: true,
            is_connected: true,
            endpoint,
            in_force: None,
            disk: None,
            snapshot: Snapshot::empty(),
            flows: FlowTable::new(FLOWS),
            ahead_seconds: 0,
            messages: Vec::new(),
        }
    }

    /// What the matcher is asked with.
    pub(super) fn view(&self, now_millis: u64) -> (&Snapshot, &FlowTable, Now) {
        let seconds = i64::try_from(now_millis / 1000).expect("not that late") + self.ahead_seconds;
        let wall = Timestamp(u64::try_from(seconds).unwrap_or(0));
        (&self.snapshot, &self.flows, Now { monotonic_millis: now_millis, wall })
    }

    pub(super) fn serial(&self) -> Serial {
        self.in_force.as_ref().map_or(Serial(0), |table| table.serial)
    }

    /// Applies a table that the server offered.
    pub(super) fn apply(&mut self, table: NodeTable) -> Result<(), String> {
        if table.serial <= self.serial() {
            return Err(format!("offered serial {} after {}", table.serial, self.serial()));
        }
        self.snapshot = snapshot::build(&table)?;
        self.in_force = Some(table);
        Ok(())
    }

    /// Ends as in a crash: what is not on disk is gone.
    pub(super) fn kill(&mut self) {
        self.is_up = false;
        self.messages.clear();
    }

    /// Starts from the table on disk.
    pub(super) fn start(&mut self) {
        self.is_up = true;
        self.flows = FlowTable::new(FLOWS);
        self.in_force.clone_from(&self.disk);
        self.snapshot = match &self.disk {
            Some(table) => snapshot::build(table).expect("it was in force before"),
            None => Snapshot::empty(),
        };
    }

    /// Cuts it off from the server alone.
    pub(super) fn cut(&mut self) {
        self.is_connected = false;
        // What it does by itself goes on.
        self.messages.retain(|(_, message)| matches!(message, Message::Persisted));
    }
}

//! An immutable picture of one table, ready for lookups.

use std::net::SocketAddr;

use super::{FlowTable, Now, Verdict};
use crate::types::{NodeId, OverlayId};
use crate::wire::Facts;

/// Everything that verdicts are made from.
#[derive(Debug)]
pub struct Snapshot {}

/// Builds a [`Snapshot`]; `agent::snapshot` drives it from a table.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {}

impl Snapshot {
    /// A snapshot that drops everything: what a node has before its first table.
    #[must_use]
    pub fn empty() -> Self {
        todo!()
    }

    /// `ovd`, a packet from the TUN of overlay number `overlay`: where it goes, under which key.
    pub fn egress(&self, overlay: usize, facts: &Facts, flows: &FlowTable, now: Now) -> Verdict {
        let _ = (overlay, facts, flows, now);
        todo!()
    }

    /// `ovd`, a packet from `outer` carrying `key`: whether the host gets it, on which overlay.
    pub fn ingress(
        &self,
        outer: SocketAddr,
        key: u32,
        facts: &Facts,
        flows: &FlowTable,
        now: Now,
    ) -> Verdict {
        let _ = (outer, key, facts, flows, now);
        todo!()
    }

    /// `ovsap`, a packet from `outer` carrying `key`: its next hop. Also when it comes from itself.
    pub fn transit(
        &self,
        outer: SocketAddr,
        key: u32,
        facts: &Facts,
        flows: &FlowTable,
        now: Now,
    ) -> Verdict {
        let _ = (outer, key, facts, flows, now);
        todo!()
    }

    /// Whether a datagram from `outer` can be anything but noise. The cheapest check after the header.
    #[must_use]
    pub fn knows(&self, outer: SocketAddr) -> bool {
        let _ = outer;
        todo!()
    }

    /// Where the overlay stands among the snapshot's overlays.
    #[must_use]
    pub fn overlay_index(&self, overlay: OverlayId) -> Option<usize> {
        let _ = overlay;
        todo!()
    }

    /// Marks a SaP as answering or not; flows that start later take the first live one. Callable from
    /// any thread.
    pub fn set_alive(&self, sap: NodeId, alive: bool) {
        let _ = (sap, alive);
        todo!()
    }
}

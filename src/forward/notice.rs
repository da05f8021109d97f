//! What a notice may be about: questions to a snapshot that stand off the way of packets.

use std::net::{IpAddr, SocketAddr};

use super::flow_key::is_lower;
use super::flows::Phase;
use super::judge::{Crossing, Place};
use super::paths::Route;
use super::snapshot::{Overlay, OverlayInfo, Snapshot, canonical};
use super::{FlowTable, Now};
use crate::types::{NodeId, NodeKind, Timestamp};
use crate::wire::inner::{Facts, Family, Fragment, Quoted, Upper};

/// Two members of one overlay, in the direction of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    snapshot: &'a Snapshot,
    overlay: &'a Overlay,
    from: u32,
    to: u32,
}

impl Snapshot {
    /// The members that bear these addresses.
    #[must_use]
    pub fn pair(&self, source: IpAddr, destination: IpAddr) -> Option<Pair<'_>> {
        let &(number, from) = self.members.get(&source)?;
        let &(other, to) = self.members.get(&destination)?;
        let overlay = self.overlays.get(number as usize)?;
        (number == other && from != to).then_some(Pair { snapshot: self, overlay, from, to })
    }

    /// The SaP that listens at `outer`.
    #[must_use]
    pub fn sap_at(&self, outer: SocketAddr) -> Option<NodeId> {
        let outer = canonical(outer);
        self.saps().iter().find(|sap| sap.endpoints.contains(&outer)).map(|sap| sap.id)
    }

    /// At a SaP: takes up a flow that `starter` says it started, as its opening packet would have done.
    /// Whether that is its flow, goes over this SaP, may start, and is of a kind that has to be known here
    /// (TCP passes in mid-stream).
    pub fn take_up(&self, starter: NodeId, flow: &Quoted, flows: &FlowTable, now: Now) -> bool {
        let Quoted { source, destination, protocol, source_port, destination_port } = *flow;
        let upper = match protocol {
            6 => return false,
            17 | 132 => Upper::Ports { source_port, destination_port },
            1 | 58 => Upper::Echo { is_request: true, identifier: source_port },
            _ => Upper::Opaque,
        };
        let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
        let fragment = Fragment::Whole;
        let facts = Facts {
            family,
            source,
            destination,
            protocol,
            upper,
            fragment,
            len: 0,
            ecn: 0,
            tracer: None,
        };
        let pair = self.pair(source, destination).filter(|pair| pair.source() == starter);
        let pair = pair.filter(|pair| self.owner.is_some_and(|(own, _)| pair.goes_over(own)));
        pair.is_some_and(|Pair { overlay, from, to, .. }| {
            let judge = self.judge(overlay, flows, now, Place::Sap);
            judge.pass(Crossing { from, to, facts: &facts }).is_ok()
        })
    }

    /// Whether this node started `flow` lately and nothing came back on it yet: the only kind of flow
    /// that a notice may speak of, so that nobody can end one that works.
    #[must_use]
    pub fn is_half_open(&self, flow: &Quoted, flows: &FlowTable, now: Now) -> bool {
        let own = self.pair(flow.source, flow.destination).filter(Pair::is_own);
        own.is_some_and(|pair| {
            let judge = self.judge(pair.overlay, flows, now, Place::End);
            flows.find(&judge.quoted_key(flow), now).is_some_and(|found| {
                matches!(found.phase(), Phase::Opening | Phase::Stateless)
                    && found.starter_is_lower() == is_lower(flow.source, flow.destination)
                    && found.hop().is_none()
            })
        })
    }
}

impl<'a> Pair<'a> {
    /// Their overlay.
    #[must_use]
    pub fn overlay(&self) -> &'a OverlayInfo {
        &self.overlay.info
    }

    /// The node that sends.
    #[must_use]
    pub fn source(&self) -> NodeId {
        self.overlay.id_of(self.from)
    }

    /// The node that is sent to.
    #[must_use]
    pub fn destination(&self) -> NodeId {
        self.overlay.id_of(self.to)
    }

    /// Whether this node is the one that sends.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.overlay.own == Some(self.from)
    }

    /// Whether this node is the one that is sent to.
    #[must_use]
    pub fn is_for_us(&self) -> bool {
        self.overlay.own == Some(self.to)
    }

    /// Whether packets of the pair may bear `key` here: at the source the one that it stamps, elsewhere
    /// those that are accepted.
    #[must_use]
    pub fn bears(&self, key: u32) -> bool {
        if self.is_own() {
            let stamped = self.overlay.send_keys.get(self.to as usize).copied().flatten();
            return stamped.is_some_and(|stamped| stamped.bits() == key);
        }
        // The packet may be from before the older of two keys ended.
        self.snapshot.accepts(self.overlay, (self.from, self.to), key, Timestamp(0))
    }

    /// Whether `sap` may carry packets of the pair.
    #[must_use]
    pub fn goes_over(&self, sap: NodeId) -> bool {
        match self.overlay.route(self.from, self.to) {
            Route::Default => self.overlay.default_saps.contains(&sap),
            Route::Via(chain) => chain.position(sap).is_some(),
            Route::Direct | Route::Elsewhere => false,
        }
    }

    /// Whether this node sends packets of the pair to `hop`.
    #[must_use]
    pub fn leaves_to(&self, hop: SocketAddr) -> bool {
        let hop = canonical(hop);
        let listens = |sap: NodeId| self.snapshot.endpoint_of(sap, hop).is_some();
        let is_target = || self.snapshot.is_at(self.overlay, self.to, hop);
        let Some((own, kind)) = self.snapshot.owner else { return false };
        let route = self.overlay.route(self.from, self.to);
        match (kind, route) {
            (NodeKind::Entity, _) if !self.is_own() => false,
            (NodeKind::Entity, Route::Direct) => is_target(),
            (NodeKind::Entity, Route::Via(chain)) => chain.first().is_some_and(listens),
            (NodeKind::Entity, Route::Default) => {
                self.overlay.default_saps.iter().any(|&sap| listens(sap))
            }
            (NodeKind::Sap, Route::Default) => {
                self.overlay.default_saps.contains(&own) && is_target()
            }
            (NodeKind::Sap, Route::Via(chain)) => chain
                .position(own)
                .is_some_and(|at| chain.at(at + 1).map_or_else(is_target, listens)),
            (NodeKind::Sap, Route::Direct) | (_, Route::Elsewhere) => false,
        }
    }
}

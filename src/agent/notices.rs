//! What to believe of packets that others refused or that were too long, and whom to tell of those that
//! this node refused: decisions, without a clock or a socket.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::forward::{FlowTable, Now, Pair, Snapshot};
use crate::types::NodeId;
use crate::wire::control::Message;
use crate::wire::gue::{self, Frame};
use crate::wire::inner;
use crate::wire::notice::{Denied, Refuser, TooBig};

/// Below this nobody believes an ICMP message about the underlay (design section 4), in bytes.
const UNDERLAY_MTU_MIN: u16 = 1280;

/// A datagram of this node was too long for its way.
#[derive(Clone, Copy, Debug)]
pub struct Excess<'a> {
    /// Where it went.
    pub to: SocketAddr,
    /// What would fit, outer headers included, in bytes.
    pub mtu: u16,
    /// Whether this node's kernel says so, and not an ICMP message that anybody can send.
    pub is_local: bool,
    /// The datagram's first bytes, as they are quoted.
    pub datagram: &'a [u8],
}

impl<'a> Excess<'a> {
    /// Which packets no longer than what fit the way, and the start of the one that did not; nothing
    /// when it is not to be believed. An ICMP message has to quote a datagram that this node may have
    /// sent: from one member to another, under a key of theirs, to a hop of theirs.
    #[must_use]
    pub fn believe(&self, snapshot: &Snapshot) -> Option<(TooBig, &'a [u8])> {
        let Ok(Frame::Data { family, key, inner }) = gue::decode(self.datagram) else {
            return None;
        };
        let quoted = inner::quoted(family, inner).ok()?;
        let pair = snapshot.pair(quoted.source, quoted.destination)?;
        let is_ours = || self.mtu >= UNDERLAY_MTU_MIN && pair.bears(key) && pair.leaves_to(self.to);
        if !self.is_local && !is_ours() {
            return None;
        }
        let mtu = self.mtu.saturating_sub(gue::overhead(self.to.ip().to_canonical().is_ipv4()));
        let (source, destination) = (quoted.source, quoted.destination);
        Some((TooBig { source, destination, mtu }, inner))
    }
}

/// Whether this node sends such packets at all, and `sap`, which says so, may carry them.
#[must_use]
pub fn believes(snapshot: &Snapshot, sap: NodeId, too_big: &TooBig) -> bool {
    let pair = snapshot.pair(too_big.source, too_big.destination);
    pair.is_some_and(|pair| pair.is_own() && pair.goes_over(sap))
}

/// Whom to tell that this node refused an opening packet, which came from `from` under `key`, and how:
/// a SaP tells the source, a destination the SaP that brought the packet. Nobody where the key is wrong
/// or the overlay is silent.
#[must_use]
pub fn tell(
    snapshot: &Snapshot,
    (from, key): (SocketAddr, u32),
    denied: Denied,
) -> Option<(NodeId, Message)> {
    let flow = &denied.flow;
    let pair = snapshot.pair(flow.source, flow.destination)?;
    if pair.overlay().is_silent || pair.is_own() || !pair.bears(key) {
        return None;
    }
    if pair.is_for_us() {
        let denied = Denied { by: Refuser::Destination, ..denied };
        return Some((snapshot.sap_at(from)?, Message::Refused(denied)));
    }
    Some((pair.source(), Message::Denied(Denied { by: Refuser::Sap, ..denied })))
}

/// Whom a SaP tells what `destination` said it had refused; nobody when that was not its to refuse.
#[must_use]
pub fn pass_on(
    snapshot: &Snapshot,
    destination: NodeId,
    denied: Denied,
) -> Option<(NodeId, Message)> {
    let pair = snapshot.pair(denied.flow.source, denied.flow.destination)?;
    let (own, _) = snapshot.owner()?;
    let is_its_own = pair.destination() == destination && pair.goes_over(own);
    let denied = Denied { by: Refuser::Destination, ..denied };
    (is_its_own && !pair.overlay().is_silent).then(|| (pair.source(), Message::Denied(denied)))
}

/// Whom a SaP tells that it has lost `silent`: those who talk with them over it.
#[must_use]
pub fn no_path(
    snapshot: &Snapshot,
    flows: &FlowTable,
    silent: &BTreeSet<NodeId>,
    now: Now,
) -> BTreeSet<(NodeId, NodeId)> {
    let partners = flows.partners(&snapshot.addresses_of(silent), now).into_iter();
    let told = partners.filter_map(|(sender, silent)| snapshot.pair(sender, silent));
    told.map(|pair| (pair.source(), pair.destination())).collect()
}

/// The flows that this node started and a SaP has to know before replies come by, each with the SaP that
/// its packets go to now.
#[must_use]
pub fn started(snapshot: &Snapshot, flows: &FlowTable, now: Now) -> Vec<(NodeId, Message)> {
    let own = snapshot.overlays().filter_map(|overlay| overlay.address);
    own.flat_map(|address| flows.started_by(address, now))
        .filter_map(|flow| {
            let sap = snapshot.opens_by(flow.source, flow.destination)?;
            Some((sap, Message::Started(flow)))
        })
        .collect()
}

/// The pair, when `sap` may say this of a flow that this node wants and that nothing came back on.
#[must_use]
pub fn believed<'a>(
    snapshot: &'a Snapshot,
    sap: NodeId,
    denied: &Denied,
    flows: &FlowTable,
    now: Now,
) -> Option<Pair<'a>> {
    let pair = snapshot.pair(denied.flow.source, denied.flow.destination)?;
    let is_ours = pair.is_own() && pair.goes_over(sap);
    (is_ours && snapshot.is_half_open(&denied.flow, flows, now)).then_some(pair)
}

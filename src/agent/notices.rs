//! What to believe of packets that were too long: decisions, without a clock or a socket.

use std::net::SocketAddr;

use crate::forward::Snapshot;
use crate::types::NodeId;
use crate::wire::gue::{self, Frame};
use crate::wire::inner;
use crate::wire::notice::TooBig;

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

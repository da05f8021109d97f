//! The first hop of a packet that leaves an end, and what is known of hops: which SaPs answer, which of
//! them have lost whom, and to whom this node sent lately. Words of atomics, written off the packet path.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use super::flows::{FlowTable, HopMark};
use super::judge::Passed;
use super::paths::Route;
use super::snapshot::{Member, Overlay, Snapshot};
use crate::types::NodeId;

/// Of so many SaPs of an overlay it is known whom they have lost; the others count as reaching everybody.
const SAPS_MAX: usize = u64::BITS as usize;

impl Snapshot {
    /// Marks a SaP as answering or not. Callable from any thread.
    pub fn set_alive(&self, sap: NodeId, alive: bool) {
        if let Some(sap) = self.sap(sap) {
            sap.is_alive.store(alive, Ordering::Relaxed);
        }
    }

    /// Marks a SaP as answering again, though it takes no new traffic yet where another one does: replies of
    /// flows that come over it go back over it. Callable from any thread.
    pub fn set_returning(&self, sap: NodeId, returning: bool) {
        if let Some(sap) = self.sap(sap) {
            sap.is_returning.store(returning, Ordering::Relaxed);
        }
    }

    /// Whether a SaP answers, as far as anybody said; one that is not in the snapshot does not.
    #[must_use]
    pub fn is_alive(&self, sap: NodeId) -> bool {
        self.sap(sap).is_some_and(|sap| sap.is_alive.load(Ordering::Relaxed))
    }

    /// Marks that `sap` has lost the member `peer`, or reaches it again. Whether that is news. Callable from
    /// any thread.
    pub fn set_reaches(&self, sap: NodeId, peer: NodeId, reaches: bool) -> bool {
        let mut is_news = false;
        for overlay in &self.overlays {
            let Some(bit) = overlay.bit_of(sap) else { continue };
            for member in overlay.members.iter().filter(|member| member.id == peer) {
                let before = if reaches {
                    member.lost_by.fetch_and(!bit, Ordering::Relaxed)
                } else {
                    member.lost_by.fetch_or(bit, Ordering::Relaxed)
                };
                is_news |= (before & bit == 0) != reaches;
            }
        }
        is_news
    }

    /// Replies to `peer` do not go back over `sap` any more, until a packet of it comes by there again.
    pub fn forget_hops(&self, sap: NodeId, peer: NodeId, flows: &FlowTable) {
        flows.forget_hops(sap, &self.addresses_of(&BTreeSet::from([peer])));
    }

    /// At a SaP: the members to whom packets were sent since the last call.
    #[must_use]
    pub fn take_sent_to(&self) -> BTreeSet<NodeId> {
        let members = self.overlays.iter().flat_map(|overlay| &overlay.members);
        let sent_to = members.filter(|member| {
            // The load alone leaves the line to the packet threads.
            member.was_sent_to.load(Ordering::Relaxed)
                && member.was_sent_to.swap(false, Ordering::Relaxed)
        });
        sent_to.map(|member| member.id).collect()
    }

    /// The overlay addresses of members.
    #[must_use]
    pub fn addresses_of(&self, nodes: &BTreeSet<NodeId>) -> BTreeSet<IpAddr> {
        let is_meant = |&(overlay, number): &(u32, u32)| {
            let overlay = self.overlays.get(overlay as usize);
            overlay.is_some_and(|overlay| nodes.contains(&overlay.id_of(number)))
        };
        let members = self.members.iter().filter(|(_, place)| is_meant(place));
        members.map(|(address, _)| *address).collect()
    }

    /// The SaP by which this end opens flows from one address to another; none for a pair that takes none.
    #[must_use]
    pub fn opens_by(&self, source: IpAddr, destination: IpAddr) -> Option<NodeId> {
        let &(number, own) = self.members.get(&source)?;
        let &(other, to) = self.members.get(&destination)?;
        let overlay = self.overlays.get(number as usize).filter(|_| number == other)?;
        match overlay.route(own, to) {
            Route::Default => self.best_sap(overlay, to, None),
            Route::Via(chain) => chain.first(),
            Route::Direct | Route::Elsewhere => None,
        }
    }

    /// Of the SaPs that may carry a pair those come first that answer and have not lost the other end;
    /// among them the one that `mark` names. One that has not answered for long goes before one that has
    /// lost the other end.
    pub(super) fn best_sap(
        &self,
        overlay: &Overlay,
        to: u32,
        mark: Option<HopMark>,
    ) -> Option<NodeId> {
        let has_endpoint =
            |sap: &NodeId| self.sap(*sap).is_some_and(|sap| !sap.info.endpoints.is_empty());
        let usable = || overlay.saps_for(to).iter().copied().filter(has_endpoint);
        let open = || usable().filter(|sap| !overlay.empty_saps.contains(sap));
        let live = || open().filter(|&sap| self.is_alive(sap));
        let reaching = || live().filter(|&sap| overlay.reaches(sap, to));
        let is_marked = |sap: &NodeId| mark.is_some_and(|mark| mark.sap == sap.0);
        // The other end may trust a SaP again before this one does, or never have doubted one that says it
        // had lost that end. Over another one replies of its flows would come that nobody there knows.
        let answers = |sap: &NodeId| {
            let found = self.sap(*sap);
            found.is_some_and(|sap| {
                sap.is_alive.load(Ordering::Relaxed) || sap.is_returning.load(Ordering::Relaxed)
            })
        };
        mark.and_then(|_| open().filter(answers).find(is_marked))
            .or_else(|| reaching().next())
            .or_else(|| open().filter(answers).find(|&sap| overlay.reaches(sap, to)))
            .or_else(|| live().next())
            .or_else(|| open().next())
            .or_else(|| usable().next())
    }

    /// The first hop from this end to `to`; for a reply the one that its flow's last packet came from, as
    /// long as that is as good as any.
    pub(super) fn hop(
        &self,
        overlay: &Overlay,
        own: u32,
        to: u32,
        passed: &Passed<'_>,
    ) -> Option<SocketAddr> {
        let mark = passed.flow.as_ref().filter(|_| passed.is_reply).and_then(|flow| flow.hop());
        let marked = |sap: NodeId| {
            let mark = mark.filter(|mark| mark.sap == sap.0)?;
            self.sap(sap)?.info.endpoints.get(usize::from(mark.endpoint)).copied()
        };
        let preferred =
            |sap: NodeId| self.sap(sap).and_then(|sap| sap.info.endpoints.first().copied());
        match overlay.route(own, to) {
            Route::Direct => {
                let endpoints = &overlay.member(to)?.endpoints;
                let mark = mark.filter(|mark| mark.sap == 0);
                mark.and_then(|mark| endpoints.get(usize::from(mark.endpoint)))
                    .or_else(|| endpoints.first())
                    .copied()
            }
            Route::Via(chain) => {
                let first = chain.first()?;
                marked(first).or_else(|| preferred(first))
            }
            Route::Default => {
                let sap = self.best_sap(overlay, to, mark)?;
                marked(sap).or_else(|| preferred(sap))
            }
            Route::Elsewhere => None,
        }
    }
}

/// The orders of the default SaPs, by the member at the other end.
#[derive(Debug, Default)]
pub(super) struct Preference {
    orders: Box<[Box<[NodeId]>]>,
    /// For each member one more than the index of its order; 0 for the usual one. Empty where all have that.
    order_of: Box<[u32]>,
}

impl Preference {
    /// `specs` name sets of indexes below `members`; both were validated.
    pub(super) fn new(members: usize, sets: &[Vec<u32>], specs: Vec<(u32, Vec<NodeId>)>) -> Self {
        if specs.is_empty() {
            return Self::default();
        }
        let mut order_of = vec![0; members];
        for (number, (with, _)) in (1..).zip(&specs) {
            for &member in sets.get(*with as usize).into_iter().flatten() {
                if let Some(slot) = order_of.get_mut(member as usize) {
                    *slot = number;
                }
            }
        }
        let orders = specs.into_iter().map(|(_, saps)| saps.into_boxed_slice()).collect();
        Self { orders, order_of: order_of.into_boxed_slice() }
    }

    fn of(&self, member: u32) -> Option<&[NodeId]> {
        let order = self.order_of.get(member as usize)?.checked_sub(1)?;
        self.orders.get(order as usize).map(AsRef::as_ref)
    }
}

impl Overlay {
    /// The SaPs for pairs with the member, the preferred one first.
    pub(super) fn saps_for(&self, to: u32) -> &[NodeId] {
        self.preference.of(to).unwrap_or(&self.default_saps)
    }

    /// Whether `sap` has not said that it lost the member.
    fn reaches(&self, sap: NodeId, to: u32) -> bool {
        let lost_by = self.member(to).map_or(0, |member| member.lost_by.load(Ordering::Relaxed));
        lost_by == 0 || self.bit_of(sap).is_none_or(|bit| lost_by & bit == 0)
    }

    fn bit_of(&self, sap: NodeId) -> Option<u64> {
        let at = self.default_saps.iter().take(SAPS_MAX).position(|&known| known == sap)?;
        Some(1 << at)
    }
}

impl Member {
    /// Notes that a packet goes to it.
    pub(super) fn note_sent_to(&self) {
        if !self.was_sent_to.load(Ordering::Relaxed) {
            self.was_sent_to.store(true, Ordering::Relaxed);
        }
    }
}

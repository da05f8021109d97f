//! An immutable picture of one table, ready for lookups.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::flows::HopMark;
use super::hop::Preference;
use super::judge::{Crossing, Judge, Place};
use super::key_budget::Pair;
use super::keyring::{KeyCache, Keyring};
use super::matcher::Matcher;
use super::paths::{Paths, Route};
use super::proved::Proved;
use super::recording::asked_port;
use super::records::{Outcome, RecordKey, RecordMark, Target};
use super::{FlowTable, Marked, Now, Verdict};
use crate::types::{
    AuthorizationKey, DropReason, Name, NodeId, NodeKind, OverlayId, Prefix, Timestamp,
};
use crate::wire::Facts;

/// The next policy token. A token is never used for two policies of one process (until 2^32 of
/// them), so that flow entries can say by which one they were judged.
static NEXT_TOKEN: AtomicU32 = AtomicU32::new(1);

/// An overlay, as whoever configures devices or answers hosts needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayInfo {
    /// Its id.
    pub id: OverlayId,
    /// Its name.
    pub name: Name,
    /// Its range.
    pub cidr: Prefix,
    /// This node's own address; none at a SaP that only forwards.
    pub address: Option<IpAddr>,
    /// Whether refusals stay unanswered.
    pub is_silent: bool,
}

/// A SaP that the node exchanges packets with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SapInfo {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Where it listens, best first.
    pub endpoints: Vec<SocketAddr>,
}

/// Everything that verdicts are made from.
#[derive(Debug)]
pub struct Snapshot {
    tables: Arc<Tables>,
    /// Where members are; none as long as they are where the table says.
    proved: Option<Proved>,
}

/// What a table says, prepared.
#[derive(Debug)]
pub struct Tables {
    pub(super) owner: Option<(NodeId, NodeKind)>,
    pub(super) overlays: Vec<Overlay>,
    pub(super) saps: Vec<Sap>,
    pub(super) sap_infos: Vec<SapInfo>,
    /// Index into `saps` by id.
    pub(super) sap_index: HashMap<u32, usize>,
    /// Overlay and member by address; ranges of overlays do not overlap.
    pub(super) members: HashMap<IpAddr, (u32, u32)>,
    /// Every endpoint that packets may come from.
    pub(super) known: HashSet<SocketAddr>,
    pub(super) keys: KeyCache,
    /// When rules end, sorted.
    pub(super) expiries: Vec<u64>,
    /// The token before the first rule ended.
    first_token: u32,
}

#[derive(Debug)]
pub(super) struct Overlay {
    pub(super) info: OverlayInfo,
    /// The node's own number among the members.
    pub(super) own: Option<u32>,
    pub(super) members: Box<[Member]>,
    /// How many members the overlays before this one have.
    pub(super) first_member: u32,
    pub(super) matcher: Matcher,
    pub(super) paths: Paths,
    pub(super) default_saps: Box<[NodeId]>,
    pub(super) preference: Preference,
    /// The default SaPs to which nothing is sent.
    pub(super) empty_saps: Box<[NodeId]>,
    pub(super) keyring: Keyring,
    pub(super) send_keys: Box<[Option<AuthorizationKey>]>,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: NodeId,
    pub(super) endpoints: Box<[SocketAddr]>,
    /// At an entity: the default SaPs that have lost it, a bit for each.
    pub(super) lost_by: AtomicU64,
    /// At a SaP: whether a packet went to it since somebody looked.
    pub(super) was_sent_to: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Sap {
    pub(super) info: SapInfo,
    pub(super) is_alive: AtomicBool,
    /// Whether it answers again, though not for long enough to take new traffic.
    pub(super) is_returning: AtomicBool,
}

impl Overlay {
    pub(super) fn member(&self, number: u32) -> Option<&Member> {
        self.members.get(number as usize)
    }

    /// A member's id, which stays when a new table numbers members anew.
    pub(super) fn id_of(&self, number: u32) -> NodeId {
        self.member(number).map_or(NodeId(0), |member| member.id)
    }

    /// The pair by its ids.
    fn pair(&self, from: u32, to: u32) -> Pair {
        (self.info.id.0, self.id_of(from).0, self.id_of(to).0)
    }

    /// What counts when the host asks for an address of the overlay that it has no row for.
    fn without_row(
        &self,
        own: u32,
        facts: &Facts,
        flows: &FlowTable,
        now: Now,
    ) -> Option<RecordMark> {
        let key = RecordKey {
            overlay: self.info.id,
            rule: None,
            from: self.id_of(own),
            to: Target::Address(facts.destination),
            protocol: facts.protocol,
            port: asked_port(facts),
            outcome: Outcome::Denied(DropReason::NoRow),
        };
        let is_inside = self.info.cidr.contains(&facts.destination);
        is_inside.then(|| flows.records().find(&key, now.wall))
    }

    pub(super) fn route(&self, from: u32, to: u32) -> Route<'_> {
        match (self.member(from), self.member(to)) {
            (Some(a), Some(b)) => self.paths.route((from, a.id), (to, b.id)),
            _ => Route::Elsewhere,
        }
    }
}

impl Deref for Snapshot {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        &self.tables
    }
}

impl Tables {
    pub(super) fn empty() -> Self {
        Self {
            owner: None,
            overlays: Vec::new(),
            saps: Vec::new(),
            sap_infos: Vec::new(),
            sap_index: HashMap::new(),
            members: HashMap::new(),
            known: HashSet::new(),
            keys: KeyCache::none(),
            expiries: Vec::new(),
            first_token: 0,
        }
    }

    /// Takes a number for this snapshot and one more for each rule that will end.
    pub(super) fn number_tokens(&mut self) {
        self.expiries.sort_unstable();
        self.expiries.dedup();
        let count = u32::try_from(self.expiries.len()).unwrap_or(u32::MAX).saturating_add(1);
        self.first_token = NEXT_TOKEN.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn sap(&self, id: NodeId) -> Option<&Sap> {
        self.saps.get(*self.sap_index.get(&id.0)?)
    }
}

impl Snapshot {
    /// A snapshot that drops everything: what a node has before its first table.
    #[must_use]
    pub fn empty() -> Self {
        Self::of(Tables::empty())
    }

    pub(super) fn of(tables: Tables) -> Self {
        Self { tables: Arc::new(tables), proved: None }
    }

    /// The same, at a SaP: each member is at the one endpoint that it proved, and nowhere else. Packets come
    /// from there and go there; nothing goes to a member that has proved none.
    #[must_use]
    pub fn with_proved(&self, endpoint_of: impl Fn(NodeId) -> Option<SocketAddr>) -> Self {
        let proved = Proved::new(&self.tables, endpoint_of);
        Self { tables: Arc::clone(&self.tables), proved: Some(proved) }
    }

    /// Whether the member may send from `outer`.
    pub(super) fn is_at(&self, overlay: &Overlay, number: u32, outer: SocketAddr) -> bool {
        match &self.proved {
            Some(proved) => proved.endpoint(overlay, number) == Some(outer),
            None => overlay.member(number).is_some_and(|member| member.endpoints.contains(&outer)),
        }
    }

    /// Where packets for the member go.
    fn endpoint(&self, overlay: &Overlay, number: u32) -> Option<SocketAddr> {
        match &self.proved {
            Some(proved) => proved.endpoint(overlay, number),
            None => overlay.member(number)?.endpoints.first().copied(),
        }
    }

    /// `ovd`, a packet from the TUN of overlay number `overlay`: where it goes, under which key.
    pub fn egress(&self, overlay: usize, facts: &Facts, flows: &FlowTable, now: Now) -> Verdict {
        self.egress_marked(overlay, facts, flows, now).counted(facts, flows, now)
    }

    /// As [`Self::egress`], and leaves the counting to the caller.
    pub fn egress_marked(
        &self,
        overlay: usize,
        facts: &Facts,
        flows: &FlowTable,
        now: Now,
    ) -> Marked {
        Marked::of(facts, |record| self.try_egress(overlay, facts, flows, now, record))
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
        self.ingress_marked(outer, key, facts, flows, now).counted(facts, flows, now)
    }

    /// As [`Self::ingress`], and leaves the counting to the caller.
    pub fn ingress_marked(
        &self,
        outer: SocketAddr,
        key: u32,
        facts: &Facts,
        flows: &FlowTable,
        now: Now,
    ) -> Marked {
        Marked::of(facts, |record| self.try_ingress(outer, key, facts, flows, now, record))
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
        self.transit_marked(outer, key, facts, flows, now).counted(facts, flows, now)
    }

    /// As [`Self::transit`], and leaves the counting to the caller.
    pub fn transit_marked(
        &self,
        outer: SocketAddr,
        key: u32,
        facts: &Facts,
        flows: &FlowTable,
        now: Now,
    ) -> Marked {
        Marked::of(facts, |record| self.try_transit(outer, key, facts, flows, now, record))
    }

    /// Whether a datagram from `outer` can be anything but noise. The cheapest check after the header.
    #[must_use]
    pub fn knows(&self, outer: SocketAddr) -> bool {
        self.is_known(canonical(outer))
    }

    fn is_known(&self, outer: SocketAddr) -> bool {
        let is_proved = || self.proved.as_ref().is_some_and(|proved| proved.known.contains(&outer));
        self.known.contains(&outer) || is_proved()
    }

    /// The overlays, by the number that verdicts use.
    pub fn overlays(&self) -> impl ExactSizeIterator<Item = &OverlayInfo> {
        self.overlays.iter().map(|overlay| &overlay.info)
    }

    /// Where the overlay stands among the snapshot's overlays.
    #[must_use]
    pub fn overlay_index(&self, overlay: OverlayId) -> Option<usize> {
        self.overlays.iter().position(|known| known.info.id == overlay)
    }

    /// The SaPs that the node exchanges packets with.
    #[must_use]
    pub fn saps(&self) -> &[SapInfo] {
        &self.sap_infos
    }

    /// Whose snapshot it is; nobody's before the first table.
    #[must_use]
    pub fn owner(&self) -> Option<(NodeId, NodeKind)> {
        self.owner
    }

    /// A number of this process that changes with every snapshot and whenever a rule ends.
    #[must_use]
    pub fn version(&self, now: Now) -> u64 {
        u64::from(self.token(now))
    }

    fn token(&self, now: Now) -> u32 {
        let ended = self.expiries.partition_point(|&end| end <= now.wall.0);
        self.first_token.wrapping_add(ended as u32)
    }

    fn try_egress(
        &self,
        number: usize,
        facts: &Facts,
        flows: &FlowTable,
        now: Now,
        record: &mut Option<RecordMark>,
    ) -> Result<Verdict, DropReason> {
        let overlay = self.overlays.get(number).ok_or(DropReason::NoRow)?;
        let own = overlay.own.ok_or(DropReason::NoRow)?;
        if Some(facts.source) != overlay.info.address {
            return Err(match self.members.get(&facts.source) {
                Some(_) => DropReason::SourceBinding,
                None => DropReason::InnerAddress,
            });
        }
        let row = self.members.get(&facts.destination);
        let Some(&(_, to)) = row.filter(|(found, _)| *found as usize == number) else {
            *record = overlay.without_row(own, facts, flows, now);
            return Err(DropReason::NoRow);
        };
        let crossing = Crossing { from: own, to, facts };
        let judge = self.judge(overlay, flows, now, Place::End);
        let id = |number| overlay.id_of(number);
        let key = overlay.send_keys.get(to as usize).copied().flatten().ok_or_else(|| {
            *record = Some(judge.refused(crossing, id, DropReason::NoRow));
            DropReason::NoRow
        })?;
        let passed = judge.pass_marked(crossing, id, record)?;
        let hop = self.hop(overlay, own, to, &passed).ok_or_else(|| {
            *record = Some(judge.refused(crossing, id, DropReason::NoPath));
            DropReason::NoPath
        })?;
        Ok(Verdict::Send { hop, key })
    }

    fn try_ingress(
        &self,
        outer: SocketAddr,
        key: u32,
        facts: &Facts,
        flows: &FlowTable,
        now: Now,
        record: &mut Option<RecordMark>,
    ) -> Result<Verdict, DropReason> {
        let outer = canonical(outer);
        if !self.is_known(outer) {
            return Err(DropReason::OuterSource);
        }
        let &(number, from) = self.members.get(&facts.source).ok_or(DropReason::SourceBinding)?;
        let overlay = self.overlays.get(number as usize).ok_or(DropReason::SourceBinding)?;
        let own = overlay.own.ok_or(DropReason::SourceBinding)?;
        if from == own {
            return Err(DropReason::SourceBinding);
        }
        let hop = self.came_from(overlay, from, own, outer).ok_or(DropReason::SourceBinding)?;
        // The keys that may be on a packet for this host are its own; one for any other address
        // fails here, before its address is looked at.
        let pair = overlay.pair(from, own);
        let crossing = Crossing { from, to: own, facts };
        let judge = self.judge(overlay, flows, now, Place::End);
        let id = |number| overlay.id_of(number);
        if !self.accepts(overlay, (from, own), key, now.wall) {
            // What was meant for another address is a stray, and no guess at this pair's key.
            if Some(facts.destination) == overlay.info.address {
                flows.wrong_keys.count_wrong(pair, now);
                *record = Some(judge.refused(crossing, id, DropReason::Key));
            }
            return Err(DropReason::Key);
        }
        if Some(facts.destination) != overlay.info.address {
            return Err(DropReason::InnerAddress);
        }
        if flows.wrong_keys.is_over(pair, now) && !judge.has_flow(facts) {
            *record = Some(judge.refused(crossing, id, DropReason::KeyBudget));
            return Err(DropReason::KeyBudget);
        }
        let passed = judge.pass_marked(crossing, id, record)?;
        if let Some(flow) = passed.flow {
            flow.set_hop(hop);
        }
        Ok(Verdict::Deliver { overlay: number as usize })
    }

    fn try_transit(
        &self,
        outer: SocketAddr,
        key: u32,
        facts: &Facts,
        flows: &FlowTable,
        now: Now,
        record: &mut Option<RecordMark>,
    ) -> Result<Verdict, DropReason> {
        let outer = canonical(outer);
        if !self.is_known(outer) {
            return Err(DropReason::OuterSource);
        }
        let (self_id, _) = self.owner.ok_or(DropReason::OuterSource)?;
        let &(number, from) = self.members.get(&facts.source).ok_or(DropReason::SourceBinding)?;
        let overlay = self.overlays.get(number as usize).ok_or(DropReason::SourceBinding)?;
        let is_owner = self.is_at(overlay, from, outer);
        let is_sap = || self.saps.iter().any(|sap| sap.info.endpoints.contains(&outer));
        let destination = self.members.get(&facts.destination).filter(|(at, _)| *at == number);
        let Some(&(_, to)) = destination else {
            let is_bound = is_owner || is_sap();
            return Err(if is_bound {
                DropReason::InnerAddress
            } else {
                DropReason::SourceBinding
            });
        };
        // Off the pair's path there is no hop before this one; its owner, and SaPs, may err.
        let off_path =
            || if is_owner || is_sap() { DropReason::Path } else { DropReason::SourceBinding };
        let target = overlay.member(to).ok_or(DropReason::InnerAddress)?;
        let (is_bound, next) = match overlay.route(from, to) {
            Route::Direct | Route::Elsewhere => return Err(off_path()),
            Route::Default if !overlay.default_saps.contains(&self_id) => return Err(off_path()),
            Route::Default => (is_owner, self.endpoint(overlay, to)),
            Route::Via(chain) => {
                let position = chain.position(self_id).ok_or_else(off_path)?;
                let is_bound = match position.checked_sub(1).and_then(|before| chain.at(before)) {
                    Some(before) => self.endpoint_of(before, outer).is_some(),
                    None => is_owner,
                };
                let next = match chain.at(position + 1) {
                    Some(next) => {
                        self.sap(next).and_then(|sap| sap.info.endpoints.first().copied())
                    }
                    None => self.endpoint(overlay, to),
                };
                (is_bound, next)
            }
        };
        if !is_bound {
            return Err(DropReason::SourceBinding);
        }
        let pair = overlay.pair(from, to);
        let crossing = Crossing { from, to, facts };
        let judge = self.judge(overlay, flows, now, Place::Sap);
        let id = |number| overlay.id_of(number);
        if !self.accepts(overlay, (from, to), key, now.wall) {
            flows.wrong_keys.count_wrong(pair, now);
            *record = Some(judge.refused(crossing, id, DropReason::Key));
            return Err(DropReason::Key);
        }
        if flows.wrong_keys.is_over(pair, now) && !judge.has_flow(facts) {
            *record = Some(judge.refused(crossing, id, DropReason::KeyBudget));
            return Err(DropReason::KeyBudget);
        }
        judge.pass_marked(crossing, id, record)?;
        // Also when nobody knows where it is: whoever sends is told.
        target.note_sent_to();
        let hop = next.ok_or_else(|| {
            *record = Some(judge.refused(crossing, id, DropReason::NoPath));
            DropReason::NoPath
        })?;
        Ok(Verdict::Send { hop, key: AuthorizationKey::from_bits(key) })
    }

    pub(super) fn judge<'a>(
        &self,
        overlay: &'a Overlay,
        flows: &'a FlowTable,
        now: Now,
        place: Place,
    ) -> Judge<'a> {
        let token = self.token(now);
        Judge { matcher: &overlay.matcher, overlay: overlay.info.id.0, flows, token, now, place }
    }

    /// Whether `key` is one that the pair's destination accepts of its source at the moment.
    pub(super) fn accepts(
        &self,
        overlay: &Overlay,
        (from, to): (u32, u32),
        key: u32,
        wall: Timestamp,
    ) -> bool {
        overlay.member(from).is_some_and(|source| {
            let (ring, first) = (&overlay.keyring, overlay.first_member);
            ring.accepts(&self.keys, first, (from, source.id), to, key, wall)
        })
    }

    /// The hop by which `outer` may bring packets of `from` to this end; nothing where it may not.
    fn came_from(
        &self,
        overlay: &Overlay,
        from: u32,
        own: u32,
        outer: SocketAddr,
    ) -> Option<HopMark> {
        let by_sap = |sap: NodeId| {
            self.endpoint_of(sap, outer).map(|endpoint| HopMark { sap: sap.0, endpoint })
        };
        match overlay.route(from, own) {
            Route::Direct => {
                let endpoint = position(&overlay.member(from)?.endpoints, outer)?;
                Some(HopMark { sap: 0, endpoint })
            }
            Route::Via(chain) => by_sap(chain.last()?),
            Route::Default => overlay.default_saps.iter().find_map(|&sap| by_sap(sap)),
            Route::Elsewhere => None,
        }
    }

    pub(super) fn endpoint_of(&self, sap: NodeId, outer: SocketAddr) -> Option<u8> {
        position(&self.sap(sap)?.info.endpoints, outer)
    }
}

fn position(endpoints: &[SocketAddr], wanted: SocketAddr) -> Option<u8> {
    endpoints.iter().position(|&endpoint| endpoint == wanted).and_then(|at| u8::try_from(at).ok())
}

/// Address and port alone: IPv4 in disguise undone (a socket of both families shows it), scope and
/// flow label left out.
pub(super) fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}

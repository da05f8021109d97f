//! The flow table: fixed size, shared by all hallways without locks.
//!
//! Buckets of eight slots. A slot is a handful of atomics under a sequence number: a writer makes
//! the number odd, writes the key, and makes it even again; a reader that saw it odd or changed
//! treats the slot as another flow's. What changes while a flow lives (phase, judged policy, time,
//! hop) are single words. The state word carries bits of the sequence number, so that a late update
//! never lands on the slot's next flow.
//!
//! Two threads that open the same flow at once may make two entries; the first in the bucket is the
//! one that everybody finds, and the other one ages out.

mod walk;

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use super::Now;
use super::by_source::BySource;
use super::key_budget::KeyBudget;
use super::records::{RecordMark, RecordTable};

/// Slots of a bucket: how many a lookup touches at most.
const BUCKET: usize = 8;

/// Slots that a source over its quota searches at most for flows of its own, of which the oldest gives
/// way to the new one: eight times as many as it takes on average to see [`RECLAIM_CHOICE`].
const RECLAIM_PROBES: usize = 512;

/// Flows to choose the oldest from. Of eight, all are among the newest tenth once in 10^8 times.
const RECLAIM_CHOICE: usize = 8;

/// Counters of flows by source; two sources that share one share a quota.
const SOURCES: usize = 4096;

/// Mid-stream TCP may make an entry for so long after a start (design section 3.6).
const GRACE_MILLIS: u64 = 60_000;

/// Where a flow is in its life; decides how long it may be idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// TCP: the opening segment was seen.
    Opening,
    /// TCP: it was answered.
    Answered,
    /// TCP: the answer was acknowledged.
    Established,
    /// TCP: a FIN or RST was seen.
    Closing,
    /// Not TCP; at a SaP also TCP, as a memory of the verdict alone.
    Stateless,
    /// The starter's rule is gone: nothing passes, so that no reply starts a flow of its own.
    Tombstone,
    /// Not a flow: a first fragment that was allowed.
    Fragment,
}

impl Phase {
    const ALL: [Self; 7] = [
        Self::Opening,
        Self::Answered,
        Self::Established,
        Self::Closing,
        Self::Stateless,
        Self::Tombstone,
        Self::Fragment,
    ];

    fn idle_millis(self) -> u64 {
        match self {
            Self::Opening | Self::Answered | Self::Closing | Self::Stateless => 60_000,
            // RFC 5382: no less than 2 hours 4 minutes.
            Self::Established => (2 * 60 + 4) * 60_000,
            Self::Tombstone => 120_000,
            Self::Fragment => 30_000,
        }
    }
}

/// What kind of key it is; never 0, which marks a free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A flow with ports, or without.
    Ports = 1,
    /// Echo requests of the lower address and their replies.
    EchoOfLower = 2,
    /// Echo requests of the higher address and their replies.
    EchoOfHigher = 3,
    /// A fragmented packet of the lower address.
    FragmentOfLower = 4,
    /// A fragmented packet of the higher address.
    FragmentOfHigher = 5,
}

/// Names a flow, the same in both directions. Packed as the slots hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowKey([u64; KEY_WORDS]);

const KEY_WORDS: usize = 6;

/// One end of a flow with its port or whatever stands for it.
pub(super) type End = (IpAddr, u16);

impl FlowKey {
    /// The flow between two ends with different addresses.
    pub(super) fn ports(overlay: u32, protocol: u8, a: End, b: End) -> Self {
        Self::new(overlay, protocol, a, b, [Kind::Ports; 2])
    }

    /// The echoes that `requester` asks `responder` for.
    pub(super) fn echo(overlay: u32, protocol: u8, requester: End, responder: IpAddr) -> Self {
        let kinds = [Kind::EchoOfLower, Kind::EchoOfHigher];
        Self::new(overlay, protocol, requester, (responder, 0), kinds)
    }

    /// The fragments of one packet.
    pub(super) fn fragment(
        overlay: u32,
        protocol: u8,
        from: IpAddr,
        to: IpAddr,
        identification: u32,
    ) -> Self {
        let (high, low) = ((identification >> 16) as u16, identification as u16);
        let kinds = [Kind::FragmentOfLower, Kind::FragmentOfHigher];
        Self::new(overlay, protocol, (from, high), (to, low), kinds)
    }

    /// `kinds`: where `a` is the lower one, and where it is the higher one.
    fn new(overlay: u32, protocol: u8, a: End, b: End, kinds: [Kind; 2]) -> Self {
        let [if_lower, if_higher] = kinds;
        let (low, high, kind) =
            if is_lower(a.0, b.0) { (a, b, if_lower) } else { (b, a, if_higher) };
        let [l0, l1] = words(low.0);
        let [h0, h1] = words(high.0);
        let ports = u64::from(low.1) << 16 | u64::from(high.1);
        let meta = u64::from(overlay) << 32 | u64::from(protocol) << 8 | kind as u64;
        Self([l0, l1, h0, h1, ports, meta])
    }

    /// What the quota of the starter counts under.
    fn starter(&self, is_lower: bool) -> (u64, u64, u64) {
        let [l0, l1, h0, h1, _, meta] = self.0;
        if is_lower { (l0, l1, meta >> 32) } else { (h0, h1, meta >> 32) }
    }
}

/// Whether `a` is the lower end of the flow between `a` and `b`.
pub(super) fn is_lower(a: IpAddr, b: IpAddr) -> bool {
    words(a) < words(b)
}

fn words(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
        IpAddr::V6(address) => u128::from(address),
    };
    [(bits >> 64) as u64, bits as u64]
}

/// Where a flow's last packet came from: a SaP (0 for none: the peer itself) and which of its
/// endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HopMark {
    pub(super) sap: u32,
    pub(super) endpoint: u8,
}

const HOP_KNOWN: u64 = 1 << 63;

/// What one process remembers of packets: its flows, and wrong keys. Fixed size, shared by all
/// hallways without locks.
#[derive(Debug)]
pub struct FlowTable {
    slots: Box<[Slot]>,
    /// Flows by starter, for the quota.
    by_source: BySource,
    occupied: AtomicUsize,
    /// Where the next search for something to reclaim begins.
    cursor: AtomicUsize,
    /// Keyed at random, so that nobody can aim at a bucket.
    hasher: RandomState,
    started_millis: Option<u64>,
    /// Here because it must outlive snapshots, as flows do.
    pub(super) wrong_keys: KeyBudget,
    /// Here for the same reason.
    pub(super) records: RecordTable,
}

#[derive(Debug, Default)]
struct Slot {
    sequence: AtomicU64,
    key: [AtomicU64; KEY_WORDS],
    state: AtomicU64,
    seen_millis: AtomicU64,
    hop: AtomicU64,
    /// The flow's record; 0 for none.
    record: AtomicU64,
}

/// `token | generation (24 bits) | phase (3 bits) | starter is the lower end | starter is a guess`
#[derive(Clone, Copy)]
struct State(u64);

const GUESS: u64 = 1 << 60;

const GENERATION_MASK: u64 = 0xFF_FFFF;

impl State {
    fn new(token: u32, generation: u64, phase: Phase, starter_is_lower: bool) -> Self {
        Self(
            u64::from(token)
                | (generation & GENERATION_MASK) << 32
                | (phase as u64) << 56
                | u64::from(starter_is_lower) << 59,
        )
    }

    fn token(self) -> u32 {
        self.0 as u32
    }

    fn generation(self) -> u64 {
        self.0 >> 32 & GENERATION_MASK
    }

    fn phase(self) -> Phase {
        let index = (self.0 >> 56 & 7) as usize;
        Phase::ALL.get(index).copied().unwrap_or(Phase::Tombstone)
    }

    fn starter_is_lower(self) -> bool {
        self.0 >> 59 & 1 == 1
    }

    fn is_guess(self) -> bool {
        self.0 & GUESS != 0
    }
}

/// A slot as it was read in one piece.
struct View {
    sequence: u64,
    key: FlowKey,
    state: State,
    seen_millis: u64,
}

impl View {
    fn is_free(&self) -> bool {
        let FlowKey([.., meta]) = self.key;
        meta & 0xFF == 0
    }

    fn is_expired(&self, now: Now) -> bool {
        now.monotonic_millis.saturating_sub(self.seen_millis) >= self.state.phase().idle_millis()
    }
}

impl Slot {
    /// The slot's content, or nothing while a writer is at it.
    fn view(&self) -> Option<View> {
        let sequence = self.sequence.load(Ordering::Acquire);
        if sequence & 1 == 1 {
            return None;
        }
        let key = FlowKey(self.key.each_ref().map(|word| word.load(Ordering::Relaxed)));
        let state = State(self.state.load(Ordering::Relaxed));
        let seen_millis = self.seen_millis.load(Ordering::Relaxed);
        // Keeps the loads above before the second look at the sequence number.
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == sequence).then_some(View {
            sequence,
            key,
            state,
            seen_millis,
        })
    }

    /// Becomes the slot's only writer if nothing changed since `sequence` was read.
    fn claim(&self, sequence: u64) -> bool {
        let claimed = self
            .sequence
            .compare_exchange(sequence, sequence + 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        // Keeps the writer's stores behind the odd number.
        fence(Ordering::Release);
        claimed
    }

    fn write(&self, sequence: u64, key: &FlowKey, state: State, seen_millis: u64) {
        for (slot, word) in self.key.iter().zip(key.0) {
            slot.store(word, Ordering::Relaxed);
        }
        self.state.store(state.0, Ordering::Relaxed);
        self.seen_millis.store(seen_millis, Ordering::Relaxed);
        self.hop.store(0, Ordering::Relaxed);
        self.record.store(0, Ordering::Relaxed);
        self.sequence.store(sequence + 2, Ordering::Release);
    }
}

/// A live entry.
pub(super) struct Found<'a> {
    slot: &'a Slot,
    state: State,
}

impl Found<'_> {
    pub(super) fn starter_is_lower(&self) -> bool {
        self.state.starter_is_lower()
    }

    pub(super) fn phase(&self) -> Phase {
        self.state.phase()
    }

    /// Whether the starter is a guess: the flow was taken up in mid-stream.
    pub(super) fn is_guess(&self) -> bool {
        self.state.is_guess()
    }

    /// Notes that nobody saw who started the flow.
    pub(super) fn mark_guess(&mut self) {
        self.state.0 |= GUESS;
        self.slot.state.fetch_or(GUESS, Ordering::Relaxed);
    }

    /// The policy by which the flow was judged last.
    pub(super) fn token(&self) -> u32 {
        self.state.token()
    }

    /// Notes a packet of the flow, and the judgement on it.
    pub(super) fn update(&mut self, phase: Phase, token: u32, now: Now) {
        self.touch(now);
        if token != self.state.token() {
            // Another rule may decide now.
            self.slot.record.store(0, Ordering::Relaxed);
        }
        let mut next =
            State::new(token, self.state.generation(), phase, self.state.starter_is_lower());
        // Who sends an opening segment is no guess any more.
        if phase != Phase::Opening {
            next.0 |= self.state.0 & GUESS;
        }
        let mut seen = self.state.0;
        while seen != next.0 {
            match self.slot.state.compare_exchange_weak(
                seen,
                next.0,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                // The slot is another flow's by this time.
                Err(other) if State(other).generation() != next.generation() => return,
                Err(other) => {
                    seen = other;
                    if phase != Phase::Opening {
                        next.0 |= other & GUESS;
                    }
                }
            }
        }
        self.state = next;
    }

    /// Notes a packet of the flow.
    pub(super) fn touch(&self, now: Now) {
        if self.slot.seen_millis.load(Ordering::Relaxed) != now.monotonic_millis {
            self.slot.seen_millis.store(now.monotonic_millis, Ordering::Relaxed);
        }
    }

    /// The record that the flow counts under, while the policy is the one it was found by.
    pub(super) fn record(&self) -> Option<RecordMark> {
        RecordMark::from_bits(self.slot.record.load(Ordering::Relaxed))
    }

    /// Notes the record. No verdict depends on it.
    pub(super) fn set_record(&self, mark: RecordMark) {
        self.slot.record.store(mark.bits(), Ordering::Relaxed);
    }

    /// The hop that the flow's last packet came from. A hint: check it against the pair's path.
    pub(super) fn hop(&self) -> Option<HopMark> {
        let word = self.slot.hop.load(Ordering::Relaxed);
        (word & HOP_KNOWN != 0).then_some(HopMark { sap: (word >> 8) as u32, endpoint: word as u8 })
    }

    /// Notes the hop that a packet of the flow came from.
    pub(super) fn set_hop(&self, hop: HopMark) {
        let word = HOP_KNOWN | u64::from(hop.sap) << 8 | u64::from(hop.endpoint);
        if self.slot.hop.load(Ordering::Relaxed) != word {
            self.slot.hop.store(word, Ordering::Relaxed);
        }
    }
}

impl FlowTable {
    /// A table with room for `capacity` flows (rounded up to a power of two, at least 64).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(8 * BUCKET).next_power_of_two();
        Self {
            slots: (0..capacity).map(|_| Slot::default()).collect(),
            by_source: BySource::new(SOURCES),
            occupied: AtomicUsize::new(0),
            cursor: AtomicUsize::new(0),
            hasher: RandomState::new(),
            started_millis: None,
            wrong_keys: KeyBudget::new(),
            records: RecordTable::beside(capacity),
        }
    }

    /// Says when the process started: for 60 s from there TCP flows that run already are taken up
    /// in mid-stream, where a rule allows them. Without it none are.
    #[must_use]
    pub fn started(mut self, now: Now) -> Self {
        self.started_millis = Some(now.monotonic_millis);
        self
    }

    /// How many flows are in it; those whose time is up count until their place is taken or
    /// [`FlowTable::sweep`] comes by.
    #[must_use]
    pub fn len(&self) -> usize {
        self.occupied.load(Ordering::Relaxed)
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many flows it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Whether mid-stream TCP may make entries.
    pub(super) fn is_in_grace(&self, now: Now) -> bool {
        self.started_millis
            .is_some_and(|started| now.monotonic_millis.saturating_sub(started) < GRACE_MILLIS)
    }

    /// The entry of `key`, if its time is not up.
    pub(super) fn find(&self, key: &FlowKey, now: Now) -> Option<Found<'_>> {
        let FlowKey([.., meta]) = key;
        self.bucket(key).iter().find_map(|slot| {
            let [.., slot_meta] = &slot.key;
            if slot_meta.load(Ordering::Relaxed) != *meta {
                return None;
            }
            let view = slot.view()?;
            (view.key == *key && !view.is_expired(now)).then_some(Found { slot, state: view.state })
        })
    }

    /// Makes an entry, or replaces the one of `key`. Returns nothing where the starter has used up
    /// its share and none of its own flows was found to give way.
    pub(super) fn insert(
        &self,
        key: &FlowKey,
        starter_is_lower: bool,
        phase: Phase,
        token: u32,
        now: Now,
    ) -> Option<Found<'_>> {
        let starter = key.starter(starter_is_lower);
        let is_over =
            self.count_of(starter).load(Ordering::Relaxed) as usize >= self.slots.len() / BUCKET;
        if is_over && !self.reclaim(starter, true, now) && !self.reclaim(starter, false, now) {
            return None;
        }
        // A claim fails when another thread was faster; then the bucket looks different.
        for _ in 0..4 {
            let (slot, view) = self.place(key, starter, is_over, now)?;
            if !slot.claim(view.sequence) {
                continue;
            }
            self.forget(&view);
            let generation = (view.sequence + 2) >> 1;
            let state = State::new(token, generation, phase, starter_is_lower);
            slot.write(view.sequence, key, state, now.monotonic_millis);
            self.count_of(starter).fetch_add(1, Ordering::Relaxed);
            self.occupied.fetch_add(1, Ordering::Relaxed);
            return Some(Found { slot, state });
        }
        None
    }

    /// The slot of the bucket that an entry of `starter` goes to.
    ///
    /// In order: the one that holds `key`, a free one, an expired one, the starter's own oldest, the
    /// oldest, and tombstones last: nobody may push out the tombstone of a flow of his own, so that
    /// its replies start it anew. A source that is over its share takes no live one of others.
    fn place(
        &self,
        key: &FlowKey,
        starter: (u64, u64, u64),
        is_over: bool,
        now: Now,
    ) -> Option<(&Slot, View)> {
        let views = self.bucket(key).iter().filter_map(|slot| slot.view().map(|view| (slot, view)));
        views
            .filter_map(|(slot, view)| {
                let rank = if view.is_free() {
                    1
                } else if view.key == *key {
                    0
                } else if view.is_expired(now) {
                    2
                } else if view.state.phase() == Phase::Tombstone {
                    5
                } else if view.key.starter(view.state.starter_is_lower()) == starter {
                    3
                } else {
                    4
                };
                (rank < 4 || !is_over).then_some((rank, slot, view))
            })
            .min_by_key(|(rank, _, view)| (*rank, view.seen_millis))
            .map(|(_, slot, view)| (slot, view))
    }

    /// Frees the oldest of those flows of a starter that a search from a place that nobody can foresee
    /// comes by. The oldest of the bucket would not do: it is often the only one there, and now and
    /// then milliseconds old.
    fn reclaim(&self, starter: (u64, u64, u64), spares_tombstones: bool, now: Now) -> bool {
        let start = self.cursor.fetch_add(BUCKET * RECLAIM_CHOICE, Ordering::Relaxed);
        let oldest = (start..start.wrapping_add(RECLAIM_PROBES))
            .filter_map(|at| self.slots.get(at & (self.slots.len() - 1)))
            .filter_map(|slot| slot.view().map(|view| (slot, view)))
            .filter(|(_, view)| {
                !view.is_free() && view.key.starter(view.state.starter_is_lower()) == starter
            })
            .filter(|(_, view)| {
                !spares_tombstones || view.state.phase() != Phase::Tombstone || view.is_expired(now)
            })
            .take(RECLAIM_CHOICE)
            .min_by_key(|(_, view)| (!view.is_expired(now), view.seen_millis));
        oldest.is_some_and(|(slot, view)| self.free(slot, &view))
    }

    fn free(&self, slot: &Slot, view: &View) -> bool {
        if !slot.claim(view.sequence) {
            return false;
        }
        self.forget(view);
        slot.write(view.sequence, &FlowKey([0; KEY_WORDS]), State(0), 0);
        true
    }

    /// Takes a claimed slot's old content off the counts.
    fn forget(&self, view: &View) {
        if !view.is_free() {
            let starter = view.key.starter(view.state.starter_is_lower());
            self.count_of(starter).fetch_sub(1, Ordering::Relaxed);
            self.occupied.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn bucket(&self, key: &FlowKey) -> &[Slot] {
        let hash = self.hasher.hash_one(key.0) as usize;
        let start = hash & (self.slots.len() - 1) & !(BUCKET - 1);
        self.slots.get(start..start + BUCKET).unwrap_or_default()
    }

    fn count_of(&self, starter: (u64, u64, u64)) -> &AtomicU32 {
        self.by_source.of(self.hasher.hash_one(starter))
    }
}

#[cfg(test)]
#[path = "flows_tests.rs"]
mod tests;

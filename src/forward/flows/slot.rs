//! One entry of the flow table, as it lies in memory.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

use crate::forward::Now;
use crate::forward::flow_key::{FlowKey, KEY_WORDS};
use crate::forward::records::RecordMark;

/// Where a flow is in its life; decides how long it may be idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::forward) enum Phase {
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
    pub(super) const ALL: [Self; 7] = [
        Self::Opening,
        Self::Answered,
        Self::Established,
        Self::Closing,
        Self::Stateless,
        Self::Tombstone,
        Self::Fragment,
    ];

    pub(super) fn idle_millis(self) -> u64 {
        match self {
            Self::Opening | Self::Answered | Self::Closing | Self::Stateless => 60_000,
            // RFC 5382: no less than 2 hours 4 minutes.
            Self::Established => (2 * 60 + 4) * 60_000,
            Self::Tombstone => 120_000,
            Self::Fragment => 30_000,
        }
    }
}

/// Where a flow's last packet came from: a SaP (0 for none: the peer itself) and which of its
/// endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::forward) struct HopMark {
    pub(in crate::forward) sap: u32,
    pub(in crate::forward) endpoint: u8,
}

const HOP_KNOWN: u64 = 1 << 63;

impl HopMark {
    /// As it stands in a slot; none for a flow of which nothing came from a hop.
    pub(super) fn of(word: u64) -> Option<Self> {
        (word & HOP_KNOWN != 0).then_some(Self { sap: (word >> 8) as u32, endpoint: word as u8 })
    }
}

/// Words of a slot.
pub(super) const SLOT_WORDS: usize = KEY_WORDS + 5;

pub(super) type SlotWords = [AtomicU64; SLOT_WORDS];

/// A place for a flow: `sequence | key (6 words) | state | seen, in milliseconds | hop | record (0 for none)`
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot<'a> {
    pub(super) words: &'a SlotWords,
    /// A byte of the hash of its key, 0 where it is free.
    pub(super) tag: &'a AtomicU8,
}

/// `token | generation (24 bits) | phase (3 bits) | starter is the lower end | starter is a guess`
#[derive(Clone, Copy)]
pub(super) struct State(pub(super) u64);

const GUESS: u64 = 1 << 60;

const GENERATION_MASK: u64 = 0xFF_FFFF;

impl State {
    pub(super) fn new(token: u32, generation: u64, phase: Phase, starter_is_lower: bool) -> Self {
        Self(
            u64::from(token)
                | (generation & GENERATION_MASK) << 32
                | (phase as u64) << 56
                | u64::from(starter_is_lower) << 59,
        )
    }

    pub(super) fn token(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn generation(self) -> u64 {
        self.0 >> 32 & GENERATION_MASK
    }

    pub(super) fn phase(self) -> Phase {
        let index = (self.0 >> 56 & 7) as usize;
        Phase::ALL.get(index).copied().unwrap_or(Phase::Tombstone)
    }

    pub(super) fn starter_is_lower(self) -> bool {
        self.0 >> 59 & 1 == 1
    }

    pub(super) fn is_guess(self) -> bool {
        self.0 & GUESS != 0
    }
}

/// A slot as it was read in one piece.
pub(super) struct View {
    pub(super) sequence: u64,
    pub(super) key: FlowKey,
    pub(super) state: State,
    pub(super) seen_millis: u64,
}

impl View {
    pub(super) fn is_free(&self) -> bool {
        let FlowKey([.., meta]) = self.key;
        meta & 0xFF == 0
    }

    /// What the quota counts the flow under.
    pub(super) fn starter(&self) -> (u64, u64, u64) {
        self.key.starter(self.state.starter_is_lower())
    }

    pub(super) fn is_expired(&self, now: Now) -> bool {
        now.monotonic_millis.saturating_sub(self.seen_millis) >= self.state.phase().idle_millis()
    }
}

impl<'a> Slot<'a> {
    pub(super) fn sequence(self) -> &'a AtomicU64 {
        let [sequence, ..] = self.words;
        sequence
    }

    pub(super) fn key(self) -> [&'a AtomicU64; KEY_WORDS] {
        let [_, k0, k1, k2, k3, k4, k5, ..] = self.words;
        [k0, k1, k2, k3, k4, k5]
    }

    pub(super) fn state(self) -> &'a AtomicU64 {
        let [.., state, _, _, _] = self.words;
        state
    }

    pub(super) fn seen_millis(self) -> &'a AtomicU64 {
        let [.., seen_millis, _, _] = self.words;
        seen_millis
    }

    pub(super) fn hop(self) -> &'a AtomicU64 {
        let [.., hop, _] = self.words;
        hop
    }

    pub(super) fn record(self) -> &'a AtomicU64 {
        let [.., record] = self.words;
        record
    }

    /// Whether its key may have this byte of hash; a look at the content tells.
    pub(super) fn has_tag(self, tag: u8) -> bool {
        self.tag.load(Ordering::Relaxed) == tag
    }

    /// Whether it may hold something; a look at the content tells.
    pub(super) fn is_used(self) -> bool {
        !self.has_tag(0)
    }

    /// The slot's content, or nothing while a writer is at it.
    pub(super) fn view(self) -> Option<View> {
        let sequence = self.sequence().load(Ordering::Acquire);
        if sequence & 1 == 1 {
            return None;
        }
        let key = FlowKey(self.key().map(|word| word.load(Ordering::Relaxed)));
        let state = State(self.state().load(Ordering::Relaxed));
        let seen_millis = self.seen_millis().load(Ordering::Relaxed);
        // Keeps the loads above before the second look at the sequence number.
        fence(Ordering::Acquire);
        (self.sequence().load(Ordering::Relaxed) == sequence).then_some(View {
            sequence,
            key,
            state,
            seen_millis,
        })
    }

    /// Becomes the slot's only writer if nothing changed since `sequence` was read.
    pub(super) fn claim(self, sequence: u64) -> bool {
        let odd = sequence.wrapping_add(1);
        let claimed = self
            .sequence()
            .compare_exchange(sequence, odd, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        // Keeps the writer's stores behind the odd number.
        fence(Ordering::Release);
        claimed
    }

    /// Ends what [`Self::claim`] began. Whoever sees the content sees the tag.
    pub(super) fn write(
        self,
        sequence: u64,
        (key, tag): (&FlowKey, u8),
        state: State,
        seen_millis: u64,
    ) {
        self.tag.store(tag, Ordering::Relaxed);
        for (slot, word) in self.key().iter().zip(key.0) {
            slot.store(word, Ordering::Relaxed);
        }
        self.state().store(state.0, Ordering::Relaxed);
        self.seen_millis().store(seen_millis, Ordering::Relaxed);
        self.hop().store(0, Ordering::Relaxed);
        self.record().store(0, Ordering::Relaxed);
        self.sequence().store(sequence.wrapping_add(2), Ordering::Release);
    }
}

/// A live entry.
pub(in crate::forward) struct Found<'a> {
    pub(super) slot: Slot<'a>,
    pub(super) state: State,
}

impl Found<'_> {
    pub(in crate::forward) fn starter_is_lower(&self) -> bool {
        self.state.starter_is_lower()
    }

    pub(in crate::forward) fn phase(&self) -> Phase {
        self.state.phase()
    }

    /// Whether the starter is a guess: the flow was taken up in mid-stream.
    pub(in crate::forward) fn is_guess(&self) -> bool {
        self.state.is_guess()
    }

    /// Notes that nobody saw who started the flow.
    pub(in crate::forward) fn mark_guess(&mut self) {
        self.state.0 |= GUESS;
        self.slot.state().fetch_or(GUESS, Ordering::Relaxed);
    }

    /// The policy by which the flow was judged last.
    pub(in crate::forward) fn token(&self) -> u32 {
        self.state.token()
    }

    /// Notes a packet of the flow, and the judgement on it.
    pub(in crate::forward) fn update(&mut self, phase: Phase, token: u32, now: Now) {
        self.touch(now);
        if token != self.state.token() {
            // Another rule may decide now.
            self.slot.record().store(0, Ordering::Relaxed);
        }
        let mut next =
            State::new(token, self.state.generation(), phase, self.state.starter_is_lower());
        // Who sends an opening segment is no guess any more.
        if phase != Phase::Opening {
            next.0 |= self.state.0 & GUESS;
        }
        let mut seen = self.state.0;
        while seen != next.0 {
            match self.slot.state().compare_exchange_weak(
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
    pub(in crate::forward) fn touch(&self, now: Now) {
        if self.slot.seen_millis().load(Ordering::Relaxed) != now.monotonic_millis {
            self.slot.seen_millis().store(now.monotonic_millis, Ordering::Relaxed);
        }
    }

    /// The record that the flow counts under, while the policy is the one it was found by.
    pub(in crate::forward) fn record(&self) -> Option<RecordMark> {
        RecordMark::from_bits(self.slot.record().load(Ordering::Relaxed))
    }

    /// Notes the record. No verdict depends on it.
    pub(in crate::forward) fn set_record(&self, mark: RecordMark) {
        self.slot.record().store(mark.bits(), Ordering::Relaxed);
    }

    /// The hop that the flow's last packet came from. A hint: check it against the pair's path.
    pub(in crate::forward) fn hop(&self) -> Option<HopMark> {
        HopMark::of(self.slot.hop().load(Ordering::Relaxed))
    }

    /// Notes the hop that a packet of the flow came from.
    pub(in crate::forward) fn set_hop(&self, hop: HopMark) {
        let word = HOP_KNOWN | u64::from(hop.sap) << 8 | u64::from(hop.endpoint);
        if self.slot.hop().load(Ordering::Relaxed) != word {
            self.slot.hop().store(word, Ordering::Relaxed);
        }
    }
}

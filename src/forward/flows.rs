//! The flow table: fixed size, shared by all hallways without locks.
//!
//! Buckets of sixteen slots. A slot is a handful of atomics under a sequence number: a writer makes
//! the number odd, writes the key, and makes it even again; a reader that saw it odd or changed
//! treats the slot as another flow's. What changes while a flow lives (phase, judged policy, time,
//! hop) are single words. The state word carries bits of the sequence number, so that a late update
//! never lands on the slot's next flow.
//!
//! Beside the slots stands a byte of each one's hash: a lookup reads the sixteen of a bucket, and then only
//! slots whose byte is that of the key. Most often that is the flow's own, or none.
//!
//! The slots may lie in memory that outlives the process, so that the next one finds them
//! ([`FlowTable::within`], [`FlowTable::take_over`]).
//!
//! Two threads that open the same flow at once may make two entries; the first in the bucket is the
//! one that everybody finds, and the other one ages out.

mod left;
mod slot;
mod walk;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use super::Now;
use super::by_source::BySource;
use super::flow_key::{FlowKey, KEY_WORDS};
use super::key_budget::KeyBudget;
use super::records::RecordTable;
pub(super) use slot::{Found, HopMark, Phase};
use slot::{Slot, SlotWords, State, View};

/// Slots of a bucket. With eight, a source that is over its share
/// found a bucket full of others' once in 100,000 times, in a table that was a quarter full.
const BUCKET: usize = 16;

/// A source may have this part of the table (design section 3.6).
const SHARE: usize = 8;

/// Slots of the smallest table.
const CAPACITY_MIN: usize = SHARE * BUCKET;

/// Buckets that a source over its quota searches at most for flows of its own, of which the oldest gives
/// way to the new one: eight times as many as it takes on average to see [`RECLAIM_CHOICE`].
const RECLAIM_BUCKETS: usize = 32;

/// Flows to choose the oldest from. Of eight, all are among the newest tenth once in 10^8 times.
const RECLAIM_CHOICE: usize = 8;

/// Counters of flows by source; two sources that share one share a quota.
const SOURCES: usize = 4096;

/// Mid-stream TCP may make an entry for so long after a start (design section 3.6).
const GRACE_MILLIS: u64 = 60_000;

/// What one process remembers of packets: its flows, and wrong keys. Fixed size, shared by all
/// hallways without locks.
#[derive(Debug)]
pub struct FlowTable {
    memory: Memory,
    /// A byte of each slot's hash, 0 where it is free.
    tags: Box<[AtomicU8]>,
    /// Flows by starter, for the quota.
    by_source: BySource,
    occupied: AtomicUsize,
    /// Keyed at random, so that nobody can aim at a bucket.
    hasher: RandomState,
    started_millis: Option<u64>,
    /// Here because it must outlive snapshots, as flows do.
    pub(super) wrong_keys: KeyBudget,
    /// Here for the same reason.
    pub(super) records: RecordTable,
}

/// Where the slots lie.
#[derive(Debug)]
enum Memory {
    Own(Box<[SlotWords]>),
    /// Outlives the process, behind a head that says what it is.
    Shared(&'static [SlotWords]),
}

impl Memory {
    fn own(capacity: usize) -> Self {
        let capacity = capacity.max(CAPACITY_MIN).next_power_of_two();
        Self::Own((0..capacity).map(|_| SlotWords::default()).collect())
    }

    fn slots(&self) -> &[SlotWords] {
        match self {
            Self::Own(slots) => slots,
            Self::Shared(slots) => slots,
        }
    }
}

impl FlowTable {
    /// A table with room for `capacity` flows (rounded up to a power of two, at least 128), in memory of its own.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self::over(Memory::own(capacity))
    }

    fn over(memory: Memory) -> Self {
        let capacity = memory.slots().len();
        Self {
            memory,
            tags: (0..capacity).map(|_| AtomicU8::new(0)).collect(),
            by_source: BySource::new(SOURCES),
            occupied: AtomicUsize::new(0),
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
        self.memory.slots().len()
    }

    /// Whether mid-stream TCP may make entries.
    pub(super) fn is_in_grace(&self, now: Now) -> bool {
        self.started_millis
            .is_some_and(|started| now.monotonic_millis.saturating_sub(started) < GRACE_MILLIS)
    }

    /// The entry of `key`, if its time is not up.
    pub(super) fn find(&self, key: &FlowKey, now: Now) -> Option<Found<'_>> {
        let hash = self.hasher.hash_one(key.0);
        let tag = tag_of(hash);
        self.bucket_at(hash).filter(|slot| slot.has_tag(tag)).find_map(|slot| {
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
        let hash = self.hasher.hash_one(key.0);
        let starter = key.starter(starter_is_lower);
        let is_over =
            self.count_of(starter).load(Ordering::Relaxed) as usize >= self.capacity() / SHARE;
        if is_over
            && !self.reclaim(hash, starter, true, now)
            && !self.reclaim(hash, starter, false, now)
        {
            return None;
        }
        // A claim fails when another thread was faster; then the bucket looks different.
        for _ in 0..4 {
            let (slot, view) = self.place(hash, key, starter, is_over, now)?;
            if !slot.claim(view.sequence) {
                continue;
            }
            self.forget(&view);
            let generation = view.sequence.wrapping_add(2) >> 1;
            let state = State::new(token, generation, phase, starter_is_lower);
            slot.write(view.sequence, (key, tag_of(hash)), state, now.monotonic_millis);
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
        hash: u64,
        key: &FlowKey,
        starter: (u64, u64, u64),
        is_over: bool,
        now: Now,
    ) -> Option<(Slot<'_>, View)> {
        views(self.bucket_at(hash))
            .filter_map(|(slot, view)| {
                let rank = if view.is_free() {
                    1
                } else if view.key == *key {
                    0
                } else if view.is_expired(now) {
                    2
                } else if view.state.phase() == Phase::Tombstone {
                    5
                } else if view.starter() == starter {
                    3
                } else {
                    4
                };
                (rank < 4 || !is_over).then_some((rank, slot, view))
            })
            .min_by_key(|(rank, _, view)| (*rank, view.seen_millis))
            .map(|(_, slot, view)| (slot, view))
    }

    /// Frees the oldest of some flows of a starter, from buckets taken by chance until they have enough.
    /// So a crowded bucket loses more than an empty one; neighbours would not do: each stretch of the
    /// table would then lose the same, and some would fill up. The oldest of the new flow's bucket would
    /// not do either: it is often the only one there, and now and then milliseconds old.
    fn reclaim(
        &self,
        hash: u64,
        starter: (u64, u64, u64),
        spares_tombstones: bool,
        now: Now,
    ) -> bool {
        let mut choice = 0;
        let mut oldest: Option<(Slot<'_>, View)> = None;
        // Other bits than those that choose the new flow's bucket; golden steps go all over the table.
        let mut at = hash >> 32;
        for _ in 0..RECLAIM_BUCKETS {
            at = at.wrapping_add(0x9E37_79B9_7F4A_7C15);
            for (slot, view) in views(self.bucket_at(at)) {
                let is_own = !view.is_free() && view.starter() == starter;
                let is_spared = spares_tombstones
                    && view.state.phase() == Phase::Tombstone
                    && !view.is_expired(now);
                if !is_own || is_spared {
                    continue;
                }
                choice += 1;
                let age = |view: &View| (!view.is_expired(now), view.seen_millis);
                if oldest.as_ref().is_none_or(|(_, oldest)| age(&view) < age(oldest)) {
                    oldest = Some((slot, view));
                }
            }
            if choice >= RECLAIM_CHOICE {
                break;
            }
        }
        oldest.is_some_and(|(slot, view)| self.free(slot, &view))
    }

    fn free(&self, slot: Slot<'_>, view: &View) -> bool {
        if !slot.claim(view.sequence) {
            return false;
        }
        self.forget(view);
        slot.write(view.sequence, (&FlowKey([0; KEY_WORDS]), 0), State(0), 0);
        true
    }

    /// Takes a claimed slot's old content off the counts.
    fn forget(&self, view: &View) {
        if !view.is_free() {
            let starter = view.starter();
            self.count_of(starter).fetch_sub(1, Ordering::Relaxed);
            self.occupied.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        slots(self.memory.slots(), &self.tags)
    }

    fn bucket_at(&self, hash: u64) -> impl Iterator<Item = Slot<'_>> {
        // The number of slots is a power of two.
        let start = hash as usize & (self.capacity() - 1) & !(BUCKET - 1);
        let places = start..start + BUCKET;
        slots(
            self.memory.slots().get(places.clone()).unwrap_or_default(),
            self.tags.get(places).unwrap_or_default(),
        )
    }

    fn count_of(&self, starter: (u64, u64, u64)) -> &AtomicU32 {
        self.by_source.of(self.hasher.hash_one(starter))
    }
}

/// The byte of a hash that stands beside its slot: none of the bits that choose the bucket, and never 0,
/// which stands beside a free slot.
fn tag_of(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(1)
}

fn slots<'a>(words: &'a [SlotWords], tags: &'a [AtomicU8]) -> impl Iterator<Item = Slot<'a>> {
    words.iter().zip(tags).map(|(words, tag)| Slot { words, tag })
}

fn views<'a>(slots: impl Iterator<Item = Slot<'a>>) -> impl Iterator<Item = (Slot<'a>, View)> {
    slots.filter_map(|slot| slot.view().map(|view| (slot, view)))
}

#[cfg(test)]
#[path = "flows_tests.rs"]
mod tests;

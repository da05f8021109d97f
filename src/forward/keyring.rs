//! The keys that a pair accepts, derived when a packet first asks for them, in a cache of fixed
//! size: memory does not grow with pairs, and a hit is one load.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, Ordering};

use super::matcher::{PairHasher, pair};
use crate::keys::DestinationKey;
use crate::types::{Generation, NodeId, Timestamp};

/// Members of all overlays of a node together. Bounds what the cache must tell apart.
pub(super) const MEMBERS_MAX: usize = 1 << MEMBER_BITS;

/// Keys that one pair can accept: two of one kind times one, or one times two; 4 to be safe.
const KEYS_MAX: usize = 1 << ORDINAL_BITS;

const MEMBER_BITS: u32 = 20;
const ORDINAL_BITS: u32 = 2;
const IDENTITY_BITS: u32 = 2 * MEMBER_BITS + ORDINAL_BITS;
const IDENTITY_MASK: u64 = (1 << IDENTITY_BITS) - 1;
/// From 2,048 to 16,384 slots of 8 bytes, as there are pairs.
const SLOT_BITS_MIN: u32 = 11;
const SLOT_BITS_MAX: u32 = 14;

/// A slot holds a full bit, the rest of the identity, and the key; the index holds the other bits of
/// the identity. So a slot can never be taken for another pair's.
const _: () = assert!(IDENTITY_BITS - SLOT_BITS_MIN < 32);

const FULL: u64 = 1 << 63;

/// What the keys of one overlay are derived from.
#[derive(Debug, Default)]
pub(super) struct Keyring {
    destinations: HashMap<u32, Accepted<DestinationKey>, BuildHasherDefault<PairHasher>>,
    generations: HashMap<u64, Accepted<Generation>, BuildHasherDefault<PairHasher>>,
}

/// What is accepted, oldest first, and when the older of two ends.
#[derive(Debug)]
struct Accepted<T> {
    all: Box<[T]>,
    old_until: Option<Timestamp>,
}

impl<T> Accepted<T> {
    fn new(all: Vec<T>, old_until: Option<Timestamp>) -> Self {
        Self { all: all.into_boxed_slice(), old_until }
    }

    /// The newest first, each with whether it still counts.
    fn newest_first(&self, wall: Timestamp) -> impl Iterator<Item = (&T, bool)> {
        let old_counts = self.old_until.is_none_or(|end| wall < end);
        self.all.iter().rev().zip(0..).map(move |(one, age)| (one, age == 0 || old_counts))
    }
}

impl Keyring {
    /// Adds the `Kb`s that destination `to` accepts, oldest first, and when the older of two ends.
    pub(super) fn add_destination(
        &mut self,
        to: u32,
        keys: Vec<DestinationKey>,
        old_until: Option<Timestamp>,
    ) {
        self.destinations.insert(to, Accepted::new(keys, old_until));
    }

    /// Adds the generations that the pair accepts in place of 0.
    pub(super) fn add_pair(
        &mut self,
        from: u32,
        to: u32,
        generations: Vec<Generation>,
        old_until: Option<Timestamp>,
    ) {
        self.generations.insert(pair(from, to), Accepted::new(generations, old_until));
    }

    /// Whether nothing can be derived.
    pub(super) fn is_empty(&self) -> bool {
        self.destinations.is_empty()
    }

    /// Whether `key` is one of those that `to` accepts from `from`, whose id is `from_id`.
    /// `first_member` tells the members of this overlay from those of others in `cache`.
    pub(super) fn accepts(
        &self,
        cache: &KeyCache,
        first_member: u32,
        (from, from_id): (u32, NodeId),
        to: u32,
        key: u32,
        wall: Timestamp,
    ) -> bool {
        let Some(destinations) = self.destinations.get(&to) else { return false };
        let own = self.generations.get(&pair(from, to));
        let generations = || {
            let never_rotated = own.is_none().then_some((&Generation(0), true));
            own.into_iter().flat_map(|own| own.newest_first(wall)).chain(never_rotated)
        };
        let from_number = u64::from(first_member + from);
        let to_number = u64::from(first_member + to);
        let candidates = destinations.newest_first(wall).flat_map(|(destination, counts)| {
            generations().map(move |(own, own_counts)| (destination, *own, counts && own_counts))
        });
        candidates.take(KEYS_MAX).zip(0_u64..).any(
            |((destination, generation, counts), ordinal)| {
                let identity = (from_number << MEMBER_BITS | to_number) << ORDINAL_BITS | ordinal;
                counts
                    && cache.key(identity, || destination.pair_key(from_id, generation).bits())
                        == key
            },
        )
    }
}

/// Keys derived lately.
#[derive(Debug, Default)]
pub(super) struct KeyCache {
    slots: Box<[AtomicU64]>,
    slot_bits: u32,
}

impl KeyCache {
    /// A cache that remembers nothing and takes no room.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// An empty cache for the pairs of so many members.
    pub(super) fn for_pairs_of(members: usize) -> Self {
        let pairs = members.saturating_mul(members).max(1);
        let slot_bits = pairs.ilog2().clamp(SLOT_BITS_MIN, SLOT_BITS_MAX);
        Self { slots: (0..1 << slot_bits).map(|_| AtomicU64::new(0)).collect(), slot_bits }
    }

    fn key(&self, identity: u64, derive: impl FnOnce() -> u32) -> u32 {
        let mixed = mix(identity);
        let slot = self.slots.get((mixed & ((1 << self.slot_bits) - 1)) as usize);
        let tag = FULL | (mixed >> self.slot_bits) << 32;
        if let Some(slot) = slot {
            let word = slot.load(Ordering::Relaxed);
            if word & !u64::from(u32::MAX) == tag {
                return word as u32;
            }
        }
        let key = derive();
        if let Some(slot) = slot {
            // Whole words only, so that tag and key always belong together.
            slot.store(tag | u64::from(key), Ordering::Relaxed);
        }
        key
    }
}

/// A bijection on identities: what the slot's index does not hold, the tag does.
fn mix(identity: u64) -> u64 {
    let mixed = identity.wrapping_mul(0x9E37_79B9_7F4A_7C15) & IDENTITY_MASK;
    let mixed = mixed ^ mixed >> (IDENTITY_BITS / 2);
    mixed.wrapping_mul(0xBF58_476D_1CE4_E5B9) & IDENTITY_MASK
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Secret;

    #[test]
    fn a_slot_is_never_taken_for_another_pairs() {
        for (members, slots) in [(3, 2_048), (100, 8_192), (5_000, 16_384)] {
            let cache = KeyCache::for_pairs_of(members);
            assert_eq!(cache.slots.len(), slots);
            // Far more pairs than slots, so that every slot is fought for.
            for round in 0..2 {
                for identity in 0..50_000_u64 {
                    let identity = (identity * 1_048_583) & IDENTITY_MASK;
                    let key = identity as u32 ^ 0x5555;
                    assert_eq!(cache.key(identity, || key), key, "{identity} in round {round}");
                }
            }
        }
    }

    #[test]
    fn a_second_question_derives_nothing() {
        let cache = KeyCache::for_pairs_of(3);
        assert_eq!(cache.key(7, || 99), 99);
        assert_eq!(cache.key(7, || panic!("derived twice")), 99);
        assert_eq!(cache.key(8, || 98), 98);
    }

    #[test]
    fn old_and_new_keys_of_a_pair_are_accepted_and_no_others() {
        let old = DestinationKey::new(&Secret::new([1; 32]));
        let new = DestinationKey::new(&Secret::new([2; 32]));
        let foreign = DestinationKey::new(&Secret::new([3; 32]));
        let mut ring = Keyring::default();
        ring.add_destination(1, vec![old.clone(), new.clone()], None);
        ring.add_destination(2, vec![new.clone()], None);
        ring.add_pair(0, 2, vec![Generation(3), Generation(4)], None);
        let cache = KeyCache::for_pairs_of(3);
        let ask = |to, key: &DestinationKey, from, generation| {
            let key = key.pair_key(NodeId(from), Generation(generation)).bits();
            // Twice: derived, then remembered.
            let now = Timestamp(0);
            let answers = [(); 2].map(|()| ring.accepts(&cache, 0, (0, NodeId(50)), to, key, now));
            assert_eq!(answers[0], answers[1]);
            answers[0]
        };

        assert!(ask(1, &old, 50, 0) && ask(1, &new, 50, 0));
        assert!(ask(2, &new, 50, 3) && ask(2, &new, 50, 4));
        assert!(!ask(1, &foreign, 50, 0) && !ask(1, &new, 51, 0) && !ask(1, &new, 50, 1));
        assert!(!ask(2, &new, 50, 0) && !ask(2, &old, 50, 3) && !ask(3, &new, 50, 0));
    }

    #[test]
    fn the_older_of_two_keys_ends_at_its_time_and_the_newer_one_stays() {
        let old = DestinationKey::new(&Secret::new([1; 32]));
        let new = DestinationKey::new(&Secret::new([2; 32]));
        let mut ring = Keyring::default();
        ring.add_destination(1, vec![old.clone(), new.clone()], Some(Timestamp(100)));
        ring.add_destination(2, vec![new.clone()], Some(Timestamp(100)));
        ring.add_pair(0, 2, vec![Generation(3), Generation(4)], Some(Timestamp(200)));
        let cache = KeyCache::for_pairs_of(3);
        for (to, key, generation, end) in [
            (1, &old, 0, Some(100)),
            (1, &new, 0, None),
            (2, &new, 3, Some(200)),
            (2, &new, 4, None),
        ] {
            let key = key.pair_key(NodeId(50), Generation(generation)).bits();
            for at in [0, 99, 100, 199, 200, u64::MAX] {
                let is_accepted = ring.accepts(&cache, 0, (0, NodeId(50)), to, key, Timestamp(at));
                assert_eq!(is_accepted, end.is_none_or(|end| at < end), "{to} {generation} {at}");
            }
        }
    }
}

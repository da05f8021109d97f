//! How many wrong keys a pair may see (design section 4).
//!
//! A 32-bit key can be guessed by who may guess fast. Over the limit a pair takes nothing new until
//! the second is over, so that a guess that hits opens nothing.
//!
//! Memory is fixed and does not know pairs: each pair has one cell in each of two rows, shared with
//! whoever falls there too, and counts as the lower of its two cells say. So a count is never too low;
//! it is too high only for a pair that shares both cells with busy ones, which costs it new flows for
//! a second.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Now;
use super::guessed::{GuessedPair, GuessedPairs};
use crate::types::{NodeId, OverlayId};

/// Wrong keys a second that a pair may see without consequence.
pub(super) const WRONG_KEYS_PER_SECOND: u32 = 100;

/// Two rows of this many cells of 8 bytes.
const CELLS: usize = 4096;

/// A pair in one direction: overlay, source, destination.
pub(super) type Pair = (u32, u32, u32);

/// Counts wrong keys by pair, in one second at a time. Shared by all hallways without locks.
#[derive(Debug)]
pub(super) struct KeyBudget {
    /// `second | count`, 32 bits each.
    cells: Box<[AtomicU64]>,
    /// The last second in which any pair went over its limit: what a packet with a right key looks at.
    alarmed: AtomicU64,
    /// Keyed at random, so that nobody can aim at the cells of a pair by means of another.
    hasher: RandomState,
    /// The pairs that went over their limit, each once a second, for whoever raises alarms.
    pub(super) guessed: GuessedPairs,
}

impl KeyBudget {
    pub(super) fn new() -> Self {
        Self {
            cells: (0..2 * CELLS).map(|_| AtomicU64::new(0)).collect(),
            alarmed: AtomicU64::new(u64::MAX),
            hasher: RandomState::new(),
            guessed: GuessedPairs::default(),
        }
    }

    /// A wrong key came for `pair`.
    pub(super) fn count_wrong(&self, pair: Pair, now: Now) {
        let second = second(now);
        let mut lowest = u32::MAX;
        for cell in self.cells_of(pair) {
            lowest = lowest.min(count(cell, second));
        }
        if lowest > WRONG_KEYS_PER_SECOND {
            self.alarmed.store(u64::from(second), Ordering::Relaxed);
        }
        if lowest == WRONG_KEYS_PER_SECOND + 1 {
            let (overlay, from, to) = pair;
            let (overlay, from, to) = (OverlayId(overlay), NodeId(from), NodeId(to));
            self.guessed.put(GuessedPair { overlay, from, to });
        }
    }

    /// Whether `pair` saw too many in this second.
    pub(super) fn is_over(&self, pair: Pair, now: Now) -> bool {
        let second = second(now);
        self.alarmed.load(Ordering::Relaxed) == u64::from(second)
            && self.cells_of(pair).all(|cell| {
                let word = cell.load(Ordering::Relaxed);
                second_of(word) == second && count_of(word) > WRONG_KEYS_PER_SECOND
            })
    }

    fn cells_of(&self, pair: Pair) -> impl Iterator<Item = &AtomicU64> {
        let hash = self.hasher.hash_one(pair);
        [hash as usize % CELLS, CELLS + (hash >> 32) as usize % CELLS]
            .into_iter()
            .filter_map(|at| self.cells.get(at))
    }
}

/// Adds one for `second` and returns the count.
fn count(cell: &AtomicU64, second: u32) -> u32 {
    let mut seen = cell.load(Ordering::Relaxed);
    loop {
        let count = if second_of(seen) == second { count_of(seen).saturating_add(1) } else { 1 };
        let next = u64::from(second) << 32 | u64::from(count);
        match cell.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return count,
            Err(other) => seen = other,
        }
    }
}

/// Seconds of the monotonic clock; 32 bits last for 136 years.
fn second(now: Now) -> u32 {
    (now.monotonic_millis / 1000) as u32
}

fn second_of(word: u64) -> u32 {
    (word >> 32) as u32
}

fn count_of(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    fn at(millis: u64) -> Now {
        Now { monotonic_millis: millis, wall: Timestamp(0) }
    }

    #[test]
    fn a_pair_is_over_from_its_101st_wrong_key_to_the_end_of_the_second() {
        let budget = KeyBudget::new();
        let (pair, back) = ((1, 2, 3), (1, 3, 2));
        for number in 1..=WRONG_KEYS_PER_SECOND {
            budget.count_wrong(pair, at(5_000));
            assert!(!budget.is_over(pair, at(5_000)), "{number}");
        }

        assert_eq!(budget.guessed.take(), []);
        budget.count_wrong(pair, at(5_900));
        budget.count_wrong(pair, at(5_901));

        let guessed = GuessedPair { overlay: OverlayId(1), from: NodeId(2), to: NodeId(3) };
        assert_eq!(budget.guessed.take(), [guessed], "once a second");
        assert!(budget.is_over(pair, at(5_999)));
        assert!(!budget.is_over(back, at(5_999)));
        assert!(!budget.is_over(pair, at(6_000)));
        budget.count_wrong(pair, at(6_001));
        assert!(!budget.is_over(pair, at(6_001)));
    }

    #[test]
    fn the_first_second_of_a_process_counts_too() {
        let budget = KeyBudget::new();
        assert!(!budget.is_over((1, 2, 3), at(1)));
        for _ in 0..=WRONG_KEYS_PER_SECOND {
            budget.count_wrong((1, 2, 3), at(1));
        }
        assert!(budget.is_over((1, 2, 3), at(1)));
    }

    #[test]
    fn other_pairs_are_left_alone_while_a_few_are_guessed_at() {
        let budget = KeyBudget::new();
        for guessed in 0..8 {
            for _ in 0..500 {
                budget.count_wrong((1, guessed, 99), at(0));
            }
        }
        assert!((0..8).all(|guessed| budget.is_over((1, guessed, 99), at(0))));
        let hit = (100..10_100).filter(|&other| budget.is_over((1, other, 99), at(0))).count();
        assert!(hit < 10, "{hit}");
    }

    #[test]
    fn threads_lose_no_count() {
        let budget = KeyBudget::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..25).for_each(|_| budget.count_wrong((1, 2, 3), at(0))));
            }
        });
        assert!(!budget.is_over((1, 2, 3), at(0)));
        budget.count_wrong((1, 2, 3), at(0));
        assert!(budget.is_over((1, 2, 3), at(0)));
    }
}

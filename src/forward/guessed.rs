//! Word of pairs whose key somebody guesses at, on its way out of the hallways: a mailbox of fixed
//! size, without locks. What finds no room is lost; who goes on guessing is in the next word.

use std::sync::atomic::{AtomicU32, Ordering};

use super::FlowTable;
use crate::types::{NodeId, OverlayId};

/// How many pairs may wait to be taken out.
const SLOTS: usize = 16;

const EMPTY: u32 = 0;
/// Somebody writes it or takes it out.
const BUSY: u32 = 1;
const FULL: u32 = 2;

/// A pair that saw more wrong keys in a second than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuessedPair {
    /// The overlay.
    pub overlay: OverlayId,
    /// The entity in whose name the packets came.
    pub from: NodeId,
    /// The entity that they were for.
    pub to: NodeId,
}

#[derive(Debug, Default)]
struct Slot {
    state: AtomicU32,
    overlay: AtomicU32,
    from: AtomicU32,
    to: AtomicU32,
}

impl Slot {
    /// Makes it the caller's alone, when it is in `state`.
    fn claim(&self, state: u32) -> bool {
        self.state.compare_exchange(state, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn leave(&self, state: u32) {
        self.state.store(state, Ordering::Release);
    }
}

/// The mailbox. Any thread may put in and take out.
#[derive(Debug, Default)]
pub(super) struct GuessedPairs {
    slots: [Slot; SLOTS],
}

impl GuessedPairs {
    /// Puts a pair in, if there is room.
    pub(super) fn put(&self, pair: GuessedPair) {
        if let Some(slot) = self.slots.iter().find(|slot| slot.claim(EMPTY)) {
            slot.overlay.store(pair.overlay.0, Ordering::Relaxed);
            slot.from.store(pair.from.0, Ordering::Relaxed);
            slot.to.store(pair.to.0, Ordering::Relaxed);
            slot.leave(FULL);
        }
    }

    /// Takes out all there is.
    pub(super) fn take(&self) -> Vec<GuessedPair> {
        let full = self.slots.iter().filter(|slot| slot.claim(FULL));
        let taken = full.map(|slot| {
            let pair = GuessedPair {
                overlay: OverlayId(slot.overlay.load(Ordering::Relaxed)),
                from: NodeId(slot.from.load(Ordering::Relaxed)),
                to: NodeId(slot.to.load(Ordering::Relaxed)),
            };
            slot.leave(EMPTY);
            pair
        });
        taken.collect()
    }
}

impl FlowTable {
    /// The pairs that saw more wrong keys in a second than they may, since the last call; some may be
    /// missing while many are guessed at.
    #[must_use]
    pub fn take_guessed(&self) -> Vec<GuessedPair> {
        self.wrong_keys.guessed.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(number: u32) -> GuessedPair {
        GuessedPair { overlay: OverlayId(number), from: NodeId(number + 1), to: NodeId(number + 2) }
    }

    #[test]
    fn what_is_put_in_comes_out_once_and_there_is_an_end_to_it() {
        let pairs = GuessedPairs::default();
        assert_eq!(pairs.take(), []);
        for number in 0..100 {
            pairs.put(pair(number));
        }

        let all: Vec<GuessedPair> = (0..).take(SLOTS).map(pair).collect();
        assert_eq!(pairs.take(), all);
        assert_eq!(pairs.take(), []);
        pairs.put(pair(7));
        assert_eq!(pairs.take(), [pair(7)]);
    }

    #[test]
    fn threads_mix_up_no_pairs() {
        let pairs = GuessedPairs::default();
        let (mut taken, total) = (0, 4 * 10_000);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let pairs = &pairs;
                scope.spawn(move || {
                    (0..10_000).for_each(|number| pairs.put(pair(10 * number + thread)))
                });
            }
            for _ in 0..1_000 {
                for GuessedPair { overlay, from, to } in pairs.take() {
                    assert_eq!((from.0, to.0), (overlay.0 + 1, overlay.0 + 2));
                    taken += 1;
                }
            }
        });
        taken += pairs.take().len();
        assert!((1..=total).contains(&taken), "{taken}");
    }
}

//! Counters by source, of a fixed number: two sources that share one share a quota.

use std::sync::atomic::AtomicU32;

/// At least one counter.
#[derive(Debug)]
pub(super) struct BySource {
    first: AtomicU32,
    others: Box<[AtomicU32]>,
}

impl BySource {
    /// So many counters, all 0.
    pub(super) fn new(count: usize) -> Self {
        let others = (1..count).map(|_| AtomicU32::new(0)).collect();
        Self { first: AtomicU32::new(0), others }
    }

    /// The counter of a source, by the hash of its name.
    pub(super) fn of(&self, hash: u64) -> &AtomicU32 {
        // The last remainder is past the end: that is the first one.
        let at = hash as usize % (self.others.len() + 1);
        self.others.get(at).unwrap_or(&self.first)
    }

    /// Every counter.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &AtomicU32> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn every_counter_is_the_one_of_some_hash() {
        for count in [1, 2, 7] {
            let counters = BySource::new(count);
            for hash in 0..3 * count as u64 {
                counters.of(hash).fetch_add(1, Ordering::Relaxed);
            }
            assert!((0..count as u64).all(|n| counters.of(n).load(Ordering::Relaxed) == 3));
        }
    }
}

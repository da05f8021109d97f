//! The one thing that the hallways share with the rest: a snapshot, swapped whole.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

struct Shared<T> {
    generation: AtomicU64,
    current: RwLock<Arc<T>>,
}

/// Publishes snapshots.
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
}

/// Reads the newest snapshot; one for each thread.
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
    cached: Arc<T>,
}

impl<T> Publisher<T> {
    /// Starts with `first`.
    pub fn new(first: T) -> Self {
        let shared =
            Shared { generation: AtomicU64::new(0), current: RwLock::new(Arc::new(first)) };
        Self { shared: Arc::new(shared) }
    }

    /// Makes `next` what every reader sees from its next batch on, and returns it.
    pub fn publish(&self, next: T) -> Arc<T> {
        let next = Arc::new(next);
        let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::clone(&next);
        self.shared.generation.fetch_add(1, Ordering::Release);
        next
    }

    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.shared.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A reader for one more thread.
    #[must_use]
    pub fn reader(&self) -> Reader<T> {
        let current = self.shared.current.read().unwrap_or_else(PoisonError::into_inner);
        let seen = self.shared.generation.load(Ordering::Acquire);
        Reader { shared: Arc::clone(&self.shared), seen, cached: Arc::clone(&current) }
    }
}

impl<T> Reader<T> {
    /// The newest snapshot. Call it once per batch, not once per packet.
    ///
    /// Costs one atomic load when nothing changed; takes the lock only after a publish.
    pub fn latest(&mut self) -> &T {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.seen {
            let current = self.shared.current.read().unwrap_or_else(PoisonError::into_inner);
            self.cached = Arc::clone(&current);
            self.seen = generation;
        }
        &self.cached
    }
}

impl<T> std::fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Publisher(…)")
    }
}

impl<T> std::fmt::Debug for Reader<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reader(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_the_newest_snapshot_at_their_next_batch() {
        let publisher = Publisher::new(1);
        let mut reader = publisher.reader();
        assert_eq!(*reader.latest(), 1);

        publisher.publish(2);
        publisher.publish(3);

        assert_eq!(*reader.latest(), 3);
        assert_eq!(*publisher.reader().latest(), 3);
    }

    /// T55: a packet is judged by one table, whole, and never by an older one than the packet before it.
    #[test]
    fn beside_a_writer_a_reader_never_goes_back_and_sees_no_halves() {
        const LAST: u64 = 10_000;
        let publisher = Publisher::new([0; 8]);
        let mut reader = publisher.reader();
        std::thread::scope(|scope| {
            scope.spawn(|| (1..=LAST).for_each(|number| drop(publisher.publish([number; 8]))));
            let mut before = 0;
            while before < LAST {
                let seen = *reader.latest();
                assert!(seen[0] >= before && seen == [seen[0]; 8], "{seen:?} after {before}");
                before = seen[0];
            }
        });
    }
}

//! The flow table.

/// Flows of one process; fixed size, shared by all hallways without locks.
#[derive(Debug)]
pub struct FlowTable {}

impl FlowTable {
    /// A table with room for `capacity` flows (rounded up to a power of two).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let _ = capacity;
        todo!()
    }

    /// How many flows are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

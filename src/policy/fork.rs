//! Work in parts that do not need each other.

/// How two things are done that do not need each other: this room starts no threads.
pub trait ForkJoin {
    /// Does both, in any order or at the same time.
    fn join<A: Send, B>(&self, one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B)
    -> (A, B);
}

/// One after the other.
#[derive(Clone, Copy, Debug)]
pub struct Sequential;

impl ForkJoin for Sequential {
    fn join<A: Send, B>(
        &self,
        one: impl FnOnce() -> A + Send,
        other: impl FnOnce() -> B,
    ) -> (A, B) {
        (one(), other())
    }
}

//! How often somebody is answered or told.

use std::collections::HashMap;
use std::hash::Hash;

/// How many times a second for each of them.
const PER_SECOND: u32 = 10;

/// For how many of them in a second.
const KEYS_MAX: usize = 1024;

/// So many times a second for each `K`, and for so many of those.
#[derive(Debug)]
pub struct Pace<K> {
    second: u64,
    given: HashMap<K, u32>,
}

impl<K> Default for Pace<K> {
    fn default() -> Self {
        Self { second: 0, given: HashMap::new() }
    }
}

impl<K: Eq + Hash> Pace<K> {
    /// Whether `key` may have one more in this second.
    pub fn take(&mut self, key: K, second: u64) -> bool {
        if second != self.second {
            self.given.clear();
            self.second = second;
        }
        if self.given.len() >= KEYS_MAX && !self.given.contains_key(&key) {
            return false;
        }
        let given = self.given.entry(key).or_default();
        let may = *given < PER_SECOND;
        *given += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_pace_each_second_is_new_and_memory_is_bounded() {
        let mut pace = Pace::default();
        let mut given = |key, second| (0..100).filter(|_| pace.take(key, second)).count();
        assert_eq!((given(1, 7), given(1, 7), given(2, 7)), (10, 0, 10));
        assert_eq!(given(1, 8), 10);

        assert_eq!((0..5000).filter(|key| pace.take(*key, 9)).count(), KEYS_MAX);
    }
}

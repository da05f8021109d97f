//! Pairs whose key somebody guesses at: what the server is told, and what the log says. The hallways put
//! up with it by themselves (`forward::key_budget`); the server answers with another key.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::node::Guessed;
use crate::forward::GuessedPair;
use crate::types::Timestamp;

/// How long a pair that is guessed at again is no news for the log.
const QUIET_SECONDS: u64 = 60;

/// Pairs that are remembered, and told in one report.
const PAIRS_MAX: usize = 64;

/// What is guessed at.
#[derive(Debug, Default)]
pub struct Guesses {
    unreported: BTreeSet<Guessed>,
    /// When each was said last.
    said: BTreeMap<Guessed, Timestamp>,
}

impl Guesses {
    /// Takes what the hallways noticed; gives what is worth a line in the log.
    pub fn note(&mut self, pairs: &[GuessedPair], now: Timestamp) -> Vec<Guessed> {
        let is_old = |said: Timestamp| now.0.saturating_sub(said.0) >= QUIET_SECONDS;
        self.said.retain(|_, said| !is_old(*said));
        let mut news = Vec::new();
        for &GuessedPair { overlay, from, to } in pairs {
            let pair = Guessed { overlay, from, to };
            if self.unreported.len() < PAIRS_MAX {
                self.unreported.insert(pair);
            }
            if self.said.len() < PAIRS_MAX && !self.said.contains_key(&pair) {
                self.said.insert(pair, now);
                news.push(pair);
            }
        }
        news
    }

    /// What the next report says.
    pub fn take(&mut self) -> Vec<Guessed> {
        std::mem::take(&mut self.unreported).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NodeId, OverlayId};

    fn pair(to: u32) -> GuessedPair {
        GuessedPair { overlay: OverlayId(1), from: NodeId(2), to: NodeId(to) }
    }

    #[test]
    fn each_pair_is_told_once_a_report_and_said_once_a_minute() {
        let mut guesses = Guesses::default();

        assert_eq!(guesses.note(&[pair(3), pair(3), pair(4)], Timestamp(100)).len(), 2);
        assert_eq!(guesses.note(&[pair(3)], Timestamp(159)).len(), 0);
        assert_eq!(guesses.take().len(), 2);
        assert_eq!(guesses.take().len(), 0);
        assert_eq!(guesses.note(&[pair(3)], Timestamp(160)).len(), 1);
        assert_eq!(guesses.take().len(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let mut guesses = Guesses::default();
        let many: Vec<GuessedPair> = (0..10_000).map(pair).collect();

        assert_eq!(guesses.note(&many, Timestamp(0)).len(), PAIRS_MAX);
        assert_eq!(guesses.take().len(), PAIRS_MAX);
    }
}

//! Whom a SaP has lost, as it says itself: an entity sends to them over other SaPs, until this one has
//! heard of them again for a while. It asks in its echoes, so that nothing has to be tried out on data.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::NodeId;

/// So long a SaP must say that it hears somebody again.
const RETURN_AFTER: Duration = Duration::from_secs(3);

/// Whoever is lost beyond counts as reached.
const LOST_MAX: usize = 1024;

/// Whom one SaP has lost.
#[derive(Clone, Debug, Default)]
pub struct Lost {
    /// Since when it says that they are back; none while it does not.
    back_since: BTreeMap<NodeId, Option<Duration>>,
    asked_last: Option<NodeId>,
    /// Who was lost (false), also once more, or found (true) since the last call of [`Self::take_changes`].
    changes: Vec<(NodeId, bool)>,
}

impl Lost {
    /// The SaP says that it has lost `node`.
    pub fn handle_no_path(&mut self, node: NodeId) {
        let has_room = self.back_since.len() < LOST_MAX || self.back_since.contains_key(&node);
        if has_room {
            self.back_since.insert(node, None);
            // Also of one who is lost already: packets of it may have come by there meanwhile.
            self.changes.push((node, false));
            self.changes.truncate(LOST_MAX);
        }
    }

    /// Whom to ask about next: one after the other.
    pub fn next_question(&mut self) -> Option<NodeId> {
        let after = self.asked_last.and_then(|last| {
            let later = self
                .back_since
                .range((std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded));
            later.map(|(node, _)| *node).next()
        });
        self.asked_last = after.or_else(|| self.back_since.keys().next().copied());
        self.asked_last
    }

    /// Whether the SaP reaches `node`, as far as it has said.
    #[must_use]
    pub fn reaches(&self, node: NodeId) -> bool {
        !self.back_since.contains_key(&node)
    }

    /// The SaP answers what was asked. Where no other SaP reaches the node (`is_only`), one that has just
    /// found it is better than none.
    pub fn handle_answer(&mut self, node: NodeId, is_lost: bool, is_only: bool, now: Duration) {
        let Some(back_since) = self.back_since.get_mut(&node) else { return };
        if is_lost {
            *back_since = None;
        } else if now.saturating_sub(*back_since.get_or_insert(now)) >= RETURN_AFTER || is_only {
            self.back_since.remove(&node);
            self.changes.push((node, true));
        }
    }

    /// Who was lost (false), also once more, or found (true) since the last call.
    pub fn take_changes(&mut self) -> Vec<(NodeId, bool)> {
        std::mem::take(&mut self.changes)
    }

    /// Forgets those who are gone, and tells of all others again.
    pub fn renew(&mut self, is_there: impl Fn(NodeId) -> bool) {
        self.back_since.retain(|node, _| is_there(*node));
        self.changes = self.back_since.keys().map(|node| (*node, false)).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn who_is_lost_is_found_after_three_seconds_of_good_answers() {
        let mut lost = Lost::default();
        assert_eq!(lost.next_question(), None);
        lost.handle_no_path(B);
        assert_eq!(lost.take_changes(), [(B, false)]);
        lost.handle_no_path(B);
        assert_eq!(lost.take_changes(), [(B, false)], "it is told again, so it was used again");
        assert_eq!(lost.next_question(), Some(B));

        lost.handle_answer(B, false, false, ms(0));
        lost.handle_answer(B, false, false, ms(2_900));
        lost.handle_answer(B, true, false, ms(3_000));
        lost.handle_answer(B, false, false, ms(3_100));
        lost.handle_answer(B, false, false, ms(6_000));
        assert_eq!(lost.take_changes(), [], "one bad answer counts from the start again");
        lost.handle_answer(B, false, false, ms(6_100));
        assert_eq!(lost.take_changes(), [(B, true)]);
        assert_eq!(lost.next_question(), None);

        lost.handle_no_path(B);
        lost.handle_answer(B, true, true, ms(7_000));
        assert!(!lost.reaches(B));
        lost.handle_answer(B, false, true, ms(7_100));
        assert!(lost.reaches(B), "no other SaP reaches it");
    }

    #[test]
    fn questions_go_round_and_a_new_table_hears_of_all() {
        let mut lost = Lost::default();
        lost.handle_no_path(B);
        lost.handle_no_path(C);
        let asked: Vec<_> = (0..3).filter_map(|_| lost.next_question()).collect();
        assert_eq!(asked, [B, C, B]);

        lost.renew(|node| node == C);
        assert_eq!(lost.take_changes(), [(C, false)]);
        assert_eq!(lost.next_question(), Some(C));
    }

    #[test]
    fn memory_is_bounded() {
        let mut lost = Lost::default();
        (0..5_000).for_each(|node| lost.handle_no_path(NodeId(node)));
        assert_eq!((lost.back_since.len(), lost.changes.len()), (LOST_MAX, LOST_MAX));
    }
}

//! Which control messages deserve to be looked at, and which are replays.

use std::collections::BTreeMap;
use std::time::Duration;

use super::budget::Budget;
use crate::types::{DropReason, LinkId};

/// Messages a second whose MAC is checked although their outer source is no endpoint of any link: a
/// node behind a NAT that moved, or noise (design section 4).
const UNKNOWN_PER_SECOND: u32 = 50;

/// Messages a second whose MAC is checked from known sources together. Far above what a thousand
/// active links need, far below what would keep a core busy: outer sources can be forged.
const KNOWN_PER_SECOND: u32 = 10_000;

/// Whether the outer source of a message is an endpoint of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is.
    Known,
    /// It is not.
    Unknown,
}

/// Judges incoming control messages of all links of a node.
#[derive(Clone, Debug)]
pub struct Responder {
    known: Budget,
    unknown: Budget,
    counters_by_link: BTreeMap<LinkId, u64>,
}

impl Responder {
    /// Starts with full budgets.
    #[must_use]
    pub fn start(now: Duration) -> Self {
        Self {
            known: Budget::full(KNOWN_PER_SECOND, now),
            unknown: Budget::full(UNKNOWN_PER_SECOND, now),
            counters_by_link: BTreeMap::new(),
        }
    }

    /// Whether a message may cost a MAC check. Call it before the check.
    ///
    /// # Errors
    ///
    /// [`DropReason::ControlBudget`].
    pub fn admit(&mut self, source: Source, now: Duration) -> Result<(), DropReason> {
        let budget = match source {
            Source::Known => &mut self.known,
            Source::Unknown => &mut self.unknown,
        };
        if budget.take(now) { Ok(()) } else { Err(DropReason::ControlBudget) }
    }

    /// A message with a right MAC came over `link`. It is to be answered only when this is `Ok`.
    ///
    /// # Errors
    ///
    /// [`DropReason::ControlReplay`] when `counter` has not grown.
    pub fn handle_request(&mut self, link: LinkId, counter: u64) -> Result<(), DropReason> {
        let highest = self.counters_by_link.entry(link).or_default();
        if counter <= *highest {
            return Err(DropReason::ControlReplay);
        }
        *highest = counter;
        Ok(())
    }

    /// Forgets links that are gone, so that memory does not grow. Ids are never given out again.
    pub fn retain(&mut self, is_there: impl Fn(LinkId) -> bool) {
        self.counters_by_link.retain(|&link, _| is_there(link));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn counters_must_grow_per_link() {
        let mut responder = Responder::start(ms(0));
        let (a, b) = (LinkId(1), LinkId(2));

        assert_eq!(responder.handle_request(a, 0), Err(DropReason::ControlReplay));
        assert_eq!(responder.handle_request(a, 9), Ok(()));
        assert_eq!(responder.handle_request(a, 9), Err(DropReason::ControlReplay));
        assert_eq!(responder.handle_request(a, 8), Err(DropReason::ControlReplay));
        assert_eq!(responder.handle_request(b, 8), Ok(()));
        assert_eq!(responder.handle_request(a, 10), Ok(()));
    }

    #[test]
    fn unknown_sources_share_fifty_a_second() {
        let mut responder = Responder::start(ms(0));
        let mut admitted =
            |now, source| (0..200).filter(|_| responder.admit(source, ms(now)).is_ok()).count();

        assert_eq!(admitted(0, Source::Unknown), 50);
        assert_eq!(admitted(0, Source::Known), 200, "known sources have their own budget");
        assert_eq!(admitted(500, Source::Unknown), 25);
        assert_eq!(admitted(60_000, Source::Unknown), 50, "idle time saves up one second at most");
    }

    #[test]
    fn links_that_are_gone_are_forgotten() {
        let mut responder = Responder::start(ms(0));
        responder.handle_request(LinkId(1), 5).unwrap();
        responder.handle_request(LinkId(2), 5).unwrap();

        responder.retain(|link| link == LinkId(2));

        assert_eq!(responder.counters_by_link.len(), 1);
    }
}

//! The steps of a rotation: make before break (design section 5). Sans-IO: it owns no clock and no
//! tables. The driver in `control` keeps one [`Ring`] for each destination (over
//! [`KeyVersion`](crate::types::KeyVersion)) and one for each pair that is rotated alone (over
//! [`Generation`](crate::types::Generation)), and loops:
//!
//! 1. compile tables from [`Ring::accepted`] and [`Ring::stamped`], and send them;
//! 2. sleep until acknowledgements arrive or [`Ring::next_deadline`];
//! 3. call [`Ring::handle_timeout`]; when it returns a [`Change`], go to 1.
//!
//! | step | receivers accept | senders stamp | goes on when |
//! |---|---|---|---|
//! | steady | current | current | [`Ring::start`] |
//! | adding | current, next | current | all receivers have acknowledged |
//! | switching | current, next | next | all senders have acknowledged |
//! | retiring | current until the grace time is over, next | next | the grace time is over |
//!
//! In the last step receivers are told when the old key ends, and end it themselves: one that loses the
//! server accepts it no longer than others. Before, nobody can know whether all have stopped to stamp it.
//!
//! Receivers are the destination and the SaPs that serve it. So there is no moment at which somebody
//! stamps a key that somebody else does not accept yet, or no longer accepts.
//!
//! All times are milliseconds since 1970. A clock that is set back makes a step longer, never
//! shorter.

use std::fmt;
use std::str::FromStr;

/// How long the old key is accepted after the last sender has the new one, unless configured: packets
/// under way and in queues outlive no minute.
pub const GRACE_MILLIS: u64 = 60_000;

/// The shortest grace time that can be configured.
pub const GRACE_MILLIS_MIN: u64 = 1_000;

/// How long each step of a hurried rotation (`--now`, alarms) waits for laggards.
pub const HURRY_MILLIS: u64 = 60_000;

/// How often keys are rotated by schedule, unless configured: 24 h.
pub const INTERVAL_MILLIS: u64 = 24 * 3_600_000;

const _: () = assert!(GRACE_MILLIS_MIN <= GRACE_MILLIS);

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// No rotation is under way.
    Steady,
    /// Receivers learn to accept the next key.
    Adding,
    /// Senders learn to stamp it.
    Switching,
    /// The old key is accepted for its grace time.
    Retiring,
}

impl Step {
    /// All steps, in the order of a rotation.
    pub const ALL: [Self; 4] = [Self::Steady, Self::Adding, Self::Switching, Self::Retiring];

    /// `steady`, `adding`, `switching` or `retiring`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Adding => "adding",
            Self::Switching => "switching",
            Self::Retiring => "retiring",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|step| step.as_str() == text)
            .ok_or_else(|| format!("`{}` is not a step of a rotation", text.escape_default()))
    }
}

/// The keys of one destination or one pair, and where their rotation stands.
///
/// INVARIANT: `next` is there, and newer than `current`, in every step but [`Step::Steady`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring<V> {
    /// What is accepted, and stamped until senders switch.
    pub current: V,
    /// What it is rotating to.
    pub next: Option<V>,
    /// Where the rotation stands.
    pub step: Step,
    /// When the step began.
    pub since_millis: u64,
    /// When the step ends at the latest: a hurried one goes on without those who have not acknowledged,
    /// and the old key retires. None waits for all.
    pub deadline_millis: Option<u64>,
}

/// One step to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The step that is over.
    pub from: Step,
    /// The step that began.
    pub to: Step,
    /// Whether the deadline cut off who had not acknowledged; say who.
    pub cut_off: bool,
}

/// Why a rotation does not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Another one is under way: at most two keys of a pair are accepted at a time.
    #[error("a rotation is under way and {0}; wait for it to end")]
    UnderWay(Step),
    /// What it should rotate to is not newer than what is there.
    #[error("the next key is not newer than the current one")]
    NotNewer,
}

impl<V: Copy + Ord> Ring<V> {
    /// A ring that holds `current`, at rest since `now_millis`.
    #[must_use]
    pub fn steady(current: V, now_millis: u64) -> Self {
        Self {
            current,
            next: None,
            step: Step::Steady,
            since_millis: now_millis,
            deadline_millis: None,
        }
    }

    /// What receivers accept, oldest first: one, or two during a rotation.
    #[must_use]
    pub fn accepted(&self) -> Vec<V> {
        std::iter::once(self.current).chain(self.next).collect()
    }

    /// What senders stamp.
    #[must_use]
    pub fn stamped(&self) -> V {
        match self.step {
            Step::Steady | Step::Adding => self.current,
            Step::Switching | Step::Retiring => self.next.unwrap_or(self.current),
        }
    }

    /// When the older of two keys ends, once nobody stamps it any more.
    #[must_use]
    pub fn old_until_millis(&self) -> Option<u64> {
        self.deadline_millis.filter(|_| self.step == Step::Retiring)
    }

    /// Starts a rotation to `next`. With `hurry_millis` no step waits longer than that for
    /// acknowledgements; without, each waits for all.
    ///
    /// # Errors
    ///
    /// [`StartError`]; the ring is as it was.
    pub fn start(
        &mut self,
        next: V,
        now_millis: u64,
        hurry_millis: Option<u64>,
    ) -> Result<Change, StartError> {
        if self.step != Step::Steady {
            return Err(StartError::UnderWay(self.step));
        }
        if next <= self.current {
            return Err(StartError::NotNewer);
        }
        self.next = Some(next);
        Ok(self.enter(Step::Adding, now_millis, hurry_millis, false))
    }

    /// Gives a rotation under way a deadline `hurry_millis` from now, for this step and as much for the
    /// next: for `--now`, and when the next scheduled rotation is due and this one still waits. An
    /// earlier deadline stays. Harmless when none is under way.
    pub fn hurry(&mut self, now_millis: u64, hurry_millis: u64) {
        let deadline = now_millis.saturating_add(hurry_millis);
        match self.step {
            Step::Adding | Step::Switching => {
                if self.deadline_millis.is_none_or(|earlier| deadline < earlier) {
                    self.since_millis = now_millis;
                    self.deadline_millis = Some(deadline);
                }
            }
            Step::Steady | Step::Retiring => {}
        }
    }

    /// Goes at most one step on. Call it after acknowledgements and at [`Self::next_deadline`];
    /// further calls are harmless. `receivers_acked` and `senders_acked` say whether all of them have
    /// acknowledged tables made in this step or later, so ask again after a change.
    pub fn handle_timeout(
        &mut self,
        now_millis: u64,
        receivers_acked: bool,
        senders_acked: bool,
        grace_millis: u64,
    ) -> Option<Change> {
        let is_late = self.deadline_millis.is_some_and(|deadline| deadline <= now_millis);
        let hurry = self.deadline_millis.map(|at| at.saturating_sub(self.since_millis));
        match self.step {
            Step::Steady => None,
            Step::Adding if receivers_acked || is_late => {
                Some(self.enter(Step::Switching, now_millis, hurry, !receivers_acked))
            }
            Step::Switching if senders_acked || is_late => {
                let grace = Some(grace_millis.max(GRACE_MILLIS_MIN));
                Some(self.enter(Step::Retiring, now_millis, grace, !senders_acked))
            }
            Step::Retiring if self.retires_at(grace_millis) <= now_millis => {
                self.current = self.next.take().unwrap_or(self.current);
                Some(self.enter(Step::Steady, now_millis, None, false))
            }
            Step::Adding | Step::Switching | Step::Retiring => None,
        }
    }

    /// When [`Self::handle_timeout`] has something to do without any acknowledgement.
    #[must_use]
    pub fn next_deadline(&self, grace_millis: u64) -> Option<u64> {
        match self.step {
            Step::Steady => None,
            Step::Adding | Step::Switching => self.deadline_millis,
            Step::Retiring => Some(self.retires_at(grace_millis)),
        }
    }

    /// When the old key goes, once the ring is retiring it. A ring that an older server left behind does
    /// not say.
    fn retires_at(&self, grace_millis: u64) -> u64 {
        self.deadline_millis
            .unwrap_or(self.since_millis.saturating_add(grace_millis.max(GRACE_MILLIS_MIN)))
    }

    fn enter(
        &mut self,
        step: Step,
        now_millis: u64,
        hurry_millis: Option<u64>,
        cut_off: bool,
    ) -> Change {
        let from = std::mem::replace(&mut self.step, step);
        self.since_millis = now_millis;
        self.deadline_millis = hurry_millis.map(|hurry| now_millis.saturating_add(hurry));
        Change { from, to: step, cut_off }
    }
}

/// Whether the scheduled rotation is due: `interval_millis` have gone by since the last one.
#[must_use]
pub fn is_due(last_rotated_millis: u64, interval_millis: u64, now_millis: u64) -> bool {
    last_rotated_millis.saturating_add(interval_millis) <= now_millis
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: u64 = 5_000;

    /// A ring in `step` since 1000, rotating from 1 to 2, with a deadline at 1100 when hurried.
    fn ring(step: Step, hurried: bool) -> Ring<u32> {
        Ring {
            current: 1,
            next: (step != Step::Steady).then_some(2),
            step,
            since_millis: 1_000,
            deadline_millis: hurried.then_some(1_100),
        }
    }

    #[test]
    fn every_transition_is_the_designed_one() {
        use Step::{Adding, Retiring, Steady, Switching};
        // (step, hurried, receivers acked, senders acked, at) -> (step, cut off)
        let mut seen = 0;
        for step in Step::ALL {
            for hurried in [false, true] {
                for receivers in [false, true] {
                    for senders in [false, true] {
                        for now in [1_000, 1_099, 1_100, 5_999, 6_000, u64::MAX] {
                            let late = hurried && now >= 1_100;
                            let expected = match step {
                                Adding if receivers => Some((Switching, false)),
                                Adding if late => Some((Switching, true)),
                                Switching if senders => Some((Retiring, false)),
                                Switching if late => Some((Retiring, true)),
                                Retiring if now >= 6_000 => Some((Steady, false)),
                                Steady | Adding | Switching | Retiring => None,
                            };
                            let before = ring(step, hurried && matches!(step, Adding | Switching));
                            let mut after = before;
                            let change = after.handle_timeout(now, receivers, senders, GRACE);

                            let got = change.map(|change| (change.to, change.cut_off));
                            assert_eq!(got, expected, "{before:?} at {now}");
                            match change {
                                Some(change) => {
                                    assert_eq!((change.from, change.to), (step, after.step));
                                    assert_eq!(after.since_millis, now);
                                }
                                None => assert_eq!(after, before, "no change, no trace"),
                            }
                            seen += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(seen, 4 * 2 * 2 * 2 * 6);
    }

    #[test]
    fn accepted_and_stamped_follow_the_table() {
        for (step, accepted, stamped) in [
            (Step::Steady, vec![1], 1),
            (Step::Adding, vec![1, 2], 1),
            (Step::Switching, vec![1, 2], 2),
            (Step::Retiring, vec![1, 2], 2),
        ] {
            assert_eq!(ring(step, false).accepted(), accepted, "{step}");
            assert_eq!(ring(step, false).stamped(), stamped, "{step}");
        }
    }

    #[test]
    fn a_whole_rotation_never_stamps_what_is_not_accepted() {
        let mut ring = Ring::steady(7, 0);
        assert_eq!(ring.start(8, 10, None).map(|change| change.to), Ok(Step::Adding));
        let mut now = 10;
        let mut steps = Vec::new();
        while ring.step != Step::Steady {
            let (accepted, before) = (ring.accepted(), ring.stamped());
            if ring.handle_timeout(now, true, true, GRACE).is_some() {
                steps.push(ring.step);
                // Senders that have not heard of the change stamp what they stamped before; receivers
                // that have not, accept what they accepted before.
                assert!(ring.accepted().contains(&before), "the old stamp is still accepted");
                assert!(accepted.contains(&ring.stamped()), "the new stamp was accepted before");
            } else {
                now = ring.next_deadline(GRACE).unwrap();
            }
        }

        assert_eq!(steps, [Step::Switching, Step::Retiring, Step::Steady]);
        assert_eq!((ring.accepted(), ring.stamped(), now), (vec![8], 8, 10 + GRACE));
    }

    #[test]
    fn a_scheduled_rotation_waits_and_a_hurried_one_does_not() {
        let mut waiting = Ring::steady(1, 0);
        waiting.start(2, 0, None).unwrap();
        assert_eq!(waiting.handle_timeout(u64::MAX, false, false, GRACE), None);
        assert_eq!(waiting.next_deadline(GRACE), None);

        let mut hurried = Ring::steady(1, 0);
        hurried.start(2, 1_000, Some(HURRY_MILLIS)).unwrap();
        assert_eq!(hurried.next_deadline(GRACE), Some(61_000));
        assert_eq!(hurried.handle_timeout(60_999, false, false, GRACE), None);
        assert!(hurried.handle_timeout(61_000, false, false, GRACE).unwrap().cut_off);
        assert_eq!(hurried.next_deadline(GRACE), Some(121_000), "senders get as long");
        assert_eq!(hurried.handle_timeout(61_001, true, false, GRACE), None);
        assert!(hurried.handle_timeout(121_000, true, false, GRACE).unwrap().cut_off);
        assert_eq!(hurried.next_deadline(GRACE), Some(126_000));
    }

    #[test]
    fn a_waiting_rotation_can_be_hurried() {
        let mut ring = Ring::steady(1, 0);
        ring.hurry(5, 10);
        assert_eq!(ring, Ring::steady(1, 0), "nothing to hurry");
        ring.start(2, 0, None).unwrap();
        ring.hurry(500, 10);
        ring.hurry(505, 10);

        assert_eq!(ring.deadline_millis, Some(510), "hurrying again does not postpone");
        assert!(ring.handle_timeout(510, false, true, GRACE).unwrap().cut_off);
        assert_eq!(ring.deadline_millis, Some(520));
    }

    #[test]
    fn only_one_rotation_at_a_time_and_only_forwards() {
        for step in [Step::Adding, Step::Switching, Step::Retiring] {
            let before = ring(step, false);
            let mut after = before;
            assert_eq!(after.start(3, 2_000, None), Err(StartError::UnderWay(step)));
            assert_eq!(after, before);
        }
        let mut steady = ring(Step::Steady, false);
        assert_eq!(steady.start(1, 0, None), Err(StartError::NotNewer));
        assert_eq!(steady.start(0, 0, None), Err(StartError::NotNewer));
        assert!(steady.start(2, 0, None).is_ok());
    }

    #[test]
    fn grace_is_at_least_a_second() {
        let mut ring = ring(Step::Retiring, false);

        assert_eq!(ring.handle_timeout(1_999, true, true, 0), None);
        assert_eq!(ring.handle_timeout(2_000, true, true, 0).map(|c| c.to), Some(Step::Steady));
    }

    #[test]
    fn a_schedule_is_due_after_its_interval_even_across_the_end_of_time() {
        assert!(!is_due(10, 100, 109));
        assert!(is_due(10, 100, 110));
        assert!(!is_due(10, u64::MAX, u64::MAX - 1));
        assert!(!is_due(200, 100, 0), "a clock set back is not due");
    }

    #[test]
    fn steps_round_trip_as_text() {
        for step in Step::ALL {
            assert_eq!(step.to_string().parse(), Ok(step));
        }
        assert!("asleep".parse::<Step>().is_err());
    }
}

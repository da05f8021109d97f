//! Measured round trips as paths are chosen by. A measurement jitters all the time and a table must not:
//! what counts is a step on a ladder, which is left only for good.

/// The lowest step, in microseconds: up to the next one, all round trips count as the same. Within a site they
/// differ by what a machine happens to do, and zones say who is near.
pub(super) const FIRST_STEP: u64 = 4_000;

/// A measurement has to be beyond the step it is held at so many times in a row.
const BEYOND_MIN: u8 = 2;

/// One node's round trip to one SaP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leg {
    /// The step that counts, in microseconds; none before the first.
    held: Option<u32>,
    /// How many measurements in a row were beyond it.
    beyond: u8,
}

impl Leg {
    /// One that was held at `micros` before.
    #[must_use]
    pub fn held_at(micros: u32) -> Self {
        Self { held: Some(micros), beyond: 0 }
    }

    /// The step that counts, in microseconds.
    #[must_use]
    pub fn held(self) -> Option<u32> {
        self.held
    }

    /// Takes a measurement, smoothed by whoever made it; whether another step counts now. Steps are a
    /// quarter apart; one is left when measurements lie 30% beyond it: jitter of 12% either way around
    /// any mean moves it once at most.
    pub fn measure(&mut self, micros: u64) -> bool {
        let is_beyond = self.held.is_none_or(|held| {
            let (low, high) = (u64::from(held), next(held.into()));
            // All below the first step count as the first step.
            (low > FIRST_STEP && micros * 13 < low * 10) || micros * 10 > high * 13
        });
        self.beyond = if is_beyond { self.beyond.saturating_add(1) } else { 0 };
        if self.beyond < BEYOND_MIN {
            return false;
        }
        self.beyond = 0;
        self.held = Some(step(micros));
        true
    }
}

/// The step above.
fn next(step: u64) -> u64 {
    step * 5 / 4
}

/// The step that a round trip stands on.
fn step(micros: u64) -> u32 {
    let mut at = FIRST_STEP;
    // A minute is beyond everything.
    while next(at) <= micros && at < 60_000_000 {
        at = next(at);
    }
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_step_takes_two_measurements_and_a_real_change_two_more() {
        let mut leg = Leg::default();
        assert!(!leg.measure(300) && leg.held().is_none());
        assert!(leg.measure(400));
        assert_eq!(leg.held(), Some(4_000));
        assert!(!leg.measure(20_000), "once is noise");
        assert!(!leg.measure(500) && !leg.measure(20_000));
        assert!(leg.measure(21_000));
        assert_eq!(leg.held(), Some(19_071));
        assert!(!leg.measure(400) && leg.measure(400));
        assert_eq!(leg.held(), Some(4_000));
    }

    proptest! {
        #[test]
        fn jitter_moves_nothing_after_the_first_step(
            mean in 10_u64..2_000_000, jitter in prop::collection::vec(880_u64..=1_120, 2..200),
        ) {
            let mut leg = Leg::default();
            let changes = jitter.iter().filter(|part| leg.measure(mean * **part / 1_000)).count();
            prop_assert_eq!(changes, 1);
        }

        #[test]
        fn a_lasting_change_by_more_than_double_is_always_followed(mean in 4_000_u64..1_000_000) {
            let mut leg = Leg::default();
            for micros in [mean, mean * 9 / 4] {
                leg.measure(micros);
                prop_assert!(leg.measure(micros));
            }
            leg.measure(mean / 2);
            prop_assert!(leg.measure(mean / 2));
        }
    }
}

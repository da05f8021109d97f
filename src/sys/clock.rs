//! The time for packets; drivers read it once per batch.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::Timestamp;

/// Milliseconds since this machine started, plus one: never 0, never going back, and the same for all
/// threads and processes, because flows outlive a process.
#[must_use]
pub fn monotonic_millis() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer leads to a time that lives until the call returns.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    debug_assert_eq!(result, 0, "every kernel has this clock");
    (time.tv_sec as u64).saturating_mul(1000).saturating_add(time.tv_nsec as u64 / 1_000_000 + 1)
}

/// Wall-clock seconds, for what expires at a date. A clock before 1970 reads as 1970.
#[must_use]
pub fn wall() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// The latest that it was for certain, in seconds of the wall clock.
static NOT_BEFORE: AtomicU64 = AtomicU64::new(0);

/// Wall-clock seconds for rules that end. Never goes back, so that setting the clock back, or a start
/// without one, brings no ended rule to life again.
#[must_use]
pub fn wall_for_rules() -> Timestamp {
    let now = wall();
    let floor = NOT_BEFORE.load(Ordering::Relaxed);
    if now.0 > floor {
        not_before(now);
    }
    Timestamp(now.0.max(floor))
}

/// Says that it is `earliest` at least: something that this host wrote bears that date.
pub fn not_before(earliest: Timestamp) {
    NOT_BEFORE.fetch_max(earliest.0, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_starts_above_zero_and_never_goes_back() {
        let first = monotonic_millis();
        let second = monotonic_millis();

        assert!(first > 0);
        assert!(second >= first);
        assert!(wall() > Timestamp(1_700_000_000));
    }
    #[test]
    fn the_clock_for_rules_never_goes_back() {
        let now = wall();
        assert!(wall_for_rules() >= now);

        let later = Timestamp(now.0 + 3600);
        not_before(later);
        not_before(now);

        assert_eq!(wall_for_rules(), later);
        assert!(wall() < later);
    }
}

//! The time for packets; drivers read it once per batch.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::types::Timestamp;

/// All threads count from the same instant, because they share one flow table.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since this process first asked, plus one: never 0, never going back.
#[must_use]
pub fn monotonic_millis() -> u64 {
    u64::try_from(START.elapsed().as_millis()).map_or(u64::MAX, |millis| millis.saturating_add(1))
}

/// Wall-clock seconds, for what expires at a date. A clock before 1970 reads as 1970.
#[must_use]
pub fn wall() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
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
}

//! How many messages a second something is worth.

use std::time::Duration;

/// A token bucket that holds one second's worth.
#[derive(Clone, Debug)]
pub struct Budget {
    per_second: u32,
    /// In thousandths of a message.
    left_thousandths: u64,
    filled: Duration,
}

impl Budget {
    /// Full, for so many a second.
    #[must_use]
    pub fn full(per_second: u32, now: Duration) -> Self {
        Self { per_second, left_thousandths: u64::from(per_second) * 1_000, filled: now }
    }

    /// Whether one more may pass now.
    pub fn take(&mut self, now: Duration) -> bool {
        let elapsed = u64::try_from(now.saturating_sub(self.filled).as_millis()).unwrap_or(1_000);
        if elapsed > 0 {
            let gained = elapsed.min(1_000) * u64::from(self.per_second);
            let full = u64::from(self.per_second) * 1_000;
            self.left_thousandths = (self.left_thousandths + gained).min(full);
            self.filled = now;
        }
        if self.left_thousandths < 1_000 {
            return false;
        }
        self.left_thousandths -= 1_000;
        true
    }
}

//! Whether a SaP hears those to whom it sends. An entity that gets packets probes its SaPs every 200 ms, so
//! one that stays silent is not there, or cannot be heard.

use std::time::Duration;

/// So long after a packet for it an entity may stay silent: three of its intervals, less the time until
/// somebody looks.
const SILENT_AFTER: Duration = Duration::from_millis(500);

/// Between two times that those who go on sending are told.
const TELL_EVERY: Duration = Duration::from_millis(300);

/// What a SaP knows of one entity.
#[derive(Clone, Debug, Default)]
pub struct Hearing {
    /// The first packet for it since it was heard.
    waits_since: Option<Duration>,
    is_silent: bool,
    /// Somebody sends to it, and was not told yet.
    is_wanted: bool,
    told: Option<Duration>,
}

impl Hearing {
    /// An authentic message of it came.
    pub fn handle_heard(&mut self) {
        *self = Self::default();
    }

    /// Packets went to it. Extra calls are harmless.
    pub fn handle_sent(&mut self, now: Duration) {
        self.waits_since.get_or_insert(now);
        self.is_wanted = true;
    }

    /// Time passed. Extra calls are harmless.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.is_silent =
            self.waits_since.is_some_and(|since| now.saturating_sub(since) >= SILENT_AFTER);
    }

    /// Whether it is silent though packets went to it.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// Whether those who send to it have to be told now.
    pub fn poll_tell(&mut self, now: Duration) -> bool {
        let is_due = self.told.is_none_or(|told| now.saturating_sub(told) >= TELL_EVERY);
        let tells = self.is_silent && self.is_wanted && is_due;
        if tells {
            self.is_wanted = false;
            self.told = Some(now);
        }
        tells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// When those who send are told, if packets go to the entity all the time and it is heard at `heard`.
    fn told(heard: &[u64], sends: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut hearing = Hearing::default();
        let mut told = Vec::new();
        for now in (0..3_000).step_by(100) {
            if heard.contains(&now) {
                hearing.handle_heard();
            }
            if sends(now) {
                hearing.handle_sent(ms(now));
            }
            hearing.handle_timeout(ms(now));
            if hearing.poll_tell(ms(now)) {
                told.push(now);
            }
        }
        told
    }

    #[test]
    fn who_is_heard_or_not_sent_to_is_not_silent() {
        let always: Vec<u64> = (0..3_000).step_by(200).collect();
        assert!(told(&always, |_| true).is_empty());
        assert!(told(&[], |_| false).is_empty());
        let one_missed: Vec<u64> = (0..3_000).step_by(400).collect();
        assert!(told(&one_missed, |_| true).is_empty());
    }

    #[test]
    fn who_falls_silent_is_told_of_soon_and_as_long_as_somebody_sends() {
        assert_eq!(told(&[0], |now| now < 1_000), [500, 800, 1_100]);
        // The first packet after idle time is enough.
        assert_eq!(told(&[0], |now| now == 1_500), [2_000]);
        assert_eq!(told(&[0, 900], |now| now < 1_500), [500, 800, 1_400]);
    }
}

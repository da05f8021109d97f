//! One end of a link asks whether the other is there.

use std::time::Duration;

use crate::wire::control::Echo;

/// Between a reply and the next request while data flows. With three missed ones this is half a second: TCP
/// repeats a lost segment after 0.2, 0.4 or 0.6, and 0.8 to 1.4 seconds, and traffic has to be back within one.
const INTERVAL_ACTIVE: Duration = Duration::from_millis(200);

/// The longest wait between a reply and the next request when nothing flows.
const INTERVAL_IDLE_MAX: Duration = Duration::from_secs(5);

/// The same behind somebody who translates and forgets us when we are silent.
const INTERVAL_TRANSLATED_MAX: Duration = Duration::from_secs(2);

/// So many challenges in a row are answered at once; who gets more of them has no endpoint that stays.
const CHALLENGES_MAX: u32 = 2;

/// Between requests to a peer that is dead.
const INTERVAL_DEAD: Duration = Duration::from_secs(1);

/// How long after the last data packet a link counts as active.
const ACTIVE_FOR: Duration = Duration::from_secs(5);

/// Shortest and longest wait for a reply. Between the two: twice the smoothed round trip.
const REPLY_WITHIN_MIN: Duration = Duration::from_millis(100);
const REPLY_WITHIN_MAX: Duration = Duration::from_secs(1);

/// Requests without a reply before a peer is dead. Three, as BFD's usual detect multiplier: one loss
/// is noise, two is coincidence.
const MISSED_MAX: u32 = 3;

/// Without a miss for so long a peer that was dead is alive again, so that a link that comes and goes does
/// not take traffic along each time.
const RETURN_AFTER: Duration = Duration::from_secs(3);

/// Requests whose late replies still count. At one every 100 ms this tolerates round trips of more than
/// a second before the first one is measured.
const REMEMBERED: usize = 16;

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Neither a reply nor enough missed ones yet.
    Unknown,
    /// It replied, and has not missed three requests since.
    Alive,
    /// It missed three requests in a row.
    Dead,
    /// It was dead and replies again, not for long enough yet.
    Returning,
}

/// Probes one link.
#[derive(Clone, Debug)]
pub struct Prober {
    liveness: Liveness,
    next_sequence: u32,
    /// Sequence and time of the newest requests, oldest overwritten first.
    sent: [Option<(u32, Duration)>; REMEMBERED],
    next_send: Duration,
    reply_due: Option<Duration>,
    missed: u32,
    /// Since when a peer that was dead has answered every request.
    returning_since: Duration,
    interval: Duration,
    interval_max: Duration,
    /// Challenges since the last reply.
    challenges: u32,
    active_until: Duration,
    round_trip: Option<Duration>,
}

impl Prober {
    /// Starts with a request due at once.
    #[must_use]
    pub fn start(now: Duration) -> Self {
        Self {
            liveness: Liveness::Unknown,
            next_sequence: 1,
            sent: [None; REMEMBERED],
            next_send: now,
            reply_due: None,
            missed: 0,
            returning_since: now,
            interval: INTERVAL_ACTIVE,
            interval_max: INTERVAL_IDLE_MAX,
            challenges: 0,
            active_until: now,
            round_trip: None,
        }
    }

    /// What is known of the peer.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        self.liveness
    }

    /// The smoothed round trip; none before the first reply and while the peer is dead.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip.filter(|_| self.liveness != Liveness::Dead)
    }

    /// Data was sent towards the peer. After idle time a request is due at once. Extra calls are
    /// harmless.
    pub fn handle_activity(&mut self, now: Duration) {
        let was_idle = now >= self.active_until;
        self.active_until = now + ACTIVE_FOR;
        if was_idle && self.liveness != Liveness::Dead && self.reply_due.is_none() {
            self.interval = INTERVAL_ACTIVE;
            self.next_send = self.next_send.min(now);
        }
    }

    /// The peer answered `echo`, and the answer was authentic. Returns whether it answers a request
    /// that is remembered; other answers change nothing.
    pub fn handle_reply(&mut self, echo: &Echo, now: Duration) -> bool {
        let Some(sent_at) = self.take_sent(echo) else { return false };
        self.challenges = 0;
        self.interval_max =
            if echo.is_translated { INTERVAL_TRANSLATED_MAX } else { INTERVAL_IDLE_MAX };
        let sample = now.saturating_sub(sent_at);
        self.round_trip = Some(match self.round_trip {
            // An eighth of each new sample, as TCP does (RFC 6298 section 2).
            Some(smoothed) if self.liveness != Liveness::Dead => (smoothed * 7 + sample) / 8,
            Some(_) | None => sample,
        });
        match self.liveness {
            Liveness::Unknown | Liveness::Alive => self.liveness = Liveness::Alive,
            Liveness::Dead => {
                self.liveness = Liveness::Returning;
                self.returning_since = now;
            }
            Liveness::Returning if now.saturating_sub(self.returning_since) >= RETURN_AFTER => {
                self.liveness = Liveness::Alive;
            }
            Liveness::Returning => {}
        }
        self.missed = 0;
        self.reply_due = None;
        let is_hurried = now < self.active_until || self.liveness == Liveness::Returning;
        self.interval =
            if is_hurried { INTERVAL_ACTIVE } else { (self.interval * 2).min(self.interval_max) };
        self.next_send = now + self.interval;
        true
    }

    /// The peer answered `echo` with a challenge: it does not know that we are here. The next request, which
    /// takes the cookie along, is due at once. Returns whether it answers a request that is remembered.
    pub fn handle_challenge(&mut self, echo: &Echo, now: Duration) -> bool {
        if self.take_sent(echo).is_none() {
            return false;
        }
        self.challenges = self.challenges.saturating_add(1);
        if self.challenges <= CHALLENGES_MAX {
            self.reply_due = None;
            self.interval = INTERVAL_ACTIVE;
            self.next_send = now;
        }
        // Else the request counts as one without an answer when its time is over.
        true
    }

    /// This end has another address than before: what was known of the way there is void, and a request is
    /// due at once.
    pub fn handle_moved(&mut self, now: Duration) {
        if matches!(self.liveness, Liveness::Dead | Liveness::Returning) {
            self.liveness = Liveness::Unknown;
        }
        self.missed = 0;
        self.challenges = 0;
        self.reply_due = None;
        self.interval = INTERVAL_ACTIVE;
        self.next_send = now;
    }

    /// When the request that `echo` answers was sent; only once.
    fn take_sent(&mut self, echo: &Echo) -> Option<Duration> {
        let entry = self
            .sent
            .iter_mut()
            .find(|entry| entry.is_some_and(|(sequence, _)| sequence == echo.sequence))?;
        entry.take().map(|(_, sent_at)| sent_at)
    }

    /// Time passed. Early and extra calls are harmless.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.reply_due.is_none_or(|due| now < due) {
            return;
        }
        self.reply_due = None;
        self.missed = self.missed.saturating_add(1);
        self.interval = INTERVAL_ACTIVE;
        if self.missed >= MISSED_MAX || self.liveness == Liveness::Returning {
            self.liveness = Liveness::Dead;
            self.next_send = now + INTERVAL_DEAD;
        } else {
            self.next_send = now;
        }
    }

    /// The request that is due, if any.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Echo> {
        if self.reply_due.is_some() || now < self.next_send {
            return None;
        }
        let sequence = self.next_sequence;
        self.next_sequence = self.next_sequence.wrapping_add(1);
        self.sent[sequence as usize % REMEMBERED] = Some((sequence, now));
        self.reply_due = Some(now + self.reply_within());
        let sent_nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Some(Echo { sequence, sent_nanos, ..Echo::default() })
    }

    /// When to call [`Self::handle_timeout`] and [`Self::poll_transmit`] again.
    #[must_use]
    pub fn next_deadline(&self) -> Duration {
        self.reply_due.unwrap_or(self.next_send)
    }

    fn reply_within(&self) -> Duration {
        self.round_trip
            .map_or(REPLY_WITHIN_MIN, |smoothed| smoothed * 2)
            .clamp(REPLY_WITHIN_MIN, REPLY_WITHIN_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Lets `prober` run to `until`; the peer answers after `answers_after`, if at all. Returns when
    /// requests were sent.
    fn drive(
        prober: &mut Prober,
        from: u64,
        until: u64,
        answers_after: Option<u64>,
        is_active: bool,
    ) -> Vec<u64> {
        let mut sent = Vec::new();
        let mut answers: Vec<(u64, Echo)> = Vec::new();
        for t in from..until {
            if is_active {
                prober.handle_activity(ms(t));
            }
            for (_, echo) in answers.extract_if(.., |(at, _)| *at <= t) {
                prober.handle_reply(&echo, ms(t));
            }
            prober.handle_timeout(ms(t));
            if let Some(echo) = prober.poll_transmit(ms(t)) {
                sent.push(t);
                if let Some(delay) = answers_after {
                    answers.push((t + delay, echo));
                }
            }
        }
        sent
    }

    #[test]
    fn peer_is_alive_after_its_first_reply() {
        let mut prober = Prober::start(ms(0));
        assert_eq!(prober.liveness(), Liveness::Unknown);
        let echo = prober.poll_transmit(ms(0)).unwrap();

        assert!(prober.handle_reply(&echo, ms(7)));

        assert_eq!(prober.liveness(), Liveness::Alive);
        assert_eq!(prober.round_trip(), Some(ms(7)));
    }

    #[test]
    fn truth_table_of_liveness() {
        use Liveness::{Alive, Dead, Returning, Unknown};
        // (replied before, requests missed since, then a reply) -> liveness
        let table = [
            (false, 0, false, Unknown),
            (false, 2, false, Unknown),
            (false, 3, false, Dead),
            (false, 3, true, Returning),
            (true, 0, false, Alive),
            (true, 2, false, Alive),
            (true, 2, true, Alive),
            (true, 3, false, Dead),
            (true, 9, false, Dead),
            (true, 9, true, Returning),
        ];
        for (replied, missed, replies, expected) in table {
            let mut prober = Prober::start(ms(0));
            let mut now = ms(0);
            if replied {
                let echo = prober.poll_transmit(now).unwrap();
                prober.handle_reply(&echo, now);
            }
            for _ in 0..missed {
                now = prober.next_deadline();
                prober.poll_transmit(now).unwrap();
                now = prober.next_deadline();
                prober.handle_timeout(now);
            }
            if replies {
                now = prober.next_deadline();
                let echo = prober.poll_transmit(now).unwrap();
                prober.handle_reply(&echo, now);
            }

            assert_eq!(prober.liveness(), expected, "{replied} {missed} {replies}");
        }
    }

    #[test]
    fn an_active_peer_that_falls_silent_is_dead_within_half_a_second() {
        // At every moment of the interval, also right after a reply.
        for falls_silent in 3_000..3_250 {
            let mut prober = Prober::start(ms(0));
            drive(&mut prober, 0, falls_silent, Some(2), true);
            assert_eq!(prober.liveness(), Liveness::Alive);

            drive(&mut prober, falls_silent, falls_silent + 510, None, true);

            assert_eq!(prober.liveness(), Liveness::Dead, "{falls_silent}");
        }
    }

    #[test]
    fn a_dead_peer_returns_after_three_seconds_without_a_miss() {
        let mut prober = Prober::start(ms(0));
        drive(&mut prober, 0, 1_000, Some(2), true);
        drive(&mut prober, 1_000, 2_000, None, true);
        assert_eq!(prober.liveness(), Liveness::Dead);

        drive(&mut prober, 2_000, 4_500, Some(2), true);
        assert_eq!(prober.liveness(), Liveness::Returning);
        drive(&mut prober, 4_500, 4_900, None, true);
        assert_eq!(prober.liveness(), Liveness::Dead, "one miss is enough");

        drive(&mut prober, 4_900, 8_500, Some(2), true);
        assert_eq!(prober.liveness(), Liveness::Returning);
        drive(&mut prober, 8_500, 9_300, Some(2), true);
        assert_eq!(prober.liveness(), Liveness::Alive);
    }

    #[test]
    fn a_link_that_comes_and_goes_moves_traffic_once() {
        let mut prober = Prober::start(ms(0));
        let mut told = Vec::new();
        drive(&mut prober, 0, 1_000, Some(2), true);
        // Two seconds there, one away, for a minute.
        for turn in 0..20 {
            let start = 1_000 + turn * 3_000;
            for (from, until, answers) in
                [(start, start + 1_000, None), (start + 1_000, start + 3_000, Some(2))]
            {
                drive(&mut prober, from, until, answers, true);
                let is_alive = prober.liveness() == Liveness::Alive;
                if told.last() != Some(&is_alive) {
                    told.push(is_alive);
                }
            }
        }
        assert_eq!(told, [false]);
    }

    #[test]
    fn idle_links_back_off_and_active_ones_do_not() {
        let mut idle = Prober::start(ms(0));
        let mut active = Prober::start(ms(0));

        let sent_idle = drive(&mut idle, 0, 60_000, Some(1), false).len();
        let sent_active = drive(&mut active, 0, 60_000, Some(1), true).len();

        assert!((10..25).contains(&sent_idle), "{sent_idle}");
        assert!((280..=300).contains(&sent_active), "{sent_active}");
    }

    #[test]
    fn first_packet_after_idle_time_probes_at_once() {
        let mut prober = Prober::start(ms(0));
        drive(&mut prober, 0, 60_000, Some(1), false);
        assert!(prober.next_deadline() > ms(60_000));

        prober.handle_activity(ms(60_000));

        assert!(prober.poll_transmit(ms(60_000)).is_some());
    }

    #[test]
    fn replies_to_nothing_we_asked_change_nothing() {
        let mut prober = Prober::start(ms(0));
        let echo = prober.poll_transmit(ms(0)).unwrap();
        let forged = Echo { sequence: echo.sequence + 1, ..echo };

        assert!(!prober.handle_reply(&forged, ms(1)));
        assert_eq!(prober.liveness(), Liveness::Unknown);
        assert!(prober.handle_reply(&echo, ms(1)));
        assert!(!prober.handle_reply(&echo, ms(2)), "a reply counts once");
    }

    #[test]
    fn a_slow_link_is_alive_all_the_same() {
        let mut prober = Prober::start(ms(0));

        drive(&mut prober, 0, 10_000, Some(550), true);

        assert_eq!(prober.liveness(), Liveness::Alive);
        assert_eq!(prober.round_trip(), Some(ms(550)));
    }

    #[test]
    fn a_challenge_is_answered_at_once_and_endless_ones_are_no_answer() {
        let mut prober = Prober::start(ms(0));
        let echo = prober.poll_transmit(ms(0)).unwrap();
        assert!(!prober.handle_challenge(&Echo { sequence: 99, ..echo }, ms(1)));
        assert!(prober.poll_transmit(ms(1)).is_none());

        assert!(prober.handle_challenge(&echo, ms(2)));
        assert!(!prober.handle_challenge(&echo, ms(2)), "once for each request");
        let echo = prober.poll_transmit(ms(2)).unwrap();
        assert!(prober.handle_reply(&echo, ms(4)));
        assert_eq!((prober.liveness(), prober.round_trip()), (Liveness::Alive, Some(ms(2))));

        let mut prober = Prober::start(ms(0));
        let mut sent = 0;
        for now in 0..1_000 {
            prober.handle_timeout(ms(now));
            while let Some(echo) = prober.poll_transmit(ms(now)) {
                sent += 1;
                prober.handle_challenge(&echo, ms(now));
            }
        }
        assert_eq!(prober.liveness(), Liveness::Dead);
        assert!(sent < 10, "{sent}");
    }

    #[test]
    fn behind_a_translator_it_is_silent_for_two_seconds_at_most() {
        let mut prober = Prober::start(ms(0));
        let mut times = Vec::new();
        for now in 0..30_000 {
            if let Some(echo) = prober.poll_transmit(ms(now)) {
                times.push(now);
                prober.handle_reply(&Echo { is_translated: true, ..echo }, ms(now));
            }
        }
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert_eq!(longest, Some(2_000));
    }

    #[test]
    fn who_moved_asks_at_once_and_forgets_that_nobody_answered() {
        let mut prober = Prober::start(ms(0));
        drive(&mut prober, 0, 60_000, Some(2), false);
        prober.handle_moved(ms(60_000));
        assert!(prober.poll_transmit(ms(60_000)).is_some());

        drive(&mut prober, 60_001, 70_000, None, true);
        assert_eq!(prober.liveness(), Liveness::Dead);
        prober.handle_moved(ms(70_000));
        let echo = prober.poll_transmit(ms(70_000)).unwrap();
        prober.handle_reply(&echo, ms(70_002));
        assert_eq!(prober.liveness(), Liveness::Alive, "no hold-down: it is another way");
    }
}

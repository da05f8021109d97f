//! Which process speaks for a node. One that starts takes the place of one that is gone; two that are there
//! at the same time are a node and a copy of it, and the one that the server heard first is served.
//!
//! Whether a process is gone is not told by its connection alone, which may outlive it: the server ends its
//! poll, and whoever is there asks again at once.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::types::Instance;

/// How long the process that speaks has to ask again when another one says that it is the node.
const SHOW_WITHIN: Duration = Duration::from_millis(1_500);

/// Who is refused so often is a copy that is there.
const REFUSALS_OF_COPIES: u32 = 2;

/// How long a copy counts as being there; it asks again more often.
const COPY_FOR: Duration = Duration::from_secs(180);

/// Least time between two records of copies of one node.
const RECORD_EVERY: Duration = Duration::from_secs(600);

/// A process, and where it asks from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) instance: Instance,
    pub(crate) from: Option<IpAddr>,
}

/// Whether a process is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is.
    Speaks,
    /// Until then it is not known whether the other one is gone.
    Waits(Instant),
    /// Until then two others are told apart; it has to claim its turn after that.
    Later(Instant),
    /// Another process speaks for the node.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    process: Process,
    first: Instant,
    last: Instant,
    open_polls: u32,
    refusals: u32,
}

/// The processes of one node.
#[derive(Debug, Default)]
pub(crate) struct Speaker {
    current: Option<Heard>,
    /// The one that spoke before, one that waits for its turn, or a copy.
    other: Option<Heard>,
    /// Until when the current one can show that it is there.
    doubted_until: Option<Instant>,
    /// The copy that was recorded last, and when.
    recorded: Option<(Instance, Instant)>,
    is_news: bool,
}

impl Speaker {
    /// A poll of `process` came; pair it with [`Self::poll_ended`].
    pub(crate) fn poll(&mut self, process: Process, now: Instant) -> Turn {
        let instance = process.instance;
        let is_third = self.find(instance).is_none();
        if let Some(until) = self.doubted_until.filter(|_| is_third) {
            if now < until {
                // One at a time. Refusing it now would call a copy what may be the only one that is there.
                return Turn::Later(until);
            }
            self.take_turns();
        }
        if is_third {
            self.other = Some(Heard { process, first: now, last: now, open_polls: 0, refusals: 0 });
        }
        if !self.is_current(instance) {
            if self.current.is_none_or(|current| current.open_polls == 0) {
                self.take_turns();
            } else {
                self.doubted_until.get_or_insert(now + SHOW_WITHIN);
            }
        } else if self.doubted_until.take().is_some() {
            self.find_copy(now);
        }
        if let Some(heard) = self.find(instance) {
            *heard = Heard { process, last: now, open_polls: heard.open_polls + 1, ..*heard };
        }
        self.turn(instance, now)
    }

    /// Whether a process whose poll is open is served by now.
    pub(crate) fn turn(&mut self, instance: Instance, now: Instant) -> Turn {
        if self.is_current(instance) {
            return Turn::Speaks;
        }
        let is_other = self.other.is_some_and(|other| other.process.instance == instance);
        match self.doubted_until {
            Some(until) if is_other && now < until => Turn::Waits(until),
            Some(_) if is_other => {
                self.take_turns();
                Turn::Speaks
            }
            Some(_) | None => Turn::Refused,
        }
    }

    /// A poll ended: answered, or because its connection did.
    pub(crate) fn poll_ended(&mut self, instance: Instance, is_answered: bool, now: Instant) {
        if let Some(heard) = self.find(instance) {
            heard.open_polls = heard.open_polls.saturating_sub(1);
        }
        let is_known = self.find(instance).is_some();
        if is_answered || !is_known || self.doubted_until.is_none() {
            return;
        }
        // Who hung up is gone, or does not want to be served any more.
        self.doubted_until = self.is_current(instance).then_some(now);
    }

    /// Whether what a process says beside its polls counts: it speaks, or nobody does.
    pub(crate) fn may_speak(&self, instance: Instance) -> bool {
        self.is_current(instance) || self.current.is_none_or(|current| current.open_polls == 0)
    }

    /// The process that is served and the copy of it that is not.
    pub(crate) fn copy(&self, now: Instant) -> Option<(Process, Process)> {
        let copy = self
            .other
            .filter(|other| other.refusals >= REFUSALS_OF_COPIES && now < other.last + COPY_FOR)?;
        Some((self.current?.process, copy.process))
    }

    /// The same, once for each copy, and not too often.
    pub(crate) fn take_news(&mut self, now: Instant) -> Option<(Process, Process)> {
        let is_news = std::mem::take(&mut self.is_news);
        let (served, copy) = self.copy(now).filter(|_| is_news)?;
        let is_due = self
            .recorded
            .is_none_or(|(instance, at)| instance != copy.instance && now >= at + RECORD_EVERY);
        self.recorded = if is_due { Some((copy.instance, now)) } else { self.recorded };
        is_due.then_some((served, copy))
    }

    fn is_current(&self, instance: Instance) -> bool {
        self.current.is_some_and(|current| current.process.instance == instance)
    }

    fn find(&mut self, instance: Instance) -> Option<&mut Heard> {
        let known = [&mut self.current, &mut self.other].into_iter().flatten();
        known.into_iter().find(|heard| heard.process.instance == instance)
    }

    /// The other one speaks from now on.
    fn take_turns(&mut self) {
        std::mem::swap(&mut self.current, &mut self.other);
        self.doubted_until = None;
        if let Some(current) = &mut self.current {
            current.refusals = 0;
        }
    }

    /// Both are there.
    fn find_copy(&mut self, now: Instant) {
        let (Some(current), Some(other)) = (self.current, self.other) else { return };
        // A poll that somebody sent before he ended may be read late: once is no proof.
        if other.first < current.first && other.refusals > 0 {
            self.take_turns();
        }
        if let Some(other) = &mut self.other {
            other.last = now;
            other.refusals = other.refusals.saturating_add(1);
            self.is_news = other.refusals >= REFUSALS_OF_COPIES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Process = Process { instance: Instance(1), from: None };
    const B: Process = Process { instance: Instance(2), from: None };

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn who_starts_after_another_has_ended_speaks_at_once() {
        let (mut speaker, start) = (Speaker::default(), Instant::now());
        assert_eq!(speaker.poll(A, start), Turn::Speaks);
        speaker.poll_ended(A.instance, false, start + ms(10));

        assert!(speaker.may_speak(B.instance));
        assert_eq!(speaker.poll(B, start + ms(11)), Turn::Speaks);
        assert!(!speaker.may_speak(A.instance));
        assert_eq!(speaker.copy(start + ms(12)), None);
    }

    #[test]
    fn who_starts_while_a_dead_connection_lingers_speaks_a_moment_later() {
        let (mut speaker, start) = (Speaker::default(), Instant::now());
        speaker.poll(A, start);
        let until = start + ms(10) + SHOW_WITHIN;

        assert_eq!(speaker.poll(B, start + ms(10)), Turn::Waits(until));
        assert!(!speaker.may_speak(B.instance));
        // The server ended the poll; nobody took the answer.
        speaker.poll_ended(A.instance, true, start + ms(20));
        assert_eq!(speaker.turn(B.instance, start + ms(30)), Turn::Waits(until));
        assert_eq!(speaker.turn(B.instance, until), Turn::Speaks);
        assert_eq!(speaker.take_news(until), None);

        // The kernel of the other may say sooner that it is gone.
        assert_eq!(speaker.poll(A, until), Turn::Waits(until + SHOW_WITHIN));
        speaker.poll_ended(B.instance, false, until + ms(5));
        assert_eq!(speaker.turn(A.instance, until + ms(5)), Turn::Speaks);
    }

    /// Polls of two processes in turn, each ended before the other one's; whether each is served in the end.
    fn quarrel(speaker: &mut Speaker, [claims, shows]: [Process; 2], now: Instant) -> [Turn; 2] {
        assert!(matches!(speaker.poll(claims, now), Turn::Waits(_)));
        speaker.poll_ended(shows.instance, true, now);
        let shown = speaker.poll(shows, now);
        let claimed = speaker.turn(claims.instance, now);
        if claimed == Turn::Refused {
            speaker.poll_ended(claims.instance, true, now);
        }
        if shown == Turn::Refused {
            speaker.poll_ended(shows.instance, true, now);
        }
        [claimed, shown]
    }

    #[test]
    fn a_copy_is_refused_whichever_of_the_two_asks_first() {
        let (mut speaker, start) = (Speaker::default(), Instant::now());
        let refused = [Turn::Refused, Turn::Speaks];
        speaker.poll(A, start);
        assert_eq!(quarrel(&mut speaker, [B, A], start + ms(10)), refused);
        assert_eq!(speaker.take_news(start + ms(11)), None, "once is no proof");
        assert_eq!(quarrel(&mut speaker, [B, A], start + ms(20)), refused);
        assert_eq!(speaker.copy(start + ms(21)), Some((A, B)));
        assert_eq!(speaker.take_news(start + ms(21)), Some((A, B)));
        assert_eq!(speaker.take_news(start + ms(22)), None);
        assert_eq!(speaker.copy(start + ms(20) + COPY_FOR), None);

        // Between two polls of A the copy slips in, and A is the older one.
        speaker.poll_ended(A.instance, true, start + ms(30));
        assert_eq!(speaker.poll(B, start + ms(31)), Turn::Speaks);
        assert_eq!(quarrel(&mut speaker, [A, B], start + ms(32)), refused);
        assert_eq!(
            quarrel(&mut speaker, [A, B], start + ms(33)),
            [Turn::Speaks, Turn::Refused],
            "the older one is served"
        );
        assert_eq!(quarrel(&mut speaker, [B, A], start + ms(34)), refused);
        assert_eq!(speaker.copy(start + ms(35)), Some((A, B)));
        assert_eq!(speaker.take_news(start + ms(35)), None, "recorded a moment ago");
    }

    #[test]
    fn a_poll_that_is_read_after_its_sender_has_ended_makes_no_copy() {
        let (mut speaker, start) = (Speaker::default(), Instant::now());
        speaker.poll(A, start);
        speaker.poll_ended(A.instance, true, start);
        assert_eq!(speaker.poll(B, start + ms(1)), Turn::Speaks);
        assert!(matches!(speaker.poll(A, start + ms(2)), Turn::Waits(_)));
        speaker.poll_ended(A.instance, false, start + ms(3));
        speaker.poll_ended(B.instance, true, start + ms(4));
        assert_eq!(speaker.poll(B, start + ms(5)), Turn::Speaks);

        // Even when nobody says that it hung up.
        assert!(matches!(speaker.poll(A, start + ms(6)), Turn::Waits(_)));
        speaker.poll_ended(B.instance, true, start + ms(7));
        assert_eq!(speaker.poll(B, start + ms(8)), Turn::Speaks);
        assert_eq!((speaker.copy(start + ms(9)), speaker.take_news(start + ms(9))), (None, None));
    }

    #[test]
    fn a_third_one_makes_nobody_speak_twice() {
        let (mut speaker, start) = (Speaker::default(), Instant::now());
        let third = Process { instance: Instance(3), from: None };
        speaker.poll(A, start);
        assert!(matches!(speaker.poll(B, start), Turn::Waits(_)));

        let until = start + SHOW_WITHIN;
        assert_eq!(speaker.poll(third, start), Turn::Later(until));
        assert_eq!(speaker.turn(B.instance, start), Turn::Waits(until));
        assert_eq!(speaker.turn(third.instance, start), Turn::Refused);
        assert_eq!(speaker.turn(A.instance, start), Turn::Speaks);

        // A is gone, so B speaks, whether or not it looks before the third one claims its turn.
        assert_eq!(speaker.poll(third, until), Turn::Waits(until + SHOW_WITHIN));
        assert_eq!(speaker.turn(B.instance, until), Turn::Speaks);
    }
}

//! What this host wanted and was refused: the memory behind `ovd denied`, and the pace of answers.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use crate::api::local::Denial;
use crate::types::{DropReason, Name, Timestamp};
use crate::wire::inner::Quoted;

/// How many different refusals are remembered; the one that was not seen for longest goes first.
const REMEMBERED_MAX: usize = 256;

/// Answers a second about one source and destination.
const ANSWERS_PER_SECOND: u32 = 10;

/// Sources and destinations that are answered in a second.
const PAIRS_MAX: usize = 1024;

/// What was refused, the one that was seen last at the end. Flows that differ in their source port
/// alone are one.
#[derive(Debug, Default)]
pub struct Denials(VecDeque<Denial>);

impl Denials {
    /// Remembers that an opening packet of `flow` was refused.
    pub fn note(&mut self, overlay: &Name, flow: &Quoted, reason: DropReason, now: Timestamp) {
        let fresh = Denial {
            overlay: overlay.clone(),
            source: flow.source,
            destination: flow.destination,
            peer: None,
            service: service(flow),
            reason: reason.name().to_owned(),
            count: 1,
            first: now,
            last: now,
        };
        let known = self.0.iter().position(|denial| is_same(denial, &fresh));
        let denial = match known.and_then(|at| self.0.remove(at)) {
            Some(known) => Denial { count: known.count.saturating_add(1), last: now, ..known },
            None => fresh,
        };
        if self.0.len() == REMEMBERED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(denial);
    }

    /// What was last refused at or after `since`, newest first.
    pub fn since(&self, since: Timestamp) -> impl Iterator<Item = &Denial> {
        self.0.iter().rev().filter(move |denial| denial.last >= since)
    }
}

fn is_same(a: &Denial, b: &Denial) -> bool {
    let key = |denial: &Denial| (denial.source, denial.destination);
    key(a) == key(b) && a.service == b.service && a.reason == b.reason && a.overlay == b.overlay
}

/// Protocol and port, as rules name them.
fn service(flow: &Quoted) -> String {
    match flow.protocol {
        6 => format!("tcp/{}", flow.destination_port),
        17 => format!("udp/{}", flow.destination_port),
        132 => format!("sctp/{}", flow.destination_port),
        1 => "icmp".to_owned(),
        58 => "icmpv6".to_owned(),
        protocol => format!("protocol {protocol}"),
    }
}

/// How often a host is answered: so many times a second for each source and destination, and for so
/// many of those.
#[derive(Debug, Default)]
pub struct Pace {
    second: u64,
    given: HashMap<(IpAddr, IpAddr), u32>,
}

impl Pace {
    /// Whether one more answer about `flow` may be given in this second.
    pub fn take(&mut self, flow: &Quoted, second: u64) -> bool {
        if second != self.second {
            self.given.clear();
            self.second = second;
        }
        let pair = (flow.source, flow.destination);
        if self.given.len() >= PAIRS_MAX && !self.given.contains_key(&pair) {
            return false;
        }
        let given = self.given.entry(pair).or_default();
        let may = *given < ANSWERS_PER_SECOND;
        *given += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source_port: u16, destination_port: u16) -> Quoted {
        Quoted {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            protocol: 6,
            source_port,
            destination_port,
        }
    }

    fn all(denials: &Denials) -> Vec<(String, u64)> {
        denials.since(Timestamp(0)).map(|denial| (denial.service.clone(), denial.count)).collect()
    }

    #[test]
    fn the_same_wish_is_counted_and_the_newest_comes_first() {
        let (mut denials, lab) = (Denials::default(), "lab".parse().unwrap());
        denials.note(&lab, &flow(40_000, 22), DropReason::NoRule, Timestamp(100));
        denials.note(&lab, &flow(40_001, 80), DropReason::NoRule, Timestamp(101));
        denials.note(&lab, &flow(40_002, 22), DropReason::NoRule, Timestamp(102));
        assert_eq!(all(&denials), [("tcp/22".to_owned(), 2), ("tcp/80".to_owned(), 1)]);

        let first = denials.since(Timestamp(102)).next().unwrap();
        assert_eq!((first.first, first.last), (Timestamp(100), Timestamp(102)));
        assert_eq!(denials.since(Timestamp(102)).count(), 1);

        denials.note(&lab, &flow(40_003, 22), DropReason::DenyRule, Timestamp(103));
        assert_eq!(all(&denials).len(), 3, "another reason");
    }

    #[test]
    fn a_scan_leaves_no_more_than_there_is_room_for() {
        let (mut denials, lab) = (Denials::default(), "lab".parse().unwrap());
        for port in 0..1000 {
            denials.note(&lab, &flow(1, port), DropReason::NoRow, Timestamp(port.into()));
        }
        let kept = all(&denials);
        assert_eq!(kept.len(), REMEMBERED_MAX);
        assert_eq!(kept[0].0, "tcp/999");
    }

    #[test]
    fn answers_have_a_pace_and_each_second_is_new() {
        let mut pace = Pace::default();
        let given = |pace: &mut Pace, second| {
            (0..100).filter(|port| pace.take(&flow(*port, 22), second)).count()
        };
        assert_eq!(given(&mut pace, 7), 10);
        let other = Quoted { destination: "10.0.0.3".parse().unwrap(), ..flow(1, 22) };
        assert!(pace.take(&other, 7));
        assert_eq!(given(&mut pace, 8), 10);

        let to = |number: u32| Quoted { destination: IpAddr::V4(number.into()), ..flow(1, 22) };
        let answered = (0..5000).filter(|number| pace.take(&to(*number), 9)).count();
        assert_eq!(answered, PAIRS_MAX);
    }
}

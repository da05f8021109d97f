//! What this host wanted and was refused: the memory behind `ovd denied`.

use std::collections::VecDeque;

use crate::api::local::{Denial, RefusedBy};
use crate::types::{DropReason, Name, Timestamp};
use crate::wire::inner::Quoted;

/// How many different refusals are remembered; the one that was not seen for longest goes first.
const REMEMBERED_MAX: usize = 256;

/// What was refused, the one that was seen last at the end. Flows that differ in their source port
/// alone are one.
#[derive(Debug, Default)]
pub struct Denials(VecDeque<Denial>);

impl Denials {
    /// Remembers that an opening packet of `flow` was refused.
    pub fn note(
        &mut self,
        overlay: &Name,
        flow: &Quoted,
        (reason, by): (DropReason, RefusedBy),
        now: Timestamp,
    ) {
        let fresh = Denial {
            overlay: overlay.clone(),
            source: flow.source,
            destination: flow.destination,
            peer: None,
            service: service(flow),
            reason: reason.name().to_owned(),
            by,
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
    let why = |denial: &Denial| (denial.reason.clone(), denial.by);
    key(a) == key(b) && a.service == b.service && why(a) == why(b) && a.overlay == b.overlay
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
        denials.note(&lab, &flow(40_000, 22), (DropReason::NoRule, RefusedBy::Ovd), Timestamp(100));
        denials.note(&lab, &flow(40_001, 80), (DropReason::NoRule, RefusedBy::Ovd), Timestamp(101));
        denials.note(&lab, &flow(40_002, 22), (DropReason::NoRule, RefusedBy::Ovd), Timestamp(102));
        assert_eq!(all(&denials), [("tcp/22".to_owned(), 2), ("tcp/80".to_owned(), 1)]);

        let first = denials.since(Timestamp(102)).next().unwrap();
        assert_eq!((first.first, first.last), (Timestamp(100), Timestamp(102)));
        assert_eq!(denials.since(Timestamp(102)).count(), 1);

        denials.note(
            &lab,
            &flow(40_003, 22),
            (DropReason::DenyRule, RefusedBy::Ovd),
            Timestamp(103),
        );
        assert_eq!(all(&denials).len(), 3, "another reason");
    }

    #[test]
    fn a_scan_leaves_no_more_than_there_is_room_for() {
        let (mut denials, lab) = (Denials::default(), "lab".parse().unwrap());
        for port in 0..1000 {
            denials.note(
                &lab,
                &flow(1, port),
                (DropReason::NoRow, RefusedBy::Ovd),
                Timestamp(port.into()),
            );
        }
        let kept = all(&denials);
        assert_eq!(kept.len(), REMEMBERED_MAX);
        assert_eq!(kept[0].0, "tcp/999");
    }
}

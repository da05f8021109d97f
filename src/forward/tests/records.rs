//! Under which record packets count.

use std::collections::BTreeMap;

use super::*;
use crate::types::Tier;

/// What was counted since the last time, as (from, to, port, rule, outcome) with packets and bytes.
type Counted = BTreeMap<(u32, u32, Option<u16>, Option<u32>, Outcome), (u64, u64)>;

fn counted(flows: &FlowTable) -> Counted {
    let mut found = Counted::new();
    flows.records().collect(Timestamp(0), at(0).wall, |what, sums| {
        let Collected::Record(key) = what else { panic!("no room: {what:?}") };
        let Target::Member(to) = key.to else { panic!("{key:?}") };
        let rule = key.rule.map(|rule| rule.0);
        let of = (key.from.0 - 1, to.0 - 1, key.port, rule, key.outcome);
        let sum = found.entry(of).or_default();
        *sum = (sum.0 + sums.packets, sum.1 + sums.bytes);
    });
    found
}

#[test]
fn a_reply_counts_for_its_flow_at_ends_and_saps() {
    let world = World::new(vec![rule(1, A, B, &["tcp/443", "udp/53", "icmp"])]);
    let (a, b, sap) = (world.entity(A), world.entity(B), world.sap());
    let packets = [
        (world.tcp(A, B, REQUEST, SYN), world.tcp(B, A, ANSWER, SYN | ACK)),
        (world.tcp(A, B, REQUEST, ACK), world.tcp(B, A, ANSWER, ACK)),
        (world.udp(A, B, (9, 53)), world.udp(B, A, (53, 9))),
        (world.echo(A, B, true), world.echo(B, A, false)),
    ];
    let (at_b, at_sap) = (table(), table());
    for (forward, reply) in &packets {
        assert_eq!(reason(world.ingress(&b, forward, &at_b, at(0))), None);
        assert_eq!(reason(b.egress(0, reply, &at_b, at(0))), None);
        assert_eq!(reason(world.transit(&sap, forward, &at_sap, at(0))), None);
        assert_eq!(reason(world.transit(&sap, reply, &at_sap, at(0))), None);
    }
    drop(a);
    let flow = |port| (A, B, port, Some(1), Outcome::Allowed);
    let expected = Counted::from([
        (flow(Some(443)), (4, 240)),
        (flow(Some(53)), (2, 120)),
        (flow(None), (2, 120)),
    ]);
    assert_eq!(counted(&at_b), expected);
    assert_eq!(counted(&at_sap), expected);
}

#[test]
fn what_is_denied_counts_with_its_reason_and_rule() {
    let world = World::new(vec![rule(1, A, B, &[]), deny(2, A, B, &["tcp/22"])]);
    let (b, sap, flows) = (world.entity(B), world.sap(), table());
    let refused = [
        (world.tcp(A, B, (9, 22), SYN), DropReason::DenyRule, Some(22), Some(2)),
        (world.udp(B, A, (9, 53)), DropReason::NoRule, Some(53), None),
        (world.tcp(B, A, (9, 80), SYN), DropReason::NoRule, Some(80), None),
    ];
    for (facts, why, port, rule) in refused {
        let (from, to) = (world.number(facts.source), world.number(facts.destination));
        assert_eq!(reason(world.transit(&sap, &facts, &flows, at(0))), Some(why));
        let expected = Counted::from([((from, to, port, rule, Outcome::Denied(why)), (1, 60))]);
        assert_eq!(counted(&flows), expected);
    }
    // At the destination a segment that answers nothing has a port that the other side made up.
    let stray = world.tcp(A, B, (443, 40_000), ACK);
    assert_eq!(reason(world.ingress(&b, &stray, &flows, at(0))), Some(DropReason::NoFlow));
    let expected = (A, B, None, None, Outcome::Denied(DropReason::NoFlow));
    assert_eq!(counted(&flows), Counted::from([(expected, (1, 60))]));
}

#[test]
fn a_flow_that_another_rule_allows_now_counts_there() {
    let before = World::new(vec![rule(1, A, B, &[])]);
    let after = World::new(vec![rule(2, A, B, &["udp/53"])]);
    let (old, new, flows) = (before.sap(), after.sap(), table());
    let query = before.udp(A, B, (9, 53));
    for (sap, rule) in [(&old, 1), (&new, 2), (&old, 1)] {
        for _ in 0..3 {
            assert_eq!(reason(before.transit(sap, &query, &flows, at(0))), None);
        }
        let expected = (A, B, Some(53), Some(rule), Outcome::Allowed);
        assert_eq!(counted(&flows), Counted::from([(expected, (3, 180))]));
    }
}

#[test]
fn an_address_without_a_row_counts_by_its_address() {
    let world = World::new(vec![rule(1, A, B, &[])]);
    let (a, flows) = (world.entity(A), table());
    let ask = |to: [u8; 4]| {
        let facts = Facts { destination: to.into(), ..world.udp(A, B, (9, 53)) };
        assert_eq!(reason(a.egress(0, &facts, &flows, at(0))), Some(DropReason::NoRow));
        let mut found = Vec::new();
        flows.records().collect(Timestamp(0), at(0).wall, |what, _| found.push(what));
        found
    };
    let [Collected::Record(key)] = ask([10, 0, 0, 77])[..] else { panic!("not one record") };
    assert_eq!(key.to, Target::Address([10, 0, 0, 77].into()));
    assert_eq!((key.from, key.port), (id(A), Some(53)));
    assert_eq!(ask([10, 0, 1, 77]), [], "outside of the overlay");
}

#[test]
fn later_fragments_count_for_the_flow_of_the_first() {
    let world = World::new(vec![rule(1, A, B, &["udp/53"])]);
    let (b, flows) = (world.entity(B), table());
    let first =
        Facts { fragment: Fragment::First { identification: 5 }, ..world.udp(A, B, (9, 53)) };
    let later = Facts {
        fragment: Fragment::Later { identification: 5 },
        ..world.facts(A, B, 17, Upper::Opaque)
    };
    for facts in [&first, &later, &later] {
        assert_eq!(reason(world.ingress(&b, facts, &flows, at(0))), None);
    }
    let flow = (A, B, Some(53), Some(1), Outcome::Allowed);
    assert_eq!(counted(&flows), Counted::from([(flow, (3, 180))]));
}

#[test]
fn what_passes_by_audit_counts_as_what_it_would_have_been() {
    let audit = |number, tier| RuleSpec { tier, ..rule(number, A, B, &[]) };
    let world = World::new(vec![rule(1, A, B, &["udp/53"]), audit(2, Tier::AuditAllow)]);
    let watched = World::new(vec![rule(1, A, B, &["udp/53"]), audit(3, Tier::AuditDeny)]);
    let outcome = |world: &World, port| {
        let flows = table();
        let facts = world.udp(A, B, (9, port));
        assert_eq!(reason(world.transit(&world.sap(), &facts, &flows, at(0))), None);
        counted(&flows).into_keys().map(|(.., rule, outcome)| (rule, outcome)).collect::<Vec<_>>()
    };
    assert_eq!(outcome(&world, 53), [(Some(1), Outcome::Allowed)]);
    assert_eq!(outcome(&world, 54), [(Some(2), Outcome::Audit)]);
    assert_eq!(outcome(&watched, 53), [(Some(3), Outcome::Audit)]);
}

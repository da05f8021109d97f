//! Keys during a rotation; wrong keys, and what they cost a pair.

use super::*;

#[test]
fn over_the_budget_of_wrong_keys_a_pair_keeps_its_flows_and_opens_none() {
    let world = World::new(vec![rule(1, EVERYBODY, EVERYBODY, &[])]);
    let (b, sap) = (world.entity(B), world.sap());
    let ask = |is_sap: bool, from, facts: &Facts, flip, flows: &FlowTable, second| {
        let key = world.key(from, B) ^ flip;
        reason(if is_sap {
            sap.transit(endpoint(from), key, facts, flows, at(second))
        } else {
            b.ingress(sap_endpoint(SAP), key, facts, flows, at(second))
        })
    };
    let (known, new) = (world.udp(A, B, (9, 53)), world.udp(A, B, (10, 53)));
    let (opening, data) = (world.tcp(A, B, REQUEST, SYN), world.tcp(A, B, REQUEST, ACK));
    let other = world.tcp(A, B, (40_001, 443), SYN);
    for is_sap in [true, false] {
        let flows = table();
        for facts in [&known, &opening, &data] {
            assert_eq!(ask(is_sap, A, facts, 0, &flows, 1), None);
        }
        for _ in 0..100 {
            assert_eq!(ask(is_sap, A, &new, 1, &flows, 2), Some(DropReason::Key));
        }
        let below = world.udp(A, B, (11, 53));
        assert_eq!(ask(is_sap, A, &below, 0, &flows, 2), None);
        assert_eq!(ask(is_sap, A, &new, 1, &flows, 2), Some(DropReason::Key));

        for facts in [&new, &other] {
            assert_eq!(ask(is_sap, A, facts, 0, &flows, 2), Some(DropReason::KeyBudget));
        }
        for facts in [&known, &data, &below] {
            assert_eq!(ask(is_sap, A, facts, 0, &flows, 2), None, "{is_sap} {facts:?}");
        }
        // Another pair is none of it, and the next second is a new one.
        assert_eq!(ask(is_sap, C, &world.udp(C, B, (9, 53)), 0, &flows, 2), None);
        for facts in [&new, &other] {
            assert_eq!(ask(is_sap, A, facts, 0, &flows, 3), None);
        }
    }
}

#[test]
fn the_budget_of_wrong_keys_outlives_a_new_table_and_knows_no_strays() {
    let world = World::new(vec![rule(1, EVERYBODY, EVERYBODY, &[])]);
    let (before, after, flows) = (world.entity(B), world.entity(B), table());
    let from_sap = sap_endpoint(SAP);
    let (good, stray) = (world.udp(A, B, (9, 53)), world.udp(A, C, (9, 53)));
    for _ in 0..500 {
        // For another entity, whose endpoint somebody says is here.
        let verdict = before.ingress(from_sap, world.key(A, C), &stray, &flows, at(0));
        assert_eq!(reason(verdict), Some(DropReason::Key));
    }
    let key = world.key(A, B);
    assert_eq!(reason(before.ingress(from_sap, key, &good, &flows, at(0))), None);
    for _ in 0..500 {
        let _ = before.ingress(from_sap, key ^ 1, &good, &flows, at(0));
    }
    let new = world.udp(A, B, (10, 53));
    let refused = reason(after.ingress(from_sap, key, &new, &flows, at(0)));
    assert_eq!(refused, Some(DropReason::KeyBudget));
    assert_eq!(reason(after.ingress(from_sap, key, &good, &flows, at(0))), None);
}

#[test]
fn two_keys_are_accepted_during_a_rotation() {
    let old = World::new(vec![rule(1, EVERYBODY, EVERYBODY, &[])]);
    let rotating = World { destination_keys: vec![1, 2], ..old.clone() };
    let done = World { destination_keys: vec![2], ..old.clone() };
    let facts = old.udp(A, B, (9, 53));
    let (old_key, new_key) = (old.key(A, B), done.key(A, B));
    for (world, keys, expected) in [
        (&old, [old_key, new_key], [None, Some(DropReason::Key)]),
        (&rotating, [old_key, new_key], [None, None]),
        (&done, [old_key, new_key], [Some(DropReason::Key), None]),
    ] {
        let sap = world.sap();
        let got = keys.map(|key| reason(sap.transit(endpoint(A), key, &facts, &table(), at(0))));
        assert_eq!(got, expected);
    }
}

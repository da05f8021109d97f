use std::net::{IpAddr, Ipv4Addr};

use super::super::flow_key::is_lower;
use super::*;
use crate::types::Timestamp;

fn at(millis: u64) -> Now {
    Now { monotonic_millis: millis, wall: Timestamp(0) }
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0A00_0000 + number))
}

fn flow(source: u32, number: u32) -> (FlowKey, bool) {
    let (a, b) = (address(source), address(0x0F_0000));
    let ports = ((number >> 16) as u16 + 1, number as u16);
    (FlowKey::ports(1, 17, (a, ports.0), (b, ports.1)), is_lower(a, b))
}

fn open(table: &FlowTable, source: u32, number: u32, now: Now) -> bool {
    let (key, starter) = flow(source, number);
    table.insert(&key, starter, Phase::Stateless, 1, now).is_some()
}

fn has(table: &FlowTable, source: u32, number: u32, now: Now) -> bool {
    table.find(&flow(source, number).0, now).is_some()
}

#[test]
fn both_directions_name_one_flow_and_nothing_else_does() {
    let (a, b) = ((address(1), 10), (address(2), 20));
    let key = FlowKey::ports(1, 17, a, b);

    assert_eq!(key, FlowKey::ports(1, 17, b, a));
    for other in [
        FlowKey::ports(2, 17, a, b),
        FlowKey::ports(1, 6, a, b),
        FlowKey::ports(1, 17, (a.0, 20), (b.0, 10)),
        FlowKey::ports(1, 17, a, (address(3), 20)),
        FlowKey::echo(1, 17, a, b.0),
        FlowKey::fragment(1, 17, a.0, b.0, 10 << 16 | 20),
    ] {
        assert_ne!(key, other);
    }
    let asked_by = |end: IpAddr, other| FlowKey::echo(1, 1, (end, 7), other);
    assert_ne!(asked_by(a.0, b.0), asked_by(b.0, a.0));
    assert_ne!(FlowKey::fragment(1, 17, a.0, b.0, 7), FlowKey::fragment(1, 17, b.0, a.0, 7));
}

#[test]
fn every_phase_has_its_time() {
    for (phase, seconds) in [
        (Phase::Opening, 60),
        (Phase::Answered, 60),
        (Phase::Established, 7440),
        (Phase::Closing, 60),
        (Phase::Stateless, 60),
        (Phase::Tombstone, 120),
        (Phase::Fragment, 30),
    ] {
        let table = FlowTable::new(64);
        let (key, starter) = flow(1, 1);
        assert!(table.insert(&key, starter, phase, 1, at(5)).is_some());

        assert!(table.find(&key, at(5 + seconds * 1000 - 1)).is_some(), "{phase:?}");
        assert!(table.find(&key, at(5 + seconds * 1000)).is_none(), "{phase:?}");
    }
}

#[test]
fn packets_prolong_a_flow_and_sweeping_frees_what_is_over() {
    let table = FlowTable::new(64);
    assert!(open(&table, 1, 1, at(0)) && open(&table, 1, 2, at(0)));
    table.find(&flow(1, 1).0, at(50_000)).unwrap().touch(at(50_000));
    assert_eq!(table.len(), 2);

    table.sweep(at(70_000));

    assert_eq!(table.len(), 1);
    assert!(has(&table, 1, 1, at(70_000)) && !has(&table, 1, 2, at(70_000)));
}

#[test]
fn opening_a_known_flow_anew_takes_no_second_place() {
    let table = FlowTable::new(64);
    assert!(open(&table, 1, 1, at(0)) && open(&table, 1, 1, at(1)));
    assert_eq!(table.len(), 1);
}

#[test]
fn a_source_holds_an_eighth_and_evicts_only_its_own() {
    let table = FlowTable::new(4096);
    for number in 0..40 {
        assert!(open(&table, 7, number, at(u64::from(number))));
    }
    for number in 0..20_000 {
        open(&table, 1, number, at(1000 + u64::from(number)));
    }

    let now = at(21_000);
    let held = (0..20_000).filter(|&number| has(&table, 1, number, now)).count();
    assert!((400..=512).contains(&held), "{held}");
    assert!((0..40).all(|number| has(&table, 7, number, now)));
    assert_eq!(table.len(), held + 40);
    // The newest found a place: its own oldest gave way.
    assert!(has(&table, 1, 19_999, now));
}

#[test]
fn the_flow_that_gives_way_is_never_one_of_the_newest() {
    let table = FlowTable::new(8192);
    for number in 0..20_000 {
        let now = at(u64::from(number));
        assert!(open(&table, 1, number, now));
        if number % 20 != 0 {
            continue;
        }
        // Its share is 1024: these are the newest tenth.
        let young = number.saturating_sub(100)..=number;
        let gone: Vec<_> = young.filter(|&young| !has(&table, 1, young, now)).collect();
        assert!(gone.is_empty(), "{gone:?} at {number}");
    }
    // The control: the old ones did give way.
    assert!(!(0..1000).any(|number| has(&table, 1, number, at(20_000))));
}

#[test]
fn tombstones_are_the_last_to_give_way() {
    let table = FlowTable::new(64);
    let tombs: Vec<_> = (0..4).map(|number| flow(900 + number, 1)).collect();
    for (key, starter) in &tombs {
        assert!(table.insert(key, *starter, Phase::Tombstone, 1, at(0)).is_some());
    }
    for source in 0..600 {
        open(&table, source, 5, at(1000));
    }
    let kept = tombs.iter().filter(|(key, _)| table.find(key, at(2000)).is_some()).count();
    assert_eq!(kept, 4);
}

#[test]
fn nobody_pushes_out_the_tombstones_of_his_own_flows() {
    let table = FlowTable::new(1024);
    let tombs: Vec<_> = (0..20).map(|number| flow(1, number)).collect();
    for (key, starter) in &tombs {
        assert!(table.insert(key, *starter, Phase::Tombstone, 1, at(0)).is_some());
    }
    // Ten times the share: most of these push out one of the source's own.
    for number in 1000..2280 {
        open(&table, 1, number, at(1000 + u64::from(number)));
    }
    let now = at(4000);
    let kept = tombs.iter().filter(|(key, _)| table.find(key, now).is_some()).count();
    assert_eq!(kept, 20);
    // The control: its other old flows did give way.
    assert!((1000..1100).filter(|&number| has(&table, 1, number, now)).count() < 50);
}

#[test]
fn a_late_update_never_lands_on_the_next_flow_of_a_slot() {
    let table = FlowTable::new(64);
    let (key, starter) = flow(1, 1);
    let mut old = table.insert(&key, starter, Phase::Stateless, 1, at(0)).unwrap();
    assert!(table.insert(&key, starter, Phase::Opening, 2, at(1)).is_some());

    old.update(Phase::Tombstone, 9, at(1));

    let found = table.find(&key, at(1)).unwrap();
    assert_eq!((found.phase(), found.token()), (Phase::Opening, 2));
}

#[test]
fn a_guess_outlives_updates_that_did_not_know_of_it_and_ends_with_an_opening_segment() {
    let table = FlowTable::new(64);
    let (key, starter) = flow(1, 1);
    let mut taken_up = table.insert(&key, starter, Phase::Established, 1, at(0)).unwrap();
    let mut early = table.find(&key, at(0)).unwrap();
    taken_up.mark_guess();
    assert!(!early.is_guess());

    early.update(Phase::Closing, 2, at(1));
    assert!(table.find(&key, at(1)).unwrap().is_guess());

    table.find(&key, at(1)).unwrap().update(Phase::Opening, 2, at(2));
    assert!(!table.find(&key, at(2)).unwrap().is_guess());
}

#[test]
fn hops_are_remembered_whole() {
    let table = FlowTable::new(64);
    let (key, starter) = flow(1, 1);
    let found = table.insert(&key, starter, Phase::Stateless, 1, at(0)).unwrap();
    assert_eq!(found.hop(), None);
    for hop in [HopMark { sap: 0, endpoint: 0 }, HopMark { sap: u32::MAX, endpoint: 255 }] {
        found.set_hop(hop);
        assert_eq!(table.find(&key, at(0)).unwrap().hop(), Some(hop));
    }
}

#[test]
fn threads_share_the_table_without_mixing_flows_up() {
    let table = FlowTable::new(256);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let table = &table;
            scope.spawn(move || {
                for round in 0..20_000_u32 {
                    let source = round % 40;
                    let (key, starter) = flow(source, round % 64);
                    // The token says whose flow it is, so that a mixed up slot shows.
                    let token = (source << 16) | (round % 64);
                    match table.find(&key, at(u64::from(round))) {
                        Some(mut found) => {
                            assert_eq!(found.token(), token, "thread {thread}");
                            assert_eq!(found.starter_is_lower(), starter);
                            found.update(Phase::Stateless, token, at(u64::from(round)));
                        }
                        None => {
                            table.insert(
                                &key,
                                starter,
                                Phase::Stateless,
                                token,
                                at(u64::from(round)),
                            );
                        }
                    }
                }
            });
        }
    });
    table.sweep(at(u64::MAX));
    assert_eq!(table.len(), 0);
    assert!(table.by_source.iter().all(|count| count.load(Ordering::Relaxed) == 0));
}

/// As when two hosts exchange large datagrams: each is over its share at the same time.
#[test]
fn a_source_over_its_share_finds_a_place_beside_another_one() {
    let table = FlowTable::new(4096);
    for number in 0..40_000 {
        let now = at(u64::from(number) / 8);
        for source in [1, 2] {
            assert!(open(&table, source, number, now), "{source} {number}");
        }
    }
}

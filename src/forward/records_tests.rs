use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp(1_000);

fn key(from: u32, port: u16, outcome: Outcome) -> RecordKey {
    RecordKey {
        overlay: OverlayId(1),
        rule: (!outcome.is_denied()).then_some(RuleId(7)),
        from: NodeId(from),
        to: Target::Member(NodeId(2)),
        protocol: 6,
        port: Some(port),
        outcome,
    }
}

fn denied(from: u32, port: u16) -> RecordKey {
    key(from, port, Outcome::Denied(DropReason::NoRule))
}

fn count(table: &RecordTable, key: &RecordKey, packets: u64, now: Timestamp) {
    assert!(table.add(table.find(key, now), packets, packets * 100, now));
}

fn collected(table: &RecordTable, now: Timestamp) -> BTreeMap<Collected, Sums> {
    let mut all: BTreeMap<Collected, Sums> = BTreeMap::new();
    table.collect(Timestamp(0), now, |what, sums| {
        all.entry(what).and_modify(|known| *known = known.and(sums)).or_insert(sums);
    });
    all
}

#[test]
fn what_is_counted_is_collected_once() {
    let table = RecordTable::new(64);
    let web = key(1, 80, Outcome::Allowed);
    count(&table, &web, 3, NOW);
    count(&table, &web, 2, Timestamp(1_004));
    count(&table, &denied(1, 81), 1, NOW);

    let all = collected(&table, Timestamp(1_005));

    let sums = Sums { packets: 5, bytes: 500, first: NOW, last: Timestamp(1_004) };
    assert_eq!(all.get(&Collected::Record(web)), Some(&sums));
    assert_eq!(all.len(), 2);
    assert!(collected(&table, Timestamp(1_006)).is_empty(), "nothing came since");
    count(&table, &web, 1, Timestamp(1_007));
    assert_eq!(collected(&table, Timestamp(1_008)).len(), 1);
}

#[test]
fn a_scan_that_is_denied_flushes_nothing_and_is_counted_all_the_same() {
    let table = RecordTable::new(1024);
    let good: Vec<RecordKey> = (0..50).map(|port| key(1, port, Outcome::Allowed)).collect();
    for key in &good {
        count(&table, key, 1, NOW);
    }

    for scanner in 100..164 {
        for port in 0..2_000 {
            count(&table, &denied(scanner, port), 1, NOW);
        }
    }
    // Who comes after the scan still finds room for what passes.
    let late: Vec<RecordKey> = (0..50).map(|port| key(3, port, Outcome::Allowed)).collect();
    for key in &late {
        count(&table, key, 1, NOW);
    }

    let all = collected(&table, NOW);
    let has = |key: &RecordKey| all.contains_key(&Collected::Record(*key));
    assert!(good.iter().all(has));
    assert!(late.iter().all(has));
    let own = |key: &RecordKey| key.outcome.is_denied();
    let records = all.keys().filter(|what| matches!(what, Collected::Record(key) if own(key)));
    assert!(records.count() <= 256);
    let packets: u64 = all
        .iter()
        .filter(|(what, _)| match what {
            Collected::Record(key) => own(key),
            Collected::Overflow(outcome) => outcome.is_denied(),
        })
        .map(|(_, sums)| sums.packets)
        .sum();
    assert_eq!(packets, 64 * 2_000, "not one is lost");
}

#[test]
fn one_source_has_a_sixteenth_for_what_is_denied() {
    let table = RecordTable::new(1024);
    for port in 0..5_000 {
        count(&table, &denied(9, port), 1, NOW);
    }
    let all = collected(&table, NOW);
    assert_eq!(all.keys().filter(|what| matches!(what, Collected::Record(_))).count(), 64);
    let overflow = Collected::Overflow(Outcome::Denied(DropReason::NoRule));
    assert_eq!(all.get(&overflow).map(|sums| sums.packets), Some(5_000 - 64));
}

#[test]
fn an_idle_record_gives_its_place_back_and_an_old_mark_counts_nothing() {
    let table = RecordTable::new(64);
    let web = key(1, 80, Outcome::Allowed);
    let mark = table.find(&web, NOW);
    assert!(table.add(mark, 1, 1, NOW) && table.holds(mark));
    assert_eq!(collected(&table, NOW).len(), 1);

    let later = Timestamp(NOW.0 + IDLE_SECONDS);
    assert!(collected(&table, Timestamp(later.0 - 1)).is_empty() && table.holds(mark));
    assert!(collected(&table, later).is_empty());

    assert!(!table.holds(mark) && !table.add(mark, 1, 1, later));
    count(&table, &web, 1, later);
    assert_eq!(collected(&table, later).len(), 1);
}

#[test]
fn threads_that_count_at_once_lose_nothing() {
    let table = Arc::new(RecordTable::new(256));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let table = Arc::clone(&table);
            std::thread::spawn(move || {
                for round in 0..20_000_u16 {
                    count(&table, &key(1, round % 40, Outcome::Allowed), 1, NOW);
                }
            })
        })
        .collect();
    let mut packets = 0;
    while !threads.iter().all(std::thread::JoinHandle::is_finished) {
        packets += collected(&table, NOW).values().map(|sums| sums.packets).sum::<u64>();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    packets += collected(&table, NOW).values().map(|sums| sums.packets).sum::<u64>();
    assert_eq!(packets, 80_000);
}

proptest! {
    #[test]
    fn a_key_is_the_same_after_packing(
        overlay in any::<u32>(), rule in any::<u32>(), from in any::<u32>(), to in any::<u32>(),
        address in proptest::option::of(any::<IpAddr>()), protocol in any::<u8>(),
        port in any::<Option<u16>>(), kind in 0_u8..4, reason in 0..DropReason::COUNT as u8,
    ) {
        let key = RecordKey {
            overlay: OverlayId(overlay),
            rule: (rule != NO_RULE).then_some(RuleId(rule)),
            from: NodeId(from),
            to: address.map_or(Target::Member(NodeId(to)), Target::Address),
            protocol,
            port,
            outcome: Outcome::from_bits(kind, reason),
        };
        prop_assert_eq!(RecordKey::unpack(key.pack()), key);
    }
}

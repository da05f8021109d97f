//! Moving a packet allocates nothing, whatever comes of it: parsing, verdicts, and whole batches of the
//! three hallways. An own program, because the counting
//! allocator is the whole process's.

#[path = "../benches/fixture/mod.rs"]
#[allow(dead_code, reason = "the benchmarks use more of it")]
mod fixture;

use std::alloc::System;
use std::hint::black_box;

use fixture::batches::{Batches, PACKETS};
use fixture::{Growth, NOW, Town, datagram, endpoint, key, passes, sap_endpoint, tcp, udp};
use ovmesh::wire::{Family, gue, inner};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn allocations(work: impl FnOnce()) -> usize {
    let region = Region::new(ALLOCATOR);
    work();
    let change = region.change();
    change.allocations + change.reallocations
}

/// One test, so that no other thread of this process allocates meanwhile.
#[test]
fn packets_and_batches_allocate_nothing() {
    let town = Town::new(1_000, Growth::Dense);
    let flows = fixture::flow_table();
    let pair = town.allowed[0];
    let packet = datagram(pair);

    // Positive control: the count counts.
    assert_eq!(allocations(|| drop(black_box(Box::new(1_u64)))), 1);

    // The first packets of flows and pairs too: tables and caches have their size from the start.
    let mut passed = 0;
    let count = allocations(|| {
        for flow in 0..100 {
            let Ok(gue::Frame::Data { inner: bytes, .. }) = gue::decode(&packet) else { continue };
            let Ok(parsed) = inner::parse(Family::V4, bytes) else { continue };
            let key = key(pair).bits();
            let facts = udp(pair, flow);
            passed += [
                town.source.egress(0, &parsed, &flows, NOW),
                town.sap.transit(endpoint(pair.from), key, &facts, &flows, NOW),
                town.sap.transit(endpoint(pair.from), key, &tcp(pair), &flows, NOW),
                town.target.ingress(sap_endpoint(), key, &facts, &flows, NOW),
            ]
            .into_iter()
            .filter(|verdict| passes(*verdict))
            .count();
            let refused = fixture::refused_tcp(pair);
            let verdict = town.sap.transit(endpoint(pair.from), key, &refused, &flows, NOW);
            passed += usize::from(passes(verdict));
        }
    });
    assert_eq!((count, passed), (0, 400));

    // Whole batches, from the second on: the first one fills what is kept from batch to batch.
    let mut batches = Batches::new(&town, &flows);
    let all = |batches: &mut Batches<'_>| [batches.egress(), batches.transit(), batches.ingress()];
    assert_eq!(all(&mut batches), [PACKETS; 3]);
    let mut moved = [0; 3];
    let count = allocations(|| {
        for _ in 0..50 {
            for (moved, passed) in moved.iter_mut().zip(all(&mut batches)) {
                *moved += passed;
            }
        }
    });
    assert_eq!((count, moved), (0, [50 * PACKETS; 3]));
}

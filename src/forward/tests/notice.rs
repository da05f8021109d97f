//! What notices may speak of.

use super::*;

fn quoted(facts: &Facts) -> Quoted {
    facts.opened_flow().unwrap()
}

#[test]
fn a_pair_leaves_to_its_next_hop_alone() {
    let world = World::new(vec![rule(1, A, B, &[])]);
    let everywhere = [endpoint(A), endpoint(B), endpoint(C), sap_endpoint(SAP), sap_endpoint(SAP2)];
    let hops = |snapshot: &Snapshot, (from, to)| -> Vec<SocketAddr> {
        let pair = snapshot.pair(world.address(from), world.address(to)).unwrap();
        everywhere.into_iter().filter(|hop| pair.leaves_to(*hop)).collect()
    };
    let (there, back) = ((A, B), (B, A));
    assert_eq!(hops(&world.entity(A), there), [sap_endpoint(SAP), sap_endpoint(SAP2)]);
    assert_eq!(hops(&world.entity(A), back), []);
    assert_eq!(hops(&world.sap(), there), [endpoint(B)]);
    assert_eq!(hops(&world.sap(), back), [endpoint(A)]);

    let direct = world.clone().via(Hops::Direct);
    assert_eq!(hops(&direct.entity(A), there), [endpoint(B)]);
    assert_eq!(hops(&direct.sap(), there), []);

    let chain = world.clone().via(Hops::Via(vec![SAP, SAP2]));
    assert_eq!(hops(&chain.entity(A), there), [sap_endpoint(SAP)]);
    assert_eq!(hops(&chain.sap(), there), [sap_endpoint(SAP2)]);
    assert_eq!(hops(&chain.sap_named(SAP2), there), [endpoint(B)]);
    assert_eq!(hops(&chain.entity(B), back), [sap_endpoint(SAP2)]);
    assert_eq!(hops(&chain.sap_named(SAP2), back), [sap_endpoint(SAP)]);
}

#[test]
fn only_saps_on_the_path_may_speak_and_only_the_right_key_counts() {
    let world = World::new(vec![rule(1, A, B, &[])]);
    let (a, sap) = (world.entity(A), world.sap());
    let speakers = |world: &World| {
        let a = world.entity(A);
        let pair = a.pair(world.address(A), world.address(B)).unwrap();
        assert!(pair.is_own() && !pair.is_for_us());
        [SAP, SAP2].map(|sap| pair.goes_over(sap))
    };
    assert_eq!(speakers(&world), [true, true]);
    assert_eq!(speakers(&world.clone().via(Hops::Via(vec![SAP2]))), [false, true]);
    assert_eq!(speakers(&world.clone().via(Hops::Direct)), [false, false]);

    let key = world.key(A, B);
    for snapshot in [&a, &sap, &world.entity(B)] {
        let pair = snapshot.pair(world.address(A), world.address(B)).unwrap();
        assert!(pair.bears(key) && !pair.bears(key ^ 1) && !pair.bears(world.key(B, A)));
    }
    assert!(a.pair(world.address(A), "10.9.9.9".parse().unwrap()).is_none());
    assert!(a.pair(world.address(A), world.address(A)).is_none());
    assert_eq!(a.sap_at(sap_endpoint(SAP2)), Some(SAP2));
    assert_eq!(a.sap_at(endpoint(B)), None);
}

#[test]
fn a_flow_is_half_open_until_something_comes_back() {
    let world = World::new(vec![rule(1, A, B, &[]), rule(2, B, A, &["udp/9"])]);
    let a = world.entity(A);
    let syn_ack = world.tcp(B, A, ANSWER, SYN | ACK);
    for (question, answer) in [
        (world.tcp(A, B, REQUEST, SYN), syn_ack),
        (world.udp(A, B, REQUEST), world.udp(B, A, ANSWER)),
        (world.echo(A, B, true), world.echo(B, A, false)),
    ] {
        let (flows, flow) = (table(), quoted(&question));
        assert!(!a.is_half_open(&flow, &flows, at(0)), "nobody asked");
        assert_eq!(reason(a.egress(0, &question, &flows, at(0))), None);
        assert!(a.is_half_open(&flow, &flows, at(1)), "{flow:?}");
        assert!(!a.is_half_open(&flow, &flows, at(100)), "long ago");
        let other = Quoted { source_port: 1, ..flow };
        assert!(!a.is_half_open(&other, &flows, at(1)));
        assert_eq!(reason(world.ingress(&a, &answer, &flows, at(2))), None);
        assert!(!a.is_half_open(&flow, &flows, at(2)), "it works: {flow:?}");
    }
    // A flow that the other side started, whatever was said back.
    let (flows, facts) = (table(), world.udp(B, A, (4000, 9)));
    assert_eq!(reason(world.ingress(&a, &facts, &flows, at(0))), None);
    let back = quoted(&world.udp(A, B, (9, 4000)));
    assert!(
        !a.is_half_open(&back, &flows, at(0)) && !a.is_half_open(&quoted(&facts), &flows, at(0))
    );
}

#[test]
fn a_sap_takes_up_what_its_starter_may_start_and_nothing_else() {
    let world = World::new(vec![rule(1, A, B, &["udp/53", "icmp", "tcp"])]);
    let sap = world.sap();
    let take_up = |who: u32, facts: &Facts, flows: &FlowTable| {
        sap.take_up(id(who), &quoted(facts), flows, at(0))
    };
    let (question, answer) = (world.udp(A, B, (9, 53)), world.udp(B, A, (53, 9)));
    let reply_passes = |flows: &FlowTable, answer: &Facts| {
        reason(world.transit(&sap, answer, flows, at(1))).is_none()
    };

    let flows = table();
    assert!(!reply_passes(&flows, &answer), "nobody asked");
    assert!(!take_up(B, &question, &flows) && !take_up(C, &question, &flows), "not theirs");
    assert!(!take_up(A, &world.udp(A, B, (9, 54)), &flows), "no rule");
    assert!(!take_up(B, &answer, &flows) && !reply_passes(&flows, &answer), "no rule that way");
    assert!(!take_up(A, &world.tcp(A, B, (9, 80), SYN), &flows));
    assert!(flows.is_empty());

    assert!(take_up(A, &question, &flows) && reply_passes(&flows, &answer));
    assert!(take_up(A, &world.echo(A, B, true), &flows));
    assert!(reply_passes(&flows, &world.echo(B, A, false)));
    let elsewhere = world.via(Hops::Via(vec![SAP2])).sap();
    assert!(!elsewhere.take_up(id(A), &quoted(&question), &table(), at(0)), "not over this SaP");
}

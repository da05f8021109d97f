//! Which way packets go, and from where they are taken.

use super::*;

#[test]
fn direct_pairs_skip_the_sap() {
    let world = World::new(vec![rule(1, A, B, &[])]).via(Hops::Direct);
    let (a, b, sap, flows) = (world.entity(A), world.entity(B), world.sap(), table());
    let facts = world.udp(A, B, (9, 53));
    let key = AuthorizationKey::from_bits(world.key(A, B));

    assert_eq!(a.egress(0, &facts, &flows, at(0)), Verdict::Send { hop: endpoint(B), key });
    let from_a = b.ingress(endpoint(A), key.bits(), &facts, &table(), at(0));
    assert_eq!(from_a, Verdict::Deliver { overlay: 0 });
    assert_eq!(reason(world.ingress(&b, &facts, &table(), at(0))), Some(DropReason::SourceBinding));
    assert_eq!(reason(world.transit(&sap, &facts, &table(), at(0))), Some(DropReason::Path));
}

#[test]
fn chains_are_walked_backwards_by_the_other_direction() {
    let world =
        World::new(vec![rule(1, EVERYBODY, EVERYBODY, &[])]).via(Hops::Via(vec![SAP, SAP2]));
    let (a, b) = (world.entity(A), world.entity(B));
    let (first, second) = (world.sap_named(SAP), world.sap_named(SAP2));
    let hop = |verdict| match verdict {
        Verdict::Send { hop, .. } => Ok(hop),
        Verdict::Drop(reason) => Err(reason),
        Verdict::Deliver { .. } => panic!("delivered"),
    };
    let (there, back) = (world.udp(A, B, (9, 53)), world.udp(B, A, (9, 53)));
    let (key, back_key) = (world.key(A, B), world.key(B, A));
    let go = |sap: &Snapshot, outer, key, facts: &Facts| {
        hop(sap.transit(outer, key, facts, &table(), at(0)))
    };

    assert_eq!(hop(a.egress(0, &there, &table(), at(0))), Ok(sap_endpoint(SAP)));
    assert_eq!(go(&first, endpoint(A), key, &there), Ok(sap_endpoint(SAP2)));
    assert_eq!(go(&second, sap_endpoint(SAP), key, &there), Ok(endpoint(B)));
    assert_eq!(hop(b.egress(0, &back, &table(), at(0))), Ok(sap_endpoint(SAP2)));
    assert_eq!(go(&second, endpoint(B), back_key, &back), Ok(sap_endpoint(SAP)));
    assert_eq!(go(&first, sap_endpoint(SAP2), back_key, &back), Ok(endpoint(A)));
    // Nobody enters in the middle.
    assert_eq!(go(&second, endpoint(A), key, &there), Err(DropReason::SourceBinding));
    assert_eq!(go(&first, sap_endpoint(SAP2), key, &there), Err(DropReason::SourceBinding));
    let at_b = |sap| reason(b.ingress(sap_endpoint(sap), key, &there, &table(), at(0)));
    assert_eq!((at_b(SAP2), at_b(SAP)), (None, Some(DropReason::SourceBinding)));
}

#[test]
fn at_a_sap_a_member_is_where_it_proved_to_be_and_nowhere_else() {
    let world = World::new(vec![rule(1, A, B, &[])]);
    let (declared, flows) = (world.sap(), table());
    let moved: SocketAddr = "203.0.113.9:4000".parse().unwrap();
    let facts = world.udp(A, B, (9, 53));
    let key = world.key(A, B);
    let ask = |sap: &Snapshot, outer| match sap.transit(outer, key, &facts, &flows, at(0)) {
        Verdict::Send { hop, .. } => Ok(hop),
        Verdict::Drop(reason) => Err(reason),
        Verdict::Deliver { .. } => panic!("delivered"),
    };
    assert_eq!(ask(&declared, endpoint(A)), Ok(endpoint(B)));
    assert_eq!(ask(&declared, moved), Err(DropReason::OuterSource));

    let proved = |of_a: Option<SocketAddr>, of_b: Option<SocketAddr>| {
        declared.with_proved(
            move |node| if node == id(A) { of_a } else { of_b.filter(|_| node == id(B)) },
        )
    };
    let nobody = proved(None, None);
    assert_eq!(ask(&nobody, endpoint(A)), Err(DropReason::SourceBinding), "it only says so");
    assert!(nobody.knows(endpoint(A)), "but may be heard");
    let one = proved(Some(endpoint(A)), None);
    assert_eq!(ask(&one, endpoint(A)), Err(DropReason::NoPath));
    assert_eq!(one.take_sent_to(), [id(B)].into(), "whoever sends has to be told");

    let both = proved(Some(moved), Some(endpoint(C)));
    assert_eq!(ask(&both, moved), Ok(endpoint(C)));
    assert_eq!(ask(&both, endpoint(A)), Err(DropReason::SourceBinding));
    assert!(both.knows(moved) && !declared.knows(moved));
    // As an IPv6 socket shows it.
    let mapped: SocketAddr = "[::ffff:203.0.113.9]:4000".parse().unwrap();
    assert_eq!(ask(&both, mapped), Ok(endpoint(C)));
    // It is the same policy, and the same knowledge.
    assert_eq!(both.version(at(0)), declared.version(at(0)));
    let pair = both.pair(facts.source, facts.destination).unwrap();
    assert!(pair.leaves_to(endpoint(C)) && !pair.leaves_to(endpoint(B)));
}

#[test]
fn starters_take_the_first_live_sap_and_replies_the_one_they_came_by() {
    let world = World::new(vec![rule(1, A, B, &[])]);
    let (a, b, flows) = (world.entity(A), world.entity(B), table());
    let hop = |node: &Snapshot, facts: &Facts, flows: &FlowTable| match node.egress(
        0,
        facts,
        flows,
        at(0),
    ) {
        Verdict::Send { hop, .. } => hop,
        Verdict::Drop(_) | Verdict::Deliver { .. } => panic!("not sent"),
    };
    let (question, answer) = (world.udp(A, B, (9, 53)), world.udp(B, A, (53, 9)));
    assert_eq!(hop(&a, &question, &table()), sap_endpoint(SAP));
    a.set_alive(SAP, false);
    assert_eq!(hop(&a, &question, &table()), sap_endpoint(SAP2));
    a.set_alive(SAP2, false);
    assert_eq!(hop(&a, &question, &table()), sap_endpoint(SAP));

    for sap in [SAP2, SAP] {
        let key = world.key(A, B);
        let delivered = b.ingress(sap_endpoint(sap), key, &question, &flows, at(0));
        assert_eq!(delivered, Verdict::Deliver { overlay: 0 });
        assert_eq!(hop(&b, &answer, &flows), sap_endpoint(sap));
    }
}

#[test]
fn a_sap_that_has_lost_the_other_end_is_passed_over_for_that_end_alone() {
    let world = World::new(vec![rule(1, A, EVERYBODY, &[]), rule(2, B, A, &[])]);
    let (a, flows) = (world.entity(A), table());
    let hop = |to, from_port| {
        let facts = world.udp(A, to, (from_port, 53));
        match a.egress(0, &facts, &flows, at(0)) {
            Verdict::Send { hop, .. } => hop,
            Verdict::Drop(_) | Verdict::Deliver { .. } => panic!("not sent"),
        }
    };
    // A flow that B started, over the first SaP.
    let question = world.udp(B, A, (9, 77));
    let delivered = a.ingress(sap_endpoint(SAP), world.key(B, A), &question, &flows, at(0));
    assert_eq!(delivered, Verdict::Deliver { overlay: 0 });
    let answer_by = || {
        let facts = world.udp(A, B, (77, 9));
        matches!(a.egress(0, &facts, &flows, at(0)), Verdict::Send { hop, .. } if hop == sap_endpoint(SAP2))
    };
    assert!(hop(B, 1) == sap_endpoint(SAP) && !answer_by());

    assert!(a.set_reaches(SAP, id(B), false) && !a.set_reaches(SAP, id(B), false), "news once");
    a.forget_hops(SAP, id(B), &flows);
    assert_eq!((hop(B, 1), hop(C, 2)), (sap_endpoint(SAP2), sap_endpoint(SAP)));
    assert!(answer_by(), "also the answers of flows that came over it");
    // Whoever all of them have lost is tried all the same, over one that answers.
    a.set_reaches(SAP2, id(B), false);
    assert_eq!(hop(B, 1), sap_endpoint(SAP));
    a.set_alive(SAP, false);
    assert_eq!((hop(B, 1), hop(C, 2)), (sap_endpoint(SAP2), sap_endpoint(SAP2)));
    a.set_reaches(SAP, id(B), true);
    a.set_returning(SAP, true);
    assert_eq!((hop(B, 1), hop(C, 2)), (sap_endpoint(SAP), sap_endpoint(SAP2)));
    a.set_returning(SAP, false);

    a.set_alive(SAP, true);
    a.set_reaches(SAP, id(B), true);
    assert_eq!(hop(B, 1), sap_endpoint(SAP));
    assert!(!answer_by());
}

#[test]
fn replies_go_back_over_a_sap_that_had_lost_the_other_end_once_it_comes_by_there_again() {
    let world = World::new(vec![rule(1, A, B, &[]), rule(2, A, C, &[])]);
    let (b, flows) = (world.entity(B), table());
    let (question, answer) = (world.udp(A, B, (9, 53)), world.udp(B, A, (53, 9)));
    let hop = || match b.egress(0, &answer, &flows, at(0)) {
        Verdict::Send { hop, .. } => hop,
        Verdict::Drop(_) | Verdict::Deliver { .. } => panic!("not sent"),
    };
    let comes = || {
        let delivered = b.ingress(sap_endpoint(SAP), world.key(A, B), &question, &flows, at(0));
        assert_eq!(delivered, Verdict::Deliver { overlay: 0 });
    };
    comes();
    assert_eq!(hop(), sap_endpoint(SAP));
    b.set_reaches(SAP, id(A), false);
    b.forget_hops(SAP, id(C), &flows);
    assert_eq!(hop(), sap_endpoint(SAP), "not those of others");
    b.forget_hops(SAP2, id(A), &flows);
    assert_eq!(hop(), sap_endpoint(SAP), "not those over others");
    b.forget_hops(SAP, id(A), &flows);
    assert_eq!(hop(), sap_endpoint(SAP2));

    // The SaP has not said yet that it hears A again; nobody but it knows the flow.
    comes();
    assert_eq!(hop(), sap_endpoint(SAP));
}

#[test]
fn a_sap_knows_to_whom_it_sent_since_somebody_looked() {
    let world = World::new(vec![rule(1, A, B, &[])]);
    let (sap, flows) = (world.sap(), table());
    assert_eq!(
        reason(world.transit(&sap, &world.udp(A, C, (1, 2)), &flows, at(0))),
        Some(DropReason::NoRule)
    );
    assert!(sap.take_sent_to().is_empty());

    assert_eq!(reason(world.transit(&sap, &world.udp(A, B, (1, 2)), &flows, at(0))), None);
    assert_eq!(sap.take_sent_to(), [id(B)].into());
    assert!(sap.take_sent_to().is_empty());
}

#[test]
fn replies_go_back_over_a_sap_that_the_other_end_trusts_sooner() {
    let world = World::new(vec![rule(1, A, B, &[])]);
    let (b, flows) = (world.entity(B), table());
    let (question, answer) = (world.udp(A, B, (9, 53)), world.udp(B, A, (53, 9)));
    let hop = || match b.egress(0, &answer, &flows, at(0)) {
        Verdict::Send { hop, .. } => hop,
        Verdict::Drop(_) | Verdict::Deliver { .. } => panic!("not sent"),
    };
    b.set_alive(SAP, false);
    let delivered = b.ingress(sap_endpoint(SAP), world.key(A, B), &question, &flows, at(0));
    assert_eq!(delivered, Verdict::Deliver { overlay: 0 });
    assert_eq!(hop(), sap_endpoint(SAP2), "it does not answer this end");
    b.set_returning(SAP, true);
    assert_eq!(hop(), sap_endpoint(SAP));
    b.set_reaches(SAP, id(A), false);
    b.forget_hops(SAP, id(A), &flows);
    assert_eq!(hop(), sap_endpoint(SAP2), "it has lost the other end");
}

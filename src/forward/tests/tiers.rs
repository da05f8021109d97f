//! NetworkPolicies' two sides, audit, and what happens to flows when somebody is isolated.

use super::*;

fn of(tier: Tier, spec: RuleSpec) -> RuleSpec {
    RuleSpec { tier, ..spec }
}

fn isolated(member: u32, egress: bool, ingress: bool) -> IsolationSpec {
    let by = |number, is_so: bool| is_so.then_some(RuleId::network_policy(number));
    IsolationSpec { member, egress: by(1, egress), ingress: by(2, ingress) }
}

/// A isolated in egress, B in ingress; nothing unspoken passes.
fn two_sides() -> World {
    let mut world = World::new(vec![
        of(Tier::Egress, rule(1, A, EVERYBODY, &["tcp/80"])),
        of(Tier::Ingress, rule(2, EVERYBODY, B, &["tcp/80-90", "udp"])),
    ]);
    world.sides = (false, vec![isolated(A, true, false), isolated(B, false, true)]);
    world
}

/// What `ovd` at both ends and the SaP say of a new flow, which is one and the same.
fn opens(world: &World, facts: &Facts) -> Option<DropReason> {
    let (from, to) = (world.number(facts.source), world.number(facts.destination));
    let at_sap = reason(world.transit(&world.sap(), facts, &table(), at(0)));
    let at_source = reason(world.entity(from).egress(0, facts, &table(), at(0)));
    let at_target = reason(world.ingress(&world.entity(to), facts, &table(), at(0)));
    assert_eq!((at_source, at_target), (at_sap, at_sap));
    at_sap
}

#[test]
fn a_flow_needs_both_sides_and_a_side_that_nobody_isolates_is_open() {
    let world = two_sides();
    let tcp = |from, to, port| world.tcp(from, to, (40_000, port), SYN);

    assert_eq!(opens(&world, &tcp(A, B, 80)), None);
    assert_eq!(opens(&world, &tcp(A, B, 81)), Some(DropReason::NoRule), "A's egress lacks it");
    assert_eq!(opens(&world, &world.udp(C, B, (9, 53))), None, "C's egress is open");
    assert_eq!(opens(&world, &tcp(C, B, 443)), Some(DropReason::NoRule), "B's ingress lacks it");
    assert_eq!(opens(&world, &tcp(A, C, 80)), None, "C's ingress is open");
    assert_eq!(opens(&world, &tcp(B, C, 80)), Some(DropReason::NoRule), "nothing speaks of it");
    let open = World { sides: (true, world.sides.1.clone()), ..world.clone() };
    assert_eq!(opens(&open, &tcp(B, C, 80)), None, "unspoken, and that passes here");
    assert_eq!(opens(&open, &tcp(A, B, 81)), Some(DropReason::NoRule), "isolated all the same");
}

#[test]
fn rules_go_before_network_policies_both_ways() {
    let mut world = two_sides();
    let syn = |port| world.tcp(A, B, (40_000, port), SYN);
    let (denied, allowed) = (syn(80), syn(22));
    world.rules.extend([deny(3, A, B, &["tcp/80"]), rule(4, A, B, &["tcp/22"])]);

    assert_eq!(opens(&world, &denied), Some(DropReason::DenyRule));
    assert_eq!(opens(&world, &allowed), None);
}

#[test]
fn audit_refuses_nothing_and_an_enforced_denial_goes_before_it() {
    let world = World::new(vec![
        of(Tier::AuditDeny, rule(1, A, B, &[])),
        rule(2, A, B, &["udp/53"]),
        of(Tier::AuditAllow, rule(3, A, C, &[])),
        deny(4, A, C, &["udp/22"]),
    ]);

    assert_eq!(opens(&world, &world.udp(A, B, (9, 53))), None);
    assert_eq!(opens(&world, &world.udp(A, B, (9, 54))), Some(DropReason::NoRule));
    assert_eq!(opens(&world, &world.udp(A, C, (9, 53))), None);
    assert_eq!(opens(&world, &world.udp(A, C, (9, 22))), Some(DropReason::DenyRule));
}

#[test]
fn who_is_isolated_loses_the_flows_that_are_open_and_gets_no_answers_through() {
    let before = World { sides: (true, Vec::new()), ..World::new(Vec::new()) };
    let after = World { sides: (true, vec![isolated(B, false, true)]), ..before.clone() };
    let (ask, answer) = (before.udp(A, B, (9, 53)), before.udp(B, A, (53, 9)));
    let flows = table();
    let pass = |world: &World, facts: &Facts, second| {
        reason(world.ingress(&world.entity(B), facts, &flows, at(second)))
    };
    let out =
        |world: &World, second| reason(world.entity(B).egress(0, &answer, &flows, at(second)));

    assert_eq!((pass(&before, &ask, 0), out(&before, 0)), (None, None));
    assert_eq!(out(&after, 1), Some(DropReason::FlowRevoked));
    assert_eq!(pass(&after, &ask, 1), Some(DropReason::FlowRevoked));
    // What B starts by its own right is none of this.
    let own = after.udp(B, A, (50, 51));
    assert_eq!(opens(&after, &own), None);
}

#[test]
fn fragments_of_an_isolated_pair_follow_their_first() {
    let world = two_sides();
    let part = |fragment, upper| Facts { fragment, upper, ..world.tcp(A, B, (40_000, 80), SYN) };
    let whole = world.tcp(A, B, (40_000, 80), SYN).upper;
    let first = part(Fragment::First { identification: 5 }, whole);
    let later = |identification| part(Fragment::Later { identification }, Upper::Opaque);
    let (sap, flows) = (world.sap(), table());
    let ask = |facts: &Facts| reason(world.transit(&sap, facts, &flows, at(0)));

    assert_eq!(ask(&later(5)), Some(DropReason::Fragment));
    assert_eq!(ask(&first), None);
    assert_eq!(ask(&later(5)), None);
    assert_eq!(ask(&later(6)), Some(DropReason::Fragment));
}

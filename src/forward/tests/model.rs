//! The verdicts against a model that reads the rules one by one.

use proptest::prelude::*;

use super::*;
use crate::types::{PortRange, Protocol, Service, Tier};

/// Whether a new flow may open, read straight from the design.
fn naive(world: &World, from: u32, to: u32, facts: &Facts, now: Now) -> Option<DropReason> {
    let port = match facts.upper {
        Upper::Tcp { destination_port, .. } | Upper::Ports { destination_port, .. } => {
            Some(destination_port)
        }
        Upper::Echo { .. } | Upper::IcmpError { .. } | Upper::Opaque => None,
    };
    let covers = |service: &Service| match service {
        Service::Protocol(protocol) => protocol.matches(facts.protocol, world.is_v6),
        Service::Ports(protocol, range) => {
            protocol.matches(facts.protocol, world.is_v6)
                && port.is_some_and(|port| range.contains(port))
        }
        Service::Named(..) => false,
    };
    let speaks = |rule: &RuleSpec| {
        world.sets[rule.from as usize].contains(&from)
            && world.sets[rule.to as usize].contains(&to)
            && rule.not_after.is_none_or(|end| now.wall < end)
            && (rule.services.is_empty() || rule.services.iter().any(covers))
    };
    let says = |tier: Tier| world.rules.iter().any(|rule| rule.tier == tier && speaks(rule));
    let (unspoken_passes, isolated) = &world.sides;
    let is_isolated = |member: u32, is_egress: bool| {
        isolated.iter().any(|row| {
            let by = if is_egress { row.egress } else { row.ingress };
            row.member == member && by.is_some()
        })
    };
    let (source, target) = (is_isolated(from, true), is_isolated(to, false));
    let passes_sides = (!source || says(Tier::Egress))
        && (!target || says(Tier::Ingress))
        && (source || target || *unspoken_passes);
    if says(Tier::Deny) {
        Some(DropReason::DenyRule)
    } else if says(Tier::Allow) || passes_sides || says(Tier::AuditAllow) {
        None
    } else {
        Some(DropReason::NoRule)
    }
}

fn any_service() -> impl Strategy<Value = Service> {
    let protocol = prop::sample::select(vec![
        Protocol::Tcp,
        Protocol::Udp,
        Protocol::Sctp,
        Protocol::Icmp,
        Protocol::Number(99),
    ]);
    (protocol, prop::option::of((1_u16..12, 0_u16..6))).prop_map(|(protocol, ports)| match ports {
        Some((first, more)) if protocol.has_ports() => {
            Service::Ports(protocol, PortRange { first, last: first + more })
        }
        _ => Service::Protocol(protocol),
    })
}

fn any_tier() -> impl Strategy<Value = Tier> {
    prop::sample::select([&Tier::ALL[..], &[Tier::Allow; 3]].concat())
}

/// Whether unspoken flows pass, and who is isolated.
fn any_sides() -> impl Strategy<Value = (bool, Vec<IsolationSpec>)> {
    let by = |number: u32| prop::option::of(Just(RuleId::network_policy(number)));
    let row = (by(1), by(2));
    (any::<bool>(), prop::collection::btree_map(0_u32..3, row, 0..3)).prop_map(|(passes, rows)| {
        let row = |(member, (egress, ingress))| IsolationSpec { member, egress, ingress };
        (passes, rows.into_iter().map(row).collect())
    })
}

fn any_rule() -> impl Strategy<Value = RuleSpec> {
    let services = prop::collection::vec(any_service(), 0..3);
    let end = prop::option::of((0_u64..10).prop_map(|second| at(second).wall));
    (1_u32..6, any_tier(), 0_u32..4, 0_u32..4, services, end).prop_map(
        |(number, tier, from, to, services, not_after)| RuleSpec {
            id: RuleId(number),
            tier,
            from,
            to,
            services,
            not_after,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn verdicts_agree_with_a_naive_model(
        is_v6: bool,
        rules in prop::collection::vec(any_rule(), 0..8),
        third_set in prop::collection::btree_set(0_u32..3, 0..3),
        (from, to) in (0_u32..3, 0_u32..3),
        protocol in prop::sample::select(vec![1_u8, 6, 17, 58, 99, 132]),
        ports in (1_u16..20, 1_u16..20),
        second in 0_u64..12,
        sides in any_sides(),
    ) {
        prop_assume!(from != to);
        let mut world = World { is_v6, sides, ..World::new(rules) };
        world.sets[2] = third_set.into_iter().collect();
        let icmp = if is_v6 { 58 } else { 1 };
        let (facts, answer) = match protocol {
            6 => (
                world.tcp(from, to, ports, SYN),
                world.tcp(to, from, (ports.1, ports.0), SYN | ACK),
            ),
            17 | 132 => {
                let udp = |from, to, ports| Facts { protocol, ..world.udp(from, to, ports) };
                (udp(from, to, ports), udp(to, from, (ports.1, ports.0)))
            }
            _ if protocol == icmp => (world.echo(from, to, true), world.echo(to, from, false)),
            _ => (
                world.facts(from, to, protocol, Upper::Opaque),
                world.facts(to, from, protocol, Upper::Opaque),
            ),
        };
        let now = at(second);
        let expected = naive(&world, from, to, &facts, now);
        let (source, target, sap) = (world.entity(from), world.entity(to), world.sap());
        let (at_source, at_target, at_sap) = (table(), table(), table());

        prop_assert_eq!(reason(source.egress(0, &facts, &at_source, now)), expected);
        prop_assert_eq!(reason(world.transit(&sap, &facts, &at_sap, now)), expected);
        prop_assert_eq!(reason(world.ingress(&target, &facts, &at_target, now)), expected);
        if expected.is_none() {
            prop_assert_eq!(reason(target.egress(0, &answer, &at_target, now)), None);
            prop_assert_eq!(reason(world.transit(&sap, &answer, &at_sap, now)), None);
            prop_assert_eq!(reason(world.ingress(&source, &answer, &at_source, now)), None);
        }
    }
}

//! What tables say of addresses outside is what the evaluator answers.

use std::net::IpAddr;

use proptest::prelude::*;

use crate::api::table::OutsideTable;
use crate::policy::judge::Overview;
use crate::policy::random::{self, V4, V6};
use crate::policy::testing::{FakeKeys, NOW, service};
use crate::policy::{End, compile};
use crate::types::{NodeId, NodeKind, Service, Tier};

/// Reads a table as the guard does: by tier, each row for itself.
fn lets_out(table: &OutsideTable, to: IpAddr, asked: &Service) -> bool {
    let covers = |service: &Service| match (service, asked) {
        (Service::Protocol(protocol), _) => *protocol == asked.protocol(),
        (Service::Ports(protocol, range), Service::Ports(asked, port)) => {
            protocol == asked && range.contains(port.first)
        }
        (Service::Ports(..) | Service::Named(..), _) => false,
    };
    let speaks = |tier: Tier| {
        table.rows.iter().filter(move |row| row.tier == tier).any(|row| {
            row.cidr.is_none_or(|cidr| cidr.contains(&to))
                && !row.except.iter().any(|except| except.contains(&to))
                && (row.services.is_empty() || row.services.iter().any(covers))
        })
    };
    let allowed = [Tier::Allow, Tier::Egress, Tier::AuditAllow].into_iter().any(speaks);
    !speaks(Tier::Deny) && (allowed || table.unspoken_passes)
}

proptest! {
    #[test]
    fn a_table_lets_out_what_the_evaluator_allows(world in random::world()) {
        let tables = compile(&world, &FakeKeys::default(), NOW);
        let entities = world.nodes.iter().filter(|(_, facts)| facts.kind == NodeKind::Entity);
        for (&id, facts) in entities {
            for overlay in [V4, V6].into_iter().filter(|id| facts.addresses.contains_key(id)) {
                let overview = Overview::new(&world, overlay, NOW);
                let table = tables[&NodeId(id.0)].overlays.iter().find(|row| row.id == overlay);
                for to in ["10.70.0.2", "203.0.113.9", "192.0.2.200", "fd70::2", "2001:db8::1"] {
                    let to: IpAddr = to.parse().unwrap();
                    for asked in ["tcp/80", "tcp/443", "udp/53", "icmp"].map(service) {
                        let end = End::Outside(to);
                        let spans = overview.asked(Some(&asked), &end);
                        let ruling = overview.rule_on(&End::Member(id), &end, &spans);
                        prop_assert_eq!(
                            lets_out(&table.unwrap().outside, to, &asked),
                            ruling.decision.is_allow(),
                            "{} to {} {} in {}: {:?}", id, to, asked, overlay, ruling.decision
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_rule_about_addresses_is_in_the_tables_of_those_who_may_start_and_nowhere_else() {
    use crate::policy::testing::{add_rule, town};
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> 192.0.2.0/24!192.0.2.128/25 tcp/443");
    add_rule(&mut world, 2, "allow 198.51.100.0/24 -> web tcp/80");

    let tables = compile(&world, &FakeKeys::default(), NOW);

    let rows = |id: u32| tables[&NodeId(id)].overlays[0].outside.rows.clone();
    let [row] = rows(1).try_into().unwrap();
    assert_eq!(row.cidr, "192.0.2.0/24".parse().ok());
    assert_eq!(row.except, ["192.0.2.128/25".parse().unwrap()]);
    assert_eq!((row.services, row.tier), (vec![service("tcp/443")], Tier::Allow));
    assert!(rows(2).is_empty() && rows(11).is_empty());
}

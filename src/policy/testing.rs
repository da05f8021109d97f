//! Small worlds for the tests of this room.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::{BoundSelector, Drain, KeySource, NodeFacts, OverlayFacts, RuleFacts, World};
use crate::api::admin::Semantics;
use crate::api::table::{Action, DestinationKey, OverlayTable, PathHops};
use crate::types::{
    AuthorizationKey, EntityName, Generation, KeyVersion, LinkId, Name, NodeId, NodeKind,
    OverlayId, RuleId, Secret, Selector, Service, Tier, Timestamp,
};

/// The overlay of small towns.
pub(super) const O: OverlayId = OverlayId(1);

/// The time at which small towns are looked at.
pub(super) const NOW: Timestamp = Timestamp(1_000);

/// A world with one IPv4 overlay `default` and nobody in it.
pub(super) fn empty_town() -> World {
    let mut world = World::default();
    add_overlay(&mut world, O, "default", "10.70.0.0/16");
    world
}

/// Entities web (1, role=web), db (2, role=db), cache (3), shop/web (4, role=web); SaPs sap1 (11), sap2
/// (12). All have endpoints and links.
pub(super) fn town() -> World {
    let mut world = empty_town();
    for (id, name, labels) in [
        (1, "web", &["role=web"][..]),
        (2, "db", &["role=db"]),
        (3, "cache", &[]),
        (4, "shop/web", &["role=web"]),
    ] {
        add_entity(&mut world, id, name, labels);
    }
    add_sap(&mut world, 11, "sap1", &[O]);
    add_sap(&mut world, 12, "sap2", &[O]);
    world
}

pub(super) fn add_overlay(world: &mut World, id: OverlayId, name: &str, cidr: &str) {
    let facts = OverlayFacts {
        name: Name::new(name).unwrap(),
        cidr: cidr.parse().unwrap(),
        semantics: Semantics::DefaultDeny,
        silent: false,
        is_audit: false,
    };
    world.overlays.insert(id, facts);
}

/// Adds a node that is in no overlay yet, with an endpoint made of its id.
pub(super) fn add_node(world: &mut World, kind: NodeKind, id: u32, name: &str) -> NodeId {
    let facts = NodeFacts {
        kind,
        name: name.parse().unwrap(),
        labels: BTreeSet::new(),
        ports: BTreeMap::new(),
        endpoints: vec![endpoint(id)],
        addresses: BTreeMap::new(),
        serves: BTreeSet::new(),
        is_quarantined: false,
        round_trips: BTreeMap::new(),
        drain: Drain::No,
    };
    world.nodes.insert(NodeId(id), facts);
    NodeId(id)
}

pub(super) fn add_entity(world: &mut World, id: u32, name: &str, labels: &[&str]) {
    let node = add_node(world, NodeKind::Entity, id, name);
    let facts = world.nodes.get_mut(&node).unwrap();
    facts.labels = labels.iter().map(|label| label.parse().unwrap()).collect();
    facts.addresses.insert(O, address(id));
    link_all(world);
}

pub(super) fn add_sap(world: &mut World, id: u32, name: &str, serves: &[OverlayId]) {
    let node = add_node(world, NodeKind::Sap, id, name);
    world.nodes.get_mut(&node).unwrap().serves = serves.iter().copied().collect();
    link_all(world);
}

/// Gives each entity a link with each SaP.
pub(super) fn link_all(world: &mut World) {
    let of_kind = |kind: NodeKind| -> Vec<NodeId> {
        world.nodes.iter().filter(|(_, f)| f.kind == kind).map(|(id, _)| *id).collect()
    };
    let (entities, saps) = (of_kind(NodeKind::Entity), of_kind(NodeKind::Sap));
    for entity in entities {
        for &sap in &saps {
            let link = LinkId(entity.0 * 1_000 + sap.0);
            world.links.insert((entity, sap), (link, Secret::new([1; 32])));
        }
    }
}

pub(super) fn address(id: u32) -> IpAddr {
    format!("10.70.0.{id}").parse().unwrap()
}

pub(super) fn endpoint(id: u32) -> SocketAddr {
    format!("192.0.2.{id}:6080").parse().unwrap()
}

/// Adds a rule from words such as `allow web <-> role=db tcp/80,udp via 11,12` and `until 1001`. Names are
/// bound to entities that are there, unknown ones to id 99.
pub(super) fn add_rule(world: &mut World, id: u32, text: &str) {
    let rule = rule(world, text);
    world.rules.insert(RuleId(id), rule);
}

/// The rule that [`add_rule`] adds.
pub(super) fn rule(world: &World, text: &str) -> RuleFacts {
    let mut words = text.split(' ');
    let mut next = || words.next().unwrap();
    let action = if next() == "allow" { Action::Allow } else { Action::Deny };
    let from = bind(world, next());
    let both = next() == "<->";
    let to = bind(world, next());
    let mut rule = RuleFacts {
        overlay: O,
        action,
        from,
        to,
        services: vec![],
        both,
        path: None,
        not_after: None,
        is_audit: false,
        name: None,
    };
    while let Some(word) = words.next() {
        match word {
            "direct" => rule.path = Some(PathHops::Direct),
            "via" => {
                let saps = words.next().unwrap().split(',').map(|id| NodeId(id.parse().unwrap()));
                rule.path = Some(PathHops::Via(saps.collect()));
            }
            "until" => {
                rule.not_after = Some(Timestamp(words.next().unwrap().parse().unwrap()));
            }
            "audit" => rule.is_audit = true,
            services => {
                rule.services = services.split(',').map(service).collect();
            }
        }
    }
    rule
}

pub(super) fn service(text: &str) -> Service {
    text.parse().unwrap()
}

fn bind(world: &World, text: &str) -> BoundSelector {
    match text.parse().unwrap() {
        Selector::Any => BoundSelector::Any,
        Selector::Labels(labels) => BoundSelector::Labels(labels),
        Selector::Namespace(name) => BoundSelector::Namespace(name),
        Selector::Group(name) => BoundSelector::Group(name),
        Selector::Service(name) => BoundSelector::Service(name),
        Selector::Cidr(block) => BoundSelector::Cidr(block),
        Selector::Name(name) => {
            let found = world.nodes.iter().find(|(_, facts)| facts.name == name);
            BoundSelector::Node(found.map_or(NodeId(99), |(id, _)| *id), name)
        }
    }
}

/// Keys that show what they were asked for.
#[derive(Default)]
pub(super) struct FakeKeys {
    /// Pairs that were rotated alone, with what is accepted.
    pub(super) rotated: BTreeMap<(NodeId, NodeId), Vec<Generation>>,
}

impl KeySource for FakeKeys {
    fn destination_keys(&self, _: OverlayId, to: NodeId) -> Vec<DestinationKey> {
        let secret = Secret::new([u8::try_from(to.0).unwrap(); 32]);
        vec![DestinationKey { version: KeyVersion::default(), secret }]
    }

    fn pair_generations(&self, _: OverlayId, from: NodeId, to: NodeId) -> Vec<Generation> {
        self.rotated.get(&(from, to)).cloned().unwrap_or_default()
    }

    fn rotated_sources(&self, _: OverlayId, to: NodeId) -> Vec<NodeId> {
        self.rotated.keys().filter(|(_, dest)| *dest == to).map(|(from, _)| *from).collect()
    }

    fn send_key(&self, _: OverlayId, from: NodeId, to: NodeId) -> AuthorizationKey {
        AuthorizationKey::from_bits(from.0 * 1_000 + to.0)
    }
}

/// A table read the way a node reads it, row by row.
pub(super) struct Reader<'a>(pub(super) &'a OverlayTable);

impl Reader<'_> {
    fn is_in(&self, set: u32, id: NodeId) -> bool {
        let members = &self.0.members;
        self.0.sets[set as usize].iter().any(|&index| members[index as usize].id == id)
    }

    fn id(&self, index: u32) -> NodeId {
        self.0.members[index as usize].id
    }

    /// Whether a flow may start.
    pub(super) fn opens(
        &self,
        from: NodeId,
        to: NodeId,
        protocol: u8,
        port: u16,
        at: Timestamp,
    ) -> bool {
        let says = |tier: Tier| {
            self.0.rules.iter().any(|row| {
                row.tier == tier
                    && row.not_after.is_none_or(|end| at < end)
                    && self.is_in(row.from, from)
                    && self.is_in(row.to, to)
                    && (row.services.is_empty()
                        || row
                            .services
                            .iter()
                            .any(|s| covers(s, protocol, port, self.0.cidr.network().is_ipv6())))
            })
        };
        let isolation = |id: NodeId| self.0.isolated.iter().find(|row| self.id(row.member) == id);
        let source = isolation(from).is_some_and(|row| row.egress.is_some());
        let target = isolation(to).is_some_and(|row| row.ingress.is_some());
        let passes_sides = (!source || says(Tier::Egress))
            && (!target || says(Tier::Ingress))
            && (source || target || self.0.unspoken_passes);
        let members = self.members();
        from != to
            && members.contains(&from)
            && members.contains(&to)
            && !says(Tier::Deny)
            && (says(Tier::Allow) || passes_sides || says(Tier::AuditAllow))
    }

    /// The hops of the pair by the first row that speaks of it.
    pub(super) fn hops(&self, from: NodeId, to: NodeId) -> Option<PathHops> {
        let (low, high) = (from.min(to), from.max(to));
        self.0.paths.iter().find_map(|row| {
            let start = if self.is_in(row.from, low) && self.is_in(row.to, high) {
                low
            } else if self.is_in(row.from, high) && self.is_in(row.to, low) {
                high
            } else {
                return None;
            };
            let mut hops = row.hops.clone();
            if start != from
                && let PathHops::Via(chain) = &mut hops
            {
                chain.reverse();
            }
            Some(hops)
        })
    }

    pub(super) fn members(&self) -> BTreeSet<NodeId> {
        self.0.members.iter().map(|row| row.id).collect()
    }

    pub(super) fn targets(&self) -> BTreeSet<NodeId> {
        self.0.destination_keys.iter().map(|row| self.id(row.to)).collect()
    }

    pub(super) fn sends(&self) -> BTreeSet<NodeId> {
        self.0.send_keys.iter().map(|row| self.id(row.to)).collect()
    }

    /// Members whose endpoints are told.
    pub(super) fn reachable(&self) -> BTreeSet<NodeId> {
        let rows = self.0.members.iter().filter(|row| !row.endpoints.is_empty());
        rows.map(|row| row.id).collect()
    }
}

/// Whether a resolved service covers a packet.
pub(super) fn covers(service: &Service, protocol: u8, port: u16, is_ipv6: bool) -> bool {
    match service {
        Service::Protocol(p) => p.matches(protocol, is_ipv6),
        Service::Ports(p, range) => p.matches(protocol, is_ipv6) && range.contains(port),
        Service::Named(..) => panic!("a table never names ports"),
    }
}

/// Ids as a set.
pub(super) fn ids(ids: &[u32]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// A name.
pub(super) fn name(text: &str) -> EntityName {
    text.parse().unwrap()
}

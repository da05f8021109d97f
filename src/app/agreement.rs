//! Random worlds through the whole chain: what the evaluator allows is what real tables, snapshots and
//! hallway questions let through, from the sender's TUN to the receiver's, and nothing else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use crate::agent::snapshot;
use crate::api::table::{DestinationKey as KeyRow, NodeTable};
use crate::forward::{FlowTable, Now, Snapshot, Verdict};
use crate::keys::DestinationKey;
use crate::policy::random::{ENTITIES, NOW, PROBES, V4, V6, world};
use crate::policy::{
    End, KeySource, Scene, World, compile, evaluate, path_between, read_inventory,
};
use crate::types::{
    ApiVersion, AuthorizationKey, Generation, Incarnation, KeyVersion, NodeId, NodeKind, OverlayId,
    Protocol, Revision, Secret, Serial, Service, Timestamp, TracerId,
};
use crate::wire::inner::{Facts, Family, Fragment, Upper};

/// Keys as the server derives them, from a secret for each destination.
struct Keys;

fn secret(to: NodeId) -> Secret {
    Secret::new([u8::try_from(to.0).unwrap(); 32])
}

impl KeySource for Keys {
    fn destination_keys(&self, _: OverlayId, to: NodeId) -> Vec<KeyRow> {
        vec![KeyRow { version: KeyVersion::default(), secret: secret(to) }]
    }

    fn pair_generations(&self, _: OverlayId, _: NodeId, _: NodeId) -> Vec<Generation> {
        Vec::new()
    }

    fn rotated_sources(&self, _: OverlayId, _: NodeId) -> Vec<NodeId> {
        Vec::new()
    }

    fn send_key(&self, _: OverlayId, from: NodeId, to: NodeId) -> AuthorizationKey {
        DestinationKey::new(&secret(to)).pair_key(from, Generation(0))
    }
}

/// Every node's snapshot, and who listens where.
struct Net {
    snapshots: BTreeMap<NodeId, Snapshot>,
    listeners: BTreeMap<SocketAddr, NodeId>,
}

impl Net {
    fn new(world: &World) -> Self {
        let snapshots = compile(world, &Keys, NOW).into_iter().map(|(id, body)| {
            let table = NodeTable {
                api_version: ApiVersion::V1,
                incarnation: Incarnation("aa".to_owned()),
                succeeds: Vec::new(),
                serial: Serial(1),
                revision: Revision(1),
                body,
            };
            (id, snapshot::build(&table).unwrap())
        });
        let listeners = world
            .nodes
            .iter()
            .flat_map(|(id, facts)| facts.endpoints.iter().map(move |endpoint| (*endpoint, *id)));
        Self { snapshots: snapshots.collect(), listeners: listeners.collect() }
    }

    /// Sends a packet from `from` and follows it, every node with an empty flow table.
    fn is_delivered(&self, world: &World, overlay: OverlayId, from: NodeId, facts: &Facts) -> bool {
        self.is_delivered_at(NOW, world, overlay, from, facts)
    }

    fn is_delivered_at(
        &self,
        wall: Timestamp,
        world: &World,
        overlay: OverlayId,
        from: NodeId,
        facts: &Facts,
    ) -> bool {
        let now = Now { monotonic_millis: 1, wall };
        let sender = &self.snapshots[&from];
        let index = sender.overlay_index(overlay).unwrap();
        let mut verdict = sender.egress(index, facts, &FlowTable::new(64), now);
        let mut at = from;
        for _ in 0..4 {
            let Verdict::Send { hop, key } = verdict else { return false };
            let Some(&outer) = world.nodes[&at].endpoints.first() else { return false };
            let Some(&next) = self.listeners.get(&hop) else { return false };
            let (snapshot, flows) = (&self.snapshots[&next], FlowTable::new(64));
            match world.nodes[&next].kind {
                NodeKind::Sap => {
                    verdict = snapshot.transit(outer, key.bits(), facts, &flows, now);
                    at = next;
                }
                NodeKind::Entity => {
                    let verdict = snapshot.ingress(outer, key.bits(), facts, &flows, now);
                    return matches!(verdict, Verdict::Deliver { .. });
                }
            }
        }
        panic!("a packet goes round in circles");
    }

    /// Nodes that let through a packet with the right key from any known place, though no rule does.
    fn leaks(&self, world: &World, from: NodeId, to: NodeId, facts: &Facts) -> Vec<NodeId> {
        let now = Now { monotonic_millis: 1, wall: NOW };
        let key = Keys.send_key(V4, from, to).bits();
        // One table will do: only what passes leaves an entry.
        let flows = FlowTable::new(64);
        let passes = |id: &NodeId, snapshot: &Snapshot| {
            self.listeners.keys().any(|outer| {
                let verdict = match world.nodes[id].kind {
                    NodeKind::Sap => snapshot.transit(*outer, key, facts, &flows, now),
                    NodeKind::Entity => snapshot.ingress(*outer, key, facts, &flows, now),
                };
                !matches!(verdict, Verdict::Drop(_))
            })
        };
        self.snapshots.iter().filter(|(id, s)| passes(id, s)).map(|(id, _)| *id).collect()
    }
}

/// The packet that opens a flow of a probe.
fn opening(
    world: &World,
    overlay: OverlayId,
    ends: (NodeId, NodeId),
    (protocol, port): (Protocol, u16),
) -> Facts {
    let destination = world.nodes[&ends.1].addresses[&overlay];
    let is_ipv6 = destination.is_ipv6();
    let family = if is_ipv6 { Family::V6 } else { Family::V4 };
    let upper = match protocol {
        Protocol::Tcp => Upper::Tcp { source_port: 40_000, destination_port: port, flags: 2 },
        Protocol::Udp | Protocol::Sctp => {
            Upper::Ports { source_port: 40_000, destination_port: port }
        }
        Protocol::Icmp => Upper::Echo { is_request: true, identifier: 7 },
        Protocol::Number(_) => Upper::Opaque,
    };
    Facts {
        family,
        source: world.nodes[&ends.0].addresses[&overlay],
        destination,
        protocol: protocol.number(is_ipv6),
        upper,
        fragment: Fragment::Whole,
        len: 60,
        ecn: 0,
        tracer: None,
    }
}

fn asked((protocol, port): (Protocol, u16)) -> Service {
    let text =
        if protocol.has_ports() { format!("{protocol}/{port}") } else { protocol.to_string() };
    text.parse().unwrap()
}

/// The scene's world with what it takes to send packets: places of its own for everybody, and a SaP.
fn equipped(scene: &Scene) -> (World, OverlayId) {
    let (world, overlay) = scene.world();
    let mut world = world.clone();
    let sap = NodeId(200);
    let mut of_sap = crate::policy::NodeFacts::clone(world.nodes.values().next().unwrap());
    of_sap.kind = NodeKind::Sap;
    of_sap.addresses.clear();
    of_sap.serves.insert(overlay);
    world.nodes.insert(sap, of_sap.into());
    for (id, facts) in &mut world.nodes {
        let number = u8::try_from(id.0).unwrap();
        Arc::make_mut(facts).endpoints = vec![SocketAddr::from(([192, 0, 2, number], 6080))];
    }
    let is_ipv6 = world
        .nodes
        .values()
        .any(|facts| facts.addresses.get(&overlay).is_some_and(|address| address.is_ipv6()));
    if is_ipv6 && let Some(facts) = world.overlays.get_mut(&overlay) {
        facts.cidr = "::/0".parse().unwrap();
    }
    (world, overlay)
}

#[test]
fn every_case_of_kubernetes_is_enforced_as_kubernetes_answers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/netpol");
    let (mut asked, mut opened) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let inventory = read_inventory("case", &text, NOW).unwrap();
        let scene = Scene::new(&inventory, &[], None, NOW).unwrap();
        let (world, overlay) = equipped(&scene);
        let net = Net::new(&world);
        for test in &inventory.tests {
            let ends = (scene.end(&test.from).unwrap(), scene.end(&test.to).unwrap());
            let (End::Member(from), End::Member(to)) = ends else { continue };
            let Some(Service::Ports(protocol, range)) = test.service else { continue };
            if from == to {
                continue;
            }
            let facts = opening(&world, overlay, (from, to), (protocol, range.first));
            let delivered = net.is_delivered(&world, overlay, from, &facts);
            let place = format!("{}: {test:?}", path.display());
            assert_eq!(delivered, test.expected, "{place}");
            (asked, opened) = (asked + 1, opened + u32::from(delivered));
        }
    }
    assert!(asked > 100 && opened > 30 && asked - opened > 30, "{opened} of {asked}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_the_evaluator_allows_is_what_the_hallways_let_through(world in world()) {
        let net = Net::new(&world);
        for overlay in [V4, V6] {
            let members: Vec<NodeId> = (1..=ENTITIES)
                .map(NodeId)
                .filter(|id| world.nodes[id].addresses.contains_key(&overlay))
                .collect();
            let pairs = members.iter().flat_map(|a| members.iter().map(move |b| (*a, *b)));
            for (from, to) in pairs.filter(|(from, to)| from != to) {
                let reachable = !world.nodes[&from].endpoints.is_empty()
                    && !world.nodes[&to].endpoints.is_empty()
                    && !path_between(&world, overlay, from, to, NOW).is_empty();
                // Nodes end rules by themselves, by the tables of before.
                for at in [Timestamp(101), Timestamp(200)] {
                    for probe in [PROBES[0], PROBES[4]] {
                        let allowed = evaluate(&world, overlay, from, to, &asked(probe), at).is_allow();
                        let facts = opening(&world, overlay, (from, to), probe);
                        let delivered = net.is_delivered_at(at, &world, overlay, from, &facts);
                        prop_assert_eq!(
                            delivered, allowed && reachable,
                            "{} -> {} {:?} in {} at {}", from, to, probe, overlay, at.0
                        );
                    }
                }
                for probe in PROBES {
                    let service = asked(probe);
                    let decision = evaluate(&world, overlay, from, to, &service, NOW);
                    let is_allowed = decision.is_allow();
                    let facts = opening(&world, overlay, (from, to), probe);

                    let delivered = net.is_delivered(&world, overlay, from, &facts);

                    prop_assert_eq!(
                        delivered, is_allowed && reachable,
                        "{} -> {} {} in {}: {:?}", from, to, service, overlay, decision
                    );
                    let tracer = Facts { tracer: Some(TracerId(1)), ..facts };
                    let traced = net.is_delivered(&world, overlay, from, &tracer);
                    prop_assert_eq!(traced, delivered, "a tracer: {} -> {} {}", from, to, service);
                    if !is_allowed {
                        let leaks = net.leaks(&world, from, to, &facts);
                        prop_assert!(leaks.is_empty(), "{:?} pass {} -> {} {}", leaks, from, to, service);
                    }
                }
            }
        }
    }
}

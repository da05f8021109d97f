//! A town of any size: apps of 50 entities each, most rules between apps, some about single entities.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

use ovmesh::api::admin::Semantics;
use ovmesh::api::table::Action;
use ovmesh::policy::{BoundSelector, Drain, NodeFacts, OverlayFacts, RuleFacts, World};
use ovmesh::types::{
    EntityName, Label, LinkId, Name, NodeId, NodeKind, OverlayId, Prefix, RuleId, Secret, Service,
};

/// The overlay of the town; its first in a database, too.
pub(crate) const OVERLAY: OverlayId = OverlayId(1);
/// SaPs come behind all entities.
pub(crate) const SAPS: u32 = 2;
/// Entities of one app, which carry one label and are one group.
const APP: u32 = 50;
/// Ordered pairs of apps that may talk.
const APP_PAIRS: u32 = 380;

/// How large a town is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) entities: u32,
    pub(crate) rules: u32,
}

impl Size {
    /// Apps, each of which is a group of entities.
    pub(crate) fn groups(self) -> u32 {
        self.entities / APP
    }

    fn app_pairs(self) -> u32 {
        APP_PAIRS.min(self.rules / 2).min(self.groups() * 2)
    }
}

/// Whom a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    App(u32),
    Entity(u32),
}

impl Side {
    fn members(self) -> std::ops::RangeInclusive<u32> {
        match self {
            Self::App(app) => app * APP + 1..=(app + 1) * APP,
            Self::Entity(id) => id..=id,
        }
    }

    /// As a selector.
    pub(crate) fn selector(self) -> BoundSelector {
        match self {
            Self::App(app) => BoundSelector::Labels(label(app)),
            Self::Entity(id) => BoundSelector::Node(NodeId(id), name(id)),
        }
    }
}

/// One rule in short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) action: Action,
    pub(crate) from: Side,
    pub(crate) to: Side,
    /// TCP; none for everything.
    pub(crate) port: Option<u16>,
}

impl Line {
    /// As services of a rule.
    pub(crate) fn services(&self) -> Vec<Service> {
        self.port.iter().map(|port| format!("tcp/{port}").parse().expect("a service")).collect()
    }
}

/// All rules: first each pair of apps, then entities with apps and with each other, denials of a port,
/// and further ports of pairs of apps.
pub(crate) fn lines(size: Size) -> Vec<Line> {
    let groups = size.groups();
    let pair = |number: u32| {
        let from = number % groups;
        (Side::App(from), Side::App((from + 1 + number / groups * 7 + number % 3) % groups))
    };
    let line = |number: u32| {
        let pairs = size.app_pairs();
        let allow = |from, to, port| Line { action: Action::Allow, from, to, port };
        let entity = number * 37 % size.entities + 1;
        let port = u16::try_from(1_000 + number).ok();
        if number < pairs {
            let (from, to) = pair(number);
            return allow(from, to, Some(443));
        }
        match number % 20 {
            0 => allow(Side::Entity(entity), Side::App(number * 11 % groups), port),
            1 => allow(Side::Entity(entity), Side::Entity(number * 53 % size.entities + 1), port),
            2 => {
                let (from, to) = pair(number % pairs);
                Line { action: Action::Deny, from, to, port }
            }
            _ => {
                let (from, to) = pair(number % pairs);
                allow(from, to, port)
            }
        }
    };
    (0..size.rules).map(line).collect()
}

/// How many ordered pairs some rule lets talk.
pub(crate) fn allowed_pairs(lines: &[Line]) -> usize {
    let mut pairs: HashSet<(u32, u32)> = HashSet::new();
    let allows = lines.iter().filter(|line| line.action == Action::Allow);
    let ends: HashSet<(Side, Side)> = allows.map(|line| (line.from, line.to)).collect();
    let mut ends: Vec<_> = ends.into_iter().collect();
    ends.sort_by_key(|(from, to)| (*from.members().start(), *to.members().start()));
    for (from, to) in ends {
        for a in from.members() {
            pairs.extend(to.members().filter(|b| *b != a).map(|b| (a, b)));
        }
    }
    pairs.len()
}

pub(crate) fn label(app: u32) -> BTreeSet<Label> {
    BTreeSet::from([Label { key: "app".to_owned(), value: format!("a{app}") }])
}

pub(crate) fn app_of(entity: u32) -> u32 {
    (entity - 1) / APP
}

pub(crate) fn name(id: u32) -> EntityName {
    format!("e{id}").parse().expect("a name")
}

/// The address of an entity in `cidr`, a /16.
pub(crate) fn address(cidr: Prefix, id: u32) -> IpAddr {
    let IpAddr::V4(base) = cidr.network() else { unreachable!("an IPv4 overlay") };
    IpAddr::V4((u32::from(base) + id + 10).into())
}

pub(crate) fn endpoint(id: u32) -> SocketAddr {
    let [_, _, high, low] = id.to_be_bytes();
    SocketAddr::from(([10, 1, high, low], 6080))
}

/// The town as the server would load it.
pub(crate) fn world(size: Size, lines: &[Line]) -> World {
    let cidr: Prefix = "100.70.0.0/16".parse().expect("a range");
    let mut world = World::default();
    let overlay = OverlayFacts {
        name: Name::default(),
        cidr,
        semantics: Semantics::DefaultDeny,
        silent: false,
        is_audit: false,
    };
    world.overlays.insert(OVERLAY, overlay);
    for id in 1..=size.entities + SAPS {
        let is_sap = id > size.entities;
        let facts = NodeFacts {
            kind: if is_sap { NodeKind::Sap } else { NodeKind::Entity },
            name: name(id),
            labels: if is_sap { BTreeSet::new() } else { label(app_of(id)) },
            ports: BTreeMap::new(),
            endpoints: vec![endpoint(id)],
            addresses: if is_sap {
                BTreeMap::new()
            } else {
                BTreeMap::from([(OVERLAY, address(cidr, id))])
            },
            serves: is_sap.then_some(OVERLAY).into_iter().collect(),
            is_quarantined: false,
            round_trips: BTreeMap::new(),
            drain: Drain::No,
        };
        world.nodes.insert(NodeId(id), facts);
        for sap in (size.entities + 1..=size.entities + SAPS).filter(|_| !is_sap) {
            let link = (LinkId(id * SAPS + sap), Secret::new([1; 32]));
            world.links.insert((NodeId(id), NodeId(sap)), link);
        }
    }
    for (number, line) in (1..).zip(lines) {
        let rule = RuleFacts {
            overlay: OVERLAY,
            action: line.action,
            from: line.from.selector(),
            to: line.to.selector(),
            services: line.services(),
            both: false,
            path: None,
            not_after: None,
            is_audit: false,
            name: None,
        };
        world.rules.insert(RuleId(number), rule);
    }
    world
}

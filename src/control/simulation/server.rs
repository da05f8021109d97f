//! The server: the real decisions of `publish`, `rotation`, `keyset` and `enforce`, with a database that is
//! a value. A kill leaves the database alone, at any point between a commit and what follows it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::super::driver::millis;
use super::super::enforce::{self, Touched};
use super::super::keyset::{Keys, RingId};
use super::super::live::{Live, NodeState};
use super::super::publish::{self, Hold, Published};
use super::super::rotation;
use super::super::store::keys::RingRow;
use super::packet::SERVICE;
use crate::api::table::{Action, NodeTable, TableBody};
use crate::keys::rotation::{Ring, Step};
use crate::policy::{Blueprint, BoundSelector, NodeFacts, OverlayFacts, RuleFacts, World};
use crate::types::{
    ApiVersion, Epoch, Incarnation, KeyVersion, LinkId, Name, NodeId, NodeKind, OverlayId, RuleId,
    Secret, Serial, Timestamp,
};

/// The only overlay.
pub(super) const OVERLAY: OverlayId = OverlayId(1);

/// How long old keys are accepted after their last sender has the new ones: the least that can be configured.
pub(super) const GRACE_MILLIS: u64 = crate::keys::rotation::GRACE_MILLIS_MIN;

/// The server's only life.
pub(super) const LIFE: &str = "aa";

/// What survives a kill.
#[derive(Clone, Debug, Default)]
struct Database {
    world: World,
    epochs: BTreeMap<(OverlayId, Epoch), (Secret, Timestamp)>,
    rings: BTreeMap<RingId, RingRow>,
    serials: BTreeMap<NodeId, (Serial, Secret)>,
    acknowledged: BTreeMap<NodeId, Serial>,
}

/// A change that took a right, until it is enforced.
#[derive(Debug)]
pub(super) struct Removal {
    published: Published,
    touched: Touched,
    pub(super) pair: (NodeId, NodeId),
}

/// An old key that nobody stamps any more.
#[derive(Debug)]
struct Retired {
    since_millis: u64,
    until: Timestamp,
    /// The tables that say so.
    serials: BTreeMap<NodeId, Serial>,
}

#[derive(Debug)]
pub(super) struct Server {
    database: Database,
    live: Live,
    pub(super) is_up: bool,
    /// How far its wall clock is ahead, in milliseconds.
    pub(super) ahead_millis: u64,
    /// Tables that wait, and until when.
    held: Vec<(u64, Published, Published)>,
    /// Committed and not published: a kill came between.
    pub(super) dies_after_commit: bool,
    next_rule: u32,
    /// What each published table was compiled from: (node, serial) to revision.
    pub(super) made_of: BTreeMap<(NodeId, Serial), u64>,
    /// Whom hurried rotations did not wait for.
    pub(super) cut_off: BTreeSet<NodeId>,
    /// The newest of each ring.
    retired: BTreeMap<RingId, Retired>,
    /// A right that was given, and when, as long as nothing was published since.
    added: Option<((NodeId, NodeId), u64)>,
}

impl Server {
    /// With so many SaPs and entities.
    pub(super) fn new(saps: u32, entities: u32) -> Self {
        let mut database = Database::default();
        let overlay = OverlayFacts {
            name: Name::default(),
            cidr: "10.0.0.0/24".parse().expect("a prefix"),
            semantics: crate::api::admin::Semantics::DefaultDeny,
            silent: false,
            is_audit: false,
        };
        database.world.overlays.insert(OVERLAY, overlay);
        database.epochs.insert((OVERLAY, Epoch(1)), (Secret::new([1; 32]), Timestamp(0)));
        let mut server = Self {
            database,
            live: Live::default(),
            is_up: true,
            ahead_millis: 0,
            held: Vec::new(),
            dies_after_commit: false,
            next_rule: 1,
            made_of: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            retired: BTreeMap::new(),
            added: None,
        };
        for sap in (101..).take(saps as usize) {
            server.add(NodeId(sap), NodeKind::Sap, endpoint(sap, 0));
        }
        for entity in (1..).take(entities as usize) {
            server.add_entity(NodeId(entity), endpoint(entity, 0), 0);
        }
        server.publish(Hold::Nobody, 0);
        server
    }

    fn add(&mut self, id: NodeId, kind: NodeKind, endpoint: SocketAddr) {
        let world = &mut self.database.world;
        let is_entity = kind == NodeKind::Entity;
        let facts = NodeFacts {
            kind,
            name: format!("n{}", id.0).parse().expect("a name"),
            labels: BTreeSet::new(),
            ports: BTreeMap::new(),
            endpoints: vec![endpoint],
            addresses: is_entity.then(|| (OVERLAY, address(id))).into_iter().collect(),
            serves: (!is_entity).then_some(OVERLAY).into_iter().collect(),
            is_quarantined: false,
            round_trips: BTreeMap::new(),
            drain: crate::policy::Drain::No,
        };
        world.nodes.insert(id, facts.into());
        let of_kind = |kind| {
            let nodes = world.nodes.iter().filter(move |(_, facts)| facts.kind == kind);
            nodes.map(|(id, _)| *id).collect::<Vec<NodeId>>()
        };
        for entity in of_kind(NodeKind::Entity) {
            for sap in of_kind(NodeKind::Sap) {
                let link = (LinkId(entity.0 * 1_000 + sap.0), Secret::new([9; 32]));
                Arc::make_mut(&mut world.links).insert((entity, sap), link);
            }
        }
    }

    /// An entity joins.
    pub(super) fn join(&mut self, id: NodeId, endpoint: SocketAddr, now: u64) {
        self.add_entity(id, endpoint, now);
        self.commit_and_publish(Hold::Entities, now);
    }

    fn add_entity(&mut self, id: NodeId, endpoint: SocketAddr, now: u64) {
        self.add(id, NodeKind::Entity, endpoint);
        let newest = self.newest_epoch();
        let current = KeyVersion { epoch: newest, generation: crate::types::Generation(0) };
        let ring = Ring::steady(current, now);
        let (overlay, destination, rotated) = (OVERLAY, id, Timestamp(now / 1000));
        let row = RingRow { overlay, source: None, destination, ring, rotated };
        self.database.rings.insert((OVERLAY, None, id), row);
    }

    /// `from` may start flows to `to`.
    pub(super) fn allow(&mut self, from: NodeId, to: NodeId, now: u64) {
        self.forget_rules(from, to);
        self.put_rule(Action::Allow, from, to);
        if self.commit_and_publish(Hold::Sources([from].into()), now).is_some() {
            self.added = Some(((from, to), now));
        }
    }

    /// It may not any more: by a rule against it, or without the one for it.
    pub(super) fn revoke(
        &mut self,
        from: NodeId,
        to: NodeId,
        by_rule: bool,
        now: u64,
    ) -> Option<Removal> {
        if by_rule {
            self.put_rule(Action::Deny, from, to);
        } else {
            self.forget_rules(from, to);
            self.database.world.revision.0 += 1;
        }
        let published = self.commit_and_publish(Hold::Nobody, now)?;
        let (from_set, to_set) = ([from].into(), [to].into());
        let touched = Touched {
            overlay: OVERLAY,
            from: from_set,
            to: to_set,
            both: false,
            outside: BTreeSet::new(),
        };
        Some(Removal { published, touched, pair: (from, to) })
    }

    fn put_rule(&mut self, action: Action, from: NodeId, to: NodeId) {
        let bound =
            |id: NodeId| BoundSelector::Node(id, self.database.world.nodes[&id].name.clone());
        let rule = RuleFacts {
            overlay: OVERLAY,
            action,
            from: bound(from),
            to: bound(to),
            services: vec![format!("udp/{SERVICE}").parse().expect("a service")],
            both: false,
            path: None,
            not_after: None,
            is_audit: false,
            name: None,
        };
        self.database.world.rules.insert(RuleId(self.next_rule), rule.into());
        self.next_rule += 1;
        self.database.world.revision.0 += 1;
    }

    fn forget_rules(&mut self, from: NodeId, to: NodeId) {
        let is_it = |rule: &RuleFacts| {
            let is = |selector: &BoundSelector, id| matches!(selector, BoundSelector::Node(node, _) if *node == id);
            is(&rule.from, from) && is(&rule.to, to)
        };
        self.database.world.rules.retain(|_, rule| !is_it(rule));
    }

    /// Whether the server would say by now that it is enforced.
    pub(super) fn is_enforced(&self, removal: &Removal) -> bool {
        let touched = std::slice::from_ref(&removal.touched);
        self.is_up && enforce::look(&self.live, &removal.published, touched).0.enforced
    }

    /// A node says where it is.
    pub(super) fn report(&mut self, id: NodeId, endpoint: SocketAddr, now: u64) {
        let facts = self.database.world.nodes.get_mut(&id).expect("it joined");
        if facts.endpoints != [endpoint] {
            Arc::make_mut(facts).endpoints = vec![endpoint];
            self.commit_and_publish(Hold::Nobody, now);
        }
    }

    /// Rotates all keys of the overlay; in a hurry or not.
    pub(super) fn rotate_all(&mut self, hurry: Option<u64>, now: u64) {
        let next = Epoch(self.newest_epoch().0 + 1);
        let secret = Secret::new([u8::try_from(next.0 % 251).expect("a byte"); 32]);
        self.database.epochs.insert((OVERLAY, next), (secret, Timestamp(now / 1000)));
        let at = now + self.ahead_millis;
        let rows = rotation::started_overlay(&self.live.keys, OVERLAY, next, hurry, at);
        self.put(rows);
        self.commit_and_publish(Hold::Nobody, now);
    }

    /// Rotates the keys of a destination or of a pair.
    pub(super) fn rotate(
        &mut self,
        from: Option<NodeId>,
        to: NodeId,
        hurry: Option<u64>,
        now: u64,
    ) {
        let at = now + self.ahead_millis;
        let row = rotation::started(&self.live.keys, (OVERLAY, from, to), hurry, at);
        self.put(row);
        self.commit_and_publish(Hold::Nobody, now);
    }

    fn put(&mut self, rows: impl IntoIterator<Item = RingRow>) {
        let id = |row: &RingRow| (row.overlay, row.source, row.destination);
        self.database.rings.extend(rows.into_iter().map(|row| (id(&row), row)));
    }

    fn newest_epoch(&self) -> Epoch {
        self.database.epochs.keys().map(|(_, epoch)| *epoch).max().expect("there is one")
    }

    /// Shows tables that have waited for long enough. When the next ones will have.
    pub(super) fn release(&mut self, now: u64) -> Option<u64> {
        let due: Vec<_> = self
            .held
            .extract_if(.., |(until, first, _)| {
                *until <= now
                    || first.iter().all(|(id, serial)| self.live.has_acknowledged(*id, *serial))
            })
            .collect();
        for (_, _, later) in due {
            publish::release(&mut self.live, &later);
        }
        self.held.iter().map(|(until, ..)| *until).min()
    }

    /// What the clockwork does each time it looks.
    pub(super) fn drive(&mut self, now: u64) {
        let acknowledged = self.live.nodes.iter().map(|(id, node)| (*id, node.acknowledged));
        self.database.acknowledged = acknowledged.collect();
        let moved = rotation::moved(&self.live, now + self.ahead_millis, GRACE_MILLIS);
        if !moved.is_empty() {
            for (row, cut_off) in moved {
                self.cut_off.extend(cut_off);
                self.put([row]);
            }
            self.commit_and_publish(Hold::Nobody, now);
        }
    }

    fn commit_and_publish(&mut self, hold: Hold, now: u64) -> Option<Published> {
        if std::mem::take(&mut self.dies_after_commit) {
            self.kill();
            return None;
        }
        Some(self.publish(hold, now))
    }

    /// As `Server::publish`.
    fn publish(&mut self, hold: Hold, now: u64) -> Published {
        let at = Timestamp((now + self.ahead_millis) / 1000);
        let old = self.live.source.take().unwrap_or_default();
        let Database { world, epochs, rings, .. } = &self.database;
        let keys = Arc::new(Keys::new(epochs.clone(), rings.clone(), &old.keys));
        let source = Arc::new(old.next(Arc::new(world.clone()), keys, at));
        let touched = source.touched_since(&old);
        let compiled = source.compile(&touched, &touched);
        let changed = publish::changed(&self.live, &compiled);
        self.database.serials.extend(changed.clone());
        let published: Published = changed.iter().map(|(id, (serial, _))| (*id, *serial)).collect();
        let revision = self.database.world.revision.0;
        self.made_of.extend(published.iter().map(|(id, serial)| ((*id, *serial), revision)));
        let held = publish::held(source.blueprint.world(), &published, &hold);
        let live = &mut self.live;
        publish::take_over(live, &source, &old.keys, &touched, compiled, (&published, &held));
        let (later, first): (Published, Published) = published
            .iter()
            .map(|(id, serial)| (*id, *serial))
            .partition(|(id, _)| held.contains(id));
        if !later.is_empty() {
            self.held.push((now + millis(publish::HOLD), first, later));
        }
        self.note_retired();
        self.added = None;
        published
    }

    /// The right that others have to know of first at the moment.
    pub(super) fn added(&self, now: u64) -> impl Iterator<Item = (NodeId, NodeId)> {
        let is_waited_for = move |at: u64| now - at < millis(publish::HOLD);
        self.added.iter().filter(move |(_, at)| is_waited_for(*at)).map(|(pair, _)| *pair)
    }

    fn note_retired(&mut self) {
        let Self { database, live, retired, .. } = self;
        for (id, RingRow { ring, .. }) in &database.rings {
            let since_millis = ring.since_millis;
            let is_known = retired.get(id).is_some_and(|known| known.since_millis == since_millis);
            if ring.step != Step::Retiring || is_known {
                continue;
            }
            let serials = live.nodes.iter().map(|(id, node)| (*id, node.newest_serial())).collect();
            let until = Timestamp((since_millis + GRACE_MILLIS).div_ceil(1000));
            retired.insert(*id, Retired { since_millis, until, serials });
        }
    }

    /// Whether all keys of a pair but the one that is stamped now are over at a node that has this table, when
    /// it is so late there.
    pub(super) fn old_keys_are_over(
        &self,
        (from, to): (NodeId, NodeId),
        (node, serial): (NodeId, Serial),
        wall: Timestamp,
    ) -> bool {
        [None, Some(from)].into_iter().all(|source| {
            let id = (OVERLAY, source, to);
            let ring = self.database.rings.get(&id).map(|row| &row.ring);
            let retired = self.retired.get(&id);
            let is_over = |retired: &Retired| {
                retired.until <= wall && retired.serials.get(&node).is_some_and(|at| *at <= serial)
            };
            match ring.map(|ring| ring.step) {
                Some(Step::Adding | Step::Switching) => false,
                // Unless it died between committing this and publishing it.
                Some(Step::Retiring) => retired.is_some_and(|retired| {
                    ring.is_some_and(|ring| ring.since_millis == retired.since_millis)
                        && is_over(retired)
                }),
                Some(_) | None => retired.is_none_or(is_over),
            }
        })
    }

    pub(super) fn kill(&mut self) {
        self.is_up = false;
        self.live = Live::default();
        self.held.clear();
    }

    /// As `Server::open`.
    pub(super) fn start(&mut self, now: u64) {
        self.is_up = true;
        for (id, stored) in &self.database.serials {
            let mut state = NodeState::new();
            state.stored = Some(stored.clone());
            state.acknowledged = self.database.acknowledged.get(id).copied().unwrap_or(Serial(0));
            self.live.nodes.insert(*id, state);
        }
        self.publish(Hold::Nobody, now);
    }

    /// A node polls after `serial`, which it thereby acknowledges.
    pub(super) fn poll(&mut self, id: NodeId, after: Serial) {
        if let Some(state) = self.live.nodes.get_mut(&id) {
            state.acknowledge(after);
        }
    }

    /// What a node gets that polled after `serial`.
    pub(super) fn answer(&self, id: NodeId, after: Serial) -> Option<NodeTable> {
        let shown = self.live.nodes.get(&id)?.shown.as_ref();
        let table = shown.filter(|table| table.serial > after)?;
        let body = table.source.blueprint.table(&*table.source.keys, id)?;
        let (incarnation, serial) = (Incarnation(LIFE.to_owned()), table.serial);
        let (api_version, revision) = (ApiVersion::V1, table.revision);
        let succeeds = Vec::new();
        Some(NodeTable { api_version, incarnation, succeeds, serial, revision, body })
    }

    /// What the nodes' tables would be if they were compiled anew.
    pub(super) fn fresh(&self, now: u64) -> impl Fn(NodeId) -> Option<TableBody> + use<> {
        let (world, keys) = (Arc::new(self.database.world.clone()), self.keys());
        let blueprint = Blueprint::new(world, Timestamp((now + self.ahead_millis) / 1000));
        move |id| blueprint.table(&keys, id)
    }

    pub(super) fn revision(&self) -> u64 {
        self.database.world.revision.0
    }

    /// Destinations whose keys are being rotated.
    pub(super) fn rotating(&self) -> BTreeSet<NodeId> {
        let rows = self.database.rings.values().filter(|row| row.ring.step != Step::Steady);
        rows.map(|row| row.destination).collect()
    }

    /// The keys by the database, and so the one that a sender stamps once it has followed.
    pub(super) fn keys(&self) -> Keys {
        let Database { epochs, rings, .. } = &self.database;
        Keys::new(epochs.clone(), rings.clone(), &self.live.keys)
    }

    /// Where it thinks that a node is.
    pub(super) fn endpoint_of(&self, id: NodeId) -> Option<SocketAddr> {
        self.database.world.nodes.get(&id)?.endpoints.first().copied()
    }

    /// The newest table that it thinks a node has.
    pub(super) fn acknowledged(&self, id: NodeId) -> Serial {
        self.live.nodes.get(&id).map_or(Serial(0), |node| node.acknowledged)
    }

    /// The serial of a node's newest table.
    pub(super) fn newest_serial(&self, id: NodeId) -> Serial {
        self.live.nodes.get(&id).map_or(Serial(0), NodeState::newest_serial)
    }
}

/// The overlay address of an entity.
pub(super) fn address(id: NodeId) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(id.0).expect("few entities")).into()
}

/// An endpoint on the underlay; a node that roams gets one after the other.
pub(super) fn endpoint(id: u32, roamed: u16) -> SocketAddr {
    let host = u8::try_from(id).expect("few nodes");
    SocketAddr::new(Ipv4Addr::new(192, 0, 2, host).into(), 6080 + roamed)
}

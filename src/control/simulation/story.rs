//! A story: random events, and the time between them.

mod journey;
mod promises;
mod time;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::Totals;
use super::chance::Chance;
use super::node::Node;
use super::server::{Removal, Server, endpoint};
use crate::api::table::{NodeTable, OverlayTable};
use crate::types::{NodeId, Serial};
use time::Due;

/// Events of one story.
const EVENTS: u64 = 6;

/// How long it may take until all is quiet once all is healed: who is idle probes once in 5 s, and one whom a
/// SaP had lost must be heard of by two answers.
const QUIET_MILLIS: u64 = 20_000;

const SAPS: u32 = 2;
const ENTITIES: u32 = 3;
const ENTITIES_MAX: u32 = 4;

/// The port of each pair's flow that lives through the whole story, and of one in which the first packet
/// alone comes from its starter.
const LASTING: u16 = 7_000;
const POURED: u16 = 7_100;

/// How long pairs are watched after a mishap, and how long after anything else that happens to SaPs.
const MISHAP_MILLIS: u64 = 1_600;
const WATCH_MILLIS: u64 = 3_000;

type Pair = (NodeId, NodeId);

#[derive(Debug)]
pub(super) struct Story {
    chance: Chance,
    now: u64,
    /// What happens next, by time and in order.
    due: BTreeMap<(u64, u64), Due>,
    scheduled: u64,
    server: Server,
    /// Whether the server's clockwork is about to look.
    will_look: bool,
    /// Who waits for a table after this serial.
    waiting: BTreeMap<NodeId, Serial>,
    nodes: BTreeMap<NodeId, Node>,
    /// The naive model: who may start flows to whom, after each revision.
    allowed: Vec<BTreeSet<Pair>>,
    /// Rights that are gone, until the server says that this is enforced.
    going: Vec<Removal>,
    /// Rights of which it has said so.
    gone: BTreeSet<Pair>,
    /// The key that each pair stamped last, and those before.
    stamped: BTreeMap<Pair, u32>,
    old: BTreeSet<(Pair, u32)>,
    /// From whom nothing passes to whom.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// When legs were healed, and when nodes started, moved or got their first tables.
    healed: BTreeMap<Pair, u64>,
    came: BTreeMap<NodeId, u64>,
    /// When anybody last came, went, was cut or healed; when a clock last jumped.
    disturbed: u64,
    jumped: u64,
    /// Since when pairs that talk get no answers, though they should.
    lost_since: BTreeMap<(Pair, u16), u64>,
    /// Why the last packet that was lost was.
    last_loss: String,
    fresh_port: u16,
    roamed: u16,
    lines: Vec<String>,
    pub(super) totals: Totals,
}

impl Story {
    pub(super) fn new(seed: u64) -> Self {
        let now = 1_000;
        let ids = (101..).take(SAPS as usize).chain((1..).take(ENTITIES as usize));
        let nodes = ids.map(|id| (NodeId(id), Node::new(endpoint(id, 0), now)));
        Self {
            chance: Chance::new(seed),
            now,
            due: BTreeMap::new(),
            scheduled: 0,
            server: Server::new(SAPS, ENTITIES),
            will_look: false,
            waiting: BTreeMap::new(),
            nodes: nodes.collect(),
            allowed: vec![BTreeSet::new()],
            going: Vec::new(),
            gone: BTreeSet::new(),
            stamped: BTreeMap::new(),
            old: BTreeSet::new(),
            cut: BTreeSet::new(),
            healed: BTreeMap::new(),
            came: BTreeMap::new(),
            disturbed: 0,
            jumped: 0,
            lost_since: BTreeMap::new(),
            last_loss: String::new(),
            fresh_port: 10_000,
            roamed: 0,
            lines: Vec::new(),
            totals: Totals::default(),
        }
    }

    pub(super) fn told(&self) -> String {
        self.lines.join("\n")
    }

    pub(super) fn ending(&self) -> String {
        self.lines[self.lines.len().saturating_sub(25)..].join("\n")
    }

    /// The whole story; what does not hold, in words.
    pub(super) fn play(&mut self) -> Result<(), String> {
        for id in self.ids() {
            self.arrive(id);
        }
        self.change_policy();
        self.change_policy();
        self.pass(400)?;
        // Everybody is there from the start, and has doubted nobody yet.
        self.came.clear();
        if self.chance.is(25) {
            self.mishap()?;
        }
        for _ in 0..EVENTS {
            self.event()?;
            let time = self.chance.of(&[0, 20, 50, 150, 400, 1_000]);
            self.pass(time)?;
            self.send_some()?;
            self.use_old_keys()?;
            self.expect_over()?;
            self.impersonate()?;
        }
        self.heal();
        self.pass(QUIET_MILLIS)?;
        self.expect_quiet()?;
        self.send_all()?;
        if self.chance.is(25) {
            self.mishap()?;
        }
        Ok(())
    }

    fn tell(&mut self, line: String) {
        self.lines.push(format!("{:>7} ms  {line}", self.now));
    }

    fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    fn entities(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|id| !is_sap(*id)).collect()
    }

    fn saps(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied().filter(|id| is_sap(*id))
    }

    fn newest_policy(&self) -> &BTreeSet<Pair> {
        self.allowed.last().expect("there is one")
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("it is one of them")
    }

    /// Who is there and listens at `endpoint`.
    fn node_at(&self, endpoint: SocketAddr) -> Option<NodeId> {
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, node)| node.is_up && node.endpoint == endpoint).map(|(id, _)| *id)
    }

    fn any_pair(&mut self) -> Pair {
        let entities = self.entities();
        let from = self.chance.of(&entities);
        let others: Vec<NodeId> = entities.into_iter().filter(|id| *id != from).collect();
        (from, self.chance.of(&others))
    }

    fn any_node(&mut self) -> NodeId {
        let all = self.ids();
        self.chance.of(&all)
    }

    fn any_leg(&mut self) -> Pair {
        let (entities, saps) = (self.entities(), self.saps().collect::<Vec<_>>());
        (self.chance.of(&entities), self.chance.of(&saps))
    }

    fn event(&mut self) -> Result<(), String> {
        match self.chance.below(100) {
            0..4 => self.join(),
            4..26 => self.change_policy(),
            26..44 => self.rotate(),
            44..56 => self.kill_or_start(),
            56..66 => self.lose_or_find_server(),
            66..72 => self.roam(),
            72..78 => self.jump(),
            78..85 => self.kill_or_start_server(),
            85..92 => self.cut_or_heal(),
            92..94 => self.watch(WATCH_MILLIS, false)?,
            94..97 => self.blip()?,
            _ => {
                self.tell("the server will die after its next commit".to_owned());
                self.server.dies_after_commit = self.server.is_up;
            }
        }
        // The model has one entry for each revision.
        assert_eq!(self.allowed.len() as u64, self.server.revision() + 1);
        Ok(())
    }

    fn join(&mut self) {
        let number = u32::try_from(self.entities().len()).expect("few") + 1;
        if self.server.is_up && number <= ENTITIES_MAX {
            let (id, at) = (NodeId(number), endpoint(number, 0));
            self.tell(format!("{id} joins"));
            self.nodes.insert(id, Node::new(at, self.now));
            self.server.join(id, at, self.now);
            self.came.insert(id, self.now);
            self.serve();
            self.arrive(id);
        }
    }

    fn change_policy(&mut self) {
        if !self.server.is_up {
            return;
        }
        let pair = self.any_pair();
        let (from, to) = pair;
        let mut next = self.newest_policy().clone();
        if next.remove(&pair) {
            let by_rule = self.chance.is(50);
            let how = if by_rule { ", says a rule" } else { "" };
            self.tell(format!("{from} may not talk to {to} any more{how}"));
            self.allowed.push(next);
            self.going.extend(self.server.revoke(from, to, by_rule, self.now));
        } else {
            self.tell(format!("{from} may talk to {to}"));
            next.insert(pair);
            self.allowed.push(next);
            self.going.retain(|removal| removal.pair != pair);
            self.gone.remove(&pair);
            self.server.allow(from, to, self.now);
        }
        self.serve();
    }

    fn rotate(&mut self) {
        if !self.server.is_up {
            return;
        }
        self.totals.rotations += 1;
        let hurry = self.chance.is(15).then_some(600);
        let (from, to) = self.any_pair();
        match self.chance.below(3) {
            0 => {
                self.tell(format!("all keys rotate, in a hurry: {hurry:?}"));
                self.server.rotate_all(hurry, self.now);
            }
            1 => {
                self.tell(format!("the keys of {to} rotate, in a hurry: {hurry:?}"));
                self.server.rotate(None, to, hurry, self.now);
            }
            _ => {
                self.tell(format!("the key from {from} to {to} rotates, in a hurry: {hurry:?}"));
                self.server.rotate(Some(from), to, hurry, self.now);
            }
        }
        self.serve();
    }

    fn kill_or_start(&mut self) {
        let id = self.any_node();
        if self.nodes[&id].is_up { self.kill(id) } else { self.start(id) }
    }

    fn kill(&mut self, id: NodeId) {
        self.tell(format!("{id} is killed"));
        self.disturb();
        self.node(id).kill();
        self.waiting.remove(&id);
        self.totals.kills += 1;
    }

    fn start(&mut self, id: NodeId) {
        self.disturb();
        self.came.insert(id, self.now);
        let now = self.now;
        let node = self.node(id);
        node.start(now);
        let serial = node.serial();
        self.tell(format!("{id} starts with serial {serial}"));
        self.arrive(id);
    }

    /// Somebody came or went: what is lost from here on has another reason.
    fn disturb(&mut self) {
        self.disturbed = self.now;
        self.lost_since.clear();
    }

    /// One of the SaPs is killed, or cut off from an entity, while all else is well.
    fn mishap(&mut self) -> Result<(), String> {
        self.pour()?;
        let (entity, sap) = self.any_leg();
        if self.chance.is(30) {
            self.kill(sap);
        } else {
            self.cut(entity, sap);
        }
        self.watch(MISHAP_MILLIS, true)
    }

    /// An entity is cut off from one SaP or from both for a while; then it has one of them again.
    fn blip(&mut self) -> Result<(), String> {
        let (entity, sap) = self.any_leg();
        let saps: Vec<NodeId> = if self.chance.is(50) { vec![sap] } else { self.saps().collect() };
        for sap in saps {
            self.disturb();
            self.tell(format!("{entity} and {sap} do not reach each other"));
            self.cut.extend([(entity, sap), (sap, entity)]);
        }
        self.totals.cuts += 1;
        let time = self.chance.of(&[400, 500, 1_500]);
        self.watch(time, false)?;
        self.heal_leg((entity, sap));
        self.watch(WATCH_MILLIS, false)
    }

    fn heal_leg(&mut self, leg @ (entity, sap): Pair) {
        self.tell(format!("{entity} and {sap} reach each other again"));
        self.disturb();
        self.cut.retain(|(from, to)| (*from, *to) != leg && (*to, *from) != leg);
        self.healed.insert(leg, self.now);
    }

    fn cut_or_heal(&mut self) {
        let leg = self.any_leg();
        let (entity, sap) = leg;
        if self.has_leg(entity, sap) || !self.nodes[&entity].is_up || !self.nodes[&sap].is_up {
            self.cut(entity, sap);
        } else {
            self.heal_leg(leg);
        }
    }

    fn cut(&mut self, entity: NodeId, sap: NodeId) {
        self.disturb();
        self.totals.cuts += 1;
        let cut: &[Pair] = match self.chance.below(4) {
            0 => &[(entity, sap)],
            1 => &[(sap, entity)],
            _ => &[(entity, sap), (sap, entity)],
        };
        self.cut.extend(cut);
        for (from, to) in cut {
            self.tell(format!("nothing passes from {from} to {to}"));
        }
    }

    fn lose_or_find_server(&mut self) {
        let id = self.any_node();
        let is_connected = !self.nodes[&id].is_connected;
        self.node(id).connect(is_connected);
        self.waiting.remove(&id);
        if is_connected {
            self.tell(format!("{id} finds the server"));
            self.call(id);
        } else {
            self.tell(format!("{id} loses the server"));
        }
    }

    fn roam(&mut self) {
        let entities = self.entities();
        let id = self.chance.of(&entities);
        self.roamed += 1;
        let to = endpoint(id.0, self.roamed);
        self.tell(format!("{id} is at {to} now"));
        self.move_to(id, to);
    }

    fn jump(&mut self) {
        self.jumped = self.now;
        if self.chance.is(25) {
            let millis = self.chance.of(&[1_000, 60_000, 3_600_000]);
            self.server.ahead_millis += millis;
            return self.tell(format!("the server's clock jumps {millis} ms ahead"));
        }
        let id = self.any_node();
        let seconds = self.chance.of(&[-3_600, -30, 0, 2, 30, 3_600]);
        self.node(id).ahead_seconds = seconds;
        self.tell(format!("the clock of {id} is {seconds} s ahead"));
    }

    fn kill_or_start_server(&mut self) {
        if self.server.is_up {
            self.tell("the server is killed".to_owned());
            self.server.kill();
            self.totals.kills += 1;
        } else {
            self.start_server();
        }
        self.serve();
    }

    fn start_server(&mut self) {
        self.tell("the server starts".to_owned());
        self.server.start(self.now);
        for id in self.ids() {
            self.call(id);
        }
        self.serve();
    }

    fn heal(&mut self) {
        self.tell("all is healed".to_owned());
        self.disturb();
        self.server.dies_after_commit = false;
        for (one, other) in std::mem::take(&mut self.cut) {
            self.healed.insert(if is_sap(other) { (one, other) } else { (other, one) }, self.now);
        }
        if !self.server.is_up {
            self.start_server();
        }
        for id in self.ids() {
            if !self.nodes[&id].is_connected {
                self.node(id).connect(true);
                self.call(id);
            }
            if !self.nodes[&id].is_up {
                self.start(id);
            }
        }
    }
}

fn is_sap(id: NodeId) -> bool {
    id.0 > 100
}

fn lab(table: &NodeTable) -> Option<&OverlayTable> {
    table.body.overlays.first()
}

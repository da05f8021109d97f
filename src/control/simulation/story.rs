//! A story: random events, and the time between them.

mod journey;
mod promises;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::Totals;
use super::chance::Chance;
use super::node::{Message, Node};
use super::server::{Removal, Server, endpoint};
use crate::api::table::{NodeTable, OverlayTable};
use crate::types::NodeId;

use promises::CALM_MILLIS;

/// Events of one story.
const EVENTS: u64 = 60;

/// How long time stands still between two looks at everybody.
const TICK_MILLIS: u64 = 10;

/// Between two looks of the server's clockwork.
const LOOK_MILLIS: u64 = 100;

/// Between two packets of a pair that talks all the time.
const STREAM_MILLIS: u64 = 200;

/// How long it may take until all is quiet once all is healed.
const QUIET_MILLIS: u64 = 15_000;

const ENTITIES_MAX: u32 = 5;

/// The port of each pair's flow that lives through the whole story.
const LASTING: u16 = 7_000;

/// With two SaPs: how often something happens to one of them while all else is well with them.
const MISHAP_PERCENT: u64 = 4;

type Pair = (NodeId, NodeId);

#[derive(Debug)]
pub(super) struct Story {
    chance: Chance,
    now: u64,
    server: Server,
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
    /// Control datagrams that arrive with the next tick.
    datagrams: Vec<Datagram>,
    /// Entities and SaPs between which nothing passes, and when such pairs were healed.
    cut: BTreeSet<(NodeId, NodeId)>,
    healed: BTreeMap<(NodeId, NodeId), u64>,
    /// When nodes started, or got their first tables.
    came: BTreeMap<NodeId, u64>,
    /// When anybody last came, went, was cut or healed.
    disturbed: u64,
    /// Since when pairs that talk get nothing through, though they should.
    lost_since: BTreeMap<Pair, u64>,
    /// Why the last packet that was lost was.
    last_loss: String,
    fresh_port: u16,
    roamed: u16,
    lines: Vec<String>,
    pub(super) totals: Totals,
}

#[derive(Debug)]
struct Datagram {
    by: NodeId,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl Story {
    /// With one SaP nothing excuses a lost packet; with two, there is somewhere to go.
    pub(super) fn new(seed: u64) -> Self {
        let saps = if seed.is_multiple_of(9) { 2 } else { 1 };
        let (chance, now) = (Chance::new(seed), 1_000);
        let sap = |number| (NodeId(101 + number), Node::new(endpoint(101 + number, 0), now));
        Self {
            server: Server::new(saps),
            chance,
            now,
            nodes: (0..saps).map(sap).collect(),
            allowed: vec![BTreeSet::new()],
            going: Vec::new(),
            gone: BTreeSet::new(),
            stamped: BTreeMap::new(),
            old: BTreeSet::new(),
            datagrams: Vec::new(),
            cut: BTreeSet::new(),
            healed: BTreeMap::new(),
            came: BTreeMap::new(),
            disturbed: now,
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
        for _ in 0..3 {
            self.join();
        }
        for _ in 0..EVENTS {
            self.event();
            self.look()?;
            if self.saps().count() > 1 && self.chance.is(MISHAP_PERCENT) {
                self.mishap()?;
            }
            let time = self.chance.of(&[0, 20, 50, 150, 400, 1_500]);
            self.pass(time)?;
            self.send_some()?;
            self.use_old_keys()?;
            self.expect_over()?;
        }
        self.heal();
        self.pass(QUIET_MILLIS)?;
        self.look()?;
        self.expect_quiet()?;
        self.send_all()
    }

    fn tell(&mut self, line: String) {
        self.lines.push(format!("{:>7} ms  {line}", self.now));
    }

    fn entities(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|id| id.0 < 100).collect()
    }

    fn saps(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied().filter(|id| id.0 > 100)
    }

    fn newest_policy(&self) -> &BTreeSet<Pair> {
        self.allowed.last().expect("there is one")
    }

    /// Who is there and listens at `endpoint`.
    fn node_at(&self, endpoint: SocketAddr) -> Option<NodeId> {
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, node)| node.is_up && node.endpoint == endpoint).map(|(id, _)| *id)
    }

    fn is_cut(&self, one: NodeId, other: NodeId) -> bool {
        self.cut.contains(&(one.min(other), one.max(other)))
    }

    fn any_pair(&mut self) -> Pair {
        let entities = self.entities();
        let from = self.chance.of(&entities);
        let others: Vec<NodeId> = entities.into_iter().filter(|id| *id != from).collect();
        (from, self.chance.of(&others))
    }

    fn any_node(&mut self) -> NodeId {
        let all: Vec<NodeId> = self.nodes.keys().copied().collect();
        self.chance.of(&all)
    }

    fn event(&mut self) {
        match self.chance.below(100) {
            0..4 => self.join(),
            4..26 => self.change_policy(),
            26..44 => self.rotate(),
            44..58 => self.kill_or_start(),
            58..72 => self.cut_or_join(),
            72..78 => self.roam(),
            78..86 => self.jump(),
            86..95 => self.kill_or_start_server(),
            _ => {
                self.tell("the server will die after its next commit".to_owned());
                self.server.dies_after_commit = self.server.is_up;
            }
        }
        self.follow_policy();
    }

    fn join(&mut self) {
        let number = u32::try_from(self.entities().len()).expect("few") + 1;
        if self.server.is_up && number <= ENTITIES_MAX {
            let (id, at) = (NodeId(number), endpoint(number, 0));
            self.tell(format!("{id} joins"));
            self.nodes.insert(id, Node::new(at, self.now));
            self.server.join(id, at, self.now);
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
            self.tell(format!("{from} may not talk to {to} any more"));
            self.allowed.push(next);
            self.going.extend(self.server.revoke(from, to, self.now));
        } else {
            self.tell(format!("{from} may talk to {to}"));
            next.insert(pair);
            self.allowed.push(next);
            self.going.retain(|removal| removal.pair != pair);
            self.gone.remove(&pair);
            self.server.allow(from, to, self.now);
        }
    }

    /// The model has one entry for each revision.
    fn follow_policy(&self) {
        assert_eq!(self.allowed.len() as u64, self.server.revision() + 1);
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
    }

    fn kill_or_start(&mut self) {
        let id = self.any_node();
        self.disturb();
        let node = self.nodes.get_mut(&id).expect("it is one of them");
        if node.is_up {
            node.kill();
            self.totals.kills += 1;
            self.tell(format!("{id} is killed"));
        } else {
            node.start(self.now);
            let serial = node.serial();
            self.came.insert(id, self.now);
            self.tell(format!("{id} starts with serial {serial}"));
        }
    }

    /// Somebody came or went: what is lost from here on has another reason.
    fn disturb(&mut self) {
        self.disturbed = self.now;
        self.lost_since.clear();
    }

    /// All SaPs are there, long enough for everybody to know; then one is killed, or cut off from an entity.
    fn mishap(&mut self) -> Result<(), String> {
        self.tell("SaPs are there, and reach everybody".to_owned());
        self.heal_legs();
        self.pass(CALM_MILLIS + 500)?;
        let (entities, saps) = (self.entities(), self.saps().collect::<Vec<_>>());
        let (entity, sap) = (self.chance.of(&entities), self.chance.of(&saps));
        self.disturb();
        if self.chance.is(30) {
            self.nodes.get_mut(&sap).expect("it is one of them").kill();
            self.totals.kills += 1;
            self.tell(format!("{sap} is killed"));
        } else {
            self.cut.insert((entity, sap));
            self.totals.cuts += 1;
            self.tell(format!("{entity} and {sap} do not reach each other"));
        }
        self.pass(2_000)
    }

    /// Starts SaPs that are down, and joins what is cut.
    fn heal_legs(&mut self) {
        self.disturb();
        for leg in std::mem::take(&mut self.cut) {
            self.healed.insert(leg, self.now);
        }
        for (id, node) in self.nodes.iter_mut().filter(|(id, node)| id.0 > 100 && !node.is_up) {
            node.start(self.now);
            self.came.insert(*id, self.now);
        }
    }

    fn cut_or_join(&mut self) {
        let id = self.any_node();
        let node = self.nodes.get_mut(&id).expect("it is one of them");
        if node.is_connected {
            node.cut();
            self.tell(format!("{id} loses the server"));
        } else {
            node.is_connected = true;
            self.tell(format!("{id} finds the server"));
        }
    }

    fn roam(&mut self) {
        let entities = self.entities();
        let id = self.chance.of(&entities);
        self.roamed += 1;
        let to = endpoint(id.0, self.roamed);
        self.nodes.get_mut(&id).expect("it is one of them").endpoint = to;
        self.tell(format!("{id} is at {to} now"));
    }

    fn jump(&mut self) {
        if self.chance.is(25) {
            let millis = self.chance.of(&[1_000, 60_000, 3_600_000]);
            self.server.ahead_millis += millis;
            return self.tell(format!("the server's clock jumps {millis} ms ahead"));
        }
        let id = self.any_node();
        let seconds = self.chance.of(&[-3_600, -30, 0, 2, 30, 3_600]);
        self.nodes.get_mut(&id).expect("it is one of them").ahead_seconds = seconds;
        self.tell(format!("the clock of {id} is {seconds} s ahead"));
    }

    fn kill_or_start_server(&mut self) {
        if self.server.is_up {
            self.tell("the server is killed".to_owned());
            self.server.kill();
            self.totals.kills += 1;
        } else {
            self.tell("the server starts".to_owned());
            self.server.start(self.now);
        }
    }

    fn heal(&mut self) {
        self.tell("all is healed".to_owned());
        self.server.dies_after_commit = false;
        self.heal_legs();
        if !self.server.is_up {
            self.server.start(self.now);
        }
        for (id, node) in &mut self.nodes {
            node.is_connected = true;
            if !node.is_up {
                node.start(self.now);
                self.came.insert(*id, self.now);
            }
        }
    }

    /// Lets time pass.
    fn pass(&mut self, millis: u64) -> Result<(), String> {
        let end = self.now + millis;
        while self.now < end {
            self.now += TICK_MILLIS;
            let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
            for id in ids {
                self.move_messages(id)?;
            }
            // With one SaP there is no other way, whatever probes say.
            if self.saps().count() > 1 {
                self.move_datagrams();
            }
            if self.server.is_up && self.now.is_multiple_of(LOOK_MILLIS) {
                self.server.drive(self.now);
                self.look()?;
            }
            if self.saps().count() > 1 && self.now.is_multiple_of(STREAM_MILLIS) {
                self.stream()?;
            }
            if !self.server.is_up {
                for node in self.nodes.values_mut() {
                    node.messages.retain(|(_, message)| matches!(message, Message::Persisted));
                }
            }
        }
        Ok(())
    }

    /// What the server would answer by now to those who wait, and whether it holds from here on.
    fn look(&mut self) -> Result<(), String> {
        self.expect_honest()?;
        let server = &self.server;
        let enforced = self.going.extract_if(.., |removal| server.is_enforced(removal));
        let over: Vec<Pair> = enforced.map(|removal| removal.pair).collect();
        if over.is_empty() {
            return Ok(());
        }
        self.gone.extend(over);
        self.expect_over()
    }

    /// Control datagrams between nodes.
    fn move_datagrams(&mut self) {
        let now = self.now;
        for Datagram { by, from, to, bytes } in std::mem::take(&mut self.datagrams) {
            if let Some(id) = self.node_at(to).filter(|id| !self.is_cut(by, *id)) {
                self.nodes.get_mut(&id).expect("it is there").hear(from, &bytes, now);
            }
        }
        for (&by, node) in self.nodes.iter_mut().filter(|(_, node)| node.is_up) {
            let from = node.endpoint;
            let sent = node.talk(now).into_iter();
            self.datagrams.extend(sent.map(|sent| Datagram {
                by,
                from,
                to: sent.to,
                bytes: sent.bytes,
            }));
        }
    }

    /// What is due at one node, and what it says next.
    fn move_messages(&mut self, id: NodeId) -> Result<(), String> {
        let Self { chance, now, server, nodes, came, .. } = self;
        let node = nodes.get_mut(&id).expect("it is one of them");
        if !node.is_up {
            return Ok(());
        }
        let now = *now;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut node.messages).into_iter().partition(|(at, _)| *at <= now);
        node.messages = later;
        for (_, message) in due {
            match message {
                Message::Table(table) => {
                    if node.in_force.is_none() {
                        came.insert(id, now);
                    }
                    node.apply(*table, now)
                        .map_err(|why| format!("{id} refuses a table: {why}"))?;
                    let persisted = Message::Persisted;
                    node.messages.push((now + 10 * chance.below(4), persisted));
                }
                Message::Persisted => node.disk.clone_from(&node.in_force),
                // It died in this very moment.
                Message::Poll(_) | Message::Endpoint(_) if !server.is_up => {}
                Message::Poll(serial) => {
                    if let Some(table) = server.poll(id, serial) {
                        let table = Message::Table(Box::new(table));
                        node.messages.push((now + 10 * chance.below(6), table));
                    }
                }
                Message::Endpoint(endpoint) => server.report(id, endpoint, now),
            }
        }
        if node.is_connected && server.is_up {
            let is_report = |message: &Message| matches!(message, Message::Endpoint(_));
            if !node.messages.iter().any(|(_, message)| !is_report(message)) {
                let serial = node.disk.as_ref().map_or_else(Default::default, |table| table.serial);
                node.messages.push((now + 10 * chance.below(6), Message::Poll(serial)));
            }
            if server.endpoint_of(id) != Some(node.endpoint)
                && !node.messages.iter().any(|(_, message)| is_report(message))
            {
                node.messages.push((now + 100, Message::Endpoint(node.endpoint)));
            }
        }
        Ok(())
    }
}

fn lab(table: &NodeTable) -> Option<&OverlayTable> {
    table.body.overlays.first()
}

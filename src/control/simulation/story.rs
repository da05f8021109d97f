//! A story: random events, the time between them, packets, and what must hold.

use std::collections::{BTreeMap, BTreeSet};

use super::Totals;
use super::chance::Chance;
use super::node::{Message, Node};
use super::packet::udp;
use super::server::{OVERLAY, Removal, Server, address, endpoint};
use crate::api::table::{NodeTable, OverlayTable, TableBody};
use crate::forward::Verdict;
use crate::policy::KeySource as _;
use crate::types::{DropReason, NodeId, Timestamp};

/// Events of one story.
const EVENTS: u64 = 60;

/// How long time stands still between two looks at everybody.
const TICK_MILLIS: u64 = 10;

/// Between two looks of the server's clockwork.
const LOOK_MILLIS: u64 = 100;

/// How long it may take until all is quiet once all is healed.
const QUIET_MILLIS: u64 = 15_000;

const ENTITIES_MAX: u32 = 5;

/// The port of each pair's flow that lives through the whole story.
const LASTING: u16 = 7_000;

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
    fresh_port: u16,
    roamed: u16,
    lines: Vec<String>,
    pub(super) totals: Totals,
}

/// How far a packet came.
enum Way {
    Delivered,
    Dropped(NodeId, DropReason),
    /// Nobody was there.
    Lost,
}

impl Story {
    pub(super) fn new(seed: u64) -> Self {
        let (chance, saps) = (Chance::new(seed), 1);
        let sap = |number| (NodeId(101 + number), Node::new(endpoint(101 + number, 0)));
        Self {
            server: Server::new(saps),
            chance,
            now: 1_000,
            nodes: (0..saps).map(sap).collect(),
            allowed: vec![BTreeSet::new()],
            going: Vec::new(),
            gone: BTreeSet::new(),
            stamped: BTreeMap::new(),
            old: BTreeSet::new(),
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
            let time = self.chance.of(&[0, 20, 50, 150, 400, 1_500]);
            self.pass(time)?;
            self.send_some()?;
        }
        self.heal();
        self.pass(QUIET_MILLIS)?;
        self.expect_quiet()?;
        self.send_all()
    }

    fn tell(&mut self, line: String) {
        self.lines.push(format!("{:>7} ms  {line}", self.now));
    }

    fn entities(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|id| id.0 < 100).collect()
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
            self.nodes.insert(id, Node::new(at));
            self.server.join(id, at, self.now);
        }
    }

    fn change_policy(&mut self) {
        if !self.server.is_up {
            return;
        }
        let pair = self.any_pair();
        let (from, to) = pair;
        let newest = self.allowed.last().expect("there is one");
        let mut next = newest.clone();
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
        let node = self.nodes.get_mut(&id).expect("it is one of them");
        if node.is_up {
            node.kill();
            self.totals.kills += 1;
            self.tell(format!("{id} is killed"));
        } else {
            node.start();
            let serial = node.serial();
            self.tell(format!("{id} starts with serial {serial}"));
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
        if !self.server.is_up {
            self.server.start(self.now);
        }
        for node in self.nodes.values_mut() {
            node.is_connected = true;
            if !node.is_up {
                node.start();
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
            if self.server.is_up && self.now.is_multiple_of(LOOK_MILLIS) {
                self.server.drive(self.now);
                let server = &self.server;
                let enforced = self.going.extract_if(.., |removal| server.is_enforced(removal));
                self.gone.extend(enforced.map(|removal| removal.pair));
            }
            if !self.server.is_up {
                for node in self.nodes.values_mut() {
                    node.messages.retain(|(_, message)| matches!(message, Message::Persisted));
                }
            }
        }
        Ok(())
    }

    /// What is due at one node, and what it says next.
    fn move_messages(&mut self, id: NodeId) -> Result<(), String> {
        let Self { chance, now, server, nodes, .. } = self;
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
                    node.apply(*table).map_err(|why| format!("{id} refuses a table: {why}"))?;
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

    fn send_some(&mut self) -> Result<(), String> {
        for _ in 0..3 {
            let pair = self.any_pair();
            self.exchange(pair)?;
        }
        let pair = self.any_pair();
        self.reply_alone(pair)?;
        self.use_old_keys()
    }

    fn send_all(&mut self) -> Result<(), String> {
        let newest = self.allowed.last().expect("there is one").clone();
        for from in self.entities() {
            for to in self.entities().into_iter().filter(|to| *to != from) {
                let before = self.totals.delivered;
                self.exchange((from, to))?;
                let passed = self.totals.delivered > before;
                if passed != newest.contains(&(from, to)) {
                    return Err(format!("after all is quiet: {from} to {to} passes: {passed}"));
                }
            }
        }
        Ok(())
    }

    /// A packet and its answer, in a new flow or in the pair's lasting one.
    fn exchange(&mut self, pair: Pair) -> Result<(), String> {
        let (from, to) = pair;
        let port = if self.chance.is(50) { LASTING } else { self.new_port() };
        let way = self.send(from, to, port, false);
        let expected = self.is_expected(pair);
        let is_delivered = matches!(way, Way::Delivered);
        self.judge(pair, &way, expected)?;
        if is_delivered {
            self.totals.delivered += 1;
            self.totals.during_rotation += u64::from(self.server.rotating().contains(&to));
            let way = self.send(to, from, port, true);
            if !matches!(way, Way::Delivered) && expected == Some(true) && self.is_trusted(pair) {
                return Err(format!("the reply of {to} to {from} did not arrive: {}", text(&way)));
            }
        } else {
            self.totals.refused += 1;
        }
        Ok(())
    }

    fn new_port(&mut self) -> u16 {
        self.fresh_port += 1;
        self.fresh_port
    }

    fn judge(&self, (from, to): Pair, way: &Way, expected: Option<bool>) -> Result<(), String> {
        let is_delivered = matches!(way, Way::Delivered);
        if is_delivered && self.gone.contains(&(from, to)) {
            return Err(format!("{from} still talks to {to}: the server said that this is over"));
        }
        match (expected, way) {
            (Some(true), Way::Delivered) | (Some(false) | None, Way::Dropped(..) | Way::Lost) => {
                Ok(())
            }
            // Somebody whom a hurried rotation did not wait for.
            (Some(true), _) if !self.is_trusted((from, to)) => Ok(()),
            (Some(true), Way::Dropped(..) | Way::Lost) => {
                Err(format!("{from} to {to} did not arrive: {}", text(way)))
            }
            (Some(false) | None, Way::Delivered) => {
                Err(format!("{from} to {to} arrived, and somebody's table forbids it"))
            }
        }
    }

    /// An answer that comes out of nowhere: only where its flow is allowed.
    fn reply_alone(&mut self, (from, to): Pair) -> Result<(), String> {
        let way = self.send(to, from, LASTING, true);
        if matches!(way, Way::Delivered) && self.allows(from, (from, to)) != Some(true) {
            return Err(format!("an answer of {to} to {from} arrived after its flow was over"));
        }
        Ok(())
    }

    /// Whether the table in force at `node` allows the pair, by the model.
    fn allows(&self, node: NodeId, pair: Pair) -> Option<bool> {
        let serial = self.nodes[&node].in_force.as_ref()?.serial;
        let revision = usize::try_from(self.server.made_of[&(node, serial)]).expect("few");
        Some(self.allowed[revision].contains(&pair))
    }

    /// Whether a packet of the pair has to arrive: none when somebody is not there, so that it cannot.
    fn is_expected(&self, pair: Pair) -> Option<bool> {
        let (from, to) = pair;
        let sap = *lab(self.nodes[&from].in_force.as_ref()?)?.default_saps.first()?;
        let on_way = [from, sap, to];
        if !on_way.iter().all(|id| self.nodes[id].is_up) {
            return None;
        }
        let table = lab(self.nodes[&sap].in_force.as_ref()?)?;
        for id in [from, to] {
            let row = table.members.iter().find(|row| row.id == id)?;
            if row.endpoints != [self.nodes[&id].endpoint] {
                return None;
            }
        }
        let allow =
            on_way.iter().map(|id| self.allows(*id, pair)).collect::<Option<Vec<bool>>>()?;
        Some(allow.into_iter().all(|allows| allows))
    }

    /// Whether no hurried rotation left somebody on the pair's way behind.
    fn is_trusted(&self, (from, to): Pair) -> bool {
        self.server.cut_off.iter().all(|id| *id != from && *id != to && id.0 < 100)
    }

    /// Sends a packet and follows it.
    fn send(&mut self, from: NodeId, to: NodeId, port: u16, is_reply: bool) -> Way {
        let facts = udp(address(from), address(to), port, is_reply);
        let mut at = from;
        if !self.nodes[&from].is_up {
            return Way::Lost;
        }
        let (snapshot, flows, now) = self.nodes[&from].view(self.now);
        let Some(index) = snapshot.overlay_index(OVERLAY) else { return Way::Lost };
        let mut verdict = snapshot.egress(index, &facts, flows, now);
        if let Verdict::Send { key, .. } = verdict {
            let pair = (from, to);
            let before = self.stamped.insert(pair, key.bits());
            self.old.extend(before.filter(|before| *before != key.bits()).map(|key| (pair, key)));
            // Keys may come again, as numbers do.
            self.old.remove(&(pair, key.bits()));
        }
        for _ in 0..4 {
            let (hop, key) = match verdict {
                Verdict::Send { hop, key } => (hop, key.bits()),
                Verdict::Deliver { .. } => return Way::Delivered,
                Verdict::Drop(reason) => return Way::Dropped(at, reason),
            };
            let outer = self.nodes[&at].endpoint;
            let there = self.nodes.iter().find(|(_, node)| node.is_up && node.endpoint == hop);
            let Some((&next, node)) = there else { return Way::Lost };
            let (snapshot, flows, now) = node.view(self.now);
            verdict = match next.0 {
                101.. => snapshot.transit(outer, key, &facts, flows, now),
                _ => snapshot.ingress(outer, key, &facts, flows, now),
            };
            at = next;
        }
        panic!("a packet goes round in circles");
    }

    /// Keys whose time is over open nothing, at no SaP.
    fn use_old_keys(&mut self) -> Result<(), String> {
        let (rotating, keys, mut checked) = (self.server.rotating(), self.server.keys(), 0);
        for &((from, to), key) in &self.old {
            // A sender that started from an older table stamped this one before the one it stamps now.
            if keys.send_key(OVERLAY, from, to).bits() == key {
                continue;
            }
            let facts = udp(address(from), address(to), LASTING + 1, false);
            let saps = self.nodes.iter().filter(|(id, node)| id.0 > 100 && node.is_up);
            for (sap, node) in saps {
                let Some(table) = node.in_force.as_ref().and_then(lab) else { continue };
                let (snapshot, flows, now) = node.view(self.now);
                let is_newest = node.serial() == self.server.newest_serial(*sap);
                let is_settled = self.server.is_up && is_newest && !rotating.contains(&to);
                let is_behind = self.server.cut_off.contains(sap);
                let is_over = !is_behind && ends(table, (from, to)).any(|end| end <= now.wall);
                if !is_settled && !is_over {
                    continue;
                }
                checked += 1;
                let outer = self.nodes[&from].endpoint;
                let verdict = snapshot.transit(outer, key, &facts, flows, now);
                if !matches!(verdict, Verdict::Drop(_)) {
                    return Err(format!("{sap} takes an old key from {from} to {to}"));
                }
            }
        }
        self.totals.old_keys += checked;
        Ok(())
    }

    fn expect_quiet(&mut self) -> Result<(), String> {
        if !self.server.rotating().is_empty() {
            return Err(format!("rotations never end: {:?}", self.server.rotating()));
        }
        for (id, node) in &self.nodes {
            let (serial, body) = (self.server.newest_serial(*id), self.server.fresh(*id, self.now));
            let disk = node.disk.as_ref().ok_or(format!("{id} never got a table"))?;
            if disk.serial != serial || Some(&disk.body) != body.as_ref() {
                let (had, due) = (lines(Some(&disk.body)), lines(body.as_ref()));
                let differs = had.iter().zip(&due).find(|(had, due)| had != due);
                return Err(format!(
                    "{id} has serial {}, the server {serial}; it has, and should have: {differs:?}",
                    disk.serial
                ));
            }
            let mut rows = disk.body.overlays.iter().flat_map(|overlay| &overlay.destination_keys);
            if rows.any(|row| row.accept.len() != 1) {
                return Err(format!("{id} accepts old keys for ever"));
            }
        }
        self.server.cut_off.clear();
        Ok(())
    }
}

/// When old keys of the pair end, by this table.
fn ends(table: &OverlayTable, (from, to): Pair) -> impl Iterator<Item = Timestamp> {
    let is = move |index: u32, id: NodeId| {
        let row = usize::try_from(index).ok().and_then(|index| table.members.get(index));
        row.is_some_and(|row| row.id == id)
    };
    let rows = table.destination_keys.iter().filter(move |row| is(row.to, to));
    let pairs = table.pair_generations.iter();
    let pairs = pairs.filter(move |row| is(row.from, from) && is(row.to, to));
    rows.filter_map(|row| row.old_until).chain(pairs.filter_map(|row| row.old_until))
}

/// A table's body, to be compared.
fn lines(body: Option<&TableBody>) -> Vec<String> {
    let text = serde_json::to_string_pretty(&body).expect("a table is JSON");
    text.lines().map(str::to_owned).collect()
}

fn lab(table: &NodeTable) -> Option<&OverlayTable> {
    table.body.overlays.first()
}

fn text(way: &Way) -> String {
    match way {
        Way::Delivered => "delivered".to_owned(),
        Way::Dropped(at, reason) => format!("dropped at {at} for {}", reason.name()),
        Way::Lost => "nobody was there".to_owned(),
    }
}

//! Packets: the way of one through the nodes, and whether the model says that it has to arrive.

use std::net::SocketAddr;

use super::time::Due;
use super::{LASTING, POURED, Pair, Story, is_sap, lab};
use crate::control::simulation::packet::udp;
use crate::control::simulation::server::{OVERLAY, address};
use crate::forward::Verdict;
use crate::types::{AuthorizationKey, DropReason, NodeId};
use crate::wire::Facts;

/// How far a packet came.
pub(super) enum Way {
    Delivered,
    Dropped(NodeId, DropReason),
    /// Nobody was there.
    Lost,
}

/// What an exchange came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Exchange {
    /// The packet and its answer arrived.
    Answered,
    /// The packet did, its answer did not.
    Unanswered,
    /// The packet did not.
    Unheard,
}

/// A packet that leaves a node.
#[derive(Debug)]
struct Sent {
    facts: Facts,
    by: NodeId,
    outer: SocketAddr,
    hop: SocketAddr,
    key: AuthorizationKey,
}

/// A packet that is under way for a while.
#[derive(Debug)]
pub(super) struct Late {
    pair: Pair,
    sent: Sent,
    at: u64,
    sap: NodeId,
}

impl Story {
    /// Packets of random pairs, in new flows and in lasting ones.
    pub(super) fn send_some(&mut self) -> Result<(), String> {
        for _ in 0..2 {
            let pair = self.any_pair();
            let port = if self.chance.is(50) { LASTING } else { self.new_port() };
            self.exchange(pair, port)?;
        }
        let newest: Vec<Pair> = self.newest_policy().iter().copied().collect();
        if !newest.is_empty() {
            let (allowed, after) = (self.chance.of(&newest), self.chance.of(&[20, 200, 500]));
            self.exchange(allowed, LASTING)?;
            self.send_late(allowed, after);
        }
        let pair = self.any_pair();
        self.reply_alone(pair)
    }

    /// A packet of each pair: only those arrive that the newest policy allows.
    pub(super) fn send_all(&mut self) -> Result<(), String> {
        let newest = self.newest_policy().clone();
        for from in self.entities() {
            for to in self.entities().into_iter().filter(|to| *to != from) {
                let port = self.new_port();
                let passed = self.exchange((from, to), port)? == Exchange::Answered;
                if passed != newest.contains(&(from, to)) {
                    return Err(format!(
                        "after all is quiet: {from} to {to} is answered: {passed}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// A packet and its answer.
    pub(super) fn exchange(&mut self, pair: Pair, port: u16) -> Result<Exchange, String> {
        let (from, to) = pair;
        let expected = self.is_expected(pair);
        // Of a leg that is cut one way whoever has sent nothing over it hears when he does.
        let has_way_back = self.chosen(pair).is_some_and(|sap| self.carries(sap, pair));
        let way = self.send(from, to, port, false);
        self.judge(pair, &way, expected)?;
        if !matches!(way, Way::Delivered) {
            self.totals.refused += 1;
            self.last_loss = format!("{from} to {to} did not arrive: {}", text(&way));
            return Ok(Exchange::Unheard);
        }
        self.totals.delivered += 1;
        self.totals.during_rotation += u64::from(self.server.rotating().contains(&to));
        let way = self.send(to, from, port, true);
        if matches!(way, Way::Delivered) {
            return Ok(Exchange::Answered);
        }
        self.last_loss = format!("the reply of {to} to {from} did not arrive: {}", text(&way));
        if expected == Some(true) && has_way_back && self.is_trusted(pair) && self.is_calm() {
            return Err(self.last_loss.clone());
        }
        Ok(Exchange::Unanswered)
    }

    /// Pairs that may talk begin flows in which answers alone follow.
    pub(super) fn pour(&mut self) -> Result<(), String> {
        for pair in self.newest_policy().clone() {
            self.exchange(pair, POURED)?;
        }
        Ok(())
    }

    /// Another answer in the flow that [`Self::pour`] began.
    pub(super) fn pour_on(&mut self, (from, to): Pair) -> bool {
        let way = self.send(to, from, POURED, true);
        if !matches!(way, Way::Delivered) {
            self.last_loss = format!("{to} pours to {from}: {}", text(&way));
        }
        matches!(way, Way::Delivered)
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
        let may_pass =
            self.allows(from, (from, to)) == Some(true) && !self.gone.contains(&(from, to));
        if matches!(way, Way::Delivered) && !may_pass {
            return Err(format!("an answer of {to} to {from} arrived after its flow was over"));
        }
        Ok(())
    }

    /// Sends a packet that arrives later.
    fn send_late(&mut self, pair: Pair, after: u64) {
        if self.is_expected(pair) != Some(true) {
            return;
        }
        let Some(sap) = self.chosen(pair) else { return };
        if let Ok(sent) = self.leave(pair.0, pair.1, LASTING, false) {
            self.schedule(after, Due::Late(Late { pair, sent, at: self.now, sap }));
        }
    }

    /// It arrives, unless something happened meanwhile that excuses its loss.
    pub(super) fn arrive_late(&mut self, late: &Late) -> Result<(), String> {
        let Late { pair, at, sap, .. } = *late;
        let (from, to) = pair;
        let has_time = |id: &NodeId| self.nodes[id].ahead_seconds == 0;
        let is_owed = self.disturbed < at
            && self.jumped < at
            && self.nodes[&from].endpoint == late.sent.outer
            && self.carries(sap, pair)
            && self.has_proofs(sap, pair)
            && self.is_trusted(pair)
            && [from, sap, to]
                .iter()
                .all(|id| self.allows(*id, pair) == Some(true) && has_time(id));
        let way = self.follow(&late.sent);
        self.totals.late += u64::from(is_owed);
        match way {
            Way::Delivered if self.gone.contains(&pair) => Err(format!(
                "a late packet of {from} to {to} arrived: the server said that this is over"
            )),
            Way::Dropped(..) | Way::Lost if is_owed => {
                Err(format!("a packet of {from} to {to}, sent at {at} ms: {}", text(&way)))
            }
            Way::Delivered | Way::Dropped(..) | Way::Lost => Ok(()),
        }
    }

    /// Whether the table in force at `node` allows the pair, by the model.
    pub(super) fn allows(&self, node: NodeId, pair: Pair) -> Option<bool> {
        let serial = self.nodes[&node].in_force.as_ref()?.serial;
        let revision = usize::try_from(self.server.made_of[&(node, serial)]).expect("few");
        Some(self.allowed[revision].contains(&pair))
    }

    /// The SaP that the first end of a pair chooses.
    pub(super) fn chosen(&self, (from, to): Pair) -> Option<NodeId> {
        let (snapshot, ..) = self.nodes[&from].view(self.now);
        snapshot.opens_by(address(from), address(to))
    }

    /// Whether a packet of the pair has to arrive: none when somebody is not there, so that it cannot.
    fn is_expected(&self, pair: Pair) -> Option<bool> {
        let (from, to) = pair;
        let sap = self.chosen(pair)?;
        if !self.passes(from, sap) || !self.passes(sap, to) || !self.has_proofs(sap, pair) {
            return None;
        }
        let on_way = [from, sap, to];
        let allow =
            on_way.iter().map(|id| self.allows(*id, pair)).collect::<Option<Vec<bool>>>()?;
        Some(allow.into_iter().all(|allows| allows))
    }

    /// Whether datagrams pass from one node to another.
    fn passes(&self, from: NodeId, to: NodeId) -> bool {
        self.nodes[&from].is_up && self.nodes[&to].is_up && !self.cut.contains(&(from, to))
    }

    /// Whether datagrams pass between an entity and a SaP, both ways.
    pub(super) fn has_leg(&self, entity: NodeId, sap: NodeId) -> bool {
        self.passes(entity, sap) && self.passes(sap, entity)
    }

    /// Whether a SaP reaches both ends, and knows them.
    pub(super) fn carries(&self, sap: NodeId, pair: Pair) -> bool {
        self.has_leg(pair.0, sap) && self.has_leg(pair.1, sap) && self.knows(sap, pair)
    }

    /// Whether the table in force at a SaP names both ends.
    pub(super) fn knows(&self, sap: NodeId, (from, to): Pair) -> bool {
        let Some(table) = self.nodes[&sap].in_force.as_ref().and_then(lab) else { return false };
        [from, to].into_iter().all(|id| table.members.iter().any(|row| row.id == id))
    }

    /// Whether both ends are where they proved to a SaP to be.
    fn has_proofs(&self, sap: NodeId, (from, to): Pair) -> bool {
        let is_there = |id: NodeId| self.nodes[&sap].proved(id) == Some(self.nodes[&id].endpoint);
        self.knows(sap, (from, to)) && is_there(from) && is_there(to)
    }

    /// Whether no hurried rotation left somebody on the pair's way behind.
    pub(super) fn is_trusted(&self, (from, to): Pair) -> bool {
        self.server.cut_off.iter().all(|id| *id != from && *id != to && !is_sap(*id))
    }

    /// Sends a packet and follows it.
    fn send(&mut self, from: NodeId, to: NodeId, port: u16, is_reply: bool) -> Way {
        match self.leave(from, to, port, is_reply) {
            Ok(sent) => self.follow(&sent),
            Err(way) => way,
        }
    }

    /// A packet as it leaves its source.
    fn leave(&mut self, by: NodeId, to: NodeId, port: u16, is_reply: bool) -> Result<Sent, Way> {
        let facts = udp(address(by), address(to), port, is_reply);
        let node = &self.nodes[&by];
        let (snapshot, flows, now) = node.view(self.now);
        let index = snapshot.overlay_index(OVERLAY).filter(|_| node.is_up).ok_or(Way::Lost)?;
        match snapshot.egress(index, &facts, flows, now) {
            Verdict::Send { hop, key } => {
                let outer = node.endpoint;
                self.note_stamped((by, to), key.bits());
                self.note_moved(by);
                Ok(Sent { facts, by, outer, hop, key })
            }
            Verdict::Drop(reason) => Err(Way::Dropped(by, reason)),
            Verdict::Deliver { .. } => panic!("a packet for the network goes to the host"),
        }
    }

    /// The rest of a packet's way.
    fn follow(&mut self, sent: &Sent) -> Way {
        let Sent { facts, mut by, mut outer, mut hop, mut key } = *sent;
        for _ in 0..4 {
            let Some(next) = self.node_at(hop).filter(|next| !self.cut.contains(&(by, *next)))
            else {
                return Way::Lost;
            };
            let node = &self.nodes[&next];
            let (snapshot, flows, now) = node.view(self.now);
            let verdict = if is_sap(next) {
                snapshot.transit(outer, key.bits(), &facts, flows, now)
            } else {
                snapshot.ingress(outer, key.bits(), &facts, flows, now)
            };
            (by, outer) = (next, node.endpoint);
            match verdict {
                Verdict::Send { hop: next, key: same } => (hop, key) = (next, same),
                Verdict::Drop(reason) => return Way::Dropped(by, reason),
                Verdict::Deliver { .. } => {
                    self.note_moved(by);
                    return Way::Delivered;
                }
            }
            self.note_moved(by);
        }
        panic!("a packet goes round in circles");
    }

    fn note_stamped(&mut self, pair: Pair, key: u32) {
        let before = self.stamped.insert(pair, key);
        self.old.extend(before.filter(|before| *before != key).map(|key| (pair, key)));
        // Keys may come again, as numbers do.
        self.old.remove(&(pair, key));
    }
}

pub(super) fn text(way: &Way) -> String {
    match way {
        Way::Delivered => "delivered".to_owned(),
        Way::Dropped(at, reason) => format!("dropped at {at} for {}", reason.name()),
        Way::Lost => "nobody was there".to_owned(),
    }
}

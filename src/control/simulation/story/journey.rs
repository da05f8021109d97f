//! Packets: the way of one through the nodes, and whether the model says that it has to arrive.

use super::{LASTING, Pair, Story, lab};
use crate::control::simulation::packet::udp;
use crate::control::simulation::server::{OVERLAY, address};
use crate::forward::Verdict;
use crate::types::{DropReason, NodeId};

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

impl Story {
    /// Packets of random pairs, in new flows and in lasting ones.
    pub(super) fn send_some(&mut self) -> Result<(), String> {
        for _ in 0..3 {
            let pair = self.any_pair();
            let port = if self.chance.is(50) { LASTING } else { self.new_port() };
            self.exchange(pair, port)?;
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
                let passed = self.exchange((from, to), port)? != Exchange::Unheard;
                if passed != newest.contains(&(from, to)) {
                    return Err(format!("after all is quiet: {from} to {to} passes: {passed}"));
                }
            }
        }
        Ok(())
    }

    /// A packet and its answer.
    pub(super) fn exchange(&mut self, pair: Pair, port: u16) -> Result<Exchange, String> {
        let (from, to) = pair;
        let expected = self.is_expected(pair);
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
        if expected == Some(true) && self.is_trusted(pair) && self.is_calm() {
            return Err(self.last_loss.clone());
        }
        Ok(Exchange::Unanswered)
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
        let reaches = [from, to].into_iter().all(|end| self.has_leg(end, sap));
        if !reaches || !self.knows_places(sap, pair) {
            return None;
        }
        let on_way = [from, sap, to];
        let allow =
            on_way.iter().map(|id| self.allows(*id, pair)).collect::<Option<Vec<bool>>>()?;
        Some(allow.into_iter().all(|allows| allows))
    }

    /// Whether datagrams pass between an entity and a SaP.
    pub(super) fn has_leg(&self, entity: NodeId, sap: NodeId) -> bool {
        self.nodes[&entity].is_up && self.nodes[&sap].is_up && !self.cut.contains(&(entity, sap))
    }

    /// Whether the table in force at a SaP says where both ends are.
    pub(super) fn knows_places(&self, sap: NodeId, (from, to): Pair) -> bool {
        let Some(table) = self.nodes[&sap].in_force.as_ref().and_then(lab) else { return false };
        [from, to].into_iter().all(|id| {
            let row = table.members.iter().find(|row| row.id == id);
            row.is_some_and(|row| row.endpoints == [self.nodes[&id].endpoint])
        })
    }

    /// Whether no hurried rotation left somebody on the pair's way behind.
    pub(super) fn is_trusted(&self, (from, to): Pair) -> bool {
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
            self.note_stamped((from, to), key.bits());
            self.nodes.get_mut(&from).expect("it is there").has_moved = true;
        }
        for _ in 0..4 {
            let (hop, key) = match verdict {
                Verdict::Send { hop, key } => (hop, key.bits()),
                Verdict::Deliver { .. } => {
                    self.nodes.get_mut(&at).expect("it is there").has_moved = true;
                    return Way::Delivered;
                }
                Verdict::Drop(reason) => return Way::Dropped(at, reason),
            };
            let outer = self.nodes[&at].endpoint;
            let Some(next) = self.node_at(hop).filter(|next| !self.is_cut(at, *next)) else {
                return Way::Lost;
            };
            let (snapshot, flows, now) = self.nodes[&next].view(self.now);
            verdict = match next.0 {
                101.. => snapshot.transit(outer, key, &facts, flows, now),
                _ => snapshot.ingress(outer, key, &facts, flows, now),
            };
            at = next;
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

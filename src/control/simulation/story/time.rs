//! Time: what happens next, and what follows from it.

use std::net::SocketAddr;

use super::journey::Late;
use super::{Pair, Story};
use crate::api::table::NodeTable;
use crate::types::{NodeId, Serial};

/// Least time between two looks of the server's clockwork.
const LOOK_MILLIS: u64 = 100;

/// Of a datagram between two nodes.
const WAY_MILLIS: u64 = 5;

/// How long it takes until a node notices that it is somewhere else.
const NOTICE_MILLIS: u64 = 100;

/// What happens at some time.
#[derive(Debug)]
pub(super) enum Due {
    /// A node looks after its probes.
    Wake(NodeId),
    /// The server's clockwork looks.
    Look,
    /// A control datagram arrives.
    Datagram { by: NodeId, from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    /// Something of this life of a node, and of this line to the server where it needs that.
    Message { node: NodeId, life: u32, line: Option<u32>, message: Message },
    /// A packet arrives late.
    Late(Late),
}

/// Something between a node and the server.
#[derive(Clone, Debug)]
pub(super) enum Message {
    /// The server's answer to a poll.
    Table(Box<NodeTable>),
    /// The table in force is on disk; asking for the next one says so.
    Persisted,
    /// The next poll.
    Poll,
    /// It has another address.
    Moved,
    /// Where it is reached.
    Endpoint,
}

impl Story {
    /// Lets time pass.
    pub(super) fn pass(&mut self, millis: u64) -> Result<(), String> {
        let end = self.now + millis;
        while let Some(entry) = self.due.first_entry() {
            let (at, _) = *entry.key();
            if at > end {
                break;
            }
            let due = entry.remove();
            self.now = at;
            self.happen(due)?;
        }
        self.now = end;
        Ok(())
    }

    pub(super) fn schedule(&mut self, after: u64, due: Due) {
        self.scheduled += 1;
        self.due.insert((self.now + after, self.scheduled), due);
    }

    fn happen(&mut self, due: Due) -> Result<(), String> {
        match due {
            Due::Wake(id) => {
                let (now, node) = (self.now, self.node(id));
                if node.woken.take_if(|at| *at == now).is_some() && node.is_up {
                    self.talk(id);
                }
            }
            Due::Look => {
                self.will_look = false;
                if self.server.is_up {
                    self.server.drive(self.now);
                    self.serve();
                    self.look()?;
                }
            }
            Due::Datagram { by, from, to, bytes } => {
                if let Some(id) = self.node_at(to).filter(|id| !self.cut.contains(&(by, *id))) {
                    let now = self.now;
                    self.node(id).hear(from, &bytes, now);
                    self.talk(id);
                }
            }
            Due::Message { node, life, line, message } => {
                let (id, node) = (node, &self.nodes[&node]);
                if node.life == life && line.is_none_or(|line| node.line == line) {
                    self.hear(id, message)?;
                }
            }
            Due::Late(late) => self.arrive_late(&late)?,
        }
        Ok(())
    }

    fn hear(&mut self, id: NodeId, message: Message) -> Result<(), String> {
        let now = self.now;
        match message {
            Message::Table(table) => {
                let serial = table.serial;
                let is_first = self.nodes[&id].in_force.is_none();
                let is_applied = self.node(id).offer(*table, now);
                if is_applied.map_err(|why| format!("{id} refuses serial {serial}: {why}"))? {
                    if is_first {
                        self.came.insert(id, now);
                    }
                    let after = 10 * self.chance.below(4);
                    self.tell_node(id, after, false, Message::Persisted);
                    self.talk(id);
                    self.expect_after_others(id)?;
                } else {
                    self.totals.stale += 1;
                }
            }
            Message::Persisted => {
                let node = self.node(id);
                node.disk.clone_from(&node.in_force);
                self.call(id);
            }
            Message::Poll if self.server.is_up => {
                let serial = self.nodes[&id].disk.as_ref().map_or(Serial(0), |table| table.serial);
                self.server.poll(id, serial);
                self.waiting.insert(id, serial);
                self.serve();
                self.look()?;
            }
            Message::Moved => {
                self.node(id).handle_moved(now);
                self.talk(id);
            }
            Message::Endpoint if self.server.is_up => {
                self.server.report(id, self.nodes[&id].endpoint, now);
                self.serve();
            }
            // It died in this very moment.
            Message::Poll | Message::Endpoint => {}
        }
        Ok(())
    }

    /// A node is there: it looks for SaPs, and for the server.
    pub(super) fn arrive(&mut self, id: NodeId) {
        self.talk(id);
        self.call(id);
        self.report(id);
    }

    /// A node polls, soon.
    pub(super) fn call(&mut self, id: NodeId) {
        let after = 10 * self.chance.below(6);
        self.tell_node(id, after, true, Message::Poll);
        self.report(id);
    }

    /// A node is somewhere else, and notices it.
    pub(super) fn move_to(&mut self, id: NodeId, endpoint: SocketAddr) {
        self.node(id).endpoint = endpoint;
        self.came.insert(id, self.now);
        self.tell_node(id, NOTICE_MILLIS, false, Message::Moved);
        self.report(id);
    }

    /// A node notices where it is, if the server does not know.
    pub(super) fn report(&mut self, id: NodeId) {
        if self.server.endpoint_of(id) != Some(self.nodes[&id].endpoint) {
            self.tell_node(id, NOTICE_MILLIS, true, Message::Endpoint);
        }
    }

    fn tell_node(&mut self, node: NodeId, after: u64, needs_line: bool, message: Message) {
        let it = &self.nodes[&node];
        if it.is_up && (!needs_line || it.is_connected && self.server.is_up) {
            let (life, line) = (it.life, needs_line.then_some(it.line));
            self.schedule(after, Due::Message { node, life, line, message });
        }
    }

    /// The server did something: it answers whoever waits for that, and looks again soon.
    pub(super) fn serve(&mut self) {
        if !self.server.is_up {
            // Lines break, and what is on them is gone.
            self.waiting.clear();
            self.nodes.values_mut().for_each(|node| node.line += 1);
            return;
        }
        let releases = self.server.release(self.now);
        let answers: Vec<(NodeId, NodeTable)> = self
            .waiting
            .iter()
            .filter_map(|(id, after)| Some((*id, self.server.answer(*id, *after)?)))
            .collect();
        for (id, table) in answers {
            self.waiting.remove(&id);
            let message = Message::Table(Box::new(table));
            let after = 10 * self.chance.below(6);
            if self.chance.is(3) {
                let late = after + 10 * self.chance.below(200);
                self.tell_node(id, late, false, message.clone());
            }
            self.tell_node(id, after, true, message);
        }
        if !self.will_look {
            let is_busy = !self.server.rotating().is_empty();
            let next = if is_busy { Some(self.now) } else { releases };
            if let Some(next) = next {
                self.will_look = true;
                self.schedule((next - self.now).max(LOOK_MILLIS), Due::Look);
            }
        }
    }

    /// A node says what is due, and wakes when more will be.
    pub(super) fn talk(&mut self, by: NodeId) {
        let now = self.now;
        let node = self.node(by);
        let from = node.endpoint;
        for sent in node.talk(now) {
            let (to, bytes) = (sent.to, sent.bytes);
            self.schedule(WAY_MILLIS, Due::Datagram { by, from, to, bytes });
        }
        self.wake(by);
    }

    /// Sees to it that a node wakes in time.
    fn wake(&mut self, id: NodeId) {
        let (now, node) = (self.now, self.node(id));
        if let Some(wakes) = node.wakes(now)
            && node.woken.is_none_or(|woken| wakes < woken)
        {
            node.woken = Some(wakes);
            self.schedule(wakes - now, Due::Wake(id));
        }
    }

    /// A packet left, passed or reached a node.
    pub(super) fn note_moved(&mut self, id: NodeId) {
        let now = self.now;
        self.node(id).note_moved(now);
        self.wake(id);
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
}

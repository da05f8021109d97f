//! Drives the probers and the responder of one node: owns link secrets and counters, turns control
//! datagrams into calls of `probe` and back. The caller owns socket, clock and loop:
//!
//! 1. sleep until [`Probes::next_deadline`] or a datagram arrives;
//! 2. call [`Probes::handle_datagram`] or [`Probes::handle_timeout`];
//! 3. send everything that [`Probes::poll_transmit`] returns;
//! 4. [`Change::apply`] what [`Probes::changes`] returns; after a new table [`Change::repeat`];
//! 5. at a SaP: say to whom packets went, and tell those who send to whom [`Probes::silent`] names.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::underlay::is_managed;
use crate::api::table::NodeTable;
use crate::forward::{FlowTable, Snapshot};
use crate::probe::{Budget, Hearing, Liveness, Lost, Prober, Proofs, Responder, Source};
use crate::types::{DropReason, LinkId, NodeId, NodeKind, Secret};
use crate::wire::control::{self, Echo, Message};
use crate::wire::cookie::Cookies;
use crate::wire::gue::{self, Frame};
use crate::wire::notice::NoPath;

/// Longest queue of answers and notices; the caller empties it after each datagram.
const OUTBOX_MAX: usize = 1024;

/// Answers to echoes of one link in a second; an entity needs 10 when it is in a hurry.
const ANSWERS_PER_SECOND: u32 = 20;

/// A SaP calls an entity alive that it has heard of within three of its longest intervals.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

/// A control datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// An authentic message that is no business of probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Who sent it.
    pub peer: NodeId,
    /// What it says.
    pub message: Message,
}

/// What the snapshot has to hear of SaPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A SaP takes traffic, or does not any more.
    Sap {
        /// The SaP.
        sap: NodeId,
        /// Whether it does.
        is_alive: bool,
    },
    /// A SaP that was dead answers, or does not any more.
    Returning {
        /// The SaP.
        sap: NodeId,
        /// Whether it does.
        is_returning: bool,
    },
    /// A SaP has lost an entity, which it says as long as anybody sends there, or found it again.
    Peer {
        /// The SaP.
        sap: NodeId,
        /// The entity.
        peer: NodeId,
        /// Whether it reaches it.
        reaches: bool,
    },
}

impl Change {
    /// Has the packet threads follow it. Whether it is news.
    pub fn apply(self, snapshot: &Snapshot, flows: &FlowTable) -> bool {
        if let Self::Peer { sap, peer, reaches: false } = self {
            snapshot.forget_hops(sap, peer, flows);
        }
        self.repeat(snapshot)
    }

    /// Says it to a new snapshot. Whether that is news.
    pub fn repeat(self, snapshot: &Snapshot) -> bool {
        match self {
            Self::Sap { sap, is_alive } => {
                snapshot.set_alive(sap, is_alive);
                true
            }
            Self::Returning { sap, is_returning } => {
                snapshot.set_returning(sap, is_returning);
                true
            }
            Self::Peer { sap, peer, reaches } => snapshot.set_reaches(sap, peer, reaches),
        }
    }
}

/// What is known of the peer of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// The node at the other end.
    pub peer: NodeId,
    /// Its name.
    pub name: String,
    /// Where it is: of a SaP what the table says, of an entity what it proved.
    pub endpoint: Option<SocketAddr>,
    /// Whether it is there: at an entity, whether the SaP takes traffic.
    pub is_alive: bool,
    /// The smoothed round trip, where this end measures it.
    pub round_trip: Option<Duration>,
    /// At a SaP: where the entity was heard from, when that is none of its endpoints.
    pub translated: Option<SocketAddr>,
}

#[derive(Debug)]
struct Link {
    peer: NodeId,
    name: String,
    secret: Secret,
    /// From the table, best first. The first is probed, because data goes there.
    endpoints: Vec<SocketAddr>,
    /// At an entity.
    prober: Option<Prober>,
    /// At an entity: whom the SaP has lost.
    lost: Lost,
    /// At a SaP: whether it hears the entity.
    hearing: Hearing,
    /// At a SaP: when the entity was heard last, and the endpoint that it proved thereby. At an entity: when
    /// and from where the SaP's last answer came.
    heard: Option<(Duration, SocketAddr)>,
    /// At a SaP: an endpoint from which the entity was heard, and which it has not proved.
    claimed: Option<SocketAddr>,
    /// At an entity: what the SaP gave last.
    cookie: u64,
    /// At a SaP: how many answers are left.
    answers: Budget,
    /// What the caller was told last: whether the SaP takes traffic, and whether it is returning.
    told: Option<bool>,
    told_returning: bool,
}

/// The links of one node.
#[derive(Debug)]
pub struct Probes {
    links: BTreeMap<LinkId, Link>,
    responder: Responder,
    cookies: Cookies,
    /// At a SaP.
    proofs: Proofs,
    /// Whether an entity may be anywhere, and not in underlays declared managed alone.
    allows_open: bool,
    /// Of the message sent last; over all links, so that it grows on each.
    counter: u64,
    /// When this began, in nanoseconds since 1970.
    began_nanos: u64,
    outbox: VecDeque<Transmit>,
    is_quiet: bool,
}

impl Probes {
    /// Starts without links. `wall` is the time since 1970. Counters are that time in nanoseconds, and so
    /// grow over restarts, and once a copy of this node is silent this one is heard again.
    /// `secret` is nobody else's.
    #[must_use]
    pub fn start(now: Duration, wall: Duration, secret: &Secret) -> Self {
        let counter = nanos(wall);
        Self {
            links: BTreeMap::new(),
            responder: Responder::start(now),
            cookies: Cookies::new(secret),
            proofs: Proofs::default(),
            allows_open: false,
            counter,
            began_nanos: counter.saturating_sub(nanos(now)),
            outbox: VecDeque::new(),
            is_quiet: false,
        }
    }

    /// At a SaP: an entity may be beyond underlays that are declared managed.
    pub fn allow_open(&mut self) {
        self.allows_open = true;
    }

    /// Whether nothing is asked of SaPs: another process is this node, and they should hear it alone.
    pub fn set_quiet(&mut self, is_quiet: bool) {
        self.is_quiet = is_quiet;
    }

    /// Takes the links of `table`; what is known of links that stay is kept. What was told of liveness
    /// is told again, because a new table means a new snapshot.
    pub fn replace_links(&mut self, table: &NodeTable, now: Duration) {
        let mut before = std::mem::take(&mut self.links);
        let names = Names::of(table);
        for row in &table.body.links {
            let (name, endpoints) = names.find(row.peer);
            let probes = table.body.node.kind == NodeKind::Entity;
            let mut link = match before.remove(&row.id) {
                Some(link) if link.secret == row.secret && link.peer == row.peer => link,
                Some(_) | None => Link {
                    peer: row.peer,
                    name: String::new(),
                    secret: row.secret.clone(),
                    endpoints: Vec::new(),
                    prober: probes.then(|| Prober::start(now)),
                    lost: Lost::default(),
                    hearing: Hearing::default(),
                    heard: None,
                    claimed: None,
                    cookie: 0,
                    answers: Budget::full(ANSWERS_PER_SECOND, now),
                    told: None,
                    told_returning: false,
                },
            };
            link.endpoints = endpoints;
            link.name = name;
            link.told = None;
            link.told_returning = false;
            link.lost.renew(|node| names.knows(node));
            self.links.insert(row.id, link);
        }
        let links = &self.links;
        self.responder.retain(|id| links.contains_key(&id));
        let peers: BTreeSet<NodeId> = links.values().map(|link| link.peer).collect();
        self.proofs.retain(|peer| peers.contains(&peer));
    }

    /// A control datagram came from `from`. `Ok` when it was authentic and new; with what it says
    /// where somebody else has to act on it.
    ///
    /// # Errors
    ///
    /// Why it is dropped: to be counted.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Duration,
    ) -> Result<Option<Heard>, DropReason> {
        let id = match gue::decode(datagram)? {
            Frame::Control { link, .. } => link,
            Frame::Data { .. } => return Err(DropReason::ControlType),
        };
        let from = canonical(from);
        let is_known = self.links.get(&id).is_some_and(|link| link.knows(from));
        let source = if is_known { Source::Known } else { Source::Unknown };
        self.responder.admit(source, now)?;
        let link = self.links.get(&id).ok_or(DropReason::ControlMac)?;
        let (counter, message) = control::decode(datagram, &link.secret)?;
        let is_lost = |about: NodeId| {
            let found = self.links.values().find(|link| link.peer == about);
            found.is_none_or(|link| link.hearing.is_silent(now))
        };
        let is_asked_after_lost = matches!(
            message,
            Message::EchoRequest(Echo { about: Some(about), .. }) if is_lost(about)
        );
        let is_only = matches!(
            message,
            Message::EchoReply(Echo { about: Some(about), .. }) if !self.reaches_elsewhere(about, id)
        );
        let link = self.links.get_mut(&id).ok_or(DropReason::ControlMac)?;
        match (message, &mut link.prober) {
            // A SaP answers and asks nothing; an entity asks and answers nothing: so neither's own
            // messages, sent back to it, mean anything.
            (Message::EchoRequest(echo), None) => {
                self.responder.handle_request(id, counter)?;
                if !self.allows_open && !is_managed(from.ip()) {
                    return Err(DropReason::OuterSource);
                }
                if !link.answers.take(now) {
                    return Err(DropReason::ControlBudget);
                }
                let cookie = self.cookies.make(id, from, now);
                let answer = if self.cookies.knows(echo.cookie, id, from, now) {
                    link.heard = Some((now, from));
                    link.hearing.handle_heard();
                    self.proofs.prove(link.peer, from);
                    let is_translated = !link.endpoints.is_empty() && !link.is_named(from);
                    let is_lost = is_asked_after_lost;
                    Message::EchoReply(Echo { is_lost, is_translated, cookie, ..echo })
                } else {
                    link.claimed = Some(from);
                    Message::Challenge(Echo { cookie, ..echo })
                };
                self.counter = next(self.counter, self.began_nanos, now);
                let (bytes, len) = control::encode(id, &link.secret, self.counter, &answer);
                // Never longer than the question, whatever the encoder does.
                if len <= datagram.len() && self.outbox.len() < OUTBOX_MAX {
                    self.outbox.push_back(Transmit { to: from, bytes: bytes[..len].to_vec() });
                }
                Ok(None)
            }
            (Message::EchoReply(echo), Some(prober)) => {
                self.responder.handle_request(id, counter)?;
                if prober.handle_reply(&echo, now) {
                    link.heard = Some((now, from));
                    link.cookie = echo.cookie;
                    if let Some(about) = echo.about {
                        link.lost.handle_answer(about, echo.is_lost, is_only, now);
                    }
                }
                Ok(None)
            }
            (Message::Challenge(echo), Some(prober)) => {
                self.responder.handle_request(id, counter)?;
                if prober.handle_challenge(&echo, now) {
                    link.cookie = echo.cookie;
                }
                Ok(None)
            }
            (Message::NoPath(NoPath { node }), Some(_)) => {
                self.responder.handle_request(id, counter)?;
                link.lost.handle_no_path(node);
                Ok(None)
            }
            (Message::Denied(_) | Message::TooBig(_), Some(_))
            | (Message::Refused(_) | Message::Started(_), None) => {
                self.responder.handle_request(id, counter)?;
                Ok(Some(Heard { peer: link.peer, message }))
            }
            (Message::EchoRequest(_) | Message::Refused(_) | Message::Started(_), Some(_))
            | (
                Message::EchoReply(_)
                | Message::Challenge(_)
                | Message::Denied(_)
                | Message::TooBig(_)
                | Message::NoPath(_),
                None,
            ) => Err(DropReason::ControlType),
        }
    }

    /// At a SaP: where entities are.
    #[must_use]
    pub fn proofs(&self) -> &Proofs {
        &self.proofs
    }

    /// At a SaP: what the process before this one knew of entities, which they are asked to prove again.
    pub fn remember(&mut self, proved: impl IntoIterator<Item = (NodeId, SocketAddr)>) {
        for (entity, endpoint) in proved {
            self.proofs.prove(entity, endpoint);
        }
    }

    /// At an entity: where SaPs are asked.
    pub fn targets(&self) -> impl Iterator<Item = SocketAddr> {
        let probed = self.links.values().filter(|link| link.prober.is_some());
        probed.filter_map(|link| link.endpoints.first().copied())
    }

    /// At an entity: it has another address than before, which it proves at once.
    pub fn handle_moved(&mut self, now: Duration) {
        for prober in self.links.values_mut().filter_map(|link| link.prober.as_mut()) {
            prober.handle_moved(now);
        }
    }

    /// Queues a notice for `peer`, to where its data goes; `false` when there is no link to it, no
    /// endpoint, or no room.
    pub fn notify(&mut self, peer: NodeId, message: &Message) -> bool {
        let found = self.links.iter().find(|(_, link)| link.peer == peer);
        let Some((&id, link)) = found.filter(|_| self.outbox.len() < OUTBOX_MAX) else {
            return false;
        };
        let to = match link.prober {
            Some(_) => link.endpoints.first().copied(),
            None => self.proofs.endpoint(peer),
        };
        let Some(to) = to else { return false };
        self.counter += 1;
        let (bytes, len) = control::encode(id, &link.secret, self.counter, message);
        if len > 0 {
            self.outbox.push_back(Transmit { to, bytes: bytes[..len].to_vec() });
        }
        len > 0
    }

    /// Data was sent or received. Extra calls are harmless.
    pub fn handle_activity(&mut self, now: Duration) {
        for prober in self.links.values_mut().filter_map(|link| link.prober.as_mut()) {
            prober.handle_activity(now);
        }
    }

    /// At a SaP: packets went to these entities. Extra calls are harmless.
    pub fn handle_sent(&mut self, peers: &BTreeSet<NodeId>, now: Duration) {
        for link in self.links.values_mut().filter(|link| peers.contains(&link.peer)) {
            link.hearing.handle_sent(now);
        }
    }

    /// At a SaP: the silent entities whose senders have to be told now.
    pub fn silent(&mut self, now: Duration) -> BTreeSet<NodeId> {
        let links = self.links.values_mut();
        let told = links.filter_map(|link| link.hearing.poll_tell(now).then_some(link.peer));
        told.collect()
    }

    /// Time passed. Extra calls are harmless.
    pub fn handle_timeout(&mut self, now: Duration) {
        for prober in self.links.values_mut().filter_map(|link| link.prober.as_mut()) {
            prober.handle_timeout(now);
        }
    }

    /// A datagram that is due, if any.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<Transmit> {
        if let Some(answer) = self.outbox.pop_front() {
            return Some(answer);
        }
        if self.is_quiet {
            return None;
        }
        for (&id, link) in &mut self.links {
            let Some(&to) = link.endpoints.first() else { continue };
            let Some(echo) = link.prober.as_mut().and_then(|prober| prober.poll_transmit(now))
            else {
                continue;
            };
            self.counter = next(self.counter, self.began_nanos, now);
            let about = link.lost.next_question();
            let request = Message::EchoRequest(Echo { about, cookie: link.cookie, ..echo });
            let (bytes, len) = control::encode(id, &link.secret, self.counter, &request);
            return Some(Transmit { to, bytes: bytes[..len].to_vec() });
        }
        None
    }

    /// Whether answers or notices wait.
    #[must_use]
    pub fn has_queued(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// When to call [`Self::handle_timeout`] again; none when nothing is probed.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.links
            .values()
            .filter(|link| !self.is_quiet && !link.endpoints.is_empty())
            .filter_map(|link| link.prober.as_ref().map(Prober::next_deadline))
            .min()
    }

    /// What changed since the last call, and all that is known after a new table.
    pub fn changes(&mut self) -> Vec<Change> {
        let takes_returning = self.takes_returning();
        let mut changes = Vec::new();
        for link in self.links.values_mut() {
            let sap = link.peer;
            if let Some(is_alive) = link.takes_traffic(takes_returning)
                && link.told != Some(is_alive)
            {
                link.told = Some(is_alive);
                changes.push(Change::Sap { sap, is_alive });
            }
            let is_returning = link.is_returning();
            if link.told_returning != is_returning {
                link.told_returning = is_returning;
                changes.push(Change::Returning { sap, is_returning });
            }
            let peers = link.lost.take_changes().into_iter();
            changes.extend(peers.map(|(peer, reaches)| Change::Peer { sap, peer, reaches }));
        }
        changes
    }

    /// Whether a SaP takes traffic and reaches `peer`, beside the one of this link.
    fn reaches_elsewhere(&self, peer: NodeId, link: LinkId) -> bool {
        let takes_returning = self.takes_returning();
        let others = self.links.iter().filter(|(id, _)| **id != link).map(|(_, other)| other);
        others
            .filter(|other| other.takes_traffic(takes_returning) == Some(true))
            .any(|other| other.lost.reaches(peer))
    }

    /// A SaP that is not back for long enough is better than none.
    fn takes_returning(&self) -> bool {
        let mut probers = self.links.values().filter_map(|link| link.prober.as_ref());
        !probers.any(|prober| prober.liveness() == Liveness::Alive)
    }

    /// What is known of each peer, for status and reports.
    #[must_use]
    pub fn peers(&self, now: Duration) -> Vec<PeerState> {
        let takes_returning = self.takes_returning();
        self.links
            .values()
            .map(|link| {
                let heard = link.heard.filter(|&(at, _)| now.saturating_sub(at) < HEARD_WITHIN);
                let is_alive = match &link.prober {
                    Some(_) => link.takes_traffic(takes_returning) == Some(true),
                    None => heard.is_some(),
                };
                PeerState {
                    peer: link.peer,
                    name: link.name.clone(),
                    endpoint: match &link.prober {
                        Some(_) => link.endpoints.first().copied(),
                        None => self.proofs.endpoint(link.peer),
                    },
                    is_alive,
                    round_trip: link.prober.as_ref().and_then(Prober::round_trip),
                    translated: heard.map(|(_, from)| from).filter(|from| {
                        // Of those whose packets go elsewhere a SaP's table has no endpoints.
                        let is_known = link.prober.is_none() && !link.endpoints.is_empty();
                        is_known && !link.is_named(*from)
                    }),
                }
            })
            .collect()
    }
}

impl Link {
    fn is_returning(&self) -> bool {
        self.prober.as_ref().is_some_and(|prober| prober.liveness() == Liveness::Returning)
    }

    /// Whether the SaP at the other end takes traffic; none where that is not known.
    fn takes_traffic(&self, takes_returning: bool) -> Option<bool> {
        match self.prober.as_ref()?.liveness() {
            Liveness::Alive => Some(true),
            Liveness::Returning => Some(takes_returning),
            Liveness::Dead => Some(false),
            Liveness::Unknown => None,
        }
    }

    fn knows(&self, from: SocketAddr) -> bool {
        self.is_named(from)
            || self.heard.is_some_and(|(_, heard)| heard == from)
            || self.claimed == Some(from)
    }

    /// Whether the peer itself says that it is there.
    fn is_named(&self, from: SocketAddr) -> bool {
        self.endpoints.iter().any(|&endpoint| canonical(endpoint) == from)
    }
}

/// The counter after `last`.
fn next(last: u64, began_nanos: u64, now: Duration) -> u64 {
    began_nanos.saturating_add(nanos(now)).max(last.saturating_add(1))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// An IPv4 address that came through an IPv6 socket is an IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Names and endpoints of the peers in a table.
struct Names(BTreeMap<NodeId, (String, BTreeSet<SocketAddr>, Vec<SocketAddr>)>);

impl Names {
    fn of(table: &NodeTable) -> Self {
        let mut names: BTreeMap<NodeId, (String, BTreeSet<SocketAddr>, Vec<SocketAddr>)> =
            BTreeMap::new();
        let saps = table.body.saps.iter().map(|sap| (sap.id, sap.name.to_string(), &sap.endpoints));
        let members = table.body.overlays.iter().flat_map(|overlay| {
            overlay
                .members
                .iter()
                .map(|member| (member.id, member.name.to_string(), &member.endpoints))
        });
        for (id, name, endpoints) in saps.chain(members) {
            let (_, seen, list) =
                names.entry(id).or_insert_with(|| (name, BTreeSet::new(), Vec::new()));
            list.extend(endpoints.iter().copied().filter(|&endpoint| seen.insert(endpoint)));
        }
        Self(names)
    }

    fn knows(&self, id: NodeId) -> bool {
        self.0.contains_key(&id)
    }

    fn find(&self, id: NodeId) -> (String, Vec<SocketAddr>) {
        self.0.get(&id).map_or_else(
            || (id.to_string(), Vec::new()),
            |(name, _, endpoints)| (name.clone(), endpoints.clone()),
        )
    }
}

#[cfg(test)]
mod tests;

//! What the server holds in memory: the world, the tables, and how far each node is. One lock, held
//! for moments and never across an await.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::compile::Source;
use super::keyset::{Keys, RingId};
use super::rotation::Serials;
use super::speaker::{Process, Speaker};
use super::store::keys::RingRow;
use super::store::lives::Lives;
use super::store::policies::Policies;
use crate::api::admin::{NodeHealth, Pending};
use crate::api::errand::Errand;
use crate::api::node::{Guessed, RoundTrip, Translated};
use crate::api::{Problem, ProblemCode};
use crate::keys::rotation::Step;
use crate::policy::{Leg, NodeFacts, World};
use crate::types::{Incarnation, NodeId, NodeKind, OverlayId, Revision, Secret, Serial, Timestamp};

/// How long a node counts as online between two polls: it applies and persists a table meanwhile.
const BETWEEN_POLLS: Duration = Duration::from_secs(3);

/// How often one node may bring news (endpoints, version) that recompile tables, and how long its
/// line may be.
const NEWS_EVERY: Duration = Duration::from_secs(1);
const NEWS_LINE: Duration = Duration::from_secs(3);

/// What is in memory of a table's bytes.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// Nothing: nobody is likely to ask for it.
    Nothing,
    /// The body as JSON, which its node will ask for.
    Body(Arc<str>),
    /// All that is sent, compressed: its node asked for it, and has not acknowledged it.
    Document(Bytes),
}

/// Unknown credentials that are counted.
const STRANGERS_MAX: usize = 1024;

/// Guessed pairs that wait for the clockwork.
const GUESSED_MAX: usize = 256;

/// A compiled table.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) serial: Serial,
    /// SHA-256 of its body.
    pub(crate) hash: Secret,
    pub(crate) kept: Kept,
    /// What its body can be compiled from again.
    pub(crate) source: Arc<Source>,
    pub(crate) revision: Revision,
}

/// A table of another life of this server, which a node has in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keeps {
    pub(crate) incarnation: Incarnation,
    /// The revision that it was compiled from, once the node said so.
    pub(crate) revision: Option<Revision>,
}

/// One node at the moment.
#[derive(Debug)]
pub(crate) struct NodeState {
    /// The table that it may have.
    pub(crate) shown: Option<Table>,
    /// A newer one that waits until SaPs and destinations have theirs.
    pub(crate) held: Option<Table>,
    /// From the database: continues the count after a restart.
    pub(crate) stored: Option<(Serial, Secret)>,
    pub(crate) acknowledged: Serial,
    /// Acknowledged since the database was last told.
    pub(crate) is_unsaved: bool,
    /// Open polls.
    pub(crate) polls: u32,
    /// Numbers polls; an older one gives way to a newer.
    pub(crate) poll_number: u64,
    pub(crate) polled: Option<Instant>,
    /// Since when this server knows it: its start, or when the node joined.
    pub(crate) known: Instant,
    pub(crate) seen: Option<Timestamp>,
    pub(crate) version: String,
    pub(crate) problems: Vec<String>,
    pub(crate) round_trips: Vec<RoundTrip>,
    /// The same as paths are chosen by; empty before the first report.
    pub(crate) legs: BTreeMap<NodeId, Leg>,
    /// Of a SaP: entities behind NATs.
    pub(crate) translated: Vec<Translated>,
    /// The overlays whose rules about addresses outside its guard holds it to.
    pub(crate) holds_egress: BTreeSet<OverlayId>,
    pub(crate) endpoints: Vec<SocketAddr>,
    /// What it keeps instead of a table of this server.
    pub(crate) keeps: Option<Keeps>,
    /// When its next news may change tables.
    pub(crate) news_from: Instant,
    /// What its next poll brings it to do.
    pub(crate) errands: VecDeque<Errand>,
    /// Which of its processes is served.
    pub(crate) speaker: Speaker,
    /// Wakes its poll.
    pub(crate) wake: watch::Sender<u64>,
}

impl NodeState {
    /// A node of which nothing was heard since the start.
    pub(crate) fn new() -> Self {
        Self {
            shown: None,
            held: None,
            stored: None,
            acknowledged: Serial(0),
            is_unsaved: false,
            polls: 0,
            poll_number: 0,
            polled: None,
            known: Instant::now(),
            seen: None,
            version: String::new(),
            problems: Vec::new(),
            round_trips: Vec::new(),
            legs: BTreeMap::new(),
            translated: Vec::new(),
            holds_egress: BTreeSet::new(),
            endpoints: Vec::new(),
            keeps: None,
            news_from: Instant::now(),
            errands: VecDeque::new(),
            speaker: Speaker::default(),
            wake: watch::Sender::new(0),
        }
    }

    /// The newest table, shown or not.
    pub(crate) fn newest(&self) -> Option<&Table> {
        self.held.as_ref().or(self.shown.as_ref())
    }

    /// Its serial.
    pub(crate) fn newest_serial(&self) -> Serial {
        self.newest()
            .map(|table| table.serial)
            .or(self.stored.as_ref().map(|(serial, _)| *serial))
            .unwrap_or(Serial(0))
    }

    /// Whether it holds a connection for its next table, or did a moment ago.
    pub(crate) fn is_online(&self) -> bool {
        self.polls > 0 || self.polled.is_some_and(|at| at.elapsed() < BETWEEN_POLLS)
    }

    /// Whether nothing was heard of it for `limit`. A server that was away itself counts from its start.
    pub(crate) fn is_gone_for(&self, limit: Duration) -> bool {
        self.polls == 0 && self.polled.unwrap_or(self.known).elapsed() >= limit
    }

    /// Takes what it measured; gives the round trips that count from now on, in microseconds, where they
    /// are others than those that are written down: whoever fails to write them down is told again.
    pub(crate) fn measure(&mut self, world: &World, own: &NodeFacts) -> BTreeMap<NodeId, u32> {
        let mut changed = BTreeMap::new();
        for RoundTrip { sap, micros } in &self.round_trips {
            let is_sap = |facts: &Arc<NodeFacts>| facts.kind == NodeKind::Sap;
            let (Some(micros), true) = (*micros, world.nodes.get(sap).is_some_and(is_sap)) else {
                continue;
            };
            let held = own.round_trips.get(sap).copied();
            let leg = self
                .legs
                .entry(*sap)
                .or_insert_with(|| held.map_or_else(Leg::default, Leg::held_at));
            leg.measure(micros);
            if let Some(step) = leg.held().filter(|step| held != Some(*step)) {
                changed.insert(*sap, step);
            }
        }
        changed
    }

    /// Notes that the node has the table of this serial. What it was never shown it cannot have applied.
    pub(crate) fn acknowledge(&mut self, after: Serial) {
        let shown = self.shown.as_ref().map_or(Serial(0), |table| table.serial);
        if after > self.acknowledged && after <= shown {
            self.acknowledged = after;
            self.is_unsaved = true;
        }
    }

    /// Takes a turn to bring news, one each `NEWS_EVERY`, so that a node that keeps changing its mind
    /// keeps nobody else waiting. None when too many of its own are in line.
    pub(crate) fn take_turn(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let turn = self.news_from.max(now);
        if turn > now + NEWS_LINE {
            return None;
        }
        self.news_from = turn + NEWS_EVERY;
        Some(turn)
    }

    /// What is wrong: what it says itself, and what is said about it.
    pub(crate) fn problems(&self) -> Vec<String> {
        let at = |process: Process| process.from.map_or_else(String::new, |ip| format!(" at {ip}"));
        let copy = self.speaker.copy(Instant::now()).map(|(served, copy)| {
            format!(
                "its identity is used twice: the process{} is served, one{} is refused; on the copy remove \
                 the state directory and join with a new token, or delete the node where it was stolen",
                at(served),
                at(copy)
            )
        });
        copy.into_iter().chain(self.problems.iter().cloned()).collect()
    }

    /// For lists.
    pub(crate) fn health(&self) -> NodeHealth {
        NodeHealth {
            online: self.is_online(),
            // It holds a connection: it is being heard of.
            seen: if self.polls > 0 { Some(super::server::now()) } else { self.seen },
            serial: self.newest_serial(),
            acknowledged: self.acknowledged,
            version: self.version.clone(),
            problems: self.problems(),
        }
    }

    /// Why it has not acknowledged, in words.
    pub(crate) fn why_behind(&self) -> String {
        match (self.is_online(), self.seen) {
            (true, _) if self.keeps.is_some() => {
                "keeps the tables of before the restore (ovctl restore --accept)".to_owned()
            }
            (true, _) => "has not answered".to_owned(),
            (false, Some(seen)) => format!("offline since {seen}"),
            (false, None) => "offline since the server started".to_owned(),
        }
    }
}

/// Everything at the moment.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) world: Arc<World>,
    /// The policies in `world`.
    pub(crate) policies: Arc<Policies>,
    /// What the tables in force are compiled from. None before the first, and while a publication is under
    /// way: one that ends early leaves none, and everything is read anew.
    pub(crate) source: Option<Arc<Source>>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) nodes: BTreeMap<NodeId, NodeState>,
    /// The SaPs of each overlay in `world`; here because rotations ask also while `source` is away.
    pub(crate) saps: BTreeMap<OverlayId, Vec<NodeId>>,
    /// Who stamps keys of a destination, by the tables in force.
    pub(crate) senders: BTreeMap<(OverlayId, NodeId), Box<[NodeId]>>,
    /// For rings under way: the serials that carry the step.
    pub(crate) asked: BTreeMap<RingId, Serials>,
    /// Pairs whose keys somebody guesses at, and who said so, until the clockwork has looked at them.
    pub(crate) guessed: BTreeMap<Guessed, NodeId>,
    /// The lives of the database, as tables say them.
    pub(crate) lives: Arc<Lives>,
    /// Hashes of credentials that ask for a table and are nobody's.
    pub(crate) strangers: BTreeSet<[u8; 32]>,
}

impl Live {
    /// The world, and in which overlays whose guards hold to what is said of addresses outside.
    pub(crate) fn for_answers(&self) -> (Arc<World>, BTreeSet<(OverlayId, NodeId)>) {
        let holding = self
            .nodes
            .iter()
            .flat_map(|(id, node)| node.holds_egress.iter().map(move |overlay| (*overlay, *id)));
        (Arc::clone(&self.world), holding.collect())
    }

    /// Takes what the database says of its lives; nodes are told when that is news.
    pub(crate) fn take_lives(&mut self, lives: Lives) {
        if *self.lives == lives {
            return;
        }
        self.lives = Arc::new(lives);
        for node in self.nodes.values_mut() {
            if let Some(table) = node.shown.as_mut().filter(|t| matches!(t.kept, Kept::Document(_)))
            {
                table.kept = Kept::Nothing;
            }
            node.wake.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// The nodes that keep the table of a life that nobody let them leave.
    pub(crate) fn keepers(&self) -> impl Iterator<Item = (NodeId, &Keeps)> {
        let keepers = self.nodes.iter().filter_map(|(id, node)| Some((*id, node.keeps.as_ref()?)));
        keepers.filter(|(_, keeps)| !self.lives.accepted.contains(&keeps.incarnation))
    }

    /// Remembers that somebody asks for a table with a credential that is nobody's.
    pub(crate) fn note_stranger(&mut self, hash: &Secret) {
        if self.strangers.len() < STRANGERS_MAX {
            self.strangers.insert(*hash.expose());
        }
    }

    /// Remembers which serials carry the steps that rings have entered since `older`. Whoever publishes
    /// calls it while nobody else can look, so that no step is ever taken for acknowledged by what was
    /// asked for an earlier one.
    pub(crate) fn note_asked(&mut self, older: &Keys) {
        if std::ptr::eq(&*self.keys, older) {
            return;
        }
        let step = |row: &RingRow| (row.ring.step, row.ring.next);
        let serials = self.nodes.iter().map(|(id, node)| (*id, node.newest_serial()));
        let serials: Serials = Arc::new(serials.collect());
        let Self { asked, keys, .. } = self;
        asked.retain(|id, _| keys.rings.contains_key(id));
        for (id, row) in &keys.rings {
            if row.ring.step == Step::Steady {
                asked.remove(id);
            } else if older.rings.get(id).map(step) != Some(step(row)) {
                asked.insert(*id, Arc::clone(&serials));
            }
        }
    }

    /// Takes what `node` says of keys that are guessed at: of its own, and of those that a SaP checks.
    pub(crate) fn note_guessed(&mut self, node: NodeId, pairs: &[Guessed]) {
        let is_member = |id: NodeId, overlay: OverlayId| {
            self.world.nodes.get(&id).is_some_and(|node| node.addresses.contains_key(&overlay))
        };
        let serves = |overlay: &OverlayId| {
            self.world.nodes.get(&node).is_some_and(|node| node.serves.contains(overlay))
        };
        for pair in pairs {
            let Guessed { overlay, from, to } = *pair;
            let may_know = node == to || serves(&overlay);
            let is_pair = from != to && is_member(from, overlay) && is_member(to, overlay);
            if may_know && is_pair && self.guessed.len() < GUESSED_MAX {
                self.guessed.insert(*pair, node);
            }
        }
    }

    /// Whether the node acknowledged `serial`; a node that is gone counts as having done so.
    pub(crate) fn has_acknowledged(&self, id: NodeId, serial: Serial) -> bool {
        self.nodes.get(&id).is_none_or(|node| node.acknowledged >= serial)
    }

    /// Refuses a direct path to or from an entity that sits behind a NAT, as far as SaPs reported.
    pub(crate) fn refuse_translated(
        &self,
        entities: impl IntoIterator<Item = NodeId>,
    ) -> Result<(), Problem> {
        let saps = self.nodes.iter().filter(|(id, _)| {
            self.world.nodes.get(id).is_some_and(|facts| facts.kind == NodeKind::Sap)
        });
        let reported: BTreeMap<NodeId, SocketAddr> = saps
            .flat_map(|(_, node)| &node.translated)
            .map(|translated| (translated.entity, translated.from))
            .collect();
        let found = entities.into_iter().find_map(|id| Some((id, reported.get(&id)?)));
        let Some((id, from)) = found else { return Ok(()) };
        let name = super::rotation::name_of(&self.world, id);
        Err(Problem::new(ProblemCode::Conflict, format!("{name} cannot be reached directly"))
            .why(format!("it is behind a NAT: SaPs hear it from {from}, which it does not say itself"))
            .fix("let the pair go over a SaP, or start its ovd with --endpoint and forward that port"))
    }

    /// A node that is behind, for people.
    pub(crate) fn pending(&self, id: NodeId) -> Pending {
        Pending {
            node: super::rotation::name_of(&self.world, id).to_string(),
            why: self.nodes.get(&id).map_or_else(|| "is gone".to_owned(), NodeState::why_behind),
        }
    }
}

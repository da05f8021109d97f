//! A node that runs: tables come in, snapshots, devices and links follow; status and reports go out.
//! One task on one thread, beside the hallways' threads.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::RngExt as _;
use tokio::sync::{Notify, mpsc};

use super::applier::{Applier, pull};
use super::devices::Devices;
use super::endpoints::Wanted;
use super::guarding::{Guarding, SharedGuard};
use super::handover::{self, Estate, Predecessor, UDP, queues_of};
use super::naming::Naming;
use super::service_manager::ServiceManager;
use super::{answers, control_loop, errands, guessing, roaming, shutdown};
use crate::agent::client::Client;
use crate::agent::denials::Denials;
use crate::agent::explain::{self, Known};
use crate::agent::guesses::Guesses;
use crate::agent::health::Health;
use crate::agent::probes::{PeerState, Probes};
use crate::agent::state::{Identity, StateDir};
use crate::agent::sync::Puller;
use crate::agent::tracers::Sightings;
use crate::agent::{flows, report};
use crate::api::local::{
    Denial, DenialList, HallwayStatus, LocalQuestion, LocalWhy, NARROW_MAX, NamesStatus, NarrowWay,
    NodeStatus, OverlayStatus, SapStatus, TableStatus,
};
use crate::api::node::{NodeReport, RoundTrip, Translated};
use crate::api::{Problem, ProblemCode};
use crate::dataplane::publish::Publisher;
use crate::dataplane::{ControlPort, Counters, EntityPlane, Passed, SapPlane, Way};
use crate::forward::{FlowTable, PathMtus, Snapshot};
use crate::local::Socket;
use crate::sys::clock;
use crate::types::{
    ApiVersion, EntityName, HumanDuration, Instance, NodeId, NodeKind, Secret, Timestamp,
};
use crate::wire::control::Message;

/// What counts as denied lately, in status.
const LATELY: Duration = Duration::from_secs(600);

/// How long the endpoints are looked for before the first table is in force.
const FIRST_LOOK: Duration = Duration::from_millis(100);

/// How many notices of peers may wait.
const HEARD_CAPACITY: usize = 64;

/// How many entities behind NATs a SaP reports.
const TRANSLATED_MAX: usize = 1024;

/// How many errands of the server may wait.
const ERRANDS_CAPACITY: usize = 16;

/// This program's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What runs on OS threads.
pub(crate) enum Plane {
    /// `ovd`.
    Entity(EntityPlane, Devices),
    /// `ovsap`.
    Sap(SapPlane),
}

impl Plane {
    pub(crate) fn counters(&self) -> Arc<Counters> {
        match self {
            Self::Entity(plane, _) => plane.counters(),
            Self::Sap(plane) => plane.counters(),
        }
    }

    /// Lets the hallways read.
    pub(crate) fn open(&mut self) {
        match self {
            Self::Entity(plane, _) => plane.open(),
            Self::Sap(plane) => plane.open(),
        }
    }

    /// Stops reading, and hands what packets come and go by, and `estate`, to the process that asks on
    /// `stream`; goes on when that does not come to be.
    pub(crate) fn hand_over(
        &mut self,
        stream: &UnixStream,
        estate: &Estate,
    ) -> std::io::Result<()> {
        let started = Instant::now();
        self.shut();
        let (sockets, queues) = match self {
            Self::Entity(plane, _) => (plane.sockets().collect::<Vec<_>>(), plane.queues()),
            Self::Sap(plane) => (plane.sockets().collect(), Vec::new()),
        };
        let sockets = sockets.iter().map(|socket| (UDP.to_owned(), socket.descriptor()));
        let queues = queues.iter().map(|queue| (queues_of(queue.name()), queue.descriptor()));
        let result = estate.hand_over(stream, sockets.chain(queues));
        if result.is_err() {
            self.open();
        }
        tracing::debug!(took = ?started.elapsed(), is_done = result.is_ok(), "handing over");
        result
    }

    fn shut(&mut self) {
        match self {
            Self::Entity(plane, _) => plane.shut(),
            Self::Sap(plane) => plane.shut(),
        }
    }

    /// Ends the hallways; the devices vanish unless they are another process's.
    fn end(self, is_anothers: bool) {
        match self {
            Self::Entity(plane, _) if is_anothers => plane.leave(),
            Self::Entity(plane, _) => plane.stop(),
            Self::Sap(plane) => plane.stop(),
        }
    }
}

/// What the tasks of a node share.
pub(crate) struct Shared {
    pub(crate) publisher: Arc<Publisher<Snapshot>>,
    pub(crate) counters: Arc<Counters>,
    /// The links of the table in force changed, or a message waits.
    pub(crate) control_due: Notify,
    /// This host has another address towards a SaP than before.
    pub(crate) moved: Notify,
    flows: Arc<FlowTable>,
    path_mtus: Arc<Publisher<PathMtus>>,
    /// What the hallways counted, on its way to the server.
    pub(crate) counted: flows::Reporter,
    probes: Mutex<Probes>,
    denials: Mutex<Denials>,
    guesses: Mutex<Guesses>,
    sightings: Mutex<Sightings>,
    pub(crate) health: Arc<Health>,
    pub(crate) guard: Arc<SharedGuard>,
    facts: Mutex<Facts>,
    pub(crate) identity: Identity,
    started: Timestamp,
    start: Instant,
}

/// What status shows of the table in force.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) table: Option<TableStatus>,
    pub(crate) endpoints: Vec<std::net::SocketAddr>,
    pub(crate) overlays: Vec<OverlayStatus>,
    pub(crate) names: Arc<BTreeMap<IpAddr, EntityName>>,
    pub(crate) resolver: Option<NamesStatus>,
}

impl Shared {
    pub(crate) fn new(
        identity: Identity,
        publisher: Arc<Publisher<Snapshot>>,
        flows: Arc<FlowTable>,
        path_mtus: Arc<Publisher<PathMtus>>,
        counters: Arc<Counters>,
    ) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = clock::wall();
        let url = identity.urls.first().map_or("", String::as_str);
        let mut probes = Probes::start(Duration::ZERO, wall, &Secret::new(rand::rng().random()));
        if identity.clear_underlay {
            probes.allow_open();
        }
        Self {
            publisher,
            counters,
            control_due: Notify::new(),
            moved: Notify::new(),
            flows,
            path_mtus,
            counted: flows::Reporter::new(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
            probes: Mutex::new(probes),
            denials: Mutex::default(),
            guesses: Mutex::default(),
            sightings: Mutex::default(),
            health: Arc::new(Health::new(url, started)),
            guard: Arc::default(),
            facts: Mutex::default(),
            identity,
            started,
            start: Instant::now(),
        }
    }

    /// The time since the daemon started.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `peer` a notice, where there is a link to it.
    pub(crate) fn notify(&self, peer: NodeId, notice: &Message) {
        if self.probes().notify(peer, notice) {
            self.control_due.notify_one();
        }
    }

    /// At a SaP: has the hallways send to where entities are.
    pub(crate) fn place_entities(&self, snapshot: &Snapshot) -> Snapshot {
        let probes = self.probes();
        snapshot.with_proved(|entity| probes.proofs().endpoint(entity))
    }

    /// Tells the server soon how this node is.
    pub(crate) fn report_soon(&self) {
        self.health.poke();
    }

    pub(crate) fn flows(&self) -> &FlowTable {
        &self.flows
    }

    pub(crate) fn denials(&self) -> MutexGuard<'_, Denials> {
        self.denials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn guesses(&self) -> MutexGuard<'_, Guesses> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sightings(&self) -> MutexGuard<'_, Sightings> {
        self.sightings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was refused in this time, or at all.
    fn denied(&self, since: Option<HumanDuration>) -> DenialList {
        let names = Arc::clone(&self.facts().names);
        let peer = |denial: &Denial| names.get(&denial.destination).cloned();
        let since = since.map_or(Timestamp(0), |since| ago(since.0));
        let denials = self.denials();
        let named =
            denials.since(since).map(|denial| Denial { peer: peer(denial), ..denial.clone() });
        DenialList { api_version: ApiVersion::V1, items: named.collect() }
    }

    /// What is known here of a flow that this host would start.
    fn why(&self, question: &LocalQuestion) -> Result<LocalWhy, Problem> {
        let Facts { names, table, .. } = self.facts().clone();
        let known = Known {
            name: &self.identity.name,
            names: &names,
            saps: &self.saps(),
            table: table.as_ref(),
            denials: self.denied(Some(HumanDuration(LATELY))).items,
            now: clock::wall(),
        };
        explain::explain(&self.publisher.current(), &known, question)
    }

    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peers(&self) -> Vec<PeerState> {
        self.probes().peers(self.now())
    }

    fn saps(&self) -> Vec<SapStatus> {
        let saps = self.peers().into_iter().map(|peer| SapStatus {
            id: peer.peer,
            name: peer.name,
            endpoint: peer.endpoint,
            alive: peer.is_alive,
            round_trip_micros: peer.round_trip.map(micros),
        });
        saps.collect()
    }

    fn narrow(&self) -> Vec<NarrowWay> {
        let known = self.path_mtus.current();
        let known = known.known(clock::monotonic_millis());
        let mut ways: Vec<_> =
            known.map(|(destination, mtu)| NarrowWay { destination, mtu }).collect();
        ways.sort_unstable();
        ways.truncate(NARROW_MAX);
        ways
    }

    fn status(&self) -> NodeStatus {
        let facts = self.facts().clone();
        let ways: &[Way] = match self.identity.kind {
            NodeKind::Entity => &[Way::Egress, Way::Ingress],
            NodeKind::Sap => &[Way::Transit],
        };
        let moved = |way: &Way| {
            let Passed { packets, bytes } = self.counters.passed(*way);
            (way.name().to_owned(), HallwayStatus { packets, bytes })
        };
        NodeStatus {
            api_version: ApiVersion::V1,
            version: VERSION.to_owned(),
            id: self.identity.id,
            kind: self.identity.kind,
            name: self.identity.name.clone(),
            started: self.started,
            server: self.health.server(),
            table: facts.table,
            endpoints: facts.endpoints,
            overlays: facts.overlays,
            saps: self.saps(),
            packets: ways.iter().map(moved).collect(),
            drops: self.counters.drops().into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            flows: u64::try_from(self.flows.len()).unwrap_or(u64::MAX),
            denied: self.denials().since(ago(LATELY)).map(|denial| denial.count).sum(),
            narrow: self.narrow(),
            guard: self.guard.status(),
            names: facts.resolver,
            problems: self.health.problems(),
        }
    }

    fn report(&self) -> NodeReport {
        let measures = self.identity.kind == NodeKind::Entity;
        let peers = self.peers();
        let translated = peers
            .iter()
            .filter_map(|peer| Some(Translated { entity: peer.peer, from: peer.translated? }));
        NodeReport {
            translated: translated.take(TRANSLATED_MAX).collect(),
            version: VERSION.to_owned(),
            endpoints: self.facts().endpoints.clone(),
            problems: self.health.problems(),
            round_trips: peers
                .into_iter()
                .filter(|_| measures)
                .map(|peer| RoundTrip { sap: peer.peer, micros: peer.round_trip.map(micros) })
                .collect(),
            guessed: self.guesses().take(),
            holds_egress: self.guard.holds_egress(),
        }
    }
}

fn ago(time: Duration) -> Timestamp {
    Timestamp(clock::wall().0.saturating_sub(time.as_secs()))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// How a daemon ends well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By a signal or an order.
    Stopped,
    /// Another process does its work.
    HandedOver,
}

/// A node that is put together and does not run yet.
pub(crate) struct Daemon {
    pub(crate) shared: Shared,
    pub(crate) state: StateDir,
    pub(crate) plane: Plane,
    pub(crate) port: ControlPort,
    pub(crate) socket: Socket,
    pub(crate) wanted: Wanted,
    /// None where no names are answered.
    pub(crate) naming: Option<Naming>,
    /// None at a SaP.
    pub(crate) guarding: Option<Guarding>,
    pub(crate) manager: Arc<ServiceManager>,
    pub(crate) estate: Estate,
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) instance: Instance,
}

/// Runs until SIGTERM, SIGINT, an order, or until another process has taken over; then stops the threads
/// and lets the devices go. Nothing is deleted.
pub(crate) async fn run(daemon: Daemon) -> Result<(), Problem> {
    let Daemon {
        shared,
        state,
        mut plane,
        port,
        mut socket,
        wanted,
        naming,
        guarding,
        manager,
        mut estate,
        predecessor,
        instance,
    } = daemon;
    let shared = Arc::new(shared);
    // A host without a clock of its own starts in the past, where rules that ended would hold again.
    if let Some(written) = state.table_written() {
        clock::not_before(written);
    }
    let state = Arc::new(state);
    shared.probes().remember(state.proved_endpoints());
    let identity = shared.identity.clone();
    let client = Arc::new(Client::new(identity.urls.clone(), &identity.pin)?.of_process(instance));
    let kept_addresses = state.server_addresses();
    client.addresses().remember(kept_addresses.clone());
    let (ask, asked) = mpsc::channel(ERRANDS_CAPACITY);
    let puller = Puller::new(
        Arc::clone(&client),
        Arc::clone(&state),
        identity.clone(),
        Arc::clone(&shared.health),
        clock::wall,
        ask,
    );
    // One at a time: the puller waits for the outcome.
    let (send, receive) = mpsc::channel(1);
    let status = {
        let shared = Arc::clone(&shared);
        move || shared.status()
    };
    let denied = {
        let shared = Arc::clone(&shared);
        move |since| shared.denied(since)
    };
    let why = {
        let shared = Arc::clone(&shared);
        move |question: &LocalQuestion| shared.why(question)
    };
    let (listener, door, tracers) = match &mut plane {
        Plane::Entity(plane, _) => {
            let (listener, door) = plane.answering().unzip();
            (listener, door, plane.tracer_door())
        }
        Plane::Sap(plane) => (plane.listener(), None, None),
    };
    let (said, heard) = mpsc::channel(HEARD_CAPACITY);
    let (orders, mut ordered) = mpsc::channel(1);
    let (successors, mut successor) = mpsc::channel(1);
    let orders = guarding.is_some().then_some(orders);
    let broken = |what: &str, why: String| Problem::new(ProblemCode::Failed, what).why(why);
    estate.add(handover::LOCK, state.descriptor());
    if let Some(listener) = socket.descriptor() {
        estate.add(handover::LOCAL, listener);
    }
    let mut applier = Applier {
        shared: &shared,
        state: &state,
        client: &client,
        plane: &mut plane,
        wanted,
        names: naming.as_ref().map(|naming| naming.names().clone()),
        guarding,
        in_force: None,
        kept_addresses,
        kept_proofs: shared.probes().proofs().version(),
        estate,
        predecessor,
        is_open: false,
    };
    // Packets may be waiting: a name server that is away must not keep them.
    let _ = tokio::time::timeout(FIRST_LOOK, applier.find_endpoints()).await;
    applier.follow_guard().await;
    // Who hears that it is up may stop it at once.
    let requested = shutdown::requested()
        .map_err(|error| broken("cannot listen to signals", error.to_string()))?;
    // Up is not online: it answers, and does what the table on disk says (`status --check ready`).
    manager.ready();

    let reporting =
        report::run(&client, &identity.credential, &shared.health, clock::wall, || shared.report());
    let counting = flows::run(
        &client,
        &identity.credential,
        &shared.counted,
        shared.flows.records(),
        clock::wall,
    );
    let naming = async {
        match naming {
            Some(naming) => naming.run(&shared).await,
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        signal = requested => {
            tracing::info!(signal, "stopping");
            Ok(End::Stopped)
        }
        result = socket.serve(status, denied, why, orders, successors) => match result {
            Ok(()) => Err(broken("the local socket ended", String::new())),
            Err(error) => Err(broken("the local socket broke", error.to_string())),
        },
        () = control_loop::run(&shared, port, said) => {
            Err(broken("the packet threads ended", "see the log above".to_owned()))
        }
        () = answers::run(&shared, listener, door, heard) => {
            Err(broken("the answer loop ended", String::new()))
        }
        () = errands::run(&shared, &client, &identity.credential, tracers, asked) => {
            Err(broken("the errand loop ended", String::new()))
        }
        () = pull(puller, send) => Err(broken("the table loop ended", String::new())),
        end = applier.run(receive, &mut ordered, &mut successor) => end,
        () = shared.guard.watch(&shared.health) => {
            Err(broken("the guard's watch ended", String::new()))
        }
        () = naming => Err(broken("the naming loop ended", String::new())),
        () = reporting => {
            Err(broken("the report loop ended", String::new()))
        }
        () = counting => Err(broken("the report loop ended", String::new())),
        () = roaming::run(&shared) => Err(broken("the watch of addresses ended", String::new())),
        () = guessing::run(&shared) => Err(broken("the alarm loop ended", String::new())),
        () = manager.keep_alive() => Err(broken("the watchdog loop ended", String::new())),
    };
    manager.stopping();
    // Another process works with the devices and the socket: the next one, or still the one before.
    let is_anothers = result == Ok(End::HandedOver) || applier.predecessor.is_some();
    if !is_anothers {
        applier.keep_proofs();
    }
    socket.leave(is_anothers);
    plane.end(is_anothers);
    result.map(drop)
}

//! A node that runs: tables come in, snapshots, devices and links follow; status and reports go out.
//! One task on one thread, beside the hallways' threads.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc, oneshot};

use super::devices::Devices;
use super::endpoints::{Wanted, prefer_reachable, server_address};
use super::service_manager::ServiceManager;
use super::{answers, control_loop, node, shutdown};
use crate::agent::client::Client;
use crate::agent::denials::Denials;
use crate::agent::explain::{self, Known};
use crate::agent::health::{Health, Topic};
use crate::agent::probes::{PeerState, Probes};
use crate::agent::state::{Identity, StateDir};
use crate::agent::sync::Puller;
use crate::agent::{flows, report, snapshot, underlay};
use crate::api::local::{
    Denial, DenialList, HallwayStatus, LocalQuestion, LocalWhy, NodeStatus, OverlayStatus,
    SapStatus, TableStatus,
};
use crate::api::node::{NodeReport, RoundTrip};
use crate::api::table::NodeTable;
use crate::api::{Problem, ProblemCode};
use crate::dataplane::publish::Publisher;
use crate::dataplane::{ControlPort, Counters, EntityPlane, Passed, SapPlane, Way};
use crate::dns;
use crate::forward::{FlowTable, Snapshot};
use crate::local::Socket;
use crate::sys::clock;
use crate::types::{ApiVersion, EntityName, HumanDuration, NodeId, NodeKind, Timestamp};
use crate::wire::control::Message;

/// How often endpoints are looked at again and failed devices are tried again.
const TICK: Duration = Duration::from_secs(5);

/// What counts as denied lately, in status.
const LATELY: Duration = Duration::from_secs(600);

/// How many notices of peers may wait.
const HEARD_CAPACITY: usize = 64;

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

    fn stop(self) {
        match self {
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
    flows: Arc<FlowTable>,
    /// What the hallways counted, on its way to the server.
    pub(crate) counted: flows::Reporter,
    probes: Mutex<Probes>,
    denials: Mutex<Denials>,
    health: Arc<Health>,
    facts: Mutex<Facts>,
    identity: Identity,
    started: Timestamp,
    start: Instant,
}

/// What status shows of the table in force.
#[derive(Clone, Debug, Default)]
struct Facts {
    table: Option<TableStatus>,
    endpoints: Vec<std::net::SocketAddr>,
    overlays: Vec<OverlayStatus>,
    names: Arc<BTreeMap<IpAddr, EntityName>>,
}

impl Shared {
    pub(crate) fn new(
        identity: Identity,
        publisher: Arc<Publisher<Snapshot>>,
        flows: Arc<FlowTable>,
        counters: Arc<Counters>,
    ) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = clock::wall();
        let url = identity.urls.first().map_or("", String::as_str);
        Self {
            publisher,
            counters,
            control_due: Notify::new(),
            flows,
            counted: flows::Reporter::new(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
            probes: Mutex::new(Probes::start(Duration::ZERO, wall)),
            denials: Mutex::default(),
            health: Arc::new(Health::new(url, started)),
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

    pub(crate) fn flows(&self) -> &FlowTable {
        &self.flows
    }

    pub(crate) fn denials(&self) -> MutexGuard<'_, Denials> {
        self.denials.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (status, names) = (self.status(), Arc::clone(&self.facts().names));
        let known = Known {
            name: &status.name,
            names: &names,
            saps: &status.saps,
            table: status.table.as_ref(),
            denials: self.denied(Some(HumanDuration(LATELY))).items,
            now: clock::wall(),
        };
        explain::explain(&self.publisher.current(), &known, question)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peers(&self) -> Vec<PeerState> {
        self.probes().peers(self.now())
    }

    fn status(&self) -> NodeStatus {
        let facts = self.facts().clone();
        let saps = self.peers().into_iter().map(|peer| SapStatus {
            id: peer.peer,
            name: peer.name,
            endpoint: peer.endpoint,
            alive: peer.is_alive,
            round_trip_micros: peer.round_trip.map(micros),
        });
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
            saps: saps.collect(),
            packets: ways.iter().map(moved).collect(),
            drops: self.counters.drops().into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            flows: u64::try_from(self.flows.len()).unwrap_or(u64::MAX),
            denied: self.denials().since(ago(LATELY)).map(|denial| denial.count).sum(),
            problems: self.health.problems(),
        }
    }

    fn report(&self) -> NodeReport {
        let measures = self.identity.kind == NodeKind::Entity;
        let peers = if measures { self.peers() } else { Vec::new() };
        NodeReport {
            version: VERSION.to_owned(),
            endpoints: self.facts().endpoints.clone(),
            problems: self.health.problems(),
            round_trips: peers
                .into_iter()
                .map(|peer| RoundTrip { sap: peer.peer, micros: peer.round_trip.map(micros) })
                .collect(),
        }
    }
}

fn ago(time: Duration) -> Timestamp {
    Timestamp(clock::wall().0.saturating_sub(time.as_secs()))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A table on its way from the puller, and where to say whether it could be applied.
struct Delivery {
    table: NodeTable,
    from_disk: bool,
    outcome: oneshot::Sender<Result<(), String>>,
}

/// Where this node is found: by others' packets, and by names.
pub(crate) struct Place {
    pub(crate) wanted: Wanted,
    /// The names that this host asks for; none when it has no resolver of ours.
    pub(crate) names: Option<dns::Names>,
}

/// Runs until SIGTERM or SIGINT; then stops the threads and lets the devices go. Nothing is deleted.
pub(crate) async fn run(
    shared: Shared,
    state: StateDir,
    mut plane: Plane,
    port: ControlPort,
    mut socket: Socket,
    place: Place,
) -> Result<(), Problem> {
    let shared = Arc::new(shared);
    // A host without a clock of its own starts in the past, where rules that ended would hold again.
    if let Some(written) = state.table_written() {
        clock::not_before(written);
    }
    let state = Arc::new(state);
    let identity = shared.identity.clone();
    let client = Arc::new(Client::new(identity.urls.clone(), &identity.pin)?);
    let puller = Puller::new(
        Arc::clone(&client),
        Arc::clone(&state),
        identity.clone(),
        Arc::clone(&shared.health),
        clock::wall,
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
    let (listener, door) = match &mut plane {
        Plane::Entity(plane, _) => plane.answering().unzip(),
        Plane::Sap(plane) => (plane.listener(), None),
    };
    let (said, heard) = mpsc::channel(HEARD_CAPACITY);
    let broken = |what: &str, why: String| Problem::new(ProblemCode::Failed, what).why(why);
    let mut applier = Applier {
        shared: &shared,
        state: &state,
        client: &client,
        plane: &mut plane,
        place,
        in_force: None,
    };
    applier.find_endpoints().await;
    let manager = ServiceManager::from_environment();
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
    let result = tokio::select! {
        signal = shutdown::requested() => match signal {
            Ok(signal) => {
                tracing::info!(signal, "stopping");
                Ok(())
            }
            Err(error) => Err(broken("cannot listen to signals", error.to_string())),
        },
        result = socket.serve(status, denied, why) => match result {
            Ok(()) => Err(broken("the local socket ended", String::new())),
            Err(error) => Err(broken("the local socket broke", error.to_string())),
        },
        () = control_loop::run(&shared, port, said) => {
            Err(broken("the packet threads ended", "see the log above".to_owned()))
        }
        () = answers::run(&shared, listener, door, heard) => {
            Err(broken("the answer loop ended", String::new()))
        }
        () = pull(puller, send) => Err(broken("the table loop ended", String::new())),
        () = applier.run(receive) => Err(broken("the table loop ended", String::new())),
        () = reporting => {
            Err(broken("the report loop ended", String::new()))
        }
        () = counting => Err(broken("the report loop ended", String::new())),
        () = manager.keep_alive() => Err(broken("the watchdog loop ended", String::new())),
    };
    manager.stopping();
    plane.stop();
    result
}

/// Hands over the table on disk, then whatever the server has.
async fn pull(mut puller: Puller, send: mpsc::Sender<Delivery>) {
    // The one before serves when the newest can be read and cannot be applied.
    for table in [puller.stored(), puller.stored_before()].into_iter().flatten() {
        match deliver(&send, &table, true).await {
            Some(Ok(())) => {
                puller.resume(&table);
                break;
            }
            Some(Err(why)) => puller.refuse(&table, &why),
            None => return,
        }
    }
    loop {
        let table = puller.next().await;
        match deliver(&send, &table, false).await {
            Some(Ok(())) => puller.accept(&table),
            Some(Err(why)) => puller.refuse(&table, &why),
            None => return,
        }
    }
}

/// Has `table` applied; none when everything ends.
async fn deliver(
    send: &mpsc::Sender<Delivery>,
    table: &NodeTable,
    from_disk: bool,
) -> Option<Result<(), String>> {
    let (outcome, answer) = oneshot::channel();
    send.send(Delivery { table: table.clone(), from_disk, outcome }).await.ok()?;
    answer.await.ok()
}

/// The names of the members that a table speaks of.
fn zone(table: &NodeTable) -> dns::Zone {
    let mut zone = dns::Zone::default();
    for overlay in &table.body.overlays {
        let members = overlay.members.iter().map(|member| (&member.name, member.address));
        zone.add_overlay(&overlay.name, overlay.cidr, members);
    }
    zone
}

/// Makes this host do what tables say.
struct Applier<'a> {
    shared: &'a Shared,
    state: &'a StateDir,
    client: &'a Client,
    plane: &'a mut Plane,
    place: Place,
    in_force: Option<NodeTable>,
}

impl Applier<'_> {
    async fn run(&mut self, mut deliveries: mpsc::Receiver<Delivery>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                delivery = deliveries.recv() => {
                    let Some(Delivery { table, from_disk, outcome }) = delivery else { return };
                    let result = self.apply(table, from_disk).await;
                    // The receiver is gone only when everything ends.
                    let _ = outcome.send(result);
                }
                _ = tick.tick() => self.tick().await,
            }
        }
    }

    /// Applies `table` whole, or refuses it whole.
    async fn apply(&mut self, mut table: NodeTable, from_disk: bool) -> Result<(), String> {
        let shared = self.shared;
        let beyond = if shared.identity.clear_underlay {
            Vec::new()
        } else {
            underlay::keep_managed(&mut table)
        };
        prefer_reachable(&mut table);
        let next = snapshot::build(&table)?;
        shared.health.set(Topic::Underlay, beyond);
        {
            let mut probes = shared.probes();
            probes.replace_links(&table, shared.now());
            // What is known of the SaPs is in the snapshot before anybody sees it.
            for (sap, is_alive) in probes.liveness_changes() {
                next.set_alive(sap, is_alive);
            }
        }
        shared.publisher.publish(next);
        shared.control_due.notify_one();
        shared.facts().table = Some(TableStatus {
            serial: table.serial,
            revision: table.revision,
            applied: clock::wall(),
            from_disk,
        });
        tracing::info!(serial = %table.serial, revision = %table.revision, from_disk, "table in force");
        let is_first = self.in_force.is_none();
        if let Some(names) = &self.place.names {
            names.replace(zone(&table));
        }
        self.in_force = Some(table);
        self.follow_devices().await;
        self.find_endpoints().await;
        if is_first {
            self.introduce();
        }
        Ok(())
    }

    async fn tick(&mut self) {
        let must_follow = match &*self.plane {
            Plane::Entity(plane, devices) => {
                devices.is_incomplete() || !plane.problems().is_empty()
            }
            Plane::Sap(_) => false,
        };
        if must_follow {
            if let Plane::Entity(plane, _) = &mut *self.plane {
                for problem in plane.problems() {
                    tracing::warn!("{problem}");
                }
                self.drop_broken();
            }
            self.follow_devices().await;
        }
        self.find_endpoints().await;
        let mut facts = self.shared.facts();
        if let Some(table) = &mut facts.table
            && table.from_disk
            && self.shared.health.server().reachable
        {
            // The server was asked for what comes after this table and had nothing against it.
            table.from_disk = false;
        }
    }

    async fn follow_devices(&mut self) {
        let Some(table) = &self.in_force else { return };
        if let Plane::Entity(plane, devices) = &mut *self.plane {
            devices.follow(table, plane, self.state, &self.shared.health).await;
        }
        let overlays = table.body.overlays.iter().map(|overlay| {
            let device = match &*self.plane {
                Plane::Entity(_, devices) => devices.find(overlay.id),
                Plane::Sap(_) => None,
            };
            let is_other = |id| id != table.body.node.id;
            let peers = overlay.members.iter().filter(|member| is_other(member.id)).count();
            OverlayStatus {
                name: overlay.name.clone(),
                cidr: overlay.cidr,
                address: overlay.address,
                device: device.map(|device| device.name.clone()),
                mtu: device.map(|device| device.mtu),
                peers: u64::try_from(peers).unwrap_or(u64::MAX),
                rules: u64::try_from(overlay.rules.len()).unwrap_or(u64::MAX),
            }
        });
        let overlays = overlays.collect();
        let members = table.body.overlays.iter().flat_map(|overlay| &overlay.members);
        let names = members.map(|member| (member.address, member.name.clone())).collect();
        let mut facts = self.shared.facts();
        facts.overlays = overlays;
        facts.names = Arc::new(names);
    }

    /// An overlay whose device died gets a new one.
    fn drop_broken(&mut self) {
        if let Plane::Entity(plane, devices) = &mut *self.plane {
            devices.forget_broken(plane);
        }
    }

    async fn find_endpoints(&mut self) {
        let server = server_address(self.client.url()).await;
        let found = self.place.wanted.pick(self.in_force.as_ref(), server);
        let lines = if found.is_empty() {
            vec!["no route to any SaP or to the server: nobody can reach this node".to_owned()]
        } else {
            Vec::new()
        };
        self.shared.health.set(Topic::Endpoint, lines);
        let mut facts = self.shared.facts();
        // Without a network the last ones are the best guess.
        if !found.is_empty() && facts.endpoints != found {
            tracing::info!(?found, "packets are received at");
            facts.endpoints = found;
            self.shared.health.poke();
        }
    }

    /// One line for people, once the first table is in force.
    fn introduce(&self) {
        let Some(table) = &self.in_force else { return };
        let identity = &self.shared.identity;
        let mut line = format!(
            "{}: joined as {} ({})",
            node::program(identity.kind),
            identity.name,
            identity.id
        );
        for overlay in &self.shared.facts().overlays {
            use std::fmt::Write as _;
            let _ = match (overlay.address, &overlay.device) {
                (Some(address), Some(device)) => {
                    write!(line, ", {} {address} on {device}", overlay.name)
                }
                (Some(address), None) => write!(line, ", {} {address} not up", overlay.name),
                (None, _) => write!(line, ", serves {} {}", overlay.name, overlay.cidr),
            };
        }
        if identity.kind == NodeKind::Entity {
            let names: Vec<&str> = table.body.saps.iter().map(|sap| sap.name.as_str()).collect();
            match names.as_slice() {
                [] => line.push_str(", no SaP yet"),
                names => line.push_str(&format!(", SaP {}", names.join(", "))),
            }
        }
        node::note(&line);
    }
}

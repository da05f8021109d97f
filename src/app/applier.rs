//! Makes this host do what tables say, and what its operator orders: snapshots, guard, devices, links.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::daemon::{End, Plane, Shared};
use super::endpoints::{Wanted, prefer_reachable};
use super::guarding::Guarding;
use super::handover::{Estate, Predecessor};
use super::{control_loop, devices, node};
use crate::agent::addresses::Known;
use crate::agent::client::Client;
use crate::agent::health::Topic;
use crate::agent::state::StateDir;
use crate::agent::sync::Puller;
use crate::agent::{snapshot, underlay};
use crate::api::local::{Order, OverlayStatus, TableStatus};
use crate::api::table::{NodeTable, OverlayTable};
use crate::api::{Problem, ProblemCode};
use crate::dns::{Names, Zone};
use crate::local::Ordered;
use crate::sys::clock;
use crate::types::{EntityName, NodeKind};

/// How often endpoints are looked at again and failed devices are tried again.
const TICK: Duration = Duration::from_secs(5);

/// How often a broken guard is made again, and one that was lifted for a time is looked at.
const MEND_EVERY: Duration = Duration::from_millis(500);

/// How long it may take until this process can forward, when another waits for it to.
const READY_WITHIN: Duration = Duration::from_secs(8);

/// A table on its way from the puller, and where to say whether it could be applied.
pub(crate) struct Delivery {
    table: NodeTable,
    from_disk: bool,
    outcome: oneshot::Sender<Result<(), String>>,
}

/// Hands over the table on disk, then whatever the server has.
pub(crate) async fn pull(mut puller: Puller, send: mpsc::Sender<Delivery>) {
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

/// The names of the members and services that a table speaks of.
fn zone(table: &NodeTable) -> Zone {
    let mut zone = Zone::default();
    for overlay in &table.body.overlays {
        let members = overlay.members.iter().map(|member| (&member.name, member.address));
        zone.add_overlay(&overlay.name, overlay.cidr, members);
        for service in &overlay.services {
            zone.add_service(&overlay.name, &service.name, meant(overlay, service.members));
            for row in &service.ports {
                let of = (&overlay.name, &service.name);
                zone.add_port(of, (&row.name, &row.port), meant(overlay, row.members));
            }
        }
    }
    zone
}

/// Who is in a set of a table.
fn meant(overlay: &OverlayTable, set: u32) -> impl Iterator<Item = (&EntityName, IpAddr)> {
    let place = |index: u32| usize::try_from(index).ok();
    let set = place(set).and_then(|set| overlay.sets.get(set));
    let members =
        set.into_iter().flatten().filter_map(move |&index| overlay.members.get(place(index)?));
    members.map(|member| (&member.name, member.address))
}

/// Makes this host do what tables say.
pub(crate) struct Applier<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) state: &'a StateDir,
    pub(crate) client: &'a Client,
    pub(crate) plane: &'a mut Plane,
    /// Where others' packets find this node.
    pub(crate) wanted: Wanted,
    /// Where names are answered from; none where they are not.
    pub(crate) names: Option<Names>,
    /// None at a SaP.
    pub(crate) guarding: Option<Guarding>,
    pub(crate) in_force: Option<NodeTable>,
    /// The addresses of the server that are kept on disk.
    pub(crate) kept_addresses: Known,
    /// The version of the proved endpoints that are kept on disk.
    pub(crate) kept_proofs: u64,
    /// What the next process gets.
    pub(crate) estate: Estate,
    /// Who forwards as long as this process is not ready to.
    pub(crate) predecessor: Option<Predecessor>,
    /// Whether the hallways read.
    pub(crate) is_open: bool,
}

impl Applier<'_> {
    /// Runs until it is ordered to stop, or has handed over.
    pub(crate) async fn run(
        &mut self,
        mut deliveries: mpsc::Receiver<Delivery>,
        orders: &mut mpsc::Receiver<Ordered>,
        successors: &mut mpsc::Receiver<UnixStream>,
    ) -> Result<End, Problem> {
        let mut overdue = pin!(tokio::time::sleep(READY_WITHIN));
        let [mut tick, mut mend] = [TICK, MEND_EVERY].map(|every| {
            let mut interval = tokio::time::interval(every);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            interval
        });
        loop {
            tokio::select! {
                delivery = deliveries.recv() => {
                    let Some(Delivery { table, from_disk, outcome }) = delivery else {
                        return Ok(End::Stopped);
                    };
                    let result = self.apply(table, from_disk).await;
                    if result.is_ok() {
                        self.settle().await?;
                    }
                    // The receiver is gone only when everything ends.
                    let _ = outcome.send(result);
                }
                Some((order, outcome)) = orders.recv() => {
                    // Who asked may be gone.
                    let _ = outcome.send(self.obey(order).await);
                    if order == Order::Down {
                        tracing::info!("stopping, by order");
                        return Ok(End::Stopped);
                    }
                }
                Some(stream) = successors.recv() => {
                    if self.hand_over(&stream) {
                        return Ok(End::HandedOver);
                    }
                }
                () = &mut overdue, if self.predecessor.is_some() => {
                    return Err(Problem::new(ProblemCode::Failed, "cannot take over")
                        .why("there is no table that could be put in force")
                        .fix("stop the process that runs, and start without --takeover"));
                }
                _ = tick.tick() => self.tick().await,
                () = self.shared.moved.notified() => self.find_endpoints().await,
                _ = mend.tick(), if self.guarding.is_some() => self.mend_guard().await,
            }
        }
    }

    /// What follows a table that is in force. From the first one on packets are read, and not before: what
    /// is read without a policy is dropped.
    async fn settle(&mut self) -> Result<(), Problem> {
        let is_first = !self.is_open;
        if is_first {
            if let Some(predecessor) = &mut self.predecessor {
                predecessor.release()?;
                self.predecessor = None;
                tracing::info!("took over from the process before this one");
            }
            self.plane.open();
            self.is_open = true;
        }
        self.find_endpoints().await;
        if is_first {
            self.introduce();
        }
        Ok(())
    }

    /// Hands over to the process that asks on `stream`. Everything else of this process stands still
    /// meanwhile, so that two do not keep one state.
    fn hand_over(&mut self, stream: &UnixStream) -> bool {
        if !self.is_open {
            tracing::warn!("asked to hand over before there is a table");
            return false;
        }
        self.keep_proofs();
        match self.plane.hand_over(stream, &self.estate) {
            Ok(()) => {
                tracing::info!("handed over to another process");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "handed nothing over: who asked for it is gone or not ready; going on");
                false
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
            for change in probes.changes() {
                change.repeat(&next);
            }
        }
        let is_sap = shared.identity.kind == NodeKind::Sap;
        let next = if is_sap { shared.place_entities(&next) } else { next };
        if is_sap {
            // Where it says that entities are decides which of them are translated.
            shared.report_soon();
        }
        let before = control_loop::started(shared);
        shared.publisher.publish(next);
        // Before the table is acknowledged: then nothing stands in the way of replies.
        let moved = control_loop::started(shared);
        control_loop::announce(shared, moved.iter().filter(|flow| !before.contains(flow)));
        shared.control_due.notify_one();
        shared.facts().table = Some(TableStatus {
            serial: table.serial,
            revision: table.revision,
            applied: clock::wall(),
            from_disk,
        });
        tracing::info!(serial = %table.serial, revision = %table.revision, from_disk, "table in force");
        if let Some(names) = &self.names {
            names.replace(zone(&table));
        }
        self.in_force = Some(table);
        // The guard comes before the devices, so that no packet is sooner than the rules about it.
        self.follow_guard().await;
        self.follow_devices().await;
        Ok(())
    }

    async fn tick(&mut self) {
        let held = self.is_guarded();
        // Interfaces come and go.
        self.follow_guard().await;
        let must_follow = match (&*self.plane, &self.in_force) {
            (Plane::Entity(plane, devices), Some(table)) => {
                !held
                    || devices.is_incomplete()
                    || !plane.problems().is_empty()
                    || devices.is_outdated(table).await
            }
            (Plane::Entity(..), None) | (Plane::Sap(_), _) => false,
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
        self.keep_proofs();
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
        let is_guarded = self.is_guarded();
        let Some(table) = &self.in_force else { return };
        if let Plane::Entity(plane, devices) = &mut *self.plane
            && is_guarded
        {
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

    pub(crate) async fn follow_guard(&mut self) {
        let Some(guarding) = &mut self.guarding else { return };
        // The guard of an earlier start knows the overlays; one that knows none would open them until the
        // table on disk is in force.
        let stored = if self.in_force.is_none() { self.state.table().0 } else { None };
        let table = self.in_force.as_ref().or(stored.as_ref());
        let names = table.map(|table| devices::names(self.state, table)).unwrap_or_default();
        let servers = self.client.addresses().all();
        guarding.follow(table, &names, &servers, &self.shared.health).await;
    }

    /// Makes the guard again where that is due, and what waited for it.
    async fn mend_guard(&mut self) {
        if self.guarding.as_mut().is_some_and(Guarding::is_due) {
            self.follow_guard().await;
            self.follow_devices().await;
        }
    }

    async fn obey(&mut self, order: Order) -> Result<(), Problem> {
        let Some(guarding) = &mut self.guarding else { return Ok(()) };
        guarding.order(order);
        if order == Order::Down {
            return Ok(());
        }
        self.follow_guard().await;
        if self.is_guarded() {
            return Ok(());
        }
        let why = self.shared.health.problems().join("; ");
        Err(Problem::new(ProblemCode::Failed, "the guard is not as ordered").why(why))
    }

    /// Whether packets of overlays may flow.
    fn is_guarded(&self) -> bool {
        self.guarding.as_ref().is_none_or(Guarding::holds)
    }

    /// An overlay whose device died gets a new one.
    fn drop_broken(&mut self) {
        if let Plane::Entity(plane, devices) = &mut *self.plane {
            devices.forget_broken(plane);
        }
    }

    /// At a SaP: keeps where entities proved to be, when that is news.
    pub(crate) fn keep_proofs(&mut self) {
        let (version, proved) = {
            let probes = self.shared.probes();
            let proofs = probes.proofs();
            if proofs.version() == self.kept_proofs {
                return;
            }
            (proofs.version(), proofs.all().clone())
        };
        match self.state.save_proved_endpoints(&proved) {
            Ok(()) => self.kept_proofs = version,
            Err(problem) => {
                tracing::warn!(why = %problem.why, "cannot keep where entities proved to be");
            }
        }
    }

    pub(crate) async fn find_endpoints(&mut self) {
        let server = self.find_server().await;
        let found = self.wanted.pick(self.in_force.as_ref(), server);
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

    /// Where the server is, as far as it is known: a guard may stand before the name servers next time.
    async fn find_server(&mut self) -> Option<SocketAddr> {
        let addresses = self.client.addresses();
        addresses.refresh().await;
        let known = addresses.known();
        if known != self.kept_addresses {
            match self.state.save_server_addresses(&known) {
                Ok(()) => self.kept_addresses = known,
                Err(problem) => {
                    tracing::warn!(why = %problem.why, "cannot keep the addresses of the server");
                }
            }
        }
        addresses.first(self.client.url())
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

//! Starts, extends and stops the threads of one process.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::control::{ControlPort, Punter};
use super::counters::{Counters, LaneCounters};
use super::egress::TracerDoor;
use super::hallway::{Common, Gate, Hallway, NUDGE_EVERY};
use super::ingress::Devices;
use super::notice::{HostDoor, Listener, Teller};
use super::publish::Publisher;
use super::{egress, ingress, transit};
use crate::forward::{FlowTable, PathMtus, Snapshot};
use crate::sys::SysError;
use crate::sys::tun::Tun;
use crate::sys::udp::UdpSocket;
use crate::types::OverlayId;

/// How long a removed device may take until nobody holds it: a batch, on a machine that is busy.
const LETS_GO: Duration = Duration::from_secs(1);

/// What all hallways of a process share.
#[derive(Debug)]
struct Shared {
    snapshots: Arc<Publisher<Snapshot>>,
    flows: Arc<FlowTable>,
    counters: Arc<Counters>,
}

impl Shared {
    fn new(lanes: usize, snapshots: Arc<Publisher<Snapshot>>, flows: Arc<FlowTable>) -> Self {
        Self { snapshots, flows, counters: Arc::new(Counters::new(lanes)) }
    }

    fn common(
        &self,
        udp: &Arc<UdpSocket>,
        counters: &Arc<LaneCounters>,
        gate: &Arc<Gate>,
    ) -> Common {
        Common {
            udp: Arc::clone(udp),
            snapshot: self.snapshots.reader(),
            flows: Arc::clone(&self.flows),
            counters: Arc::clone(counters),
            gate: Arc::clone(gate),
        }
    }
}

/// Where control messages of all lanes come in and leave: by the first socket, whose address is that of
/// all.
fn control_port(sockets: &[Arc<UdpSocket>]) -> Result<(Punter, ControlPort), SysError> {
    let first = sockets.first().map(Arc::clone);
    first.map(ControlPort::new).ok_or_else(|| SysError::new("cannot start", "there is no lane"))
}

/// Makes a panic an error: nobody waits for an egress thread, so that its end has to be told.
fn caught(run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
}

/// One lane of `ovd`: its socket, its queue of each device, and their threads.
#[derive(Debug)]
struct EntityLane {
    udp: Arc<UdpSocket>,
    counters: Arc<LaneCounters>,
    devices: Arc<Publisher<Devices>>,
    ingress: Hallway,
    egress: BTreeMap<OverlayId, Hallway>,
}

impl EntityLane {
    /// Stops the egress thread of an overlay and lets its queue go. Returns the queue, for the caller
    /// to see it go.
    fn remove(&mut self, overlay: OverlayId) -> Option<Weak<Tun>> {
        drop(self.egress.remove(&overlay));
        let mut devices = Devices::clone(&self.devices.current());
        let queue = devices.remove(&overlay)?;
        queue.persist(false);
        self.devices.publish(devices);
        Some(Arc::downgrade(&queue))
    }
}

/// The hallways of `ovd`: on each lane one ingress, and one egress for each overlay. Dropping it stops
/// them.
#[derive(Debug)]
pub struct EntityPlane {
    shared: Shared,
    lanes: Vec<EntityLane>,
    teller: Teller,
    listener: Option<Listener>,
    mtus: Arc<Publisher<PathMtus>>,
    problems: Arc<Mutex<BTreeMap<OverlayId, String>>>,
    /// Numbers the egress threads.
    started: u32,
    is_open: bool,
}

impl EntityPlane {
    /// Starts the ingress thread of each lane, one for each socket; overlays come with
    /// [`Self::add_overlay`]. Nothing is read before [`Self::open`], so that what arrives meanwhile waits
    /// for a policy instead of being dropped without one.
    ///
    /// # Errors
    ///
    /// When the process is out of threads or file descriptors.
    pub fn start(
        sockets: Vec<UdpSocket>,
        snapshots: Arc<Publisher<Snapshot>>,
        flows: Arc<FlowTable>,
    ) -> Result<(Self, ControlPort), SysError> {
        let sockets: Vec<_> = sockets.into_iter().map(Arc::new).collect();
        let (punter, port) = control_port(&sockets)?;
        let shared = Shared::new(sockets.len(), snapshots, flows);
        let (teller, listener) = Listener::channel();
        let mut lanes = Vec::new();
        for (udp, counters) in sockets.into_iter().zip(shared.counters.lanes()) {
            let devices = Arc::new(Publisher::new(Devices::new()));
            let gate = Gate::shut();
            let common = shared.common(&udp, counters, &gate);
            let (reader, punter, teller) = (devices.reader(), punter.clone(), teller.clone());
            let name = format!("ov-ingress-{}", lanes.len());
            let body = move || ingress::run(common, reader, punter, teller);
            let ingress = Hallway::spawn(name, gate, body)?;
            let (counters, egress) = (Arc::clone(counters), BTreeMap::new());
            lanes.push(EntityLane { udp, counters, devices, ingress, egress });
        }
        let mtus = Arc::new(Publisher::new(PathMtus::default()));
        let (listener, problems) = (Some(listener), Arc::default());
        Ok((
            Self { shared, lanes, teller, listener, mtus, problems, started: 0, is_open: false },
            port,
        ))
    }

    /// Starts the egress threads of an overlay, one for each queue of its device, and lets ingress
    /// write to them. An overlay that is there already gets the new device.
    ///
    /// # Errors
    ///
    /// When the process is out of threads or file descriptors. The overlay is not there then.
    pub fn add_overlay(&mut self, overlay: OverlayId, queues: Vec<Tun>) -> Result<(), SysError> {
        self.remove_overlay(overlay);
        for (lane, queue) in queues.into_iter().enumerate() {
            if let Err(error) = self.add_queue(overlay, lane, Arc::new(queue)) {
                self.remove_overlay(overlay);
                return Err(error);
            }
        }
        Ok(())
    }

    fn add_queue(
        &mut self,
        overlay: OverlayId,
        lane: usize,
        queue: Arc<Tun>,
    ) -> Result<(), SysError> {
        let Some(lane) = self.lanes.get_mut(lane) else {
            return Err(SysError::new("cannot use a device", "it has more queues than lanes"));
        };
        let gate = if self.is_open { Gate::open() } else { Gate::shut() };
        let common = self.shared.common(&lane.udp, &lane.counters, &gate);
        let problems = Arc::clone(&self.problems);
        let name = format!("ov-egress-{}", self.started);
        let (device, teller, mtus) = (Arc::clone(&queue), self.teller.clone(), self.mtus.reader());
        let hallway = Hallway::spawn(name, gate, move || {
            if let Err(error) = caught(|| egress::run(&device, overlay, common, mtus, teller)) {
                tracing::error!(device = device.name(), %error, "the overlay's device is gone");
                let text = format!(
                    "the overlay's device {} is gone ({error}): restart ovd to make it again",
                    device.name()
                );
                problems.lock().unwrap_or_else(PoisonError::into_inner).insert(overlay, text);
            }
        })?;
        self.started = self.started.wrapping_add(1);
        lane.egress.insert(overlay, hallway);
        let mut devices = Devices::clone(&lane.devices.current());
        devices.insert(overlay, queue);
        lane.devices.publish(devices);
        Ok(())
    }

    /// Stops the egress threads of an overlay and lets its device go. Harmless when it is not there.
    pub fn remove_overlay(&mut self, overlay: OverlayId) {
        let queues = self.lanes.iter_mut().filter_map(|lane| lane.remove(overlay));
        let queues: Vec<_> = queues.collect();
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).remove(&overlay);
        // Ingress holds the old devices until it looks around; and a device that is made again while
        // queues of it are open would be the old one.
        let started = Instant::now();
        while queues.iter().any(|queue| queue.strong_count() > 0) && started.elapsed() < LETS_GO {
            self.lanes.iter().for_each(|lane| lane.ingress.nudge());
            std::thread::park_timeout(NUDGE_EVERY);
        }
    }

    /// Lets the hallways read.
    pub fn open(&mut self) {
        self.is_open = true;
        self.hallways().for_each(Hallway::open);
    }

    /// Has the hallways read nothing more, and waits until that is so.
    pub fn shut(&mut self) {
        self.is_open = false;
        self.hallways().for_each(Hallway::shut);
    }

    fn hallways(&self) -> impl Iterator<Item = &Hallway> {
        self.lanes
            .iter()
            .flat_map(|lane| std::iter::once(&lane.ingress).chain(lane.egress.values()))
    }

    /// The data sockets.
    pub fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        self.lanes.iter().map(|lane| &*lane.udp)
    }

    /// The queues of all devices.
    #[must_use]
    pub fn queues(&self) -> Vec<Arc<Tun>> {
        let devices = self.lanes.iter().map(|lane| lane.devices.current());
        devices.flat_map(|devices| devices.values().cloned().collect::<Vec<_>>()).collect()
    }

    /// The overlays that have a thread.
    pub fn overlays(&self) -> impl Iterator<Item = OverlayId> {
        self.lanes.first().into_iter().flat_map(|lane| lane.egress.keys().copied())
    }

    /// What the hallways tell, and the door to this host. Whoever asks first gets them.
    #[must_use]
    pub fn answering(&mut self) -> Option<(Listener, HostDoor)> {
        let devices = Arc::clone(&self.lanes.first()?.devices);
        Some((self.listener.take()?, HostDoor::new(devices, Arc::clone(&self.mtus))))
    }

    /// The way of tracers into the network.
    #[must_use]
    pub fn tracer_door(&self) -> Option<TracerDoor> {
        let lane = self.lanes.first()?;
        Some(TracerDoor {
            udp: Arc::clone(&lane.udp),
            snapshots: Arc::clone(&self.shared.snapshots),
            flows: Arc::clone(&self.shared.flows),
            mtus: Arc::clone(&self.mtus),
            counters: Arc::clone(&lane.counters),
            teller: self.teller.clone(),
        })
    }

    /// What is known of ways that are narrower than the devices.
    #[must_use]
    pub fn path_mtus(&self) -> Arc<Publisher<PathMtus>> {
        Arc::clone(&self.mtus)
    }

    /// The counters of all hallways.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// What keeps a hallway from its work, each a line for people.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.values().cloned().collect()
    }

    /// Stops all threads and waits for them, a batch at most; the devices vanish, unless somebody else
    /// holds them.
    pub fn stop(self) {
        self.queues().iter().for_each(|queue| queue.persist(false));
        self.leave();
    }

    /// As [`Self::stop`]; the devices stay as they are.
    pub fn leave(self) {
        drop(self);
    }
}

/// The hallways of `ovsap`, one on each lane. Dropping it stops them.
#[derive(Debug)]
pub struct SapPlane {
    shared: Shared,
    listener: Option<Listener>,
    lanes: Vec<(Arc<UdpSocket>, Hallway)>,
}

impl SapPlane {
    /// Starts the transit threads, one for each socket. They read nothing before [`Self::open`].
    ///
    /// # Errors
    ///
    /// When the process is out of threads or file descriptors.
    pub fn start(
        sockets: Vec<UdpSocket>,
        snapshots: Arc<Publisher<Snapshot>>,
        flows: Arc<FlowTable>,
    ) -> Result<(Self, ControlPort), SysError> {
        let sockets: Vec<_> = sockets.into_iter().map(Arc::new).collect();
        let (punter, port) = control_port(&sockets)?;
        let shared = Shared::new(sockets.len(), snapshots, flows);
        let (teller, listener) = Listener::channel();
        let mut lanes = Vec::new();
        for (udp, counters) in sockets.iter().zip(shared.counters.lanes()) {
            let (gate, punter, teller) = (Gate::shut(), punter.clone(), teller.clone());
            let common = shared.common(udp, counters, &gate);
            let name = format!("ov-transit-{}", lanes.len());
            let body = move || transit::run(common, punter, teller);
            lanes.push((Arc::clone(udp), Hallway::spawn(name, gate, body)?));
        }
        Ok((Self { shared, listener: Some(listener), lanes }, port))
    }

    /// Lets the hallways read.
    pub fn open(&self) {
        self.lanes.iter().for_each(|(_, hallway)| hallway.open());
    }

    /// Has the hallways read nothing more, and waits until that is so.
    pub fn shut(&self) {
        self.lanes.iter().for_each(|(_, hallway)| hallway.shut());
    }

    /// The data sockets.
    pub fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        self.lanes.iter().map(|(udp, _)| &**udp)
    }

    /// What the hallways tell. Whoever asks first gets it.
    #[must_use]
    pub fn listener(&mut self) -> Option<Listener> {
        self.listener.take()
    }

    /// The counters of all hallways.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Stops all threads and waits for them.
    pub fn stop(self) {
        drop(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_ends_with_an_error() {
        assert!(caught(|| Ok(())).is_ok());
        assert!(caught(|| panic!("on purpose")).is_err());
    }
}

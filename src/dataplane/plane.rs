//! Starts, extends and stops the threads of one process.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::control::ControlPort;
use super::counters::Counters;
use super::hallway::Common;
use super::ingress::Devices;
use super::publish::Publisher;
use super::{egress, ingress, transit};
use crate::forward::{FlowTable, Snapshot};
use crate::sys::SysError;
use crate::sys::tun::Tun;
use crate::sys::udp::UdpSocket;
use crate::sys::wake::Wake;
use crate::types::OverlayId;

/// One hallway's thread.
#[derive(Debug)]
struct Hallway {
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Hallway {
    fn spawn(
        name: String,
        wake: Arc<Wake>,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<Self, SysError> {
        let thread = Builder::new()
            .name(name.clone())
            .spawn(body)
            .map_err(|error| SysError::new(format!("cannot start the thread {name}"), error))?;
        Ok(Self { wake, thread: Some(thread) })
    }
}

impl Drop for Hallway {
    /// Ends the thread after the batch at hand and waits for it.
    fn drop(&mut self) {
        self.wake.stop();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("a hallway thread had panicked");
        }
    }
}

/// What all hallways of a process share.
#[derive(Debug)]
struct Shared {
    udp: Arc<UdpSocket>,
    snapshots: Arc<Publisher<Snapshot>>,
    flows: Arc<FlowTable>,
    counters: Arc<Counters>,
}

impl Shared {
    fn common(&self, wake: &Arc<Wake>) -> Common {
        Common {
            udp: Arc::clone(&self.udp),
            snapshot: self.snapshots.reader(),
            flows: Arc::clone(&self.flows),
            wake: Arc::clone(wake),
        }
    }
}

/// Makes a panic an error: nobody waits for an egress thread, so that its end has to be told.
fn caught(run: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
}

/// The hallways of `ovd`: one ingress, and one egress for each overlay. Dropping it stops them.
#[derive(Debug)]
pub struct EntityPlane {
    shared: Shared,
    devices: Publisher<Devices>,
    egress: BTreeMap<OverlayId, Hallway>,
    ingress: Hallway,
    problems: Arc<Mutex<BTreeMap<OverlayId, String>>>,
    /// Numbers the egress threads.
    started: u32,
}

impl EntityPlane {
    /// Starts the ingress thread; overlays come with [`Self::add_overlay`].
    ///
    /// # Errors
    ///
    /// When the process is out of threads or file descriptors.
    pub fn start(
        udp: Arc<UdpSocket>,
        snapshots: Arc<Publisher<Snapshot>>,
        flows: Arc<FlowTable>,
    ) -> Result<(Self, ControlPort), SysError> {
        let (punter, port) = ControlPort::new(Arc::clone(&udp));
        let shared = Shared { udp, snapshots, flows, counters: Arc::new(Counters::new()) };
        let devices = Publisher::new(Devices::new());
        let wake = Arc::new(Wake::new()?);
        let common = shared.common(&wake);
        let (reader, counters) = (devices.reader(), Arc::clone(&shared.counters));
        let ingress = Hallway::spawn("ov-ingress-0".to_owned(), wake, move || {
            ingress::run(common, reader, punter, &counters);
        })?;
        let plane = Self {
            shared,
            devices,
            egress: BTreeMap::new(),
            ingress,
            problems: Arc::default(),
            started: 0,
        };
        Ok((plane, port))
    }

    /// Starts the egress thread of an overlay and lets ingress write to its device. An overlay that
    /// is there already gets the new device.
    ///
    /// # Errors
    ///
    /// When the process is out of threads or file descriptors.
    pub fn add_overlay(&mut self, overlay: OverlayId, tun: Tun) -> Result<(), SysError> {
        self.remove_overlay(overlay);
        let tun = Arc::new(tun);
        let wake = Arc::new(Wake::new()?);
        let common = self.shared.common(&wake);
        let counters = Arc::clone(&self.shared.counters);
        let problems = Arc::clone(&self.problems);
        let name = format!("ov-egress-{}", self.started);
        let device = Arc::clone(&tun);
        let hallway = Hallway::spawn(name, wake, move || {
            let run = || egress::run(&device, overlay, common, &counters);
            if let Err(error) = caught(run) {
                tracing::error!(device = device.name(), %error, "the overlay's device is gone");
                let text = format!(
                    "the overlay's device {} is gone ({error}): restart ovd to make it again",
                    device.name()
                );
                problems.lock().unwrap_or_else(PoisonError::into_inner).insert(overlay, text);
            }
        })?;
        self.started = self.started.wrapping_add(1);
        self.egress.insert(overlay, hallway);
        let mut devices = Devices::clone(&self.devices.current());
        devices.insert(overlay, tun);
        self.publish(devices);
        Ok(())
    }

    /// Stops the egress thread of an overlay and lets its device go. Harmless when it is not there.
    pub fn remove_overlay(&mut self, overlay: OverlayId) {
        drop(self.egress.remove(&overlay));
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).remove(&overlay);
        let mut devices = Devices::clone(&self.devices.current());
        if devices.remove(&overlay).is_some() {
            self.publish(devices);
        }
    }

    fn publish(&self, devices: Devices) {
        self.devices.publish(devices);
        // Ingress holds the old devices until it looks again; without packets that may take for ever.
        self.ingress.wake.nudge();
    }

    /// The overlays that have a thread.
    pub fn overlays(&self) -> impl Iterator<Item = OverlayId> {
        self.egress.keys().copied()
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

    /// Stops all threads and waits for them, a batch at most; the devices vanish.
    pub fn stop(self) {
        drop(self);
    }
}

/// The hallway of `ovsap`. Dropping it stops it.
#[derive(Debug)]
pub struct SapPlane {
    shared: Shared,
    _transit: Hallway,
}

impl SapPlane {
    /// Starts the transit thread.
    ///
    /// # Errors
    ///
    /// When the process is out of threads or file descriptors.
    pub fn start(
        udp: Arc<UdpSocket>,
        snapshots: Arc<Publisher<Snapshot>>,
        flows: Arc<FlowTable>,
    ) -> Result<(Self, ControlPort), SysError> {
        let (punter, port) = ControlPort::new(Arc::clone(&udp));
        let shared = Shared { udp, snapshots, flows, counters: Arc::new(Counters::new()) };
        let wake = Arc::new(Wake::new()?);
        let common = shared.common(&wake);
        let counters = Arc::clone(&shared.counters);
        let transit = Hallway::spawn("ov-transit-0".to_owned(), wake, move || {
            transit::run(common, punter, &counters);
        })?;
        Ok((Self { shared, _transit: transit }, port))
    }

    /// The counters of the hallway.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Stops the thread and waits for it.
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

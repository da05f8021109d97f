//! The TUN devices of `ovd`: one per overlay, made and unmade as tables say.
//!
//! The `unreachable` route of an overlay comes before its device and stays when the device goes: no
//! packet for the overlay leaves in clear.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::handover::{Inheritance, queues_of};
use crate::agent::health::{Health, Topic};
use crate::agent::state::StateDir;
use crate::api::table::{NodeTable, OverlayTable};
use crate::dataplane::EntityPlane;
use crate::sys::SysError;
use crate::sys::batch::OVERLAY_MTU_MAX;
use crate::sys::net::Network;
use crate::sys::tun::Tun;
use crate::types::{DataPath, Lanes, OverlayId, Prefix};
use crate::wire::gue;

/// What IPv6 asks of every link.
const IPV6_MTU_MIN: u32 = 1280;

/// An underlay whose MTU nobody knows.
const UNDERLAY_MTU_USUAL: u32 = 1500;

/// How many endpoints are asked for the path's MTU.
const MTU_ASKED_MAX: usize = 16;

/// How many packets wait in a device while no process reads: half a second of 2,000 a second, where the
/// kernel has 500. As many as WireGuard holds for a peer; more would be delay when this process is the
/// bottleneck.
const QUEUE: u32 = 1024;

/// A device in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) mtu: u32,
    address: IpAddr,
    cidr: Prefix,
    overlay: String,
}

/// The devices of this process.
#[derive(Debug)]
pub(crate) struct Devices {
    network: Network,
    data_path: DataPath,
    lanes: Lanes,
    in_use: BTreeMap<OverlayId, Device>,
    inheritance: Inheritance,
    /// Names of devices that an earlier process had and nobody has asked for yet.
    left: BTreeSet<String>,
    /// Whether something could not be set up and is to be tried again.
    is_incomplete: bool,
}

impl Devices {
    /// `left` are the names of devices that an earlier process had.
    pub(crate) fn new(
        network: Network,
        data_path: DataPath,
        lanes: Lanes,
        inheritance: Inheritance,
        left: BTreeSet<String>,
    ) -> Self {
        let (in_use, is_incomplete) = (BTreeMap::new(), false);
        Self { network, data_path, lanes, in_use, inheritance, left, is_incomplete }
    }

    /// The device of an overlay.
    pub(crate) fn find(&self, overlay: OverlayId) -> Option<&Device> {
        self.in_use.get(&overlay)
    }

    /// Whether [`Self::follow`] should be called again without a new table.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Lets go of devices whose thread reported that they are gone, so that [`Self::follow`] makes them
    /// again. One that works is made again with them, which costs a moment.
    pub(crate) fn forget_broken(&mut self, plane: &mut EntityPlane) {
        if !plane.problems().is_empty() {
            for &id in self.in_use.keys() {
                plane.remove_overlay(id);
            }
            self.in_use.clear();
        }
    }

    /// Makes the devices as `table` says. What cannot be made becomes a problem of its overlay.
    pub(crate) async fn follow(
        &mut self,
        table: &NodeTable,
        plane: &mut EntityPlane,
        state: &StateDir,
        health: &Health,
    ) {
        self.is_incomplete = false;
        let wanted: BTreeSet<OverlayId> =
            table.body.overlays.iter().map(|overlay| overlay.id).collect();
        let gone: Vec<OverlayId> =
            self.in_use.keys().copied().filter(|id| !wanted.contains(id)).collect();
        for id in gone {
            plane.remove_overlay(id);
            if let Some(device) = self.in_use.remove(&id) {
                self.inheritance.manager.let_go(&queues_of(&device.name));
                tracing::info!(overlay = device.overlay, device = device.name, "left the overlay");
                health.set(Topic::Overlay(device.overlay), Vec::new());
                // The overlay is no business of this host any more.
                if let Err(error) = self.network.remove_unreachable(device.cidr).await {
                    tracing::warn!(%error, "an unreachable route stays");
                }
            }
        }
        let names = names(state, table);
        for left in std::mem::take(&mut self.left) {
            if !names.values().any(|name| *name == left) {
                self.let_go(&left).await;
            }
        }
        let mtu = self.overlay_mtu(table).await;
        for overlay in &table.body.overlays {
            let Some(address) = overlay.address else { continue };
            let Some(name) = names.get(&overlay.id) else { continue };
            let topic = Topic::Overlay(overlay.name.to_string());
            match self.set_up(overlay, address, name, mtu, plane).await {
                Ok(()) => health.set(topic, Vec::new()),
                Err(error) => {
                    self.is_incomplete = true;
                    plane.remove_overlay(overlay.id);
                    self.in_use.remove(&overlay.id);
                    health.set(topic, vec![format!("overlay {}: {error}", overlay.name)]);
                }
            }
        }
        if !self.is_incomplete {
            self.inheritance.close_rest();
        }
    }

    async fn set_up(
        &mut self,
        overlay: &OverlayTable,
        address: IpAddr,
        name: &str,
        mtu: u32,
        plane: &mut EntityPlane,
    ) -> Result<(), SysError> {
        let mtu = if overlay.cidr.addr().is_ipv6() { mtu.max(IPV6_MTU_MIN) } else { mtu };
        let wanted = Device {
            name: name.to_owned(),
            mtu,
            address,
            cidr: overlay.cidr,
            overlay: overlay.name.to_string(),
        };
        let is_running = plane.overlays().any(|id| id == overlay.id);
        if let Some(device) = self.in_use.get_mut(&overlay.id).filter(|_| is_running) {
            if *device == wanted {
                return Ok(());
            }
            if (Device { mtu, ..device.clone() }) == wanted {
                self.network.set_mtu(name, mtu).await?;
                *device = wanted;
                return Ok(());
            }
        }
        // Another address or a dead thread: a new device. The old one must be gone first.
        plane.remove_overlay(overlay.id);
        self.network.add_unreachable(overlay.cidr).await?;
        let queues = self.open(name).await?;
        self.network.configure(name, address, overlay.cidr, mtu).await?;
        // Whole, it stays when this process crashes. Until then it vanishes with the process, also when that
        // is stopped half way.
        queues.iter().for_each(|queue| queue.persist(true));
        plane.add_overlay(overlay.id, queues)?;
        tracing::info!(overlay = %overlay.name, device = name, %address, mtu, "in the overlay");
        self.in_use.insert(overlay.id, wanted);
        Ok(())
    }

    /// The queues of a device: those of the process before this one, with what waits in them, or new ones.
    async fn open(&mut self, name: &str) -> Result<Vec<Tun>, SysError> {
        if let Some(queues) = self.adopt(name) {
            return Ok(queues);
        }
        let (path, lanes) = (self.data_path, self.lanes);
        let queues = match Tun::open(name, path, lanes) {
            // One that a crash has left behind, made for another number of lanes.
            Err(_) if self.network.remove_left(name).await? => Tun::open(name, path, lanes)?,
            opened => opened?,
        };
        // Only now: a change on a device that is up loses what waits in it.
        self.network.set_queue_len(name, QUEUE).await?;
        for queue in &queues {
            self.inheritance.manager.keep(&queues_of(name), queue.descriptor());
        }
        Ok(queues)
    }

    /// The queues of a device that the process before this one had.
    fn adopt(&mut self, name: &str) -> Option<Vec<Tun>> {
        let (path, lanes) = (self.data_path, self.lanes);
        self.inheritance
            .adopt(&queues_of(name), |descriptors| Tun::adopt(descriptors, name, path, lanes))
    }

    /// Has a device vanish that an earlier process had for an overlay that this host is not in any more.
    async fn let_go(&mut self, name: &str) {
        let adopted = self.adopt(name);
        adopted.iter().flatten().for_each(|queue| queue.persist(false));
        drop(adopted);
        self.inheritance.manager.let_go(&queues_of(name));
        if let Err(error) = self.network.remove_left(name).await {
            tracing::warn!(%error, "a device of an earlier start stays");
        }
    }

    /// What a wrapped packet may carry: the smallest path to any SaP or direct peer, less the
    /// overhead.
    async fn overlay_mtu(&self, table: &NodeTable) -> u32 {
        let saps = table.body.saps.iter().filter_map(|sap| sap.endpoints.first());
        let peers = table
            .body
            .overlays
            .iter()
            .flat_map(|overlay| &overlay.members)
            .filter(|member| member.id != table.body.node.id)
            .filter_map(|member| member.endpoints.first());
        let mut smallest: Option<u32> = None;
        for endpoint in saps.chain(peers).take(MTU_ASKED_MAX) {
            let to = endpoint.ip().to_canonical();
            if let Ok(mtu) = self.network.mtu_towards(to).await {
                let inner = mtu.saturating_sub(gue::overhead(to.is_ipv4()).into());
                smallest = Some(smallest.map_or(inner, |smallest| smallest.min(inner)));
            }
        }
        let max = u32::try_from(OVERLAY_MTU_MAX).unwrap_or(u32::MAX);
        smallest.unwrap_or(UNDERLAY_MTU_USUAL - u32::from(gue::overhead(true))).clamp(576, max)
    }
}

/// Gives each overlay a device name that it keeps for as long as this node is in it: `ov0`, `ov1`, …
/// in order of joining.
pub(crate) fn names(state: &StateDir, table: &NodeTable) -> BTreeMap<OverlayId, String> {
    let wanted = table.body.overlays.iter().map(|overlay| overlay.id).collect();
    let kept = state.devices();
    let names = assign(&kept, &wanted);
    if names != kept
        && let Err(problem) = state.save_devices(&names)
    {
        tracing::warn!(why = %problem.why, "cannot keep the names of devices");
    }
    names
}

fn assign(
    kept: &BTreeMap<OverlayId, String>,
    wanted: &BTreeSet<OverlayId>,
) -> BTreeMap<OverlayId, String> {
    let mut names: BTreeMap<OverlayId, String> = kept
        .iter()
        .filter(|(id, _)| wanted.contains(id))
        .map(|(&id, name)| (id, name.clone()))
        .collect();
    for &id in wanted {
        if !names.contains_key(&id) {
            let is_free = |name: &String| !names.values().any(|used| used == name);
            let free = (0_u32..).map(|n| format!("ov{n}")).find(is_free);
            names.extend(free.map(|name| (id, name)));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_keep_their_device_and_new_ones_take_the_first_free() {
        let ids = |ids: &[u32]| ids.iter().copied().map(OverlayId).collect::<BTreeSet<_>>();
        let show = |names: &BTreeMap<OverlayId, String>| {
            names.iter().map(|(id, name)| format!("{id}={name}")).collect::<Vec<_>>().join(" ")
        };

        let first = assign(&BTreeMap::new(), &ids(&[4, 7]));
        assert_eq!(show(&first), "o-4=ov0 o-7=ov1");
        let grown = assign(&first, &ids(&[2, 4, 7]));
        assert_eq!(show(&grown), "o-2=ov2 o-4=ov0 o-7=ov1");
        let shrunk = assign(&grown, &ids(&[2, 7, 9]));
        assert_eq!(show(&shrunk), "o-2=ov2 o-7=ov1 o-9=ov0");
    }
}

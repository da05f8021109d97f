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
use crate::wire::inner::IPV6_MTU_MIN;

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
    /// What the underlay left for packets when the devices were last looked at.
    room: Option<Room>,
}

/// What the narrowest way to any hop leaves for a wrapped packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    /// In bytes, within what a device may have.
    mtu: u32,
    /// Whose way it is and what that takes in bytes; none where no way is known.
    narrowest: Option<(IpAddr, u32)>,
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
        let (in_use, is_incomplete, room) = (BTreeMap::new(), false, None);
        Self { network, data_path, lanes, in_use, inheritance, left, is_incomplete, room }
    }

    /// The device of an overlay.
    pub(crate) fn find(&self, overlay: OverlayId) -> Option<&Device> {
        self.in_use.get(&overlay)
    }

    /// Whether [`Self::follow`] should be called again without a new table.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Whether the underlay has another MTU by now than the devices were made for.
    pub(crate) async fn is_outdated(&self, table: &NodeTable) -> bool {
        self.room != Some(self.room(table).await)
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
        let room = self.room(table).await;
        self.room = Some(room);
        for overlay in &table.body.overlays {
            let Some(address) = overlay.address else { continue };
            let Some(name) = names.get(&overlay.id) else { continue };
            let topic = Topic::Overlay(overlay.name.to_string());
            let outcome = match room.too_small(overlay.cidr) {
                None => self.set_up(overlay, address, name, room.mtu, plane).await,
                Some(error) => Err(self.keep_shut(overlay, name, plane, error).await),
            };
            match outcome {
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

    /// An overlay without a device, for the reason that comes back: its packets get nowhere, and programs hear so
    /// at once.
    async fn keep_shut(
        &mut self,
        overlay: &OverlayTable,
        name: &str,
        plane: &mut EntityPlane,
        reason: SysError,
    ) -> SysError {
        plane.remove_overlay(overlay.id);
        // Nobody reads one that an earlier process has left.
        self.let_go(name).await;
        match self.network.add_unreachable(overlay.cidr).await {
            Ok(()) => reason,
            Err(error) => error,
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
    async fn room(&self, table: &NodeTable) -> Room {
        let mut room: Option<Room> = None;
        for (_, endpoint) in table.body.hops().take(MTU_ASKED_MAX) {
            let to = endpoint.ip().to_canonical();
            if let Ok(way) = self.network.mtu_towards(to).await {
                let found = Room::of(way, to);
                room = Some(room.filter(|room| room.mtu <= found.mtu).unwrap_or(found));
            }
        }
        room.unwrap_or(Room::usual())
    }
}

impl Room {
    /// What a way to `to` of `way` bytes leaves.
    fn of(way: u32, to: IpAddr) -> Self {
        let max = u32::try_from(OVERLAY_MTU_MAX).unwrap_or(u32::MAX);
        let mtu = way.saturating_sub(gue::overhead(to.is_ipv4()).into());
        Self { mtu: mtu.clamp(576, max), narrowest: Some((to, way)) }
    }

    /// Where no way is known.
    fn usual() -> Self {
        Self { mtu: UNDERLAY_MTU_USUAL - u32::from(gue::overhead(true)), narrowest: None }
    }

    /// Why there can be no overlay of `range`: a link of IPv6 that does not take 1280 bytes loses what hosts
    /// take for granted.
    fn too_small(self, range: Prefix) -> Option<SysError> {
        let (to, way) = self.narrowest?;
        if range.addr().is_ipv4() || self.mtu >= IPV6_MTU_MIN.into() {
            return None;
        }
        let needed = IPV6_MTU_MIN + gue::overhead(to.is_ipv4());
        let why = format!(
            "IPv6 needs {IPV6_MTU_MIN} bytes, and the way to {to} takes {way}, headers of ours included"
        );
        Some(SysError::new("the underlay is too narrow for IPv6", why).fix(format!(
            "give that link or route an MTU of {needed} or more, or use an overlay of IPv4"
        )))
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
    fn an_overlay_of_ipv6_needs_1280_bytes_beside_our_headers() {
        let (v4, v6): (IpAddr, IpAddr) =
            ("192.0.2.9".parse().unwrap(), "2001:db8::9".parse().unwrap());
        let (range_v4, range_v6): (Prefix, Prefix) =
            ("10.70.0.0/16".parse().unwrap(), "fd70::/64".parse().unwrap());

        for (way, to, fits) in
            [(1316, v4, true), (1315, v4, false), (1336, v6, true), (1335, v6, false)]
        {
            let room = Room::of(way, to);
            assert_eq!(room.too_small(range_v6).is_none(), fits, "{way} to {to}");
            assert_eq!(room.too_small(range_v4), None, "{way} to {to}");
        }
        let refused = Room::of(1300, v4).too_small(range_v6).unwrap().to_string();
        for word in ["192.0.2.9", "1300", "1316"] {
            assert!(refused.contains(word), "{refused}");
        }
        assert_eq!((Room::of(1500, v4).mtu, Room::usual().mtu), (1464, 1464));
        assert_eq!(Room::usual().too_small(range_v6), None);
    }

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

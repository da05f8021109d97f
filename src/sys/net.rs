//! Addresses, MTUs and routes, by netlink; both families.
//!
//! Everything here may be called again: what is already as it should be is left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkUnspec};

use super::SysError;
use super::netlink::{
    address_ip, address_prefix, devices, is_everywhere, is_global, is_left, link_mtu, link_name,
    route, route_mtu, route_use, unreachable_route,
};
use super::tun::check_name;
use crate::types::Prefix;

/// The metric of our `unreachable` routes: the worst that IPv6 allows by convention, so that any real
/// route goes before it.
pub const UNREACHABLE_METRIC: u32 = 4_278_198_272;

/// A connection to the kernel's routing tables. Lives on the tokio runtime that opened it.
#[derive(Debug)]
pub struct Network {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Network {
    /// Opens the connection; must be called on a tokio runtime.
    ///
    /// # Errors
    ///
    /// When there is no netlink here.
    pub fn open() -> Result<Self, SysError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|error| SysError::from_io("cannot open a netlink socket", &error))?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// Makes `device` an overlay interface: no autoconfiguration, `address` as a single host, `mtu`
    /// bytes, up, and `range` routed to it. [`Self::add_unreachable`] comes before it, so that at no
    /// moment a packet for the range leaves in clear.
    ///
    /// # Errors
    ///
    /// The first step that the kernel refuses, or a range that another device has.
    pub async fn configure(
        &self,
        device: &str,
        address: IpAddr,
        range: Prefix,
        mtu: u32,
    ) -> Result<(), SysError> {
        self.quiet_ipv6(device).await?;
        self.set_mtu(device, mtu).await?;
        let host_len = if address.is_ipv4() { 32 } else { 128 };
        self.add_address(device, address, host_len).await?;
        self.remove_other_addresses(device, address).await?;
        self.set_up(device).await?;
        self.add_route(range, device).await
    }

    /// Takes addresses but `address` off `device`: one that outlived a process may have an old one.
    async fn remove_other_addresses(&self, device: &str, address: IpAddr) -> Result<(), SysError> {
        let index = self.index_of(device).await?;
        for other in self.addresses().await? {
            if other.header.index == index && address_ip(&other).is_some_and(|ip| ip != address) {
                let result = self.handle.address().del(other).execute().await;
                ignore(result, libc::EADDRNOTAVAIL).map_err(|error| {
                    explain(format!("cannot take an old address off {device}"), &error)
                })?;
            }
        }
        Ok(())
    }

    /// Removes the TUN device `device` when a process has left it behind and none holds it now. Returns
    /// whether it was so.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub async fn remove_left(&self, device: &str) -> Result<bool, SysError> {
        let links = self.links().await?;
        let named = |link: &&LinkMessage| {
            link.attributes.iter().find_map(link_name).is_some_and(|name| name == device)
        };
        let Some(link) = links.iter().find(named).filter(|link| is_left(link)) else {
            return Ok(false);
        };
        let result = self.handle.link().del(link.header.index).execute().await;
        ignore(result, libc::ENODEV)
            .map_err(|error| explain(format!("cannot remove {device}"), &error))?;
        Ok(true)
    }

    /// Keeps IPv6 on `device` from inventing addresses and from believing router advertisements.
    /// Call it before [`Self::set_up`]. A read-only `/proc/sys` (containers) is no error: an overlay
    /// carries no router advertisements anyway.
    ///
    /// # Errors
    ///
    /// No such device.
    pub async fn quiet_ipv6(&self, device: &str) -> Result<(), SysError> {
        check_name(device)?;
        let mut message = LinkMessage::default();
        message.header.index = self.index_of(device).await?;
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]));
        // Refused where IPv6 is disabled; then there is nothing to keep quiet.
        if let Err(error) = self.handle.link().set(message).execute().await {
            tracing::debug!(device, %error, "address generation stays as it is");
        }
        for (key, value) in [("accept_ra", "0"), ("autoconf", "0"), ("router_solicitations", "0")] {
            let path = format!("/proc/sys/net/ipv6/conf/{device}/{key}");
            if let Err(error) = tokio::fs::write(&path, value).await {
                tracing::debug!(path, %error, "left as it is");
            }
        }
        Ok(())
    }

    /// Sets the MTU of `device` in bytes.
    ///
    /// # Errors
    ///
    /// No such device, or an MTU that it does not take.
    pub async fn set_mtu(&self, device: &str, mtu: u32) -> Result<(), SysError> {
        let index = self.index_of(device).await?;
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        let result = self.handle.link().set(message).execute().await;
        result.map_err(|error| explain(format!("cannot set the MTU of {device} to {mtu}"), &error))
    }

    /// Sets how many packets wait in `device` for who reads it. What waits when it is up already is lost.
    ///
    /// # Errors
    ///
    /// No such device, or a missing right.
    pub async fn set_queue_len(&self, device: &str, packets: u32) -> Result<(), SysError> {
        let mut message = LinkMessage::default();
        message.header.index = self.index_of(device).await?;
        message.attributes.push(LinkAttribute::TxQueueLen(packets));
        let result = self.handle.link().set(message).execute().await;
        result.map_err(|error| explain(format!("cannot set the queue of {device}"), &error))
    }

    /// Sets `device` up.
    ///
    /// # Errors
    ///
    /// No such device, or a missing right.
    pub async fn set_up(&self, device: &str) -> Result<(), SysError> {
        let index = self.index_of(device).await?;
        let message = LinkUnspec::new_with_index(index).up().build();
        let result = self.handle.link().set(message).execute().await;
        result.map_err(|error| explain(format!("cannot set {device} up"), &error))
    }

    /// Gives `device` an address.
    ///
    /// # Errors
    ///
    /// No such device, or a missing right. An address that is there already is none.
    pub async fn add_address(
        &self,
        device: &str,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<(), SysError> {
        let index = self.index_of(device).await?;
        let result = self.handle.address().add(index, address, prefix_len).execute().await;
        ignore(result, libc::EEXIST).map_err(|error| {
            explain(format!("cannot give {device} the address {address}/{prefix_len}"), &error)
        })
    }

    /// Routes `range` to `device`.
    ///
    /// # Errors
    ///
    /// When another device has a route for exactly this range, or the kernel refuses.
    pub async fn add_route(&self, range: Prefix, device: &str) -> Result<(), SysError> {
        let index = self.index_of(device).await?;
        let what = || format!("cannot route {range} to {device}");
        let mut message = route(range).map_err(|why| SysError::new(what(), why))?;
        message.attributes.push(RouteAttribute::Oif(index));
        message.header.scope = RouteScope::Link;
        match self.handle.route().add(message).execute().await {
            Err(error) if errno(&error) == Some(libc::EEXIST) => {
                let routes = self.occupied().await?;
                let same = routes.into_iter().filter(|(prefix, _)| *prefix == range.trunc());
                let owners: Vec<_> = same.map(|(_, owner)| owner).collect();
                if owners.iter().any(|owner| owner == device) {
                    return Ok(());
                }
                Err(SysError::new(what(), format!("it is routed to {}", owners.join(", ")))
                    .fix(format!("remove that route, see: ip route show to exact {range}")))
            }
            result => result.map_err(|error| explain(what(), &error)),
        }
    }

    /// Adds the `unreachable` route that keeps packets for `range` from leaving in clear while the
    /// device is away. It stays when this process ends.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. A route that is there already is no error.
    pub async fn add_unreachable(&self, range: Prefix) -> Result<(), SysError> {
        let what = || format!("cannot add the unreachable route for {range}");
        let message = unreachable_route(range).map_err(|why| SysError::new(what(), why))?;
        let result = self.handle.route().add(message).execute().await;
        ignore(result, libc::EEXIST).map_err(|error| explain(what(), &error))
    }

    /// Removes what [`Self::add_unreachable`] added; for a node that leaves the overlay.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. A route that is not there is no error.
    pub async fn remove_unreachable(&self, range: Prefix) -> Result<(), SysError> {
        let what = || format!("cannot remove the unreachable route for {range}");
        let message = unreachable_route(range).map_err(|why| SysError::new(what(), why))?;
        let result = self.handle.route().del(message).execute().await;
        ignore(result, libc::ESRCH).map_err(|error| explain(what(), &error))
    }

    /// Ranges that this host uses, each with the device (or `unreachable`, `blackhole`, …) that has
    /// it: routes of all tables and interface addresses. Default routes, link-local and multicast
    /// ranges and our own `unreachable` routes are left out.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn occupied(&self) -> Result<Vec<(Prefix, String)>, SysError> {
        let names = self.device_names().await?;
        let name = |index: u32| names.get(&index).cloned().unwrap_or_else(|| format!("#{index}"));
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let routes = self.routes(family).await?;
            found.extend(routes.iter().filter_map(|route| {
                let (prefix, device) = route_use(route)?;
                Some((prefix, device.map_or_else(|kind| kind.to_owned(), name)))
            }));
        }
        found.extend(
            self.addresses()
                .await?
                .iter()
                .filter_map(|address| Some((address_prefix(address)?, name(address.header.index)))),
        );
        found.retain(|(prefix, _)| !is_everywhere(prefix));
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Addresses that others can reach this host at: no loopback, no link-local, and none of the
    /// devices that `is_ours` names, whose addresses are inside overlays.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn global_addresses(
        &self,
        is_ours: impl Fn(&str) -> bool,
    ) -> Result<Vec<IpAddr>, SysError> {
        let names = self.device_names().await?;
        let addresses = self.addresses().await?;
        let reachable = addresses.iter().filter_map(|address| {
            let is_ours = names.get(&address.header.index).is_some_and(|name| is_ours(name));
            address_ip(address).filter(|ip| !is_ours && is_global(*ip))
        });
        Ok(reachable.collect())
    }

    async fn addresses(&self) -> Result<Vec<AddressMessage>, SysError> {
        self.handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| explain("cannot list the addresses".to_owned(), &error))
    }

    /// The MTU in bytes of the way towards `to`: the route's when it has one, else its device's. Never
    /// what ICMP messages told the kernel, which anybody can forge.
    ///
    /// # Errors
    ///
    /// When there is no route.
    pub async fn mtu_towards(&self, to: IpAddr) -> Result<u32, SysError> {
        let what = || format!("cannot find the MTU towards {to}");
        // The table's entry has the operator's MTU alone. It may name several devices; what the kernel
        // makes of it for `to` names one, and has the learned MTU.
        let entry = self.route_towards(to, RouteFlags::FibMatch).await?;
        if let Some(mtu) = entry.attributes.iter().find_map(route_mtu) {
            return Ok(mtu);
        }
        let made = self.route_towards(to, RouteFlags::empty()).await?;
        let device = made.attributes.iter().find_map(|attribute| {
            if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None }
        });
        let links = self.links().await?;
        links
            .iter()
            .find(|link| Some(link.header.index) == device)
            .and_then(|link| link.attributes.iter().find_map(link_mtu))
            .ok_or_else(|| SysError::new(what(), "the route names no device with an MTU"))
    }

    /// The devices that lead to other machines: those of default routes, and those of the ways to
    /// `towards`, as far as there are any.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub async fn uplinks(&self, towards: &[IpAddr]) -> Result<Vec<String>, SysError> {
        let names = self.device_names().await?;
        let mut found = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let routes = self.routes(family).await?;
            let defaults =
                routes.iter().filter(|route| route.header.destination_prefix_length == 0);
            found.extend(defaults.flat_map(devices));
        }
        for &to in towards {
            if let Ok(route) = self.route_towards(to, RouteFlags::empty()).await {
                found.extend(devices(&route));
            }
        }
        Ok(found
            .iter()
            .filter_map(|index| names.get(index).cloned())
            .filter(|name| name != "lo")
            .collect())
    }

    async fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>, SysError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let routes = self.handle.route().get(message).execute().try_collect().await;
        routes.map_err(|error| explain("cannot list the routes".to_owned(), &error))
    }

    async fn route_towards(&self, to: IpAddr, flags: RouteFlags) -> Result<RouteMessage, SysError> {
        let what = || format!("cannot find the route to {to}");
        let mut message = route(Prefix::from(to)).map_err(|why| SysError::new(what(), why))?;
        message.header.flags = flags;
        let found = std::pin::pin!(self.handle.route().get(message).execute()).try_next().await;
        let found = found.map_err(|error| explain(what(), &error))?;
        found.ok_or_else(|| SysError::new(what(), "no route"))
    }

    async fn links(&self) -> Result<Vec<LinkMessage>, SysError> {
        self.handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| explain("cannot list the devices".to_owned(), &error))
    }

    async fn device_names(&self) -> Result<BTreeMap<u32, String>, SysError> {
        let links = self.links().await?;
        Ok(links
            .iter()
            .filter_map(|link| {
                Some((link.header.index, link.attributes.iter().find_map(link_name)?.to_owned()))
            })
            .collect())
    }

    async fn index_of(&self, device: &str) -> Result<u32, SysError> {
        let names = self.device_names().await?;
        names.iter().find(|(_, name)| *name == device).map(|(index, _)| *index).ok_or_else(|| {
            SysError::new(format!("there is no network device {device}"), "it was removed")
                .fix("restart ovd: it makes its devices when it starts")
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The address that the kernel picks to speak to `to`. Nothing is sent.
///
/// # Errors
///
/// When there is no route.
pub fn source_towards(to: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip().to_canonical())
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    if let rtnetlink::Error::NetlinkError(message) = error {
        return Some(message.raw_code().abs());
    }
    None
}

/// Treats one refusal as success: the thing was already so.
fn ignore(result: Result<(), rtnetlink::Error>, harmless: i32) -> Result<(), rtnetlink::Error> {
    match result {
        Err(error) if errno(&error) == Some(harmless) => Ok(()),
        result => result,
    }
}

fn explain(what: String, error: &rtnetlink::Error) -> SysError {
    match errno(error) {
        Some(code) => SysError::from_io(what, &io::Error::from_raw_os_error(code)),
        None => SysError::new(what, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_loopback_is_listed_and_has_an_mtu() {
        let network = Network::open().unwrap();

        let occupied = network.occupied().await.unwrap();
        let loopback = "127.0.0.0/8".parse().unwrap();
        assert!(occupied.contains(&(loopback, "lo".to_owned())), "{occupied:?}");
        assert!(occupied.iter().all(|(prefix, _)| prefix.prefix_len() > 0));

        assert!(network.mtu_towards("127.0.0.1".parse().unwrap()).await.unwrap() >= 1280);
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_is_named() {
        let network = Network::open().unwrap();

        let error = network.set_up("ov-none").await.unwrap_err();

        assert!(error.what.contains("ov-none"), "{error}");
        assert!(network.quiet_ipv6("../../lo").await.is_err());
    }

    #[test]
    fn the_kernel_picks_the_loopback_towards_itself() {
        let to = "127.0.0.1:6080".parse().unwrap();
        assert_eq!(source_towards(to).unwrap(), IpAddr::from([127, 0, 0, 1]));
    }
}

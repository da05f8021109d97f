//! Brings this host's questions for name servers to a port of our own: a table of nf_tables that belongs to a
//! socket of this process.
//!
//! The kernel takes such a table away with the socket, however the process ends, so that nothing is left that
//! would lead questions nowhere; and nobody else can change it. It is made by our own messages, not by `nft`,
//! whose socket ends with it. Needs Linux 5.12.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use socket2::{SockRef, Socket};

use super::nftables::{self, Message};
use super::{NET_ADMIN, SysError};

/// Where name servers listen.
pub const DNS_PORT: u16 = 53;

/// What marks the packets of sockets that are exempt. Bits that the well-known users of marks (kube-proxy,
/// Docker, Istio, Calico, Cilium, Tailscale, WireGuard) leave alone.
const MARK: u32 = 0x76;

/// After connection tracking (-200), which translation needs, and before everything else that might change a
/// mark (-150) or translate (-100).
const PRIORITY: i32 = -160;

const LOCAL_OUT: u32 = 3;
const OWNED: u32 = 2;

/// Has the packets of `socket` pass by every [`Redirect`].
///
/// # Errors
///
/// When the right is missing.
pub fn exempt(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_mark(MARK)
}

/// A name server that this host asks, and the port on loopback that its questions go to instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Detour {
    /// Whom questions are for.
    pub server: IpAddr,
    /// Who gets them: a port of 127.0.0.1, or of ::1.
    pub port: u16,
}

/// The table; gone when this is.
#[derive(Debug)]
pub struct Redirect {
    socket: Socket,
    table: String,
    detours: Vec<Detour>,
}

impl Redirect {
    /// Nothing is redirected yet.
    ///
    /// # Errors
    ///
    /// When the kernel has no nf_tables.
    pub fn new() -> Result<Self, SysError> {
        let socket = nftables::open().map_err(|error| refusal(&error))?;
        // The process that this one takes over from has one of its own for a moment.
        let table = format!("ovmesh-names-{}", std::process::id());
        Ok(Self { socket, table, detours: Vec::new() })
    }

    /// What is redirected.
    #[must_use]
    pub fn detours(&self) -> &[Detour] {
        &self.detours
    }

    /// Redirects UDP and TCP by `detours`, and nothing else, from one packet to the next.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; what was redirected still is.
    pub fn replace(&mut self, detours: &[Detour]) -> Result<(), SysError> {
        if self.detours == detours {
            return Ok(());
        }
        let mut batch = Vec::new();
        if !self.detours.is_empty() {
            batch.push(Message::remove_table(&self.table));
        }
        if !detours.is_empty() {
            batch.extend(table(&self.table, detours));
        }
        nftables::commit(&self.socket, &batch).map_err(|error| refusal(&error))?;
        self.detours = detours.to_vec();
        Ok(())
    }
}

fn refusal(error: &io::Error) -> SysError {
    let what = "cannot redirect questions for name servers";
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => SysError::new(what, error).fix(NET_ADMIN),
        _ => SysError::new(what, error)
            .fix("this needs nf_tables and Linux 5.12; dns = \"off\" in ovd.toml does without"),
    }
}

/// The messages that make the table.
fn table(name: &str, detours: &[Detour]) -> Vec<Message> {
    let chain = "output";
    let mut batch = vec![
        Message::add_table(name, OWNED),
        Message::add_chain(name, chain, "nat", LOCAL_OUT, PRIORITY),
    ];
    for detour in detours {
        for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
            let rule = detour_rule(*detour, u8::try_from(protocol).unwrap_or_default());
            batch.push(Message::add_rule(name, chain, &rule));
        }
    }
    batch
}

/// One rule: what has our mark, another destination, protocol or port goes on.
fn detour_rule(detour: Detour, protocol: u8) -> Vec<nftables::Expression> {
    use nftables::{Expression as E, Key};
    let (family, offset, address) = match detour.server {
        IpAddr::V4(address) => (libc::NFPROTO_IPV4, 16, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::NFPROTO_IPV6, 24, address.octets().to_vec()),
    };
    let len = u32::try_from(address.len()).unwrap_or_default();
    let family = u8::try_from(family).unwrap_or_default();
    vec![
        E::Meta(Key::Family),
        E::Is(vec![family]),
        E::Meta(Key::Protocol),
        E::Is(vec![protocol]),
        E::NetworkHeader { offset, len },
        E::Is(address),
        E::TransportHeader { offset: 2, len: 2 },
        E::Is(DNS_PORT.to_be_bytes().to_vec()),
        E::Meta(Key::Mark),
        E::IsNot(MARK.to_ne_bytes().to_vec()),
        E::Port(detour.port),
        E::Redirect,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_a_rule_for_each_protocol() {
        let detours = ["192.0.2.1", "2001:db8::1"]
            .map(|server| Detour { server: server.parse().unwrap(), port: 6053 });

        assert_eq!(table("t", &detours).len(), 2 + 4);
        let v6 = detour_rule(detours[1], 17);
        let address = detours[1].server;
        let IpAddr::V6(address) = address else { unreachable!() };
        assert!(v6.contains(&nftables::Expression::Is(address.octets().to_vec())));
    }
}

//! The data socket of a lane: one UDP socket for both families, read and written in batches.
//!
//! Every packet carries its own TOS and TTL in and out, because a SaP hands them on. The outer header
//! has DF set. The kernel's memory of path MTUs is not believed ("probe"): its entries come from ICMP
//! messages that anybody can forge for a UDP socket, and would let an outsider shrink a path. What such
//! a message quotes comes out of the error queue, for whoever can tell whether it is of ours.
//! Trains (many datagrams in one buffer) are probed at the start; sending them ends when an interface
//! turns out not to take them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::SysError;
use crate::types::{DataPath, DropReason, Lanes};

mod errors;
mod receive;
mod send;

pub use errors::TooLong;
pub use send::{Outgoing, SendQueue, Sent};

/// TTL and hop limit of datagrams that start here.
pub const TTL: u8 = 64;

/// The receive buffer that is asked for, in bytes: a burst of 10 Gbit/s for 3 ms. Without rights the
/// kernel gives less (`net.core.rmem_max`), which works too.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How long a send may wait for room in the socket's buffer. Waiting hands the pressure back to the
/// TUN's queue, where TCP feels it; without an end a dead interface would hold the thread for ever.
const SEND_PATIENCE: Duration = Duration::from_millis(100);

/// The bound data socket of a lane. Shared by its threads; every method takes `&self`.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    path: DataPath,
    local: SocketAddr,
    is_v6: bool,
    receive_buffer_bytes: usize,
    sends_trains: AtomicBool,
    /// Whether the error queue may hold something.
    has_errors: AtomicBool,
}

impl UdpSocket {
    /// Binds `listen`. `[::]` takes both families; where the host has no IPv6 it becomes `0.0.0.0`.
    ///
    /// # Errors
    ///
    /// When the address is taken or not ours, or the kernel lacks what the data path needs.
    pub fn bind(listen: SocketAddr, path: DataPath) -> Result<Self, SysError> {
        match Self::try_bind(listen, path, false) {
            Err(error) if has_no_ipv6(listen, &error) => {
                let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()));
                Self::try_bind(listen, path, false).map_err(|error| explain(listen, &error))
            }
            bound => bound.map_err(|error| explain(listen, &error)),
        }
    }

    /// Binds a socket for each lane, all to the same address. The kernel gives each sender (address and
    /// port) one of them, so that what one sends keeps its order.
    ///
    /// # Errors
    ///
    /// As [`Self::bind`]; also when other lanes hold the address.
    pub fn bind_lanes(
        listen: SocketAddr,
        path: DataPath,
        lanes: Lanes,
    ) -> Result<Vec<Self>, SysError> {
        // The first one shares with nobody until it has the address: another process that shares it
        // would take part of our packets.
        let first = Self::bind(listen, path)?;
        let (local, more) = (first.local, lanes.count() - 1);
        if more > 0 {
            first.socket.set_reuse_port(true).map_err(|error| explain(local, &error))?;
        }
        let others = (0..more).map(|_| Self::try_bind(local, path, true));
        std::iter::once(Ok(first))
            .chain(others)
            .collect::<io::Result<_>>()
            .map_err(|error| explain(local, &error))
    }

    /// Takes over the sockets of the process before this one, with what waits in them.
    ///
    /// # Errors
    ///
    /// Why they are not what [`Self::bind_lanes`] would give for the same arguments.
    pub fn adopt_lanes(
        descriptors: Vec<OwnedFd>,
        listen: SocketAddr,
        path: DataPath,
        lanes: Lanes,
    ) -> Result<Vec<Self>, SysError> {
        let what = "cannot take over the data sockets";
        if descriptors.len() != lanes.count() {
            let why = format!("there are {}, for {} lanes", descriptors.len(), lanes.count());
            return Err(SysError::new(what, why));
        }
        let sockets = descriptors.into_iter().map(|descriptor| {
            let socket = Socket::from(descriptor);
            if socket.r#type()? != Type::DGRAM {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            Self::equip(socket, path)
        });
        let sockets: Vec<Self> =
            sockets.collect::<io::Result<_>>().map_err(|error| SysError::new(what, error))?;
        match sockets.iter().find(|socket| !would_be(listen, socket.local)) {
            Some(other) => {
                Err(SysError::new(what, format!("they listen on {}, not on {listen}", other.local)))
            }
            None => Ok(sockets),
        }
    }

    /// What the process after this one gets.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn try_bind(listen: SocketAddr, path: DataPath, is_shared: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        if listen.is_ipv6() {
            socket.set_only_v6(!listen.ip().is_unspecified())?;
        }
        socket.set_reuse_port(is_shared)?;
        // A smaller buffer is no reason not to start; what we got is reported.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        let _ = socket.set_send_buffer_size(RECEIVE_BUFFER);
        // With CAP_NET_ADMIN the host's limit does not count.
        let bytes = RECEIVE_BUFFER as i32;
        let _ = set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes);
        socket.bind(&SockAddr::from(listen))?;
        Self::equip(socket, path)
    }

    /// Makes a bound socket what is asked for, whoever bound it. Its buffers stay: something may wait there.
    fn equip(socket: Socket, path: DataPath) -> io::Result<Self> {
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        let is_v6 = local.is_ipv6();
        for (level, option, value) in options(is_v6) {
            set_option(&socket, level, option, value)?;
        }
        socket.set_write_timeout(Some(SEND_PATIENCE))?;
        let receive_buffer_bytes = socket.recv_buffer_size()?;
        let sends_trains = match path {
            // Kernels before 5.0 know no trains; each direction is asked for by itself.
            DataPath::Full => {
                let _ = set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
                set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
            }
            DataPath::Batch | DataPath::Naive => false,
        };
        let sends_trains = AtomicBool::new(sends_trains);
        let has_errors = AtomicBool::new(false);
        Ok(Self { socket, path, local, is_v6, receive_buffer_bytes, sends_trains, has_errors })
    }

    /// How many buffers one system call may move, `all` at most.
    fn at_once(&self, all: usize) -> usize {
        match self.path {
            DataPath::Full | DataPath::Batch => all,
            DataPath::Naive => 1,
        }
    }

    /// What it is bound to, with the real port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The receive buffer that the kernel gave, in bytes; it counts its own overhead in.
    #[must_use]
    pub fn receive_buffer_bytes(&self) -> usize {
        self.receive_buffer_bytes
    }

    /// Whether datagrams may leave as trains.
    fn sends_trains(&self) -> bool {
        self.sends_trains.load(Ordering::Relaxed)
    }

    /// Some interface on the way cannot cut trains: from now on every datagram leaves by itself.
    fn send_no_trains(&self) {
        self.sends_trains.store(false, Ordering::Relaxed);
    }

    /// Sends one datagram with the default TTL and TOS and never waits; for control messages.
    ///
    /// # Errors
    ///
    /// What the kernel says; nothing was sent then.
    pub fn send_to(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        let to = match to {
            SocketAddr::V4(v4) if self.is_v6 => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
            }
            to @ (SocketAddr::V4(_) | SocketAddr::V6(_)) => to,
        };
        let to = SockAddr::from(to);
        let send = || self.socket.send_to_with_flags(datagram, &to, libc::MSG_DONTWAIT);
        let sent =
            send().or_else(|error| if self.is_of_another(&error) { send() } else { Err(error) });
        sent.map(|_| ())
    }
}

const EMPTY_VECTOR: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

/// What every packet has to tell and to carry. A dual-stack socket needs IPv4's options too, for its
/// mapped addresses.
fn options(is_v6: bool) -> impl Iterator<Item = (i32, i32, i32)> {
    let v4 = [
        (libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
        (libc::IPPROTO_IP, libc::IP_RECVTTL, 1),
        (libc::IPPROTO_IP, libc::IP_RECVERR, 1),
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (libc::IPPROTO_IP, libc::IP_TTL, i32::from(TTL)),
    ];
    let v6 = [
        (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, i32::from(TTL)),
    ];
    v4.into_iter().chain(v6.into_iter().filter(move |_| is_v6))
}

fn set_option(socket: &Socket, level: i32, option: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    let fd = socket.as_raw_fd();
    // SAFETY: the pointer leads to an `i32` that lives until the call returns, and `len` is its size.
    let result = unsafe { libc::setsockopt(fd, level, option, ptr::from_ref(&value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn is_nothing_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn reason(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => DropReason::TooBig,
        _ => DropReason::SendFailed,
    }
}

fn has_no_ipv6(listen: SocketAddr, error: &io::Error) -> bool {
    listen.is_ipv6()
        && listen.ip().is_unspecified()
        && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Whether a socket bound to `listen` could have come to be bound to `local`.
fn would_be(listen: SocketAddr, local: SocketAddr) -> bool {
    let is_fallback = || {
        let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, 0).into();
        let refused = std::net::UdpSocket::bind(any).err();
        local.ip().is_unspecified() && refused.is_some_and(|error| has_no_ipv6(listen, &error))
    };
    (listen.port() == 0 || listen.port() == local.port())
        && (listen.ip() == local.ip() || is_fallback())
}

fn explain(listen: SocketAddr, error: &io::Error) -> SysError {
    let what = format!("cannot listen on UDP {listen}");
    let port = listen.port();
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => SysError::new(what, format!("port {port} is in use")).fix(format!(
            "stop what uses it (ss -ulpn 'sport = :{port}'), or choose another with --listen IP:PORT"
        )),
        Some(libc::EADDRNOTAVAIL) => {
            SysError::new(what, format!("{} is no address of this host", listen.ip()))
                .fix("see ip address; choose one with --listen IP:PORT, or leave it out for all")
        }
        Some(libc::EACCES) => SysError::new(what, error)
            .fix("ports below 1024 need a right; choose another with --listen IP:PORT"),
        _ => SysError::from_io(what, error),
    }
}

#[cfg(test)]
mod tests;

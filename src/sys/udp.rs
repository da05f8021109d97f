//! The data socket: one UDP socket for both families, read and written in batches.
//!
//! Every packet carries its own TOS and TTL in and out, because a SaP hands them on. The outer header
//! has DF set. The kernel's memory of path MTUs is not believed ("probe"): its entries come from ICMP
//! messages that anybody can forge for a UDP socket, and would let an outsider shrink a path.
//! Offloads (many datagrams in one buffer) belong in here and change nothing for the callers.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::ptr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::SysError;
use super::batch::{BATCH, Meta, PacketBatch};
use super::cmsg::Control;
use super::sockaddr::RawAddress;
use crate::types::{DataPath, DropReason};
use crate::wire::gue;

/// TTL and hop limit of datagrams that start here.
pub const TTL: u8 = 64;

/// The receive buffer that is asked for, in bytes: a burst of 10 Gbit/s for 3 ms. Without rights the
/// kernel gives less (`net.core.rmem_max`), which works too.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How long a send may wait for room in the socket's buffer. Waiting hands the pressure back to the
/// TUN's queue, where TCP feels it; without an end a dead interface would hold the thread for ever.
const SEND_PATIENCE: Duration = Duration::from_millis(100);

/// The bound data socket. Shared by all threads of a process; every method takes `&self`.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    path: DataPath,
    local: SocketAddr,
    is_v6: bool,
    receive_buffer_bytes: usize,
}

/// One datagram to send, in two parts so that nothing is copied to put a header before a packet.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where it goes.
    pub to: SocketAddr,
    /// The GUE header; none when `payload` starts with one.
    pub header: Option<[u8; gue::HEADER_LEN]>,
    /// The packet.
    pub payload: &'a [u8],
    /// The outer TOS or traffic class: DSCP and ECN.
    pub tos: u8,
    /// The outer TTL or hop limit, at least 1.
    pub ttl: u8,
}

impl UdpSocket {
    /// Binds `listen`. `[::]` takes both families; where the host has no IPv6 it becomes `0.0.0.0`.
    ///
    /// # Errors
    ///
    /// When the address is taken or not ours, or the kernel lacks what the data path needs.
    pub fn bind(listen: SocketAddr, path: DataPath) -> Result<Self, SysError> {
        match Self::try_bind(listen, path) {
            Err(error) if has_no_ipv6(listen, &error) => {
                let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()));
                Self::try_bind(listen, path).map_err(|error| explain(listen, &error))
            }
            bound => bound.map_err(|error| explain(listen, &error)),
        }
    }

    fn try_bind(listen: SocketAddr, path: DataPath) -> io::Result<Self> {
        let is_v6 = listen.is_ipv6();
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        if is_v6 {
            socket.set_only_v6(!listen.ip().is_unspecified())?;
        }
        for (level, option, value) in options(is_v6) {
            set_option(&socket, level, option, value)?;
        }
        // A smaller buffer is no reason not to start; what we got is reported.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        let _ = socket.set_send_buffer_size(RECEIVE_BUFFER);
        // With CAP_NET_ADMIN the host's limit does not count.
        let bytes = RECEIVE_BUFFER as i32;
        let _ = set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes);
        socket.set_write_timeout(Some(SEND_PATIENCE))?;
        socket.bind(&SockAddr::from(listen))?;
        let local = socket.local_addr()?.as_socket().unwrap_or(listen);
        let receive_buffer_bytes = socket.recv_buffer_size()?;
        Ok(Self { socket, path, local, is_v6, receive_buffer_bytes })
    }

    /// How many packets one system call may move.
    fn at_once(&self) -> usize {
        match self.path {
            DataPath::Full | DataPath::Batch => BATCH,
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

    /// Replaces what is in `batch` by the datagrams that are waiting, at most [`BATCH`]. Never
    /// blocks: an empty batch means that there is nothing now.
    ///
    /// # Errors
    ///
    /// What the kernel says; the socket stays usable.
    pub fn receive_batch(&self, batch: &mut PacketBatch) -> io::Result<()> {
        batch.clear();
        let mut addresses = [RawAddress::EMPTY; BATCH];
        let mut controls = [Control::EMPTY; BATCH];
        let mut vectors = [EMPTY_VECTOR; BATCH];
        let mut messages = empty_messages();
        let parts = addresses.iter_mut().zip(&mut controls).zip(&mut vectors);
        for ((message, buffer), ((address, control), vector)) in
            messages.iter_mut().zip(batch.buffers_mut()).zip(parts)
        {
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = buffer.len();
            let header = &mut message.msg_hdr;
            header.msg_name = address.as_mut_ptr();
            header.msg_namelen = RawAddress::CAPACITY;
            header.msg_control = control.as_mut_ptr();
            header.msg_controllen = Control::CAPACITY as _;
            header.msg_iov = ptr::from_mut(vector);
            header.msg_iovlen = 1;
        }
        let fd = self.socket.as_raw_fd();
        let flags = libc::MSG_DONTWAIT;
        let limit = self.at_once();
        // SAFETY: `messages` holds BATCH entries; the pointers in each lead to an address, an
        // ancillary buffer and a vector of this stack frame and a buffer of `batch`, all of the
        // lengths written beside them, all alive and otherwise unused until the call returns.
        let received = unsafe {
            libc::recvmmsg(fd, messages.as_mut_ptr(), limit as _, flags, ptr::null_mut())
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            return if is_nothing_now(&error) { Ok(()) } else { Err(error) };
        };
        for ((message, address), control) in
            messages.iter().zip(&addresses).zip(&controls).take(received)
        {
            let (tos, ttl) = control.decode(message.msg_hdr.msg_controllen);
            batch.fill(Meta {
                from: address.decode().unwrap_or(Meta::EMPTY.from),
                len: message.msg_len as usize,
                tos,
                ttl,
                is_truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            });
        }
        Ok(())
    }

    /// Sends everything, [`BATCH`] datagrams at a time, and tells `report` once for each in order:
    /// `Ok` with the number of payload bytes, or the reason.
    pub fn send_batch<'a>(
        &self,
        outgoing: impl IntoIterator<Item = Outgoing<'a>>,
        mut report: impl FnMut(Result<usize, DropReason>),
    ) {
        let mut outgoing = outgoing.into_iter();
        let mut frame = [EMPTY_OUTGOING; BATCH];
        loop {
            let mut count = 0;
            for (slot, datagram) in frame.iter_mut().zip(outgoing.by_ref()) {
                *slot = datagram;
                count += 1;
                // `zip` would fetch one datagram too many after the last slot.
                if count == self.at_once() {
                    break;
                }
            }
            let Some(filled) = frame.get(..count).filter(|filled| !filled.is_empty()) else {
                return;
            };
            self.send_frame(filled, &mut report);
        }
    }

    fn send_frame(
        &self,
        outgoing: &[Outgoing<'_>],
        report: &mut impl FnMut(Result<usize, DropReason>),
    ) {
        let mut addresses = [RawAddress::EMPTY; BATCH];
        let mut controls = [Control::EMPTY; BATCH];
        let mut vectors = [[EMPTY_VECTOR; 2]; BATCH];
        let mut messages = empty_messages();
        let parts = addresses.iter_mut().zip(&mut controls).zip(&mut vectors);
        for ((message, datagram), ((address, control), [first, second])) in
            messages.iter_mut().zip(outgoing).zip(parts)
        {
            let header = &mut message.msg_hdr;
            // An address that this socket cannot reach keeps length 0: the kernel refuses it, and
            // the loop below reports it like any other refusal.
            if let Some((raw, len)) = RawAddress::encode(datagram.to, self.is_v6) {
                *address = raw;
                header.msg_name = address.as_ptr().cast_mut();
                header.msg_namelen = len;
            }
            let is_v6 = datagram.to.ip().to_canonical().is_ipv6();
            let (encoded, control_len) = Control::encode(is_v6, datagram.tos, datagram.ttl);
            *control = encoded;
            header.msg_control = control.as_mut_ptr();
            header.msg_controllen = control_len as _;
            let gue = datagram.header.as_ref().map_or(&[][..], |header| &header[..]);
            first.iov_base = gue.as_ptr().cast_mut().cast();
            first.iov_len = gue.len();
            second.iov_base = datagram.payload.as_ptr().cast_mut().cast();
            second.iov_len = datagram.payload.len();
            header.msg_iov = ptr::from_mut(first);
            header.msg_iovlen = 2;
        }
        let mut at = 0;
        while let Some(rest) = messages.get_mut(at..outgoing.len()).filter(|rest| !rest.is_empty())
        {
            let fd = self.socket.as_raw_fd();
            // SAFETY: `rest` holds `rest.len()` entries; the pointers in each lead to an address,
            // ancillary data and two vectors of this stack frame and to the header and payload that
            // `outgoing` holds, all of the lengths written beside them and alive; the kernel reads
            // them only.
            let sent = unsafe { libc::sendmmsg(fd, rest.as_mut_ptr(), rest.len() as _, 0) };
            let sent = match usize::try_from(sent) {
                Ok(sent) if sent > 0 => sent,
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() == io::ErrorKind::Interrupted {
                        continue;
                    }
                    // An error speaks of the first datagram alone.
                    report(Err(reason(&error)));
                    at += 1;
                    continue;
                }
            };
            for datagram in outgoing.iter().skip(at).take(sent) {
                report(Ok(datagram.payload.len()));
            }
            at += sent;
        }
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
        self.socket.send_to_with_flags(datagram, &to, libc::MSG_DONTWAIT).map(|_| ())
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

const EMPTY_VECTOR: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

const EMPTY_OUTGOING: Outgoing<'static> =
    Outgoing { to: Meta::EMPTY.from, header: None, payload: &[], tos: 0, ttl: TTL };

fn empty_messages() -> [libc::mmsghdr; BATCH] {
    // SAFETY: `mmsghdr` is a C struct of integers and pointers, for which all zeros is a value.
    unsafe { std::mem::zeroed() }
}

/// What every packet has to tell and to carry. A dual-stack socket needs IPv4's options too, for its
/// mapped addresses.
fn options(is_v6: bool) -> impl Iterator<Item = (i32, i32, i32)> {
    let v4 = [
        (libc::IPPROTO_IP, libc::IP_RECVTOS, 1),
        (libc::IPPROTO_IP, libc::IP_RECVTTL, 1),
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
        (libc::IPPROTO_IP, libc::IP_TTL, i32::from(TTL)),
    ];
    let v6 = [
        (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1),
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

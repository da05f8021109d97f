//! What the kernel heard of datagrams that were too long: its own word about an interface, and ICMP
//! from routers. Both stand in the socket's error queue. A lie among them changes nothing in the kernel,
//! because the socket does not believe its memory of paths.
//!
//! An ICMP message also makes one call on the socket fail that has nothing to do with it. Such a call is
//! made again, and it tells that the queue is worth a look: nobody looks otherwise.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::Ordering;

use super::{SendQueue, UdpSocket};
use crate::sys::cmsg::{Control, Excess};
use crate::sys::sockaddr::RawAddress;
use crate::wire::start::Start;

/// Errors that are taken off the queue at once.
const AT_ONCE: usize = 64;

/// How often a call is made whose error may be another one's.
pub(super) const TRIES: usize = 3;

/// A datagram was too long for its way.
#[derive(Clone, Copy, Debug)]
pub struct TooLong {
    /// Where it went.
    pub to: SocketAddr,
    /// What would fit, outer headers included, in bytes.
    pub mtu: u16,
    /// Whether this very kernel says so. All else is the word of whoever sent an ICMP message.
    pub is_local: bool,
    /// Its first bytes, as far as they are quoted.
    pub start: Start,
}

impl UdpSocket {
    /// Whether a call may have failed for an earlier datagram, and is to be made again.
    pub(super) fn is_of_another(&self, error: &io::Error) -> bool {
        let is_soft = matches!(
            error.raw_os_error(),
            Some(
                libc::EMSGSIZE
                    | libc::ECONNREFUSED
                    | libc::EHOSTUNREACH
                    | libc::ENETUNREACH
                    | libc::EHOSTDOWN
                    | libc::ENONET
                    | libc::ENOPROTOOPT
                    | libc::EPROTO
                    | libc::EACCES
                    | libc::EOPNOTSUPP
            )
        );
        if is_soft {
            self.note_error();
        }
        is_soft
    }

    /// The error queue may hold something.
    pub(super) fn note_error(&self) {
        self.has_errors.store(true, Ordering::Relaxed);
    }

    /// Tells `report` which datagrams were too long, those that `queue` could not send among them. Never
    /// waits, and makes no call when nothing failed.
    pub fn take_too_long(&self, queue: Option<&mut SendQueue>, mut report: impl FnMut(TooLong)) {
        if !self.has_errors.load(Ordering::Relaxed) {
            return;
        }
        self.has_errors.store(false, Ordering::Relaxed);
        let unsent = queue.and_then(SendQueue::take_unsent);
        let mut local: Option<u16> = None;
        for taken in 0..=AT_ONCE {
            if taken == AT_ONCE {
                // There may be more.
                self.note_error();
                break;
            }
            let Ok(error) = self.next_error() else { break };
            let Some((to, excess, start)) = error else { continue };
            let Excess { mtu, is_local } = excess;
            if !is_local {
                report(TooLong { to, mtu, is_local, start });
            } else if unsent.is_some_and(|(hop, _)| same(hop.ip(), to.ip())) {
                local = Some(mtu);
            }
        }
        if let Some(((to, start), mtu)) = unsent.zip(local) {
            report(TooLong { to, mtu, is_local: true, start });
        }
    }

    /// The next error of the queue; nothing for one that is not about length.
    fn next_error(&self) -> io::Result<Option<(SocketAddr, Excess, Start)>> {
        let mut quoted = [0_u8; 128];
        let (mut address, mut control) = (RawAddress::EMPTY, Control::EMPTY);
        let mut vector =
            libc::iovec { iov_base: quoted.as_mut_ptr().cast(), iov_len: quoted.len() };
        // SAFETY: `msghdr` is a C struct of integers and pointers, for which all zeros is a value.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_name = address.as_mut_ptr();
        header.msg_namelen = RawAddress::CAPACITY;
        header.msg_control = control.as_mut_ptr();
        header.msg_controllen = Control::CAPACITY as _;
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
        let fd = self.socket.as_raw_fd();
        // SAFETY: the pointers in `header` lead to locals of the lengths written beside them, all alive
        // and otherwise unused until the call returns.
        let received = unsafe { libc::recvmsg(fd, &raw mut header, flags) };
        let Ok(len) = usize::try_from(received) else { return Err(io::Error::last_os_error()) };
        let start = Start::of(quoted.get(..len).unwrap_or(&[]));
        let excess = control.decode_excess(header.msg_controllen);
        Ok(address.decode().zip(excess).map(|(to, excess)| (to, excess, start)))
    }
}

/// The same address, IPv4 in disguise or not.
fn same(a: IpAddr, b: IpAddr) -> bool {
    a.to_canonical() == b.to_canonical()
}

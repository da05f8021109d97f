//! Datagrams to the kernel: those of one hop, size, TOS and TTL as one train, many trains in one call.
//!
//! A train is one send: the kernel takes it through its stack as one packet and cuts it at the very
//! end. Datagrams to one hop keep their order.

use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::{io, ptr};

use super::errors::TRIES;
use super::{EMPTY_VECTOR, UdpSocket, reason};
use crate::sys::cmsg::Control;
use crate::sys::offload::{HEAD_MAX, Head};
use crate::sys::sockaddr::RawAddress;
use crate::types::DropReason;
use crate::wire::start::Start;

/// Datagrams in one train; older kernels take no more.
const SEGMENTS_MAX: usize = 64;

/// Bytes in one train: what fits a datagram of IPv4.
const TRAIN_BYTES_MAX: usize = 65_507;

/// Trains in one call.
const TRAINS_MAX: usize = 32;

/// Each datagram lies in two places.
const VECTORS: usize = 2 * SEGMENTS_MAX;

/// One datagram to send, in two parts so that nothing is copied to put headers before a packet.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where it goes.
    pub to: SocketAddr,
    /// Its first bytes; empty when `payload` is all of it.
    pub head: Head,
    /// Its other bytes.
    pub payload: &'a [u8],
    /// The outer TOS or traffic class: DSCP and ECN.
    pub tos: u8,
    /// The outer TTL or hop limit, at least 1.
    pub ttl: u8,
}

/// What became of some datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// How many.
    pub datagrams: usize,
    /// All of their bytes, heads included.
    pub bytes: usize,
    /// Whether they left.
    pub result: Result<(), DropReason>,
}

/// How long the sends of one batch may wait for room: until one has waited in vain. Else each would
/// wait for itself, and the batch, judged by one snapshot, would take seconds.
struct Patience {
    flags: i32,
}

impl Patience {
    const FULL: Self = Self { flags: 0 };

    fn note(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::WouldBlock {
            self.flags = libc::MSG_DONTWAIT;
        }
    }
}

#[derive(Clone, Copy)]
struct Train {
    to: SocketAddr,
    tos: u8,
    ttl: u8,
    /// The length of each datagram but the last.
    size: usize,
    bytes: usize,
    datagrams: usize,
    vectors: usize,
    is_open: bool,
}

/// Where trains are put together; one for each thread.
pub struct SendQueue {
    trains: Vec<Train>,
    /// [`SEGMENTS_MAX`] for each train.
    heads: Box<[[u8; HEAD_MAX]]>,
    /// [`VECTORS`] for each train.
    vectors: Box<[libc::iovec]>,
    addresses: Box<[RawAddress]>,
    controls: Box<[Control]>,
    /// How many datagrams each message stands for, and their bytes.
    spans: [(usize, usize); TRAINS_MAX],
    /// The first datagram that was too long, and its hop.
    unsent: Option<(SocketAddr, Start)>,
}

impl SendQueue {
    /// An empty one; the only allocation of its life.
    #[must_use]
    pub fn new() -> Self {
        Self {
            trains: Vec::with_capacity(TRAINS_MAX),
            // Not zeros: those are pages that the kernel only promises.
            heads: vec![[0xff; HEAD_MAX]; TRAINS_MAX * SEGMENTS_MAX].into_boxed_slice(),
            vectors: vec![EMPTY_VECTOR; TRAINS_MAX * VECTORS].into_boxed_slice(),
            addresses: vec![RawAddress::EMPTY; TRAINS_MAX].into_boxed_slice(),
            controls: vec![Control::EMPTY; TRAINS_MAX].into_boxed_slice(),
            spans: [(0, 0); TRAINS_MAX],
            unsent: None,
        }
    }

    /// The first datagram that was too long to be sent since the last call, and its hop.
    pub(super) fn take_unsent(&mut self) -> Option<(SocketAddr, Start)> {
        self.unsent.take()
    }

    /// Adds a datagram to a train or starts one; `false` when there are too many trains.
    fn add(&mut self, datagram: &Outgoing<'_>, segments: usize, trains: usize) -> bool {
        let len = datagram.head.as_slice().len() + datagram.payload.len();
        // The newest train to a hop is the only one that may grow, so that its order stays.
        let newest = self.trains.iter().rposition(|train| train.to == datagram.to);
        let joined = newest.filter(|&at| {
            self.trains.get(at).is_some_and(|train| {
                train.is_open
                    && train.tos == datagram.tos
                    && train.ttl == datagram.ttl
                    && train.datagrams < segments
                    && (1..=train.size).contains(&len)
                    && train.bytes + len <= TRAIN_BYTES_MAX
            })
        });
        let at = match joined {
            Some(at) => at,
            None if self.trains.len() >= trains => return false,
            None => {
                let &Outgoing { to, tos, ttl, .. } = datagram;
                let (size, is_open) = (len, true);
                let empty =
                    Train { to, tos, ttl, size, bytes: 0, datagrams: 0, vectors: 0, is_open };
                self.trains.push(empty);
                self.trains.len() - 1
            }
        };
        let Some(train) = self.trains.get_mut(at) else { return false };
        let vectors = self.vectors.get_mut(at * VECTORS..(at + 1) * VECTORS).unwrap_or(&mut []);
        let head = datagram.head.as_slice();
        if let Some(copy) = self.heads.get_mut(at * SEGMENTS_MAX + train.datagrams)
            && let Some(copy) = copy.get_mut(..head.len()).filter(|copy| !copy.is_empty())
        {
            copy.copy_from_slice(head);
            append(vectors, &mut train.vectors, copy);
        }
        append(vectors, &mut train.vectors, datagram.payload);
        train.datagrams += 1;
        train.bytes += len;
        train.is_open = len == train.size;
        true
    }
}

/// Adds `bytes` to the vectors, or to the last one where they follow it in memory.
fn append(vectors: &mut [libc::iovec], count: &mut usize, bytes: &[u8]) {
    if let Some(last) = count.checked_sub(1).and_then(|last| vectors.get_mut(last))
        && ptr::eq(
            last.iov_base.cast_const().cast::<u8>().wrapping_add(last.iov_len),
            bytes.as_ptr(),
        )
    {
        last.iov_len += bytes.len();
        return;
    }
    if let Some(next) = vectors.get_mut(*count) {
        *next = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        *count += 1;
    }
}

impl Default for SendQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for SendQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SendQueue")
    }
}

impl UdpSocket {
    /// Sends everything, in trains where the kernel takes them, and tells `report` what became of each
    /// train.
    pub fn send_batch<'a>(
        &self,
        queue: &mut SendQueue,
        outgoing: impl IntoIterator<Item = Outgoing<'a>>,
        mut report: impl FnMut(Sent),
    ) {
        let trains = self.at_once(TRAINS_MAX);
        let mut patience = Patience::FULL;
        queue.trains.clear();
        for datagram in outgoing {
            let segments = if self.sends_trains() { SEGMENTS_MAX } else { 1 };
            if !queue.add(&datagram, segments, trains) {
                self.flush(queue, &mut patience, &mut report);
                // The queue is empty, so that there is room.
                let _ = queue.add(&datagram, segments, trains);
            }
        }
        self.flush(queue, &mut patience, &mut report);
    }

    /// Sends what is in the queue. The payloads that it points to are alive: [`Self::send_batch`], the
    /// only caller, got them with a lifetime that ends after it returns.
    fn flush(&self, queue: &mut SendQueue, patience: &mut Patience, report: &mut impl FnMut(Sent)) {
        // SAFETY: `mmsghdr` is a C struct of integers and pointers, for which all zeros is a value.
        let mut messages: [libc::mmsghdr; TRAINS_MAX] = unsafe { std::mem::zeroed() };
        let SendQueue { trains, vectors, addresses, controls, spans, .. } = queue;
        let parts =
            addresses.iter_mut().zip(controls.iter_mut()).zip(vectors.chunks_exact_mut(VECTORS));
        for (((message, train), ((address, control), vectors)), span) in
            messages.iter_mut().zip(trains.iter()).zip(parts).zip(spans.iter_mut())
        {
            let segment = if train.datagrams > 1 { train.size as u16 } else { 0 };
            let vectors = vectors.get_mut(..train.vectors).unwrap_or(&mut []);
            self.fill(&mut message.msg_hdr, train, segment, vectors, address, control);
            *span = (train.datagrams, train.bytes);
        }
        let count = trains.len();
        let mut at = 0;
        while let Some(rest) = messages.get_mut(at..count).filter(|rest| !rest.is_empty()) {
            let sent = match self.send_messages(rest, patience) {
                Ok(sent) => sent,
                Err(error) => {
                    // An error speaks of the first train alone.
                    if let Some(train) = queue.trains.get(at).copied() {
                        let vectors = queue.vectors.get(at * VECTORS..).unwrap_or(&[]);
                        let vectors = vectors.get(..train.vectors).unwrap_or(&[]);
                        let is_too_long = self.recover(&train, vectors, &error, patience, report);
                        if is_too_long && queue.unsent.is_none() {
                            queue.unsent = Some((train.to, start(vectors)));
                        }
                    }
                    at += 1;
                    continue;
                }
            };
            if sent < rest.len() {
                // The kernel keeps to itself why it stopped.
                self.note_error();
            }
            for &(datagrams, bytes) in queue.spans.iter().skip(at).take(sent) {
                report(Sent { datagrams, bytes, result: Ok(()) });
            }
            at += sent;
        }
        queue.trains.clear();
    }

    /// Points `header` at everything that it needs.
    fn fill(
        &self,
        header: &mut libc::msghdr,
        train: &Train,
        segment: u16,
        vectors: &mut [libc::iovec],
        address: &mut RawAddress,
        control: &mut Control,
    ) {
        // An address that this socket cannot reach keeps length 0: the kernel refuses it, and it is
        // reported like any other refusal.
        if let Some((raw, len)) = RawAddress::encode(train.to, self.is_v6) {
            *address = raw;
            header.msg_name = address.as_ptr().cast_mut();
            header.msg_namelen = len;
        }
        let is_v6 = train.to.ip().to_canonical().is_ipv6();
        let (encoded, control_len) = Control::encode(is_v6, train.tos, train.ttl, segment);
        *control = encoded;
        header.msg_control = control.as_mut_ptr();
        header.msg_controllen = control_len as _;
        header.msg_iov = vectors.as_mut_ptr();
        header.msg_iovlen = vectors.len();
    }

    /// One `sendmmsg`; how many of `messages` left, at least one.
    fn send_messages(
        &self,
        messages: &mut [libc::mmsghdr],
        patience: &mut Patience,
    ) -> io::Result<usize> {
        let mut tries = 0;
        loop {
            let (fd, flags) = (self.socket.as_raw_fd(), patience.flags);
            // SAFETY: the pointers in each of `messages` were put there by `fill` and lead to an
            // address, ancillary data and vectors of the queue, and those to heads in the queue and to
            // payloads that `send_batch`'s caller holds; all of the lengths written beside them, all
            // alive; the kernel reads them only.
            let sent =
                unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), messages.len() as _, flags) };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => return Ok(sent),
                _ => {}
            }
            let error = io::Error::last_os_error();
            tries += 1;
            let is_again = error.kind() == io::ErrorKind::Interrupted
                || self.is_of_another(&error) && tries < TRIES;
            if !is_again {
                patience.note(&error);
                return Err(error);
            }
        }
    }

    /// What to do with a train that the kernel refused: where that may be because it is a train, its
    /// datagrams go one by one; and if they do leave, no more trains are made. Returns whether the first
    /// datagram was too long.
    fn recover(
        &self,
        train: &Train,
        vectors: &[libc::iovec],
        error: &io::Error,
        patience: &mut Patience,
        report: &mut impl FnMut(Sent),
    ) -> bool {
        let may_be_the_train = train.datagrams > 1
            && matches!(
                error.raw_os_error(),
                Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
            );
        if !may_be_the_train {
            let result = Err(reason(error));
            report(Sent { datagrams: train.datagrams, bytes: train.bytes, result });
            return result == Err(DropReason::TooBig);
        }
        let mut is_too_long = false;
        let (mut at, mut used) = (0, 0);
        let mut left = train.bytes;
        while left > 0 {
            let len = train.size.min(left);
            let mut single = [EMPTY_VECTOR; 4];
            let count = cut(vectors, (&mut at, &mut used), len, &mut single);
            let (mut address, mut control) = (RawAddress::EMPTY, Control::EMPTY);
            // SAFETY: `mmsghdr` is a C struct of integers and pointers: all zeros is a value.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            let parts = single.get_mut(..count).unwrap_or(&mut []);
            self.fill(&mut message.msg_hdr, train, 0, parts, &mut address, &mut control);
            let sent = self.send_messages(std::slice::from_mut(&mut message), patience);
            let result = sent.map(|_| ()).map_err(|error| reason(&error));
            // Too large alone as well: nothing is wrong with trains then, and those of the same size
            // need not be tried.
            let is_first = left == train.bytes;
            // That a datagram is too long is never because of its train.
            if is_first && result.is_ok() && error.raw_os_error() != Some(libc::EMSGSIZE) {
                self.send_no_trains();
            }
            is_too_long |= is_first && result == Err(DropReason::TooBig);
            let skipped = match result {
                Err(DropReason::TooBig) if is_first => left / len - 1,
                Ok(()) | Err(_) => 0,
            };
            for _ in 0..skipped {
                cut(vectors, (&mut at, &mut used), len, &mut single);
            }
            report(Sent { datagrams: 1 + skipped, bytes: len * (1 + skipped), result });
            left -= len * (1 + skipped);
        }
        is_too_long
    }
}

/// The first bytes of what lies in `vectors`, which lead to heads in the queue and to payloads that
/// [`UdpSocket::send_batch`]'s caller holds.
fn start(vectors: &[libc::iovec]) -> Start {
    let mut start = Start::EMPTY;
    for vector in vectors {
        // SAFETY: the vector was made by `append` from bytes that are alive and that nobody writes to
        // until the batch is sent; it is as long as it says.
        start.push(unsafe { std::slice::from_raw_parts(vector.iov_base.cast(), vector.iov_len) });
    }
    start
}

/// The next `len` bytes of `vectors` after (`at`, `used`) as vectors of their own; how many these are.
fn cut(
    vectors: &[libc::iovec],
    (at, used): (&mut usize, &mut usize),
    mut len: usize,
    out: &mut [libc::iovec],
) -> usize {
    let mut count = 0;
    while let (Some(from), Some(to)) = (vectors.get(*at).filter(|_| len > 0), out.get_mut(count)) {
        let piece = (from.iov_len - *used).min(len);
        let base = from.iov_base.cast::<u8>().wrapping_add(*used).cast();
        *to = libc::iovec { iov_base: base, iov_len: piece };
        count += 1;
        len -= piece;
        *used += piece;
        if *used == from.iov_len {
            (*at, *used) = (*at + 1, 0);
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DataPath;

    /// The kernel says of the first one what holds for all of its size; a shorter last one may fit.
    #[test]
    fn datagrams_that_are_too_large_are_refused_together() {
        let bind = || UdpSocket::bind("127.0.0.1:0".parse().unwrap(), DataPath::Full).unwrap();
        let (a, b) = (bind(), bind());
        // Larger than a train can be, since the loopback has no smaller limit.
        let body = vec![5_u8; 66_000];
        let part = |len| libc::iovec { iov_base: body.as_ptr().cast_mut().cast(), iov_len: len };
        let vectors = [part(66_000), part(66_000), part(66_000), part(100)];
        let train = Train {
            to: b.local_addr(),
            tos: 0,
            ttl: 64,
            size: 66_000,
            bytes: 3 * 66_000 + 100,
            datagrams: 4,
            vectors: 4,
            is_open: false,
        };

        let mut sent = Vec::new();
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        let report = &mut |one: Sent| sent.push((one.datagrams, one.bytes, one.result));
        let mut patience = Patience::FULL;
        assert!(a.recover(&train, &vectors, &error, &mut patience, report));

        assert_eq!(start(&vectors).as_slice()[..4], [5; 4]);
        assert_eq!(sent, [(3, 198_000, Err(DropReason::TooBig)), (1, 100, Ok(()))]);
        assert!(a.sends_trains(), "nothing is wrong with trains");
    }

    #[test]
    fn one_send_that_waited_in_vain_is_the_last_that_waits() {
        let mut patience = Patience::FULL;
        patience.note(&io::Error::from_raw_os_error(libc::ENOBUFS));
        assert_eq!(patience.flags, 0);
        patience.note(&io::Error::from_raw_os_error(libc::EAGAIN));
        assert_eq!(patience.flags, libc::MSG_DONTWAIT);
    }
}

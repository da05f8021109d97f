//! A TUN device: the interface that the host sees as the overlay.
//!
//! Where the kernel offers it, each packet comes and goes with a header that says what the host left
//! to its network card: one read then brings up to 64 KiB of one flow, and one write gives as much.
//! Each offload is asked for by itself, so that an older kernel gives what it has.

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::SysError;
use super::batch::PacketBatch;
use super::error::NET_ADMIN;
use super::offload::coalesce::{RUN_MAX, Takes};
use super::offload::vnet::{VNET_LEN, VnetHeader};
use crate::types::{DataPath, Lanes};

/// The kernel's longest device name, in bytes.
const NAME_MAX: usize = 15;

const TUNSETIFF: u64 = 0x4004_54ca;
const TUNGETIFF: u64 = 0x8004_54d2;
const TUNSETPERSIST: u64 = 0x4004_54cb;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const CSUM: u32 = 0x01;
const TSO: u32 = 0x02 | 0x04;
/// Since Linux 6.2.
const USO: u32 = 0x20 | 0x40;

/// An open queue of a TUN device; the device vanishes when its last queue is dropped, unless it persists.
#[derive(Debug)]
pub struct Tun {
    name: String,
    file: File,
    path: DataPath,
    has_header: bool,
    takes_tcp: AtomicBool,
    takes_udp: AtomicBool,
    /// The kernel cannot read without waiting: it has to be asked before.
    must_ask: AtomicBool,
}

impl Tun {
    /// Makes the TUN device `name` with a queue for each lane, without addresses and down;
    /// [`super::net`] does the rest.
    ///
    /// # Errors
    ///
    /// A bad name, no `/dev/net/tun`, a missing right, a name that another interface has.
    pub fn open(name: &str, path: DataPath, lanes: Lanes) -> Result<Vec<Self>, SysError> {
        check_name(name)?;
        let first = Self::open_queue(name, path, Queue::first(lanes))?;
        let more = (1..lanes.count()).map(|_| Self::open_queue(name, path, Queue::Further));
        std::iter::once(Ok(first)).chain(more).collect()
    }

    fn open_queue(name: &str, path: DataPath, queue: Queue) -> Result<Self, SysError> {
        let wants_header = match path {
            DataPath::Full => true,
            DataPath::Batch | DataPath::Naive => false,
        };
        let with_header = if wants_header { queue.open(name, true).ok() } else { None };
        let with_header = with_header.filter(set_header_len);
        let (file, has_header) = match with_header {
            Some(file) => (file, true),
            // Refused for another reason, it is refused again, and this time the reason counts.
            None => (queue.open(name, false)?, false),
        };
        Ok(Self::over_device(name, file, path, has_header))
    }

    /// Takes over the queues of the device `name` from the process before this one, with what waits in
    /// them.
    ///
    /// # Errors
    ///
    /// Why they are not what [`Self::open`] would give for the same arguments.
    pub fn adopt(
        descriptors: Vec<OwnedFd>,
        name: &str,
        path: DataPath,
        lanes: Lanes,
    ) -> Result<Vec<Self>, SysError> {
        let what = || format!("cannot take over the TUN device {name}");
        if descriptors.len() != lanes.count() {
            let why =
                format!("there are {} queues, for {} lanes", descriptors.len(), lanes.count());
            return Err(SysError::new(what(), why));
        }
        let queues = descriptors.into_iter().map(|descriptor| {
            let file = File::from(descriptor);
            let (found, flags) = attached(&file).map_err(|error| SysError::new(what(), error))?;
            if found != name {
                return Err(SysError::new(what(), format!("the queue is one of {found}")));
            }
            let has_header = flags & libc::IFF_VNET_HDR != 0;
            if has_header && !set_header_len(&file) {
                return Err(SysError::new(what(), io::Error::last_os_error()));
            }
            Ok(Self::over_device(name, file, path, has_header))
        });
        queues.collect()
    }

    /// What the process after this one gets.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Has the device stay when the last queue is closed, as it is after a crash, or vanish.
    pub fn persist(&self, stays: bool) {
        let stays = libc::c_ulong::from(stays);
        // SAFETY: `TUNSETPERSIST` takes its argument by value and touches no memory of ours.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETPERSIST as _, stays) };
        if result != 0 {
            // It vanishes with a crash, then: the overlay's unreachable route keeps packets in.
            tracing::debug!(device = self.name, error = %io::Error::last_os_error(), "TUNSETPERSIST");
        }
    }

    fn over_device(name: &str, file: File, path: DataPath, has_header: bool) -> Self {
        let steps = [CSUM | TSO | USO, CSUM | TSO, CSUM, 0];
        let granted = steps
            .into_iter()
            .filter(|&wanted| has_header || wanted == 0)
            .find(|&wanted| set_offload(&file, wanted))
            .unwrap_or(0);
        Self {
            name: name.to_owned(),
            file,
            path,
            has_header,
            takes_tcp: AtomicBool::new(granted & TSO != 0),
            takes_udp: AtomicBool::new(granted & USO != 0),
            must_ask: AtomicBool::new(false),
        }
    }

    /// A queue that is any file which keeps packets apart, as one end of a socket pair does: for tests
    /// and benchmarks without a device. Each packet has a header before it.
    #[must_use]
    pub fn over(file: File, takes: Takes) -> Self {
        Self {
            name: "file".to_owned(),
            file,
            path: DataPath::Full,
            has_header: true,
            takes_tcp: AtomicBool::new(takes.tcp),
            takes_udp: AtomicBool::new(takes.udp),
            must_ask: AtomicBool::new(false),
        }
    }

    /// As an old kernel has it, that said it takes large packets.
    #[cfg(test)]
    pub(crate) fn without_header(self) -> Self {
        Self { has_header: false, ..self }
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What may be joined for this device.
    #[must_use]
    pub fn takes(&self) -> Takes {
        Takes {
            tcp: self.takes_tcp.load(Ordering::Relaxed),
            udp: self.takes_udp.load(Ordering::Relaxed),
        }
    }

    /// Notes that the kernel refused a large packet that it had said it takes.
    pub fn refuse_large(&self) {
        self.takes_tcp.store(false, Ordering::Relaxed);
        self.takes_udp.store(false, Ordering::Relaxed);
    }

    /// Replaces what is in `batch` by the packets that are waiting, as many as make a batch; waits for
    /// the first one. An empty batch means that the wait was interrupted ([`super::wake`]).
    ///
    /// # Errors
    ///
    /// When the device is gone.
    pub fn read_batch(&self, batch: &mut PacketBatch) -> io::Result<()> {
        batch.clear();
        let is_first = self.read(batch, |file, room| file.read(room))?;
        let drains = match self.path {
            DataPath::Full | DataPath::Batch => is_first,
            DataPath::Naive => false,
        };
        // An error comes back at the next call; what was read before it stays.
        while drains && let Ok(true) = self.read(batch, |_, room| self.read_at_once(room)) {}
        Ok(())
    }

    /// Adds a packet to `batch`; `false` when there is no room or nothing now.
    fn read(
        &self,
        batch: &mut PacketBatch,
        read: impl FnOnce(&mut &File, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<bool> {
        let Some(room) = batch.room() else { return Ok(false) };
        let len = match read(&mut &self.file, room) {
            // A device that is gone reads as its end.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => return Err(error),
        };
        if self.has_header {
            let header = room.first_chunk::<VNET_LEN>().copied().and_then(VnetHeader::decode);
            batch.fill(len, VNET_LEN, header);
        } else {
            batch.fill(len, 0, Some(VnetHeader::PLAIN));
        }
        Ok(true)
    }

    /// Reads a packet that is there already.
    fn read_at_once(&self, room: &mut [u8]) -> io::Result<usize> {
        if self.must_ask.load(Ordering::Relaxed) {
            return if self.is_readable()? {
                (&self.file).read(room)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        let vector = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        let fd = self.file.as_raw_fd();
        // SAFETY: `vector` leads to `room`, which is ours alone until the call returns.
        let len = unsafe { libc::preadv2(fd, &raw const vector, 1, -1, libc::RWF_NOWAIT) };
        usize::try_from(len).or_else(|_| {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
                return Err(error);
            }
            // Before Linux 5.11.
            self.must_ask.store(true, Ordering::Relaxed);
            self.read_at_once(room)
        })
    }

    /// Whether a read would not wait; nobody else reads this queue.
    fn is_readable(&self) -> io::Result<bool> {
        let mut entry =
            libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: the pointer leads to one entry, which lives until the call returns.
        let ready = unsafe { libc::poll(&raw mut entry, 1, 0) };
        if ready < 0 { Err(io::Error::last_os_error()) } else { Ok(ready > 0) }
    }

    /// Gives one packet to the host, in as many parts as it lies in; at most one more than
    /// [`RUN_MAX`]. `header_len` is what stands before the payload of a large packet.
    ///
    /// # Errors
    ///
    /// When the device is down or gone, the kernel is out of memory, or `header` asks for what this
    /// device does not do ([`io::ErrorKind::InvalidInput`]). Nothing was delivered then.
    pub fn write<'a>(
        &self,
        header: &VnetHeader,
        header_len: usize,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let encoded = header.encode(header_len as u16);
        if !self.has_header && *header != VnetHeader::PLAIN {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut slices = [IoSlice::new(&[]); RUN_MAX + 2];
        let (mut count, mut total) = (0, 0);
        let mut parts = parts.into_iter();
        // A first part of no bytes where the device knows no header.
        let mut next = Some(if self.has_header { &encoded[..] } else { &[] });
        for slot in &mut slices {
            let Some(part) = next else { break };
            *slot = IoSlice::new(part);
            count += 1;
            total += part.len();
            next = parts.next();
        }
        let written = (&self.file).write_vectored(slices.get(..count).unwrap_or(&[]))?;
        if written == total { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// Which of a device's queues is opened.
#[derive(Clone, Copy, Debug)]
enum Queue {
    /// The only one.
    Only,
    /// The first of several; a device of that name must not be there.
    First,
    /// Any other.
    Further,
}

impl Queue {
    fn first(lanes: Lanes) -> Self {
        if lanes.count() == 1 { Self::Only } else { Self::First }
    }

    fn open(self, name: &str, has_header: bool) -> Result<File, SysError> {
        match self {
            Self::Only => open_only(name, has_header),
            Self::First => open_shared(name, has_header, libc::IFF_TUN_EXCL),
            Self::Further => open_shared(name, has_header, 0),
        }
        .map_err(|error| explain(name, &error))
    }
}

fn open_only(name: &str, has_header: bool) -> Result<File, tun::Error> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).layer(tun::Layer::L3);
    // Addresses and MTUs are set by netlink, which also knows IPv6.
    configuration.platform_config(|platform| {
        platform.ensure_root_privileges(false);
        platform.vnet_hdr(has_header);
    });
    let device = tun::create(&configuration)?;
    let fd = device.into_raw_fd();
    // SAFETY: `into_raw_fd` gave the descriptor up, so we are its only owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(File::from(fd))
}

/// A queue of a device with several, which the package `tun` does not open.
fn open_shared(name: &str, has_header: bool, more: libc::c_int) -> Result<File, tun::Error> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let header = if has_header { libc::IFF_VNET_HDR } else { 0 };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | header | more;
    let mut ifr_name = [0; libc::IFNAMSIZ];
    // `check_name` left room for the zero at the end.
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short };
    let mut request = libc::ifreq { ifr_name, ifr_ifru };
    // SAFETY: `TUNSETIFF` reads and writes an `ifreq` through the pointer, which leads to one that
    // lives until the call returns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) };
    if result == 0 { Ok(file) } else { Err(io::Error::last_os_error().into()) }
}

/// The device that a queue belongs to, and how it was opened.
fn attached(file: &File) -> io::Result<(String, libc::c_int)> {
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: 0 };
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    // SAFETY: `TUNGETIFF` writes an `ifreq` through the pointer, which leads to one that lives until the
    // call returns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNGETIFF as _, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8);
    // SAFETY: the kernel has written the flags, and every bit pattern is a value.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let name = String::from_utf8_lossy(&name.collect::<Vec<_>>()).into_owned();
    Ok((name, libc::c_int::from(flags as u16)))
}

/// Asks the kernel to leave to us what `wanted` says; `false` when it does not know how.
fn set_offload(file: &File, wanted: u32) -> bool {
    let fd = file.as_raw_fd();
    // SAFETY: `TUNSETOFFLOAD` takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(fd, TUNSETOFFLOAD as _, libc::c_ulong::from(wanted)) };
    result == 0
}

/// Sets the length of the header before each packet: a device that outlived another program may have
/// that one's.
fn set_header_len(file: &File) -> bool {
    let fd = file.as_raw_fd();
    let len = VNET_LEN as libc::c_int;
    // SAFETY: `TUNSETVNETHDRSZ` reads an `int` through the pointer, which leads to one that lives until
    // the call returns.
    let result = unsafe { libc::ioctl(fd, TUNSETVNETHDRSZ as _, std::ptr::from_ref(&len)) };
    result == 0
}

/// A name that the kernel takes and that is safe in a path below `/proc/sys`. `%` is refused because
/// the kernel reads it as a pattern.
pub(super) fn check_name(name: &str) -> Result<(), SysError> {
    let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if is_plain && !name.is_empty() && name.len() <= NAME_MAX && name != "." && name != ".." {
        return Ok(());
    }
    let shown: String = name.chars().take(40).flat_map(char::escape_default).collect();
    Err(SysError::new(
        format!("`{shown}` is no name for a network device"),
        format!("1 to {NAME_MAX} letters, digits, `-`, `_` or `.` are"),
    ))
}

/// How to get the device through what containers are fenced by.
const DEVICE_CGROUP: &str = "allow the device 10:200 (systemd: DeviceAllow=/dev/net/tun rw; Docker: \
     --device /dev/net/tun; Kubernetes: runc 1.2.4 or later, or a device plugin that gives the pod \
     /dev/net/tun)";

/// Whether opening the device is what is refused, whatever is done with it afterwards.
fn is_device_refused() -> bool {
    let opened = File::options().read(true).write(true).open("/dev/net/tun");
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

fn explain(name: &str, error: &tun::Error) -> SysError {
    explain_by(name, error, is_device_refused)
}

fn explain_by(
    name: &str,
    error: &tun::Error,
    is_device_refused: impl FnOnce() -> bool,
) -> SysError {
    let tun::Error::Io(io) = error else {
        return SysError::new(format!("cannot make the TUN device {name}"), error);
    };
    match io.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            SysError::new("cannot open /dev/net/tun", "there is no TUN driver here").fix(
                "modprobe tun; in a container pass the device in (Docker: --device /dev/net/tun)",
            )
        }
        Some(libc::EACCES) => SysError::new("cannot open /dev/net/tun", io)
            .fix("make /dev/net/tun readable and writable for this user, or run as root"),
        // The kernel says the same word when the device may not be opened and when it may not be made.
        Some(libc::EPERM) if is_device_refused() => SysError::new(
            "cannot open /dev/net/tun",
            "the device cgroup of this container forbids it",
        )
        .fix(DEVICE_CGROUP),
        Some(libc::EPERM) => {
            SysError::new(format!("cannot make the TUN device {name}"), io).fix(NET_ADMIN)
        }
        Some(libc::EBUSY) => SysError::new(
            format!("cannot make the TUN device {name}"),
            "another process holds a TUN device of this name",
        )
        .fix(format!("stop that process (is another ovd running?), see: ip -d link show {name}")),
        Some(libc::EEXIST | libc::EINVAL) => SysError::new(
            format!("cannot make the TUN device {name}"),
            "a network interface of another kind has this name",
        )
        .fix(format!("rename or delete it, see: ip -d link show {name}")),
        _ => SysError::new(format!("cannot make the TUN device {name}"), io),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    const NOTHING: Takes = Takes { tcp: false, udp: false };

    /// A queue, and the end that the kernel has of a real one.
    fn pair() -> (Tun, UnixDatagram) {
        let (ours, kernels) = UnixDatagram::pair().unwrap();
        (Tun::over(File::from(OwnedFd::from(ours)), NOTHING), kernels)
    }

    /// Before Linux 5.11 the kernel cannot read a TUN without waiting. It says so, and is asked before
    /// each further read from then on.
    #[test]
    fn an_old_kernel_is_asked_before_each_further_read() {
        // A file of the same kind: it gives what it has, and refuses `RWF_NOWAIT`.
        let tun = Tun::over(File::open("/proc/self/status").unwrap(), NOTHING);
        let mut batch = PacketBatch::new();
        tun.read_batch(&mut batch).unwrap();
        assert_eq!(batch.len(), 1);
        assert!(tun.must_ask.load(Ordering::Relaxed), "it did not refuse");

        for must_ask in [false, true] {
            let (tun, kernels) = pair();
            tun.must_ask.store(must_ask, Ordering::Relaxed);
            for number in 1..=3 {
                kernels.send(&[[0; VNET_LEN].as_slice(), &[number; 30]].concat()).unwrap();
            }
            // Would it wait for a fourth, it would wait for ever.
            tun.read_batch(&mut batch).unwrap();
            let first = |(_, packet): (_, &[u8])| (packet.len(), packet[0]);
            assert_eq!(batch.iter().map(first).collect::<Vec<_>>(), [(30, 1), (30, 2), (30, 3)]);
            assert_eq!(tun.must_ask.load(Ordering::Relaxed), must_ask);
        }
    }

    #[test]
    fn a_packet_leaves_in_one_write_behind_its_header() {
        let (tun, kernels) = pair();
        tun.write(&VnetHeader::PLAIN, 0, [&b"head"[..], b"payload"]).unwrap();

        let mut buffer = [0xff; 64];
        let len = kernels.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..len], [[0; VNET_LEN].as_slice(), b"headpayload"].concat());
    }

    #[test]
    fn names_that_the_kernel_or_a_path_would_misread_are_refused() {
        for bad in ["", ".", "..", "ov/0", "ov%d", "a name", "sixteen-letters-", "ov\n0"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["ov0", "ov12", "fifteen-letters", "a.b_c-d"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = |code| io::Error::from_raw_os_error(code).into();
        let from = |code| explain_by("ov0", &error(code), || false);

        assert!(from(libc::ENOENT).fix.contains("modprobe tun"));
        assert!(from(libc::EPERM).fix.contains("CAP_NET_ADMIN"));
        assert!(!from(libc::EPERM).to_string().contains("device cgroup"));
        let fenced = explain_by("ov0", &error(libc::EPERM), || true);
        assert!(fenced.why.contains("device cgroup"));
        assert!(fenced.fix.contains("--device /dev/net/tun"));
        assert!(!is_device_refused(), "not on this machine: others tests make devices");
        assert!(from(libc::EBUSY).to_string().contains("ov0"));
        assert!(from(libc::EEXIST).why.contains("another kind"));
    }
}

//! Descriptors that one process hands to another: by a unix socket (`unix(7)`, `SCM_RIGHTS`), or from
//! whoever starts a process (`sd_listen_fds(3)`: `LISTEN_PID`, `LISTEN_FDS`, `LISTEN_FDNAMES`).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use super::cmsg::Control;

/// The first descriptor that a process is started with.
const FIRST: RawFd = 3;

/// How many are taken at most: a queue for each of 64 lanes of a few overlays.
const DESCRIPTORS_MAX: usize = 1024;

/// A name on the wire, padded with zeros.
const NAME_MAX: usize = 64;

/// Descriptors with names. Several may have the same name.
#[derive(Debug, Default)]
pub struct Descriptors(Vec<(String, OwnedFd)>);

impl Descriptors {
    /// What this process was started with; nothing at the second call. To be called before anything
    /// else is opened.
    #[must_use]
    pub fn from_environment() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Self::default();
        }
        let variable = |name| std::env::var(name).unwrap_or_default();
        let count: usize = variable("LISTEN_FDS").parse().unwrap_or(0);
        let is_ours = variable("LISTEN_PID").parse() == Ok(std::process::id());
        let count = if is_ours { count.min(DESCRIPTORS_MAX) } else { 0 };
        let names = variable("LISTEN_FDNAMES");
        let names = names.split(':').chain(std::iter::repeat("unknown"));
        let numbers = FIRST..FIRST.saturating_add(count as RawFd);
        Self(
            numbers
                .zip(names)
                .filter_map(|(number, name)| Some((name.to_owned(), inherited(number)?)))
                .collect(),
        )
    }

    /// Adds one; a name is at most 64 bytes without `:`.
    pub fn add(&mut self, name: &str, descriptor: OwnedFd) {
        self.0.push((name.to_owned(), descriptor));
    }

    /// Adds a copy of one.
    ///
    /// # Errors
    ///
    /// When the process is out of descriptors.
    pub fn add_copy(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.add(name, descriptor.try_clone_to_owned()?);
        Ok(())
    }

    /// Copies of all of them.
    ///
    /// # Errors
    ///
    /// When the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        let copies = self.0.iter().map(|(name, one)| Ok((name.clone(), one.try_clone()?)));
        copies.collect::<io::Result<_>>().map(Self)
    }

    /// Takes out all of a name, in their order.
    pub fn take(&mut self, name: &str) -> Vec<OwnedFd> {
        let (found, others) =
            std::mem::take(&mut self.0).into_iter().partition(|(other, _)| other == name);
        self.0 = others;
        let found: Vec<(String, OwnedFd)> = found;
        found.into_iter().map(|(_, descriptor)| descriptor).collect()
    }

    /// The names of those that are left.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Hands all of them to the process at the other end, which receives copies.
    ///
    /// # Errors
    ///
    /// When the other end has gone away.
    pub fn send(&self, socket: &UnixStream) -> io::Result<()> {
        for (name, descriptor) in &self.0 {
            send_with(socket, &padded(name), Some(descriptor.as_fd()))?;
        }
        send_with(socket, &padded(""), None)
    }

    /// Receives what [`Self::send`] sent.
    ///
    /// # Errors
    ///
    /// When the other end has gone away or does not keep to the form.
    pub fn receive(socket: &UnixStream) -> io::Result<Self> {
        let mut received = Self::default();
        for _ in 0..=DESCRIPTORS_MAX {
            let mut room = [0; NAME_MAX];
            let (len, descriptor) = receive_with(socket, &mut room)?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let name = room.split(|&byte| byte == 0).next().unwrap_or_default();
            match (std::str::from_utf8(name), descriptor) {
                (Ok(""), None) if len == NAME_MAX => return Ok(received),
                (Ok(name), Some(descriptor)) if len == NAME_MAX => received.add(name, descriptor),
                _ => break,
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn padded(name: &str) -> [u8; NAME_MAX] {
    let mut padded = [0; NAME_MAX];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

/// A descriptor that this process was started with; nothing where there is none. Its children do not
/// get it.
fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: touches no memory of ours, and fails where the number is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: the number is open, and whoever started this process says that it is for us; it is taken
    // once, before anything else of this process could own it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends `bytes` by a connected unix socket, and a copy of `descriptor` with them.
///
/// # Errors
///
/// What the kernel says.
pub fn send_with(
    socket: impl AsFd,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut slice = IoSlice::new(bytes);
    let (mut control, len) = match descriptor {
        Some(descriptor) => Control::encode_descriptor(descriptor.as_raw_fd()),
        None => (Control::EMPTY, 0),
    };
    // SAFETY: `msghdr` is a C struct of integers and pointers, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // An `IoSlice` is laid out as an `iovec`.
    message.msg_iov = std::ptr::from_mut(&mut slice).cast();
    message.msg_iovlen = 1;
    if len > 0 {
        message.msg_control = control.as_mut_ptr();
        message.msg_controllen = len as _;
    }
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `message` leads to one vector over `bytes` and to `len` bytes of `control`, all of which
    // live until the call returns.
    let sent = unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Receives bytes by a unix socket, and the descriptor that came with them.
///
/// # Errors
///
/// What the kernel says.
pub fn receive_with(socket: impl AsFd, room: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut slice = IoSliceMut::new(room);
    let mut control = Control::EMPTY;
    // SAFETY: `msghdr` is a C struct of integers and pointers, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // An `IoSliceMut` is laid out as an `iovec`.
    message.msg_iov = std::ptr::from_mut(&mut slice).cast();
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr();
    message.msg_controllen = Control::CAPACITY as _;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `message` leads to one vector over `room` and to `control` with its capacity, all of which
    // live, unused otherwise, until the call returns.
    let received = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let descriptors = control.decode_descriptors(message.msg_controllen);
    // SAFETY: the kernel has just made these for this process, and nobody else knows of them.
    let mut descriptors = descriptors.map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    let first = descriptors.next();
    // What nobody asked for is closed.
    descriptors.for_each(drop);
    Ok((received, first))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_names_and_in_their_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut sent = Descriptors::default();
        let mut ends = Vec::new();
        for name in ["udp", "flows", "udp"] {
            let (near, far) = UnixStream::pair().unwrap();
            sent.add(name, far.into());
            ends.push(near);
        }
        sent.send(&ours).unwrap();
        drop(sent);

        let mut received = Descriptors::receive(&theirs).unwrap();

        assert_eq!(received.names().collect::<Vec<_>>(), ["udp", "flows", "udp"]);
        let udp = received.take("udp");
        assert_eq!((udp.len(), received.names().count()), (2, 1));
        // They are the very ends that were sent, in order, and open.
        for (mut near, far) in [ends.remove(0), ends.pop().unwrap()].into_iter().zip(udp) {
            near.write_all(b"x").unwrap();
            let mut byte = [0];
            UnixStream::from(far).read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"x");
        }
    }

    #[test]
    fn what_keeps_not_to_the_form_is_an_error() {
        let receive = |bytes: &[u8]| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            send_with(&ours, bytes, None).unwrap();
            drop(ours);
            Descriptors::receive(&theirs).map(|found| found.names().count())
        };
        assert_eq!(receive(&padded("")).unwrap(), 0, "the control");
        assert!(receive(&padded("")[..10]).is_err());
        assert!(receive(&padded("udp")).is_err(), "a name without a descriptor");
        assert!(receive(&[0xff; NAME_MAX]).is_err());
    }
}

//! A TUN device: the interface that the host sees as the overlay.
//!
//! Packets are whole IP packets without any header before them. One system call moves one packet;
//! offloads (many packets in one call) belong here too and change nothing for the callers.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd};

use super::SysError;
use super::batch::{BATCH, Meta, PacketBatch};
use super::error::NET_ADMIN;
use crate::types::DataPath;

/// The kernel's longest device name, in bytes.
const NAME_MAX: usize = 15;

/// An open TUN device; it vanishes when this is dropped.
#[derive(Debug)]
pub struct Tun {
    name: String,
    file: File,
    path: DataPath,
}

impl Tun {
    /// Makes the TUN device `name`, without addresses and down; [`super::net`] does the rest.
    ///
    /// # Errors
    ///
    /// A bad name, no `/dev/net/tun`, a missing right, a name that another interface has.
    pub fn open(name: &str, path: DataPath) -> Result<Self, SysError> {
        check_name(name)?;
        let mut configuration = tun::Configuration::default();
        configuration.tun_name(name).layer(tun::Layer::L3);
        // Addresses and MTUs are set by netlink, which also knows IPv6.
        configuration.platform_config(|platform| {
            platform.ensure_root_privileges(false);
        });
        let device = tun::create(&configuration).map_err(|error| explain(name, &error))?;
        device.set_nonblock().map_err(|error| explain(name, &error.into()))?;
        let fd = device.into_raw_fd();
        // SAFETY: `into_raw_fd` gave the descriptor up, so we are its only owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { name: name.to_owned(), file: File::from(fd), path })
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Replaces what is in `batch` by the packets that are waiting, at most [`BATCH`]. Never blocks:
    /// an empty batch means that there is nothing now.
    ///
    /// # Errors
    ///
    /// When the device is gone. What was read before stays in the batch; the error comes back at the
    /// next call.
    pub fn read_batch(&self, batch: &mut PacketBatch) -> io::Result<()> {
        batch.clear();
        let mut lengths = [0; BATCH];
        let mut count = 0;
        let limit = match self.path {
            DataPath::Full | DataPath::Batch => BATCH,
            DataPath::Naive => 1,
        };
        for (buffer, length) in batch.buffers_mut().zip(&mut lengths).take(limit) {
            match (&self.file).read(buffer) {
                // A device that is gone reads as its end.
                Ok(0) if count == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => break,
                Ok(len) => *length = len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => break,
                Err(error) if count == 0 => return Err(error),
                Err(_) => break,
            }
            count += 1;
        }
        for len in lengths.into_iter().take(count) {
            batch.fill(Meta { len, ..Meta::EMPTY });
        }
        Ok(())
    }

    /// Gives one packet to the host.
    ///
    /// # Errors
    ///
    /// When the device is down or gone, or the kernel is out of memory. Nothing was delivered then.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        let written = (&self.file).write(packet)?;
        if written == packet.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
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

fn explain(name: &str, error: &tun::Error) -> SysError {
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
        // Opening was refused by the device cgroup, or TUNSETIFF for want of the right: the kernel
        // says the same word for both.
        Some(libc::EPERM) => {
            SysError::new(format!("cannot make the TUN device {name}"), io).fix(format!(
                "{NET_ADMIN}; if that is given, allow /dev/net/tun in the device cgroup \
                 (systemd: DeviceAllow=/dev/net/tun rw; Docker: --device /dev/net/tun)"
            ))
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
    use super::*;

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
        let from = |code| explain("ov0", &io::Error::from_raw_os_error(code).into());

        assert!(from(libc::ENOENT).fix.contains("modprobe tun"));
        assert!(from(libc::EPERM).fix.contains("CAP_NET_ADMIN"));
        assert!(from(libc::EPERM).fix.contains("device cgroup"));
        assert!(from(libc::EBUSY).to_string().contains("ov0"));
        assert!(from(libc::EEXIST).why.contains("another kind"));
    }
}

//! Stops or nudges a thread that waits for packets.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::SysError;

/// One thread's bell, made of an eventfd. The thread waits on it together with its own source of
/// packets; others ring it.
#[derive(Debug)]
pub struct Wake {
    is_stopped: AtomicBool,
    eventfd: File,
}

impl Wake {
    /// A bell that nobody has rung.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors.
    pub fn new() -> Result<Self, SysError> {
        // SAFETY: eventfd takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return Err(SysError::from_io("cannot make an eventfd", &error)
                .fix("raise the limit of open files (ulimit -n, LimitNOFILE=)"));
        }
        // SAFETY: `fd` was just returned to us and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { is_stopped: AtomicBool::new(false), eventfd: File::from(fd) })
    }

    /// Tells the thread to end; it does so after the batch at hand. Harmless when called again.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        self.nudge();
    }

    /// Whether [`Self::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }

    /// Makes the thread look around once without a packet, for instance at new devices.
    pub fn nudge(&self) {
        // The write fails only when the counter is full, and then the bell is ringing already.
        let _ = (&self.eventfd).write(&1_u64.to_ne_bytes());
    }

    /// Waits until `source` is readable, the bell rings, or `timeout` is over. A ring is used up.
    ///
    /// # Errors
    ///
    /// What `poll` says, interruptions by signals left out.
    pub fn wait(&self, source: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
        self.poll(&mut [entry(source), entry(self.eventfd.as_fd())], timeout)
    }

    /// Waits for the bell alone, at most `timeout`. A ring is used up.
    ///
    /// # Errors
    ///
    /// What `poll` says, interruptions by signals left out.
    pub fn pause(&self, timeout: Duration) -> io::Result<()> {
        self.poll(&mut [entry(self.eventfd.as_fd())], Some(timeout))
    }

    fn poll(&self, entries: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
        let millis =
            timeout.map_or(-1, |timeout| i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX));
        let count = entries.len() as libc::nfds_t;
        // SAFETY: `entries` is valid for `count` elements for the whole call; the descriptors in it
        // are borrowed from their owners, so they are open.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), count, millis) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        if entries.last().is_some_and(|bell| bell.revents != 0) {
            // Reading resets the counter; a failure means that there was nothing to reset.
            let _ = (&self.eventfd).read(&mut [0; 8]);
        }
        Ok(())
    }
}

fn entry(fd: BorrowedFd<'_>) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_stop_ends_a_wait_on_a_silent_socket() {
        let wake = Arc::new(Wake::new().unwrap());
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sleeper = std::thread::spawn({
            let wake = Arc::clone(&wake);
            move || {
                while !wake.is_stopped() {
                    wake.wait(silent.as_fd(), None).unwrap();
                }
            }
        });

        wake.stop();

        sleeper.join().unwrap();
    }

    #[test]
    fn a_nudge_ends_one_wait_and_the_next_one_times_out() {
        let wake = Wake::new().unwrap();
        let start = Instant::now();

        wake.nudge();
        wake.pause(Duration::from_secs(60)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(30));

        let start = Instant::now();
        wake.pause(Duration::from_millis(20)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(15));
        assert!(!wake.is_stopped());
    }
}

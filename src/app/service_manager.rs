//! What a service manager is told: readiness, the end, and that we are alive (`sd_notify(3)`); and what
//! it keeps for the next start (`sd_pid_notify_with_fds(3)`).
//!
//! Datagrams to the socket that `NOTIFY_SOCKET` names. Without it nothing is told and nothing fails.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::sys::descriptors;

/// The service manager that started this process, if one did.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that we are alive.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// What the environment says.
    pub(crate) fn from_environment() -> Self {
        Self::new(|name| std::env::var_os(name), std::process::id())
    }

    fn new(environment: impl Fn(&str) -> Option<OsString>, own_pid: u32) -> Self {
        let number = |name| environment(name).and_then(|text| text.to_str()?.parse::<u64>().ok());
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(own_pid));
        let limit = number("WATCHDOG_USEC").filter(|&limit| is_ours && limit > 0);
        let connect = |name: OsString| {
            let address = match name.as_bytes().strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(&name)?,
            };
            let socket = UnixDatagram::unbound()?;
            // A manager that does not listen must not stop us.
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>((socket, address))
        };
        let socket = environment("NOTIFY_SOCKET").and_then(|name| match connect(name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET cannot be used");
                None
            }
        });
        // Twice as often as it must be: one may come late.
        Self { socket, watchdog: limit.map(|limit| Duration::from_micros(limit) / 2) }
    }

    /// The service is up.
    pub(crate) fn ready(&self) {
        self.tell("READY=1");
    }

    /// The service ends.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Has `descriptor` kept for the next start, under this name.
    pub(crate) fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) {
        let Some((_, address)) = &self.socket else { return };
        // Without FDPOLL=0 a data socket would be let go as soon as its error queue holds something.
        let what = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        let send = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(address)?;
            descriptors::send_with(&socket, what.as_bytes(), Some(descriptor))
        };
        if let Err(error) = send() {
            tracing::warn!(%error, name, "the service manager keeps nothing for the next start");
        }
    }

    /// Has everything of this name let go that is kept for the next start.
    pub(crate) fn let_go(&self, name: &str) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    /// Says for ever that the thread which runs this is alive.
    pub(crate) async fn keep_alive(&self) {
        let Some(pause) = self.watchdog else { return std::future::pending().await };
        let mut tick = tokio::time::interval(pause);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, what: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(what.as_bytes(), address) {
            tracing::warn!(%error, what, "cannot tell the service manager");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn environment(set: Vec<(&'static str, OsString)>) -> impl Fn(&str) -> Option<OsString> {
        move |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    #[test]
    fn it_tells_by_path_and_by_abstract_name() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("ovmesh-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();

        for (socket, place) in [(by_path, path.into()), (by_name, format!("@{name}").into())] {
            let manager = ServiceManager::new(environment(vec![("NOTIFY_SOCKET", place)]), 1);
            manager.ready();
            manager.stopping();
            assert_eq!(heard(&socket), "READY=1");
            assert_eq!(heard(&socket), "STOPPING=1");

            let (kept, other) = UnixDatagram::pair().unwrap();
            manager.keep("udp", kept.as_fd());
            let mut bytes = [0; 64];
            let (len, copy) = descriptors::receive_with(&socket, &mut bytes).unwrap();
            assert_eq!(&bytes[..len], b"FDSTORE=1\nFDNAME=udp\nFDPOLL=0");
            UnixDatagram::from(copy.unwrap()).send(b"from the copy").unwrap();
            assert_eq!(heard(&other), "from the copy");
            manager.let_go("udp");
            assert_eq!(heard(&socket), "FDSTOREREMOVE=1\nFDNAME=udp");
        }
    }

    #[test]
    fn the_watchdog_is_told_twice_in_its_time_when_it_is_meant_for_us() {
        let pause = |pid: &str, limit: &str| {
            let set = vec![("WATCHDOG_PID", pid.into()), ("WATCHDOG_USEC", limit.into())];
            ServiceManager::new(environment(set), 7).watchdog
        };

        assert_eq!(pause("7", "30000000"), Some(Duration::from_secs(15)));
        assert_eq!(pause("8", "30000000"), None);
        assert_eq!(pause("7", "0"), None);
        assert_eq!(pause("7", "soon"), None);
    }

    #[test]
    fn without_a_manager_nothing_is_told_and_nothing_fails() {
        ServiceManager::new(environment(Vec::new()), 1).ready();
        let gone = environment(vec![("NOTIFY_SOCKET", "/nowhere/notify".into())]);
        ServiceManager::new(gone, 1).ready();
    }
}

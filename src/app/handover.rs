//! What a process gets from the one before it, and what it leaves to the one after it: sockets, queues of
//! devices, flows. Two ways lead there, with the same names:
//!
//! * A service manager keeps them and starts the next process with them (`LISTEN_FDS`), after a stop or
//!   a crash.
//! * The next process asks this one (`--takeover`). This one shuts its hallways, hands over and stands
//!   still until the other has all that it needs to forward; if that does not come to be, it goes on.
//!
//! ```text
//!   this process                                   the next one (--takeover)
//!   hallways shut      <---- POST /v1/takeover ----
//!                      ---- descriptors ---------->  table on disk in force, devices adopted
//!                      <---- I am ready -----------
//!   ends               ---- they are yours ------->  hallways open
//! ```

use std::io::{self, Read as _, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt as _;

use super::node::Settings;
use super::service_manager::ServiceManager;
use crate::api::{Problem, ProblemCode};
use crate::dataplane;
use crate::dns::Listener;
use crate::forward::FlowTable;
use crate::local;
use crate::sys::SysError;
use crate::sys::descriptors::Descriptors;
use crate::sys::memory::{self, SharedMemory};
use crate::types::Instance;

/// The data sockets.
pub(crate) const UDP: &str = "udp";

/// The memory of the flow table.
pub(crate) const FLOWS: &str = "flows";

/// The memory of which process of its node this is.
const INSTANCE: &str = "instance";

/// The lock of the state directory; not for a service manager, since it ends with the process.
pub(crate) const LOCK: &str = "lock";

/// The local socket; not for a service manager, which removes its directory.
pub(crate) const LOCAL: &str = "local";

/// The health port.
pub(crate) const HEALTH: &str = "health";

/// The resolver's sockets, pair by pair.
pub(crate) const DNS_UDP: &str = "dns-udp";
pub(crate) const DNS_TCP: &str = "dns-tcp";

/// The queues of a device.
pub(crate) fn queues_of(device: &str) -> String {
    format!("tun-{device}")
}

/// How long the next process may take until it is ready. As long, packets wait where they fit.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long this process waits for a word of the one before it.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

const READY: u8 = b'r';
const YOURS: u8 = b'y';

/// What this process got.
#[derive(Debug)]
pub(crate) struct Inheritance {
    descriptors: Descriptors,
    pub(crate) predecessor: Option<Predecessor>,
    /// Keeps for the process after this one.
    pub(crate) manager: Arc<ServiceManager>,
}

impl Inheritance {
    /// What this process was `started_with`; where that is wanted, what the process that runs has.
    pub(crate) async fn get(
        started_with: Descriptors,
        settings: &Settings,
    ) -> Result<Self, Problem> {
        let manager = Arc::new(ServiceManager::from_environment());
        let own = Self { descriptors: started_with, predecessor: None, manager };
        if !settings.takeover {
            return Ok(own);
        }
        let Some(stream) = local::ask_takeover(&settings.socket).await? else {
            tracing::info!(socket = %settings.socket.display(), "nobody to take over from");
            return Ok(own);
        };
        let descriptors = Descriptors::receive(&stream).map_err(|error| lost(&error))?;
        Ok(Self { descriptors, predecessor: Some(Predecessor(stream)), ..own })
    }

    /// The one descriptor of a name.
    pub(crate) fn take_one(&mut self, name: &str) -> Option<OwnedFd> {
        self.descriptors.take(name).into_iter().next()
    }

    /// Whether there is a device among it.
    pub(crate) fn has_devices(&self) -> bool {
        self.descriptors.names().any(|name| name.starts_with(&queues_of("")))
    }

    /// What `adopt` makes of the descriptors of a name; none when there are none or they do not fit, which
    /// is said.
    pub(crate) fn adopt<T>(
        &mut self,
        name: &str,
        adopt: impl FnOnce(Vec<OwnedFd>) -> Result<T, SysError>,
    ) -> Option<T> {
        let descriptors = self.descriptors.take(name);
        if descriptors.is_empty() {
            return None;
        }
        match adopt(descriptors) {
            Ok(adopted) => Some(adopted),
            Err(error) => {
                tracing::warn!(%error, "what was waiting there is lost");
                self.manager.let_go(name);
                None
            }
        }
    }

    /// Closes what nobody has asked for.
    pub(crate) fn close_rest(&mut self) {
        for name in self.descriptors.names() {
            tracing::debug!(name, "not used");
            self.manager.let_go(name);
        }
        self.descriptors = Descriptors::default();
    }

    /// Where names were answered.
    pub(crate) fn listeners(&mut self) -> Vec<Listener> {
        let [udp, tcp] = [DNS_UDP, DNS_TCP].map(|name| self.descriptors.take(name));
        let adopt = |(udp, tcp)| Listener::adopt(udp, tcp).ok();
        udp.into_iter().zip(tcp).filter_map(adopt).collect()
    }

    /// Which process of its node this one is: the next of the same, where the one before it left word, so
    /// that the server need not find out which of the two is there.
    pub(crate) fn instance(&mut self, estate: &mut Estate) -> Instance {
        let left = self.take_one(INSTANCE).and_then(|left| {
            let mut bytes = [0; 8];
            memory::left(left).read_exact(&mut bytes).ok()?;
            Some(u64::from_ne_bytes(bytes)).filter(|number| *number != 0)
        });
        let instance = Instance(left.unwrap_or_else(|| rand::rng().random()));
        if let Ok(memory) = SharedMemory::new(1) {
            memory.words().iter().for_each(|word| word.store(instance.0, Ordering::Relaxed));
            self.manager.let_go(INSTANCE);
            self.manager.keep(INSTANCE, memory.descriptor());
            estate.add(INSTANCE, memory.descriptor());
        }
        instance
    }

    /// A flow table in memory that outlives this process, with the flows of the process before it.
    pub(crate) fn flow_table(&mut self, capacity: usize, estate: &mut Estate) -> FlowTable {
        let memory = SharedMemory::new(FlowTable::words(capacity)).inspect_err(|error| {
            tracing::warn!(%error, "the next process will not know the flows of this one");
        });
        let memory = memory.ok();
        let table = match &memory {
            Some(memory) => FlowTable::within(memory.words()),
            None => FlowTable::new(capacity),
        };
        if let Some(left) = self.take_one(FLOWS) {
            match table.take_over(memory::left(left), dataplane::now()) {
                Ok(flows) => tracing::info!(flows, "flows taken over"),
                Err(error) => tracing::warn!(
                    %error,
                    "the flows of the process before this one are not used: replies wait for their starters"
                ),
            }
            self.manager.let_go(FLOWS);
        }
        if let Some(memory) = &memory {
            self.manager.keep(FLOWS, memory.descriptor());
            estate.add(FLOWS, memory.descriptor());
        }
        table
    }
}

/// The process that this one takes over from. Until [`Self::release`] it can go on by itself.
#[derive(Debug)]
pub(crate) struct Predecessor(UnixStream);

impl Predecessor {
    /// Says that this process is ready to forward; once the other has answered, it is for this one to do.
    pub(crate) fn release(&mut self) -> Result<(), Problem> {
        let Self(stream) = self;
        let exchange = |stream: &mut UnixStream| {
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.write_all(&[READY])?;
            let mut answer = [0];
            stream.read_exact(&mut answer)?;
            if answer == [YOURS] { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
        };
        exchange(stream).map_err(|error| lost(&error))
    }
}

fn lost(error: &io::Error) -> Problem {
    Problem::new(ProblemCode::Failed, "the process before this one did not hand over")
        .why(error.to_string())
        .fix("see its log; it goes on running when it still can")
}

/// What is left to the process after this one, beside what the hallways have.
#[derive(Debug, Default)]
pub(crate) struct Estate(Descriptors);

impl Estate {
    /// Adds a descriptor that the process after this one gets a copy of.
    pub(crate) fn add(&mut self, name: &str, descriptor: BorrowedFd<'_>) {
        if let Err(error) = self.0.add_copy(name, descriptor) {
            tracing::warn!(%error, name, "the next process will not get this");
        }
    }

    /// Hands everything, and `more`, to the process at the other end, and waits until it is ready. This
    /// process must stand still meanwhile, and ends when the outcome is good.
    pub(crate) fn hand_over<'a>(
        &self,
        mut stream: &UnixStream,
        more: impl IntoIterator<Item = (String, BorrowedFd<'a>)>,
    ) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut all = self.0.try_clone()?;
        for (name, descriptor) in more {
            all.add_copy(&name, descriptor)?;
        }
        all.send(stream)?;
        drop(all);
        let mut ready = [0];
        stream.read_exact(&mut ready)?;
        if ready != [READY] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        stream.write_all(&[YOURS])
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn inheritance() -> Inheritance {
        let manager = Arc::new(ServiceManager::from_environment());
        Inheritance { descriptors: Descriptors::default(), predecessor: None, manager }
    }

    #[test]
    fn who_gets_everything_gets_the_word_and_who_goes_away_does_not() {
        for is_ready in [true, false] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut estate = Estate::default();
            estate.add(LOCK, ours.as_fd());
            let next = std::thread::spawn(move || {
                let mut found = Descriptors::receive(&theirs).unwrap();
                assert_eq!((found.take(LOCK).len(), found.take(UDP).len()), (1, 2));
                if is_ready {
                    Predecessor(theirs).release().map_err(|problem| problem.why)
                } else {
                    Ok(())
                }
            });
            let (a, b) = UnixStream::pair().unwrap();
            let more = [&a, &b].map(|end| (UDP.to_owned(), end.as_fd()));

            let handed_over = estate.hand_over(&ours, more);

            assert_eq!(handed_over.is_ok(), is_ready, "{handed_over:?}");
            assert_eq!(next.join().unwrap(), Ok(()));
        }
    }

    #[test]
    fn who_comes_too_late_does_not_get_the_word() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(Predecessor(theirs).release().is_err());
    }

    #[test]
    fn the_next_process_is_the_same_to_the_server_and_any_other_one_is_not() {
        let mut estate = Estate::default();
        let first = inheritance().instance(&mut estate);
        let mut next = Inheritance { descriptors: estate.0, ..inheritance() };
        let mut estate = Estate::default();
        assert_eq!(next.instance(&mut estate), first);
        let mut after = Inheritance { descriptors: estate.0, ..inheritance() };
        assert_eq!(after.instance(&mut Estate::default()), first);
        assert_ne!(inheritance().instance(&mut Estate::default()), first);
    }

    #[test]
    fn what_does_not_fit_is_not_used() {
        let mut inheritance = inheritance();
        let (a, _b) = UnixStream::pair().unwrap();
        inheritance.descriptors.add(UDP, a.into());
        let refuse = |found: Vec<OwnedFd>| {
            assert_eq!(found.len(), 1);
            Err::<(), _>(SysError { what: "no".to_owned(), why: String::new(), fix: String::new() })
        };
        assert!(inheritance.adopt(UDP, refuse).is_none());
        assert!(inheritance.adopt(UDP, |_| Ok(())).is_none(), "there is nothing left");
    }
}

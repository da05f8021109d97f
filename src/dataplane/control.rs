//! Control messages on their way between the data socket and the tasks that answer them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use crate::sys::udp::UdpSocket;
use crate::types::DropReason;
use crate::wire::control::MAX_LEN;

/// How many control messages may wait for the task that judges them.
pub const PUNT_CAPACITY: usize = 256;

/// Control messages a second from sources that no table names; one budget for all of them, so that
/// it needs no memory of sources (design section 4).
const UNKNOWN_PER_SECOND: u32 = 50;

/// A control message as it came, header included, not checked yet.
#[derive(Clone, Copy)]
pub struct Punted {
    /// Its outer source.
    pub from: SocketAddr,
    len: usize,
    bytes: [u8; MAX_LEN],
}

impl Punted {
    /// Copies `datagram`; `None` when it is longer than any control message.
    fn new(from: SocketAddr, datagram: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_LEN];
        bytes.get_mut(..datagram.len())?.copy_from_slice(datagram);
        Some(Self { from, len: datagram.len(), bytes })
    }

    /// The whole datagram.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl std::fmt::Debug for Punted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Punted({}, {} bytes)", self.from, self.len)
    }
}

/// The control messages of one node, for a task.
#[derive(Debug)]
pub struct ControlPort {
    /// What came in; closed when the plane stops.
    pub receive: mpsc::Receiver<Punted>,
    sender: ControlSender,
}

impl ControlPort {
    /// Both ends of a new channel. `udp` is any of the node's sockets: they have the same address.
    #[must_use]
    pub fn new(udp: Arc<UdpSocket>) -> (Punter, Self) {
        let (to_task, receive) = mpsc::channel(PUNT_CAPACITY);
        let budget = Arc::new(Budget::of(UNKNOWN_PER_SECOND));
        let punter = Punter { to_task, budget };
        (punter, Self { receive, sender: ControlSender { udp } })
    }

    /// Sends a control message from the data socket; never waits.
    ///
    /// # Errors
    ///
    /// What the kernel says; the next echo makes up for it.
    pub fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.sender.send(to, datagram)
    }

    /// The sending half, for other tasks.
    #[must_use]
    pub fn sender(&self) -> ControlSender {
        self.sender.clone()
    }
}

/// Sends control messages from the data socket.
#[derive(Clone, Debug)]
pub struct ControlSender {
    udp: Arc<UdpSocket>,
}

impl ControlSender {
    /// Sends a control message; never waits.
    ///
    /// # Errors
    ///
    /// What the kernel says; the next echo makes up for it.
    pub fn send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.udp.send_to(to, datagram)
    }
}

/// A hallway's end of the channel; each lane has one.
#[derive(Clone, Debug)]
pub struct Punter {
    to_task: mpsc::Sender<Punted>,
    budget: Arc<Budget>,
}

impl Punter {
    /// Hands a control message over.
    ///
    /// # Errors
    ///
    /// [`DropReason::ControlType`] when it is longer than any of ours, [`DropReason::ControlBudget`]
    /// when an unknown source has used the budget up or the task is behind.
    pub(super) fn punt(
        &self,
        from: SocketAddr,
        is_known: bool,
        datagram: &[u8],
        now_millis: u64,
    ) -> Result<(), DropReason> {
        let punted = Punted::new(from, datagram).ok_or(DropReason::ControlType)?;
        if !is_known && !self.budget.take(now_millis) {
            return Err(DropReason::ControlBudget);
        }
        self.to_task.try_send(punted).map_err(|_| DropReason::ControlBudget)
    }
}

/// So many a second of the monotonic clock, for all lanes.
#[derive(Debug)]
pub(super) struct Budget {
    per_second: u32,
    /// The second in the upper half, how many were taken in it in the lower one.
    taken: AtomicU64,
}

impl Budget {
    pub(super) fn of(per_second: u32) -> Self {
        Self { per_second, taken: AtomicU64::new(0) }
    }

    /// Whether one more may pass now.
    pub(super) fn take(&self, now_millis: u64) -> bool {
        let second = (now_millis / 1000) << 32;
        let next = |taken: u64| {
            // Another lane may have read its clock a moment later.
            let is_current = taken >= second;
            let (second, count) = if is_current { (taken, taken as u32) } else { (second, 0) };
            (count < self.per_second).then_some(second + 1)
        };
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DataPath;

    fn port() -> (Punter, ControlPort) {
        let udp = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), DataPath::Full).unwrap();
        ControlPort::new(Arc::new(udp))
    }

    #[test]
    fn unknown_sources_share_a_budget_on_all_lanes_and_known_ones_do_not() {
        let (punter, mut port) = port();
        let lanes = [punter.clone(), punter.clone()];
        let from = "192.0.2.1:6080".parse().unwrap();

        let take = |n: &usize| lanes[n % 2].punt(from, false, b"x", 5_000).is_ok();
        let passed = (0..80).filter(take).count();
        assert_eq!(passed, 50);
        assert_eq!(punter.punt(from, false, b"x", 5_999), Err(DropReason::ControlBudget));
        assert_eq!(punter.punt(from, true, b"known", 5_999), Ok(()));
        assert_eq!(punter.punt(from, false, b"later", 6_000), Ok(()));

        let bytes: Vec<_> = std::iter::from_fn(|| port.receive.try_recv().ok()).collect();
        assert_eq!(bytes.len(), 52);
        assert_eq!(bytes.last().map(Punted::bytes), Some(&b"later"[..]));
    }

    #[test]
    fn a_full_channel_drops_and_counts_and_a_long_message_is_none_of_ours() {
        let (punter, _port) = port();
        let from = "192.0.2.1:6080".parse().unwrap();

        let passed =
            (0..1000).filter(|_| punter.punt(from, true, &[0; MAX_LEN], 1).is_ok()).count();

        assert_eq!(passed, PUNT_CAPACITY);
        assert_eq!(punter.punt(from, true, b"", 1), Err(DropReason::ControlBudget));
        let long = [0; MAX_LEN + 1];
        assert_eq!(punter.punt(from, true, &long, 1), Err(DropReason::ControlType));
    }
}

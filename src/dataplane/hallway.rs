//! What the three hallways have in common: the frame of their threads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::counters::LaneCounters;
use super::publish::Reader;
use crate::forward::{FlowTable, Now, Snapshot};
use crate::sys::batch::{DatagramBatch, Meta};
use crate::sys::udp::UdpSocket;
use crate::sys::{SysError, clock, wake};
use crate::types::DropReason;
use crate::wire::gue::{self, Frame};
use crate::wire::{Facts, inner};

/// How long a hallway rests after the kernel refused to read, so that a lasting error does not spin.
const REST: Duration = Duration::from_millis(20);

/// How long a thread that was nudged may take to look around before it is nudged again.
pub(super) const NUDGE_EVERY: Duration = Duration::from_millis(1);

/// What every hallway works with.
pub(super) struct Common {
    pub(super) udp: Arc<UdpSocket>,
    pub(super) snapshot: Reader<Snapshot>,
    pub(super) flows: Arc<FlowTable>,
    pub(super) counters: Arc<LaneCounters>,
    pub(super) gate: Arc<Gate>,
}

impl Common {
    /// Whether there is another batch to read. Asked before every batch; waits while the gate is shut.
    pub(super) fn goes_on(&self) -> bool {
        self.gate.passes()
    }
}

/// What a hallway's thread is told. Shut, it leaves packets where they wait, for itself or for the
/// process that comes after this one.
#[derive(Debug)]
pub(super) struct Gate(AtomicU8);

const OPEN: u8 = 0;
/// Told, and not heard yet.
const SHUTTING: u8 = 1;
const SHUT: u8 = 2;
const ENDED: u8 = 3;

impl Gate {
    pub(super) fn open() -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(OPEN)))
    }

    pub(super) fn shut() -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(SHUT)))
    }

    fn passes(&self) -> bool {
        loop {
            match self.0.load(Ordering::Acquire) {
                OPEN => return true,
                ENDED => return false,
                SHUTTING => {
                    let now = (SHUTTING, SHUT);
                    // Told something else meanwhile, it looks again.
                    let _ =
                        self.0.compare_exchange(now.0, now.1, Ordering::AcqRel, Ordering::Acquire);
                }
                _ => thread::park(),
            }
        }
    }
}

/// What one batch is judged by, from its beginning to its end.
#[derive(Clone, Copy, Debug)]
pub struct Basis<'a> {
    /// Whom to let through.
    pub snapshot: &'a Snapshot,
    /// The flows that are known.
    pub flows: &'a FlowTable,
    /// When the batch came.
    pub now: Now,
}

/// The time for one batch, and for the flow table's start.
#[must_use]
pub fn now() -> Now {
    Now { monotonic_millis: clock::monotonic_millis(), wall: clock::wall_for_rules() }
}

/// Fills `batch` from the UDP socket, waiting for it; `false` when somebody interrupted the wait.
pub(super) fn receive(udp: &UdpSocket, batch: &mut DatagramBatch) -> bool {
    if udp.receive_batch(batch).is_err() {
        batch.clear();
        thread::park_timeout(REST);
    }
    !batch.is_empty()
}

/// One hallway's thread.
#[derive(Debug)]
pub(super) struct Hallway {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

impl Hallway {
    /// Starts it; `gate` is what its [`Common`] has.
    pub(super) fn spawn(
        name: String,
        gate: Arc<Gate>,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<Self, SysError> {
        let thread = thread::Builder::new()
            .name(name.clone())
            .spawn(body)
            .map_err(|error| SysError::new(format!("cannot start the thread {name}"), error))?;
        Ok(Self { gate, thread: Some(thread) })
    }

    /// Lets it read.
    pub(super) fn open(&self) {
        self.tell(OPEN);
    }

    /// Has it read nothing more, and waits until that is so: a batch at most. What it has read by then
    /// has been sent or delivered.
    pub(super) fn shut(&self) {
        self.tell(SHUTTING);
        let is_reading = || self.gate.0.load(Ordering::Acquire) == SHUTTING;
        while is_reading() && self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            self.nudge();
            thread::park_timeout(NUDGE_EVERY);
        }
    }

    fn tell(&self, what: u8) {
        self.gate.0.store(what, Ordering::Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Makes the thread look around once without a packet, if it is waiting for one.
    pub(super) fn nudge(&self) {
        if let Some(thread) = &self.thread {
            wake::interrupt(thread);
        }
    }
}

impl Drop for Hallway {
    /// Ends the thread after the batch at hand and waits for it.
    fn drop(&mut self) {
        self.tell(ENDED);
        // It may have looked just before, and begin to wait just now.
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            self.nudge();
            thread::park_timeout(NUDGE_EVERY);
        }
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("a hallway thread had panicked");
        }
    }
}

/// A datagram whose form is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// A wrapped packet, for the verdict.
    Data { key: u32, facts: Facts },
    /// A control message, for its task.
    Control { is_known: bool },
}

/// The checks that ingress and transit share, cheapest first: the GUE header, the outer source, the
/// inner packet.
pub(super) fn open(
    knows: impl Fn(SocketAddr) -> bool,
    meta: &Meta,
    datagram: &[u8],
) -> Result<Opened, DropReason> {
    let (family, key, packet) = match gue::decode(datagram)? {
        Frame::Data { family, key, inner } => (family, key, inner),
        // Judged by its MAC, not by where it comes from; that only decides about the budget.
        Frame::Control { .. } => return Ok(Opened::Control { is_known: knows(meta.from) }),
    };
    if !knows(meta.from) {
        return Err(DropReason::OuterSource);
    }
    if meta.is_truncated {
        return Err(DropReason::InnerLength);
    }
    Ok(Opened::Data { key, facts: inner::parse(family, packet)? })
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// An ICMP echo 10.0.0.2 -> 10.0.0.1 of 38 bytes, in its datagram.
    pub(crate) const V4_DATA: &str = "010480001a2b3c4d4500002612344000400114a10a0000020a000001\
                                      0800e198007700016775652d766563746f72";
    const ECHO_REQUEST: &str = "21ff80001a2b3c4d5a4f4c3101010020000000070000000001020304\
                                0506070800000000000000000000000000000000";

    pub(crate) fn datagram(hex: &str) -> Vec<u8> {
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
        hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    pub(crate) fn meta(tos: u8, ttl: u8) -> Meta {
        let from = "192.0.2.1:6080".parse().unwrap();
        Meta { from, len: 0, tos, ttl, segment: 0, is_truncated: false }
    }

    #[test]
    fn a_stranger_is_dropped_before_the_inner_packet_is_looked_at() {
        let mut bytes = datagram(V4_DATA);
        assert!(matches!(open(|_| true, &meta(0, 64), &bytes), Ok(Opened::Data { .. })));

        // A wrong inner version: whoever is known learns of it in the counters.
        bytes[gue::HEADER_LEN] = 0x65;
        assert_eq!(open(|_| false, &meta(0, 64), &bytes), Err(DropReason::OuterSource));
        assert_eq!(open(|_| true, &meta(0, 64), &bytes), Err(DropReason::InnerVersion));
    }

    #[test]
    fn control_messages_go_to_their_task_from_anybody() {
        let bytes = datagram(ECHO_REQUEST);
        for is_known in [false, true] {
            let opened = open(|_| is_known, &meta(0, 64), &bytes);
            assert_eq!(opened, Ok(Opened::Control { is_known }));
        }
    }

    #[test]
    fn what_was_cut_by_its_buffer_is_dropped() {
        let cut = Meta { is_truncated: true, ..meta(0, 64) };
        assert_eq!(open(|_| true, &cut, &datagram(V4_DATA)), Err(DropReason::InnerLength));
    }

    #[test]
    fn a_hallway_reads_when_it_is_open_and_leaves_the_rest_where_it_waits_when_it_is_shut() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (gate, read) = (Gate::shut(), Arc::new(AtomicU8::new(0)));
        let mut left = theirs.try_clone().unwrap();
        let hallway = Hallway::spawn("hallway".to_owned(), Arc::clone(&gate), {
            let read = Arc::clone(&read);
            move || {
                while gate.passes() {
                    // Interrupted by a nudge, it looks at the gate again.
                    let count = (&theirs).read(&mut [0]).unwrap_or(0);
                    read.fetch_add(count as u8, Ordering::Release);
                }
            }
        });
        let hallway = hallway.unwrap();
        let count = || read.load(Ordering::Acquire);
        let wait_for = |wanted| {
            while count() != wanted {
                thread::yield_now();
            }
        };

        for round in 0..3 {
            hallway.shut();
            ours.write_all(&[0]).unwrap();
            assert_eq!(count(), round, "it reads while it is shut");
            hallway.open();
            wait_for(round + 1);
        }
        hallway.shut();
        ours.write_all(&[7]).unwrap();
        drop(hallway);
        // Whoever comes next finds it.
        let mut byte = [0];
        left.read_exact(&mut byte).unwrap();
        assert_eq!((byte, count()), ([7], 3));
    }
}

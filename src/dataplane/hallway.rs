//! What the three hallways have in common: the frame of their threads.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use super::counters::LaneCounters;
use super::publish::Reader;
use crate::forward::{FlowTable, Now, Snapshot};
use crate::sys::batch::{DatagramBatch, Meta};
use crate::sys::clock;
use crate::sys::udp::UdpSocket;
use crate::sys::wake::Wake;
use crate::types::DropReason;
use crate::wire::gue::{self, Frame};
use crate::wire::{Facts, inner};

/// How long a hallway rests after the kernel refused to read, so that a lasting error does not spin.
const REST: Duration = Duration::from_millis(20);

/// What every hallway works with.
pub(super) struct Common {
    pub(super) udp: Arc<UdpSocket>,
    pub(super) snapshot: Reader<Snapshot>,
    pub(super) flows: Arc<FlowTable>,
    pub(super) counters: Arc<LaneCounters>,
    pub(super) wake: Arc<Wake>,
}

/// The time for one batch, and for the flow table's start.
#[must_use]
pub fn now() -> Now {
    Now { monotonic_millis: clock::monotonic_millis(), wall: clock::wall_for_rules() }
}

/// Whether a batch of `len` was so small that there is hardly more at once: then to wait comes before
/// to read, and saves the read that would find nothing.
pub(super) fn is_trickle(len: usize) -> bool {
    (1..=2).contains(&len)
}

/// Fills `batch` from the UDP socket or waits for more; `false` when there is nothing to do now.
pub(super) fn receive(udp: &UdpSocket, wake: &Wake, batch: &mut DatagramBatch) -> bool {
    if try_receive(udp, wake, batch).is_err() {
        batch.clear();
        rest(wake);
    }
    !batch.is_empty()
}

fn try_receive(udp: &UdpSocket, wake: &Wake, batch: &mut DatagramBatch) -> io::Result<()> {
    if !is_trickle(batch.len()) {
        udp.receive_batch(batch)?;
        if !batch.is_empty() {
            return Ok(());
        }
    }
    wake.wait(udp.as_fd(), None)?;
    udp.receive_batch(batch)
}

/// Waits a little, unless somebody calls.
pub(super) fn rest(wake: &Wake) {
    // Without poll there is no way to wait; the next round tries again.
    let _: io::Result<()> = wake.pause(REST);
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
}

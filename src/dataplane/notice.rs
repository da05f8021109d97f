//! Facts about refused packets, for whoever answers the host: a hallway hands them over and goes on.
//!
//! A bounded channel that was made whole at the start, and a budget that all lanes share: under a
//! flood of refusals most of them are only counted.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::Notify;

use super::control::Budget;
use super::ingress::Devices;
use super::publish::Publisher;
use crate::sys::offload::vnet::VnetHeader;
use crate::types::{DropReason, OverlayId};
use crate::wire::inner::{self, Quoted};
use crate::wire::start::Start;
use crate::wire::{Facts, Family};

/// How many facts may wait.
const TOLD_CAPACITY: usize = 256;

/// Facts a second of all lanes together.
const PER_SECOND: u32 = 500;

const TCP: u8 = 6;

/// An opening packet of this host was refused.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Why.
    pub reason: DropReason,
    /// The overlay whose device it came from.
    pub overlay: OverlayId,
    /// The flow that it would have opened.
    pub flow: Quoted,
    /// The packet's first bytes.
    pub start: Start,
}

/// A hallway's end of the channel; each egress thread has one.
#[derive(Clone, Debug)]
pub struct Teller {
    to_task: SyncSender<Refusal>,
    bell: Arc<Notify>,
    budget: Arc<Budget>,
}

/// What the hallways refused of this host, for a task.
#[derive(Debug)]
pub struct Refusals {
    from_hallways: Receiver<Refusal>,
    bell: Arc<Notify>,
}

/// Gives packets to the host in the name of the network.
#[derive(Debug)]
pub struct HostDoor {
    devices: Arc<Publisher<Devices>>,
}

impl Refusals {
    /// Both ends of a new channel.
    #[must_use]
    pub fn channel() -> (Teller, Self) {
        let (to_task, from_hallways) = sync_channel(TOLD_CAPACITY);
        let bell = Arc::new(Notify::new());
        let budget = Arc::new(Budget::of(PER_SECOND));
        (Teller { to_task, bell: Arc::clone(&bell), budget }, Self { from_hallways, bell })
    }

    /// Waits until there may be something.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }

    /// The next one, if there is one.
    #[must_use]
    pub fn poll(&self) -> Option<Refusal> {
        self.from_hallways.try_recv().ok()
    }
}

impl HostDoor {
    /// `devices` are those of any lane: each has a queue of every device.
    pub(super) fn new(devices: Arc<Publisher<Devices>>) -> Self {
        Self { devices }
    }

    /// Gives the host a packet on the device of `overlay`; whether it took it. Holds on to no device.
    #[must_use]
    pub fn give(&self, overlay: OverlayId, packet: &[u8]) -> bool {
        let devices = self.devices.current();
        let device = devices.get(&overlay);
        device.is_some_and(|tun| tun.write(&VnetHeader::PLAIN, 0, [packet]).is_ok())
    }
}

impl Teller {
    /// A packet of this host was refused. Never waits: a task that is behind hears of the next one.
    pub(super) fn refused(
        &self,
        reason: DropReason,
        overlay: OverlayId,
        family: Family,
        packet: &[u8],
        now_millis: u64,
    ) {
        if !is_told(reason) {
            return;
        }
        let Ok(facts) = inner::parse(family, packet) else { return };
        let Some(flow) = opened(&facts, reason) else { return };
        if !self.budget.take(now_millis) {
            return;
        }
        let refusal = Refusal { reason, overlay, flow, start: Start::of(packet) };
        if self.to_task.try_send(refusal).is_ok() {
            self.bell.notify_one();
        }
    }
}

/// The refusals that a host hears of: what policy, and where nobody can carry it, says.
fn is_told(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NoRow
            | DropReason::NoRule
            | DropReason::DenyRule
            | DropReason::FlowRevoked
            | DropReason::NoPath
    )
}

/// The flow that a packet would have opened. Of a revoked flow only TCP can tell a new start.
fn opened(facts: &Facts, reason: DropReason) -> Option<Quoted> {
    let flow = facts.opened_flow()?;
    let is_new = reason != DropReason::FlowRevoked || flow.protocol == TCP;
    (is_new && !flow.destination.is_multicast()).then_some(flow)
}

#[cfg(test)]
mod tests {
    use super::super::hallway::tests::{V4_DATA, datagram};
    use super::*;
    use crate::wire::gue;

    const OVERLAY: OverlayId = OverlayId(1);

    fn count(refusals: &Refusals) -> usize {
        std::iter::from_fn(|| refusals.poll()).count()
    }

    fn echo_request() -> Vec<u8> {
        datagram(V4_DATA)[gue::HEADER_LEN..].to_vec()
    }

    #[test]
    fn refusals_by_policy_are_told_and_others_are_not() {
        let (teller, refusals) = Refusals::channel();
        let echo = echo_request();

        for reason in DropReason::ALL {
            teller.refused(*reason, OVERLAY, Family::V4, &echo, 1);
        }

        let told: Vec<_> = std::iter::from_fn(|| refusals.poll()).map(|told| told.reason).collect();
        let expected =
            [DropReason::NoRow, DropReason::NoRule, DropReason::DenyRule, DropReason::NoPath];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_flood_uses_the_budget_up_or_fills_the_channel_and_no_more() {
        let (teller, refusals) = Refusals::channel();
        let lanes = [teller.clone(), teller];
        let echo = echo_request();

        let mut told = 0;
        for round in 0..2 * PER_SECOND as usize {
            lanes[round % 2].refused(DropReason::NoRule, OVERLAY, Family::V4, &echo, 2000);
            told += count(&refusals);
        }
        assert_eq!(told, PER_SECOND as usize);

        for _ in 0..2 * TOLD_CAPACITY {
            lanes[0].refused(DropReason::NoRule, OVERLAY, Family::V4, &echo, 3000);
        }
        assert_eq!(count(&refusals), TOLD_CAPACITY);
    }

    #[test]
    fn only_what_opens_a_flow_with_one_host_is_told() {
        let (teller, refusals) = Refusals::channel();
        let tell = |reason, packet: &[u8]| {
            teller.refused(reason, OVERLAY, Family::V4, packet, 1);
            count(&refusals)
        };
        let mut packet = echo_request();
        assert_eq!(tell(DropReason::NoRule, &packet), 1);
        packet[20] = 0;
        assert_eq!(tell(DropReason::NoRule, &packet), 0, "an echo reply");

        packet[9] = 6;
        packet.resize(40, 0);
        packet[3] = 40;
        packet[32..34].copy_from_slice(&[0x50, 0x10]);
        assert_eq!(tell(DropReason::NoRule, &packet), 0, "mid-stream");
        packet[33] = 0x02;
        for reason in [DropReason::NoRule, DropReason::FlowRevoked] {
            assert_eq!(tell(reason, &packet), 1, "an opening segment");
        }
        packet[6..8].copy_from_slice(&[0, 9]);
        assert_eq!(tell(DropReason::NoRule, &packet), 0, "a later fragment");
        packet[6..8].copy_from_slice(&[0, 0]);
        packet[9] = 17;
        packet[24..26].copy_from_slice(&[0, 20]);
        assert_eq!(tell(DropReason::NoRule, &packet), 1, "a datagram");
        packet[16..20].copy_from_slice(&[224, 0, 0, 251]);
        assert_eq!(tell(DropReason::NoRule, &packet), 0, "to many");
    }
}

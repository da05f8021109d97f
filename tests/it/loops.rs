//! A loop between SaPs ends by the outer TTL (threat T14). The server refuses paths with a cycle, so
//! that the tables here are made by hand, for two transit hallways on the loopback.

use std::net::{SocketAddr, UdpSocket as Plain};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use ovmesh::dataplane::publish::Publisher;
use ovmesh::dataplane::{Counters, SapPlane, Way, now};
use ovmesh::forward::{
    DestinationKeySpec, FlowTable, MemberSpec, OverlayInfo, OverlaySpec, RuleSpec, SapInfo,
    SnapshotBuilder,
};
use ovmesh::keys::DestinationKey;
use ovmesh::sys::udp::UdpSocket;
use ovmesh::types::{
    DataPath, DropReason, Generation, Name, NodeId, NodeKind, OverlayId, RuleId, Secret, Tier,
};

use crate::packet;
use crate::world::poll;

/// The SaPs' ids.
const SAPS: [NodeId; 2] = [NodeId(100), NodeId(101)];

/// What is sent, and to whom.
const SOURCE: &str = "10.0.0.1:40000";
const TARGET: &str = "10.0.0.2:9";

#[test]
fn a_packet_in_a_loop_of_saps_crosses_the_wire_as_often_as_its_ttl_says() {
    loop_ends().unwrap();
}

fn loop_ends() -> Result<()> {
    let a = Plain::bind("127.0.0.1:0")?;
    let bind = || UdpSocket::bind("127.0.0.1:0".parse().unwrap(), DataPath::Full);
    let sockets = [bind()?, bind()?];
    let at = sockets.each_ref().map(UdpSocket::local_addr);
    // Each takes the other for b, and for a as well.
    let [s1, s2] = sockets;
    let first = sap(SAPS[0], s1, &[a.local_addr()?, at[1]], at[1])?;
    let second = sap(SAPS[1], s2, &[at[0]], at[0])?;
    let counters = [first.counters(), second.counters()];
    let inner = packet::udp(SOURCE.parse()?, TARGET.parse()?, b"round and round");
    let key = key().pair_key(NodeId(1), Generation(0)).bits();
    let datagram = packet::bytes(&packet::gue(key, &inner));

    let (mut passed, mut ended) = (0, 0);
    for ttl in [64, 2, 1, 255] {
        a.set_ttl(ttl)?;
        a.send_to(&datagram, at[0])?;
        passed += u64::from(ttl) - 1;
        ended += 1;
        // A SaP counts what it sent once the kernel has it; the other may have ended it by then.
        poll(Duration::from_secs(10), "the packet to end, all its sends counted", || {
            let moved = moved(&counters);
            ensure!(moved <= passed, "TTL {ttl}: {moved} sends, not {passed}");
            let is_over = dropped(&counters, DropReason::HopLimit) == ended && moved == passed;
            Ok(is_over.then_some(()))
        })?;
    }
    let all: u64 = DropReason::ALL.iter().map(|&reason| dropped(&counters, reason)).sum();
    ensure!(all == ended, "{all} drops");
    ensure!(moved(&counters) == passed, "something was sent behind the end");
    Ok(())
}

fn moved(counters: &[Arc<Counters>]) -> u64 {
    counters.iter().map(|counters| counters.passed(Way::Transit).packets).sum()
}

fn dropped(counters: &[Arc<Counters>], reason: DropReason) -> u64 {
    counters.iter().map(|counters| counters.dropped(Way::Transit, reason)).sum()
}

fn secret() -> Secret {
    Secret::new([2; 32])
}

fn key() -> DestinationKey {
    DestinationKey::new(&secret())
}

/// A SaP for which a is at `source` and b at `next`.
fn sap(id: NodeId, socket: UdpSocket, source: &[SocketAddr], next: SocketAddr) -> Result<SapPlane> {
    let member = |number: u8, endpoints: &[SocketAddr]| MemberSpec {
        id: NodeId(number.into()),
        address: [10, 0, 0, number].into(),
        endpoints: endpoints.to_vec(),
    };
    let rule = RuleSpec {
        id: RuleId(1),
        tier: Tier::Allow,
        from: 0,
        to: 1,
        services: Vec::new(),
        not_after: None,
    };
    let overlay = OverlaySpec {
        info: OverlayInfo {
            id: OverlayId(1),
            name: Name::new("test")?,
            cidr: "10.0.0.0/24".parse()?,
            address: None,
            is_silent: false,
        },
        members: vec![member(1, source), member(2, &[next])],
        sets: vec![vec![0], vec![1]],
        rules: vec![rule],
        unspoken_passes: false,
        isolated: Vec::new(),
        paths: Vec::new(),
        default_saps: vec![id],
        preferences: Vec::new(),
        empty_saps: Vec::new(),
        destination_keys: vec![DestinationKeySpec {
            to: 1,
            accept: vec![secret()],
            old_until: None,
        }],
        pairs: Vec::new(),
        send_keys: Vec::new(),
    };
    let info = SapInfo { id, name: Name::new("sap")?, endpoints: vec![socket.local_addr()] };
    let builder = SnapshotBuilder::new(id, NodeKind::Sap).sap(info).overlay(overlay);
    let snapshot = builder.build().map_err(anyhow::Error::msg)?;
    let flows = Arc::new(FlowTable::new(1 << 10).started(now()));
    let (plane, _port) = SapPlane::start(vec![socket], Arc::new(Publisher::new(snapshot)), flows)?;
    plane.open();
    Ok(plane)
}

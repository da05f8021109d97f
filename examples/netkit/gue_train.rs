//! Sends datagrams as trains: one send of the kernel's segmentation offload for many datagrams, which
//! arrive together where the receiver asks for trains.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ovmesh::sys::offload::Head;
use ovmesh::sys::udp::{Outgoing, SendQueue, TTL, UdpSocket};
use ovmesh::types::DataPath;
use serde_json::json;

use crate::{hex, report};

/// Between two trains.
const PAUSE: Duration = Duration::from_millis(5);

/// Sends `file` (`@` and a name): a datagram a line in hexadecimal digits, all of a train of one length
/// but the last, which may be shorter; an empty line ends a train.
pub(crate) fn send(source: SocketAddr, target: SocketAddr, file: &str) -> Result<()> {
    let socket = UdpSocket::bind(source, DataPath::Full)
        .with_context(|| format!("cannot bind {source} (does its daemon run?)"))?;
    let mut queue = SendQueue::new();
    let (mut trains, mut sent, mut sends) = (0_u64, 0_usize, 0_u64);
    for train in hex::lines(file)?.split(Vec::is_empty).filter(|train| !train.is_empty()) {
        let outgoing = train.iter().map(|payload| Outgoing {
            to: target,
            head: Head::EMPTY,
            payload,
            tos: 0,
            ttl: TTL,
        });
        let mut result = Ok(());
        socket.send_batch(&mut queue, outgoing, |one| {
            sends += 1;
            match one.result {
                Ok(()) => sent += one.datagrams,
                Err(reason) => result = Err(reason),
            }
        });
        ensure!(result.is_ok(), "the kernel refused: {result:?}");
        trains += 1;
        // So that what counts them at the other end keeps up.
        report::pause(PAUSE);
    }
    report::print(&json!({ "trains": trains, "sends": sends, "sent": sent }));
    Ok(())
}

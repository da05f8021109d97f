//! Many UDP flows at a time: each from a socket of its own, each expecting every echo.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::report;
use crate::udp::{any_for, bind};

/// Flows that wait for their echo at the same time: few enough for one socket's buffer at the far end.
const AT_ONCE: usize = 64;

/// Sends `rounds` datagrams on each of `flows` flows, a group of flows after the other.
pub(crate) fn run(target: SocketAddr, flows: usize, rounds: u32, timeout: Duration) -> Result<()> {
    let mut sockets = Vec::new();
    for _ in 0..flows {
        let socket = bind(any_for(target))?;
        socket.connect(target).with_context(|| format!("no route to {target}"))?;
        socket.set_read_timeout(Some(timeout))?;
        sockets.push(socket);
    }
    let mut received = 0_u64;
    for round in 0..rounds {
        for group in sockets.chunks(AT_ONCE) {
            for socket in group {
                socket.send(&round.to_be_bytes())?;
            }
            received += group.iter().filter(|socket| has_echo(socket, round)).count() as u64;
        }
    }
    let sent = flows as u64 * u64::from(rounds);
    report::print(&json!({ "flows": flows, "sent": sent, "received": received }));
    Ok(())
}

/// Whether the echo of `round` is what comes next; an older one would be one that came late or twice.
fn has_echo(socket: &UdpSocket, round: u32) -> bool {
    let mut buffer = [0; 64];
    matches!(socket.recv(&mut buffer), Ok(4) if buffer[..4] == round.to_be_bytes())
}

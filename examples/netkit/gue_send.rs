//! Sends any bytes as the payload of UDP, from any local address and port.
//!
//! The datagram goes out through a raw socket, so that it can bear the port of a daemon that runs:
//! what an attacker on the same machine, or behind the same NAT, could send.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{checksum, hex, report};

/// Sends `payload` (hexadecimal digits, or `@` and a file of them) `count` times.
pub(crate) fn send(
    source: SocketAddr,
    target: SocketAddr,
    payload: &str,
    count: u32,
) -> Result<()> {
    let payload = hex::bytes(&hex::text(payload)?)?;
    if source.is_ipv4() != target.is_ipv4() {
        bail!("{source} and {target} are of two families");
    }
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend(source.port().to_be_bytes());
    datagram.extend(target.port().to_be_bytes());
    let length = u16::try_from(8 + payload.len()).context("too long for a datagram")?;
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    // 0 would mean "no checksum" (RFC 768).
    let sum = match checksum::l4(source.ip(), target.ip(), 17, &datagram) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());

    let socket = Socket::new(Domain::for_address(target), Type::RAW, Some(Protocol::UDP))
        .context("cannot open a raw socket (run as root or grant CAP_NET_RAW)")?;
    socket
        .bind(&SocketAddr::new(source.ip(), 0).into())
        .with_context(|| format!("{} is no address of this machine", source.ip()))?;
    // Raw sockets take no port in the address.
    let to = SocketAddr::new(target.ip(), 0).into();
    for _ in 0..count {
        socket.send_to(&datagram, &to)?;
    }
    report::print(&json!({ "sent": count, "bytes": datagram.len() - 8 }));
    Ok(())
}

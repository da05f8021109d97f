//! ICMP and ICMPv6 echo over a raw socket.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{checksum, report};

/// Sends `count` requests, each once its predecessor was answered or given up.
pub(crate) fn ping(target: IpAddr, count: u16, timeout: Duration) -> Result<()> {
    let socket = open(target)?;
    let identifier = u16::try_from(std::process::id() & 0xffff)?;
    let (mut received, mut micros, mut error) = (0_u16, Vec::new(), None);
    for sequence in 0..count {
        let started = Instant::now();
        match exchange(&socket, target, identifier, sequence, timeout) {
            Ok(true) => {
                received += 1;
                micros.push(u64::try_from(started.elapsed().as_micros())?);
            }
            Ok(false) => {}
            Err(failure) => error = Some(failure.to_string()),
        }
    }
    report::print(
        &json!({ "sent": count, "received": received, "micros": micros, "error": error }),
    );
    Ok(())
}

/// Whether one request is answered.
pub(crate) fn answers(target: IpAddr, timeout: Duration) -> Result<bool> {
    let identifier = u16::try_from(std::process::id() & 0xffff)?;
    // An error is an ICMP error: refused.
    Ok(exchange(&open(target)?, target, identifier, 0, timeout).unwrap_or(false))
}

/// A raw socket, with the calls of a socket for datagrams.
fn open(target: IpAddr) -> Result<UdpSocket> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))
        .context("cannot open a raw socket (run as root or grant CAP_NET_RAW)")?;
    socket
        .connect(&SocketAddr::from((target, 0)).into())
        .with_context(|| format!("no route to {target}"))?;
    Ok(socket.into())
}

fn exchange(
    socket: &UdpSocket,
    target: IpAddr,
    identifier: u16,
    sequence: u16,
    timeout: Duration,
) -> std::io::Result<bool> {
    let is_ipv6 = target.is_ipv6();
    let (request, reply) = if is_ipv6 { (128, 129) } else { (8, 0) };
    let mut message = vec![request, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(*b"ovmesh netkit icmp-ping payload.");
    if !is_ipv6 {
        // The kernel fills in the checksum of ICMPv6 alone.
        let sum = checksum::internet(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
    }
    let deadline = Instant::now() + timeout;
    socket.send(&message)?;
    let mut buffer = [0; 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        let (length, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if report::is_timeout(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        // Raw IPv4 sockets see the IP header too.
        let skip = if is_ipv6 { 0 } else { usize::from(buffer[0] & 0x0f) * 4 };
        let answer = buffer.get(skip..length).unwrap_or_default();
        // Before it was connected the socket got everybody's answers, those to our own other questions too.
        let is_targets = from.ip() == target;
        if is_targets && answer.first() == Some(&reply) && answer.get(4..8) == Some(&message[4..8])
        {
            return Ok(true);
        }
    }
}

//! Guesses at authorization keys: one datagram, sent again and again with another key each time, from
//! any outer address and port.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{hex, report};

/// `IPPROTO_RAW`: the kernel takes the IP header from the packet.
const RAW: i32 = 255;

/// IPv4 header without options, UDP header, and the word of GUE before the key.
const KEY_AT: usize = 20 + 8 + 4;

/// Datagrams between two looks at the clock.
const AT_ONCE: u64 = 64;

/// What is guessed.
pub(crate) struct Guessing {
    pub(crate) source: SocketAddr,
    pub(crate) target: SocketAddr,
    /// Guesses, and how many a second; as fast as it goes for 0.
    pub(crate) count: u64,
    pub(crate) rate: u64,
    /// The guess that has the payload's own key; all others have wrong ones.
    pub(crate) right_at: u64,
}

/// Sends `payload` (a GUE header with the right key, and what follows it) with other keys.
pub(crate) fn send(guessing: &Guessing, payload: &str) -> Result<()> {
    let payload = hex::bytes(payload)?;
    let mut packet = headers(guessing.source, guessing.target, payload.len())?;
    packet.extend(payload);
    let key = packet.get(KEY_AT..).and_then(|rest| rest.first_chunk()).context("too short")?;
    let right = u32::from_be_bytes(*key);
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))
        .context("cannot open a raw socket (run as root or grant CAP_NET_RAW)")?;
    socket.set_header_included_v4(true)?;
    let to = SocketAddr::new(guessing.target.ip(), 0).into();
    let (started, mut refused, mut wrong) = (Instant::now(), 0_u64, right);
    for number in 0..guessing.count {
        if guessing.rate > 0 && number.is_multiple_of(AT_ONCE) {
            let due = Duration::from_micros(number * 1_000_000 / guessing.rate);
            report::pause(due.saturating_sub(started.elapsed()));
        }
        wrong = wrong.wrapping_add(1).max(1);
        let key = if number == guessing.right_at { right } else { wrong };
        packet[KEY_AT..KEY_AT + 4].copy_from_slice(&key.to_be_bytes());
        refused += u64::from(socket.send_to(&packet, &to).is_err());
    }
    let millis = u64::try_from(started.elapsed().as_millis())?;
    report::print(
        &json!({ "sent": guessing.count - refused, "refused": refused, "millis": millis }),
    );
    Ok(())
}

/// The outer headers, whose length, checksum and identification the kernel completes; UDP goes without a
/// checksum, as it may over IPv4.
fn headers(source: SocketAddr, target: SocketAddr, payload: usize) -> Result<Vec<u8>> {
    let (SocketAddr::V4(source), SocketAddr::V4(target)) = (source, target) else {
        bail!("only IPv4 is guessed over");
    };
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.ip().octets());
    packet.extend(target.ip().octets());
    packet.extend(source.port().to_be_bytes());
    packet.extend(target.port().to_be_bytes());
    packet.extend(u16::try_from(8 + payload)?.to_be_bytes());
    packet.extend([0, 0]);
    Ok(packet)
}

//! Sends whole IP packets as they are, their headers included: any TTL, any TOS, any source.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{hex, report};

/// `IPPROTO_RAW`: the kernel takes the IP header from the packet.
const RAW: i32 = 255;

/// Sends each packet of `packets` (hexadecimal digits, or `@` and a file with one a line) `count`
/// times. Of IPv4 the kernel completes length, checksum and an identification of 0.
pub(crate) fn send(packets: &str, count: u32) -> Result<()> {
    let mut sent = 0_u64;
    for packet in hex::lines(packets)? {
        let to = destination(&packet).context("no IP packet")?;
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(RAW)))
            .context("cannot open a raw socket (run as root or grant CAP_NET_RAW)")?;
        if to.is_ipv4() {
            socket.set_header_included_v4(true)?;
        }
        for _ in 0..count {
            socket.send_to(&packet, &to.into())?;
            sent += 1;
        }
    }
    report::print(&json!({ "sent": sent }));
    Ok(())
}

fn destination(packet: &[u8]) -> Result<SocketAddr> {
    let address = match packet.first().map(|byte| byte >> 4) {
        Some(4) => {
            let octets = packet.get(16..20).and_then(|octets| octets.first_chunk::<4>());
            IpAddr::from(Ipv4Addr::from(*octets.context("too short")?))
        }
        Some(6) => {
            let octets = packet.get(24..40).and_then(|octets| octets.first_chunk::<16>());
            IpAddr::from(Ipv6Addr::from(*octets.context("too short")?))
        }
        _ => bail!("neither IPv4 nor IPv6"),
    };
    // Raw sockets take no port in the address.
    Ok(SocketAddr::new(address, 0))
}

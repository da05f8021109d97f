//! Counts IP packets as they arrive, header bytes and all, before anybody acts on them.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::report::{self, File};

/// `ETH_P_ALL` in the byte order of the network.
const EVERYTHING: i32 = (libc::ETH_P_ALL as u16).to_be() as i32;

/// Counts packets for `address` on every device until killed:
/// `{"received": 3, "byTosTtl": {"b9/63": 3}, "marks": 1}`, both as the packet has them, the TOS
/// hexadecimal. A packet for `mark` that was counted shows that everything before it was.
pub(crate) fn count(address: IpAddr, file: &str, mark: Option<IpAddr>) -> Result<()> {
    // Cooked: from the IP header on, whatever the device.
    let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(EVERYTHING)))
        .context("cannot open a packet socket (run as root or grant CAP_NET_RAW)")?;
    socket.set_read_timeout(Some(File::INTERVAL))?;
    let (mut file, mut received, mut marks) = (File::new(file), 0_u64, 0_u64);
    let mut by_tos_ttl = BTreeMap::<String, u64>::new();
    let mut buffer = vec![0; 65_536];
    file.write(&json!({ "received": 0, "byTosTtl": {}, "marks": 0 }))?;
    report::ready();
    loop {
        match socket.read(&mut buffer) {
            Ok(length) => {
                if let Some((to, tos, ttl)) = read(&buffer[..length]) {
                    marks += u64::from(Some(to) == mark);
                    if to == address {
                        received += 1;
                        *by_tos_ttl.entry(format!("{tos:02x}/{ttl}")).or_default() += 1;
                    }
                }
            }
            Err(error) if report::is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
        file.update(|| json!({ "received": received, "byTosTtl": by_tos_ttl, "marks": marks }))?;
    }
}

/// Destination, TOS or traffic class, and TTL or hop limit.
fn read(packet: &[u8]) -> Option<(IpAddr, u8, u8)> {
    match packet.first()? >> 4 {
        4 => {
            let to = Ipv4Addr::from(*packet.get(16..)?.first_chunk::<4>()?);
            Some((to.into(), *packet.get(1)?, *packet.get(8)?))
        }
        6 => {
            let to = Ipv6Addr::from(*packet.get(24..)?.first_chunk::<16>()?);
            let class = u16::from_be_bytes(*packet.first_chunk::<2>()?) >> 4 & 0xff;
            Some((to.into(), u8::try_from(class).ok()?, *packet.get(7)?))
        }
        _ => None,
    }
}

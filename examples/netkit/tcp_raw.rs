//! TCP segments with any flag byte, and a counter of those that arrive.
//!
//! The kernel's own TCP would answer segments of no connection with RST. Where that disturbs a
//! count, silence it with a routing rule; segments sent from here carry [`MARK`] to be let out.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::checksum;
use crate::report::{self, File};

/// The firewall mark of what [`send`] sends.
const MARK: u32 = 0x6f76;

const RAW: &str = "cannot open a raw socket (run as root or grant CAP_NET_RAW)";

/// Sends `count` segments without payload; the sequence number counts them.
pub(crate) fn send(source: SocketAddr, target: SocketAddr, flags: u8, count: u32) -> Result<()> {
    if source.is_ipv4() != target.is_ipv4() {
        bail!("{source} and {target} are of two families");
    }
    let socket =
        Socket::new(Domain::for_address(target), Type::RAW, Some(Protocol::TCP)).context(RAW)?;
    socket.set_mark(MARK).context("cannot mark packets (CAP_NET_ADMIN)")?;
    socket
        .bind(&SocketAddr::new(source.ip(), 0).into())
        .with_context(|| format!("{} is no address of this machine", source.ip()))?;
    let to = SocketAddr::new(target.ip(), 0).into();
    let (mut sent, mut refused) = (0_u32, 0_u32);
    for number in 0..count {
        match socket.send_to(&segment(source, target, flags, number), &to) {
            Ok(_) => sent += 1,
            Err(_) => refused += 1,
        }
    }
    report::print(&json!({ "sent": sent, "refused": refused }));
    Ok(())
}

/// ```text
/// source port (2) | target port (2) | sequence (4) | acknowledgement (4)
/// | data offset 5 (4 bits), 0 | flags (1) | window (2) | checksum (2) | urgent (2)
/// ```
fn segment(source: SocketAddr, target: SocketAddr, flags: u8, number: u32) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(source.port().to_be_bytes());
    segment.extend(target.port().to_be_bytes());
    segment.extend((1000 + number).to_be_bytes());
    segment.extend(1_u32.to_be_bytes());
    segment.extend([5 << 4, flags]);
    segment.extend(1024_u16.to_be_bytes());
    segment.extend([0; 4]);
    let sum = checksum::l4(source.ip(), target.ip(), 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// Counts segments for `address` by flag byte, until killed: `{"total": 3, "byFlags": {"2": 3}}`.
pub(crate) fn count(address: IpAddr, file: &str, port: Option<u16>) -> Result<()> {
    let domain = Domain::for_address(SocketAddr::new(address, 0));
    let mut socket = Socket::new(domain, Type::RAW, Some(Protocol::TCP)).context(RAW)?;
    socket
        .bind(&SocketAddr::new(address, 0).into())
        .with_context(|| format!("{address} is no address of this machine"))?;
    socket.set_read_timeout(Some(File::INTERVAL))?;
    let (mut file, mut total) = (File::new(file), 0_u64);
    let mut by_flags = BTreeMap::<u8, u64>::new();
    let mut buffer = vec![0; 65_536];
    file.write(&json!({ "total": 0, "byFlags": {} }))?;
    report::ready();
    loop {
        match socket.read(&mut buffer) {
            Ok(length) => {
                // Raw IPv4 sockets see the IP header too.
                let skip = if address.is_ipv6() { 0 } else { usize::from(buffer[0] & 0x0f) * 4 };
                let segment = buffer.get(skip..length).unwrap_or_default();
                let Some(&[high, low]) = segment.get(2..4) else { continue };
                let Some(&flags) = segment.get(13) else { continue };
                if port.is_none_or(|port| port == u16::from_be_bytes([high, low])) {
                    total += 1;
                    *by_flags.entry(flags).or_default() += 1;
                }
            }
            Err(error) if report::is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
        file.update(|| json!({ "total": total, "byFlags": by_flags }))?;
    }
}

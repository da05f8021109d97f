//! UDP packets of the simulation, seen as the matcher sees them.

use std::net::IpAddr;

use crate::wire::Facts;
use crate::wire::inner::{self, Family};

/// The port that everybody serves.
pub(super) const SERVICE: u16 = 9;

/// What `from` sends to `to` in the flow that it starts from this port; with `is_reply` what it answers in
/// the flow that `to` started.
pub(super) fn udp(from: IpAddr, to: IpAddr, port: u16, is_reply: bool) -> Facts {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else { panic!("the overlay is of IPv4") };
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let (source, target) = if is_reply { (SERVICE, port) } else { (port, SERVICE) };
    packet.extend(source.to_be_bytes());
    packet.extend(target.to_be_bytes());
    packet.extend([0, 8, 0, 0]);
    inner::parse(Family::V4, &packet).expect("a good packet")
}

//! Packets as attackers and tests build them: bytes from scratch, sharing no code with the crate, so
//! that a mistake there does not hide here.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// An authorization key and an inner packet as a GUE payload, in hexadecimal digits.
pub(crate) fn gue(key: u32, inner: &[u8]) -> String {
    let protocol = if inner.first().is_some_and(|byte| byte >> 4 == 6) { 0x29 } else { 0x04 };
    let mut bytes = vec![0x01, protocol, 0x80, 0x00];
    bytes.extend(key.to_be_bytes());
    bytes.extend(inner);
    hex(&bytes)
}

/// A UDP datagram in its IP packet.
pub(crate) fn udp(source: SocketAddr, target: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut datagram = ports(source, target);
    datagram.extend(length(8 + payload.len()).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let sum = l4_checksum(source.ip(), target.ip(), 17, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(source.ip(), target.ip(), 17, &datagram)
}

/// A TCP segment without payload, with any flag byte, in its IP packet.
pub(crate) fn tcp(source: SocketAddr, target: SocketAddr, flags: u8) -> Vec<u8> {
    let mut segment = ports(source, target);
    segment.extend([0, 0, 4, 0, 0, 0, 8, 0]);
    segment.extend([5 << 4, flags]);
    segment.extend([4, 0, 0, 0, 0, 0]);
    let sum = l4_checksum(source.ip(), target.ip(), 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(source.ip(), target.ip(), 6, &segment)
}

/// Whether a flag byte opens a connection (SYN without ACK).
pub(crate) fn is_opening(flags: u8) -> bool {
    flags & 0x12 == 0x02
}

/// Whether a flag byte is nonsense (SYN with FIN or RST).
pub(crate) fn is_nonsense(flags: u8) -> bool {
    flags & 0x02 != 0 && flags & 0x05 != 0
}

fn ports(source: SocketAddr, target: SocketAddr) -> Vec<u8> {
    [source.port().to_be_bytes(), target.port().to_be_bytes()].concat()
}

/// Any payload in an IP packet without options or extension headers.
pub(crate) fn ip(source: IpAddr, target: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, target) {
        // Don't fragment.
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            ip4(source, target, protocol, 0x4000, &[], payload)
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length(payload.len()).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(source.octets());
            packet.extend(target.octets());
            packet.extend(payload);
            packet
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            panic!("{source} and {target} are of two families")
        }
    }
}

/// An IPv4 packet with any flags and fragment offset, and with options (a multiple of 4 bytes).
pub(crate) fn ip4(
    source: Ipv4Addr,
    target: Ipv4Addr,
    protocol: u8,
    fragment_word: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header_len = 20 + options.len();
    let words = u8::try_from(header_len / 4).expect("options are short");
    let mut packet = vec![0x40 | words, 0];
    packet.extend(length(header_len + payload.len()).to_be_bytes());
    // Identification 1, TTL 64.
    packet.extend([0, 1]);
    packet.extend(fragment_word.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(target.octets());
    packet.extend(options);
    let sum = internet_checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// Right again after a change: the checksum of an IPv4 header without options.
pub(crate) fn seal4(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = internet_checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("tests send small packets")
}

fn l4_checksum(source: IpAddr, target: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    for address in [source, target] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend([0, protocol]);
    bytes.extend(length(segment.len()).to_be_bytes());
    bytes.extend(segment);
    internet_checksum(&bytes)
}

/// RFC 1071.
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// Bytes of hexadecimal digits.
pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("tests write digits"))
        .collect()
}

/// Hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn built_packets_have_right_checksums() {
    let packet = udp("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:2000".parse().unwrap(), b"odd");

    // A right checksum makes the sum over everything all ones.
    assert_eq!(internet_checksum(&packet[..20]), 0);
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend([0, 17, 0, 11]);
    pseudo.extend(&packet[20..]);
    assert_eq!(internet_checksum(&pseudo), 0);
}

#[test]
fn of_64_flag_bytes_40_make_sense() {
    assert_eq!((0..64).filter(|&flags| !is_nonsense(flags)).count(), 40);
    assert_eq!((0..64).filter(|&flags| !is_nonsense(flags) && is_opening(flags)).count(), 4);
}

#[test]
fn what_is_captured_is_what_was_sent() {
    let _turn = crate::support::Turn::take();
    let world = crate::world::World::new().unwrap();
    let (a, b) = (world.machine("a").unwrap(), world.machine("b").unwrap());
    let netkit = crate::binaries().netkit.to_string_lossy().into_owned();
    let file = world.dir().join("capture.json");
    let (from, to) = (format!("{}:6080", a.ip4), format!("{}:6080", b.ip4));
    let capture = [&netkit, "udp-capture", &to, &file.to_string_lossy()];
    let capture = b.spawn("capture", &capture).unwrap();
    let soon = crate::support::SOON;
    let ready = || Ok(capture.log_text().contains("ready").then_some(()));
    crate::world::poll(soon, "the capture", ready).unwrap();

    let sent = gue(7, &tcp("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap(), 0x3f));
    a.run(&[&netkit, "gue-send", &from, &to, &sent, "3"]).unwrap().success("gue-send").unwrap();

    let mut wanted = serde_json::json!({ "received": 3, "byPayload": {} });
    wanted["byPayload"][&sent] = 3.into();
    crate::world::poll(soon, "three datagrams", || {
        let seen = crate::fleet::parse(&std::fs::read_to_string(&file)?)?;
        Ok((seen == wanted).then_some(()))
    })
    .unwrap();
}

//! The checksum of IP, ICMP, TCP and UDP (RFC 1071).

use std::net::IpAddr;

/// IPv4's ICMP is the one protocol without a pseudo header.
const ICMP: u8 = 1;

/// The checksum of `bytes`, whose own checksum field counts as it is.
pub(super) fn plain(bytes: &[u8]) -> u16 {
    fold(sum(bytes))
}

/// The checksum of what stands above IP, whose own checksum field counts as it is, with the pseudo header
/// of its addresses where the protocol has one.
pub(super) fn upper(from: IpAddr, to: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let mut total = sum(bytes);
    if protocol != ICMP {
        total += address(from) + address(to);
        total += u64::from(protocol) + u64::try_from(bytes.len()).unwrap_or(u64::MAX >> 1);
    }
    fold(total)
}

fn address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    }
}

/// The sum of `bytes` as big-endian words, not folded yet.
fn sum(bytes: &[u8]) -> u64 {
    let (words, last) = bytes.as_chunks::<2>();
    let whole: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    whole + last.iter().map(|byte| u64::from(*byte) << 8).sum::<u64>()
}

/// The checksum of which `sum` is the sum.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

//! The Internet checksum (RFC 1071), with the pseudo headers of both IP families.

use std::net::IpAddr;

/// The checksum of an L4 `segment` between two addresses of the same family, with its own checksum
/// field 0 (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(crate) fn l4(source: IpAddr, target: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut bytes = Vec::with_capacity(segment.len() + 40);
    for address in [source, target] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    let length = u32::try_from(segment.len()).expect("a segment fits a packet");
    // IPv4 has one zero byte and a 16-bit length; the sum is the same as with IPv6's fields.
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(segment);
    internet(&bytes)
}

/// The checksum of `bytes` alone.
pub(crate) fn internet(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u64::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

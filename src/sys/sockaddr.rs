//! Socket addresses as the kernel lays them out, built and read without pointers.
//!
//! ```text
//! IPv4  family(2, native) port(2) address(4) zero(8)                     16 bytes
//! IPv6  family(2, native) port(2) flow(4) address(16) scope(4, native)   28 bytes
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

const V4_LEN: usize = 16;
const V6_LEN: usize = 28;

const _: () = assert!(size_of::<libc::sockaddr_in>() == V4_LEN);
const _: () = assert!(size_of::<libc::sockaddr_in6>() == V6_LEN);
const _: () = assert!(align_of::<RawAddress>() >= align_of::<libc::sockaddr_in6>());

/// A `sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct RawAddress([u8; V6_LEN]);

impl RawAddress {
    pub(super) const EMPTY: Self = Self([0; V6_LEN]);

    /// Room in bytes, for the kernel to write into.
    pub(super) const CAPACITY: libc::socklen_t = V6_LEN as libc::socklen_t;

    /// Lays `address` out for a socket of family IPv6 (`is_v6`, IPv4 addresses become mapped ones)
    /// or IPv4. The length comes with it; `None` for an IPv6 address on an IPv4 socket.
    pub(super) fn encode(address: SocketAddr, is_v6: bool) -> Option<(Self, libc::socklen_t)> {
        let mut raw = [0; V6_LEN];
        if is_v6 {
            let (ip, flow, scope) = match address {
                SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0, 0),
                SocketAddr::V6(v6) => (*v6.ip(), v6.flowinfo(), v6.scope_id()),
            };
            raw[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            raw[2..4].copy_from_slice(&address.port().to_be_bytes());
            raw[4..8].copy_from_slice(&flow.to_be_bytes());
            raw[8..24].copy_from_slice(&ip.octets());
            raw[24..28].copy_from_slice(&scope.to_ne_bytes());
            return Some((Self(raw), V6_LEN as libc::socklen_t));
        }
        let IpAddr::V4(ip) = address.ip().to_canonical() else { return None };
        raw[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        raw[2..4].copy_from_slice(&address.port().to_be_bytes());
        raw[4..8].copy_from_slice(&ip.octets());
        Some((Self(raw), V4_LEN as libc::socklen_t))
    }

    /// Reads what the kernel wrote; mapped addresses come out as plain IPv4. `None` when it is of
    /// neither family.
    pub(super) fn decode(&self) -> Option<SocketAddr> {
        let raw = &self.0;
        let family = i32::from(u16::from_ne_bytes([raw[0], raw[1]]));
        let port = u16::from_be_bytes([raw[2], raw[3]]);
        if family == libc::AF_INET {
            let ip = Ipv4Addr::new(raw[4], raw[5], raw[6], raw[7]);
            return Some(SocketAddr::from((ip, port)));
        }
        if family != libc::AF_INET6 {
            return None;
        }
        let ip = Ipv6Addr::from(<[u8; 16]>::try_from(&raw[8..24]).ok()?);
        if let Some(v4) = ip.to_ipv4_mapped() {
            return Some(SocketAddr::from((v4, port)));
        }
        // The scope tells link-local peers on two interfaces apart; elsewhere the kernel writes 0.
        let scope = u32::from_ne_bytes([raw[24], raw[25], raw[26], raw[27]]);
        Some(SocketAddrV6::new(ip, port, 0, scope).into())
    }

    pub(super) fn as_ptr(&self) -> *const libc::c_void {
        self.0.as_ptr().cast()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_in_both_kinds_of_socket() {
        for text in ["192.0.2.7:6080", "[2001:db8::7]:6080", "[fe80::1%3]:1"] {
            let address: SocketAddr = text.parse().unwrap();
            let (raw, len) = RawAddress::encode(address, true).unwrap();
            assert_eq!(raw.decode(), Some(address), "{text}");
            assert_eq!(len, 28);
        }
        let v4: SocketAddr = "192.0.2.7:6080".parse().unwrap();
        let (raw, len) = RawAddress::encode(v4, false).unwrap();
        assert_eq!((raw.decode(), len), (Some(v4), 16));
    }

    #[test]
    fn an_ipv6_address_has_no_form_for_an_ipv4_socket() {
        assert!(RawAddress::encode("[2001:db8::7]:1".parse().unwrap(), false).is_none());
        assert!(RawAddress::encode("[::ffff:192.0.2.7]:1".parse().unwrap(), false).is_some());
        assert_eq!(RawAddress::EMPTY.decode(), None);
    }
}

//! One ICMP echo at a time (RFC 792, RFC 4443): whether a host answers, and how fast.
//!
//! By a socket that the kernel lets some groups have (`net.ipv4.ping_group_range`), else by a raw one, which
//! needs CAP_NET_RAW. Requests are told from others' by what they carry, so that both kinds are read alike.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng as _;
use socket2::{Domain, Protocol, Socket, Type};

use super::SysError;
use super::offload::checksum::Sum;

/// Type of an echo request, and of its reply, in each family.
const V4: [u8; 2] = [8, 0];
const V6: [u8; 2] = [128, 129];

/// Type, code, checksum, identifier, sequence number.
const HEADER_LEN: usize = 8;

/// What one request carries.
const TOKEN_LEN: usize = 16;

/// A socket for echo requests to one host.
#[derive(Debug)]
pub struct Echo {
    socket: Socket,
    types: [u8; 2],
    sequence: u16,
}

impl Echo {
    /// A socket for `to`.
    ///
    /// # Errors
    ///
    /// When this process may have none, or there is no way to that address.
    pub fn open(to: IpAddr) -> Result<Self, SysError> {
        let what = || format!("cannot send echo requests to {to}");
        let (domain, protocol, types) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, V4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, V6),
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol))
            .or_else(|_| Socket::new(domain, Type::RAW, Some(protocol)))
            .map_err(|error| SysError::new(what(), error).fix("run it as root"))?;
        // Connected, it hears of no other host, and of what ICMP says about this one.
        socket
            .connect(&SocketAddr::new(to, 0).into())
            .map_err(|error| SysError::new(what(), error))?;
        Ok(Self { socket, types, sequence: 0 })
    }

    /// Sends one request, and waits for its reply.
    ///
    /// # Errors
    ///
    /// `TimedOut` without a reply `within` that time; what ICMP or the kernel says otherwise.
    pub fn ask(&mut self, within: Duration) -> io::Result<Duration> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut token = [0; TOKEN_LEN];
        rand::rng().fill_bytes(&mut token);
        let request = request(self.types, self.sequence, token);
        let begun = Instant::now();
        self.socket.send(&request)?;
        loop {
            let left = within.checked_sub(begun.elapsed()).filter(|left| !left.is_zero());
            let left = left.ok_or(io::ErrorKind::TimedOut)?;
            self.socket.set_read_timeout(Some(left))?;
            let mut buffer = [0; 256];
            match (&self.socket).read(&mut buffer) {
                Ok(len) if is_reply(self.types, buffer.get(..len).unwrap_or_default(), &token) => {
                    return Ok(begun.elapsed());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The identifier is left to the kernel where it has its own; so is the checksum of ICMPv6.
fn request([kind, _]: [u8; 2], sequence: u16, token: [u8; TOKEN_LEN]) -> Vec<u8> {
    let identifier = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
    let build = |sum: [u8; 2]| {
        let head = [&[kind, 0][..], &sum, &identifier.to_be_bytes(), &sequence.to_be_bytes()];
        [&head.concat()[..], &token].concat()
    };
    build(Sum::default().bytes(&build([0; 2])).checksum().to_be_bytes())
}

/// Whether `bytes` answer the request that carried `token`. Raw sockets of IPv4 have the IP header in front.
fn is_reply([_, kind]: [u8; 2], bytes: &[u8], token: &[u8; TOKEN_LEN]) -> bool {
    let message = match bytes.first() {
        Some(first) if kind == V4[1] && first >> 4 == 4 => {
            bytes.get(usize::from(first & 0xf) * 4..).unwrap_or_default()
        }
        _ => bytes,
    };
    message.first() == Some(&kind) && message.get(HEADER_LEN..) == Some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_known_with_and_without_an_ip_header_and_nothing_else_is() {
        let token = [7; TOKEN_LEN];
        for types in [V4, V6] {
            let request = request(types, 1, token);
            assert!(!is_reply(types, &request, &token), "a request is no reply");
            let mut reply = request;
            reply[0] = types[1];
            assert!(is_reply(types, &reply, &token));
            assert!(!is_reply(types, &reply, &[8; TOKEN_LEN]));
            let behind = [&[0x45; 20][..], &reply].concat();
            assert_eq!(is_reply(types, &behind, &token), types == V4);
            for len in 0..reply.len() {
                assert!(!is_reply(types, &reply[..len], &token));
            }
        }
    }

    #[test]
    fn the_request_sums_to_nothing() {
        assert_eq!(Sum::default().bytes(&request(V4, 3, [9; TOKEN_LEN])).checksum(), 0);
    }
}

//! Whether anybody changed the packet filter: nf_tables counts its transactions.

use std::io;

use socket2::{Domain, Protocol, Socket, Type};

const AF_NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;
const SUBSYSTEM: u16 = 10 << 8;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
const REQUEST: u16 = 1;
const ATTRIBUTE_ID: u16 = 1;

/// A netlink header, and what nf_tables puts behind it: family, version, resource.
const HEADER_LEN: usize = 16;
const PREFIX_LEN: usize = HEADER_LEN + 4;

/// The number of the last transaction in this network namespace. It changes with every change of every
/// table, and with nothing else.
///
/// # Errors
///
/// When there is no nf_tables here, or the right to ask is missing.
pub fn generation() -> io::Result<u32> {
    let socket =
        Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_NETFILTER)))?;
    socket.send(&request())?;
    // The kernel has answered by the time that send returns.
    socket.set_nonblocking(true)?;
    let mut answer = [0; 512];
    let len = io::Read::read(&mut &socket, &mut answer)?;
    read_answer(answer.get(..len).unwrap_or_default())
}

fn request() -> Vec<u8> {
    let mut request = Vec::with_capacity(PREFIX_LEN);
    request.extend(u32::try_from(PREFIX_LEN).unwrap_or_default().to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    request.extend(REQUEST.to_ne_bytes());
    // Sequence and port, then family, version and resource: all 0.
    request.resize(PREFIX_LEN, 0);
    request
}

fn read_answer(answer: &[u8]) -> io::Result<u32> {
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "nf_tables answered strangely");
    let kind = u16_at(answer, 4).ok_or_else(strange)?;
    if kind != NEW_GENERATION {
        // An error message has the number behind its header.
        let code = answer.get(HEADER_LEN..HEADER_LEN + 4).and_then(|code| code.try_into().ok());
        return Err(code
            .map(i32::from_ne_bytes)
            .filter(|code| *code < 0)
            .map_or_else(strange, |code| io::Error::from_raw_os_error(code.wrapping_neg())));
    }
    let mut attributes = answer.get(PREFIX_LEN..).unwrap_or_default();
    while let Some(len) = u16_at(attributes, 0).map(usize::from).filter(|len| *len >= 4) {
        if u16_at(attributes, 2) == Some(ATTRIBUTE_ID) {
            let id = attributes.get(4..8).and_then(|id| id.try_into().ok());
            return id.map(u32::from_be_bytes).ok_or_else(strange);
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(strange())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, rest: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADER_LEN];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.extend(rest);
        message
    }

    #[test]
    fn the_generation_is_found_among_attributes() {
        let mut rest = vec![0; 4];
        // Another attribute of 5 bytes and its padding, then ours.
        rest.extend(5_u16.to_ne_bytes());
        rest.extend(9_u16.to_ne_bytes());
        rest.extend([1, 0, 0, 0]);
        rest.extend(8_u16.to_ne_bytes());
        rest.extend(ATTRIBUTE_ID.to_ne_bytes());
        rest.extend(77_u32.to_be_bytes());

        assert_eq!(read_answer(&message(NEW_GENERATION, &rest)).unwrap(), 77);
    }

    #[test]
    fn refusals_and_nonsense_are_errors() {
        let refused = message(2, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(read_answer(&refused).unwrap_err().raw_os_error(), Some(libc::EPERM));
        for strange in [vec![], vec![0; 9], message(NEW_GENERATION, &[]), message(2, &[0; 4])] {
            assert_eq!(read_answer(&strange).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}

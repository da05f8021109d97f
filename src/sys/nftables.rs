//! The packet filter: whether anybody changed it (nf_tables counts its transactions), and the few messages that
//! make a table of our own.
//!
//! Numbers are those of the kernel's `linux/netfilter/nf_tables.h` and `nfnetlink.h`.

use std::io;

use socket2::{Domain, Protocol, Socket, Type};

const AF_NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;
const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const NESTED: u16 = 0x8000;
const ATTRIBUTE_ID: u16 = 1;

/// Families: none, and `inet`, which is both.
const AF_UNSPEC: u8 = 0;
const AF_INET_BOTH: u8 = 1;

/// The register that expressions pass values in.
const REGISTER: u32 = 1;

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
    let socket = open()?;
    socket.send(&Message { kind: GET_GENERATION, flags: 0, body: Vec::new() }.bytes(AF_UNSPEC))?;
    // The kernel has answered by the time that send returns.
    let mut answer = [0; 512];
    let len = io::Read::read(&mut &socket, &mut answer)?;
    read_answer(answer.get(..len).unwrap_or_default())
}

/// A socket that tables can belong to.
pub(super) fn open() -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_NETFILTER)))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Carries out all of `batch`, or nothing.
pub(super) fn commit(socket: &Socket, batch: &[Message]) -> io::Result<()> {
    let frame = |kind| {
        // The subsystem stands where other messages have nothing.
        let mut bytes = Message { kind, flags: 0, body: Vec::new() }.bytes(AF_UNSPEC);
        if let Some(resource) = bytes.get_mut(HEADER_LEN + 2..PREFIX_LEN) {
            resource.copy_from_slice(&(SUBSYSTEM >> 8).to_be_bytes());
        }
        bytes
    };
    let mut bytes = frame(BATCH_BEGIN);
    for message in batch {
        bytes.extend(message.bytes(AF_INET_BOTH));
    }
    bytes.extend(frame(BATCH_END));
    socket.send(&bytes)?;
    // By now the kernel has answered every message.
    let mut answers = 0;
    let mut answer = [0; 4096];
    loop {
        let len = match io::Read::read(&mut &*socket, &mut answer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        };
        let answer = answer.get(..len).unwrap_or_default();
        if u16_at(answer, 4) == Some(ERROR) {
            match error_code(answer) {
                Some(0) => answers += 1,
                code => return Err(code.map_or_else(strange, io::Error::from_raw_os_error)),
            }
        }
    }
    if answers == batch.len() { Ok(()) } else { Err(strange()) }
}

fn read_answer(answer: &[u8]) -> io::Result<u32> {
    let kind = u16_at(answer, 4).ok_or_else(strange)?;
    if kind != NEW_GENERATION {
        let code = error_code(answer).filter(|code| *code > 0);
        return Err(code.map_or_else(strange, io::Error::from_raw_os_error));
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

/// The number of an error, 0 for none: an error message has it, negative, behind its header.
fn error_code(answer: &[u8]) -> Option<i32> {
    let code = answer.get(HEADER_LEN..HEADER_LEN + 4)?.try_into().ok()?;
    Some(i32::from_ne_bytes(code).wrapping_neg())
}

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "nf_tables answered strangely")
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    /// Makes a table.
    pub(super) fn add_table(table: &str, flags: u32) -> Self {
        let body = [text(1, table), number(2, flags)].concat();
        Self { kind: NEW_TABLE, flags: ACKNOWLEDGE | CREATE, body }
    }

    /// Takes a table away, with all that is in it.
    pub(super) fn remove_table(table: &str) -> Self {
        Self { kind: DELETE_TABLE, flags: ACKNOWLEDGE, body: text(1, table) }
    }

    /// Makes a chain at a hook.
    pub(super) fn add_chain(
        table: &str,
        chain: &str,
        kind: &str,
        hook: u32,
        priority: i32,
    ) -> Self {
        let hook = [number(1, hook), attribute(2, &priority.to_be_bytes())].concat();
        let body = [text(1, table), text(3, chain), nested(4, &hook), text(7, kind)].concat();
        Self { kind: NEW_CHAIN, flags: ACKNOWLEDGE | CREATE, body }
    }

    /// Adds a rule at the end of a chain.
    pub(super) fn add_rule(table: &str, chain: &str, rule: &[Expression]) -> Self {
        let expressions: Vec<u8> =
            rule.iter().flat_map(|expression| nested(1, &expression.bytes())).collect();
        let body = [text(1, table), text(2, chain), nested(4, &expressions)].concat();
        Self { kind: NEW_RULE, flags: ACKNOWLEDGE | CREATE | APPEND, body }
    }

    fn bytes(&self, family: u8) -> Vec<u8> {
        let len = PREFIX_LEN + self.body.len();
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(u32::try_from(len).unwrap_or_default().to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((REQUEST | self.flags).to_ne_bytes());
        // Sequence and port, which nobody asks for; then family, version and resource.
        bytes.extend([0; 8]);
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(&self.body);
        bytes
    }
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Mark = 3,
    Family = 15,
    Protocol = 16,
}

/// A step of a rule; a comparison that fails ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads what is known of the packet.
    Meta(Key),
    /// Loads a part of the IP header.
    NetworkHeader { offset: u32, len: u32 },
    /// Loads a part of the header behind.
    TransportHeader { offset: u32, len: u32 },
    /// Compares what was loaded.
    Is(Vec<u8>),
    /// As [`Self::Is`], the other way round.
    IsNot(Vec<u8>),
    /// Loads a port.
    Port(u16),
    /// Sends the packet to this machine, to the port that was loaded.
    Redirect,
}

impl Expression {
    fn bytes(&self) -> Vec<u8> {
        let value = |value: &[u8]| attribute(1, value);
        let header = |base, offset, len| {
            [number(1, REGISTER), number(2, base), number(3, offset), number(4, len)].concat()
        };
        let compare = |operation, with: &[u8]| {
            [number(1, REGISTER), number(2, operation), nested(3, &value(with))].concat()
        };
        let (name, data) = match self {
            Self::Meta(key) => ("meta", [number(1, REGISTER), number(2, *key as u32)].concat()),
            Self::NetworkHeader { offset, len } => ("payload", header(1, *offset, *len)),
            Self::TransportHeader { offset, len } => ("payload", header(2, *offset, *len)),
            Self::Is(with) => ("cmp", compare(0, with)),
            Self::IsNot(with) => ("cmp", compare(1, with)),
            Self::Port(port) => {
                let port = nested(2, &value(&port.to_be_bytes()));
                ("immediate", [number(1, REGISTER), port].concat())
            }
            Self::Redirect => ("redir", number(1, REGISTER)),
        };
        [text(1, name), nested(2, &data)].concat()
    }
}

/// An attribute: its length and kind, its value, and what fills it up to whole words.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = 4 + value.len();
    let mut bytes = Vec::with_capacity(len.next_multiple_of(4));
    bytes.extend(u16::try_from(len).unwrap_or_default().to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(len.next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, value)
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
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
    #[test]
    fn messages_say_their_length_and_values_fill_words() {
        let table = Message::add_table("abcd", 2).bytes(AF_INET_BOTH);

        assert_eq!(table.len(), usize::from(u16_at(&table, 0).unwrap()));
        assert_eq!(u16_at(&table, 4), Some(NEW_TABLE));
        // A name of five bytes with its end takes eight, and says nine with its head.
        let name = [9, 0, 1, 0, b'a', b'b', b'c', b'd', 0, 0, 0, 0];
        assert_eq!(table.get(PREFIX_LEN..PREFIX_LEN + 12).unwrap(), name);
        assert_eq!(table.get(PREFIX_LEN + 12..).unwrap(), [8, 0, 2, 0, 0, 0, 0, 2]);
    }
}

//! DNS messages, as much as a small server needs (RFC 1035, EDNS of RFC 6891). Bytes in, bytes out.
//!
//! Of a query the header, its one question and an OPT record are read; nothing is followed, so no
//! pointer can loop. Answers are written without compression but for the question's own name.

use std::net::IpAddr;

/// The longest message over TCP.
pub(super) const MESSAGE_MAX: usize = 65_535;

/// The longest datagram to who asks without EDNS, and what we take and promise with it.
const PLAIN_MAX: usize = 512;
const EDNS_MAX: u16 = 1232;

/// The longest datagram that is taken from another resolver, unless more was asked for.
const FORWARDED_MAX: usize = 4096;

/// Length of a header.
const HEADER: usize = 12;

/// How long answers may be kept, in seconds: tables change at any time.
const TTL_SECS: u32 = 5;

/// Types of records.
pub(super) const A: u16 = 1;
pub(super) const NS: u16 = 2;
const SOA: u16 = 6;
pub(super) const PTR: u16 = 12;
pub(super) const AAAA: u16 = 28;
pub(super) const SRV: u16 = 33;
const OPT: u16 = 41;
/// Every type.
pub(super) const ANY: u16 = 255;

/// The class of everything here.
const IN: u16 = 1;

/// A standard query, in a header's flags.
const OPERATION: u16 = 0x7800;

/// A question, and what its asker can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query {
    id: u16,
    wants_recursion: bool,
    /// The labels in lower case, with dots between and none at the end.
    pub(super) name: String,
    /// Which type of records.
    pub(super) kind: u16,
    /// Whether it is a plain question of the internet's class: everything that we have answers to.
    pub(super) is_plain: bool,
    /// The question as it came.
    question: Vec<u8>,
    /// The longest datagram that the asker takes, when it speaks EDNS.
    edns: Option<u16>,
}

/// Why a message is answered with nothing but a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// Fine, even when there is nothing.
    Ok = 0,
    /// The question cannot be read.
    Malformed = 1,
    /// We could not find out.
    Failed = 2,
    /// There is no such name.
    NoName = 3,
    /// An operation that we do not do.
    Unknown = 4,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) code: Code,
    pub(super) records: Vec<Record>,
    /// Addresses of hosts that `records` name: told where they fit.
    pub(super) hosts: Vec<(String, IpAddr)>,
}

/// A record about the name that was asked for. Names have dots between labels, and none at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// A or AAAA.
    Address(IpAddr),
    /// A name, for PTR.
    Name(String),
    /// A port of a host, for SRV (RFC 2782): all are alike.
    Place { port: u16, host: String },
}

/// Whether an answer has records and no complaint.
pub(super) fn has_records(answer: &[u8]) -> bool {
    let (flags, records) = (u16_at(answer, 2), u16_at(answer, 6));
    flags.is_some_and(|flags| flags & 0x000f == 0) && records.is_some_and(|records| records > 0)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

impl Query {
    /// Reads a query. What is none at all has no answer; what is none that we understand has a code.
    pub(super) fn parse(message: &[u8]) -> Result<Self, Option<Vec<u8>>> {
        let (Some(id), Some(flags)) = (u16_at(message, 0), u16_at(message, 2)) else {
            return Err(None);
        };
        if flags & 0x8000 != 0 || message.len() < HEADER {
            // Never answer an answer.
            return Err(None);
        }
        let wants_recursion = flags & 0x0100 != 0;
        let refuse = |code| Err(Some(refusal(id, wants_recursion, code)));
        if u16_at(message, 4) != Some(1) {
            return refuse(Code::Malformed);
        }
        let Some((name, after)) = read_name(message, HEADER) else {
            return refuse(Code::Malformed);
        };
        let (Some(kind), Some(class), Some(question)) =
            (u16_at(message, after), u16_at(message, after + 2), message.get(HEADER..after + 4))
        else {
            return refuse(Code::Malformed);
        };
        let is_plain = flags & OPERATION == 0 && class == IN;
        let question = question.to_vec();
        let edns = edns(message, after + 4);
        Ok(Self { id, wants_recursion, name, kind, is_plain, question, edns })
    }

    /// The longest datagram that another resolver may answer with.
    pub(super) fn forwarded_max(&self) -> usize {
        FORWARDED_MAX.max(self.edns.map_or(0, usize::from))
    }

    /// The message that asks for `name`, and how to know its answer.
    pub(super) fn new(id: u16, name: &str, kind: u16) -> Option<(Self, Vec<u8>)> {
        // Recursion is desired; one question.
        let mut message = Vec::with_capacity(HEADER + name.len() + 6);
        for field in [id, 0x0100, 1, 0, 0, 0] {
            message.extend(field.to_be_bytes());
        }
        message.extend(encode(name));
        message.extend(kind.to_be_bytes());
        message.extend(IN.to_be_bytes());
        Self::parse(&message).ok().map(|query| (query, message))
    }

    /// The longest datagram that may answer it.
    pub(super) fn datagram_max(&self) -> usize {
        let takes = self.edns.map_or(PLAIN_MAX, usize::from);
        takes.clamp(PLAIN_MAX, EDNS_MAX.into())
    }

    /// The answer, at most `max` bytes long: what does not fit is left out and the answer says so.
    pub(super) fn answer(&self, answer: &Answer, zone: &str, max: usize) -> Vec<u8> {
        let Answer { code, records, hosts } = answer;
        let mut body = Vec::new();
        let mut counts = [1_u16, 0, 0, 0];
        let opt_len = if self.edns.is_some() { 11 } else { 0 };
        let room = max.saturating_sub(HEADER + self.question.len() + opt_len);
        let mut is_cut = false;
        for record in records {
            let record = self.record(record);
            if body.len() + record.len() > room {
                is_cut = true;
                break;
            }
            body.extend(record);
            counts[1] += 1;
        }
        if records.is_empty() {
            // How long this nothing may be remembered.
            let record = start_of_authority(zone);
            if record.len() <= room {
                body.extend(record);
                counts[2] += 1;
            }
        }
        // Whoever misses one of these asks for it.
        for (host, address) in hosts.iter().filter(|_| !is_cut) {
            let record = [encode(host), address_record(*address)].concat();
            if body.len() + record.len() <= room {
                body.extend(record);
                counts[3] += 1;
            }
        }
        if self.edns.is_some() {
            body.push(0);
            body.extend(OPT.to_be_bytes());
            body.extend(EDNS_MAX.to_be_bytes());
            body.extend([0; 6]);
            counts[3] += 1;
        }
        let mut message = header(self.id, self.wants_recursion, *code, is_cut, counts);
        message.extend_from_slice(&self.question);
        message.extend(body);
        message
    }

    /// The answer that is nothing but a code.
    pub(super) fn refusal(&self, code: Code) -> Vec<u8> {
        let counts = [1, 0, 0, 0];
        let mut message = header(self.id, self.wants_recursion, code, false, counts);
        message.extend_from_slice(&self.question);
        message
    }

    /// Whether `message` answers this question.
    pub(super) fn is_answered_by(&self, message: &[u8]) -> bool {
        let asked = message.get(HEADER..HEADER + self.question.len());
        // Answers to updates need not repeat what they answer.
        let is_bare = !self.is_plain && u16_at(message, 4) == Some(0);
        u16_at(message, 0) == Some(self.id)
            && u16_at(message, 2).is_some_and(|flags| flags & 0x8000 != 0)
            && (is_bare || asked.is_some_and(|asked| asked.eq_ignore_ascii_case(&self.question)))
    }

    fn record(&self, record: &Record) -> Vec<u8> {
        let about = match record {
            Record::Address(address) => address_record(*address),
            Record::Name(name) => rest(PTR, &encode(name)),
            Record::Place { port, host } => {
                // Priority and weight come first.
                let place = [0_u16, 0, *port].map(u16::to_be_bytes).concat();
                rest(SRV, &[place, encode(host)].concat())
            }
        };
        // A pointer to the question's name, which stands behind the header.
        let mut bytes = vec![0xc0, HEADER as u8];
        bytes.extend(about);
        bytes
    }
}

/// An address, behind the name that has it.
fn address_record(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => rest(A, &address.octets()),
        IpAddr::V6(address) => rest(AAAA, &address.octets()),
    }
}

/// What stands behind a record's name.
fn rest(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10 + data.len());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(IN.to_be_bytes());
    bytes.extend(TTL_SECS.to_be_bytes());
    bytes.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn start_of_authority(zone: &str) -> Vec<u8> {
    let mut data = encode(zone);
    data.extend(encode(zone));
    for number in [1, 3600, 600, 86_400, TTL_SECS] {
        data.extend(number.to_be_bytes());
    }
    let mut bytes = encode(zone);
    bytes.extend(rest(SOA, &data));
    bytes
}

fn header(id: u16, recursion: bool, code: Code, is_cut: bool, counts: [u16; 4]) -> Vec<u8> {
    // An answer; recursion is available, because the rest is passed on.
    let mut flags = 0x8080 | code as u16;
    for (is_set, bit) in [(recursion, 0x0100), (is_cut, 0x0200)] {
        if is_set {
            flags |= bit;
        }
    }
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend(id.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    counts.iter().for_each(|count| bytes.extend(count.to_be_bytes()));
    bytes
}

fn refusal(id: u16, recursion: bool, code: Code) -> Vec<u8> {
    header(id, recursion, code, false, [0; 4])
}

/// Reads a name without pointers; also says where it ends.
fn read_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1;
        match len {
            0 => return Some((name, at)),
            1..=63 if name.len() + len < 255 => {}
            _ => return None,
        }
        if !name.is_empty() {
            name.push('.');
        }
        for &byte in message.get(at..at + len)? {
            // Others than letters are looked up elsewhere: they are in no name of ours.
            let is_plain = byte.is_ascii_graphic() && byte != b'.';
            name.push(if is_plain { byte.to_ascii_lowercase().into() } else { '?' });
        }
        at += len;
    }
}

/// The datagram size of an OPT record that stands where `at` is: right behind the question, as
/// stub resolvers write it.
fn edns(message: &[u8], at: usize) -> Option<u16> {
    let has_others = (u16_at(message, 6)?, u16_at(message, 8)?) != (0, 0);
    let is_root = message.get(at) == Some(&0);
    if has_others || u16_at(message, 10)? == 0 || !is_root || u16_at(message, at + 1)? != OPT {
        return None;
    }
    u16_at(message, at + 3)
}

/// A name as labels; labels that are too long are cut, which no name of ours is.
fn encode(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = label.as_bytes();
        let label = label.get(..63).unwrap_or(label);
        bytes.push(label.len() as u8);
        bytes.extend(label);
    }
    bytes.push(0);
    bytes
}

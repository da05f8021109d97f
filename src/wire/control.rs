//! Control messages between `ovd` and `ovsap`: ctype 255, our ExID, a counter and a MAC.
//!
//! ```text
//! 21 ff 80 00 LINK(4) | ExID(4) | 01 | subtype | body length(2) | body | MAC(16)
//! body of an echo: counter(8) | sequence(4) | 00 00 00 00 | sent(8) | about(4) lost(1) translated(1) 00 00
//!                  | cookie(8)
//! bodies of notices: see [`super::notice`]
//! ```
//!
//! The MAC is HMAC-SHA-256 under the link's secret, truncated to 128 bits, over everything before
//! it. A reply is as long as its request, so that nobody is made to send more than he received.

use ring::hmac;
use subtle::ConstantTimeEq as _;

use super::gue;
use super::inner::Quoted;
use super::notice::{DENIED_LEN, Denied, NO_PATH_LEN, NoPath, TOO_BIG_LEN, TooBig};
use super::notice::{decode_flow, encode_flow};
use crate::types::{DropReason, LinkId, NodeId, Secret};

/// What a control message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Subtype 1: asks for an echo. With the cookie of a reply or challenge it proves where the sender is.
    EchoRequest(Echo),
    /// Subtype 2: answers one, with the same body and the responder's times.
    EchoReply(Echo),
    /// Subtype 3, from a SaP to the entity that sent the packet: its flow was refused.
    Denied(Denied),
    /// Subtype 4, from a destination to the SaP that brought the packet: the same, to be passed on. A
    /// subtype of its own, so that neither end takes its own message for the other's.
    Refused(Denied),
    /// Subtype 5, from a SaP to the entity that sent the packet: the packet was too long.
    TooBig(TooBig),
    /// Subtype 6, from a SaP to an entity that sends to another one: that one went silent.
    NoPath(NoPath),
    /// Subtype 7, from an entity to the SaP that it moves to: a flow that it started, so that replies pass
    /// there though no packet of the starter came by yet.
    Started(Quoted),
    /// Subtype 8, from a SaP to where an echo request came from that proves nothing: the same body, with a
    /// cookie to bring along.
    Challenge(Echo),
}

/// The body of an echo, 40 bytes both ways, so that no answer is longer than its question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echo {
    /// Counts the requests of the sender; the reply repeats it.
    pub sequence: u32,
    /// When the request left, in nanoseconds of the requester's own clock; opaque to the peer.
    pub sent_nanos: u64,
    /// Another entity that the requester asks about; the reply repeats it.
    pub about: Option<NodeId>,
    /// In a reply: whether that entity is silent, or no business of this SaP.
    pub is_lost: bool,
    /// In a reply: whether the request came from an endpoint that the requester did not say: somebody
    /// translates.
    pub is_translated: bool,
    /// In a request: what the SaP gave last, 0 before that. In a reply or challenge: what to bring next.
    pub cookie: u64,
}

/// The longest control message, in bytes.
pub const MAX_LEN: usize = 128;

/// The layout's version.
const VERSION: u8 = 1;

const ECHO_REQUEST: u8 = 1;
const ECHO_REPLY: u8 = 2;
const DENIED: u8 = 3;
const REFUSED: u8 = 4;
const TOO_BIG: u8 = 5;
const NO_PATH: u8 = 6;
const STARTED: u8 = 7;
const CHALLENGE: u8 = 8;

/// GUE header, experiment id, version, subtype, body length.
const HEAD_LEN: usize = gue::HEADER_LEN + 8;

/// Bytes of an echo's body, the counter included.
const ECHO_LEN: usize = 40;

/// Bytes of the counter that every body starts with.
const COUNTER_LEN: usize = 8;

/// HMAC-SHA-256 cut to 128 bits.
const MAC_LEN: usize = 16;

const _: () = assert!(MAC_LEN <= ring::digest::SHA256_OUTPUT_LEN);
const _: () = assert!(HEAD_LEN + ECHO_LEN + MAC_LEN <= MAX_LEN);
const _: () = assert!(HEAD_LEN + COUNTER_LEN + DENIED_LEN + MAC_LEN <= MAX_LEN);
const _: () = assert!(TOO_BIG_LEN <= DENIED_LEN && NO_PATH_LEN <= DENIED_LEN);

/// Encodes and signs a message into a buffer; returns it with its length in bytes. A refusal for a
/// reason that is never told ([`super::notice::REASONS`]) has no form: its length is 0.
///
/// `counter` must grow with every message of this direction of this link.
#[must_use]
pub fn encode(
    link: LinkId,
    secret: &Secret,
    counter: u64,
    message: &Message,
) -> ([u8; MAX_LEN], usize) {
    match message {
        Message::EchoRequest(echo) => sign(link, secret, counter, ECHO_REQUEST, &echo.encode()),
        Message::EchoReply(echo) => sign(link, secret, counter, ECHO_REPLY, &echo.encode()),
        Message::Challenge(echo) => sign(link, secret, counter, CHALLENGE, &echo.encode()),
        Message::TooBig(too_big) => sign(link, secret, counter, TOO_BIG, &too_big.encode()),
        Message::NoPath(no_path) => sign(link, secret, counter, NO_PATH, &no_path.encode()),
        Message::Started(flow) => sign(link, secret, counter, STARTED, &encode_flow(flow)),
        Message::Denied(denied) | Message::Refused(denied) => {
            let is_relayed = matches!(message, Message::Refused(_));
            let subtype = if is_relayed { REFUSED } else { DENIED };
            match denied.encode() {
                Some(body) => sign(link, secret, counter, subtype, &body),
                None => ([0; MAX_LEN], 0),
            }
        }
    }
}

fn sign(
    link: LinkId,
    secret: &Secret,
    counter: u64,
    subtype: u8,
    body: &[u8],
) -> ([u8; MAX_LEN], usize) {
    let mut writer = Writer { buffer: [0; MAX_LEN], len: 0 };
    writer.put(&gue::control_header(link));
    writer.put(&gue::EXID.to_be_bytes());
    writer.put(&[VERSION, subtype, 0, (COUNTER_LEN + body.len()) as u8]);
    writer.put(&counter.to_be_bytes());
    writer.put(body);
    let signed = writer.buffer.get(..writer.len).unwrap_or_default();
    let mac = mac(secret, signed);
    writer.put(&mac);
    (writer.buffer, writer.len)
}

/// Checks the MAC of `datagram` (which [`super::gue::decode`] called control) and reads it. Returns
/// the counter with it; whether that has grown is the caller's business.
///
/// # Errors
///
/// [`DropReason::ControlMac`] or [`DropReason::ControlType`].
pub fn decode(datagram: &[u8], secret: &Secret) -> Result<(u64, Message), DropReason> {
    let (head, rest) = datagram.split_first_chunk::<HEAD_LEN>().ok_or(DropReason::ControlType)?;
    let &[.., version, subtype, len_high, len_low] = head;
    let body_len = usize::from(u16::from_be_bytes([len_high, len_low]));
    let (body, after) = rest.split_at_checked(body_len).ok_or(DropReason::ControlMac)?;
    // What follows the MAC is padding that nothing reads, but a message is never longer than ours.
    let claimed = after.first_chunk::<MAC_LEN>().ok_or(DropReason::ControlMac)?;
    let signed = datagram.get(..HEAD_LEN + body_len).ok_or(DropReason::ControlMac)?;
    if after.len() != MAC_LEN || datagram.len() > MAX_LEN {
        return Err(DropReason::ControlMac);
    }
    if !bool::from(claimed.ct_eq(&mac(secret, signed))) {
        return Err(DropReason::ControlMac);
    }

    // The sender is genuine from here on; what is not understood is of another version.
    let unknown = DropReason::ControlType;
    if gue::decode(datagram).is_err() || version != VERSION {
        return Err(unknown);
    }
    let (counter, body) = body.split_first_chunk::<COUNTER_LEN>().ok_or(unknown)?;
    let message = match subtype {
        ECHO_REQUEST => Message::EchoRequest(Echo::decode(body)?),
        ECHO_REPLY => Message::EchoReply(Echo::decode(body)?),
        DENIED => Message::Denied(Denied::decode(body.try_into().map_err(|_| unknown)?)?),
        REFUSED => Message::Refused(Denied::decode(body.try_into().map_err(|_| unknown)?)?),
        TOO_BIG => Message::TooBig(TooBig::decode(body.try_into().map_err(|_| unknown)?)?),
        NO_PATH => Message::NoPath(NoPath::decode(body.try_into().map_err(|_| unknown)?)),
        CHALLENGE => Message::Challenge(Echo::decode(body)?),
        STARTED => Message::Started(decode_flow(body.try_into().map_err(|_| unknown)?)?),
        _ => return Err(unknown),
    };
    Ok((u64::from_be_bytes(*counter), message))
}

impl Echo {
    fn encode(&self) -> [u8; ECHO_LEN - COUNTER_LEN] {
        let [s0, s1, s2, s3] = self.sequence.to_be_bytes();
        let [t0, t1, t2, t3, t4, t5, t6, t7] = self.sent_nanos.to_be_bytes();
        let [a0, a1, a2, a3] = self.about.map_or(0, |about| about.0).to_be_bytes();
        let (lost, translated) = (u8::from(self.is_lost), u8::from(self.is_translated));
        let [c0, c1, c2, c3, c4, c5, c6, c7] = self.cookie.to_be_bytes();
        [
            s0, s1, s2, s3, 0, 0, 0, 0, t0, t1, t2, t3, t4, t5, t6, t7, a0, a1, a2, a3, lost,
            translated, 0, 0, c0, c1, c2, c3, c4, c5, c6, c7,
        ]
    }

    fn decode(body: &[u8]) -> Result<Self, DropReason> {
        Self::fields(body).ok_or(DropReason::ControlType)
    }

    fn fields(body: &[u8]) -> Option<Self> {
        let (sequence, rest) = body.split_first_chunk()?;
        let (_, rest) = rest.split_first_chunk::<4>()?;
        let (sent_nanos, rest) = rest.split_first_chunk()?;
        let (about, rest) = rest.split_first_chunk()?;
        let (&[lost, translated, _, _], rest) = rest.split_first_chunk()?;
        let cookie = rest.try_into().ok()?;
        let about = NodeId(u32::from_be_bytes(*about));
        Some(Self {
            sequence: u32::from_be_bytes(*sequence),
            sent_nanos: u64::from_be_bytes(*sent_nanos),
            about: (about.0 != 0).then_some(about),
            is_lost: lost != 0,
            is_translated: translated != 0,
            cookie: u64::from_be_bytes(cookie),
        })
    }
}

fn mac(secret: &Secret, signed: &[u8]) -> [u8; MAC_LEN] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.expose()), signed);
    let mut mac = [0; MAC_LEN];
    for (to, from) in mac.iter_mut().zip(tag.as_ref()) {
        *to = *from;
    }
    mac
}

struct Writer {
    buffer: [u8; MAX_LEN],
    len: usize,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        for (slot, byte) in self.buffer.iter_mut().skip(self.len).zip(bytes) {
            *slot = *byte;
        }
        self.len += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: [u8; 32] = [9; 32];

    fn sample(message: &Message) -> Vec<u8> {
        let (buffer, len) = encode(LinkId(77), &Secret::new(SECRET), 41, message);
        buffer[..len].to_vec()
    }

    #[test]
    fn requests_and_replies_have_one_length() {
        let echo = Echo { sequence: 1, sent_nanos: 2, ..Echo::default() };

        let request = sample(&Message::EchoRequest(echo));
        let reply = sample(&Message::EchoReply(echo));

        assert_eq!(request.len(), reply.len());
        assert_eq!(request.len(), 72);
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let secret = Secret::new(SECRET);
        let good = sample(&Message::EchoRequest(Echo {
            sequence: 5,
            sent_nanos: 6,
            about: Some(NodeId(9)),
            is_lost: true,
            is_translated: true,
            cookie: 7,
        }));
        assert!(decode(&good, &secret).is_ok());

        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert_eq!(decode(&bad, &secret), Err(DropReason::ControlMac), "{at}.{bit}");
            }
        }
        assert_eq!(decode(&good, &Secret::new([8; 32])), Err(DropReason::ControlMac));
    }

    #[test]
    fn every_other_length_is_refused() {
        let secret = Secret::new(SECRET);
        let good = sample(&Message::EchoReply(Echo::default()));

        for len in 0..good.len() {
            assert!(decode(&good[..len], &secret).is_err(), "{len}");
        }
        let mut long = good;
        long.push(0);
        assert_eq!(decode(&long, &secret), Err(DropReason::ControlMac));
    }

    #[test]
    fn a_genuine_message_of_another_kind_is_of_an_unknown_type() {
        let secret = Secret::new(SECRET);
        let mut message = sample(&Message::EchoRequest(Echo::default()));
        let signed_len = message.len() - MAC_LEN;
        message[13] = 99;
        let mac = mac(&secret, &message[..signed_len]);
        message[signed_len..].copy_from_slice(&mac);

        assert_eq!(decode(&message, &secret), Err(DropReason::ControlType));
    }

    fn any_message() -> impl Strategy<Value = Message> {
        use crate::wire::notice::{REASONS, Refuser};
        use std::net::IpAddr;

        let echo = any::<(u32, u64, u32, bool, bool, u64)>().prop_map(
            |(sequence, sent_nanos, about, is_lost, is_translated, cookie)| {
                let about = (about != 0).then_some(NodeId(about));
                Echo { sequence, sent_nanos, about, is_lost, is_translated, cookie }
            },
        );
        let pair = prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
            any::<([u16; 7], [u16; 7])>().prop_map(|(a, b)| {
                // No mapped addresses, which come back as IPv4.
                let v6 =
                    |[b, c, d, e, f, g, h]: [u16; 7]| IpAddr::from([0xfd00, b, c, d, e, f, g, h]);
                (v6(a), v6(b))
            }),
        ];
        let denied = (pair.clone(), any::<(u8, u16, u16, u32, bool)>(), 0..REASONS.len()).prop_map(
            |(
                (source, destination),
                (protocol, source_port, destination_port, sequence, sap),
                at,
            )| {
                let flow = Quoted { source, destination, protocol, source_port, destination_port };
                let by = if sap { Refuser::Sap } else { Refuser::Destination };
                Denied { reason: REASONS[at].1, by, flow, sequence }
            },
        );
        let started = denied.clone().prop_map(|denied: Denied| Message::Started(denied.flow));
        let no_path = any::<u32>().prop_map(|node| Message::NoPath(NoPath { node: NodeId(node) }));
        let too_big = (pair, any::<u16>()).prop_map(|((source, destination), mtu)| TooBig {
            source,
            destination,
            mtu,
        });
        prop_oneof![
            echo.clone().prop_map(Message::EchoRequest),
            echo.clone().prop_map(Message::EchoReply),
            echo.prop_map(Message::Challenge),
            denied.clone().prop_map(Message::Denied),
            denied.prop_map(Message::Refused),
            too_big.prop_map(Message::TooBig),
            started,
            no_path,
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip(
            link: u32, counter: u64, message in any_message(), key: [u8; 32],
        ) {
            let secret = Secret::new(key);
            let (buffer, len) = encode(LinkId(link), &secret, counter, &message);

            let gue::Frame::Control { link: found, datagram } = gue::decode(&buffer[..len]).unwrap()
            else {
                panic!("not control");
            };

            prop_assert_eq!(found, LinkId(link));
            prop_assert_eq!(decode(datagram, &secret), Ok((counter, message)));
        }

        #[test]
        fn noise_is_refused(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&datagram, &Secret::new(SECRET)).is_err());
        }
    }
}

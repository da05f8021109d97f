//! Control messages between `ovd` and `ovsap`: ctype 255, our ExID, a counter and a MAC.
//!
//! ```text
//! 21 ff 80 00 LINK(4) | ExID(4) | 01 | subtype | body length(2) | body | MAC(16)
//! body of an echo: counter(8) | sequence(4) | 00 00 00 00 | sent(8) | padding(8)
//! ```
//!
//! The MAC is HMAC-SHA-256 under the link's secret, truncated to 128 bits, over everything before
//! it. A reply is as long as its request, so that nobody is made to send more than he received.

use ring::hmac;
use subtle::ConstantTimeEq as _;

use super::gue;
use crate::types::{DropReason, LinkId, Secret};

/// What a control message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Subtype 1: asks for an echo. Also registers the sender's outer address.
    EchoRequest(Echo),
    /// Subtype 2: answers one, with the same body and the responder's times.
    EchoReply(Echo),
}

/// The body of an echo, 32 bytes both ways, so that no answer is longer than its question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echo {
    /// Counts the requests of the sender; the reply repeats it.
    pub sequence: u32,
    /// When the request left, in nanoseconds of the requester's own clock; opaque to the peer.
    pub sent_nanos: u64,
}

/// The longest control message, in bytes.
pub const MAX_LEN: usize = 128;

/// The layout's version.
const VERSION: u8 = 1;

const ECHO_REQUEST: u8 = 1;
const ECHO_REPLY: u8 = 2;

/// GUE header, experiment id, version, subtype, body length.
const HEAD_LEN: usize = gue::HEADER_LEN + 8;

/// Bytes of an echo's body, the counter included.
const ECHO_LEN: usize = 32;

/// HMAC-SHA-256 cut to 128 bits.
const MAC_LEN: usize = 16;

const _: () = assert!(HEAD_LEN + ECHO_LEN + MAC_LEN <= MAX_LEN);

/// Encodes and signs a message into a buffer; returns it with its length in bytes.
///
/// `counter` must grow with every message of this direction of this link.
#[must_use]
pub fn encode(
    link: LinkId,
    secret: &Secret,
    counter: u64,
    message: &Message,
) -> ([u8; MAX_LEN], usize) {
    let (subtype, echo) = match message {
        Message::EchoRequest(echo) => (ECHO_REQUEST, echo),
        Message::EchoReply(echo) => (ECHO_REPLY, echo),
    };
    let mut writer = Writer { buffer: [0; MAX_LEN], len: 0 };
    writer.put(&gue::control_header(link));
    writer.put(&gue::EXID.to_be_bytes());
    writer.put(&[VERSION, subtype, 0, ECHO_LEN as u8]);
    writer.put(&counter.to_be_bytes());
    writer.put(&echo.sequence.to_be_bytes());
    writer.put(&[0; 4]);
    writer.put(&echo.sent_nanos.to_be_bytes());
    writer.put(&[0; 8]);
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
    let is_ours = gue::decode(datagram).is_ok() && version == VERSION;
    let Ok(&[c0, c1, c2, c3, c4, c5, c6, c7, s0, s1, s2, s3, _, _, _, _, ref times @ ..]) =
        <&[u8; ECHO_LEN]>::try_from(body)
    else {
        return Err(DropReason::ControlType);
    };
    let &[t0, t1, t2, t3, t4, t5, t6, t7, ..]: &[u8; 16] = times;
    let counter = u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
    let echo = Echo {
        sequence: u32::from_be_bytes([s0, s1, s2, s3]),
        sent_nanos: u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
    };
    match subtype {
        ECHO_REQUEST if is_ours => Ok((counter, Message::EchoRequest(echo))),
        ECHO_REPLY if is_ours => Ok((counter, Message::EchoReply(echo))),
        _ => Err(DropReason::ControlType),
    }
}

fn mac(secret: &Secret, signed: &[u8]) -> [u8; MAC_LEN] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.expose()), signed);
    tag.as_ref().first_chunk().copied().expect("invariant: SHA-256 gives 32 bytes")
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
        let echo = Echo { sequence: 1, sent_nanos: 2 };

        let request = sample(&Message::EchoRequest(echo));
        let reply = sample(&Message::EchoReply(echo));

        assert_eq!(request.len(), reply.len());
        assert_eq!(request.len(), 64);
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let secret = Secret::new(SECRET);
        let good = sample(&Message::EchoRequest(Echo { sequence: 5, sent_nanos: 6 }));
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

    proptest! {
        #[test]
        fn messages_round_trip(
            link: u32, counter: u64, sequence: u32, sent_nanos: u64, is_reply: bool, key: [u8; 32],
        ) {
            let secret = Secret::new(key);
            let echo = Echo { sequence, sent_nanos };
            let message =
                if is_reply { Message::EchoReply(echo) } else { Message::EchoRequest(echo) };
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

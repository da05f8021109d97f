//! GUE headers: exactly three forms are accepted (`draft-ietf-intarea-gue-09`, stricter by local
//! policy, design section 4).
//!
//! ```text
//! 01 04 80 00 KEY(4)             data, IPv4 inside
//! 01 29 80 00 KEY(4)             data, IPv6 inside
//! 21 ff 80 00 LINK(4) ExID(4)    control, ours
//! ```

use crate::types::{DropReason, LinkId};
use crate::wire::Family;

/// The UDP port that IANA assigned to GUE.
pub const PORT: u16 = 6080;

/// Bytes before the inner packet.
pub const HEADER_LEN: usize = 8;

/// What a wrapped packet is longer by: outer header without options, UDP, and ours.
#[must_use]
pub const fn overhead(is_outer_v4: bool) -> u16 {
    let ip = if is_outer_v4 { 20 } else { 40 };
    ip + 8 + HEADER_LEN as u16
}

/// The experiment id of our control messages.
pub const EXID: u32 = 0x5A4F_4C31;

/// The two top bits of the first byte: the variant, which must be 0.
const VARIANT_MASK: u8 = 0xC0;

/// The C bit of the first byte: a control message.
const CONTROL_BIT: u8 = 0x20;

/// The five low bits of the first byte: the header's length in words behind the first one.
const HLEN_MASK: u8 = 0x1F;

/// The one flag that must be set: a group identifier follows.
const FLAG_GROUP: u16 = 0x8000;

/// The experimental control type; an experiment id follows the header.
const CTYPE_EXPERIMENT: u8 = 255;

/// IP protocol number of IPv4 inside.
const PROTOCOL_IPV4: u8 = 4;

/// IP protocol number of IPv6 inside.
const PROTOCOL_IPV6: u8 = 41;

/// A datagram with a header that is one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A wrapped packet.
    Data {
        /// What the header says is inside; the version nibble is not checked yet.
        family: Family,
        /// The key field, not checked yet.
        key: u32,
        /// The inner packet, with whatever follows it.
        inner: &'a [u8],
    },
    /// A control message; its MAC is the next check.
    Control {
        /// The key field: the link whose secret made the MAC.
        link: LinkId,
        /// The whole datagram: the MAC covers the header too.
        datagram: &'a [u8],
    },
}

/// Splits `datagram` into its header and what it carries.
///
/// # Errors
///
/// The reason to drop it, cheapest check first: length, variant, header length, flags, protocol.
pub fn decode(datagram: &[u8]) -> Result<Frame<'_>, DropReason> {
    let Some((&[first, kind, f0, f1, k0, k1, k2, k3], rest)) =
        datagram.split_first_chunk::<HEADER_LEN>()
    else {
        return Err(DropReason::GueLength);
    };
    if first & VARIANT_MASK != 0 {
        return Err(DropReason::GueVariant);
    }
    if first & HLEN_MASK != 1 {
        return Err(DropReason::GueHeaderLength);
    }
    if u16::from_be_bytes([f0, f1]) != FLAG_GROUP {
        return Err(DropReason::GueFlags);
    }
    let key = u32::from_be_bytes([k0, k1, k2, k3]);
    if first & CONTROL_BIT != 0 {
        if kind != CTYPE_EXPERIMENT {
            return Err(DropReason::ControlType);
        }
        let exid = rest.first_chunk::<4>().ok_or(DropReason::GueLength)?;
        if u32::from_be_bytes(*exid) != EXID {
            return Err(DropReason::ControlType);
        }
        return Ok(Frame::Control { link: LinkId(key), datagram });
    }
    let family = match kind {
        PROTOCOL_IPV4 => Family::V4,
        PROTOCOL_IPV6 => Family::V6,
        _ => return Err(DropReason::GueProtocol),
    };
    Ok(Frame::Data { family, key, inner: rest })
}

/// The header of a data packet.
#[must_use]
pub fn data_header(family: Family, key: u32) -> [u8; HEADER_LEN] {
    let protocol = match family {
        Family::V4 => PROTOCOL_IPV4,
        Family::V6 => PROTOCOL_IPV6,
    };
    header(1, protocol, key)
}

/// The header of a control message of `link`; the experiment id follows it.
pub(super) fn control_header(link: LinkId) -> [u8; HEADER_LEN] {
    header(CONTROL_BIT | 1, CTYPE_EXPERIMENT, link.0)
}

fn header(first: u8, kind: u8, key: u32) -> [u8; HEADER_LEN] {
    let [f0, f1] = FLAG_GROUP.to_be_bytes();
    let [k0, k1, k2, k3] = key.to_be_bytes();
    [first, kind, f0, f1, k0, k1, k2, k3]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Secret;
    use crate::wire::{control, inner};

    /// The key that the vectors carry when they carry the right one.
    const VECTOR_KEY: u32 = 0x1A2B_3C4D;

    fn bytes_of(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    fn verdict(datagram: &[u8]) -> Result<&'static str, DropReason> {
        match decode(datagram)? {
            Frame::Control { datagram, .. } => {
                // The samples carry no MAC, so that nothing gets past this check.
                let refused = control::decode(datagram, &Secret::new([1; 32])).unwrap_err();
                assert_eq!(refused, DropReason::ControlMac);
                Ok("CONTROL")
            }
            Frame::Data { family, key, inner } => {
                inner::parse(family, inner)?;
                if key == VECTOR_KEY { Ok("ACCEPT") } else { Err(DropReason::Key) }
            }
        }
    }

    #[test]
    fn every_vector_gives_the_stated_verdict() {
        let vectors: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../tests/vectors/gue-vectors.json")).unwrap();
        assert_eq!(vectors.len(), 20);
        let expected_reasons = [
            ("05-ctl-type1", DropReason::ControlType),
            ("07-ctl-exid-unknown", DropReason::ControlType),
            ("09-variant2", DropReason::GueVariant),
            ("11-hlen-31", DropReason::GueHeaderLength),
            ("13-hlen-2-surplus", DropReason::GueHeaderLength),
            ("15-empty", DropReason::GueLength),
            ("17-trunc-in-key", DropReason::GueLength),
            ("19-inner-trunc", DropReason::InnerLength),
            ("21-key-wrong", DropReason::Key),
            ("25-variant1-v4", DropReason::GueVariant),
            ("29-proto-6", DropReason::GueProtocol),
            ("31-proto94", DropReason::GueProtocol),
        ];

        for vector in &vectors {
            let name = vector["name"].as_str().unwrap();
            let got = verdict(&bytes_of(vector["udp_payload"].as_str().unwrap()));

            let word = got.unwrap_or("DROP");
            assert_eq!(word, vector["overlay"].as_str().unwrap(), "{name}: {got:?}");
            for (_, reason) in expected_reasons.iter().filter(|(vector, _)| *vector == name) {
                assert_eq!(got, Err(*reason), "{name}");
            }
        }
    }

    #[test]
    fn of_all_first_two_bytes_only_three_pass() {
        for len in [0, 1, 7, 8, 9, 12, 28, 1500] {
            let mut datagram = vec![0; len];
            let tail = [0x80, 0, 0x1A, 0x2B, 0x3C, 0x4D, 0x5A, 0x4F, 0x4C, 0x31];
            for (byte, value) in datagram.iter_mut().skip(2).zip(tail) {
                *byte = value;
            }
            for start in 0..=u16::MAX {
                for (byte, value) in datagram.iter_mut().zip(start.to_be_bytes()) {
                    *byte = value;
                }

                let passes = decode(&datagram).is_ok();

                let is_legal = match start {
                    0x0104 | 0x0129 => len >= 8,
                    0x21FF => len >= 12,
                    _ => false,
                };
                assert_eq!(passes, is_legal, "{start:04x}, {len} bytes");
            }
        }
    }

    #[test]
    fn any_other_flag_is_refused() {
        let mut datagram = data_header(Family::V4, 7);
        assert!(decode(&datagram).is_ok());

        for flags in (0..=u16::MAX).filter(|&flags| flags != FLAG_GROUP) {
            datagram[2..4].copy_from_slice(&flags.to_be_bytes());
            assert_eq!(decode(&datagram), Err(DropReason::GueFlags));
        }
    }

    proptest! {
        #[test]
        fn data_round_trips(is_v6: bool, key: u32, body in prop::collection::vec(any::<u8>(), 0..64)) {
            let family = if is_v6 { Family::V6 } else { Family::V4 };
            let mut datagram = data_header(family, key).to_vec();
            datagram.extend_from_slice(&body);

            prop_assert_eq!(decode(&datagram), Ok(Frame::Data { family, key, inner: &body }));
        }

        #[test]
        fn noise_never_panics(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = verdict(&datagram);
        }
    }
}

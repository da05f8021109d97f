//! Replays the corpus of the fuzz targets on the stable compiler, each entry also with every byte
//! changed and at every shorter length.

use super::gue::{self, Frame};
use super::{Family, control, inner};
use crate::types::{DropReason, Secret};

const GUE_DECODE: &[&[u8]] = &[
    include_bytes!("../../fuzz/corpus/gue_decode/01-v4-data"),
    include_bytes!("../../fuzz/corpus/gue_decode/03-echo-req"),
    include_bytes!("../../fuzz/corpus/gue_decode/13-hlen-2-surplus"),
    include_bytes!("../../fuzz/corpus/gue_decode/17-trunc-in-key"),
    include_bytes!("../../fuzz/corpus/gue_decode/35-all-flags"),
    include_bytes!("../../fuzz/corpus/gue_decode/39-sealed-shape"),
];

const INNER_PARSE: &[&[u8]] = &[
    include_bytes!("../../fuzz/corpus/inner_parse/v4-icmp-echo"),
    include_bytes!("../../fuzz/corpus/inner_parse/v4-tcp-syn"),
    include_bytes!("../../fuzz/corpus/inner_parse/v4-source-route"),
    include_bytes!("../../fuzz/corpus/inner_parse/v4-first-fragment"),
    include_bytes!("../../fuzz/corpus/inner_parse/v4-later-fragment"),
    include_bytes!("../../fuzz/corpus/inner_parse/v4-icmp-error"),
    include_bytes!("../../fuzz/corpus/inner_parse/v6-udp"),
    include_bytes!("../../fuzz/corpus/inner_parse/v6-options-tcp"),
    include_bytes!("../../fuzz/corpus/inner_parse/v6-fragment"),
    include_bytes!("../../fuzz/corpus/inner_parse/v6-routing"),
    include_bytes!("../../fuzz/corpus/inner_parse/v6-icmp-error"),
    include_bytes!("../../fuzz/corpus/inner_parse/v6-long-extension"),
];

const CONTROL_DECODE: &[&[u8]] = &[
    include_bytes!("../../fuzz/corpus/control_decode/echo-request"),
    include_bytes!("../../fuzz/corpus/control_decode/echo-reply"),
    include_bytes!("../../fuzz/corpus/control_decode/unknown-subtype"),
    include_bytes!("../../fuzz/corpus/control_decode/no-mac"),
    include_bytes!("../../fuzz/corpus/control_decode/bad-mac"),
];

/// The entry itself, its prefixes, and itself with one byte changed.
fn around(entry: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let prefixes = (0..=entry.len()).map(|len| entry[..len].to_vec());
    let changed = (0..entry.len()).flat_map(|at| {
        [0x01, 0x80, 0xFF].map(|bits| {
            let mut changed = entry.to_vec();
            changed[at] ^= bits;
            changed
        })
    });
    prefixes.chain(changed)
}

#[test]
fn gue_decode_keeps_to_the_datagram() {
    for datagram in GUE_DECODE.iter().flat_map(|entry| around(entry)) {
        if let Ok(Frame::Data { family, key, inner }) = gue::decode(&datagram) {
            assert_eq!(datagram[..gue::HEADER_LEN], gue::data_header(family, key));
            assert_eq!(&datagram[gue::HEADER_LEN..], inner);
        }
    }
}

#[test]
fn inner_parse_keeps_to_the_packet() {
    for packet in INNER_PARSE.iter().flat_map(|entry| around(entry)) {
        for family in [Family::V4, Family::V6] {
            if let Ok(facts) = inner::parse(family, &packet) {
                assert!(usize::from(facts.len) <= packet.len());
                assert_eq!(facts.source.is_ipv4(), family == Family::V4);
            }
        }
    }
}

#[test]
fn control_decode_takes_only_what_would_be_sent() {
    let secret = Secret::new([7; 32]);
    let [request, reply, unknown, no_mac, bad_mac] = CONTROL_DECODE else { panic!("five entries") };
    for good in [request, reply] {
        let (counter, message) = control::decode(good, &secret).unwrap();
        let Ok(Frame::Control { link, .. }) = gue::decode(good) else { panic!("not control") };
        let (buffer, len) = control::encode(link, &secret, counter, &message);
        assert_eq!(&buffer[..len], *good);
        assert_eq!(around(good).filter(|bytes| control::decode(bytes, &secret).is_ok()).count(), 1);
    }
    assert_eq!(control::decode(unknown, &secret), Err(DropReason::ControlType));
    assert_eq!(control::decode(no_mac, &secret), Err(DropReason::ControlMac));
    assert_eq!(control::decode(bad_mac, &secret), Err(DropReason::ControlMac));
}

//! The corpus of the fuzz target `control_decode`, entry by entry: what is accepted and why not. Each good
//! one also with every byte changed and at every shorter length. (`tests/it/corpora.rs` replays all.)

use super::control;
use super::gue::{self, Frame};
use crate::types::{DropReason, Secret};

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

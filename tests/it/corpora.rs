//! Replays the corpora of the fuzz targets (`fuzz/`) on the stable compiler: what was found once stays
//! found. Each short input also with each of its first bytes changed, and at every shorter length.

#[allow(unreachable_pub, reason = "the fuzz targets use the same")]
#[path = "../../fuzz/model/mod.rs"]
mod model;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

/// How long an input may be for its neighbourhood to be looked at, and how much of it is.
const NEAR: usize = 128;

#[test]
fn coalesce() {
    replay("coalesce", model::coalesce::check, &[0x01, 0x40]);
}

#[test]
fn control_decode() {
    replay("control_decode", model::control_decode::check, &[0x01, 0x80, 0xff]);
}

#[test]
fn gue_decode() {
    replay("gue_decode", model::gue_decode::check, &[0x01, 0x80, 0xff]);
}

#[test]
fn inner_parse() {
    replay("inner_parse", model::inner_parse::check, &[0x01, 0x80, 0xff]);
}

#[test]
fn offload() {
    replay("offload", model::offload::check, &[0x01, 0x20]);
}

#[test]
fn transit() {
    replay("transit", model::transit::check, &[]);
}

#[test]
fn vnet_header() {
    replay("vnet_header", model::vnet_header::check, &[0x01, 0x80, 0xff]);
}

fn replay(target: &str, check: fn(&[u8]), changes: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for entry in entries {
        let input = fs::read(&entry).unwrap();
        let passes = catch_unwind(|| check(&input)).is_ok();
        assert!(passes, "found by {}", entry.display());
        count += 1;
        if input.len() > NEAR || changes.is_empty() {
            continue;
        }
        for at in 0..input.len() {
            check(&input[..at]);
            for bits in changes {
                let mut changed = input.clone();
                changed[at] ^= bits;
                check(&changed);
            }
        }
    }
    assert!(count > 0, "{} is empty", dir.display());
}

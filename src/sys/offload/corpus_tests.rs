//! Replays the corpus of the fuzz target `offload`, each entry also with every byte of its headers
//! changed and at every shorter length.

use crate::sys::offload;

#[path = "../../../fuzz/model/offload.rs"]
mod model;

const OFFLOAD: &[&[u8]] = &[
    include_bytes!("../../../fuzz/corpus/offload/checksum-outside"),
    include_bytes!("../../../fuzz/corpus/offload/header-only"),
    include_bytes!("../../../fuzz/corpus/offload/kind-does-not-fit"),
    include_bytes!("../../../fuzz/corpus/offload/plain-partial"),
    include_bytes!("../../../fuzz/corpus/offload/plain-whole"),
    include_bytes!("../../../fuzz/corpus/offload/size-0"),
    include_bytes!("../../../fuzz/corpus/offload/tcp4-ecn-cwr-fin"),
    include_bytes!("../../../fuzz/corpus/offload/tcp4-empty"),
    include_bytes!("../../../fuzz/corpus/offload/tcp4-large"),
    include_bytes!("../../../fuzz/corpus/offload/tcp6-extension"),
    include_bytes!("../../../fuzz/corpus/offload/tcp6-large-odd"),
    include_bytes!("../../../fuzz/corpus/offload/udp4-large"),
    include_bytes!("../../../fuzz/corpus/offload/udp4-large-may-fragment"),
    include_bytes!("../../../fuzz/corpus/offload/udp4-whole-twice"),
    include_bytes!("../../../fuzz/corpus/offload/udp6-large"),
];

/// How many bytes of an entry are headers, the device's included.
const HEADERS: usize = 100;

#[test]
fn what_a_device_may_bring_is_cut_and_joined_as_the_models_say() {
    for entry in OFFLOAD {
        model::check(entry);
        (0..entry.len()).for_each(|len| model::check(&entry[..len]));
        for at in 0..entry.len().min(HEADERS) {
            for bits in [0x01, 0x04, 0x20, 0x80, 0xff] {
                let mut changed = entry.to_vec();
                changed[at] ^= bits;
                model::check(&changed);
            }
        }
    }
}

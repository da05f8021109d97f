//! Anything that a TUN device may bring: its header, cutting, joining and half-done checksums, against
//! naive models.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovmesh::sys::offload;

#[path = "../model/offload.rs"]
mod model;

fuzz_target!(|input: &[u8]| model::check(input));

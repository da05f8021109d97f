//! See `model::gue_decode`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovmesh_fuzz::model::gue_decode;

fuzz_target!(|input: &[u8]| gue_decode::check(input));

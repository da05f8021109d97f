//! See `model::control_decode`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovmesh_fuzz::model::control_decode;

fuzz_target!(|input: &[u8]| control_decode::check(input));

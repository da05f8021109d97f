//! See `model::transit`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovmesh_fuzz::model::transit;

fuzz_target!(|input: &[u8]| transit::check(input));

//! See `model::offload`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovmesh_fuzz::model::offload;

fuzz_target!(|input: &[u8]| offload::check(input));

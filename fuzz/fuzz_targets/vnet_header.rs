//! See `model::vnet_header`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovmesh_fuzz::model::vnet_header;

fuzz_target!(|input: &[u8]| vnet_header::check(input));

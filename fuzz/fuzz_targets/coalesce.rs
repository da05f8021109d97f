//! See `model::coalesce`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovmesh_fuzz::model::coalesce;

fuzz_target!(|input: &[u8]| coalesce::check(input));

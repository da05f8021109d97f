//! See `model::inner_parse`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovmesh_fuzz::model::inner_parse;

fuzz_target!(|input: &[u8]| inner_parse::check(input));

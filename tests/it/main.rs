//! All integration tests, in one binary: each further one would link every dependency again.
//!
//! Tests that need namespaces make a `World`; where that is impossible they fail and say what to
//! do. They never pretend.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod architecture;
mod bad_input;
mod direction;
mod flags;
#[allow(dead_code, reason = "the demo uses more of it")]
#[path = "../../examples/demo/fleet.rs"]
mod fleet;
mod join;
mod keys;
mod packet;
mod paths;
mod restart;
mod revoke;
mod spoof;
mod support;
mod traffic;
#[allow(dead_code, reason = "the demo uses more of it")]
#[path = "../../examples/demo/world.rs"]
mod world;
mod worlds;

use std::path::Path;

use fleet::Binaries;

/// The programs that cargo built for this test run.
fn binaries() -> Binaries {
    let dir = Path::new(env!("CARGO_BIN_EXE_ovd")).parent().unwrap();
    Binaries::in_dir(dir).unwrap()
}

//! All integration tests, in one binary: each further one would link every dependency again.
//!
//! Tests that need namespaces make a `World`; where that is impossible they fail and say what to
//! do. They never pretend.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod answers;
mod architecture;
mod attacks;
mod backup;
mod bad_input;
mod conformance;
mod copies;
mod corpora;
mod crash;
mod crowd;
mod dependencies;
mod direction;
mod doctor;
mod doors;
mod drain;
mod egress;
mod failover;
mod family;
mod flags;
#[allow(dead_code, reason = "the demo uses more of it")]
#[path = "../../examples/demo/fleet.rs"]
mod fleet;
mod flows;
mod guard;
mod guard_leaks;
mod guard_storm;
mod guessing;
mod impaired;
mod inner;
mod integrity;
mod join;
mod keys;
mod lanes;
mod live;
mod loops;
mod matrix;
mod names;
mod narrow;
mod nat;
mod old_kernels;
mod open;
mod package;
mod packet;
mod paths;
mod pod;
mod policy_confirm;
mod policy_files;
mod policy_modes;
mod policy_refusals;
mod probes;
mod relay;
mod restart;
mod revoke;
mod rotations;
mod secrets;
mod settled;
mod sidecar;
mod small_underlay;
mod speed;
mod spoof;
mod support;
mod systemd;
mod takeover;
mod traffic;
mod trains;
mod unit_files;
mod up;
#[allow(dead_code, reason = "the demo uses more of it")]
#[path = "../../examples/demo/world.rs"]
mod world;
mod worlds;

use std::path::Path;

use fleet::Binaries;

/// The programs that cargo built for this test run.
fn binaries() -> Binaries {
    let dir = Path::new(env!("CARGO_BIN_EXE_ovd")).parent().unwrap();
    for example in ["demo", "netkit"] {
        assert!(is_fresh(dir, example), "{example} is stale\n  do:  cargo build --examples");
    }
    Binaries::in_dir(dir).unwrap()
}

/// Whether an example is newer than its sources. `cargo test` builds examples; `cargo test --test it`
/// does not, and would quietly test yesterday's.
fn is_fresh(dir: &Path, example: &str) -> bool {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let built = modified(&dir.join("examples").join(example));
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example);
    let sources = std::fs::read_dir(sources).unwrap().map(|entry| entry.unwrap().path());
    built.is_some() && sources.into_iter().all(|source| modified(&source) <= built)
}

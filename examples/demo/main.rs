//! The paper's Figure 1 on one machine: a server, a SaP, three services and an end user, with
//! Table I as policy, real HTTP servers and real requests.
//!
//! ```text
//!            overlay `services`, IPv4              overlay `users`, IPv6
//!
//!     s2 ------- direct ------- s1 ---.            s1 ---.
//!                                      sap-1              sap-1
//!     s3 ------------------------------'           user --'
//!     (s2 and s3: not allowed)
//! ```
//!
//! `demo` plays it and exits non-zero when anything differs from Table I; `demo --shell` opens the
//! same machines with nothing started, and an interactive shell on them.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

#[allow(dead_code, reason = "the tests use more of it")]
mod fleet;
mod scene;
mod shell;
mod table;
#[allow(dead_code, reason = "the tests use more of it")]
mod world;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use fleet::Binaries;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("the demo differs from Table I: see the lines marked DIFFERS");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let this = std::env::current_exe()?;
    // target/debug/examples/demo
    let dir = this.parent().and_then(|dir| dir.parent()).context("no directory of programs")?;
    let binaries = Binaries::in_dir(dir)?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => scene::play(&binaries),
        ["--shell"] => shell::open(&binaries).map(|()| true),
        _ => bail!("usage: demo [--shell]"),
    }
}

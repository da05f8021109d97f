//! `ovd guard`: the daemon is asked, and for `check` this machine's packet filter too.

use std::process::ExitCode;

use super::node;
use crate::cli::args::GuardCommand;
use crate::cli::guard as command;
use crate::cli::output::Output;
use crate::guard::{self, Interference};

/// Does what was typed.
pub(super) fn run(typed: &GuardCommand) -> ExitCode {
    let daemon = match typed {
        GuardCommand::Show(daemon) | GuardCommand::Check(daemon) | GuardCommand::On(daemon) => {
            daemon
        }
        GuardCommand::Off(off) => &off.daemon,
    };
    let mut output = Output::standard(daemon.output);
    let others = || -> Vec<(String, String)> {
        // Without nft nobody has chains that it could show.
        let found = guard::chains().map(|chains| guard::interference(&chains));
        let words = |Interference { tool, meaning }| (String::from(tool), String::from(meaning));
        found.unwrap_or_default().into_iter().map(words).collect()
    };
    let outcome = node::runtime()
        .and_then(|runtime| runtime.block_on(command::run(&mut output, typed, others)));
    node::conclude(&mut output, outcome)
}

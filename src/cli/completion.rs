//! `ovctl completion`: a script for one shell.

use clap::CommandFactory as _;

use super::args::{CompletionArgs, Ovctl};

/// The completion script of one shell.
#[must_use]
pub fn script(args: &CompletionArgs) -> String {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Ovctl::command(), "ovctl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_completion_script() {
        for shell in
            [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish]
        {
            let script = script(&CompletionArgs { shell });
            assert!(script.contains("ovctl") && script.contains("policy"), "{shell}");
        }
    }
}

//! `ovctl completion` and `ovctl manual`: what the parsers know of the three programs, for shells and
//! for `man`.

use std::path::Path;

use super::args::{CompletionArgs, Program};
use crate::api::{Problem, ProblemCode};

/// The completion script of one shell for one program.
#[must_use]
pub fn script(args: &CompletionArgs) -> String {
    let mut script = Vec::new();
    let mut command = args.program.command();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a page for each program and each of its commands: `ovctl.1`, `ovctl-policy-allow.1`, …
///
/// # Errors
///
/// When `dir` cannot be written.
pub fn write_manual(dir: &Path) -> Result<(), Problem> {
    for program in Program::ALL {
        clap_mangen::generate_to(program.command(), dir).map_err(|error| {
            Problem::new(ProblemCode::Failed, format!("cannot write to {}", dir.display()))
                .why(error.to_string())
                .fix("name a directory that is there")
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_completion_script_for_every_program() {
        use clap_complete::Shell::{Bash, Fish, Zsh};

        for shell in [Bash, Zsh, Fish] {
            for (program, words) in [
                (Program::Ovctl, ["ovctl", "policy"]),
                (Program::Ovd, ["ovd", "denied"]),
                (Program::Ovsap, ["ovsap", "leave"]),
            ] {
                let script = script(&CompletionArgs { shell, program });
                assert!(words.iter().all(|word| script.contains(word)), "{shell} {program:?}");
            }
        }
    }

    #[test]
    fn the_manual_has_a_page_for_every_program_and_command() {
        let dir = tempfile::tempdir().unwrap();

        write_manual(dir.path()).unwrap();

        for (page, words) in [
            ("ovctl.1", "coordination server"),
            ("ovctl-policy-allow.1", "\\-\\-both"),
            ("ovd-run.1", "\\-\\-join"),
            ("ovsap.1", "policy point"),
        ] {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
            assert!(text.contains(words), "{page}: {text}");
        }
        assert!(write_manual(&dir.path().join("nowhere")).unwrap_err().why.contains("No such"));
    }
}

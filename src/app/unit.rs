//! `ovd` as a unit of systemd: whether it is one, making it one, starting it and stopping it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::api::{Problem, ProblemCode};

/// The daemon's name where systemd runs it.
pub(super) const UNIT: &str = "ovd.service";

/// Whom the unit runs as.
const USER: &str = "ovd";

/// Where it keeps its state.
pub(super) const STATE: &str = "/var/lib/ovmesh/ovd";

/// Where it has the token of its first start from.
pub(super) const TOKEN: &str = "/etc/ovmesh/ovd.token";

/// The unit as the package has it.
const TEXT: &str = include_str!("../../config/systemd/ovd.service");

/// What the package's unit runs.
const PACKAGED: &str = "ExecStart=/usr/bin/ovd ";

/// Where a unit goes that no package brought (`systemd.unit(5)`).
const PLACE: &str = "/etc/systemd/system/ovd.service";

/// The first line of a unit that is ours to write again.
const HEADER: &str = "# Written by `ovd up`, which also writes it again: what you change belongs beside it (systemctl edit ovd).\n";

/// Where a unit may not look (`ProtectHome`, `PrivateTmp`).
const HIDDEN: &[&str] = &["/home", "/root", "/run/user", "/tmp", "/var/tmp"];

/// Whether systemd runs this machine (`sd_booted(3)`).
pub(super) fn is_possible() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Whether systemd runs the daemon, or would at the next boot.
pub(super) fn is_wanted() -> bool {
    is_possible() && (asks("is-active") || asks("is-enabled"))
}

fn asks(question: &str) -> bool {
    let mut command = Command::new("systemctl");
    command.args([question, "--quiet", UNIT]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Starts it, now and at every boot.
///
/// # Errors
///
/// When systemd does not get it started.
pub(super) fn start() -> Result<(), Problem> {
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", UNIT]).map_err(|problem| match last_words() {
        Some(words) => problem.why(words),
        None => problem,
    })
}

/// What the daemon said last before it gave up: an error, as programs of ours write it.
fn last_words() -> Option<String> {
    let journal =
        run("journalctl", &["--unit", UNIT, "--lines=20", "--output=cat", "--no-pager"]).ok()?;
    let from = journal.rfind("error: ")?;
    let words = journal.get(from..)?.lines().take(3).map(str::trim).collect::<Vec<_>>();
    Some(words.join("; "))
}

/// Stops it, and has no boot start it.
///
/// # Errors
///
/// When systemd does not get it stopped.
pub(super) fn stop() -> Result<(), Problem> {
    systemctl(&["disable", "--now", UNIT])
}

fn systemctl(words: &[&str]) -> Result<(), Problem> {
    run("systemctl", words).map(drop).map_err(|why| {
        let what = format!("systemctl {} did not work", words.join(" "));
        Problem::new(ProblemCode::Failed, what)
            .why(why)
            .fix(format!("systemctl status {UNIT} and journalctl -u {UNIT} say more"))
    })
}

/// Runs it to its end; the error is what it wrote, or how it ended.
fn run(program: &str, words: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(if said.is_empty() { output.status.to_string() } else { said })
}

/// Puts the unit there, for the program at `program`; leaves one alone that a package or the operator put
/// there. Says whether it wrote anything.
///
/// # Errors
///
/// When a unit could not run that program, or the file cannot be written.
pub(super) fn install(program: &Path) -> Result<bool, Problem> {
    let place = Path::new(PLACE);
    let there = fs::read_to_string(place).ok();
    let is_ours = there.as_ref().is_some_and(|text| text.starts_with(HEADER));
    if !is_ours && run("systemctl", &["cat", UNIT]).is_ok() {
        return Ok(false);
    }
    let text = text(program)?;
    if there.is_some_and(|there| there == text) {
        return Ok(false);
    }
    fs::create_dir_all("/etc/systemd/system").and_then(|()| fs::write(place, text)).map_err(
        |error| {
            Problem::new(ProblemCode::Failed, format!("cannot write {PLACE}"))
                .why(error.to_string())
                .fix("`ovd run` needs no unit")
        },
    )?;
    Ok(true)
}

/// The unit, for the program at `program`.
fn text(program: &Path) -> Result<String, Problem> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte);
    let path = program.to_str().filter(|path| path.bytes().all(is_plain));
    let is_hidden = HIDDEN.iter().any(|hidden| program.starts_with(hidden));
    let Some(path) = path.filter(|_| !is_hidden) else {
        let what = format!("a service could not start {}", program.display());
        return Err(Problem::new(ProblemCode::Failed, what)
            .why("services see nothing in home and temporary directories, and this name goes into a unit")
            .fix("sudo install -m 755 ovd /usr/local/bin/, then sudo /usr/local/bin/ovd up ..."));
    };
    Ok(format!("{HEADER}{}", TEXT.replace(PACKAGED, &format!("ExecStart={path} "))))
}

/// Makes the unit's user, where there is none.
///
/// # Errors
///
/// When it cannot be made.
pub(super) fn make_user() -> Result<(u32, u32), Problem> {
    let number = |option: &str| -> Result<u32, String> {
        let text = run("id", &[option, USER])?;
        text.parse().map_err(|_| format!("id says {text}"))
    };
    let found = || Ok::<_, String>((number("-u")?, number("-g")?));
    found()
        .or_else(|_| {
            let home = ["--no-create-home", "--home-dir", STATE];
            let rest = ["--shell", "/usr/sbin/nologin", "--comment", "ovmesh endpoint", USER];
            run("useradd", &[&["--system", "--user-group"], &home[..], &rest[..]].concat())?;
            found()
        })
        .map_err(|why| {
            Problem::new(ProblemCode::Failed, format!("cannot make the user {USER}"))
                .why(why)
                .fix(format!("make it (useradd --system --user-group {USER}), then again"))
        })
}

/// Makes the directory as the unit would (`StateDirectory`); says whether it was not there.
///
/// # Errors
///
/// When it cannot be made.
pub(super) fn make_state(dir: &Path, (user, group): (u32, u32)) -> Result<bool, Problem> {
    let make = || {
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => chown(dir, Some(user), Some(group)).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    };
    make().map_err(|error| {
        Problem::new(ProblemCode::Failed, format!("cannot make {}", dir.display()))
            .why(error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_runs_the_program_that_wrote_it_and_is_else_that_of_the_package() {
        assert_eq!(TEXT.matches(PACKAGED).count(), 1);
        for line in [format!("User={USER}"), format!("LoadCredential=token:{TOKEN}")] {
            assert!(TEXT.lines().any(|there| there == line), "{line}");
        }
        assert!(TEXT.contains(&format!("--state-dir {} ", STATE.replace("/var/lib", "%S"))));

        let text = text(Path::new("/usr/local/bin/ovd")).unwrap();

        let back = text.replace("ExecStart=/usr/local/bin/ovd ", PACKAGED);
        assert_eq!(back, format!("{HEADER}{TEXT}"));
    }

    #[test]
    fn a_program_that_a_unit_could_not_start_gets_none() {
        for path in ["/home/a/ovd", "/tmp/ovd", "/opt/my tools/ovd", "/opt/%h/ovd"] {
            let problem = text(Path::new(path)).unwrap_err();
            assert!(problem.what.contains(path) && problem.fix.contains("install"), "{problem}");
        }
        assert!(text(Path::new("/homes/ovd")).is_ok());
    }
}

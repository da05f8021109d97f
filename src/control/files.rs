//! Private files: 0600 in a directory of 0700 that belongs to us, or we do not start.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

use crate::api::{Problem, ProblemCode};

/// The longest file that is read.
const FILE_MAX_BYTES: u64 = 1 << 20;

fn failed(what: String, error: &std::io::Error) -> Problem {
    Problem::new(ProblemCode::Failed, what)
        .why(error.to_string())
        .fix("check the path, its owner and the space left, or use another --data-dir")
}

/// Makes `dir` (0700) when it is not there, and checks that nobody else can look into it.
///
/// # Errors
///
/// When it belongs to somebody else or others may read it.
pub fn ensure_private_dir(dir: &Path) -> Result<(), Problem> {
    if !dir.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
            failed(format!("cannot make the data directory {}", dir.display()), &error)
        })?;
    }
    check(dir, "directory", "0700")
}

/// Makes an empty file (0600) when it is not there, and checks that nobody else can read it.
///
/// # Errors
///
/// When it belongs to somebody else or others may read it.
pub(crate) fn ensure_private_file(path: &Path) -> Result<(), Problem> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(format!("cannot make {}", path.display()), &error)),
    }
    check(path, "file", "0600")
}

/// Holds the data directory `dir` until the file is dropped: one server, or one restore, at a time.
///
/// # Errors
///
/// `Conflict` when another process holds it.
pub fn lock(dir: &Path) -> Result<File, Problem> {
    let path = dir.join("lock");
    ensure_private_file(&path)?;
    let cannot = |error: std::io::Error| failed(format!("cannot use {}", path.display()), &error);
    let file = OpenOptions::new().write(true).open(&path).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Problem::new(
            ProblemCode::Conflict,
            format!("the data directory {} is in use", dir.display()),
        )
        .why("a server runs on it, or a restore is under way")
        .fix("stop that server, or name another place: --data-dir DIR")),
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

fn check(path: &Path, what: &str, mode: &str) -> Result<(), Problem> {
    let shown = path.display();
    // Not through a symbolic link: somebody else may have put it there.
    let facts = fs::symlink_metadata(path)
        .map_err(|error| failed(format!("cannot look at {shown}"), &error))?;
    if facts.file_type().is_symlink() {
        return Err(Problem::new(ProblemCode::Failed, format!("{shown} is a symbolic link"))
            .why("the server's secrets must not be somewhere else than they seem")
            .fix("name the real place: --data-dir DIR"));
    }
    let own = own_uid();
    if facts.uid() != own {
        return Err(Problem::new(
            ProblemCode::Failed,
            format!("the {what} {shown} belongs to another user"),
        )
        .why(format!("its owner is uid {}, the server runs as uid {own}", facts.uid()))
        .fix(format!("chown {own} {shown}, or use another --data-dir")));
    }
    if facts.mode() & 0o077 != 0 {
        return Err(Problem::new(
            ProblemCode::Failed,
            format!("others may read the {what} {shown}"),
        )
        .why(format!("its mode is {:04o}, must be {mode}: it holds secrets", facts.mode() & 0o777))
        .fix(format!("chmod {} {shown}", mode.trim_start_matches('0'))));
    }
    Ok(())
}

/// The user that this process runs as, as a socket's other end sees it: its entry in /proc belongs to
/// root when its memory is hidden. Needs a tokio runtime.
pub(crate) fn own_uid() -> u32 {
    let own = tokio::net::UnixStream::pair().and_then(|(end, _)| end.peer_cred());
    own.map_or(u32::MAX, |own| own.uid())
}

/// Reads a private file; none when it is not there.
pub(crate) fn read_private(path: &Path) -> Result<Option<String>, Problem> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(None);
    }
    check(path, "file", "0600")?;
    let cannot = |error: std::io::Error| failed(format!("cannot read {}", path.display()), &error);
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX_BYTES).read_to_string(&mut text))
        .map_err(cannot)?;
    Ok(Some(text))
}

/// Writes a private file whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Problem> {
    let temporary = path.with_extension("tmp");
    let write = || {
        // One left from a crash may have any mode.
        let _ = fs::remove_file(&temporary);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    write().map_err(|error| failed(format!("cannot write {}", path.display()), &error))
}

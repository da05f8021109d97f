//! Backups: one file with all that a server needs, and restores: a data directory made of such a file.
//!
//! A restore is prepared in `restoring`, beside what is in force, and takes effect with one rename to
//! `restored`. What is left to do then is moving files, each at most once: [`finish`] does it, now or,
//! when the machine died in between, at the next start.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::files;
use super::server::now;
use super::store::backup::{self as rows, Revival, Revived};
use super::tls;
use crate::api::backup::{Backup, Restore};
use crate::api::{Problem, ProblemCode};
use crate::types::ApiVersion;

const DATABASE: &str = "server.db";
const KEY: &str = "server.key";
/// What SQLite keeps beside a database; goes where the database goes.
const JOURNALS: [&str; 2] = ["server.db-wal", "server.db-shm"];

const PREPARED: &str = "restoring";
const READY: &str = "restored";
const REPLACED: &str = "replaced";

/// How to restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Make authorization keys and link secrets anew.
    pub rekey: bool,
    /// Let nodes follow at once.
    pub accept: bool,
    /// Replace a server that is there, keeping its files in `replaced`.
    pub replace: bool,
}

fn failed(what: String, error: &io::Error) -> Problem {
    Problem::new(ProblemCode::Failed, what)
        .why(error.to_string())
        .fix("check the path, who may write there, and the space left")
}

fn moved(path: &Path) -> impl Fn(io::Error) -> Problem + '_ {
    move |error| failed(format!("cannot put {} in place", path.display()), &error)
}

/// Makes a backup of the server in `data_dir`, which may be running, at `to`, where nothing may be.
///
/// # Errors
///
/// When there is no server, or something is at `to`, or it cannot be written; then nothing is left there.
pub async fn back_up(data_dir: &Path, to: &Path) -> Result<Backup, Problem> {
    if data_dir.join(READY).exists() {
        return Err(Problem::new(
            ProblemCode::Conflict,
            format!("a restore in {} is not finished", data_dir.display()),
        )
        .fix("start the server, which finishes it"));
    }
    let (database, key_file) = (data_dir.join(DATABASE), data_dir.join(KEY));
    // SQLite would make an empty one.
    let missing = [&database, &key_file].into_iter().find(|path| !path.exists());
    if let Some(missing) = missing {
        return Err(Problem::new(
            ProblemCode::NotFound,
            format!("there is no server in {}", data_dir.display()),
        )
        .why(format!("{} cannot be seen", missing.display()))
        .fix("run it as the server's user, or say where the server is: --data-dir DIR"));
    }
    let key = fs::read_to_string(&key_file)
        .map_err(|error| failed(format!("cannot read {}", key_file.display()), &error))?;
    tls::check_key(&key, &key_file)?;
    let new_file =
        |path: &Path| OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    // Takes the name, so that nothing is ever overwritten; the whole backup replaces it at the end.
    new_file(to).map_err(|error| {
        if error.kind() != io::ErrorKind::AlreadyExists {
            return failed(format!("cannot make {}", to.display()), &error);
        }
        Problem::new(ProblemCode::Conflict, format!("{} is there already", to.display()))
            .why("a backup overwrites nothing")
            .fix("name another file, or move this one away")
    })?;
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = to.with_file_name(name);
    let work = async {
        // One left from a crash.
        let _ = fs::remove_file(&partial);
        new_file(&partial).map_err(moved(&partial))?;
        let backup = rows::write(&database, &partial, &key, now()).await?;
        File::open(&partial).and_then(|file| file.sync_all()).map_err(moved(&partial))?;
        fs::rename(&partial, to).and_then(|()| sync_parent(to)).map_err(moved(to))?;
        Ok(backup)
    };
    let result = work.await;
    if result.is_err() {
        let _ = fs::remove_file(&partial);
        let _ = fs::remove_file(to);
    }
    result
}

/// Makes of the backup `from` a server in `data_dir`, where none may run.
///
/// # Errors
///
/// When a server runs there, or is there and shall not be replaced, or the backup is damaged, not one, or of a
/// newer program; then nothing is changed.
pub async fn restore(
    data_dir: &Path,
    from: &Path,
    options: RestoreOptions,
) -> Result<Restore, Problem> {
    if !from.is_file() {
        return Err(Problem::new(
            ProblemCode::NotFound,
            format!("there is no file {}", from.display()),
        )
        .fix("name a file that ovctl backup made"));
    }
    files::ensure_private_dir(data_dir)?;
    let _lock = files::lock(data_dir)?;
    finish(data_dir)?;
    let there = [DATABASE, KEY].iter().any(|name| data_dir.join(name).exists());
    if there && !options.replace {
        return Err(Problem::new(
            ProblemCode::Conflict,
            format!("there is a server in {}", data_dir.display()),
        )
        .why("a restore would replace it")
        .fix(format!(
            "name another place: --data-dir DIR; or --replace, which keeps its files in {}",
            data_dir.join(REPLACED).display()
        )));
    }
    let replaced = data_dir.join(REPLACED);
    if there && replaced.exists() {
        return Err(Problem::new(
            ProblemCode::Conflict,
            format!("{} holds what an earlier restore replaced", replaced.display()),
        )
        .why("it may be the only copy of something")
        .fix("move it away, or delete it"));
    }
    let prepared = data_dir.join(PREPARED);
    let Revived { backup, revision, revoked_tokens, good_tokens, differences, .. } =
        prepare(data_dir, &prepared, from, &options, there).await.inspect_err(|_| {
            let _ = fs::remove_dir_all(&prepared);
        })?;
    let ready = data_dir.join(READY);
    // From here on it is restored.
    fs::rename(&prepared, &ready).and_then(|()| sync(data_dir)).map_err(moved(&ready))?;
    finish(data_dir)?;
    Ok(Restore {
        api_version: ApiVersion::V1,
        backup,
        revision,
        rekeyed: options.rekey,
        accepted: options.accept,
        revoked_tokens,
        good_tokens,
        differences,
    })
}

/// Makes all files ready in `prepared`.
async fn prepare(
    data_dir: &Path,
    prepared: &Path,
    from: &Path,
    options: &RestoreOptions,
    there: bool,
) -> Result<Revived, Problem> {
    if prepared.exists() {
        // Left from a crash; it never took effect.
        fs::remove_dir_all(prepared).map_err(moved(prepared))?;
    }
    files::ensure_private_dir(prepared)?;
    let database = prepared.join(DATABASE);
    files::ensure_private_file(&database)?;
    let copy =
        || io::copy(&mut File::open(from)?, &mut OpenOptions::new().write(true).open(&database)?);
    copy().map_err(|error| failed(format!("cannot copy {}", from.display()), &error))?;
    let newer = data_dir.join(DATABASE);
    let revival = Revival {
        name: from,
        rekey: options.rekey,
        accept: options.accept,
        replaces: (there && newer.exists()).then_some(newer.as_path()),
        actor: &format!("uid {} (restore)", files::own_uid()),
        now: now(),
    };
    let revived = rows::revive(&database, &revival).await?;
    tls::check_key(&revived.key, from)?;
    files::write_private(&prepared.join(KEY), &revived.key)?;
    File::open(&database).and_then(|file| file.sync_all()).map_err(moved(&database))?;
    sync(prepared).map_err(moved(prepared))?;
    Ok(revived)
}

/// Does what is left to do of a restore that took effect, if there is one. The caller holds the directory.
///
/// # Errors
///
/// When a file cannot be moved; it is tried again at the next start.
pub fn finish(data_dir: &Path) -> Result<(), Problem> {
    let ready = data_dir.join(READY);
    if !ready.exists() {
        return Ok(());
    }
    let replaced = data_dir.join(REPLACED);
    let set_aside = |name: &str| -> io::Result<()> {
        let old = data_dir.join(name);
        if old.exists() {
            fs::create_dir_all(&replaced)?;
            fs::rename(old, replaced.join(name))?;
        }
        Ok(())
    };
    let put_in_place = |name: &str| -> io::Result<()> {
        let new = ready.join(name);
        if new.exists() {
            set_aside(name)?;
            fs::rename(new, data_dir.join(name))?;
        }
        Ok(())
    };
    let all = || {
        if ready.join(DATABASE).exists() {
            // They belong to the database that goes, and SQLite must not find them beside the new one.
            JOURNALS.iter().try_for_each(|name| set_aside(name))?;
            sync(data_dir)?;
        }
        put_in_place(DATABASE)?;
        put_in_place(KEY)?;
        sync(data_dir)?;
        fs::remove_dir(&ready)?;
        sync(data_dir)
    };
    all().map_err(moved(&ready))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync(&parent.map_or_else(|| PathBuf::from("."), Path::to_owned))
}

#[cfg(test)]
mod tests;

//! The state directory: who this node is, and what it does when the server is away.
//!
//! ```text
//! STATE-DIR/            0700, ours
//!   lock                held while a process uses the directory
//!   identity.json       id, name, credential, server addresses, pin, incarnation
//!   table.json          the newest table that was applied
//!   table.prev.json     the one before, for when the newest cannot be read
//!   devices.json        overlay id -> TUN device
//!   server.json         the server's name -> its addresses, as last known
//!   endpoints.json      at a SaP: entity -> where it proved to be
//!   NAME.tmp            a file being written; left by a crash, harmless
//! ```
//!
//! Files are 0600 and replaced whole: temporary file, fsync, rename, fsync of the directory. What
//! others could read or write is refused: the files hold keys.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::addresses::Known;
use crate::api::table::NodeTable;
use crate::api::{Problem, ProblemCode};
use crate::types::{
    ApiVersion, EntityName, Incarnation, NodeId, NodeKind, OverlayId, Secret, Timestamp,
};

const LOCK: &str = "lock";
const IDENTITY: &str = "identity.json";
const TABLE: &str = "table.json";
const TABLE_BEFORE: &str = "table.prev.json";
const DEVICES: &str = "devices.json";
const SERVER: &str = "server.json";
const ENDPOINTS: &str = "endpoints.json";

/// The longest file that is read.
const FILE_MAX_BYTES: u64 = 256 << 20;

/// Who this node is, once it has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// Its id for life.
    pub id: NodeId,
    /// Entity or SaP.
    pub kind: NodeKind,
    /// Its full name.
    pub name: EntityName,
    /// What it shows to the server.
    pub credential: Secret,
    /// Where the server can be reached, best first.
    pub urls: Vec<String>,
    /// SHA-256 of the server certificate's SubjectPublicKeyInfo.
    pub pin: Secret,
    /// The life of the server's database that was joined.
    pub incarnation: Incarnation,
    /// Whether packets may travel in clear over underlays that are not declared managed.
    #[serde(default)]
    pub clear_underlay: bool,
}

/// The state directory of a node, held by this process alone.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Its lock ends with it.
    lock: File,
    /// Directories that opening made, outermost first.
    made: Vec<PathBuf>,
}

impl StateDir {
    /// Opens `path`, making it when it is not there, and holds it. `uid` is the user that this
    /// process runs as.
    ///
    /// # Errors
    ///
    /// `Failed` when it is not ours alone or cannot be used; `Conflict` when another process holds it.
    pub fn open(path: &Path, uid: u32) -> Result<Self, Problem> {
        let made = make(path)?;
        check(path, uid)?;
        let lock = own_file(&path.join(LOCK), uid, |options| options.create(true).truncate(false))
            .map_err(|error| unusable(&path.join(LOCK), &error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock, made }),
            Err(TryLockError::WouldBlock) => Err(Problem::new(
                ProblemCode::Conflict,
                format!("the state directory {} is in use", path.display()),
            )
            .why("another process runs on it")
            .fix("stop that process, or give this one its own --state-dir")),
            Err(TryLockError::Error(error)) => Err(unusable(&path.join(LOCK), &error)),
        }
    }

    /// As [`Self::open`], when the process before this one hands over its lock.
    ///
    /// # Errors
    ///
    /// As [`Self::open`]; `Conflict` also when it is the lock of another directory.
    pub fn inherit(path: &Path, uid: u32, lock: OwnedFd) -> Result<Self, Problem> {
        check(path, uid)?;
        let lock = File::from(lock);
        let unusable = |error: io::Error| unusable(&path.join(LOCK), &error);
        let own = own_file(&path.join(LOCK), uid, |options| options).map_err(unusable)?;
        let (own, given) = (own.metadata().map_err(unusable)?, lock.metadata().map_err(unusable)?);
        if (own.dev(), own.ino()) != (given.dev(), given.ino()) {
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!("the process before this one does not run on {}", path.display()),
            )
            .fix("give the same --state-dir and --socket as it has"));
        }
        Ok(Self { path: path.to_owned(), lock, made: Vec::new() })
    }

    /// The lock, for the process after this one.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Reads who a node is without holding its directory; none when there is nothing.
    ///
    /// # Errors
    ///
    /// `Failed` when the directory is not ours alone or the file cannot be read.
    pub fn peek_identity(path: &Path, uid: u32) -> Result<Option<Identity>, Problem> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unusable(path, &error)),
            Ok(_) => {
                check(path, uid)?;
                read(&path.join(IDENTITY), uid)
            }
        }
    }

    /// Reads the table and the devices of a node without holding its directory; nothing where they cannot be
    /// read.
    #[must_use]
    pub fn peek(path: &Path, uid: u32) -> (Option<NodeTable>, BTreeMap<OverlayId, String>) {
        let table = read(&path.join(TABLE), uid).ok().flatten();
        let devices: Option<_> = read(&path.join(DEVICES), uid).ok().flatten();
        (table, devices.unwrap_or_default())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who this node is; none before it joined.
    ///
    /// # Errors
    ///
    /// `Failed` when the file is not ours alone or cannot be read.
    pub fn identity(&self) -> Result<Option<Identity>, Problem> {
        read(&self.path.join(IDENTITY), self.uid()?)
    }

    /// Keeps who this node is.
    ///
    /// # Errors
    ///
    /// `Failed` when it cannot be written.
    pub fn save_identity(&self, identity: &Identity) -> Result<(), Problem> {
        self.write(IDENTITY, identity)
    }

    /// The newest table that can be read, and what was wrong with a newer one.
    #[must_use]
    pub fn table(&self) -> (Option<NodeTable>, Vec<String>) {
        let mut problems = Vec::new();
        for name in [TABLE, TABLE_BEFORE] {
            match self.uid().and_then(|uid| read(&self.path.join(name), uid)) {
                Ok(Some(table)) => return (Some(table), problems),
                Ok(None) => {}
                Err(problem) => problems.push(format!("{}: {}", problem.what, problem.why)),
            }
        }
        (None, problems)
    }

    /// The table before the newest, for when that one cannot be applied.
    #[must_use]
    pub fn table_before(&self) -> Option<NodeTable> {
        let uid = self.uid().ok()?;
        read(&self.path.join(TABLE_BEFORE), uid).ok().flatten()
    }

    /// When the newest table was written; none when there is none.
    #[must_use]
    pub fn table_written(&self) -> Option<Timestamp> {
        Self::peek_written(&self.path)
    }

    /// As [`Self::table_written`], without holding the directory.
    #[must_use]
    pub fn peek_written(path: &Path) -> Option<Timestamp> {
        let written = fs::metadata(path.join(TABLE)).and_then(|found| found.modified()).ok()?;
        written.duration_since(UNIX_EPOCH).ok().map(|since| Timestamp(since.as_secs()))
    }

    /// Keeps `table` as the newest; the newest so far becomes the one before.
    ///
    /// # Errors
    ///
    /// `Failed` when it cannot be written; the table on disk stays.
    pub fn save_table(&self, table: &NodeTable) -> Result<(), Problem> {
        let newest = self.path.join(TABLE);
        // Only a readable table may push out the one before.
        if self.uid().and_then(|uid| read::<NodeTable>(&newest, uid)).is_ok_and(|t| t.is_some()) {
            let before = self.path.join(TABLE_BEFORE);
            let beside = self.path.join("table.prev.json.tmp");
            // A link beside it, renamed over: there is no moment without a newest table.
            let _ = fs::remove_file(&beside);
            fs::hard_link(&newest, &beside)
                .and_then(|()| fs::rename(&beside, &before))
                .map_err(|error| unusable(&before, &error))?;
        }
        self.write(TABLE, table)
    }

    /// The TUN device of each overlay; empty when none was kept or the file is broken.
    #[must_use]
    pub fn devices(&self) -> BTreeMap<OverlayId, String> {
        let kept: Option<BTreeMap<OverlayId, String>> =
            self.uid().and_then(|uid| read(&self.path.join(DEVICES), uid)).ok().flatten();
        kept.unwrap_or_default()
    }

    /// Keeps the TUN device of each overlay.
    ///
    /// # Errors
    ///
    /// `Failed` when it cannot be written.
    pub fn save_devices(&self, devices: &BTreeMap<OverlayId, String>) -> Result<(), Problem> {
        self.write(DEVICES, devices)
    }

    /// The last known addresses of the server; empty when none were kept or the file is broken.
    #[must_use]
    pub fn server_addresses(&self) -> Known {
        let kept: Option<Known> =
            self.uid().and_then(|uid| read(&self.path.join(SERVER), uid)).ok().flatten();
        kept.unwrap_or_default()
    }

    /// Keeps the addresses of the server.
    ///
    /// # Errors
    ///
    /// `Failed` when it cannot be written.
    pub fn save_server_addresses(&self, known: &Known) -> Result<(), Problem> {
        self.write(SERVER, known)
    }

    /// Where entities proved to be; empty when nothing was kept or the file is broken.
    #[must_use]
    pub fn proved_endpoints(&self) -> BTreeMap<NodeId, SocketAddr> {
        let kept: Option<BTreeMap<NodeId, SocketAddr>> =
            self.uid().and_then(|uid| read(&self.path.join(ENDPOINTS), uid)).ok().flatten();
        kept.unwrap_or_default()
    }

    /// Keeps where entities proved to be, so that packets go on when the next process starts.
    ///
    /// # Errors
    ///
    /// `Failed` when it cannot be written.
    pub fn save_proved_endpoints(
        &self,
        proved: &BTreeMap<NodeId, SocketAddr>,
    ) -> Result<(), Problem> {
        self.write(ENDPOINTS, proved)
    }

    /// Undoes opening: for a join that failed. Removes what opening made, and nothing that was there.
    pub fn abandon(self) {
        if self.made.contains(&self.path) {
            let _ = fs::remove_file(self.path.join(LOCK));
        }
        for made in self.made.iter().rev() {
            // Not empty: somebody else uses it by now.
            let _ = fs::remove_dir(made);
        }
    }

    /// Forgets everything: for a node that left.
    ///
    /// # Errors
    ///
    /// `Failed` when a file cannot be removed.
    pub fn erase(self) -> Result<(), Problem> {
        // The identity goes last: a leave that broke off can be repeated.
        for name in [TABLE, TABLE_BEFORE, DEVICES, SERVER, ENDPOINTS, LOCK, IDENTITY] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(unusable(&path, &error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        // Stays when the operator keeps something of their own in it.
        let _ = fs::remove_dir(&self.path);
        Ok(())
    }

    /// The owner of the lock file, which was checked when it was opened.
    fn uid(&self) -> Result<u32, Problem> {
        self.lock
            .metadata()
            .map(|metadata| metadata.uid())
            .map_err(|error| unusable(&self.path.join(LOCK), &error))
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Problem> {
        let path = self.path.join(name);
        let json = serde_json::to_vec(value).map_err(|error| unusable(&path, &error.into()))?;
        let beside = self.path.join(format!("{name}.tmp"));
        let replace = || {
            // A leftover of a crash; a new file cannot have been opened by anybody.
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(&json)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.path)?.sync_all()
        };
        replace().map_err(|error| unusable(&path, &error))
    }
}

/// Makes `path` and its parents; returns what was made, outermost first.
fn make(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    let mut missing: Vec<&Path> = Vec::new();
    for ancestor in path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()) {
        match fs::symlink_metadata(ancestor) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            Err(error) => return Err(unusable(ancestor, &error)),
            Ok(_) => break,
        }
    }
    let mut made = Vec::new();
    for directory in missing.into_iter().rev() {
        // Parents may be shared with programs of other users; only the last holds secrets.
        let mode = if directory == path { 0o700 } else { 0o755 };
        match DirBuilder::new().mode(mode).create(directory) {
            Ok(()) => made.push(directory.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                for made in made.iter().rev() {
                    let _ = fs::remove_dir(made);
                }
                return Err(unusable(directory, &error));
            }
        }
    }
    Ok(made)
}

/// Checks that the directory `path` is ours alone.
fn check(path: &Path, uid: u32) -> Result<(), Problem> {
    let metadata = fs::symlink_metadata(path).map_err(|error| unusable(path, &error))?;
    let refuse = |why: String, fix: String| {
        Err(Problem::new(
            ProblemCode::Failed,
            format!("the state directory {} is not safe to use", path.display()),
        )
        .why(why)
        .fix(fix))
    };
    let mode = metadata.mode() & 0o7777;
    if metadata.file_type().is_symlink() || !metadata.is_dir() {
        return refuse(
            "it is not a directory".to_owned(),
            "give a directory, not a link, with --state-dir".to_owned(),
        );
    }
    if metadata.uid() != uid {
        return refuse(
            format!("it belongs to uid {}, and this process runs as uid {uid}", metadata.uid()),
            format!("chown -R {uid} {}, or give another --state-dir", path.display()),
        );
    }
    if mode & 0o077 != 0 {
        return refuse(
            format!("its mode is {mode:04o}, must be 0700: others could read this node's keys"),
            format!("chmod 700 {}", path.display()),
        );
    }
    Ok(())
}

/// Opens a file for reading and writing, without following a link, and checks that it is ours alone.
fn own_file(
    path: &Path,
    uid: u32,
    finish: impl FnOnce(&mut OpenOptions) -> &mut OpenOptions,
) -> io::Result<File> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(io::Error::other("it is not a plain file"));
    }
    let file = finish(OpenOptions::new().read(true).write(true).mode(0o600)).open(path)?;
    let metadata = file.metadata()?;
    let mode = metadata.mode() & 0o7777;
    if metadata.uid() != uid {
        return Err(io::Error::other(format!(
            "it belongs to uid {}, and this process runs as uid {uid}",
            metadata.uid()
        )));
    }
    if mode & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "its mode is {mode:04o}, must be 0600: others could read it"
        )));
    }
    Ok(file)
}

fn read<T: DeserializeOwned>(path: &Path, uid: u32) -> Result<Option<T>, Problem> {
    let file = match own_file(path, uid, |options| options) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(path, &error)),
    };
    let mut json = Vec::new();
    file.take(FILE_MAX_BYTES).read_to_end(&mut json).map_err(|error| unusable(path, &error))?;
    serde_json::from_slice(&json).map(Some).map_err(|error| unusable(path, &error.into()))
}

fn unusable(path: &Path, error: &io::Error) -> Problem {
    let fix = if error.kind() == io::ErrorKind::PermissionDenied {
        "run as the user that owns it, or give another --state-dir".to_owned()
    } else {
        format!("look at {}; it must be a file or directory of this user alone", path.display())
    };
    Problem::new(ProblemCode::Failed, format!("cannot use {}", path.display()))
        .why(error.to_string())
        .fix(fix)
}

#[cfg(test)]
mod tests;

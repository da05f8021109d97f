//! What the kernel is told about this process: that nobody may read its memory, and whose files it uses.

use std::io;

/// Keeps keys and tokens in memory: no core dump, also none through a pipe to a collector, and no
/// `ptrace` or `/proc/PID/mem` for other processes of the same user. Root still can.
///
/// # Errors
///
/// When the kernel refuses, which it has no reason to.
pub fn hide_memory() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer leads to a limit that lives until the call returns.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this option takes one number and touches no memory of ours.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// From now on this thread uses files as that user would, and has no right of root to anybody else's. What it
/// may do with the network stays. For programs of one thread that root starts on another user's files.
///
/// # Errors
///
/// When this process may not: it is not root.
pub fn use_files_as(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: it takes a number and touches no memory of ours.
    let set_gid = |gid| unsafe { libc::setfsgid(gid) };
    // SAFETY: as above.
    let set_uid = |uid| unsafe { libc::setfsuid(uid) };
    set_gid(gid);
    set_uid(uid);
    // The highest is nobody's: with it they change nothing and tell who it is.
    let (is_gid, is_uid) = (set_gid(u32::MAX), set_uid(u32::MAX));
    if (u32::try_from(is_uid), u32::try_from(is_gid)) == (Ok(uid), Ok(gid)) {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::thread;

    use super::*;

    const NOBODY: u32 = 65_534;

    #[test]
    fn one_thread_alone_uses_files_as_somebody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ours");
        File::create(&path).unwrap().set_permissions(Permissions::from_mode(0o600)).unwrap();
        let theirs = path.clone();

        let opened = thread::spawn(move || {
            use_files_as(NOBODY, NOBODY)?;
            File::open(theirs)
        });

        // Without root, because it may not become somebody else.
        let error = opened.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        File::open(&path).unwrap();
    }
}

//! What the kernel is told about this process: that nobody may read its memory.

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

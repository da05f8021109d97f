//! What the kernel lets this process have.

use std::io;

/// Raises the limit of open files as far as this process may, and gives what it is then: a server holds
/// a connection for each node, and the limit that shells and systemd start programs with is 1,024.
///
/// # Errors
///
/// When the kernel does not say or will not have it; then the limit is as it was.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit`, which is ours and alive.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads one `rlimit`, which is ours and alive.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn afterwards_the_kernel_says_the_same() {
        let raised = raise_open_files().unwrap();
        let text = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(line.split_whitespace().nth(3).unwrap(), raised.to_string());
    }
}

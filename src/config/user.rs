//! Which user this process is: that decides where programs look for files and sockets.

/// The effective user of this process; none where `/proc` does not say. `/proc/self` itself belongs to
/// root in a process with file capabilities; its `status` tells the truth.
#[must_use]
pub fn effective_uid() -> Option<u32> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// The second number of the line `Uid:` (real, effective, saved, file system).
fn parse(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_user_is_read() {
        assert_eq!(parse("Name:\tovd\nUid:\t1000\t65534\t1000\t1000\n"), Some(65534));
        assert_eq!(parse("Name:\tovd\n"), None);
        assert!(effective_uid().is_some());
    }
}

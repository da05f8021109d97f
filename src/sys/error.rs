//! What goes wrong while devices, sockets and routes are set up.

use std::fmt;
use std::io;

/// The kernel refused something: what, why, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SysError {
    /// One line: what did not work, with the thing's name in it.
    pub what: String,
    /// One line: why.
    pub why: String,
    /// What to do; empty when there is nothing to advise.
    pub fix: String,
}

impl SysError {
    pub(crate) fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { what: what.into(), why: why.to_string(), fix: String::new() }
    }

    #[must_use]
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// `error` about `what`; a missing right gets the remedy that fits all that this room does.
    pub(crate) fn from_io(what: impl Into<String>, error: &io::Error) -> Self {
        let this = Self::new(what, error);
        if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
            return this.fix(NET_ADMIN);
        }
        this
    }
}

/// How to get the one right that devices and routes need.
pub(crate) const NET_ADMIN: &str = "run as root or grant CAP_NET_ADMIN \
     (systemd: AmbientCapabilities=CAP_NET_ADMIN; Docker: --cap-add NET_ADMIN)";

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        if !self.fix.is_empty() {
            write!(f, " ({})", self.fix)?;
        }
        Ok(())
    }
}

impl std::error::Error for SysError {}

//! One shape for everything that goes wrong: what, why, and what to do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The class of a problem. Each has one HTTP status and one exit code (design section 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// It went wrong while running, or is committed and not yet enforced. HTTP 500, exit 1.
    Failed,
    /// The request makes no sense. HTTP 400, exit 2.
    Usage,
    /// A named thing does not exist. HTTP 404, exit 3.
    NotFound,
    /// It collides with what is there, or with `--if-revision`. HTTP 409, exit 5.
    Conflict,
    /// The server cannot be reached. Never sent by a server. Exit 6.
    Unreachable,
    /// Not authenticated, or not allowed to. HTTP 401 or 403, exit 7.
    Unauthorized,
    /// Tests of a policy fail. HTTP 422, exit 8.
    Findings,
}

impl ProblemCode {
    /// The exit code of the programs.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 5,
            Self::Unreachable => 6,
            Self::Unauthorized => 7,
            Self::Findings => 8,
        }
    }

    /// The status of an HTTP answer that carries it.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::Failed | Self::Unreachable => 500,
            Self::Usage => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Unauthorized => 401,
            Self::Findings => 422,
        }
    }
}

/// An error for people and scripts: what happened, why, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The class.
    pub code: ProblemCode,
    /// One line: what did not work, with the thing's name in it.
    pub what: String,
    /// One line: why. May be empty when `what` says it all.
    #[serde(default)]
    pub why: String,
    /// What to do, best as a command to copy.
    #[serde(default)]
    pub fix: String,
}

impl Problem {
    /// A problem without reason and remedy; add them with [`Self::why`] and [`Self::fix`].
    pub fn new(code: ProblemCode, what: impl Into<String>) -> Self {
        Self { code, what: what.into(), why: String::new(), fix: String::new() }
    }

    /// Says why.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }
}

impl fmt::Display for Problem {
    /// Up to three lines: `what`, then `why: …`, then `do:  …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.why.is_empty() {
            write!(f, "\n  why: {}", self.why)?;
        }
        if !self.fix.is_empty() {
            write!(f, "\n  do:  {}", self.fix)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

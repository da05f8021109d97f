//! What a command found, as JSON: on standard output at the end, or in a file while it runs.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

/// How old a file may be.
const INTERVAL: Duration = Duration::from_millis(50);

/// Prints the result.
pub(crate) fn print(value: &Value) {
    println!("{value}");
}

/// Says that whoever waits for this command may go on.
pub(crate) fn ready() {
    println!("ready");
}

/// Pauses, between packets.
#[expect(clippy::disallowed_methods, reason = "sends at a pace")]
pub(crate) fn pause(duration: Duration) {
    if !duration.is_zero() {
        std::thread::sleep(duration);
    }
}

/// A file that is written anew every 50 ms.
pub(crate) struct File {
    path: PathBuf,
    written: Option<Instant>,
}

impl File {
    /// The socket timeout of loops that also have a file to write.
    pub(crate) const INTERVAL: Duration = INTERVAL;

    pub(crate) fn new(path: &str) -> Self {
        Self { path: PathBuf::from(path), written: None }
    }

    /// Writes, unless that was done a moment ago. To be called after each packet and each timeout.
    pub(crate) fn update(&mut self, value: impl FnOnce() -> Value) -> Result<()> {
        if self.written.is_some_and(|written| written.elapsed() < INTERVAL) {
            return Ok(());
        }
        self.write(&value())
    }

    /// Writes now: a new file takes the place of the one before.
    pub(crate) fn write(&mut self, value: &Value) -> Result<()> {
        let fresh = self.path.with_extension("new");
        fs::write(&fresh, format!("{value}\n"))?;
        fs::rename(&fresh, &self.path)?;
        self.written = Some(Instant::now());
        Ok(())
    }
}

/// Whether a socket call only ran into its timeout.
pub(crate) fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

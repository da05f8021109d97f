//! Figures that have come to rest. A program counts a packet once the kernel has taken it, and files of
//! counters are up to 50 ms old: what was read the moment that something arrived may still grow.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::support::SOON;
use crate::world::poll;

/// How long a figure has to stay as it is.
const REST: Duration = Duration::from_millis(150);

/// Reads until it is the same for a while.
pub(crate) fn settled<T: PartialEq>(what: &str, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = read()?;
    let mut since = Instant::now();
    poll(SOON, &format!("{what} to come to rest"), || {
        let now = read()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok((since.elapsed() >= REST).then_some(()))
    })?;
    Ok(last)
}

//! Figures that have come to rest. A program counts a packet once the kernel has taken it, and files of
//! counters are up to 50 ms old: what was read the moment that something arrived may still grow.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::support::{Counter, SOON};
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

/// Reads until it is `expected`; what it was instead is in the error.
pub(crate) fn becomes<T: PartialEq + Debug>(
    what: &str,
    expected: &T,
    mut read: impl FnMut() -> Result<T>,
) -> Result<()> {
    let mut last = None;
    poll(SOON, what, || {
        let now = last.insert(read()?);
        Ok((now == expected).then_some(()))
    })
    .with_context(|| format!("{what}: {last:?}, not {expected:?}"))
}

/// Waits until no number is missing of any stream: one that another has overtaken is, for a moment.
pub(crate) fn nothing_missing(streams: &[&Counter]) -> Result<()> {
    let missing = || streams.iter().map(|stream| stream.number("missing")).collect::<Result<_>>();
    becomes("missing of each stream", &vec![0; streams.len()], missing)
}

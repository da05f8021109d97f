//! Logs of all programs: to stderr, filtered, for people or as JSON.
//!
//! Never logged: keys, secrets, tokens, payloads. The types that hold them hide from `Debug`.

#![forbid(unsafe_code)]

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How to log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// A filter such as `info` or `ovmesh::agent=debug`, from `--log`, `OVMESH_LOG` or the
    /// configuration file, in this order.
    pub filter: Option<String>,
    /// How many `-v`: each shows more than `info`. Ignored when there is a filter.
    pub verbosity: u8,
    /// One JSON object a line.
    pub is_json: bool,
    /// Colours: for a terminal whose user does not set `NO_COLOR`.
    pub is_colored: bool,
}

/// Starts logging, once per process. A second call keeps the first one's choice.
///
/// # Errors
///
/// A filter that makes no sense, in words.
pub fn init(options: &LogOptions) -> Result<(), String> {
    let default = match options.verbosity {
        0 => "info",
        1 => "info,ovmesh=debug",
        2.. => "debug,ovmesh=trace",
    };
    let text = options.filter.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(text).map_err(|error| {
        format!("the log filter `{}` makes no sense: {error}", text.escape_default())
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(options.is_colored)
        .with_writer(std::io::stderr);
    // The only way to fail is that somebody was first, which tests do.
    let _ = if options.is_json {
        builder.json().finish().try_init()
    } else {
        builder.with_target(false).finish().try_init()
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_makes_no_sense_is_named() {
        let bad = LogOptions { filter: Some("ovmesh=loud".to_owned()), ..LogOptions::default() };
        let good = LogOptions { filter: Some("ovmesh=debug".to_owned()), ..LogOptions::default() };

        assert!(init(&bad).unwrap_err().contains("ovmesh=loud"));
        assert_eq!(init(&good), Ok(()));
    }
}

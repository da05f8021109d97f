//! bench: ours against a routed veth, kernel VXLAN and our own naive mode, on this machine.
//!
//! ```text
//! make bench                                    everything; set-up included
//! BENCH_ROUNDS=5 BENCH_SECONDS=10 make bench    more of it
//! BENCH_PARTS=rtt,udp BENCH_BEFORE=DIR target/release/examples/bench
//!                                               only these, and beside the programs in DIR
//! ```
//!
//! Every round measures every way once, and the order turns from round to round: what else the
//! machine does hits all ways alike. Ratios are those of one round; the table shows medians. Results
//! are in `target/bench`: `results.json` and `results.svg`.
//!
//! The same program is what runs on the machines: `bench udp-sink`, `udp-search`, `udp-echo`,
//! `round-trips`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

#[path = "../demo/fleet.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod fleet;
mod measure;
mod plot;
mod report;
mod sites;
mod traffic;
#[path = "../demo/world.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use measure::Sample;
use report::{Host, Report};
use sites::Sites;

/// How much is measured.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Settings {
    pub(crate) rounds: u32,
    /// Of one TCP run.
    pub(crate) seconds: u32,
    /// Of one trial of the search for 1% loss.
    pub(crate) trial_millis: u32,
    pub(crate) pings: u32,
    /// What is measured; empty: everything.
    pub(crate) parts: Vec<String>,
    /// Where an earlier build is, to be measured in the same rounds.
    pub(crate) before: Option<PathBuf>,
    pub(crate) cpus: usize,
}

impl Settings {
    fn from_environment() -> Result<Self> {
        let settings = Self {
            rounds: variable("BENCH_ROUNDS", 3)?,
            seconds: variable("BENCH_SECONDS", 3)?,
            trial_millis: variable("BENCH_TRIAL_MILLIS", 300)?,
            pings: variable("BENCH_PINGS", 3_000)?,
            parts: words("BENCH_PARTS"),
            before: std::env::var_os("BENCH_BEFORE").map(PathBuf::from),
            cpus: std::thread::available_parallelism()?.get(),
        };
        let unknown = settings.parts.iter().find(|part| !measure::PARTS.contains(&part.as_str()));
        if let Some(part) = unknown {
            bail!("BENCH_PARTS has `{part}`, expected some of {}", measure::PARTS.join(","));
        }
        if settings.rounds == 0 || settings.seconds == 0 || settings.trial_millis == 0 {
            bail!("BENCH_ROUNDS, BENCH_SECONDS and BENCH_TRIAL_MILLIS are at least 1");
        }
        Ok(settings)
    }
}

fn variable(name: &str, otherwise: u32) -> Result<u32> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is `{text}`, expected a number")),
        Err(_) => Ok(otherwise),
    }
}

fn words(name: &str) -> Vec<String> {
    let text = std::env::var(name).unwrap_or_default();
    text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => compare(),
        ["udp-sink", address] => traffic::sink(parse(address)?),
        ["udp-echo", address] => traffic::echo(parse(address)?),
        ["udp-search", target, size, millis] => {
            let (size, millis) = (parse::<usize>(size)?, parse(millis)?);
            traffic::search(parse(target)?, size.max(6), Duration::from_millis(millis))
        }
        ["round-trips", target, count] => traffic::round_trips(parse(target)?, parse(count)?),
        _ => bail!("usage: bench    (set BENCH_ROUNDS, BENCH_SECONDS for more)"),
    }
}

fn parse<T>(text: &str) -> Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    text.parse().with_context(|| format!("`{text}` does not fit"))
}

fn compare() -> Result<()> {
    let settings = Settings::from_environment()?;
    let host = Host::new(settings.cpus);
    let this = std::env::current_exe()?;
    // target/release/examples/bench
    let programs = this.parent().and_then(|dir| dir.parent()).context("no programs beside this")?;
    if cfg!(debug_assertions) {
        println!("NOTE: this is a debug build; `make bench` measures release builds");
    }
    println!("building the sites: three machines each, a server beside them");
    let sites = Sites::new(programs, &this, settings.before.as_deref())?;
    for (way, why) in &sites.missing {
        println!("  {}: MISSING: {}", way.title(), why.trim().replace('\n', " "));
    }
    let this = this.to_string_lossy().into_owned();
    let idle = sites.all.iter().map(|site| measure::memory_mib(&site.programs));
    let idle: Vec<_> = idle.collect::<Result<_>>()?;

    let mut samples: Vec<Vec<Sample>> = sites.all.iter().map(|_| Vec::new()).collect();
    for round in 0..settings.rounds {
        println!("round {} of {}", round + 1, settings.rounds);
        let count = sites.all.len();
        for step in 0..count {
            // Another way begins each round.
            let index = (step + round as usize) % count;
            let Some(site) = sites.all.get(index) else { continue };
            let sample = measure::measure(site, &this, &settings);
            println!("    {}", report::line(site.way, &sample));
            if let Some(all) = samples.get_mut(index) {
                all.push(sample);
            }
        }
    }

    let ways = sites.all.iter().map(|site| site.way);
    let rows = ways.zip(idle).zip(samples).map(|((way, idle), samples)| (way, idle, samples));
    let report = Report::new(host, settings, rows, &sites.missing);
    report.print();
    let dir: PathBuf = programs.parent().context("no target directory")?.join("bench");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("results.json"), serde_json::to_string_pretty(&report)? + "\n")?;
    std::fs::write(dir.join("results.svg"), plot::svg(&report))?;
    println!("\nwritten: {0}/results.json, {0}/results.svg", dir.display());
    if let Some(what) = report.grown() {
        bail!("{what} is more than it may be");
    }
    let least = f64::from(variable("BENCH_NAIVE_MIN", 0)?);
    match report.times_naive() {
        Some(times) if times < least => {
            bail!("TCP over a SaP is {times:.2}x the naive mode, at least {least}x was asked for")
        }
        None if least > 0.0 => bail!("TCP over a SaP or the naive mode was not measured"),
        Some(_) | None => Ok(()),
    }
}

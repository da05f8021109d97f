//! One site, one round: throughput, loss, round trips, the CPU time and memory of our programs.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::Settings;
use crate::fleet::parse;
use crate::sites::{ECHO_PORT, PINNED_ECHO_PORT, Program, SINK_PORT, Site};
use crate::world::Machine;

/// The kernel's unit of CPU time in `/proc/PID/stat`; 100 a second on every Linux that we run on.
const TICKS_PER_SECOND: f64 = 100.0;
/// Payload of a datagram.
const UDP_BYTES: &str = "64";
/// More than any measurement takes beyond its own length.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one round found at one site. What could not be measured is none, and said when it happens.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sample {
    pub(crate) tcp1_gbps: Option<f64>,
    pub(crate) tcp1_retransmits: Option<f64>,
    pub(crate) tcp4_gbps: Option<f64>,
    pub(crate) udp_kpps: Option<f64>,
    pub(crate) udp_loss_percent: Option<f64>,
    pub(crate) udp_receive_buffer: Option<f64>,
    pub(crate) rtt_p50_us: Option<f64>,
    pub(crate) rtt_p99_us: Option<f64>,
    pub(crate) pinned_rtt_p50_us: Option<f64>,
    pub(crate) pinned_rtt_p99_us: Option<f64>,
    /// CPU seconds for a gigabyte of TCP, by program and of all.
    pub(crate) cpu_seconds_per_gb: Option<f64>,
    pub(crate) cpu_by_program: Vec<(String, f64)>,
    /// Resident memory of each program after the load, in MiB.
    pub(crate) memory_mib: Vec<(String, f64)>,
}

/// What is measured, in this order.
pub(crate) const PARTS: [&str; 5] = ["tcp1", "tcp4", "udp", "rtt", "memory"];

/// Measures a site once.
pub(crate) fn measure(site: &Site, this: &str, settings: &Settings) -> Sample {
    let mut sample = Sample::default();
    let mut problems = Vec::new();
    let parts: [Part; PARTS.len()] = [tcp_1, tcp_4, udp, round_trips, memory];
    for (what, part) in PARTS.into_iter().zip(parts) {
        if !settings.parts.is_empty() && !settings.parts.iter().any(|wanted| wanted == what) {
            continue;
        }
        if let Err(error) = part(&mut sample, site, this, settings) {
            problems.push(format!("{what}: {error:#}"));
        }
    }
    for problem in problems {
        println!("    {}: NOT MEASURED: {}", site.way.name(), problem.replace('\n', " "));
    }
    sample
}

type Part = fn(&mut Sample, &Site, &str, &Settings) -> Result<()>;

fn tcp_1(sample: &mut Sample, site: &Site, _: &str, settings: &Settings) -> Result<()> {
    let before = cpu_seconds(&site.programs)?;
    let result = iperf(site, settings, 1)?;
    let after = cpu_seconds(&site.programs)?;
    let bytes = number(&result, "/end/sum_received/bytes")?;
    sample.tcp1_gbps = Some(number(&result, "/end/sum_received/bits_per_second")? / 1e9);
    sample.tcp1_retransmits = number(&result, "/end/sum_sent/retransmits").ok();
    for ((program, before), after) in site.programs.iter().zip(before).zip(after) {
        sample.cpu_by_program.push((program.name.clone(), (after - before) / (bytes / 1e9)));
    }
    if !site.programs.is_empty() {
        sample.cpu_seconds_per_gb = Some(sample.cpu_by_program.iter().map(|(_, cpu)| cpu).sum());
    }
    Ok(())
}

fn tcp_4(sample: &mut Sample, site: &Site, _: &str, settings: &Settings) -> Result<()> {
    let result = iperf(site, settings, 4)?;
    sample.tcp4_gbps = Some(number(&result, "/end/sum_received/bits_per_second")? / 1e9);
    Ok(())
}

fn udp(sample: &mut Sample, site: &Site, this: &str, settings: &Settings) -> Result<()> {
    let target = SocketAddr::new(site.target, SINK_PORT).to_string();
    let millis = settings.trial_millis.to_string();
    let result = json_of(&site.a, &[this, "udp-search", &target, UDP_BYTES, &millis])?;
    sample.udp_kpps = Some(number(&result, "/kpps")?);
    sample.udp_loss_percent = Some(number(&result, "/lossPercent")?);
    sample.udp_receive_buffer = Some(number(&result, "/receiveBuffer")?);
    Ok(())
}

fn round_trips(sample: &mut Sample, site: &Site, this: &str, settings: &Settings) -> Result<()> {
    let count = settings.pings.to_string();
    let free = SocketAddr::new(site.target, ECHO_PORT).to_string();
    let result = json_of(&site.a, &[this, "round-trips", &free, &count])?;
    sample.rtt_p50_us = Some(number(&result, "/p50")?);
    sample.rtt_p99_us = Some(number(&result, "/p99")?);

    let pinned = SocketAddr::new(site.target, PINNED_ECHO_PORT).to_string();
    pin(&site.programs, "0")?;
    let result = json_of(&site.a, &["taskset", "-c", "0", this, "round-trips", &pinned, &count]);
    // Whatever came of it, the next measurement has all CPUs again.
    pin(&site.programs, &format!("0-{}", settings.cpus.saturating_sub(1)))?;
    let result = result?;
    sample.pinned_rtt_p50_us = Some(number(&result, "/p50")?);
    sample.pinned_rtt_p99_us = Some(number(&result, "/p99")?);
    Ok(())
}

fn memory(sample: &mut Sample, site: &Site, _: &str, _: &Settings) -> Result<()> {
    sample.memory_mib = memory_mib(&site.programs)?;
    Ok(())
}

/// Resident memory of each program.
pub(crate) fn memory_mib(programs: &[Program]) -> Result<Vec<(String, f64)>> {
    let one = |program: &Program| {
        let status = read(program, "status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        let kib: f64 = kib.with_context(|| format!("{} has no VmRSS", program.name))?.parse()?;
        Ok((program.name.clone(), kib / 1024.0))
    };
    programs.iter().map(one).collect()
}

/// User and system time of each program since its start.
fn cpu_seconds(programs: &[Program]) -> Result<Vec<f64>> {
    let one = |program: &Program| {
        let stat = read(program, "stat")?;
        // The name, in parentheses, may contain anything; fields 14 and 15 are the times.
        let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
        let ticks: f64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<f64>().unwrap_or(0.0))
            .sum();
        Ok(ticks / TICKS_PER_SECOND)
    };
    programs.iter().map(one).collect()
}

fn read(program: &Program, file: &str) -> Result<String> {
    let path = format!("/proc/{}/{file}", program.pid);
    program.machine.run(&["cat", &path])?.success(&format!("read {path} of {}", program.name))
}

fn pin(programs: &[Program], cpus: &str) -> Result<()> {
    for program in programs {
        let command = ["taskset", "--all-tasks", "--cpu-list", "--pid", cpus, &program.pid];
        program.machine.run(&command)?.success("taskset")?;
    }
    Ok(())
}

fn iperf(site: &Site, settings: &Settings, streams: u32) -> Result<Value> {
    let (target, streams) = (site.target.to_string(), streams.to_string());
    let seconds = settings.seconds.to_string();
    let command = [
        "iperf3",
        "--client",
        &target,
        "--congestion",
        "cubic",
        "--time",
        &seconds,
        "--parallel",
        &streams,
        "--json",
        "--connect-timeout",
        "5000",
    ];
    json_of(&site.a, &command)
}

fn json_of(machine: &Machine, command: &[&str]) -> Result<Value> {
    let output = machine.run_for(command, PATIENCE)?;
    parse(&output.success(&command.join(" "))?)
}

fn number(value: &Value, pointer: &str) -> Result<f64> {
    let found = value.pointer(pointer).and_then(Value::as_f64);
    found.with_context(|| format!("no number at {pointer}: {value}"))
}

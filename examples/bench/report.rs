//! What came of it: medians, spread, ratios, what the aims are; as a table and as JSON.

use std::fs;

use serde::Serialize;

use crate::Settings;
use crate::measure::Sample;
use crate::sites::Way;

/// Everything, as it is written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    machine: Host,
    settings: Settings,
    pub(crate) ways: Vec<WayReport>,
    missing: Vec<(&'static str, String)>,
    reach: Vec<Reach>,
}

/// Where it was measured.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Host {
    cpus: usize,
    cpu: String,
    kernel: String,
    /// What every socket gets, and what it may ask for.
    rmem_default: String,
    rmem_max: String,
    load_before: String,
}

/// One way.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WayReport {
    #[serde(skip)]
    pub(crate) way: Way,
    name: &'static str,
    title: &'static str,
    figures: Vec<Figure>,
    idle_memory_mib: Vec<(String, f64)>,
    samples: Vec<Sample>,
}

/// One thing that was measured in every round.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Figure {
    name: &'static str,
    median: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    /// Median of the rounds' ratios.
    of_raw: Option<f64>,
    of_naive: Option<f64>,
}

/// An aim and what became of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reach {
    what: &'static str,
    aim: String,
    got: Option<f64>,
    is_met: Option<bool>,
}

type Pick = fn(&Sample) -> Option<f64>;

/// What is shown: name, unit, digits.
const FIGURES: &[(&str, usize, Pick)] = &[
    ("TCP 1 stream, Gbit/s", 2, |s| s.tcp1_gbps),
    ("TCP 4 streams, Gbit/s", 2, |s| s.tcp4_gbps),
    ("UDP 64 B at 1% loss, kpps", 0, |s| s.udp_kpps),
    ("RTT p50 pinned, us", 1, |s| s.pinned_rtt_p50_us),
    ("RTT p99 pinned, us", 1, |s| s.pinned_rtt_p99_us),
    ("RTT p50, us", 1, |s| s.rtt_p50_us),
    ("RTT p99, us", 1, |s| s.rtt_p99_us),
    ("CPU of our programs, s/GB", 2, |s| s.cpu_seconds_per_gb),
];

impl Report {
    pub(crate) fn new(
        machine: Host,
        settings: Settings,
        rows: impl Iterator<Item = (Way, Vec<(String, f64)>, Vec<Sample>)>,
        missing: &[(Way, String)],
    ) -> Self {
        let rows: Vec<_> = rows.collect();
        let samples_of = |wanted: Way| {
            rows.iter().find(|(way, ..)| *way == wanted).map_or(&[][..], |(.., all)| all)
        };
        let ways = rows
            .iter()
            .map(|(way, idle, samples)| WayReport {
                way: *way,
                name: way.name(),
                title: way.title(),
                figures: FIGURES
                    .iter()
                    .map(|&(name, _, pick)| {
                        let all = values(samples, pick);
                        Figure {
                            name,
                            median: median(all.clone()),
                            low: all.iter().copied().reduce(f64::min),
                            high: all.iter().copied().reduce(f64::max),
                            of_raw: ratio(samples, samples_of(Way::Raw), pick),
                            of_naive: ratio(samples, samples_of(Way::Naive), pick),
                        }
                    })
                    .collect(),
                idle_memory_mib: idle.clone(),
                samples: samples.clone(),
            })
            .collect();
        let reach = reach(samples_of(Way::Raw), samples_of(Way::Naive), samples_of(Way::Direct), {
            let sap = rows.iter().find(|(way, ..)| *way == Way::Sap);
            sap.map_or((&[], &[]), |(_, idle, samples)| (idle.as_slice(), samples.as_slice()))
        });
        let missing = missing.iter().map(|(way, why)| (way.name(), why.clone())).collect();
        Self { machine, settings, ways, missing, reach }
    }

    /// One TCP stream over a SaP, as a multiple of the naive mode's.
    pub(crate) fn times_naive(&self) -> Option<f64> {
        let sap = self.ways.iter().find(|way| way.way == Way::Sap)?;
        sap.figures.iter().find(|figure| figure.name.starts_with("TCP 1"))?.of_naive
    }

    /// The program whose memory grew more than it may, if there is one.
    pub(crate) fn grown(&self) -> Option<&'static str> {
        let mut growth = self.reach.iter().filter(|row| row.what.starts_with("growth"));
        growth.find(|row| row.is_met == Some(false)).map(|row| row.what)
    }

    /// The tables, for people.
    pub(crate) fn print(&self) {
        let host = &self.machine;
        println!("\n{} CPUs ({}), Linux {}", host.cpus, host.cpu, host.kernel);
        println!(
            "{} rounds, TCP {} s, cubic; net.core.rmem_default {}, rmem_max {}; load before: {}\n",
            self.settings.rounds,
            self.settings.seconds,
            host.rmem_default,
            host.rmem_max,
            host.load_before
        );
        for (index, &(name, digits, _)) in FIGURES.iter().enumerate() {
            println!("{name:<44} {:>9} {:>19} {:>8} {:>8}", "median", "spread", "x raw", "x naive");
            for way in &self.ways {
                let Some(figure) = way.figures.get(index) else { continue };
                if figure.median.is_none() {
                    continue;
                }
                let number = |value: Option<f64>, digits: usize| {
                    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
                };
                let spread =
                    format!("{}-{}", number(figure.low, digits), number(figure.high, digits));
                println!(
                    "  {:<42} {:>9} {spread:>19} {:>8} {:>8}",
                    way.title,
                    number(figure.median, digits),
                    number(figure.of_raw, 2),
                    number(figure.of_naive, 2)
                );
            }
        }
        println!(
            "\nby program                                   CPU s/GB  MiB idle  MiB after load"
        );
        for way in self.ways.iter().filter(|way| !way.idle_memory_mib.is_empty()) {
            for (program, idle) in &way.idle_memory_mib {
                let of = |pick: fn(&Sample) -> &[(String, f64)]| {
                    let all = way.samples.iter().flat_map(pick);
                    median(all.filter(|(name, _)| name == program).map(|(_, v)| *v).collect())
                };
                println!(
                    "  {:<42} {:>9.2} {idle:>9.1} {:>15.1}",
                    format!("{}: {program}", way.name),
                    of(|sample| &sample.cpu_by_program).unwrap_or(f64::NAN),
                    of(|sample| &sample.memory_mib).unwrap_or(f64::NAN)
                );
            }
        }
        let buffers: Vec<f64> = self
            .ways
            .iter()
            .flat_map(|way| values(&way.samples, |sample| sample.udp_receive_buffer))
            .collect();
        println!(
            "\nthe UDP sink got {} bytes of socket buffer",
            buffers.first().map_or_else(|| "-".to_owned(), ToString::to_string)
        );
        println!("\n{:<48} {:>12} {:>10}", "reach (over a SaP)", "aim", "got");
        for row in &self.reach {
            let got = row.got.map_or_else(|| "-".to_owned(), |got| format!("{got:.2}"));
            let verdict = match row.is_met {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "not measured",
            };
            println!("{:<48} {:>12} {got:>10}  {verdict}", row.what, row.aim);
        }
        for (way, why) in &self.missing {
            println!("missing: {way}: {}", why.trim().replace('\n', " "));
        }
    }
}

/// The aims of the data path, from medians of this run.
fn reach(
    raw: &[Sample],
    naive: &[Sample],
    direct: &[Sample],
    (idle, sap): (&[(String, f64)], &[Sample]),
) -> Vec<Reach> {
    let at_least = |what, aim: f64, unit: &str, got: Option<f64>| Reach {
        what,
        aim: format!(">= {aim}{unit}"),
        got,
        is_met: got.map(|got| got >= aim),
    };
    let at_most = |what, aim: f64, unit: &str, got: Option<f64>| Reach {
        what,
        aim: format!("<= {aim}{unit}"),
        got,
        is_met: got.map(|got| got <= aim),
    };
    let added = sap
        .iter()
        .zip(direct)
        .filter_map(|(sap, direct)| Some(sap.pinned_rtt_p50_us? - direct.pinned_rtt_p50_us?));
    let most = |program: &str| {
        let all = sap.iter().flat_map(|sample| &sample.memory_mib);
        all.filter(|(name, _)| name.starts_with(program)).map(|(_, mib)| *mib).reduce(f64::max)
    };
    let growth = |program: &str| {
        let before = idle.iter().filter(|(name, _)| name.starts_with(program)).map(|(_, mib)| *mib);
        Some(most(program)? - before.reduce(f64::max)?)
    };
    vec![
        at_least("TCP 1 stream, of naive", 7.0, "x", ratio(sap, naive, |s| s.tcp1_gbps)),
        at_least("TCP 1 stream", 7.0, " Gbit/s", median(values(sap, |s| s.tcp1_gbps))),
        at_least("UDP 64 B at 1% loss, of raw", 1.0, "x", ratio(sap, raw, |s| s.udp_kpps)),
        at_most("added RTT of one SaP, pinned", 10.0, " us", median(added.collect())),
        at_most("RTT p50 pinned", 32.0, " us", median(values(sap, |s| s.pinned_rtt_p50_us))),
        at_most("CPU of all programs", 2.0, " s/GB", median(values(sap, |s| s.cpu_seconds_per_gb))),
        at_most("memory of ovd, most", 20.0, " MiB", most("ovd")),
        at_most("memory of ovsap, most", 30.0, " MiB", most("ovsap")),
        at_most("growth of ovd under load", 2.0, " MiB", growth("ovd")),
        at_most("growth of ovsap under load", 2.0, " MiB", growth("ovsap")),
    ]
}

impl Host {
    /// To be called before the load of the benchmark itself.
    pub(crate) fn new(cpus: usize) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpus,
            cpu: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            kernel: read("/proc/sys/kernel/osrelease"),
            rmem_default: read("/proc/sys/net/core/rmem_default"),
            rmem_max: read("/proc/sys/net/core/rmem_max"),
            load_before: read("/proc/loadavg"),
        }
    }
}

impl WayReport {
    /// The median of a figure by the beginning of its name.
    pub(crate) fn median(&self, figure: &str) -> Option<f64> {
        self.figures.iter().find(|known| known.name.starts_with(figure))?.median
    }
}

/// One site, one round, in a line.
pub(crate) fn line(way: Way, sample: &Sample) -> String {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    format!(
        "{:<7} TCP {:>6} / {:>6} Gbit/s   UDP {:>5} kpps   RTT {:>6} us pinned, {:>6} us   CPU {} s/GB",
        way.name(),
        number(sample.tcp1_gbps, 2),
        number(sample.tcp4_gbps, 2),
        number(sample.udp_kpps, 0),
        number(sample.pinned_rtt_p50_us, 1),
        number(sample.rtt_p50_us, 1),
        number(sample.cpu_seconds_per_gb, 2)
    )
}

fn values(samples: &[Sample], pick: Pick) -> Vec<f64> {
    samples.iter().filter_map(pick).collect()
}

/// The median of the ratios of the rounds.
fn ratio(samples: &[Sample], base: &[Sample], pick: Pick) -> Option<f64> {
    let rounds = samples.iter().zip(base);
    median(rounds.filter_map(|(one, base)| Some(pick(one)? / pick(base)?)).collect())
}

fn median(mut all: Vec<f64>) -> Option<f64> {
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    match all.len() {
        0 => None,
        count if count % 2 == 1 => all.get(middle).copied(),
        _ => Some(f64::midpoint(*all.get(middle - 1)?, *all.get(middle)?)),
    }
}

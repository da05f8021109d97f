//! Many flows at once on real packets: who answers whom, and whether that is what policy says.

use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::{READY, Rig, Running};

/// How long an answer may take. What comes later was held up: it is asked for again.
const ANSWER_MILLIS: &str = "250";

/// A flow that a machine tries to open, and what policy says of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    /// The machine that starts.
    pub(crate) from: String,
    /// The machine that is asked.
    pub(crate) to: String,
    /// The overlay.
    pub(crate) overlay: String,
    /// As `netkit probe` has it: `tcp/80`.
    pub(crate) service: String,
    /// What is expected.
    pub(crate) passes: bool,
}

/// Answers each service that some flow asks its machine for.
pub(crate) fn serve(rig: &Rig, flows: &[Flow]) -> Result<Vec<Running>> {
    let mut services: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for flow in flows.iter().filter(|flow| flow.service != "icmp") {
        services.entry(&flow.to).or_default().push(&flow.service);
    }
    thread::scope(|scope| {
        let one = |(machine, mut services): (&str, Vec<&str>)| {
            services.sort_unstable();
            services.dedup();
            rig.run(machine, &[&["probe-serve"], services.as_slice()].concat())
        };
        let threads: Vec<_> =
            services.into_iter().map(|machine| scope.spawn(move || one(machine))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Tries all flows until each that must pass has passed. One that must not pass and does fails at once.
pub(crate) fn expect(rig: &Rig, addresses: &Addresses, flows: &[Flow]) -> Result<()> {
    let started = Instant::now();
    let mut passed = vec![false; flows.len()];
    loop {
        for (passed, now) in passed.iter_mut().zip(ask(rig, addresses, flows)?) {
            *passed |= now;
        }
        let told = |passes: bool| {
            let wrong = flows.iter().zip(&passed).filter(move |(flow, _)| flow.passes == passes);
            let wrong = wrong.filter(|(flow, passed)| flow.passes != **passed);
            wrong.map(|(flow, _)| format!("{} {} {}", flow.from, flow.to, flow.service))
        };
        let leaks: Vec<String> = told(false).collect();
        ensure!(leaks.is_empty(), "these must not pass, and do: {}", leaks.join(", "));
        let missing: Vec<String> = told(true).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let is_late = started.elapsed() > READY;
        ensure!(!is_late, "these must pass, and do not: {}", missing.join(", "));
    }
}

/// Where each machine is in each overlay.
pub(crate) type Addresses = BTreeMap<(String, String), String>;

/// Asks each machine's flows at the same time; says which were answered.
fn ask(rig: &Rig, addresses: &Addresses, flows: &[Flow]) -> Result<Vec<bool>> {
    let mut questions: BTreeMap<&str, Vec<(usize, String)>> = BTreeMap::new();
    for (number, flow) in flows.iter().enumerate() {
        let address = addresses.get(&(flow.to.clone(), flow.overlay.clone()));
        let address = address.with_context(|| format!("{} is not in {}", flow.to, flow.overlay))?;
        let question = format!("{}@{address}", flow.service);
        questions.entry(&flow.from).or_default().push((number, question));
    }
    let mut passed = vec![false; flows.len()];
    let answers: Vec<Result<Value>> = thread::scope(|scope| {
        let one = |machine: &str, asked: &[(usize, String)]| {
            let words = asked.iter().map(|(_, question)| question.as_str());
            let words: Vec<&str> = ["probe", ANSWER_MILLIS].into_iter().chain(words).collect();
            rig.fleet.netkit_json(machine, &words)
        };
        let threads: Vec<_> = questions
            .iter()
            .map(|(machine, asked)| scope.spawn(move || one(machine, asked)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    for (asked, answer) in questions.values().zip(answers) {
        let answered = answer?["answered"].as_array().cloned().context("no answers")?;
        for ((number, _), answered) in asked.iter().zip(answered) {
            passed[*number] = answered == true;
        }
    }
    Ok(passed)
}

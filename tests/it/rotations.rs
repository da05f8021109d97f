//! Rotations under load: how many packets are lost (none), also when the server is killed at any step,
//! or somebody on whom no flow depends, or one node alone is cut off from it; and when an old key ends.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::keys::{short_grace, start_with_grace};
use crate::packet::{gue, udp};
use crate::settled::settled;
use crate::support::{Counter, READY, Rig, SOON, number, play};
use crate::world::{Process, poll};

/// How long one rotation may take with a grace time of 1 s.
const ROTATED: Duration = Duration::from_secs(20);

/// Each sends to the next one, and the last one to the first.
const RING: [&str; 4] = ["a", "b", "c", "d"];

const RING_PAIRS: [(&str, &str); 4] = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")];

/// Microseconds between two datagrams of one sender: all four together send 2,000 a second.
const INTERVAL_MICROS: u64 = 2_000;

#[test]
fn rotations_under_2000_packets_a_second_lose_nothing() {
    rotate_under_load(3);
}

#[test]
#[ignore = "long"]
fn sixty_rotations_under_2000_packets_a_second_lose_nothing() {
    rotate_under_load(15);
}

#[test]
#[ignore = "long"]
fn a_thousand_rotations_under_2000_packets_a_second_lose_nothing() {
    rotate_under_load(250);
}

/// Each round rotates the keys of all four destinations at once.
#[expect(clippy::print_stderr, reason = "a figure to be read")]
fn rotate_under_load(rounds: u64) {
    play(&["s1"], &RING, |rig| {
        short_grace(rig)?;
        let flows = Flows::start(rig, &RING_PAIRS, &[])?;
        let mut keys = BTreeSet::from([rig.send_key("a", "b")?]);
        for _ in 0..rounds {
            rig.fleet.ovctl_ok(&["key", "rotate", "--all", "--no-wait"])?;
            steady(rig)?;
            keys.insert(rig.send_key("a", "b")?);
        }
        ensure!(keys.len() > usize::try_from(rounds)?, "a key came twice, or stayed");
        let sent = flows.end(rig)?;
        let buffer = receive_buffer(rig, "s1")?;
        eprintln!(
            "{} rotations, {sent} packets sent, 0 lost (receive buffer of the SaP: {buffer} bytes)",
            4 * rounds
        );
        no_wrong_key(rig)
    });
}

#[test]
#[ignore = "long"]
fn a_server_that_is_killed_at_any_step_loses_nothing_and_goes_on() {
    play(&["s1"], &RING, |rig| {
        short_grace(rig)?;
        let flows = Flows::start(rig, &RING_PAIRS, &[])?;
        let mut seen = BTreeSet::new();
        for wanted in ["adding", "switching", "retiring"] {
            for _ in 0..12 {
                let first = rig.send_key("a", "b")?;
                rig.fleet.ovctl_ok(&["key", "rotate", "--all", "--no-wait"])?;
                poll(ROTATED, wanted, || {
                    let steps = steps(rig)?;
                    let is_steady = steps.iter().all(|step| step == "steady");
                    let is_over = is_steady && rig.send_key("a", "b")? != first;
                    Ok((steps.contains(wanted) || is_over).then_some(()))
                })?;
                rig.fleet.server_process().context("no server")?.kill()?;
                start_with_grace(rig, 1)?;
                // What it finds in its database, before any node has come back to it.
                seen.extend(steps(rig)?);
                steady(rig)?;
                ensure!(rig.send_key("a", "b")? != first, "the rotation did not go on");
                if seen.contains(wanted) {
                    break;
                }
            }
        }
        for step in ["adding", "switching", "retiring"] {
            ensure!(seen.contains(step), "the server was never killed while {step}: {seen:?}");
        }
        flows.end(rig)?;
        no_wrong_key(rig)
    });
}

#[test]
#[ignore = "long"]
fn whoever_is_cut_off_from_the_server_is_named_and_waited_for_and_nothing_is_lost() {
    play(&["s1"], &RING, |rig| {
        short_grace(rig)?;
        let flows = Flows::start(rig, &RING_PAIRS, &[])?;
        // As receiver of its own keys, as the sender of b's, and as who carries them all.
        for (cut_off, to, step) in
            [("b", "b", "adding"), ("a", "b", "switching"), ("s1", "b", "adding")]
        {
            let before = rig.send_key("a", "b")?;
            from_server(rig, cut_off, "add")?;
            rig.fleet.ovctl_ok(&["key", "rotate", to, "--no-wait"])?;
            waits_for(rig, to, step, cut_off)?;
            ensure!(rig.send_key("a", "b")? == before || step == "switching");
            // It waits for as long as it takes.
            flows.go_on(200)?;
            ensure!(steps(rig)?.contains(step), "it went on without {cut_off}");
            from_server(rig, cut_off, "del")?;
            rig.reconnected()?;
            steady(rig)?;
        }
        flows.end(rig)?;
        no_wrong_key(rig)
    });
}

/// Who is killed at which step of the rotation to whom, and who keeps it at that step by being cut off from
/// the server: SaPs learn new keys while adding, senders switch.
type Kill = (&'static str, &'static str, &'static str, Option<&'static str>);

const KILLS: [Kill; 6] = [
    ("c", "switching", "b", Some("c")),
    ("s2", "adding", "b", Some("s2")),
    ("c", "adding", "c", Some("c")),
    ("c", "retiring", "b", None),
    ("s2", "switching", "b", Some("c")),
    ("s2", "retiring", "b", None),
];

#[test]
#[ignore = "long"]
fn who_is_killed_at_any_step_of_a_rotation_costs_others_nothing_and_no_old_key_lives_on() {
    play(&["s1", "s2"], &RING, |rig| {
        // Long enough for a kill while old keys retire.
        crate::keys::grace(rig, 3)?;
        // None of these goes over `c` or `s2`, and the other one over both.
        let others = [("a", "b"), ("b", "d"), ("d", "a")];
        let flows = Flows::start(rig, &others, &["--via", "s1"])?;
        rig.allow(&["a", "c", "--port", "udp/10", "--via", "s2"])?;
        rig.allow(&["c", "b", "--port", "udp/11"])?;
        let own = rig.udp_sink("c", 10)?;
        let (many, interval) = (u32::MAX.to_string(), INTERVAL_MICROS.to_string());
        let _stream = rig.udp_stream_with("a", "c", 10, &[&many, &interval, "64"])?;
        own.expect_growth("received", 50)?;
        let mut old = Vec::new();
        for &(victim, step, to, held_by) in &KILLS {
            let at = format!("{victim} killed while {step}");
            old.push(rig.send_key("a", "c")?);
            if let Some(node) = held_by {
                from_server(rig, node, "add")?;
            }
            rig.fleet.ovctl_ok(&["key", "rotate", "--all", "--no-wait"])?;
            match held_by {
                Some(node) => waits_for(rig, to, step, node)?,
                None => poll(ROTATED, step, || Ok((step_of(rig, to)? == step).then_some(())))?,
            }
            rig.fleet.node_mut(victim)?.kill()?;
            ensure!(step_of(rig, to)? == step, "the rotation went on before {at}");
            if let Some(node) = held_by {
                from_server(rig, node, "del")?;
            }
            if held_by == Some(victim) {
                waits_for(rig, to, step, victim)?;
            }
            flows.go_on(200).context(at.clone())?;
            rig.fleet.node_mut(victim)?.start()?;
            rig.reconnected()?;
            steady(rig).context(at.clone())?;
            own.expect_growth("received", 20).context(at.clone())?;
            for node in ["a", "b", "c", "d", "s1", "s2"] {
                let drops = rig.fleet.node(node)?.drops("key")?;
                ensure!(drops == 0, "{at}: {node} dropped {drops} for their key");
            }
        }
        flows.end(rig)?;

        let packet =
            |key| Ok::<_, anyhow::Error>(gue(key, &udp(rig.at("a", 4)?, rig.at("c", 10)?, b"x")));
        ensure!(!old.contains(&rig.send_key("a", "c")?), "a key came back");
        let old = old.into_iter().map(packet).collect::<Result<Vec<_>>>()?;
        let all = 3 * u64::try_from(old.len())?;
        rig.drops_move("s2", "key", all, || rig.inject("a", "s2", &old, 3))?;
        rig.drops_move("c", "key", all, || rig.inject("s2", "c", &old, 3))
    });
}

#[test]
fn an_old_key_ends_in_time_at_a_node_that_lost_the_server() {
    play(&["s1"], &["a", "b"], |rig| {
        let grace = 8;
        crate::keys::grace(rig, grace)?;
        rig.allow(&["a", "b"])?;
        let sink = rig.udp_sink("b", 9)?;
        let old = rig.send_key("a", "b")?;
        let packet =
            |key| Ok::<_, anyhow::Error>(gue(key, &udp(rig.at("a", 4)?, rig.at("b", 9)?, b"x")));
        let old_packet = packet(old)?;

        rig.fleet.ovctl_ok(&["key", "rotate", "b", "--no-wait"])?;
        poll(ROTATED, "the old key to retire", || {
            Ok(steps(rig)?.contains("retiring").then_some(()))
        })?;
        rig.settle()?;
        for node in ["b", "s1"] {
            from_server(rig, node, "add")?;
        }
        rig.inject("s1", "b", std::slice::from_ref(&old_packet), 5)?;
        sink.expect_received(5).context("in its grace time it still counts")?;
        ensure!(rig.send_key("a", "b")? != old, "a still stamps the old key");

        for node in ["b", "s1"] {
            let from = if node == "b" { "s1" } else { "a" };
            poll(Duration::from_secs(grace + 4), "the old key to end", || {
                let before = rig.fleet.node(node)?.drops("key")?;
                rig.inject(from, node, std::slice::from_ref(&old_packet), 1)?;
                Ok((rig.fleet.node(node)?.drops("key")? > before).then_some(()))
            })?;
            settled("what is counted late", || rig.fleet.node(node)?.drops("key"))?;
            rig.drops_move(node, "key", 20, || {
                rig.inject(from, node, std::slice::from_ref(&old_packet), 20)
            })?;
        }
        let before = sink.received()?;
        let new_packet = packet(rig.send_key("a", "b")?)?;
        rig.inject("a", "s1", &[new_packet], 20)?;
        sink.expect_received(before + 20)
    });
}

/// Flows that go on and on.
struct Flows {
    sinks: Vec<Counter>,
    senders: Vec<Process>,
    /// Ends the senders when it is there.
    stop: PathBuf,
}

impl Flows {
    /// One for each pair, with a rule of these options.
    fn start(rig: &Rig, pairs: &[(&str, &str)], options: &[&str]) -> Result<Self> {
        let (mut sinks, mut senders, stop) = (Vec::new(), Vec::new(), rig.file("stop"));
        for &(from, to) in pairs {
            rig.allow(&[&[from, to, "--port", "udp/9"], options].concat())?;
            sinks.push(rig.udp_sink(to, 9)?);
            let (many, interval) = (u32::MAX.to_string(), INTERVAL_MICROS.to_string());
            let words = [many.as_str(), &interval, "64", &stop.to_string_lossy()];
            senders.push(rig.udp_stream_with(from, to, 9, &words)?);
        }
        let flows = Self { sinks, senders, stop };
        flows.go_on(50)?;
        Ok(flows)
    }

    /// Waits until every sink got so many more.
    fn go_on(&self, more: u64) -> Result<()> {
        self.sinks.iter().try_for_each(|sink| sink.expect_growth("received", more))
    }

    /// Ends all flows; how much was sent, all of which arrived, and once.
    fn end(mut self, rig: &Rig) -> Result<u64> {
        self.go_on(50)?;
        std::fs::write(&self.stop, "")?;
        let mut sent = 0;
        for sender in &mut self.senders {
            let code = sender.wait(SOON)?;
            ensure!(code == 0, "{}", sender.log_text());
            let report = crate::fleet::parse(&sender.log_text())?;
            ensure!(number(&report, "refused")? == 0, "the host refused some: {report}");
            sent += number(&report, "sent")?;
        }
        let mut received = 0;
        let outcome = poll(SOON, "everything to arrive", || {
            received = self.sinks.iter().map(Counter::received).sum::<Result<u64>>()?;
            Ok((received >= sent).then_some(()))
        });
        if outcome.is_err() {
            let full = ["a", "b", "c", "d", "s1"].map(|node| overflows(rig, node));
            bail!("{} of {sent} lost; full receive buffers: {full:?}", sent - received);
        }
        ensure!(received == sent, "{received} arrived of {sent}: some were doubled");
        Ok(sent)
    }
}

/// Waits until the rotation of the keys to `to` stands at `step` and is said to wait for `node` alone.
fn waits_for(rig: &Rig, to: &str, step: &str, node: &str) -> Result<()> {
    poll(ROTATED, &format!("{node} to be waited for while {step}"), || {
        let ring = ring_to(rig, to)?;
        let is_named = ring["waitingFor"] == serde_json::json!([node]);
        Ok((ring["step"] == step && is_named).then_some(()))
    })?;
    let status = rig.fleet.ovctl_ok(&["status"])?;
    ensure!(status.contains(&format!("waits for {node}")), "{status}");
    Ok(())
}

/// How the keys to `to` are.
fn ring_to(rig: &Rig, to: &str) -> Result<Value> {
    let list = rig.fleet.ovctl_json(&["key", "list"])?;
    let rings = list["items"].as_array().context("a list has items")?;
    rings.iter().find(|ring| ring["to"] == to).cloned().context("no such key")
}

fn step_of(rig: &Rig, to: &str) -> Result<String> {
    Ok(ring_to(rig, to)?["step"].as_str().unwrap_or_default().to_owned())
}

/// The steps in which keys are.
fn steps(rig: &Rig) -> Result<BTreeSet<String>> {
    let list = rig.fleet.ovctl_json(&["key", "list"])?;
    let rings = list["items"].as_array().context("a list has items")?;
    Ok(rings.iter().filter_map(|ring| ring["step"].as_str().map(str::to_owned)).collect())
}

/// Waits until no key is being rotated.
fn steady(rig: &Rig) -> Result<()> {
    let mut last = Value::Null;
    poll(READY, "every key to be steady", || {
        last = rig.fleet.ovctl_json(&["key", "list"])?;
        let keys = last["items"].as_array().context("a list has items")?;
        Ok(keys.iter().all(|key| key["step"] == "steady").then_some(()))
    })
    .with_context(|| format!("{last:#}"))
}

/// Cuts a node off from the server alone, or gives it back.
pub(crate) fn from_server(rig: &Rig, node: &str, verb: &str) -> Result<()> {
    let server = &rig.fleet.server;
    let machine = rig.fleet.machine(node)?;
    // What goes there, and what would come from there.
    for (at, away) in [(machine, server.ip4), (server, machine.ip4)] {
        let route = ["ip", "route", verb, "blackhole", &format!("{away}/32")];
        at.run(&route)?.success("ip route")?;
    }
    Ok(())
}

/// Nobody saw a key that it did not accept.
fn no_wrong_key(rig: &Rig) -> Result<()> {
    for node in ["a", "b", "c", "d", "s1"] {
        let drops = rig.fleet.node(node)?.drops("key")?;
        ensure!(drops == 0, "{node} dropped {drops} for their key");
    }
    Ok(())
}

/// The receive buffer that a node's socket got, in bytes.
fn receive_buffer(rig: &Rig, node: &str) -> Result<String> {
    let sockets = rig.fleet.machine(node)?.run(&["ss", "-uanm", "sport = :6080"])?.success("ss")?;
    let (_, after) = sockets.split_once("rb").context("no receive buffer")?;
    Ok(after.chars().take_while(char::is_ascii_digit).collect())
}

/// How many datagrams found a full receive buffer on this machine.
fn overflows(rig: &Rig, node: &str) -> Result<String> {
    let snmp = rig.fleet.machine(node)?.run(&["grep", "Udp:", "/proc/net/snmp"])?.stdout;
    Ok(snmp.lines().nth(1).unwrap_or_default().to_owned())
}

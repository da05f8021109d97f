//! Several lanes: more sockets, queues and threads; the same packets.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::settled::becomes;
use crate::support::{LAB_CIDR, Rig, SOON, number, play, play_in};
use crate::world::{Machine, poll};

/// Lanes of each program; more than the machine may have CPUs.
const LANES: usize = 4;
const FLOWS: u64 = 1000;
const ROUNDS: u64 = 3;

#[test]
fn on_four_lanes_no_reply_of_a_thousand_flows_is_lost() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b", "--port", "udp/9,tcp/80"])?;
        with_lanes(rig, LANES)?;
        let before = drops(rig)?;

        let report = flows(rig)?;
        ensure!(number(&report, "received")? == FLOWS * ROUNDS, "{report}");
        ensure!(number(&report, "sent")? == FLOWS * ROUNDS, "{report}");
        let _http = rig.http_echo("b", 80)?;
        ensure!(rig.http_get("a", "b", 80, 5)? == 5, "TCP does not pass");

        let after = drops(rig)?;
        ensure!(before == after, "something was dropped\nbefore: {before:?}\nafter: {after:?}");
        // The counters are those of all lanes together: requests and replies.
        for (name, hallway, least) in
            [("a", "egress", 1), ("a", "ingress", 1), ("s1", "transit", 2), ("b", "ingress", 1)]
        {
            let moved = rig.fleet.node(name)?.packets(hallway)?;
            ensure!(moved >= least * FLOWS * ROUNDS, "{name} {hallway} counted {moved}");
        }
        // Only what a rule allows, on every lane: b may not begin.
        let _echo = rig.udp_echo("a", 9)?;
        ensure!(rig.udp_ping("b", "a", 9, 20)? == 0, "b opened a flow");
        Ok(())
    });
}

#[test]
#[ignore = "long"]
fn ipv6_uses_its_lanes_as_well() {
    play_in("fd70::/64", &["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b", "--port", "udp/9"])?;
        with_lanes(rig, LANES)?;
        let report = flows(rig)?;
        ensure!(number(&report, "received")? == FLOWS * ROUNDS, "{report}");
        Ok(())
    });
}

#[test]
fn lanes_and_their_devices_come_and_go_without_a_rest() {
    play_in(LAB_CIDR, &["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b", "--port", "udp/9"])?;
        let _echo = rig.udp_echo("b", 9)?;
        for lanes in [LANES, 1, LANES] {
            with_lanes(rig, lanes)?;
            for name in ["a", "b"] {
                let machine = rig.fleet.machine(name)?;
                ensure!(queues(machine)? == lanes, "ov0 of {name} has {} queues", queues(machine)?);
                expect_threads(rig, name, [lanes, lanes, 0])?;
            }
            expect_threads(rig, "s1", [0, 0, lanes])?;
            ensure!(rig.udp_ping("a", "b", 9, 5)? == 5, "nothing passes on {lanes} lanes");
        }

        // A device that somebody deletes is made again, with all of its queues, and no thread stays.
        let machine = rig.fleet.machine("a")?;
        machine.run(&["ip", "link", "delete", "ov0"])?.success("delete ov0")?;
        poll(SOON, "a to make ov0 again", || {
            let is_back = queues(machine).is_ok_and(|queues| queues == LANES);
            let passes = || rig.udp_ping("a", "b", 9, 1).is_ok_and(|received| received == 1);
            Ok((is_back && passes()).then_some(()))
        })?;
        expect_threads(rig, "a", [LANES, LANES, 0])?;

        // Gone with its program, and so are the sockets: the next start has the port.
        let node = rig.fleet.node_mut("a")?;
        ensure!(node.stop()? == 0, "a does not stop by itself");
        ensure!(queues(rig.fleet.machine("a")?).is_err(), "ov0 outlives ovd");
        rig.fleet.node_mut("a")?.start()
    });
}

/// Starts everybody anew with so many lanes.
fn with_lanes(rig: &mut Rig, lanes: usize) -> Result<()> {
    for name in ["a", "s1", "b"] {
        let node = rig.fleet.node_mut(name)?;
        ensure!(node.stop()? == 0, "{name} does not stop by itself");
        node.set_options(&["--lanes", &lanes.to_string()]);
        node.start()?;
    }
    rig.reconnected()?;
    rig.settle()
}

fn flows(rig: &Rig) -> Result<Value> {
    let _echo = rig.udp_echo("b", 9)?;
    let target = rig.at("b", 9)?.to_string();
    let words = ["udp-flows", &target, &FLOWS.to_string(), &ROUNDS.to_string(), "5000"];
    rig.fleet.netkit_json("a", &words)
}

/// What a, s1 and b dropped so far.
fn drops(rig: &Rig) -> Result<[Value; 3]> {
    let drops = |name| Ok::<_, anyhow::Error>(rig.fleet.node(name)?.status()?["drops"].clone());
    Ok([drops("a")?, drops("s1")?, drops("b")?])
}

/// How many queues ov0 has.
fn queues(machine: &Machine) -> Result<usize> {
    let shown = machine.run(&["ip", "-d", "-j", "link", "show", "ov0"])?.success("ip link")?;
    let shown: Value = serde_json::from_str(&shown)?;
    let data = &shown[0]["linkinfo"]["info_data"];
    let queues = data["numqueues"].as_u64().unwrap_or(1);
    Ok(usize::try_from(queues)?)
}

/// A thread has its name when it runs for the first time.
fn expect_threads(rig: &mut Rig, name: &str, expected: [usize; 3]) -> Result<()> {
    becomes(&format!("threads of {name}"), &expected, || threads(rig, name))
}

/// How many egress, ingress and transit threads a node has.
fn threads(rig: &mut Rig, name: &str) -> Result<[usize; 3]> {
    let node = rig.fleet.node_mut(name)?;
    let pid = node.process()?.pid().context("no process id")?.to_string();
    let list = node.machine.run(&["sh", "-c", "cat /proc/$0/task/*/comm", &pid])?;
    let names = list.success("the names of threads")?;
    let count = |start: &str| names.lines().filter(|name| name.starts_with(start)).count();
    Ok([count("ov-egress"), count("ov-ingress"), count("ov-transit")])
}

//! A copy of a node's state starts on another machine (T10): it is noticed, recorded and refused, and the
//! node goes on. A restart is no copy.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::binaries;
use crate::fleet::parse;
use crate::support::{READY, Rig, play};
use crate::world::{Machine, Process, poll};

/// How soon a copy is noticed.
const NOTICED: Duration = Duration::from_secs(5);

/// What a copy that was refused may send in a second, in which a hundred datagrams go to and fro elsewhere.
const QUIET_PACKETS: u64 = 30;

#[test]
fn a_stolen_identity_is_noticed_and_its_owner_goes_on() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b", "--port", "udp/9"])?;
        let _echo = rig.udp_echo("b", 9)?;
        // Restarts are none: the one before is gone, whether it said so or not.
        rig.fleet.node_mut("a")?.stop()?;
        rig.fleet.node_mut("a")?.start()?;
        rig.fleet.node_mut("a")?.kill()?;
        rig.fleet.node_mut("a")?.start()?;
        rig.fleet.node_mut("a")?.take_over()?;
        rig.settle()?;
        poll(READY, "the last one to be served", || {
            Ok((rig.fleet.node("a")?.status()?["server"]["reachable"] == true).then_some(()))
        })?;
        ensure!(rig.udp_ping("a", "b", 9, 5)? == 5);
        ensure!(!recorded(rig)?, "a restart was taken for a copy");

        let thief = rig.world.machine("thief")?;
        let (from, to) = (rig.fleet.machine("a")?.state_dir(), thief.state_dir());
        let copy = format!("cp -a {}/. {}", from.display(), to.display());
        rig.fleet.server.run(&["sh", "-c", &copy])?.success("copy the state")?;
        let mut copied = start(&thief)?;

        poll(NOTICED, "the copy to be refused", || {
            Ok(status(&thief)?["problems"].to_string().contains("is used twice").then_some(()))
        })
        .with_context(|| copied.log_text())?;
        poll(NOTICED, "the operator to be told", || {
            let told = rig.fleet.ovctl_ok(&["status"])?.contains("identity is used twice");
            Ok((told && recorded(rig)?).then_some(()))
        })?;
        // The owner's next echo finds its way, and the copy sends none any more.
        poll(NOTICED, "the owner to be back", || {
            Ok((rig.udp_ping("a", "b", 9, 1)? == 1).then_some(()))
        })?;
        let (before, started) = (sent(&thief)?, Instant::now());
        ensure!(rig.udp_ping("a", "b", 9, 100)? == 100, "the copy disturbs its owner");
        let sent = sent(&thief)? - before;
        let quiet = QUIET_PACKETS * (1 + started.elapsed().as_secs());
        ensure!(sent < quiet, "the copy sent {sent} packets");
        let of_owner = rig.fleet.node("a")?.status()?["problems"].to_string();
        ensure!(!of_owner.contains("used twice"), "{of_owner}");

        // The control: with its owner gone it is no copy any more.
        copied.kill()?;
        rig.fleet.node_mut("a")?.stop()?;
        let copied = start(&thief)?;
        poll(NOTICED, "the other machine to be served", || {
            let status = status(&thief)?;
            let is_served = !status["problems"].to_string().contains("used twice");
            Ok((is_served && status["server"]["reachable"] == true).then_some(()))
        })
        .with_context(|| copied.log_text())
    });
}

fn start(machine: &Machine) -> Result<Process> {
    let ovd = binaries().ovd.to_string_lossy().into_owned();
    machine.spawn("ovd", &[ovd.as_str(), "run", "--guard", "off"])
}

fn status(machine: &Machine) -> Result<Value> {
    let ovd = binaries().ovd.to_string_lossy().into_owned();
    let output = machine.run(&[ovd.as_str(), "status", "-o", "json"])?;
    // Until its socket is there it says nothing.
    if output.code == 0 { parse(&output.stdout) } else { Ok(Value::Null) }
}

/// Whether the audit says that an identity is used twice.
fn recorded(rig: &Rig) -> Result<bool> {
    Ok(rig.fleet.ovctl_ok(&["audit", "list"])?.contains("is used twice"))
}

/// The packets that left a machine.
fn sent(machine: &Machine) -> Result<u64> {
    let shown = machine.run(&["ip", "-s", "-j", "link", "show", "eth0"])?.success("ip link")?;
    parse(&shown)?[0]["stats64"]["tx"]["packets"].as_u64().context("no count")
}

//! What arrives is what was sent, byte for byte, whichever way each of the three places moves packets:
//! in trains and large packets, in batches, or one by one.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::{LAB_CIDR, Rig, number, play_in};
use crate::world::Machine;

/// Bytes of a TCP connection, each way at the same time.
const TCP_BYTES: u64 = 3_000_000;

/// How a, the SaP and b move packets.
pub(crate) type Modes = [&'static str; 3];

/// Every mode at every place, next to every other.
const MIXES: [Modes; 4] = [
    ["full", "full", "full"],
    ["full", "naive", "batch"],
    ["naive", "full", "full"],
    ["naive", "naive", "naive"],
];

/// Every parity and alignment; both sides of what fits one datagram in IPv4 (1436) and IPv6 (1416),
/// of the underlay's MTU, and of two and three fragments.
pub(crate) const LENGTHS: &str = "1-70,127-130,255-257,511-513,997,1023-1025,1279-1281,1350-1475,\
                       1499-1501,1999-2001,2816-2890,3999,4000";

/// Datagrams of each length: enough to make trains of each.
pub(crate) const COPIES: u64 = 6;

/// How long echoes may take on a machine that is busy.
const PATIENCE: &str = "3000";

#[test]
fn ipv4_arrives_as_it_was_sent_in_every_mix_of_modes() {
    play_in(LAB_CIDR, &["s1"], &["a", "b"], every_mix);
}

#[test]
fn ipv6_arrives_as_it_was_sent_in_every_mix_of_modes() {
    play_in("fd70::/64", &["s1"], &["a", "b"], every_mix);
}

#[test]
fn what_goes_directly_arrives_as_it_was_sent() {
    play_in(LAB_CIDR, &["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b", "--direct"])?;
        for modes in [["full", "full", "full"], ["full", "full", "naive"]] {
            restart(rig, modes)?;
            let before = rig.fleet.node("s1")?.packets("transit")?;
            verify(rig).with_context(|| format!("directly, {modes:?}"))?;
            let moved = rig.fleet.node("s1")?.packets("transit")? - before;
            ensure!(moved == 0, "{moved} packets went through the SaP");
        }
        Ok(())
    });
}

fn every_mix(rig: &mut Rig) -> Result<()> {
    rig.allow(&["a", "b"])?;
    for modes in MIXES {
        restart(rig, modes)?;
        verify(rig).with_context(|| format!("{modes:?}"))?;
        for (name, mode) in [("a", modes[0]), ("b", modes[2])] {
            let is_full = mode == "full";
            ensure!(
                large_packets(rig, name)? == [is_full; 2],
                "{name} in mode {mode} gives and takes large packets: {:?}",
                large_packets(rig, name)?
            );
        }
    }
    Ok(())
}

/// Starts a, s1 and b anew in these modes.
pub(crate) fn restart(rig: &mut Rig, modes: Modes) -> Result<()> {
    for (name, mode) in ["a", "s1", "b"].into_iter().zip(modes) {
        let node = rig.fleet.node_mut(name)?;
        ensure!(node.stop()? == 0, "{name} does not stop by itself");
        let mut options = node.options().to_vec();
        if let Some(at) = options.iter().position(|option| option == "--data-path") {
            options.drain(at..at + 2);
        }
        options.extend(["--data-path".to_owned(), mode.to_owned()]);
        node.set_options(&options.iter().map(String::as_str).collect::<Vec<_>>());
        node.start()?;
    }
    rig.reconnected()?;
    rig.settle()
}

/// TCP and UDP between a and b, both ways: nothing is changed, lost, doubled or made up, and nobody
/// drops anything.
pub(crate) fn verify(rig: &Rig) -> Result<()> {
    let before = drops(rig)?;
    tcp_arrives(rig)?;
    let report = udp(rig, LENGTHS, PATIENCE)?;
    ensure!(number(&report, "received")? > 290 * COPIES, "{report}");
    for wrong in ["missing", "strange", "doubled"] {
        ensure!(number(&report, wrong)? == 0, "{report}");
    }
    let after = drops(rig)?;
    ensure!(before == after, "something was dropped\nbefore: {before:?}\nafter: {after:?}");
    Ok(())
}

pub(crate) fn tcp_arrives(rig: &Rig) -> Result<()> {
    let report = tcp(rig, "8000")?;
    ensure!(report["wrongHere"].is_null() && report["wrongThere"].is_null(), "{report}");
    ensure!(number(&report, "received")? == TCP_BYTES, "{report}");
    ensure!(number(&report, "surplus")? == 0, "{report}");
    Ok(())
}

pub(crate) fn tcp(rig: &Rig, patience: &str) -> Result<Value> {
    let address = rig.at("b", 80)?.to_string();
    let _server = rig.run("b", &["tcp-verify-serve", &address])?;
    rig.fleet.netkit_json("a", &["tcp-verify", &address, &TCP_BYTES.to_string(), patience])
}

pub(crate) fn udp(rig: &Rig, lengths: &str, patience: &str) -> Result<Value> {
    let address = rig.at("b", 9)?.to_string();
    let _echo = rig.udp_echo("b", 9)?;
    let words = ["udp-verify", &address, lengths, &COPIES.to_string(), patience];
    rig.fleet.netkit_json("a", &words)
}

/// What a, s1 and b dropped so far.
pub(crate) fn drops(rig: &Rig) -> Result<[Value; 3]> {
    let drops = |name| Ok::<_, anyhow::Error>(rig.fleet.node(name)?.status()?["drops"].clone());
    Ok([drops("a")?, drops("s1")?, drops("b")?])
}

/// What a device let through, in and out, counted by packets that the kernel saw: a large one is one.
pub(crate) fn device_packets(machine: &Machine, device: &str) -> Result<[u64; 2]> {
    let text = machine.run(&["cat", "/proc/net/dev"])?.success("cat /proc/net/dev")?;
    let start = format!("{device}:");
    let line = text.lines().find_map(|line| line.trim().strip_prefix(&start));
    let fields: Vec<_> =
        line.with_context(|| format!("there is no {device}"))?.split_whitespace().collect();
    let field = |index: usize| Ok::<_, anyhow::Error>(fields.get(index).context("short")?.parse()?);
    Ok([field(1)?, field(9)?])
}

/// Whether so few packets can only be if large ones are among them, where [`verify`] alone moved so many
/// datagrams: fewer by half of the TCP segments at least.
pub(crate) fn has_large(packets: u64, datagrams: u64) -> bool {
    packets + TCP_BYTES / 3000 < datagrams
}

/// Whether a node gives large packets to its host, and takes such.
fn large_packets(rig: &Rig, name: &str) -> Result<[bool; 2]> {
    let node = rig.fleet.node(name)?;
    let [given, taken] = device_packets(&node.machine, "ov0")?;
    Ok([has_large(given, node.packets("ingress")?), has_large(taken, node.packets("egress")?)])
}

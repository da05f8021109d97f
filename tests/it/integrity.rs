//! What arrives is what was sent, byte for byte, whichever way each of the three places moves packets:
//! in trains and large packets, in batches, or one by one.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::{LAB_CIDR, Rig, number, play_in};

/// Bytes of a TCP connection, each way at the same time.
const TCP_BYTES: u64 = 3_000_000;

/// How a, the SaP and b move packets.
type Modes = [&'static str; 3];

/// Every mode at every place, next to every other.
const MIXES: [Modes; 4] = [
    ["full", "full", "full"],
    ["full", "naive", "batch"],
    ["naive", "full", "full"],
    ["naive", "naive", "naive"],
];

/// Every parity and alignment; both sides of what fits one datagram in IPv4 (1436) and IPv6 (1416),
/// of the underlay's MTU, and of two and three fragments.
const LENGTHS: &str = "1-70,127-130,255-257,511-513,997,1023-1025,1279-1281,1350-1475,\
                       1499-1501,1999-2001,2816-2890,3999,4000";

/// Datagrams of each length: enough to make trains of each.
const COPIES: u64 = 6;

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
    }
    Ok(())
}

/// Starts a, s1 and b anew in these modes.
fn restart(rig: &mut Rig, modes: Modes) -> Result<()> {
    for (name, mode) in ["a", "s1", "b"].into_iter().zip(modes) {
        let node = rig.fleet.node_mut(name)?;
        node.stop()?;
        node.set_options(&["--data-path", mode]);
        node.start()?;
    }
    rig.reconnected()?;
    rig.settle()
}

/// TCP and UDP between a and b, both ways: nothing is changed, lost, doubled or made up, and nobody
/// drops anything.
fn verify(rig: &Rig) -> Result<()> {
    let before = drops(rig)?;
    tcp_arrives(rig)?;
    let report = udp(rig, LENGTHS)?;
    ensure!(number(&report, "received")? > 290 * COPIES, "{report}");
    ensure!(number(&report, "missing")? == 0 && number(&report, "strange")? == 0, "{report}");
    let after = drops(rig)?;
    ensure!(before == after, "something was dropped\nbefore: {before:?}\nafter: {after:?}");
    Ok(())
}

fn tcp_arrives(rig: &Rig) -> Result<()> {
    let report = tcp(rig)?;
    ensure!(report["wrongHere"].is_null() && report["wrongThere"].is_null(), "{report}");
    ensure!(number(&report, "received")? == TCP_BYTES, "{report}");
    ensure!(number(&report, "surplus")? == 0, "{report}");
    Ok(())
}

fn tcp(rig: &Rig) -> Result<Value> {
    let address = rig.at("b", 80)?.to_string();
    let _server = rig.run("b", &["tcp-verify-serve", &address])?;
    rig.fleet.netkit_json("a", &["tcp-verify", &address, &TCP_BYTES.to_string()])
}

fn udp(rig: &Rig, lengths: &str) -> Result<Value> {
    let address = rig.at("b", 9)?.to_string();
    let _echo = rig.udp_echo("b", 9)?;
    let words = ["udp-verify", &address, lengths, &COPIES.to_string(), PATIENCE];
    rig.fleet.netkit_json("a", &words)
}

/// What a, s1 and b dropped so far.
fn drops(rig: &Rig) -> Result<[Value; 3]> {
    let drops = |name| Ok::<_, anyhow::Error>(rig.fleet.node(name)?.status()?["drops"].clone());
    Ok([drops("a")?, drops("s1")?, drops("b")?])
}

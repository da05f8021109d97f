//! All 64 TCP flag bytes, forward and in reverse, at the SaP and at `ovd`: exactly the designed ones
//! pass. Forward everything that is not nonsense does; in reverse a segment that opens does not.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::packet::{gue, is_nonsense, is_opening, tcp};
use crate::settled::becomes;
use crate::support::{Counter, Rig, SOON, play};
use crate::world::poll;

/// The allowed port.
const HTTP: u16 = 80;

/// Every combination of FIN, SYN, RST, PSH, ACK and URG.
const ALL: std::ops::Range<u8> = 0..64;

/// What passes forward: 40 of 64.
fn forward() -> BTreeSet<u8> {
    ALL.filter(|&flags| !is_nonsense(flags)).collect()
}

/// What passes in reverse: 36 of 64.
fn reverse() -> BTreeSet<u8> {
    forward().into_iter().filter(|&flags| !is_opening(flags)).collect()
}

#[test]
fn a_sap_passes_exactly_the_designed_flags() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b", "--port", "tcp/80"])?;

        passes_at_the_sap(rig, "a", "b", &forward(), |rig, flags| {
            Ok(tcp(from_port(rig, "a", flags)?, rig.at("b", HTTP)?, flags))
        })?;
        passes_at_the_sap(rig, "b", "a", &reverse(), |rig, flags| {
            Ok(tcp(rig.at("b", HTTP)?, from_port(rig, "a", flags)?, flags))
        })
    });
}

#[test]
fn a_destination_and_a_source_pass_exactly_the_designed_flags() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b", "--port", "tcp/80"])?;
        // Only what the tests send shall be on the wire: no RST of the hosts.
        for entity in ["a", "b"] {
            rig.fleet.machine(entity)?.mute_tcp()?;
        }
        forward_at_ingress(rig)?;
        forward_at_egress(rig)?;
        let flows = flows_from_a(rig)?;
        reverse_at_ingress(rig, &flows)?;
        reverse_at_egress(rig, &flows)
    });
}

/// Injects one segment for each flag byte into s1, as its sender would, and compares what s1 sends
/// on, byte for byte, with what should pass.
fn passes_at_the_sap(
    rig: &mut Rig,
    from: &str,
    to: &str,
    expected: &BTreeSet<u8>,
    segment: impl Fn(&Rig, u8) -> Result<Vec<u8>>,
) -> Result<()> {
    let key = rig.send_key(from, to)?;
    let datagrams: Vec<String> =
        ALL.map(|flags| Ok(gue(key, &segment(rig, flags)?))).collect::<Result<_>>()?;
    let expected: BTreeSet<&str> =
        expected.iter().map(|&flags| datagrams[usize::from(flags)].as_str()).collect();
    let dropped = |rig: &Rig| -> Result<[u64; 2]> {
        let s1 = rig.fleet.node("s1")?;
        Ok([s1.drops("tcp_flags")?, s1.drops("no_rule")?])
    };
    let before = dropped(rig)?;

    // In the place of the receiver's daemon stands one that keeps what comes. Addresses are asked of
    // daemons, so everything is built by now.
    let endpoint = rig.underlay(to)?;
    rig.fleet.node_mut(to)?.stop()?;
    let capture = rig.counter(to, "udp-capture", &endpoint.to_string(), &[])?;
    rig.inject(from, "s1", &datagrams, 1)?;
    let captured = poll(SOON, "the designed segments to arrive", || {
        let payloads = payloads(&capture.read()?);
        Ok(expected.iter().all(|payload| payloads.contains(*payload)).then_some(payloads))
    })?;
    // Those that are dropped come last, and what was sent is counted once the kernel has it.
    let opening = 40 - u64::try_from(expected.len())?;
    becomes(&format!("tcp_flags and no_rule, {from} to {to}"), &[24, opening], || {
        let after = dropped(rig)?;
        Ok([after[0] - before[0], after[1] - before[1]])
    })?;
    drop(capture);
    rig.fleet.node_mut(to)?.start()?;

    // Control messages of the SaP may be there, too.
    let data = captured.iter().map(String::as_str).filter(|payload| payload.starts_with("01"));
    ensure!(data.collect::<BTreeSet<_>>() == expected, "{from} to {to}: other segments passed");
    Ok(())
}

fn payloads(capture: &Value) -> BTreeSet<String> {
    capture["byPayload"].as_object().into_iter().flat_map(|map| map.keys().cloned()).collect()
}

/// Injects into b what s1 would send, past s1's own checks.
fn forward_at_ingress(rig: &Rig) -> Result<()> {
    let key = rig.send_key("a", "b")?;
    let seen = count(rig, "b", Some(HTTP))?;
    let target = rig.at("b", HTTP)?;
    let sources = ports(rig, "a", 41_000)?;
    let datagrams: Vec<String> =
        ALL.zip(&sources).map(|(flags, &source)| gue(key, &tcp(source, target, flags))).collect();

    rig.drops_move("b", "tcp_flags", 24, || rig.inject("s1", "b", &datagrams, 1))?;
    expect_flags(&seen, &forward())
}

/// Sends through a's own TUN, from ports of its own for each flag byte.
fn forward_at_egress(rig: &Rig) -> Result<()> {
    let seen = count(rig, "b", Some(HTTP))?;
    let target = rig.at("b", HTTP)?;
    let sources = ports(rig, "a", 42_000)?;
    let segments: Vec<_> =
        ALL.zip(sources).map(|(flags, source)| (source, target, flags)).collect();

    rig.drops_move("a", "tcp_flags", 24, || rig.raw_tcp("a", &segments))?;
    expect_flags(&seen, &forward())
}

/// Opens 64 flows from a to b and returns a's ends of them.
fn flows_from_a(rig: &Rig) -> Result<Vec<SocketAddr>> {
    let seen = count(rig, "b", Some(HTTP))?;
    let sources = ports(rig, "a", 43_000)?;
    let target = rig.at("b", HTTP)?;
    let opening: Vec<_> = sources.iter().map(|&source| (source, target, 0x02)).collect();
    rig.raw_tcp("a", &opening)?;
    poll(SOON, "64 flows to open", || Ok((seen.number("total")? == 64).then_some(())))?;
    Ok(sources)
}

/// Injects into a what s1 would send as the answer.
fn reverse_at_ingress(rig: &Rig, flows: &[SocketAddr]) -> Result<()> {
    let key = rig.send_key("b", "a")?;
    let seen = count(rig, "a", None)?;
    let source = rig.at("b", HTTP)?;
    let datagrams: Vec<String> =
        ALL.zip(flows).map(|(flags, &target)| gue(key, &tcp(source, target, flags))).collect();

    let opening = rig.fleet.node("a")?.drops("no_rule")? + 4;
    rig.drops_move("a", "tcp_flags", 24, || rig.inject("s1", "a", &datagrams, 1))?;
    rig.drops_reach("a", "no_rule", opening)?;
    expect_flags(&seen, &reverse())
}

/// Answers through b's own TUN.
fn reverse_at_egress(rig: &Rig, flows: &[SocketAddr]) -> Result<()> {
    let seen = count(rig, "a", None)?;
    let source = rig.at("b", HTTP)?;
    let segments: Vec<_> = ALL.zip(flows).map(|(flags, &target)| (source, target, flags)).collect();

    let opening = rig.fleet.node("b")?.drops("no_rule")? + 4;
    rig.drops_move("b", "tcp_flags", 24, || rig.raw_tcp("b", &segments))?;
    rig.drops_reach("b", "no_rule", opening)?;
    expect_flags(&seen, &reverse())
}

/// 64 ports of an entity, one for each flag byte.
fn ports(rig: &Rig, entity: &str, first: u16) -> Result<Vec<SocketAddr>> {
    let address = rig.at(entity, 0)?.ip();
    Ok((first..first + 64).map(|port| SocketAddr::new(address, port)).collect())
}

fn from_port(rig: &Rig, entity: &str, flags: u8) -> Result<SocketAddr> {
    rig.at(entity, 40_000 + u16::from(flags))
}

/// Counts the TCP segments that an entity's host receives.
fn count(rig: &Rig, entity: &str, port: Option<u16>) -> Result<Counter> {
    let address = rig.at(entity, 0)?.ip().to_string();
    let port = port.map(|port| port.to_string());
    rig.counter(entity, "raw-count", &address, &port.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Waits until each expected flag byte arrived once, and nothing else did.
fn expect_flags(counter: &Counter, expected: &BTreeSet<u8>) -> Result<()> {
    let wanted: Value = expected.iter().map(|flags| (flags.to_string(), Value::from(1))).collect();
    let mut last = Value::Null;
    let arrived = poll(SOON, "the designed segments to arrive", || {
        last = counter.read()?["byFlags"].clone();
        Ok((last == wanted).then_some(()))
    });
    ensure!(arrived.is_ok(), "these flags arrived: {last}, not {wanted}");
    Ok(())
}

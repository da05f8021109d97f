//! Over a middle link that is narrow and bad: IPv4 and IPv6 inside and outside, with the offloads on and
//! off at each of the three places. What arrives is what was sent; what was not lost on the link
//! arrives.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::family::{Family, play_over};
use crate::fleet::parse;
use crate::integrity::{COPIES, LENGTHS, Modes, restart, udp};
use crate::relay::{Link, MTU, Relay, settled};
use crate::support::{Counter, READY, Rig, number};
use crate::world::poll;

/// Datagrams that fit the link in one piece, whatever the families: 1400 less 56 and 48 bytes. Larger
/// ones are lost where their parts overtake each other: a part that comes before the first, which names
/// the ports, cannot be judged.
const WHOLE: &str = "1-70,255-257,511-513,997,1023-1025,1279-1296";

/// Bytes of a connection each way, in a test that everybody runs.
const FEW: u64 = 2_000_000;

/// And in one that takes its time.
const MANY: u64 = 100_000_000;

/// Loses nothing.
const UNSTEADY: Link = Link { seed: 1, loss: 0, duplication: 10, reordering: 10 };

/// One of a hundred is lost, one doubled, one late.
const BAD: Link = Link { seed: 2, loss: 10, duplication: 10, reordering: 10 };

#[test]
fn ipv4_in_ipv4_crosses_a_bad_link_whole() {
    crosses(Family::V4, Family::V4, &[["full"; 3], ["naive", "full", "batch"]]);
}

#[test]
fn ipv6_in_ipv4_crosses_a_bad_link_whole() {
    crosses(Family::V6, Family::V4, &[["full"; 3]]);
}

#[test]
fn ipv4_in_ipv6_crosses_a_bad_link_whole() {
    crosses(Family::V4, Family::V6, &[["full"; 3]]);
}

#[test]
#[ignore = "long"]
fn ipv6_in_ipv6_crosses_a_bad_link_whole() {
    crosses(Family::V6, Family::V6, &[["full"; 3], ["full", "naive", "full"]]);
}

/// On and off at each of the three places.
const ALL_MODES: [Modes; 8] = [
    ["full", "full", "full"],
    ["full", "full", "naive"],
    ["full", "naive", "full"],
    ["full", "naive", "naive"],
    ["naive", "full", "full"],
    ["naive", "full", "naive"],
    ["naive", "naive", "full"],
    ["naive", "naive", "naive"],
];

#[test]
#[ignore = "long"]
fn ipv4_in_ipv4_crosses_a_bad_link_whole_in_every_mix_of_modes() {
    crosses_in_every_mix(Family::V4, Family::V4);
}

#[test]
#[ignore = "long"]
fn ipv6_in_ipv4_crosses_a_bad_link_whole_in_every_mix_of_modes() {
    crosses_in_every_mix(Family::V6, Family::V4);
}

#[test]
#[ignore = "long"]
fn ipv4_in_ipv6_crosses_a_bad_link_whole_in_every_mix_of_modes() {
    crosses_in_every_mix(Family::V4, Family::V6);
}

#[test]
#[ignore = "long"]
fn ipv6_in_ipv6_crosses_a_bad_link_whole_in_every_mix_of_modes() {
    crosses_in_every_mix(Family::V6, Family::V6);
}

/// UDP of every size, and 100 MB of TCP.
fn crosses_in_every_mix(inside: Family, outside: Family) {
    on(inside, outside, |rig, relay| {
        for modes in ALL_MODES {
            every_size(rig, relay, modes)
                .with_context(|| format!("{inside:?} in {outside:?}, {modes:?}"))?;
        }
        Ok(())
    });
}

fn every_size(rig: &mut Rig, relay: &Relay, modes: Modes) -> Result<()> {
    let link = started_over(rig, relay, modes)?;
    let report = udp_of_every_size(rig, "3000")?;
    for wrong in ["missing", "strange", "doubled"] {
        ensure!(number(&report, wrong)? == 0, "a narrow link: {report}");
    }
    ensure!(number(&report, "received")? == 4000 * COPIES, "{report}");
    drop(link);

    let link = relay.start(rig, BAD)?;
    tcp(rig, MANY).context("a bad link")?;
    let counts = settled(&link)?;
    ensure!(number(&counts, "lost")? > 100, "{counts}");
    let report = udp_of_every_size(rig, "100")?;
    ensure!(number(&report, "strange")? == 0, "a bad link: {report}");
    ensure!(number(&report, "received")? > 3000 * COPIES, "{report}");
    Ok(())
}

fn udp_of_every_size(rig: &Rig, patience: &str) -> Result<Value> {
    let address = rig.at("b", 9)?.to_string();
    let _echo = rig.udp_echo("b", 9)?;
    let words = ["udp-verify", &address, "1-4000", &COPIES.to_string(), patience];
    let output = rig.fleet.netkit_for("a", &words, Duration::from_secs(800))?;
    parse(&output.success("udp-verify")?)
}

fn crosses(inside: Family, outside: Family, mixes: &[Modes]) {
    on(inside, outside, |rig, relay| {
        for &modes in mixes {
            check(rig, relay, modes)
                .with_context(|| format!("{inside:?} in {outside:?}, {modes:?}"))?;
        }
        Ok(())
    });
}

fn on(inside: Family, outside: Family, test: impl FnOnce(&mut Rig, &Relay) -> Result<()>) {
    play_over(inside, outside, |rig| {
        let relay = Relay::between_s1_and_b(rig)?;
        narrow(rig, outside)?;
        let link = relay.start(rig, Link::default())?;
        rig.allow(&["a", "b"])?;
        drop(link);
        test(rig, &relay)
    });
}

/// The routes of the entities know of the link's MTU.
fn narrow(rig: &Rig, outside: Family) -> Result<()> {
    let (s1, b) = (rig.fleet.machine("s1")?, rig.fleet.machine("b")?);
    let a = rig.fleet.machine("a")?;
    let route = format!("ip route replace {} dev eth0 mtu {MTU}", outside.of(s1));
    a.run(&route.split(' ').collect::<Vec<_>>())?.success(&route)?;
    for (from, to) in [(s1, b), (b, s1)] {
        let shown =
            from.run(&["ip", "route", "get", &outside.of(to).to_string()])?.success("ip route")?;
        let via = shown.split_whitespace().skip_while(|word| *word != "via").nth(1);
        let via = via.with_context(|| format!("not by the relay: {shown}"))?;
        let route = format!("ip route replace {} via {via} dev eth0 mtu {MTU}", outside.of(to));
        from.run(&route.split(' ').collect::<Vec<_>>())?.success(&route)?;
    }
    Ok(())
}

/// Starts the nodes anew while the link is good, and waits until they reach each other over it.
fn started_over(rig: &mut Rig, relay: &Relay, modes: Modes) -> Result<Counter> {
    let link = relay.start(rig, Link::default())?;
    restart(rig, modes)?;
    poll(READY, "datagrams to cross the link", || {
        Ok((number(&udp(rig, "8", "300")?, "received")? == COPIES).then_some(()))
    })?;
    Ok(link)
}

fn check(rig: &mut Rig, relay: &Relay, modes: Modes) -> Result<()> {
    // Nothing but narrow: everything arrives, once.
    let link = started_over(rig, relay, modes)?;
    tcp(rig, FEW).context("a narrow link")?;
    let report = udp(rig, LENGTHS, "3000")?;
    for wrong in ["missing", "strange", "doubled"] {
        ensure!(number(&report, wrong)? == 0, "a narrow link: {report}");
    }
    let counts = settled(&link)?;
    ensure!(number(&counts, "tooBig")? == 0 && number(&counts, "arrived")? > 3000, "{counts}");
    drop(link);

    // Doubled and late, nothing lost: everything arrives, some of it twice.
    let link = relay.start(rig, UNSTEADY)?;
    tcp(rig, FEW).context("an unsteady link")?;
    let report = udp(rig, WHOLE, "3000")?;
    for wrong in ["missing", "strange"] {
        ensure!(number(&report, wrong)? == 0, "an unsteady link: {report}");
    }
    ensure!(number(&report, "doubled")? > 0, "{report}");
    drop(link);

    // With loss: what arrives is what was sent, fragments put together included.
    let link = relay.start(rig, BAD)?;
    tcp(rig, FEW).context("a bad link")?;
    let report = udp(rig, "1-20,1279-1296,1430-1440,2816-2830,3999,4000", "250")?;
    ensure!(number(&report, "strange")? == 0, "a bad link: {report}");
    ensure!(number(&report, "received")? > 30 * COPIES, "{report}");
    let counts = settled(&link)?;
    for impaired in ["lost", "doubled", "reordered"] {
        ensure!(number(&counts, impaired)? > 0, "nothing was {impaired}: {counts}");
    }
    Ok(())
}

/// `bytes` each way at the same time, compared at both ends.
fn tcp(rig: &Rig, bytes: u64) -> Result<()> {
    let address = rig.at("b", 80)?.to_string();
    let _server = rig.run("b", &["tcp-verify-serve", &address])?;
    let words = ["tcp-verify", &address, &bytes.to_string(), "20000"];
    let output = rig.fleet.netkit_for("a", &words, Duration::from_secs(400))?;
    let report: Value = parse(&output.success("tcp-verify")?)?;
    ensure!(report["wrongHere"].is_null() && report["wrongThere"].is_null(), "{report}");
    ensure!(number(&report, "received")? == bytes, "{report}");
    ensure!(number(&report, "surplus")? == 0, "{report}");
    Ok(())
}

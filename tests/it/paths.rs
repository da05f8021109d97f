//! Which way packets go: over the default SaP, over the SaPs that a rule names, or directly. Counters
//! of every SaP prove it.

use anyhow::{Context, Result, ensure};

use crate::fleet::Kind;
use crate::settled::settled;
use crate::support::{READY, Rig, play};
use crate::world::poll;

/// Datagrams sent, and echoed, over each path.
const PINGS: u32 = 20;

#[test]
fn each_pair_takes_the_path_of_its_rule() {
    play(&["s1", "s2"], &["a", "b", "c"], |rig| {
        let _echoes = [rig.udp_echo("b", 9)?, rig.udp_echo("c", 9)?, rig.udp_echo("a", 9)?];
        let (there_and_back, none) = (u64::from(PINGS) * 2, 0);

        let rule = rig.allow(&["a", "b", "--via", "s2"])?;
        expect_moved(rig, ("a", "b"), [none, there_and_back], "via s2")?;
        rig.revoke(&[&rule])?;

        // a has the lower id; the answers walk the chain backwards.
        let rule = rig.allow(&["a", "b", "--both", "--via", "s1,s2"])?;
        expect_moved(rig, ("a", "b"), [there_and_back, there_and_back], "via s1,s2")?;
        expect_moved(rig, ("b", "a"), [there_and_back, there_and_back], "and back")?;
        rig.revoke(&[&rule])?;

        let rule = rig.allow(&["a", "b", "--both", "--direct"])?;
        expect_moved(rig, ("a", "b"), [none, none], "directly")?;
        expect_moved(rig, ("b", "a"), [none, none], "and back")?;
        a_direct_pair_is_enforced_at_its_destination(rig)?;
        rig.revoke(&[&rule])?;

        rig.allow(&["a", "c"])?;
        let [s1, s2] = moved(rig, "a", "c")?;
        ensure!(s1 + s2 == there_and_back, "one SaP by default: {s1} and {s2}");
        ensure!(rig.udp_ping("a", "b", 9, 2)? == 0, "the rules for b are gone");
        Ok(())
    });
}

#[test]
fn rules_that_disagree_about_a_path_are_refused() {
    play(&["s1", "s2"], &["a", "b"], |rig| {
        let first = rig.allow(&["a", "b", "--via", "s1"])?;
        let refused = rig.fleet.ovctl(&["policy", "allow", "a", "b", "--via", "s2"])?;
        crate::support::expect_refusal(&refused, 5, &[&first])?;
        let unknown = rig.fleet.ovctl(&["policy", "allow", "a", "b", "--via", "s3"])?;
        crate::support::expect_refusal(&unknown, 3, &["s3"])?;
        let cycle = rig.fleet.ovctl(&["policy", "allow", "a", "b", "--via", "s1,s2,s1"])?;
        ensure!([2, 5].contains(&cycle.code), "a path with a cycle is refused: {cycle:?}");

        let _echo = rig.udp_echo("b", 9)?;
        expect_moved(rig, ("a", "b"), [u64::from(PINGS) * 2, 0], "the first rule holds")?;
        Ok(())
    });
}

/// Packets go through s1 and s2 as often as they should.
fn expect_moved(rig: &Rig, (from, to): (&str, &str), expected: [u64; 2], what: &str) -> Result<()> {
    // One that stood still for a moment is passed by for some seconds.
    for end in [from, to] {
        poll(READY, &format!("{end} to hear of its SaPs"), || {
            let status = rig.fleet.node(end)?.status()?;
            let saps = status["saps"].as_array().context("no SaPs")?;
            Ok(saps.iter().all(|sap| sap["alive"] == true).then_some(()))
        })?;
    }
    let seen = moved(rig, from, to)?;
    ensure!(seen == expected, "{what}, {from} to {to}: {seen:?}, not {expected:?}");
    Ok(())
}

/// How many packets went through s1 and s2 for an exchange in which nothing is lost.
fn moved(rig: &Rig, from: &str, to: &str) -> Result<[u64; 2]> {
    let transit = || -> Result<[u64; 2]> {
        Ok([rig.fleet.node("s1")?.packets("transit")?, rig.fleet.node("s2")?.packets("transit")?])
    };
    let before = transit()?;
    let answered = rig.udp_ping(from, to, 9, PINGS)?;
    ensure!(answered == u64::from(PINGS), "{answered} of {PINGS} came back from {to} to {from}");
    // Counted once the kernel has them; the last answer may be there before.
    let after = settled("what SaPs sent", transit)?;
    Ok([after[0] - before[0], after[1] - before[1]])
}

fn a_direct_pair_is_enforced_at_its_destination(rig: &Rig) -> Result<()> {
    let table = rig.table("b")?;
    let lab = table.body.overlays.first().context("b is in no overlay")?;
    let a = lab.members.iter().find(|member| member.name.to_string() == "a");
    let endpoints = &a.context("b does not know a")?.endpoints;
    ensure!(endpoints.contains(&rig.underlay("a")?), "b accepts a's packets from {endpoints:?}");
    Ok(())
}

#[test]
fn zones_choose_the_sap_and_what_is_set_goes_before_everything() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.join("s2", Kind::Sap, &["--label", "zone=fra"])?;
        let _echo = rig.udp_echo("b", 9)?;
        let rule = rig.allow(&["a", "b"])?;
        let (there_and_back, none) = (u64::from(PINGS) * 2, 0);
        let chosen = || rig.fleet.ovctl_json(&["path", "show", "a", "b"]);
        expect_moved(rig, ("a", "b"), [there_and_back, none], "the older one, at first")?;

        rig.fleet.ovctl_ok(&["entity", "label", "a", "zone=fra"])?;
        rig.settle()?;
        expect_moved(rig, ("a", "b"), [none, there_and_back], "the one in its zone")?;
        let path = chosen()?;
        ensure!(path["candidates"][0]["path"]["via"][0] == "s2", "{path:#}");
        ensure!(path["inUse"] == 0 && path["why"].to_string().contains("zone fra"), "{path:#}");

        rig.fleet.ovctl_ok(&["path", "set", "b", "a", "--via", "s2,s1"])?;
        rig.settle()?;
        expect_moved(rig, ("a", "b"), [there_and_back, there_and_back], "over both")?;
        rig.fleet.ovctl_ok(&["path", "set", "a", "b", "--direct"])?;
        rig.settle()?;
        expect_moved(rig, ("a", "b"), [none, none], "over none")?;
        ensure!(chosen()?["chosenBy"] == "path set");
        rig.fleet.ovctl_ok(&["path", "auto", "a", "b"])?;
        rig.settle()?;
        expect_moved(rig, ("a", "b"), [none, there_and_back], "as before")?;

        rig.revoke(&[&rule])?;
        let rule = rig.allow(&["a", "b", "--via", "s1"])?;
        ensure!(chosen()?["chosenBy"] == rule.as_str(), "{:#}", chosen()?);
        let unknown = rig.fleet.ovctl(&["path", "set", "a", "b", "--via", "s3"])?;
        crate::support::expect_refusal(&unknown, 3, &["s3", "did you mean"])?;
        let circle = rig.fleet.ovctl(&["path", "set", "a", "b", "--via", "s1,s2,s1"])?;
        crate::support::expect_refusal(&circle, 2, &["s1", "circle"])?;
        // Measured by now, and shown.
        let latency = rig.fleet.ovctl_ok(&["path", "latency"])?;
        ensure!(latency.contains("s1") && latency.contains('a'), "{latency}");
        Ok(())
    });
}

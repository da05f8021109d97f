//! An overlay of IPv6 over an underlay that leaves less than the 1,280 bytes that IPv6 needs.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::{Rig, SOON, expect_refusal, play_in};
use crate::world::poll;

/// What the underlay must take: 1,280 bytes, and our headers over IPv4.
const ENOUGH: u32 = 1316;

/// Sets the MTU of `a`'s way out.
fn set_mtu(rig: &Rig, bytes: u32) -> Result<()> {
    let words = ["ip", "link", "set", "eth0", "mtu", &bytes.to_string()].map(str::to_owned);
    rig.fleet.machine("a")?.run(&words)?.success("set the MTU").map(drop)
}

/// The overlay as `a` has it.
fn overlay(status: &Value) -> &Value {
    &status["overlays"][0]
}

/// Waits until `a` has no device, and says why.
fn expect_shut(rig: &Rig) -> Result<()> {
    let node = rig.fleet.node("a")?;
    let mut last = Value::Null;
    poll(SOON, "the overlay to be refused", || {
        // Just started, it may not answer yet.
        last = node.status().unwrap_or_default();
        let problems = last["problems"].to_string();
        let says = |words: &str| problems.contains(words);
        let is_told = says("too narrow for IPv6") && says(&ENOUGH.to_string()) && says("lab");
        Ok((overlay(&last)["device"].is_null() && is_told).then_some(()))
    })
    .with_context(|| format!("{last:#}"))?;
    let refused = node.command(&["status", "--check", "ready"])?;
    expect_refusal(&refused, 1, &["lab", "no TUN device"])?;
    let doctor = node.command(&["doctor"])?;
    ensure!(doctor.code == 1, "{doctor:?}");
    let line = doctor.stdout.lines().find(|line| line.contains("mtu of overlay lab"));
    let line = line.with_context(|| doctor.stdout.clone())?;
    ensure!(line.starts_with("problem") && line.contains("1300"), "{line}");

    // Nothing half: no device, and programs hear at once that there is no way.
    let machine = rig.fleet.machine("a")?;
    ensure!(machine.run(&["ip", "link", "show", "ov0"])?.code != 0, "there is a device");
    let routes = machine.run(&["ip", "-6", "route", "show", "fd70::/64"])?.success("routes")?;
    ensure!(routes.contains("unreachable") && !routes.contains("ov0"), "{routes}");
    Ok(())
}

/// Waits until `a` has a device of this MTU, over which packets of that size pass.
fn expect_open(rig: &Rig, mtu: u64) -> Result<()> {
    let node = rig.fleet.node("a")?;
    let mut last = Value::Null;
    poll(SOON, &format!("a device with an MTU of {mtu}"), || {
        last = node.status()?;
        let overlay = overlay(&last);
        Ok((overlay["device"] == "ov0" && overlay["mtu"] == mtu).then_some(()))
    })
    .with_context(|| format!("{last:#}"))?;
    // IPv6 and UDP have 48 bytes of it.
    let largest = (mtu - 48).to_string();
    poll(SOON, "the largest packets to pass", || {
        let target = rig.at("b", 7)?.to_string();
        let words = ["udp-verify", &target, &largest, "3", "500"];
        let report = rig.fleet.netkit("a", &words)?;
        Ok((report.code == 0 && report.stdout.contains("\"missing\":0")).then_some(()))
    })
}

#[test]
fn an_overlay_of_ipv6_has_no_device_where_the_underlay_is_too_narrow() {
    play_in("fd70::/64", &["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let _echo = rig.udp_echo("b", 7)?;
        expect_open(rig, 1464)?;

        set_mtu(rig, 1300)?;
        expect_shut(rig)?;
        // The same when it starts there, also after a crash that left its device.
        set_mtu(rig, 1500)?;
        expect_open(rig, 1464)?;
        rig.fleet.node_mut("a")?.kill()?;
        set_mtu(rig, 1300)?;
        rig.fleet.node_mut("a")?.start_unready()?;
        expect_shut(rig)?;

        set_mtu(rig, ENOUGH)?;
        expect_open(rig, 1280)
    });
}

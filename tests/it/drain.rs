//! `ovctl sap drain` moves running flows to another SaP, and not a packet is lost.

use anyhow::{Context as _, ensure};

use crate::settled::{nothing_missing, settled};
use crate::support::{SOON, expect_refusal, play};
use crate::world::poll;

/// Between two datagrams: 500 a second, and 2,000 in the long run. A busy machine that stands still for a
/// quarter of a second loses some of the latter in its own devices.
const PACE_MICROS: [&str; 2] = ["2000", "500"];

#[test]
fn draining_a_sap_loses_nothing() {
    drains(1, PACE_MICROS[0]);
}

#[test]
#[ignore = "long"]
fn draining_a_sap_many_times_loses_nothing() {
    drains(20, PACE_MICROS[1]);
}

#[expect(clippy::print_stdout, reason = "the figures are what this is for")]
fn drains(times: u32, pace_micros: &str) {
    play(&["s1", "s2"], &["a", "b"], |rig| {
        let _servers = [rig.udp_echo("b", 9)?, rig.tcp_echo("b", 7)?];
        rig.allow(&["a", "b", "--port", "udp/9,udp/10,tcp/7"])?;
        let target = |port| Ok::<_, anyhow::Error>(rig.at("b", port)?.to_string());
        let udp = rig.counter("a", "udp-stream", &target(9)?, &[pace_micros])?;
        let tcp = rig.counter("a", "tcp-stream", &target(7)?, &[])?;
        // Only what the other side sends: the next SaP sees no packet of the one who asked.
        let pour = format!("udp-pour {} {pace_micros}", target(10)?);
        let _pours = rig.run("b", &pour.split(' ').collect::<Vec<_>>())?;
        let poured = rig.counter("a", "udp-stream", &target(10)?, &["3600000000"])?;
        for stream in [&udp, &tcp, &poured] {
            stream.expect_growth("received", 20)?;
        }

        for time in 1..=times {
            let change = rig.fleet.ovctl_json(&["sap", "drain", "s1", "--wait", "20s"])?;
            ensure!(change["enforcement"]["enforced"] == true, "{change:#}");
            ensure!(change["result"]["drain"] == "drained", "{change:#}");
            let transit = || rig.fleet.node("s1")?.packets("transit");
            // What waited in its socket when the last entity had acknowledged.
            let emptied = settled("what s1 had left", transit)?;
            for stream in [&udp, &tcp, &poured] {
                stream.expect_growth("received", 20)?;
            }
            ensure!(transit()? == emptied, "something went over a drained SaP");
            let gap = poured.number("gapMillisMax")?;
            let missing = [udp.number("missing")?, poured.number("missing")?];
            println!(
                "drain {time}/{times}: {} ms; missing {missing:?} of {} and {}; longest gap {gap} ms",
                change["enforcement"]["waitedMillis"],
                udp.received()?,
                poured.received()?
            );
            nothing_missing(&[&udp, &poured]).context("drained with loss")?;
            rig.fleet.ovctl_ok(&["sap", "undrain", "s1"])?;
            poll(SOON, "s1 to carry traffic again", || {
                Ok((transit()? > emptied + 100).then_some(()))
            })?;
            nothing_missing(&[&udp, &poured]).context("loss on the way back")?;
        }
        Ok(())
    });
}

#[test]
fn a_sap_that_somebody_needs_is_not_drained() {
    play(&["s1", "s2"], &["a", "b"], |rig| {
        let rule = rig.allow(&["a", "b", "--via", "s1"])?;
        let refused = rig.fleet.ovctl(&["sap", "drain", "s1"])?;
        expect_refusal(&refused, 5, &["s1", &rule])?;
        rig.revoke(&[&rule])?;

        rig.fleet.ovctl_ok(&["sap", "drain", "s1"])?;
        let refused = rig.fleet.ovctl(&["sap", "drain", "s2"])?;
        expect_refusal(&refused, 5, &["s2", "no other SaP"])?;

        // Who cannot be told is named, and the command says that it is not done.
        rig.fleet.ovctl_ok(&["sap", "undrain", "s1"])?;
        rig.settle()?;
        rig.fleet.node_mut("a")?.process()?.signal("STOP")?;
        let late = rig.fleet.ovctl(&["sap", "drain", "s1", "--wait", "2s"])?;
        rig.fleet.node_mut("a")?.process()?.signal("CONT")?;
        ensure!(late.code == 1 && late.stderr.contains("not yet enforced: a, "), "{late:?}");
        poll(SOON, "the drain to end when `a` is back", || {
            let sap = rig.fleet.ovctl_json(&["sap", "show", "s1"])?;
            Ok((sap["drain"] == "drained").then_some(()))
        })
    });
}

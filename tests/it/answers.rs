//! A host whose packet its own `ovd` refuses hears so at once, and `ovd denied` remembers why.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::fleet::{Kind, parse};
use crate::support::{LAB, Rig, SOON, expect_refusal, play};
use crate::world::poll;

/// What `ovd denied` shows on a node.
fn denied(rig: &Rig, node: &str, options: &[&str]) -> Result<Vec<Value>> {
    let words = [&["denied", "-o", "json"], options].concat();
    let shown = parse(&rig.fleet.node(node)?.command(&words)?.success("denied")?)?;
    ensure!(shown["apiVersion"] == "ovmesh/v1", "{shown:#}");
    shown["items"].as_array().cloned().context("no items")
}

/// Waits until `ovd denied` shows `service` towards `to`, `count` times, and returns it.
fn expect_denied(rig: &Rig, node: &str, to: &str, service: &str, count: u64) -> Result<Value> {
    poll(SOON, &format!("{node} to have been denied {service} {count} times"), || {
        let found = denied(rig, node, &["--since", "10m"])?.into_iter().find(|denial| {
            denial["destination"] == to && denial["service"] == service && denial["count"] == count
        });
        Ok(found)
    })
}

/// One try to connect and ask: what went wrong, and how long it took.
fn connect(rig: &Rig, to: &str, port: u16) -> Result<(String, Duration)> {
    let target = rig.at(to, port)?.to_string();
    let started = Instant::now();
    let report = rig.fleet.netkit_json("a", &["http-get", &target, "1", "3000"])?;
    Ok((report["error"].as_str().unwrap_or_default().to_owned(), started.elapsed()))
}

#[test]
fn a_refused_host_hears_at_once_and_can_ask_why() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        let _server = rig.http_echo("b", 80)?;
        let _echo = rig.udp_echo("b", 7)?;
        rig.allow(&["a", "b", "--port", "tcp/80", "--port", "udp/7"])?;
        rig.deny(&["a", "b", "--port", "tcp/443"])?;
        ensure!(rig.http_get("a", "b", 80, 3)? == 3 && rig.udp_ping("a", "b", 7, 3)? == 3);
        ensure!(denied(rig, "a", &[])?.is_empty(), "what passes is no refusal");

        let b = rig.at("b", 0)?.ip().to_string();
        let c = rig.at("c", 0)?.ip().to_string();
        // What the machine itself knows, before anything is tried.
        for (peer, service, code, said) in [
            (b.as_str(), "tcp/80", 0, "r-1 allows tcp/80"),
            ("b", "udp/7", 0, "s1"),
            ("b", "tcp/81", 4, "no rule allows tcp/81"),
            ("b", "tcp/443", 4, "r-2 refuses tcp/443"),
            (c.as_str(), "tcp/80", 4, "no row"),
        ] {
            let why = rig.fleet.node("a")?.command(&["why", peer, "-p", service])?;
            ensure!(why.code == code && why.stdout.contains(said), "{peer} {service}: {why:?}");
        }
        let own = rig.at("a", 0)?.ip().to_string();
        for (peer, code, said) in [
            ("203.0.113.9", 3, "no overlay of this machine"),
            ("nobody", 3, "names no nobody"),
            (own.as_str(), 2, "this machine itself"),
        ] {
            let why = rig.fleet.node("a")?.command(&["why", peer])?;
            expect_refusal(&why, code, &[said])?;
        }
        for (to, address, port, reason) in
            [("b", &b, 81, "no_rule"), ("b", &b, 443, "deny_rule"), ("c", &c, 80, "no_row")]
        {
            let (error, took) = connect(rig, to, port)?;
            ensure!(error.contains("refused"), "{to}:{port}: {error}");
            ensure!(took < Duration::from_secs(1), "{to}:{port}: refused after {took:?}");
            let denial = expect_denied(rig, "a", address, &format!("tcp/{port}"), 1)?;
            ensure!(denial["reason"] == reason, "{denial:#}");
            ensure!(denial["overlay"] == LAB, "{denial:#}");
        }
        for (to, address) in [("b", &b), ("c", &c)] {
            let target = rig.at(to, 9)?.to_string();
            let report = rig.fleet.netkit_json("a", &["udp-ping", &target, "1", "3000"])?;
            let error = report["error"].as_str().unwrap_or_default();
            ensure!(error.contains("os error"), "no ICMP error: {report}");
            expect_denied(rig, "a", address, "udp/9", 1)?;
        }
        // For people, and in status.
        let ovd = rig.fleet.node("a")?;
        let table = ovd.command(&["denied"])?.success("denied")?;
        ensure!(table.contains("tcp/81") && table.contains("no rule allows it"), "{table}");
        let status = ovd.command(&["status"])?.success("status")?;
        ensure!(status.contains("denied    5 opening packets of this host"), "{status}");

        // On whichever lane the packet comes.
        let ovd = rig.fleet.node_mut("a")?;
        ensure!(ovd.stop()? == 0, "a does not stop by itself");
        ovd.set_options(&["--lanes", "4"]);
        ovd.start()?;
        rig.reconnected()?;
        rig.settle()?;
        for port in 82..90 {
            let (error, took) = connect(rig, "b", port)?;
            ensure!(error.contains("refused"), "{port}: {error}");
            ensure!(took < Duration::from_secs(1), "{port}: refused after {took:?}");
        }

        // What is allowed afterwards works: no answer lingers.
        rig.allow(&["a", "b", "--port", "udp/9"])?;
        let _echo = rig.udp_echo("b", 9)?;
        ensure!(rig.udp_ping("a", "b", 9, 3)? == 3);
        Ok(())
    });
}

#[test]
fn in_a_silent_overlay_nobody_is_answered_but_all_is_remembered() {
    play(&["s1"], &["a"], |rig| {
        rig.fleet.ovctl_ok(&[
            "overlay",
            "create",
            "quiet",
            "--cidr",
            "10.71.0.0/16",
            "--silent",
        ])?;
        rig.fleet.join("s2", Kind::Sap, &["quiet"], &[])?;
        for name in ["d", "e"] {
            rig.fleet.join(name, Kind::Entity, &["quiet"], &[])?;
        }
        let target = format!("{}:80", rig.fleet.address("e", "quiet")?);
        let started = Instant::now();
        let report = rig.fleet.netkit_json("d", &["http-get", &target, "1", "700"])?;
        let error = report["error"].as_str().unwrap_or_default();

        ensure!(started.elapsed() >= Duration::from_millis(700), "an answer: {report}");
        ensure!(error.contains("timed out"), "{report}");
        let address = rig.fleet.address("e", "quiet")?.to_string();
        expect_denied(rig, "d", &address, "tcp/80", 1)?;

        // Beside it an overlay that speaks.
        let stranger = "10.70.200.200:80";
        let report = rig.fleet.netkit_json("a", &["http-get", stranger, "1", "3000"])?;
        let error = report["error"].as_str().unwrap_or_default();
        ensure!(error.contains("refused"), "{report}");
        Ok(())
    });
}

//! `ovctl policy test --live`: tracers on the real path, and that nobody else gets them.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::fleet::parse;
use crate::support::{LAB, READY, Rig, SOON, play, play_in};
use crate::world::poll;

/// A test, as files have it.
fn row(from: &str, to: &str, service: &str, allow: bool) -> Value {
    match service.split_once('/') {
        Some((protocol, port)) => {
            let port: Value = port.parse::<u16>().map_or_else(|_| json!(port), |port| json!(port));
            json!({"from": from, "to": to, "protocol": protocol, "port": port, "allow": allow})
        }
        None => json!({"from": from, "to": to, "protocol": service, "allow": allow}),
    }
}

/// What `--live` says of the tests, and its exit code.
fn live(rig: &Rig, rows: &[Value]) -> Result<(Value, i32)> {
    let file = rig.file("yaml");
    fs::write(&file, json!({ "tests": rows }).to_string())?;
    let path = file.to_string_lossy();
    let said = rig.fleet.ovctl(&[
        "policy",
        "test",
        "--live",
        "--overlay",
        LAB,
        "--tests",
        &path,
        "-o",
        "json",
    ])?;
    Ok((parse(&said.stdout).with_context(|| said.stderr.clone())?, said.code))
}

/// The outcome of each test, who refused, and why.
fn outcomes(answer: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let results = answer["results"].as_array().into_iter().flatten();
    let told = |one: &Value| {
        format!("{} {} {}", text(&one["outcome"]), text(&one["by"]), text(&one["reason"]))
    };
    results.map(told).collect()
}

fn sums(answer: &Value) -> [u64; 3] {
    ["passed", "failed", "skipped"].map(|sum| answer[sum].as_u64().unwrap_or(u64::MAX))
}

#[test]
fn live_tests_find_what_packets_find_and_nobody_else_gets_them() {
    play(&["s1"], &["a", "b", "c", "d"], |rig| {
        let allow = ["a", "b", "--port", "tcp/80,udp/53,sctp/9,icmp"];
        rig.allow(&allow)?;
        rig.allow(&["a", "d"])?;
        rig.deny(&["a", "b", "--port", "tcp/8080"])?;
        let sink = rig.udp_sink("b", 53)?;

        let held = [
            row("a", "b", "tcp/80", true),
            row("a", "b", "udp/53", true),
            row("a", "b", "sctp/9", true),
            row("a", "b", "icmp", true),
            row("a", "b", "tcp/81", false),
            row("a", "b", "tcp/8080", false),
            row("b", "a", "tcp/80", false),
            // What the policy tells apart is tried apart.
            row("c", "b", "tcp", false),
            row("a", "203.0.113.9", "tcp/80", false),
        ];
        let (answer, code) = live(rig, &held)?;
        let told = outcomes(&answer);
        let expected = [
            "delivered - -",
            "delivered - -",
            "delivered - -",
            "delivered - -",
            "refused a no_rule",
            "refused a deny_rule",
            "refused b no_rule",
            "refused c no_row",
            "skipped - -",
        ];
        ensure!(told == expected, "{told:#?}");
        ensure!(sums(&answer) == [8, 0, 1] && code == 0, "{answer:#}");

        // The same tests with the opposite wish fail, all of them.
        let wrong = held.map(|mut row| {
            row["allow"] = json!(row["allow"] != true);
            row
        });
        let (answer, code) = live(rig, &wrong)?;
        ensure!(sums(&answer) == [0, 8, 1] && code == 8, "{answer:#}");

        // No program got anything, and no flow is left that a reply could pass by.
        ensure!(sink.received()? == 0, "tracers reached a program");
        for node in ["a", "b", "s1"] {
            let status = rig.fleet.node(node)?.status()?;
            ensure!(status["flows"] == 0, "{node} remembers {}", status["flows"]);
        }
        // The control of both: the same flow by a program.
        rig.udp_send("a", "b", 53, 3)?;
        sink.expect_received(3)?;
        for node in ["a", "b", "s1"] {
            ensure!(rig.fleet.node(node)?.status()?["flows"] == 1, "{node} knows no flow");
        }
        // The hosts asked for nothing that was refused.
        let denied = parse(&rig.fleet.node("a")?.command(&["denied", "-o", "json"])?.stdout)?;
        ensure!(denied["items"].as_array().is_some_and(Vec::is_empty), "{denied}");

        // In quarantine and away.
        rig.fleet.ovctl_ok(&["entity", "quarantine", "c"])?;
        rig.settle()?;
        rig.fleet.node_mut("d")?.stop()?;
        poll(READY, "the server to miss d", || {
            let status = parse(&rig.fleet.ovctl(&["status", "-o", "json"])?.stdout)?;
            Ok((status["entities"]["online"] == 3).then_some(()))
        })?;
        let rows = [
            row("a", "c", "tcp/80", false),
            row("a", "d", "tcp/80", true),
            row("d", "a", "tcp/80", false),
        ];
        let (answer, code) = live(rig, &rows)?;
        let told = outcomes(&answer);
        ensure!(told == ["refused a no_row", "not-sent - -", "not-sent - -"], "{told:?}");
        ensure!(sums(&answer) == [1, 2, 0] && code == 8, "{answer:#}");
        ensure!(answer["results"][2]["allowed"].is_null(), "what was not tried is not known");
        Ok(())
    });
}

/// A node whose own table lets everything through is refused by the next one, which says so.
#[test]
fn live_tests_name_the_policy_point_that_refuses() {
    play_in("fd70::/64", &["s1"], &["a", "b"], |rig| {
        // Without a SaP between them both ways are the ends' alone.
        let direct = rig.allow(&["a", "b", "--direct", "--port", "icmp"])?;
        let rows = [row("a", "b", "icmp", true), row("a", "b", "tcp/80", false)];
        let (answer, code) = live(rig, &rows)?;
        let told = outcomes(&answer);
        ensure!(told == ["delivered - -", "refused a no_rule"] && code == 0, "{told:?}");
        rig.revoke(&[&direct])?;

        rig.allow(&["a", "b", "--port", "tcp/80"])?;
        let rows = [row("a", "b", "tcp/80", true), row("a", "b", "tcp/81", false)];
        for (loosened, refuses) in [(None, "a"), (Some("a"), "s1"), (Some("s1"), "b")] {
            if let Some(node) = loosened {
                loosen(rig, node)?;
            }
            let (answer, code) = live(rig, &rows)?;
            let told = outcomes(&answer);
            let expected = ["delivered - -".to_owned(), format!("refused {refuses} no_rule")];
            ensure!(told == expected && code == 0, "{told:?}");
        }
        // The last one that stands in the way goes, and the test says what happens then.
        loosen(rig, "b")?;
        let (answer, code) = live(rig, &rows)?;
        ensure!(outcomes(&answer) == ["delivered - -"; 2] && code == 8, "{answer:#}");
        Ok(())
    });
}

/// Restarts a node on a table whose rules let every service through; the server takes it for its own.
fn loosen(rig: &mut Rig, node: &str) -> Result<()> {
    let state = rig.fleet.machine(node)?.state_dir();
    rig.fleet.node_mut(node)?.stop()?;
    let found = ["ovd", "ovsap"].map(|program| state.join(program).join("table.json"));
    let path = found.iter().find(|path| path.exists()).context("a table on disk")?;
    let mut document = parse(&fs::read_to_string(path)?)?;
    let mut rules = 0;
    for overlay in document["body"]["overlays"].as_array_mut().context("overlays")? {
        for rule in overlay["rules"].as_array_mut().context("rules")? {
            rule["services"] = json!([]);
            rules += 1;
        }
    }
    ensure!(rules > 0, "nothing to loosen at {node}");
    fs::write(path, document.to_string())?;
    rig.fleet.node_mut(node)?.start()?;
    rig.reconnected()?;
    poll(SOON, "packets to pass again", || {
        let (answer, _) = live(rig, &[row("a", "b", "tcp/80", true)])?;
        Ok((sums(&answer)[0] == 1).then_some(()))
    })
}

//! What nodes say that happened: by which rule, how much, and why not.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::fleet::parse;
use crate::support::{LAB, Rig, play};
use crate::world::poll;

/// Nodes report every 5 s.
const REPORTED: Duration = Duration::from_secs(20);

/// The records that the query finds.
fn flows(rig: &Rig, words: &[&str]) -> Result<Vec<Value>> {
    let answer = rig.fleet.ovctl_json(&[&["flow", "list"], words].concat())?;
    Ok(answer["items"].as_array().cloned().unwrap_or_default())
}

#[test]
fn what_passes_counts_once_and_what_is_denied_is_there_with_its_reason() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        let rule = rig.allow(&["a", "b", "--port", "udp/7"])?;
        let _echo = rig.udp_echo("b", 7)?;

        ensure!(rig.udp_ping("a", "b", 7, 5)? == 5);
        rig.udp_send("a", "b", 8, 3)?;
        rig.udp_send("a", "c", 7, 2)?;

        // Five there and five back: a, s1 and b all saw them.
        poll(REPORTED, "ten packets that passed, as b saw them", || {
            let found = flows(rig, &["--from", "a", "--to", "b", "--since", "10m"])?;
            Ok(found
                .iter()
                .any(|flow| {
                    flow["verdict"] == "allowed"
                        && flow["service"] == "udp/7"
                        && flow["packets"] == 10
                        && flow["rule"] == rule_number(&rule)
                        && flow["seenBy"] == serde_json::json!(["b"])
                })
                .then_some(()))
        })?;
        for (to, service, packets, reason) in
            [("b", "udp/8", 3, "no_rule"), ("c", "udp/7", 2, "no_row")]
        {
            poll(REPORTED, "what was denied", || {
                let found = flows(rig, &["--denied", "--to", to])?;
                Ok(found
                    .iter()
                    .any(|flow| {
                        flow["service"] == service
                            && flow["packets"] == packets
                            && flow["reason"] == reason
                    })
                    .then_some(()))
            })?;
        }
        let shown = rig.fleet.ovctl_json(&["policy", "show", &rule])?;
        ensure!(shown["hits"]["packets"] == 10, "{shown:#}");
        Ok(())
    });
}

#[test]
fn why_says_what_was_dropped_and_the_command_it_prints_allows_the_flow() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b", "--port", "udp/9"])?;
        let _echo = rig.udp_echo("b", 7)?;
        rig.udp_send("a", "b", 7, 3)?;
        let question = ["why", "a", "b", "-p", "udp/7"];

        let why = poll(REPORTED, "what was dropped", || {
            let output = rig.fleet.ovctl(&[&question[..], &["-o", "json"]].concat())?;
            ensure!(output.code == 4, "denied is exit 4: {output:?}");
            let why = parse(&output.stdout)?;
            Ok((why["seen"][0]["packets"] == 3).then_some(why))
        })?;
        ensure!(why["allowed"] == false, "{why:#}");
        ensure!(why["seen"][0]["reason"] == "no_rule", "{why:#}");
        ensure!(why["nearest"][0]["differs"] == "port differs", "{why:#}");
        let shown = rig.fleet.ovctl(&question)?;
        let command = shown.stdout.lines().find_map(|line| line.strip_prefix("allow it:  ovctl "));
        let words: Vec<&str> = command.context("no command is shown")?.split(' ').collect();
        rig.fleet.ovctl_ok(&words)?;
        rig.settle()?;

        poll(REPORTED, "all stages to be well", || {
            let why = rig.fleet.ovctl_json(&question)?;
            ensure!(why["allowed"] == true, "{why:#}");
            let stages = why["stages"].as_array().context("stages")?;
            Ok(stages.iter().all(|stage| stage["state"] == "ok").then_some(()))
        })?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 3, "what `why` allows passes");
        Ok(())
    });
}

#[test]
fn what_an_audit_rule_lets_through_is_recorded_and_its_suggestion_can_be_applied() {
    play(&["s1"], &["a", "b"], |rig| {
        let _echo = rig.udp_echo("b", 7)?;
        rig.allow(&["a", "b", "--audit"])?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 3, "audit refuses nothing");
        poll(REPORTED, "six packets that passed under audit", || {
            let found = flows(rig, &["--audit", "--from", "a", "--to", "b"])?;
            Ok(found
                .iter()
                .any(|flow| flow["service"] == "udp/7" && flow["packets"] == 6)
                .then_some(()))
        })?;
        let question = ["why", "a", "b", "-p", "udp/7"];
        let rules = |why: &Value| why["stages"][3].clone();
        let why = rules(&rig.fleet.ovctl_json(&question)?);
        ensure!(why["stage"] == "rules" && why["state"] == "unsure", "{why:#}");

        let suggest = ["policy", "suggest", "--since", "1h", "--overlay", LAB];
        let file = rig.file("yaml");
        fs::write(&file, rig.fleet.ovctl_ok(&suggest)?)?;
        rig.fleet.ovctl_ok(&["policy", "apply", "-f", &file.to_string_lossy()])?;
        rig.settle()?;

        let why = rules(&rig.fleet.ovctl_json(&question)?);
        ensure!(why["state"] == "ok", "{why:#}");
        ensure!(rig.can("a", "b", "udp/8")? == 4, "what was not recorded is denied again");
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 3);
        Ok(())
    });
}

/// As JSON has it.
fn rule_number(rule: &str) -> Value {
    rule.trim_start_matches("r-").parse::<u32>().map_or(Value::Null, Value::from)
}

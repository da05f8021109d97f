//! `ovd guard`: what keeps overlays' packets inside, and services closed outside.

use std::path::Path;

use serde_json::{Value, json};

use super::Outcome;
use super::args::{DaemonArgs, Format, GuardCommand};
use super::client::{Answer, Client};
use super::output::{Output, Table};
use crate::api::local::{GuardStatus, NodeStatus, Order};
use crate::api::{Problem, ProblemCode};
use crate::types::{GuardEgress, GuardMode};

/// Does what `ovd guard` asks; `others` looks for other tools on this machine, by name and meaning.
///
/// # Errors
///
/// Unreachable when the daemon does not answer.
pub async fn run(
    output: &mut Output,
    command: &GuardCommand,
    others: impl FnOnce() -> Vec<(String, String)>,
) -> Result<Outcome, Problem> {
    match command {
        GuardCommand::Show(daemon) => show(output, daemon).await,
        GuardCommand::Check(daemon) => check(output, daemon, &others()).await,
        GuardCommand::Off(off) => {
            order(off.daemon.socket.as_deref(), &Order::GuardOff(off.time)).await?;
            let until = off.time.map_or_else(
                || "until `ovd guard on` or the next start".to_owned(),
                |time| format!("for {time}"),
            );
            output.note(format!(
                "the guard is off {until}: the underlay reaches this machine's services, and overlays' \
                 packets may leave in clear; the server is told"
            ));
            Ok(Outcome::Done)
        }
        GuardCommand::On(daemon) => {
            order(daemon.socket.as_deref(), &Order::GuardOn).await?;
            Ok(Outcome::Done)
        }
    }
}

/// Has the daemon behind `socket` carry out an order.
///
/// # Errors
///
/// Unreachable when it does not answer; what it says when it cannot.
pub async fn order(socket: Option<&Path>, order: &Order) -> Result<(), Problem> {
    let client = Client::to_daemon("ovd", socket)?;
    client.ask::<_, Value>("/v1/order", order).await.map(drop)
}

async fn ask(daemon: &DaemonArgs) -> Result<(GuardStatus, Value), Problem> {
    let client = Client::to_daemon("ovd", daemon.socket.as_deref())?;
    let answer: Answer<NodeStatus> = client.read("/v1/status", &[]).await?;
    let guard = answer.value.guard.ok_or_else(|| {
        Problem::new(ProblemCode::NotFound, "the daemon says nothing of a guard")
            .fix("use programs of the same version")
    })?;
    Ok((guard, answer.document["guard"].clone()))
}

async fn show(output: &mut Output, daemon: &DaemonArgs) -> Result<Outcome, Problem> {
    let (guard, document) = ask(daemon).await?;
    match output.format() {
        Format::Json => output.json(&document),
        Format::Name => guard.rules.iter().for_each(|rule| output.line(rule.name.clone())),
        Format::Table => {
            output.line(summary(&guard));
            for line in details(&guard) {
                output.line(line);
            }
            output.table(&rules(&guard));
        }
    }
    Ok(Outcome::Done)
}

async fn check(
    output: &mut Output,
    daemon: &DaemonArgs,
    others: &[(String, String)],
) -> Result<Outcome, Problem> {
    let (guard, _) = ask(daemon).await?;
    match output.format() {
        Format::Json => output.json(&json!({
            "inForce": guard.in_force,
            "underlayOpen": guard.underlay_open,
            "putBack": guard.put_back,
            "others": others
                .iter()
                .map(|(tool, meaning)| json!({"tool": tool, "meaning": meaning}))
                .collect::<Vec<_>>(),
        })),
        Format::Name => others.iter().for_each(|(tool, _)| output.line(tool.clone())),
        Format::Table => {
            output.line(summary(&guard));
            let mut table = Table::new(&["ALSO HERE", "WHAT THAT MEANS"]);
            for (tool, meaning) in others {
                table.row([tool.clone(), meaning.clone()]);
            }
            output.table(&table);
        }
    }
    Ok(if guard.in_force { Outcome::Done } else { Outcome::NotSo })
}

/// One line, in `ovd status` too.
pub(super) fn summary(guard: &GuardStatus) -> String {
    let mut line = format!("guard     {}", guard.mode);
    if let Some(until) = guard.off_until {
        line.push_str(&format!(", off until {until}"));
    } else if guard.mode != GuardMode::Off && !guard.in_force {
        line.push_str(", NOT in force");
    } else if guard.egress == GuardEgress::Rules {
        line.push_str(", egress by rules");
    }
    if guard.underlay_open {
        line.push_str("; underlay open: ");
        line.push_str(if guard.in_force {
            "no port of this machine is named or in a rule: name ports, give rules ports, or --guard all"
        } else {
            "whoever reaches this machine reaches what it serves"
        });
    }
    if guard.put_back > 0 {
        line.push_str(&format!("; put back {} times after others changed it", guard.put_back));
    }
    line
}

fn details(guard: &GuardStatus) -> Vec<String> {
    let mut lines = Vec::new();
    if guard.mode == GuardMode::Ports && !guard.services.is_empty() {
        let services: Vec<String> = guard.services.iter().map(ToString::to_string).collect();
        lines.push(format!("closes    {}", services.join(" ")));
    }
    if !guard.ssh_peers.is_empty() {
        let peers: Vec<String> = guard.ssh_peers.iter().map(ToString::to_string).collect();
        lines.push(format!("lets in   ssh from {} (--lock-ssh closes it)", peers.join(" ")));
    }
    lines
}

/// The rules, with what they matched.
pub(super) fn rules(guard: &GuardStatus) -> Table {
    let mut table = Table::new(&["GUARD RULE", "PACKETS", "BYTES", "ABOUT"]);
    for rule in &guard.rules {
        table.row([
            rule.name.clone(),
            rule.packets.to_string(),
            rule.bytes.to_string(),
            rule.about.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::local::GuardRule;
    use crate::types::Timestamp;

    fn guard() -> GuardStatus {
        GuardStatus {
            ssh_peers: vec!["192.0.2.7".parse().unwrap()],
            rules: vec![GuardRule {
                name: "service_elsewhere".to_owned(),
                packets: 4,
                bytes: 240,
                about: "for a service port, not over an overlay".to_owned(),
            }],
            ..GuardStatus::of_tests()
        }
    }

    #[test]
    fn one_line_says_how_it_is() {
        assert_eq!(summary(&guard()), "guard     ports");
        let rules = GuardStatus { egress: GuardEgress::Rules, ..guard() };
        assert_eq!(summary(&rules), "guard     ports, egress by rules");
        let lifted = GuardStatus { off_until: Some(Timestamp(0)), in_force: false, ..rules };
        assert!(!summary(&lifted).contains("egress"));
        let open = GuardStatus { underlay_open: true, ..guard() };
        assert!(summary(&open).contains("underlay open: no port"), "{}", summary(&open));
        let off = GuardStatus {
            in_force: false,
            underlay_open: true,
            off_until: Some(Timestamp(0)),
            ..guard()
        };
        assert!(summary(&off).contains("off until 1970-01-01T00:00:00Z; underlay open: whoever"));
        let broken = GuardStatus { in_force: false, ..guard() };
        assert!(summary(&broken).contains("NOT in force"));
        assert!(summary(&GuardStatus { put_back: 2, ..guard() }).contains("put back 2 times"));
    }

    #[test]
    fn services_and_peers_are_listed_and_rules_counted() {
        let lines = details(&guard()).join("\n");
        assert!(lines.contains("tcp/443") && lines.contains("ssh from 192.0.2.7"), "{lines}");
        let text = rules(&guard()).lines().join("\n");
        assert!(text.contains("service_elsewhere  4        240"), "{text}");
    }
}

//! `ovctl why`: why a flow passes or not, stage by stage.

use super::Outcome;
use super::args::{CanArgs, Format};
use super::client::{Answer, Client};
use super::flow::verdict;
use super::output::{Output, relative};
use crate::api::Problem;
use crate::api::admin::CanQuestion;
use crate::api::why::{StageName, StageState, WhyAnswer, WhyEnd};
use crate::types::Timestamp;

/// Does what `ovctl why` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(client: &Client, output: &mut Output, args: CanArgs) -> Result<Outcome, Problem> {
    let CanArgs { from, to, port, overlay } = args;
    let question = CanQuestion { overlay, from, to, service: port };
    let answer: Answer<WhyAnswer> = client.ask("/v1/policy/why", &question).await?;
    let why = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(if why.allowed { "allowed" } else { "denied" }),
        Format::Table => {
            let now = output.now();
            lines(why, now).into_iter().for_each(|line| output.line(line));
        }
    }
    Ok(if why.allowed { Outcome::Done } else { Outcome::Denied })
}

fn lines(why: &WhyAnswer, now: Timestamp) -> Vec<String> {
    let verdict = if why.allowed { "ALLOWED" } else { "DENIED" };
    let service = why.service.as_ref().map(|service| format!(" {service}")).unwrap_or_default();
    let place = match &why.overlay {
        Some(overlay) => format!("overlay {overlay}, revision {}", why.revision),
        None => format!("revision {}", why.revision),
    };
    let (from, to) = (end(&why.from), end(&why.to));
    let mut lines = vec![format!("{verdict:<7}  {from} → {to}{service}   {place}")];
    if why.pairs > 1 {
        let (allowed, all) = (why.allowed_pairs, why.pairs);
        lines.push(format!("  {allowed} of {all} pairs are allowed; this is about the one above"));
    }
    for (at, stage) in why.stages.iter().enumerate() {
        let state = state_word(stage.state);
        lines.push(format!("  {} {:<10}  {state:<7}  {}", at + 1, stage.stage.name(), stage.text));
        if stage.stage == StageName::Rules {
            for (at, near) in why.nearest.iter().enumerate() {
                let lead = if at == 0 { "nearest:" } else { "" };
                let (rule, text, differs) = (near.rule, &near.text, &near.differs);
                lines.push(format!("{:25}{lead:<8} {rule} {text} ({differs})", ""));
            }
        }
    }
    if why.from.name.is_some() && why.to.name.is_some() && why.overlay.is_some() {
        lines.extend(seen_lines(why, now));
    }
    lines.extend(super::policy::allow_lines(&why.allow_with));
    lines
}

/// `web (10.70.0.1)`, or what there is of it.
fn end(end: &WhyEnd) -> String {
    match (&end.name, &end.address) {
        (Some(name), Some(address)) => format!("{name} ({address})"),
        (Some(name), None) => name.to_string(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "somebody who is gone".to_owned(),
    }
}

pub(super) fn state_word(state: StageState) -> &'static str {
    match state {
        StageState::Ok => "ok",
        StageState::Denied => "DENIED",
        StageState::Broken => "BROKEN",
        StageState::Unsure => "look",
    }
}

fn seen_lines(why: &WhyAnswer, now: Timestamp) -> Vec<String> {
    if why.seen.is_empty() {
        return vec!["seen:      nothing in the last 5 minutes; nodes report every 5 s".to_owned()];
    }
    let record = |(at, seen): (usize, &crate::api::flows::FlowRecord)| {
        let lead = if at == 0 { "seen:" } else { "" };
        format!(
            "{lead:<9}  {} packets {} {} at {}, first {}, last {}",
            seen.packets,
            seen.service,
            verdict(seen),
            seen.seen_by.join(", "),
            seen.first,
            relative(seen.last, now)
        )
    };
    why.seen.iter().enumerate().map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(allowed: bool) -> WhyAnswer {
        let state = if allowed { "ok" } else { "denied" };
        serde_json::from_value(json!({
            "apiVersion": "ovmesh/v1", "allowed": allowed, "overlay": "prod", "revision": 43,
            "from": {"name": "alice", "address": "100.71.0.90"},
            "to": {"name": "db", "address": "100.71.0.21"},
            "pairs": 1, "allowedPairs": u64::from(allowed), "service": "tcp/5432", "rule": null,
            "stages": [
                {"stage": "path", "state": "ok", "text": "alice → sap-1 → db"},
                {"stage": "rules", "state": state, "text": "the reason"},
            ],
            "nearest": [{"rule": 18, "text": "allow web -> db tcp/5432",
                "differs": "source differs"}],
            "since": "1970-01-01T00:00:00Z",
            "seen": [{"overlay": "prod", "from": "alice", "to": "db", "service": "tcp/5432",
                "verdict": "denied", "reason": "no_row", "rule": null, "packets": 14, "bytes": 840,
                "first": "1970-01-01T00:01:00Z", "last": "1970-01-01T00:02:00Z",
                "seenBy": ["alice"]}],
            "allowWith": ["ovctl policy revoke r-3",
                "ovctl policy allow alice db --port tcp/5432"],
        }))
        .unwrap()
    }

    #[test]
    fn the_answer_shows_stages_nearest_rules_what_was_seen_and_the_commands() {
        assert_eq!(
            lines(&answer(false), Timestamp(150)),
            [
                "DENIED   alice (100.71.0.90) → db (100.71.0.21) tcp/5432   overlay prod, revision 43",
                "  1 path        ok       alice → sap-1 → db",
                "  2 rules       DENIED   the reason",
                "                         nearest: r-18 allow web -> db tcp/5432 (source differs)",
                "seen:      14 packets tcp/5432 denied: no_row at alice, first 1970-01-01T00:01:00Z, \
                 last 30s ago",
                "allow it:  ovctl policy revoke r-3",
                "then:      ovctl policy allow alice db --port tcp/5432",
            ]
        );
    }

    #[test]
    fn silence_is_told() {
        let mut quiet = answer(true);
        quiet.seen.clear();

        let lines = lines(&quiet, Timestamp(150));

        assert!(lines[0].starts_with("ALLOWED  alice"), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("seen:      nothing")), "{lines:?}");
    }
}

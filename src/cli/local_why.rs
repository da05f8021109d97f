//! `ovd why`: what this machine knows of a flow that it would start.

use super::Outcome;
use super::args::{Format, OvdWhyArgs};
use super::client::{Answer, Client};
use super::output::{Output, relative};
use super::why::state_word;
use crate::api::Problem;
use crate::api::local::LocalWhy;
use crate::types::Timestamp;

/// Does what `ovd why` asks.
///
/// # Errors
///
/// What the daemon says; unreachable when it does not answer.
pub async fn run(output: &mut Output, args: &OvdWhyArgs) -> Result<Outcome, Problem> {
    let client = Client::to_daemon("ovd", args.socket.as_deref())?;
    let mut query = vec![("peer", args.peer.clone())];
    query.extend(args.port.iter().map(|service| ("service", service.to_string())));
    let answer: Answer<LocalWhy> = client.read("/v1/why", &query).await?;
    let why = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(word(why)),
        Format::Table => {
            let now = output.now();
            lines(why, now).into_iter().for_each(|line| output.line(line));
        }
    }
    Ok(if why.passes { Outcome::Done } else { Outcome::Denied })
}

fn word(why: &LocalWhy) -> &'static str {
    if why.passes { "passes" } else { "stopped" }
}

fn lines(why: &LocalWhy, now: Timestamp) -> Vec<String> {
    let peer = peer(why);
    let service = why.service.as_ref().map(|service| format!(" {service}")).unwrap_or_default();
    let mut lines = vec![format!(
        "{:<7}  {} → {peer}{service}   overlay {}, this machine's table of revision {}",
        word(why).to_uppercase(),
        why.from,
        why.overlay,
        why.revision
    )];
    for (at, stage) in why.stages.iter().enumerate() {
        let state = state_word(stage.state);
        lines.push(format!("  {} {:<10}  {state:<7}  {}", at + 1, stage.stage.name(), stage.text));
    }
    for denial in &why.denied {
        lines.push(format!(
            "denied:    {} {} times, last {}, by {}: {}",
            denial.service,
            denial.count,
            relative(denial.last, now),
            denial.by.name(),
            denial.reason
        ));
    }
    if !why.passes {
        lines.push(whom_to_ask(why));
    }
    lines
}

/// The other end, for people.
pub(super) fn peer(why: &LocalWhy) -> String {
    match &why.peer {
        Some(name) => format!("{name} ({})", why.address),
        None => why.address.to_string(),
    }
}

/// The question that the server answers better.
pub(super) fn whom_to_ask(why: &LocalWhy) -> String {
    let port = why.service.as_ref().map(|one| format!(" -p {one}")).unwrap_or_default();
    let peer = why.peer.as_ref().map_or_else(|| why.address.to_string(), ToString::to_string);
    format!("the server knows more: ovctl why {} {peer}{port}", why.from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_answer_shows_stages_refusals_and_whom_to_ask() {
        let why: LocalWhy = serde_json::from_value(json!({
            "apiVersion": "ovmesh/v1", "passes": false, "overlay": "lab", "from": "a",
            "address": "10.70.0.2", "peer": "b", "service": "tcp/22", "revision": 7,
            "stages": [{"stage": "rules", "state": "denied", "text": "no rule"}],
            "denied": [{"overlay": "lab", "source": "10.70.0.1", "destination": "10.70.0.2",
                "peer": "b", "service": "tcp/22", "reason": "no_rule", "by": "sap", "count": 3,
                "first": "1970-01-01T00:01:00Z", "last": "1970-01-01T00:02:00Z"}],
        }))
        .unwrap();

        assert_eq!(
            lines(&why, Timestamp(150)),
            [
                "STOPPED  a → b (10.70.0.2) tcp/22   overlay lab, this machine's table of revision 7",
                "  1 rules       DENIED   no rule",
                "denied:    tcp/22 3 times, last 30s ago, by sap: no_rule",
                "the server knows more: ovctl why a b -p tcp/22",
            ]
        );
    }
}

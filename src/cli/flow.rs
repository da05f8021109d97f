//! `ovctl flow`: what happened, by the records of the nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::Outcome;
use super::args::{FlowArgs, FlowCommand, Format, SuggestArgs};
use super::client::{Answer, Client};
use super::output::{Output, Table, relative};
use crate::api::Problem;
use crate::api::flows::{FlowList, FlowRecord, FlowVerdict, SuggestAnswer, SuggestQuestion};
use crate::types::{HumanDuration, RuleId, Timestamp};

/// Rows of `top` when nothing is said.
const TOP: u32 = 20;

/// Between two looks of `tail`.
const TAIL_EVERY: Duration = Duration::from_secs(2);

/// How far back each look of `tail` goes: more than the time in which a node reports.
const TAIL_SINCE: Duration = Duration::from_secs(120);

/// Does what `ovctl flow …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: FlowCommand,
) -> Result<Outcome, Problem> {
    match command {
        FlowCommand::List(args) => list(client, output, &args, false).await,
        FlowCommand::Top(args) => {
            let limit = Some(args.limit.unwrap_or(TOP));
            list(client, output, &FlowArgs { limit, ..args }, true).await
        }
        FlowCommand::Tail(args) => tail(client, output, &args).await,
    }
}

/// The query parameters that ask for it.
fn query(args: &FlowArgs) -> Vec<(&'static str, String)> {
    let text = |name, value: Option<String>| value.map(|value| (name, value));
    [
        text("overlay", args.overlay.as_ref().map(ToString::to_string)),
        text("from", args.from.as_ref().map(ToString::to_string)),
        text("to", args.to.as_ref().map(ToString::to_string)),
        text("denied", args.denied.then(|| "true".to_owned())),
        text("audit", args.audit.then(|| "true".to_owned())),
        text("since", args.since.as_ref().map(ToString::to_string)),
        text("limit", args.limit.map(|limit| limit.to_string())),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn list(
    client: &Client,
    output: &mut Output,
    args: &FlowArgs,
    busiest_first: bool,
) -> Result<Outcome, Problem> {
    let answer: Answer<FlowList> = client.read("/v1/flows", &query(args)).await?;
    let mut records = answer.value.items;
    if !busiest_first {
        records.sort_by_key(|record| std::cmp::Reverse(record.last));
    }
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => records.iter().for_each(|record| output.line(pair(record))),
        Format::Table => {
            let table = table(&records, output.now());
            output.table(&table);
            if records.is_empty() {
                output.note("nothing was seen; nodes report every 5 s");
            }
            if answer.value.left_off > 0 {
                let more = answer.value.left_off;
                output
                    .note(format!("{more} further records are left off: --limit, --since, --from"));
            }
        }
    }
    Ok(Outcome::Done)
}

fn pair(record: &FlowRecord) -> String {
    format!("{} {} {}", record.from, record.to, record.service)
}

fn table(records: &[FlowRecord], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "FROM", "TO", "SERVICE", "VERDICT", "RULE", "PACKETS", "BYTES", "FIRST", "LAST", "OVERLAY",
    ]);
    for record in records {
        table.row([
            record.from.clone(),
            record.to.clone(),
            record.service.clone(),
            verdict(record),
            record.rule.as_ref().map(RuleId::to_string).unwrap_or_default(),
            record.packets.to_string(),
            record.bytes.to_string(),
            relative(record.first, now),
            relative(record.last, now),
            record.overlay.to_string(),
        ]);
    }
    table
}

/// `denied: no_rule`.
pub(super) fn verdict(record: &FlowRecord) -> String {
    match (record.verdict, &record.reason) {
        (FlowVerdict::Denied, Some(reason)) => format!("denied: {reason}"),
        (verdict, _) => verdict.name().to_owned(),
    }
}

/// Prints what grew since the last look; what was there at the start is not news.
async fn tail(client: &Client, output: &mut Output, args: &FlowArgs) -> Result<Outcome, Problem> {
    let args = FlowArgs { since: Some(HumanDuration(TAIL_SINCE)), ..args.clone() };
    let mut seen: Option<BTreeMap<String, u64>> = None;
    loop {
        let answer: Answer<FlowList> = client.read("/v1/flows", &query(&args)).await?;
        let records = answer.value.items;
        let now: BTreeMap<String, u64> =
            records.iter().map(|record| (name(record), record.packets)).collect();
        if let Some(before) = &seen {
            for record in news(&records, before) {
                match output.format() {
                    Format::Json => {
                        let value = serde_json::to_value(&record).unwrap_or(Value::Null);
                        output.line(value.to_string());
                    }
                    Format::Name => output.line(pair(&record)),
                    Format::Table => output.line(line(&record)),
                }
            }
            output.flush()?;
        }
        seen = Some(now);
        tokio::time::sleep(TAIL_EVERY).await;
    }
}

/// What a record is about, as one text.
fn name(record: &FlowRecord) -> String {
    let FlowRecord { overlay, from, to, service, rule, .. } = record;
    let rule = rule.as_ref().map(RuleId::to_string).unwrap_or_default();
    format!("{overlay} {from} {to} {service} {} {rule}", verdict(record))
}

/// The records that grew, each with what was added. Where old periods dropped out, it shows what is
/// left.
fn news(records: &[FlowRecord], before: &BTreeMap<String, u64>) -> Vec<FlowRecord> {
    let mut news: Vec<FlowRecord> = records
        .iter()
        .filter_map(|record| {
            let known = before.get(&name(record)).copied().unwrap_or(0);
            let added = record.packets.checked_sub(known).filter(|added| *added > 0)?;
            Some(FlowRecord { packets: added, ..record.clone() })
        })
        .collect();
    news.sort_by_key(|record| record.last);
    news
}

fn line(record: &FlowRecord) -> String {
    let rule = record.rule.map(|rule| format!(" by {rule}")).unwrap_or_default();
    format!(
        "{}  {} → {}  {}  {}{rule}  +{} packets",
        record.last,
        record.from,
        record.to,
        record.service,
        verdict(record),
        record.packets
    )
}

/// `ovctl policy suggest`: a policy file on stdout.
pub(super) async fn suggest(
    client: &Client,
    output: &mut Output,
    args: SuggestArgs,
) -> Result<Outcome, Problem> {
    let SuggestArgs { since, denied, overlay } = args;
    let question = SuggestQuestion { overlay, since, denied };
    let answer: Answer<SuggestAnswer> = client.ask("/v1/policy/suggest", &question).await?;
    let suggested = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Table | Format::Name => output.raw(&suggested.policy),
    }
    if suggested.rules == 0 {
        output.note("nothing was recorded that a rule could be made of");
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Name;

    fn record(to: &str, packets: u64) -> FlowRecord {
        FlowRecord {
            overlay: Name::default(),
            from: "web".to_owned(),
            to: to.to_owned(),
            service: "tcp/5432".to_owned(),
            verdict: FlowVerdict::Denied,
            reason: Some("no_rule".to_owned()),
            rule: None,
            packets,
            bytes: packets * 60,
            first: Timestamp(100),
            last: Timestamp(150),
            seen_by: vec!["web".to_owned()],
        }
    }

    #[test]
    fn a_refusal_is_shown_with_its_reason() {
        let lines = table(&[record("db", 3)], Timestamp(160)).lines();
        assert!(lines[1].contains("web") && lines[1].contains("denied: no_rule"), "{lines:?}");
    }

    #[test]
    fn the_tail_shows_what_was_added_and_nothing_twice() {
        let before = BTreeMap::from([(name(&record("db", 3)), 3)]);
        let records = [record("db", 5), record("cache", 2)];

        let added: Vec<(String, u64)> =
            news(&records, &before).into_iter().map(|record| (record.to, record.packets)).collect();

        assert_eq!(added, [("db".to_owned(), 2), ("cache".to_owned(), 2)]);
        assert!(news(&[record("db", 3)], &before).is_empty());
    }
}

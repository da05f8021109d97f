//! `ovctl sap`: lists, shows and deletes SaPs.

use super::Outcome;
use super::args::{Format, SapCommand};
use super::client::{Answer, Client};
use super::enforcement::{headline, show};
use super::entity::{health, health_lines, or_dash};
use super::output::{Output, Table, joined, relative};
use crate::api::Problem;
use crate::api::admin::{Change, List, Sap};

/// Does what `ovctl sap …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: SapCommand,
) -> Result<Outcome, Problem> {
    match command {
        SapCommand::List => {
            let answer: Answer<List<Sap>> = client.read("/v1/saps", &[]).await?;
            list(output, &answer);
            Ok(Outcome::Done)
        }
        SapCommand::Show { name } => {
            let answer: Answer<Sap> = client.read(&format!("/v1/saps/{name}"), &[]).await?;
            show_one(output, &answer);
            Ok(Outcome::Done)
        }
        SapCommand::Delete { name, change } => {
            let answer: Answer<Change<Sap>> =
                client.delete(&format!("/v1/saps/{name}"), &change.options()).await?;
            Ok(show(
                output,
                &answer,
                |sap| sap.name.to_string(),
                |change| vec![headline(change, &format!("sap {name}"), "deleted")],
            ))
        }
    }
}

fn list(output: &mut Output, answer: &Answer<List<Sap>>) {
    let saps = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => saps.iter().for_each(|sap| output.line(sap.name.as_str())),
        Format::Table => {
            let now = output.now();
            let mut table =
                Table::new(&["NAME", "OVERLAYS", "ENDPOINTS", "STATE", "VERSION", "SEEN"]);
            for sap in saps {
                table.row([
                    sap.name.to_string(),
                    joined(&sap.overlays),
                    joined(&sap.endpoints),
                    health(&sap.health),
                    sap.health.version.clone(),
                    sap.health.seen.map_or_else(|| "never".to_owned(), |seen| relative(seen, now)),
                ]);
            }
            output.table(&table);
            if saps.is_empty() {
                output.note(
                    "no SaPs: only direct pairs can talk. Next: ovctl token create --role sap",
                );
            }
        }
    }
}

fn show_one(output: &mut Output, answer: &Answer<Sap>) {
    let sap = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(sap.name.as_str()),
        Format::Table => {
            let now = output.now();
            output.line(format!("sap {} ({})", sap.name, sap.id));
            output.line(format!("  overlays   {}", or_dash(&joined(&sap.overlays))));
            output.line(format!("  endpoints  {}", or_dash(&joined(&sap.endpoints))));
            output.line(format!("  joined     {} ({})", relative(sap.joined, now), sap.joined));
            for line in health_lines(&sap.health, now) {
                output.line(format!("  {line}"));
            }
        }
    }
}

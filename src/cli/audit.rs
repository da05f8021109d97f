//! `ovctl audit`: who changed what.

use super::Outcome;
use super::args::{AuditCommand, Format};
use super::client::{Answer, Client};
use super::output::{Output, Table};
use crate::api::Problem;
use crate::api::admin::{AuditRecord, List};

/// Does what `ovctl audit …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: AuditCommand,
) -> Result<Outcome, Problem> {
    let AuditCommand::List(args) = command;
    let query = [("limit", args.limit.to_string())];
    let answer: Answer<List<AuditRecord>> = client.read("/v1/audit", &query).await?;
    let records = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => {
            records.iter().for_each(|record| output.line(record.revision.to_string()));
        }
        Format::Table => {
            output.table(&table(records));
            if records.is_empty() {
                output.note("nothing was changed yet");
            } else {
                output.note("before and after of each change: ovctl audit list -o json");
            }
        }
    }
    Ok(Outcome::Done)
}

/// Absolute times: an audit is read long after.
fn table(records: &[AuditRecord]) -> Table {
    let mut table = Table::new(&["REVISION", "AT", "WHO", "WHAT"]);
    for record in records {
        table.row([
            record.revision.to_string(),
            record.at.to_string(),
            record.actor.clone(),
            record.action.clone(),
        ]);
    }
    table
}

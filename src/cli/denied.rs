//! `ovd denied`: what this host wanted and was refused.

use super::Outcome;
use super::args::{DeniedArgs, Format};
use super::client::{Answer, Client};
use super::output::{Output, Table, relative};
use crate::api::Problem;
use crate::api::local::{Denial, DenialList};
use crate::types::{DropReason, Timestamp};

/// Does what `ovd denied` asks.
///
/// # Errors
///
/// Unreachable when the daemon does not answer.
pub async fn run(output: &mut Output, args: &DeniedArgs) -> Result<Outcome, Problem> {
    let client = Client::to_daemon("ovd", args.socket.as_deref())?;
    let query: Vec<_> = args.since.iter().map(|since| ("since", since.to_string())).collect();
    let answer: Answer<DenialList> = client.read("/v1/denied", &query).await?;
    let denials = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => denials.iter().for_each(|denial| output.line(peer(denial))),
        Format::Table => {
            let table = table(denials, output.now());
            output.table(&table);
            if denials.is_empty() {
                output.note("nothing of this host was refused");
            }
        }
    }
    Ok(Outcome::Done)
}

/// The other end, by the best name that there is.
fn peer(denial: &Denial) -> String {
    denial.peer.as_ref().map_or_else(|| denial.destination.to_string(), ToString::to_string)
}

fn table(denials: &[Denial], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "LAST", "OVERLAY", "TO", "ADDRESS", "SERVICE", "TIMES", "BY", "REASON", "WHY",
    ]);
    for denial in denials {
        table.row([
            relative(denial.last, now),
            denial.overlay.to_string(),
            denial.peer.as_ref().map(ToString::to_string).unwrap_or_default(),
            denial.destination.to_string(),
            denial.service.clone(),
            denial.count.to_string(),
            denial.by.name().to_owned(),
            denial.reason.clone(),
            DropReason::named(&denial.reason).map_or("", DropReason::explanation).to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_wanted_and_why_not() {
        let denial = Denial::of_tests();
        assert_eq!(peer(&denial), "10.70.0.2");
        let named = Denial { peer: Some("db".parse().unwrap()), ..denial };

        let text = table(&[named], Timestamp(1030)).lines().join("\n");

        for part in ["30s ago", "lab", "db", "10.70.0.2", "tcp/22", "3", "sap", "no rule allows it"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

//! `ovctl path`: shows and sets the ways of pairs, and shows what was measured.

use std::collections::{BTreeMap, BTreeSet};

use super::Outcome;
use super::args::{Format, PairArgs, PathAutoArgs, PathCommand, PathSetArgs};
use super::client::{Answer, Client};
use super::enforcement::{headline, show};
use super::output::{Output, Table, joined, micros};
use crate::api::Problem;
use crate::api::admin::{Change, List, RulePath};
use crate::api::path::{Latency, PairPath, PathCandidate, PathSet};
use crate::types::{EntityName, Name};

/// Does what `ovctl path …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: PathCommand,
) -> Result<Outcome, Problem> {
    match command {
        PathCommand::Show(pair) => show_pair(client, output, &pair).await,
        PathCommand::Set(PathSetArgs { pair, via, direct, change }) => {
            let path = if direct { RulePath::Direct } else { RulePath::Via(via) };
            let options = change.options();
            let answer = client.change("/v1/paths", &request(pair, Some(path)), &options).await?;
            Ok(changed(output, &answer, "set"))
        }
        PathCommand::Auto(PathAutoArgs { pair, change }) => {
            let options = change.options();
            let answer = client.change("/v1/paths", &request(pair, None), &options).await?;
            Ok(changed(output, &answer, "left to rules and measurements"))
        }
        PathCommand::Latency { overlay } => latency(client, output, overlay).await,
    }
}

fn request(PairArgs { from, to, overlay }: PairArgs, path: Option<RulePath>) -> PathSet {
    PathSet { overlay, from, to, path }
}

fn changed(output: &mut Output, answer: &Answer<Change<PairPath>>, done: &str) -> Outcome {
    show(
        output,
        answer,
        |pair| format!("{} {}", pair.from, pair.to),
        |change| {
            let pair = &change.result;
            let mut lines =
                vec![headline(change, &format!("path {} {}", pair.from, pair.to), done)];
            lines.extend(way(pair));
            lines
        },
    )
}

/// The way that packets take.
fn way(pair: &PairPath) -> Option<String> {
    let used = pair.candidates.get(usize::try_from(pair.in_use?).ok()?)?;
    Some(format!("  {}", walked(pair, &used.path)))
}

/// `web → sap-1 → db`
fn walked(pair: &PairPath, path: &RulePath) -> String {
    let saps = match path {
        RulePath::Direct => &[][..],
        RulePath::Via(saps) => saps,
    };
    let hops = saps.iter().map(|sap| format!("{sap} → "));
    format!("{} → {}{}", pair.from, hops.collect::<String>(), pair.to)
}

async fn show_pair(
    client: &Client,
    output: &mut Output,
    PairArgs { from, to, overlay }: &PairArgs,
) -> Result<Outcome, Problem> {
    let mut query = vec![("from", from.to_string()), ("to", to.to_string())];
    query.extend(overlay.iter().map(|overlay| ("overlay", overlay.to_string())));
    let answer: Answer<PairPath> = client.read("/v1/paths", &query).await?;
    let pair = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => {
            let used = pair.in_use.and_then(|at| pair.candidates.get(usize::try_from(at).ok()?));
            output.line(used.map_or("none".to_owned(), |used| text(&used.path)));
        }
        Format::Table => {
            for line in pair_lines(pair) {
                output.line(line);
            }
        }
    }
    Ok(Outcome::Done)
}

fn text(path: &RulePath) -> String {
    match path {
        RulePath::Direct => "direct".to_owned(),
        RulePath::Via(saps) => joined(saps),
    }
}

fn pair_lines(pair: &PairPath) -> Vec<String> {
    let mut lines = vec![format!(
        "{} ↔ {}   overlay {}   chosen by {}",
        pair.from, pair.to, pair.overlay, pair.chosen_by
    )];
    lines.push(format!("why: {}", pair.why));
    let (from, to) = (pair.from.to_string(), pair.to.to_string());
    let mut table = Table::new(&["", "PATH", "LEG FROM", "LEG TO", "BOTH", "NOTES"]);
    for (at, candidate) in (0_u32..).zip(&pair.candidates) {
        let PathCandidate { path, answers, from_micros, to_micros, notes } = candidate;
        let both = from_micros.zip(*to_micros).map(|(from, to)| from + to);
        let shown = |leg: Option<u64>| leg.map_or_else(|| "-".to_owned(), micros);
        let mut notes = notes.clone();
        if !answers {
            notes.push("does not answer".to_owned());
        }
        table.row([
            if pair.in_use == Some(at) { "→".to_owned() } else { String::new() },
            text(path),
            shown(*from_micros),
            shown(*to_micros),
            shown(both),
            notes.join(", "),
        ]);
    }
    lines.extend(table.lines());
    if pair.candidates.is_empty() {
        lines.push(format!("no SaP can carry {from} and {to}: ovctl sap list"));
    }
    lines
}

async fn latency(
    client: &Client,
    output: &mut Output,
    overlay: Option<Name>,
) -> Result<Outcome, Problem> {
    let query: Vec<(&str, String)> =
        overlay.iter().map(|overlay| ("overlay", overlay.to_string())).collect();
    let answer: Answer<List<Latency>> = client.read("/v1/paths/latency", &query).await?;
    let items = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => {
            let entities: BTreeSet<&EntityName> = items.iter().map(|item| &item.entity).collect();
            entities.iter().for_each(|entity| output.line(entity.to_string()));
        }
        Format::Table => {
            for line in latency_lines(items) {
                output.line(line);
            }
            if items.is_empty() {
                output.note("nothing was reported yet: entities measure once they run");
            }
        }
    }
    Ok(Outcome::Done)
}

/// One line for each entity, one column for each SaP.
fn latency_lines(items: &[Latency]) -> Vec<String> {
    let saps: BTreeSet<&Name> = items.iter().map(|item| &item.sap).collect();
    let mut rows: BTreeMap<&EntityName, BTreeMap<&Name, Option<u64>>> = BTreeMap::new();
    for item in items {
        rows.entry(&item.entity).or_default().insert(&item.sap, item.micros);
    }
    let cell = |measured: Option<&Option<u64>>| match measured {
        Some(Some(leg)) => micros(*leg),
        Some(None) => "no answer".to_owned(),
        None => "-".to_owned(),
    };
    let mut cells = vec![
        std::iter::once("ENTITY".to_owned()).chain(saps.iter().map(ToString::to_string)).collect(),
    ];
    cells.extend(rows.iter().map(|(entity, measured)| {
        let legs = saps.iter().map(|sap| cell(measured.get(sap)));
        std::iter::once(entity.to_string()).chain(legs).collect::<Vec<String>>()
    }));
    aligned(&cells)
}

/// The columns have names of their own, so that this is no [`Table`].
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ApiVersion;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn entity(text: &str) -> EntityName {
        EntityName { namespace: Name::default(), name: name(text) }
    }

    #[test]
    fn a_pair_shows_what_is_in_use_and_why() {
        let candidate = |sap: &str, answers, legs: Option<u64>| PathCandidate {
            path: RulePath::Via(vec![name(sap)]),
            answers,
            from_micros: legs,
            to_micros: legs,
            notes: Vec::new(),
        };
        let pair = PairPath {
            api_version: ApiVersion::V1,
            overlay: name("prod"),
            from: entity("web"),
            to: entity("db"),
            chosen_by: "auto".to_owned(),
            candidates: vec![candidate("s1", false, None), candidate("s2", true, Some(4_000))],
            in_use: Some(1),
            why: "s1 does not answer".to_owned(),
        };
        let lines = pair_lines(&pair);
        assert_eq!(lines[0], "web ↔ db   overlay prod   chosen by auto");
        assert_eq!(lines[1], "why: s1 does not answer");
        assert!(lines[3].contains("s1") && lines[3].contains("does not answer"), "{lines:?}");
        assert!(lines[4].starts_with('→') && lines[4].contains("8"), "{lines:?}");
        assert_eq!(way(&pair).unwrap(), "  web → s2 → db");
    }

    #[test]
    fn latencies_are_a_table_of_entities_and_saps() {
        let item = |who: &str, sap: &str, micros| Latency {
            entity: entity(who),
            sap: name(sap),
            micros,
            held_micros: None,
        };
        let lines = latency_lines(&[
            item("web", "s1", Some(1_500)),
            item("web", "s2", None),
            item("db", "s2", Some(900)),
        ]);
        let words: Vec<Vec<&str>> = lines
            .iter()
            .map(|line| line.split("  ").map(str::trim).filter(|w| !w.is_empty()).collect())
            .collect();
        assert_eq!(words[0], ["ENTITY", "s1", "s2"]);
        assert_eq!(words[1][..2], ["db", "-"]);
        assert_eq!(words[2].last(), Some(&"no answer"));
    }
}

//! How answers about whole policies are shown, whoever gave them: a server, or files.

use serde_json::json;

use super::Outcome;
use super::args::{Format, MatrixForm};
use super::output::{Output, Table, counted};
use crate::api::policy::{LintFinding, MatrixAnswer, PairDifference, TestAnswer};

/// Results of tests: the failed ones with their reasons, and how many there are.
pub(crate) fn tests(output: &mut Output, answer: &TestAnswer) -> Outcome {
    let count = |name: &str| answer.examination[name].as_u64().unwrap_or(0);
    match output.format() {
        Format::Json => output.json(&answer.examination),
        Format::Name | Format::Table => {
            for failure in &answer.failures {
                output.line(format!("FAILED  {}", failure.what));
                output.line(format!("        why: {}", failure.why));
            }
            for skipped in &answer.skipped {
                output.line(format!("SKIPPED {}", skipped.what));
                output.line(format!("        not tested: {}", skipped.why));
            }
            let mut sums = format!("{} passed, {} failed", count("passed"), count("failed"));
            if !answer.skipped.is_empty() {
                sums.push_str(&format!(", {} skipped", count("skipped")));
            }
            output.line(sums);
        }
    }
    // Where nothing could be tried, nothing is known to hold.
    let is_known = answer.skipped.is_empty() || count("passed") > 0;
    if count("failed") == 0 && is_known { Outcome::Done } else { Outcome::Findings }
}

/// Who may open what to whom.
pub(crate) fn matrix(output: &mut Output, matrix: &MatrixAnswer, form: MatrixForm) -> Outcome {
    match (output.format(), form) {
        (Format::Json, _) | (_, MatrixForm::Json) => {
            output.json(&serde_json::to_value(matrix).unwrap_or_default());
        }
        (_, MatrixForm::Csv) => output.raw(&csv(matrix)),
        (_, MatrixForm::Dot) => output.raw(&dot(matrix)),
        (Format::Name | Format::Table, MatrixForm::Table) => {
            let mut table = Table::new(&["FROM", "", "TO", "MAY OPEN"]);
            for pair in &matrix.pairs {
                let what = pair.services.join(",");
                table.row([pair.from.clone(), "→".to_owned(), pair.to.clone(), what]);
            }
            output.table(&table);
            let members = matrix.members.len();
            let all = members * members.saturating_sub(1);
            let shut = all.saturating_sub(matrix.pairs.len());
            output.note(format!(
                "{} of {} may open something, {shut} nothing",
                counted(matrix.pairs.len() as u64, "pair"),
                all
            ));
        }
    }
    Outcome::Done
}

/// `from,to,services`, several services joined by `;`.
fn csv(matrix: &MatrixAnswer) -> String {
    let lines = matrix
        .pairs
        .iter()
        .map(|pair| format!("{},{},\"{}\"\n", pair.from, pair.to, pair.services.join(";")));
    std::iter::once("from,to,services\n".to_owned()).chain(lines).collect()
}

/// A graph for Graphviz.
fn dot(matrix: &MatrixAnswer) -> String {
    let nodes = matrix.members.iter().map(|name| format!("  \"{name}\";\n"));
    let edges = matrix.pairs.iter().map(|pair| {
        let what = pair.services.join(",");
        format!("  \"{}\" -> \"{}\" [label=\"{what}\"];\n", pair.from, pair.to)
    });
    std::iter::once("digraph policy {\n  rankdir=LR;\n".to_owned())
        .chain(nodes)
        .chain(edges)
        .chain(std::iter::once("}\n".to_owned()))
        .collect()
}

/// What is probably not meant.
pub(crate) fn findings(output: &mut Output, findings: &[LintFinding]) -> Outcome {
    match output.format() {
        Format::Json => {
            output.json(&json!({ "apiVersion": "ovmesh/v1", "findings": findings }));
        }
        Format::Name | Format::Table => {
            let mut table = Table::new(&["FINDING", "RULE", "WHY"]);
            for finding in findings {
                table.row([finding.kind.clone(), finding.rule.clone(), finding.why.clone()]);
            }
            output.table(&table);
            if findings.is_empty() {
                output.note("nothing found");
            }
        }
    }
    if findings.is_empty() { Outcome::Done } else { Outcome::Findings }
}

/// What a change opens and shuts.
pub(crate) fn differences(output: &mut Output, changes: &[PairDifference]) -> Outcome {
    match output.format() {
        Format::Json => {
            output.json(&json!({ "apiVersion": "ovmesh/v1", "changes": changes }));
        }
        Format::Name | Format::Table => {
            output.table(&difference_table(changes));
            if changes.is_empty() {
                output.note("the two policies let the same flows be opened between members");
            }
        }
    }
    if changes.is_empty() { Outcome::Done } else { Outcome::Findings }
}

/// One row per ordered pair.
pub(crate) fn difference_table(changes: &[PairDifference]) -> Table {
    let mut table = Table::new(&["FROM", "", "TO", "GAINED", "LOST"]);
    for change in changes {
        table.row([
            change.from.clone(),
            "→".to_owned(),
            change.to.clone(),
            change.gained.join(","),
            change.lost.join(","),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::policy::MatrixEntry;
    use crate::cli::output::tests::pages;
    use crate::types::ApiVersion;

    #[test]
    fn a_matrix_is_a_table_csv_or_a_graph() {
        let answer = MatrixAnswer {
            api_version: ApiVersion::V1,
            semantics: crate::api::admin::Semantics::DefaultDeny,
            members: vec!["a".to_owned(), "b".to_owned()],
            pairs: vec![MatrixEntry {
                from: "a".to_owned(),
                to: "b".to_owned(),
                services: vec!["tcp/80".to_owned(), "udp/53".to_owned()],
            }],
        };
        let shown = |form| {
            let (mut output, data, _) = pages(Format::Table);
            matrix(&mut output, &answer, form);
            data.text()
        };

        assert_eq!(shown(MatrixForm::Csv), "from,to,services\na,b,\"tcp/80;udp/53\"\n");
        assert!(shown(MatrixForm::Dot).contains("\"a\" -> \"b\" [label=\"tcp/80,udp/53\"];"));
        assert!(shown(MatrixForm::Table).contains("a     →  b   tcp/80,udp/53"));
    }
}

//! Says how far a change has come: its revision, who enforces it, who does not yet.

use super::Outcome;
use super::args::Format;
use super::client::Answer;
use super::output::Output;
use crate::api::admin::{Change, Enforcement, Pending};
use crate::api::{Problem, ProblemCode};
use crate::types::Revision;

/// How many lagging nodes are named before the rest is only counted.
const NAMED_MAX: usize = 5;

/// Shows the answer to a change: JSON as received, the name alone, or what `words` makes of it
/// followed by who enforces it.
pub(crate) fn show<T>(
    output: &mut Output,
    answer: &Answer<Change<T>>,
    name: impl FnOnce(&T) -> String,
    words: impl FnOnce(&Change<T>) -> Vec<String>,
) -> Outcome {
    let change = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(name(&change.result)),
        Format::Table => {
            for line in words(change) {
                output.line(line);
            }
            if let Some(line) = enforced_line(change) {
                output.line(format!("  {line}"));
            }
        }
    }
    conclude(output, change)
}

/// Says on stderr what is not enforced yet, and how the command ends.
pub(crate) fn conclude<T>(output: &mut Output, change: &Change<T>) -> Outcome {
    let Enforcement { enforced, pending, .. } = &change.enforcement;
    if change.dry_run || *enforced {
        return Outcome::Done;
    }
    let what = format!(
        "committed as revision {}; not yet enforced: {}",
        change.revision,
        laggards(pending)
    );
    match output.format() {
        Format::Json => {
            let problem = Problem::new(ProblemCode::Failed, what)
                .fix("it takes effect as soon as they follow: watch `ovctl status`");
            output.problem(&problem);
        }
        Format::Table | Format::Name => output.note(what),
    }
    Outcome::NotYetEnforced
}

/// `enforced by sap-1   2/2 in 120 ms`; none when nothing was changed.
fn enforced_line<T>(change: &Change<T>) -> Option<String> {
    if change.dry_run {
        return None;
    }
    let Enforcement {
        enforced,
        waited,
        waited_millis,
        acknowledged,
        concerned,
        enforced_by,
        pending,
    } = &change.enforcement;
    if *concerned == 0 {
        return Some("no node is concerned at the moment".to_owned());
    }
    if !waited {
        return Some(format!(
            "not waited for: {acknowledged} of {concerned} nodes have it, see `ovctl status`"
        ));
    }
    let count = format!("{acknowledged}/{concerned} in {waited_millis} ms");
    if !enforced {
        return Some(format!("applied {count}"));
    }
    let mut line = if enforced_by.is_empty() {
        format!("enforced   {count}")
    } else {
        format!("enforced by {}   {count}", named(enforced_by.iter().cloned(), ", "))
    };
    if !pending.is_empty() {
        let nodes = pending.iter().map(|pending| pending.node.clone());
        line.push_str(&format!("   still to follow: {}", named(nodes, ", ")));
    }
    Some(line)
}

/// `revision 42 → 43`: an operator's change moves it by one.
pub(crate) fn step(revision: Revision) -> String {
    format!("revision {} → {revision}", revision.0.saturating_sub(1))
}

/// What was done to a thing: `overlay prod created (revision 41 → 42)`, or what a dry run would do.
pub(crate) fn headline<T>(change: &Change<T>, thing: &str, done: &str) -> String {
    if change.dry_run {
        format!("{thing} would be {done} (dry run: revision {} stays)", change.revision)
    } else {
        format!("{thing} {done} ({})", step(change.revision))
    }
}

/// Each lagging node with its reason.
fn laggards(pending: &[Pending]) -> String {
    if pending.is_empty() {
        return "the server does not say by whom".to_owned();
    }
    let each =
        pending.iter().map(
            |Pending { node, why }| {
                if why.is_empty() { node.clone() } else { format!("{node}, {why}") }
            },
        );
    named(each, "; ")
}

/// The first few, then how many more.
fn named(names: impl ExactSizeIterator<Item = String>, separator: &str) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let mut text = names.take(NAMED_MAX).collect::<Vec<_>>().join(separator);
    if more > 0 {
        text.push_str(&format!("{separator}and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::pages;
    use crate::types::ApiVersion;

    fn change(enforcement: Enforcement) -> Answer<Change<()>> {
        let value = Change {
            api_version: ApiVersion::V1,
            revision: Revision(43),
            dry_run: false,
            result: (),
            enforcement,
        };
        let document = serde_json::to_value(&value).unwrap();
        Answer { value, document }
    }

    fn enforced() -> Enforcement {
        Enforcement {
            enforced: true,
            waited: true,
            waited_millis: 120,
            acknowledged: 2,
            concerned: 2,
            enforced_by: vec!["sap-1".to_owned()],
            pending: Vec::new(),
        }
    }

    fn shown(format: Format, answer: &Answer<Change<()>>) -> (Outcome, String, String) {
        let (mut output, data, notes) = pages(format);
        let outcome = show(
            &mut output,
            answer,
            |()| "x".to_owned(),
            |change| vec![headline(change, "x", "made")],
        );
        (outcome, data.text(), notes.text())
    }

    #[test]
    fn an_enforced_change_says_by_whom_and_how_fast() {
        let (outcome, data, notes) = shown(Format::Table, &change(enforced()));

        assert_eq!(outcome, Outcome::Done);
        assert_eq!(data, "x made (revision 42 → 43)\n  enforced by sap-1   2/2 in 120 ms\n");
        assert_eq!(notes, "");
    }

    #[test]
    fn a_change_that_is_not_enforced_names_who_lags_and_fails() {
        let lagging = Enforcement {
            enforced: false,
            acknowledged: 1,
            pending: vec![Pending { node: "sap-2".to_owned(), why: "offline for 3m".to_owned() }],
            ..enforced()
        };
        let expected = "committed as revision 43; not yet enforced: sap-2, offline for 3m";

        let (outcome, data, notes) = shown(Format::Table, &change(lagging.clone()));
        assert_eq!(outcome, Outcome::NotYetEnforced);
        assert!(data.contains("applied 1/2 in 120 ms"), "{data}");
        assert_eq!(notes, format!("{expected}\n"));

        let (outcome, data, notes) = shown(Format::Json, &change(lagging));
        assert_eq!(outcome, Outcome::NotYetEnforced);
        assert!(data.contains("\"revision\": 43"), "{data}");
        assert!(notes.contains(expected), "{notes}");
    }

    #[test]
    fn endpoints_that_follow_later_do_not_fail_an_enforced_change() {
        let late = Enforcement {
            pending: vec![Pending { node: "web".to_owned(), why: "offline".to_owned() }],
            ..enforced()
        };
        let (outcome, data, notes) = shown(Format::Table, &change(late));

        assert_eq!(outcome, Outcome::Done);
        assert!(data.contains("still to follow: web"), "{data}");
        assert_eq!(notes, "");
    }

    #[test]
    fn a_dry_run_changes_nothing_and_says_so() {
        let mut answer = change(Enforcement::default());
        answer.value.dry_run = true;
        let (outcome, data, notes) = shown(Format::Table, &answer);

        assert_eq!(outcome, Outcome::Done);
        assert_eq!(data, "x would be made (dry run: revision 43 stays)\n");
        assert_eq!(notes, "");
    }

    #[test]
    fn a_change_that_nobody_waited_for_is_no_failure() {
        let waitless = Enforcement { waited: false, acknowledged: 0, ..enforced() };
        let (outcome, data, _) = shown(Format::Table, &change(waitless));

        assert_eq!(outcome, Outcome::Done);
        assert!(data.contains("not waited for: 0 of 2 nodes"), "{data}");
    }

    #[test]
    fn a_crowd_of_laggards_is_counted() {
        let pending = (0..9).map(|n| Pending { node: format!("n{n}"), why: String::new() });
        assert_eq!(laggards(&pending.collect::<Vec<_>>()), "n0; n1; n2; n3; n4; and 4 more");
    }
}

//! `ovctl policy apply|export|diff|history|rollback|confirm|import`, and questions to a server about
//! whole policies.

use super::Outcome;
use super::args::{
    ApplyArgs, ConfirmArgs, ExportArgs, Format, HistoryArgs, ImportArgs, OfflineCommand,
    RollbackArgs, SceneArgs,
};
use super::client::{Answer, Client};
use super::enforcement::{conclude, show, step};
use super::output::{Output, Table, counted, joined, relative};
use super::policy_answers;
use super::policy_offline::policy_files;
use crate::api::Problem;
use crate::api::admin::{Change, List, Semantics};
use crate::api::policy::{
    Confirmation, ImportReport, LintAnswer, LiveQuestion, MatrixAnswer, OverlayChoice, PolicyApply,
    PolicyChange, PolicyExport, PolicyImport, PolicyQuestion, PolicyRevision, PolicyRollback,
    TestAnswer,
};
use crate::types::{Name, Timestamp};

/// Most lines of what is new or gone, and most pairs, that a table shows.
const SHOWN_MAX: usize = 40;

/// Answers what is asked of a server because no inventory is given.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub(crate) async fn ask(
    client: &Client,
    output: &mut Output,
    command: &OfflineCommand,
) -> Result<Outcome, Problem> {
    match command {
        OfflineCommand::Test(args) if args.live => {
            let overlay = args.scene.overlay.clone();
            let question = LiveQuestion { overlay, tests: policy_files(&args.tests)? };
            let answer: Answer<TestAnswer> = client.ask("/v1/policy/test/live", &question).await?;
            Ok(policy_answers::tests(output, &answer.value))
        }
        OfflineCommand::Test(args) => {
            let mut question = question(&args.scene)?;
            question.tests = policy_files(&args.tests)?;
            let answer: Answer<TestAnswer> = client.ask("/v1/policy/test", &question).await?;
            Ok(policy_answers::tests(output, &answer.value))
        }
        OfflineCommand::Matrix(args) => {
            let question = question(&args.scene)?;
            let answer: Answer<MatrixAnswer> = client.ask("/v1/policy/matrix", &question).await?;
            Ok(policy_answers::matrix(output, &answer.value, args.form))
        }
        OfflineCommand::Lint(args) => {
            let mut question = question(&args.scene)?;
            question.unused_days = args.unused;
            let answer: Answer<LintAnswer> = client.ask("/v1/policy/lint", &question).await?;
            Ok(policy_answers::findings(output, &answer.value.findings))
        }
        OfflineCommand::Diff(args) => {
            let body = PolicyApply {
                overlay: args.scene.overlay.clone(),
                files: policy_files(&args.scene.files)?,
                confirm_within: None,
            };
            let answer: Answer<PolicyChange> = client.ask("/v1/policy/diff", &body).await?;
            Ok(diff(output, &answer.value))
        }
    }
}

fn question(scene: &SceneArgs) -> Result<PolicyQuestion, Problem> {
    Ok(PolicyQuestion {
        overlay: scene.overlay.clone(),
        files: policy_files(&scene.files)?,
        ..PolicyQuestion::default()
    })
}

fn diff(output: &mut Output, change: &PolicyChange) -> Outcome {
    if !change.compared {
        output
            .note("the overlay has too many pairs to compare them one by one; rules that differ:");
        for line in changed_lines(change) {
            output.line(line);
        }
        return if change.changed { Outcome::Findings } else { Outcome::Done };
    }
    policy_answers::differences(output, &change.pairs)
}

/// `+ r-3 allow web → db` and `- …`.
fn changed_lines(change: &PolicyChange) -> Vec<String> {
    let signed = |sign: &'static str, lines: &[String]| {
        let more = lines.len().saturating_sub(SHOWN_MAX);
        let shown = lines.iter().take(SHOWN_MAX).map(move |line| format!("{sign} {line}"));
        let rest = (more > 0).then(|| format!("{sign} and {more} more"));
        shown.chain(rest).collect::<Vec<_>>()
    };
    [signed("-", &change.removed), signed("+", &change.added)].concat()
}

/// Prints the policy of an overlay as a file.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub(crate) async fn export(
    client: &Client,
    output: &mut Output,
    args: &ExportArgs,
) -> Result<Outcome, Problem> {
    let answer: Answer<PolicyExport> =
        client.read("/v1/policy/export", &overlay_query(args.overlay.as_ref())).await?;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name | Format::Table => output.raw(&answer.value.text),
    }
    Ok(Outcome::Done)
}

fn overlay_query(overlay: Option<&Name>) -> Vec<(&'static str, String)> {
    overlay.iter().map(|overlay| ("overlay", overlay.to_string())).collect()
}

/// Makes files the policy of an overlay.
///
/// # Errors
///
/// As [`export`].
pub(crate) async fn apply(
    client: &Client,
    output: &mut Output,
    args: &ApplyArgs,
) -> Result<Outcome, Problem> {
    let body = PolicyApply {
        overlay: args.overlay.clone(),
        files: policy_files(&args.files)?,
        confirm_within: args.confirm_within,
    };
    let answer: Answer<Change<PolicyChange>> =
        client.change("/v1/policy/apply", &body, &args.change.options()).await?;
    Ok(show_change(output, &answer, "applied"))
}

/// Goes back to the policy of an earlier revision.
///
/// # Errors
///
/// As [`export`].
pub(crate) async fn rollback(
    client: &Client,
    output: &mut Output,
    args: &RollbackArgs,
) -> Result<Outcome, Problem> {
    let body = PolicyRollback { overlay: args.overlay.clone(), revision: args.target() };
    let answer: Answer<Change<PolicyChange>> =
        client.change("/v1/policy/rollback", &body, &args.change.options()).await?;
    Ok(show_change(output, &answer, "rolled back"))
}

fn show_change(output: &mut Output, answer: &Answer<Change<PolicyChange>>, done: &str) -> Outcome {
    let change = &answer.value;
    let overlay = change.result.overlay.clone();
    if !change.result.changed {
        match output.format() {
            Format::Json => output.json(&answer.document),
            Format::Name => output.line(overlay.as_str()),
            Format::Table => {
                output.line(format!("nothing to change (revision {})", change.revision));
            }
        }
        return Outcome::Done;
    }
    let now = output.now();
    let outcome = show(
        output,
        answer,
        |change| change.overlay.to_string(),
        |change| change_lines(change, &change.result, done, now),
    );
    if output.format() == Format::Table && !change.dry_run {
        output.line(match change.result.confirm_by {
            Some(_) => format!("keep it: ovctl policy confirm --overlay {overlay}"),
            None => {
                let before = change.revision.0.saturating_sub(1);
                format!("undo: ovctl policy rollback {before} --overlay {overlay}")
            }
        });
    }
    outcome
}

fn change_lines<T>(
    change: &Change<T>,
    result: &PolicyChange,
    done: &str,
    now: Timestamp,
) -> Vec<String> {
    let overlay = &result.overlay;
    let mut lines = vec![if change.dry_run {
        let revision = change.revision;
        format!("the policy of {overlay} would be {done} (dry run: revision {revision} stays)")
    } else {
        format!("the policy of {overlay} is {done} ({})", step(change.revision))
    }];
    lines.extend(changed_lines(result).iter().map(|line| format!("  {line}")));
    if result.compared && !result.pairs.is_empty() {
        let (shown, more) = result.pairs.split_at(result.pairs.len().min(SHOWN_MAX));
        let table = policy_answers::difference_table(shown);
        lines.extend(table.lines().iter().map(|line| format!("  {line}")));
        if !more.is_empty() {
            lines.push(format!("  and {}", counted(more.len() as u64, "more pair")));
        }
    } else if result.compared {
        lines.push("  the same flows may be opened between members".to_owned());
    }
    if result.tests > 0 {
        lines.push(format!("  {} hold", counted(result.tests, "test")));
    }
    if !result.dangling.is_empty() {
        lines.push(format!("  ! gone, so rules do nothing for: {}", joined(&result.dangling)));
    }
    if let Some(deadline) = result.confirm_by {
        lines.push(format!("  undone {} ({deadline}) unless confirmed", relative(deadline, now)));
    }
    lines
}

/// Keeps a change that waits to be confirmed.
///
/// # Errors
///
/// As [`export`].
pub(crate) async fn confirm(
    client: &Client,
    output: &mut Output,
    args: ConfirmArgs,
) -> Result<Outcome, Problem> {
    let body = OverlayChoice { overlay: args.overlay };
    let answer: Answer<Confirmation> = client.ask("/v1/policy/confirm", &body).await?;
    let Confirmation { overlay, revision, .. } = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(overlay.as_str()),
        Format::Table => output.line(format!("revision {revision} of {overlay} stays")),
    }
    Ok(Outcome::Done)
}

/// Lists what changed a policy.
///
/// # Errors
///
/// As [`export`].
pub(crate) async fn history(
    client: &Client,
    output: &mut Output,
    args: &HistoryArgs,
) -> Result<Outcome, Problem> {
    let mut query = overlay_query(args.overlay.as_ref());
    query.push(("limit", args.limit.to_string()));
    let answer: Answer<List<PolicyRevision>> = client.read("/v1/policy/history", &query).await?;
    let items = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => items.iter().for_each(|item| output.line(item.revision.to_string())),
        Format::Table => {
            let mut table = Table::new(&["REVISION", "AT", "WHO", "WHAT", "RULES"]);
            for item in items {
                table.row([
                    item.revision.to_string(),
                    item.at.to_string(),
                    item.actor.clone(),
                    item.action.clone(),
                    format!("+{} -{}", item.added, item.removed),
                ]);
            }
            output.table(&table);
            if items.is_empty() {
                output.note("the policy was never changed");
            }
        }
    }
    Ok(Outcome::Done)
}

/// Imports NetworkPolicies.
///
/// # Errors
///
/// As [`export`].
pub(crate) async fn import(
    client: &Client,
    output: &mut Output,
    args: &ImportArgs,
) -> Result<Outcome, Problem> {
    let body = PolicyImport { overlay: args.overlay.clone(), files: policy_files(&args.files)? };
    let answer: Answer<Change<ImportReport>> =
        client.change("/v1/policy/import", &body, &args.change.options()).await?;
    let change = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => change.result.policies.iter().for_each(|one| output.line(&one.name)),
        Format::Table => {
            for line in import_lines(change, output.now()) {
                output.line(line);
            }
        }
    }
    Ok(conclude(output, change))
}

fn import_lines(change: &Change<ImportReport>, now: Timestamp) -> Vec<String> {
    let report = &change.result;
    let mut lines = if report.change.changed {
        change_lines(change, &report.change, "imported", now)
    } else {
        vec![format!("nothing to change (revision {})", change.revision)]
    };
    for policy in &report.policies {
        lines.push(format!(
            "{}  {}  selects {}",
            policy.name,
            policy.state,
            counted(policy.selects.len() as u64, "entity").replace("entitys", "entities")
        ));
        if !policy.selects.is_empty() {
            lines.push(format!("  {}", joined(policy.selects.iter().take(SHOWN_MAX))));
        }
        lines.extend(policy.notes.iter().map(|note| format!("  ! {note}")));
    }
    if report.semantics == Semantics::DefaultDeny {
        lines.extend(report.left_open.iter().map(|line| format!("! {line}")));
    }
    lines
}

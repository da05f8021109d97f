//! `ovctl sap`: lists, shows, drains and deletes SaPs, and plans where they should stand.

use super::Outcome;
use super::args::{Format, SapCommand, SapPlanArgs};
use super::client::{Answer, Client};
use super::enforcement::{conclude, headline, show};
use super::entity::{health, health_lines, or_dash};
use super::output::{Output, Table, counted, joined, micros, relative};
use crate::api::Problem;
use crate::api::admin::{Change, DrainState, List, Sap, Switch};
use crate::api::path::{PlannedSite, SapPlan};

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
        SapCommand::Drain { name, change } => {
            let path = format!("/v1/saps/{name}/drain");
            let answer = client.change(&path, &Switch { on: true }, &change.options()).await?;
            Ok(drained(output, &answer))
        }
        SapCommand::Undrain { name, change } => {
            let path = format!("/v1/saps/{name}/drain");
            let answer: Answer<Change<Sap>> =
                client.change(&path, &Switch { on: false }, &change.options()).await?;
            Ok(show(
                output,
                &answer,
                |sap| sap.name.to_string(),
                |change| vec![headline(change, &format!("sap {name}"), "carrying traffic again")],
            ))
        }
        SapCommand::Plan(args) => plan(client, output, &args).await,
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

/// Says how far a drain came.
fn drained(output: &mut Output, answer: &Answer<Change<Sap>>) -> Outcome {
    let change = &answer.value;
    let sap = &change.result;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(sap.name.as_str()),
        Format::Table => {
            let done = match sap.drain {
                Some(DrainState::Drained) if change.enforcement.enforced => "drained",
                Some(_) | None => "being drained",
            };
            output.line(headline(change, &format!("sap {}", sap.name), done));
            let progress = &change.enforcement;
            if !change.dry_run && progress.waited {
                output.line(format!(
                    "  {} of {} entities left it in {} ms",
                    progress.acknowledged, progress.concerned, progress.waited_millis
                ));
            }
        }
    }
    conclude(output, change)
}

async fn plan(
    client: &Client,
    output: &mut Output,
    args: &SapPlanArgs,
) -> Result<Outcome, Problem> {
    let mut query = vec![("count", args.count.to_string())];
    query.extend(args.overlay.iter().map(|overlay| ("overlay", overlay.to_string())));
    let answer: Answer<SapPlan> = client.read("/v1/saps/plan", &query).await?;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => {
            answer.value.sites.iter().for_each(|site| output.line(place(site)));
        }
        Format::Table => {
            for line in plan_lines(&answer.value) {
                output.line(line);
            }
        }
    }
    Ok(Outcome::Done)
}

fn place(site: &PlannedSite) -> String {
    match (&site.sap, &site.beside) {
        (Some(sap), _) => sap.to_string(),
        (None, Some(entity)) => format!("beside {entity}"),
        (None, None) => "nowhere".to_owned(),
    }
}

fn plan_lines(plan: &SapPlan) -> Vec<String> {
    let mut table = Table::new(&["", "SITE", "PAIRS"]);
    for (number, site) in (1..).zip(&plan.sites) {
        let is_new = site.sap.is_none();
        let at = if is_new { format!("{} (new, estimated)", place(site)) } else { place(site) };
        table.row([format!("{number}"), at, site.pairs.to_string()]);
    }
    let mut lines = table.lines();
    let (now, then) = (plan.now_micros, plan.then_micros);
    let change = match now.checked_sub(then) {
        Some(0) => "no change".to_owned(),
        Some(saved) => format!("saves {} ({}%)", micros(saved), saved * 100 / now.max(1)),
        None => format!("costs {} more", micros(then - now)),
    };
    lines.push(format!(
        "mean round trip of {}: {} now, {} then: {change}",
        counted(plan.pairs, "pair"),
        micros(now),
        micros(then)
    ));
    if plan.unmeasured > 0 {
        lines
            .push(format!("{} left out: nothing measured yet", counted(plan.unmeasured, "entity")));
    }
    lines
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
                    state(sap),
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

/// Its health, and whether it is drained.
fn state(sap: &Sap) -> String {
    let health = health(&sap.health);
    match sap.drain {
        None => health,
        Some(DrainState::Leaving) => format!("{health}, being drained"),
        Some(DrainState::Drained) => format!("{health}, drained"),
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
            output.line(format!("  labels     {}", or_dash(&joined(&sap.labels))));
            output.line(format!("  state      {}", state(sap)));
            output.line(format!("  joined     {} ({})", relative(sap.joined, now), sap.joined));
            for line in health_lines(&sap.health, now) {
                output.line(format!("  {line}"));
            }
        }
    }
}

//! `ovctl overlay`: makes, lists, shows and deletes overlays.

use super::Outcome;
use super::args::{Format, OnOff, OverlayCommand, OverlayCreateArgs};
use super::client::{Answer, Client};
use super::enforcement::{headline, show};
use super::output::{Output, Table, counted, relative};
use crate::api::Problem;
use crate::api::admin::{Change, List, Overlay, OverlayCreate, Semantics, Switch};

/// Does what `ovctl overlay …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: OverlayCommand,
) -> Result<Outcome, Problem> {
    match command {
        OverlayCommand::Create(args) => create(client, output, args).await,
        OverlayCommand::List => {
            let answer: Answer<List<Overlay>> = client.read("/v1/overlays", &[]).await?;
            list(output, &answer);
            Ok(Outcome::Done)
        }
        OverlayCommand::Show { name } => {
            let answer: Answer<Overlay> = client.read(&format!("/v1/overlays/{name}"), &[]).await?;
            show_one(output, &answer);
            Ok(Outcome::Done)
        }
        OverlayCommand::Audit { name, mode, change } => {
            let body = Switch { on: mode == OnOff::On };
            let path = format!("/v1/overlays/{name}/audit");
            let answer: Answer<Change<Overlay>> =
                client.change(&path, &body, &change.options()).await?;
            let done = if body.on {
                "put into audit mode: everything passes, refusals are recorded"
            } else {
                "taken out of audit mode: its policy is enforced"
            };
            Ok(show(
                output,
                &answer,
                |overlay| overlay.name.to_string(),
                |change| vec![headline(change, &format!("overlay {name}"), done)],
            ))
        }
        OverlayCommand::Delete { name, change } => {
            let answer: Answer<Change<Overlay>> =
                client.delete(&format!("/v1/overlays/{name}"), &change.options()).await?;
            Ok(show(
                output,
                &answer,
                |overlay| overlay.name.to_string(),
                |change| vec![headline(change, &format!("overlay {name}"), "deleted")],
            ))
        }
    }
}

async fn create(
    client: &Client,
    output: &mut Output,
    args: OverlayCreateArgs,
) -> Result<Outcome, Problem> {
    let body = OverlayCreate {
        name: args.name,
        cidr: args.cidr,
        semantics: args.semantics.into(),
        silent: args.silent,
    };
    let answer: Answer<Change<Overlay>> =
        client.change("/v1/overlays", &body, &args.change.options()).await?;
    let outcome = show(
        output,
        &answer,
        |overlay| overlay.name.to_string(),
        |change| {
            let overlay = &change.result;
            vec![
                headline(change, &format!("overlay {}", overlay.name), "created"),
                format!("  {}   {}", overlay.cidr, semantics(overlay.semantics)),
            ]
        },
    );
    if output.format() == Format::Table && !answer.value.dry_run {
        let name = &answer.value.result.name;
        output.note(format!("next: ovctl token create --overlay {name} --name NAME"));
    }
    Ok(outcome)
}

fn list(output: &mut Output, answer: &Answer<List<Overlay>>) {
    let overlays = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => overlays.iter().for_each(|overlay| output.line(overlay.name.as_str())),
        Format::Table => {
            let mut table =
                Table::new(&["NAME", "CIDR", "SEMANTICS", "MEMBERS", "RULES", "CREATED"]);
            for overlay in overlays {
                table.row([
                    overlay.name.to_string(),
                    overlay.cidr.to_string(),
                    semantics(overlay.semantics).to_owned(),
                    overlay.members.to_string(),
                    overlay.rules.to_string(),
                    relative(overlay.created, output.now()),
                ]);
            }
            output.table(&table);
            if overlays.is_empty() {
                output.note("no overlays. Next: ovctl overlay create NAME");
            }
        }
    }
}

fn show_one(output: &mut Output, answer: &Answer<Overlay>) {
    let overlay = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(overlay.name.as_str()),
        Format::Table => {
            output.line(format!("overlay {} ({})", overlay.name, overlay.id));
            output.line(format!("  range      {}", overlay.cidr));
            output.line(format!("  semantics  {}", semantics(overlay.semantics)));
            if overlay.audit {
                output.line("  audit      on: what its policy refuses passes and is recorded");
            }
            output.line(format!("  members    {}", overlay.members));
            output.line(format!("  policy     {}", counted(overlay.rules, "rule")));
            let made = relative(overlay.created, output.now());
            output.line(format!("  created    {made} ({})", overlay.created));
        }
    }
}

/// The semantics by their name in options and JSON.
pub(crate) fn semantics(semantics: Semantics) -> &'static str {
    match semantics {
        Semantics::DefaultDeny => "default-deny",
        Semantics::Kubernetes => "kubernetes",
    }
}

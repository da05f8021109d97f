//! `ovctl group`, `ovctl service` and `ovctl namespace`: names for members, and labels of namespaces.

use super::Outcome;
use super::args::{
    ChangeArgs, Format, GroupCommand, GroupEditArgs, ItemDeleteArgs, ItemListArgs, ItemShowArgs,
    LabelEdit, NamespaceCommand, ServiceCommand,
};
use super::client::{Answer, Client, of_overlay};
use super::enforcement::{headline, show};
use super::entity::or_dash;
use super::output::{Output, Table, joined};
use crate::api::admin::{Change, LabelChange, List};
use crate::api::policy::{Group, GroupChange, GroupVerb, NamedService, Namespace, ServiceChange};
use crate::api::{Problem, ProblemCode};
use crate::policy::did_you_mean;
use crate::types::Name;

/// Does what `ovctl group …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: GroupCommand,
) -> Result<Outcome, Problem> {
    match command {
        GroupCommand::List(ItemListArgs { overlay }) => {
            let answer: Answer<List<Group>> =
                client.read("/v1/groups", &of_overlay(overlay.as_ref())).await?;
            list_groups(output, &answer);
            Ok(Outcome::Done)
        }
        GroupCommand::Show(ItemShowArgs { name, overlay }) => {
            let answer: Answer<List<Group>> =
                client.read("/v1/groups", &of_overlay(overlay.as_ref())).await?;
            let known = answer.value.items.iter().map(|group| &group.name);
            refuse_unknown("group", &name, known)?;
            let found = answer.value.items.into_iter().filter(|group| group.name == name);
            show_groups(output, &found.collect::<Vec<_>>());
            Ok(Outcome::Done)
        }
        GroupCommand::Create(args) => edit(client, output, GroupVerb::Create, args).await,
        GroupCommand::Add(args) => edit(client, output, GroupVerb::Add, args).await,
        GroupCommand::Remove(args) => edit(client, output, GroupVerb::Remove, args).await,
        GroupCommand::Delete(ItemDeleteArgs { name, overlay, change }) => {
            let args = GroupEditArgs { name, selectors: Vec::new(), overlay, change };
            edit(client, output, GroupVerb::Delete, args).await
        }
    }
}

fn refuse_unknown<'a>(
    noun: &str,
    name: &Name,
    known: impl Iterator<Item = &'a Name> + Clone,
) -> Result<(), Problem> {
    if known.clone().any(|one| one == name) {
        return Ok(());
    }
    let problem = Problem::new(ProblemCode::NotFound, format!("there is no {noun} {name}"));
    Err(match did_you_mean(name.as_str(), known.map(Name::as_str)) {
        Some(meant) => problem.fix(format!("did you mean {meant}?")),
        None => problem.fix(format!("ovctl {noun} list")),
    })
}

async fn edit(
    client: &Client,
    output: &mut Output,
    verb: GroupVerb,
    args: GroupEditArgs,
) -> Result<Outcome, Problem> {
    if args.selectors.is_empty() && matches!(verb, GroupVerb::Add | GroupVerb::Remove) {
        return Err(Problem::new(ProblemCode::Usage, "no member is named")
            .fix(format!("ovctl group add {} MEMBER", args.name)));
    }
    let GroupEditArgs { name, selectors, overlay, change } = args;
    let body = GroupChange { overlay, name, verb, selectors };
    let answer: Answer<Change<Group>> =
        client.change("/v1/groups", &body, &change.options()).await?;
    let done = match verb {
        GroupVerb::Create => "created",
        GroupVerb::Add | GroupVerb::Remove => "changed",
        GroupVerb::Delete => "deleted",
    };
    Ok(show(
        output,
        &answer,
        |group| group.name.to_string(),
        |change| {
            let group = &change.result;
            vec![
                headline(change, &format!("group {}", group.name), done),
                format!("  holds    {}", or_dash(&joined(&group.selectors))),
                format!("  members  {}", or_dash(&joined(&group.members))),
            ]
        },
    ))
}

fn list_groups(output: &mut Output, answer: &Answer<List<Group>>) {
    let groups = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => groups.iter().for_each(|group| output.line(group.name.as_str())),
        Format::Table => {
            let mut table = Table::new(&["NAME", "OVERLAY", "HOLDS", "MEMBERS", "RULES"]);
            for group in groups {
                table.row([
                    group.name.to_string(),
                    group.overlay.to_string(),
                    joined(&group.selectors),
                    group.members.len().to_string(),
                    joined(&group.rules),
                ]);
            }
            output.table(&table);
            if groups.is_empty() {
                output.note("no groups. Next: ovctl group create NAME MEMBER");
            }
        }
    }
}

fn show_groups(output: &mut Output, groups: &[Group]) {
    for group in groups {
        match output.format() {
            Format::Json => output.json(&versioned(group)),
            Format::Name => output.line(group.name.as_str()),
            Format::Table => {
                output.line(format!("group {} in {}", group.name, group.overlay));
                output.line(format!("  holds    {}", or_dash(&joined(&group.selectors))));
                output.line(format!("  members  {}", or_dash(&joined(&group.members))));
                output.line(format!("  rules    {}", or_dash(&joined(&group.rules))));
            }
        }
    }
}

/// A thing as JSON, with the version that every document carries.
fn versioned<T: serde::Serialize>(thing: &T) -> serde_json::Value {
    let mut value = serde_json::to_value(thing).unwrap_or_default();
    value["apiVersion"] = "ovmesh/v1".into();
    value
}

/// Does what `ovctl service …` asks.
///
/// # Errors
///
/// As [`run`].
pub async fn run_service(
    client: &Client,
    output: &mut Output,
    command: ServiceCommand,
) -> Result<Outcome, Problem> {
    match command {
        ServiceCommand::List(ItemListArgs { overlay }) => {
            let answer: Answer<List<NamedService>> =
                client.read("/v1/services", &of_overlay(overlay.as_ref())).await?;
            list_services(output, &answer);
            Ok(Outcome::Done)
        }
        ServiceCommand::Show(ItemShowArgs { name, overlay }) => {
            let answer: Answer<List<NamedService>> =
                client.read("/v1/services", &of_overlay(overlay.as_ref())).await?;
            let items = answer.value.items;
            refuse_unknown("service", &name, items.iter().map(|service| &service.name))?;
            for service in items.iter().filter(|service| service.name == name) {
                match output.format() {
                    Format::Json => output.json(&versioned(service)),
                    Format::Name => output.line(service.name.as_str()),
                    Format::Table => {
                        output.line(format!("service {} in {}", service.name, service.overlay));
                        output.line(format!("  labels   {}", joined(&service.labels)));
                        output.line(format!("  members  {}", or_dash(&joined(&service.members))));
                        output.line(format!("  rules    {}", or_dash(&joined(&service.rules))));
                    }
                }
            }
            Ok(Outcome::Done)
        }
        ServiceCommand::Create { name, labels, overlay, change } => {
            let body = ServiceChange { overlay, name, labels: labels.into_iter().collect() };
            change_service(client, output, body, &change, "created").await
        }
        ServiceCommand::Delete(ItemDeleteArgs { name, overlay, change }) => {
            let body = ServiceChange { overlay, name, labels: [].into() };
            change_service(client, output, body, &change, "deleted").await
        }
    }
}

async fn change_service(
    client: &Client,
    output: &mut Output,
    body: ServiceChange,
    change: &ChangeArgs,
    done: &str,
) -> Result<Outcome, Problem> {
    let answer: Answer<Change<NamedService>> =
        client.change("/v1/services", &body, &change.options()).await?;
    Ok(show(
        output,
        &answer,
        |service| service.name.to_string(),
        |change| {
            let service = &change.result;
            vec![
                headline(change, &format!("service {}", service.name), done),
                format!("  labels   {}", joined(&service.labels)),
                format!("  members  {}", or_dash(&joined(&service.members))),
            ]
        },
    ))
}

fn list_services(output: &mut Output, answer: &Answer<List<NamedService>>) {
    let services = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => services.iter().for_each(|service| output.line(service.name.as_str())),
        Format::Table => {
            let mut table = Table::new(&["NAME", "OVERLAY", "LABELS", "MEMBERS", "RULES"]);
            for service in services {
                table.row([
                    service.name.to_string(),
                    service.overlay.to_string(),
                    joined(&service.labels),
                    service.members.len().to_string(),
                    joined(&service.rules),
                ]);
            }
            output.table(&table);
            if services.is_empty() {
                output.note("no services. Next: ovctl service create NAME KEY=VALUE");
            }
        }
    }
}

/// Does what `ovctl namespace …` asks.
///
/// # Errors
///
/// As [`run`].
pub async fn run_namespace(
    client: &Client,
    output: &mut Output,
    command: NamespaceCommand,
) -> Result<Outcome, Problem> {
    match command {
        NamespaceCommand::List => {
            let answer: Answer<List<Namespace>> = client.read("/v1/namespaces", &[]).await?;
            let namespaces = &answer.value.items;
            match output.format() {
                Format::Json => output.json(&answer.document),
                Format::Name => namespaces.iter().for_each(|one| output.line(one.name.as_str())),
                Format::Table => {
                    let mut table = Table::new(&["NAME", "ENTITIES", "LABELS"]);
                    for one in namespaces {
                        let entities = one.entities.to_string();
                        table.row([one.name.to_string(), entities, joined(&one.labels)]);
                    }
                    output.table(&table);
                }
            }
            Ok(Outcome::Done)
        }
        NamespaceCommand::Label { namespace, edits, change } => {
            let mut body = LabelChange::default();
            for edit in edits {
                match edit {
                    LabelEdit::Set(label) => body.set.insert(label),
                    LabelEdit::Remove(key) => body.remove.insert(key),
                };
            }
            let path = format!("/v1/namespaces/{namespace}/labels");
            let answer: Answer<Change<Namespace>> =
                client.change(&path, &body, &change.options()).await?;
            Ok(show(
                output,
                &answer,
                |namespace| namespace.name.to_string(),
                |change| {
                    vec![
                        headline(change, &format!("namespace {namespace}"), "labelled"),
                        format!("  labels {}", or_dash(&joined(&change.result.labels))),
                    ]
                },
            ))
        }
    }
}

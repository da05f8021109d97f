//! `ovctl entity`: lists, shows, labels and deletes entities.

use std::net::IpAddr;

use super::Outcome;
use super::args::{ChangeArgs, EntityCommand, EntityRef, Format, LabelArgs, LabelEdit};
use super::client::{Answer, Client, of_overlay};
use super::enforcement::{headline, show};
use super::output::{Output, Table, joined, relative};
use crate::api::admin::{Change, Entity, LabelChange, List, NodeHealth, Switch};
use crate::api::{Problem, ProblemCode};
use crate::types::{EntityName, Name, Timestamp};

/// Does what `ovctl entity …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: EntityCommand,
) -> Result<Outcome, Problem> {
    match command {
        EntityCommand::List { overlay } => list(client, output, overlay).await,
        EntityCommand::Show { entity } => {
            let path = path_of(&resolve(client, entity).await?);
            let answer: Answer<Entity> = client.read(&path, &[]).await?;
            show_one(output, &answer);
            Ok(Outcome::Done)
        }
        EntityCommand::Label(args) => label(client, output, args).await,
        EntityCommand::Quarantine { entity, change } => {
            quarantine(client, output, entity, true, &change).await
        }
        EntityCommand::Release { entity, change } => {
            quarantine(client, output, entity, false, &change).await
        }
        EntityCommand::Delete { entity, change } => {
            let name = resolve(client, entity).await?;
            let answer: Answer<Change<Entity>> =
                client.delete(&path_of(&name), &change.options()).await?;
            Ok(show(
                output,
                &answer,
                |entity| entity.name.to_string(),
                |change| vec![headline(change, &format!("entity {name}"), "deleted")],
            ))
        }
    }
}

async fn quarantine(
    client: &Client,
    output: &mut Output,
    entity: EntityRef,
    on: bool,
    change: &ChangeArgs,
) -> Result<Outcome, Problem> {
    let name = resolve(client, entity).await?;
    let path = format!("{}/quarantine", path_of(&name));
    let answer: Answer<Change<Entity>> =
        client.change(&path, &Switch { on }, &change.options()).await?;
    let done = if on { "quarantined" } else { "released" };
    let outcome = show(
        output,
        &answer,
        |entity| entity.name.to_string(),
        |change| vec![headline(change, &format!("entity {name}"), done)],
    );
    if on && output.format() == Format::Table && !answer.value.dry_run {
        output.line(format!("undo: ovctl entity release {name}"));
    }
    Ok(outcome)
}

fn path_of(name: &EntityName) -> String {
    format!("/v1/entities/{}/{}", name.namespace, name.name)
}

/// The name of the entity that is meant.
async fn resolve(client: &Client, entity: EntityRef) -> Result<EntityName, Problem> {
    let address = match entity {
        EntityRef::Name(name) => return Ok(name),
        EntityRef::Address(address) => address,
    };
    let answer: Answer<List<Entity>> = client.read("/v1/entities", &[]).await?;
    owner(&answer.value.items, address)
}

/// Who has `address` in some overlay.
fn owner(entities: &[Entity], address: IpAddr) -> Result<EntityName, Problem> {
    entities
        .iter()
        .find(|entity| entity.members.iter().any(|member| member.address == address))
        .map(|entity| entity.name.clone())
        .ok_or_else(|| {
            Problem::new(ProblemCode::NotFound, format!("no entity has the address {address}"))
                .fix("ovctl entity list")
        })
}

async fn list(
    client: &Client,
    output: &mut Output,
    overlay: Option<Name>,
) -> Result<Outcome, Problem> {
    let query = of_overlay(overlay.as_ref());
    let answer: Answer<List<Entity>> = client.read("/v1/entities", &query).await?;
    let entities = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => entities.iter().for_each(|entity| output.line(entity.name.to_string())),
        Format::Table => {
            let table = table(entities, output.now());
            output.table(&table);
            if entities.is_empty() {
                output.note("no entities. Next: ovctl token create --name NAME");
            }
        }
    }
    Ok(Outcome::Done)
}

/// One row per entity; several overlays share a cell.
fn table(entities: &[Entity], now: Timestamp) -> Table {
    let mut table =
        Table::new(&["NAME", "OVERLAY", "ADDRESS", "LABELS", "STATE", "VERSION", "SEEN"]);
    for entity in entities {
        table.row([
            entity.name.to_string(),
            joined(entity.members.iter().map(|member| &member.overlay)),
            joined(entity.members.iter().map(|member| member.address)),
            joined(&entity.labels),
            state(entity),
            entity.health.version.clone(),
            entity.health.seen.map_or_else(|| "never".to_owned(), |seen| relative(seen, now)),
        ]);
    }
    table
}

/// What it is doing, and whether it is in quarantine.
fn state(entity: &Entity) -> String {
    let quarantine = if entity.quarantined { "quarantined, " } else { "" };
    format!("{quarantine}{}", health(&entity.health))
}

/// `online`, `online, behind`, `offline, 2 problems`.
pub(crate) fn health(health: &NodeHealth) -> String {
    let mut text = if health.online { "online" } else { "offline" }.to_owned();
    if health.acknowledged < health.serial {
        text.push_str(", behind");
    }
    match health.problems.len() {
        0 => {}
        1 => text.push_str(", 1 problem"),
        count => text.push_str(&format!(", {count} problems")),
    }
    text
}

/// The text, or the dash that stands for nothing in tables too.
pub(crate) fn or_dash(text: &str) -> &str {
    if text.is_empty() { "–" } else { text }
}

/// The same in lines, with what a node complains of.
pub(crate) fn health_lines(node: &NodeHealth, now: Timestamp) -> Vec<String> {
    let seen = node.seen.map_or_else(|| "never".to_owned(), |seen| relative(seen, now));
    let mut lines = vec![
        format!("state      {}, seen {seen}", health(node)),
        format!("table      serial {} of {}", node.acknowledged, node.serial),
        format!("version    {}", or_dash(&node.version)),
    ];
    lines.extend(node.problems.iter().map(|problem| format!("! {problem}")));
    lines
}

fn show_one(output: &mut Output, answer: &Answer<Entity>) {
    let entity = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(entity.name.to_string()),
        Format::Table => {
            let now = output.now();
            for line in lines(entity, now) {
                output.line(line);
            }
        }
    }
}

fn lines(entity: &Entity, now: Timestamp) -> Vec<String> {
    let kind = if entity.ephemeral { ", ephemeral" } else { "" };
    let mut lines = vec![format!("entity {} ({}{kind})", entity.name, entity.id)];
    if entity.quarantined {
        lines.push("  quarantine nothing passes to or from it".to_owned());
    }
    for member in &entity.members {
        lines.push(format!("  address    {} in {}", member.address, member.overlay));
    }
    lines.push(format!("  labels     {}", or_dash(&joined(&entity.labels))));
    for (name, service) in &entity.ports {
        lines.push(format!("  port       {name} is {service}"));
    }
    lines.push(format!("  endpoints  {}", or_dash(&joined(&entity.endpoints))));
    lines.push(format!("  joined     {} ({})", relative(entity.joined, now), entity.joined));
    lines.extend(health_lines(&entity.health, now).iter().map(|line| format!("  {line}")));
    lines
}

async fn label(client: &Client, output: &mut Output, args: LabelArgs) -> Result<Outcome, Problem> {
    let name = resolve(client, args.entity).await?;
    let mut body = LabelChange::default();
    for edit in args.edits {
        match edit {
            LabelEdit::Set(label) => body.set.insert(label),
            LabelEdit::Remove(key) => body.remove.insert(key),
        };
    }
    let answer: Answer<Change<Entity>> =
        client.change(&format!("{}/labels", path_of(&name)), &body, &args.change.options()).await?;
    Ok(show(
        output,
        &answer,
        |entity| entity.name.to_string(),
        |change| {
            vec![
                headline(change, &format!("entity {name}"), "labelled"),
                format!("  labels {}", or_dash(&joined(&change.result.labels))),
            ]
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::admin::Member;
    use crate::types::{NodeId, Serial};

    fn web() -> Entity {
        Entity {
            id: NodeId(3),
            name: "shop/web".parse().unwrap(),
            labels: ["role=web".parse().unwrap()].into(),
            ports: [("http".parse().unwrap(), "tcp/8080".parse().unwrap())].into(),
            members: vec![Member {
                overlay: Name::default(),
                address: "100.71.0.11".parse().unwrap(),
            }],
            endpoints: vec!["192.0.2.1:6080".parse().unwrap()],
            ephemeral: false,
            quarantined: false,
            joined: Timestamp(900_000),
            health: NodeHealth {
                online: true,
                seen: Some(Timestamp(999_999)),
                serial: Serial(8),
                acknowledged: Serial(7),
                version: "0.1.0".to_owned(),
                problems: vec!["no SaP answers".to_owned()],
            },
        }
    }

    #[test]
    fn an_entity_is_one_row() {
        let lines = table(&[web()], Timestamp(1_000_000)).lines();

        assert_eq!(
            lines[1],
            "shop/web  default  100.71.0.11  role=web  online, behind, 1 problem  0.1.0    now"
        );
    }

    #[test]
    fn an_entity_is_shown_whole() {
        let text = lines(&web(), Timestamp(1_000_000)).join("\n");

        for part in ["entity shop/web (n-3)", "http is tcp/8080", "serial 7 of 8", "! no SaP"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn an_address_finds_its_entity() {
        let entities = [web()];
        assert_eq!(owner(&entities, "100.71.0.11".parse().unwrap()).unwrap(), web().name);
        let problem = owner(&entities, "100.71.0.12".parse().unwrap()).unwrap_err();
        assert_eq!(problem.code, ProblemCode::NotFound);
    }
}

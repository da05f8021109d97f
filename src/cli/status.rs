//! `ovctl status`: everything on one screen. Problems are printed last, marked `!`; they do not
//! change the exit code, which is about whether the server answered.

use super::Outcome;
use super::args::Format;
use super::client::{Answer, Client};
use super::key;
use super::output::{Output, Table, counted, relative, span};
use super::overlay::semantics;
use crate::api::Problem;
use crate::api::admin::{Counted, ServerStatus};
use crate::types::Timestamp;

/// Does what `ovctl status` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(client: &Client, output: &mut Output) -> Result<Outcome, Problem> {
    let answer: Answer<ServerStatus> = client.read("/v1/status", &[]).await?;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => {
            answer.value.overlays.iter().for_each(|overlay| output.line(overlay.name.as_str()));
        }
        Format::Table => {
            let now = output.now();
            for line in lines(&answer.value, now) {
                output.line(line);
            }
            if let Some(next) = next_step(&answer.value) {
                output.note(format!("next: {next}"));
            }
        }
    }
    Ok(Outcome::Done)
}

fn lines(status: &ServerStatus, now: Timestamp) -> Vec<String> {
    let rules: u64 = status.overlays.iter().map(|overlay| overlay.rules).sum();
    let up = span(now.0.saturating_sub(status.started.0));
    let mut lines = vec![
        format!("server    ovmesh {}, up {up}   {}", status.version, status.urls.join(" ")),
        format!(
            "policy    default deny, {}   revision {}",
            counted(rules, "rule"),
            status.revision
        ),
        format!("entities  {}", online(status.entities)),
        format!("SaPs      {}", online(status.saps)),
    ];
    let mut table = Table::new(&["OVERLAY", "CIDR", "SEMANTICS", "MEMBERS", "RULES"]);
    for overlay in &status.overlays {
        table.row([
            overlay.name.to_string(),
            overlay.cidr.to_string(),
            semantics(overlay.semantics).to_owned(),
            overlay.members.to_string(),
            overlay.rules.to_string(),
        ]);
    }
    if !table.is_empty() {
        lines.push(String::new());
        lines.extend(table.lines());
        lines.push(String::new());
    }
    for rotation in &status.rotations {
        lines.push(format!("rotating  {}", key::sentence(rotation)));
    }
    for node in &status.behind {
        lines.push(format!("behind    {}: {}", node.node, node.why));
    }
    for change in &status.unconfirmed {
        lines.push(format!(
            "! revision {} of {} is undone {} ({}): ovctl policy confirm --overlay {}",
            change.revision,
            change.overlay,
            relative(change.deadline, now),
            change.deadline,
            change.overlay
        ));
    }
    lines.extend(status.problems.iter().map(|problem| format!("! {problem}")));
    if lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

fn online(Counted { online, total }: Counted) -> String {
    format!("{online} of {total} online")
}

/// What somebody who has just begun would do next.
fn next_step(status: &ServerStatus) -> Option<&'static str> {
    if status.overlays.is_empty() {
        Some("ovctl overlay create NAME")
    } else if status.saps.total == 0 {
        Some("ovctl token create --role sap")
    } else if status.entities.total == 0 {
        Some("ovctl token create --name NAME")
    } else if status.overlays.iter().all(|overlay| overlay.rules == 0) {
        Some("ovctl policy allow FROM TO")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::admin::{Overlay, Pending, Semantics};
    use crate::types::{ApiVersion, Name, OverlayId, Revision};

    fn status() -> ServerStatus {
        ServerStatus {
            api_version: ApiVersion::V1,
            version: "0.1.0".to_owned(),
            started: Timestamp(1_000_000 - 3 * 86_400),
            urls: vec!["https://192.0.2.1:7443".to_owned()],
            revision: Revision(43),
            overlays: vec![Overlay {
                id: OverlayId(1),
                name: Name::default(),
                cidr: "100.71.0.0/16".parse().unwrap(),
                semantics: Semantics::DefaultDeny,
                silent: false,
                audit: false,
                created: Timestamp(0),
                members: 3,
                rules: 1,
            }],
            entities: Counted { online: 2, total: 3 },
            saps: Counted { online: 1, total: 1 },
            behind: vec![Pending { node: "web".to_owned(), why: "offline for 3m".to_owned() }],
            rotations: Vec::new(),
            unconfirmed: Vec::new(),
            problems: vec!["sap-2 has no endpoint".to_owned()],
        }
    }

    #[test]
    fn one_screen_says_default_deny_and_ends_with_problems() {
        assert_eq!(
            lines(&status(), Timestamp(1_000_000)),
            [
                "server    ovmesh 0.1.0, up 3d   https://192.0.2.1:7443",
                "policy    default deny, 1 rule   revision 43",
                "entities  2 of 3 online",
                "SaPs      1 of 1 online",
                "",
                "OVERLAY  CIDR           SEMANTICS     MEMBERS  RULES",
                "default  100.71.0.0/16  default-deny  3        1",
                "",
                "behind    web: offline for 3m",
                "! sap-2 has no endpoint",
            ]
        );
    }

    #[test]
    fn a_beginner_is_told_the_next_step() {
        let mut status = status();
        assert_eq!(next_step(&status), None);
        status.overlays[0].rules = 0;
        assert_eq!(next_step(&status), Some("ovctl policy allow FROM TO"));
        status.saps.total = 0;
        assert_eq!(next_step(&status), Some("ovctl token create --role sap"));
    }
}

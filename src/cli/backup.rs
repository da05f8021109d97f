//! `ovctl backup` and `ovctl restore`: what they say, and the question to a restored server.

use super::Outcome;
use super::args::Format;
use super::client::{Answer, Client};
use super::enforcement::{headline, show};
use super::output::{Output, counted, joined};
use crate::api::Problem;
use crate::api::admin::{Change, ChangeOptions};
use crate::api::backup::{Acceptance, Backup, Differences, Restore};

/// Says what a backup holds.
pub fn show_backup(output: &mut Output, backup: &Backup, file: &str) {
    match output.format() {
        Format::Json => output.json(&document(backup)),
        Format::Name => output.line(file),
        Format::Table => {
            output.line(format!("{file}: {}", contents(backup)));
            output.note(
                "it holds the server's key and all authorization keys: keep it as safe as the server itself",
            );
        }
    }
}

/// Says what a restore did, and what is left to do.
pub fn show_restore(output: &mut Output, restore: &Restore, file: &str) {
    match output.format() {
        Format::Json => output.json(&document(restore)),
        Format::Name => output.line(file),
        Format::Table => lines(restore, file).iter().for_each(|line| output.line(line)),
    }
}

/// Lets nodes follow the server that runs.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn accept(
    client: &Client,
    output: &mut Output,
    options: &ChangeOptions,
) -> Result<Outcome, Problem> {
    let answer: Answer<Change<Acceptance>> =
        client.change("/v1/restore/accept", &(), options).await?;
    Ok(show(
        output,
        &answer,
        |acceptance| joined(&acceptance.kept),
        |change| {
            let count = counted(change.result.kept.len() as u64, "node");
            vec![headline(change, "restore", &format!("accepted: {count} kept other tables"))]
        },
    ))
}

fn document<T: serde::Serialize>(value: &T) -> serde_json::Value {
    serde_json::to_value(value).expect("invariant: our types serialise to JSON")
}

fn contents(backup: &Backup) -> String {
    format!(
        "made {} by ovctl {}, {}, {}, {}, revision {} ({})",
        backup.made,
        backup.version,
        counted(backup.entities, "entity"),
        counted(backup.saps, "SaP"),
        counted(backup.rules, "rule"),
        backup.revision,
        backup.newest_change
    )
}

fn lines(restore: &Restore, file: &str) -> Vec<String> {
    let mut lines = vec![
        format!("restored  {file}: {}", contents(&restore.backup)),
        format!(
            "revision  {}: numbers that were given out after the backup are not given again",
            restore.revision
        ),
    ];
    if restore.rekeyed {
        lines.push(
            "rekeyed   every authorization key and link secret is new; the server's key and \
                    the nodes' credentials are as they were"
                .to_owned(),
        );
    }
    match &restore.differences {
        Some(differences) => lines.extend(changed(differences)),
        None => lines.push(
            "! what was changed after the backup is as before: removed rules are in force, deleted nodes \
             and revoked tokens are good again, nodes that joined are unknown".to_owned(),
        ),
    }
    let listed = |what: &str, names: &[String]| {
        (!names.is_empty()).then(|| format!("{what}{}", joined(names)))
    };
    lines.extend(listed(
        "! join tokens revoked, for somebody may have used them since: ",
        &restore.revoked_tokens,
    ));
    lines.extend(listed("! tokens that are good: ", &restore.good_tokens));
    lines.push(if restore.accepted {
        "next: ovctl serve; nodes follow it at once".to_owned()
    } else {
        "next: ovctl serve; nodes keep the tables that they have until: ovctl restore --accept"
            .to_owned()
    });
    lines
}

fn changed(differences: &Differences) -> Vec<String> {
    let Differences { unknown_nodes, nodes_back, rules_gone, rules_back, tokens_back } =
        differences;
    let all = [
        ("! unknown now, they leave and join again: ", unknown_nodes),
        ("! deleted since, and back: ", nodes_back),
        ("! rules made since, and gone: ", rules_gone),
        ("! rules removed since, and in force again: ", rules_back),
        ("! tokens revoked or used since, and good again unless revoked below: ", tokens_back),
    ];
    let told = all.into_iter().filter(|(_, names)| !names.is_empty());
    let lines: Vec<String> = told.map(|(what, names)| format!("{what}{}", joined(names))).collect();
    if lines.is_empty() {
        return vec!["nothing that was there is lost or comes back".to_owned()];
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ApiVersion, Revision, Timestamp};

    fn restore() -> Restore {
        Restore {
            api_version: ApiVersion::V1,
            backup: Backup {
                api_version: ApiVersion::V1,
                made: Timestamp(0),
                version: "0.1.0".to_owned(),
                revision: Revision(7),
                newest_change: "rule create r-3".to_owned(),
                entities: 2,
                saps: 1,
                rules: 3,
            },
            revision: Revision(100_007),
            rekeyed: false,
            accepted: false,
            revoked_tokens: Vec::new(),
            good_tokens: Vec::new(),
            differences: None,
        }
    }

    #[test]
    fn what_comes_back_is_named_and_without_the_newer_database_it_is_said_in_general() {
        let blind = lines(&restore(), "f").join("\n");
        assert!(blind.contains("removed rules are in force"), "{blind}");
        assert!(blind.contains("until: ovctl restore --accept"), "{blind}");
        assert!(!blind.contains("rekeyed"), "{blind}");

        let mut seeing = restore();
        seeing.rekeyed = true;
        seeing.differences = Some(Differences {
            rules_back: vec!["r-3 allow web db".to_owned()],
            ..Differences::default()
        });
        let text = lines(&seeing, "f").join("\n");
        assert!(text.contains("in force again: r-3 allow web db"), "{text}");
        assert!(!text.contains("removed rules are in force") && !text.contains("back: "), "{text}");
        assert!(
            text.contains("the server's key and the nodes' credentials are as they were"),
            "{text}"
        );
    }
}

//! `ovctl key`: lists the versions of authorization keys and rotates them. Keys themselves are never
//! shown: the server does not send them here.

use super::Outcome;
use super::args::{Format, KeyCommand, KeyListArgs, KeyRotateArgs, RotateTarget};
use super::client::{Answer, Client, of_overlay};
use super::enforcement::{show, step};
use super::output::{Output, Table, joined, relative};
use crate::api::Problem;
use crate::api::admin::{Change, KeyRotate, KeyStatus, List};

/// Does what `ovctl key …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: KeyCommand,
) -> Result<Outcome, Problem> {
    match command {
        KeyCommand::List(args) => list(client, output, &args).await,
        KeyCommand::Rotate(args) => rotate(client, output, &args).await,
    }
}

async fn list(
    client: &Client,
    output: &mut Output,
    args: &KeyListArgs,
) -> Result<Outcome, Problem> {
    let query = of_overlay(args.overlay.as_ref());
    let answer: Answer<List<KeyStatus>> = client.read("/v1/keys", &query).await?;
    let keys = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => keys.iter().for_each(|key| output.line(towards(key))),
        Format::Table => {
            let now = output.now();
            let mut table = Table::new(&[
                "OVERLAY",
                "TO",
                "FROM",
                "VERSION",
                "NEXT",
                "STEP",
                "ROTATED",
                "WAITING FOR",
            ]);
            for key in keys {
                table.row([
                    key.overlay.to_string(),
                    key.to.to_string(),
                    key.from.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string),
                    key.version.to_string(),
                    key.next.map(|next| next.to_string()).unwrap_or_default(),
                    key.step.clone(),
                    relative(key.rotated, now),
                    joined(&key.waiting_for),
                ]);
            }
            output.table(&table);
            if keys.is_empty() {
                output.note("no keys: an entity gets them when it joins");
            }
        }
    }
    Ok(Outcome::Done)
}

async fn rotate(
    client: &Client,
    output: &mut Output,
    args: &KeyRotateArgs,
) -> Result<Outcome, Problem> {
    let body = request(args)?;
    let answer: Answer<Change<Vec<KeyStatus>>> =
        client.change("/v1/keys/rotate", &body, &args.change.options()).await?;
    let now_flag = args.now;
    Ok(show(
        output,
        &answer,
        |keys| keys.iter().map(towards).collect::<Vec<_>>().join("\n"),
        |change| rotated(change, now_flag),
    ))
}

fn request(args: &KeyRotateArgs) -> Result<KeyRotate, Problem> {
    let mut body =
        KeyRotate { overlay: args.overlay.clone(), now: args.now, ..KeyRotate::default() };
    match args.target()? {
        RotateTarget::All => body.all = true,
        RotateTarget::Overlay(overlay) => body.overlay = Some(overlay),
        RotateTarget::Entity(to) => body.to = Some(to),
        RotateTarget::Pair { from, to } => (body.from, body.to) = (Some(from), Some(to)),
    }
    Ok(body)
}

/// The echo of `rotate`: how many keys, each with its step.
fn rotated(change: &Change<Vec<KeyStatus>>, now: bool) -> Vec<String> {
    let count = match change.result.len() {
        1 => "the key".to_owned(),
        count => format!("{count} keys"),
    };
    let first = if change.dry_run {
        format!("would rotate {count} (dry run: revision {} stays)", change.revision)
    } else {
        format!("rotating {count} ({})", step(change.revision))
    };
    let mut lines = vec![first];
    lines.extend(change.result.iter().map(|key| format!("  {}", sentence(key))));
    if now {
        lines.push("  who has not followed after 60 s is cut off".to_owned());
    }
    lines
}

/// `default: web → db 1.0 → 2.0 (adding), waits for sap-1`.
pub(crate) fn sentence(key: &KeyStatus) -> String {
    let mut text = format!("{}: {} {}", key.overlay, towards(key), key.version);
    if let Some(next) = key.next {
        text.push_str(&format!(" → {next}"));
    }
    text.push_str(&format!(" ({})", key.step));
    if !key.waiting_for.is_empty() {
        text.push_str(&format!(", waits for {}", joined(&key.waiting_for)));
    }
    text
}

/// `→ db` for everybody's keys, `web → db` for one pair's.
fn towards(key: &KeyStatus) -> String {
    match &key.from {
        Some(from) => format!("{from} → {}", key.to),
        None => format!("→ {}", key.to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Epoch, Generation, KeyVersion, Name, Timestamp};

    #[test]
    fn a_rotation_says_its_step_and_whom_it_waits_for() {
        let version = |epoch| KeyVersion { epoch: Epoch(epoch), generation: Generation(0) };
        let mut key = KeyStatus {
            overlay: Name::default(),
            to: "db".parse().unwrap(),
            from: None,
            version: version(1),
            next: Some(version(2)),
            step: "adding".to_owned(),
            rotated: Timestamp(0),
            waiting_for: vec!["sap-1".to_owned()],
        };

        assert_eq!(sentence(&key), "default: → db 1.0 → 2.0 (adding), waits for sap-1");
        (key.next, key.waiting_for) = (None, Vec::new());
        key.from = Some("web".parse().unwrap());
        assert_eq!(sentence(&key), "default: web → db 1.0 (adding)");
    }

    #[test]
    fn what_is_named_is_what_is_asked() {
        let entities = vec!["web".parse().unwrap(), "db".parse().unwrap()];
        let pair = KeyRotateArgs { entities, now: true, ..KeyRotateArgs::default() };
        let body = request(&pair).unwrap();

        assert!(body.now && !body.all && body.from.is_some() && body.to.is_some());
        assert!(request(&KeyRotateArgs::default()).is_err());
    }
}

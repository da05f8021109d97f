//! `ovctl token`: makes, lists and revokes tokens.
//!
//! The text of a token goes to stdout alone, so that `TOKEN=$(ovctl token create …)` works; what it
//! is for goes to stderr and never repeats it.

use super::Outcome;
use super::args::{Format, TokenCommand, TokenCreateArgs};
use super::client::{Answer, Client};
use super::enforcement::{conclude, headline, show};
use super::output::{Output, Table, joined, relative};
use crate::api::admin::{Change, CreatedToken, List, Role, ServerStatus, Token, TokenCreate};
use crate::api::{Problem, ProblemCode};
use crate::types::Timestamp;

/// Does what `ovctl token …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: TokenCommand,
) -> Result<Outcome, Problem> {
    match command {
        TokenCommand::Create(args) => create(client, output, args).await,
        TokenCommand::List => {
            let answer: Answer<List<Token>> = client.read("/v1/tokens", &[]).await?;
            list(output, &answer);
            Ok(Outcome::Done)
        }
        TokenCommand::Revoke { id, change } => {
            let id = checked(&id)?;
            let answer: Answer<Change<Token>> =
                client.delete(&format!("/v1/tokens/{id}"), &change.options()).await?;
            Ok(show(
                output,
                &answer,
                |token| token.id.clone(),
                |change| vec![headline(change, &format!("token {id}"), "revoked")],
            ))
        }
    }
}

/// An id that is safe in a path.
fn checked(id: &str) -> Result<&str, Problem> {
    if !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Ok(id);
    }
    // A pasted secret must not be repeated.
    Err(Problem::new(ProblemCode::Usage, "that is not the id of a token")
        .why("an id looks like t-7; the token's text is not kept and cannot be looked up")
        .fix("ovctl token list"))
}

async fn create(
    client: &Client,
    output: &mut Output,
    args: TokenCreateArgs,
) -> Result<Outcome, Problem> {
    let options = args.change.options();
    let answer: Answer<Change<CreatedToken>> =
        client.change("/v1/tokens", &request(args), &options).await?;
    let change = &answer.value;
    let created = &change.result;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Table | Format::Name => {
            if change.dry_run {
                output.line(format!("a token {}", purpose(&created.token, output.now())));
                output.note("dry run: nothing was made");
                return Ok(Outcome::Done);
            }
            output.line(&created.text);
            let purpose = purpose(&created.token, output.now());
            output.note(format!("token {} {purpose}", created.token.id));
            let url = match created.token.role {
                Role::Admin | Role::Viewer => first_url(client).await,
                Role::Entity | Role::Sap => None,
            };
            output.note(next_step(created.token.role, url.as_deref()));
        }
    }
    Ok(conclude(output, change))
}

fn request(args: TokenCreateArgs) -> TokenCreate {
    TokenCreate {
        role: args.role.into(),
        overlays: args.overlays,
        name: args.name,
        namespaces: args.namespaces,
        labels: args.labels.into_iter().collect(),
        ports: args.ports.into_iter().map(|port| (port.name, port.service)).collect(),
        uses: args.uses,
        expires: args.expires,
        ephemeral: args.ephemeral,
        clear_underlay: args.clear_underlay,
    }
}

/// What a token is good for: `joins one entity as web in default, until …`.
fn purpose(token: &Token, now: Timestamp) -> String {
    let until = format!("until {} ({})", token.expires, relative(token.expires, now));
    let (kind, kinds) = match token.role {
        Role::Entity => ("entity", "entities"),
        Role::Sap => ("SaP", "SaPs"),
        Role::Admin if token.namespaces.is_empty() => return format!("changes anything, {until}"),
        Role::Admin => {
            let namespaces = joined(&token.namespaces);
            return format!("changes rules of namespaces {namespaces}, {until}");
        }
        Role::Viewer => return format!("reads anything, {until}"),
    };
    let mut text = match token.uses {
        0 => format!("joins any number of {kinds}"),
        1 => format!("joins one {kind}, once,"),
        uses => format!("joins up to {uses} {kinds}"),
    };
    if let Some(name) = &token.name {
        text.push_str(&format!(" as {name}"));
    }
    match (token.role, token.overlays.is_empty()) {
        (Role::Sap, true) => text.push_str(" for every overlay"),
        (_, true) => {}
        (_, false) => text.push_str(&format!(" in {}", joined(&token.overlays))),
    }
    if !token.labels.is_empty() {
        text.push_str(&format!(" with {}", joined(&token.labels)));
    }
    if token.ephemeral {
        text.push_str(", deleted when it stays away");
    }
    format!("{} {until}", text.trim_end_matches(','))
}

/// What to type with a token of `role`.
fn next_step(role: Role, url: Option<&str>) -> String {
    match role {
        Role::Entity => {
            "next, on the machine: sudo ovd up --join TOKEN (or @FILE, or - for stdin)".to_owned()
        }
        Role::Sap => {
            "next, on the machine: ovsap run --join TOKEN (or @FILE, or - for stdin)".to_owned()
        }
        Role::Admin | Role::Viewer => {
            let url = url.unwrap_or("https://HOST:7443");
            format!("next: ovctl --server {url} --token-file FILE status")
        }
    }
}

/// Where the server can be reached; only for a hint.
async fn first_url(client: &Client) -> Option<String> {
    let status: Answer<ServerStatus> = client.read("/v1/status", &[]).await.ok()?;
    status.value.urls.into_iter().find(|url| url.starts_with("https://"))
}

fn list(output: &mut Output, answer: &Answer<List<Token>>) {
    let tokens = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => tokens.iter().for_each(|token| output.line(&token.id)),
        Format::Table => {
            let table = table(tokens, output.now());
            output.table(&table);
            if tokens.is_empty() {
                output.note("no tokens. Next: ovctl token create");
            }
        }
    }
}

fn table(tokens: &[Token], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "ID",
        "ROLE",
        "NAME",
        "NAMESPACES",
        "OVERLAYS",
        "LABELS",
        "USED",
        "STATE",
        "EXPIRES",
    ]);
    for token in tokens {
        let limit = if token.uses == 0 { "∞".to_owned() } else { token.uses.to_string() };
        table.row([
            token.id.clone(),
            role(token.role).to_owned(),
            token.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            joined(&token.namespaces),
            joined(&token.overlays),
            joined(&token.labels),
            match token.role {
                Role::Entity | Role::Sap => format!("{}/{limit}", token.used),
                Role::Admin | Role::Viewer => String::new(),
            },
            state(token, now).to_owned(),
            relative(token.expires, now),
        ]);
    }
    table
}

fn state(token: &Token, now: Timestamp) -> &'static str {
    let counts = token.role.joins_as().is_some() && token.uses != 0;
    if token.revoked {
        "revoked"
    } else if token.expires <= now {
        "expired"
    } else if counts && token.used >= token.uses {
        "used up"
    } else {
        "valid"
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Entity => "entity",
        Role::Sap => "sap",
        Role::Admin => "admin",
        Role::Viewer => "viewer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Name;

    fn token(role: Role) -> Token {
        Token {
            id: "t-7".to_owned(),
            role,
            overlays: vec![Name::default()],
            name: Some(Name::new("web").unwrap()),
            namespaces: Vec::new(),
            labels: ["role=web".parse().unwrap()].into(),
            used: 0,
            uses: 1,
            expires: Timestamp(1_003_600),
            revoked: false,
            ephemeral: false,
            created: Timestamp(1_000_000),
        }
    }

    #[test]
    fn a_token_says_what_it_is_good_for() {
        let now = Timestamp(1_000_000);
        assert_eq!(
            purpose(&token(Role::Entity), now),
            "joins one entity, once, as web in default with role=web until 1970-01-12T14:46:40Z \
             (in 60m)"
        );
        let admin = Token { namespaces: vec![Name::new("shop").unwrap()], ..token(Role::Admin) };
        assert!(purpose(&admin, now).starts_with("changes rules of namespaces shop, until"));
    }

    #[test]
    fn a_token_that_cannot_be_used_says_why() {
        let now = Timestamp(1_000_000);
        let valid = token(Role::Entity);
        assert_eq!(state(&valid, now), "valid");
        assert_eq!(state(&valid, Timestamp(1_003_600)), "expired");
        assert_eq!(state(&Token { used: 1, ..valid.clone() }, now), "used up");
        assert_eq!(state(&Token { used: 9, uses: 0, ..valid.clone() }, now), "valid");
        assert_eq!(state(&Token { revoked: true, ..valid }, now), "revoked");
        assert_eq!(state(&Token { used: 9, ..token(Role::Admin) }, now), "valid");
    }

    #[test]
    fn the_next_step_fits_the_role() {
        assert!(next_step(Role::Entity, None).contains("ovd up --join"));
        assert!(next_step(Role::Sap, None).contains("ovsap run --join"));
        assert!(next_step(Role::Viewer, Some("https://a:1")).contains("--server https://a:1"));
    }

    #[test]
    fn an_id_cannot_change_the_path_and_a_secret_is_not_repeated() {
        assert!(checked("t-7").is_ok());
        for bad in ["", "../rules", "ovt1.secret", "t-7?x"] {
            let problem = checked(bad).unwrap_err().to_string();
            assert!(!problem.contains("secret"), "{problem}");
        }
    }
}

//! `ovctl policy`: makes, removes, lists and questions rules.

use super::Outcome;
use super::args::{CanArgs, Format, ImportCommand, PolicyCommand, RevokeArgs, RuleArgs};
use super::client::{Answer, Client, of_overlay};
use super::enforcement::{headline, show, step};
use super::output::{Output, Table, counted, relative};
use super::policy_file;
use super::rule_words::{self, PairFacts};
use crate::api::admin::{
    CanAnswer, CanQuestion, Change, Entity, List, PathNames, Rule, RuleCreate, RulePath, RuleRevoke,
};
use crate::api::policy::NetworkPolicyView;
use crate::api::table::Action;
use crate::api::{Problem, ProblemCode};
use crate::types::{EntityName, Name, PortRange, Selector, Service, Timestamp};

/// Does what `ovctl policy …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: PolicyCommand,
) -> Result<Outcome, Problem> {
    match command {
        PolicyCommand::Allow(rule) => create(client, output, Action::Allow, rule).await,
        PolicyCommand::Deny(rule) => create(client, output, Action::Deny, rule).await,
        PolicyCommand::Revoke(args) => revoke(client, output, &args).await,
        PolicyCommand::List { overlay } => list(client, output, overlay).await,
        PolicyCommand::Show { rule } => {
            let answer: Answer<Rule> = client.read(&format!("/v1/rules/{rule}"), &[]).await?;
            show_rule(output, &answer);
            Ok(Outcome::Done)
        }
        PolicyCommand::Can(args) => can(client, output, args).await,
        PolicyCommand::Suggest(args) => super::flow::suggest(client, output, args).await,
        PolicyCommand::Export(args) => policy_file::export(client, output, &args).await,
        PolicyCommand::Apply(args) => policy_file::apply(client, output, &args).await,
        PolicyCommand::Confirm(args) => policy_file::confirm(client, output, args).await,
        PolicyCommand::History(args) => policy_file::history(client, output, &args).await,
        PolicyCommand::Rollback(args) => policy_file::rollback(client, output, &args).await,
        PolicyCommand::Import(ImportCommand::Kubernetes(args)) => {
            policy_file::import(client, output, &args).await
        }
        PolicyCommand::Offline(command) => policy_file::ask(client, output, &command).await,
    }
}

async fn create(
    client: &Client,
    output: &mut Output,
    action: Action,
    args: RuleArgs,
) -> Result<Outcome, Problem> {
    let path = match (args.direct, args.via.is_empty()) {
        (true, _) => Some(RulePath::Direct),
        (false, false) => Some(RulePath::Via(args.via)),
        (false, true) => None,
    };
    let body = RuleCreate {
        overlay: args.overlay,
        action,
        from: args.from,
        to: args.to,
        services: args.ports,
        both: args.both,
        path,
        expires: args.expires,
        reason: args.reason,
        name: args.name,
        audit: args.audit,
    };
    let answer: Answer<Change<Rule>> =
        client.change("/v1/rules", &body, &args.change.options()).await?;
    let facts = if output.format() == Format::Table {
        pair_facts(client, &answer.value).await
    } else {
        PairFacts::default()
    };
    let now = output.now();
    let outcome =
        show(output, &answer, |rule| rule.id.to_string(), |change| created(change, &facts, now));
    if output.format() == Format::Table && !answer.value.dry_run {
        output.line(format!("undo: ovctl policy revoke {}", answer.value.result.id));
    }
    Ok(outcome)
}

/// The echo of `allow` and `deny`.
fn created(change: &Change<Rule>, facts: &PairFacts, now: Timestamp) -> Vec<String> {
    let rule = &change.result;
    let first = if change.dry_run {
        headline(change, "a rule", "added")
    } else {
        headline(change, &format!("rule {}", rule.id), "added")
    };
    let words = rule_words::lines(rule, facts, now).into_iter();
    std::iter::once(first).chain(words.map(|line| format!("  {line}"))).collect()
}

/// What else is true of the pair. It only makes the echo better, so what cannot be learned is
/// left out. A dry run changed nothing, so verdicts would speak of the policy before it.
async fn pair_facts(client: &Client, change: &Change<Rule>) -> PairFacts {
    let rule = &change.result;
    let (Selector::Name(from), Selector::Name(to)) = (&rule.from, &rule.to) else {
        return PairFacts::default();
    };
    let ask = async |from: &EntityName, to: &EntityName, service: Option<Service>| {
        let question = CanQuestion {
            overlay: Some(rule.overlay.clone()),
            from: Selector::Name(from.clone()),
            to: Selector::Name(to.clone()),
            service,
        };
        let answer: Result<Answer<CanAnswer>, _> = client.ask("/v1/policy/can", &question).await;
        answer.ok().map(|answer| answer.value)
    };
    let forward = ask(from, to, rule.services.first().and_then(one_port)).await;
    let mut facts = PairFacts {
        from_address: address(client, from, &rule.overlay).await,
        to_address: address(client, to, &rule.overlay).await,
        path: forward.as_ref().and_then(|answer| answer.path.clone()),
        ..PairFacts::default()
    };
    if !change.dry_run {
        facts.reverse = ask(to, from, None).await.map(|answer| answer.allowed);
        facts.forward = forward.map(|answer| (answer.allowed, answer.why));
    }
    facts
}

/// A service with a single port, as questions take it; none for a named port, which only the
/// destination can resolve.
fn one_port(service: &Service) -> Option<Service> {
    match service {
        Service::Protocol(_) => Some(service.clone()),
        Service::Ports(protocol, range) => {
            Some(Service::Ports(*protocol, PortRange { first: range.first, last: range.first }))
        }
        Service::Named(..) => None,
    }
}

async fn address(client: &Client, name: &EntityName, overlay: &Name) -> Option<std::net::IpAddr> {
    let path = format!("/v1/entities/{}/{}", name.namespace, name.name);
    let entity: Answer<Entity> = client.read(&path, &[]).await.ok()?;
    let member = entity.value.members.into_iter().find(|member| member.overlay == *overlay)?;
    Some(member.address)
}

async fn revoke(
    client: &Client,
    output: &mut Output,
    args: &RevokeArgs,
) -> Result<Outcome, Problem> {
    let body = revocation(args)?;
    let answer: Answer<Change<Vec<Rule>>> =
        client.change("/v1/rules/revoke", &body, &args.change.options()).await?;
    Ok(show(
        output,
        &answer,
        |rules| rules.iter().map(|rule| rule.id.to_string()).collect::<Vec<_>>().join(" "),
        revoked,
    ))
}

/// One id, or two selectors.
fn revocation(args: &RevokeArgs) -> Result<RuleRevoke, Problem> {
    let usage = |why: String| {
        Problem::new(ProblemCode::Usage, "cannot tell which rule to revoke").why(why).fix(
            "ovctl policy revoke r-18, or ovctl policy revoke FROM TO; see `ovctl policy list`",
        )
    };
    match &args.to {
        None => {
            let rule = args.rule_or_from.parse().map_err(usage)?;
            Ok(RuleRevoke { rule: Some(rule), from: None, to: None, overlay: None })
        }
        Some(to) => {
            let from: Selector = args
                .rule_or_from
                .parse()
                .map_err(|error: crate::types::SelectorError| usage(error.to_string()))?;
            Ok(RuleRevoke {
                rule: None,
                from: Some(from),
                to: Some(to.clone()),
                overlay: args.overlay.clone(),
            })
        }
    }
}

/// The echo of `revoke`.
fn revoked(change: &Change<Vec<Rule>>) -> Vec<String> {
    let count = counted(change.result.len() as u64, "rule");
    let first = if change.dry_run {
        format!("{count} would be revoked (dry run: revision {} stays)", change.revision)
    } else {
        format!("{count} revoked ({})", step(change.revision))
    };
    std::iter::once(first)
        .chain(change.result.iter().map(|rule| format!("  {}  {}", rule.id, sentence(rule))))
        .collect()
}

/// `allow web → db tcp/443`.
fn sentence(rule: &Rule) -> String {
    format!(
        "{} {} {} {}   {}",
        action(rule.action),
        rule.from,
        rule_words::arrow(rule.both),
        rule.to,
        rule_words::services(&rule.services)
    )
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

async fn list(
    client: &Client,
    output: &mut Output,
    overlay: Option<Name>,
) -> Result<Outcome, Problem> {
    let query = of_overlay(overlay.as_ref());
    let mut answer: Answer<List<Rule>> = client.read("/v1/rules", &query).await?;
    let networks: Answer<List<NetworkPolicyView>> =
        client.read("/v1/networkpolicies", &query).await?;
    answer.document["networkPolicies"] = networks.document["items"].clone();
    let networks = &networks.value.items;
    let rules = &answer.value.items;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => {
            let ids = rules.iter().map(|rule| rule.id);
            let ids = ids.chain(networks.iter().map(|network| network.id));
            ids.for_each(|id| output.line(id.to_string()));
        }
        Format::Table => {
            let table = rule_table(rules, output.now());
            output.table(&table);
            if !networks.is_empty() {
                output.line("");
                output.table(&network_table(networks));
            }
            if rules.is_empty() && networks.is_empty() {
                output.note("no rules: nothing may talk. Next: ovctl policy allow FROM TO");
            } else if rules.iter().any(|rule| !rule.dangling.is_empty()) {
                output.note("a rule marked ! names an entity that is gone: it does nothing for it");
            }
        }
    }
    Ok(Outcome::Done)
}

fn network_table(networks: &[NetworkPolicyView]) -> Table {
    let mut table = Table::new(&["NETWORKPOLICY", "OVERLAY", "NAME", "ISOLATES", "SELECTS"]);
    for network in networks {
        table.row([
            network.id.to_string(),
            network.overlay.to_string(),
            network.name.clone(),
            network.directions.join(", "),
            network.selects.to_string(),
        ]);
    }
    table
}

fn rule_table(rules: &[Rule], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "RULE", "OVERLAY", "ACTION", "FROM", "", "TO", "SERVICES", "PATH", "ENDS", "PAIRS", "HITS",
        "LAST HIT", "REASON",
    ]);
    for rule in rules {
        let gone = if rule.dangling.is_empty() { "" } else { " !" };
        table.row([
            format!("{}{gone}", rule.id),
            rule.overlay.to_string(),
            format!("{}{}", action(rule.action), if rule.audit { " (audit)" } else { "" }),
            rule.from.to_string(),
            rule_words::arrow(rule.both).to_owned(),
            rule.to.to_string(),
            rule_words::services(&rule.services),
            path_words(rule.path.as_ref()),
            rule.not_after.map(|end| relative(end, now)).unwrap_or_default(),
            rule.pairs.to_string(),
            rule.hits.map_or(0, |hits| hits.packets).to_string(),
            rule.hits.map(|hits| relative(hits.last, now)).unwrap_or_default(),
            rule.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}

fn path_words(path: Option<&RulePath>) -> String {
    match path {
        None => String::new(),
        Some(RulePath::Direct) => "direct".to_owned(),
        Some(RulePath::Via(saps)) => format!("via {}", super::output::joined(saps)),
    }
}

fn show_rule(output: &mut Output, answer: &Answer<Rule>) {
    let rule = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(rule.id.to_string()),
        Format::Table => {
            let now = output.now();
            output.line(format!(
                "rule {}   {}   overlay {}",
                rule.id,
                action(rule.action),
                rule.overlay
            ));
            for line in rule_words::lines(rule, &PairFacts::default(), now) {
                output.line(format!("  {line}"));
            }
            output.line(format!("  covers {} of members", counted(rule.pairs, "ordered pair")));
            output.line(match rule.hits {
                Some(hits) => format!(
                    "  hits {} packets, the last {}",
                    hits.packets,
                    relative(hits.last, now)
                ),
                None => "  never hit".to_owned(),
            });
            if let Some(reason) = &rule.reason {
                output.line(format!("  reason: {reason}"));
            }
            for name in &rule.dangling {
                output.line(format!("  ! {name} is gone: the rule does nothing for it"));
            }
            if let Some(place) = &rule.place {
                output.line(format!("  from the file {place}, as it was applied"));
            }
            output.line(format!(
                "  made {} by {} (revision {})",
                relative(rule.created, now),
                rule.created_by,
                rule.revision
            ));
        }
    }
}

async fn can(client: &Client, output: &mut Output, args: CanArgs) -> Result<Outcome, Problem> {
    let question = CanQuestion {
        overlay: args.overlay.clone(),
        from: args.from.clone(),
        to: args.to.clone(),
        service: args.port.clone(),
    };
    let answer: Answer<CanAnswer> = client.ask("/v1/policy/can", &question).await?;
    let verdict = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(if verdict.allowed { "allowed" } else { "denied" }),
        Format::Table => {
            for line in verdict_lines(&question, verdict) {
                output.line(line);
            }
        }
    }
    Ok(if verdict.allowed { Outcome::Done } else { Outcome::Denied })
}

/// The answer to `can`, with the command that would change it.
fn verdict_lines(question: &CanQuestion, answer: &CanAnswer) -> Vec<String> {
    let CanQuestion { from, to, service, .. } = question;
    let verdict = match (answer.allowed, answer.allowed_pairs) {
        (true, _) => "ALLOWED",
        (false, 0) => "DENIED",
        (false, _) => "PARTLY",
    };
    let what = service.as_ref().map(|service| format!(" {service}")).unwrap_or_default();
    let mut lines = vec![format!(
        "{verdict}  {from} → {to}{what}   overlay {}, revision {}",
        answer.overlay, answer.revision
    )];
    lines.push(format!("  why      {}", answer.why));
    for (index, near) in answer.nearest.iter().enumerate() {
        let lead = if index == 0 { "nearest" } else { "" };
        lines.push(format!("  {lead:<7}  {} {} ({})", near.rule, near.text, near.differs));
    }
    for pair in &answer.examples {
        let word = if pair.allowed { "allowed" } else { "denied" };
        lines.push(format!("  {word:<7}  {} → {}: {}", pair.from, pair.to, pair.why));
    }
    if answer.pairs == 1 && answer.enforced {
        let path = match &answer.path {
            Some(PathNames::Direct) => format!("{from} → {to}, direct: no SaP between them"),
            Some(PathNames::Via(saps)) => rule_words::hop_line(from, to, saps, "→"),
            None => "none: no SaP serves the two".to_owned(),
        };
        lines.push(format!("  path     {path}"));
    }
    lines.extend(allow_lines(&answer.allow_with));
    lines
}

/// What would allow it, one a line.
pub(super) fn allow_lines(steps: &[String]) -> impl Iterator<Item = String> {
    steps.iter().enumerate().map(|(at, step)| {
        let lead = if at == 0 { "allow it:" } else { "then:" };
        format!("{lead:<9}  {step}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::admin::{Enforcement, NearRule, PairVerdict};
    use crate::cli::args::ChangeArgs;
    use crate::cli::output::tests::pages;
    use crate::cli::rule_words::tests::rule;
    use crate::types::{ApiVersion, Revision, RuleId};

    fn change<T>(result: T, dry_run: bool) -> Change<T> {
        Change {
            api_version: ApiVersion::V1,
            revision: Revision(43),
            dry_run,
            result,
            enforcement: Enforcement::default(),
        }
    }

    #[test]
    fn the_echo_of_allow_starts_with_id_and_revision() {
        let allow = rule(Action::Allow, "web", "db");
        let echo =
            |dry_run| created(&change(allow.clone(), dry_run), &PairFacts::default(), Timestamp(0));

        assert_eq!(echo(false)[0], "rule r-18 added (revision 42 → 43)");
        assert_eq!(echo(true)[0], "a rule would be added (dry run: revision 43 stays)");
        assert!(echo(false)[1].starts_with("  web → db   any protocol"));
    }

    #[test]
    fn the_echo_of_revoke_lists_what_went() {
        let gone = vec![rule(Action::Allow, "web", "db"), rule(Action::Deny, "ci", "db")];

        assert_eq!(
            revoked(&change(gone, false)),
            [
                "2 rules revoked (revision 42 → 43)",
                "  r-18  allow web → db   any protocol",
                "  r-18  deny ci → db   any protocol",
            ]
        );
    }

    #[test]
    fn one_word_is_a_rule_and_two_are_its_ends() {
        let args = |first: &str, to: Option<&str>| RevokeArgs {
            rule_or_from: first.to_owned(),
            to: to.map(|to| to.parse().unwrap()),
            overlay: Some(Name::default()),
            change: ChangeArgs::default(),
        };

        let by_id = revocation(&args("r-0018", None)).unwrap();
        assert_eq!((by_id.rule, by_id.overlay), (Some(RuleId(18)), None));
        let by_ends = revocation(&args("web", Some("db"))).unwrap();
        assert!(by_ends.rule.is_none() && by_ends.from.is_some() && by_ends.overlay.is_some());
        assert_eq!(revocation(&args("web", None)).unwrap_err().code, ProblemCode::Usage);
        assert_eq!(revocation(&args("a=b,", Some("db"))).unwrap_err().code, ProblemCode::Usage);
    }

    fn denied() -> (CanQuestion, CanAnswer) {
        let question = CanQuestion {
            overlay: None,
            from: "alice".parse().unwrap(),
            to: "db".parse().unwrap(),
            service: Some("tcp/5432".parse().unwrap()),
        };
        let answer = CanAnswer {
            api_version: ApiVersion::V1,
            allowed: false,
            overlay: Name::default(),
            revision: Revision(43),
            rule: None,
            why: "no rule matches; default deny".to_owned(),
            nearest: vec![NearRule {
                rule: RuleId(18),
                text: "web → db tcp/5432".to_owned(),
                differs: "source differs".to_owned(),
            }],
            path: Some(PathNames::Via(vec![Name::new("sap-1").unwrap()])),
            enforced: true,
            pairs: 1,
            allowed_pairs: 0,
            examples: Vec::new(),
            allow_with: vec!["ovctl policy allow alice db --port tcp/5432".to_owned()],
        };
        (question, answer)
    }

    #[test]
    fn a_denied_question_names_the_nearest_rule_and_the_command() {
        let (question, answer) = denied();

        assert_eq!(
            verdict_lines(&question, &answer),
            [
                "DENIED  alice → db tcp/5432   overlay default, revision 43",
                "  why      no rule matches; default deny",
                "  nearest  r-18 web → db tcp/5432 (source differs)",
                "  path     alice → sap-1 → db",
                "allow it:  ovctl policy allow alice db --port tcp/5432",
            ]
        );
    }

    #[test]
    fn several_pairs_are_counted_and_shown() {
        let (question, mut answer) = denied();
        (answer.pairs, answer.allowed_pairs, answer.path) = (2, 1, None);
        answer.nearest.clear();
        answer.allow_with.clear();
        let pair = |from: &str, allowed| PairVerdict {
            from: from.to_owned(),
            to: "db".to_owned(),
            allowed,
            rule: None,
            why: "so".to_owned(),
        };
        answer.examples = vec![pair("web", false), pair("ci", true)];

        let lines = verdict_lines(&question, &answer);
        assert!(lines[0].starts_with("PARTLY  alice → db"), "{lines:?}");
        assert_eq!(lines[2..], ["  denied   web → db: so", "  allowed  ci → db: so"]);
        answer.allowed = true;
        assert!(verdict_lines(&question, &answer)[0].starts_with("ALLOWED"));
    }

    #[test]
    fn a_rule_whose_entity_is_gone_is_marked() {
        let mut dangling = rule(Action::Allow, "web", "db");
        dangling.dangling = vec!["web".parse().unwrap()];
        let lines = rule_table(&[dangling], Timestamp(0)).lines();

        assert!(lines[1].starts_with("r-18 !"), "{lines:?}");
    }

    #[test]
    fn a_rule_is_shown_with_its_maker() {
        let value = rule(Action::Allow, "web", "db");
        let document = serde_json::to_value(&value).unwrap();
        let (mut output, data, _) = pages(Format::Table);
        show_rule(&mut output, &Answer { value, document });

        assert!(data.text().contains("made 11d ago by uid 0 (unix socket)"), "{}", data.text());
    }
}

//! A rule in words: direction, ports, replies, path, expiry. What `policy allow` echoes, because
//! direction and replies are what people get wrong most.

use crate::api::admin::{PathNames, Rule, RulePath};
use crate::api::table::Action;
use crate::cli::output::{joined, relative};
use crate::types::{Name, Selector, Service, Timestamp};

/// What is known of a pair beyond its rule, when both ends are names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PairFacts {
    /// Overlay address of the starting end.
    pub(crate) from_address: Option<std::net::IpAddr>,
    /// Overlay address of the other end.
    pub(crate) to_address: Option<std::net::IpAddr>,
    /// The verdict on the forward direction, with the reason.
    pub(crate) forward: Option<(bool, String)>,
    /// Whether the other direction may start anything.
    pub(crate) reverse: Option<bool>,
    /// The hops of the pair.
    pub(crate) path: Option<PathNames>,
}

/// The services of a rule: `tcp/443,udp/53`, or `any protocol`.
pub(crate) fn services(services: &[Service]) -> String {
    if services.is_empty() { "any protocol".to_owned() } else { joined(services) }
}

/// `→` or `↔`.
pub(crate) fn arrow(both: bool) -> &'static str {
    if both { "↔" } else { "→" }
}

/// What a rule does, in lines without indent.
pub(crate) fn lines(rule: &Rule, facts: &PairFacts, now: Timestamp) -> Vec<String> {
    let from = end(&rule.from, facts.from_address);
    let to = end(&rule.to, facts.to_address);
    let what = services(&rule.services);
    let mut lines =
        vec![format!("{from} {} {to}   {what}   {}", arrow(rule.both), replies(rule, facts))];
    if rule.both && !rule.services.is_empty() {
        lines.push("the port is the destination's in each direction".to_owned());
    }
    if let (Action::Allow, Some((false, why))) = (rule.action, &facts.forward) {
        lines.push(format!("! {} → {} stays denied: {why}", rule.from, rule.to));
    }
    if let Some(path) = path(rule, facts) {
        lines.push(format!("path {path}"));
    }
    if let Some(end) = rule.not_after {
        lines.push(format!("ends {end} ({}), with the server away too", relative(end, now)));
    }
    if rule.pairs == 0 {
        lines.push("it covers no pair of members yet".to_owned());
    }
    lines
}

fn end(selector: &Selector, address: Option<std::net::IpAddr>) -> String {
    match address {
        Some(address) => format!("{selector} ({address})"),
        None => selector.to_string(),
    }
}

/// What happens to replies and to the other direction.
fn replies(rule: &Rule, facts: &PairFacts) -> String {
    let (from, to) = (&rule.from, &rule.to);
    match (rule.action, rule.both) {
        (Action::Allow, true) => "either may start, replies allowed".to_owned(),
        (Action::Allow, false) => {
            let reverse = match facts.reverse {
                Some(false) => format!("{to} → {from} stays denied"),
                Some(true) => format!("{to} → {from} is allowed by another rule"),
                None => format!("this does not open {to} → {from}"),
            };
            format!("replies allowed; {reverse}")
        }
        (Action::Deny, true) => "refused before any allow rule, either way".to_owned(),
        (Action::Deny, false) => {
            format!("refused before any allow rule; replies to {to} still pass")
        }
    }
}

/// The hops: those the rule asks for, else those the pair has.
fn path(rule: &Rule, facts: &PairFacts) -> Option<String> {
    if rule.action == Action::Deny {
        return None;
    }
    let hops = match (&rule.path, &facts.path) {
        (Some(RulePath::Direct), _) | (None, Some(PathNames::Direct)) => {
            return Some(format!(
                "{} {} {}, direct: no SaP between them",
                rule.from,
                arrow(true),
                rule.to
            ));
        }
        (Some(RulePath::Via(saps)), _) | (None, Some(PathNames::Via(saps))) => saps,
        (None, None) => return None,
    };
    Some(hop_line(&rule.from, &rule.to, hops, arrow(true)))
}

/// `web → sap-1 → db`.
pub(crate) fn hop_line(
    from: &impl ToString,
    to: &impl ToString,
    saps: &[Name],
    arrow: &str,
) -> String {
    std::iter::once(from.to_string())
        .chain(saps.iter().map(Name::to_string))
        .chain(std::iter::once(to.to_string()))
        .collect::<Vec<_>>()
        .join(&format!(" {arrow} "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::types::{Revision, RuleId};

    pub(crate) fn rule(action: Action, from: &str, to: &str) -> Rule {
        Rule {
            id: RuleId(18),
            name: None,
            audit: false,
            overlay: Name::default(),
            action,
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            services: Vec::new(),
            both: false,
            path: None,
            not_after: None,
            reason: None,
            revision: Revision(43),
            created: Timestamp(0),
            created_by: "uid 0 (unix socket)".to_owned(),
            place: None,
            dangling: Vec::new(),
            hits: None,
            pairs: 1,
        }
    }

    fn words(rule: &Rule, facts: &PairFacts) -> Vec<String> {
        lines(rule, facts, Timestamp(1_000_000))
    }

    #[test]
    fn an_allow_rule_says_that_the_other_direction_stays_denied() {
        let mut allow = rule(Action::Allow, "web", "db");
        allow.services = vec!["tcp/5432".parse().unwrap()];
        let facts = PairFacts {
            from_address: Some("100.71.0.11".parse().unwrap()),
            to_address: Some("100.71.0.21".parse().unwrap()),
            forward: Some((true, "rule r-18".to_owned())),
            reverse: Some(false),
            path: Some(PathNames::Via(vec![Name::new("sap-1").unwrap()])),
        };

        assert_eq!(
            words(&allow, &facts),
            [
                "web (100.71.0.11) → db (100.71.0.21)   tcp/5432   replies allowed; \
                 db → web stays denied",
                "path web ↔ sap-1 ↔ db",
            ]
        );
    }

    #[test]
    fn what_another_rule_says_is_not_hidden() {
        let allow = rule(Action::Allow, "web", "db");
        let facts = PairFacts {
            forward: Some((false, "rule r-3 denies it".to_owned())),
            reverse: Some(true),
            ..PairFacts::default()
        };

        assert_eq!(
            words(&allow, &facts),
            [
                "web → db   any protocol   replies allowed; db → web is allowed by another rule",
                "! web → db stays denied: rule r-3 denies it",
            ]
        );
    }

    #[test]
    fn both_directions_name_the_destinations_port() {
        let mut both = rule(Action::Allow, "role=web", "any");
        both.both = true;
        both.services = vec!["udp/53".parse().unwrap(), "icmp".parse().unwrap()];

        assert_eq!(
            words(&both, &PairFacts::default()),
            [
                "role=web ↔ any   udp/53,icmp   either may start, replies allowed",
                "the port is the destination's in each direction",
            ]
        );
    }

    #[test]
    fn the_path_asked_for_is_told() {
        let mut direct = rule(Action::Allow, "s1", "s2");
        direct.path = Some(RulePath::Direct);
        assert_eq!(
            words(&direct, &PairFacts::default())[1],
            "path s1 ↔ s2, direct: no SaP between them"
        );

        let mut via = rule(Action::Allow, "s1", "s3");
        via.path = Some(RulePath::Via(vec![Name::new("a").unwrap(), Name::new("b").unwrap()]));
        assert_eq!(words(&via, &PairFacts::default())[1], "path s1 ↔ a ↔ b ↔ s3");
    }

    #[test]
    fn expiry_and_emptiness_are_told() {
        let mut allow = rule(Action::Allow, "role=web", "db");
        allow.not_after = Some(Timestamp(1_000_000 + 8 * 3600));
        allow.pairs = 0;

        assert_eq!(
            words(&allow, &PairFacts::default())[1..],
            [
                "ends 1970-01-12T21:46:40Z (in 8h), with the server away too",
                "it covers no pair of members yet",
            ]
        );
    }

    #[test]
    fn a_deny_rule_says_that_replies_pass() {
        let deny = rule(Action::Deny, "ci", "db");
        assert_eq!(
            words(&deny, &PairFacts::default()),
            ["ci → db   any protocol   refused before any allow rule; replies to db still pass"]
        );
        let mut both = deny;
        both.both = true;
        assert!(words(&both, &PairFacts::default())[0].ends_with("either way"));
    }
}

//! `can`: the evaluator's verdict, with the reason and the rules that almost matched.

use std::collections::{BTreeMap, BTreeSet};

use super::check::path_text;
use super::evaluate::{Pair, Paths, ends_text};
use super::judge::{End, Overview};
use super::question::{decision, end_text, overlay_name};
use super::select::{is_in_force, member};
use super::span::{Span, overlap, spans_at};
use super::why::allow_with;
use super::{Asked, Decision, RuleFacts, World, asked, path_between, rule_text};
use crate::api::admin::{CanAnswer, CanQuestion, NearRule, PairVerdict, PathNames};
use crate::api::can::EXAMPLES_MAX;
use crate::api::table::{Action, PathHops};
use crate::api::{Problem, ProblemCode};
use crate::types::{ApiVersion, NodeId, OverlayId, RuleId, Service, Timestamp};

/// How many rules that almost matched are told.
const NEAREST_MAX: usize = 3;

/// A rule that differs in more ways was not meant for this pair.
const DIFFERENCES_MAX: usize = 2;

/// Answers `question`. `guards` are the members whose guards hold to what is said of addresses outside, by
/// overlay; `places` are those of rules that came by files, as `FILE:LINE`.
///
/// # Errors
///
/// Those of [`asked`]; `NotFound` when no destination has a port of the name that is asked about.
pub fn can(
    world: &World,
    question: &CanQuestion,
    guards: &BTreeSet<(OverlayId, NodeId)>,
    places: &BTreeMap<RuleId, String>,
    now: Timestamp,
) -> Result<CanAnswer, Problem> {
    let asked = asked(world, question)?;
    let overview = Overview::new(world, asked.overlay, now);
    check_named_port(question, &asked, &overview)?;
    let service = question.service.as_ref();
    let decided: Vec<(&(End, End), Decision)> =
        asked.pairs.iter().map(|pair| (pair, decision(&overview, pair, service))).collect();
    let allowed_pairs = decided.iter().filter(|(_, decision)| decision.is_allow()).count();
    let allowed = allowed_pairs == decided.len();
    let denied = decided.iter().find(|(_, decision)| !decision.is_allow());
    let Some((pair, first)) = denied.or(decided.first()) else {
        return Err(Problem::new(ProblemCode::Usage, "the question is about nobody"));
    };
    let unenforced =
        asked.pairs.iter().find_map(|pair| unenforced(world, asked.overlay, guards, pair));
    let mut why = match decided.len() {
        1 => reason(world, question, pair, *first),
        all => several_text(allowed_pairs, all),
    };
    let mut path = None;
    if let [(End::Member(from), End::Member(to))] = &asked.pairs[..] {
        let paths = path_between(world, asked.overlay, *from, *to, now);
        path = paths.first().and_then(|hops| path_names(world, hops));
        if let (true, None, Some(pair)) =
            (allowed, &path, Pair::new(world, asked.overlay, *from, *to))
        {
            why.push_str("; but nothing passes: ");
            why.push_str(&no_path_text(world, asked.overlay, &pair, now));
        }
    }
    if let Some(unenforced) = &unenforced {
        why.push_str("; not enforced");
        why.push_str(unenforced);
    }
    Ok(CanAnswer {
        api_version: ApiVersion::V1,
        allowed,
        overlay: overlay_name(world, asked.overlay),
        revision: world.revision,
        rule: first.rule().filter(|_| decided.iter().all(|(_, decision)| decision == first)),
        why,
        enforced: unenforced.is_none(),
        pairs: count(decided.len()),
        allowed_pairs: count(allowed_pairs),
        examples: examples(world, question, &decided),
        nearest: match allowed {
            true => Vec::new(),
            false => nearest(world, asked.overlay, &overview, question, pair, *first, now),
        },
        path,
        allow_with: allow_with(world, question, &asked, places, now),
    })
}

/// Why nobody holds to the verdict on a pair, where nobody does.
fn unenforced(
    world: &World,
    overlay: OverlayId,
    guards: &BTreeSet<(OverlayId, NodeId)>,
    (from, to): &(End, End),
) -> Option<String> {
    match (from, to) {
        (End::Member(_), End::Member(_)) => None,
        (End::Member(id), End::Outside(_)) if guards.contains(&(overlay, *id)) => None,
        (End::Member(_), End::Outside(_)) => Some(format!(
            " outside the overlay: {} runs no guard with egress by rules",
            end_text(world, from)
        )),
        (End::Outside(_), _) => {
            Some(": what is started outside does not cross the overlay".to_owned())
        }
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn several_text(allowed: usize, all: usize) -> String {
    match allowed {
        0 => format!("none of the {all} pairs is allowed"),
        _ if allowed == all => format!("all {all} pairs are allowed"),
        _ => format!("{allowed} of the {all} pairs are allowed"),
    }
}

/// A few of the pairs, where there are several.
fn examples(
    world: &World,
    question: &CanQuestion,
    decided: &[(&(End, End), Decision)],
) -> Vec<PairVerdict> {
    if decided.len() == 1 {
        return Vec::new();
    }
    let some = |allowed: bool| {
        let matching = decided.iter().filter(move |(_, one)| one.is_allow() == allowed);
        matching.take(EXAMPLES_MAX).map(move |(pair, decision)| PairVerdict {
            from: end_text(world, &pair.0),
            to: end_text(world, &pair.1),
            allowed,
            rule: decision.rule(),
            why: reason(world, question, pair, *decision),
        })
    };
    some(false).chain(some(true)).collect()
}

/// Why a pair's verdict is what it is.
fn reason(
    world: &World,
    question: &CanQuestion,
    (from, to): &(End, End),
    decision: Decision,
) -> String {
    match decision {
        Decision::Allow(id) => format!("{id} allows {}", said_by(world, id)),
        Decision::Open => {
            "no NetworkPolicy isolates either end, and unspoken traffic is open".to_owned()
        }
        Decision::Audit(id) => {
            format!("passes for audit alone, and is recorded: {id} covers {}", said_by(world, id))
        }
        Decision::Deny(id) => format!("deny rule {id} refuses {}", said_by(world, id)),
        Decision::Isolated(id) => format!(
            "{id}, {}, isolates an end, and no policy there lets this through",
            said_by(world, id)
        ),
        Decision::Quarantined(id) => {
            format!("{} is in quarantine", end_text(world, &End::Member(id)))
        }
        Decision::NoRule => {
            let (from, to) = (end_text(world, from), end_text(world, to));
            let what =
                question.service.as_ref().map(|service| format!("{service} ")).unwrap_or_default();
            format!("no rule lets {from} start {what}flows to {to}; default deny")
        }
    }
}

/// What a rule or NetworkPolicy is about.
fn said_by(world: &World, id: RuleId) -> String {
    if id == RuleId::AUDIT_MODE {
        return "everything between members: the overlay is in audit mode".to_owned();
    }
    let policy = world.network_policies.get(&id);
    policy
        .map(|facts| format!("NetworkPolicy {}", facts.policy.full_name()))
        .or_else(|| world.rules.get(&id).map(|rule| ends_text(rule)))
        .unwrap_or_default()
}

/// Why nothing passes between two whom [`path_between`] finds no path for.
///
/// [`path_between`]: super::path_between
pub(super) fn no_path_text(
    world: &World,
    overlay: OverlayId,
    pair: &Pair<'_>,
    now: Timestamp,
) -> String {
    let Some((source, hops)) = Paths::new(world, overlay, now).asked(pair) else {
        return format!("no SaP serves the overlay {}", overlay_name(world, overlay));
    };
    match &hops {
        PathHops::Direct => {
            let mute = [pair.from.1, pair.to.1].into_iter().find(|f| f.endpoints.is_empty());
            let name = mute.map_or_else(String::new, |facts| facts.name.to_string());
            format!("{source} asks for a direct path, and {name} has no underlay endpoint")
        }
        PathHops::Via(_) | PathHops::Elsewhere => format!(
            "{source} asks for the path {}, of which a SaP is gone, cannot be reached, or does not \
             serve the overlay {}",
            path_text(world, &hops),
            overlay_name(world, overlay)
        ),
    }
}

/// Refuses a question about a named port that no destination has.
fn check_named_port(
    question: &CanQuestion,
    asked: &Asked,
    overview: &Overview<'_>,
) -> Result<(), Problem> {
    let Some(service @ Service::Named(..)) = &question.service else { return Ok(()) };
    if asked.pairs.iter().any(|(_, to)| !overview.asked(Some(service), to).is_empty()) {
        return Ok(());
    }
    let ports = asked.pairs.first().into_iter().flat_map(|(_, to)| overview.ports_of(to));
    let known: Vec<String> = ports
        .flat_map(|(name, services)| {
            services.iter().map(move |service| format!("{name}={service}"))
        })
        .collect();
    let problem =
        Problem::new(ProblemCode::NotFound, format!("{} has no port {service}", question.to));
    Err(match (asked.pairs.len(), known.is_empty()) {
        (1, false) => problem.why(format!("it names {}", known.join(", "))),
        (1, true) => problem.why("it names no ports"),
        (_, _) => problem,
    }
    .fix("ask for a number, such as tcp/443"))
}

/// The hops by name.
pub(super) fn path_names(world: &World, hops: &PathHops) -> Option<PathNames> {
    match hops {
        PathHops::Direct => Some(PathNames::Direct),
        PathHops::Elsewhere => None,
        PathHops::Via(chain) => Some(PathNames::Via(
            chain
                .iter()
                .filter_map(|sap| world.nodes.get(sap))
                .map(|facts| facts.name.name.clone())
                .collect(),
        )),
    }
}

/// The allow rules that almost matched, those with the fewest differences first.
fn nearest(
    world: &World,
    overlay: OverlayId,
    overview: &Overview<'_>,
    question: &CanQuestion,
    (from, to): &(End, End),
    decision: Decision,
    now: Timestamp,
) -> Vec<NearRule> {
    let asked = overview.asked(question.service.as_ref(), to);
    let allows = world.rules.iter().filter(|(_, rule)| {
        rule.overlay == overlay && rule.action == Action::Allow && !rule.is_audit
    });
    let mut found: Vec<(usize, NearRule)> = allows
        .filter_map(|(&id, rule)| {
            let mut differs = differences(overview, rule, from, to, &asked)?;
            if !is_in_force(rule, now) {
                differs.push("expired".to_owned());
            }
            if let Decision::Deny(deny) = decision
                && differs.is_empty()
            {
                differs.push(format!("deny rule {deny} goes first"));
            }
            let near = NearRule { rule: id, text: rule_text(rule), differs: differs.join(", ") };
            (1..=DIFFERENCES_MAX).contains(&differs.len()).then_some((differs.len(), near))
        })
        .collect();
    found.sort_by_key(|(count, near)| (*count, near.rule));
    found.truncate(NEAREST_MAX);
    found.into_iter().map(|(_, near)| near).collect()
}

/// What about the rule's ends and services differs from the question; none when both ends do.
fn differences(
    overview: &Overview<'_>,
    rule: &RuleFacts,
    from: &End,
    to: &End,
    asked: &[Span],
) -> Option<Vec<String>> {
    let meets_source =
        overview.is_meant(&rule.from, from) || (rule.both && overview.is_meant(&rule.to, from));
    let meets_target =
        overview.is_meant(&rule.to, to) || (rule.both && overview.is_meant(&rule.from, to));
    let (target, end) = if overview.is_spoken_of(rule, from, to) {
        (to, None)
    } else if overview.is_spoken_of(rule, to, from) {
        (from, Some("direction differs"))
    } else if meets_target {
        (to, Some("source differs"))
    } else if meets_source {
        (to, Some("destination differs"))
    } else {
        return None;
    };
    let mut differs: Vec<String> = end.map(str::to_owned).into_iter().collect();
    // At another destination a named port may be another one, so only its own destination tells.
    if end != Some("destination differs")
        && overlap(&overview.services_at(rule, target), asked).is_empty()
    {
        differs.push("port differs".to_owned());
    }
    Some(differs)
}

/// Whether a flow of `seen` to the destination of a pair is among what was asked about.
#[must_use]
pub fn is_about(
    world: &World,
    asked: &super::AskedPair,
    service: &Service,
    seen: &Service,
) -> bool {
    let Some(facts) = member(world, asked.overlay, asked.to) else { return false };
    let is_ipv6 = facts.addresses.get(&asked.overlay).is_some_and(std::net::IpAddr::is_ipv6);
    let spans = |service| spans_at(std::slice::from_ref(service), is_ipv6, &facts.ports);
    !overlap(&spans(service), &spans(seen)).is_empty()
}

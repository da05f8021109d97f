//! `can`: the evaluator's verdict, with the reason and the rules that almost matched.

use super::check::path_text;
use super::evaluate::{Pair, Paths, decide, ends_text};
use super::select::{is_in_force, member};
use super::span::{Span, overlap, resolve, spans};
use super::{Decision, RuleFacts, World, did_you_mean, path_between, rule_text};
use crate::api::admin::{CanAnswer, CanQuestion, NearRule, PathNames};
use crate::api::table::{Action, PathHops};
use crate::api::{Problem, ProblemCode};
use crate::types::{
    ApiVersion, EntityName, Name, NodeId, NodeKind, OverlayId, RuleId, Service, Timestamp,
};

/// How many rules that almost matched are told.
const NEAREST_MAX: usize = 3;

/// A rule that differs in more ways was not meant for this pair.
const DIFFERENCES_MAX: usize = 2;

/// Whom a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedPair {
    /// The overlay; both are members of it.
    pub overlay: OverlayId,
    /// Who would start the flow.
    pub from: NodeId,
    /// Who would be talked to: another one.
    pub to: NodeId,
}

/// Whom `question` is about.
///
/// # Errors
///
/// Those of [`can`].
pub fn asked_pair(world: &World, question: &CanQuestion) -> Result<AskedPair, Problem> {
    let from = entity(world, &question.from)?;
    let to = entity(world, &question.to)?;
    if from == to {
        return Err(Problem::new(
            ProblemCode::Usage,
            format!("{} is both ends of the question", question.from),
        )
        .why("packets of a host to itself never enter the overlay, and no rule judges them")
        .fix("name two different entities"));
    }
    Ok(AskedPair { overlay: shared_overlay(world, question, from, to)?, from, to })
}

/// Answers `question`.
///
/// # Errors
///
/// `NotFound` with "did you mean" for unknown names and overlays; `Conflict` when the two share
/// several overlays and none was named; `Usage` when both ends are the same entity.
pub fn can(world: &World, question: &CanQuestion, now: Timestamp) -> Result<CanAnswer, Problem> {
    let AskedPair { overlay, from, to } = asked_pair(world, question)?;
    let pair = Pair::new(world, overlay, from, to)
        .expect("invariant: the overlay was chosen so that both are members");
    let asked = asked_services(question, &pair)?;
    let decision = decide(world, overlay, from, to, question.service.as_ref(), now);
    let paths = path_between(world, overlay, from, to, now);
    let allowed = decision.is_allow();
    let mut why = match decision {
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
            let name = world.nodes.get(&id).map(|facts| facts.name.to_string());
            format!("{} is in quarantine", name.unwrap_or_default())
        }
        Decision::NoRule => no_rule_text(question),
    };
    if allowed && paths.is_empty() {
        why.push_str("; but nothing passes: ");
        why.push_str(&no_path_text(world, overlay, &pair, now));
    }
    let nearest = if allowed {
        Vec::new()
    } else {
        nearest(world, overlay, &pair, asked.as_deref(), decision, now)
    };
    Ok(CanAnswer {
        api_version: ApiVersion::V1,
        allowed,
        overlay: overlay_name(world, overlay),
        revision: world.revision,
        rule: decision.rule(),
        why,
        nearest,
        path: paths.first().and_then(|hops| path_names(world, hops)),
    })
}

/// What a rule or NetworkPolicy is about.
fn said_by(world: &World, id: RuleId) -> String {
    if id == RuleId::AUDIT_MODE {
        return "everything between members: the overlay is in audit mode".to_owned();
    }
    let policy = world.network_policies.get(&id);
    policy
        .map(|facts| format!("NetworkPolicy {}", facts.policy.full_name()))
        .or_else(|| world.rules.get(&id).map(ends_text))
        .unwrap_or_default()
}

fn no_rule_text(question: &CanQuestion) -> String {
    let (from, to) = (&question.from, &question.to);
    match &question.service {
        Some(service) => {
            format!("no rule lets {from} start {service} flows to {to}; default deny")
        }
        None => format!("no rule lets {from} start flows to {to}; default deny"),
    }
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
    let Some((rule, hops)) = Paths::new(world, overlay, now).asked(pair) else {
        return format!("no SaP serves the overlay {}", overlay_name(world, overlay));
    };
    match &hops {
        PathHops::Direct => {
            let mute = [pair.from.1, pair.to.1].into_iter().find(|f| f.endpoints.is_empty());
            let name = mute.map_or_else(String::new, |facts| facts.name.to_string());
            format!("{rule} asks for a direct path, and {name} has no underlay endpoint")
        }
        PathHops::Via(_) | PathHops::Elsewhere => format!(
            "{rule} asks for the path {}, of which a SaP is gone, cannot be reached, or does not \
             serve the overlay {}",
            path_text(world, &hops),
            overlay_name(world, overlay)
        ),
    }
}

/// The entity of that name.
fn entity(world: &World, name: &EntityName) -> Result<NodeId, Problem> {
    let named = |kind: NodeKind| {
        world.nodes.iter().find(|(_, f)| f.kind == kind && f.name == *name).map(|(id, _)| *id)
    };
    if let Some(id) = named(NodeKind::Entity) {
        return Ok(id);
    }
    let problem = Problem::new(ProblemCode::NotFound, format!("there is no entity {name}"));
    if named(NodeKind::Sap).is_some() {
        return Err(problem.why(format!("{name} is a SaP, and rules speak of entities")));
    }
    let known = world.nodes.values().filter(|f| f.kind == NodeKind::Entity);
    Err(hint(problem, &name.to_string(), known.map(|f| f.name.to_string()), "entity"))
}

/// Adds "did you mean", or where to look.
fn hint(problem: Problem, typed: &str, known: impl Iterator<Item = String>, noun: &str) -> Problem {
    match did_you_mean(typed, known) {
        Some(meant) => problem.fix(format!("did you mean {meant}?")),
        None => problem.fix(format!("see `ovctl {noun} list`")),
    }
}

/// The overlay that the question is about.
fn shared_overlay(
    world: &World,
    question: &CanQuestion,
    from: NodeId,
    to: NodeId,
) -> Result<OverlayId, Problem> {
    let is_shared =
        |id: OverlayId| member(world, id, from).is_some() && member(world, id, to).is_some();
    if let Some(name) = &question.overlay {
        let found = world.overlays.iter().find(|(_, facts)| facts.name == *name);
        let Some((&id, _)) = found else {
            let problem =
                Problem::new(ProblemCode::NotFound, format!("there is no overlay {name}"));
            let known = world.overlays.values().map(|facts| facts.name.to_string());
            return Err(hint(problem, name.as_str(), known, "overlay"));
        };
        if is_shared(id) {
            return Ok(id);
        }
        let outsider =
            if member(world, id, from).is_none() { &question.from } else { &question.to };
        return Err(Problem::new(
            ProblemCode::NotFound,
            format!("{outsider} is not a member of the overlay {name}"),
        )
        .fix(format!("see `ovctl entity show {outsider}`")));
    }
    let shared: Vec<OverlayId> = world.overlays.keys().copied().filter(|&o| is_shared(o)).collect();
    match shared[..] {
        [only] => Ok(only),
        [] => Err(Problem::new(
            ProblemCode::NotFound,
            format!("{} and {} share no overlay", question.from, question.to),
        )
        .why(format!(
            "{} is in {}; {} is in {}",
            question.from,
            overlays_of(world, from),
            question.to,
            overlays_of(world, to)
        ))),
        [first, ..] => {
            let names: Vec<String> =
                shared.iter().map(|&id| overlay_name(world, id).to_string()).collect();
            Err(Problem::new(
                ProblemCode::Conflict,
                format!("{} and {} share several overlays", question.from, question.to),
            )
            .why(format!("they are {}", names.join(", ")))
            .fix(format!("say which one: --overlay {}", overlay_name(world, first))))
        }
    }
}

fn overlays_of(world: &World, id: NodeId) -> String {
    let overlays = world.nodes.get(&id).into_iter().flat_map(|facts| facts.addresses.keys());
    let names: Vec<String> = overlays.map(|&id| overlay_name(world, id).to_string()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn overlay_name(world: &World, id: OverlayId) -> Name {
    world.overlays.get(&id).map(|facts| facts.name.clone()).unwrap_or_default()
}

/// What is asked about, with a named port resolved; none for "anything at all".
fn asked_services(
    question: &CanQuestion,
    pair: &Pair<'_>,
) -> Result<Option<Vec<Service>>, Problem> {
    let Some(service) = &question.service else { return Ok(None) };
    if let Some(resolved) = resolve(std::slice::from_ref(service), &pair.to.1.ports) {
        return Ok(Some(resolved));
    }
    let known: Vec<String> = pair
        .to
        .1
        .ports
        .iter()
        .flat_map(|(name, services)| {
            services.iter().map(move |service| format!("{name}={service}"))
        })
        .collect();
    Err(Problem::new(ProblemCode::NotFound, format!("{} has no port {service}", question.to))
        .why(if known.is_empty() {
            "it names no ports".to_owned()
        } else {
            format!("it names {}", known.join(", "))
        })
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
    pair: &Pair<'_>,
    asked: Option<&[Service]>,
    decision: Decision,
    now: Timestamp,
) -> Vec<NearRule> {
    let asked = asked.map_or_else(|| vec![Span::ALL], |services| spans(services, pair.is_ipv6));
    let allows = world.rules.iter().filter(|(_, rule)| {
        rule.overlay == overlay && rule.action == Action::Allow && !rule.is_audit
    });
    let mut found: Vec<(usize, NearRule)> = allows
        .filter_map(|(&id, rule)| {
            let mut differs = differences(rule, pair, &asked)?;
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
fn differences(rule: &RuleFacts, pair: &Pair<'_>, asked: &[Span]) -> Option<Vec<String>> {
    let reversed = pair.reversed();
    let (judged, end) = if pair.is_spoken_of_by(rule) {
        (pair, None)
    } else if reversed.is_spoken_of_by(rule) {
        (&reversed, Some("direction differs"))
    } else if pair.meets_target_of(rule) {
        (pair, Some("source differs"))
    } else if pair.meets_source_of(rule) {
        (pair, Some("destination differs"))
    } else {
        return None;
    };
    let mut differs: Vec<String> = end.map(str::to_owned).into_iter().collect();
    // At another destination a named port may be another one, so only its own destination tells.
    if end != Some("destination differs") && overlap(&judged.services_of(rule), asked).is_empty() {
        differs.push("port differs".to_owned());
    }
    Some(differs)
}

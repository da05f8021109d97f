//! The evaluator over scenes: rules and NetworkPolicies, members and the outside, both semantics.
//!
//! Rules are weighed by the same function as everywhere ([`weigh`]); what is added here is the
//! outside, and the two sides of NetworkPolicies:
//!
//! * `kubernetes`: a deny rule refuses; else an allow rule allows; else the source's egress side and
//!   the destination's ingress side must both let it through, and a side that no policy isolates is
//!   open.
//! * `default-deny`: a deny rule refuses; else an allow rule allows; else NetworkPolicies allow
//!   where both sides let it through and at least one of them is isolated, so that what no policy
//!   speaks of stays shut.

use super::BoundSelector;
use super::Decision;
use super::evaluate::weigh;
use super::kubernetes::{Direction, Side, side};
use super::scene::{End, Scene};
use super::select::{is_in_force, selects, selects_outside};
use super::span::{Span, overlap, spans_at, without};
use crate::api::admin::Semantics;
use crate::api::{Problem, ProblemCode};
use crate::types::{RuleId, Service};

/// The verdict on opening a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it may be opened.
    pub allowed: bool,
    /// The rule or policy that decided; none when none speaks of it.
    pub rule: Option<String>,
    /// The reason, for people.
    pub why: String,
}

/// May `from` open a connection of `service` to `to`? Without a service: anything at all?
///
/// # Errors
///
/// `Usage` when both ends are outside the overlay, for then no policy is asked.
pub fn judge(
    scene: &Scene,
    from: &End,
    to: &End,
    service: Option<&Service>,
) -> Result<Verdict, Problem> {
    if let (End::Outside(_), End::Outside(_)) = (from, to) {
        let what =
            format!("neither {} nor {} is an entity", scene.end_name(from), scene.end_name(to));
        return Err(Problem::new(ProblemCode::Usage, what)
            .why("policies speak of flows that start or end at an entity"));
    }
    let asked = match service {
        None => vec![Span::ALL],
        Some(service) => {
            spans_at(std::slice::from_ref(service), scene.is_ipv6(to), scene.ports_of(to))
        }
    };
    if asked.is_empty() {
        let why = format!("{} has no port of that name", scene.end_name(to));
        return Ok(Verdict { allowed: false, rule: None, why });
    }
    if from == to {
        let why = "packets of a host to itself never leave it".to_owned();
        return Ok(Verdict { allowed: true, rule: None, why });
    }
    let (decision, denied) = weigh_rules(scene, from, to, &asked);
    if let Decision::Allow(id) = decision {
        let label = label(scene, id);
        return Ok(Verdict { allowed: true, why: format!("{label} allows it"), rule: Some(label) });
    }
    let open = |spans: &[Span]| !without(overlap(spans, &asked), &denied).is_empty();
    let sides = Sides::new(scene, from, to);
    for (name, spans) in sides.allowed(scene.semantics()) {
        if open(&spans) {
            let why = match &name {
                Some(name) => format!("{name} lets it through"),
                None => {
                    "no NetworkPolicy isolates either end, and unspoken traffic is open".to_owned()
                }
            };
            return Ok(Verdict { allowed: true, rule: name, why });
        }
    }
    if let Decision::Deny(id) = decision {
        let label = label(scene, id);
        return Ok(Verdict {
            allowed: false,
            why: format!("{label} denies it"),
            rule: Some(label),
        });
    }
    let blocker = sides.blocker(&asked);
    let why = match &blocker {
        Some(text) => format!("{text}, and none of the policies that select it lets this through"),
        None => "no rule allows it; default deny".to_owned(),
    };
    let rule = sides.blocking_policy(&asked);
    Ok(Verdict { allowed: false, rule, why })
}

/// Everything that `from` may open to `to`.
pub(super) fn reach(scene: &Scene, from: &End, to: &End) -> Vec<Span> {
    if from == to {
        return vec![Span::ALL];
    }
    let said = rules_between(scene, from, to);
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    for (_, action, spans) in said {
        match action {
            crate::api::table::Action::Allow => allowed.extend(spans),
            crate::api::table::Action::Deny => denied.extend(spans),
        }
    }
    let sides = Sides::new(scene, from, to);
    allowed.extend(sides.allowed(scene.semantics()).into_iter().flat_map(|(_, spans)| spans));
    without(allowed, &denied)
}

fn label(scene: &Scene, id: RuleId) -> String {
    scene.origin(id).map_or_else(|| id.to_string(), |origin| origin.label.clone())
}

fn weigh_rules(scene: &Scene, from: &End, to: &End, asked: &[Span]) -> (Decision, Vec<Span>) {
    let said = rules_between(scene, from, to).into_iter();
    weigh(said.map(|(id, action, spans)| (id, action, overlap(&spans, asked))))
}

/// What each rule in force says of flows in this direction.
fn rules_between(
    scene: &Scene,
    from: &End,
    to: &End,
) -> Vec<(RuleId, crate::api::table::Action, Vec<Span>)> {
    let is_along = |one: &BoundSelector, other: &BoundSelector| {
        is_meant(scene, one, from) && is_meant(scene, other, to)
    };
    scene
        .enforced_rules()
        .filter(|(_, rule)| is_in_force(rule, scene.now()))
        .filter(|(_, rule)| {
            is_along(&rule.from, &rule.to) || (rule.both && is_along(&rule.to, &rule.from))
        })
        .map(|(id, rule)| {
            let spans = spans_at(&rule.services, scene.is_ipv6(to), scene.ports_of(to));
            (id, rule.action, spans)
        })
        .collect()
}

/// Whether a selector means this end.
pub(super) fn is_meant(scene: &Scene, selector: &BoundSelector, end: &End) -> bool {
    match end {
        End::Member(id) => scene
            .facts(*id)
            .is_some_and(|facts| selects(scene.world(), scene.overlay(), selector, *id, facts)),
        End::Outside(address) => {
            selects_outside(scene.world(), scene.overlay(), selector, *address)
        }
    }
}

/// What NetworkPolicies say of a flow.
struct Sides {
    egress: Side,
    ingress: Side,
    from: String,
    to: String,
}

impl Sides {
    fn new(scene: &Scene, from: &End, to: &End) -> Self {
        Self {
            egress: side(scene, Direction::Egress, from, to),
            ingress: side(scene, Direction::Ingress, from, to),
            from: scene.end_name(from),
            to: scene.end_name(to),
        }
    }

    /// What passes both sides, with the rule that is named for it: that of the destination's side
    /// where it has one.
    fn allowed(&self, semantics: Semantics) -> Vec<(Option<String>, Vec<Span>)> {
        match (&self.egress, &self.ingress, semantics) {
            (Side::Open, Side::Open, Semantics::Kubernetes) => vec![(None, vec![Span::ALL])],
            (Side::Open, Side::Open, Semantics::DefaultDeny) => Vec::new(),
            (Side::Isolated { allowed, .. }, Side::Open, _)
            | (Side::Open, Side::Isolated { allowed, .. }, _) => {
                allowed.iter().map(|(name, spans)| (Some(name.clone()), spans.clone())).collect()
            }
            (Side::Isolated { allowed: out, .. }, Side::Isolated { allowed: into, .. }, _) => {
                let out: Vec<Span> = out.iter().flat_map(|(_, spans)| spans.clone()).collect();
                into.iter()
                    .map(|(name, spans)| (Some(name.clone()), overlap(spans, &out)))
                    .collect()
            }
        }
    }

    /// The side that lets nothing of `asked` through, in words.
    fn blocker(&self, asked: &[Span]) -> Option<String> {
        if let Some(by) = shut(&self.egress, asked) {
            return Some(format!("{by} isolates the egress of {}", self.from));
        }
        let by = shut(&self.ingress, asked)?;
        Some(format!("{by} isolates the ingress of {}", self.to))
    }

    fn blocking_policy(&self, asked: &[Span]) -> Option<String> {
        shut(&self.egress, asked).or_else(|| shut(&self.ingress, asked)).map(str::to_owned)
    }
}

/// The policy that isolates a side which lets nothing of `asked` through.
fn shut<'a>(side: &'a Side, asked: &[Span]) -> Option<&'a str> {
    match side {
        Side::Open => None,
        Side::Isolated { by, allowed } => {
            let passes = allowed.iter().any(|(_, spans)| !overlap(spans, asked).is_empty());
            (!passes).then_some(by.as_str())
        }
    }
}

//! What the evaluator decides about two ends of a scene, in words.

use super::judge::{End, Overview, Ruling};
use super::scene::Scene;
use super::{Decision, kubernetes::Direction};
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
    judge_in(scene, &scene.overview(), from, to, service)
}

/// As [`judge`], for many questions of one scene.
pub(super) fn judge_in(
    scene: &Scene,
    overview: &Overview<'_>,
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
    let asked = overview.asked(service, to);
    if asked.is_empty() {
        let why = format!("{} has no port of that name", scene.end_name(to));
        return Ok(Verdict { allowed: false, rule: None, why });
    }
    if from == to {
        let why = "packets of a host to itself never leave it".to_owned();
        return Ok(Verdict { allowed: true, rule: None, why });
    }
    let Ruling { decision, side, item } = overview.rule_on(from, to, &asked);
    let item = side.map(Direction::field).zip(item);
    let label = |id: RuleId| scene.label(id, item);
    let why = match decision {
        Decision::Allow(id) if item.is_some() => format!("{} lets it through", label(id)),
        Decision::Allow(id) => format!("{} allows it", label(id)),
        Decision::Open => {
            "no NetworkPolicy isolates either end, and unspoken traffic is open".to_owned()
        }
        Decision::Audit(id) => format!("{} is for audit: it passes, and is recorded", label(id)),
        Decision::Deny(id) => format!("{} denies it", label(id)),
        Decision::Isolated(id) => format!(
            "{} isolates the {} of {}, and none of the policies that select it lets this through",
            label(id),
            side.map_or("", Direction::field),
            scene.end_name(if side == Some(Direction::Egress) { from } else { to })
        ),
        Decision::Quarantined(id) => {
            format!("{} is in quarantine", scene.end_name(&End::Member(id)))
        }
        Decision::NoRule => "no rule allows it; default deny".to_owned(),
    };
    Ok(Verdict { allowed: decision.is_allow(), rule: decision.rule().map(label), why })
}

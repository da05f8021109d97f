//! What no rule may be, whatever other rules there are; the same at a server and in files.

use super::{BoundSelector, RuleFacts, World};
use crate::api::table::{Action, PathHops};
use crate::api::{Problem, ProblemCode};
use crate::types::{Name, Service};

/// Most services of a rule, and SaPs of a path.
const SERVICES_MAX: usize = 64;
const HOPS_MAX: usize = 8;

/// Longest reason and longest name of a rule, in bytes.
const REASON_MAX: usize = 1000;
const NAME_MAX: usize = 100;

/// Checks all of a rule that can be checked without other rules.
///
/// # Errors
///
/// What is wrong with it.
pub fn check_form(world: &World, rule: &RuleFacts, reason: Option<&str>) -> Result<(), Problem> {
    check_sizes(rule, reason)?;
    if rule.action == Action::Deny && rule.path.is_some() {
        return Err(usage("a deny rule has no path", "it lets nothing through")
            .fix("leave the path out: --direct and --via, or `path:`"));
    }
    check_ends(rule)?;
    check_named_ports(world, rule)
}

fn usage(what: impl Into<String>, why: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::Usage, what).why(why)
}

fn check_sizes(rule: &RuleFacts, reason: Option<&str>) -> Result<(), Problem> {
    if rule.services.len() > SERVICES_MAX {
        return Err(usage("the rule has too many ports", format!("{SERVICES_MAX} are the most"))
            .fix("use ranges, or several rules"));
    }
    if reason.is_some_and(|reason| reason.len() > REASON_MAX) {
        return Err(usage("the reason is too long", format!("{REASON_MAX} bytes are the most"))
            .fix("shorten it"));
    }
    if let Some(name) = &rule.name
        && (name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control))
    {
        return Err(usage("the rule's name cannot be", "1 to 100 bytes, no control characters"));
    }
    if let Some(PathHops::Via(hops)) = &rule.path
        && hops.len() > HOPS_MAX
    {
        return Err(usage("the path is too long", format!("it has at most {HOPS_MAX} SaPs")));
    }
    Ok(())
}

fn check_ends(rule: &RuleFacts) -> Result<(), Problem> {
    let RuleFacts { from, to, .. } = rule;
    if let (BoundSelector::Cidr(_), BoundSelector::Cidr(_)) = (from, to) {
        return Err(usage(
            format!("neither {from} nor {to} is a member"),
            "rules speak of flows that start or end at a member of the overlay",
        )
        .fix("write any, or a name, at one end"));
    }
    match (from, to) {
        (BoundSelector::Node(a, name), BoundSelector::Node(b, _)) if a == b => Err(usage(
            format!("both ends of the rule are {name}"),
            "what an entity says to itself does not cross the overlay",
        )
        .fix("name two entities")),
        _ => Ok(()),
    }
}

/// Refuses a port by a name that no destination of the rule can ever have. Labels and the like may
/// select somebody later; an entity that is named has the ports that it has.
fn check_named_ports(world: &World, rule: &RuleFacts) -> Result<(), Problem> {
    let lacks = |end: &BoundSelector, service: &Service, name: &Name| {
        let BoundSelector::Node(id, _) = end else { return false };
        let ports = world.nodes.get(id).and_then(|node| node.ports.get(name));
        !ports.into_iter().flatten().any(|port| port.protocol() == service.protocol())
    };
    let to = &rule.to;
    for service in &rule.services {
        if let Service::Named(_, name) = service
            && lacks(to, service, name)
            && (!rule.both || lacks(&rule.from, service, name))
        {
            let problem =
                Problem::new(ProblemCode::NotFound, format!("{to} has no port {service}"));
            return Err(problem
                .why("an entity's named ports are those of the token that it joined with")
                .fix(format!(
                    "see them: ovctl entity show {to}; or say a number, such as tcp/443"
                )));
        }
    }
    Ok(())
}

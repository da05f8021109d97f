//! NetworkPolicies of Kubernetes into an overlay's policy, with a report of what each means here. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::files::{Maker, networks, put_networks};
use crate::api::admin::Semantics;
use crate::api::policy::ImportedPolicy;
use crate::api::{Problem, ProblemCode};
use crate::control::selection;
use crate::control::store::policies::Policy;
use crate::policy::kubernetes::{Direction, NetworkPolicy, Peer, selected};
use crate::policy::{BoundSelector, Document, World};
use crate::types::{EntityName, NodeId, OverlayId};

/// Most entities of an overlay that a note names one by one.
const NAMED_MAX: usize = 5;

/// `before` with the NetworkPolicies of `documents` in the place of those of the same name.
///
/// # Errors
///
/// `Usage` for what is no NetworkPolicy, is there twice, or has no name of its own.
pub(crate) fn imported(
    before: &Policy,
    documents: &[Document],
    maker: &mut Maker,
) -> Result<Policy, Problem> {
    let ours = documents.iter().find_map(|document| match document {
        Document::Policy(policy) => Some(policy),
        Document::Network(..) => None,
    });
    if let Some(policy) = ours {
        let what = format!("{} holds a policy of ovmesh", policy.source);
        return Err(Problem::new(ProblemCode::Usage, what)
            .why("only NetworkPolicies (networking.k8s.io/v1) are imported")
            .fix("ovctl policy apply -f FILE makes it the policy of its overlay"));
    }
    let mut after = before.clone();
    put_networks(before, &mut after, documents, maker)?;
    if networks(documents).next().is_none() {
        return Err(Problem::new(ProblemCode::Usage, "the files hold no NetworkPolicy"));
    }
    Ok(after)
}

/// What each of the imported NetworkPolicies means in this overlay. `guards` are the members whose guards hold
/// to what is said of addresses outside, by overlay.
pub(crate) fn report(
    world: &World,
    overlay: OverlayId,
    before: &Policy,
    after: &Policy,
    documents: &[Document],
    guards: &BTreeSet<(OverlayId, NodeId)>,
) -> Vec<ImportedPolicy> {
    let here = guards.iter().filter(|(of, _)| *of == overlay);
    let guards: BTreeSet<NodeId> = here.map(|(_, id)| *id).collect();
    let semantics = world.overlays.get(&overlay).map(|facts| facts.semantics).unwrap_or_default();
    let old: BTreeMap<String, &NetworkPolicy> =
        before.network_policies.values().map(|policy| (policy.full_name(), policy)).collect();
    let isolated = isolated(world, overlay, after);
    let mut policies: Vec<ImportedPolicy> = networks(documents)
        .map(|(network, _)| {
            let name = network.full_name();
            let state = match old.get(&name) {
                None => "new",
                Some(known) if *known == network => "unchanged",
                Some(_) => "replaced",
            };
            let selects = selected(world, overlay, network);
            let notes = notes(network, semantics, &selects, &isolated, &guards);
            let selects = selects.into_iter().map(|(name, _)| name).collect();
            ImportedPolicy { name, state: state.to_owned(), selects, notes }
        })
        .collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    policies
}

/// Who is isolated by some NetworkPolicy, by direction.
fn isolated(
    world: &World,
    overlay: OverlayId,
    policy: &Policy,
) -> BTreeMap<&'static str, BTreeSet<EntityName>> {
    let mut isolated: BTreeMap<&'static str, BTreeSet<EntityName>> = BTreeMap::new();
    for network in policy.network_policies.values() {
        let names = selected(world, overlay, network);
        for direction in [Direction::Ingress, Direction::Egress] {
            if network.rules(direction).is_some() {
                let all = isolated.entry(direction.field()).or_default();
                all.extend(names.iter().map(|(name, _)| name.clone()));
            }
        }
    }
    isolated
}

fn notes(
    network: &NetworkPolicy,
    semantics: Semantics,
    selects: &[(EntityName, NodeId)],
    isolated: &BTreeMap<&'static str, BTreeSet<EntityName>>,
    guards: &BTreeSet<NodeId>,
) -> Vec<String> {
    let mut notes = Vec::new();
    if selects.is_empty() {
        notes.push("selects nobody at the moment".to_owned());
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        let Some(rules) = network.rules(direction) else {
            if semantics == Semantics::DefaultDeny {
                let open = selects.iter().map(|(name, _)| name);
                let held = isolated.get(direction.field());
                let open: Vec<String> = open
                    .filter(|name| !held.is_some_and(|held| held.contains(*name)))
                    .map(EntityName::to_string)
                    .collect();
                if !open.is_empty() {
                    notes.push(format!(
                        "Kubernetes would leave {} of {} open; here only what is allowed passes",
                        direction.field(),
                        named(&open)
                    ));
                }
            }
            continue;
        };
        let Some(where_not) = unenforced(direction, selects, guards) else { continue };
        for (index, rule) in rules.iter().enumerate() {
            let place = format!("{}[{index}]", direction.field());
            if rule.peers.is_empty() {
                notes.push(format!(
                    "{place} means everybody: not enforced outside the overlay{where_not}"
                ));
            }
            for peer in &rule.peers {
                let Peer::Block(block) = peer else { continue };
                notes.push(match semantics {
                    Semantics::Kubernetes => format!(
                        "{place} {block}: enforced for members' addresses, not enforced outside the \
                         overlay{where_not}"
                    ),
                    Semantics::DefaultDeny => {
                        format!("{place} {block}: not enforced outside the overlay{where_not}")
                    }
                });
            }
        }
        if rules.is_empty() && direction == Direction::Egress {
            notes.push(format!("egress: not enforced outside the overlay{where_not}"));
        }
    }
    notes
}

/// Where what a policy says of addresses outside is not held to; none where it is, by everybody selected.
fn unenforced(
    direction: Direction,
    selects: &[(EntityName, NodeId)],
    guards: &BTreeSet<NodeId>,
) -> Option<String> {
    let open = selects.iter().filter(|(_, id)| !guards.contains(id));
    let open: Vec<String> = open.map(|(name, _)| name.to_string()).collect();
    match direction {
        Direction::Ingress => Some(String::new()),
        Direction::Egress if selects.is_empty() => Some(String::new()),
        Direction::Egress if open.is_empty() => None,
        Direction::Egress => {
            let by_whom = if open.len() == 1 { "runs" } else { "run" };
            Some(format!(": {} {by_whom} no guard with egress by rules", named(&open)))
        }
    }
}

fn named(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let mut text = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// In a default-deny overlay: what Kubernetes would have left open because no policy selects it.
pub(crate) fn left_open(world: &World, overlay: OverlayId, policy: &Policy) -> Vec<String> {
    let isolated = isolated(world, overlay, policy);
    let members = selection::selected(world, overlay, &BoundSelector::Any);
    let mut lines = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        let held = isolated.get(direction.field());
        let open: Vec<String> = members
            .iter()
            .filter_map(|id| world.nodes.get(id))
            .filter(|node| !held.is_some_and(|held| held.contains(&node.name)))
            .map(|node| node.name.to_string())
            .collect();
        if !open.is_empty() {
            lines.push(format!(
                "no policy selects the {} of {}: Kubernetes would leave it open, here it is shut",
                direction.field(),
                named(&open)
            ));
        }
    }
    lines
}

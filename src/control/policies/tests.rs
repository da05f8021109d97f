//! Random policies: what is exported and read again is the same policy.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::api::policy::PolicyFile;
use crate::api::table::PathHops;
use crate::policy::NetworkPolicy;
use crate::policy::random::{self, NOW, V4, V6};
use crate::types::Revision;

/// The policy of one overlay of a random world, as the store has it.
fn policy_of(world: &World, overlay: OverlayId) -> Policy {
    let mut policy = Policy {
        groups: world.groups.get(&overlay).cloned().unwrap_or_default(),
        services: world.services.get(&overlay).cloned().unwrap_or_default(),
        ..Policy::default()
    };
    // No change leaves a rule that speaks of a group or service which is not there.
    let is_there = |end: &BoundSelector| match end {
        BoundSelector::Group(name) => policy.groups.contains_key(name),
        BoundSelector::Service(name) => policy.services.contains_key(name),
        BoundSelector::Any
        | BoundSelector::Node(..)
        | BoundSelector::Labels(_)
        | BoundSelector::Namespace(_)
        | BoundSelector::Cidr(_) => true,
    };
    let rules = world.rules.iter().filter(|(_, facts)| facts.overlay == overlay);
    let rules = rules.filter(|(_, facts)| is_there(&facts.from) && is_there(&facts.to));
    // As little as one whose path leads over a SaP that is gone.
    let is_known = |facts: &RuleFacts| match &facts.path {
        Some(PathHops::Via(chain)) => chain.iter().all(|sap| world.nodes.contains_key(sap)),
        Some(PathHops::Direct | PathHops::Elsewhere) | None => true,
    };
    let rules = rules.filter(|(_, facts)| is_known(facts));
    policy.rules = rules
        .map(|(&id, facts)| {
            let mut facts = RuleFacts::clone(facts);
            // Nor a denial with a path.
            facts.path = facts.path.filter(|_| facts.action == Action::Allow);
            facts.services.sort();
            facts.services.dedup();
            facts.name = (id.0 % 3 == 0).then(|| format!("rule: \"{}\"", id.0));
            let stored = StoredRule {
                id,
                facts: facts.into(),
                reason: (id.0 % 2 == 0).then(|| "it's # needed".to_owned()),
                revision: Revision(1),
                created: NOW,
                created_by: "test".to_owned(),
                place: None,
            };
            (id, Arc::new(stored))
        })
        .collect();
    let mut names = BTreeSet::new();
    for (&id, facts) in world.network_policies.iter().filter(|(_, f)| f.overlay == overlay) {
        // As a manifest can say it: of ICMP and of no direction at all there is none.
        let manifest = facts.policy.manifest().to_string();
        let Ok(network) = NetworkPolicy::from_manifest("manifest", &manifest) else { continue };
        if names.insert(network.full_name()) {
            policy.network_policies.insert(id, network);
        }
    }
    policy
}

proptest! {
    #[test]
    fn what_is_exported_and_applied_again_changes_nothing(world in random::world()) {
        for overlay in [V4, V6] {
            let before = policy_of(&world, overlay);
            let text = export(&world, overlay, &before);
            let file = PolicyFile { source: "p.yaml".to_owned(), text: text.clone() };
            let documents = read(&[file], NOW).unwrap();
            let mut maker = Maker {
                actor: "another".to_owned(),
                revision: Revision(2),
                now: NOW,
                next_rule: 1_000,
                next_network: 1_000,
            };
            let after = desired(&world, overlay, &before, &documents, &mut maker);
            let after = after.map_err(|problem| TestCaseError::fail(format!("{problem}\n{text}")))?;

            prop_assert_eq!(before.changes_to(&after.policy), [], "{}", text);
            prop_assert_eq!(export(&world, overlay, &after.policy), text);
        }
    }
}

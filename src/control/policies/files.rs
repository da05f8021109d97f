//! From policy files to the policy that they ask for, and back. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::bind::{Binder, Written, path_names};
use crate::api::admin::RulePath;
use crate::api::policy::PolicyFile;
use crate::api::{Problem, ProblemCode};
use crate::control::selection;
use crate::control::store::policies::Policy;
use crate::control::store::rules::StoredRule;
use crate::policy::kubernetes::NetworkPolicy;
use crate::policy::{
    BoundSelector, Document, DocumentPath, DocumentRule, PolicyDocument, Test, World,
    read_policies, write_policy,
};
use crate::types::{Name, OverlayId, Revision, RuleId, Selector, Timestamp};

/// Most rules of an overlay, lists of ends multiplied out.
const RULES_MAX: usize = 100_000;

/// Who makes new rules, when, and which numbers they get.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    pub(crate) actor: String,
    pub(crate) revision: Revision,
    pub(crate) now: Timestamp,
    pub(crate) next_rule: u32,
    pub(crate) next_network: u32,
}

impl Maker {
    /// A rule with the next number.
    pub(crate) fn rule(
        &mut self,
        facts: crate::policy::RuleFacts,
        reason: Option<String>,
        place: Option<String>,
    ) -> StoredRule {
        let id = RuleId(self.next_rule);
        self.next_rule += 1;
        StoredRule {
            id,
            facts,
            reason,
            revision: self.revision,
            created: self.now,
            created_by: self.actor.clone(),
            place,
        }
    }

    /// The id of the next NetworkPolicy.
    pub(crate) fn network_id(&mut self) -> RuleId {
        let id = RuleId::network_policy(self.next_network);
        self.next_network += 1;
        id
    }
}

/// The policy that files ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Desired {
    pub(crate) policy: Policy,
    /// Where each rule stands: `FILE:LINE`.
    pub(crate) places: BTreeMap<RuleId, String>,
}

/// Reads files.
///
/// # Errors
///
/// `Usage`, with file, line, and the nearest name that is known.
pub(crate) fn read(files: &[PolicyFile], now: Timestamp) -> Result<Vec<Document>, Problem> {
    let mut documents = Vec::new();
    for file in files {
        documents.extend(read_policies(&file.source, &file.text, now)?);
    }
    Ok(documents)
}

/// As [`read`], for files that become the policy: an empty file is a mistake, not an empty policy.
///
/// # Errors
///
/// `Usage`, also when the files hold nothing.
pub(crate) fn read_whole(files: &[PolicyFile], now: Timestamp) -> Result<Vec<Document>, Problem> {
    let documents = read(files, now)?;
    if documents.is_empty() {
        let names: Vec<&str> = files.iter().map(|file| file.source.as_str()).collect();
        return Err(Problem::new(ProblemCode::Usage, format!("{}: no policy", names.join(", ")))
            .why("the files are empty, and applying them would remove every rule")
            .fix("if that is meant, write: rules: []"));
    }
    Ok(documents)
}

/// The overlay that files speak of.
///
/// # Errors
///
/// `Usage` when they speak of several, or of another than `named`.
pub(crate) fn overlay_named(
    documents: &[Document],
    named: Option<&Name>,
) -> Result<Option<Name>, Problem> {
    let mut meant = named.cloned();
    for policy in ours(documents) {
        let Some(overlay) = &policy.overlay else { continue };
        if let Some(other) = meant.as_ref().filter(|other| *other != overlay) {
            let what = format!("{}: the policy is one of the overlay {overlay}", policy.source);
            return Err(Problem::new(ProblemCode::Usage, what)
                .why(format!("{other} is asked for"))
                .fix("change one overlay at a time"));
        }
        meant = Some(overlay.clone());
    }
    Ok(meant)
}

fn ours(documents: &[Document]) -> impl Iterator<Item = &PolicyDocument> {
    documents.iter().filter_map(|document| match document {
        Document::Policy(policy) => Some(policy.as_ref()),
        Document::Network(..) => None,
    })
}

/// The NetworkPolicies among `documents`, and where they stand.
pub(crate) fn networks(documents: &[Document]) -> impl Iterator<Item = (&NetworkPolicy, &str)> {
    documents.iter().filter_map(|document| match document {
        Document::Network(policy, place) => Some((policy.as_ref(), place.as_str())),
        Document::Policy(_) => None,
    })
}

/// A problem of one line.
fn at(source: &str, line: u64, thing: &str, problem: Problem) -> Problem {
    let place = if line > 0 { format!("{source}:{line}") } else { source.to_owned() };
    let why = [problem.what, problem.why].into_iter().filter(|text| !text.is_empty());
    let why = why.collect::<Vec<_>>().join(": ");
    let code = match problem.code {
        ProblemCode::Conflict => ProblemCode::Conflict,
        ProblemCode::Failed
        | ProblemCode::Usage
        | ProblemCode::NotFound
        | ProblemCode::Unreachable
        | ProblemCode::Unauthorized
        | ProblemCode::Findings => ProblemCode::Usage,
    };
    Problem { code, what: format!("{place}: {thing}"), why, fix: problem.fix }
}

fn twice(source: &str, line: u64, thing: &str) -> Problem {
    at(source, line, thing, Problem::new(ProblemCode::Usage, "it is there twice"))
}

/// The policy that `documents` ask for: what is not in them goes, and what stays the same keeps its
/// id and whom it is bound to.
///
/// # Errors
///
/// What is wrong, with file and line.
pub(crate) fn desired(
    world: &World,
    overlay: OverlayId,
    before: &Policy,
    documents: &[Document],
    maker: &mut Maker,
) -> Result<Desired, Problem> {
    let binder = Binder::new(world);
    let mut found = Desired::default();
    for policy in ours(documents) {
        for (name, labels) in &policy.services {
            let labels = labels.iter().cloned().collect();
            if found.policy.services.insert(name.clone(), labels).is_some() {
                return Err(twice(&policy.source, 0, &format!("service {name}")));
            }
        }
    }
    for policy in ours(documents) {
        for (name, held, line) in &policy.groups {
            let thing = format!("group {name}");
            let old = before.groups.get(name);
            let bind = |selector| bind_member(&binder, &found.policy, old, selector);
            let bound = held.iter().map(bind).collect::<Result<BTreeSet<_>, _>>();
            let bound = bound.map_err(|problem| at(&policy.source, *line, &thing, problem))?;
            if found.policy.groups.insert(name.clone(), bound).is_some() {
                return Err(twice(&policy.source, *line, &thing));
            }
        }
    }
    let mut known: BTreeMap<Written, VecDeque<RuleId>> = BTreeMap::new();
    for (id, rule) in &before.rules {
        let written = Written::of(world, &rule.facts, rule.reason.as_deref());
        known.entry(written).or_default().push_back(*id);
    }
    for policy in ours(documents) {
        for rule in &policy.rules {
            let place = format!("{}:{}", policy.source, rule.line);
            for written in multiplied(rule) {
                let kept = known.get_mut(&written).and_then(VecDeque::pop_front);
                let stored = match kept.and_then(|id| before.rules.get(&id)) {
                    Some(kept) => kept.clone(),
                    None => {
                        let facts = binder.rule(&found.policy, overlay, &written);
                        let wrong = |problem| at(&policy.source, rule.line, "rule", problem);
                        maker.rule(
                            facts.map_err(wrong)?,
                            written.reason.clone(),
                            Some(place.clone()),
                        )
                    }
                };
                found.places.insert(stored.id, place.clone());
                found.policy.rules.insert(stored.id, stored);
                if found.policy.rules.len() > RULES_MAX {
                    let why = format!("{RULES_MAX} are the most");
                    let problem = Problem::new(ProblemCode::Usage, "too many rules").why(why);
                    return Err(at(&policy.source, rule.line, "rule", problem));
                }
            }
        }
        found.policy.tests.extend(policy.tests.iter().cloned());
    }
    // Tests that stay are those of before, wherever in which file they stand now.
    let bare = |tests: &[Test]| tests.iter().map(Test::written).collect::<Vec<_>>();
    if bare(&found.policy.tests) == bare(&before.tests) {
        found.policy.tests.clone_from(&before.tests);
    }
    check_references(&found)?;
    put_networks(before, &mut found.policy, documents, maker)?;
    Ok(found)
}

/// A rule that stays must not speak of a group or service that went.
fn check_references(found: &Desired) -> Result<(), Problem> {
    for (id, rule) in &found.policy.rules {
        for end in [&rule.facts.from, &rule.facts.to] {
            let missing = match end {
                BoundSelector::Group(name) => !found.policy.groups.contains_key(name),
                BoundSelector::Service(name) => !found.policy.services.contains_key(name),
                BoundSelector::Any
                | BoundSelector::Node(..)
                | BoundSelector::Labels(_)
                | BoundSelector::Namespace(_)
                | BoundSelector::Cidr(_) => false,
            };
            if missing {
                let place = found.places.get(id).map_or("", String::as_str);
                let why = format!("the files do not define {end}");
                return Err(Problem::new(ProblemCode::Usage, format!("{place}: rule"))
                    .why(why)
                    .fix("define it under `groups:` or `services:`"));
            }
        }
    }
    Ok(())
}

/// Puts the NetworkPolicies of `documents` into `policy`, those of a name that `before` has under its
/// id.
///
/// # Errors
///
/// `Usage` for one that is there twice, or has no name of its own.
pub(crate) fn put_networks(
    before: &Policy,
    policy: &mut Policy,
    documents: &[Document],
    maker: &mut Maker,
) -> Result<(), Problem> {
    let mut seen = BTreeMap::new();
    for (network, place) in networks(documents) {
        if let Some(first) = seen.insert(network.full_name(), place) {
            return Err(crate::policy::twice(network, place, first));
        }
        put_network(before, policy, (network, place), maker)?;
    }
    Ok(())
}

fn put_network(
    before: &Policy,
    policy: &mut Policy,
    (network, place): (&NetworkPolicy, &str),
    maker: &mut Maker,
) -> Result<(), Problem> {
    if network.name.ends_with('*') {
        let what = format!("{place}: NetworkPolicy {} has no name of its own", network.full_name());
        return Err(Problem::new(ProblemCode::Usage, what)
            .why("Kubernetes would make one up from generateName, and no later file could mean it")
            .fix("give it metadata.name"));
    }
    let name = network.full_name();
    let known = before.network_policies.iter().find(|(_, known)| known.full_name() == name);
    let id = known.map_or_else(|| maker.network_id(), |(id, _)| *id);
    policy.network_policies.insert(id, network.clone());
    Ok(())
}

/// Binds what a group holds; a name that it held before stays bound as it was.
pub(crate) fn bind_member(
    binder: &Binder<'_>,
    policy: &Policy,
    old: Option<&BTreeSet<BoundSelector>>,
    selector: &Selector,
) -> Result<BoundSelector, Problem> {
    let is_same = |held: &&BoundSelector| selection::as_written(held) == *selector;
    let kept = old.and_then(|held| held.iter().find(is_same));
    kept.map_or_else(|| binder.end(policy, selector), |kept| Ok(kept.clone()))
}

/// One rule for each pair of ends.
fn multiplied(rule: &DocumentRule) -> impl Iterator<Item = Written> + '_ {
    let services: BTreeSet<_> = rule.ports.iter().cloned().collect();
    let services: Vec<_> = services.into_iter().collect();
    let path = rule.path.as_ref().map(|path| match path {
        DocumentPath::Direct => RulePath::Direct,
        DocumentPath::Via(saps) => RulePath::Via(saps.clone()),
    });
    let ends = rule.from.iter().flat_map(|from| rule.to.iter().map(move |to| (from, to)));
    ends.map(move |(from, to)| Written {
        name: rule.name.clone(),
        action: rule.action,
        from: from.clone(),
        to: to.clone(),
        services: services.clone(),
        both: rule.both,
        path: path.clone(),
        not_after: rule.not_after,
        audit: rule.audit,
        reason: rule.reason.clone(),
    })
}

/// The file that says `policy`.
pub(crate) fn export(world: &World, overlay: OverlayId, policy: &Policy) -> String {
    let written = |held: &BTreeSet<BoundSelector>| held.iter().map(selection::as_written).collect();
    let document = PolicyDocument {
        source: String::new(),
        overlay: Some(selection::overlay_name(world, overlay)),
        groups: policy.groups.iter().map(|(name, held)| (name.clone(), written(held), 0)).collect(),
        services: policy
            .services
            .iter()
            .map(|(name, labels)| (name.clone(), labels.iter().cloned().collect()))
            .collect(),
        rules: policy.rules.values().map(|rule| document_rule(world, rule)).collect(),
        tests: policy.tests.clone(),
    };
    let mut networks: Vec<NetworkPolicy> = policy.network_policies.values().cloned().collect();
    networks.sort_by_key(NetworkPolicy::full_name);
    write_policy(&document, &networks)
}

fn document_rule(world: &World, rule: &StoredRule) -> DocumentRule {
    let facts = &rule.facts;
    let path = facts.path.as_ref().and_then(|path| path_names(world, path));
    DocumentRule {
        line: 0,
        name: facts.name.clone(),
        action: facts.action,
        from: vec![selection::as_written(&facts.from)],
        to: vec![selection::as_written(&facts.to)],
        ports: facts.services.clone(),
        both: facts.both,
        path: path.map(|path| match path {
            RulePath::Direct => DocumentPath::Direct,
            RulePath::Via(saps) => DocumentPath::Via(saps),
        }),
        not_after: facts.not_after,
        audit: facts.is_audit,
        reason: rule.reason.clone(),
    }
}

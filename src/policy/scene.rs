//! An inventory and the policies about it, as the evaluator wants them: names bound to ids, paths
//! checked, nothing left to look up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::document::{Document, DocumentPath, DocumentRule, PolicyDocument};
use super::inventory::Inventory;
use super::judge::{End, Overview};
use super::kubernetes::NetworkPolicy;
use super::select::{carries, is_member};
use super::tree::{At, shown};
use super::{
    BoundSelector, Drain, Names, NetworkPolicyFacts, NodeFacts, OverlayFacts, RuleFacts, World,
    check_form, check_rule, did_you_mean,
};
use crate::api::admin::Semantics;
use crate::api::table::PathHops;
use crate::api::{Problem, ProblemCode};
use crate::types::{
    EntityName, Name, NodeId, NodeKind, OverlayId, Prefix, RuleId, Selector, Timestamp,
};

/// The only overlay of a scene that is made of files.
const OVERLAY: OverlayId = OverlayId(1);

/// The most rules that one scene holds, after lists of ends are multiplied out.
const RULES_MAX: usize = 200_000;

/// An inventory with policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    world: World,
    overlay: OverlayId,
    ids: BTreeMap<EntityName, NodeId>,
    origins: BTreeMap<RuleId, RuleOrigin>,
    now: Timestamp,
}

/// Where a rule comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleOrigin {
    /// What results call it: its name in the file, else file and line.
    pub label: String,
    /// `FILE:LINE`.
    pub place: String,
}

impl Scene {
    /// Puts policies beside an inventory; those in the inventory's own file come first.
    ///
    /// # Errors
    ///
    /// `Usage` for what does not fit: an unknown name or group, with the nearest one; a path with a
    /// cycle, or two rules that disagree about one; the same group or NetworkPolicy twice.
    pub fn new(
        inventory: &Inventory,
        policies: &[Document],
        semantics: Option<Semantics>,
        now: Timestamp,
    ) -> Result<Self, Problem> {
        let semantics = semantics.or(inventory.semantics).unwrap_or_default();
        let mut scene = Self::without_policies(inventory, semantics, now);
        let all: Vec<&Document> = inventory.policies.iter().chain(policies).collect();
        let ours: Vec<&PolicyDocument> = all
            .iter()
            .filter_map(|document| match document {
                Document::Policy(policy) => Some(policy.as_ref()),
                Document::Network(..) => None,
            })
            .collect();
        scene.check_overlays(&ours)?;
        for policy in &ours {
            scene.add_services(policy)?;
        }
        for policy in &ours {
            scene.add_groups(policy)?;
        }
        for policy in &ours {
            for rule in &policy.rules {
                scene.add_rule(&policy.source, rule)?;
            }
        }
        let mut seen = BTreeMap::new();
        for document in &all {
            let Document::Network(policy, place) = document else { continue };
            if !policy.name.ends_with('*')
                && let Some(first) = seen.insert(policy.full_name(), place)
            {
                return Err(twice(policy, place, first));
            }
            let number = u32::try_from(scene.world.network_policies.len() + 1).unwrap_or(u32::MAX);
            let facts = NetworkPolicyFacts { overlay: OVERLAY, policy: policy.as_ref().clone() };
            scene.world.network_policies.insert(RuleId::network_policy(number), facts);
        }
        Ok(scene)
    }

    /// The scene of one overlay of a world: what its policy says at the moment.
    #[must_use]
    pub fn of(world: &World, overlay: OverlayId, now: Timestamp) -> Self {
        let members = || world.nodes.iter().filter(|(_, facts)| is_member(facts, overlay));
        let in_overlay = world.rules.iter().filter(|(_, rule)| rule.overlay == overlay);
        let origin = |(id, rule): (&RuleId, &RuleFacts)| {
            let label = match &rule.name {
                Some(name) => format!("{id} {}", shown(name)),
                None => id.to_string(),
            };
            (*id, RuleOrigin { label, place: id.to_string() })
        };
        Self {
            overlay,
            ids: members().map(|(id, facts)| (facts.name.clone(), *id)).collect(),
            origins: in_overlay.map(origin).collect(),
            now,
            world: world.clone(),
        }
    }

    /// The same with rules called by where they stand in files.
    #[must_use]
    pub fn with_places(mut self, places: &BTreeMap<RuleId, String>) -> Self {
        for (id, place) in places {
            if let (Some(origin), Some(rule)) = (self.origins.get_mut(id), self.world.rules.get(id))
            {
                origin.place.clone_from(place);
                origin.label = match &rule.name {
                    Some(name) => shown(name),
                    None => format!("{place} {}", super::rule_text(rule)),
                };
            }
        }
        self
    }

    fn without_policies(inventory: &Inventory, semantics: Semantics, now: Timestamp) -> Self {
        let mut world = World::default();
        let everything = Prefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let overlay = OverlayFacts {
            name: Name::default(),
            cidr: everything.unwrap_or_default(),
            semantics,
            silent: false,
            is_audit: false,
        };
        world.overlays.insert(OVERLAY, overlay);
        let mut ids = BTreeMap::new();
        for (id, entity) in (1..).map(NodeId).zip(&inventory.entities) {
            let address = entity.address.unwrap_or(NOWHERE);
            let facts = NodeFacts {
                labels: entity.labels.clone(),
                ports: entity.ports.clone(),
                addresses: BTreeMap::from([(OVERLAY, address)]),
                ..node(NodeKind::Entity, entity.name.clone())
            };
            world.nodes.insert(id, facts);
            ids.insert(entity.name.clone(), id);
        }
        world.namespaces.clone_from(&inventory.namespaces);
        Self { world, overlay: OVERLAY, ids, origins: BTreeMap::new(), now }
    }

    /// A scene has one overlay, so all files must mean the same.
    fn check_overlays(&mut self, policies: &[&PolicyDocument]) -> Result<(), Problem> {
        let mut named =
            policies.iter().filter_map(|policy| Some((policy.overlay.as_ref()?, policy)));
        let Some((overlay, _)) = named.next() else { return Ok(()) };
        if let Some((other, policy)) = named.find(|(other, _)| *other != overlay) {
            let what = format!("{}: overlay {other}", policy.source);
            return Err(Problem::new(ProblemCode::Usage, what)
                .why(format!("another file speaks of the overlay {overlay}"))
                .fix("ask about one overlay at a time"));
        }
        if let Some(facts) = self.world.overlays.get_mut(&OVERLAY) {
            facts.name = overlay.clone();
        }
        Ok(())
    }

    fn add_services(&mut self, policy: &PolicyDocument) -> Result<(), Problem> {
        for (name, labels) in &policy.services {
            let labels = labels.iter().cloned().collect();
            if self
                .world
                .services
                .entry(OVERLAY)
                .or_default()
                .insert(name.clone(), labels)
                .is_some()
            {
                let what = format!("{}: service {name}", policy.source);
                return Err(Problem::new(ProblemCode::Usage, what).why("is there twice"));
            }
        }
        Ok(())
    }

    fn add_groups(&mut self, policy: &PolicyDocument) -> Result<(), Problem> {
        for (name, selectors, line) in &policy.groups {
            let at = At { source: &policy.source, thing: "" };
            let wrong = |why: Problem| Problem {
                what: at.wrong(*line, &format!("group {name}"), "").what,
                ..why
            };
            let bound =
                selectors.iter().map(|selector| BoundSelector::bind(selector, self).map_err(wrong));
            let bound = bound.collect::<Result<BTreeSet<_>, _>>()?;
            if self.world.groups.entry(OVERLAY).or_default().insert(name.clone(), bound).is_some() {
                return Err(at.wrong(*line, &format!("group {name}"), "is there twice"));
            }
        }
        Ok(())
    }

    fn add_rule(&mut self, source: &str, rule: &DocumentRule) -> Result<(), Problem> {
        let at = At { source, thing: "" };
        let wrong = |problem: Problem| {
            let why = [problem.what, problem.why].into_iter().filter(|text| !text.is_empty());
            let why = why.collect::<Vec<_>>().join(": ");
            Problem { fix: problem.fix, ..at.wrong(rule.line, "rule", why) }
        };
        let bind = |ends: &[Selector]| {
            ends.iter()
                .map(|end| BoundSelector::bind(end, self).map_err(wrong))
                .collect::<Result<Vec<_>, _>>()
        };
        let (from, to) = (bind(&rule.from)?, bind(&rule.to)?);
        let path = match &rule.path {
            None => None,
            Some(DocumentPath::Direct) => Some(PathHops::Direct),
            Some(DocumentPath::Via(saps)) => {
                Some(PathHops::Via(saps.iter().map(|sap| self.sap(sap)).collect()))
            }
        };
        for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (from, to))) {
            if self.origins.len() >= RULES_MAX {
                return Err(at.wrong(rule.line, "rule", format!("more than {RULES_MAX} rules")));
            }
            let facts = RuleFacts {
                overlay: OVERLAY,
                action: rule.action,
                from: from.clone(),
                to: to.clone(),
                services: rule.ports.clone(),
                both: rule.both,
                path: path.clone(),
                not_after: rule.not_after,
                is_audit: rule.audit,
                name: rule.name.clone(),
            };
            check_form(&self.world, &facts, rule.reason.as_deref()).map_err(wrong)?;
            check_rule(&self.world, &facts, self.now)
                .map_err(|conflict| at.wrong(rule.line, "rule", self.conflict_text(&conflict)))?;
            let number = u32::try_from(self.origins.len() + 1).unwrap_or(u32::MAX);
            let place = format!("{source}:{}", rule.line);
            let label = match &rule.name {
                Some(name) => shown(name),
                None => format!("{place} {}", super::rule_text(&facts)),
            };
            self.origins.insert(RuleId(number), RuleOrigin { label, place });
            self.world.rules.insert(RuleId(number), facts);
        }
        Ok(())
    }

    /// The conflict, with places instead of ids that nobody knows.
    fn conflict_text(&self, conflict: &super::RuleConflict) -> String {
        match conflict {
            super::RuleConflict::Path { other, pair, path } => {
                let place = self.origins.get(other).map_or("", |origin| origin.place.as_str());
                format!("the rule at {place} already gives {pair} the path {path}")
            }
            super::RuleConflict::NoOverlay { .. }
            | super::RuleConflict::NoHops
            | super::RuleConflict::Cycle { .. }
            | super::RuleConflict::NoSap { .. }
            | super::RuleConflict::NotServed { .. }
            | super::RuleConflict::NoEndpoint { .. } => conflict.to_string(),
        }
    }

    /// The SaP of that name, made when it is new: an inventory lists entities alone.
    fn sap(&mut self, name: &Name) -> NodeId {
        let full = EntityName { namespace: Name::default(), name: name.clone() };
        let known = self
            .world
            .nodes
            .iter()
            .find(|(_, facts)| facts.kind == NodeKind::Sap && facts.name == full);
        if let Some((id, _)) = known {
            return *id;
        }
        let id = NodeId(self.world.nodes.keys().next_back().map_or(1, |id| id.0 + 1));
        let facts = NodeFacts { serves: BTreeSet::from([OVERLAY]), ..node(NodeKind::Sap, full) };
        self.world.nodes.insert(id, facts);
        id
    }

    /// The end that a text means: `namespace/name`, `name` in `default`, or an address with or
    /// without `ip:`. The address of a member means the member.
    ///
    /// # Errors
    ///
    /// `Usage`, with the nearest name.
    pub fn end(&self, text: &str) -> Result<End, Problem> {
        let wrong = |why: String| {
            Problem::new(ProblemCode::Usage, format!("`{}` is nobody", shown(text))).why(why)
        };
        let address = match text.strip_prefix("ip:") {
            Some(rest) => Some(rest.parse::<IpAddr>().map_err(|error| wrong(error.to_string()))?),
            None => text.parse::<IpAddr>().ok(),
        };
        if let Some(address) = address {
            let holder = self.members().find(|(_, facts)| {
                facts.addresses.get(&self.overlay) == Some(&address) && address != NOWHERE
            });
            return Ok(holder.map_or(End::Outside(address), |(id, _)| End::Member(id)));
        }
        let name: EntityName =
            text.parse().map_err(|error: crate::types::ParseNameError| wrong(error.to_string()))?;
        let found = self.entity(&name).map_err(|problem| Problem {
            what: format!("`{}` is nobody", shown(text)),
            ..problem
        })?;
        Ok(End::Member(found))
    }

    /// The members in the order of the inventory.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &NodeFacts)> {
        let nodes = self.world.nodes.iter().map(|(id, facts)| (*id, facts));
        nodes.filter(|(_, facts)| is_member(facts, self.overlay))
    }

    /// What unspoken traffic means.
    #[must_use]
    pub fn semantics(&self) -> Semantics {
        self.world.overlays.get(&self.overlay).map(|facts| facts.semantics).unwrap_or_default()
    }

    /// The NetworkPolicies.
    pub fn network_policies(&self) -> impl Iterator<Item = (RuleId, &NetworkPolicy)> {
        let all = self.world.network_policies.iter();
        all.filter(|(_, facts)| facts.overlay == self.overlay)
            .map(|(id, facts)| (*id, &facts.policy))
    }

    /// The world that the scene is about, for tests that enforce it.
    #[cfg(test)]
    pub(crate) fn world(&self) -> (&World, OverlayId) {
        (&self.world, self.overlay)
    }

    /// Ready for many questions.
    pub(super) fn overview(&self) -> Overview<'_> {
        Overview::new(&self.world, self.overlay, self.now)
    }

    /// What results call a rule, or the item of a NetworkPolicy.
    pub(super) fn label(&self, id: RuleId, item: Option<(&str, usize)>) -> String {
        if let Some(facts) = self.world.network_policies.get(&id) {
            let name = format!("NetworkPolicy {}", facts.policy.full_name());
            return item.map_or(name.clone(), |(field, at)| format!("{name} {field}[{at}]"));
        }
        self.origin(id).map_or_else(|| id.to_string(), |origin| origin.label.clone())
    }

    /// Where a rule comes from.
    #[must_use]
    pub fn origin(&self, rule: RuleId) -> Option<&RuleOrigin> {
        self.origins.get(&rule)
    }

    /// How people call an end.
    #[must_use]
    pub fn end_name(&self, end: &End) -> String {
        match end {
            End::Member(id) => {
                self.facts(*id).map(|facts| full_name(&facts.name)).unwrap_or_default()
            }
            End::Outside(address) => address.to_string(),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// The rules, expired or not.
    pub(super) fn rules(&self) -> impl Iterator<Item = (RuleId, &RuleFacts)> {
        let rules = self.world.rules.iter().map(|(id, rule)| (*id, rule));
        rules.filter(|(_, rule)| rule.overlay == self.overlay)
    }

    /// Those that are not for audit alone.
    pub(super) fn enforced_rules(&self) -> impl Iterator<Item = (RuleId, &RuleFacts)> {
        self.rules().filter(|(_, rule)| !rule.is_audit)
    }

    pub(super) fn facts(&self, id: NodeId) -> Option<&NodeFacts> {
        self.world.nodes.get(&id)
    }

    pub(super) fn overlay_name(&self) -> Name {
        self.world.overlays.get(&self.overlay).map(|facts| facts.name.clone()).unwrap_or_default()
    }

    /// The SaPs that serve the overlay.
    pub(super) fn saps(&self) -> impl Iterator<Item = NodeId> {
        let ids = self.world.nodes.keys().copied();
        ids.filter(|id| carries(&self.world, *id, self.overlay))
    }

    /// The groups, with what they hold.
    pub(super) fn groups(&self) -> impl Iterator<Item = (&Name, &BTreeSet<BoundSelector>)> {
        self.world.groups.get(&self.overlay).into_iter().flatten()
    }

    /// What a group holds but groups.
    pub(super) fn held_by(&self, group: &Name) -> impl Iterator<Item = &BoundSelector> {
        let held = self.world.group(self.overlay, group);
        held.filter(|held| !matches!(held, BoundSelector::Group(_)))
    }
}

impl Names for Scene {
    fn entity(&self, name: &EntityName) -> Result<NodeId, Problem> {
        self.ids.get(name).copied().ok_or_else(|| {
            let why = format!("there is no entity {name} in the inventory");
            let problem = Problem::new(ProblemCode::Usage, "").why(why);
            let known = self.ids.keys().map(EntityName::to_string);
            match did_you_mean(&name.to_string(), known) {
                Some(meant) => problem.fix(format!("did you mean {meant}?")),
                None => problem,
            }
        })
    }

    fn group(&self, name: &Name) -> Result<(), Problem> {
        known("group", name, self.world.groups.get(&OVERLAY))
    }

    fn service(&self, name: &Name) -> Result<(), Problem> {
        known("service", name, self.world.services.get(&OVERLAY))
    }
}

/// A NetworkPolicy that is there already.
#[must_use]
pub fn twice(policy: &NetworkPolicy, place: &str, first: &str) -> Problem {
    let name = policy.full_name();
    Problem::new(ProblemCode::Usage, format!("{place}: NetworkPolicy {name} is there twice"))
        .why(format!(
            "the first one is at {first}; the second would replace it in Kubernetes, and it is not \
             clear which is meant"
        ))
        .fix("leave one of the two out")
}

fn known<T>(noun: &str, name: &Name, all: Option<&BTreeMap<Name, T>>) -> Result<(), Problem> {
    let names = || all.into_iter().flat_map(BTreeMap::keys);
    if names().any(|known| known == name) { Ok(()) } else { Err(unknown(noun, name, names())) }
}

fn unknown<'a>(noun: &str, name: &Name, known: impl Iterator<Item = &'a Name>) -> Problem {
    let problem = Problem::new(ProblemCode::Usage, "").why(format!("there is no {noun} {name}"));
    match did_you_mean(name.as_str(), known.map(Name::as_str)) {
        Some(meant) => problem.fix(format!("did you mean {noun}:{meant}?")),
        None => problem.fix(format!("define it under `{noun}s:`")),
    }
}

/// The address of a member that the inventory gives none. No test can ask for it.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A node that can be reached, with nothing else known of it.
fn node(kind: NodeKind, name: EntityName) -> NodeFacts {
    NodeFacts {
        kind,
        name,
        labels: BTreeSet::new(),
        ports: BTreeMap::new(),
        endpoints: vec![SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 6080)],
        addresses: BTreeMap::new(),
        serves: BTreeSet::new(),
        is_quarantined: false,
        round_trips: BTreeMap::new(),
        drain: Drain::No,
    }
}

/// `namespace/name`, also for the namespace `default`.
pub(super) fn full_name(name: &EntityName) -> String {
    format!("{}/{}", name.namespace, name.name)
}

//! What the tables of one overlay have in common, worked out once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::evaluate::{PathSource, default_saps, is_walkable};
use super::judge::tier;
use super::kubernetes::Direction;
use super::outside::{self, OutsideWay};
use super::prefer::Preference;
use super::roster::Roster;
use super::select::{is_in_force, is_member, member};
use super::set::Set;
use super::span::resolve;
use super::{BoundSelector, Drain, ForkJoin, NodeFacts, OverlayFacts, World};
use crate::api::Shared;
use crate::api::admin::Semantics;
use crate::api::table::{MemberRow, PathHops};
use crate::types::{Name, NodeId, OverlayId, RuleId, Service, Tier, Timestamp};

/// One overlay's members and rules in force, with selectors turned into sets.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) id: OverlayId,
    pub(super) facts: OverlayFacts,
    /// All members but those in quarantine, whom nothing speaks of.
    pub(super) members: Set,
    /// All members, those in quarantine too, and what tables say of each.
    everybody: Set,
    listed: Vec<Listed>,
    /// Whom NetworkPolicies isolate in the flows they start, and by which first policy.
    pub(super) isolated_out: Isolated,
    /// Whom NetworkPolicies isolate in the flows that others start to them.
    pub(super) isolated_in: Isolated,
    /// The SaPs of every pair without a path of its own, by id.
    pub(super) default_saps: Vec<NodeId>,
    /// Those of them to which nothing is sent any more.
    pub(super) empty_saps: Vec<NodeId>,
    /// Which of them a pair prefers.
    pub(super) preference: Preference,
    /// Each direction of each rule, by rule id, and each item of each NetworkPolicy.
    pub(super) ways: Vec<Way>,
    /// What members may open to addresses outside, by rule id.
    pub(super) outside: Vec<OutsideWay>,
    /// The instances of each service.
    pub(super) services: BTreeMap<Name, Set>,
    /// What was set for single pairs, then the rules that ask for a path, by rule id: of two that speak of
    /// a pair the first one counts.
    pub(super) paths: Vec<Claim>,
    /// The ways that start at a member, as indexes into `ways`.
    ways_from: Index,
    /// The ways that end at a member.
    ways_to: Index,
    /// The denials of all services that start at a member.
    denials_from: Index,
    /// The denials of all services that end at a member.
    denials_to: Index,
    /// The claims about a member's pairs, as indexes into `paths`.
    paths_of: Index,
    /// What a member may open to addresses outside, as indexes into `outside`.
    outside_from: Index,
}

/// Members that are isolated in one direction.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Isolated {
    pub(super) all: Set,
    by: BTreeMap<NodeId, RuleId>,
}

impl Isolated {
    /// The first policy that isolates the member.
    pub(super) fn by(&self, id: NodeId) -> Option<RuleId> {
        self.by.get(&id).copied()
    }

    fn add(&mut self, policy: RuleId, selected: &Set) {
        for &id in selected {
            self.by.entry(id).or_insert(policy);
        }
        self.all = self.all.union(selected);
    }
}

/// What tables say of a member, as long as its facts are these.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    facts: Arc<NodeFacts>,
    /// Without its endpoints, and with them.
    rows: [Shared<MemberRow>; 2],
}

impl Listed {
    fn id(&self) -> &NodeId {
        &self.rows[0].id
    }

    /// Its row in a table that tells the endpoints of those in `reachable`.
    pub(super) fn row(&self, reachable: &Set) -> Shared<MemberRow> {
        let [plain, located] = &self.rows;
        if reachable.contains(&plain.id) { located.clone() } else { plain.clone() }
    }
}

/// One direction of a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) rule: RuleId,
    pub(super) tier: Tier,
    pub(super) not_after: Option<Timestamp>,
    pub(super) from: Set,
    /// The destinations by what the rule's services are there; named ports make several groups.
    pub(super) to: Vec<(Vec<Service>, Set)>,
    /// All destinations.
    pub(super) to_all: Set,
}

impl Way {
    /// Whether it lets nothing open between its ends as long as `allow` is in force.
    pub(super) fn shadows(&self, allow: &Self) -> bool {
        // Nodes end rules by themselves. A denial that ends first would leave them an allowed pair
        // without keys, so it shadows nothing.
        let outlives = match (self.not_after, allow.not_after) {
            (None, _) => true,
            (Some(deny), Some(allow)) => allow <= deny,
            (Some(_), None) => false,
        };
        self.tier == Tier::Deny && self.is_whole() && outlives
    }

    /// Whether it lets nothing open between its ends, for good.
    pub(super) fn shadows_always(&self) -> bool {
        self.tier == Tier::Deny && self.is_whole() && self.not_after.is_none()
    }

    /// Whether both say the same of whoever is at their ends.
    pub(super) fn differs_in_ends_alone(&self, other: &Self) -> bool {
        (self.rule, self.tier, self.not_after) == (other.rule, other.tier, other.not_after)
    }

    /// Whether it speaks of all services.
    fn is_whole(&self) -> bool {
        self.to.iter().all(|(services, _)| services.is_empty())
    }
}

/// The path that is asked for the pairs between two sets, in either direction.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) source: PathSource,
    pub(super) from: Set,
    pub(super) to: Set,
    pub(super) hops: PathHops,
    /// Whether packets can take it; always true of a direct path, whose ends are looked at by pair.
    pub(super) is_walkable: bool,
}

impl Plan {
    /// Works out the plan of `overlay`, which is in the world. What `older` has of members that are as they
    /// were is shared with it.
    pub(super) fn new(
        world: &World,
        overlay: OverlayId,
        now: Timestamp,
        older: Option<&Self>,
        fork: &impl ForkJoin,
    ) -> Self {
        let default_saps = default_saps(world, overlay);
        let listed_before = older.map_or(&[][..], |older| &older.listed);
        let ((preference, listed), plan) = fork.join(
            || {
                let listed = listed(world, overlay, listed_before);
                let free = listed.iter().filter(|member| !member.facts.is_quarantined);
                let preference = Preference::new(
                    world,
                    &default_saps,
                    free.map(|member| (*member.id(), &*member.facts)),
                );
                (preference, listed)
            },
            || Self::of_rules(world, &Roster::new(world, overlay), &default_saps, now, fork),
        );
        let everybody = listed.iter().map(Listed::id).copied().collect();
        Self { preference, everybody, listed, ..plan }
    }

    /// All of it but the preference of SaPs and the rows of members.
    fn of_rules(
        world: &World,
        roster: &Roster<'_>,
        default_saps: &[NodeId],
        now: Timestamp,
        fork: &impl ForkJoin,
    ) -> Self {
        let overlay = roster.overlay();
        let is_empty =
            |sap: &&NodeId| world.nodes.get(*sap).is_some_and(|facts| facts.drain == Drain::Empty);
        let mut plan = Self {
            id: overlay,
            facts: world
                .overlays
                .get(&overlay)
                .expect("invariant: only known overlays are planned")
                .clone(),
            members: roster.members().clone(),
            everybody: Set::default(),
            listed: Vec::new(),
            isolated_out: Isolated::default(),
            isolated_in: Isolated::default(),
            empty_saps: default_saps.iter().filter(is_empty).copied().collect(),
            preference: Preference::default(),
            default_saps: default_saps.to_vec(),
            ways: Vec::new(),
            outside: outside::ways(world, roster, overlay, now),
            services: roster.services(),
            paths: Vec::new(),
            ways_from: Index::default(),
            ways_to: Index::default(),
            denials_from: Index::default(),
            denials_to: Index::default(),
            paths_of: Index::default(),
            outside_from: Index::default(),
        };
        if plan.facts.is_audit {
            let everybody = plan.members.clone();
            plan.add_way(RuleId::AUDIT_MODE, Tier::AuditAllow, None, &everybody, {
                vec![(Vec::new(), everybody.clone())]
            });
        }
        let first = (overlay, NodeId(0), NodeId(0));
        let set = world.paths.range(first..).take_while(|((at, ..), _)| *at == overlay);
        for (&(_, low, high), hops) in set {
            plan.claim(world, PathSource::Set, (&Set::of(low), &Set::of(high)), hops);
        }
        let mut known: HashMap<&BoundSelector, Set> = HashMap::new();
        let mut meant_by =
            |selector| known.entry(selector).or_insert_with(|| roster.meant_by(selector)).clone();
        let rules = world.rules.iter().filter(|(_, r)| r.overlay == overlay && is_in_force(r, now));
        for (&id, rule) in rules {
            let (from, to) = (&meant_by(&rule.from), &meant_by(&rule.to));
            let mut directions = vec![(from, to)];
            if rule.both && from != to {
                directions.push((to, from));
            }
            for (from, to) in directions {
                let groups = by_services(world, overlay, &rule.services, to);
                let tier = tier(rule, plan.facts.is_audit);
                plan.add_way(id, tier, rule.not_after, from, groups);
            }
            if let Some(hops) = &rule.path {
                plan.claim(world, PathSource::Rule(id), (from, to), hops);
            }
        }
        plan.add_network_policies(world, roster);
        plan.index(fork);
        plan
    }

    /// All members, also those in quarantine.
    pub(super) fn everybody(&self) -> &Set {
        &self.everybody
    }

    /// What tables say of these members.
    pub(super) fn members_of(&self, members: &Set) -> impl Iterator<Item = &Listed> {
        let places = members.positions_in(&self.everybody);
        places.into_iter().filter_map(|at| self.listed.get(at as usize))
    }

    /// Whether a flow passes that nothing speaks of.
    pub(super) fn unspoken_passes(&self) -> bool {
        self.facts.semantics == Semantics::Kubernetes
    }

    fn claim(
        &mut self,
        world: &World,
        source: PathSource,
        (from, to): (&Set, &Set),
        hops: &PathHops,
    ) {
        self.paths.push(Claim {
            source,
            from: from.clone(),
            to: to.clone(),
            hops: hops.clone(),
            is_walkable: match hops {
                PathHops::Direct => true,
                PathHops::Via(chain) => is_walkable(world, self.id, chain),
                PathHops::Elsewhere => false,
            },
        });
    }

    fn add_way(
        &mut self,
        rule: RuleId,
        tier: Tier,
        not_after: Option<Timestamp>,
        from: &Set,
        to: Vec<(Vec<Service>, Set)>,
    ) {
        let to_all = match to.as_slice() {
            [(_, only)] => only.clone(),
            several => several.iter().flat_map(|(_, group)| group).copied().collect(),
        };
        self.ways.push(Way { rule, tier, not_after, from: from.clone(), to, to_all });
    }

    /// Each item becomes one way of its side: what passes both sides is for the matcher to find, so that
    /// egress and ingress are never multiplied out.
    fn add_network_policies(&mut self, world: &World, roster: &Roster<'_>) {
        let overlay = self.id;
        for (&id, facts) in &world.network_policies {
            if facts.overlay != overlay {
                continue;
            }
            let policy = &facts.policy;
            let selected = roster.where_facts(|facts| policy.selects(facts));
            for direction in [Direction::Egress, Direction::Ingress] {
                let Some(items) = policy.rules(direction) else { continue };
                match direction {
                    Direction::Egress => self.isolated_out.add(id, &selected),
                    Direction::Ingress => self.isolated_in.add(id, &selected),
                }
                for item in items {
                    let is_peer = |facts: &NodeFacts| {
                        item.peers.is_empty()
                            || item
                                .peers
                                .iter()
                                .any(|peer| policy.means(world, overlay, peer, facts))
                    };
                    let peers = roster.where_facts(is_peer);
                    let (tier, from, to) = match direction {
                        Direction::Egress => (Tier::Egress, &selected, &peers),
                        Direction::Ingress => (Tier::Ingress, &peers, &selected),
                    };
                    let groups = by_services(world, overlay, &item.ports, to);
                    self.add_way(id, tier, None, from, groups);
                }
            }
        }
    }

    /// The ways that start at the member, in their order.
    pub(super) fn leaving(&self, id: NodeId) -> Vec<&Way> {
        self.ways_from.of(id).into_iter().map(|at| &self.ways[at]).collect()
    }

    /// The ways that end at the member, in their order.
    pub(super) fn arriving(&self, id: NodeId) -> Vec<&Way> {
        self.ways_to.of(id).into_iter().map(|at| &self.ways[at]).collect()
    }

    /// The claims about the member's pairs, in their order.
    pub(super) fn claims_of(&self, id: NodeId) -> impl Iterator<Item = &Claim> + '_ {
        self.paths_of.of(id).into_iter().map(|at| &self.paths[at])
    }

    /// What the member may open to addresses outside, in the order of the rules.
    pub(super) fn outside_of(&self, id: NodeId) -> impl Iterator<Item = &OutsideWay> + '_ {
        self.outside_from.of(id).into_iter().map(|at| &self.outside[at])
    }

    /// The first denial of all services, from number `at` on, that starts at `from` or ends at `to`.
    pub(super) fn denial_from(
        &self,
        at: usize,
        from: Option<NodeId>,
        to: Option<NodeId>,
    ) -> Option<usize> {
        let (starts, ends) = (self.denials_from.later(from, at), self.denials_to.later(to, at));
        starts.into_iter().chain(ends).min()
    }

    /// The first claim, from number `at` on, that speaks of one of the two.
    pub(super) fn claim_from(
        &self,
        at: usize,
        one: Option<NodeId>,
        two: Option<NodeId>,
    ) -> Option<usize> {
        let (ones, twos) = (self.paths_of.later(one, at), self.paths_of.later(two, at));
        ones.into_iter().chain(twos).min()
    }

    fn index(&mut self, fork: &impl ForkJoin) {
        let ways = || self.ways.iter().enumerate();
        let denials = || ways().filter(|(_, way)| way.tier == Tier::Deny && way.is_whole());
        let claims = || self.paths.iter().enumerate();
        let outside = || self.outside.iter().enumerate();
        let ends = || claims().flat_map(|(at, claim)| [(at, &claim.from), (at, &claim.to)]);
        let sources = || {
            let ways_from = Index::new(ways().map(|(at, way)| (at, &way.from)));
            let denials_from = Index::new(denials().map(|(at, way)| (at, &way.from)));
            (ways_from, denials_from, Index::new(outside().map(|(at, way)| (at, &way.from))))
        };
        let destinations = || {
            let ways_to = Index::new(ways().map(|(at, way)| (at, &way.to_all)));
            let denials_to = Index::new(denials().map(|(at, way)| (at, &way.to_all)));
            (ways_to, denials_to, Index::new(ends()))
        };
        let (sources, destinations) = fork.join(sources, destinations);
        (self.ways_from, self.denials_from, self.outside_from) = sources;
        (self.ways_to, self.denials_to, self.paths_of) = destinations;
    }
}

/// What tables say of each member, in order. `older` is the same of before.
fn listed(world: &World, overlay: OverlayId, older: &[Listed]) -> Vec<Listed> {
    let mut older = older.iter().peekable();
    let mut list = |(&id, facts): (&NodeId, &Arc<NodeFacts>)| {
        let address = *facts.addresses.get(&overlay)?;
        while older.next_if(|old| *old.id() < id).is_some() {}
        if let Some(old) = older.next_if(|old| Arc::ptr_eq(&old.facts, facts)) {
            return Some(old.clone());
        }
        let row = |endpoints| MemberRow { id, name: facts.name.clone(), address, endpoints };
        let rows =
            [Vec::new(), facts.endpoints.clone()].map(|endpoints| Shared::written(row(endpoints)));
        Some(Listed { facts: Arc::clone(facts), rows })
    };
    world
        .nodes
        .iter()
        .filter(|(_, facts)| is_member(facts, overlay))
        .filter_map(&mut list)
        .collect()
}

/// Which of many numbered things a member is at the end of. Kept by set: thousands of rules speak of a
/// few hundred sets.
#[derive(Debug, Default)]
struct Index {
    /// For each set the numbers of the things that have it, in order.
    numbers: Vec<Vec<usize>>,
    /// Who is in which set, as indexes into `numbers`; sorted.
    members: Vec<(NodeId, usize)>,
}

impl Index {
    /// Takes numbers in order.
    fn new<'a>(ends: impl Iterator<Item = (usize, &'a Set)>) -> Self {
        let mut by_set: BTreeMap<&Set, Vec<usize>> = BTreeMap::new();
        for (number, set) in ends {
            by_set.entry(set).or_default().push(number);
        }
        let mut index = Self::default();
        for (set, numbers) in by_set {
            let number = index.numbers.len();
            index.members.extend(set.iter().map(|id| (*id, number)));
            index.numbers.push(numbers);
        }
        index.members.sort_unstable();
        index
    }

    /// The numbers of each set that the member is in.
    fn sets_of(&self, id: NodeId) -> impl Iterator<Item = &[usize]> {
        let first = self.members.partition_point(|(other, _)| *other < id);
        let sets = self.members.iter().skip(first).take_while(move |(other, _)| *other == id);
        sets.map(|(_, set)| self.numbers[*set].as_slice())
    }

    /// The member's numbers, in order, each once.
    fn of(&self, id: NodeId) -> Vec<usize> {
        let mut all = Vec::new();
        for numbers in self.sets_of(id) {
            all.extend(numbers);
        }
        // Not the unstable sort: these are a few runs in order.
        all.sort();
        all.dedup();
        all
    }

    /// The first of the member's numbers that is `at` or more.
    fn later(&self, id: Option<NodeId>, at: usize) -> Option<usize> {
        let later_in = |numbers: &[usize]| {
            numbers.get(numbers.partition_point(|number| *number < at)).copied()
        };
        self.sets_of(id?).filter_map(later_in).min()
    }
}

/// Destinations by what the services are at them; those at which they are nothing are left out.
fn by_services(
    world: &World,
    overlay: OverlayId,
    services: &[Service],
    to: &Set,
) -> Vec<(Vec<Service>, Set)> {
    if services.iter().any(|service| matches!(service, Service::Named(..))) {
        let mut groups: BTreeMap<Vec<Service>, Vec<NodeId>> = BTreeMap::new();
        for &id in to {
            let resolved =
                member(world, overlay, id).and_then(|facts| resolve(services, &facts.ports));
            if let Some(resolved) = resolved {
                groups.entry(resolved).or_default().push(id);
            }
        }
        groups.into_iter().map(|(services, ids)| (services, Set::new(ids))).collect()
    } else if to.is_empty() {
        Vec::new()
    } else {
        let mut sorted = services.to_vec();
        sorted.sort();
        sorted.dedup();
        vec![(sorted, to.clone())]
    }
}

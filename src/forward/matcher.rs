//! Which rule speaks of a pair of members and a service, at a cost that does not grow with the number of rules.
//!
//! Each member knows the sets it is in; a pair of sets finds its rules by hash, and in them the
//! protocol and port by binary search. Where many rules speak of the same members, most pairs of sets say
//! nothing about the service that is asked for: [`Services`] tells so before their rules are touched.
//! [`Tier`] says in which order what is found counts; among equals the lowest id is named, so that every
//! evaluator names the same one.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::services::{Question, Services};
use crate::types::{RuleId, Service, Tier, Timestamp};

/// One direction of one rule, as [`super::SnapshotBuilder`] takes it.
#[derive(Clone, Debug)]
pub struct RuleSpec {
    /// The rule.
    pub id: RuleId,
    /// What it does, and when it is asked.
    pub tier: Tier,
    /// Index of the set that starts flows.
    pub from: u32,
    /// Index of the set that is talked to.
    pub to: u32,
    /// Protocols and destination ports; empty means all.
    pub services: Vec<Service>,
    /// When the rule ends.
    pub not_after: Option<Timestamp>,
}

/// A member that NetworkPolicies isolate, as [`super::SnapshotBuilder`] takes it.
#[derive(Clone, Debug)]
pub struct IsolationSpec {
    /// Index of the member.
    pub member: u32,
    /// The first policy that isolates the flows it starts.
    pub egress: Option<RuleId>,
    /// The first policy that isolates the flows that others start to it.
    pub ingress: Option<RuleId>,
}

/// What the rules say of one packet, and which rule or NetworkPolicy says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// This one allows it; of NetworkPolicies that of the destination's side, where it has one.
    Allow(RuleId),
    /// Nothing speaks of it, and unspoken flows pass.
    Open,
    /// It passes, and would have been refused were it not for audit: this audit deny covers it, or only
    /// this audit allow lets it through.
    Audit(RuleId),
    /// This deny rule refuses it.
    Deny(RuleId),
    /// This NetworkPolicy isolates one of its ends, and none lets it through there.
    Isolated(RuleId),
    /// Nothing speaks of it.
    NoRule,
}

impl Decision {
    /// Whether it passes.
    #[must_use]
    pub(super) fn is_allow(self) -> bool {
        match self {
            Self::Allow(_) | Self::Open | Self::Audit(_) => true,
            Self::Deny(_) | Self::Isolated(_) | Self::NoRule => false,
        }
    }
}

/// The service that a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Destination port. Without one no allow with ports matches, and every deny with ports of the
    /// protocol does: who hides his ports gains nothing.
    pub(super) port: Option<u16>,
}

/// A rule's share of a port range.
#[derive(Clone, Copy, Debug)]
struct Term {
    rule: RuleId,
    not_after: Option<Timestamp>,
}

/// Ports `first..` up to the next segment, with the rules that hold there.
#[derive(Debug)]
struct Segment {
    first: u16,
    terms: Box<[Term]>,
}

/// All that the rules of one tier say for one pair of sets.
#[derive(Debug, Default)]
struct Terms {
    /// Rules for every service.
    any: Box<[Term]>,
    /// By protocol, sorted.
    protocols: Box<[ProtocolTerms]>,
}

#[derive(Debug)]
struct ProtocolTerms {
    protocol: u8,
    /// Rules for the whole protocol.
    whole: Box<[Term]>,
    /// Rules for ranges of ports, cut where any of them begins or ends; covers 0..=65535.
    segments: Box<[Segment]>,
    /// Rules for any port at all.
    some_port: Box<[Term]>,
}

/// The tiers that speak of one pair of sets.
type Group = Box<[(Tier, Terms)]>;

/// What decides whether a pair's group must be asked, beside the key, so that most need not be fetched.
#[derive(Clone, Copy, Debug)]
struct Summary {
    services: Services,
    /// The lowest rule of a group that only allows: a lower one that was found already wins. 0 where there
    /// are other tiers.
    lowest: RuleId,
    /// Index of the group.
    group: u32,
}

/// A set that some rule starts from.
#[derive(Clone, Copy, Debug)]
struct FromSet {
    set: u32,
    /// What all rules from it speak of.
    services: Services,
}

/// The policies that isolate one member, by direction.
#[derive(Clone, Copy, Debug, Default)]
struct Isolation {
    egress: Option<RuleId>,
    ingress: Option<RuleId>,
}

/// The rules of one overlay, ready for lookups.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    pairs: HashMap<u64, Summary, BuildHasherDefault<PairHasher>>,
    groups: Box<[Group]>,
    /// For each member the sets it is in that some rule starts from.
    from_sets: Box<[Box<[FromSet]>]>,
    /// For each member the sets it is in that some rule leads to.
    to_sets: Box<[Box<[u32]>]>,
    /// By member; empty where nobody is isolated.
    isolation: Box<[Isolation]>,
    unspoken_passes: bool,
}

/// The lowest rule that matches, by tier.
#[derive(Clone, Copy, Default)]
struct Matches {
    deny: Option<RuleId>,
    audit_deny: Option<RuleId>,
    allow: Option<RuleId>,
    audit_allow: Option<RuleId>,
    egress: Option<RuleId>,
    ingress: Option<RuleId>,
}

impl Matches {
    fn of(&mut self, tier: Tier) -> &mut Option<RuleId> {
        match tier {
            Tier::Deny => &mut self.deny,
            Tier::AuditDeny => &mut self.audit_deny,
            Tier::Allow => &mut self.allow,
            Tier::AuditAllow => &mut self.audit_allow,
            Tier::Egress => &mut self.egress,
            Tier::Ingress => &mut self.ingress,
        }
    }
}

impl Matcher {
    /// Prepares `rules` over `sets` of indexes below `members`; both were validated.
    pub(super) fn new(is_v6: bool, members: usize, sets: &[Vec<u32>], rules: &[RuleSpec]) -> Self {
        let mut drafts: BTreeMap<u64, (Vec<&RuleSpec>, Services)> = BTreeMap::new();
        let mut services_from: HashMap<u32, Services> = HashMap::new();
        for rule in rules {
            let services = Services::of(&rule.services, is_v6);
            let (spoken, of_pair) = drafts.entry(pair(rule.from, rule.to)).or_default();
            spoken.push(rule);
            of_pair.add(services);
            services_from.entry(rule.from).or_default().add(services);
        }
        let mut pairs = HashMap::default();
        let mut groups = Vec::with_capacity(drafts.len());
        for (number, (key, (rules, services))) in (0..).zip(drafts) {
            let lowest = rules.iter().map(|rule| rule.id).min();
            let only_allows = rules.iter().all(|rule| rule.tier == Tier::Allow);
            let lowest = lowest.filter(|_| only_allows).unwrap_or(RuleId(0));
            pairs.insert(key, Summary { services, lowest, group: number });
            groups.push(group(&rules, is_v6));
        }
        let from_sets = memberships(members, sets, rules.iter().map(|rule| rule.from));
        let with_services = |&set: &u32| FromSet {
            set,
            services: services_from.get(&set).copied().unwrap_or_default(),
        };
        Self {
            pairs,
            groups: groups.into_boxed_slice(),
            from_sets: from_sets
                .iter()
                .map(|its_sets| its_sets.iter().map(with_services).collect())
                .collect(),
            to_sets: memberships(members, sets, rules.iter().map(|rule| rule.to)),
            isolation: Box::default(),
            unspoken_passes: false,
        }
    }

    /// Adds who is isolated, and whether flows pass that nothing speaks of.
    pub(super) fn with_isolation(mut self, rows: &[IsolationSpec], unspoken_passes: bool) -> Self {
        if !rows.is_empty() {
            let mut isolation = vec![Isolation::default(); self.from_sets.len()];
            for row in rows {
                if let Some(its) = isolation.get_mut(row.member as usize) {
                    *its = Isolation { egress: row.egress, ingress: row.ingress };
                }
            }
            self.isolation = isolation.into_boxed_slice();
        }
        self.unspoken_passes = unspoken_passes;
        self
    }

    /// What the rules in force at `now` say of a flow that member `from` starts to member `to`.
    pub(super) fn decide(&self, from: u32, to: u32, asked: Asked, now: Timestamp) -> Decision {
        let from_sets = sets_of(&self.from_sets, from);
        let to_sets = sets_of(&self.to_sets, to);
        let question = Question::new(asked);
        let mut matches = Matches::default();
        for from_set in from_sets.iter().filter(|from| from.services.may_speak_of(question)) {
            for &to_set in to_sets {
                let Some(summary) = self.pairs.get(&pair(from_set.set, to_set)) else { continue };
                let is_won = matches.allow.is_some_and(|allow| allow < summary.lowest);
                if is_won || !summary.services.may_speak_of(question) {
                    continue;
                }
                for (tier, terms) in self.groups.get(summary.group as usize).into_iter().flatten() {
                    let hidden_ports_match = matches!(tier, Tier::Deny | Tier::AuditDeny);
                    let found = terms.find(asked, hidden_ports_match, now);
                    let lowest = matches.of(*tier);
                    *lowest = lower(*lowest, found);
                }
            }
        }
        self.weigh(from, to, matches)
    }

    /// Whether any member is isolated: only then can a refusal be a NetworkPolicy's.
    pub(super) fn isolates(&self) -> bool {
        !self.isolation.is_empty()
    }

    fn weigh(&self, from: u32, to: u32, matches: Matches) -> Decision {
        if let Some(rule) = matches.deny {
            return Decision::Deny(rule);
        }
        let enforced =
            matches.allow.map_or_else(|| self.by_sides(from, to, matches), Decision::Allow);
        let would_be_denied = enforced.is_allow().then_some(matches.audit_deny).flatten();
        let passes_by_audit = || {
            let allow = matches.audit_allow.filter(|_| !enforced.is_allow())?;
            Some(matches.audit_deny.unwrap_or(allow))
        };
        would_be_denied.or_else(passes_by_audit).map_or(enforced, Decision::Audit)
    }

    /// What NetworkPolicies say of it, and the overlay's semantics where they say nothing.
    fn by_sides(&self, from: u32, to: u32, matches: Matches) -> Decision {
        let of = |member: u32| self.isolation.get(member as usize).copied().unwrap_or_default();
        match (of(from).egress, of(to).ingress) {
            (None, None) if self.unspoken_passes => Decision::Open,
            (None, None) => Decision::NoRule,
            (Some(by), None) => matches.egress.map_or(Decision::Isolated(by), Decision::Allow),
            (None, Some(by)) => matches.ingress.map_or(Decision::Isolated(by), Decision::Allow),
            (Some(out), Some(into)) => match (matches.egress, matches.ingress) {
                (None, _) => Decision::Isolated(out),
                (Some(_), None) => Decision::Isolated(into),
                (Some(_), Some(ingress)) => Decision::Allow(ingress),
            },
        }
    }
}

impl Terms {
    fn find(&self, asked: Asked, hidden_ports_match: bool, now: Timestamp) -> Option<RuleId> {
        let found = live(&self.any, now);
        let Ok(at) = self.protocols.binary_search_by_key(&asked.protocol, |terms| terms.protocol)
        else {
            return found;
        };
        let Some(terms) = self.protocols.get(at) else { return found };
        let found = lower(found, live(&terms.whole, now));
        let by_port = match asked.port {
            Some(port) => terms.at(port),
            None if hidden_ports_match => &terms.some_port,
            None => &[],
        };
        lower(found, live(by_port, now))
    }
}

impl ProtocolTerms {
    fn at(&self, port: u16) -> &[Term] {
        let behind = self.segments.partition_point(|segment| segment.first <= port);
        behind
            .checked_sub(1)
            .and_then(|at| self.segments.get(at))
            .map_or(&[], |segment| &segment.terms)
    }
}

/// What the rules say of their pair of sets, by tier.
fn group(rules: &[&RuleSpec], is_v6: bool) -> Group {
    let mut tiers: BTreeMap<Tier, TermsDraft> = BTreeMap::new();
    for rule in rules {
        tiers.entry(rule.tier).or_default().add(rule, is_v6);
    }
    tiers.into_iter().map(|(tier, draft)| (tier, draft.finish())).collect()
}

#[derive(Default)]
struct TermsDraft {
    any: Vec<Term>,
    protocols: BTreeMap<u8, ProtocolDraft>,
}

#[derive(Default)]
struct ProtocolDraft {
    whole: Vec<Term>,
    ranges: Vec<(u16, u16, Term)>,
}

impl TermsDraft {
    fn add(&mut self, rule: &RuleSpec, is_v6: bool) {
        let term = Term { rule: rule.id, not_after: rule.not_after };
        if rule.services.is_empty() {
            self.any.push(term);
        }
        for service in &rule.services {
            let draft = self.protocols.entry(service.protocol().number(is_v6)).or_default();
            match service {
                Service::Protocol(_) => draft.whole.push(term),
                Service::Ports(_, range) => draft.ranges.push((range.first, range.last, term)),
                // The builder refuses names: nothing resolves them on the packet path.
                Service::Named(..) => {}
            }
        }
    }

    fn finish(self) -> Terms {
        let protocols = self
            .protocols
            .into_iter()
            .map(|(protocol, draft)| ProtocolTerms {
                protocol,
                some_port: staircase(draft.ranges.iter().map(|(_, _, term)| *term).collect()),
                segments: segments(&draft.ranges),
                whole: staircase(draft.whole),
            })
            .collect();
        Terms { any: staircase(self.any), protocols }
    }
}

fn segments(ranges: &[(u16, u16, Term)]) -> Box<[Segment]> {
    let mut cuts: Vec<u16> = ranges
        .iter()
        .flat_map(|&(first, last, _)| [Some(first), last.checked_add(1)])
        .flatten()
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts.into_iter()
        .map(|cut| {
            let here = ranges.iter().filter(|(first, last, _)| (*first..=*last).contains(&cut));
            Segment { first: cut, terms: staircase(here.map(|(_, _, term)| *term).collect()) }
        })
        .collect()
}

/// Sorts by rule and leaves out every term that ends no later than one before it: the first live
/// term is then the live one with the lowest id.
fn staircase(mut terms: Vec<Term>) -> Box<[Term]> {
    terms.sort_unstable_by_key(|term| (term.rule, term.not_after.is_some()));
    let mut longest: Option<u64> = None;
    terms.retain(|term| {
        let end = term.not_after.map_or(u64::MAX, |end| end.0);
        let adds = longest.is_none_or(|longest| end > longest);
        longest = longest.max(Some(end));
        adds
    });
    terms.into_boxed_slice()
}

fn live(terms: &[Term], now: Timestamp) -> Option<RuleId> {
    terms.iter().find(|term| is_live(term.not_after, now)).map(|term| term.rule)
}

/// Whether a rule with this end is in force: it ends when its second comes.
pub(super) fn is_live(not_after: Option<Timestamp>, now: Timestamp) -> bool {
    not_after.is_none_or(|end| now < end)
}

fn lower(a: Option<RuleId>, b: Option<RuleId>) -> Option<RuleId> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (found, None) | (None, found) => found,
    }
}

/// For each member the sets among `used` that it is in.
pub(super) fn memberships(
    members: usize,
    sets: &[Vec<u32>],
    used: impl Iterator<Item = u32>,
) -> Box<[Box<[u32]>]> {
    let used: std::collections::BTreeSet<u32> = used.collect();
    let mut sets_by_member: Vec<Vec<u32>> = vec![Vec::new(); members];
    for set in used {
        for &member in sets.get(set as usize).into_iter().flatten() {
            if let Some(its_sets) = sets_by_member.get_mut(member as usize) {
                its_sets.push(set);
            }
        }
    }
    sets_by_member.into_iter().map(Vec::into_boxed_slice).collect()
}

/// The sets of one member.
pub(super) fn sets_of<T>(sets_by_member: &[Box<[T]>], member: u32) -> &[T] {
    sets_by_member.get(member as usize).map_or(&[], |sets| sets)
}

/// Two set indexes as one key.
pub(super) fn pair(from: u32, to: u32) -> u64 {
    u64::from(from) << 32 | u64::from(to)
}

/// Spreads pairs of indexes. They come from the server, never from packets, so that nobody can
/// choose them to collide.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ mixed >> 32;
    }
}

//! Which rule speaks of a pair of members and a service, at a cost that does not grow with the number of rules.
//!
//! Each member knows the sets it is in; a pair of sets finds its rules by hash, and in them the
//! protocol and port by binary search. Denies go before allows; among equals the lowest rule id is
//! named, so that every evaluator names the same one.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use crate::types::{RuleId, Service, Timestamp};

/// One direction of one rule, as [`super::SnapshotBuilder`] takes it.
#[derive(Clone, Debug)]
pub struct RuleSpec {
    /// The rule.
    pub id: RuleId,
    /// Whether it refuses instead of allowing.
    pub is_deny: bool,
    /// Index of the set that starts flows.
    pub from: u32,
    /// Index of the set that is talked to.
    pub to: u32,
    /// Protocols and destination ports; empty means all.
    pub services: Vec<Service>,
    /// When the rule ends.
    pub not_after: Option<Timestamp>,
}

/// What the rules say of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// This rule allows it.
    Allow(RuleId),
    /// This deny rule refuses it.
    Deny(RuleId),
    /// No rule speaks of it.
    NoRule,
}

impl Decision {
    /// Whether it is allowed.
    #[must_use]
    pub(super) fn is_allow(self) -> bool {
        matches!(self, Self::Allow(_))
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
struct Tier {
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

#[derive(Debug, Default)]
struct Group {
    deny: Tier,
    allow: Tier,
}

/// The rules of one overlay, ready for lookups.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    groups: HashMap<u64, Group, BuildHasherDefault<PairHasher>>,
    /// For each member the sets it is in that some rule starts from.
    from_sets: Box<[Box<[u32]>]>,
    /// For each member the sets it is in that some rule leads to.
    to_sets: Box<[Box<[u32]>]>,
}

impl Matcher {
    /// Prepares `rules` over `sets` of indexes below `members`; both were validated.
    pub(super) fn new(is_v6: bool, members: usize, sets: &[Vec<u32>], rules: &[RuleSpec]) -> Self {
        let mut drafts: BTreeMap<u64, [TierDraft; 2]> = BTreeMap::new();
        for rule in rules {
            let [allow, deny] = drafts.entry(pair(rule.from, rule.to)).or_default();
            let tier = if rule.is_deny { deny } else { allow };
            tier.add(rule, is_v6);
        }
        let mut groups = HashMap::default();
        for (key, [allow, deny]) in drafts {
            groups.insert(key, Group { deny: deny.finish(), allow: allow.finish() });
        }
        Self {
            groups,
            from_sets: memberships(members, sets, rules.iter().map(|rule| rule.from)),
            to_sets: memberships(members, sets, rules.iter().map(|rule| rule.to)),
        }
    }

    /// What the rules in force at `now` say of a flow that member `from` starts to member `to`.
    pub(super) fn decide(&self, from: u32, to: u32, asked: Asked, now: Timestamp) -> Decision {
        let from_sets = sets_of(&self.from_sets, from);
        let to_sets = sets_of(&self.to_sets, to);
        let mut allowed: Option<RuleId> = None;
        let mut denied: Option<RuleId> = None;
        for &from_set in from_sets {
            for &to_set in to_sets {
                let Some(group) = self.groups.get(&pair(from_set, to_set)) else { continue };
                denied = lower(denied, group.deny.find(asked, true, now));
                allowed = lower(allowed, group.allow.find(asked, false, now));
            }
        }
        match (denied, allowed) {
            (Some(rule), _) => Decision::Deny(rule),
            (None, Some(rule)) => Decision::Allow(rule),
            (None, None) => Decision::NoRule,
        }
    }
}

impl Tier {
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

#[derive(Default)]
struct TierDraft {
    any: Vec<Term>,
    protocols: BTreeMap<u8, ProtocolDraft>,
}

#[derive(Default)]
struct ProtocolDraft {
    whole: Vec<Term>,
    ranges: Vec<(u16, u16, Term)>,
}

impl TierDraft {
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

    fn finish(self) -> Tier {
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
        Tier { any: staircase(self.any), protocols }
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
pub(super) fn sets_of(sets_by_member: &[Box<[u32]>], member: u32) -> &[u32] {
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

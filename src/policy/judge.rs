//! The evaluator: may a flow start between two ends of an overlay, and what says so. It answers for the
//! server and offline, for members and for addresses outside, in both semantics.
//!
//! The order is that of [`Tier`], which tables and the matcher on the hot path follow: a deny rule
//! refuses; else an allow rule allows; else NetworkPolicies allow where the source's egress and the
//! destination's ingress both let the flow through, a side that none isolates being open (in
//! `default-deny` overlays at least one side must be isolated, so that what nothing speaks of stays
//! shut); else an audit allow lets it through. Quarantine goes before all of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Decision;
use super::kubernetes::{Direction, NetworkPolicy, Peer};
use super::select::{is_in_force, is_member, member_address, selects, selects_outside};
use super::span::{NamedPorts, Span, overlap, spans_at, without};
use super::{BoundSelector, NodeFacts, RuleFacts, World};
use crate::api::admin::Semantics;
use crate::api::table::Action;
use crate::types::{NodeId, OverlayId, RuleId, Service, Tier, Timestamp};

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A member.
    Member(NodeId),
    /// An address that belongs to no member.
    Outside(IpAddr),
}

/// The policy of one overlay at one moment, ready for many questions.
pub(super) struct Overview<'a> {
    world: &'a World,
    overlay: OverlayId,
    is_kubernetes: bool,
    is_audit: bool,
    /// In force, by id.
    rules: Vec<(RuleId, &'a RuleFacts)>,
    /// The NetworkPolicies that select a member, so that each pair asks those alone.
    selected_by: BTreeMap<NodeId, Vec<(RuleId, &'a NetworkPolicy)>>,
}

/// A decision; where a NetworkPolicy made it, on which side, and where one allowed, by which item.
pub(super) struct Ruling {
    pub(super) decision: Decision,
    pub(super) side: Option<Direction>,
    pub(super) item: Option<usize>,
}

/// What the NetworkPolicies say of one direction of one end.
enum Side {
    /// None selects it in this direction: everything passes.
    Open,
    /// Only this passes.
    Isolated {
        /// The first policy that selects it.
        by: RuleId,
        /// What each item lets through between the two ends.
        allowed: Vec<Item>,
    },
}

/// One item of `ingress` or `egress`, and what it lets through.
struct Item {
    policy: RuleId,
    place: (Direction, usize),
    spans: Vec<Span>,
}

impl<'a> Overview<'a> {
    pub(super) fn new(world: &'a World, overlay: OverlayId, now: Timestamp) -> Self {
        let facts = world.overlays.get(&overlay);
        let rules = world.rules.iter().filter(|(_, rule)| rule.overlay == overlay);
        let policies: Vec<(RuleId, &NetworkPolicy)> = world
            .network_policies
            .iter()
            .filter(|(_, facts)| facts.overlay == overlay)
            .map(|(id, facts)| (*id, &facts.policy))
            .collect();
        let mut selected_by = BTreeMap::new();
        if !policies.is_empty() {
            for (id, facts) in world.nodes.iter().filter(|(_, facts)| is_member(facts, overlay)) {
                let selecting = policies.iter().filter(|(_, policy)| policy.selects(facts));
                selected_by.insert(*id, selecting.copied().collect());
            }
        }
        Self {
            world,
            overlay,
            is_kubernetes: facts.is_some_and(|facts| facts.semantics == Semantics::Kubernetes),
            is_audit: facts.is_some_and(|facts| facts.is_audit),
            rules: rules
                .filter(|(_, rule)| is_in_force(rule, now))
                .map(|(id, rule)| (*id, &**rule))
                .collect(),
            selected_by,
        }
    }

    /// May `from` open something of `asked` to `to`? An end to itself is no question.
    pub(super) fn rule_on(&self, from: &End, to: &End, asked: &[Span]) -> Ruling {
        let plain = |decision| Ruling { decision, side: None, item: None };
        if let Some(id) = self.quarantined(from, to) {
            return plain(Decision::Quarantined(id));
        }
        let mut said = self.said(from, to);
        for (_, _, spans) in &mut said {
            *spans = overlap(spans, asked);
        }
        said.retain(|(_, _, spans)| !spans.is_empty());
        let of = |tier: Tier| said.iter().filter(move |(_, theirs, _)| *theirs == tier);
        let all = |tier: Tier| -> Vec<Span> {
            of(tier).flat_map(|(_, _, spans)| spans.iter().copied()).collect()
        };
        let (denied, audited) = (all(Tier::Deny), all(Tier::AuditDeny));
        let opens = |spans: &[Span]| !without(spans.to_vec(), &denied).is_empty();
        // What passes although an audit deny covers all of it that is left.
        let noted = |spans: &[Span]| {
            let left = without(spans.to_vec(), &denied);
            let is_covered = without(left, &audited).is_empty();
            is_covered.then(|| of(Tier::AuditDeny).map(|(id, ..)| *id).next()).flatten()
        };
        if let Some((id, ..)) = of(Tier::Allow).find(|(_, _, spans)| opens(spans)) {
            let noted = noted(&all(Tier::Allow));
            return plain(noted.map_or(Decision::Allow(*id), Decision::Audit));
        }
        let (egress, ingress) =
            (self.side(Direction::Egress, from, to), self.side(Direction::Ingress, from, to));
        for (by, spans) in self.pass_sides(&egress, &ingress) {
            let spans = overlap(&spans, asked);
            if opens(&spans) {
                let passes = match &by {
                    Some(item) => Decision::Allow(item.policy),
                    None => Decision::Open,
                };
                let decision = noted(&spans).map_or(passes, Decision::Audit);
                let (side, item) = by.map(|item| item.place).unzip();
                return Ruling { decision, side, item };
            }
        }
        if let Some((id, _, spans)) = of(Tier::AuditAllow).find(|(_, _, spans)| opens(spans)) {
            return plain(Decision::Audit(noted(spans).unwrap_or(*id)));
        }
        if let Some((id, ..)) = of(Tier::Deny).next() {
            return plain(Decision::Deny(*id));
        }
        let shut = |side: &Side| match side {
            Side::Open => None,
            Side::Isolated { by, allowed } => {
                let passes = allowed.iter().any(|item| !overlap(&item.spans, asked).is_empty());
                (!passes).then_some(*by)
            }
        };
        let isolated = |by, side| Ruling { side: Some(side), ..plain(Decision::Isolated(by)) };
        match (shut(&egress), shut(&ingress)) {
            (Some(by), _) => isolated(by, Direction::Egress),
            (None, Some(by)) => isolated(by, Direction::Ingress),
            (None, None) => plain(Decision::NoRule),
        }
    }

    /// Everything that `from` may open to `to`. An end to itself: everything, for it never crosses.
    pub(super) fn reach(&self, from: &End, to: &End) -> Vec<Span> {
        if from == to {
            return vec![Span::ALL];
        }
        if self.quarantined(from, to).is_some() {
            return Vec::new();
        }
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        for (_, tier, spans) in self.said(from, to) {
            match tier {
                Tier::Allow | Tier::AuditAllow => allowed.extend(spans),
                Tier::Deny => denied.extend(spans),
                Tier::AuditDeny | Tier::Egress | Tier::Ingress => {}
            }
        }
        let (egress, ingress) =
            (self.side(Direction::Egress, from, to), self.side(Direction::Ingress, from, to));
        let sides = self.pass_sides(&egress, &ingress);
        allowed.extend(sides.into_iter().flat_map(|(_, spans)| spans));
        without(allowed, &denied)
    }

    /// What `service` is at that end; none asks for anything at all.
    pub(super) fn asked(&self, service: Option<&Service>, to: &End) -> Vec<Span> {
        match service {
            None => vec![Span::ALL],
            Some(service) => {
                spans_at(std::slice::from_ref(service), self.is_ipv6(to), self.ports_of(to))
            }
        }
    }

    /// What each rule in force says of flows in this direction, and in which tier.
    fn said(&self, from: &End, to: &End) -> Vec<(RuleId, Tier, Vec<Span>)> {
        let mut said: Vec<(RuleId, Tier, Vec<Span>)> = self
            .rules
            .iter()
            .filter(|(_, rule)| self.is_spoken_of(rule, from, to))
            .map(|(id, rule)| (*id, tier(rule, self.is_audit), self.services_at(rule, to)))
            .collect();
        if let (true, End::Member(_), End::Member(_)) = (self.is_audit, from, to) {
            said.insert(0, (RuleId::AUDIT_MODE, Tier::AuditAllow, vec![Span::ALL]));
        }
        said
    }

    /// Whether the rule, in force or not, speaks of flows in this direction.
    pub(super) fn is_spoken_of(&self, rule: &RuleFacts, from: &End, to: &End) -> bool {
        let is_along = |one: &BoundSelector, other: &BoundSelector| {
            self.is_meant(one, from) && self.is_meant(other, to)
        };
        is_along(&rule.from, &rule.to) || (rule.both && is_along(&rule.to, &rule.from))
    }

    /// What the rule's services are at this destination.
    pub(super) fn services_at(&self, rule: &RuleFacts, to: &End) -> Vec<Span> {
        spans_at(&rule.services, self.is_ipv6(to), self.ports_of(to))
    }

    /// Whether a selector means this end.
    pub(super) fn is_meant(&self, selector: &BoundSelector, end: &End) -> bool {
        match end {
            End::Member(id) => self
                .facts(*id)
                .is_some_and(|facts| selects(self.world, self.overlay, selector, *id, facts)),
            End::Outside(address) => selects_outside(self.world, self.overlay, selector, *address),
        }
    }

    /// What passes both sides, with the item that is named for it: that of the destination's side where
    /// it has one; none where neither is isolated.
    fn pass_sides<'s>(
        &self,
        egress: &'s Side,
        ingress: &'s Side,
    ) -> Vec<(Option<&'s Item>, Vec<Span>)> {
        match (egress, ingress) {
            (Side::Open, Side::Open) if self.is_kubernetes => vec![(None, vec![Span::ALL])],
            (Side::Open, Side::Open) => Vec::new(),
            (Side::Isolated { allowed, .. }, Side::Open)
            | (Side::Open, Side::Isolated { allowed, .. }) => {
                allowed.iter().map(|item| (Some(item), item.spans.clone())).collect()
            }
            (Side::Isolated { allowed: out, .. }, Side::Isolated { allowed: into, .. }) => {
                let out: Vec<Span> = out.iter().flat_map(|item| item.spans.clone()).collect();
                into.iter().map(|item| (Some(item), overlap(&item.spans, &out))).collect()
            }
        }
    }

    /// What NetworkPolicies say of flows `from` one end `to` the other, on the side of the end that the
    /// direction speaks of; the outside has no side.
    fn side(&self, direction: Direction, from: &End, to: &End) -> Side {
        let (own, other) = match direction {
            Direction::Ingress => (to, from),
            Direction::Egress => (from, to),
        };
        let End::Member(pod) = own else { return Side::Open };
        let (mut first, mut allowed) = (None, Vec::new());
        for (id, policy) in self.selected_by.get(pod).into_iter().flatten() {
            let Some(rules) = policy.rules(direction) else { continue };
            first.get_or_insert(*id);
            for (index, rule) in rules.iter().enumerate() {
                let is_peer = rule.peers.is_empty()
                    || rule.peers.iter().any(|peer| self.is_peer(policy, peer, other));
                if is_peer {
                    // Named ports are those of the destination, whichever side the policy is on.
                    let spans = spans_at(&rule.ports, self.is_ipv6(to), self.ports_of(to));
                    allowed.push(Item { policy: *id, place: (direction, index), spans });
                }
            }
        }
        first.map_or(Side::Open, |by| Side::Isolated { by, allowed })
    }

    /// Whether a peer of the policy means this end.
    pub(super) fn is_peer(&self, policy: &NetworkPolicy, peer: &Peer, end: &End) -> bool {
        match (peer, end) {
            (Peer::Block(block), End::Outside(address)) => block.contains(*address),
            (Peer::Pods { .. }, End::Outside(_)) => false,
            (_, End::Member(id)) => self
                .facts(*id)
                .is_some_and(|facts| policy.means(self.world, self.overlay, peer, facts)),
        }
    }

    fn quarantined(&self, from: &End, to: &End) -> Option<NodeId> {
        [from, to].into_iter().find_map(|end| match end {
            End::Member(id) => self.facts(*id).filter(|facts| facts.is_quarantined).map(|_| *id),
            End::Outside(_) => None,
        })
    }

    fn facts(&self, id: NodeId) -> Option<&'a NodeFacts> {
        self.world
            .nodes
            .get(&id)
            .map(|facts| &**facts)
            .filter(|facts| is_member(facts, self.overlay))
    }

    /// The named ports of an end; none of the outside.
    pub(super) fn ports_of(&self, end: &End) -> &'a NamedPorts {
        let ports = match end {
            End::Member(id) => self.facts(*id).map(|facts| &facts.ports),
            End::Outside(_) => None,
        };
        ports.unwrap_or(const { &NamedPorts::new() })
    }

    /// Whether flows to this end are IPv6.
    pub(super) fn is_ipv6(&self, end: &End) -> bool {
        match end {
            End::Member(id) => self
                .facts(*id)
                .and_then(|facts| member_address(facts, self.overlay))
                .is_some_and(|address| address.is_ipv6()),
            End::Outside(address) => address.is_ipv6(),
        }
    }
}

/// The tier of a rule's rows. In an overlay in audit mode deny rules are for audit, too; allow rules keep
/// their tier, for what they let through nobody would have refused.
pub(super) fn tier(rule: &RuleFacts, overlay_is_audit: bool) -> Tier {
    match (rule.action, rule.is_audit, overlay_is_audit) {
        (Action::Deny, false, false) => Tier::Deny,
        (Action::Deny, _, _) => Tier::AuditDeny,
        (Action::Allow, false, _) => Tier::Allow,
        (Action::Allow, true, _) => Tier::AuditAllow,
    }
}

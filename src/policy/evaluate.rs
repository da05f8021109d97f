//! The evaluator: may a flow start, and which rule says so.

use super::judge::{End, Overview};
use super::prefer::saps_for;
use super::question::decision;
use super::select::{carries, is_in_force, member, selects};
use super::{BoundSelector, Drain, NodeFacts, RuleFacts, World};
use crate::api::table::{Action, PathHops};
use crate::types::{NodeId, NodeKind, OverlayId, RuleId, Service, Timestamp};

/// The verdict on a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This rule allows it, the lowest id that matches; else this NetworkPolicy, that of the
    /// destination's side where it is isolated.
    Allow(RuleId),
    /// Nothing speaks of it, and in overlays of `kubernetes` semantics that passes.
    Open,
    /// It passes and is recorded: this audit deny covers it, or this audit allow alone lets it through.
    Audit(RuleId),
    /// This deny rule refuses it: the lowest id that matches.
    Deny(RuleId),
    /// This NetworkPolicy isolates an end, the source's egress first, and none lets it through there.
    Isolated(RuleId),
    /// This member is in quarantine.
    Quarantined(NodeId),
    /// No rule speaks of it.
    NoRule,
}

impl Decision {
    /// Whether the flow may start.
    #[must_use]
    pub fn is_allow(self) -> bool {
        match self {
            Self::Allow(_) | Self::Open | Self::Audit(_) => true,
            Self::Deny(_) | Self::Isolated(_) | Self::Quarantined(_) | Self::NoRule => false,
        }
    }

    /// The rule or NetworkPolicy that decided.
    #[must_use]
    pub fn rule(self) -> Option<RuleId> {
        match self {
            Self::Allow(id) | Self::Audit(id) | Self::Deny(id) | Self::Isolated(id) => Some(id),
            Self::Open | Self::Quarantined(_) | Self::NoRule => None,
        }
    }
}

/// May `from` start a flow of `service` (a protocol, with exactly one port where it has ports) to `to`?
///
/// A service that is more than one flow (a whole protocol with ports, a range) asks whether anything
/// of it may pass. A named port is the one of `to`; one that `to` has not is `NoRule`. So are nodes
/// that are no members, and a member with itself.
#[must_use]
pub fn evaluate(
    world: &World,
    overlay: OverlayId,
    from: NodeId,
    to: NodeId,
    service: &Service,
    now: Timestamp,
) -> Decision {
    if Pair::new(world, overlay, from, to).is_none() {
        return Decision::NoRule;
    }
    let pair = (End::Member(from), End::Member(to));
    decision(&Overview::new(world, overlay, now), &pair, Some(service))
}

/// Two different members of one overlay, in the direction of a flow's first packet.
pub(super) struct Pair<'a> {
    pub(super) from: (NodeId, &'a NodeFacts),
    pub(super) to: (NodeId, &'a NodeFacts),
    world: &'a World,
    overlay: OverlayId,
}

impl<'a> Pair<'a> {
    /// None when one of the two is no member, or both are the same.
    pub(super) fn new(
        world: &'a World,
        overlay: OverlayId,
        from: NodeId,
        to: NodeId,
    ) -> Option<Self> {
        if from == to {
            return None;
        }
        let source = member(world, overlay, from)?;
        let target = member(world, overlay, to)?;
        Some(Self { from: (from, source), to: (to, target), world, overlay })
    }

    /// The other direction.
    pub(super) fn reversed(&self) -> Self {
        Self { from: self.to, to: self.from, ..*self }
    }

    /// Whether the selector means this end.
    fn is_meant(&self, selector: &BoundSelector, (id, facts): (NodeId, &NodeFacts)) -> bool {
        selects(self.world, self.overlay, selector, id, facts)
    }

    /// Whether the rule, as written, leads from one to the other.
    pub(super) fn is_along(&self, rule: &RuleFacts) -> bool {
        self.is_meant(&rule.from, self.from) && self.is_meant(&rule.to, self.to)
    }
}

/// The candidates for the hops from `from` to `to`; see [`Paths::between`].
#[must_use]
pub fn path_between(
    world: &World,
    overlay: OverlayId,
    from: NodeId,
    to: NodeId,
    now: Timestamp,
) -> Vec<PathHops> {
    Paths::new(world, overlay, now).between(from, to)
}

/// Who gave a pair its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathSource {
    /// `ovctl path set`, for that pair alone.
    Set,
    /// A rule.
    Rule(RuleId),
}

impl std::fmt::Display for PathSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Set => f.write_str("path set"),
            Self::Rule(id) => id.fmt(f),
        }
    }
}

/// What paths of pairs are told from, for those who ask about many pairs.
#[derive(Debug)]
pub struct Paths<'a> {
    world: &'a World,
    overlay: OverlayId,
    default_saps: Vec<NodeId>,
    /// The rules in force that ask for a path, by id.
    asking: Vec<(RuleId, &'a RuleFacts, &'a PathHops)>,
}

impl<'a> Paths<'a> {
    /// Those of `overlay` at `now`.
    #[must_use]
    pub fn new(world: &'a World, overlay: OverlayId, now: Timestamp) -> Self {
        let rules = world.rules.iter().filter(|(_, rule)| rule.overlay == overlay);
        let asking = rules.filter_map(|(&id, rule)| {
            let hops = rule.path.as_ref()?;
            is_in_force(rule, now).then_some((id, &**rule, hops))
        });
        let asking = asking.collect();
        Self { world, overlay, default_saps: default_saps(world, overlay), asking }
    }

    /// The candidates for the hops from `from` to `to`, the preferred one first: several single SaPs for
    /// a pair without a path of its own, else one chain or direct. Empty when no SaP serves the overlay,
    /// when a SaP of the chain is gone or cannot be reached, and when an end of a direct pair cannot.
    #[must_use]
    pub fn between(&self, from: NodeId, to: NodeId) -> Vec<PathHops> {
        self.by(from, to, || saps_for(self.world, &self.default_saps, [from, to]))
    }

    /// As [`Self::between`], in no order: for who asks about thousands of pairs at once.
    #[must_use]
    pub fn among(&self, from: NodeId, to: NodeId) -> Vec<PathHops> {
        self.by(from, to, || self.default_saps.clone())
    }

    fn by(
        &self,
        from: NodeId,
        to: NodeId,
        default_saps: impl FnOnce() -> Vec<NodeId>,
    ) -> Vec<PathHops> {
        let Some(pair) = Pair::new(self.world, self.overlay, from, to) else { return Vec::new() };
        let Some((_, asked)) = self.asked(&pair) else {
            return default_saps().into_iter().map(|sap| PathHops::Via(vec![sap])).collect();
        };
        let is_open = match &asked {
            PathHops::Direct => {
                !pair.from.1.endpoints.is_empty() && !pair.to.1.endpoints.is_empty()
            }
            PathHops::Via(chain) => is_walkable(self.world, self.overlay, chain),
            PathHops::Elsewhere => false,
        };
        is_open.then_some(asked).into_iter().collect()
    }

    /// Who asks for a path of this pair; none where it takes any SaP.
    #[must_use]
    pub fn source(&self, from: NodeId, to: NodeId) -> Option<PathSource> {
        let pair = Pair::new(self.world, self.overlay, from, to)?;
        Some(self.asked(&pair)?.0)
    }

    /// The path that was set for this pair, or that a rule in force asks for, walked in the pair's
    /// direction, whether or not it can be walked. Rules that disagree are refused when they are written;
    /// where a label that came later makes two disagree, the lowest id wins.
    pub(super) fn asked(&self, pair: &Pair<'_>) -> Option<(PathSource, PathHops)> {
        let (from, to) = (pair.from.0, pair.to.0);
        if let Some(hops) = self.world.paths.get(&(self.overlay, from.min(to), from.max(to))) {
            let hops = if from < to { hops.clone() } else { backwards(hops) };
            return Some((PathSource::Set, hops));
        }
        let back = pair.reversed();
        let (low, high) = if pair.from.0 < pair.to.0 { (pair, &back) } else { (&back, pair) };
        self.asking.iter().find_map(|&(id, rule, hops)| {
            // Where the rule leads both ways between the two, the lower id counts as its `from`.
            let walked_from = if low.is_along(rule) {
                low.from.0
            } else if high.is_along(rule) {
                high.from.0
            } else {
                return None;
            };
            let hops = if walked_from == from { hops.clone() } else { backwards(hops) };
            Some((PathSource::Rule(id), hops))
        })
    }
}

/// The same hops, walked the other way.
pub(super) fn backwards(hops: &PathHops) -> PathHops {
    match hops {
        PathHops::Direct => PathHops::Direct,
        PathHops::Via(chain) => PathHops::Via(chain.iter().rev().copied().collect()),
        PathHops::Elsewhere => PathHops::Elsewhere,
    }
}

/// Whether packets can take the chain: every SaP of it carries the overlay, and none comes twice.
pub(super) fn is_walkable(world: &World, overlay: OverlayId, chain: &[NodeId]) -> bool {
    let is_sound =
        |(at, sap): (usize, &NodeId)| carries(world, *sap, overlay) && !chain[..at].contains(sap);
    !chain.is_empty() && chain.iter().enumerate().all(is_sound)
}

/// The SaPs of every pair without a path of its own, by id; those that are being drained last.
pub(super) fn default_saps(world: &World, overlay: OverlayId) -> Vec<NodeId> {
    let saps = world.nodes.iter().filter(|(_, facts)| facts.kind == NodeKind::Sap);
    let mut saps: Vec<(bool, NodeId)> = saps
        .filter(|(id, _)| carries(world, **id, overlay))
        .map(|(id, facts)| (facts.drain != Drain::No, *id))
        .collect();
    saps.sort_unstable();
    saps.into_iter().map(|(_, id)| id).collect()
}

/// A rule in words: `allow web -> db tcp/5432`, or with `<->` when it holds in both directions.
#[must_use]
pub fn rule_text(rule: &RuleFacts) -> String {
    let action = match rule.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    format!("{action} {}", ends_text(rule))
}

/// What a rule speaks of: `web -> db tcp/5432`.
pub(super) fn ends_text(rule: &RuleFacts) -> String {
    let arrow = if rule.both { "<->" } else { "->" };
    let mut text = format!("{} {arrow} {}", rule.from, rule.to);
    for (at, service) in rule.services.iter().enumerate() {
        text.push_str(if at == 0 { " " } else { "," });
        text.push_str(&service.to_string());
    }
    text
}

//! Under which record a judged packet counts.
//!
//! A flow's entry remembers its record, so that a packet of a known flow costs no second lookup; it
//! forgets it when the policy changes, because another rule may decide then. What is denied, and what
//! passes without an entry, is looked up each time. ICMP errors that pass are not counted: they are
//! about a flow, and not of it.

use super::Facts;
use super::flows::Found;
use super::judge::{Crossing, Judge, Named, Passed};
use super::matcher::{Asked, Decision};
use super::records::{Outcome, RecordKey, RecordMark, Target};
use crate::types::{DropReason, NodeId, OverlayId, RuleId};
use crate::wire::inner::{Fragment, Upper};

/// A flow's first packet: who asked whom for what.
#[derive(Clone, Copy)]
struct Opening {
    from: u32,
    to: u32,
    asked: Asked,
}

impl<'a> Judge<'a> {
    /// As [`Judge::pass`]; says in `mark` where the packet counts. `id` knows members by number.
    pub(super) fn pass_marked(
        &self,
        crossing: Crossing<'_>,
        id: impl Fn(u32) -> NodeId,
        mark: &mut Option<RecordMark>,
    ) -> Result<Passed<'a>, DropReason> {
        let result = self.pass(crossing);
        *mark = match &result {
            Ok(passed) => self.passed(crossing, id, passed),
            Err(reason) => Some(self.refused(crossing, id, *reason)),
        };
        result
    }

    fn passed(
        &self,
        crossing: Crossing<'_>,
        id: impl Fn(u32) -> NodeId,
        passed: &Passed<'a>,
    ) -> Option<RecordMark> {
        let records = self.flows.records();
        let known = passed.flow.as_ref().and_then(Found::record);
        if let Some(mark) = known.filter(|mark| records.holds(*mark)) {
            return Some(mark);
        }
        let opening = self.opening(crossing, passed)?;
        let (rule, outcome) = match self.decide(opening.from, opening.to, opening.asked) {
            Decision::Allow(rule) => (Some(rule), Outcome::Allowed),
            Decision::Open => (None, Outcome::Open),
            Decision::Audit(rule) => (Some(rule), Outcome::Audit),
            // Part of something that passed, such as a fragment.
            Decision::Deny(_) | Decision::Isolated(_) | Decision::NoRule => {
                (None, Outcome::Allowed)
            }
        };
        let mark = records.find(&self.key(opening, id, rule, outcome), self.now.wall);
        if let Some(flow) = &passed.flow {
            flow.set_record(mark);
        }
        if let Fragment::First { identification } = crossing.facts.fragment
            && let Some(rest) =
                self.flows.find(&self.fragment_key(crossing.facts, identification), self.now)
        {
            rest.set_record(mark);
        }
        Some(mark)
    }

    /// How the flow of a packet that passed began; nothing for an ICMP error.
    fn opening(&self, crossing: Crossing<'_>, passed: &Passed<'a>) -> Option<Opening> {
        let Some(named) = self.named_by(crossing.facts) else {
            let is_error = matches!(crossing.facts.upper, Upper::IcmpError { .. });
            return (!is_error).then(|| without_port(crossing));
        };
        let is_forward = match &passed.flow {
            Some(flow) => flow.starter_is_lower() == named.source_is_lower,
            None => !passed.is_reply,
        };
        Some(directed(crossing, &named, is_forward))
    }

    /// What counts where a packet between members was refused.
    pub(super) fn refused(
        &self,
        crossing: Crossing<'_>,
        id: impl Fn(u32) -> NodeId,
        reason: DropReason,
    ) -> RecordMark {
        let named = self.named_by(crossing.facts);
        let opening = match (&named, reason) {
            // The port is the one that the other side made up.
            (None, _) | (_, DropReason::NoFlow) => without_port(crossing),
            (Some(named), DropReason::FlowRevoked) => {
                let flow = self.flows.find(&named.key, self.now);
                let is_forward =
                    flow.is_none_or(|flow| flow.starter_is_lower() == named.source_is_lower);
                directed(crossing, named, is_forward)
            }
            (Some(named), _) => directed(crossing, named, true),
        };
        let is_by_rule = reason == DropReason::DenyRule
            || reason == DropReason::NoRule && self.matcher.isolates();
        let decision = is_by_rule.then(|| self.decide(opening.from, opening.to, opening.asked));
        let rule = match decision {
            Some(Decision::Deny(rule) | Decision::Isolated(rule)) => Some(rule),
            _ => None,
        };
        let key = self.key(opening, id, rule, Outcome::Denied(reason));
        self.flows.records().find(&key, self.now.wall)
    }

    /// The flow that a packet names; nothing where it shows too little, and for ICMP errors.
    pub(super) fn named_by(&self, facts: &Facts) -> Option<Named> {
        if matches!(facts.fragment, Fragment::Later { .. }) {
            return None;
        }
        match facts.upper {
            Upper::Tcp { source_port, destination_port, .. }
            | Upper::Ports { source_port, destination_port } => {
                Some(self.named(facts, source_port, destination_port))
            }
            Upper::Echo { is_request, identifier } => {
                Some(self.named_echo(facts, is_request, identifier))
            }
            Upper::Opaque => Some(self.named_opaque(facts)),
            Upper::IcmpError { .. } => None,
        }
    }

    fn key(
        &self,
        opening: Opening,
        id: impl Fn(u32) -> NodeId,
        rule: Option<RuleId>,
        outcome: Outcome,
    ) -> RecordKey {
        RecordKey {
            overlay: OverlayId(self.overlay),
            rule,
            from: id(opening.from),
            to: Target::Member(id(opening.to)),
            protocol: opening.asked.protocol,
            port: opening.asked.port,
            outcome,
        }
    }
}

fn directed(crossing: Crossing<'_>, named: &Named, is_forward: bool) -> Opening {
    if is_forward {
        Opening { from: crossing.from, to: crossing.to, asked: named.forward }
    } else {
        Opening { from: crossing.to, to: crossing.from, asked: named.reverse }
    }
}

fn without_port(crossing: Crossing<'_>) -> Opening {
    let asked = Asked { protocol: crossing.facts.protocol, port: None };
    Opening { from: crossing.from, to: crossing.to, asked }
}

/// The port that a packet to an address without a row asks for.
pub(super) fn asked_port(facts: &Facts) -> Option<u16> {
    match facts.upper {
        Upper::Tcp { destination_port, .. } | Upper::Ports { destination_port, .. } => {
            Some(destination_port)
        }
        Upper::Echo { .. } | Upper::IcmpError { .. } | Upper::Opaque => None,
    }
}

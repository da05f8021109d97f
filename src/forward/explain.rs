//! What the table in force says of a flow that this node's host would start: for people who ask, never
//! for packets.

use std::net::{IpAddr, SocketAddr};

use super::Snapshot;
use super::matcher::{Asked, Decision};
use super::paths::Route;
use crate::types::{NodeId, RuleId, Timestamp};

/// What is known of a flow to one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The overlay that has the address in its range, as an index into the snapshot's overlays.
    pub overlay: usize,
    /// Whether the address is this node's own.
    pub is_own: bool,
    /// What the table says of who bears it; none when it has no row for the address.
    pub row: Option<Row>,
}

/// What the table says of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whether packets for it can be stamped.
    pub has_key: bool,
    /// How packets go to it.
    pub way: Way,
    /// What the rules say of the service that was asked about; none when none was.
    pub ruling: Option<Ruling>,
}

/// How packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the destination's endpoint; none when it has none.
    Direct(Option<SocketAddr>),
    /// Through these SaPs, in order.
    Via(Vec<NodeId>),
    /// Through one of these, the first that answers.
    AnyOf(Vec<NodeId>),
    /// There is none.
    Nowhere,
}

/// What the rules say of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It may start; by this rule, or because nothing speaks of it and unspoken flows pass.
    Allowed(Option<RuleId>),
    /// It may start and is recorded.
    Audited(RuleId),
    /// This rule refuses it, or none speaks of it.
    Refused(Option<RuleId>),
}

impl Snapshot {
    /// What would become of a flow from this node to `to`, of a protocol number and a port. None when
    /// no overlay of this node has the address in its range.
    #[must_use]
    pub fn explain(
        &self,
        to: IpAddr,
        asked: Option<(u8, Option<u16>)>,
        now: Timestamp,
    ) -> Option<Explanation> {
        let number = self.overlays.iter().position(|overlay| overlay.info.cidr.contains(&to))?;
        let overlay = self.overlays.get(number)?;
        let own = overlay.own?;
        let target = self.members.get(&to).filter(|(found, _)| *found as usize == number);
        let row = target.map(|&(_, to)| Row {
            has_key: overlay.send_keys.get(to as usize).is_some_and(Option::is_some),
            way: match overlay.route(own, to) {
                Route::Direct => {
                    let member = overlay.member(to);
                    Way::Direct(member.and_then(|member| member.endpoints.first().copied()))
                }
                Route::Via(chain) => Way::Via((0..).map_while(|at| chain.at(at)).collect()),
                Route::Default if overlay.default_saps.is_empty() => Way::Nowhere,
                Route::Default => Way::AnyOf(overlay.saps_for(to).to_vec()),
                Route::Elsewhere => Way::Nowhere,
            },
            ruling: asked.map(|(protocol, port)| {
                ruling(overlay.matcher.decide(own, to, Asked { protocol, port }, now))
            }),
        });
        Some(Explanation { overlay: number, is_own: overlay.info.address == Some(to), row })
    }
}

fn ruling(decision: Decision) -> Ruling {
    match decision {
        Decision::Allow(rule) => Ruling::Allowed(Some(rule)),
        Decision::Open => Ruling::Allowed(None),
        Decision::Audit(rule) => Ruling::Audited(rule),
        Decision::Deny(rule) | Decision::Isolated(rule) => Ruling::Refused(Some(rule)),
        Decision::NoRule => Ruling::Refused(None),
    }
}

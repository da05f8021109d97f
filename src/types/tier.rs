//! Tiers: in which order the rows of rules are asked.

use serde::{Deserialize, Serialize};

/// What a row of a rule does to the flows that it covers. A new flow is judged so:
///
/// 1. A [`Tier::Deny`] refuses it.
/// 2. Else a [`Tier::Allow`] lets it through.
/// 3. Else NetworkPolicies are asked, each end for itself: an end that none isolates in the flow's
///    direction is open, one that some isolate needs a row of that side ([`Tier::Egress`] for the source,
///    [`Tier::Ingress`] for the destination). Where neither end is isolated, the overlay's semantics say
///    whether it passes.
/// 4. Else a [`Tier::AuditAllow`] lets it through.
///
/// [`Tier::AuditDeny`] refuses nothing. A flow that passes by step 4 alone, and one that passes and that
/// an audit deny covers, would have been refused were it not for audit: that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Refuses.
    Deny,
    /// Would refuse.
    AuditDeny,
    /// Lets through.
    Allow,
    /// Lets through what nothing else does.
    AuditAllow,
    /// Lets through on the source's side.
    Egress,
    /// Lets through on the destination's side.
    Ingress,
}

impl Tier {
    /// All tiers, each at the place of its number.
    pub const ALL: [Self; 6] =
        [Self::Deny, Self::AuditDeny, Self::Allow, Self::AuditAllow, Self::Egress, Self::Ingress];
}

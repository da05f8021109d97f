//! Why a packet was dropped: one enum, one name everywhere (counters, status, logs, docs).

/// Defines [`DropReason`] with its names and explanations in one table.
macro_rules! drop_reasons {
    ($($variant:ident, $name:literal, $why:literal;)*) => {
        /// Why a packet was dropped. The order is the order of the checks, cheapest first
        /// (design section 4).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $why] $variant,)*
        }

        impl DropReason {
            /// Every reason, in order; `reason as usize` is its index here.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The reason of this name; none where it is of another version.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.name() == name)
            }

            /// The counter's name: lower case with `_`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for people.
            #[must_use]
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $why,)* }
            }
        }
    };
}

drop_reasons! {
    GueLength, "gue_length", "the datagram is too short for its GUE header";
    GueVariant, "gue_variant", "the GUE variant is not 0";
    GueHeaderLength, "gue_header_length", "the GUE header length is not exactly one word";
    GueFlags, "gue_flags", "the GUE flags are not exactly the group identifier";
    GueProtocol, "gue_protocol", "the GUE payload is neither IPv4 nor IPv6, nor our control type";
    ControlType, "control_type", "an unknown control type, experiment id, version or subtype";
    ControlBudget, "control_budget", "more control messages than the source may send";
    ControlMac, "control_mac", "a control message with an unknown link or a wrong MAC";
    ControlReplay, "control_replay", "a control message whose counter did not grow";
    OuterSource, "outer_source", "the outer source is no endpoint this node knows";
    SourceBinding, "source_binding", "the outer source does not own the inner source, nor is it the hop before on the pair's path";
    Key, "key", "the authorization key is not one of the pair";
    KeyBudget, "key_budget", "too many wrong keys for the pair: only flows that exist pass for now";
    InnerVersion, "inner_version", "the inner version does not agree with the GUE protocol";
    InnerLength, "inner_length", "the inner lengths do not fit the datagram";
    InnerAddress, "inner_address", "an inner address is no member's unicast address of the overlay";
    InnerOptions, "inner_options", "a source route option or a routing header";
    InnerNested, "inner_nested", "a tunnel inside the tunnel";
    InnerNeighbour, "inner_neighbour", "neighbour or router discovery, which never crosses";
    TcpFlags, "tcp_flags", "SYN together with FIN or RST";
    NoRow, "no_row", "no rule lets this entity talk to that address";
    NoRule, "no_rule", "no rule allows it";
    DenyRule, "deny_rule", "a deny rule refuses it";
    NoFlow, "no_flow", "a reply to a flow that is not known";
    FlowRevoked, "flow_revoked", "the flow's rule is gone";
    Fragment, "fragment", "a fragment whose first part was not seen allowed, or too short a first part";
    Path, "path", "this SaP is not on the pair's path";
    NoPath, "no_path", "no next hop is known";
    HopLimit, "hop_limit", "the outer TTL or hop limit ran out";
    TooBig, "too_big", "larger than the next hop's MTU";
    Ecn, "ecn", "congestion marked on a packet that cannot say so (RFC 6040)";
    SendFailed, "send_failed", "the kernel refused to send or write it";
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_indexes_agree() {
        let names: std::collections::BTreeSet<_> =
            DropReason::ALL.iter().map(|reason| reason.name()).collect();

        assert_eq!(names.len(), DropReason::COUNT);
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}

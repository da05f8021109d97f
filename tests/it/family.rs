//! IPv4 and IPv6, inside and outside of the tunnel.

use std::net::IpAddr;

use anyhow::Result;

use crate::fleet::Kind;
use crate::support::{LAB_CIDR, Rig, play_in};
use crate::world::Machine;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// A machine's address on the underlay.
    pub(crate) fn of(self, machine: &Machine) -> IpAddr {
        match self {
            Self::V4 => machine.ip4.into(),
            Self::V6 => machine.ip6.into(),
        }
    }

    /// A range for an overlay.
    fn cidr(self) -> &'static str {
        match self {
            Self::V4 => LAB_CIDR,
            Self::V6 => "fd70::/64",
        }
    }
}

/// Runs `test` on the SaP `s1` and the entities `a` and `b`, with these families inside and outside.
pub(crate) fn play_over(
    inside: Family,
    outside: Family,
    test: impl FnOnce(&mut Rig) -> Result<()>,
) {
    play_in(inside.cidr(), &[], &[], |rig| {
        for (name, kind) in [("s1", Kind::Sap), ("a", Kind::Entity), ("b", Kind::Entity)] {
            match outside {
                Family::V4 => rig.join(name, kind, &[])?,
                Family::V6 => rig.join_over_v6(name, kind)?,
            }
        }
        test(rig)
    });
}

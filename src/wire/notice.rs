//! Bodies of notices: what a SaP tells the entity whose packet it could not let through, and what an entity
//! tells the SaP that it moves a flow to.
//!
//! ```text
//! denied   counter(8) | reason(1) who(1) protocol(1) 00 | sequence(4) | ports(4) | source(16) destination(16)
//! too big  counter(8) | MTU(2) 00 00 00 00 00 00 | source(16) destination(16)
//! no path  counter(8) | node(4) 00 00 00 00
//! started  counter(8) | protocol(1) 00 00 00 | 00 00 00 00 | ports(4) | source(16) destination(16)
//! ```
//!
//! Addresses are those of the inner packet, IPv4 as mapped ones. A notice says nothing that the one
//! whose packet it was did not know before, but that it did not arrive.

use std::net::{IpAddr, Ipv6Addr};

use super::inner::Quoted;
use crate::types::{DropReason, NodeId};

/// Who refused a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refuser {
    /// The SaP that sends the notice.
    Sap,
    /// The destination; the SaP passes on what it said.
    Destination,
}

/// The opening packet of a flow was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Why: one of [`REASONS`].
    pub reason: DropReason,
    /// Who refused it.
    pub by: Refuser,
    /// The flow, as its opening packet names it.
    pub flow: Quoted,
    /// TCP's sequence number of the refused segment; 0 for other protocols.
    pub sequence: u32,
}

/// Packets of a pair are longer than a link behind the SaP takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBig {
    /// Source of the packet that did not fit.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// The longest inner packet that fits, in bytes.
    pub mtu: u16,
}

/// A SaP does not hear of an entity any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPath {
    /// That entity.
    pub node: NodeId,
}

/// The refusals that are told, with their numbers on the wire.
pub const REASONS: [(u8, DropReason); 5] = [
    (1, DropReason::NoRow),
    (2, DropReason::NoRule),
    (3, DropReason::DenyRule),
    (4, DropReason::FlowRevoked),
    (5, DropReason::Path),
];

/// Bytes of a body, the counter left out.
pub(super) const DENIED_LEN: usize = 44;
pub(super) const TOO_BIG_LEN: usize = 40;
pub(super) const NO_PATH_LEN: usize = 8;

impl Denied {
    /// `None` for a reason that is never told.
    pub(super) fn encode(&self) -> Option<[u8; DENIED_LEN]> {
        let (code, _) = REASONS.iter().find(|(_, reason)| *reason == self.reason)?;
        let who = match self.by {
            Refuser::Sap => 1,
            Refuser::Destination => 2,
        };
        let flow = &self.flow;
        let mut body = [0; DENIED_LEN];
        let parts: [&[u8]; 6] = [
            &[*code, who, flow.protocol, 0],
            &self.sequence.to_be_bytes(),
            &flow.source_port.to_be_bytes(),
            &flow.destination_port.to_be_bytes(),
            &mapped(flow.source),
            &mapped(flow.destination),
        ];
        fill(&mut body, parts);
        Some(body)
    }

    pub(super) fn decode(body: &[u8; DENIED_LEN]) -> Result<Self, DropReason> {
        let (&[code, who, protocol, _, q0, q1, q2, q3, s0, s1, d0, d1], rest) =
            body.split_first_chunk::<12>().ok_or(DropReason::ControlType)?;
        let (source, destination) = addresses(rest)?;
        let (_, reason) =
            REASONS.into_iter().find(|(known, _)| *known == code).ok_or(DropReason::ControlType)?;
        let by = match who {
            1 => Refuser::Sap,
            2 => Refuser::Destination,
            _ => return Err(DropReason::ControlType),
        };
        let flow = Quoted {
            source,
            destination,
            protocol,
            source_port: u16::from_be_bytes([s0, s1]),
            destination_port: u16::from_be_bytes([d0, d1]),
        };
        Ok(Self { reason, by, flow, sequence: u32::from_be_bytes([q0, q1, q2, q3]) })
    }
}

impl TooBig {
    pub(super) fn encode(&self) -> [u8; TOO_BIG_LEN] {
        let mut body = [0; TOO_BIG_LEN];
        let (source, destination) = (mapped(self.source), mapped(self.destination));
        fill(&mut body, [&self.mtu.to_be_bytes(), &[0; 6], &source, &destination]);
        body
    }

    pub(super) fn decode(body: &[u8; TOO_BIG_LEN]) -> Result<Self, DropReason> {
        let (&[m0, m1, ..], rest) = body.split_first_chunk::<8>().ok_or(DropReason::ControlType)?;
        let (source, destination) = addresses(rest)?;
        Ok(Self { source, destination, mtu: u16::from_be_bytes([m0, m1]) })
    }
}

impl NoPath {
    pub(super) fn encode(&self) -> [u8; NO_PATH_LEN] {
        let mut body = [0; NO_PATH_LEN];
        fill(&mut body, [&self.node.0.to_be_bytes()]);
        body
    }

    pub(super) fn decode(&[n0, n1, n2, n3, ..]: &[u8; NO_PATH_LEN]) -> Self {
        Self { node: NodeId(u32::from_be_bytes([n0, n1, n2, n3])) }
    }
}

/// A flow as its opening packet names it.
pub(super) fn encode_flow(flow: &Quoted) -> [u8; DENIED_LEN] {
    let mut body = [0; DENIED_LEN];
    let parts: [&[u8]; 5] = [
        &[flow.protocol, 0, 0, 0, 0, 0, 0, 0],
        &flow.source_port.to_be_bytes(),
        &flow.destination_port.to_be_bytes(),
        &mapped(flow.source),
        &mapped(flow.destination),
    ];
    fill(&mut body, parts);
    body
}

pub(super) fn decode_flow(body: &[u8; DENIED_LEN]) -> Result<Quoted, DropReason> {
    let (&[protocol, _, _, _, _, _, _, _, s0, s1, d0, d1], rest) =
        body.split_first_chunk::<12>().ok_or(DropReason::ControlType)?;
    let (source, destination) = addresses(rest)?;
    Ok(Quoted {
        source,
        destination,
        protocol,
        source_port: u16::from_be_bytes([s0, s1]),
        destination_port: u16::from_be_bytes([d0, d1]),
    })
}

fn fill<const N: usize>(body: &mut [u8], parts: [&[u8]; N]) {
    for (slot, byte) in body.iter_mut().zip(parts.into_iter().flatten()) {
        *slot = *byte;
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Source and destination, which are of one family.
fn addresses(bytes: &[u8]) -> Result<(IpAddr, IpAddr), DropReason> {
    let (source, rest) = bytes.split_first_chunk::<16>().ok_or(DropReason::ControlType)?;
    let destination = rest.first_chunk::<16>().ok_or(DropReason::ControlType)?;
    let canonical = |octets: [u8; 16]| IpAddr::V6(Ipv6Addr::from(octets)).to_canonical();
    let (source, destination) = (canonical(*source), canonical(*destination));
    if source.is_ipv4() == destination.is_ipv4() {
        Ok((source, destination))
    } else {
        Err(DropReason::ControlType)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Denied {
        let flow = Quoted {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            protocol: 6,
            source_port: 40_000,
            destination_port: 443,
        };
        Denied { reason: DropReason::NoRule, by: Refuser::Sap, flow, sequence: 0x0102_0304 }
    }

    #[test]
    fn reasons_and_families_that_make_no_sense_are_refused() {
        let good = denied().encode().unwrap();
        assert_eq!(Denied::decode(&good), Ok(denied()));

        for (at, value) in [(0, 0), (0, 200), (1, 0), (1, 3), (22, 0)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Denied::decode(&bad), Err(DropReason::ControlType), "{at} = {value}");
        }
        assert!(Denied { reason: DropReason::Key, ..denied() }.encode().is_none());
    }

    #[test]
    fn the_numbers_of_reasons_are_unique() {
        let codes: std::collections::BTreeSet<_> = REASONS.iter().map(|(code, _)| code).collect();
        let reasons: std::collections::BTreeSet<_> = REASONS.iter().map(|(_, r)| r).collect();
        assert_eq!((codes.len(), reasons.len()), (REASONS.len(), REASONS.len()));
    }
}

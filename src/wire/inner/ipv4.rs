//! IPv4 headers and their options.

use std::net::{IpAddr, Ipv4Addr};

use super::{Facts, Family, Fragment, Quoted, upper};
use crate::types::DropReason;
use crate::wire::tracer;

const HEADER_LEN: usize = 20;

/// Loose and strict source route: the sender would choose the way, past any policy.
const SOURCE_ROUTES: [u8; 2] = [131, 137];

/// The header's fixed part.
struct Header {
    header_len: usize,
    total_len: usize,
    ecn: u8,
    identification: u16,
    /// In units of 8 bytes.
    offset: u16,
    has_more: bool,
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, DropReason> {
        let &[first, ..] = bytes else { return Err(DropReason::InnerLength) };
        if first >> 4 != 4 {
            return Err(DropReason::InnerVersion);
        }
        let Some(
            &[_, tos, l0, l1, i0, i1, o0, o1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3],
        ) = bytes.first_chunk::<HEADER_LEN>()
        else {
            return Err(DropReason::InnerLength);
        };
        let offset_word = u16::from_be_bytes([o0, o1]);
        let header = Self {
            header_len: usize::from(first & 0x0F) * 4,
            total_len: usize::from(u16::from_be_bytes([l0, l1])),
            ecn: tos & 3,
            identification: u16::from_be_bytes([i0, i1]),
            offset: offset_word & 0x1FFF,
            has_more: offset_word & 0x2000 != 0,
            protocol,
            source: Ipv4Addr::new(s0, s1, s2, s3),
            destination: Ipv4Addr::new(d0, d1, d2, d3),
        };
        if header.header_len < HEADER_LEN || header.total_len < header.header_len {
            return Err(DropReason::InnerLength);
        }
        Ok(header)
    }
}

/// Reads an IPv4 packet.
pub(super) fn parse(bytes: &[u8]) -> Result<Facts, DropReason> {
    let header = Header::read(bytes)?;
    let packet = bytes.get(..header.total_len).ok_or(DropReason::InnerLength)?;
    let (head, payload) =
        packet.split_at_checked(header.header_len).ok_or(DropReason::InnerLength)?;
    check_options(head.get(HEADER_LEN..).unwrap_or_default())?;
    if is_martian(header.source)
        || is_martian(header.destination)
        || header.source == header.destination
    {
        return Err(DropReason::InnerAddress);
    }
    let identification = u32::from(header.identification);
    let fragment = match (header.offset, header.has_more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First { identification },
        _ => Fragment::Later { identification },
    };
    let place = upper::Place { protocol: header.protocol, fragment, offset: header.offset };
    let upper = upper::parse(place, payload, upper::ICMP)?;
    let (source, destination) = (header.source.into(), header.destination.into());
    Ok(Facts {
        family: Family::V4,
        source,
        destination,
        protocol: header.protocol,
        upper,
        fragment,
        len: u16::try_from(header.total_len).map_err(|_| DropReason::InnerLength)?,
        ecn: header.ecn,
        tracer: tracer::find((source, destination), header.protocol, (fragment, upper), payload),
    })
}

/// Reads the start of an IPv4 packet that an ICMP error quotes; its end may be missing.
pub(super) fn quoted(bytes: &[u8]) -> Result<Quoted, DropReason> {
    let header = Header::read(bytes).map_err(|_| DropReason::InnerLength)?;
    let payload = bytes.get(header.header_len..).ok_or(DropReason::InnerLength)?;
    let payload = if header.offset == 0 { payload } else { &[] };
    let (source_port, destination_port) = upper::quoted_ports(header.protocol, payload);
    Ok(Quoted {
        source: IpAddr::V4(header.source),
        destination: IpAddr::V4(header.destination),
        protocol: header.protocol,
        source_port,
        destination_port,
    })
}

fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let &[kind, ref rest @ ..] = options {
        options = match kind {
            0 => return Ok(()),
            1 => rest,
            _ if SOURCE_ROUTES.contains(&kind) => return Err(DropReason::InnerOptions),
            _ => {
                let len = usize::from(*rest.first().ok_or(DropReason::InnerOptions)?);
                if len < 2 {
                    return Err(DropReason::InnerOptions);
                }
                options.get(len..).ok_or(DropReason::InnerOptions)?
            }
        };
    }
    Ok(())
}

/// Whether no packet of an overlay may bear `address`: this network, loopback, link-local,
/// multicast, reserved and broadcast.
fn is_martian(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first == 0 || first >= 224 || address.is_loopback() || address.is_link_local()
}

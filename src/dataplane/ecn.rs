//! Explicit congestion notification across the tunnel (RFC 6040, normal mode).
//!
//! At the start of the tunnel the outer header gets the inner ECN bits; a SaP hands them on; at the
//! end the two are combined. DSCP never crosses from one to the other: the inner one would tell the
//! underlay what is inside, the outer one would let the underlay choose the host's classes.

use crate::wire::Family;

/// Not ECN-capable.
const NOT_ECT: u8 = 0b00;
/// ECN-capable, codepoint 1.
const ECT_1: u8 = 0b01;
/// ECN-capable, codepoint 0.
const ECT_0: u8 = 0b10;
/// Congestion experienced.
const CE: u8 = 0b11;

/// The two ECN bits of a TOS or traffic class byte.
const MASK: u8 = 0b11;

/// The ECN bits of the packet that leaves the tunnel (RFC 6040, figure 4); `None` when it must be
/// dropped: the path marked congestion on a packet that cannot say so.
pub(super) fn leave_tunnel(inner: u8, outer: u8) -> Option<u8> {
    let inner = inner & MASK;
    match (inner, outer & MASK) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (ECT_0, ECT_1) => Some(ECT_1),
        (_, CE) => Some(CE),
        _ => Some(inner),
    }
}

/// Writes the ECN bits into the inner header and keeps IPv4's checksum right. A packet that is too
/// short for its header is left alone (it was refused before).
pub(super) fn mark(family: Family, packet: &mut [u8], ecn: u8) {
    match (family, packet) {
        (Family::V4, [version, tos, _, _, _, _, _, _, _, _, high, low, ..]) => {
            let before = u16::from_be_bytes([*version, *tos]);
            *tos = *tos & !MASK | ecn & MASK;
            let after = u16::from_be_bytes([*version, *tos]);
            let checksum = u16::from_be_bytes([*high, *low]);
            [*high, *low] = update_checksum(checksum, before, after).to_be_bytes();
        }
        // The traffic class lies across two bytes: its two low bits are bits 4 and 5 of the second.
        (Family::V6, [_, class, ..]) => *class = *class & !(MASK << 4) | (ecn & MASK) << 4,
        (Family::V4 | Family::V6, _) => {}
    }
}

/// RFC 1624, equation 3: the checksum after one 16-bit word changed.
fn update_checksum(checksum: u16, before: u16, after: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!before) + u32::from(after);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sixteen_combinations_follow_the_table() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer in the same order.
        let order = [NOT_ECT, ECT_0, ECT_1, CE];
        let table = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for (inner, row) in order.into_iter().zip(table) {
            for (outer, expected) in order.into_iter().zip(row) {
                assert_eq!(leave_tunnel(inner, outer), expected, "{inner:02b} {outer:02b}");
                let with_dscp = outer | 0b1011_1000;
                assert_eq!(leave_tunnel(inner, with_dscp), expected, "the DSCP says nothing");
            }
        }
    }

    fn sum(header: &[u8]) -> u16 {
        let sum: u32 =
            header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        !((sum + (sum >> 16)) as u16)
    }

    #[test]
    fn the_ipv4_checksum_stays_right_for_every_tos_and_mark() {
        for tos in 0..=255_u8 {
            for ecn in 0..4 {
                let mut packet =
                    [0x45, tos, 0, 20, 0x12, tos, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
                let checksum = sum(&packet);
                packet[10..12].copy_from_slice(&checksum.to_be_bytes());
                assert_eq!(sum(&packet), 0);

                mark(Family::V4, &mut packet, ecn);

                assert_eq!(sum(&packet), 0, "tos {tos:02x}, mark {ecn}");
                assert_eq!(packet[1], tos & 0xfc | ecn, "the DSCP stays");
            }
        }
    }

    #[test]
    fn ipv6_keeps_its_dscp_and_flow_label() {
        let mut packet = [0; 40];
        packet[..4].copy_from_slice(&[0x6b, 0x8f, 0x12, 0x34]);

        mark(Family::V6, &mut packet, CE);
        assert_eq!(packet[..4], [0x6b, 0xbf, 0x12, 0x34]);
        mark(Family::V6, &mut packet, NOT_ECT);
        assert_eq!(packet[..4], [0x6b, 0x8f, 0x12, 0x34]);
    }
}

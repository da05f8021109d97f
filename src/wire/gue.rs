//! GUE headers: exactly three forms are accepted (`draft-ietf-intarea-gue-09`, stricter by local
//! policy, design section 4).
//!
//! ```text
//! 01 04 80 00 KEY(4)             data, IPv4 inside
//! 01 29 80 00 KEY(4)             data, IPv6 inside
//! 21 ff 80 00 LINK(4) ExID(4)    control, ours
//! ```

use crate::types::{DropReason, LinkId};
use crate::wire::Family;

/// The UDP port that IANA assigned to GUE.
pub const PORT: u16 = 6080;

/// Bytes before the inner packet.
pub const HEADER_LEN: usize = 8;

/// The experiment id of our control messages.
pub const EXID: u32 = 0x5A4F_4C31;

/// A datagram with a header that is one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A wrapped packet.
    Data {
        /// What the header says is inside; the version nibble is not checked yet.
        family: Family,
        /// The key field, not checked yet.
        key: u32,
        /// The inner packet, with whatever follows it.
        inner: &'a [u8],
    },
    /// A control message; its MAC is the next check.
    Control {
        /// The key field: the link whose secret made the MAC.
        link: LinkId,
        /// The whole datagram: the MAC covers the header too.
        datagram: &'a [u8],
    },
}

/// Splits `datagram` into its header and what it carries.
///
/// # Errors
///
/// The reason to drop it, cheapest check first: length, variant, header length, flags, protocol.
pub fn decode(datagram: &[u8]) -> Result<Frame<'_>, DropReason> {
    let _ = datagram;
    todo!()
}

/// The header of a data packet.
#[must_use]
pub fn data_header(family: Family, key: u32) -> [u8; HEADER_LEN] {
    let _ = (family, key);
    todo!()
}

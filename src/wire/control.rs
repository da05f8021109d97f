//! Control messages between `ovd` and `ovsap`: ctype 255, our ExID, a counter and a MAC.

use crate::types::{DropReason, LinkId, Secret};

/// What a control message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Subtype 1: asks for an echo. Also registers the sender's outer address.
    EchoRequest(Echo),
    /// Subtype 2: answers one, with the same body and the responder's times.
    EchoReply(Echo),
}

/// The body of an echo, 32 bytes both ways, so that no answer is longer than its question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echo {
    /// Counts the requests of the sender; the reply repeats it.
    pub sequence: u32,
    /// When the request left, in nanoseconds of the requester's own clock; opaque to the peer.
    pub sent_nanos: u64,
}

/// The longest control message, in bytes.
pub const MAX_LEN: usize = 128;

/// Encodes and signs a message into a buffer; returns it with its length in bytes.
///
/// `counter` must grow with every message of this direction of this link.
#[must_use]
pub fn encode(
    link: LinkId,
    secret: &Secret,
    counter: u64,
    message: &Message,
) -> ([u8; MAX_LEN], usize) {
    let _ = (link, secret, counter, message);
    todo!()
}

/// Checks the MAC of `datagram` (which [`super::gue::decode`] called control) and reads it. Returns
/// the counter with it; whether that has grown is the caller's business.
///
/// # Errors
///
/// [`DropReason::ControlMac`] or [`DropReason::ControlType`].
pub fn decode(datagram: &[u8], secret: &Secret) -> Result<(u64, Message), DropReason> {
    let _ = (datagram, secret);
    todo!()
}

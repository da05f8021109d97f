//! Any control message: what is accepted is what would be sent.

use ovmesh::types::Secret;
use ovmesh::wire::control;
use ovmesh::wire::gue::{self, Frame};

/// Everything that must hold of one input.
pub fn check(datagram: &[u8]) {
    let secret = Secret::new([7; 32]);
    if let Ok((counter, message)) = control::decode(datagram, &secret) {
        let Ok(Frame::Control { link, .. }) = gue::decode(datagram) else {
            panic!("accepted without a control header");
        };
        let (buffer, len) = control::encode(link, &secret, counter, &message);
        assert_eq!(buffer.get(..16), datagram.get(..16));
        assert_eq!(len, datagram.len());
    }
}

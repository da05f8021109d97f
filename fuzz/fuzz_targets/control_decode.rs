//! Any control message: what is accepted is what would be sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ovmesh::types::Secret;
use ovmesh::wire::control;
use ovmesh::wire::gue::{self, Frame};

fuzz_target!(|datagram: &[u8]| {
    let secret = Secret::new([7; 32]);
    if let Ok((counter, message)) = control::decode(datagram, &secret) {
        let Ok(Frame::Control { link, .. }) = gue::decode(datagram) else {
            panic!("accepted without a control header");
        };
        let (buffer, len) = control::encode(link, &secret, counter, &message);
        assert_eq!(buffer.get(..16), datagram.get(..16));
        assert_eq!(len, datagram.len());
    }
});

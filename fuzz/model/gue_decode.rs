//! Any datagram: decoded without a panic, and the inner packet is exactly what follows the header.

use ovmesh::wire::gue::{self, Frame};

/// Everything that must hold of one input.
pub fn check(datagram: &[u8]) {
    match gue::decode(datagram) {
        Ok(Frame::Data { family, key, inner }) => {
            assert_eq!(datagram.get(..gue::HEADER_LEN), Some(&gue::data_header(family, key)[..]));
            assert_eq!(datagram.get(gue::HEADER_LEN..), Some(inner));
        }
        Ok(Frame::Control { datagram: whole, .. }) => assert_eq!(whole, datagram),
        Err(_) => {}
    }
}

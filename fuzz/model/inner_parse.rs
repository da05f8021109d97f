//! Any inner packet, read as both families: no panic, and never longer than what was given.

use ovmesh::wire::{Family, inner};

/// Everything that must hold of one input.
pub fn check(packet: &[u8]) {
    for family in [Family::V4, Family::V6] {
        if let Ok(facts) = inner::parse(family, packet) {
            assert!(usize::from(facts.len) <= packet.len());
            assert_ne!(facts.source, facts.destination);
            assert_eq!(facts.source.is_ipv4(), family == Family::V4);
        }
    }
}

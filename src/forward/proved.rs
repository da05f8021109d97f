//! Where members are, as they proved it at this SaP. A table says where they want to be found, which is
//! a claim; what they proved goes before it and changes without a new table.

use std::collections::HashSet;
use std::net::SocketAddr;

use super::snapshot::{Overlay, Tables, canonical};
use crate::types::NodeId;

/// The proved endpoints of the members of all overlays.
#[derive(Debug)]
pub(super) struct Proved {
    /// By the number of the member among the members of all overlays.
    endpoints: Box<[Option<SocketAddr>]>,
    /// Those that the table does not name.
    pub(super) known: HashSet<SocketAddr>,
}

impl Proved {
    pub(super) fn new(tables: &Tables, endpoint_of: impl Fn(NodeId) -> Option<SocketAddr>) -> Self {
        let members = tables.overlays.iter().flat_map(|overlay| &overlay.members);
        let endpoints: Box<[_]> =
            members.map(|member| endpoint_of(member.id).map(canonical)).collect();
        let unnamed =
            endpoints.iter().flatten().filter(|endpoint| !tables.known.contains(endpoint));
        let known = unnamed.copied().collect();
        Self { endpoints, known }
    }

    pub(super) fn endpoint(&self, overlay: &Overlay, number: u32) -> Option<SocketAddr> {
        let at = overlay.first_member.checked_add(number)?;
        self.endpoints.get(at as usize).copied().flatten()
    }
}

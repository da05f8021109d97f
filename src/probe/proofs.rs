//! Where entities proved to be. Each is at one endpoint, and each endpoint is the one's who proved it last:
//! a NAT may have given it to another by then.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::types::NodeId;

/// What a SaP knows of entities' endpoints.
#[derive(Clone, Debug, Default)]
pub struct Proofs {
    by_entity: BTreeMap<NodeId, SocketAddr>,
    by_endpoint: BTreeMap<SocketAddr, NodeId>,
    /// Counts changes.
    version: u64,
}

impl Proofs {
    /// `entity` proved that it is at `endpoint`.
    pub fn prove(&mut self, entity: NodeId, endpoint: SocketAddr) {
        if self.by_entity.get(&entity) == Some(&endpoint) {
            return;
        }
        if let Some(before) = self.by_entity.insert(entity, endpoint) {
            self.by_endpoint.remove(&before);
        }
        if let Some(other) = self.by_endpoint.insert(endpoint, entity) {
            self.by_entity.remove(&other);
        }
        self.version += 1;
    }

    /// Where `entity` is.
    #[must_use]
    pub fn endpoint(&self, entity: NodeId) -> Option<SocketAddr> {
        self.by_entity.get(&entity).copied()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &BTreeMap<NodeId, SocketAddr> {
        &self.by_entity
    }

    /// Forgets entities that are gone.
    pub fn retain(&mut self, is_there: impl Fn(NodeId) -> bool) {
        let before = self.by_entity.len();
        self.by_entity.retain(|&entity, _| is_there(entity));
        self.by_endpoint.retain(|_, &mut entity| is_there(entity));
        self.version += u64::from(self.by_entity.len() != before);
    }

    /// Changes with every change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    #[test]
    fn an_entity_has_one_endpoint_and_an_endpoint_one_entity() {
        let [home, street]: [SocketAddr; 2] =
            ["192.0.2.1:6080", "192.0.2.2:6080"].map(|at| at.parse().unwrap());
        let mut proofs = Proofs::default();
        proofs.prove(A, home);
        let version = proofs.version();
        proofs.prove(A, home);
        assert_eq!(proofs.version(), version, "no news");

        proofs.prove(A, street);
        proofs.prove(B, home);
        assert_eq!((proofs.endpoint(A), proofs.endpoint(B)), (Some(street), Some(home)));

        proofs.prove(B, street);
        assert_eq!((proofs.endpoint(A), proofs.endpoint(B)), (None, Some(street)));
        proofs.prove(A, home);
        assert_eq!((proofs.endpoint(A), proofs.endpoint(B)), (Some(home), Some(street)));

        proofs.retain(|entity| entity == B);
        assert_eq!((proofs.endpoint(A), proofs.all().len()), (None, 1));
        assert!(proofs.version() > version);
    }
}

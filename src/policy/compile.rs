//! World in, one table per node out.

use std::collections::BTreeMap;

use super::World;
use crate::api::table::{DestinationKey, TableBody};
use crate::types::{AuthorizationKey, Generation, NodeId, OverlayId, Timestamp};

/// Where compilation gets keys from; `control` implements it with `keys`.
pub trait KeySource {
    /// The `Kb`s that are accepted for `to`, oldest first: one, or two during a rotation.
    fn destination_keys(&self, overlay: OverlayId, to: NodeId) -> Vec<DestinationKey>;
    /// The generations accepted for the pair, oldest first; empty for "only 0".
    fn pair_generations(&self, overlay: OverlayId, from: NodeId, to: NodeId) -> Vec<Generation>;
    /// What `from` stamps for `to` at the moment.
    fn send_key(&self, overlay: OverlayId, from: NodeId, to: NodeId) -> AuthorizationKey;
}

/// Compiles the tables of all nodes. Same input, same output.
#[must_use]
pub fn compile(world: &World, keys: &dyn KeySource, now: Timestamp) -> BTreeMap<NodeId, TableBody> {
    let _ = (world, keys, now);
    todo!()
}

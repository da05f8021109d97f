//! A table turned into a snapshot.

use std::collections::BTreeSet;

use crate::api::table::{Action, NodeTable, OverlayTable, PathHops, SapRow};
use crate::forward::{
    DestinationKeySpec, Hops, MemberSpec, OverlayInfo, OverlaySpec, PairSpec, PathSpec, RuleSpec,
    SapInfo, Snapshot, SnapshotBuilder,
};

/// Builds the snapshot that `table` describes.
///
/// # Errors
///
/// What is inconsistent in the table, in words. Such a table is refused whole.
pub fn build(table: &NodeTable) -> Result<Snapshot, String> {
    let body = &table.body;
    unique("SaP", body.saps.iter().map(|row| row.id))?;
    unique("link", body.links.iter().map(|row| row.id))?;
    unique("overlay", body.overlays.iter().map(|overlay| overlay.id))?;
    let mut builder = SnapshotBuilder::new(body.node.id, body.node.kind);
    for row in &body.saps {
        builder = builder.sap(sap(row));
    }
    for table in &body.overlays {
        unique("member", table.members.iter().map(|row| row.id))
            .and_then(|()| {
                unique("key of member number", table.destination_keys.iter().map(|row| row.to))
            })
            .and_then(|()| {
                unique("key for member number", table.send_keys.iter().map(|row| row.to))
            })
            .map_err(|problem| format!("overlay {}: {problem}", table.name))?;
        builder = builder.overlay(overlay(table));
    }
    builder.build()
}

fn unique<T: Ord + std::fmt::Debug>(
    what: &str,
    ids: impl Iterator<Item = T>,
) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for id in ids {
        if let Some(twice) = seen.replace(id) {
            return Err(format!("{what} {twice:?} stands there twice"));
        }
    }
    Ok(())
}

fn sap(row: &SapRow) -> SapInfo {
    SapInfo { id: row.id, name: row.name.clone(), endpoints: row.endpoints.clone() }
}

fn overlay(table: &OverlayTable) -> OverlaySpec {
    OverlaySpec {
        info: OverlayInfo {
            id: table.id,
            name: table.name.clone(),
            cidr: table.cidr,
            address: table.address,
            is_silent: table.silent,
        },
        members: table
            .members
            .iter()
            .map(|row| MemberSpec {
                id: row.id,
                address: row.address,
                endpoints: row.endpoints.clone(),
            })
            .collect(),
        sets: table.sets.clone(),
        rules: table
            .rules
            .iter()
            .map(|row| RuleSpec {
                id: row.id,
                is_deny: row.action == Action::Deny,
                from: row.from,
                to: row.to,
                services: row.services.clone(),
                not_after: row.not_after,
            })
            .collect(),
        paths: table
            .paths
            .iter()
            .map(|row| PathSpec {
                from: row.from,
                to: row.to,
                hops: match &row.hops {
                    PathHops::Direct => Hops::Direct,
                    PathHops::Via(saps) => Hops::Via(saps.clone()),
                    PathHops::Elsewhere => Hops::Elsewhere,
                },
            })
            .collect(),
        default_saps: table.default_saps.clone(),
        destination_keys: table
            .destination_keys
            .iter()
            .map(|row| DestinationKeySpec {
                to: row.to,
                accept: row.accept.iter().map(|key| key.secret.clone()).collect(),
            })
            .collect(),
        pairs: table
            .pair_generations
            .iter()
            .map(|row| PairSpec { from: row.from, to: row.to, accept: row.accept.clone() })
            .collect(),
        send_keys: table.send_keys.iter().map(|row| (row.to, row.key)).collect(),
    }
}

//! A table turned into a snapshot.

use std::collections::BTreeSet;

use crate::api::table::{NodeTable, OverlayTable, PathHops, SapRow};
use crate::forward::{
    DestinationKeySpec, Hops, IsolationSpec, MemberSpec, OverlayInfo, OverlaySpec, PairSpec,
    PathSpec, RuleSpec, SapInfo, Snapshot, SnapshotBuilder,
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
                tier: row.tier,
                from: row.from,
                to: row.to,
                services: row.services.clone(),
                not_after: row.not_after,
            })
            .collect(),
        unspoken_passes: table.unspoken_passes,
        isolated: table
            .isolated
            .iter()
            .map(|row| IsolationSpec {
                member: row.member,
                egress: row.egress,
                ingress: row.ingress,
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
        preferences: table.preferences.iter().map(|row| (row.with, row.saps.clone())).collect(),
        empty_saps: table.empty_saps.clone(),
        destination_keys: table
            .destination_keys
            .iter()
            .map(|row| DestinationKeySpec {
                to: row.to,
                accept: row.accept.iter().map(|key| key.secret.clone()).collect(),
                old_until: row.old_until,
            })
            .collect(),
        pairs: table
            .pair_generations
            .iter()
            .map(|row| PairSpec {
                from: row.from,
                to: row.to,
                accept: row.accept.clone(),
                old_until: row.old_until,
            })
            .collect(),
        send_keys: table.send_keys.iter().map(|row| (row.to, row.key)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::{FlowTable, Now, Verdict};
    use crate::types::{DropReason, OverlayId, Timestamp};
    use crate::wire::{Family, gue, inner};

    /// The table of entity `n-1` (10.0.0.1), which may ask `n-2` (10.0.0.2) for udp/53 by one SaP.
    fn table() -> NodeTable {
        let secret = "07".repeat(32);
        serde_json::from_value(serde_json::json!({
            "apiVersion": "ovmesh/v1", "incarnation": "aa", "serial": 3, "revision": 2,
            "body": {
                "node": {"id": 1, "kind": "entity", "name": "a"},
                "saps": [{"id": 9, "name": "s1", "endpoints": ["192.0.2.9:6080"]}],
                "links": [{"id": 5, "peer": 9, "secret": secret}],
                "overlays": [{
                    "id": 1, "name": "default", "cidr": "10.0.0.0/24", "address": "10.0.0.1",
                    "silent": false, "unspokenPasses": false, "isolated": [],
                    "members": [
                        {"id": 1, "name": "a", "address": "10.0.0.1", "endpoints": []},
                        {"id": 2, "name": "b", "address": "10.0.0.2", "endpoints": []},
                    ],
                    "sets": [[0], [1]],
                    "rules": [{"id": 1, "tier": "allow", "from": 0, "to": 1,
                               "services": ["udp/53"], "notAfter": null}],
                    "paths": [], "defaultSaps": [9],
                    "destinationKeys": [{"to": 0, "accept": [
                        {"version": {"epoch": 1, "generation": 0}, "secret": secret}]}],
                    "pairGenerations": [],
                    "sendKeys": [{"to": 1, "key": 4711}],
                }],
            },
        }))
        .unwrap()
    }

    fn ask(snapshot: &Snapshot, port: u8) -> Verdict {
        let packet = [
            0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 9, 9, 0, port, 0,
            8, 0, 0,
        ];
        let facts = inner::parse(Family::V4, &packet).unwrap();
        let now = Now { monotonic_millis: 0, wall: Timestamp(0) };
        snapshot.egress(0, &facts, &FlowTable::new(64), now)
    }

    #[test]
    fn a_table_becomes_verdicts() {
        let snapshot = build(&table()).unwrap();

        let Verdict::Send { hop, key } = ask(&snapshot, 53) else { panic!("not sent") };
        assert_eq!((hop.to_string().as_str(), key.bits()), ("192.0.2.9:6080", 4711));
        assert_eq!(ask(&snapshot, 54), Verdict::Drop(DropReason::NoRule));
        assert_eq!(snapshot.overlays().next().unwrap().id, OverlayId(1));
        assert_eq!(snapshot.saps()[0].endpoints[0].port(), gue::PORT);
    }

    #[test]
    fn a_table_that_contradicts_itself_is_refused_in_words() {
        type Break = (fn(&mut NodeTable), &'static str);
        let breaks: [Break; 5] = [
            (|table| table.body.saps.clear(), "has no row"),
            (|table| table.body.overlays[0].rules[0].to = 7, "set number 7 of 2"),
            (
                |table| {
                    let row = table.body.overlays[0].members[0].clone();
                    table.body.overlays[0].members.push(row);
                },
                "stands there twice",
            ),
            (|table| table.body.overlays[0].address = "10.0.0.7".parse().ok(), "is no member's"),
            (|table| table.body.node.id.0 = 2, "is n-1, not n-2"),
        ];
        for (break_it, words) in breaks {
            let mut broken = table();
            break_it(&mut broken);
            let problem = build(&broken).map(|_| ()).unwrap_err();
            assert!(problem.contains(words), "{problem}");
        }
    }
}

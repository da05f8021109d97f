//! What the guard lets out to addresses outside: what tables allow this machine to open there, and what
//! ovmesh itself needs.

use std::net::SocketAddr;

use crate::api::table::{NodeTable, OutsideRow, OverlayTable};
use crate::guard::{Egress, Outside};
use crate::types::{GuardEgress, Protocol, Tier, Timestamp};

/// What holds where the operator of this machine said nothing: policies of Kubernetes speak of the
/// outside, and mean it.
pub(crate) fn usual(table: Option<&NodeTable>) -> GuardEgress {
    if overlays(table).any(|overlay| overlay.unspoken_passes) {
        GuardEgress::Rules
    } else {
        GuardEgress::Off
    }
}

/// What the rules of all overlays let this machine open to the outside: a denial of any goes before what
/// another one allows.
pub(crate) fn egress(table: Option<&NodeTable>, servers: &[SocketAddr], now: Timestamp) -> Egress {
    let select = |wanted: &[Tier]| -> Vec<Outside> {
        let rows = rows(table).filter(|row| wanted.contains(&row.tier));
        rows.filter(|row| row.not_after.is_none_or(|end| now < end))
            .map(|OutsideRow { cidr, except, services, .. }| Outside {
                cidr: *cidr,
                except: except.clone(),
                services: services.clone(),
            })
            .collect()
    };
    let body = table.map(|table| &table.body);
    let saps = body.into_iter().flat_map(|body| &body.saps).flat_map(|sap| &sap.endpoints);
    let members = overlays(table).flat_map(|overlay| &overlay.members);
    let peers = members.flat_map(|member| &member.endpoints);
    let wrapped = saps.chain(peers).map(|&to| (Protocol::Udp, to));
    Egress {
        ovmesh: wrapped.chain(servers.iter().map(|&to| (Protocol::Tcp, to))).collect(),
        denied: select(&[Tier::Deny]),
        allowed: select(&[Tier::Allow, Tier::Egress, Tier::AuditAllow]),
        unspoken_passes: overlays(table).any(|overlay| overlay.outside.unspoken_passes),
    }
}

/// When the next of the rows in force ends.
pub(crate) fn next_end(table: Option<&NodeTable>, now: Timestamp) -> Option<Timestamp> {
    rows(table).filter_map(|row| row.not_after).filter(|&end| now < end).min()
}

fn rows(table: Option<&NodeTable>) -> impl Iterator<Item = &OutsideRow> {
    overlays(table).flat_map(|overlay| &overlay.outside.rows)
}

fn overlays(table: Option<&NodeTable>) -> impl Iterator<Item = &OverlayTable> {
    table.into_iter().flat_map(|table| &table.body.overlays)
}

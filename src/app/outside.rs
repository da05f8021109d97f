//! What the guard lets out to addresses outside: what tables allow this machine to open there, and what
//! ovmesh itself needs.

use std::net::SocketAddr;

use crate::api::table::{NodeTable, OutsideRow, OverlayTable};
use crate::guard::{Egress, Outside};
use crate::types::{GuardEgress, Protocol, Tier, Timestamp};

/// The overlays whose rules about addresses outside are held to. Where the operator of this machine said
/// nothing these are the ones of Kubernetes semantics: their policies speak of the outside, and mean it.
pub(crate) fn judged(table: Option<&NodeTable>, wanted: Option<GuardEgress>) -> Vec<&OverlayTable> {
    let overlays = table.into_iter().flat_map(|table| &table.body.overlays);
    overlays
        .filter(|overlay| match wanted {
            Some(GuardEgress::Rules) => true,
            Some(GuardEgress::Off) => false,
            None => overlay.unspoken_passes,
        })
        .collect()
}

/// What the rules of the overlays in `judged` let this machine open to the outside. Each may allow, and a denial of
/// any goes first; what nobody speaks of passes where none of them is closed to it.
pub(crate) fn egress(
    table: Option<&NodeTable>,
    judged: &[&OverlayTable],
    servers: &[SocketAddr],
    now: Timestamp,
) -> Egress {
    let select = |wanted: &[Tier]| -> Vec<Outside> {
        let rows = rows(judged).filter(|row| wanted.contains(&row.tier));
        rows.filter(|row| row.not_after.is_none_or(|end| now < end))
            .map(|OutsideRow { cidr, except, services, .. }| Outside {
                cidr: *cidr,
                except: except.clone(),
                services: services.clone(),
            })
            .collect()
    };
    let body = || table.into_iter().map(|table| &table.body);
    let saps = body().flat_map(|body| &body.saps).flat_map(|sap| &sap.endpoints);
    let members = body().flat_map(|body| &body.overlays).flat_map(|overlay| &overlay.members);
    let wrapped = saps.chain(members.flat_map(|member| &member.endpoints));
    let wrapped = wrapped.map(|&to| (Protocol::Udp, to));
    Egress {
        ovmesh: wrapped.chain(servers.iter().map(|&to| (Protocol::Tcp, to))).collect(),
        denied: select(&[Tier::Deny]),
        allowed: select(&[Tier::Allow, Tier::Egress, Tier::AuditAllow]),
        unspoken_passes: !judged.is_empty()
            && judged.iter().all(|overlay| overlay.outside.unspoken_passes),
    }
}

/// When the next of the rules in force ends.
pub(crate) fn next_end(judged: &[&OverlayTable], now: Timestamp) -> Option<Timestamp> {
    rows(judged).filter_map(|row| row.not_after).filter(|&end| now < end).min()
}

fn rows<'a>(judged: &[&'a OverlayTable]) -> impl Iterator<Item = &'a OutsideRow> {
    judged.iter().flat_map(|overlay| &overlay.outside.rows)
}

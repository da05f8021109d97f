//! Whether a change is enforced: for each pair touched, every SaP on its list or the destination has
//! acknowledged (design section 5). A direct pair needs its destination.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::live::{Live, NodeState};
use super::publish::Published;
use super::server::{Server, now};
use crate::api::admin::{Enforcement, Pending};
use crate::api::table::PathHops;
use crate::policy::Paths;
use crate::types::{NodeId, NodeKind, OverlayId};

/// Most pairs that are looked at one by one; beyond, every destination and SaP counts.
const PAIRS_MAX: usize = 20_000;

/// How long a change that is enforced still waits for nodes that nobody needs for it, so that who has a new
/// right can use it. One of them may have lost its way to the server and not know.
const SETTLE: Duration = Duration::from_secs(1);

/// The pairs that a change is about.
#[derive(Clone, Debug)]
pub(crate) struct Touched {
    pub(crate) overlay: OverlayId,
    pub(crate) from: BTreeSet<NodeId>,
    pub(crate) to: BTreeSet<NodeId>,
    /// Also the pairs the other way.
    pub(crate) both: bool,
    /// Members who may open other flows to addresses outside: their own guards hold them to it, and nobody else.
    pub(crate) outside: BTreeSet<NodeId>,
}

/// Waits for `published` as long as `limit`, and says how far it came. Without a limit it only looks.
pub(crate) async fn wait(
    server: &Arc<Server>,
    published: &Published,
    touched: &[Touched],
    limit: Option<Duration>,
) -> Enforcement {
    let started = Instant::now();
    let deadline = limit.map(|limit| started + limit);
    let mut ticks = server.ticks.subscribe();
    let mut settles = None;
    loop {
        let (mut report, is_settled) = look(&server.live(), published, touched);
        report.waited = limit.is_some();
        report.waited_millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Some(deadline) = deadline else {
            report.enforced = true;
            report.waited_millis = 0;
            return report;
        };
        if report.enforced && settles.is_none() {
            settles = Some(Instant::now() + SETTLE);
        }
        let is_over = (report.enforced && (is_settled || settles <= Some(Instant::now())))
            || Instant::now() >= deadline
            || *server.stopping.borrow();
        if is_over {
            return report;
        }
        // Whoever goes offline while we wait is not waited for any longer: look again now and then.
        let again = (Instant::now() + Duration::from_millis(500)).min(deadline);
        let _ = tokio::time::timeout_at(again, ticks.changed()).await;
    }
}

/// How far it is, and whether everybody who is connected has answered.
pub(super) fn look(live: &Live, published: &Published, touched: &[Touched]) -> (Enforcement, bool) {
    let behind: BTreeSet<NodeId> = published
        .iter()
        .filter(|(id, serial)| !live.has_acknowledged(**id, **serial))
        .map(|(id, _)| *id)
        .collect();
    let culprits = culprits(live, published, touched, &behind);
    let is_settled = !behind.iter().any(|id| live.nodes.get(id).is_some_and(NodeState::is_online));
    let enforced_by = published
        .keys()
        .filter(|id| !behind.contains(id))
        .filter_map(|id| live.world.nodes.get(id))
        .filter(|node| node.kind == NodeKind::Sap)
        .map(|node| node.name.name.to_string())
        .collect();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let named = if culprits.is_empty() { &behind } else { &culprits };
    let pending: Vec<Pending> = named.iter().map(|id| live.pending(*id)).collect();
    let report = Enforcement {
        enforced: culprits.is_empty(),
        waited: true,
        waited_millis: 0,
        acknowledged: count(published.len() - behind.len()),
        concerned: count(published.len()),
        enforced_by,
        pending,
    };
    (report, is_settled)
}

/// Of those behind, the ones that keep the change from being enforced.
fn culprits(
    live: &Live,
    published: &Published,
    touched: &[Touched],
    behind: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let is_sap =
        |id: &NodeId| live.world.nodes.get(id).is_some_and(|node| node.kind == NodeKind::Sap);
    if behind.is_empty() {
        return BTreeSet::new();
    }
    if touched.is_empty() {
        // No pair of its own: SaPs enforce for everybody; without any, each entity for itself.
        return if published.keys().any(is_sap) {
            behind.iter().copied().filter(is_sap).collect()
        } else {
            behind.clone()
        };
    }
    let mut found = BTreeSet::new();
    let mut looked_at = 0;
    for pairs in touched {
        let holds = |id: &&NodeId| {
            live.nodes.get(*id).is_some_and(|node| node.holds_egress.contains(&pairs.overlay))
        };
        found.extend(pairs.outside.intersection(behind).filter(holds));
        let paths = Paths::new(&live.world, pairs.overlay, now());
        let mut directions = vec![(&pairs.from, &pairs.to)];
        if pairs.both {
            directions.push((&pairs.to, &pairs.from));
        }
        for (sources, destinations) in directions {
            // A destination that is gone cannot acknowledge: then the SaPs must.
            let late = destinations
                .iter()
                .filter(|to| behind.contains(to) || !live.world.nodes.contains_key(to));
            for to in late {
                for from in sources.iter().filter(|from| *from != to) {
                    looked_at += 1;
                    if looked_at > PAIRS_MAX {
                        return behind.clone();
                    }
                    found.extend(missing(live, pairs.overlay, &paths, (*from, *to), behind));
                }
            }
        }
    }
    found
}

/// Who is missing for one pair whose destination is behind or gone.
fn missing(
    live: &Live,
    overlay: OverlayId,
    paths: &Paths<'_>,
    (from, to): (NodeId, NodeId),
    behind: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let mut found = BTreeSet::new();
    let both_live = live.world.nodes.contains_key(&from) && live.world.nodes.contains_key(&to);
    if !both_live {
        found.extend(behind.iter().copied().filter(|id| {
            live.world
                .nodes
                .get(id)
                .is_some_and(|node| node.kind == NodeKind::Sap && node.serves.contains(&overlay))
        }));
        return found;
    }
    let is_late = |id: &NodeId| behind.contains(id);
    for hops in paths.among(from, to) {
        match hops {
            PathHops::Direct => found.extend(Some(to).filter(is_late)),
            PathHops::Via(saps) => found.extend(saps.into_iter().filter(is_late)),
            PathHops::Elsewhere => {}
        }
    }
    found
}

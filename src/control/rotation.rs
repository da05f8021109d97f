//! Which rotations of keys go a step on. It decides; `driver` writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keyset::{Keys, RingId};
use super::live::Live;
use super::store::{self, keys::RingRow};
use crate::api::admin::{KeyRotate, KeyStatus};
use crate::api::node::Guessed;
use crate::api::{Problem, ProblemCode};
use crate::keys::rotation::{HURRY_MILLIS, Ring, Step};
use crate::policy::World;
use crate::types::{
    EntityName, Epoch, Generation, KeyVersion, Name, NodeId, OverlayId, Serial, Timestamp,
};

/// How long a pair's new key rests before an alarm changes it again.
const ALARM_REST_SECONDS: u64 = 600;

/// Which serial each node had when a step's tables were published.
pub(crate) type Serials = Arc<BTreeMap<NodeId, Serial>>;

/// Starts a rotation of a whole overlay: a new epoch for each destination that rests. Gives the rings
/// that changed; those under way get a deadline instead, so that they end before the next one.
pub(crate) async fn start_overlay(
    conn: &mut store::Connection,
    keys: &Keys,
    overlay: OverlayId,
    hurry: Option<u64>,
    now_millis: u64,
) -> Result<Vec<RingRow>, Problem> {
    let now = Timestamp(now_millis / 1000);
    let Some((newest, _)) = keys.newest(overlay) else { return Ok(Vec::new()) };
    let next = Epoch(newest.0.saturating_add(1));
    store::keys::add_epoch(conn, overlay, next, now).await?;
    let changed = started_overlay(keys, overlay, next, hurry, now_millis);
    for row in &changed {
        store::keys::put_ring(conn, row).await?;
    }
    Ok(changed)
}

/// The rings of an overlay once its rotation to the epoch `next` has started.
pub(super) fn started_overlay(
    keys: &Keys,
    overlay: OverlayId,
    next: Epoch,
    hurry: Option<u64>,
    now_millis: u64,
) -> Vec<RingRow> {
    let rows = keys.rings.values().filter(|row| row.overlay == overlay);
    let started = rows.map(|row| {
        let mut row = row.clone();
        let rests = row.source.is_none() && !keys.pair_rotates(overlay, row.destination);
        let target = KeyVersion { epoch: next, generation: row.ring.current.generation };
        if !rests || row.ring.start(target, now_millis, hurry).is_err() {
            row.ring.hurry(now_millis, HURRY_MILLIS);
        }
        row
    });
    started.collect()
}

/// Starts what an operator asked for; gives the rings that changed.
pub(crate) async fn start(
    conn: &mut store::Connection,
    world: &World,
    keys: &Keys,
    request: &KeyRotate,
    now_millis: u64,
) -> Result<Vec<RingRow>, Problem> {
    let hurry = request.now.then_some(HURRY_MILLIS);
    let overlay = request.overlay.as_ref().map(|name| overlay_named(world, name)).transpose()?;
    let (to, from) = match (&request.to, &request.from, request.all, overlay) {
        (Some(to), from, false, _) => (to, from.as_ref()),
        (None, None, true, None) | (None, None, false, Some(_)) => {
            let mut changed = Vec::new();
            for &id in world.overlays.keys().filter(|id| overlay.is_none_or(|only| only == **id)) {
                let under_way =
                    keys.rings.values().find(|r| r.overlay == id && r.ring.step != Step::Steady);
                if let (Some(row), false) = (under_way, request.now) {
                    return Err(under_way_problem(world, row));
                }
                changed.extend(start_overlay(conn, keys, id, hurry, now_millis).await?);
            }
            return Ok(changed);
        }
        _ => {
            return Err(Problem::new(ProblemCode::Usage, "which keys shall rotate?")
                .why("a rotation is of a pair (from, to), an entity (to), an overlay, or all")
                .fix("ovctl key rotate --help"));
        }
    };
    let to_id = super::selection::entity(world, to)?;
    let from_id = from.map(|name| super::selection::entity(world, name)).transpose()?;
    let is_member = |id: NodeId, overlay: &OverlayId| {
        world.nodes.get(&id).is_some_and(|node| node.addresses.contains_key(overlay))
    };
    let overlays: Vec<OverlayId> = world
        .overlays
        .keys()
        .copied()
        .filter(|id| overlay.is_none_or(|only| only == *id))
        .filter(|id| is_member(to_id, id) && from_id.is_none_or(|from| is_member(from, id)))
        .collect();
    if overlays.is_empty() || from_id == Some(to_id) {
        return Err(Problem::new(ProblemCode::Conflict, format!("there are no such keys of {to}"))
            .why("the ends are one entity, or share no such overlay")
            .fix("ovctl key list"));
    }
    let mut changed = Vec::new();
    for overlay in overlays {
        let id = (overlay, from_id, to_id);
        if let Some(row) = busy(keys, id).filter(|_| !request.now) {
            return Err(under_way_problem(world, row));
        }
        changed.push(start_ring(conn, keys, id, hurry, now_millis).await?);
    }
    Ok(changed)
}

/// Rotates the keys of pairs that somebody guesses at, each at most once in [`ALARM_REST_SECONDS`]: more
/// would only serve whoever wants to see keys change. Gives the rings that changed, with who raised the
/// alarm.
pub(crate) async fn start_guessed(
    conn: &mut store::Connection,
    keys: &Keys,
    guessed: &BTreeMap<Guessed, NodeId>,
    now_millis: u64,
) -> Result<Vec<(RingRow, NodeId)>, Problem> {
    let mut changed = Vec::new();
    for (&Guessed { overlay, from, to }, by) in guessed {
        let id = (overlay, Some(from), to);
        let is_fresh =
            |row: &RingRow| row.rotated.0.saturating_add(ALARM_REST_SECONDS) > now_millis / 1000;
        let before = busy(keys, id).or(keys.rings.get(&id));
        if before.is_some_and(|row| row.ring.step == Step::Steady && is_fresh(row)) {
            continue;
        }
        let row = start_ring(conn, keys, id, Some(HURRY_MILLIS), now_millis).await?;
        // One that was in a hurry already is as it was.
        if before.map(|row| row.ring) != Some(row.ring) {
            changed.push((row, *by));
        }
    }
    Ok(changed)
}

/// The rotation under way that keeps these keys from being rotated: two keys of a pair are all that is
/// accepted.
fn busy(keys: &Keys, (overlay, from, to): RingId) -> Option<&RingRow> {
    keys.rings.values().find(|row| {
        row.overlay == overlay
            && row.destination == to
            && row.ring.step != Step::Steady
            && (row.source.is_none() || from.is_none() || row.source == from)
    })
}

/// Starts the rotation of a destination's or a pair's keys; one that is in its way gets a deadline instead.
async fn start_ring(
    conn: &mut store::Connection,
    keys: &Keys,
    id: RingId,
    hurry: Option<u64>,
    now_millis: u64,
) -> Result<RingRow, Problem> {
    let row = started(keys, id, hurry, now_millis).ok_or_else(|| {
        Problem::new(ProblemCode::Failed, "the generations of this key are used up")
            .fix("rotate the whole overlay: ovctl key rotate --overlay NAME")
    })?;
    store::keys::put_ring(conn, &row).await?;
    Ok(row)
}

/// The ring once its rotation has started, or the one in its way with a deadline; none when no newer
/// generation is left.
pub(super) fn started(
    keys: &Keys,
    id: RingId,
    hurry: Option<u64>,
    now_millis: u64,
) -> Option<RingRow> {
    let (overlay, source, destination) = id;
    if let Some(row) = busy(keys, id) {
        let mut row = row.clone();
        row.ring.hurry(now_millis, HURRY_MILLIS);
        return Some(row);
    }
    let known = keys.rings.get(&id).cloned();
    let mut row = known.unwrap_or_else(|| RingRow {
        overlay,
        source,
        destination,
        ring: Ring::steady(KeyVersion::default(), now_millis),
        rotated: Timestamp(now_millis / 1000),
    });
    let mut next = row.ring.current;
    next.generation = Generation(next.generation.0.saturating_add(1));
    row.ring.start(next, now_millis, hurry).ok()?;
    Some(row)
}

/// The rings that go a step on, each with whom that cuts off.
pub(super) fn moved(live: &Live, at: u64, grace_millis: u64) -> Vec<(RingRow, Vec<NodeId>)> {
    let under_way = live.keys.rings.iter().filter(|(_, row)| row.ring.step != Step::Steady);
    let moved = under_way.filter_map(|(id, row)| {
        let laggards = laggards(live, row, live.asked.get(id));
        let mut row = row.clone();
        let acked = laggards.is_empty();
        let change = row.ring.handle_timeout(at, acked, acked, grace_millis)?;
        if change.to == Step::Steady {
            row.rotated = Timestamp(at / 1000);
        }
        Some((row, if change.cut_off { laggards } else { Vec::new() }))
    });
    moved.collect()
}

fn overlay_named(world: &World, name: &Name) -> Result<OverlayId, Problem> {
    super::selection::overlay_of(
        world,
        Some(name),
        [&crate::policy::BoundSelector::Any, &crate::policy::BoundSelector::Any],
    )
}

fn under_way_problem(world: &World, row: &RingRow) -> Problem {
    Problem::new(
        ProblemCode::Conflict,
        format!("the keys to {} are being rotated already", name_of(world, row.destination)),
    )
    .why(format!("that rotation is {}; one at a time keeps every packet acceptable", row.ring.step))
    .fix("wait for it (ovctl key list), or let it cut off laggards: add --now")
}

/// Who must have acknowledged before a ring's step ends, and has not.
pub(crate) fn laggards(live: &Live, row: &RingRow, asked: Option<&Serials>) -> Vec<NodeId> {
    let waits: Vec<NodeId> = match row.ring.step {
        Step::Steady | Step::Retiring => Vec::new(),
        Step::Adding => {
            let saps = live.saps.get(&row.overlay).into_iter().flatten();
            saps.copied().chain([row.destination]).collect()
        }
        Step::Switching => match row.source {
            Some(source) => vec![source],
            None => live
                .senders
                .get(&(row.overlay, row.destination))
                .map_or_else(Vec::new, |senders| senders.to_vec()),
        },
    };
    waits
        .into_iter()
        .filter(|id| {
            live.nodes.get(id).is_some_and(|node| {
                let needed =
                    asked.and_then(|asked| asked.get(id).copied()).unwrap_or(node.newest_serial());
                node.acknowledged < needed
            })
        })
        .collect()
}

/// A ring as people see it.
pub(crate) fn status(live: &Live, id: RingId, row: &RingRow) -> KeyStatus {
    KeyStatus {
        overlay: live
            .world
            .overlays
            .get(&row.overlay)
            .map_or_else(Name::default, |overlay| overlay.name.clone()),
        to: name_of(&live.world, row.destination),
        from: row.source.map(|source| name_of(&live.world, source)),
        version: row.ring.current,
        next: row.ring.next,
        step: row.ring.step.to_string(),
        rotated: row.rotated,
        waiting_for: laggards(live, row, live.asked.get(&id))
            .into_iter()
            .map(|id| name_of(&live.world, id).to_string())
            .collect(),
    }
}

/// The name of a node; `gone` for one that was deleted meanwhile.
pub(crate) fn name_of(world: &World, id: NodeId) -> EntityName {
    world.nodes.get(&id).map_or_else(
        || EntityName {
            namespace: Name::default(),
            name: Name::new("gone").expect("invariant: a valid name"),
        },
        |node| node.name.clone(),
    )
}

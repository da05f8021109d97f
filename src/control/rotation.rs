//! Keys: where compilation gets them, and which rotations go a step on. It decides; `driver` writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::live::Live;
use super::store::{self, keys as rows, keys::RingRow};
use crate::api::admin::{KeyRotate, KeyStatus};
use crate::api::table::DestinationKey as KeyRow;
use crate::api::{Problem, ProblemCode};
use crate::keys::rotation::{HURRY_MILLIS, Ring, StartError, Step, is_due};
use crate::keys::{DestinationKey, destination_secret};
use crate::policy::{KeySource, World};
use crate::types::{
    AuthorizationKey, EntityName, Epoch, Generation, KeyVersion, Name, NodeId, NodeKind, OverlayId,
    Secret, Serial, Timestamp,
};

/// Which ring: overlay, source (none for the destination's own), destination.
pub(crate) type RingId = (OverlayId, Option<NodeId>, NodeId);

/// Which serial each node had when a step's tables were published.
pub(crate) type Serials = Arc<BTreeMap<NodeId, Serial>>;

/// All epoch secrets and rings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    epochs: BTreeMap<(OverlayId, Epoch), (Secret, Timestamp)>,
    pub(crate) rings: BTreeMap<RingId, RingRow>,
}

impl Keys {
    /// Loads them.
    pub(crate) async fn load(conn: &mut store::Connection) -> Result<Self, Problem> {
        let epochs = rows::epochs(conn)
            .await?
            .into_iter()
            .map(|(overlay, epoch, secret, created)| ((overlay, epoch), (secret, created)))
            .collect();
        let rings = rows::rings(conn)
            .await?
            .into_iter()
            .map(|row| ((row.overlay, row.source, row.destination), row))
            .collect();
        Ok(Self { epochs, rings })
    }

    fn secret(&self, overlay: OverlayId, to: NodeId, version: KeyVersion) -> Option<Secret> {
        let (epoch, _) = self.epochs.get(&(overlay, version.epoch))?;
        Some(destination_secret(epoch, overlay, to, version.generation))
    }

    /// The newest epoch of an overlay and when it was made.
    fn newest(&self, overlay: OverlayId) -> Option<(Epoch, Timestamp)> {
        self.epochs
            .range((overlay, Epoch(0))..=(overlay, Epoch(u32::MAX)))
            .next_back()
            .map(|((_, epoch), (_, created))| (*epoch, *created))
    }

    /// Whether a pair towards the destination rotates alone.
    fn pair_rotates(&self, overlay: OverlayId, to: NodeId) -> bool {
        self.rings.values().any(|row| {
            row.overlay == overlay
                && row.destination == to
                && row.source.is_some()
                && row.ring.step != Step::Steady
        })
    }

    /// The overlays whose scheduled rotation is due.
    pub(crate) fn due(&self, interval_millis: u64, now_millis: u64) -> Vec<OverlayId> {
        let mut newest = BTreeMap::new();
        for ((overlay, _), (_, created)) in &self.epochs {
            newest.insert(*overlay, created.0 * 1000);
        }
        newest
            .into_iter()
            .filter(|(_, at)| is_due(*at, interval_millis, now_millis))
            .map(|(overlay, _)| overlay)
            .collect()
    }
}

impl KeySource for Keys {
    fn destination_keys(&self, overlay: OverlayId, to: NodeId) -> Vec<KeyRow> {
        let Some(row) = self.rings.get(&(overlay, None, to)) else { return Vec::new() };
        row.ring
            .accepted()
            .into_iter()
            .filter_map(|version| {
                Some(KeyRow { version, secret: self.secret(overlay, to, version)? })
            })
            .collect()
    }

    fn pair_generations(&self, overlay: OverlayId, from: NodeId, to: NodeId) -> Vec<Generation> {
        self.rings.get(&(overlay, Some(from), to)).map_or_else(Vec::new, |row| {
            row.ring.accepted().into_iter().map(|version| version.generation).collect()
        })
    }

    fn rotated_pairs(&self, overlay: OverlayId) -> BTreeSet<(NodeId, NodeId)> {
        self.rings
            .values()
            .filter(|row| row.overlay == overlay)
            .filter_map(|row| Some((row.source?, row.destination)))
            .collect()
    }

    fn send_key(&self, overlay: OverlayId, from: NodeId, to: NodeId) -> AuthorizationKey {
        let pair = self
            .rings
            .get(&(overlay, Some(from), to))
            .map_or(Generation(0), |row| row.ring.stamped().generation);
        let kb = self
            .rings
            .get(&(overlay, None, to))
            .and_then(|row| self.secret(overlay, to, row.ring.stamped()));
        match kb {
            Some(kb) => DestinationKey::new(&kb).pair_key(from, pair),
            // Without a ring nobody accepts anything for `to`: any value will be refused.
            None => AuthorizationKey::from_bits(0),
        }
    }
}

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
    let mut changed = Vec::new();
    for row in keys.rings.values().filter(|row| row.overlay == overlay) {
        let mut row = row.clone();
        let rests = row.source.is_none() && !keys.pair_rotates(overlay, row.destination);
        let target = KeyVersion { epoch: next, generation: row.ring.current.generation };
        if !rests || row.ring.start(target, now_millis, hurry).is_err() {
            row.ring.hurry(now_millis, HURRY_MILLIS);
        }
        store::keys::put_ring(conn, &row).await?;
        changed.push(row);
    }
    Ok(changed)
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
        let busy = keys.rings.values().find(|row| {
            row.overlay == overlay
                && row.destination == to_id
                && row.ring.step != Step::Steady
                && (row.source.is_none() || from_id.is_none() || row.source == from_id)
        });
        if let Some(row) = busy {
            if !request.now {
                return Err(under_way_problem(world, row));
            }
            let mut row = row.clone();
            row.ring.hurry(now_millis, HURRY_MILLIS);
            store::keys::put_ring(conn, &row).await?;
            changed.push(row);
            continue;
        }
        let id = (overlay, from_id, to_id);
        let mut row = keys.rings.get(&id).cloned().unwrap_or_else(|| RingRow {
            overlay,
            source: from_id,
            destination: to_id,
            ring: Ring::steady(KeyVersion::default(), now_millis),
            rotated: Timestamp(now_millis / 1000),
        });
        let mut next = row.ring.current;
        next.generation = Generation(next.generation.0.saturating_add(1));
        row.ring.start(next, now_millis, hurry).map_err(|error| match error {
            StartError::UnderWay(_) => under_way_problem(world, &row),
            StartError::NotNewer => {
                Problem::new(ProblemCode::Failed, "the generations of this key are used up")
                    .fix("rotate the whole overlay: ovctl key rotate --overlay NAME")
            }
        })?;
        store::keys::put_ring(conn, &row).await?;
        changed.push(row);
    }
    Ok(changed)
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
        Step::Adding => live
            .world
            .nodes
            .iter()
            .filter(|(id, node)| {
                **id == row.destination
                    || (node.kind == NodeKind::Sap && node.serves.contains(&row.overlay))
            })
            .map(|(id, _)| *id)
            .collect(),
        Step::Switching => match row.source {
            Some(source) => vec![source],
            None => live
                .senders
                .get(&(row.overlay, row.destination))
                .map_or_else(Vec::new, Clone::clone),
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

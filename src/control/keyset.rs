//! All epoch secrets and rings, ready for compilation: what each destination accepts, and what is stamped
//! for it, is derived once and kept as long as its ring stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::store::changes::Changes;
use super::store::{self, keys as rows, keys::RingRow};
use crate::api::Problem;
use crate::api::table::DestinationKey as KeyRow;
use crate::keys::rotation::{Step, is_due};
use crate::keys::{DestinationKey, destination_secret};
use crate::policy::{KeySource, RingChange};
use crate::types::{
    AuthorizationKey, Epoch, Generation, KeyVersion, NodeId, OverlayId, Secret, Timestamp,
};

/// Which ring: overlay, source (none for the destination's own), destination.
pub(crate) type RingId = (OverlayId, Option<NodeId>, NodeId);

/// All epoch secrets and rings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    epochs: BTreeMap<(OverlayId, Epoch), (Secret, Timestamp)>,
    pub(crate) rings: BTreeMap<RingId, RingRow>,
    /// The keys of each destination.
    ready: BTreeMap<(OverlayId, NodeId), Arc<Ready>>,
    /// Overlay, destination, source of the pairs that have a ring of their own.
    pairs: BTreeSet<(OverlayId, NodeId, NodeId)>,
}

/// What a destination's ring gives.
#[derive(Debug, PartialEq, Eq)]
struct Versions {
    accepted: Vec<KeyVersion>,
    old_until: Option<Timestamp>,
    stamped: KeyVersion,
}

/// A destination's keys, derived.
#[derive(Debug)]
struct Ready {
    versions: Versions,
    accepted: Vec<KeyRow>,
    stamped: Option<DestinationKey>,
}

impl Versions {
    fn of(row: &RingRow) -> Self {
        Self {
            accepted: row.ring.accepted(),
            old_until: old_until(row),
            stamped: row.ring.stamped(),
        }
    }
}

/// When the old key ends, in whole seconds.
fn old_until(row: &RingRow) -> Option<Timestamp> {
    row.ring.old_until_millis().map(|end| Timestamp(end.div_ceil(1000)))
}

impl Keys {
    /// Loads them.
    pub(crate) async fn load(conn: &mut store::Connection) -> Result<Arc<Self>, Problem> {
        Self::load_changed(conn, &Arc::default(), &Changes::All).await
    }

    /// As [`Keys::load`], but takes over from `older` the rings that are not among `changes`, and what
    /// was derived where it still holds: the secret of an epoch never changes.
    pub(crate) async fn load_changed(
        conn: &mut store::Connection,
        older: &Arc<Self>,
        changes: &Changes,
    ) -> Result<Arc<Self>, Problem> {
        let epochs: BTreeMap<_, _> = rows::epochs(conn)
            .await?
            .into_iter()
            .map(|(overlay, epoch, secret, created)| ((overlay, epoch), (secret, created)))
            .collect();
        let mut rings = BTreeMap::new();
        let mut put = |rows: Vec<RingRow>| {
            rings.extend(
                rows.into_iter().map(|row| ((row.overlay, row.source, row.destination), row)),
            );
        };
        match changes {
            Changes::All => put(rows::rings(conn).await?),
            Changes::These(changed) if changed.rings.is_empty() && epochs == older.epochs => {
                return Ok(Arc::clone(older));
            }
            Changes::These(changed) => {
                let rings = &changed.rings;
                let kept = older.rings.values().filter(|row| !rings.contains(&row.destination));
                put(kept.cloned().collect());
                for &to in rings {
                    put(rows::rings_to(conn, to..=to).await?);
                }
            }
        }
        Ok(Arc::new(Self::new(epochs, rings, older)))
    }

    /// Of these secrets and rings; what `older` derived is taken over where it still holds.
    pub(crate) fn new(
        epochs: BTreeMap<(OverlayId, Epoch), (Secret, Timestamp)>,
        rings: BTreeMap<RingId, RingRow>,
        older: &Self,
    ) -> Self {
        let mut keys = Self { epochs, rings, ..Self::default() };
        keys.derive(older);
        keys
    }

    fn derive(&mut self, older: &Self) {
        for (&(overlay, source, to), row) in &self.rings {
            if let Some(from) = source {
                self.pairs.insert((overlay, to, from));
                continue;
            }
            let versions = Versions::of(row);
            let known = older.ready.get(&(overlay, to)).filter(|ready| ready.versions == versions);
            let ready = known.cloned().unwrap_or_else(|| {
                let secret = |version| self.secret(overlay, to, version);
                let accepted = versions.accepted.iter();
                Arc::new(Ready {
                    accepted: accepted
                        .filter_map(|&version| Some(KeyRow { version, secret: secret(version)? }))
                        .collect(),
                    stamped: secret(versions.stamped).map(|kb| DestinationKey::new(&kb)),
                    versions,
                })
            });
            self.ready.insert((overlay, to), ready);
        }
    }

    fn secret(&self, overlay: OverlayId, to: NodeId, version: KeyVersion) -> Option<Secret> {
        let (epoch, _) = self.epochs.get(&(overlay, version.epoch))?;
        Some(destination_secret(epoch, overlay, to, version.generation))
    }

    /// The rings that give other keys than in `older`.
    pub(crate) fn changed_since(&self, older: &Self) -> Vec<RingChange> {
        let differs = |id: &RingId| {
            self.rings.get(id).map(Versions::of) != older.rings.get(id).map(Versions::of)
        };
        let ids: BTreeSet<&RingId> = self.rings.keys().chain(older.rings.keys()).collect();
        ids.into_iter()
            .filter(|id| differs(id))
            .map(|&(overlay, from, to)| RingChange { overlay, from, to })
            .collect()
    }

    /// The newest epoch of an overlay and when it was made.
    pub(crate) fn newest(&self, overlay: OverlayId) -> Option<(Epoch, Timestamp)> {
        self.epochs
            .range((overlay, Epoch(0))..=(overlay, Epoch(u32::MAX)))
            .next_back()
            .map(|((_, epoch), (_, created))| (*epoch, *created))
    }

    /// Whether a pair towards the destination rotates alone.
    pub(crate) fn pair_rotates(&self, overlay: OverlayId, to: NodeId) -> bool {
        self.sources_of(overlay, to).any(|from| {
            self.rings
                .get(&(overlay, Some(from), to))
                .is_some_and(|row| row.ring.step != Step::Steady)
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

    /// The sources whose pair with `to` has a ring of its own.
    fn sources_of(&self, overlay: OverlayId, to: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let all = (overlay, to, NodeId(0))..=(overlay, to, NodeId(u32::MAX));
        self.pairs.range(all).map(|&(_, _, from)| from)
    }
}

impl KeySource for Keys {
    fn destination_keys(&self, overlay: OverlayId, to: NodeId) -> Vec<KeyRow> {
        self.ready.get(&(overlay, to)).map_or_else(Vec::new, |ready| ready.accepted.clone())
    }

    fn pair_generations(&self, overlay: OverlayId, from: NodeId, to: NodeId) -> Vec<Generation> {
        self.rings.get(&(overlay, Some(from), to)).map_or_else(Vec::new, |row| {
            row.ring.accepted().into_iter().map(|version| version.generation).collect()
        })
    }

    fn old_until(&self, overlay: OverlayId, from: Option<NodeId>, to: NodeId) -> Option<Timestamp> {
        old_until(self.rings.get(&(overlay, from, to))?)
    }

    fn rotated_sources(&self, overlay: OverlayId, to: NodeId) -> Vec<NodeId> {
        self.sources_of(overlay, to).collect()
    }

    fn send_key(&self, overlay: OverlayId, from: NodeId, to: NodeId) -> AuthorizationKey {
        let pair = match self.pairs.contains(&(overlay, to, from)) {
            true => self.rings.get(&(overlay, Some(from), to)),
            false => None,
        };
        let generation = pair.map_or(Generation(0), |row| row.ring.stamped().generation);
        match self.ready.get(&(overlay, to)).and_then(|ready| ready.stamped.as_ref()) {
            Some(kb) => kb.pair_key(from, generation),
            // Without a ring nobody accepts anything for `to`: any value will be refused.
            None => AuthorizationKey::from_bits(0),
        }
    }
}

//! What must hold beside the fate of packets that honest nodes send.

use super::journey::Exchange;
use super::{LASTING, Pair, Story, lab};
use crate::api::table::{OverlayTable, TableBody};
use crate::control::simulation::packet::udp;
use crate::control::simulation::server::{OVERLAY, address};
use crate::forward::Verdict;
use crate::policy::KeySource as _;
use crate::types::{NodeId, Serial, Timestamp};

/// Traffic is back within this time when its SaP is gone and another one could carry it.
const BACK_MILLIS: u64 = 1_000;

/// After this time without a disturbance everybody knows which SaPs are there, and who they reach: a SaP
/// that was dead is probed once a second, and trusted after three.
pub(super) const CALM_MILLIS: u64 = 6_000;

/// Pairs that talk all the time, at most.
const STREAMS_MAX: usize = 3;

impl Story {
    /// Whether everybody knows by now which SaPs are there. With one there is nothing to know.
    pub(super) fn is_calm(&self) -> bool {
        self.saps().count() == 1 || self.now - self.disturbed >= CALM_MILLIS
    }

    /// Whether an entity and a SaP have had each other for long enough to know it.
    fn is_well(&self, entity: NodeId, sap: NodeId) -> bool {
        let came = |id| self.came.get(&id).copied().unwrap_or(0);
        let healed = self.healed.get(&(entity, sap)).copied().unwrap_or(0);
        let since = came(entity).max(came(sap)).max(healed);
        self.has_leg(entity, sap) && self.now - since >= CALM_MILLIS
    }

    /// Pairs that may talk do. Where a SaP is gone, another one carries them soon.
    pub(super) fn stream(&mut self) -> Result<(), String> {
        let newest = self.newest_policy().clone();
        self.lost_since.retain(|pair, _| newest.contains(pair));
        for pair in newest.into_iter().take(STREAMS_MAX) {
            let exchange = self.exchange(pair, LASTING)?;
            if exchange != Exchange::Unheard {
                self.totals.moved += u64::from(self.lost_since.remove(&pair).is_some());
            } else if !self.is_owed(pair) {
                self.lost_since.remove(&pair);
            } else {
                let since = *self.lost_since.entry(pair).or_insert(self.now);
                if self.now - since > BACK_MILLIS {
                    let (from, to) = pair;
                    return Err(format!(
                        "{from} does not reach {to} since {since} ms, and a SaP could carry it; {}",
                        self.last_loss
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether a pair whose packets do not arrive has a SaP that would carry them, and no table is the reason.
    /// That answers come back as soon is for real packets to show (`failover`).
    fn is_owed(&self, pair: Pair) -> bool {
        let (from, to) = pair;
        let allows = |id: NodeId| self.allows(id, pair) == Some(true);
        let carries = |sap: NodeId| allows(sap) && self.knows_places(sap, pair);
        let could = |sap: NodeId| [from, to].into_iter().all(|end| self.is_well(end, sap));
        let chosen = self.chosen(pair);
        let is_gone = |sap: NodeId| !self.has_leg(from, sap) || !self.has_leg(to, sap);
        allows(from)
            && allows(to)
            && self.is_trusted(pair)
            && self.saps().any(|sap| could(sap) && carries(sap))
            && self.saps().all(|sap| !self.nodes[&sap].is_up || carries(sap))
            && chosen.is_some_and(is_gone)
    }

    /// Whose right is gone everywhere gets nothing through, whatever it stamps and whichever SaP it takes.
    pub(super) fn expect_over(&mut self) -> Result<(), String> {
        if self.gone.is_empty() {
            return Ok(());
        }
        let (keys, mut tried) = (self.server.keys(), 0);
        for &(from, to) in &self.gone {
            let stamped = self.stamped.get(&(from, to)).copied();
            let keys = stamped.into_iter().chain([keys.send_key(OVERLAY, from, to).bits()]);
            for (key, sap) in keys.flat_map(|key| self.saps().map(move |sap| (key, sap))) {
                for port in [LASTING, LASTING + 2] {
                    tried += 1;
                    if self.gets_through((from, to), key, sap, port) {
                        return Err(format!(
                            "{from} gets through to {to} by {sap}: the server said that this is over"
                        ));
                    }
                }
            }
        }
        self.totals.over += tried;
        Ok(())
    }

    /// Whether a packet that the first end makes as it likes passes a SaP and the second end.
    fn gets_through(&self, (from, to): Pair, key: u32, sap: NodeId, port: u16) -> bool {
        let facts = udp(address(from), address(to), port, false);
        let node = &self.nodes[&sap];
        let Some(table) = node.in_force.as_ref().and_then(lab).filter(|_| node.is_up) else {
            return false;
        };
        let row = table.members.iter().find(|row| row.id == from);
        let Some(outer) = row.and_then(|row| row.endpoints.first()) else { return false };
        let (snapshot, flows, now) = node.view(self.now);
        let passed = snapshot.transit(*outer, key, &facts, flows, now);
        let Verdict::Send { hop, key } = passed else { return false };
        let Some(target) = self.node_at(hop) else { return false };
        let (snapshot, flows, now) = self.nodes[&target].view(self.now);
        let verdict = snapshot.ingress(node.endpoint, key.bits(), &facts, flows, now);
        matches!(verdict, Verdict::Deliver { .. })
    }

    /// The server takes no table for acknowledged that a crash could take from its node.
    pub(super) fn expect_honest(&self) -> Result<(), String> {
        for (id, node) in &self.nodes {
            let on_disk = node.disk.as_ref().map_or(Serial(0), |table| table.serial);
            let acknowledged = self.server.acknowledged(*id);
            if acknowledged > on_disk {
                return Err(format!("{id} has {on_disk} on disk, the server says {acknowledged}"));
            }
        }
        Ok(())
    }

    /// Keys whose time is over open nothing, at no SaP.
    pub(super) fn use_old_keys(&mut self) -> Result<(), String> {
        let (rotating, keys, mut checked) = (self.server.rotating(), self.server.keys(), 0);
        for &((from, to), key) in &self.old {
            // A sender that started from an older table stamped this one before the one it stamps now.
            if keys.send_key(OVERLAY, from, to).bits() == key {
                continue;
            }
            let facts = udp(address(from), address(to), LASTING + 1, false);
            let saps = self.nodes.iter().filter(|(id, node)| id.0 > 100 && node.is_up);
            for (sap, node) in saps {
                let Some(table) = node.in_force.as_ref().and_then(lab) else { continue };
                let (snapshot, flows, now) = node.view(self.now);
                let is_newest = node.serial() == self.server.newest_serial(*sap);
                let is_settled = self.server.is_up && is_newest && !rotating.contains(&to);
                let is_behind = self.server.cut_off.contains(sap);
                let is_over = !is_behind && ends(table, (from, to)).any(|end| end <= now.wall);
                if !is_settled && !is_over {
                    continue;
                }
                checked += 1;
                let outer = self.nodes[&from].endpoint;
                let verdict = snapshot.transit(outer, key, &facts, flows, now);
                if !matches!(verdict, Verdict::Drop(_)) {
                    return Err(format!("{sap} takes an old key from {from} to {to}"));
                }
            }
        }
        self.totals.old_keys += checked;
        Ok(())
    }

    /// Once all is healed and quiet everybody has what the server would compile anew.
    pub(super) fn expect_quiet(&mut self) -> Result<(), String> {
        if !self.server.rotating().is_empty() {
            return Err(format!("rotations never end: {:?}", self.server.rotating()));
        }
        for (id, node) in &self.nodes {
            let (serial, body) = (self.server.newest_serial(*id), self.server.fresh(*id, self.now));
            let disk = node.disk.as_ref().ok_or(format!("{id} never got a table"))?;
            if disk.serial != serial || Some(&disk.body) != body.as_ref() {
                let (had, due) = (lines(Some(&disk.body)), lines(body.as_ref()));
                let differs = had.iter().zip(&due).find(|(had, due)| had != due);
                return Err(format!(
                    "{id} has serial {}, the server {serial}; it has, and should have: {differs:?}",
                    disk.serial
                ));
            }
            let mut rows = disk.body.overlays.iter().flat_map(|overlay| &overlay.destination_keys);
            if rows.any(|row| row.accept.len() != 1) {
                return Err(format!("{id} accepts old keys for ever"));
            }
        }
        if let Some(removal) = self.going.first() {
            return Err(format!("it never says that {:?} is over", removal.pair));
        }
        self.server.cut_off.clear();
        Ok(())
    }
}

/// When old keys of the pair end, by this table.
fn ends(table: &OverlayTable, (from, to): Pair) -> impl Iterator<Item = Timestamp> {
    let is = move |index: u32, id: NodeId| {
        let row = usize::try_from(index).ok().and_then(|index| table.members.get(index));
        row.is_some_and(|row| row.id == id)
    };
    let rows = table.destination_keys.iter().filter(move |row| is(row.to, to));
    let pairs = table.pair_generations.iter();
    let pairs = pairs.filter(move |row| is(row.from, from) && is(row.to, to));
    rows.filter_map(|row| row.old_until).chain(pairs.filter_map(|row| row.old_until))
}

/// A table's body, to be compared.
fn lines(body: Option<&TableBody>) -> Vec<String> {
    let text = serde_json::to_string_pretty(&body).expect("a table is JSON");
    text.lines().map(str::to_owned).collect()
}

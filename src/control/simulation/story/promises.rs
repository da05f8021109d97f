//! What must hold beside the fate of packets that honest nodes send.

use super::journey::Exchange;
use super::{LASTING, POURED, Pair, Story};
use crate::agent::snapshot;
use crate::api::table::TableBody;
use crate::control::simulation::packet::udp;
use crate::control::simulation::server::{OVERLAY, address};
use crate::forward::Verdict;
use crate::policy::KeySource as _;
use crate::types::{NodeId, Serial};

/// Traffic is back within this time when its SaP is gone and another one could carry it.
const BACK_MILLIS: u64 = 1_000;

/// After this time without a disturbance everybody knows which SaPs are there, and whom they reach: a SaP
/// that was dead is probed once a second, and trusted after three.
pub(super) const CALM_MILLIS: u64 = 6_000;

/// So long after it is there again a SaP carries pairs that have no other: who probes it once a second has
/// found it.
const FOUND_MILLIS: u64 = 1_500;

/// Between two packets of a pair that is watched.
const STREAM_MILLIS: u64 = 100;

impl Story {
    /// Whether everybody knows by now which SaPs are there.
    pub(super) fn is_calm(&self) -> bool {
        self.disturbed == 0 || self.now - self.disturbed >= CALM_MILLIS
    }

    /// Since when a SaP reaches both ends of a pair without a break; none while it does not.
    fn carries_since(&self, sap: NodeId, pair: Pair) -> Option<u64> {
        let came = |id: NodeId| self.came.get(&id).copied().unwrap_or(0);
        let healed = |end: NodeId| self.healed.get(&(end, sap)).copied().unwrap_or(0);
        let (from, to) = pair;
        let all = [came(from), came(to), came(sap), healed(from), healed(to)];
        self.carries(sap, pair).then(|| all.into_iter().max().unwrap_or(0))
    }

    /// Lets time pass while pairs that may talk do; with `is_pouring` also in the flows of [`Self::pour`].
    pub(super) fn watch(&mut self, millis: u64, is_pouring: bool) -> Result<(), String> {
        self.tell(format!("pairs are watched for {millis} ms"));
        for _ in 0..millis / STREAM_MILLIS {
            self.pass(STREAM_MILLIS)?;
            for pair in self.newest_policy().clone() {
                let is_back = self.exchange(pair, LASTING)? == Exchange::Answered;
                self.expect_back(pair, LASTING, is_back)?;
                if is_pouring && self.pours(pair) {
                    let is_back = self.pour_on(pair);
                    self.expect_back(pair, POURED, is_back)?;
                }
            }
        }
        Ok(())
    }

    fn expect_back(&mut self, pair: Pair, port: u16, is_back: bool) -> Result<(), String> {
        let is_owed = self.is_owed(pair);
        self.totals.owed += u64::from(is_owed);
        if is_back || !is_owed {
            let was_lost = self.lost_since.remove(&(pair, port)).is_some();
            self.totals.moved += u64::from(is_back && was_lost);
            return Ok(());
        }
        let since = *self.lost_since.entry((pair, port)).or_insert(self.now);
        if self.now - since <= BACK_MILLIS {
            return Ok(());
        }
        let ((from, to), loss) = (pair, &self.last_loss);
        Err(format!(
            "{from} and {to} do not talk since {since} ms, and a SaP could carry them; {loss}"
        ))
    }

    /// Whether there is a SaP that carries a pair for long enough to be found, and no table is against it.
    fn is_owed(&self, pair: Pair) -> bool {
        let (from, to) = pair;
        let allows = |id: NodeId| self.allows(id, pair) == Some(true);
        let is_found = |sap: NodeId| {
            self.carries_since(sap, pair).is_some_and(|since| self.now - since >= FOUND_MILLIS)
        };
        let knows = |sap: NodeId| allows(sap) && self.knows(sap, pair);
        allows(from)
            && allows(to)
            && self.is_trusted(pair)
            && self.saps().any(is_found)
            && self.saps().all(|sap| !self.nodes[&sap].is_up || knows(sap))
    }

    /// Whether a flow of which answers alone are left goes on. Its starter has to notice that its SaP is gone:
    /// what happens on the way to the other end, or to it alone, it hears of with its next packet.
    fn pours(&self, (from, to): Pair) -> bool {
        let is_half = |(one, other): &Pair| !self.cut.contains(&(*other, *one));
        let is_far = |(one, other): &Pair| *one == to || *other == to;
        !self.cut.iter().any(|leg| is_half(leg) || is_far(leg)) && self.nodes[&from].is_up
    }

    /// Whose right is gone everywhere gets nothing through, whatever it stamps and whichever SaP it takes.
    pub(super) fn expect_over(&mut self) -> Result<(), String> {
        if self.gone.is_empty() {
            return Ok(());
        }
        let (keys, mut tried) = (self.server.keys(), 0);
        for &(from, to) in &self.gone {
            let newest = keys.send_key(OVERLAY, from, to).bits();
            let stamped = self.stamped.get(&(from, to)).copied().filter(|key| *key != newest);
            let keys = stamped.into_iter().chain([newest]);
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
        let Some(outer) = node.proved(from).filter(|_| node.is_up) else { return false };
        let (snapshot, flows, now) = node.view(self.now);
        let passed = snapshot.transit(outer, key, &facts, flows, now);
        let Verdict::Send { hop, key } = passed else { return false };
        let Some(target) = self.node_at(hop) else { return false };
        let (snapshot, flows, now) = self.nodes[&target].view(self.now);
        let verdict = snapshot.ingress(node.endpoint, key.bits(), &facts, flows, now);
        matches!(verdict, Verdict::Deliver { .. })
    }

    /// Nobody else can send in the name of a pair's first end, even if he has its key.
    pub(super) fn impersonate(&mut self) -> Result<(), String> {
        let pair @ (from, to) = self.any_pair();
        let key = self.server.keys().send_key(OVERLAY, from, to).bits();
        let facts = udp(address(from), address(to), LASTING, false);
        for other in self.entities().into_iter().filter(|other| *other != from) {
            let outer = self.nodes[&other].endpoint;
            for sap in self.saps().filter(|sap| self.nodes[sap].is_up) {
                let (snapshot, flows, now) = self.nodes[&sap].view(self.now);
                if !matches!(snapshot.transit(outer, key, &facts, flows, now), Verdict::Drop(_)) {
                    return Err(format!("{other} sends in the name of {pair:?} over {sap}"));
                }
            }
        }
        Ok(())
    }

    /// A source has a new right no sooner than those who have to let it through, unless they are late.
    pub(super) fn expect_after_others(&self, source: NodeId) -> Result<(), String> {
        for pair in self.server.added(self.now).filter(|(from, _)| *from == source) {
            let allows = |id: NodeId| self.allows(id, pair) == Some(true);
            let behind = self.saps().chain([pair.1]).find(|id| !allows(*id));
            if let Some(behind) = behind.filter(|_| allows(source)) {
                return Err(format!("{source} has a right before {behind} has it: {pair:?}"));
            }
        }
        Ok(())
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

    /// Keys whose time is over open nothing, at no SaP and at no destination.
    pub(super) fn use_old_keys(&mut self) -> Result<(), String> {
        let (rotating, keys, mut checked) = (self.server.rotating(), self.server.keys(), 0);
        for &((from, to), key) in &self.old {
            // A sender that started from an older table stamped this one before the one it stamps now.
            if keys.send_key(OVERLAY, from, to).bits() == key {
                continue;
            }
            let facts = udp(address(from), address(to), LASTING + 1, false);
            for id in self.saps().chain([to]) {
                let node = &self.nodes[&id];
                if node.in_force.is_none() || !node.is_up {
                    continue;
                }
                let (snapshot, flows, now) = node.view(self.now);
                let (serial, newest) = (node.serial(), self.server.newest_serial(id));
                let is_settled = self.server.is_up && serial == newest && !rotating.contains(&to);
                let is_over = self.server.old_keys_are_over((from, to), (id, serial), now.wall);
                if !is_settled && !is_over {
                    continue;
                }
                let verdict = if id == to {
                    let saps = self.saps().map(|sap| self.nodes[&sap].endpoint);
                    let verdicts = saps.map(|sap| snapshot.ingress(sap, key, &facts, flows, now));
                    verdicts.last()
                } else {
                    let outer = node.proved(from);
                    outer.map(|outer| snapshot.transit(outer, key, &facts, flows, now))
                };
                checked += 1;
                if !matches!(verdict, Some(Verdict::Drop(_)) | None) {
                    return Err(format!("{id} takes an old key from {from} to {to}"));
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
        let fresh = self.server.fresh(self.now);
        for (id, node) in &self.nodes {
            let (serial, body) = (self.server.newest_serial(*id), fresh(*id));
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
            // Of SaPs that nobody doubts the best one is chosen.
            let new = snapshot::build(disk)?;
            for pair in self.newest_policy().iter().filter(|(from, _)| from == id) {
                let best = new.opens_by(address(pair.0), address(pair.1));
                if self.chosen(*pair) != best {
                    let chosen = self.chosen(*pair);
                    return Err(format!("{pair:?} go by {chosen:?} for ever, not by {best:?}"));
                }
            }
        }
        if let Some(removal) = self.going.first() {
            return Err(format!("it never says that {:?} is over", removal.pair));
        }
        self.server.cut_off.clear();
        Ok(())
    }
}

/// A table's body, to be compared.
fn lines(body: Option<&TableBody>) -> Vec<String> {
    let text = serde_json::to_string_pretty(&body).expect("a table is JSON");
    text.lines().map(str::to_owned).collect()
}

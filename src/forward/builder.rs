//! Builds a [`Snapshot`] from specifications, checking that they agree with each other.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::hop::Preference;
use super::keyring::{KeyCache, Keyring, MEMBERS_MAX};
use super::matcher::{IsolationSpec, Matcher, RuleSpec};
use super::paths::{Hops, PathSpec, Paths};
use super::snapshot::{Member, Overlay, OverlayInfo, Sap, SapInfo, Snapshot, Tables, canonical};
use crate::keys::DestinationKey;
use crate::types::{
    AuthorizationKey, Generation, NodeId, NodeKind, Prefix, Secret, Service, Timestamp,
};

/// A member of an overlay.
#[derive(Clone, Debug)]
pub struct MemberSpec {
    /// The entity.
    pub id: NodeId,
    /// Its address in the overlay.
    pub address: IpAddr,
    /// Where it can be reached, best first; may be empty.
    pub endpoints: Vec<SocketAddr>,
}

/// The `Kb`s of one destination.
#[derive(Clone, Debug)]
pub struct DestinationKeySpec {
    /// Index of the destination among the members.
    pub to: u32,
    /// One, or two during a rotation, oldest first.
    pub accept: Vec<Secret>,
    /// When the older of two ends.
    pub old_until: Option<Timestamp>,
}

/// A pair that was rotated alone.
#[derive(Clone, Debug)]
pub struct PairSpec {
    /// Index of the source among the members.
    pub from: u32,
    /// Index of the destination among the members.
    pub to: u32,
    /// One generation, or two during a rotation, oldest first.
    pub accept: Vec<Generation>,
    /// When the older of two ends.
    pub old_until: Option<Timestamp>,
}

/// One overlay; indexes point into `members` and `sets`.
#[derive(Clone, Debug)]
pub struct OverlaySpec {
    /// What verdicts do not need, but who answers and configures does.
    pub info: OverlayInfo,
    /// The members.
    pub members: Vec<MemberSpec>,
    /// Sets of indexes into `members`.
    pub sets: Vec<Vec<u32>>,
    /// The rules.
    pub rules: Vec<RuleSpec>,
    /// Whether a flow passes of which no rule speaks and neither end of which is isolated.
    pub unspoken_passes: bool,
    /// The members that NetworkPolicies isolate.
    pub isolated: Vec<IsolationSpec>,
    /// The paths of pairs that have their own.
    pub paths: Vec<PathSpec>,
    /// The SaPs of all other pairs, the preferred one first.
    pub default_saps: Vec<NodeId>,
    /// Other orders of them, with the set of the members with which they are preferred.
    pub preferences: Vec<(u32, Vec<NodeId>)>,
    /// Those of them to which nothing is sent.
    pub empty_saps: Vec<NodeId>,
    /// What accepted keys are derived from.
    pub destination_keys: Vec<DestinationKeySpec>,
    /// Pairs with generations other than 0.
    pub pairs: Vec<PairSpec>,
    /// The keys to stamp, by index of the destination.
    pub send_keys: Vec<(u32, AuthorizationKey)>,
}

/// Builds a [`Snapshot`]; `agent::snapshot` drives it from a table.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    owner: Option<(NodeId, NodeKind)>,
    saps: Vec<SapInfo>,
    overlays: Vec<OverlaySpec>,
}

impl SnapshotBuilder {
    /// Starts the snapshot of one node.
    #[must_use]
    pub fn new(id: NodeId, kind: NodeKind) -> Self {
        Self { owner: Some((id, kind)), ..Self::default() }
    }

    /// Adds a SaP that the node exchanges packets with.
    #[must_use]
    pub fn sap(mut self, sap: SapInfo) -> Self {
        self.saps.push(sap);
        self
    }

    /// Adds an overlay; verdicts name it by the order of these calls.
    #[must_use]
    pub fn overlay(mut self, overlay: OverlaySpec) -> Self {
        self.overlays.push(overlay);
        self
    }

    /// Checks and builds.
    ///
    /// # Errors
    ///
    /// What does not agree, in words.
    pub fn build(self) -> Result<Snapshot, String> {
        let mut tables = Tables::empty();
        if self.owner.is_none() && !(self.saps.is_empty() && self.overlays.is_empty()) {
            return Err("a snapshot with content needs the node that it is of".to_owned());
        }
        for mut info in self.saps {
            for endpoint in &mut info.endpoints {
                *endpoint = canonical(*endpoint);
                tables.known.insert(*endpoint);
            }
            tables.sap_index.insert(info.id.0, tables.saps.len());
            tables.saps.push(Sap {
                is_alive: AtomicBool::new(true),
                is_returning: AtomicBool::new(false),
                info: info.clone(),
            });
            tables.sap_infos.push(info);
        }
        let mut first_member = 0;
        for spec in self.overlays {
            let name = spec.info.name.clone();
            let (id, kind) = self.owner.ok_or("a snapshot needs its node")?;
            let count = spec.members.len();
            let overlay = overlay(spec, (id, kind), first_member, &mut tables)
                .map_err(|problem| format!("overlay {name}: {problem}"))?;
            tables.overlays.push(overlay);
            first_member += count;
            if first_member > MEMBERS_MAX {
                return Err(format!("more than {MEMBERS_MAX} members"));
            }
        }
        if tables.overlays.iter().any(|overlay| !overlay.keyring.is_empty()) {
            tables.keys = KeyCache::for_pairs_of(first_member);
        }
        tables.owner = self.owner;
        tables.number_tokens();
        Ok(Snapshot::of(tables))
    }
}

/// Checks one overlay against itself and enters its addresses into `tables`.
fn overlay(
    spec: OverlaySpec,
    (owner, kind): (NodeId, NodeKind),
    first_member: usize,
    tables: &mut Tables,
) -> Result<Overlay, String> {
    let is_v6 = matches!(spec.info.cidr, Prefix::V6(_));
    check_indexes(&spec)?;
    check_saps(&spec, kind, tables)?;
    let count = spec.members.len();
    let index = u32::try_from(tables.overlays.len()).map_err(|_| "too many overlays")?;
    let mut own = None;
    let mut members = Vec::with_capacity(count);
    for (number, member) in (0_u32..).zip(spec.members) {
        if !spec.info.cidr.contains(&member.address) {
            return Err(format!(
                "member {} has {} outside {}",
                member.id, member.address, spec.info.cidr
            ));
        }
        if tables.members.insert(member.address, (index, number)).is_some() {
            return Err(format!("two members have {}", member.address));
        }
        if Some(member.address) == spec.info.address {
            own = Some(number);
            if member.id != owner {
                return Err(format!("{} is {}, not {owner}", member.address, member.id));
            }
        }
        let endpoints: Vec<SocketAddr> = member.endpoints.into_iter().map(canonical).collect();
        tables.known.extend(endpoints.iter().copied());
        members.push(Member {
            id: member.id,
            endpoints: endpoints.into_boxed_slice(),
            lost_by: AtomicU64::new(0),
            was_sent_to: AtomicBool::new(false),
        });
    }
    if spec.info.address.is_some() && own.is_none() {
        return Err("the node's own address is no member's".to_owned());
    }
    for rule in &spec.rules {
        tables.expiries.extend(rule.not_after.map(|end| end.0));
    }
    let mut keyring = Keyring::default();
    for row in spec.destination_keys {
        let accept = row.accept.iter().map(DestinationKey::new).collect();
        keyring.add_destination(row.to, accept, row.old_until);
    }
    for row in spec.pairs {
        keyring.add_pair(row.from, row.to, row.accept, row.old_until);
    }
    let mut send_keys = vec![None; count];
    for (to, key) in spec.send_keys {
        if let Some(slot) = send_keys.get_mut(to as usize) {
            *slot = Some(key);
        }
    }
    Ok(Overlay {
        own,
        members: members.into_boxed_slice(),
        first_member: u32::try_from(first_member).map_err(|_| "too many members")?,
        matcher: Matcher::new(is_v6, count, &spec.sets, &spec.rules)
            .with_isolation(&spec.isolated, spec.unspoken_passes),
        paths: Paths::new(count, &spec.sets, spec.paths),
        preference: Preference::new(count, &spec.sets, spec.preferences),
        default_saps: spec.default_saps.into_boxed_slice(),
        empty_saps: spec.empty_saps.into_boxed_slice(),
        keyring,
        send_keys: send_keys.into_boxed_slice(),
        info: spec.info,
    })
}

fn check_indexes(spec: &OverlaySpec) -> Result<(), String> {
    let members = spec.members.len();
    let member = |what: &str, index: u32| {
        if (index as usize) < members {
            Ok(())
        } else {
            Err(format!("{what} names member number {index} of {members}"))
        }
    };
    let sets = spec.sets.len();
    let set = |what: &str, index: u32| {
        if (index as usize) < sets {
            Ok(())
        } else {
            Err(format!("{what} names set number {index} of {sets}"))
        }
    };
    for (number, content) in spec.sets.iter().enumerate() {
        for &index in content {
            member(&format!("set number {number}"), index)?;
        }
    }
    for rule in &spec.rules {
        let what = format!("rule {}", rule.id);
        set(&what, rule.from)?;
        set(&what, rule.to)?;
        for service in &rule.services {
            if let Service::Named(..) = service {
                return Err(format!("{what} has the port name {service}, which nothing resolved"));
            }
        }
    }
    for row in &spec.isolated {
        member("an isolation", row.member)?;
    }
    for path in &spec.paths {
        set("a path", path.from)?;
        set("a path", path.to)?;
    }
    for &(with, _) in &spec.preferences {
        set("a preference", with)?;
    }
    for row in &spec.destination_keys {
        member("a destination key", row.to)?;
        if row.accept.is_empty() || row.accept.len() > 2 {
            return Err(format!("destination number {} has {} keys", row.to, row.accept.len()));
        }
    }
    for row in &spec.pairs {
        member("a pair's generation", row.from)?;
        member("a pair's generation", row.to)?;
        if row.accept.is_empty() || row.accept.len() > 2 {
            return Err(format!("a pair has {} generations", row.accept.len()));
        }
    }
    spec.send_keys.iter().try_for_each(|&(to, _)| member("a send key", to))
}

/// An entity's table has all SaPs that it may meet; a SaP's only its neighbours, and not itself.
fn check_saps(spec: &OverlaySpec, kind: NodeKind, tables: &Tables) -> Result<(), String> {
    let known = |sap: NodeId| match kind {
        NodeKind::Entity if !tables.sap_index.contains_key(&sap.0) => {
            Err(format!("SaP {sap} is named, but has no row"))
        }
        NodeKind::Entity | NodeKind::Sap => Ok(()),
    };
    for &sap in spec.default_saps.iter().chain(spec.preferences.iter().flat_map(|(_, saps)| saps)) {
        known(sap)?;
    }
    for path in &spec.paths {
        match &path.hops {
            Hops::Via(saps) => {
                let (Some(&first), Some(&last)) = (saps.first(), saps.last()) else {
                    return Err("a path over SaPs names none".to_owned());
                };
                known(first)?;
                known(last)?;
                let unique: std::collections::BTreeSet<_> = saps.iter().collect();
                if unique.len() != saps.len() {
                    return Err("a path crosses one SaP twice".to_owned());
                }
            }
            Hops::Elsewhere if kind == NodeKind::Entity => {
                return Err("a path that goes elsewhere is for SaPs only".to_owned());
            }
            Hops::Direct | Hops::Elsewhere => {}
        }
    }
    Ok(())
}

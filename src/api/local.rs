//! What `ovd` and `ovsap` answer on their unix sockets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::why::Stage;
use crate::types::{
    ApiVersion, DnsHook, EntityName, GuardEgress, GuardMode, HumanDuration, Name, NodeId, NodeKind,
    Prefix, Revision, Serial, Service, Timestamp,
};

/// `GET /v1/status` of `ovd` and of `ovsap`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// Program version.
    pub version: String,
    /// The node.
    pub id: NodeId,
    /// Entity or SaP.
    pub kind: NodeKind,
    /// Its full name.
    pub name: EntityName,
    /// When the daemon started.
    pub started: Timestamp,
    /// The connection to the server.
    pub server: ServerStatus,
    /// The table in force.
    pub table: Option<TableStatus>,
    /// Where data packets are received.
    pub endpoints: Vec<SocketAddr>,
    /// The overlays.
    pub overlays: Vec<OverlayStatus>,
    /// The SaPs, with the round trips that control echoes measured.
    pub saps: Vec<SapStatus>,
    /// Packets that went through, by hallway (`egress`, `ingress`, `transit`).
    pub packets: BTreeMap<String, HallwayStatus>,
    /// Dropped packets by reason; reasons that never happened are left out.
    pub drops: BTreeMap<String, u64>,
    /// Flows in the flow table.
    pub flows: u64,
    /// Opening packets of this host that were refused in the last 10 minutes, as far as remembered.
    #[serde(default)]
    pub denied: u64,
    /// Destinations whose way takes less than the overlay's device, as far as somebody believable said so;
    /// sorted, [`NARROW_MAX`] at most.
    #[serde(default)]
    pub narrow: Vec<NarrowWay>,
    /// The guard; none at a SaP.
    #[serde(default)]
    pub guard: Option<GuardStatus>,
    /// Where names are answered; none where they are not, and at a SaP.
    #[serde(default)]
    pub names: Option<NamesStatus>,
    /// What keeps the node from doing its work, each a line for people.
    pub problems: Vec<String>,
}

/// How programs of a machine get names of overlays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamesStatus {
    /// What brings their questions; never [`DnsHook::Auto`].
    pub hook: DnsHook,
    /// Where questions are answered.
    pub listeners: Vec<SocketAddr>,
    /// The name servers whose questions are redirected.
    pub redirected: Vec<IpAddr>,
}

/// How many narrow ways a status has.
pub const NARROW_MAX: usize = 64;

/// A way that takes less than the overlay's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NarrowWay {
    /// The overlay address that it leads to.
    pub destination: IpAddr,
    /// The longest packet that fits, without our headers, in bytes.
    pub mtu: u16,
}

/// The guard of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardStatus {
    /// What it was started as.
    pub mode: GuardMode,
    /// What it lets out.
    pub egress: GuardEgress,
    /// Whether its table is in force.
    pub in_force: bool,
    /// Whether anybody on the underlay reaches whatever this machine serves: the guard is off, or closes
    /// ports and knows none.
    pub underlay_open: bool,
    /// When an order of `ovd guard off --for` ends.
    pub off_until: Option<Timestamp>,
    /// The service ports that it closes outside of overlays.
    pub services: Vec<Service>,
    /// Whose ssh connections it lets go on.
    pub ssh_peers: Vec<IpAddr>,
    /// How often somebody else changed or removed its table, and it was put back.
    pub put_back: u64,
    /// Its rules, each with what it matched since the table was made.
    pub rules: Vec<GuardRule>,
}

/// A rule of the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardRule {
    /// Its name, which is its counter's name in the table `inet ovmesh`.
    pub name: String,
    /// Packets that it matched.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What it is about.
    pub about: String,
}

/// `POST /v1/order` of `ovd`: what an operator of this machine tells its daemon to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Order {
    /// Take the guard away; it comes back after this time, with the next start, or when ordered.
    GuardOff(Option<HumanDuration>),
    /// Put the guard back in force.
    GuardOn,
    /// Stop.
    Down,
}

/// Counters of one hallway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HallwayStatus {
    /// Packets that were let through.
    pub packets: u64,
    /// Their inner bytes.
    pub bytes: u64,
}

/// The connection to the coordination server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Its first URL.
    pub url: String,
    /// Whether the last request was answered.
    pub reachable: bool,
    /// Since when that is so.
    pub since: Timestamp,
    /// Why not, when it was not.
    pub error: Option<String>,
}

/// The table in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableStatus {
    /// Its serial.
    pub serial: Serial,
    /// Its revision.
    pub revision: Revision,
    /// When it was applied.
    pub applied: Timestamp,
    /// Whether it was read from disk and not yet confirmed by the server.
    pub from_disk: bool,
}

/// One overlay at one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverlayStatus {
    /// Its name.
    pub name: Name,
    /// Its range.
    pub cidr: Prefix,
    /// This node's address; none at a SaP.
    pub address: Option<IpAddr>,
    /// The TUN device; none at a SaP.
    pub device: Option<String>,
    /// The device's MTU in bytes.
    pub mtu: Option<u32>,
    /// How many members this node knows of, itself left out.
    pub peers: u64,
    /// How many rules.
    pub rules: u64,
}

/// One SaP as a node sees it, or one entity as a SaP sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SapStatus {
    /// The SaP.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where packets for it go.
    pub endpoint: Option<SocketAddr>,
    /// Whether it answers control echoes.
    pub alive: bool,
    /// Smoothed round trip in microseconds.
    pub round_trip_micros: Option<u64>,
}

/// `GET /v1/denied?since=DURATION` of `ovd`; without `since` everything that is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DenialList {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The newest first.
    pub items: Vec<Denial>,
}

/// `GET /v1/why?peer=PEER[&service=SERVICE]` of `ovd`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalQuestion {
    /// An address, or the name of a member that this node's tables name.
    pub peer: String,
    /// Protocol and one port by number.
    #[serde(default)]
    pub service: Option<Service>,
}

/// What a machine knows of a flow that it would start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalWhy {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// Whether nothing that this machine knows stops it.
    pub passes: bool,
    /// The overlay.
    pub overlay: Name,
    /// This machine.
    pub from: EntityName,
    /// The address that was asked about.
    pub address: IpAddr,
    /// Who bears it, where this node knows it.
    pub peer: Option<EntityName>,
    /// What was asked about.
    pub service: Option<Service>,
    /// The revision of the table that was asked.
    pub revision: Revision,
    /// Every stage, in the order of a packet's needs.
    pub stages: Vec<Stage>,
    /// What of it was refused lately, newest first.
    pub denied: Vec<Denial>,
}

/// Something that this host wanted and was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// The overlay.
    pub overlay: Name,
    /// This host's address in it.
    pub source: IpAddr,
    /// The address that it wanted.
    pub destination: IpAddr,
    /// Who bears that address, where this node knows it.
    pub peer: Option<EntityName>,
    /// Protocol and port, such as `tcp/443`.
    pub service: String,
    /// Why not: a drop reason's name.
    pub reason: String,
    /// Who refused it.
    pub by: RefusedBy,
    /// Opening packets that were refused.
    pub count: u64,
    /// When the first one was.
    pub first: Timestamp,
    /// When the last one was.
    pub last: Timestamp,
}

/// Who on its way refused a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RefusedBy {
    /// The `ovd` of this very host.
    #[default]
    Ovd,
    /// A SaP.
    Sap,
    /// The destination's `ovd`.
    Destination,
}

impl RefusedBy {
    /// The word that stands for it in JSON and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ovd => "ovd",
            Self::Sap => "sap",
            Self::Destination => "destination",
        }
    }
}

#[cfg(test)]
impl NodeStatus {
    /// That of an entity on a good day.
    pub(crate) fn of_tests() -> Self {
        Self {
            api_version: ApiVersion::V1,
            version: "0.1.0".to_owned(),
            id: NodeId(3),
            kind: NodeKind::Entity,
            name: "web".parse().unwrap(),
            started: Timestamp(999_000),
            server: ServerStatus {
                url: "https://192.0.2.1:7443".to_owned(),
                reachable: true,
                since: Timestamp(999_000),
                error: None,
            },
            table: Some(TableStatus {
                serial: Serial(7),
                revision: Revision(43),
                applied: Timestamp(999_999),
                from_disk: false,
            }),
            endpoints: vec!["192.0.2.7:6080".parse().unwrap()],
            overlays: vec![OverlayStatus {
                name: Name::default(),
                cidr: "100.71.0.0/16".parse().unwrap(),
                address: Some("100.71.0.11".parse().unwrap()),
                device: Some("ov0".to_owned()),
                mtu: Some(1464),
                peers: 2,
                rules: 1,
            }],
            saps: vec![SapStatus {
                id: NodeId(1),
                name: "sap-1".to_owned(),
                endpoint: Some("192.0.2.9:6080".parse().unwrap()),
                alive: true,
                round_trip_micros: Some(420),
            }],
            packets: BTreeMap::new(),
            drops: BTreeMap::new(),
            flows: 0,
            denied: 0,
            narrow: Vec::new(),
            guard: None,
            names: None,
            problems: Vec::new(),
        }
    }
}

#[cfg(test)]
impl Denial {
    /// One that a SaP gave three times.
    pub(crate) fn of_tests() -> Self {
        Self {
            overlay: "lab".parse().unwrap(),
            source: "10.70.0.1".parse().unwrap(),
            destination: "10.70.0.2".parse().unwrap(),
            peer: None,
            service: "tcp/22".to_owned(),
            reason: "no_rule".to_owned(),
            by: RefusedBy::Sap,
            count: 3,
            first: Timestamp(900),
            last: Timestamp(1000),
        }
    }
}

#[cfg(test)]
impl GuardStatus {
    /// That of a guard in force, of which nothing has come yet.
    pub(crate) fn of_tests() -> Self {
        Self {
            mode: GuardMode::Ports,
            egress: GuardEgress::Off,
            in_force: true,
            underlay_open: false,
            off_until: None,
            services: vec!["tcp/443".parse().unwrap()],
            ssh_peers: Vec::new(),
            put_back: 0,
            rules: Vec::new(),
        }
    }
}

//! What the server asks of a node that waits for a table: to send tracers, and to tell what it saw of some
//! (docs/adr/0012). It comes as the answer to the node's poll, with status 202.
//!
//! | request | who | answer |
//! |---|---|---|
//! | `POST /v1/node/errand` [`ErrandReport`] | node | 204 |

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::types::{OverlayId, TracerId};

/// Most tracers of one errand.
pub const TRACERS_MAX: usize = 256;

/// Something to do beside the waiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Errand {
    /// Which one: the report repeats it.
    pub id: u64,
    /// What to do.
    pub order: Order,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// Send these from this host's address, through its own egress.
    Send(Vec<Tracer>),
    /// Tell what was seen of these.
    Tell(Vec<TracerId>),
}

/// An opening packet to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tracer {
    /// What it carries.
    pub id: TracerId,
    /// The overlay.
    pub overlay: OverlayId,
    /// Whom it asks.
    pub to: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; 0 where the protocol has none.
    pub port: u16,
}

/// An errand was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ErrandReport {
    /// Which one.
    pub errand: u64,
    /// Of the tracers that were asked about, those that this node knows of; at most [`TRACERS_MAX`].
    pub sightings: Vec<Sighting>,
}

/// What a node did with a tracer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sighting {
    /// The tracer.
    pub tracer: TracerId,
    /// Why it was refused: the name of a [`crate::types::DropReason`]. None when it passed.
    pub refused: Option<String>,
}

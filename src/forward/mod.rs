//! One packet's facts in, one verdict out; the flow table. Pure: no bytes of packets, no clock, no
//! socket; `now` is passed in.
//!
//! A [`Snapshot`] is built whole from one table (by `agent`), is immutable, and is swapped whole.
//! Its three questions are the three hallways:
//!
//! | hallway | question | where |
//! |---|---|---|
//! | egress | [`Snapshot::egress`] | `ovd`, from TUN to UDP |
//! | ingress | [`Snapshot::ingress`] | `ovd`, from UDP to TUN |
//! | transit | [`Snapshot::transit`] | `ovsap`, from UDP to UDP |

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        reason = "packets must not panic"
    )
)]

mod builder;
mod by_source;
mod explain;
mod flow_key;
mod flows;
mod guessed;
mod hop;
mod judge;
mod key_budget;
mod keyring;
mod matcher;
mod notice;
mod path_mtus;
mod paths;
mod proved;
mod recording;
mod records;
mod services;
mod snapshot;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

pub use builder::{DestinationKeySpec, MemberSpec, OverlaySpec, PairSpec, SnapshotBuilder};
pub use explain::{Explanation, Row, Ruling, Way};
pub use flows::FlowTable;
pub use guessed::GuessedPair;
pub use matcher::{IsolationSpec, RuleSpec};
pub use notice::Pair;
pub use path_mtus::PathMtus;
pub use paths::{Hops, PathSpec};
pub use records::{Collected, Outcome, RecordKey, RecordMark, RecordTable, Sums, Target};
pub use snapshot::{OverlayInfo, SapInfo, Snapshot};

use crate::types::{AuthorizationKey, DropReason, Timestamp};
use crate::wire::Facts;

/// The time, read once per batch by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back.
    pub monotonic_millis: u64,
    /// Wall-clock seconds, for rules that expire.
    pub wall: Timestamp,
}

/// A verdict, and the record that the packet counts under: whoever asked counts it, once for a run of
/// packets that are judged alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Marked {
    /// What to do.
    pub verdict: Verdict,
    /// Where it counts; none for what cannot be told apart from noise.
    pub record: Option<RecordMark>,
}

impl Marked {
    /// The outcome of `judge`, which says where the packet counts. A tracer is nobody's traffic, and no
    /// use of a rule.
    fn of(
        facts: &Facts,
        judge: impl FnOnce(&mut Option<RecordMark>) -> Result<Verdict, DropReason>,
    ) -> Self {
        let mut record = None;
        let verdict = judge(&mut record).unwrap_or_else(Verdict::Drop);
        Self { verdict, record: record.filter(|_| facts.tracer.is_none()) }
    }

    /// The verdict, after this one packet was counted.
    fn counted(self, facts: &Facts, flows: &FlowTable, now: Now) -> Verdict {
        if let Some(record) = self.record {
            flows.records().add(record, 1, facts.len.into(), now.wall);
        }
        self.verdict
    }
}

/// What to do with one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Send it there with this key.
    Send {
        /// The next hop.
        hop: SocketAddr,
        /// The key to stamp; at a SaP the one that the packet already carries.
        key: AuthorizationKey,
    },
    /// Give it to the host, on the TUN of this overlay (index into the snapshot's overlays).
    Deliver {
        /// Index of the overlay.
        overlay: usize,
    },
    /// Drop it; each reason is one counter.
    Drop(DropReason),
}

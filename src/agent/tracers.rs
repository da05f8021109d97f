//! Tracers at a node: what is sent on the server's order, and what the hallways saw of those that came by.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::api::errand::{Sighting, TRACERS_MAX, Tracer};
use crate::forward::Snapshot;
use crate::types::{DropReason, OverlayId, TracerId};
use crate::wire::inner::Quoted;
use crate::wire::tracer;

/// How many are remembered; the oldest go first. The server asks within seconds.
const REMEMBERED_MAX: usize = 2 * TRACERS_MAX;

/// What this node did with tracers.
#[derive(Debug, Default)]
pub struct Sightings(VecDeque<(TracerId, Result<(), DropReason>)>);

impl Sightings {
    /// Remembers that a tracer passed, or why not. What was seen last of one counts.
    pub fn note(&mut self, id: TracerId, outcome: Result<(), DropReason>) {
        self.0.retain(|(known, _)| *known != id);
        if self.0.len() == REMEMBERED_MAX {
            self.0.pop_front();
        }
        self.0.push_back((id, outcome));
    }

    /// What is known of these.
    #[must_use]
    pub fn of(&self, ids: &[TracerId]) -> Vec<Sighting> {
        let asked = self.0.iter().filter(|(id, _)| ids.contains(id));
        let sighting = |(id, outcome): &(TracerId, Result<(), DropReason>)| Sighting {
            tracer: *id,
            refused: outcome.err().map(|reason| reason.name().to_owned()),
        };
        asked.map(sighting).collect()
    }
}

/// The packet of a tracer from this host, whose port or identifier is `source_port`, with the overlay that
/// it goes to; none where this host has no address there, or the protocol cannot be traced.
#[must_use]
pub fn packet(
    snapshot: &Snapshot,
    tracer: &Tracer,
    source_port: u16,
) -> Option<(OverlayId, Vec<u8>)> {
    let source: IpAddr =
        snapshot.overlays().find(|overlay| overlay.id == tracer.overlay)?.address?;
    let flow = Quoted {
        source,
        destination: tracer.to,
        protocol: tracer.protocol,
        source_port,
        destination_port: tracer.port,
    };
    Some((tracer.overlay, tracer::packet(&flow, tracer.id)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_last_counts_and_what_is_remembered_is_bounded() {
        let mut sightings = Sightings::default();
        sightings.note(TracerId(1), Err(DropReason::NoRule));
        sightings.note(TracerId(1), Ok(()));
        sightings.note(TracerId(2), Err(DropReason::NoRow));
        let told = sightings.of(&[TracerId(2), TracerId(1), TracerId(7)]);
        let expected = [
            Sighting { tracer: TracerId(1), refused: None },
            Sighting { tracer: TracerId(2), refused: Some("no_row".to_owned()) },
        ];
        assert_eq!(told, expected);

        for id in 0..2_000 {
            sightings.note(TracerId(id), Ok(()));
        }
        assert_eq!(sightings.0.len(), REMEMBERED_MAX);
        assert!(sightings.of(&[TracerId(1)]).is_empty());
    }
}

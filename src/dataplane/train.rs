//! What lies in one buffer: a datagram, a train of them, or a large packet that nobody cut.
//!
//! Every datagram of a train is judged for itself; that a train came from one address says nothing
//! about what is in it.

use std::net::SocketAddr;
use std::ops::Range;

use crate::forward::{Marked, Now, RecordMark, RecordTable, Verdict};
use crate::sys::batch::Meta;
use crate::sys::offload::layout::Layout;
use crate::sys::offload::split::Split;
use crate::sys::udp::Outgoing;
use crate::wire::Facts;
use crate::wire::gue::{self, Frame};
use crate::wire::inner::{Fragment, Upper};

/// The flag of TCP that no verdict looks at.
const PSH: u8 = 0x08;
/// Flags that move a flow from one phase to the next: SYN, FIN, RST.
const PHASE_FLAGS: u8 = 0x02 | 0x01 | 0x04;

/// The datagrams of one buffer, by where they lie.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    rest: Range<usize>,
    stride: usize,
    large: Option<u16>,
    /// A datagram of no bytes is one, too: it wants to be refused and counted.
    is_empty: bool,
}

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) range: Range<usize>,
    /// Set for a large packet that nobody cut: the payload bytes of each of its segments.
    pub(super) large: Option<u16>,
}

impl Pieces {
    /// The datagrams of a buffer that lies at `range` and holds `bytes`.
    pub(super) fn new(meta: &Meta, range: Range<usize>, bytes: &[u8]) -> Self {
        if meta.segment == 0 || meta.segment >= bytes.len() {
            let is_empty = range.is_empty();
            return Self { stride: bytes.len().max(1), rest: range, large: None, is_empty };
        }
        if is_uncut(bytes, meta.segment) {
            let large = u16::try_from(meta.segment).ok();
            return Self { stride: bytes.len(), rest: range, large, is_empty: false };
        }
        Self { stride: meta.segment, rest: range, large: None, is_empty: false }
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.rest.is_empty() && !std::mem::take(&mut self.is_empty) {
            return None;
        }
        let start = self.rest.start;
        let end = self.rest.end.min(start + self.stride);
        self.rest.start = end;
        Some(Piece { range: start..end, large: self.large })
    }
}

/// Whether a buffer is one wrapped packet that the kernel of this very host meant to have cut by a
/// network card: the inner packet fills it, and where a train would have further headers there is
/// none. A train can hardly pose as one: each header of ours behind the first gives it away, and what
/// poses all the same is judged, and passed on, as the one packet that it says it is.
fn is_uncut(bytes: &[u8], segment: usize) -> bool {
    let is_whole = match gue::decode(bytes) {
        Ok(Frame::Data { inner, .. }) => Layout::read(inner).is_some(),
        Ok(Frame::Control { .. }) | Err(_) => false,
    };
    is_whole && bytes.chunks(segment).skip(1).all(|piece| gue::decode(piece).is_err())
}

/// The outer source of a datagram, and its key.
type Origin = (SocketAddr, u32);

/// The last verdict of a batch, for packets that differ from the last one in nothing that a verdict
/// looks at: most of a train. Only what passed is remembered, so that refusals are counted where they
/// belong. It also counts what was judged: once for each run of packets of one record.
#[derive(Debug)]
pub(super) struct Memo<'a> {
    last: Option<(Option<Origin>, Facts, Marked)>,
    records: &'a RecordTable,
    now: Now,
    run: Option<Run>,
}

/// Packets that count under one record, and are not counted yet.
#[derive(Clone, Copy, Debug)]
struct Run {
    record: RecordMark,
    packets: u64,
    bytes: u64,
}

impl<'a> Memo<'a> {
    /// For one batch; it counts in `records` what it still holds when it goes.
    pub(super) fn new(records: &'a RecordTable, now: Now) -> Self {
        Self { last: None, records, now, run: None }
    }

    /// The verdict on a packet, which is counted.
    pub(super) fn verdict(
        &mut self,
        origin: Option<Origin>,
        facts: &Facts,
        ask: impl FnOnce() -> Marked,
    ) -> Verdict {
        let Marked { verdict, record } = self.marked(origin, facts, ask);
        if let Some(record) = record {
            self.count(record, u64::from(facts.len));
        }
        verdict
    }

    fn count(&mut self, record: RecordMark, bytes: u64) {
        match &mut self.run {
            Some(run) if run.record == record => {
                run.packets += 1;
                run.bytes += bytes;
            }
            _ => {
                self.end_run();
                self.run = Some(Run { record, packets: 1, bytes });
            }
        }
    }

    fn end_run(&mut self) {
        if let Some(Run { record, packets, bytes }) = self.run.take() {
            self.records.add(record, packets, bytes, self.now.wall);
        }
    }

    /// The verdict on a packet that came from `origin` with its key, or from the host.
    fn marked(
        &mut self,
        origin: Option<Origin>,
        facts: &Facts,
        ask: impl FnOnce() -> Marked,
    ) -> Marked {
        let Some(asked) = comparable(facts) else {
            self.last = None;
            return ask();
        };
        if let Some((known_origin, known, marked)) = &self.last
            && *known_origin == origin
            && *known == asked
        {
            return *marked;
        }
        let marked = ask();
        self.last = match marked.verdict {
            Verdict::Send { .. } | Verdict::Deliver { .. } => Some((origin, asked, marked)),
            Verdict::Drop(_) => None,
        };
        marked
    }
}

impl Drop for Memo<'_> {
    fn drop(&mut self) {
        self.end_run();
    }
}

/// What a verdict on this packet looks at, where the same packet once more has the same verdict.
fn comparable(facts: &Facts) -> Option<Facts> {
    let upper = match facts.upper {
        Upper::Tcp { flags, .. } if flags & PHASE_FLAGS != 0 => return None,
        Upper::Tcp { source_port, destination_port, flags } => {
            Upper::Tcp { source_port, destination_port, flags: flags & !PSH }
        }
        upper @ Upper::Ports { .. } => upper,
        Upper::Echo { .. } | Upper::IcmpError { .. } | Upper::Opaque => return None,
    };
    (facts.fragment == Fragment::Whole).then_some(Facts { upper, len: 0, ecn: 0, ..*facts })
}

/// The datagrams that one judged packet leaves as.
pub(super) enum Leaving<'a> {
    /// One, or none.
    Single(Option<Outgoing<'a>>),
    /// The segments of a large one; each like the first field but for its bytes.
    Cut(Outgoing<'a>, Split<'a>),
}

impl<'a> Iterator for Leaving<'a> {
    type Item = Outgoing<'a>;

    fn next(&mut self) -> Option<Outgoing<'a>> {
        match self {
            Self::Single(one) => one.take(),
            Self::Cut(like, split) => {
                split.next().map(|(head, payload)| Outgoing { head, payload, ..*like })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hallway::now;
    use super::super::hallway::tests::{V4_DATA, datagram, meta};
    use super::*;
    use crate::forward::{Outcome, RecordKey, Target};
    use crate::types::{NodeId, OverlayId};
    use crate::wire::{Family, inner};

    fn lengths(segment: usize, bytes: &[u8]) -> Vec<usize> {
        let meta = Meta { segment, len: bytes.len(), ..meta(0, 64) };
        let start = 70_000;
        let pieces = Pieces::new(&meta, start..start + bytes.len(), bytes);
        pieces.map(|piece| piece.range.len()).collect()
    }

    #[test]
    fn every_datagram_of_a_buffer_is_a_piece_even_one_of_no_bytes() {
        assert_eq!(lengths(0, &[]), [0]);
        assert_eq!(lengths(0, &[1; 30]), [30]);
        assert_eq!(lengths(30, &[1; 30]), [30]);
        assert_eq!(lengths(30, &[1; 60]), [30, 30]);
        assert_eq!(lengths(30, &[1; 61]), [30, 30, 1]);
    }

    #[test]
    fn a_run_is_counted_once_and_nothing_is_left_out() {
        let packet = datagram(V4_DATA);
        let facts = inner::parse(Family::V4, &packet[gue::HEADER_LEN..]).unwrap();
        let (records, now) = (RecordTable::new(64), now());
        let key = |port| RecordKey {
            overlay: OverlayId(1),
            rule: None,
            from: NodeId(1),
            to: Target::Member(NodeId(2)),
            protocol: 17,
            port: Some(port),
            outcome: Outcome::Allowed,
        };
        let mark = |port| Some(records.find(&key(port), now.wall));
        let passed = |record| Marked { verdict: Verdict::Deliver { overlay: 0 }, record };
        {
            let mut memo = Memo::new(&records, now);
            for record in [mark(1), mark(1), None, mark(1), mark(2), mark(1)] {
                let _ = memo.verdict(None, &facts, || passed(record));
            }
        }
        let mut found = Vec::new();
        records.collect(now.wall, now.wall, |_, sums| found.push((sums.packets, sums.bytes)));
        found.sort_unstable();
        assert_eq!(found, [(1, 38), (4, 152)]);
    }
}

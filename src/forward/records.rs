//! Flow records: who spoke to whom, by which rule, with what outcome, and how much of it.
//!
//! One table a process, of fixed size, shared by its hallways without locks and filled by judging
//! (`recording`); `agent` collects it and reports to the server. A record is one cache line of atomics
//! under a sequence number, as in `flows`. A hallway only ever adds: it makes records where there is
//! room, within the quota of their source, and never pushes one out, so that a scan cannot flush what
//! others did. What finds no room counts in one overflow record for each outcome. Records that were
//! idle for long are freed by whoever collects.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::by_source::BySource;
use crate::types::{DropReason, NodeId, OverlayId, RuleId, Timestamp};

/// Many flows share a record.
const FLOWS_PER_RECORD: usize = 8;

/// Slots that a record may stand in, counted from where its hash says.
const PROBES: usize = 16;

/// Counters of records by source; two sources that share one share a quota.
const SOURCES: usize = 1024;

/// A source may have this share of the table for what passed.
const PASSED_SHARE: usize = 4;

/// A source may have this share of the table for what was denied.
const DENIED_SHARE: usize = 16;

/// All that was denied may have this share of the table.
const ALL_DENIED_SHARE: usize = 4;

/// Seconds without a packet after which a record gives its place back.
const IDLE_SECONDS: u64 = 600;

/// Packets and bytes share one word, so that a run costs one atomic addition: 28 bits of packets over
/// 36 bits of bytes. Collecting empties it every few seconds; 64 GiB in between would count as one
/// packet too many.
const BYTES_BITS: u32 = 36;

const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;

/// What became of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// They passed by a rule, or as part of a flow that did.
    Allowed,
    /// They passed because nothing selects them, in an overlay of `kubernetes` semantics.
    Open,
    /// They passed, and would have been denied if the audit were over.
    Audit,
    /// They were dropped.
    Denied(DropReason),
}

impl Outcome {
    /// As many overflow records there are.
    const KINDS: usize = 4;

    fn kind(self) -> u8 {
        match self {
            Self::Allowed => 0,
            Self::Open => 1,
            Self::Audit => 2,
            Self::Denied(_) => 3,
        }
    }

    fn from_bits(kind: u8, reason: u8) -> Self {
        match kind {
            0 => Self::Allowed,
            1 => Self::Open,
            2 => Self::Audit,
            _ => Self::Denied(
                DropReason::ALL.get(usize::from(reason)).copied().unwrap_or(DropReason::NoRule),
            ),
        }
    }

    /// Whether it was dropped.
    #[must_use]
    pub fn is_denied(self) -> bool {
        matches!(self, Self::Denied(_))
    }
}

/// Who is talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A member that this node knows.
    Member(NodeId),
    /// An address of the overlay that this node has no row for.
    Address(IpAddr),
}

/// What a record is about. Ends and port are those of the direction in which the flow started; a
/// reply counts for its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// The overlay.
    pub overlay: OverlayId,
    /// The rule that decided.
    pub rule: Option<RuleId>,
    /// Who started.
    pub from: NodeId,
    /// Who was asked.
    pub to: Target,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port, where the protocol has ports and the packet showed them.
    pub port: Option<u16>,
    /// What became of it.
    pub outcome: Outcome,
}

const KEY_WORDS: usize = 5;

/// A key as slots hold it; the last word is never 0.
type Packed = [u64; KEY_WORDS];

/// No rule has this number.
const NO_RULE: u32 = u32::MAX;

const USED: u64 = 1 << 63;
const HAS_PORT: u64 = 1 << 62;
const HAS_V4: u64 = 1 << 61;
const HAS_V6: u64 = 1 << 60;

impl RecordKey {
    fn pack(&self) -> Packed {
        let (to, address, family) = match self.to {
            Target::Member(id) => (id.0, 0, 0),
            Target::Address(IpAddr::V4(address)) => (0, u128::from(u32::from(address)), HAS_V4),
            Target::Address(IpAddr::V6(address)) => (0, u128::from(address), HAS_V6),
        };
        let reason = match self.outcome {
            Outcome::Denied(reason) => reason as u8,
            Outcome::Allowed | Outcome::Open | Outcome::Audit => 0,
        };
        [
            u64::from(self.overlay.0) << 32 | u64::from(self.rule.map_or(NO_RULE, |rule| rule.0)),
            u64::from(self.from.0) << 32 | u64::from(to),
            (address >> 64) as u64,
            address as u64,
            USED | family
                | self.port.map_or(0, |port| HAS_PORT | u64::from(port))
                | u64::from(self.protocol) << 16
                | u64::from(self.outcome.kind()) << 24
                | u64::from(reason) << 32,
        ]
    }

    fn unpack([rule, ends, high, low, rest]: Packed) -> Self {
        let to = match (rest & HAS_V4 != 0, rest & HAS_V6 != 0) {
            (true, _) => Target::Address(IpAddr::V4((low as u32).into())),
            (_, true) => {
                let bits = u128::from(high) << 64 | u128::from(low);
                Target::Address(IpAddr::V6(Ipv6Addr::from(bits)))
            }
            _ => Target::Member(NodeId(ends as u32)),
        };
        Self {
            overlay: OverlayId((rule >> 32) as u32),
            rule: (rule as u32 != NO_RULE).then_some(RuleId(rule as u32)),
            from: NodeId((ends >> 32) as u32),
            to,
            protocol: (rest >> 16) as u8,
            port: (rest & HAS_PORT != 0).then_some(rest as u16),
            outcome: Outcome::from_bits((rest >> 24) as u8, (rest >> 32) as u8),
        }
    }

    /// Under what its quota counts.
    fn source(&self) -> (u32, u32, bool) {
        (self.overlay.0, self.from.0, self.outcome.is_denied())
    }
}

/// A record's place, as a flow's entry and a hallway's run hold it. Never 0 as a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMark {
    slot: u32,
    generation: u32,
}

impl RecordMark {
    /// As one word.
    pub(super) fn bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// From one word; 0 is none.
    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        (bits != 0).then_some(Self { slot: bits as u32, generation: (bits >> 32) as u32 })
    }
}

/// How much, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Packets, as they were judged: a large one that was cut later counts once.
    pub packets: u64,
    /// Bytes of inner packets.
    pub bytes: u64,
    /// The first of them.
    pub first: Timestamp,
    /// The last of them.
    pub last: Timestamp,
}

impl Sums {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }
}

/// What collecting finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collected {
    /// A record.
    Record(RecordKey),
    /// What found no room, by outcome; the reason of what was denied is lost.
    Overflow(Outcome),
}

/// One cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    /// Odd while a writer is at it; half of it is the generation, which starts at 1.
    sequence: AtomicU64,
    /// Packets and bytes since the last collecting.
    traffic: AtomicU64,
    /// `first | last`, seconds, 32 bits each.
    times: AtomicU64,
    key: [AtomicU64; KEY_WORDS],
}

/// The records of one process.
#[derive(Debug)]
pub struct RecordTable {
    /// The records, and behind them one overflow record for each outcome.
    slots: Box<[Slot]>,
    /// A power of two.
    capacity: usize,
    by_source: BySource,
    denied: AtomicU32,
    /// Keyed at random, so that nobody can aim at a place.
    hasher: RandomState,
}

impl Slot {
    /// The key and its generation, or nothing while a writer is at it.
    fn view(&self) -> Option<(Packed, u64)> {
        let sequence = self.sequence.load(Ordering::Acquire);
        if sequence & 1 == 1 {
            return None;
        }
        let key = self.key.each_ref().map(|word| word.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (self.sequence.load(Ordering::Relaxed) == sequence).then_some((key, sequence))
    }

    /// Becomes the slot's only writer if nothing changed since `sequence` was read.
    fn claim(&self, sequence: u64) -> bool {
        let claimed = self
            .sequence
            .compare_exchange(sequence, sequence + 1, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        fence(Ordering::Release);
        claimed
    }

    fn write(&self, sequence: u64, key: Packed, times: u64) {
        for (slot, word) in self.key.iter().zip(key) {
            slot.store(word, Ordering::Relaxed);
        }
        self.times.store(times, Ordering::Relaxed);
        self.sequence.store(sequence + 2, Ordering::Release);
    }

    /// Takes out what was counted.
    fn take(&self, since: Timestamp) -> Option<Sums> {
        let traffic = self.traffic.swap(0, Ordering::Relaxed);
        let times = self.times.load(Ordering::Relaxed);
        let last = Timestamp(times & u64::from(u32::MAX));
        (traffic != 0).then_some(Sums {
            packets: traffic >> BYTES_BITS,
            bytes: traffic & BYTES_MASK,
            first: Timestamp(times >> 32).max(since).min(last),
            last,
        })
    }
}

fn seconds(now: Timestamp) -> u64 {
    now.0.min(u64::from(u32::MAX))
}

impl super::FlowTable {
    /// What was counted, by source, destination, service and verdict.
    #[must_use]
    pub fn records(&self) -> &RecordTable {
        &self.records
    }
}

impl RecordTable {
    /// The table beside one of so many flows.
    pub(super) fn beside(flows: usize) -> Self {
        Self::new(flows / FLOWS_PER_RECORD)
    }

    /// A table with room for `capacity` records (rounded up to a power of two, at least 64).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(64).next_power_of_two();
        let slots: Box<[Slot]> = (0..capacity + Outcome::KINDS).map(|_| Slot::default()).collect();
        for overflow in slots.iter().skip(capacity) {
            overflow.sequence.store(2, Ordering::Relaxed);
        }
        Self {
            slots,
            capacity,
            by_source: BySource::new(SOURCES),
            denied: AtomicU32::new(0),
            hasher: RandomState::new(),
        }
    }

    /// The record of `key`, made where there is room; else the overflow record of its outcome.
    pub fn find(&self, key: &RecordKey, now: Timestamp) -> RecordMark {
        let packed = key.pack();
        let start = self.hasher.hash_one(packed) as usize;
        // A claim fails when another thread was faster; then the slot looks different.
        for _ in 0..3 {
            let mut free = None;
            for at in (start..start.wrapping_add(PROBES)).map(|at| at & (self.capacity - 1)) {
                let Some(slot) = self.slots.get(at) else { continue };
                let Some((found, sequence)) = slot.view() else { continue };
                if found == packed {
                    return mark(at, sequence);
                }
                let [.., used] = found;
                if used == 0 {
                    // A record behind a place that was freed later is made once more, which only
                    // takes room: whoever collects adds the two up.
                    free = Some((at, slot, sequence));
                    break;
                }
            }
            let Some((at, slot, sequence)) = free else { break };
            if self.is_over(key) {
                break;
            }
            if !slot.claim(sequence) {
                continue;
            }
            self.count(key, 1);
            let now = seconds(now);
            slot.write(sequence, packed, now << 32 | now);
            return mark(at, sequence + 2);
        }
        mark(self.capacity + usize::from(key.outcome.kind()), 2)
    }

    /// Counts packets of a record. False when its place was given back; then nothing was counted.
    pub fn add(&self, mark: RecordMark, packets: u64, bytes: u64, now: Timestamp) -> bool {
        let Some(slot) = self.slots.get(mark.slot as usize) else { return false };
        if !is_of(slot.sequence.load(Ordering::Acquire), mark) {
            return false;
        }
        slot.traffic.fetch_add(packets << BYTES_BITS | bytes & BYTES_MASK, Ordering::Relaxed);
        let (times, now) = (slot.times.load(Ordering::Relaxed), seconds(now));
        let first = times >> 32;
        if times & u64::from(u32::MAX) != now {
            let first = if first == 0 { now } else { first };
            slot.times.store(first << 32 | now, Ordering::Relaxed);
        }
        true
    }

    /// Whether the mark still leads to its record.
    pub(super) fn holds(&self, mark: RecordMark) -> bool {
        self.slots
            .get(mark.slot as usize)
            .is_some_and(|slot| is_of(slot.sequence.load(Ordering::Relaxed), mark))
    }

    /// Hands over what was counted since the last time, which was at `since`, and frees what was idle
    /// for long. For one thread at a time; a walk over the table.
    pub fn collect(&self, since: Timestamp, now: Timestamp, mut each: impl FnMut(Collected, Sums)) {
        for (at, slot) in self.slots.iter().enumerate() {
            let Some((packed, sequence)) = slot.view() else { continue };
            let taken = slot.take(since);
            if let Some(kind) = at.checked_sub(self.capacity) {
                if let Some(sums) = taken {
                    let outcome = Outcome::from_bits(kind as u8, DropReason::NoRule as u8);
                    each(Collected::Overflow(outcome), sums);
                }
                continue;
            }
            let [.., used] = packed;
            if used == 0 {
                continue;
            }
            let key = RecordKey::unpack(packed);
            if let Some(sums) = taken {
                each(Collected::Record(key), sums);
                continue;
            }
            let last = slot.times.load(Ordering::Relaxed) & u64::from(u32::MAX);
            if now.0.saturating_sub(last) >= IDLE_SECONDS && slot.claim(sequence) {
                // A hallway may have come by between the two looks.
                if let Some(sums) = slot.take(since) {
                    each(Collected::Record(key), sums);
                }
                self.count(&key, -1);
                slot.write(sequence, [0; KEY_WORDS], 0);
            }
        }
    }

    /// Whether the source, or everybody who was denied, has used up the share.
    fn is_over(&self, key: &RecordKey) -> bool {
        let is_denied = key.outcome.is_denied();
        let share = if is_denied { DENIED_SHARE } else { PASSED_SHARE };
        let used = |count: &AtomicU32| count.load(Ordering::Relaxed) as usize;
        used(self.count_of(key)) >= self.capacity / share
            || is_denied && used(&self.denied) >= self.capacity / ALL_DENIED_SHARE
    }

    fn count(&self, key: &RecordKey, change: i32) {
        let change = change as u32;
        self.count_of(key).fetch_add(change, Ordering::Relaxed);
        if key.outcome.is_denied() {
            self.denied.fetch_add(change, Ordering::Relaxed);
        }
    }

    fn count_of(&self, key: &RecordKey) -> &AtomicU32 {
        self.by_source.of(self.hasher.hash_one(key.source()))
    }
}

fn mark(slot: usize, sequence: u64) -> RecordMark {
    RecordMark { slot: slot as u32, generation: (sequence >> 1) as u32 }
}

fn is_of(sequence: u64, mark: RecordMark) -> bool {
    sequence & 1 == 0 && (sequence >> 1) as u32 == mark.generation
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;

//! What one process leaves to the next: the slots in memory that outlives it, behind a head that says
//! what they are.
//!
//! ```text
//! head   "ovflows" and layout(1) | slots(8) | 6 words, 0
//! slot   as in `slot`, so many times
//! ```
//!
//! The next process never uses this memory as its own table: it reads it once and makes entries of what
//! it finds there, each checked, so that whatever stands in it does no more than an entry can. What was
//! allowed is asked of the rules again before anything passes by it.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use super::slot::{Phase, SLOT_WORDS, State};
use super::{CAPACITY_MIN, FlowTable, Memory};
use crate::forward::Now;
use crate::forward::flow_key::FlowKey;

/// To be raised whenever a slot or a key is laid out anew: then what another version left is not used.
const LAYOUT: u8 = 1;

const STAMP: u64 = u64::from_be_bytes(*b"ovflows\0") | LAYOUT as u64;

const HEAD_WORDS: usize = 8;

const WORD: usize = size_of::<u64>();

/// The largest table that is read.
const CAPACITY_MAX: u64 = 1 << 22;

/// Slots that are read at once.
const READ_SLOTS: usize = 1024;

/// No policy has this number, so that every entry is judged anew.
const NO_POLICY: u32 = 0;

impl FlowTable {
    /// The words of memory that a table of so many flows takes, for [`Self::within`].
    #[must_use]
    pub fn words(capacity: usize) -> usize {
        let capacity = capacity.max(CAPACITY_MIN).next_power_of_two();
        HEAD_WORDS + capacity * SLOT_WORDS
    }

    /// An empty table within `memory`, which is all 0 and nobody else writes to; with room for as many
    /// flows as have room there.
    #[must_use]
    pub fn within(memory: &'static [AtomicU64]) -> Self {
        let (head, rest) = memory.split_at_checked(HEAD_WORDS).unwrap_or_default();
        let (slots, _) = rest.as_chunks::<SLOT_WORDS>();
        let capacity = slots.len().checked_ilog2().map_or(0, |log| 1 << log);
        let memory = match slots.get(..capacity) {
            Some(slots) if capacity >= CAPACITY_MIN => Memory::Shared(slots),
            Some(_) | None => Memory::own(CAPACITY_MIN),
        };
        if let ([stamp, size, ..], Memory::Shared(slots)) = (head, &memory) {
            size.store(slots.len() as u64, Ordering::Relaxed);
            stamp.store(STAMP, Ordering::Relaxed);
        }
        Self::over(memory)
    }

    /// Makes entries of the flows in `left`, the memory of a table of another process on this machine
    /// that has ended or stands still. Returns how many there were. For a table that is empty.
    ///
    /// # Errors
    ///
    /// `InvalidData` when it is no such memory or of another layout, and what `left` says.
    pub fn take_over(&self, mut left: impl Read, now: Now) -> io::Result<usize> {
        let mut head = [0; HEAD_WORDS * WORD];
        left.read_exact(&mut head)?;
        let ([stamp, capacity, ..], _) = head.as_chunks::<WORD>() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        check(u64::from_ne_bytes(*stamp))?;
        let capacity = u64::from_ne_bytes(*capacity).min(CAPACITY_MAX);
        let mut left = left.take(capacity * (SLOT_WORDS * WORD) as u64);
        let mut bytes = vec![0; READ_SLOTS * SLOT_WORDS * WORD];
        let mut taken = 0;
        loop {
            let len = fill(&mut left, &mut bytes)?;
            let (words, _) = bytes.get(..len).unwrap_or_default().as_chunks::<WORD>();
            let (slots, _) = words.as_chunks::<SLOT_WORDS>();
            taken += slots.iter().filter(|slot| self.take_slot(slot, now)).count();
            if len < bytes.len() {
                return Ok(taken);
            }
        }
    }

    /// Makes an entry of a slot; false where there is none to make.
    fn take_slot(&self, slot: &[[u8; WORD]; SLOT_WORDS], now: Now) -> bool {
        let [sequence, key @ .., state, seen_millis, hop, _] = slot;
        let key = FlowKey(key.map(u64::from_ne_bytes));
        // Most are free.
        if !key.is_flow() || u64::from_ne_bytes(*sequence) & 1 == 1 {
            return false;
        }
        let state = State(u64::from_ne_bytes(*state));
        let seen = Now {
            monotonic_millis: u64::from_ne_bytes(*seen_millis).min(now.monotonic_millis),
            ..now
        };
        let phase = state.phase();
        let idle = now.monotonic_millis.saturating_sub(seen.monotonic_millis);
        if phase == Phase::Fragment || idle >= phase.idle_millis() {
            return false;
        }
        let made = self.insert(&key, state.starter_is_lower(), phase, NO_POLICY, seen);
        let Some(mut made) = made else { return false };
        if state.is_guess() {
            made.mark_guess();
        }
        made.slot.hop().store(u64::from_ne_bytes(*hop), Ordering::Relaxed);
        true
    }
}

fn check(stamp: u64) -> io::Result<()> {
    if stamp == STAMP {
        return Ok(());
    }
    let why = if stamp | 0xFF == STAMP | 0xFF {
        format!("its layout is {}, and ours is {LAYOUT}", stamp & 0xFF)
    } else {
        "it is no flow table".to_owned()
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Reads until `room` is full or there is no more; returns how much.
fn fill(from: &mut impl Read, room: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = room.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::HopMark;
    use super::*;
    use crate::types::Timestamp;

    fn at(millis: u64) -> Now {
        Now { monotonic_millis: millis, wall: Timestamp(1) }
    }

    fn memory(capacity: usize) -> &'static [AtomicU64] {
        (0..FlowTable::words(capacity)).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
    }

    fn bytes(memory: &[AtomicU64]) -> Vec<u8> {
        memory.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect()
    }

    fn key(host: u8, port: u16) -> FlowKey {
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        FlowKey::ports(7, 17, (ip(1), port), (ip(host), 53))
    }

    #[test]
    fn flows_pass_from_one_table_to_the_next_whatever_its_size() {
        let left = memory(1024);
        let old = FlowTable::within(left);
        assert_eq!(old.capacity(), 1024);
        for port in 0..100 {
            let mut flow = old.insert(&key(5, port), true, Phase::Stateless, 9, at(1_000)).unwrap();
            flow.set_hop(HopMark { sap: 3, endpoint: 1 });
            if port == 7 {
                flow.mark_guess();
                flow.update(Phase::Tombstone, 9, at(2_000));
            }
        }
        // Its time is up by then.
        old.insert(&key(9, 1), true, Phase::Stateless, 9, at(1)).unwrap();
        // A writer died at it.
        old.insert(&key(6, 1), true, Phase::Stateless, 9, at(1_000)).unwrap();
        let (slot, view) = old.entries().find(|(_, view)| view.key == key(6, 1)).unwrap();
        assert!(slot.claim(view.sequence));

        for capacity in [256, 4096] {
            let new = FlowTable::new(capacity);
            let now = at(60_500);
            let count = new.take_over(bytes(left).as_slice(), now).unwrap();

            assert!(capacity == 256 && count >= 32 || count == 100, "{count} of {capacity}");
            if capacity == 256 {
                continue;
            }
            assert_eq!(new.len(), 100);
            for port in 0..100 {
                let flow = new.find(&key(5, port), now).unwrap();
                assert!(flow.starter_is_lower());
                assert_eq!(flow.token(), NO_POLICY);
                assert_eq!(flow.record(), None);
                assert_eq!(flow.hop(), Some(HopMark { sap: 3, endpoint: 1 }));
                assert_eq!(flow.is_guess(), port == 7);
                let phase = if port == 7 { Phase::Tombstone } else { Phase::Stateless };
                assert_eq!(flow.phase(), phase);
            }
            assert!(new.find(&key(9, 1), now).is_none() && new.find(&key(6, 1), now).is_none());
            assert!(new.find(&key(5, 1), at(61_000)).is_none(), "times are those of before");
        }
    }

    #[test]
    fn what_is_of_another_layout_is_refused_in_words() {
        let left = memory(128);
        let old = FlowTable::within(left);
        old.insert(&key(5, 1), true, Phase::Stateless, 9, at(1)).unwrap();
        let why = |bytes: &[u8]| {
            let new = FlowTable::new(128);
            let error = new.take_over(bytes, at(2)).unwrap_err();
            assert!(new.is_empty());
            error.to_string()
        };
        assert_eq!(FlowTable::new(128).take_over(bytes(left).as_slice(), at(2)).unwrap(), 1);

        left[0].store(STAMP + 1, Ordering::Relaxed);
        assert_eq!(why(&bytes(left)), "its layout is 2, and ours is 1");
        left[0].store(0, Ordering::Relaxed);
        assert_eq!(why(&bytes(left)), "it is no flow table");
        assert!(why(&[]).contains("fill"));
    }

    /// Who changes the layout has to raise its number: this is layout 1.
    #[test]
    fn the_layout_is_that_of_its_number() {
        let left = memory(128);
        let old = FlowTable::within(left);
        let mut flow = old.insert(&key(5, 0x1234), true, Phase::Closing, 9, at(77)).unwrap();
        flow.set_hop(HopMark { sap: 3, endpoint: 1 });
        flow.mark_guess();
        let found = left.get(HEAD_WORDS..).unwrap().chunks(SLOT_WORDS);
        let slot = found.into_iter().find(|slot| slot[0].load(Ordering::Relaxed) != 0).unwrap();
        let words: Vec<u64> = slot.iter().map(|word| word.load(Ordering::Relaxed)).collect();

        assert_eq!(LAYOUT, 1);
        assert_eq!((HEAD_WORDS, left[0].load(Ordering::Relaxed)), (8, 0x6f76_666c_6f77_7301));
        assert_eq!(left[1].load(Ordering::Relaxed), 128);
        assert_eq!(
            words,
            [
                2,
                0,
                0xffff_0a00_0001,
                0,
                0xffff_0a00_0005,
                0x1234_0035,
                0x0000_0007_0000_1101,
                1 << 60 | 1 << 59 | 3 << 56 | 1 << 32 | 9,
                77,
                1 << 63 | 3 << 8 | 1,
                0,
            ]
        );
    }

    #[test]
    fn memory_that_is_too_small_is_not_used() {
        assert_eq!(FlowTable::within(&[]).capacity(), CAPACITY_MIN);
        let small: &[AtomicU64] =
            vec![0; 100].into_iter().map(AtomicU64::new).collect::<Vec<_>>().leak();
        assert_eq!(FlowTable::within(small).capacity(), CAPACITY_MIN);
    }

    proptest! {
        /// Also with a right head, nothing that stands in the memory breaks anything, and what comes of
        /// it are flows that can be found, of a kind that there is.
        #[test]
        fn whatever_stands_in_the_memory_does_no_harm(
            words in proptest::collection::vec(any::<u64>(), SLOT_WORDS * 40),
            kinds in proptest::collection::vec(0_u64..8, 40),
            capacity in prop_oneof![Just(40), any::<u64>()],
            now in any::<u64>(),
        ) {
            let mut words = words;
            for (slot, kind) in words.chunks_mut(SLOT_WORDS).zip(kinds) {
                slot[0] &= !1;
                slot[6] = slot[6] & !0xFF | kind;
            }
            let head = [STAMP, capacity, 1, 2, 3, 4, 5, 6];
            let bytes: Vec<u8> = head.iter().chain(&words).flat_map(|word| word.to_ne_bytes()).collect();
            let table = FlowTable::new(1024);

            let count = table.take_over(bytes.as_slice(), at(now)).unwrap();

            prop_assert!(count <= 40 && table.len() <= count);
            for (_, view) in table.entries() {
                prop_assert!(view.key.is_flow());
                prop_assert!(table.find(&view.key, at(now)).is_some());
            }
            table.sweep(at(u64::MAX));
        }
    }
}

//! Runs of packets of one flow into one large packet, as the host's own network card would do it.
//!
//! Only what [`super::split`] would undo byte for byte is joined (identification numbers of IPv4
//! packets that may not be fragmented aside, which mean nothing). Checksums are checked before, since
//! the host will not check them again: a packet that was damaged on its way stays alone and is dropped
//! by the host as it should be.
//!
//! Packets are named by where they lie in one buffer, so that runs can be kept without pointers and
//! everything is allocated once.

use std::ops::Range;

use super::checksum::{self, Checked};
use super::layout::{L4, Layout};
use super::vnet::{Gso, GsoKind, Partial, VnetHeader};
use super::{Head, get, put};

/// Packets in one run, at most.
pub const RUN_MAX: usize = 64;
/// Runs at once.
pub const RUNS_MAX: usize = 64;

const IP_LEN_MAX: usize = 65_535;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FLAGS_AT: usize = 13;
const DONT_FRAGMENT: u8 = 0x40;

/// What a device takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// Large TCP packets, and half-done checksums.
    pub tcp: bool,
    /// Large UDP packets.
    pub udp: bool,
}

/// A run of packets for one device.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Whatever the caller named the device by.
    pub device: usize,
    flow: u64,
    layout: Option<Layout>,
    is_open: bool,
    /// Whether the first packet's checksum has been checked.
    is_checked: bool,
    is_partial: bool,
    count: usize,
    /// Bytes of IP that the large packet has so far.
    ip_len: usize,
    /// Payload bytes of the first packet.
    size: usize,
    next_sequence: u32,
    last_flags: u8,
}

/// Joins packets; one for each thread.
pub struct Coalescer {
    runs: Vec<Run>,
    /// [`RUN_MAX`] for each run.
    packets: Box<[Range<usize>]>,
}

impl Coalescer {
    /// An empty one; the only allocation of its life.
    #[must_use]
    pub fn new() -> Self {
        Self {
            runs: Vec::with_capacity(RUNS_MAX),
            packets: vec![0..0; RUNS_MAX * RUN_MAX].into_boxed_slice(),
        }
    }

    /// Adds the packet at `range` of `buffer`, exactly as long as its IP header says. `false` when it
    /// is full: then write what is there, [`Self::clear`] and try again.
    #[must_use]
    pub fn push(
        &mut self,
        buffer: &[u8],
        range: Range<usize>,
        device: usize,
        takes: Takes,
    ) -> bool {
        let Some(packet) = buffer.get(range.clone()) else { return true };
        let layout = Layout::read(packet);
        let flow = layout.map_or(0, |layout| flow_of(packet, &layout, device));
        if let Some(layout) = layout
            && let Some(at) = self.runs.iter().rposition(|run| run.flow == flow)
            && self.join(at, buffer, range.clone(), &layout)
        {
            return true;
        }
        if self.runs.len() == RUNS_MAX {
            return false;
        }
        let at = self.runs.len();
        if let Some(slot) = self.packets.get_mut(at * RUN_MAX) {
            *slot = range;
        }
        self.runs.push(Run::start(packet, layout, (device, flow), takes));
        true
    }

    /// Adds the packet to run `at` if the rules allow it.
    fn join(&mut self, at: usize, buffer: &[u8], range: Range<usize>, layout: &Layout) -> bool {
        let Some(first) = self.packets.get(at * RUN_MAX).and_then(|r| buffer.get(r.clone())) else {
            return false;
        };
        let (Some(run), Some(packet)) = (self.runs.get_mut(at), buffer.get(range.clone())) else {
            return false;
        };
        let payload_len = packet.len() - layout.payload_start;
        let fits = run.is_open
            && run.layout == Some(*layout)
            && run.count < RUN_MAX
            && payload_len > 0
            && payload_len <= run.size
            && run.ip_len + payload_len <= IP_LEN_MAX
            && flags_allow(packet, layout)
            && is_next(run, packet, layout)
            && same_headers(first, packet, run.count, layout);
        if !fits {
            return false;
        }
        if !run.is_checked {
            run.is_checked = true;
            if checksum::check(first, layout) != Checked::Right {
                run.is_open = false;
                return false;
            }
        }
        if checksum::check(packet, layout) != Checked::Right {
            return false;
        }
        if let Some(slot) = self.packets.get_mut(at * RUN_MAX + run.count) {
            *slot = range;
        }
        run.count += 1;
        run.ip_len += payload_len;
        run.next_sequence = run.next_sequence.wrapping_add(payload_len as u32);
        run.last_flags = tcp_flags(packet, layout);
        run.is_open = payload_len == run.size && run.last_flags & PSH == 0;
        true
    }

    /// The runs, in the order of their first packets.
    pub fn runs(&self) -> impl Iterator<Item = (&Run, &[Range<usize>])> {
        self.runs.iter().zip(self.packets.chunks_exact(RUN_MAX)).map(|(run, packets)| {
            let (packets, _) = packets.split_at(run.count.min(RUN_MAX));
            (run, packets)
        })
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.runs.clear();
    }
}

impl Default for Coalescer {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Coalescer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.runs).finish()
    }
}

impl Run {
    fn start(
        packet: &[u8],
        layout: Option<Layout>,
        (device, flow): (usize, u64),
        takes: Takes,
    ) -> Self {
        let mut run = Self {
            device,
            flow,
            layout,
            is_open: false,
            is_checked: false,
            is_partial: false,
            count: 1,
            ip_len: packet.len(),
            size: 0,
            next_sequence: 0,
            last_flags: 0,
        };
        let Some(layout) = layout else { return run };
        run.size = packet.len() - layout.payload_start;
        run.last_flags = tcp_flags(packet, &layout);
        run.next_sequence = sequence(packet, &layout).wrapping_add(run.size as u32);
        // A sender on this very host may have left the checksum to a card that never came.
        if checksum::may_be_partial(packet, &layout) {
            let checked = checksum::check(packet, &layout);
            run.is_checked = checked == Checked::Right;
            run.is_partial = checked == Checked::Partial;
        }
        let is_taken = match layout.l4 {
            L4::Tcp => takes.tcp,
            L4::Udp => takes.udp,
        };
        let has_options =
            layout.is_v4 && layout.l4_start != 20 || !layout.is_v4 && layout.l4_start != 40;
        run.is_open = is_taken
            && run.size > 0
            && !run.is_partial
            && !has_options
            && flags_allow(packet, &layout)
            && run.last_flags & PSH == 0;
        run
    }

    /// What the device is told of this run.
    #[must_use]
    pub fn header(&self) -> VnetHeader {
        let Some(layout) = self.layout else { return VnetHeader::PLAIN };
        if self.count < 2 {
            let partial = self.is_partial.then(|| partial_of(&layout));
            return VnetHeader { gso: None, partial };
        }
        let kind = GsoKind::of(&layout);
        let gso = Gso { kind, size: self.size as u16 };
        VnetHeader { gso: Some(gso), partial: Some(partial_of(&layout)) }
    }

    /// Bytes of IP and TCP or UDP headers, of a run that is one large packet; 0 of a packet alone.
    #[must_use]
    pub fn headers_len(&self) -> usize {
        self.layout.filter(|_| self.count > 1).map_or(0, |layout| layout.payload_start)
    }

    /// The headers of the large packet, made from those of its first one; empty for a packet alone.
    #[must_use]
    pub fn head(&self, first: &[u8]) -> Head {
        let mut head = Head::EMPTY;
        let Some(layout) = self.layout.filter(|_| self.count > 1) else { return head };
        head.push(first.get(..layout.payload_start).unwrap_or(&[]));
        let packet = head.as_mut_slice();
        write_lengths(packet, &layout, self.ip_len);
        if layout.l4 == L4::Tcp
            && let Some(flags) = packet.get_mut(layout.l4_start + FLAGS_AT)
        {
            *flags |= self.last_flags & PSH;
        }
        write_pseudo(packet, &layout, self.ip_len);
        head
    }
}

/// Turns a large packet of which checksum and lengths are right or half done into one that the device
/// takes as it is: the header to write before it. `None` when it is no TCP or UDP packet.
#[must_use]
pub fn as_large(packet: &mut [u8], size: u16) -> Option<(VnetHeader, u16)> {
    let layout = Layout::read(packet)?;
    let kind = GsoKind::of(&layout);
    write_pseudo(packet, &layout, packet.len());
    let header = VnetHeader { gso: Some(Gso { kind, size }), partial: Some(partial_of(&layout)) };
    Some((header, layout.payload_start as u16))
}

fn partial_of(layout: &Layout) -> Partial {
    Partial { start: layout.l4_start as u16, offset: layout.l4.checksum_offset() as u16 }
}

fn write_lengths(packet: &mut [u8], layout: &Layout, ip_len: usize) {
    if layout.is_v4 {
        put(packet, 2, (ip_len as u16).to_be_bytes());
        put(packet, 10, [0, 0]);
        let sum = checksum::Sum::default().add(packet.get(..layout.l4_start).unwrap_or(&[]));
        put(packet, 10, sum.checksum().to_be_bytes());
    } else {
        put(packet, 4, (ip_len.saturating_sub(40) as u16).to_be_bytes());
    }
    if layout.l4 == L4::Udp {
        let len = ip_len.saturating_sub(layout.l4_start);
        put(packet, layout.l4_start + 4, (len as u16).to_be_bytes());
    }
}

fn write_pseudo(packet: &mut [u8], layout: &Layout, ip_len: usize) {
    let sum = layout.pseudo(ip_len.saturating_sub(layout.l4_start)).folded();
    put(packet, layout.l4_start + layout.l4.checksum_offset(), sum.to_be_bytes());
}

/// A number that packets of one flow share and others hardly do; never 0. Whether they really are of
/// one flow is looked at afterwards.
fn flow_of(packet: &[u8], layout: &Layout, device: usize) -> u64 {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(ODD).rotate_left(29);
    let start = if layout.is_v4 { 12 } else { 8 };
    let addresses = if layout.is_v4 { 8 } else { 32 };
    let (words, _) = packet.get(start..start + addresses).unwrap_or(&[]).as_chunks::<8>();
    let ports = get::<4>(packet, layout.l4_start).map_or(0, u32::from_be_bytes);
    let seed = u64::from(layout.l4.protocol()) << 32 | device as u64;
    let hash = words.iter().fold(seed, |hash, word| mix(hash, u64::from_ne_bytes(*word)));
    mix(hash, ports.into()) | 1
}

fn sequence(packet: &[u8], layout: &Layout) -> u32 {
    get::<4>(packet, layout.l4_start + 4).map_or(0, u32::from_be_bytes)
}

fn tcp_flags(packet: &[u8], layout: &Layout) -> u8 {
    match layout.l4 {
        L4::Tcp => packet.get(layout.l4_start + FLAGS_AT).copied().unwrap_or(0),
        L4::Udp => 0,
    }
}

/// Only plain data segments are joined.
fn flags_allow(packet: &[u8], layout: &Layout) -> bool {
    match layout.l4 {
        L4::Tcp => tcp_flags(packet, layout) & !PSH == ACK,
        // A length that disagrees with IP's must stay visible.
        L4::Udp => {
            get::<2>(packet, layout.l4_start + 4).map(|len| usize::from(u16::from_be_bytes(len)))
                == Some(packet.len() - layout.l4_start)
        }
    }
}

fn is_next(run: &Run, packet: &[u8], layout: &Layout) -> bool {
    match layout.l4 {
        L4::Tcp => sequence(packet, layout) == run.next_sequence,
        L4::Udp => true,
    }
}

/// Whether all that the large packet says once is the same in `packet`, number `index` of its run, as
/// in its first.
fn same_headers(first: &[u8], packet: &[u8], index: usize, layout: &Layout) -> bool {
    let same = |range: Range<usize>| {
        first.get(range.clone()).is_some_and(|bytes| packet.get(range) == Some(bytes))
    };
    let same_ip = if layout.is_v4 {
        let id = |packet: &[u8]| get::<2>(packet, 4).map_or(0, u16::from_be_bytes);
        let may_not_fragment = first.get(6).is_some_and(|flags| flags & DONT_FRAGMENT != 0);
        // TOS; flags, TTL and protocol; addresses. Identifications count up where they matter.
        same(0..2)
            && same(6..10)
            && same(12..20)
            && (may_not_fragment || id(packet) == id(first).wrapping_add(index as u16))
    } else {
        same(0..4) && same(6..40)
    };
    let at = layout.l4_start;
    same_ip
        && match layout.l4 {
            // Ports; acknowledgement and header length; window; urgent pointer and options.
            L4::Tcp => {
                same(at..at + 4)
                    && same(at + 8..at + 13)
                    && same(at + 14..at + 16)
                    && same(at + 18..layout.payload_start)
            }
            L4::Udp => same(at..at + 4),
        }
}

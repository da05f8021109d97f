//! A SaP's batch against a model that takes one packet at a time: the same datagrams leave to the same
//! hops in the same order, with the same TOS and TTL, and the same is counted.
//!
//! The sockets are real ones on the loopback, so that trains, their ends and their limits are the
//! kernel's. An input is a script that makes a batch of buffers, each with datagrams from templates,
//! which it may change anywhere.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket as Plain};
use std::sync::Arc;

use ovmesh::dataplane::{Basis, ControlPort, HallwayCounters, Listener, Punted, Transit};
use ovmesh::forward::{
    Collected, DestinationKeySpec, FlowTable, MemberSpec, Now, OverlayInfo, OverlaySpec, RuleSpec,
    SapInfo, Snapshot, SnapshotBuilder, Verdict,
};
use ovmesh::keys::DestinationKey;
use ovmesh::sys::batch::{DatagramBatch, Meta};
use ovmesh::sys::offload::HEAD_MAX;
use ovmesh::sys::offload::layout::Layout;
use ovmesh::sys::offload::vnet::{Gso, GsoKind};
use ovmesh::sys::udp::UdpSocket;
use ovmesh::types::{
    DataPath, DropReason, Generation, Name, NodeId, NodeKind, OverlayId, RuleId, Secret, Tier,
    Timestamp,
};
use ovmesh::wire::control::MAX_LEN;
use ovmesh::wire::gue::{self, Frame};
use ovmesh::wire::{Family, inner};

use super::naive;

/// What a receive buffer of the smallest size surely holds.
const BYTES_MAX: usize = 48 << 10;
const DATAGRAMS_MAX: usize = 96;
/// What unknown sources may send of control messages in a second.
const UNKNOWN_PER_SECOND: usize = 50;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
const SYN: u8 = 0x02;

/// A datagram as it left: its bytes, TOS and TTL.
type Left = (Vec<u8>, u8, u8);
/// What leaves, by hop.
type Out = BTreeMap<SocketAddr, Vec<Left>>;

/// What came of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    out: Out,
    packets: u64,
    bytes: u64,
    drops: BTreeMap<&'static str, u64>,
    punted: Vec<Vec<u8>>,
    counted: Counted,
}

/// What the flow table's records say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    packets: u64,
    bytes: u64,
    /// Each with its packets and bytes, in an order of its own.
    records: Vec<String>,
    /// Whether there was room for every record.
    is_whole: bool,
}

/// One buffer of a batch.
struct Buffer {
    from: SocketAddr,
    tos: u8,
    ttl: u8,
    segment: usize,
    bytes: Vec<u8>,
}

/// A SaP and its neighbours: members 1 and 2 of an overlay of each family.
struct Sap {
    udp: Arc<UdpSocket>,
    /// Member 1 and 2 over IPv4, then over IPv6.
    hops: [UdpSocket; 4],
    marker: [Plain; 2],
    snapshot: Snapshot,
    /// Of packets from 1 to 2 and from 2 to 1, in each overlay.
    keys: [[u32; 2]; 2],
    transit: Transit,
    port: ControlPort,
    _listener: Listener,
    batch: DatagramBatch,
    second: u64,
}

thread_local! {
    static SAP: RefCell<Sap> = RefCell::new(Sap::new());
}

/// Everything that must hold of one input.
pub fn check(script: &[u8]) {
    SAP.with_borrow_mut(|sap| {
        let buffers = sap.play(script);
        let mut wanted = sap.one_by_one(&buffers);
        let mut got = sap.at_once(&buffers);
        // Which records find no room is chance: then their sums alone can be compared.
        if !(wanted.counted.is_whole && got.counted.is_whole) {
            wanted.counted.records.clear();
            got.counted.records.clear();
            got.counted.is_whole = wanted.counted.is_whole;
        }
        assert_eq!(got, wanted);
    });
}

impl Sap {
    fn new() -> Self {
        let bind = |text: &str| {
            UdpSocket::bind(text.parse().expect("an address"), DataPath::Full).expect("a socket")
        };
        let udp = Arc::new(bind("[::]:0"));
        let hops = ["127.0.0.1:0", "127.0.0.1:0", "[::1]:0", "[::1]:0"].map(bind);
        let marker = ["127.0.0.1:0", "[::1]:0"].map(|at| Plain::bind(at).expect("a socket"));
        let secret = |to: u32| Secret::new([to as u8 + 1; 32]);
        let overlay = |id: u32, cidr: &str, addresses: [&str; 2], first: usize| OverlaySpec {
            info: OverlayInfo {
                id: OverlayId(id),
                name: Name::new(&format!("o{id}")).expect("a name"),
                cidr: cidr.parse().expect("a range"),
                address: None,
                is_silent: false,
            },
            members: (0..2)
                .map(|member| MemberSpec {
                    id: NodeId(member as u32 + 1),
                    address: addresses[member].parse().expect("an address"),
                    endpoints: vec![hops[first + member].local_addr()],
                })
                .collect(),
            sets: vec![vec![0], vec![1]],
            rules: vec![RuleSpec {
                id: RuleId(id),
                tier: Tier::Allow,
                from: 0,
                to: 1,
                services: ["udp/9", "tcp/80", "icmp"].map(|s| s.parse().expect("one")).to_vec(),
                not_after: None,
            }],
            unspoken_passes: false,
            isolated: Vec::new(),
            paths: Vec::new(),
            default_saps: vec![NodeId(100)],
            preferences: Vec::new(),
            empty_saps: Vec::new(),
            destination_keys: (0..2)
                .map(|to| DestinationKeySpec { to, accept: vec![secret(to + 2 * id)] })
                .collect(),
            pairs: Vec::new(),
            send_keys: Vec::new(),
        };
        let endpoints = vec![udp.local_addr()];
        let info = SapInfo { id: NodeId(100), name: Name::new("s1").expect("a name"), endpoints };
        let snapshot = SnapshotBuilder::new(NodeId(100), NodeKind::Sap)
            .sap(info)
            .overlay(overlay(0, "10.0.0.0/24", ["10.0.0.1", "10.0.0.2"], 0))
            .overlay(overlay(1, "fd70::/64", ["fd70::1", "fd70::2"], 2))
            .build()
            .expect("a snapshot");
        let keys = [0, 1].map(|id| {
            [(1, 1), (2, 0)].map(|(from, to)| {
                let key = DestinationKey::new(&secret(to + 2 * id));
                key.pair_key(NodeId(from), Generation(0)).bits()
            })
        });
        let (punter, port) = ControlPort::new(Arc::clone(&udp));
        let (teller, listener) = Listener::channel();
        Self {
            udp,
            hops,
            marker,
            snapshot,
            keys,
            transit: Transit::new(punter, teller),
            port,
            _listener: listener,
            batch: DatagramBatch::new(),
            second: 1,
        }
    }

    /// The buffers of a script.
    fn play(&self, script: &[u8]) -> Vec<Buffer> {
        let mut script = script.iter().copied();
        let mut buffers = Vec::new();
        let (mut bytes, mut datagrams) = (0, 0);
        while let (Some(from), Some(tos), Some(ttl), Some(shape), Some(count)) =
            (script.next(), script.next(), script.next(), script.next(), script.next())
        {
            let mut buffer = Vec::new();
            let mut first = 0;
            for _ in 0..=count % 24 {
                let Some(datagram) = self.datagram(&mut script) else { break };
                buffer.extend(&datagram);
                first = if first == 0 { datagram.len() } else { first };
            }
            // One datagram, a train, a train of an odd stride, a large packet that nobody cut.
            let segment = match shape % 4 {
                0 => 0,
                1 => first,
                2 => first.saturating_sub(usize::from(shape >> 2)),
                _ => 40 + usize::from(shape),
            };
            let pieces = if segment == 0 { 1 } else { buffer.len().div_ceil(segment) };
            bytes += buffer.len() + pieces * 60;
            datagrams += pieces;
            if bytes > BYTES_MAX || datagrams > DATAGRAMS_MAX {
                break;
            }
            let from = match from % 8 {
                stranger @ 6.. => SocketAddr::from(([192, 0, 2, stranger], 6080)),
                hop => self.hops[usize::from(hop) % 4].local_addr(),
            };
            buffers.push(Buffer { from, tos, ttl, segment, bytes: buffer });
        }
        buffers
    }

    /// The next datagram of a script: a template, a length, how many changes, and those.
    fn datagram(&self, script: &mut impl Iterator<Item = u8>) -> Option<Vec<u8>> {
        let (template, len, changes) = (script.next()?, script.next()?, script.next()?);
        let small = usize::from(len);
        let mut datagram = match template % 14 {
            0 => self.wrap(0, 0, UDP, 0, small),
            1 => self.wrap(0, 1, UDP, 0, small),
            2 => self.wrap(0, 0, TCP, SYN, 0),
            3 => self.wrap(0, 0, TCP, ACK, small),
            4 => self.wrap(0, 1, TCP, SYN | ACK, 0),
            5 => self.wrap(1, 0, UDP, 0, small),
            6 => self.wrap(1, 1, UDP, 0, small),
            7 => self.wrap(1, 0, TCP, ACK, small),
            8 => self.wrap(0, 0, TCP, ACK, small * 24),
            9 => self.wrap(1, 0, UDP, 0, small * 24),
            10 => self.wrap(0, 0, 1, 8, small),
            11 => self.fragment(len),
            12 => {
                let mut echo = vec![0x21, 0xff, 0x80, 0, 0, 0, 0, 1];
                echo.extend((0..small).map(|_| 1));
                echo
            }
            _ => script.by_ref().take(small).collect(),
        };
        for _ in 0..changes % 4 {
            let (at, bits) = (script.next()?, script.next()?);
            if let Some(byte) = datagram.get_mut(usize::from(at)) {
                *byte ^= bits;
            }
        }
        Some(datagram)
    }

    /// A packet of `overlay` from member 1 to 2, or back, with its checksums.
    fn wrap(&self, overlay: usize, way: usize, protocol: u8, flags: u8, len: usize) -> Vec<u8> {
        let ports: [u8; 4] = match protocol {
            TCP => [0x30, 0, 0, 80],
            _ => [0x30, 0, 0, 9],
        };
        let [p0, p1, p2, p3] = ports;
        let mut l4 = if way == 0 { vec![p0, p1, p2, p3] } else { vec![p2, p3, p0, p1] };
        match protocol {
            TCP => l4.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 4, 0, 0, 0, 0, 0]),
            UDP => {
                l4.extend(((8 + len) as u16).to_be_bytes());
                l4.extend([0, 0]);
            }
            _ => l4 = vec![flags, 0, 0, 0, 0, 7, 0, 1],
        }
        l4.extend((0..len).map(|n| n as u8));
        let mut packet = if overlay == 0 {
            let mut ip = vec![0x45, 0];
            ip.extend(((20 + l4.len()) as u16).to_be_bytes());
            ip.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            if way == 1 {
                (ip[15], ip[19]) = (2, 1);
            }
            let sum = naive::checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            ip
        } else {
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend((l4.len() as u16).to_be_bytes());
            ip.extend([protocol, 64]);
            for last in if way == 0 { [1, 2] } else { [2, 1] } {
                ip.extend([0xfd, 0x70, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
            }
            ip
        };
        packet.extend(l4);
        let family = if overlay == 0 { Family::V4 } else { Family::V6 };
        [&gue::data_header(family, self.keys[overlay][way])[..], &packet].concat()
    }

    /// A part of a large UDP packet of the first overlay.
    fn fragment(&self, place: u8) -> Vec<u8> {
        let mut datagram = self.wrap(0, 0, UDP, 0, 64);
        let packet = &mut datagram[gue::HEADER_LEN..];
        packet[6] = if place & 1 == 0 { 0x20 } else { 0 };
        packet[7] = place >> 1;
        packet[10..12].fill(0);
        let sum = naive::checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        datagram
    }

    fn now(&self) -> Now {
        Now { monotonic_millis: self.second * 1000, wall: Timestamp(1_000_000) }
    }

    /// What the hallway makes of the batch.
    fn at_once(&mut self, buffers: &[Buffer]) -> Outcome {
        let (counters, now) = (HallwayCounters::default(), self.now());
        let flows = FlowTable::new(1 << 10).started(now);
        self.batch.clear();
        for &Buffer { from, tos, ttl, segment, ref bytes } in buffers {
            let len = bytes.len();
            let meta = Meta { from, len, tos, ttl, segment, is_truncated: false };
            if !self.batch.push(meta, bytes) {
                break;
            }
        }
        let basis = Basis { snapshot: &self.snapshot, flows: &flows, now };
        self.transit.forward(&self.batch, &self.udp, basis, &counters);
        // A new budget for whatever comes next.
        self.second += 1;
        let punted = std::iter::from_fn(|| self.port.receive.try_recv().ok());
        let punted = punted.map(|punted: Punted| punted.bytes().to_vec()).collect();
        let drops = DropReason::ALL.iter().map(|&why| (why.name(), counters.dropped(why)));
        Outcome {
            out: self.hops.iter().filter_map(|hop| self.received(hop)).collect(),
            packets: counters.packets(),
            bytes: counters.bytes(),
            drops: drops.filter(|(_, count)| *count > 0).collect(),
            punted,
            counted: Counted::of(&flows, now),
        }
    }

    /// Everything that lies at `hop`, if there is anything: the loopback delivers in order, so that
    /// what is sent now is the last of it.
    fn received(&self, hop: &UdpSocket) -> Option<(SocketAddr, Vec<Left>)> {
        let to = hop.local_addr();
        let marker = &self.marker[usize::from(to.is_ipv6())];
        marker.send_to(b"end", to).expect("it is sent");
        let end = marker.local_addr().expect("it is bound");
        let (mut batch, mut all) = (DatagramBatch::new(), Vec::new());
        loop {
            hop.receive_batch(&mut batch).expect("it is received");
            for (meta, bytes) in batch.iter() {
                if meta.from == end {
                    return (!all.is_empty()).then_some((to, all));
                }
                let stride = if meta.segment == 0 { bytes.len().max(1) } else { meta.segment };
                all.extend(bytes.chunks(stride).map(|one| (one.to_vec(), meta.tos, meta.ttl)));
            }
        }
    }

    /// The same, one datagram at a time.
    fn one_by_one(&self, buffers: &[Buffer]) -> Outcome {
        let now = self.now();
        let flows = FlowTable::new(1 << 10).started(now);
        let (mut outcome, mut unknown) = (Outcome::default(), 0);
        for buffer in buffers.iter().take(ovmesh::sys::batch::SLOTS) {
            let uncut = uncut(buffer);
            let whole = buffer.segment == 0 || uncut || buffer.bytes.is_empty();
            let stride = if whole { buffer.bytes.len().max(1) } else { buffer.segment };
            let pieces = buffer.bytes.chunks(stride);
            for datagram in pieces.chain(buffer.bytes.is_empty().then_some(&[][..])) {
                let one = self.one(buffer, datagram, &flows, &mut unknown);
                match one {
                    Ok(One::Punted) => outcome.punted.push(datagram.to_vec()),
                    Ok(One::Sent(hop, ttl)) if uncut => match cut(datagram, buffer.segment) {
                        Some(segments) => {
                            segments.into_iter().for_each(|one| outcome.sent(hop, one, buffer, ttl))
                        }
                        None => outcome.dropped(DropReason::InnerLength),
                    },
                    Ok(One::Sent(hop, ttl)) => outcome.sent(hop, datagram.to_vec(), buffer, ttl),
                    Err(reason) => outcome.dropped(reason),
                }
            }
        }
        outcome.counted = Counted::of(&flows, now);
        outcome
    }

    fn one(
        &self,
        buffer: &Buffer,
        datagram: &[u8],
        flows: &FlowTable,
        unknown: &mut usize,
    ) -> Result<One, DropReason> {
        let is_known = self.snapshot.knows(buffer.from);
        let (family, key, packet) = match gue::decode(datagram)? {
            Frame::Data { family, key, inner } => (family, key, inner),
            Frame::Control { .. } if datagram.len() > MAX_LEN => {
                return Err(DropReason::ControlType);
            }
            Frame::Control { .. } => {
                *unknown += usize::from(!is_known);
                let is_over = !is_known && *unknown > UNKNOWN_PER_SECOND;
                return if is_over { Err(DropReason::ControlBudget) } else { Ok(One::Punted) };
            }
        };
        if !is_known {
            return Err(DropReason::OuterSource);
        }
        let facts = inner::parse(family, packet)?;
        match self.snapshot.transit(buffer.from, key, &facts, flows, self.now()) {
            Verdict::Send { .. } if buffer.ttl < 2 => Err(DropReason::HopLimit),
            Verdict::Send { hop, .. } => Ok(One::Sent(hop, buffer.ttl - 1)),
            Verdict::Deliver { .. } => Err(DropReason::NoPath),
            Verdict::Drop(reason) => Err(reason),
        }
    }
}

/// What becomes of one datagram that is not dropped.
enum One {
    Sent(SocketAddr, u8),
    Punted,
}

impl Outcome {
    fn sent(&mut self, hop: SocketAddr, datagram: Vec<u8>, buffer: &Buffer, ttl: u8) {
        self.packets += 1;
        self.bytes += (datagram.len() - gue::HEADER_LEN) as u64;
        self.out.entry(hop).or_default().push((datagram, buffer.tos, ttl));
    }

    fn dropped(&mut self, reason: DropReason) {
        *self.drops.entry(reason.name()).or_insert(0) += 1;
    }
}

/// Whether a buffer is one packet that was to be cut by a network card.
fn uncut(buffer: &Buffer) -> bool {
    let Buffer { segment, bytes, .. } = buffer;
    let packet = match gue::decode(bytes) {
        Ok(Frame::Data { inner, .. }) if *segment > 0 && *segment < bytes.len() => inner,
        _ => return false,
    };
    Layout::read(packet).is_some()
        && bytes.chunks(*segment).skip(1).all(|piece| gue::decode(piece).is_err())
}

/// The datagrams that a card would have made of it.
fn cut(datagram: &[u8], segment: usize) -> Option<Vec<Vec<u8>>> {
    let (prefix, packet) = datagram.split_at(gue::HEADER_LEN);
    let layout = Layout::read(packet)?;
    let size = u16::try_from(segment).ok()?;
    let has_room = prefix.len() + layout.payload_start <= HEAD_MAX;
    let gso = Gso { kind: GsoKind::of(&layout), size };
    let segments = || naive::split(packet, gso).into_iter();
    has_room.then(|| segments().map(|segment| [prefix, &segment].concat()).collect())
}

impl Counted {
    fn of(flows: &FlowTable, now: Now) -> Self {
        let mut this = Self { is_whole: true, ..Self::default() };
        flows.records().collect(now.wall, now.wall, |what, sums| {
            this.packets += sums.packets;
            this.bytes += sums.bytes;
            this.is_whole &= matches!(what, Collected::Record(_));
            this.records.push(format!("{what:?} {} {}", sums.packets, sums.bytes));
        });
        this.records.sort_unstable();
        this
    }
}

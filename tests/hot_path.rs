//! The transit hallway as a thread with real sockets on the loopback: a train with a forged datagram
//! in it costs that one alone, and moving packets allocates nothing.
//!
//! A program of its own, because the allocator that counts is one for a whole program.

#![allow(unsafe_code, reason = "a global allocator is unsafe to implement; this one passes on")]
#![allow(clippy::unwrap_used, reason = "a test program")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{SocketAddr, UdpSocket as Plain};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ovmesh::dataplane::publish::Publisher;
use ovmesh::dataplane::{Counters, SapPlane, Way, now};
use ovmesh::forward::{
    DestinationKeySpec, FlowTable, MemberSpec, OverlayInfo, OverlaySpec, RuleSpec, SapInfo,
    Snapshot, SnapshotBuilder,
};
use ovmesh::keys::DestinationKey;
use ovmesh::sys::offload::Head;
use ovmesh::sys::udp::{Outgoing, SendQueue, UdpSocket};
use ovmesh::types::{
    DataPath, DropReason, Generation, Name, NodeId, NodeKind, OverlayId, RuleId, Secret, Tier,
};
use ovmesh::wire::{Family, gue};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps what `GlobalAlloc` asks.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps what `GlobalAlloc` asks.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SAP: NodeId = NodeId(100);

/// The inner packet number `n`: UDP from 10.0.0.1 to 10.0.0.2, in its datagram.
fn datagram(key: u32, n: u8, len: usize) -> Vec<u8> {
    let total = (28 + len) as u16;
    let mut bytes = gue::data_header(Family::V4, key).to_vec();
    bytes.extend([0x45, 0]);
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, n, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x20, 0, 0, 9]);
    bytes.extend((total - 20).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(vec![n; len]);
    bytes
}

/// A SaP between two sockets, that lets UDP port 9 of the first to the second pass.
struct Rig {
    a: UdpSocket,
    b: Plain,
    to_sap: SocketAddr,
    key: u32,
    counters: Arc<Counters>,
    _plane: SapPlane,
}

impl Rig {
    fn new() -> Self {
        let bind = || UdpSocket::bind("127.0.0.1:0".parse().unwrap(), DataPath::Full).unwrap();
        let (a, sap) = (bind(), bind());
        let b = Plain::bind("127.0.0.1:0").unwrap();
        b.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let to_sap = sap.local_addr();
        let secret = |to: u32| Secret::new([to as u8 + 1; 32]);
        let key = DestinationKey::new(&secret(1)).pair_key(NodeId(1), Generation(0)).bits();
        let member = |number: u8, endpoint| MemberSpec {
            id: NodeId(number.into()),
            address: [10, 0, 0, number].into(),
            endpoints: vec![endpoint],
        };
        let rule = RuleSpec {
            id: RuleId(1),
            tier: Tier::Allow,
            from: 0,
            to: 1,
            services: vec!["udp/9".parse().unwrap()],
            not_after: None,
        };
        let overlay = OverlaySpec {
            info: OverlayInfo {
                id: OverlayId(1),
                name: Name::new("test").unwrap(),
                cidr: "10.0.0.0/24".parse().unwrap(),
                address: None,
                is_silent: false,
            },
            members: vec![member(1, a.local_addr()), member(2, b.local_addr().unwrap())],
            sets: vec![vec![0], vec![1]],
            rules: vec![rule],
            unspoken_passes: false,
            isolated: Vec::new(),
            paths: Vec::new(),
            default_saps: vec![SAP],
            preferences: Vec::new(),
            empty_saps: Vec::new(),
            destination_keys: (0..2)
                .map(|to| DestinationKeySpec { to, accept: vec![secret(to)], old_until: None })
                .collect(),
            pairs: Vec::new(),
            send_keys: Vec::new(),
        };
        let info = SapInfo { id: SAP, name: Name::new("s1").unwrap(), endpoints: vec![to_sap] };
        let snapshot: Snapshot =
            SnapshotBuilder::new(SAP, NodeKind::Sap).sap(info).overlay(overlay).build().unwrap();
        let flows = Arc::new(FlowTable::new(1 << 10).started(now()));
        let snapshots = Arc::new(Publisher::new(snapshot));
        let (plane, _port) = SapPlane::start(vec![sap], snapshots, flows).unwrap();
        plane.open();
        let counters = plane.counters();
        Self { a, b, to_sap, key, counters, _plane: plane }
    }

    fn send(&self, queue: &mut SendQueue, datagrams: &[Vec<u8>]) {
        let outgoing = datagrams.iter().map(|payload| Outgoing {
            to: self.to_sap,
            head: Head::EMPTY,
            payload,
            tos: 0,
            ttl: 64,
        });
        self.a.send_batch(queue, outgoing, |sent| assert_eq!(sent.result, Ok(())));
    }

    fn drops(&self) -> u64 {
        DropReason::ALL.iter().map(|&reason| self.counters.dropped(Way::Transit, reason)).sum()
    }
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn each_datagram_of_a_train_is_judged_for_itself_and_nothing_is_allocated() {
    let rig = Rig::new();
    let mut queue = SendQueue::new();
    let mut buffer = [0; 2048];

    // A forgery of each kind at each place of a train.
    type Forgery = (fn(&mut Vec<u8>), DropReason);
    let forgeries: [Forgery; 5] = [
        (|bytes| bytes[7] ^= 1, DropReason::Key),
        (|bytes| bytes[0] = 0x41, DropReason::GueVariant),
        (|bytes| bytes[8 + 15] = 3, DropReason::SourceBinding),
        (|bytes| bytes[8 + 23] = 10, DropReason::NoRule),
        // It claims to be the whole train.
        (
            |bytes| bytes[10..12].copy_from_slice(&(136_u16 * 20 - 8).to_be_bytes()),
            DropReason::InnerLength,
        ),
    ];
    for (forge, reason) in forgeries {
        for place in 0..20_u8 {
            let mut train: Vec<_> = (0..20).map(|n| datagram(rig.key, n, 100)).collect();
            forge(&mut train[usize::from(place)]);
            let before = (rig.counters.dropped(Way::Transit, reason), rig.drops());

            rig.send(&mut queue, &train);

            for n in (0..20).filter(|&n| n != place) {
                let len = rig.b.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], train[usize::from(n)], "{reason:?} at {place}");
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            while rig.drops() == before.1 && Instant::now() < deadline {
                std::thread::yield_now();
            }
            assert_eq!(
                rig.counters.dropped(Way::Transit, reason),
                before.0 + 1,
                "{reason:?} at {place}"
            );
            assert_eq!(rig.drops(), before.1 + 1, "{reason:?} at {place}");
        }
    }

    // Everything is warm now. Trains of all sizes, good and bad.
    let mut trains: Vec<Vec<Vec<u8>>> = (1..60)
        .map(|count| {
            (0..count).map(|n| datagram(rig.key, n, 10 + usize::from(count) * 15)).collect()
        })
        .collect();
    for train in trains.iter_mut().step_by(3) {
        train[0][7] ^= 1;
    }
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    let mut received = 0;
    for train in &trains {
        rig.send(&mut queue, train);
        let good = train.iter().filter(|bytes| bytes[7] == rig.key as u8).count();
        for _ in 0..good {
            rig.b.recv(&mut buffer).unwrap();
            received += 1;
        }
    }
    assert_eq!(
        ALLOCATIONS.load(Ordering::SeqCst) - before,
        0,
        "allocations for {received} packets"
    );
    assert!(received > 1000);
}

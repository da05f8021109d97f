//! Over the loopback, in both families.

use std::time::Instant;

use super::*;
use crate::sys::batch::DatagramBatch;
use crate::sys::offload::Head;

fn bind(text: &str) -> UdpSocket {
    UdpSocket::bind(text.parse().unwrap(), DataPath::Full).unwrap()
}

fn towards(socket: &UdpSocket, ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), socket.local_addr().port())
}

/// Everything that arrives until `count` datagrams are there: (from, bytes, tos, ttl).
fn receive(socket: &UdpSocket, count: usize) -> Vec<(SocketAddr, Vec<u8>, u8, u8)> {
    patience(socket, 100);
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut batch = DatagramBatch::new();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} datagrams came", all.len());
        socket.receive_batch(&mut batch).unwrap();
        for (m, bytes) in batch.iter() {
            assert!(!m.is_truncated);
            let stride = if m.segment == 0 { bytes.len().max(1) } else { m.segment };
            // A datagram of no bytes is one, too.
            let pieces = bytes.chunks(stride).chain(bytes.is_empty().then_some(bytes));
            all.extend(pieces.map(|bytes| (m.from, bytes.to_vec(), m.tos, m.ttl)));
        }
    }
    all
}

/// Lets a wait end by itself.
fn patience(socket: &UdpSocket, millis: u64) {
    socket.socket.set_read_timeout(Some(Duration::from_millis(millis))).unwrap();
}

fn send(socket: &UdpSocket, outgoing: &[Outgoing<'_>]) -> Vec<Sent> {
    let mut results = Vec::new();
    let mut queue = SendQueue::new();
    socket.send_batch(&mut queue, outgoing.iter().copied(), |sent| results.push(sent));
    results
}

fn bytes_of(outgoing: &Outgoing<'_>) -> Vec<u8> {
    [outgoing.head.as_slice(), outgoing.payload].concat()
}

/// Sends 100 datagrams, more than a batch, from `a` to `ip` at `b` and expects them whole, in
/// order, with TOS and TTL, from the address `seen`.
fn round_trip(a: &UdpSocket, b: &UdpSocket, ip: &str, seen: &str) {
    let bodies: Vec<_> = (0..100_u8).map(|n| vec![n; usize::from(n)]).collect();
    let outgoing: Vec<_> = bodies
        .iter()
        .zip(0_u8..)
        .map(|(body, n)| Outgoing {
            to: towards(b, ip),
            head: if n % 2 == 0 { Head::gue([1, 4, 0x80, 0, 0, 0, 0, n]) } else { Head::EMPTY },
            payload: body,
            tos: n & 0b1010_0011,
            ttl: n + 1,
        })
        .collect();

    let results = send(a, &outgoing);

    assert!(results.iter().all(|sent| sent.result.is_ok()));
    assert_eq!(results.iter().map(|sent| sent.datagrams).sum::<usize>(), outgoing.len());
    let bytes = outgoing.iter().map(|one| bytes_of(one).len()).sum::<usize>();
    assert_eq!(results.iter().map(|sent| sent.bytes).sum::<usize>(), bytes);
    for ((from, bytes, tos, ttl), sent) in receive(b, 100).into_iter().zip(&outgoing) {
        assert_eq!(from, towards(a, seen));
        assert_eq!(bytes, bytes_of(sent));
        assert_eq!((tos, ttl), (sent.tos, sent.ttl));
    }
}

#[test]
fn batches_cross_ipv4_with_their_tos_and_ttl() {
    round_trip(&bind("127.0.0.1:0"), &bind("127.0.0.1:0"), "127.0.0.1", "127.0.0.1");
}

#[test]
fn batches_cross_ipv6_with_their_tos_and_ttl() {
    round_trip(&bind("[::1]:0"), &bind("[::1]:0"), "::1", "::1");
}

#[test]
fn dual_stack_sockets_speak_plain_ipv4_and_ipv6() {
    let (a, b, v4) = (bind("[::]:0"), bind("[::]:0"), bind("127.0.0.1:0"));

    round_trip(&a, &b, "::1", "::1");
    round_trip(&a, &b, "127.0.0.1", "127.0.0.1");
    round_trip(&v4, &b, "127.0.0.1", "127.0.0.1");
    round_trip(&b, &v4, "127.0.0.1", "127.0.0.1");
}

#[test]
fn what_cannot_be_sent_is_named_and_the_rest_of_the_batch_leaves() {
    for path in [DataPath::Full, DataPath::Batch, DataPath::Naive] {
        let listen = "127.0.0.1:0".parse().unwrap();
        let (a, b) = (UdpSocket::bind(listen, path).unwrap(), bind("127.0.0.1:0"));
        let huge = vec![0; 65_508];
        let to = towards(&b, "127.0.0.1");
        let good = Outgoing { to, head: Head::EMPTY, payload: b"good", tos: 0, ttl: 64 };
        let too_big = Outgoing { payload: &huge, ..good };
        let wrong_family = Outgoing { to: "[::1]:9".parse().unwrap(), ..good };

        let results = send(&a, &[good, too_big, good, wrong_family, wrong_family, good]);

        let count = |wanted| {
            let these = results.iter().filter(|sent| sent.result == wanted);
            these.map(|sent| sent.datagrams).sum::<usize>()
        };
        assert_eq!(count(Ok(())), 3, "{path}");
        assert_eq!(count(Err(DropReason::TooBig)), 1, "{path}");
        assert_eq!(count(Err(DropReason::SendFailed)), 2, "{path}");
        assert_eq!(receive(&b, 3).len(), 3);
    }
}

#[test]
fn datagrams_of_one_hop_leave_as_one_train_and_keep_their_order_among_others() {
    let (a, b, c) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let bodies: Vec<_> = (0..120_u8).map(|n| [n; 100]).collect();
    let outgoing: Vec<_> = bodies
        .iter()
        .zip(0_u8..)
        .map(|(body, n)| Outgoing {
            to: towards(if n % 2 == 0 { &b } else { &c }, "127.0.0.1"),
            head: Head::EMPTY,
            payload: body,
            tos: 0,
            ttl: 64,
        })
        .collect();

    let results = send(&a, &outgoing);

    let sizes: Vec<_> = results.iter().map(|sent| sent.datagrams).collect();
    assert_eq!(sizes, [60, 60], "two trains");
    for (socket, start) in [(&b, 0), (&c, 1)] {
        let numbers: Vec<_> = receive(socket, 60).iter().map(|(_, bytes, ..)| bytes[0]).collect();
        assert_eq!(numbers, (start..120).step_by(2).collect::<Vec<_>>());
    }
}

#[test]
fn a_train_ends_with_a_shorter_datagram_another_tos_or_at_its_limits() {
    let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let body = [7; 60_000];
    let one = |len: usize, tos| Outgoing {
        to: towards(&b, "127.0.0.1"),
        head: Head::gue([1; 8]),
        payload: &body[..len],
        tos,
        ttl: 64,
    };
    let trains = |all: &[Outgoing<'_>]| -> Vec<usize> {
        let results = send(&a, all);
        let arrived = receive(&b, all.len());
        for ((_, bytes, tos, _), sent) in arrived.iter().zip(all) {
            assert_eq!((bytes, *tos), (&bytes_of(sent), sent.tos));
        }
        results.iter().map(|sent| sent.datagrams).collect()
    };

    assert_eq!(trains(&[one(50, 0), one(50, 0), one(20, 0), one(20, 0), one(50, 0)]), [3, 1, 1]);
    assert_eq!(trains(&[one(50, 0), one(50, 1), one(50, 1)]), [1, 2]);
    assert_eq!(trains(&vec![one(50, 0); 130]), [64, 64, 2]);
    assert_eq!(trains(&vec![one(1464, 0); 46]), [44, 2]);
    assert_eq!(trains(&[one(40_000, 0), one(25_491, 0), one(30_000, 0)]), [2, 1]);
}

#[test]
fn a_refused_train_leaves_singly_and_no_other_is_tried() {
    let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let to = towards(&b, "127.0.0.1");
    let body = [9; 200];
    let one = Outgoing { to, head: Head::gue([3; 8]), payload: &body, tos: 0, ttl: 64 };
    // What SO_NO_CHECK does to a train is what an interface without checksums does: an error.
    set_option(&a.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    assert!(a.sends_trains());

    let results = send(&a, &[one; 10]);

    assert_eq!(results.len(), 10);
    assert!(results.iter().all(|sent| sent.result.is_ok() && sent.bytes == 208));
    assert!(receive(&b, 10).iter().all(|(_, bytes, ..)| *bytes == bytes_of(&one)));
    assert!(!a.sends_trains());
    assert_eq!(send(&a, &[one; 10]).len(), 10);
}

#[test]
fn a_taken_port_is_named_with_the_option_that_helps() {
    let first = bind("127.0.0.1:0");

    let error = UdpSocket::bind(first.local_addr(), DataPath::Full).unwrap_err();

    assert!(error.why.contains(&first.local_addr().port().to_string()), "{error}");
    assert!(error.fix.contains("--listen"), "{error}");
    assert!(first.receive_buffer_bytes() > 0);
}

#[test]
fn control_messages_reach_plain_ipv4_from_a_dual_stack_socket() {
    let (a, b) = (bind("[::]:0"), bind("127.0.0.1:0"));

    a.send_to(b.local_addr(), b"echo").unwrap();

    assert_eq!(receive(&b, 1)[0].1, b"echo");
}

#[test]
fn each_sender_has_one_lane_and_many_senders_have_several() {
    let lanes =
        UdpSocket::bind_lanes("127.0.0.1:0".parse().unwrap(), DataPath::Full, lanes(4)).unwrap();
    let senders: Vec<_> = (0..32).map(|_| bind("127.0.0.1:0")).collect();
    let to = lanes[0].local_addr();
    for _ in 0..3 {
        for sender in &senders {
            sender.send_to(to, b"x").unwrap();
        }
    }

    let mut batch = DatagramBatch::new();
    let mut lanes_of = std::collections::BTreeMap::<SocketAddr, Vec<usize>>::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while lanes_of.values().map(Vec::len).sum::<usize>() < 96 {
        assert!(Instant::now() < deadline, "{lanes_of:?}");
        for (lane, socket) in lanes.iter().enumerate() {
            assert_eq!(socket.local_addr(), to);
            patience(socket, 1);
            socket.receive_batch(&mut batch).unwrap();
            batch.iter().for_each(|(meta, _)| lanes_of.entry(meta.from).or_default().push(lane));
        }
    }
    assert!(lanes_of.values().all(|lanes| lanes.iter().all(|lane| *lane == lanes[0])));
    let used: std::collections::BTreeSet<_> = lanes_of.values().map(|lanes| lanes[0]).collect();
    assert!(used.len() > 1, "all senders have lane {used:?}");
}

#[test]
fn lanes_share_their_port_with_no_other_process() {
    let first = UdpSocket::bind_lanes("[::]:0".parse().unwrap(), DataPath::Full, lanes(3)).unwrap();
    let taken = first[0].local_addr();

    for wanted in [1, 2] {
        let error = UdpSocket::bind_lanes(taken, DataPath::Full, lanes(wanted)).unwrap_err();
        assert!(error.fix.contains("--listen"), "{error}");
    }
    drop(first);
    assert_eq!(UdpSocket::bind_lanes(taken, DataPath::Full, lanes(2)).unwrap().len(), 2);
}

fn lanes(count: i64) -> Lanes {
    Lanes::new(count).unwrap()
}

#[test]
fn sockets_pass_to_the_next_process_with_what_waits_in_them_if_they_fit() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let lanes = |text: &str| text.parse::<Lanes>().unwrap();
    let before = UdpSocket::bind_lanes(any, DataPath::Full, lanes("2")).unwrap();
    let address = before[0].local_addr();
    let copies =
        || before.iter().map(|one| one.descriptor().try_clone_to_owned().unwrap()).collect();
    let adopt =
        |listen, count| UdpSocket::adopt_lanes(copies(), listen, DataPath::Full, lanes(count));
    let sender = UdpSocket::bind(any, DataPath::Full).unwrap();
    sender.send_to(address, b"waits").unwrap();

    let other = SocketAddr::from(([127, 0, 0, 1], address.port() ^ 1));
    assert!(adopt(other, "2").unwrap_err().why.contains("listen on"));
    assert!(adopt(address, "1").unwrap_err().why.contains("2, for 1 lanes"));
    let after = adopt(address, "2").unwrap();
    drop(before);

    // The kernel chose the lane.
    let waits = |one: &&UdpSocket| {
        one.socket.set_nonblocking(true).unwrap();
        let is_there = one.socket.peek(&mut [std::mem::MaybeUninit::uninit()]).is_ok();
        one.socket.set_nonblocking(false).unwrap();
        is_there
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    let lane = loop {
        assert!(Instant::now() < deadline, "it is in none of them");
        if let Some(lane) = after.iter().find(waits) {
            break lane;
        }
    };
    let (from, bytes, ..) = receive(lane, 1).remove(0);
    assert_eq!((from, bytes.as_slice()), (sender.local_addr(), &b"waits"[..]));
}

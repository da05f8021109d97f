//! Over the loopback, in both families.

use std::time::Instant;

use super::*;
use crate::sys::batch::BUFFER_LEN;
use crate::sys::wake::Wake;

fn bind(text: &str) -> UdpSocket {
    UdpSocket::bind(text.parse().unwrap(), DataPath::Full).unwrap()
}

fn towards(socket: &UdpSocket, ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), socket.local_addr().port())
}

/// Everything that arrives until `count` datagrams are there: (from, bytes, tos, ttl).
fn receive(socket: &UdpSocket, count: usize) -> Vec<(SocketAddr, Vec<u8>, u8, u8)> {
    let wake = Wake::new().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut batch = PacketBatch::new();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} datagrams came", all.len());
        wake.wait(socket.as_fd(), Some(Duration::from_millis(100))).unwrap();
        socket.receive_batch(&mut batch).unwrap();
        all.extend(batch.iter().map(|(m, bytes)| (m.from, bytes.to_vec(), m.tos, m.ttl)));
    }
    all
}

fn send(socket: &UdpSocket, outgoing: &[Outgoing<'_>]) -> Vec<Result<usize, DropReason>> {
    let mut results = Vec::new();
    socket.send_batch(outgoing.iter().copied(), |result| results.push(result));
    results
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
            header: (n % 2 == 0).then_some([1, 4, 0x80, 0, 0, 0, 0, n]),
            payload: body,
            tos: n & 0b1010_0011,
            ttl: n + 1,
        })
        .collect();

    let results = send(a, &outgoing);

    assert_eq!(results, bodies.iter().map(|body| Ok(body.len())).collect::<Vec<_>>());
    for ((from, bytes, tos, ttl), sent) in receive(b, 100).into_iter().zip(&outgoing) {
        assert_eq!(from, towards(a, seen));
        assert_eq!(bytes, [sent.header.as_ref().map_or(&[][..], |h| h), sent.payload].concat());
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
    let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let huge = vec![0; 65_508];
    let to = towards(&b, "127.0.0.1");
    let good = Outgoing { to, header: None, payload: b"good", tos: 0, ttl: 64 };
    let too_big = Outgoing { payload: &huge, ..good };
    let wrong_family = Outgoing { to: "[::1]:9".parse().unwrap(), ..good };

    let results = send(&a, &[good, too_big, good, wrong_family, wrong_family, good]);

    let failed = Err(DropReason::SendFailed);
    assert_eq!(results, [Ok(4), Err(DropReason::TooBig), Ok(4), failed, failed, Ok(4)]);
    assert_eq!(receive(&b, 3).len(), 3);
}

#[test]
fn a_datagram_longer_than_a_buffer_is_marked() {
    let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    a.send_to(b.local_addr(), &[7; BUFFER_LEN + 1]).unwrap();
    let wake = Wake::new().unwrap();
    let mut batch = PacketBatch::new();

    wake.wait(b.as_fd(), Some(Duration::from_secs(10))).unwrap();
    b.receive_batch(&mut batch).unwrap();

    let (meta, bytes) = batch.iter().next().unwrap();
    assert!(meta.is_truncated);
    assert_eq!(bytes.len(), BUFFER_LEN);
    assert_eq!(meta.ttl, TTL);
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

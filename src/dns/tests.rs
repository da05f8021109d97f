//! The resolver with real sockets, its zone, and its messages under any bytes.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket};

use super::message::{A, AAAA, ANY, Answer, PTR, Record, SRV};
use super::*;
use crate::types::{EntityName, Name, Prefix};

const MX: u16 = 15;

/// A query as stub resolvers write it.
fn query(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend(1_u16.to_be_bytes());
    if let Some(size) = edns {
        message.extend([0, 0, 41]);
        message.extend(size.to_be_bytes());
        message.extend([0; 6]);
    }
    message
}

/// Code, whether it is cut, and the data of the answer's records.
fn read(message: &[u8]) -> (u8, bool, Vec<Vec<u8>>) {
    assert_eq!(&message[..2], &[0x12, 0x34], "another id");
    assert_eq!(message[2] & 0x80, 0x80, "no answer");
    let mut at = 12;
    if message[5] == 1 {
        while message[at] != 0 {
            at += 1 + usize::from(message[at]);
        }
        at += 5;
    }
    let mut records = Vec::new();
    for _ in 0..message[7] {
        assert_eq!(&message[at..at + 2], &[0xc0, 12], "no pointer to the question");
        let len = usize::from(u16::from_be_bytes([message[at + 10], message[at + 11]]));
        records.push(message[at + 12..at + 12 + len].to_vec());
        at += 12 + len;
    }
    (message[3] & 0x0f, message[2] & 0x02 != 0, records)
}

fn zone() -> Zone {
    let members: Vec<(EntityName, IpAddr)> = [("web", "10.70.0.1"), ("shop/db", "10.70.0.2")]
        .map(|(name, address)| (name.parse().unwrap(), address.parse().unwrap()))
        .into();
    let mut zone = Zone::default();
    let range: Prefix = "10.70.0.0/16".parse().unwrap();
    zone.add_overlay(
        &"prod".parse().unwrap(),
        range,
        members.iter().map(|(name, address)| (name, *address)),
    );
    let six: EntityName = "six".parse().unwrap();
    let range: Prefix = "fd00:1::/64".parse().unwrap();
    let address = "fd00:1::abcd".parse().unwrap();
    zone.add_overlay(&"v6".parse().unwrap(), range, [(&six, address)].into_iter());
    zone
}

/// A resolver of the host that knows one answer, and counts what it is asked.
async fn upstream() -> (Upstream, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = Upstream::new(vec![socket.local_addr().unwrap()]);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let mut forged = buffer[..len].to_vec();
            forged[2] |= 0x80;
            forged[0] ^= 0xff;
            // Somebody else was faster, and guessed wrong.
            socket.send_to(&forged, from).await.unwrap();
            forged[0] ^= 0xff;
            forged[3] = 0x85;
            socket.send_to(&forged, from).await.unwrap();
        }
    });
    (server, asked)
}

async fn resolver(upstream: Upstream) -> (SocketAddr, Names) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.at();
    let resolver = Resolver::new(vec![listener], upstream);
    let names = resolver.names();
    names.replace(zone());
    resolver.start();
    (address, names)
}

async fn ask(server: SocketAddr, name: &str, kind: u16) -> (u8, bool, Vec<Vec<u8>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&query(name, kind, None), server).await.unwrap();
    let mut buffer = [0; 4096];
    let answer = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
    read(&buffer[..answer.unwrap().unwrap()])
}

#[tokio::test]
async fn overlay_names_are_answered_and_never_leave_the_host() {
    let (upstream, asked) = upstream().await;
    let (server, names) = resolver(upstream).await;
    let four = |octets: [u8; 4]| vec![octets.to_vec()];

    for (name, kind, code, data) in [
        ("web.prod.ov.internal", A, 0, four([10, 70, 0, 1])),
        ("WEB.Default.prod.ov.internal", A, 0, four([10, 70, 0, 1])),
        ("web.prod.ov.internal", ANY, 0, four([10, 70, 0, 1])),
        ("db.shop.prod.ov.internal", A, 0, four([10, 70, 0, 2])),
        ("db.prod.ov.internal", A, 3, vec![]),
        ("web.prod.ov.internal", AAAA, 0, vec![]),
        ("web.prod.ov.internal", MX, 0, vec![]),
        ("prod.ov.internal", A, 0, vec![]),
        ("nobody.prod.ov.internal", A, 3, vec![]),
        ("ov.internal", A, 0, vec![]),
        ("1.0.70.10.in-addr.arpa", PTR, 0, vec![b"\x03web\x04prod\x02ov\x08internal\0".to_vec()]),
        ("9.0.70.10.in-addr.arpa", PTR, 3, vec![]),
    ] {
        assert_eq!(ask(server, name, kind).await, (code, false, data), "{name} {kind}");
    }
    let six = "fd00:1::abcd".parse::<std::net::Ipv6Addr>().unwrap();
    let found = ask(server, "six.v6.ov.internal", AAAA).await;
    assert_eq!(found, (0, false, vec![six.octets().to_vec()]));
    let digits: String =
        six.octets().iter().rev().map(|b| format!("{:x}.{:x}.", b & 15, b >> 4)).collect();
    let (code, _, data) = ask(server, &format!("{digits}ip6.arpa"), PTR).await;
    assert_eq!((code, data.len()), (0, 1));
    assert_eq!(asked.load(Ordering::Relaxed), 0, "our names were asked elsewhere");

    // What is not ours is.
    for (count, name) in
        ["example.org", "1.2.0.192.in-addr.arpa", "xov.internal"].iter().enumerate()
    {
        assert_eq!(ask(server, name, A).await.0, 5, "the other resolver's answer to {name}");
        assert_eq!(asked.load(Ordering::Relaxed), count + 1);
    }
    // The newest table counts.
    names.replace(Zone::default());
    assert_eq!(ask(server, "web.prod.ov.internal", A).await.0, 3);
}

/// Three instances of `api`, two of which have the port `http`, and one its own.
fn with_service() -> Zone {
    let overlay: Name = "prod".parse().unwrap();
    let names: Vec<EntityName> =
        ["shop/a", "shop/b", "c", "api"].map(|name| name.parse().unwrap()).into();
    let member = |index: usize| {
        let address = IpAddr::from([10, 70, 0, u8::try_from(index).unwrap() + 1]);
        (&names[index], address)
    };
    let mut zone = Zone::default();
    zone.add_overlay(&overlay, "10.70.0.0/16".parse().unwrap(), (0..4).map(member));
    let api: Name = "api".parse().unwrap();
    zone.add_service(&overlay, &api, (0..3).map(member));
    let http: Name = "http".parse().unwrap();
    let of = (&overlay, &api);
    zone.add_port(of, (&http, &"tcp/8080".parse().unwrap()), (0..2).map(member));
    zone.add_port(of, (&http, &"tcp/80".parse().unwrap()), (2..3).map(member));
    zone
}

fn found(zone: &Zone, name: &str, kind: u16, turn: usize) -> Answer {
    match zone.find(name, kind, turn) {
        Verdict::Answer(answer) => answer,
        Verdict::Forward => panic!("{name} is ours"),
    }
}

#[test]
fn a_service_is_all_its_instances_in_turn_and_has_ports() {
    let zone = with_service();
    let addresses = |turn| {
        let records = found(&zone, "api.prod.ov.internal", A, turn).records;
        records.into_iter().map(|record| {
            let Record::Address(IpAddr::V4(address)) = record else { panic!("{record:?}") };
            address.octets()[3]
        })
    };

    // The entity of that name is 10.70.0.4, and is not what the name means.
    assert_eq!(addresses(0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(addresses(4).collect::<Vec<_>>(), [2, 3, 1]);
    assert_eq!(found(&zone, "api.default.prod.ov.internal", A, 0).records.len(), 3);

    let ports = found(&zone, "_http._tcp.api.prod.ov.internal", SRV, 2);
    let place = |port, host: &str| Record::Place { port, host: format!("{host}.prod.ov.internal") };
    assert_eq!(ports.records, [place(80, "c"), place(8080, "a.shop"), place(8080, "b.shop")]);
    let host = |name: &str, last| (format!("{name}.prod.ov.internal"), [10, 70, 0, last].into());
    assert_eq!(ports.hosts, [host("c", 3), host("a.shop", 1), host("b.shop", 2)]);

    for (name, kind, code) in [
        ("_http._tcp.api.prod.ov.internal", A, Code::Ok),
        ("_tcp.api.prod.ov.internal", SRV, Code::Ok),
        ("api.prod.ov.internal", SRV, Code::Ok),
        ("_http._udp.api.prod.ov.internal", SRV, Code::NoName),
        ("_ssh._tcp.api.prod.ov.internal", SRV, Code::NoName),
        ("_http._tcp.c.prod.ov.internal", SRV, Code::NoName),
    ] {
        let answer = found(&zone, name, kind, 0);
        assert_eq!((answer.code, answer.records.len()), (code, 0), "{name} {kind}");
    }
}

/// What stands in an answer: answers, then additional records, each as type and data.
fn sections(message: &[u8]) -> [Vec<(u16, Vec<u8>)>; 2] {
    let number = |at: usize| usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    let mut at = 12;
    let skip_name = |at: &mut usize| {
        while message[*at] != 0 && message[*at] < 0xc0 {
            *at += 1 + usize::from(message[*at]);
        }
        *at += if message[*at] == 0 { 1 } else { 2 };
    };
    skip_name(&mut at);
    at += 4;
    let mut records = |count| {
        let mut records = Vec::new();
        for _ in 0..count {
            skip_name(&mut at);
            let len = number(at + 8);
            let kind = u16::try_from(number(at)).unwrap();
            records.push((kind, message[at + 10..at + 10 + len].to_vec()));
            at += 10 + len;
        }
        records
    };
    let sections = [records(number(6)), records(number(8) + number(10))];
    assert_eq!(at, message.len(), "all of it is read");
    sections
}

#[test]
fn ports_come_with_the_addresses_of_their_hosts_where_these_fit() {
    let name = "_http._tcp.api.prod.ov.internal";
    let query = Query::parse(&query(name, SRV, Some(1232))).unwrap();
    let answer = found(&with_service(), name, SRV, 0);
    let message = |max| query.answer(&answer, OVERLAY_SUFFIX, max);

    let [ports, more] = sections(&message(1232));
    let data = [&[0, 0, 0, 0, 0x1f, 0x90][..], b"\x01a\x04shop\x04prod\x02ov\x08internal\0"];
    assert_eq!(ports[0], (SRV, data.concat()));
    let kinds = more.iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
    assert_eq!((ports.len(), kinds), (3, vec![A, A, A, 41]));
    assert_eq!(more[0].1, [10, 70, 0, 1]);

    // Room for the ports and one address: that is no cut answer. Room for less is.
    let whole = message(1232).len();
    let address = "a.shop.prod.ov.internal".len() + 2 + 14;
    let [ports, more] = sections(&message(whole - address));
    assert_eq!((ports.len(), more.len()), (3, 3));
    assert_eq!(message(whole - address)[2] & 2, 0);
    let cut = message(150);
    assert!(cut.len() <= 150 && cut[2] & 2 == 2, "cut");
    assert!(sections(&cut)[1].iter().all(|(kind, _)| *kind == 41));
}

#[test]
fn a_search_domain_behind_our_suffix_makes_no_name_of_others() {
    let zone = with_service();

    for name in ["c.prod.ov.internal.svc.cluster.local", "a.ov.internal.example"] {
        assert_eq!(found(&zone, name, A, 0).code, Code::NoName, "{name}");
    }
    for name in ["ov.internal.example", "xov.internal.example", "example"] {
        assert_eq!(zone.find(name, A, 0), Verdict::Forward, "{name}");
    }
}

#[tokio::test]
async fn without_a_resolver_the_answer_is_a_failure_and_tcp_answers_too() {
    let (server, _) = resolver(Upstream::default()).await;

    assert_eq!(ask(server, "example.org", A).await.0, 2);
    let mut stream = TcpStream::connect(server).await.unwrap();
    for _ in 0..2 {
        stream.write_all(&framed(&query("web.prod.ov.internal", A, Some(4096)))).await.unwrap();
        let answer = read_message(&mut stream).await.unwrap();
        assert_eq!(read(&answer), (0, false, vec![vec![10, 70, 0, 1]]));
        assert_eq!(answer[11], 1, "EDNS is answered with EDNS");
    }
}

#[tokio::test]
async fn a_name_with_many_addresses_takes_turns_and_is_cut_to_what_fits() {
    let (server, names) = resolver(Upstream::default()).await;
    let name: EntityName = "many".parse().unwrap();
    let mut many = Zone::default();
    let members = (0..100_u8).map(|n| (&name, IpAddr::from([10, 70, 1, n])));
    many.add_overlay(&"prod".parse().unwrap(), "10.70.0.0/16".parse().unwrap(), members);
    names.replace(many);

    let (code, is_cut, first) = ask(server, "many.prod.ov.internal", A).await;
    let (_, _, second) = ask(server, "many.prod.ov.internal", A).await;
    assert_eq!((code, is_cut), (0, true));
    assert!(first.len() > 25, "{} fit into 512 bytes", first.len());
    assert_eq!(first[1], second[0], "they take turns");

    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(&framed(&query("many.prod.ov.internal", A, None))).await.unwrap();
    let (_, is_cut, all) = read(&read_message(&mut stream).await.unwrap());
    assert_eq!((is_cut, all.len()), (false, 100));
}

/// The figure of the design, on whatever machine this runs.
#[tokio::test]
#[ignore = "long"]
async fn a_lookup_takes_less_than_a_millisecond() {
    let (server, _) = resolver(Upstream::default()).await;
    let mut micros = Vec::new();
    for _ in 0..2000 {
        let start = std::time::Instant::now();
        assert_eq!(ask(server, "web.prod.ov.internal", A).await.0, 0);
        micros.push(start.elapsed().as_micros());
    }
    micros.sort_unstable();

    assert!(micros[1000] < 1000, "the median is {} µs", micros[1000]);
}

#[test]
fn what_is_no_question_is_refused_or_ignored() {
    let good = query("web.prod.ov.internal", A, None);
    assert!(Query::parse(&good).is_ok());
    let with = |at: usize, byte: u8| {
        let mut message = good.clone();
        message[at] = byte;
        Query::parse(&message)
    };

    assert_eq!(with(2, 0x80), Err(None), "an answer");
    assert_eq!(Query::parse(&good[..11]), Err(None));
    for (at, byte, code) in [(5, 2, 1), (12, 0xc0, 1), (12, 64, 1)] {
        let refusal = with(at, byte).unwrap_err().unwrap();
        assert_eq!(read(&refusal).0, code, "byte {at}");
    }
    assert!(!with(good.len() - 1, 3).unwrap().is_plain, "another class");
    assert!(!with(2, 0x28).unwrap().is_plain, "an update");
    let long = [&good[..12], &[63; 64].repeat(5), &[0, 0, 1, 0, 1]].concat();
    assert!(Query::parse(&long).is_err(), "a name of 320 bytes");
}

proptest! {
    #[test]
    fn no_bytes_panic_and_every_answer_fits(
        tail in prop::collection::vec(any::<u8>(), 0..300),
        header in any::<[u8; 12]>(),
        is_query in any::<bool>(),
    ) {
        let mut message = [&header[..], &tail].concat();
        if is_query {
            message[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        }
        if let Ok(query) = Query::parse(&message) {
            let max = query.datagram_max();
            if let Verdict::Answer(answer) = zone().find(&query.name, query.kind, 7) {
                prop_assert!(query.answer(&answer, OVERLAY_SUFFIX, max).len() <= max);
            }
            prop_assert!(query.refusal(Code::Failed).len() <= message.len());
        }
    }

    #[test]
    fn every_name_is_read_as_it_was_written(labels in prop::collection::vec("[a-z0-9-]{1,20}", 1..8)) {
        let name = labels.join(".");
        let query = Query::parse(&query(&name.to_uppercase(), A, Some(1400))).unwrap();
        prop_assert_eq!(&query.name, &name);
        prop_assert_eq!(query.datagram_max(), 1232);
        prop_assert_eq!(zone().find(&name, A, 0), Verdict::Forward);
    }
}

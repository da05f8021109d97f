//! Inner packets as attackers write them (threats T20 to T25), at the SaP and at `ovd`, IPv4 and IPv6:
//! each is dropped for its own reason, counted exactly; what is only unusual arrives.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

use crate::packet::{gue, hex, ip, ip4, seal4, tcp, udp};
use crate::support::{LAB_CIDR, Rig, SOON, play_in};
use crate::trains::{drops, grown};
use crate::world::poll;

/// How often each packet is sent.
const COPIES: u32 = 5;

/// The port that the rule names.
const PORT: u16 = 9;

const TCP: u8 = 6;
const UDP: u8 = 17;
const MORE_FRAGMENTS: u16 = 0x2000;

/// What a may not send to b: why it is dropped, what it is, and the GUE payload in digits.
type Forged = (&'static str, String, String);

/// What is unusual, the bytes, and of how many packets of one length they are.
type Unusual = (&'static str, Vec<u8>, u8);

#[test]
fn forged_inner_packets_of_ipv4_are_dropped_for_their_reason() {
    play_in(LAB_CIDR, &["s1"], &["a", "b"], |rig| {
        each_is_dropped(rig, forged4)?;
        unusual_ones_arrive(rig, unusual4)
    });
}

#[test]
fn forged_inner_packets_of_ipv6_are_dropped_for_their_reason() {
    play_in("fd70::/64", &["s1"], &["a", "b"], |rig| {
        each_is_dropped(rig, forged6)?;
        unusual_ones_arrive(rig, unusual6)
    });
}

/// At s1 as from a, and at b as from s1.
fn each_is_dropped(
    rig: &mut Rig,
    forged: fn(u32, SocketAddr, SocketAddr) -> Vec<Forged>,
) -> Result<()> {
    rig.allow(&["a", "b", "--port", "udp/9"])?;
    let (source, target) = (rig.at("a", 40_000)?, rig.at("b", PORT)?);
    let sink = rig.udp_sink("b", PORT)?;
    let mut by_reason = BTreeMap::<_, Vec<_>>::new();
    for (reason, what, digits) in forged(rig.send_key("a", "b")?, source, target) {
        by_reason.entry(reason).or_default().push((what, digits));
    }
    let mut failures = Vec::new();
    for (from, to) in [("a", "s1"), ("s1", "b")] {
        for (reason, packets) in &by_reason {
            let digits: Vec<_> = packets.iter().map(|(_, digits)| digits.clone()).collect();
            if let Err(seen) = dropped_for(rig, (from, to), reason, &digits)? {
                // Which of them was it?
                for (what, digits) in packets {
                    if let Err(seen) =
                        dropped_for(rig, (from, to), reason, std::slice::from_ref(digits))?
                    {
                        failures.push(format!("{to}: {what}: {seen:?}, not {reason}"));
                    }
                }
                failures.push(format!("{to}: {reason}: {seen:?}"));
            }
        }
    }
    ensure!(failures.is_empty(), "{failures:#?}");
    ensure!(sink.received()? == 0, "a forged packet arrived");
    // The same injector with the right values.
    let honest = [gue(rig.send_key("a", "b")?, &udp(source, target, b"hello"))];
    rig.inject("a", "s1", &honest, COPIES)?;
    rig.inject("s1", "b", &honest, COPIES)?;
    sink.expect_received(u64::from(2 * COPIES))
}

/// Whether `to` drops all of the packets for `reason` and none for another; else what it did.
fn dropped_for(
    rig: &Rig,
    (from, to): (&str, &str),
    reason: &str,
    packets: &[String],
) -> Result<Result<(), BTreeMap<String, u64>>> {
    let before = drops(rig, to)?;
    rig.inject(from, to, packets, COPIES)?;
    let wanted = [(reason.to_owned(), u64::try_from(packets.len())? * u64::from(COPIES))].into();
    let mut seen = BTreeMap::new();
    let arrived = poll(SOON, reason, || {
        seen = grown(&before, &drops(rig, to)?);
        Ok((seen == wanted).then_some(()))
    });
    Ok(arrived.map_err(|_| seen))
}

fn unusual_ones_arrive(
    rig: &mut Rig,
    unusual: fn(SocketAddr, SocketAddr) -> Vec<Unusual>,
) -> Result<()> {
    let (source, target) = (rig.at("a", 41_000)?, rig.at("b", PORT)?);
    // Rules without ports look at addresses only.
    rig.allow(&["a", "b"])?;
    let key = rig.send_key("a", "b")?;
    for (what, packet, parts) in unusual(source, target) {
        let sink = rig.udp_sink("b", PORT)?;
        let packets: Vec<_> = split(&packet, parts).iter().map(|part| gue(key, part)).collect();
        rig.inject("a", "s1", &packets, 1)?;
        sink.expect_received(1).with_context(|| format!("{what}: {}", hex(&packet)))?;
    }
    Ok(())
}

/// The `parts` packets that stand one after the other in `packets`, of one length.
fn split(packets: &[u8], parts: u8) -> Vec<Vec<u8>> {
    packets.chunks(packets.len().div_ceil(parts.into())).map(<[u8]>::to_vec).collect()
}

fn forged4(key: u32, source: SocketAddr, target: SocketAddr) -> Vec<Forged> {
    let good = udp(source, target, b"hello");
    let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), target.ip()) else { return Vec::new() };
    let datagram = &good[20..];
    let segment = &tcp(source, target, 0x02)[20..];
    let mut forged = Vec::new();
    let mut add = |reason, what: String, packet: &[u8]| {
        // Whatever the version nibble says, the header says IPv4.
        let digits = gue(key, packet);
        forged.push((reason, what, format!("0104{}", &digits[4..])));
    };

    // T20: lengths that lie.
    for (first, total) in
        [(0x45, 34), (0x45, 0), (0x45, 19), (0x45, 27), (0x44, 33), (0x40, 33), (0x4f, 33)]
    {
        let mut packet = good.clone();
        packet[0] = first;
        packet[3] = total;
        seal4(&mut packet);
        add("inner_length", format!("first byte {first:02x}, length {total}"), &packet);
    }
    for len in [0, 1, 19, 20, 27, 32] {
        add("inner_length", format!("{len} bytes"), &good[..len]);
    }
    for version in [0_u8, 5, 6, 15] {
        let mut packet = good.clone();
        packet[0] = version << 4 | 5;
        add("inner_version", format!("version {version}"), &packet);
    }
    // T21: fragments. Tiny first ones, later ones that reach into the header, and without a first.
    for len in [0, 1, 7] {
        let packet = ip4(from, to, UDP, MORE_FRAGMENTS, &[], &datagram[..len]);
        add("fragment", format!("first fragment of {len} bytes of UDP"), &packet);
    }
    for len in [8, 16, 19] {
        let packet = ip4(from, to, TCP, MORE_FRAGMENTS, &[], &segment[..len]);
        add("fragment", format!("first fragment of {len} bytes of TCP"), &packet);
    }
    for offset in [1, 2] {
        let packet = ip4(from, to, TCP, MORE_FRAGMENTS | offset, &[], segment);
        add("fragment", format!("TCP again at offset {offset}"), &packet);
    }
    add("fragment", "a part of no whole".into(), &ip4(from, to, UDP, 4, &[], &[7; 32]));
    // A packet longer than any can be.
    let packet = ip4(from, to, UDP, 0x1fff, &[], &[7; 64]);
    add("inner_length", "beyond 65,535 bytes".into(), &packet);
    // T23: source routes; options that lie about their length.
    for (kind, len) in [(131, 3), (137, 3), (7, 0), (7, 1), (7, 9)] {
        let options = [kind, len, 4, 0];
        let packet = ip4(from, to, UDP, 0x4000, &options, datagram);
        add("inner_options", format!("option {kind} of length {len}"), &packet);
    }
    // T24: addresses that no packet of an overlay bears.
    for bad in [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [127, 0, 0, 1],
        [169, 254, 1, 1],
        [224, 0, 0, 1],
        [239, 255, 255, 250],
        [240, 0, 0, 1],
        [255, 255, 255, 255],
    ] {
        for at in [12, 16] {
            let mut packet = good.clone();
            packet[at..at + 4].copy_from_slice(&bad);
            seal4(&mut packet);
            add("inner_address", format!("{} at {at}", Ipv4Addr::from(bad)), &packet);
        }
    }
    for kind in [5, 9, 10] {
        let message = ip(source.ip(), target.ip(), 1, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        add("inner_neighbour", format!("ICMP type {kind}"), &message);
    }
    // T25: tunnels inside the tunnel.
    for protocol in [4, 41, 47, 137] {
        let packet = ip4(from, to, protocol, 0x4000, &[], &good);
        add("inner_nested", format!("protocol {protocol}"), &packet);
    }
    let nested = udp(source, SocketAddr::new(target.ip(), 6080), &good);
    add("inner_nested", "GUE in the tunnel".into(), &nested);
    // The rule names a port; what has none, or another, it does not allow.
    let other = udp(source, SocketAddr::new(target.ip(), PORT + 1), b"hello");
    add("no_rule", "another port".into(), &other);
    add("no_rule", "a protocol without ports".into(), &ip4(from, to, 99, 0x4000, &[], datagram));
    forged
}

fn unusual4(source: SocketAddr, target: SocketAddr) -> Vec<Unusual> {
    let good = udp(source, target, b"hello");
    let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), target.ip()) else { return Vec::new() };
    let datagram = &udp(source, target, &[9; 24])[20..];
    let with = |options: &[u8]| ip4(from, to, UDP, 0x4000, options, &good[20..]);
    vec![
        ("record route", with(&[7, 7, 4, 0, 0, 0, 0, 0]), 1),
        ("no operation, then the end", with(&[1, 1, 0, 0]), 1),
        ("bytes behind the packet", [&good[..], &[0; 9]].concat(), 1),
        (
            "two fragments",
            [
                ip4(from, to, UDP, MORE_FRAGMENTS, &[], &datagram[..16]),
                ip4(from, to, UDP, 2, &[], &datagram[16..]),
            ]
            .concat(),
            2,
        ),
    ]
}

fn forged6(key: u32, source: SocketAddr, target: SocketAddr) -> Vec<Forged> {
    let good = udp(source, target, b"hello");
    let (from, to) = (source.ip(), target.ip());
    let datagram = &good[40..];
    let segment = &tcp(source, target, 0x02)[40..];
    let mut forged = Vec::new();
    let mut add = |reason, what: String, packet: &[u8]| {
        let digits = gue(key, packet);
        forged.push((reason, what, format!("0129{}", &digits[4..])));
    };
    let behind = |header: &[u8], rest: &[u8]| [header, rest].concat();

    // T20.
    for length in [0_u16, 7, 14, 0xffff] {
        let mut packet = good.clone();
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        add("inner_length", format!("payload length {length}"), &packet);
    }
    for len in [0, 1, 39, 40, 47, 52] {
        add("inner_length", format!("{len} bytes"), &good[..len]);
    }
    for version in [0_u8, 4, 5, 15] {
        let mut packet = good.clone();
        packet[0] = version << 4;
        add("inner_version", format!("version {version}"), &packet);
    }
    // T21.
    for (protocol, whole, short) in [(UDP, datagram, [0, 7]), (TCP, segment, [8, 19])] {
        for len in short {
            let header = [protocol, 0, 0, 1, 0, 0, 0, 9];
            let packet = ip(from, to, 44, &behind(&header, &whole[..len]));
            add("fragment", format!("first fragment of {len} bytes of {protocol}"), &packet);
        }
    }
    let header = [UDP, 0, 0, 32, 0, 0, 0, 9];
    add("fragment", "a part of no whole".into(), &ip(from, to, 44, &behind(&header, &[7; 32])));
    // T22: extension headers. What hides its ports matches no rule with ports.
    let link = |next, len| [next, len, 1, 4, 0, 0, 0, 0];
    for (what, next, payload) in [
        ("destination options", 60, behind(&link(UDP, 0), datagram)),
        ("hop-by-hop options", 0, behind(&link(UDP, 0), datagram)),
        ("an unknown header", 200, behind(&link(UDP, 0), datagram)),
        ("no next header", 59, behind(&link(UDP, 0), datagram)),
        ("SCTP's ports in UDP's place", 132, [datagram, &[0; 8]].concat()),
    ] {
        let reason = "no_rule";
        // SCTP has ports of its own, but no rule.
        add(reason, what.to_owned(), &ip(from, to, next, &payload));
    }
    for (what, next, payload) in [
        ("64 headers", 60, [&link(60, 0).repeat(63)[..], &link(UDP, 0), datagram].concat()),
        ("hop-by-hop in second place", 60, [&link(0, 0)[..], &link(UDP, 0), datagram].concat()),
        ("routing type 0", 43, behind(&[UDP, 0, 0, 0, 0, 0, 0, 0], datagram)),
        ("routing type 2", 43, behind(&[UDP, 0, 2, 0, 0, 0, 0, 0], datagram)),
        ("routing type 4", 43, behind(&[UDP, 0, 4, 0, 0, 0, 0, 0], datagram)),
        ("a jumbogram", 0, behind(&[UDP, 0, 0xc2, 4, 0, 1, 0, 0], datagram)),
        (
            "two fragment headers",
            44,
            [&[44, 0, 0, 0, 0, 0, 0, 9][..], &[UDP, 0, 0, 0, 0, 0, 0, 9], datagram].concat(),
        ),
    ] {
        add("inner_options", what.to_owned(), &ip(from, to, next, &payload));
    }
    for len in [2, 31, 255] {
        let packet = ip(from, to, 60, &behind(&link(UDP, len), datagram));
        add("inner_length", format!("options of {len} words"), &packet);
    }
    // T24.
    for bad in ["::", "::1", "fe80::1", "ff02::1", "ff0e::1", "::ffff:10.0.0.1"] {
        let octets = bad.parse::<Ipv6Addr>().map_or([0; 16], |address| address.octets());
        for at in [8, 24] {
            let mut packet = good.clone();
            packet[at..at + 16].copy_from_slice(&octets);
            add("inner_address", format!("{bad} at {at}"), &packet);
        }
    }
    for kind in 133..=137 {
        let message = [kind, 0, 0, 0, 0, 0, 0, 0];
        add("inner_neighbour", format!("ICMPv6 type {kind}"), &ip(from, to, 58, &message));
        let hidden = ip(from, to, 60, &behind(&link(58, 0), &message));
        add("inner_neighbour", format!("ICMPv6 type {kind} behind options"), &hidden);
    }
    // T25.
    for protocol in [4, 41, 47, 137] {
        add("inner_nested", format!("protocol {protocol}"), &ip(from, to, protocol, &good));
        let hidden = ip(from, to, 60, &behind(&link(protocol, 0), &good));
        add("inner_nested", format!("protocol {protocol} behind options"), &hidden);
    }
    let nested = udp(source, SocketAddr::new(to, 6080), &good);
    add("inner_nested", "GUE in the tunnel".into(), &nested);
    forged
}

fn unusual6(source: SocketAddr, target: SocketAddr) -> Vec<Unusual> {
    let good = udp(source, target, b"hello");
    let (from, to) = (source.ip(), target.ip());
    let datagram = &udp(source, target, &[9; 24])[40..];
    let behind = |header: &[u8], rest: &[u8]| [header, rest].concat();
    let first = behind(&[UDP, 0, 0, 1, 0, 0, 0, 9], &datagram[..16]);
    let second = behind(&[UDP, 0, 0, 16, 0, 0, 0, 9], &datagram[16..]);
    vec![
        (
            "destination options",
            ip(from, to, 60, &behind(&[UDP, 0, 1, 4, 0, 0, 0, 0], &good[40..])),
            1,
        ),
        ("bytes behind the packet", [&good[..], &[0; 9]].concat(), 1),
        ("two fragments", [ip(from, to, 44, &first), ip(from, to, 44, &second)].concat(), 2),
    ]
}

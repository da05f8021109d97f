//! Attacks on what stands around the packet: control messages (T15), floods (T16), ICMP errors (T17),
//! and the fields of outer headers (T18).

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use ovmesh::wire::control::{self, Echo, Message};
use serde_json::Value;

use crate::packet::{bytes, gue, hex, ip, seal4, udp};
use crate::settled::settled;
use crate::support::{Counter, Rig, SOON, number, play};
use crate::trains::{drops, grown};
use crate::world::poll;

/// How many of each forged message. Fewer than unknown sources may send in a second.
const FORGED: u32 = 30;

#[test]
fn control_messages_answer_only_who_can_sign_once_and_never_with_more() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let s1 = rig.underlay("s1")?;
        let stranger = rig.world.machine("x")?;
        let table = rig.table("a")?;
        let link = table.body.links.first().context("a has no link")?;
        let message = Message::EchoRequest(Echo { sequence: 7, ..Echo::default() });
        let (buffer, len) = control::encode(link.id, &link.secret, u64::MAX - 1, &message);
        let signed = buffer[..len].to_vec();
        // In the place of a's daemon stands one that keeps what comes.
        rig.fleet.node_mut("a")?.stop()?;
        let at_a = rig.counter("a", "udp-capture", &rig.underlay("a")?.to_string(), &[])?;
        let forged = u64::from(FORGED);
        let changed = |at: usize| {
            let mut bytes = signed.clone();
            bytes[at] ^= 1;
            [hex(&bytes)]
        };

        let last = len - 1;
        for (reason, at) in [("control_mac", last), ("control_type", 1), ("control_mac", 20)] {
            rig.drops_move("s1", reason, forged, || rig.inject("a", "s1", &changed(at), FORGED))?;
        }
        ensure!(at_a.received()? == 0, "a forged message was answered: {}", at_a.read()?);
        rig.inject("a", "s1", &[hex(&signed)], 1)?;
        at_a.expect_received(1)?;
        rig.drops_move("s1", "control_replay", forged, || {
            rig.inject("a", "s1", &[hex(&signed)], FORGED)
        })?;
        ensure!(at_a.received()? == 1, "a message was answered twice");
        let answers = at_a.read()?["byPayload"].clone();
        let longest = answers.as_object().into_iter().flatten().map(|(answer, _)| answer.len());
        ensure!(longest.max() <= Some(2 * len), "more came back than was sent: {answers}");

        // Who is not known shares a small budget, and learns nothing.
        let before = drops(rig, "s1")?;
        rig.inject_from(&stranger, 6080, s1, &changed(last), 500)?;
        poll(SOON, "500 messages to be counted", || {
            let grown = grown(&before, &drops(rig, "s1")?);
            let count = |reason: &str| grown.get(reason).copied().unwrap_or(0);
            let (over, wrong) = (count("control_budget"), count("control_mac"));
            Ok((over + wrong == 500 && over > 0 && wrong >= 50).then_some(()))
        })?;
        ensure!(at_a.received()? == 1, "a stranger's message was answered");
        Ok(())
    });
}

#[test]
fn a_flood_of_garbage_costs_no_memory_and_no_log_and_leaves_no_trace() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let _echo = rig.udp_echo("b", 9)?;
        ensure!(rig.udp_ping("a", "b", 9, 10)? == 10, "nothing passes before the flood");
        let stranger = rig.world.machine("x")?;
        let s1 = rig.underlay("s1")?;
        let honest = gue(rig.send_key("a", "b")?, &udp(rig.at("a", 1)?, rig.at("b", 9)?, b"x"));
        let before = (resident_kib(rig, "s1")?, rig.fleet.node_mut("s1")?.process()?.log_text());
        let dropped = drops(rig, "s1")?;

        let garbage = ["ff".repeat(64), "0104".to_owned(), honest, "01048000".repeat(300)];
        rig.inject_from(&stranger, 6080, s1, &garbage, 20_000)?;

        poll(SOON, "the flood to be over", || {
            Ok((rig.udp_ping("a", "b", 9, 1)? == 1).then_some(()))
        })?;
        ensure!(rig.udp_ping("a", "b", 9, 20)? == 20, "something is missing after the flood");
        let grown = grown(&dropped, &drops(rig, "s1")?);
        let refused: u64 = grown.values().sum();
        ensure!((1_000..=80_000).contains(&refused), "{grown:?}");
        let known = ["gue_variant", "gue_length", "outer_source"];
        ensure!(grown.keys().all(|reason| known.contains(&reason.as_str())), "{grown:?}");
        let rss = resident_kib(rig, "s1")?;
        ensure!(rss < before.0 + 2048, "grew from {} to {rss} KiB", before.0);
        let log = rig.fleet.node_mut("s1")?.process()?.log_text();
        ensure!(log.len() < before.1.len() + 4096, "{}", &log[before.1.len()..]);
        Ok(())
    });
}

/// What a node's program has in memory.
fn resident_kib(rig: &mut Rig, node: &str) -> Result<u64> {
    let pid = rig.fleet.node_mut(node)?.process()?.pid().context("it does not run")?;
    let file = format!("/proc/{pid}/status");
    let status = rig.fleet.machine(node)?.run(&["cat", &file])?.success(&file)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse()?)
}

#[test]
fn forged_icmp_errors_change_no_mtu() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let _echo = rig.udp_echo("b", 9)?;
        let target = rig.at("b", 9)?.to_string();
        // 1464 less the inner headers: the largest that needs no fragments.
        let packets = |rig: &Rig| -> Result<u64> {
            let words = ["udp-verify", &target, "1400-1436", "1", "3000"];
            let before = rig.fleet.node("a")?.packets("egress")?;
            let report = rig.fleet.netkit_json("a", &words)?;
            ensure!(number(&report, "received")? == 37, "{report}");
            // Counted once the kernel has them; the answers may be there before.
            Ok(settled("what a sent", || rig.fleet.node("a")?.packets("egress"))? - before)
        };
        let whole = |rig: &Rig| -> Result<()> {
            let sent = packets(rig)?;
            ensure!(sent == 37, "37 datagrams left in {sent} packets");
            Ok(())
        };
        whole(rig)?;
        let stranger = rig.world.machine("x")?;
        let (a, s1, b) = (rig.underlay("a")?, rig.underlay("s1")?, rig.underlay("b")?);
        let inner = udp(rig.at("a", 1)?, rig.at("b", 9)?, &[7; 1400]);
        let key = rig.send_key("a", "b")?;
        let right = bytes(&gue(key, &inner));
        let wrong = bytes(&gue(key ^ 1, &inner));
        let answer = udp(rig.at("b", 9)?, rig.at("a", 1)?, &[7; 1400]);
        let answer = bytes(&gue(rig.send_key("b", "a")?, &answer));
        let send = |errors: &[String]| {
            let file = rig.file("errors");
            fs::write(&file, errors.join("\n"))?;
            let netkit = crate::binaries().netkit;
            let file = format!("@{}", file.display());
            stranger.run(&[&*netkit.to_string_lossy(), "ip-send", &file, "3"])?.success("ip-send")
        };
        let forged = |from: SocketAddr, to: SocketAddr, payload: &[u8], mtu: u16| {
            hex(&fragmentation_needed(stranger.ip4.into(), &udp(from, to, payload), mtu))
        };
        send(&[
            // Below what any link must carry.
            forged(a, s1, &right, 68),
            forged(a, s1, &right, 1279),
            forged(a, s1, &right, 0),
            forged(s1, b, &right, 68),
            // Of a packet that was never sent there: the key, the hop, the direction.
            forged(a, s1, &wrong, 1300),
            forged(a, b, &right, 1300),
            forged(a, s1, &answer, 1300),
            forged(s1, b, &wrong, 1300),
            forged(s1, a, &right, 1300),
            forged(s1, b, &answer, 1300),
        ])?;

        whole(rig)?;
        // What the kernel remembers of them makes no device narrow when the next table comes.
        rig.allow(&["b", "a"])?;
        whole(rig)?;

        // The control: whoever has seen the packet, as a router has, is believed, by either node.
        send(&[forged(a, s1, &right, 1480)])?;
        poll(SOON, "a to believe it", || Ok((packets(rig).ok() == Some(37 + 20)).then_some(())))?;
        send(&[forged(s1, b, &right, 1470)])?;
        poll(SOON, "s1 to pass it on", || Ok((packets(rig).ok() == Some(37 + 30)).then_some(())))
    });
}

/// The ICMP error of a router at `from` about the whole packet `quoted`, whose beginning it quotes.
fn fragmentation_needed(from: IpAddr, quoted: &[u8], mtu: u16) -> Vec<u8> {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(&quoted[..256]);
    let sum = crate::packet::internet_checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let source = [quoted[12], quoted[13], quoted[14], quoted[15]];
    ip(from, source.into(), 1, &message)
}

/// What leaves the tunnel by inner and outer ECN bits, each in the order Not-ECT, ECT(1), ECT(0), CE
/// (RFC 6040, figure 4); nothing where it is dropped.
const RFC_6040: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];

#[test]
fn ecn_follows_rfc_6040_and_dscp_stays_on_its_side() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        out_of_the_tunnel(rig)?;
        through_the_sap(rig)?;
        into_the_tunnel(rig)
    });
}

/// As from s1 to b: all sixteen combinations, each known by the inner TTL.
fn out_of_the_tunnel(rig: &Rig) -> Result<()> {
    let key = rig.send_key("a", "b")?;
    let (mut packets, mut wanted) = (Vec::new(), BTreeMap::new());
    for (inner_ecn, row) in (0..).zip(RFC_6040) {
        for (outer_ecn, result) in (0..).zip(row) {
            let inner_ttl = 100 + inner_ecn * 4 + outer_ecn;
            let inner = marked(&inner(rig)?, 0x48 | inner_ecn, inner_ttl);
            packets.push(outer(rig, ("s1", "b"), &gue(key, &inner), 0xb8 | outer_ecn, 60)?);
            if let Some(ecn) = result {
                wanted.insert(format!("{:02x}/{inner_ttl}", 0x48 | ecn), 1);
            }
        }
    }
    let seen = rig.counter("b", "ip-count", &rig.at("b", 0)?.ip().to_string(), &[])?;
    rig.drops_move("b", "ecn", 1, || send(rig, "s1", &packets))?;
    expect_marks(&seen, &wanted, 100..116)
}

/// As from a to s1: what s1 sends has the TOS that came, and the TTL less one.
fn through_the_sap(rig: &Rig) -> Result<()> {
    let key = rig.send_key("a", "b")?;
    let (mut packets, mut wanted) = (Vec::new(), BTreeMap::new());
    for tos in [0x00, 0x01, 0x02, 0x03, 0x2a, 0xb8, 0xb9, 0xff] {
        for ttl in [2_u8, 3, 33, 255] {
            packets.push(outer(rig, ("a", "s1"), &gue(key, &inner(rig)?), tos, ttl)?);
            wanted.insert(format!("{tos:02x}/{}", ttl - 1), 1);
        }
    }
    packets.push(outer(rig, ("a", "s1"), &gue(key, &inner(rig)?), 0, 1)?);
    let seen = rig.counter("b", "ip-count", &rig.underlay("b")?.ip().to_string(), &[])?;
    rig.drops_move("s1", "hop_limit", 1, || send(rig, "a", &packets))?;
    poll(SOON, "everything to pass the SaP", || {
        let seen = marks(&seen.read()?);
        Ok(wanted.iter().all(|(mark, _)| seen.contains_key(mark)).then_some(()))
    })
    .with_context(|| format!("{:?} of {wanted:?}", seen.read()))
}

/// Through a's own device: the outer header gets the ECN bits, and nothing of the DSCP.
fn into_the_tunnel(rig: &Rig) -> Result<()> {
    let seen = rig.counter("s1", "ip-count", &rig.underlay("s1")?.ip().to_string(), &[])?;
    let packets: Vec<_> =
        (0..4).map(|ecn| Ok(hex(&marked(&inner(rig)?, 0xb8 | ecn, 64)))).collect::<Result<_>>()?;
    send(rig, "a", &packets)?;
    poll(SOON, "all four to arrive at the SaP", || {
        let marks = marks(&seen.read()?);
        ensure!(marks.keys().all(|mark| !mark.starts_with('b')), "the DSCP leaked: {marks:?}");
        Ok((1..4).all(|ecn| marks.contains_key(&format!("{ecn:02x}/64"))).then_some(()))
    })
    .with_context(|| format!("{:?}", seen.read()))
}

fn inner(rig: &Rig) -> Result<Vec<u8>> {
    Ok(udp(rig.at("a", 40_000)?, rig.at("b", 9)?, b"marked"))
}

/// The IPv4 packet with this TOS and TTL.
fn marked(packet: &[u8], tos: u8, ttl: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    (packet[1], packet[8]) = (tos, ttl);
    seal4(&mut packet);
    packet
}

/// A whole packet from one node's data port to the other's, in digits.
fn outer(rig: &Rig, (from, to): (&str, &str), gue: &str, tos: u8, ttl: u8) -> Result<String> {
    let packet = udp(rig.underlay(from)?, rig.underlay(to)?, &bytes(gue));
    Ok(hex(&marked(&packet, tos, ttl)))
}

fn send(rig: &Rig, from: &str, packets: &[String]) -> Result<()> {
    let file = rig.file("packets");
    fs::write(&file, packets.join("\n"))?;
    let words = ["ip-send", &format!("@{}", file.to_string_lossy()), "1"];
    rig.fleet.netkit_json(from, &words).map(drop)
}

fn marks(counts: &Value) -> BTreeMap<String, u64> {
    let marks = counts["byTosTtl"].as_object().into_iter().flatten();
    marks.filter_map(|(mark, count)| Some((mark.clone(), count.as_u64()?))).collect()
}

/// Waits until, among packets of these TTLs, exactly the wanted marks were seen.
fn expect_marks(
    counter: &Counter,
    wanted: &BTreeMap<String, u64>,
    ttls: std::ops::Range<u8>,
) -> Result<()> {
    let is_ours = |mark: &str| {
        let ttl = mark.split('/').nth(1).and_then(|ttl| ttl.parse().ok());
        ttl.is_some_and(|ttl| ttls.contains(&ttl))
    };
    let mut last = BTreeMap::new();
    poll(SOON, "the marks", || {
        last = marks(&counter.read()?);
        last.retain(|mark, _| is_ours(mark));
        Ok((last == *wanted).then_some(()))
    })
    .with_context(|| format!("{last:?}, not {wanted:?}"))
}

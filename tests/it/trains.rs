//! Trains of datagrams with one forged among them (threats T19 to T26): that one is dropped and
//! counted, the others arrive, wherever in the train it stands, at the SaP and at `ovd`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::packet::{bytes, gue, hex, udp};
use crate::support::{Rig, SOON, number, play};
use crate::world::poll;

/// Datagrams of a train, and trains of each kind: the forged one stands at each place once.
const LENGTH: u8 = 20;

/// One way to forge a datagram, and what it is dropped for.
struct Forgery {
    reason: &'static str,
    forge: fn(&mut Vec<u8>),
}

/// The inner packet begins behind 8 bytes.
const FORGERIES: [Forgery; 6] = [
    Forgery { reason: "key", forge: |bytes| bytes[7] ^= 1 },
    Forgery { reason: "gue_flags", forge: |bytes| bytes[3] = 1 },
    Forgery { reason: "inner_version", forge: |bytes| bytes[8] = 0x65 },
    // It says to be all that follows.
    Forgery { reason: "inner_length", forge: |bytes| bytes[10] = 0x08 },
    Forgery { reason: "source_binding", forge: |bytes| bytes[8 + 15] = 250 },
    Forgery { reason: "no_rule", forge: |bytes| bytes[8 + 23] = 10 },
];

#[test]
fn one_forged_datagram_of_a_train_costs_that_one_at_a_sap() {
    play(&["s1"], &["a", "b"], |rig| each_place(rig, "a", "s1"));
}

#[test]
fn one_forged_datagram_of_a_train_costs_that_one_at_a_destination() {
    play(&["s1"], &["a", "b"], |rig| each_place(rig, "s1", "b"));
}

/// Sends trains from `from`, in the place of its daemon, to the daemon of `to`.
fn each_place(rig: &mut Rig, from: &str, to: &str) -> Result<()> {
    rig.allow(&["a", "b", "--port", "udp/9"])?;
    let honest = |rig: &Rig, train: u8, place: u8| -> Result<Vec<u8>> {
        let payload: Vec<u8> = [train, place].into_iter().chain([train ^ place; 90]).collect();
        let packet = udp(rig.at("a", 40_000)?, rig.at("b", 9)?, &payload);
        Ok(bytes(&gue(rig.send_key("a", "b")?, &packet)))
    };
    let mut trains = Vec::new();
    for train in 0..LENGTH {
        let of = (0..LENGTH).map(|place| honest(rig, train, place)).collect::<Result<Vec<_>>>()?;
        trains.push(of);
    }
    let (source, target) = (rig.underlay(from)?.to_string(), rig.underlay(to)?.to_string());
    let address = rig.at("b", 9)?.to_string();
    // Its port is free then; what others know of it stays.
    rig.fleet.node_mut(from)?.stop()?;

    let mut failures = Vec::new();
    for Forgery { reason, forge } in FORGERIES {
        let (mut text, mut expected) = (String::new(), BTreeMap::new());
        for (forged, train) in trains.iter().enumerate() {
            for (place, datagram) in train.iter().enumerate() {
                let mut datagram = datagram.clone();
                if place == forged {
                    forge(&mut datagram);
                } else {
                    // Headers of GUE, IPv4 and UDP.
                    *expected.entry(hex(&datagram[36..])).or_insert(0_u64) += 1;
                }
                text.push_str(&hex(&datagram));
                text.push('\n');
            }
            text.push('\n');
        }
        let file = rig.file("trains");
        fs::write(&file, text)?;
        let before = drops(rig, to)?;
        let capture = rig.counter("b", "udp-capture", &address, &[])?;

        let words = ["gue-train", &source, &target, &format!("@{}", file.to_string_lossy())];
        let report = rig.fleet.netkit_json(from, &words)?;
        ensure!(number(&report, "sends")? == u64::from(LENGTH), "not in trains: {report}");

        let wanted = [(reason.to_owned(), u64::from(LENGTH))].into();
        let mut last = (0, BTreeMap::new());
        let arrived = poll(SOON, reason, || {
            last = (capture.received()?, grown(&before, &drops(rig, to)?));
            Ok((last.0 >= u64::try_from(expected.len())? && last.1 == wanted).then_some(()))
        });
        if arrived.is_err() {
            failures.push(format!("{reason}: {} arrived, {:?}", last.0, last.1));
            continue;
        }
        let payloads = capture.read()?["byPayload"].clone();
        ensure!(payloads == serde_json::to_value(&expected)?, "{reason}: other bytes arrived");
    }
    ensure!(failures.is_empty(), "{failures:#?}");
    Ok(())
}

/// What a node dropped so far, by reason.
pub(crate) fn drops(rig: &Rig, node: &str) -> Result<BTreeMap<String, u64>> {
    let drops = rig.fleet.node(node)?.status()?["drops"].clone();
    let count = |(reason, count): (&String, &Value)| Some((reason.clone(), count.as_u64()?));
    Ok(drops.as_object().into_iter().flatten().filter_map(count).collect())
}

/// What was dropped since.
pub(crate) fn grown(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let since = |reason: &String| before.get(reason).copied().unwrap_or(0);
    let grown = after.iter().map(|(reason, count)| (reason.clone(), count - since(reason)));
    grown.filter(|(_, count)| *count > 0).collect()
}

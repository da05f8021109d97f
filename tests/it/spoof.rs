//! Forged packets: each kind is dropped for its own reason, counted exactly, and with the right
//! values every one arrives.

use anyhow::{Result, ensure};

use crate::packet::{gue, udp};
use crate::support::{Rig, play};

/// How many of each kind. Few enough for a second's budget of wrong keys.
const FORGED: u32 = 60;

/// The port of data packets.
const DATA_PORT: u16 = 6080;

#[test]
fn forged_packets_are_dropped_at_the_sap_and_counted() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        rig.allow(&["a", "b"])?;
        rig.allow(&["c", "b"])?;
        let sink = rig.udp_sink("b", 9)?;
        let key = rig.send_key("a", "b")?;
        let honest = [gue(key, &a_to_b(rig)?)];
        let wrong_key = [gue(key ^ 1, &a_to_b(rig)?)];
        let stranger = rig.world.machine("x")?;
        let (a, s1) = (rig.fleet.machine("a")?, rig.underlay("s1")?);
        let forged = u64::from(FORGED);

        rig.drops_move("s1", "key", forged, || rig.inject("a", "s1", &wrong_key, FORGED))?;
        rig.drops_move("s1", "outer_source", forged, || {
            rig.inject_from(&stranger, DATA_PORT, s1, &honest, FORGED)
        })?;
        rig.drops_move("s1", "outer_source", forged, || {
            rig.inject_from(a, DATA_PORT + 1, s1, &honest, FORGED)
        })?;
        // c may talk to b, but not in a's name, not even with a's key.
        rig.drops_move("s1", "source_binding", forged, || rig.inject("c", "s1", &honest, FORGED))?;
        ensure!(sink.received()? == 0, "a forged packet arrived");

        rig.inject("a", "s1", &honest, FORGED)?;
        sink.expect_received(forged)
    });
}

#[test]
fn packets_that_bypass_the_sap_are_dropped_at_the_destination_and_counted() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        rig.allow(&["a", "b"])?;
        let sink = rig.udp_sink("b", 9)?;
        let key = rig.send_key("a", "b")?;
        let honest = [gue(key, &a_to_b(rig)?)];
        let wrong_key = [gue(key ^ 1, &a_to_b(rig)?)];
        let stranger = rig.world.machine("x")?;
        let b = rig.underlay("b")?;
        let forged = u64::from(FORGED);

        for from in ["a", "c"] {
            rig.drops_move("b", "outer_source", forged, || rig.inject(from, "b", &honest, FORGED))?;
        }
        rig.drops_move("b", "outer_source", forged, || {
            rig.inject_from(&stranger, DATA_PORT, b, &honest, FORGED)
        })?;
        rig.drops_move("b", "key", forged, || rig.inject("s1", "b", &wrong_key, FORGED))?;
        ensure!(sink.received()? == 0, "a forged packet arrived");

        rig.inject("s1", "b", &honest, FORGED)?;
        sink.expect_received(forged)
    });
}

#[test]
fn a_stolen_key_is_worth_nothing_to_another_member() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        rig.allow(&["a", "b"])?;
        rig.allow(&["c", "b"])?;
        let sink = rig.udp_sink("b", 9)?;
        let c_to_b = udp(rig.at("c", 40_000)?, rig.at("b", 9)?, b"hello");
        let stolen = [gue(rig.send_key("a", "b")?, &c_to_b)];
        let own = [gue(rig.send_key("c", "b")?, &c_to_b)];
        let forged = u64::from(FORGED);

        rig.drops_move("s1", "key", forged, || rig.inject("c", "s1", &stolen, FORGED))?;
        ensure!(sink.received()? == 0, "a stolen key was good for something");

        rig.inject("c", "s1", &own, FORGED)?;
        sink.expect_received(forged)
    });
}

#[test]
fn an_entity_cannot_speak_with_an_address_that_is_not_its_own() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let sink = rig.udp_sink("b", 9)?;
        let target = rig.at("b", 9)?.to_string();
        rig.udp_send("a", "b", 9, 10)?;
        sink.expect_received(10)?;

        let device = rig.fleet.node("a")?.status()?["overlays"][0]["device"].clone();
        let device = device.as_str().unwrap_or("ov0").to_owned();
        let add = ["ip", "address", "add", "10.70.200.200/32", "dev", &device];
        rig.fleet.machine("a")?.run(&add)?.success("add an address")?;
        rig.drops_move("a", "inner_address", FORGED.into(), || {
            let words = ["udp-send", "10.70.200.200:0", &target, &FORGED.to_string(), "1000", "64"];
            rig.fleet.netkit_json("a", &words).map(drop)
        })?;
        rig.udp_send("a", "b", 9, 10)?;
        sink.expect_received(20)
    });
}

#[test]
fn bytes_that_are_no_packet_are_counted_by_what_is_wrong_with_them() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let sink = rig.udp_sink("b", 9)?;
        let honest = gue(rig.send_key("a", "b")?, &a_to_b(rig)?);
        let changed = |at: usize, digits: &str| {
            let mut hex = honest.clone();
            hex.replace_range(at..at + digits.len(), digits);
            [hex]
        };
        let forged = u64::from(FORGED);

        for (reason, datagram) in [
            ("gue_length", [honest[..10].to_owned()]),
            ("gue_variant", changed(0, "8")),
            ("gue_header_length", changed(1, "2")),
            ("gue_flags", changed(4, "8001")),
            ("gue_protocol", changed(2, "06")),
            // The inner packet begins behind 16 digits.
            ("inner_version", changed(16, "6")),
            ("inner_length", changed(20, "ffff")),
        ] {
            for (from, to) in [("a", "s1"), ("s1", "b")] {
                rig.drops_move(to, reason, forged, || rig.inject(from, to, &datagram, FORGED))?;
            }
        }
        ensure!(sink.received()? == 0, "a malformed packet arrived");

        rig.inject("a", "s1", std::slice::from_ref(&honest), FORGED)?;
        sink.expect_received(forged)
    });
}

/// What a may send to b.
fn a_to_b(rig: &Rig) -> Result<Vec<u8>> {
    Ok(udp(rig.at("a", 40_000)?, rig.at("b", 9)?, b"hello"))
}

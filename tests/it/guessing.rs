//! T3: somebody guesses at a key, with the SaP's own address on the outside, and the right one among
//! the guesses: nothing gets through, good traffic goes on, and the key is another soon after.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::keys::short_grace;
use crate::packet::{gue, udp};
use crate::support::{Rig, SOON, number, play};
use crate::world::poll;

/// Guesses a second: debug builds on two busy cores keep up with that many.
const RATE: u64 = 10_000;

#[test]
fn who_guesses_gets_nothing_through_and_good_traffic_goes_on() {
    guess(RATE, 4 * RATE, SOON);
}

/// As fast as the machine sends: mostly that receive buffers overflow, which good packets share.
#[test]
#[ignore = "long"]
fn who_guesses_at_full_rate_gets_nothing_through() {
    guess(0, 5_000_000, Duration::from_secs(3));
}

#[expect(clippy::print_stderr, reason = "a figure to be read")]
fn guess(rate: u64, count: u64, alarm_within: Duration) {
    play(&["s1"], &["a", "b"], |rig| {
        short_grace(rig)?;
        rig.allow(&["a", "b"])?;
        let (good, guessed) = (rig.udp_sink("b", 10)?, rig.udp_sink("b", 9)?);
        let key = rig.send_key("a", "b")?;
        let payload = gue(key, &udp(rig.at("a", 40_000)?, rig.at("b", 9)?, b"guessed"));
        rig.inject("s1", "b", std::slice::from_ref(&payload), 1)?;
        guessed.expect_received(1)?;

        // A datagram each 5 ms, longer than anybody guesses.
        let mut stream = rig.udp_stream("a", "b", 10, 1_500)?;
        good.expect_growth("received", 20)?;
        let stranger = rig.world.machine("x")?;
        let netkit = rig.netkit();
        let (from, to) = (rig.underlay("s1")?.to_string(), rig.underlay("b")?.to_string());
        // The right one comes when the pair has been over its budget for long, and in no first hundred of a second.
        let (total, right_at) = (count.to_string(), (count / 5 * 4 + 777).to_string());
        let rate = rate.to_string();
        let words = [netkit.as_str(), "gue-guess", &from, &to, &payload, &total, &rate, &right_at];
        let started = Instant::now();
        let mut guesses = stranger.spawn("guesses", &words)?;
        let rotation = poll(SOON, "an alarm to rotate the key", || {
            let list = rig.fleet.ovctl_json(&["key", "list"])?;
            let pair = pair(&list).cloned();
            Ok(pair.filter(|pair| pair["step"] != "steady" || pair["version"]["generation"] == 1))
        })?;
        let alarm = started.elapsed();
        poll(SOON, "the key to be another", || Ok((rig.send_key("a", "b")? != key).then_some(())))?;
        let rotated = started.elapsed();
        ensure!(rotation["from"] == "a" && rotation["to"] == "b", "{rotation}");

        ensure!(guesses.wait(Duration::from_secs(120))? == 0, "{}", guesses.log_text());
        let report = crate::fleet::parse(&guesses.log_text())?;
        ensure!(stream.wait(Duration::from_secs(30))? == 0, "{}", stream.log_text());
        let sent = number(&crate::fleet::parse(&stream.log_text())?, "sent")?;
        let enough = sent - sent / 100;
        let received = poll(SOON, "99% of the good traffic", || {
            let received = good.received()?;
            Ok((received >= enough).then_some(received))
        });
        let drops = rig.fleet.node("b")?.status()?["drops"].clone();
        let received = received.or_else(|_| good.received())?;
        eprintln!(
            "{report}; good traffic {received} of {sent}; alarm after {} ms, another key after {} ms; {drops}",
            alarm.as_millis(),
            rotated.as_millis()
        );
        ensure!(guessed.received()? == 1, "a guess got through");
        ensure!(drops["key"].as_u64() > Some(0), "no guess was judged: {drops}");
        ensure!(received >= enough, "{received} of {sent} good packets arrived");
        ensure!(alarm <= alarm_within, "the alarm took {alarm:?}");
        audited_once(rig)
    });
}

/// The row of the pair that was rotated alone.
fn pair(list: &Value) -> Option<&Value> {
    list["items"].as_array()?.iter().find(|ring| !ring["from"].is_null())
}

/// However long somebody guesses, a pair's key changes once in ten minutes.
fn audited_once(rig: &Rig) -> Result<()> {
    let audit = rig.fleet.ovctl_ok(&["audit", "list", "-o", "json"])?;
    let alarms = audit.matches("somebody guesses").count();
    ensure!(alarms == 1, "{alarms} alarms in {audit}");
    Ok(())
}

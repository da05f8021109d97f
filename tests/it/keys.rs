//! Rotations: of a pair, an entity, an overlay, everything. Each goes through its steps to the end,
//! and no packet of an allowed flow is lost to it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::packet::{gue, udp};
use crate::support::{Rig, number, play};
use crate::world::poll;

/// How long one rotation may take with a grace time of 1 s.
const ROTATED: Duration = Duration::from_secs(15);

/// Datagrams sent while keys rotate: 200 a second for 12 s.
const SENT: u64 = 2400;

#[test]
fn keys_rotate_without_losing_a_packet() {
    play(&["s1"], &["a", "b"], |rig| {
        short_grace(rig)?;
        rig.allow(&["a", "b"])?;
        let sink = rig.udp_sink("b", 9)?;
        let first_key = rig.send_key("a", "b")?;

        let mut sender = rig.udp_stream("a", "b", 9, SENT)?;
        sink.expect_growth("received", 10)?;

        for what in [&["a", "b"][..], &["b"], &["--overlay", "lab"], &["--all"]] {
            rotate(rig, what).with_context(|| format!("ovctl key rotate {}", what.join(" ")))?;
        }

        let code = sender.wait(Duration::from_secs(30))?;
        ensure!(code == 0, "{}", sender.log_text());
        let report = crate::fleet::parse(&sender.log_text())?;
        ensure!(number(&report, "sent")? == SENT, "{report}");
        sink.expect_received(SENT)?;

        an_old_key_is_refused(rig, first_key)
    });
}

/// Starts a rotation and waits until it is over: steady, with another key at the sender.
fn rotate(rig: &Rig, what: &[&str]) -> Result<()> {
    let before = rig.send_key("a", "b")?;
    rig.fleet.ovctl_ok(&[&["key", "rotate"], what].concat())?;

    poll(ROTATED, "the sender to stamp another key", || {
        Ok((rig.send_key("a", "b")? != before).then_some(()))
    })?;
    let mut last = Value::Null;
    poll(ROTATED, "every key to be steady", || {
        last = rig.fleet.ovctl_json(&["key", "list"])?;
        let keys = last["items"].as_array().context("a list has items")?;
        let is_steady = |key: &Value| key["step"] == "steady" && key["next"].is_null();
        Ok((!keys.is_empty() && keys.iter().all(is_steady)).then_some(()))
    })
    .with_context(|| format!("{last:#}"))
}

/// After its grace time the SaP drops it.
fn an_old_key_is_refused(rig: &Rig, old: u32) -> Result<()> {
    let sink = rig.udp_sink("b", 10)?;
    let inner = udp(rig.at("a", 40_000)?, rig.at("b", 10)?, b"hello");

    rig.drops_move("s1", "key", 20, || rig.inject("a", "s1", &[gue(old, &inner)], 20))?;
    ensure!(sink.received()? == 0, "an old key still opens the door");

    rig.inject("a", "s1", &[gue(rig.send_key("a", "b")?, &inner)], 20)?;
    sink.expect_received(20)
}

/// Restarts the server with a grace time of 1 s instead of 60 s.
pub(crate) fn short_grace(rig: &mut Rig) -> Result<()> {
    grace(rig, 1)
}

/// Restarts the server with this grace time.
pub(crate) fn grace(rig: &mut Rig, seconds: u64) -> Result<()> {
    rig.fleet.stop_server()?;
    start_with_grace(rig, seconds)?;
    rig.reconnected()?;
    rig.settle()
}

/// Starts the server with this grace time.
pub(crate) fn start_with_grace(rig: &mut Rig, seconds: u64) -> Result<()> {
    let file = rig.file("toml");
    std::fs::write(&file, format!("key_grace = \"{seconds}s\"\n"))?;
    rig.fleet.start_server_with(&["--config", &file.to_string_lossy()])
}

//! The server is lost and comes back from a backup: nodes keep what they have until the operator accepts, and
//! then follow.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::fleet::Kind;
use crate::packet::{gue, udp};
use crate::support::{READY, Rig, SOON, expect_refusal, play};
use crate::world::poll;

/// What a node says that keeps its table.
const KEEPS: &str = "run ovctl restore --accept";

#[test]
#[expect(clippy::print_stderr, reason = "the figure that was asked for")]
fn nodes_keep_newer_tables_until_a_restored_server_is_accepted_and_then_follow() {
    play(&["s1"], &["a", "b"], |rig| {
        let _echoes = [rig.udp_echo("b", 9)?, rig.udp_echo("b", 10)?, rig.udp_echo("b", 11)?];
        rig.allow(&["a", "b", "--port", "udp/9,udp/10,udp/11"])?;
        pings(rig, "a", &[(9, true), (10, true), (11, true)])?;
        let file = rig.file("backup").to_string_lossy().into_owned();
        rig.fleet.ovctl_ok(&["backup", &file])?;
        expect_refusal(&rig.fleet.ovctl(&["backup", &file])?, 5, &["is there already"])?;
        expect_refusal(&rig.fleet.ovctl(&["restore", &file])?, 5, &["a server runs on it"])?;

        // What the backup does not know.
        rig.deny(&["a", "b", "--port", "udp/10"])?;
        rig.deny(&["a", "b", "--port", "udp/11"])?;
        rig.join("c", Kind::Entity, &[])?;
        rig.allow(&["c", "b", "--port", "udp/9"])?;
        let newer = |rig: &Rig| -> Result<()> {
            pings(rig, "a", &[(9, true), (10, false), (11, false)])?;
            pings(rig, "c", &[(9, true)])
        };
        newer(rig).context("before the server was lost")?;

        let data = rig.fleet.server.state_dir().join("server");
        let lost = rig.fleet.server.state_dir().join("lost");
        rig.fleet.server_process().context("no server")?.kill()?;
        fs::rename(&data, &lost)?;
        newer(rig).context("the server is lost")?;
        let told = rig.fleet.ovctl_ok(&["restore", &file])?;
        ensure!(told.contains("nodes that joined are unknown"), "{told}");
        rig.fleet.start_server()?;

        everybody_keeps(rig)?;
        newer(rig).context("the restored server is not accepted")?;
        rig.fleet.node_mut("a")?.kill()?;
        rig.fleet.node_mut("a")?.start()?;
        everybody_keeps(rig)?;
        newer(rig).context("a started again, from its disk")?;
        let status = rig.fleet.ovctl_ok(&["status"])?;
        for words in
            ["not accepted: 3 nodes keep their tables, up to revision", "unknown credentials"]
        {
            ensure!(status.contains(words), "`{words}` is not in:\n{status}");
        }

        // The operator puts one thing right and forgets the other.
        let deny =
            ["policy", "deny", "--overlay", "lab", "a", "b", "--port", "udp/10", "--no-wait"];
        rig.fleet.ovctl_ok(&deny)?;
        let started = Instant::now();
        rig.fleet.ovctl_ok(&["restore", "--accept"])?;
        eprintln!("accepted and enforced everywhere in {} ms", started.elapsed().as_millis());
        rig.settle()?;
        let accepted = |rig: &Rig| -> Result<()> {
            pings(rig, "a", &[(9, true), (10, false), (11, true)])?;
            pings(rig, "c", &[(9, false)])
        };
        accepted(rig).context("after acceptance")?;
        for name in ["a", "b", "s1"] {
            let status = rig.fleet.node(name)?.status()?;
            ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{name}: {status}");
        }

        // The server that was lost comes back by mistake: nobody follows it, though all once did.
        rig.fleet.stop_server()?;
        fs::rename(&data, rig.fleet.server.state_dir().join("restored"))?;
        fs::rename(&lost, &data)?;
        rig.fleet.start_server()?;
        everybody_keeps(rig)?;
        accepted(rig).context("the server of before came back")
    });
}

#[test]
fn rekey_leaves_nothing_that_the_holder_of_a_backup_could_stamp() {
    play(&["s1"], &["a", "b"], |rig| {
        let sink = rig.udp_sink("b", 9)?;
        rig.allow(&["a", "b", "--port", "udp/9"])?;
        let file = rig.file("backup").to_string_lossy().into_owned();
        rig.fleet.ovctl_ok(&["backup", &file])?;
        let old = rig.send_key("a", "b")?;
        let inner = udp(rig.at("a", 40_000)?, rig.at("b", 9)?, b"by hand");
        rig.inject("a", "s1", &[gue(old, &inner)], 20)?;
        sink.expect_received(20)?;

        rig.fleet.stop_server()?;
        rig.fleet.ovctl_ok(&["restore", &file, "--replace", "--rekey", "--accept"])?;
        rig.fleet.start_server()?;

        poll(READY, "new keys", || Ok((rig.send_key("a", "b")? != old).then_some(())))?;
        rig.settle()?;
        rig.drops_move("s1", "key", 20, || rig.inject("a", "s1", &[gue(old, &inner)], 20))?;
        ensure!(sink.received()? == 20, "the key of the backup is good");
        rig.inject("a", "s1", &[gue(rig.send_key("a", "b")?, &inner)], 20)?;
        sink.expect_received(40)
    });
}

/// Waits until every node that the server knows says that it keeps its table.
fn everybody_keeps(rig: &Rig) -> Result<()> {
    poll(READY, "every node to say that it keeps its table", || {
        for name in ["a", "b", "s1"] {
            if !rig.fleet.node(name)?.status()?["problems"].to_string().contains(KEEPS) {
                return Ok(None);
            }
        }
        let status = rig.fleet.ovctl_ok(&["status"])?;
        Ok(status.contains("3 nodes keep their tables, up to").then_some(()))
    })
}

/// Whether datagrams come back from ports of `b`.
fn pings(rig: &Rig, from: &str, ports: &[(u16, bool)]) -> Result<()> {
    for &(port, passes) in ports {
        poll(SOON, &format!("{from} to b:{port} to be {passes}"), || {
            let received = rig.udp_ping(from, "b", port, 3)?;
            Ok((received == if passes { 3 } else { 0 }).then_some(()))
        })?;
    }
    Ok(())
}

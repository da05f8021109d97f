//! The server is away and everything goes on: also after restarts and crashes, from the tables on
//! disk; rules that expire do so on time.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::fleet::Kind;
use crate::support::{READY, Rig, play};
use crate::world::poll;

#[test]
fn nodes_restart_from_their_tables_while_the_server_is_away() {
    play(&["s1"], &["a", "b"], |rig| {
        let _servers = [rig.udp_echo("b", 9)?, rig.tcp_echo("b", 7)?];
        rig.allow(&["a", "b", "--port", "udp/9,tcp/7"])?;
        ensure!(rig.udp_ping("a", "b", 9, 5)? == 5);
        // A connection that lives through all of it.
        let stream = rig.counter("a", "tcp-stream", &rig.at("b", 7)?.to_string(), &["60"])?;

        rig.fleet.stop_server()?;
        ensure!(rig.udp_ping("a", "b", 9, 5)? == 5, "traffic flows without the server");

        for name in ["a", "s1"] {
            rig.fleet.node_mut(name)?.stop()?;
            rig.fleet.node_mut(name)?.start()?;
            flows(rig, &format!("{name} was stopped and started"))?;
        }
        for name in ["a", "b", "s1"] {
            rig.fleet.node_mut(name)?.kill()?;
            rig.fleet.node_mut(name)?.start()?;
            flows(rig, &format!("{name} was killed and started"))?;
            let status = rig.fleet.node(name)?.status()?;
            ensure!(status["table"]["fromDisk"] == true, "{name}: {}", status["table"]);
            ensure!(status["server"]["reachable"] == false, "{name}: {}", status["server"]);
        }
        ensure!(rig.udp_ping("a", "b", 10, 2)? == 0, "policy is in force, too");
        stream.expect_growth("received", 20).context("the connection did not live")?;

        // When the server is back, so are changes.
        rig.fleet.start_server()?;
        let _other = rig.udp_echo("b", 10)?;
        rig.reconnected()?;
        rig.allow(&["a", "b", "--port", "udp/10"])?;
        ensure!(rig.udp_ping("a", "b", 10, 5)? == 5, "a change arrives again");
        Ok(())
    });
}

#[test]
fn all_machines_start_again_without_the_server_also_from_a_broken_newest_table() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b", "--port", "udp/9"])?;
        // One table more, so that there is one before the newest on every disk.
        rig.allow(&["a", "b", "--port", "udp/11"])?;
        rig.fleet.stop_server()?;

        for name in ["a", "b", "s1"] {
            rig.fleet.node_mut(name)?.kill()?;
            // What a reboot takes: devices, with their addresses and routes.
            let clear = "ip link del ov0 2> /dev/null; ip link show ov0 2> /dev/null";
            let left = rig.fleet.machine(name)?.run(&["sh", "-c", clear])?;
            ensure!(left.code != 0, "{name} still has its device: {}", left.stdout);
        }
        // And a disk that lost what was written last.
        let newest = rig.fleet.machine("a")?.state_dir().join("ovd/table.json");
        let whole = std::fs::read(&newest)?;
        std::fs::write(&newest, &whole[..whole.len() / 2])?;
        for name in ["s1", "b", "a"] {
            rig.fleet.node_mut(name)?.start()?;
        }

        let _echoes = [rig.udp_echo("b", 9)?, rig.udp_echo("b", 10)?, rig.udp_echo("b", 11)?];
        flows(rig, "every machine started again")?;
        ensure!(rig.udp_ping("a", "b", 10, 2)? == 0, "policy is in force, too");
        let status = rig.fleet.node("a")?.status()?;
        let problems = status["problems"].to_string();
        ensure!(problems.contains("table.json"), "{problems}");
        ensure!(status["table"]["fromDisk"] == true, "{status}");
        // It is the one before: it does not know the newest rule, which the others do.
        ensure!(rig.udp_ping("a", "b", 11, 2)? == 0, "the broken table is in force");
        let problems = rig.fleet.node("b")?.status()?["problems"].to_string();
        ensure!(!problems.contains("table.json"), "b's table is whole: {problems}");

        rig.fleet.start_server()?;
        rig.reconnected()?;
        rig.settle()?;
        flows_on(rig, 11, "the server came back")
    });
}

#[test]
fn an_expired_rule_stops_with_the_server_away() {
    play(&["s1"], &["a", "b"], |rig| {
        let _echoes = [rig.udp_echo("b", 9)?, rig.udp_echo("b", 10)?];
        rig.allow(&["a", "b", "--port", "udp/10"])?;
        rig.allow(&["a", "b", "--port", "udp/9", "--expires", "10s"])?;
        ensure!(rig.udp_ping("a", "b", 9, 3)? == 3, "it holds for some seconds");
        rig.fleet.stop_server()?;

        poll(READY, "the rule to expire", || {
            Ok((rig.udp_ping("a", "b", 9, 1)? == 0).then_some(()))
        })?;
        ensure!(rig.udp_ping("a", "b", 9, 2)? == 0, "it stays expired");
        ensure!(rig.udp_ping("a", "b", 10, 5)? == 5, "the other rule goes on");

        // Also after a reboot.
        rig.fleet.node_mut("a")?.kill()?;
        rig.fleet.node_mut("a")?.start()?;
        flows_on(rig, 10, "a was killed and started")?;
        ensure!(rig.udp_ping("a", "b", 9, 2)? == 0, "it is not in force again");
        Ok(())
    });
}

#[test]
fn a_second_start_ignores_the_token_and_state_is_private() {
    play(&["s1"], &["a"], |rig| {
        let id = rig.fleet.node("a")?.status()?["id"].clone();
        rig.fleet.node_mut("a")?.stop()?;

        // The same arguments as the first time, as a pod would: the token is used up by now.
        let token = std::fs::read_to_string(rig.world.dir().join("a/token"))
            .context("the fleet keeps the token that it joined with")?;
        let machine = rig.fleet.machine("a")?.clone();
        rig.fleet.add(machine, Kind::Entity, &token, &[])?;
        ensure!(rig.fleet.node("a")?.status()?["id"] == id, "it is another entity now");

        for (name, program) in [("a", "ovd"), ("s1", "ovsap")] {
            expect_private(&rig.fleet.machine(name)?.state_dir().join(program))?;
        }
        expect_private(&rig.fleet.server.state_dir().join("server"))
    });
}

/// Everything in a state directory is for its owner alone.
fn expect_private(dir: &Path) -> Result<()> {
    let mode = |path: &Path| -> Result<u32> {
        Ok(std::fs::metadata(path)
            .with_context(|| path.display().to_string())?
            .permissions()
            .mode()
            & 0o777)
    };
    ensure!(mode(dir)? == 0o700, "{} has mode {:o}", dir.display(), mode(dir)?);
    let mut files = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() {
            files += 1;
            ensure!(mode(&path)? == 0o600, "{} has mode {:o}", path.display(), mode(&path)?);
        }
    }
    ensure!(files > 0, "{} is empty", dir.display());
    Ok(())
}

fn flows(rig: &Rig, when: &str) -> Result<()> {
    flows_on(rig, 9, when)
}

/// Within a second of the daemon's being ready.
fn flows_on(rig: &Rig, port: u16, when: &str) -> Result<()> {
    poll(Duration::from_secs(3), &format!("traffic to flow after {when}"), || {
        Ok((rig.udp_ping("a", "b", port, 1)? == 1).then_some(()))
    })
}

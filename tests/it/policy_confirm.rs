//! Changes that cut off whoever makes them: refused without `--accept-risk`, and undone by themselves
//! with `--confirm-within`, when nobody is left who could confirm.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::bad_input::token_file;
use crate::binaries;
use crate::fleet::Kind;
use crate::support::{LAB, READY, Rig, SOON, expect_refusal, play};
use crate::world::{Output, Process, poll};

/// An `ovctl` command for the machine of `a`, which reaches the server over the overlay.
fn over_the_overlay(rig: &Rig, token: &Path, words: &[&str]) -> Result<Vec<String>> {
    let url = format!("https://{}", rig.at("server", 7443)?);
    let (ovctl, token) = (binaries().ovctl, token.to_string_lossy());
    let target = [&*ovctl.to_string_lossy(), "--server", &url, "--token-file", &token];
    Ok([&target[..], words].concat().into_iter().map(str::to_owned).collect())
}

fn from_afar(rig: &Rig, token: &Path, words: &[&str]) -> Result<Output> {
    rig.fleet.machine("a")?.run(&over_the_overlay(rig, token, words)?)
}

fn begin_from_afar(rig: &Rig, token: &Path, words: &[&str]) -> Result<Process> {
    rig.fleet.machine("a")?.spawn("ovctl-cut", &over_the_overlay(rig, token, words)?)
}

fn export(rig: &Rig) -> Result<String> {
    rig.fleet.ovctl_ok(&["policy", "export", "--overlay", LAB])
}

#[test]
fn who_cuts_the_own_way_must_say_so_and_gets_it_back() {
    play(&["s1"], &["a"], |rig| {
        // The server's machine is a member, too.
        let token = rig.fleet.token(&["--overlay", LAB, "--name", "hub"])?;
        let machine = rig.fleet.server.clone();
        rig.fleet.add(machine, Kind::Entity, &token, &[])?;
        let rule = rig.allow(&["a", "hub", "--port", "tcp/7443"])?;
        let admin = token_file(rig, &rig.fleet.token(&["--role", "admin"])?)?;
        let ask = |rig: &Rig, words: &[&str]| from_afar(rig, &admin, words);
        poll(SOON, "the server to answer over the overlay", || {
            Ok((ask(rig, &["policy", "list"])?.code == 0).then_some(()))
        })?;
        let before = export(rig)?;

        let empty = rig.file("yaml");
        fs::write(&empty, "overlay: lab\nrules: []\n")?;
        let apply = ["policy", "apply", "-f", empty.to_str().unwrap_or_default()];
        for words in [
            &apply[..],
            &["policy", "revoke", &rule],
            &["policy", "deny", "any", "hub"],
            &["entity", "quarantine", "hub"],
        ] {
            expect_refusal(&ask(rig, words)?, 5, &["cut you off", "--accept-risk"])?;
            ensure!(export(rig)? == before, "{words:?} changed something");
        }
        // The control: where no overlay is crossed, nobody is cut off.
        rig.fleet.ovctl_ok(&[&apply[..], &["--dry-run"]].concat())?;

        // The answer itself may be what is cut, so nobody waits for it.
        let risk = ["--accept-risk", "--confirm-within", "5s", "--no-wait"];
        let _cut = begin_from_afar(rig, &admin, &[&apply[..], &risk].concat())?;
        poll(SOON, "the cut", || Ok((rig.can("a", "hub", "tcp/7443")? == 4).then_some(())))?;
        let status = rig.fleet.ovctl_ok(&["status"])?;
        ensure!(status.contains("confirm"), "status does not show what waits: {status}");
        expect_refusal(
            &rig.fleet.ovctl(&["policy", "allow", "a", "hub", "--overlay", LAB])?,
            5,
            &["waits to be confirmed", "policy confirm"],
        )?;

        poll(SOON, "the change to undo itself", || Ok((export(rig)? == before).then_some(())))?;
        poll(SOON, "the server to answer over the overlay again", || {
            Ok((ask(rig, &["policy", "list"])?.code == 0).then_some(()))
        })
    });
}

#[test]
fn a_confirmed_change_stays_and_a_deadline_outlives_the_server() {
    play(&["s1"], &["a", "b"], |rig| {
        let _echo = rig.udp_echo("b", 7)?;
        let file = rig.file("yaml");
        let path = file.to_str().unwrap_or_default().to_owned();
        fs::write(
            &file,
            "overlay: lab\nrules:\n  - {action: allow, from: a, to: b, ports: udp/7}\n",
        )?;
        let apply = |limit| ["policy", "apply", "-f", &path, "--confirm-within", limit].to_vec();

        rig.fleet.ovctl_ok(&apply("60s"))?;
        rig.settle()?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 3, "live before it is confirmed");
        rig.fleet.ovctl_ok(&["policy", "confirm"])?;
        expect_refusal(&rig.fleet.ovctl(&["policy", "confirm"])?, 3, &["no change waits"])?;

        fs::write(&file, "overlay: lab\nrules: []\n")?;
        rig.fleet.ovctl_ok(&apply("8s"))?;
        rig.fleet.stop_server()?;
        // Nobody is there who could undo it.
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 0, "the rule is gone");
        rig.fleet.start_server()?;
        poll(READY, "the change to undo itself", || {
            Ok((export(rig)?.contains("udp/7")).then_some(()))
        })?;
        poll(SOON, "traffic to pass again", || {
            Ok((rig.udp_ping("a", "b", 7, 1)? == 1).then_some(()))
        })
    });
}

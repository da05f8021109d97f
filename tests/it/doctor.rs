//! `ovd doctor` on machines that are well, and on machines on which one thing is wrong.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::binaries;
use crate::fleet::parse;
use crate::support::{Rig, SOON, play};
use crate::world::poll;

/// What it finds on `a`, and its exit code.
fn examine(rig: &Rig) -> Result<(Value, i32)> {
    let output = rig.fleet.node("a")?.command(&["doctor", "-o", "json"])?;
    Ok((parse(&output.stdout)?, output.code))
}

/// The findings about `subject` that are as bad as `level`.
fn find<'a>(found: &'a Value, level: &str, subject: &str) -> Option<&'a Value> {
    let findings = found["findings"].as_array()?;
    findings.iter().find(|finding| finding["level"] == level && finding["subject"] == subject)
}

/// Waits until `a` has a finding of this level about `subject` with all `words` in it; the command then exits
/// with 1 when it is a problem.
fn expect(rig: &Rig, level: &str, subject: &str, words: &[&str]) -> Result<()> {
    let mut last = Value::Null;
    let code = poll(SOON, &format!("{level}: {subject}"), || {
        let (found, code) = examine(rig)?;
        last = found;
        let text = find(&last, level, subject).map(Value::to_string).unwrap_or_default();
        Ok((!text.is_empty() && words.iter().all(|word| text.contains(word))).then_some(code))
    })
    .with_context(|| format!("{words:?} in {last:#}"))?;
    ensure!(level != "problem" || code == 1, "exit code {code} with a problem");
    Ok(())
}

#[test]
fn doctor_finds_what_is_wrong_and_nothing_where_all_is_well() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let shell = |script: &str| {
            rig.fleet.machine("a")?.run(&["sh", "-e", "-c", script])?.success(script).map(drop)
        };
        let server = format!("server https://{}:7443", rig.fleet.server.ip4);

        expect(rig, "ok", "sap s1", &["answers"])?;
        let mut found = Value::Null;
        poll(SOON, "nothing to be wrong", || {
            let (now, code) = examine(rig)?;
            found = now;
            Ok((code == 0).then_some(()))
        })
        .with_context(|| format!("{found:#}"))?;
        for subject in
            ["membership", "ovd", "rights", "state", "clock", &server, "mtu", "addresses"]
        {
            ensure!(find(&found, "ok", subject).is_some(), "{subject}: {found:#}");
        }
        // These machines have no guard, and the name server of whoever tests is out of their reach.
        ensure!(find(&found, "warning", "guard").is_some(), "{found:#}");

        shell(
            "nft -f - <<END\n\
             add table inet other\n\
             add chain inet other closed { type filter hook input priority 0; }\n\
             add rule inet other closed udp dport 6080 drop\nEND",
        )?;
        expect(rig, "problem", "sap s1", &["udp/6080", "inet other closed"])?;
        shell("nft delete table inet other")?;
        expect(rig, "ok", "sap s1", &[])?;

        shell("ip route add 10.70.3.0/24 dev eth0")?;
        expect(rig, "problem", "overlay lab", &["10.70.3.0/24 on eth0"])?;
        shell("ip route delete 10.70.3.0/24 dev eth0")?;
        expect(rig, "ok", "addresses", &[])?;

        let s1 = rig.fleet.machine("s1")?.ip4;
        shell(&format!(
            "ip address add 100.99.0.5/32 dev eth0; ip route add {s1} dev eth0 src 100.99.0.5"
        ))?;
        expect(rig, "warning", "carrier's NAT", &["100.99.0.5"])?;
        shell(&format!("ip route delete {s1} dev eth0; ip address delete 100.99.0.5/32 dev eth0"))?;

        shell("ip link set eth0 mtu 1400")?;
        expect(rig, "ok", "mtu", &["takes 1400 bytes", "packets of 1364 fit"])?;
        shell("ip link set eth0 mtu 1500")?;

        rig.fleet.stop_server()?;
        expect(rig, "problem", &server, &["joins and changes wait"])?;
        rig.fleet.start_server()?;
        expect(rig, "ok", &server, &[])?;

        // Without the daemon it says so, and what can be known still is.
        rig.fleet.node_mut("a")?.stop()?;
        expect(rig, "problem", "ovd", &["ovd run"])?;
        let (found, _) = examine(rig)?;
        for subject in ["membership", "clock", "mtu", &server] {
            ensure!(find(&found, "ok", subject).is_some(), "{subject}: {found:#}");
        }
        let state = rig.fleet.machine("a")?.state_dir().join("ovd");
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        expect(rig, "problem", "state", &["0755", "chmod 700"])?;

        // Before a machine joins, nothing is wrong with it.
        let fresh = rig.world.machine("fresh")?;
        let ovd = binaries().ovd.to_string_lossy().into_owned();
        let output = fresh.run(&[ovd.as_str(), "doctor"])?;
        ensure!(output.code == 0, "{output:?}");
        ensure!(output.stdout.contains("has not joined"), "{output:?}");
        Ok(())
    });
}

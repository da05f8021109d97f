//! Policies as files, through `ovctl`, on real packets: what a file says passes, what it does not say
//! stops, tests guard it, and a rollback brings it back.

use std::fs;

use anyhow::{Result, ensure};

use crate::support::{expect_refusal, play};

#[test]
fn a_file_is_the_policy_until_it_is_rolled_back() {
    play(&["s1"], &["a", "b"], |rig| {
        let _echo = rig.udp_echo("b", 7)?;
        let file = rig.world.dir().join("policy.yaml");
        let path = file.to_str().unwrap_or_default();
        let revision = |rig: &crate::support::Rig| -> Result<String> {
            Ok(rig.fleet.ovctl_json(&["status"])?["revision"].to_string())
        };
        let empty = revision(rig)?;
        fs::write(
            &file,
            "overlay: lab\ngroups: {servers: b}\nrules:\n  \
             - {name: echo, action: allow, from: a, to: \"group:servers\", ports: udp/7}\n\
             tests:\n  - {from: a, to: b, protocol: udp, port: 7, allow: true}\n",
        )?;

        ensure!(rig.fleet.ovctl(&["policy", "diff", "-f", path])?.code == 8);
        rig.fleet.ovctl_ok(&["policy", "apply", "-f", path])?;
        rig.settle()?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 3);
        ensure!(rig.fleet.ovctl(&["policy", "diff", "-f", path])?.code == 0);
        let again = rig.fleet.ovctl_ok(&["policy", "apply", "-f", path])?;
        ensure!(again.contains("nothing to change"), "{again}");
        let exported = rig.fleet.ovctl_ok(&["policy", "export", "--overlay", "lab"])?;
        ensure!(exported.contains("name: echo"), "{exported}");
        let matrix = rig.fleet.ovctl_ok(&["policy", "matrix", "--overlay", "lab"])?;
        ensure!(matrix.contains("udp/7"), "{matrix}");
        rig.fleet.ovctl_ok(&["policy", "test", "--overlay", "lab"])?;
        let refused = rig.fleet.ovctl(&["policy", "revoke", "a", "group:servers"])?;
        expect_refusal(&refused, 8, &["policy.yaml:6"])?;

        fs::write(&file, "overlay: lab\nrules:\n  - {action: allow, from: a, to: bb}\n")?;
        let refused = rig.fleet.ovctl(&["policy", "apply", "-f", path])?;
        expect_refusal(&refused, 2, &["policy.yaml:3", "did you mean b"])?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 3);

        rig.fleet.ovctl_ok(&["policy", "rollback", &empty, "--overlay", "lab"])?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 0);
        let history = rig.fleet.ovctl_ok(&["policy", "history", "--overlay", "lab"])?;
        ensure!(history.contains("policy apply lab") && history.contains("rollback"), "{history}");
        Ok(())
    });
}

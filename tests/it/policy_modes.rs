//! What changes an overlay's policy besides rules, on real packets: NetworkPolicies that are imported,
//! quarantine, and audit mode.

use std::fs;

use anyhow::{Result, ensure};

use crate::fleet::Kind;
use crate::support::{LAB, Rig, number, play};

pub(crate) const KUBE: &str = "kube";

/// Isolates who is `role=db`, and lets `role=web` reach its port 80.
const MANIFEST: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {name: db, namespace: default}\nspec:\n  \
    podSelector: {matchLabels: {role: db}}\n  ingress:\n    \
    - from: [{podSelector: {matchLabels: {role: web}}}]\n      \
    ports: [{protocol: TCP, port: 80}]\n";

#[test]
fn an_imported_network_policy_isolates_whom_it_selects_and_leaves_the_others_open() {
    play(&[], &[], |rig| {
        let create = ["overlay", "create", KUBE, "--semantics", "kubernetes"];
        rig.fleet.ovctl_ok(&[&create[..], &["--cidr", "10.82.0.0/24"]].concat())?;
        rig.fleet.join("s1", Kind::Sap, &[KUBE], &[])?;
        for (entity, role) in [("web", "role=web"), ("db", "role=db"), ("other", "role=other")] {
            rig.fleet.join(entity, Kind::Entity, &[KUBE], &["--label", role])?;
        }
        rig.settle()?;
        let mut servers = Vec::new();
        for entity in ["db", "other"] {
            let at = format!("{}:80", rig.fleet.address(entity, KUBE)?);
            servers.push(rig.run(entity, &["http-echo", &at, entity])?);
        }
        ensure!(http(rig, "other", "db")? == 1, "nothing is isolated yet");

        let file = rig.file("yaml");
        fs::write(&file, MANIFEST)?;
        let path = file.to_string_lossy().into_owned();
        let import = ["policy", "import", "kubernetes", "-f", &path, "--overlay", KUBE];
        let report = rig.fleet.ovctl_ok(&import)?;
        ensure!(report.contains("default/db"), "{report}");
        rig.settle()?;
        ensure!(http(rig, "web", "db")? == 1, "the policy lets web in");
        ensure!(http(rig, "other", "db")? == 0, "db is isolated");
        ensure!(http(rig, "web", "other")? == 1, "nobody isolates other");
        ensure!(http(rig, "db", "other")? == 1, "db is isolated in one direction alone");

        rig.fleet.ovctl_ok(&["policy", "revoke", "np-1"])?;
        rig.settle()?;
        ensure!(http(rig, "other", "db")? == 1, "open again");
        Ok(())
    });
}

#[test]
fn quarantine_stops_everything_and_audit_mode_passes_what_no_rule_allows() {
    play(&["s1"], &["a", "b"], |rig| {
        let _echo = rig.udp_echo("b", 7)?;
        rig.allow(&["a", "b", "--port", "udp/7"])?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 3);

        changed(rig, &["entity", "quarantine", "b"])?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 0, "in quarantine");
        ensure!(rig.can("a", "b", "udp/7")? == 4);
        changed(rig, &["overlay", "audit", LAB, "on"])?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 0, "audit mode does not lift quarantine");
        changed(rig, &["overlay", "audit", LAB, "off"])?;
        changed(rig, &["entity", "release", "b"])?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 3, "released");

        rig.revoke(&["a", "b"])?;
        rig.settle()?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 0, "no rule is left");
        changed(rig, &["overlay", "audit", LAB, "on"])?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 3, "audit mode");
        changed(rig, &["overlay", "audit", LAB, "off"])?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 0, "enforced again");
        Ok(())
    });
}

fn changed(rig: &Rig, words: &[&str]) -> Result<()> {
    rig.fleet.ovctl_ok(words)?;
    rig.settle()
}

/// How many of one request to the other's port 80 are answered.
pub(crate) fn http(rig: &Rig, from: &str, to: &str) -> Result<u64> {
    let target = format!("{}:80", rig.fleet.address(to, KUBE)?);
    number(&rig.fleet.netkit_json(from, &["http-get", &target, "1", "3000"])?, "ok")
}

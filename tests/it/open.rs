//! Overlays of `kubernetes` semantics: what nothing speaks of passes, and deny rules still refuse.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::fleet::Kind;
use crate::policy_modes::{KUBE, http};
use crate::support::{Rig, play};

#[test]
fn unspoken_flows_pass_where_kubernetes_says_so_and_denials_still_refuse() {
    play(&[], &[], |rig| {
        let create = ["overlay", "create", KUBE, "--semantics", "kubernetes"];
        rig.fleet.ovctl_ok(&[&create[..], &["--cidr", "10.81.0.0/24"]].concat())?;
        rig.fleet.join("s1", Kind::Sap, &[KUBE], &[])?;
        for entity in ["a", "b"] {
            rig.fleet.join(entity, Kind::Entity, &[KUBE], &[])?;
        }
        rig.settle()?;
        let at = |entity: &str| rig.fleet.address(entity, KUBE);
        let mut servers = Vec::new();
        for entity in ["a", "b"] {
            servers.push(rig.run(entity, &["http-echo", &format!("{}:80", at(entity)?), entity])?);
        }

        ensure!(http(rig, "a", "b")? == 1 && http(rig, "b", "a")? == 1, "no rule, and open");
        ensure!(rig.can("a", "b", "tcp/80")? == 0, "can says so, too");

        let deny = ["policy", "deny", "a", "b", "--overlay", KUBE, "--port", "tcp/80"];
        rule(rig, &deny)?;
        ensure!(http(rig, "a", "b")? == 0, "denied");
        ensure!(http(rig, "b", "a")? == 1, "the other way is open");
        ensure!(rig.can("a", "b", "tcp/80")? == 4);

        let allow = ["policy", "revoke", "a", "b", "--overlay", KUBE];
        rig.fleet.ovctl_ok(&allow)?;
        rig.settle()?;
        ensure!(http(rig, "a", "b")? == 1, "open again");
        Ok(())
    });
}

fn rule(rig: &Rig, words: &[&str]) -> Result<Value> {
    let change = rig.fleet.ovctl_json(words)?;
    ensure!(change["enforcement"]["enforced"] == true, "not enforced: {change:#}");
    rig.settle()?;
    Ok(change)
}

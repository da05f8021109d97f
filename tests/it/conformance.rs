//! The conformance cases with real packets: one fleet with the pods of all cases, and the policies of one
//! case after the other. The same files are answered offline in `policy::tests::conformance`.
//!
//! Pods are where the server puts them, so a case's addresses are read as those of its pods. Addresses outside
//! are those of one machine that is in no overlay; pods that ask it run a guard, which enforces egress there.
//! What the outside asks of pods is left to the offline test: that way a guard knows ports, not policies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::fleet::Kind;
use crate::probes::{Addresses, Flow, expect, serve};
use crate::support::{Rig, Running, play};

type Labels = BTreeMap<String, String>;

#[derive(Deserialize)]
struct Case {
    name: String,
    namespaces: BTreeMap<String, Labels>,
    pods: Vec<Pod>,
    policies: Vec<Value>,
    expect: Vec<Row>,
}

#[derive(Deserialize)]
struct Pod {
    ns: String,
    name: String,
    labels: Labels,
    ip: String,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Deserialize)]
struct Port {
    name: Option<String>,
    port: u16,
    protocol: String,
}

#[derive(Deserialize)]
struct Row {
    from: String,
    to: String,
    port: u16,
    protocol: String,
    allowed: bool,
}

impl Pod {
    /// The name of its machine.
    fn machine(&self) -> String {
        format!("{}-{}", self.ns, self.name)
    }
}

impl Case {
    /// The overlay for its addresses.
    fn overlay(&self) -> &'static str {
        if self.pods.iter().any(|pod| pod.ip.contains(':')) { "six" } else { "four" }
    }

    /// The rows of what pods start; an end that is an address outside stays as it is written.
    fn flows(&self) -> Vec<Flow> {
        let by_pods = |row: &&Row| outside(&row.from).is_none();
        let flow = |row: &Row| Flow {
            from: row.from.replace('/', "-"),
            to: row.to.replace('/', "-"),
            overlay: self.overlay().to_owned(),
            service: format!("{}/{}", row.protocol.to_lowercase(), row.port),
            passes: row.allowed,
        };
        self.expect.iter().filter(by_pods).map(flow).collect()
    }
}

/// The address of an end outside.
fn outside(end: &str) -> Option<&str> {
    end.strip_prefix("ip:")
}

/// All cases, by name.
fn cases() -> Result<Vec<Case>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/netpol");
    let mut cases = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let case: Case = serde_json::from_str(&fs::read_to_string(&path)?)
            .with_context(|| path.display().to_string())?;
        if !case.flows().is_empty() {
            cases.push(case);
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

/// Cases that need many pods of their own, and whose constructs others have, too.
const LARGE: [&str; 5] = [
    "docs-multi-port-egress",
    "docs-multiple-namespaces-by-label",
    "docs-selectors-and",
    "docs-selectors-or",
    "docs-test-network-policy",
];

#[test]
fn the_conformance_cases_hold_on_real_packets() {
    let mut cases = cases().unwrap();
    cases.retain(|case| !LARGE.contains(&case.name.as_str()));
    let own = cases.iter().filter(|case| case.name.starts_with("own-")).count();
    assert!(own >= 19 && cases.len() - own >= 20, "only {} cases, {own} own", cases.len());
    hold(&cases);
}

#[test]
#[ignore = "long"]
fn all_conformance_cases_hold_on_real_packets() {
    let cases = cases().unwrap();
    assert!(LARGE.iter().all(|name| cases.iter().any(|case| case.name == *name)));
    hold(&cases);
}

fn hold(cases: &[Case]) {
    play(&[], &[], |rig| {
        let mut town = Town::build(rig, cases)?;
        let all: Vec<Flow> = cases.iter().flat_map(Case::flows).collect();
        let (to_outside, inside) =
            all.iter().cloned().partition::<Vec<_>, _>(|flow| outside(&flow.to).is_some());
        let _servers = serve(rig, &inside)?;
        let _outside = town.serve_outside(rig, &to_outside)?;
        // The control of everything that is refused later: nothing but policy stands in its way.
        let open = all.into_iter().map(|flow| Flow { passes: true, ..flow });
        let open: BTreeSet<Flow> = open.collect();
        expect(rig, &town.addresses, &open.into_iter().collect::<Vec<_>>())?;
        for case in cases {
            town.play(rig, case).with_context(|| case.name.clone())?;
        }
        Ok(())
    });
}

/// A fleet with a machine for each pod of any case.
struct Town {
    addresses: Addresses,
    /// What each entity and namespace has at the moment.
    labels: BTreeMap<String, Labels>,
    /// Whose policies are in force.
    policies: BTreeMap<&'static str, String>,
}

impl Town {
    fn build(rig: &mut Rig, cases: &[Case]) -> Result<Self> {
        for (overlay, cidr) in [("four", "10.77.0.0/16"), ("six", "fd00:77::/64")] {
            let create = ["overlay", "create", overlay, "--semantics", "kubernetes"];
            rig.fleet.ovctl_ok(&[&create[..], &["--cidr", cidr]].concat())?;
        }
        rig.launch("s1", Kind::Sap, &["four", "six"], &[])?;
        let mut options: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut overlays: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for case in cases {
            for pod in &case.pods {
                overlays.entry(pod.machine()).or_default().insert(case.overlay());
                let options = options.entry(pod.machine()).or_default();
                options.insert(format!("--name={}", pod.name));
                options.insert(format!("--namespace={}", pod.ns));
                for port in pod.ports.iter() {
                    let Some(name) = &port.name else { continue };
                    let service = format!("{}/{}", port.protocol.to_lowercase(), port.port);
                    options.insert(format!("--port={name}={service}"));
                }
            }
        }
        let guarded: BTreeSet<String> = cases
            .iter()
            .flat_map(Case::flows)
            .filter(|flow| outside(&flow.to).is_some())
            .map(|flow| flow.from)
            .collect();
        for (machine, options) in &options {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let overlays: Vec<&str> = overlays[machine].iter().copied().collect();
            if guarded.contains(machine) {
                // Egress is by rules because the overlays are of Kubernetes semantics.
                let guard = ["--guard", "ports"];
                rig.fleet.launch_with(machine, Kind::Entity, &overlays, &options, &guard)?;
            } else {
                rig.launch(machine, Kind::Entity, &overlays, &options)?;
            }
        }
        for machine in &guarded {
            rig.fleet.node_mut(machine)?.wait_ready()?;
        }
        rig.wait_ready()?;
        let mut addresses = Addresses::new();
        for (machine, overlays) in overlays {
            for overlay in overlays {
                let address = rig.fleet.address(&machine, overlay)?.to_string();
                addresses.insert((machine.clone(), overlay.to_owned()), address);
            }
        }
        Ok(Self { addresses, labels: BTreeMap::new(), policies: BTreeMap::new() })
    }

    /// Makes a machine with the addresses that pods ask outside, and ways there.
    fn serve_outside(&mut self, rig: &Rig, flows: &[Flow]) -> Result<Running> {
        let machine = rig.world.machine("outside")?;
        let mut services: BTreeSet<&str> = BTreeSet::new();
        let mut ways: BTreeSet<(&str, &str)> = BTreeSet::new();
        for flow in flows {
            let address = outside(&flow.to).context("a flow to the outside")?;
            services.insert(&flow.service);
            ways.insert((&flow.from, address));
            self.addresses.insert((flow.to.clone(), flow.overlay.clone()), address.to_owned());
        }
        // Translated, so that answers come from the address that was asked.
        let mut rules = "add table inet outside\nadd chain inet outside prerouting \
                         { type nat hook prerouting priority dstnat; }\n"
            .to_owned();
        let addresses: BTreeSet<&str> = ways.iter().map(|(_, address)| *address).collect();
        for address in addresses {
            let (family, own) = match address.contains(':') {
                true => ("ip6", machine.ip6.to_string()),
                false => ("ip", machine.ip4.to_string()),
            };
            rules.push_str(&format!(
                "add rule inet outside prerouting {family} daddr {address} dnat {family} to {own}\n"
            ));
        }
        machine.run(&["sh", "-c", "printf '%s' \"$0\" | nft -f -", &rules])?.success(&rules)?;
        for (from, address) in ways {
            let is_ipv6 = address.contains(':');
            let via = if is_ipv6 { machine.ip6.to_string() } else { machine.ip4.to_string() };
            let add = ["ip", "route", "add", address, "via", &via];
            rig.fleet.machine(from)?.run(&add)?.success(address)?;
        }
        rig.run_on(
            &machine,
            &[&["probe-serve"][..], &services.into_iter().collect::<Vec<_>>()].concat(),
        )
    }

    /// Puts a case in force and looks at its flows.
    fn play(&mut self, rig: &Rig, case: &Case) -> Result<()> {
        for (name, labels) in &case.namespaces {
            let mut labels = labels.clone();
            labels.remove("kubernetes.io/metadata.name");
            self.label(rig, "namespace", name, labels)?;
        }
        for pod in &case.pods {
            self.label(rig, "entity", &format!("{}/{}", pod.ns, pod.name), pod.labels.clone())?;
        }
        let mut policies = serde_json::to_string(&case.policies)?;
        for pod in &case.pods {
            let place = (pod.machine(), case.overlay().to_owned());
            policies = policies
                .replace(&format!("\"{}/", pod.ip), &format!("\"{}/", self.addresses[&place]));
        }
        // Isolation in one overlay counts for the outside of all that a pod is in.
        let other = if case.overlay() == "four" { "six" } else { "four" };
        if self.policies.contains_key(other) {
            self.apply(rig, other, "[]")?;
        }
        self.apply(rig, case.overlay(), &policies)?;
        rig.settle()?;
        expect(rig, &self.addresses, &case.flows())
    }

    /// Gives an entity or a namespace these labels and no others.
    fn label(&mut self, rig: &Rig, noun: &str, name: &str, labels: Labels) -> Result<()> {
        let had = self.labels.entry(format!("{noun} {name}")).or_default();
        let gone = had.keys().filter(|key| !labels.contains_key(*key));
        let mut edits: Vec<String> = gone.map(|key| format!("{key}-")).collect();
        let new = labels.iter().filter(|(key, value)| had.get(*key) != Some(*value));
        edits.extend(new.map(|(key, value)| format!("{key}={value}")));
        if !edits.is_empty() {
            let edits: Vec<&str> = edits.iter().map(String::as_str).collect();
            rig.fleet.ovctl_ok(&[&[noun, "label", name, "--no-wait"], &edits[..]].concat())?;
        }
        *had = labels;
        Ok(())
    }

    /// Makes a list of NetworkPolicies the policy of an overlay.
    fn apply(&mut self, rig: &Rig, overlay: &'static str, policies: &str) -> Result<()> {
        if self.policies.get(overlay).is_some_and(|in_force| in_force == policies) {
            return Ok(());
        }
        let file = rig.file("yaml");
        // An empty list would be no policy file.
        let documents = serde_json::from_str::<Vec<Value>>(policies)?;
        let documents = documents.iter().map(|policy| format!("---\n{policy}\n"));
        fs::write(&file, format!("rules: []\n{}", documents.collect::<String>()))?;
        let path = file.to_string_lossy();
        rig.fleet.ovctl_ok(&["policy", "apply", "-f", &path, "--overlay", overlay])?;
        self.policies.insert(overlay, policies.to_owned());
        Ok(())
    }
}

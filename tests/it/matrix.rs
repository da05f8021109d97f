//! `ovctl policy matrix` against real packets: a random policy over six entities, in an overlay of either
//! semantics, and every pair of them in both directions.
//!
//! Each policy comes of a seed, which a failure names. `OVMESH_SEED=N` plays that one alone.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use ovmesh::types::PortRange;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, IteratorRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::fleet::Kind;
use crate::probes::{Addresses, Flow, expect, serve};
use crate::support::{Rig, SOON, play};
use crate::world::poll;

const ENTITIES: [(&str, &str, &str); 6] = [
    ("default", "e0", "http=tcp/80"),
    ("default", "e1", "http=tcp/8080"),
    ("default", "e2", "dns=udp/53"),
    ("shop", "e3", "http=tcp/80"),
    ("shop", "e4", "dns=udp/53"),
    ("shop", "e5", "http=tcp/443"),
];

/// The overlays: no policy opens nothing, no policy opens everything.
const OVERLAYS: [(&str, &str); 2] = [("shut", "default-deny"), ("open", "kubernetes")];

/// What each entity asks each other for: protocol number, port, words for the probe.
const PROBES: [(u8, u16, &str); 7] = [
    (6, 80, "tcp/80"),
    (6, 443, "tcp/443"),
    (6, 8080, "tcp/8080"),
    (17, 53, "udp/53"),
    (17, 80, "udp/80"),
    (132, 80, "sctp/80"),
    (1, 0, "icmp"),
];

#[test]
fn the_matrix_of_random_policies_is_what_packets_find() {
    play_seeds(&[1, 2, 3]);
}

#[test]
#[ignore = "long"]
fn the_matrix_of_many_random_policies_is_what_packets_find() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    play_seeds(&(now..now + 30).collect::<Vec<u64>>());
}

fn play_seeds(seeds: &[u64]) {
    let one = std::env::var("OVMESH_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    play(&[], &[], |rig| {
        let mut addresses = Addresses::new();
        for (overlay, semantics) in OVERLAYS {
            rig.fleet.ovctl_ok(&["overlay", "create", overlay, "--semantics", semantics])?;
        }
        let overlays = OVERLAYS.map(|(name, _)| name);
        rig.launch("s1", Kind::Sap, &overlays, &[])?;
        for (namespace, name, port) in ENTITIES {
            let options = ["--namespace", namespace, "--port", port];
            rig.launch(name, Kind::Entity, &overlays, &options)?;
        }
        rig.wait_ready()?;
        for (_, name, _) in ENTITIES {
            for overlay in overlays {
                let address = rig.fleet.address(name, overlay)?.to_string();
                addresses.insert((name.to_owned(), overlay.to_owned()), address);
            }
        }
        let every = |overlay: &str, passes: &dyn Fn(&str, &str, u8, u16) -> bool| {
            let pairs = ENTITIES.iter().flat_map(|from| ENTITIES.iter().map(move |to| (from, to)));
            let pairs = pairs.filter(|(from, to)| from != to);
            let flows = pairs.flat_map(|(from, to)| {
                PROBES.iter().map(|(protocol, port, service)| Flow {
                    from: from.1.to_owned(),
                    to: to.1.to_owned(),
                    overlay: overlay.to_owned(),
                    service: (*service).to_owned(),
                    passes: passes(&full(from), &full(to), *protocol, *port),
                })
            });
            flows.collect::<Vec<Flow>>()
        };
        // The control of everything that is refused later: without a policy `open` passes it all.
        let open = every("open", &|_, _, _, _| true);
        let _servers = serve(rig, &open)?;
        expect(rig, &addresses, &open)?;

        for seed in one.as_ref().map_or(seeds, std::slice::from_ref) {
            let policy = Draw(StdRng::seed_from_u64(*seed)).policy(rig)?;
            for overlay in overlays {
                let again = || format!("OVMESH_SEED={seed}, overlay {overlay}:\n{policy}");
                let file = rig.file("yaml");
                fs::write(&file, &policy)?;
                let path = file.to_string_lossy();
                rig.fleet
                    .ovctl_ok(&["policy", "apply", "-f", &path, "--overlay", overlay])
                    .with_context(again)?;
                rig.settle()?;
                let matrix = Matrix::ask(rig, overlay)?;
                let flows = every(overlay, &|from, to, protocol, port| {
                    matrix.passes(from, to, protocol, port)
                });
                expect(rig, &addresses, &flows)
                    .with_context(|| format!("{}\n{}", again(), told(rig, overlay)))?;
            }
        }
        Ok(())
    });
}

/// What nodes say that they did, and by which rule; for a failure.
fn told(rig: &Rig, overlay: &str) -> String {
    let started = Instant::now();
    // Everybody has reported after two periods.
    let _ = poll(SOON * 2, "reports", || {
        Ok((started.elapsed() > Duration::from_secs(10)).then_some(()))
    });
    rig.fleet.ovctl_ok(&["flow", "list", "--overlay", overlay, "--since", "1m"]).unwrap_or_default()
}

fn full((namespace, name, _): &(&str, &str, &str)) -> String {
    format!("{namespace}/{name}")
}

/// What `ovctl policy matrix` says: per ordered pair what may be opened, in its words.
struct Matrix(BTreeMap<(String, String), Vec<String>>);

impl Matrix {
    fn ask(rig: &Rig, overlay: &str) -> Result<Self> {
        let answer = rig.fleet.ovctl_json(&["policy", "matrix", "--overlay", overlay])?;
        let pairs = answer["pairs"].as_array().context("a matrix has pairs")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pair = |pair: &Value| {
            let services = pair["services"].as_array().into_iter().flatten();
            ((text(&pair["from"]), text(&pair["to"])), services.map(text).collect())
        };
        let known: Vec<String> =
            answer["members"].as_array().into_iter().flatten().map(text).collect();
        ensure!(known == ENTITIES.iter().map(full).collect::<Vec<_>>(), "{answer}");
        Ok(Self(pairs.iter().map(pair).collect()))
    }

    fn passes(&self, from: &str, to: &str, protocol: u8, port: u16) -> bool {
        let words = self.0.get(&(from.to_owned(), to.to_owned()));
        words.is_some_and(|words| match words.first().and_then(|word| word.strip_prefix("any")) {
            Some("") => true,
            Some(rest) => {
                let but = rest.strip_prefix(" but ").expect("`any but …`");
                !but.split(',').any(|word| covers(word, protocol, port))
            }
            None => words.iter().any(|word| covers(word, protocol, port)),
        })
    }
}

/// Whether `tcp/80-90`, `udp`, `47` or `2-5` covers the flow.
fn covers(word: &str, protocol: u8, port: u16) -> bool {
    let (name, ports) = word.split_once('/').unwrap_or((word, "0-65535"));
    let (first, last) = name.split_once('-').unwrap_or((name, name));
    let number = |name: &str| match name {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "icmpv6" => 58,
        "sctp" => 132,
        number => number.parse::<u8>().expect("a protocol"),
    };
    let ports: PortRange = match ports.split_once('-') {
        Some((first, last)) => {
            PortRange { first: first.parse().expect("port"), last: last.parse().expect("port") }
        }
        None => {
            PortRange { first: ports.parse().expect("port"), last: ports.parse().expect("port") }
        }
    };
    (number(first)..=number(last)).contains(&protocol) && (ports.first..=ports.last).contains(&port)
}

/// Makes policies.
struct Draw(StdRng);

impl Draw {
    /// Gives the entities labels, and writes a policy file.
    fn policy(&mut self, rig: &Rig) -> Result<String> {
        let mut labels = String::new();
        for entity in &ENTITIES {
            let mut edits = Vec::new();
            for key in ["a", "b"] {
                edits.push(match self.one(&["1", "2", ""]) {
                    "" => format!("{key}-"),
                    value => format!("{key}={value}"),
                });
            }
            let name = full(entity);
            rig.fleet.ovctl_ok(&["entity", "label", &name, "--no-wait", &edits[0], &edits[1]])?;
            labels.push_str(&format!("# {name}: {}\n", edits.join(" ")));
        }
        let rules: Vec<Value> = (0..self.0.random_range(1..8)).map(|_| self.rule()).collect();
        let policy = json!({
            "groups": {"g": self.some(&["e0", "e1", "shop/e3", "b=2", "namespace:shop"])},
            "services": {"s": "a=1"},
            "rules": rules,
        });
        let networks = (0..self.0.random_range(0..4)).map(|number| self.network_policy(number));
        let networks: Vec<String> = networks.map(|policy| format!("---\n{policy:#}\n")).collect();
        Ok(format!("{labels}{policy:#}\n{}", networks.concat()))
    }

    fn rule(&mut self) -> Value {
        let ends = ["any", "e0", "shop/e3", "a=1", "a=1,b=2", "b=1", "namespace:shop", "group:g"];
        let ports = ["tcp/80", "tcp/80-443", "tcp", "udp/53", "udp", "icmp", "sctp/80", "tcp/http"];
        let from = self.one(&ends);
        // One entity at both ends is refused.
        let others = ends.into_iter().chain(["service:s"]).filter(|end| *end != from);
        let mut rule = json!({
            "action": self.one(&["allow", "allow", "allow", "deny"]),
            "from": from,
            "to": self.one(&others.collect::<Vec<_>>()),
            "both": self.0.random_bool(0.25),
        });
        if self.0.random_bool(0.8) {
            rule["ports"] = json!(self.some(&ports));
        }
        rule
    }

    fn network_policy(&mut self, number: usize) -> Value {
        let mut spec = json!({"podSelector": self.selector()});
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            if self.0.random_bool(0.6) {
                let items = 0..self.0.random_range(0..3);
                spec[direction] = items.map(|_| self.item(peers)).collect();
            }
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("p{number}"), "namespace": self.one(&["default", "shop"])},
            "spec": spec,
        })
    }

    fn item(&mut self, peers: &str) -> Value {
        let ports = [
            json!({"port": 80}),
            json!({"port": 80, "endPort": 500}),
            json!({"port": "http"}),
            json!({"port": "dns", "protocol": "UDP"}),
            json!({"protocol": "UDP"}),
            json!({"protocol": "SCTP", "port": 80}),
        ];
        let mut item = json!({});
        if self.0.random_bool(0.7) {
            item["ports"] = json!(self.some(&ports));
        }
        if self.0.random_bool(0.7) {
            let namespaces = json!({"matchLabels": {"kubernetes.io/metadata.name": "shop"}});
            let peer = match self.0.random_range(0..3) {
                0 => json!({"podSelector": self.selector()}),
                1 => json!({"namespaceSelector": namespaces}),
                _ => json!({"namespaceSelector": {}, "podSelector": self.selector()}),
            };
            item[peers] = json!([peer]);
        }
        item
    }

    fn selector(&mut self) -> Value {
        self.one(&[
            json!({}),
            json!({"matchLabels": {"a": "1"}}),
            json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}),
            json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}),
        ])
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of.choose(&mut self.0).expect("not empty").clone()
    }

    /// One to three of them.
    fn some<T: Clone>(&mut self, of: &[T]) -> Vec<T> {
        let count = self.0.random_range(1..=3);
        of.iter().cloned().sample(&mut self.0, count)
    }
}

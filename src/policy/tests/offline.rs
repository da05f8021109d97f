//! Random inventories and policies, written as JSON and read back: the evaluator against a naive
//! model that reads the JSON itself, a question at a time.

use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::api::admin::Semantics;
use crate::policy::{
    Document, Matrix, Observed, Scene, difference, examine, lint, read_inventory, read_policies,
    read_test_file,
};
use crate::types::Timestamp;

const NOW: Timestamp = Timestamp(1_000_000);
const OUTSIDE: [&str; 3] = ["203.0.113.5", "10.0.9.9", "fd00::99"];

fn labels() -> impl Strategy<Value = Value> {
    let value = || prop::sample::select(vec![None, Some("1"), Some("2")]);
    (value(), value()).prop_map(|(a, b)| {
        let mut labels = serde_json::Map::new();
        for (key, value) in [("a", a), ("b", b)] {
            if let Some(value) = value {
                labels.insert(key.to_owned(), json!(value));
            }
        }
        Value::Object(labels)
    })
}

/// Six entities in two namespaces; the last has an IPv6 address.
fn inventory() -> impl Strategy<Value = Value> {
    let port = prop::sample::select(vec![
        json!({"name": "web", "port": 80}),
        json!({"name": "web", "port": 8080}),
        json!({"name": "web", "port": 80, "protocol": "UDP"}),
        json!({"port": 443}),
    ]);
    let entity = (labels(), vec(port, 0..3));
    (vec(entity, 6), labels(), labels()).prop_map(|(entities, x, y)| {
        let entities: Vec<Value> = entities
            .into_iter()
            .enumerate()
            .map(|(index, (labels, ports))| {
                let namespace = if index % 2 == 0 { "x" } else { "y" };
                let address =
                    if index == 5 { "fd00::6".to_owned() } else { format!("10.0.{}.1", index) };
                json!({"namespace": namespace, "name": format!("e{index}"), "labels": labels,
                    "address": address, "ports": ports})
            })
            .collect();
        json!({"namespaces": {"x": {"labels": x}, "y": {"labels": y}}, "entities": entities})
    })
}

fn label_selector() -> impl Strategy<Value = Value> {
    let expression = prop_oneof![
        Just(json!({"key": "a", "operator": "In", "values": ["1"]})),
        Just(json!({"key": "b", "operator": "NotIn", "values": ["1", "3"]})),
        Just(json!({"key": "a", "operator": "Exists"})),
        Just(json!({"key": "b", "operator": "DoesNotExist", "values": []})),
    ];
    prop_oneof![
        2 => Just(json!({})),
        2 => labels().prop_map(|labels| json!({"matchLabels": labels})),
        2 => (labels(), vec(expression, 1..3)).prop_map(|(labels, expressions)| {
            json!({"matchLabels": labels, "matchExpressions": expressions})
        }),
    ]
}

fn network_policy() -> impl Strategy<Value = Value> {
    let block = prop::sample::select(vec![
        json!({"cidr": "10.0.0.0/16", "except": ["10.0.2.0/24", "10.0.9.0/24"]}),
        json!({"cidr": "0.0.0.0/0"}),
        json!({"cidr": "fd00::/64"}),
        json!({"cidr": "203.0.113.5/32"}),
    ]);
    let peer = prop_oneof![
        label_selector().prop_map(|s| json!({"podSelector": s})),
        label_selector().prop_map(|s| json!({"namespaceSelector": s})),
        (label_selector(), label_selector())
            .prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        block.prop_map(|block| json!({"ipBlock": block})),
    ];
    let port = prop::sample::select(vec![
        json!({"port": 80}),
        json!({"port": 80, "endPort": 8080}),
        json!({"port": "web"}),
        json!({"port": "web", "protocol": "UDP"}),
        json!({"protocol": "SCTP"}),
        json!({}),
    ]);
    let rules = move |peers: &'static str| {
        let rule = (prop::option::of(vec(peer.clone(), 0..3)), vec(port.clone(), 0..3));
        let rule = rule.prop_map(move |(from, ports)| json!({peers: from, "ports": ports}));
        prop::option::of(vec(rule, 0..3))
    };
    let types = prop::sample::select(vec![
        json!(null),
        json!([]),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Egress", "Ingress"]),
    ]);
    let namespace = prop::sample::select(vec!["x", "y"]);
    (namespace, label_selector(), rules("from"), rules("to"), types).prop_map(
        |(namespace, selector, ingress, egress, types)| {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": namespace},
                "spec": {"podSelector": selector, "ingress": ingress, "egress": egress,
                    "policyTypes": types}})
        },
    )
}

fn rule() -> impl Strategy<Value = Value> {
    let end = || {
        prop::sample::select(vec![
            "any",
            "x/e0",
            "y/e1",
            "x/e2",
            "a=1",
            "a=1,b=2",
            "namespace:y",
            "group:g",
            "10.0.0.0/16!10.0.2.0/24",
            "203.0.113.0/24",
        ])
    };
    let ports = prop::sample::select(vec![
        json!(null),
        json!("tcp/80"),
        json!(["tcp/1-100", "udp"]),
        json!("tcp/web"),
        json!(["icmp", "sctp/80"]),
    ]);
    let action = prop::sample::select(vec!["allow", "allow", "deny"]);
    let ends = prop::sample::select(vec![json!(null), json!("1970-01-01T00:00:01Z")]);
    let is_name = |end: &str| end.starts_with("x/") || end.starts_with("y/");
    let is_range = |end: &str| end.starts_with(char::is_numeric);
    // Other pairs are refused when they are read.
    let pair = (end(), end()).prop_filter("a rule between members", move |(from, to)| {
        !(is_name(from) && from == to || is_range(from) && is_range(to))
    });
    (action, pair, ports, any::<bool>(), ends, prop::bool::weighted(0.2)).prop_map(
        move |(action, (from, to), ports, both, end, audit)| {
            // So is the name of a port that an entity may not have.
            let is_unknown = ports == json!("tcp/web") && is_name(to);
            let ports = if is_unknown { json!("tcp/80") } else { ports };
            json!({"action": action, "from": from, "to": to, "ports": ports, "both": both,
                "notAfter": end, "audit": audit})
        },
    )
}

fn policies() -> impl Strategy<Value = Vec<Value>> {
    let ours = vec(rule(), 0..4).prop_map(|rules| {
        json!({"apiVersion": "ovmesh/v1", "kind": "Policy", "rules": rules,
            "groups": {"g": ["y/e3", "b=1", "203.0.113.5"]}})
    });
    (ours, vec(network_policy(), 0..5)).prop_map(|(ours, mut all)| {
        for (index, policy) in all.iter_mut().enumerate() {
            policy["metadata"]["name"] = json!(format!("p{index}"));
        }
        all.push(ours);
        all
    })
}

/// What the naive model knows of an end.
struct Party<'a> {
    entity: Option<&'a Value>,
    address: IpAddr,
}

/// The naive model: one question, answered from the JSON.
struct Model<'a> {
    inventory: &'a Value,
    policies: &'a [Value],
    kubernetes: bool,
}

impl Model<'_> {
    fn party(&self, text: &str) -> Party<'_> {
        let entities = self.inventory["entities"].as_array().unwrap();
        let entity = entities.iter().find(|e| {
            format!("{}/{}", e["namespace"].as_str().unwrap(), e["name"].as_str().unwrap()) == text
        });
        let address = entity.map_or(text, |entity| entity["address"].as_str().unwrap());
        Party { entity, address: address.parse().unwrap() }
    }

    fn is_allowed(&self, from: &str, to: &str, protocol: &str, port: u16) -> bool {
        if from == to {
            return true;
        }
        let (from, to) = (self.party(from), self.party(to));
        let rules = self.policies.iter().filter_map(|p| p["rules"].as_array()).flatten();
        let said: Vec<(&str, bool)> = rules
            .filter(|rule| rule["notAfter"].is_null())
            .filter(|rule| {
                let along = |a: &str, b: &str| {
                    self.means(rule[a].as_str().unwrap(), &from)
                        && self.means(rule[b].as_str().unwrap(), &to)
                };
                along("from", "to") || (rule["both"] == json!(true) && along("to", "from"))
            })
            .filter(|rule| native_port(&rule["ports"], &to, protocol, port))
            .map(|rule| (rule["action"].as_str().unwrap(), rule["audit"] == json!(true)))
            .collect();
        if said.contains(&("deny", false)) {
            return false;
        }
        // An audit deny refuses nothing, and an audit allow lets through, and is recorded.
        if said.contains(&("allow", false)) || said.contains(&("allow", true)) {
            return true;
        }
        let out = self.side("egress", "to", &from, &to, &to, protocol, port);
        let into = self.side("ingress", "from", &to, &from, &to, protocol, port);
        let unspoken = out.is_none() && into.is_none();
        if unspoken { self.kubernetes } else { out.unwrap_or(true) && into.unwrap_or(true) }
    }

    fn means(&self, selector: &str, party: &Party<'_>) -> bool {
        let has = |label: &str| {
            let (key, value) = label.split_once('=').unwrap();
            party.entity.is_some_and(|entity| entity["labels"][key] == json!(value))
        };
        let is_block = |low: &str, out: bool| {
            (party.entity.is_none() || self.kubernetes)
                && party.address.to_string().starts_with(low)
                && !out
        };
        let name = party.entity.map(|e| e["name"].as_str().unwrap()).unwrap_or_default();
        match selector {
            "any" => party.entity.is_some(),
            "x/e0" => name == "e0",
            "y/e1" => name == "e1",
            "x/e2" => name == "e2",
            "a=1" => has("a=1"),
            "a=1,b=2" => has("a=1") && has("b=2"),
            "namespace:y" => party.entity.is_some_and(|e| e["namespace"] == "y"),
            "group:g" => name == "e3" || has("b=1") || is_block("203.0.113.5", false),
            "10.0.0.0/16!10.0.2.0/24" => {
                is_block("10.0.", party.address.to_string().starts_with("10.0.2."))
            }
            "203.0.113.0/24" => is_block("203.0.113.", false),
            other => panic!("{other}"),
        }
    }

    /// None when no policy isolates the pod; else whether one lets it through.
    #[expect(clippy::too_many_arguments, reason = "a naive model has no types of its own")]
    fn side(
        &self,
        rules: &str,
        peers: &str,
        pod: &Party<'_>,
        other: &Party<'_>,
        to: &Party<'_>,
        protocol: &str,
        port: u16,
    ) -> Option<bool> {
        let pod = pod.entity?;
        let mut verdict = None;
        for policy in self.policies.iter().filter(|policy| policy["kind"] == "NetworkPolicy") {
            let spec = &policy["spec"];
            let types = spec["policyTypes"].as_array().filter(|types| !types.is_empty());
            let speaks = match (types, rules) {
                (Some(types), "ingress") => types.contains(&json!("Ingress")),
                (Some(types), _) => types.contains(&json!("Egress")),
                (None, "ingress") => true,
                (None, _) => spec["egress"].as_array().is_some_and(|rules| !rules.is_empty()),
            };
            let namespace = &policy["metadata"]["namespace"];
            if !speaks
                || pod["namespace"] != *namespace
                || !matches(&spec["podSelector"], &pod["labels"])
            {
                continue;
            }
            let mut passes = verdict.unwrap_or(false);
            for rule in spec[rules].as_array().into_iter().flatten() {
                let all = rule[peers].as_array().is_none_or(Vec::is_empty);
                let is_peer = all
                    || rule[peers]
                        .as_array()
                        .unwrap()
                        .iter()
                        .any(|peer| self.is_peer(peer, namespace, other));
                let ports = rule["ports"].as_array().unwrap();
                let is_port = ports.is_empty()
                    || ports.iter().any(|item| kubernetes_port(item, to, protocol, port));
                passes |= is_peer && is_port;
            }
            verdict = Some(passes);
        }
        verdict
    }

    fn is_peer(&self, peer: &Value, namespace: &Value, other: &Party<'_>) -> bool {
        if let Some(block) = peer.get("ipBlock") {
            let address = other.address.to_string();
            let inside = match block["cidr"].as_str().unwrap() {
                "10.0.0.0/16" => {
                    address.starts_with("10.0.")
                        && !address.starts_with("10.0.2.")
                        && !address.starts_with("10.0.9.")
                }
                "0.0.0.0/0" => other.address.is_ipv4(),
                "fd00::/64" => address.starts_with("fd00::"),
                "203.0.113.5/32" => address == "203.0.113.5",
                cidr => panic!("{cidr}"),
            };
            return inside && (other.entity.is_none() || self.kubernetes);
        }
        let Some(entity) = other.entity else { return false };
        let is_there = match peer.get("namespaceSelector") {
            None => entity["namespace"] == *namespace,
            Some(selector) => {
                let there = entity["namespace"].as_str().unwrap();
                matches(selector, &self.inventory["namespaces"][there]["labels"])
            }
        };
        is_there && peer.get("podSelector").is_none_or(|s| matches(s, &entity["labels"]))
    }
}

fn matches(selector: &Value, labels: &Value) -> bool {
    let wanted = selector.get("matchLabels").and_then(Value::as_object);
    let has_all = wanted.into_iter().flatten().all(|(key, value)| labels[key] == *value);
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    has_all
        && expressions.into_iter().flatten().all(|expression| {
            let value = labels.get(expression["key"].as_str().unwrap());
            let listed = value.is_some_and(|value| {
                expression["values"].as_array().is_some_and(|values| values.contains(value))
            });
            match expression["operator"].as_str().unwrap() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

/// Whether `to` calls this port `web`.
fn is_web(to: &Party<'_>, protocol: &str, port: u16) -> bool {
    let ports = to.entity.and_then(|entity| entity["ports"].as_array());
    ports.into_iter().flatten().any(|theirs| {
        theirs["name"] == "web"
            && theirs["port"] == json!(port)
            && theirs["protocol"].as_str().unwrap_or("TCP").eq_ignore_ascii_case(protocol)
    })
}

fn native_port(ports: &Value, to: &Party<'_>, protocol: &str, port: u16) -> bool {
    match ports.to_string().as_str() {
        "null" => true,
        r#""tcp/80""# => protocol == "tcp" && port == 80,
        r#"["tcp/1-100","udp"]"# => protocol == "udp" || (protocol == "tcp" && port <= 100),
        r#""tcp/web""# => protocol == "tcp" && is_web(to, protocol, port),
        r#"["icmp","sctp/80"]"# => protocol == "icmp" || (protocol == "sctp" && port == 80),
        other => panic!("{other}"),
    }
}

fn kubernetes_port(item: &Value, to: &Party<'_>, protocol: &str, port: u16) -> bool {
    let wanted = item["protocol"].as_str().unwrap_or("TCP");
    if !wanted.eq_ignore_ascii_case(protocol) {
        return false;
    }
    match (&item["port"], item["endPort"].as_u64()) {
        (Value::Null, _) => true,
        (Value::String(_), _) => is_web(to, protocol, port),
        (first, end) => {
            let first = first.as_u64().unwrap();
            (first..=end.unwrap_or(first)).contains(&u64::from(port))
        }
    }
}

fn scene(inventory: &Value, policies: &[Value], semantics: Semantics) -> Scene {
    let inventory = read_inventory("i", &inventory.to_string(), NOW).unwrap();
    let documents = read(policies);
    Scene::new(&inventory, &documents, Some(semantics), NOW).unwrap()
}

fn read(policies: &[Value]) -> Vec<Document> {
    let texts: Vec<String> = policies.iter().map(Value::to_string).collect();
    read_policies("p", &texts.join("\n---\n"), NOW).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_evaluator_says_what_a_naive_model_says(
        inventory in inventory(),
        policies in policies(),
        kubernetes in any::<bool>(),
    ) {
        let semantics = if kubernetes { Semantics::Kubernetes } else { Semantics::DefaultDeny };
        let scene = scene(&inventory, &policies, semantics);
        let model = Model { inventory: &inventory, policies: &policies, kubernetes };
        let members: Vec<String> = (0..6)
            .map(|index| format!("{}/e{index}", if index % 2 == 0 { "x" } else { "y" }))
            .collect();
        let ends: Vec<&str> = members.iter().map(String::as_str).chain(OUTSIDE).collect();
        let mut tests = Vec::new();
        for from in &ends {
            for to in &ends {
                if OUTSIDE.contains(from) && OUTSIDE.contains(to) {
                    continue;
                }
                for (protocol, port) in [("tcp", 80), ("tcp", 8080), ("tcp", 443), ("udp", 80),
                    ("sctp", 80), ("icmp", 0)] {
                    let allow = model.is_allowed(from, to, protocol, port);
                    let port = (port != 0).then_some(port);
                    tests.push(json!({"from": from, "to": to, "protocol": protocol, "port": port,
                        "allow": allow}));
                }
            }
        }
        let tests = read_test_file("t", &json!({ "tests": tests }).to_string()).unwrap();
        let examination = examine(&scene, &tests).unwrap();
        let wrong: Vec<_> =
            examination.results.iter().filter(|r| r.expected != r.allowed).take(3).collect();
        prop_assert!(wrong.is_empty(), "{wrong:#?}");
        // Whatever is found, nothing panics on it.
        let _ = lint(&scene, &Observed::default());
    }

    #[test]
    fn the_difference_is_empty_exactly_when_the_matrices_are_equal(
        inventory in inventory(),
        before in policies(),
        after in policies(),
        kubernetes in any::<bool>(),
    ) {
        let semantics = if kubernetes { Semantics::Kubernetes } else { Semantics::DefaultDeny };
        let old = scene(&inventory, &before, semantics);
        let new = scene(&inventory, &after, semantics);
        let is_equal = Matrix::new(&old) == Matrix::new(&new);

        prop_assert!(difference(&old, &old).is_empty());
        prop_assert_eq!(difference(&old, &new).is_empty(), is_equal);
        let back = difference(&new, &old);
        for (there, back) in difference(&old, &new).into_iter().zip(back) {
            prop_assert_eq!(there.gained, back.lost);
            prop_assert_eq!(there.lost, back.gained);
        }
    }

    #[test]
    fn no_text_makes_a_reader_panic(text in ".{0,200}", cut in 0usize..2000) {
        let _ = read_policies("f", &text, NOW);
        let _ = read_inventory("f", &text, NOW);
        let _ = read_test_file("f", &text);
        let whole = include_str!("../../../tests/vectors/netpol/docs-test-network-policy.json");
        let cut = whole.char_indices().nth(cut).map_or(whole.len(), |(at, _)| at);
        let _ = read_inventory("f", &whole[..cut], NOW);
    }
}

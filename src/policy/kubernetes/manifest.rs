//! A NetworkPolicy as a manifest that `kubectl` takes and [`super::read`] reads back to the same policy:
//! how a server keeps and shows it. Only what means something is in it; defaults are spelled out.

use serde_json::{Map, Value, json};

use super::{Direction, NetworkPolicy, Peer, PolicyRule, read};
use crate::api::{Problem, ProblemCode};
use crate::policy::expression::{LabelSelector, Requirement};
use crate::policy::tree::{At, Cursor, documents};
use crate::types::{Protocol, Service};

impl NetworkPolicy {
    /// The canonical manifest: equal policies have equal ones.
    #[must_use]
    pub fn manifest(&self) -> Value {
        let mut metadata = Map::new();
        metadata.insert("namespace".to_owned(), json!(self.namespace));
        match self.name.strip_suffix('*') {
            Some(prefix) => metadata.insert("generateName".to_owned(), json!(prefix)),
            None => metadata.insert("name".to_owned(), json!(self.name)),
        };
        let mut spec = Map::new();
        spec.insert("podSelector".to_owned(), selector(&self.pods));
        let mut types = Vec::new();
        for (direction, word) in [(Direction::Ingress, "Ingress"), (Direction::Egress, "Egress")] {
            if let Some(rules) = self.rules(direction) {
                types.push(word);
                let rules = rules.iter().map(|one| rule(one, direction)).collect();
                spec.insert(direction.field().to_owned(), Value::Array(rules));
            }
        }
        spec.insert("policyTypes".to_owned(), json!(types));
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": metadata,
            "spec": spec,
        })
    }

    /// Reads what [`NetworkPolicy::manifest`] wrote, as text; `source` is for messages.
    ///
    /// # Errors
    ///
    /// `Usage` for what is no NetworkPolicy, or more than one.
    pub fn from_manifest(source: &str, text: &str) -> Result<Self, Problem> {
        let trees = documents(source, text)?;
        let mut policies = Vec::new();
        for tree in &trees {
            let read = read(&Cursor::new(At { source, thing: "" }, tree), None)?;
            policies.extend(read.into_iter().map(|(policy, _)| policy));
        }
        match <[Self; 1]>::try_from(policies) {
            Ok([policy]) => Ok(policy),
            Err(several) => {
                let why = format!("one NetworkPolicy is wanted, and this has {}", several.len());
                Err(Problem::new(ProblemCode::Usage, source).why(why))
            }
        }
    }
}

fn selector(selector: &LabelSelector) -> Value {
    let expression = |requirement: &Requirement| match requirement {
        Requirement::In(key, values) => json!({"key": key, "operator": "In", "values": values}),
        Requirement::NotIn(key, values) => {
            json!({"key": key, "operator": "NotIn", "values": values})
        }
        Requirement::Exists(key) => json!({"key": key, "operator": "Exists"}),
        Requirement::DoesNotExist(key) => json!({"key": key, "operator": "DoesNotExist"}),
    };
    match &selector.requirements[..] {
        [] => json!({}),
        all => json!({ "matchExpressions": all.iter().map(expression).collect::<Vec<_>>() }),
    }
}

fn rule(rule: &PolicyRule, direction: Direction) -> Value {
    let peers: Vec<Value> = rule.peers.iter().map(peer).collect();
    let ports: Vec<Value> = rule.ports.iter().map(port).collect();
    let field = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    json!({ field: peers, "ports": ports })
}

fn peer(peer: &Peer) -> Value {
    match peer {
        Peer::Pods { namespaces: None, pods } => json!({ "podSelector": selector(pods) }),
        Peer::Pods { namespaces: Some(namespaces), pods } => {
            json!({ "namespaceSelector": selector(namespaces), "podSelector": selector(pods) })
        }
        Peer::Block(block) => {
            json!({ "ipBlock": { "cidr": block.cidr, "except": block.except } })
        }
    }
}

fn port(service: &Service) -> Value {
    let protocol = match service.protocol() {
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
        // Ports of a NetworkPolicy are of these three alone.
        Protocol::Tcp | Protocol::Icmp | Protocol::Number(_) => "TCP",
    };
    match service {
        Service::Protocol(_) => json!({ "protocol": protocol }),
        Service::Named(_, name) => json!({ "protocol": protocol, "port": name }),
        Service::Ports(_, range) if range.first == range.last => {
            json!({ "protocol": protocol, "port": range.first })
        }
        Service::Ports(_, range) => {
            json!({ "protocol": protocol, "port": range.first, "endPort": range.last })
        }
    }
}

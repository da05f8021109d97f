//! Writes policy files: the same policy gives the same bytes, one line per rule, and reading what is
//! written gives the same policy again.

use std::fmt::Write as _;

use super::document::{DocumentPath, DocumentRule, PolicyDocument};
use super::examine::{Test, TestPort};
use super::kubernetes::NetworkPolicy;
use crate::api::table::Action;
use crate::types::Selector;

/// The file that says `policy` and `networks`: YAML, the NetworkPolicies as further documents.
#[must_use]
pub fn write_policy(policy: &PolicyDocument, networks: &[NetworkPolicy]) -> String {
    let mut text = "apiVersion: ovmesh/v1\nkind: Policy\n".to_owned();
    let mut line = |written: String| {
        text.push_str(&written);
        text.push('\n');
    };
    if let Some(overlay) = &policy.overlay {
        line(format!("overlay: {}", scalar(overlay.as_str())));
    }
    if !policy.groups.is_empty() {
        line("groups:".to_owned());
        for (name, held, _) in &policy.groups {
            line(format!("  {}: {}", scalar(name.as_str()), list(held)));
        }
    }
    if !policy.services.is_empty() {
        line("services:".to_owned());
        for (name, labels) in &policy.services {
            let labels = Selector::Labels(labels.iter().cloned().collect());
            line(format!("  {}: {}", scalar(name.as_str()), scalar(&labels.to_string())));
        }
    }
    line(if policy.rules.is_empty() { "rules: []" } else { "rules:" }.to_owned());
    for rule in &policy.rules {
        line(format!("  - {{{}}}", rule_fields(rule)));
    }
    if !policy.tests.is_empty() {
        line("tests:".to_owned());
        for test in &policy.tests {
            line(format!("  - {{{}}}", test_fields(test)));
        }
    }
    for network in networks {
        line("---".to_owned());
        // JSON is YAML, and says everything on one line that a diff can show.
        line(network.manifest().to_string());
    }
    text
}

fn rule_fields(rule: &DocumentRule) -> String {
    let mut fields = Vec::new();
    if let Some(name) = &rule.name {
        fields.push(format!("name: {}", scalar(name)));
    }
    fields.push(match rule.action {
        Action::Allow => "action: allow".to_owned(),
        Action::Deny => "action: deny".to_owned(),
    });
    fields.push(format!("from: {}", one_or_list(&rule.from)));
    fields.push(format!("to: {}", one_or_list(&rule.to)));
    if !rule.ports.is_empty() {
        fields.push(format!("ports: {}", list(&rule.ports)));
    }
    if rule.both {
        fields.push("both: true".to_owned());
    }
    match &rule.path {
        None => {}
        Some(DocumentPath::Direct) => fields.push("path: direct".to_owned()),
        Some(DocumentPath::Via(saps)) => fields.push(format!("path: {}", list(saps))),
    }
    if let Some(end) = rule.not_after {
        fields.push(format!("notAfter: {end}"));
    }
    if rule.audit {
        fields.push("audit: true".to_owned());
    }
    if let Some(reason) = &rule.reason {
        fields.push(format!("reason: {}", scalar(reason)));
    }
    fields.join(", ")
}

/// The fields of a test, as a file has them.
pub(super) fn test_fields(test: &Test) -> String {
    let mut text = format!("from: {}, to: {}", scalar(&test.from), scalar(&test.to));
    if let Some(protocol) = &test.protocol {
        let _ = write!(text, ", protocol: {}", scalar(protocol));
    }
    match &test.port {
        None => {}
        Some(TestPort::Number(port)) => {
            let _ = write!(text, ", port: {port}");
        }
        Some(TestPort::Name(name)) => {
            let _ = write!(text, ", port: {}", scalar(name.as_str()));
        }
    }
    let _ = write!(text, ", allow: {}", test.expected);
    text
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|item| scalar(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

fn one_or_list<T: ToString>(items: &[T]) -> String {
    match items {
        [one] => scalar(&one.to_string()),
        several => list(several),
    }
}

/// A text that YAML reads as this text: plain where nothing else can be meant, else in quotes.
fn scalar(text: &str) -> String {
    let is_word =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'=');
    let is_plain = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && text.bytes().all(is_word)
        && !matches!(text, "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n");
    if is_plain { text.to_owned() } else { quoted(text) }
}

/// As JSON writes it, which YAML reads; characters that YAML takes for line ends are escaped too.
fn quoted(text: &str) -> String {
    let mut written = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => written.push_str("\\\""),
            '\\' => written.push_str("\\\\"),
            '\n' => written.push_str("\\n"),
            '\t' => written.push_str("\\t"),
            '\r' => written.push_str("\\r"),
            c if c.is_ascii_graphic() || c == ' ' || (c.is_alphanumeric() && c > '\u{a0}') => {
                written.push(c);
            }
            c => {
                let _ = write!(written, "\\U{:08x}", u32::from(c));
            }
        }
    }
    written.push('"');
    written
}

#[cfg(test)]
mod tests {
    use super::super::document::{Document, read_policies};
    use super::*;
    use crate::types::Timestamp;

    fn read(text: &str) -> (PolicyDocument, Vec<NetworkPolicy>) {
        let (mut policy, mut networks) = (None, Vec::new());
        for document in read_policies("f", text, Timestamp(1_000)).unwrap() {
            match document {
                Document::Policy(one) => policy = Some(*one),
                Document::Network(one, _) => networks.push(*one),
            }
        }
        (policy.unwrap(), networks)
    }

    #[test]
    fn what_is_written_is_read_as_the_same_policy_and_written_the_same_again() {
        let text = r#"
overlay: "on"
groups: {backends: [role=db, shop/cache, "10.0.0.0/8!10.1.0.0/16"]}
services: {api: "role=api,tier=a"}
rules:
  - name: "web: to\ndb, \"quoted\" é\u2028\u0007"
    action: allow
    from: [role=web, "true"]
    to: group:backends
    ports: [tcp/5432, icmp, 47, tcp/8000-8999, tcp/http]
    both: true
    path: [sap-1, sap-2]
    notAfter: 2030-12-31T00:00:00Z
    audit: true
    reason: "- {x: y} # no"
  - {action: deny, from: any, to: "namespace:shop", reason: ""}
  - {action: allow, from: "fd00::/8", to: web, path: direct}
tests:
  - {from: shop/web, to: "123", protocol: tcp, port: 5432, allow: true}
  - {from: "ip:203.0.113.9", to: web, protocol: TCP, port: http, allow: false}
  - {from: a, to: b, allowed: false}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: x.y, namespace: shop}
spec:
  podSelector: {matchLabels: {a: "true"}, matchExpressions: [{key: b, operator: NotIn, values: ["1"]}]}
  egress:
    - to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {namespaceSelector: {}}]
      ports: [{port: 80, endPort: 90}, {protocol: UDP, port: dns}, {protocol: SCTP}]
"#;
        let (policy, networks) = read(text);
        let written = write_policy(&policy, &networks);
        let (again, networks_again) = read(&written);

        let bare = |policy: &PolicyDocument| {
            let mut policy = policy.clone();
            policy.groups.iter_mut().for_each(|group| group.2 = 0);
            policy.rules.iter_mut().for_each(|rule| rule.line = 0);
            policy.tests.iter_mut().for_each(|test| test.place = String::new());
            policy
        };
        assert_eq!(bare(&again), bare(&policy), "{written}");
        assert_eq!(networks_again, networks, "{written}");
        assert_eq!(write_policy(&again, &networks_again), written);
    }

    #[test]
    fn words_that_mean_something_to_yaml_are_quoted() {
        for text in ["", "1", "1e3", "0x1", "true", "null", "~", "on", "- a", "a: b", "a,b", "~x"] {
            assert!(scalar(text).starts_with('"'), "{text}");
        }
        for text in ["web", "shop/web", "role=web", "tcp/80"] {
            assert_eq!(scalar(text), text);
        }
    }
}

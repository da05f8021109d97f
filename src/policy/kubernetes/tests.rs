//! Every construct of a NetworkPolicy in a table of its own, and everything that is refused.

use crate::policy::{Scene, examine, read_inventory, read_policies, read_test_file};
use crate::types::Timestamp;

const NOW: Timestamp = Timestamp(0);

/// Four pods in two namespaces, with named ports; `x/b` has a port name twice.
const TOWN: &str = "
semantics: kubernetes
namespaces:
  x: {labels: {team: red, tier: '1'}}
  y: {labels: {team: blue}}
entities:
  - {namespace: x, name: a, labels: {app: a, role: client}, address: 10.0.1.1}
  - {namespace: x, name: b, labels: {app: b}, address: 10.0.1.2, ports: [{name: web, port: 80}, {name: dns, port: 53, protocol: UDP}, {name: dns, port: 5353}]}
  - {namespace: y, name: a, labels: {app: a}, address: 10.0.2.1, ports: [{name: web, port: 8080}]}
  - {namespace: y, name: c, address: 10.0.2.3}
  - {namespace: z, name: v6, labels: {app: v6}, address: 'fd00::6'}
";

/// Asks questions such as `x/a>x/b tcp/80 yes` of policies whose specs are given; all are in
/// namespace `x` unless the spec says `@y`.
fn ask(specs: &[&str], questions: &str) -> Vec<String> {
    let mut policies = String::new();
    for (index, spec) in specs.iter().enumerate() {
        let (namespace, spec) = match spec.strip_prefix("@y ") {
            Some(rest) => ("y", rest),
            None => ("x", *spec),
        };
        policies.push_str(&format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p{index}, \
             namespace: {namespace}}}\nspec: {spec}\n"
        ));
    }
    let mut tests = "tests:\n".to_owned();
    for question in questions.split(", ") {
        let words: Vec<&str> = question.split(' ').collect();
        let [ends, service, answer] = words[..] else { panic!("{question}") };
        let (from, to) = ends.split_once('>').unwrap();
        let port = match service.split_once('/') {
            Some((protocol, port)) => format!("protocol: {protocol}, port: {port}"),
            None => format!("protocol: {service}"),
        };
        let allow = answer == "yes";
        tests.push_str(&format!("- {{from: '{from}', to: '{to}', {port}, allow: {allow}}}\n"));
    }
    let inventory = read_inventory("town", TOWN, NOW).unwrap();
    let documents = read_policies("policies", &policies, NOW).unwrap();
    let scene = Scene::new(&inventory, &documents, None, NOW).unwrap();
    let examination = examine(&scene, &read_test_file("tests", &tests).unwrap()).unwrap();
    let wrong = examination.results.into_iter().filter(|r| r.expected != r.allowed);
    wrong
        .map(|r| format!("{} > {} {:?}/{:?}: {}", r.from, r.to, r.protocol, r.port, r.why))
        .collect()
}

#[test]
fn every_construct_means_what_kubernetes_documents() {
    let table: &[(&str, &[&str], &str)] = &[
        (
            "no policy",
            &[],
            "x/a>x/b tcp/80 yes, 203.0.113.9>x/b udp/1 yes, x/a>ip:203.0.113.9 tcp/1 yes, x/a>x/b icmp yes",
        ),
        (
            "empty spec isolates ingress of all",
            &["{}"],
            "x/a>x/b tcp/80 no, x/a>y/a tcp/80 yes, y/a>x/a tcp/80 no",
        ),
        ("null selector selects all", &["{podSelector: null}"], "x/a>x/b tcp/80 no"),
        (
            "self traffic is never blocked",
            &["{podSelector: {}, policyTypes: [Ingress, Egress]}"],
            "x/a>x/a tcp/80 yes, x/a>x/b tcp/80 no",
        ),
        (
            "egress: [] alone isolates ingress only",
            &["{podSelector: {}, egress: []}"],
            "x/a>y/a tcp/80 yes, y/a>x/a tcp/80 no",
        ),
        (
            "egress: [] with the type isolates egress",
            &["{podSelector: {}, egress: [], policyTypes: [Egress]}"],
            "x/a>y/a tcp/80 no, y/a>x/a tcp/80 yes",
        ),
        (
            "a rule for egress brings the type",
            &["{podSelector: {}, egress: [{ports: [{port: 80}]}]}"],
            "x/a>y/a tcp/80 yes, x/a>y/a tcp/81 no, y/a>x/a tcp/80 no",
        ),
        (
            "an empty list of types is left out",
            &["{podSelector: {}, policyTypes: [], egress: [{}]}"],
            "x/a>y/a tcp/9 yes, y/a>x/a tcp/9 no",
        ),
        (
            "ingress rules under Egress alone mean nothing",
            &["{podSelector: {}, policyTypes: [Egress], ingress: [{from: [{podSelector: {}}]}]}"],
            "y/a>x/a tcp/80 yes, x/a>y/a tcp/80 no",
        ),
        (
            "the same type twice",
            &["{podSelector: {}, policyTypes: [Ingress, Ingress]}"],
            "y/a>x/a tcp/80 no, x/a>y/a tcp/80 yes",
        ),
        (
            "an empty rule allows everything",
            &["{ingress: [{}]}"],
            "y/a>x/b tcp/80 yes, 203.0.113.9>x/b sctp/7 yes, y/a>x/b icmp yes",
        ),
        (
            "an empty from allows everybody",
            &["{ingress: [{from: [], ports: [{port: 80}]}]}"],
            "y/a>x/b tcp/80 yes, 203.0.113.9>x/b tcp/80 yes, y/a>x/b tcp/81 no",
        ),
        (
            "empty ports allow every protocol",
            &["{ingress: [{from: [{podSelector: {}}], ports: []}]}"],
            "x/a>x/b udp/9 yes, x/a>x/b icmp yes, y/a>x/b tcp/80 no",
        ),
        (
            "matchLabels are ANDed",
            &["{podSelector: {matchLabels: {app: a, role: client}}}"],
            "x/b>x/a tcp/80 no, x/a>x/b tcp/80 yes",
        ),
        (
            "matchLabels that nobody has all of",
            &["{podSelector: {matchLabels: {app: b, role: client}}}"],
            "x/b>x/a tcp/80 yes, x/a>x/b tcp/80 yes",
        ),
        (
            "In",
            &["{podSelector: {matchExpressions: [{key: app, operator: In, values: [b, q]}]}}"],
            "x/a>x/b tcp/80 no, x/b>x/a tcp/80 yes",
        ),
        (
            "NotIn matches a missing key",
            &["@y {podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [a]}]}}"],
            "x/a>y/c tcp/80 no, x/a>y/a tcp/80 yes",
        ),
        (
            "Exists",
            &["{podSelector: {matchExpressions: [{key: role, operator: Exists}]}}"],
            "x/b>x/a tcp/80 no, x/a>x/b tcp/80 yes",
        ),
        (
            "DoesNotExist",
            &[
                "{podSelector: {matchExpressions: [{key: role, operator: DoesNotExist, values: []}]}}",
            ],
            "x/b>x/a tcp/80 yes, x/a>x/b tcp/80 no",
        ),
        (
            "labels and expressions are ANDed",
            &[
                "{podSelector: {matchLabels: {app: a}, matchExpressions: [{key: role, operator: DoesNotExist}]}}",
            ],
            "x/b>x/a tcp/80 yes",
        ),
        (
            "podSelector means the own namespace",
            &["{ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}"],
            "x/a>x/b tcp/80 yes, y/a>x/b tcp/80 no",
        ),
        (
            "namespaceSelector means all pods there",
            &["{ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]}"],
            "y/a>x/b tcp/80 yes, y/c>x/b tcp/80 yes, x/a>x/b tcp/80 no, z/v6>x/b tcp/80 no",
        ),
        (
            "an empty namespaceSelector means all pods and nobody outside",
            &["{ingress: [{from: [{namespaceSelector: {}}]}]}"],
            "z/v6>x/b tcp/80 yes, x/a>x/b tcp/80 yes, 203.0.113.9>x/b tcp/80 no",
        ),
        (
            "both selectors in one peer are ANDed",
            &[
                "{ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: a}}}]}]}",
            ],
            "y/a>x/b tcp/80 yes, y/c>x/b tcp/80 no, x/a>x/b tcp/80 no",
        ),
        (
            "two peers are ORed",
            &[
                "{ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}, {podSelector: {matchLabels: {app: a}}}]}]}",
            ],
            "y/c>x/b tcp/80 yes, x/a>x/b tcp/80 yes",
        ),
        (
            "the name label is on every namespace",
            &[
                "{ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]}",
            ],
            "z/v6>x/b tcp/80 yes, y/a>x/b tcp/80 no",
        ),
        (
            "a namespace without the key",
            &[
                "{ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]}]}",
            ],
            "z/v6>x/b tcp/80 yes, y/a>x/b tcp/80 no",
        ),
        (
            "two rules are ORed",
            &["{ingress: [{ports: [{port: 80}]}, {from: [{podSelector: {}}]}]}"],
            "y/a>x/b tcp/80 yes, y/a>x/b tcp/81 no, x/a>x/b tcp/81 yes",
        ),
        (
            "policies are a union",
            &[
                "{podSelector: {matchLabels: {app: b}}}",
                "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {}}]}]}",
            ],
            "x/a>x/b tcp/80 yes, y/a>x/b tcp/80 no",
        ),
        (
            "egress and ingress must both allow",
            &[
                "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{ports: [{port: 80}, {port: 81}]}]}",
                "@y {podSelector: {}, ingress: [{ports: [{port: 81}, {port: 82}]}]}",
            ],
            "x/a>y/a tcp/80 no, x/a>y/a tcp/81 yes, x/a>y/a tcp/82 no, x/b>y/a tcp/82 yes",
        ),
        (
            "a policy of another namespace selects nobody here",
            &["@y {podSelector: {}}"],
            "y/a>x/b tcp/80 yes, x/a>y/a tcp/80 no",
        ),
        (
            "replies need no rule: only opening counts",
            &["{podSelector: {matchLabels: {app: b}}, policyTypes: [Egress]}"],
            "x/a>x/b tcp/80 yes, x/b>x/a tcp/80 no",
        ),
        (
            "ipBlock means the outside and pods",
            &["{ingress: [{from: [{ipBlock: {cidr: 10.0.2.0/24}}]}]}"],
            "y/a>x/b tcp/80 yes, x/a>x/b tcp/80 no, 10.0.2.99>x/b tcp/80 yes, 10.0.3.1>x/b tcp/80 no",
        ),
        (
            "except cuts out",
            &[
                "{ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.0/25, 203.0.113.200/32]}}]}]}",
            ],
            "203.0.113.5>x/b tcp/80 no, 203.0.113.130>x/b tcp/80 yes, 203.0.113.200>x/b tcp/80 no",
        ),
        (
            "another block brings back what except cut",
            &[
                "{ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.0/25]}}, {ipBlock: {cidr: 203.0.113.5/32}}]}]}",
            ],
            "203.0.113.5>x/b tcp/80 yes, 203.0.113.6>x/b tcp/80 no",
        ),
        (
            "host bits in a cidr are ignored",
            &["{ingress: [{from: [{ipBlock: {cidr: 203.0.113.77/24}}]}]}"],
            "203.0.113.5>x/b tcp/80 yes",
        ),
        (
            "0.0.0.0/0 is not IPv6",
            &["{ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"],
            "203.0.113.5>x/b tcp/80 yes, 2001:db8::1>x/b tcp/80 no, z/v6>x/b tcp/80 no",
        ),
        (
            "::/0 is not IPv4",
            &["{ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]}"],
            "2001:db8::1>x/b tcp/80 yes, 203.0.113.5>x/b tcp/80 no",
        ),
        (
            "selectors never mean the outside",
            &["{policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}"],
            "x/a>y/a tcp/80 yes, x/a>203.0.113.9 tcp/80 no",
        ),
        (
            "egress to a block",
            &[
                "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 443}]}]}",
            ],
            "x/a>203.0.113.9 tcp/443 yes, x/a>203.0.113.9 tcp/80 no, x/a>198.51.100.1 tcp/443 no, x/a>y/a tcp/443 no",
        ),
        (
            "the protocol is TCP when left out",
            &["{ingress: [{ports: [{port: 80}]}]}"],
            "y/a>x/b tcp/80 yes, y/a>x/b udp/80 no, y/a>x/b sctp/80 no",
        ),
        (
            "a protocol without a port is all of its ports",
            &["{ingress: [{ports: [{protocol: UDP}]}]}"],
            "y/a>x/b udp/9 yes, y/a>x/b tcp/9 no, y/a>x/b icmp no",
        ),
        (
            "an empty port is all of TCP",
            &["{ingress: [{ports: [{}]}]}"],
            "y/a>x/b tcp/9 yes, y/a>x/b udp/9 no",
        ),
        (
            "SCTP is neither TCP nor UDP",
            &["{ingress: [{ports: [{protocol: SCTP, port: 80}]}]}"],
            "y/a>x/b sctp/80 yes, y/a>x/b tcp/80 no, y/a>x/b udp/80 no",
        ),
        (
            "protocols in any case",
            &["{ingress: [{ports: [{protocol: udp, port: 80}]}]}"],
            "y/a>x/b UDP/80 yes, y/a>x/b Tcp/80 no",
        ),
        (
            "endPort is part of the range",
            &["{ingress: [{ports: [{port: 80, endPort: 82}]}]}"],
            "y/a>x/b tcp/79 no, y/a>x/b tcp/80 yes, y/a>x/b tcp/82 yes, y/a>x/b tcp/83 no",
        ),
        (
            "endPort may be the port",
            &["{ingress: [{ports: [{port: 80, endPort: 80}]}]}"],
            "y/a>x/b tcp/80 yes, y/a>x/b tcp/81 no",
        ),
        (
            "a named port is the destination's",
            &["{ingress: [{ports: [{port: web}]}]}"],
            "y/a>x/b tcp/80 yes, y/a>x/b tcp/8080 no, y/a>x/a tcp/80 no",
        ),
        (
            "a named port of egress is the destination's too",
            &["{policyTypes: [Egress], egress: [{ports: [{port: web}]}]}"],
            "x/a>x/b tcp/80 yes, x/a>y/a tcp/8080 yes, x/a>y/a tcp/80 no, x/a>y/c tcp/80 no, x/a>203.0.113.9 tcp/80 no",
        ),
        (
            "a named port is of one protocol",
            &["{ingress: [{ports: [{port: dns, protocol: UDP}]}]}"],
            "y/a>x/b udp/53 yes, y/a>x/b udp/5353 no, y/a>x/b tcp/5353 no, y/a>x/b udp/dns yes",
        ),
        (
            "the same name of the other protocol",
            &["{ingress: [{ports: [{port: dns}]}]}"],
            "y/a>x/b tcp/5353 yes, y/a>x/b udp/53 no, y/a>x/b tcp/53 no",
        ),
        (
            "a named port that nobody has opens nothing",
            &["{ingress: [{ports: [{port: gone}]}]}"],
            "y/a>x/b tcp/80 no, y/a>x/b tcp/gone no",
        ),
        (
            "a named port that nobody has beside one that is",
            &["{ingress: [{ports: [{port: gone}, {port: 81}]}]}"],
            "y/a>x/b tcp/81 yes, y/a>x/b tcp/80 no",
        ),
        (
            "numbers as label values need quotes",
            &["{ingress: [{from: [{namespaceSelector: {matchLabels: {tier: '1'}}}]}]}"],
            "x/a>x/b tcp/80 yes, y/a>x/b tcp/80 no",
        ),
    ];
    assert!(table.len() >= 40);
    for (what, specs, questions) in table {
        let wrong = ask(specs, questions);
        assert!(wrong.is_empty(), "{what}: {wrong:?}");
    }
}

/// The problem that a policy named `shop/bad` has.
fn refused(text: &str) -> crate::api::Problem {
    match read_policies("file.yaml", text, NOW) {
        Ok(read) => panic!("was read: {text}\n{read:?}"),
        Err(problem) => problem,
    }
}

#[test]
fn what_kubernetes_would_refuse_is_refused_by_name() {
    let table = [
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]", "cidr"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]", "cidr"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.256/8}}]}]", "cidr"),
        ("ingress: [{from: [{ipBlock: {cidr: ''}}]}]", "cidr"),
        ("ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]", "cidr"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/+8}}]}]", "cidr"),
        ("ingress: [{from: [{ipBlock: {}}]}]", "ipBlock"),
        ("ingress: [{from: [{ipBlock: {except: [10.0.0.0/8]}}]}]", "ipBlock"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]", "except[0]"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]", "except[0]"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}]}]", "except[0]"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/16']}}]}]", "except[0]"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: 10.1.0.0/16}}]}]", "except"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]", "from[0]"),
        ("ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}]}]", "from[0]"),
        ("ingress: [{from: [{}]}]", "from[0]"),
        ("ingress: [{from: [null]}]", "from[0]"),
        ("ingress: [{from: {podSelector: {}}}]", "from"),
        ("ingress: [{to: [{podSelector: {}}]}]", "to"),
        ("egress: [{from: [{podSelector: {}}]}]", "from"),
        ("ingress: {}", "ingress"),
        ("ingress: [{ports: [{port: 0}]}]", "port"),
        ("ingress: [{ports: [{port: 65536}]}]", "port"),
        ("ingress: [{ports: [{port: -1}]}]", "port"),
        ("ingress: [{ports: [{port: 80.5}]}]", "port"),
        ("ingress: [{ports: [{port: '80'}]}]", "port"),
        ("ingress: [{ports: [{port: ''}]}]", "port"),
        ("ingress: [{ports: [{port: Web}]}]", "port"),
        ("ingress: [{ports: [{port: web--x}]}]", "port"),
        ("ingress: [{ports: [{port: much-too-long-name}]}]", "port"),
        ("ingress: [{ports: [{port: 80, endPort: 79}]}]", "endPort"),
        ("ingress: [{ports: [{port: 80, endPort: 65536}]}]", "endPort"),
        ("ingress: [{ports: [{port: web, endPort: 90}]}]", "endPort"),
        ("ingress: [{ports: [{endPort: 90}]}]", "endPort"),
        ("ingress: [{ports: [{port: 80, protocol: ICMP}]}]", "protocol"),
        ("ingress: [{ports: [{port: 80, protocol: ''}]}]", "protocol"),
        ("ingress: [{ports: [{ports: 80}]}]", "ports"),
        ("ingress: [{ports: [80]}]", "ports[0]"),
        ("policyTypes: [ingress]", "policyTypes[0]"),
        ("policyTypes: [Ingress, Egress, Ingress]", "policyTypes[2]"),
        ("policyTypes: Ingress", "policyTypes"),
        ("podSelector: {app: web}", "app"),
        ("podSelector: {matchLabels: {app: 1}}", "app"),
        ("podSelector: {matchLabels: {'-app': x}}", "-app"),
        ("podSelector: {matchLabels: {app: 'a b'}}", "app"),
        ("podSelector: {matchLabels: [app]}", "matchLabels"),
        ("podSelector: {matchExpressions: [{key: a, operator: In}]}", "values"),
        ("podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}", "values"),
        ("podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}", "values"),
        ("podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}", "operator"),
        ("podSelector: {matchExpressions: [{operator: Exists}]}", "key"),
        ("podSelector: {matchExpressions: [{key: a}]}", "operator"),
        ("podSelector: {matchExpressions: [{key: 'a b', operator: Exists}]}", "key"),
        ("podSelector: {matchExpressions: [{key: a, operator: In, values: ['-x']}]}", "values[0]"),
        ("podSelectors: {}", "podSelectors"),
        ("ingress: [{}], ingress: []", "ingress"),
    ];
    for (spec, field) in table {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: bad, \
             namespace: shop}}\nspec: {{{spec}}}\n"
        );
        let problem = refused(&text);
        let shown = problem.to_string();
        assert_eq!(problem.code.exit_code(), 2, "{spec}");
        assert!(shown.contains("file.yaml:4"), "{spec}: {shown}");
        // What is no document at all has no name yet.
        let is_repeated = spec.contains("[{}], ingress");
        assert!(is_repeated || shown.contains("shop/bad"), "{spec}: {shown}");
        assert!(shown.contains(field), "{spec}: {shown}");
    }
}

#[test]
fn documents_that_are_no_network_policy_are_refused() {
    let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";
    for text in [
        format!("{head}spec: {{}}\n"),
        format!("{head}metadata: {{}}\nspec: {{}}\n"),
        format!("{head}metadata: {{name: ''}}\n"),
        format!("{head}metadata: {{name: Upper}}\n"),
        format!("{head}metadata: {{name: a_b}}\n"),
        format!("{head}metadata: {{name: 7}}\n"),
        format!("{head}metadata: {{name: {}}}\n", "a".repeat(254)),
        format!("{head}metadata: {{name: a, namespace: a.b}}\n"),
        format!("{head}metadata: {{name: a, nmespace: b}}\n"),
        format!("{head}metadata: {{name: a, labels: {{a: 'b c'}}}}\n"),
        format!("{head}metadata: {{name: a, annotations: {{'a b': c}}}}\n"),
        format!("{head}metadata: {{name: a}}\nspecs: {{}}\n"),
        format!("{head}metadata: {{name: a}}\nspec: []\n"),
        "kind: NetworkPolicy\nmetadata: {name: a}\n".to_owned(),
        "apiVersion: networking.k8s.io/v1\nmetadata: {name: a}\n".to_owned(),
        "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}\n".to_owned(),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n".to_owned(),
        "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod}]\n".to_owned(),
        "apiVersion: v1\nkind: List\nitems: [{}]\n".to_owned(),
        "- a\n".to_owned(),
        "just words\n".to_owned(),
        "{}\n".to_owned(),
    ] {
        assert_eq!(refused(&text).code.exit_code(), 2, "{text}");
    }
    assert!(read_policies("f", &format!("{head}metadata: {{name: a.b-c}}\n"), NOW).is_ok());
}

#[test]
fn lists_and_what_a_cluster_writes_are_read() {
    let exported = r#"{"apiVersion":"v1","kind":"List","metadata":{"resourceVersion":""},"items":[
      {"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a","namespace":"x",
       "uid":"u","resourceVersion":"12","generation":1,"creationTimestamp":"2024-01-01T00:00:00Z",
       "annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}\n"},"managedFields":[{"manager":"k"}]},
       "spec":{"podSelector":{},"policyTypes":["Ingress"]},"status":{}},
      {"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicyList","items":[{"metadata":{"name":"b"},"spec":{}}]}
    ]}"#;
    let read = read_policies("f", exported, NOW).unwrap();
    assert_eq!(read.len(), 2);

    let generated = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: \
                     {generateName: deny-}\nspec: {podSelector: {}}\n";
    assert_eq!(read_policies("f", generated, NOW).unwrap().len(), 1);
    assert_eq!(read_policies("f", "---\n---\n# nothing\n", NOW).unwrap(), []);
}

#[test]
fn in_a_default_deny_overlay_only_what_a_policy_speaks_of_opens() {
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: \
                  x}\nspec: {podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {}}, \
                  {ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80}]}]}\n";
    let tests = "- {from: x/a, to: x/b, port: 80, allow: true}\n\
                 - {from: x/a, to: x/b, port: 81, allow: false}\n\
                 - {from: x/b, to: x/a, port: 80, allow: false}\n\
                 - {from: y/a, to: y/c, port: 80, allow: false}\n\
                 - {from: y/a, to: x/b, port: 80, allow: false}\n\
                 - {from: 10.9.9.9, to: x/b, port: 80, allow: true}\n\
                 - {from: x/b, to: 10.9.9.9, port: 80, allow: false}\n";
    let inventory = read_inventory("town", TOWN, NOW).unwrap();
    let documents = read_policies("p", policy, NOW).unwrap();
    let semantics = Some(crate::api::admin::Semantics::DefaultDeny);
    let scene = Scene::new(&inventory, &documents, semantics, NOW).unwrap();

    let examination = examine(&scene, &read_test_file("t", tests).unwrap()).unwrap();

    assert_eq!((examination.passed, examination.failed), (7, 0), "{examination:?}");
}

#[test]
fn the_same_policy_twice_is_refused() {
    let one = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";
    let inventory = read_inventory("town", TOWN, NOW).unwrap();
    let twice = read_policies("p", &one.repeat(2), NOW).unwrap();

    let problem = Scene::new(&inventory, &twice, None, NOW).unwrap_err();

    assert!(problem.what.contains("default/p"), "{problem}");
    assert!(Scene::new(&inventory, &twice[..1], None, NOW).is_ok());
}

//! ovmesh policy files: what they mean, and what is refused with line and nearest name.

use crate::api::Problem;
use crate::api::admin::Semantics;
use crate::policy::{
    FindingKind, Matrix, Observed, Scene, difference, examine, lint, read_inventory, read_policies,
    read_test_file, refuse_nothing,
};
use crate::types::Timestamp;

const NOW: Timestamp = Timestamp(1_000);

const TOWN: &str = "
namespaces: {shop: {labels: {team: red}}}
entities:
  - {name: web, labels: {role: web}, address: 10.70.0.1}
  - {name: db, labels: {role: db}, address: 10.70.0.2, ports: [{name: sql, port: 5432}]}
  - {namespace: shop, name: web, labels: {role: web, tier: front}, address: 10.70.0.3}
  - {namespace: shop, name: cache, address: 10.70.0.4}
";

fn scene_with(semantics: Semantics, policy: &str) -> Result<Scene, Problem> {
    let inventory = read_inventory("town.yaml", TOWN, NOW)?;
    let documents = read_policies("policy.yaml", policy, NOW)?;
    Scene::new(&inventory, &documents, Some(semantics), NOW)
}

fn scene(policy: &str) -> Scene {
    scene_with(Semantics::DefaultDeny, policy).unwrap()
}

/// Answers `web>db tcp/80 yes, …`; what is wrong is returned.
fn wrong(scene: &Scene, questions: &str) -> Vec<String> {
    let mut tests = String::new();
    for question in questions.split(", ") {
        let words: Vec<&str> = question.split(' ').collect();
        let [ends, service, answer] = words[..] else { panic!("{question}") };
        let (from, to) = ends.split_once('>').unwrap();
        let service = match service.split_once('/') {
            _ if service == "*" => String::new(),
            Some((protocol, port)) => format!("protocol: {protocol}, port: {port}, "),
            None => format!("protocol: {service}, "),
        };
        let allow = answer == "yes";
        tests.push_str(&format!("- {{from: '{from}', to: '{to}', {service}allow: {allow}}}\n"));
    }
    let tests = read_test_file("tests.yaml", &tests).unwrap();
    let results = examine(scene, &tests).unwrap().results.into_iter();
    results
        .filter(|r| r.expected != r.allowed)
        .map(|r| format!("{} > {} {:?}: {}", r.from, r.to, r.port, r.why))
        .collect()
}

#[test]
fn every_construct_of_a_rule_means_what_it_says() {
    let table = [
        ("rules: []", "web>db tcp/80 no, web>web tcp/80 yes, web>203.0.113.1 tcp/80 no"),
        (
            "rules: [{action: allow, from: web, to: db}]",
            "web>db tcp/1 yes, web>db icmp yes, db>web tcp/1 no, shop/web>db tcp/1 no, web>db * yes, db>web * no",
        ),
        (
            "rules: [{action: allow, from: web, to: db, both: true, ports: tcp/80}]",
            "web>db tcp/80 yes, db>web tcp/80 yes, db>web tcp/81 no",
        ),
        (
            "rules: [{action: allow, from: role=web, to: any}]",
            "shop/web>db tcp/1 yes, web>shop/web tcp/1 yes, db>web tcp/1 no, web>203.0.113.1 tcp/1 no",
        ),
        (
            "rules: [{action: allow, from: 'role=web,tier=front', to: db}]",
            "shop/web>db tcp/1 yes, web>db tcp/1 no",
        ),
        (
            "rules: [{action: allow, from: 'namespace:shop', to: db}]",
            "shop/cache>db tcp/1 yes, web>db tcp/1 no",
        ),
        (
            "groups: {g: [role=db, shop/cache]}\nrules: [{action: allow, from: web, to: 'group:g'}]",
            "web>db tcp/1 yes, web>shop/cache tcp/1 yes, web>shop/web tcp/1 no",
        ),
        (
            "groups: {g: 203.0.113.0/24}\nrules: [{action: allow, from: 'group:g', to: db}]",
            "203.0.113.1>db tcp/1 yes, web>db tcp/1 no",
        ),
        (
            "rules: [{action: allow, from: [web, shop/web], to: [db, shop/cache]}]",
            "web>db tcp/1 yes, shop/web>shop/cache tcp/1 yes, db>shop/cache tcp/1 no",
        ),
        (
            "rules: [{action: allow, from: 203.0.113.0/24!203.0.113.128/25, to: db}]",
            "203.0.113.1>db tcp/1 yes, ip:203.0.113.200>db tcp/1 no",
        ),
        (
            "rules: [{action: allow, from: 10.70.0.0/16, to: db}]",
            "web>db tcp/1 no, 10.70.0.1>db tcp/1 no, 10.70.0.99>db tcp/1 yes",
        ),
        (
            "rules: [{action: allow, from: web, to: 203.0.113.7}]",
            "web>203.0.113.7 udp/53 yes, web>203.0.113.8 udp/53 no",
        ),
        (
            "rules: [{action: allow, from: web, to: db, ports: [tcp/443, 'tcp/8000-8999', udp, icmp, 47]}]",
            "web>db tcp/443 yes, web>db tcp/8500 yes, web>db tcp/9000 no, web>db udp/9 yes, web>db icmp yes, web>db 47 yes, web>db sctp/1 no",
        ),
        (
            "rules: [{action: allow, from: web, to: any, ports: tcp/sql}]",
            "web>db tcp/5432 yes, web>db tcp/sql yes, web>db tcp/1 no, web>shop/web tcp/5432 no",
        ),
        (
            "rules: [{action: allow, from: web, to: db}, {action: deny, from: any, to: db, ports: tcp/22}]",
            "web>db tcp/22 no, web>db tcp/23 yes",
        ),
        (
            "rules: [{action: deny, from: web, to: db}, {action: allow, from: any, to: any}]",
            "web>db tcp/22 no, db>web tcp/23 yes",
        ),
        (
            "rules: [{action: allow, from: web, to: db, notAfter: '1970-01-01T00:16:41Z'}]",
            "web>db tcp/1 yes",
        ),
        (
            "rules: [{action: allow, from: web, to: db, notAfter: '1970-01-01T00:16:40Z'}]",
            "web>db tcp/1 no",
        ),
        ("rules: [{action: allow, from: web, to: db, expires: 1h}]", "web>db tcp/1 yes"),
        (
            "rules: [{action: deny, from: web, to: db, audit: true}, {action: allow, from: web, to: db}]",
            "web>db tcp/1 yes",
        ),
        (
            "rules: [{action: allow, from: web, to: db, path: direct, reason: why not}]",
            "web>db tcp/1 yes",
        ),
        (
            "apiVersion: ovmesh/v1\nkind: Policy\noverlay: lab\nservices: {api: role=web}\nrules: [{action: allow, from: web, to: db, path: [sap-1, sap-2]}]",
            "web>db tcp/1 yes",
        ),
    ];
    for (policy, questions) in table {
        let wrong = wrong(&scene(policy), questions);
        assert!(wrong.is_empty(), "{policy}: {wrong:?}");
    }
}

#[test]
fn in_a_kubernetes_overlay_rules_go_before_what_is_open() {
    let policy = "rules: [{action: deny, from: 10.70.0.1, to: db}, {action: allow, from: shop/cache, to: shop/web}]\n\
                  ---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n";
    let scene = scene_with(Semantics::Kubernetes, policy).unwrap();

    let wrong = wrong(
        &scene,
        "web>db tcp/1 no, shop/web>db tcp/1 yes, db>shop/web tcp/1 no, shop/cache>shop/web tcp/1 yes, \
         shop/web>shop/cache tcp/1 no",
    );

    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn mistakes_are_refused_with_line_and_nearest_name() {
    let rule =
        |text: &str| format!("apiVersion: ovmesh/v1\nkind: Policy\nrules:\n  - {{{text}}}\n");
    let table = [
        (rule("action: alow, from: web, to: db"), 4, "allow or deny"),
        (rule("from: web, to: db"), 4, "`action` is missing"),
        (rule("action: allow, to: db"), 4, "`from` is missing"),
        (rule("action: allow, from: wbe, to: db"), 4, "did you mean web?"),
        (rule("action: allow, from: shop/wbe, to: db"), 4, "did you mean shop/web?"),
        (rule("action: allow, from: web, to: 'group:gone'"), 4, "no group gone"),
        (rule("action: allow, form: web, to: db"), 4, "did you mean from?"),
        (rule("action: allow, from: [], to: db"), 4, "empty list"),
        (rule("action: allow, from: web, to: db, ports: tcp/70000"), 4, "tcp/70000"),
        (rule("action: allow, from: web, to: db, ports: [tcp/9-8]"), 4, "tcp/9-8"),
        (rule("action: allow, from: web, to: db, ports: []"), 4, "empty list"),
        (rule("action: allow, from: web, to: db, both: maybe"), 4, "true or false"),
        (rule("action: allow, from: web, to: db, expires: soon"), 4, "duration"),
        (
            rule("action: allow, from: web, to: db, expires: 1h, notAfter: '2030-01-01T00:00:00Z'"),
            4,
            "give one",
        ),
        (rule("action: allow, from: web, to: db, notAfter: tomorrow"), 4, "RFC 3339"),
        (rule("action: allow, from: web, to: db, path: [sap-1, sap-1]"), 4, "twice"),
        (rule("action: allow, from: web, to: db, path: []"), 4, "no SaP"),
        (rule("action: deny, from: web, to: db, path: direct"), 4, "no path"),
        (rule("action: allow, from: 10.0.0.1/8, to: db"), 4, "10.0.0.0/8"),
        (rule("action: allow, from: 10.0.0.0/8!11.0.0.0/16, to: db"), 4, "11.0.0.0/16"),
        (
            rule(
                "action: allow, from: web, to: db, path: direct}\n  - {action: allow, from: db, to: web, path: [sap-1]",
            ),
            5,
            "policy.yaml:4",
        ),
        // What a server refuses, too.
        (rule("action: allow, from: web, to: web"), 4, "both ends of the rule are web"),
        (rule("action: allow, from: [shop/web, db], to: db"), 4, "both ends of the rule are db"),
        (rule("action: allow, from: 10.0.0.0/8, to: 192.0.2.1"), 4, "is a member"),
        (rule("action: allow, from: web, to: db, ports: tcp/sqk"), 4, "db has no port tcp/sqk"),
        (rule("action: allow, from: web, to: db, ports: udp/sql"), 4, "db has no port udp/sql"),
        (
            rule(&format!("action: allow, from: web, to: db, name: {}", "n".repeat(101))),
            4,
            "100 bytes",
        ),
        (
            rule(&format!("action: allow, from: web, to: db, reason: {}", "n".repeat(1001))),
            4,
            "too long",
        ),
        ("groups: {a: ['group:b']}".to_owned(), 1, "holds no groups"),
        ("groups: {a: dbb}".to_owned(), 1, "did you mean db?"),
        ("groups: {A: db}".to_owned(), 1, "not a valid name"),
        ("services: {api: web}\nrules: []".to_owned(), 1, "labels"),
        ("rulse: []\ntests: []".to_owned(), 1, "did you mean rules?"),
        ("apiVersion: ovmesh/v2\nrules: []".to_owned(), 1, "ovmesh/v1"),
        ("apiVersion: ovmesh/v1\nkind: Polcy\nrules: []".to_owned(), 2, "Policy"),
        ("rules: []\ntests: [{from: web, to: db}]".to_owned(), 2, "`allow` is missing"),
        ("rules: []\ntests: [{from: web, to: db, port: 0, allow: true}]".to_owned(), 2, "port"),
        (
            "rules: []\ntests: [{from: web, to: db, port: 80-90, allow: false}]".to_owned(),
            2,
            "80-90",
        ),
        (
            "rules: []\ntests: [{from: web, to: db, port: 1, protocol: icmp, allow: true}]"
                .to_owned(),
            2,
            "no ports",
        ),
        (
            "rules: []\ntests: [{from: web, to: db, protocol: tpc, allow: true}]".to_owned(),
            2,
            "tpc",
        ),
    ];
    // The other direction has the port; labels may mean somebody who has it later.
    for fits in [
        "from: web, to: db, ports: tcp/sql",
        "from: db, to: web, both: true, ports: tcp/sql",
        "from: db, to: role=web, ports: tcp/sql",
        "from: 10.0.0.0/8, to: db",
    ] {
        assert!(
            scene_with(Semantics::DefaultDeny, &rule(&format!("action: allow, {fits}"))).is_ok()
        );
    }
    for (policy, line, says) in table {
        let problem = scene_with(Semantics::DefaultDeny, &policy).unwrap_err();
        let text = problem.to_string();
        assert_eq!(problem.code.exit_code(), 2, "{policy}");
        assert!(text.starts_with(&format!("policy.yaml:{line}")), "{policy}: {text}");
        assert!(text.contains(says), "{policy}: {text}");
    }
}

#[test]
fn files_that_hold_nothing_are_no_policy() {
    let nothing = ["", "---\n", "# rules: []\n"].map(|text| ("f", text));
    let problem = refuse_nothing(nothing).unwrap_err();
    assert_eq!(problem.what, "f, f, f: no policy");
    for something in ["rules: []", "apiVersion: v1\nkind: List\nitems: []"] {
        assert!(refuse_nothing([("f", ""), ("g", something)]).is_ok(), "{something}");
    }
    assert!(refuse_nothing([]).is_ok(), "no files");
}

#[test]
fn bad_inventories_and_tests_are_refused() {
    for bad in [
        "entities: [{address: 10.0.0.1}]",
        "entities: [{name: a}, {name: a}]",
        "entities: [{name: a, address: 10.0.0.1}, {name: b, address: 10.0.0.1}]",
        "entities: [{name: a, address: 10.0.0.999}]",
        "entities: [{name: a, labels: {a: 1}}]",
        "entities: [{name: a, ports: [{port: 0}]}]",
        "entities: [{name: a, ports: [{port: 1, protocol: icmp}]}]",
        "entities: {a: {}}",
        "semantics: open",
        "namespaces: {shop: {team: red}}",
        "entitys: []",
        "a: 1\n---\nb: 1",
        "",
    ] {
        assert_eq!(read_inventory("i", bad, NOW).unwrap_err().code.exit_code(), 2, "{bad}");
    }
    assert!(read_inventory("i", "entities: [{name: a}]", NOW).is_ok());

    let scene = scene("rules: []");
    for (ends, says) in [
        ("from: wbe, to: db", "did you mean web?"),
        ("from: 'ip:10.0.0.999', to: db", "nobody"),
        ("from: 203.0.113.1, to: 203.0.113.2", "neither"),
    ] {
        let tests = read_test_file("t", &format!("- {{{ends}, port: 1, allow: true}}")).unwrap();
        let problem = examine(&scene, &tests).unwrap_err();
        assert_eq!(problem.code.exit_code(), 2);
        assert!(problem.what.starts_with("t:1: "), "{problem}");
        assert!(problem.to_string().contains(says), "{problem}");
    }
}

#[test]
fn results_have_the_shape_of_the_contract() {
    let scene = scene("rules: [{name: r, action: allow, from: web, to: db, ports: tcp/80}]");
    let tests = "- {from: default/web, to: ip:10.70.0.2, protocol: TCP, port: 80, allow: true}\n\
                 - {from: web, to: db, allow: false}\n";
    let examination = examine(&scene, &read_test_file("t", tests).unwrap()).unwrap();

    assert_eq!(
        examination.json(),
        serde_json::json!({
            "apiVersion": "ovmesh/v1",
            "results": [
                {"from": "default/web", "to": "ip:10.70.0.2", "protocol": "TCP", "port": 80,
                 "expected": true, "allowed": true, "rule": "r"},
                {"from": "web", "to": "db", "protocol": null, "port": null,
                 "expected": false, "allowed": true, "rule": "r"},
            ],
            "passed": 1,
            "failed": 1,
        })
    );
}

#[test]
fn lint_finds_what_does_nothing_or_too_much() {
    let table = [
        ("{action: allow, from: web, to: db}", None),
        ("{action: allow, from: any, to: any}", Some(FindingKind::TooBroad)),
        (
            "{action: allow, from: web, to: db, notAfter: '1970-01-01T00:00:01Z'}",
            Some(FindingKind::Expired),
        ),
        ("{action: allow, from: role=gone, to: db}", Some(FindingKind::Dangling)),
        (
            "{action: allow, from: web, to: db, ports: tcp/22}, {action: deny, from: any, to: db, ports: tcp/1-99}",
            Some(FindingKind::Shadowed),
        ),
        (
            "{action: allow, from: web, to: db, ports: tcp/100}, {action: deny, from: any, to: db, ports: tcp/1-99}",
            None,
        ),
        (
            "{action: allow, from: web, to: db}, {action: allow, from: web, to: db, ports: tcp}",
            Some(FindingKind::Redundant),
        ),
        (
            "{action: allow, from: web, to: db, ports: tcp}, {action: allow, from: web, to: db, ports: udp}",
            None,
        ),
        (
            "{action: allow, from: web, to: db}, {action: allow, from: web, to: db}",
            Some(FindingKind::Redundant),
        ),
        ("{action: allow, from: 203.0.113.0/24, to: db}", None),
        ("{action: allow, from: web, to: 0.0.0.0/0}", Some(FindingKind::TooBroad)),
        ("{action: allow, from: web, to: 0.0.0.0/0, ports: tcp/443}", None),
        // What ends sooner takes nothing away from what stays.
        (
            "{action: allow, from: web, to: db, expires: 1h}, {action: allow, from: web, to: db, ports: tcp}",
            None,
        ),
        (
            "{action: allow, from: web, to: db}, {action: allow, from: web, to: db, expires: 1h}",
            Some(FindingKind::Redundant),
        ),
        (
            "{action: allow, from: web, to: db}, {action: deny, from: any, to: db, expires: 1h}",
            None,
        ),
        // It gives the path.
        (
            "{action: allow, from: web, to: db}, {action: allow, from: web, to: db, ports: tcp, path: [s1]}",
            None,
        ),
    ];
    for (rules, expected) in table {
        let found = lint(&scene(&format!("rules: [{rules}]")), &Observed::default());
        let kinds: Vec<FindingKind> = found.iter().map(|finding| finding.kind).collect();
        assert_eq!(kinds, expected.into_iter().collect::<Vec<_>>(), "{rules}: {found:?}");
    }
}

#[test]
fn the_matrix_and_the_difference_speak_of_pairs_and_ports() {
    let old = scene("rules: [{action: allow, from: web, to: db, ports: tcp/80-90}]");
    let new = scene(
        "rules: [{action: allow, from: web, to: db, ports: [tcp/85-95, udp/53]}, \
         {action: allow, from: db, to: web}, {action: deny, from: db, to: web, ports: tcp/22}]",
    );

    let matrix = Matrix::new(&new);
    let pairs = matrix.pairs.iter().map(|pair| format!("{} {} {}", pair.from, pair.to, pair.reach));
    assert_eq!(
        pairs.collect::<Vec<_>>(),
        ["default/web default/db tcp/85-95,udp/53", "default/db default/web any but tcp/22"]
    );
    let changes = difference(&old, &new);
    assert_eq!(changes.len(), 2);
    assert_eq!(changes[0].gained, ["tcp/91-95", "udp/53"]);
    assert_eq!(changes[0].lost, ["tcp/80-84"]);
    assert_eq!(changes[1].gained, ["any but tcp/22"]);
    assert!(difference(&old, &old).is_empty());
}

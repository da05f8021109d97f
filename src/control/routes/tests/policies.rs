//! Policies as files at the server: applied whole, refused whole, remembered, taken back.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

/// A town: web and db (role=db) in default, shop/web; a SaP.
async fn town() -> World {
    let world = world().await;
    world.join("sap-1", "sap", json!({})).await;
    world.join("web", "entity", json!({})).await;
    world.join("db", "entity", json!({"labels": ["role=db"]})).await;
    world.join("web", "entity", json!({"namespaces": ["shop"]})).await;
    world
}

const FILE: &str = "\
overlay: default
groups: {backends: [role=db, web]}
services: {store: role=db}
rules:
  - {name: web-to-db, action: allow, from: web, to: \"service:store\", ports: [tcp/5432]}
  - {action: allow, from: shop/web, to: \"group:backends\", ports: [tcp/80, sctp/9, icmp, 47], reason: \"why: because\"}
  - {action: deny, from: any, to: \"10.0.0.0/8!10.1.0.0/16\", audit: true}
tests:
  - {from: web, to: db, protocol: tcp, port: 5432, allow: true}
  - {from: db, to: web, allow: false}
";

impl World {
    async fn apply(&self, text: &str, query: &str) -> (StatusCode, Value) {
        let body = json!({"files": [{"source": "p.yaml", "text": text}]});
        self.post(&format!("/v1/policy/apply{query}"), body).await
    }

    async fn applied(&self, text: &str) -> Value {
        let (status, value) = self.apply(text, "").await;
        assert_eq!(status, StatusCode::OK, "{value}");
        value
    }

    async fn export(&self) -> String {
        self.get("/v1/policy/export").await["text"].as_str().unwrap().to_owned()
    }

    async fn revision(&self) -> u64 {
        self.get("/v1/status").await["revision"].as_u64().unwrap()
    }

    /// The ids of all rules, in order.
    async fn ids(&self) -> Vec<u64> {
        let rules = self.get("/v1/rules").await;
        rules["items"].as_array().unwrap().iter().map(|rule| rule["id"].as_u64().unwrap()).collect()
    }
}

#[tokio::test]
async fn what_is_exported_and_applied_again_changes_nothing() {
    let world = town().await;
    world.applied(FILE).await;
    let (revision, exported) = (world.revision().await, world.export().await);

    let again = world.applied(&exported).await;

    assert_eq!(again["result"]["changed"], false, "{again}");
    assert_eq!(world.revision().await, revision);
    assert_eq!(world.export().await, exported);
    for part in ["name: web-to-db", "group:backends", "sctp/9", "audit: true", "why: because"] {
        assert!(exported.contains(part), "{part}: {exported}");
    }
}

/// A policy that a seed chooses.
fn random_policy(seed: u64) -> String {
    let mut random = StdRng::seed_from_u64(seed);
    let mut one = |of: &[Value]| of[random.random_range(0..of.len())].clone();
    let ends: Vec<Value> =
        ["any", "web", "shop/web", "role=db", "namespace:shop", "group:g", "service:s"]
            .map(Value::from)
            .into();
    let ports =
        [Value::Null, json!("tcp/80"), json!(["udp", "tcp/1-9"]), json!(["icmp", "47", "tcp/443"])];
    let texts = [json!("a: b"), json!("it's \"quoted\" # not a comment"), json!("- 7"), json!("")];
    let flags = [json!(true), json!(false), json!(false)];
    let rule = |_| {
        json!({"action": one(&[json!("allow"), json!("deny")]), "from": one(&ends), "to": one(&ends),
            "ports": one(&ports), "both": one(&flags), "audit": one(&flags), "reason": one(&texts)})
    };
    // Both ends of a rule may not be the same single entity.
    let rules = (0..8).map(rule).filter(|rule| rule["from"] != rule["to"]);
    let rules: Vec<Value> = rules.collect();
    let selectors = [json!({}), json!({"matchLabels": {"role": "db"}})];
    let network = |name: u32| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("p{name}"), "namespace": one(&[json!("default"), json!("shop")])},
            "spec": {"podSelector": one(&selectors), "egress": [{"ports": [{"port": "http"}]}],
                "ingress": [{"from": [{"podSelector": one(&selectors)}]}]}})
    };
    let networks: Vec<String> =
        (0..2).map(network).map(|policy| format!("---\n{policy}\n")).collect();
    let ours = json!({"groups": {"g": ["web", "role=db", "10.0.0.0/8"]}, "services": {"s": "role=db"},
        "rules": rules});
    format!("{ours}\n{}", networks.concat())
}

#[tokio::test]
async fn random_policies_that_are_exported_and_applied_again_change_nothing() {
    let world = town().await;
    for seed in 0..20 {
        let policy = random_policy(seed);
        let applied = world.applied(&policy).await;
        assert_eq!(applied["result"]["changed"], true, "{policy}");
        let (revision, exported) = (world.revision().await, world.export().await);
        let matrix = world.post("/v1/policy/matrix", json!({})).await;

        let again = world.applied(&exported).await;
        assert_eq!(again["result"]["changed"], false, "seed {seed}: {again}\n{exported}");
        assert_eq!(world.revision().await, revision);

        world.applied("rules: []\n").await;
        world.applied(&exported).await;
        assert_eq!(world.export().await, exported, "seed {seed}");
        assert_eq!(world.post("/v1/policy/matrix", json!({})).await, matrix, "seed {seed}");
    }
}

#[tokio::test]
async fn a_file_is_the_policy_and_what_stays_keeps_its_id() {
    let world = town().await;
    world.post("/v1/rules", json!({"action": "allow", "from": "db", "to": "web"})).await;
    let kept = json!({"action": "allow", "from": "web", "to": "db", "services": ["tcp/1"]});
    world.post("/v1/rules", kept).await;
    let before = world.revision().await;

    let file = "rules:\n  - {action: allow, from: web, to: db, ports: tcp/1}\n  \
                - {action: allow, from: [web, shop/web], to: db, ports: udp/53}\n";
    let (status, dry) = world.apply(file, "?dryRun=true").await;
    assert_eq!(status, StatusCode::OK, "{dry}");
    assert_eq!(dry["result"]["removed"].as_array().unwrap().len(), 1, "{dry}");
    let pairs = dry["result"]["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 3, "{dry}");
    assert!(pairs.iter().any(|pair| pair["lost"] == json!(["any"])), "{dry}");
    assert_eq!(world.ids().await, [1, 2], "a dry run changes nothing");

    let done = world.applied(file).await;
    assert_eq!(done["revision"], before + 1);
    assert_eq!(world.ids().await, [2, 3, 4]);
    let audit = world.get("/v1/audit?limit=1").await;
    assert_eq!(audit["items"][0]["action"], "policy apply default");
    assert!(audit["items"][0]["before"]["rule/r-1"].is_object(), "{audit}");
    assert!(audit["items"][0]["after"]["rule/r-4"].is_object(), "{audit}");
}

#[tokio::test]
async fn what_is_wrong_in_a_file_is_refused_with_its_line_and_changes_nothing() {
    let world = town().await;
    world.applied(FILE).await;
    let (revision, exported) = (world.revision().await, world.export().await);

    for (rules, code, words) in [
        ("{action: allow, form: web, to: db}", 400, &["p.yaml:3", "did you mean from"][..]),
        ("{action: allow, from: wbe, to: db}", 400, &["p.yaml:3", "did you mean web"]),
        ("{action: allow, from: web, to: db, ports: tcp/70000}", 400, &["p.yaml:3", "70000"]),
        ("{action: allow, from: web, to: \"group:backend\"}", 400, &["p.yaml:3", "no group"]),
        ("{action: allow, from: web, to: \"service:x\"}", 400, &["p.yaml:3", "no service"]),
        ("{action: allow, from: web, to: web}", 400, &["p.yaml:3", "both ends"]),
        ("{action: allow, from: web, to: db, path: [sap-1, sap-1]}", 400, &["p.yaml:3", "twice"]),
        ("{action: allow, from: web, to: db, path: [sap1]}", 400, &["p.yaml:3", "sap-1"]),
        (
            "{action: allow, from: web, to: db, path: direct}\n  \
             - {action: allow, from: db, to: web, path: sap-1}",
            409,
            &["p.yaml:4", "p.yaml:3", "direct"],
        ),
        ("{action: allow, from: 10.0.0.0/8, to: 10.1.0.0/16}", 400, &["p.yaml:3", "member"]),
    ] {
        let text = format!("overlay: default\nrules:\n  - {rules}\n");
        let (status, value) = world.apply(&text, "").await;
        for word in words {
            assert_problem(status, &value, code, word);
        }
    }
    let (status, value) = world.apply("overlay: defualt\n", "").await;
    assert_problem(status, &value, 404, "did you mean default");
    assert_eq!((world.revision().await, world.export().await), (revision, exported));
}

#[tokio::test]
async fn tests_that_fail_refuse_a_file_and_later_changes_that_would_break_them() {
    let world = town().await;
    let failing = FILE.replace("allow: false", "allow: true");
    let (status, value) = world.apply(&failing, "").await;
    assert_problem(status, &value, 422, "p.yaml:10: db → web anything is denied");
    assert!(world.ids().await.is_empty());

    world.applied(FILE).await;
    let revision = world.revision().await;
    let breaking = json!({"action": "allow", "from": "db", "to": "web"});
    let (status, value) = world.post("/v1/rules", breaking).await;
    assert_problem(status, &value, 422, "p.yaml:10");
    let (status, value) = world.post("/v1/rules/revoke", json!({"rule": 1})).await;
    assert_problem(status, &value, 422, "p.yaml:9");
    let labels = json!({"remove": ["role"]});
    let (status, value) = world.post("/v1/entities/default/db/labels", labels).await;
    assert_problem(status, &value, 422, "p.yaml:9");
    assert_eq!(world.revision().await, revision);
    // The control: what breaks no test is made, and quarantine always is.
    let harmless = json!({"action": "allow", "from": "db", "to": "shop/web"});
    assert_eq!(world.post("/v1/rules", harmless).await.0, StatusCode::OK);
    let quarantine = world.post("/v1/entities/default/db/quarantine", json!({"on": true})).await;
    assert_eq!(quarantine.0, StatusCode::OK, "{}", quarantine.1);
    assert_eq!(world.get("/v1/entities/default/db").await["quarantined"], true);
}

#[tokio::test]
async fn history_tells_every_change_and_rollback_brings_back_any_of_them() {
    let world = town().await;
    let empty = world.revision().await;
    world.applied(FILE).await;
    let (full, exported) = (world.revision().await, world.export().await);
    world.post("/v1/groups", json!({"name": "more", "verb": "create", "selectors": ["db"]})).await;
    world.applied("rules: [{action: allow, from: db, to: shop/web}]").await;

    let history = world.get("/v1/policy/history").await;
    let items = history["items"].as_array().unwrap();
    assert_eq!(items.len(), 3, "{history}");
    assert_eq!((&items[0]["added"], &items[0]["removed"]), (&json!(1), &json!(3)), "{history}");
    assert_eq!(items[1]["action"], "group create more");

    let (status, back) = world.post("/v1/policy/rollback", json!({"revision": full})).await;
    assert_eq!(status, StatusCode::OK, "{back}");
    assert_eq!(world.export().await, exported);
    assert_eq!(world.ids().await, [1, 2, 3]);
    let (_, same) = world.post("/v1/policy/rollback", json!({"revision": full})).await;
    assert_eq!(same["result"]["changed"], false);
    // Bindings of entities that are gone dangle, and say so.
    world.post("/v1/policy/rollback", json!({"revision": empty})).await;
    assert!(world.ids().await.is_empty());
    world.ask(Method::DELETE, "/v1/entities/shop/web", None, "").await;
    world.join("web", "entity", json!({"namespaces": ["shop"]})).await;
    let (_, back) = world.post("/v1/policy/rollback", json!({"revision": full})).await;
    assert_eq!(back["result"]["dangling"], json!(["shop/web"]), "{back}");
    let (status, value) = world.post("/v1/policy/rollback", json!({"revision": 9999})).await;
    assert_problem(status, &value, 404, "there is no revision 9999");
}

#[tokio::test]
async fn a_change_that_nobody_confirms_is_undone_also_by_a_server_that_was_restarted() {
    let world = town().await;
    world.applied("rules: [{action: allow, from: web, to: db}]").await;
    let exported = world.export().await;
    let body = json!({"files": [{"source": "p", "text": FILE}], "confirmWithin": "1s"});
    let (status, value) = world.post("/v1/policy/apply", body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    assert_ne!(world.export().await, exported, "it is live at once");
    assert_eq!(world.get("/v1/status").await["unconfirmed"][0]["overlay"], "default");
    let rule = json!({"action": "allow", "from": "db", "to": "shop/web"});
    let (status, value) = world.post("/v1/rules", rule.clone()).await;
    assert_problem(status, &value, 409, "waits to be confirmed");

    let (dir, settings) = (world._dir.path().to_owned(), world.server.settings.clone());
    world.server.close().await;
    let server = Server::open(&dir, settings).await.unwrap();
    let again =
        World { router: router(Arc::clone(&server)), server, _dir: tempfile::tempdir().unwrap() };
    let driver = tokio::spawn(Arc::clone(&again.server).drive());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while again.export().await != exported {
        assert!(tokio::time::Instant::now() < deadline, "{}", again.export().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(again.get("/v1/status").await["unconfirmed"], json!([]));
    assert!(again.get("/v1/audit?limit=1").await.to_string().contains("was not confirmed"));

    // The control: what is confirmed stays, and others may change again.
    let body = json!({"files": [{"source": "p", "text": FILE}], "confirmWithin": "60s"});
    again.post("/v1/policy/apply", body).await;
    let (status, value) = again.post("/v1/policy/confirm", json!({})).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    assert_eq!(again.post("/v1/rules", rule).await.0, StatusCode::OK);
    let (status, value) = again.post("/v1/policy/confirm", json!({})).await;
    assert_problem(status, &value, 404, "no change waits");
    again.server.stop();
    driver.await.unwrap();
}

#[tokio::test]
async fn an_admin_of_a_namespace_applies_what_changes_only_rules_there() {
    let world = town().await;
    world.applied("rules: [{action: allow, from: web, to: db}]").await;
    let exported = world.export().await;
    let token = world.token(json!({"role": "admin", "namespaces": ["shop"]})).await;
    let bearer = token.as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    let apply = async |rules: &str| {
        let text = exported.replace("rules:\n", &format!("rules:\n{rules}"));
        let body = json!({"files": [{"source": "p", "text": text}]}).to_string();
        world.ask(Method::POST, "/v1/policy/apply", Some(&bearer), &body).await
    };

    let (status, value) = apply("  - {action: allow, from: shop/web, to: db}\n").await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let (status, value) = apply("  - {action: allow, from: db, to: web}\n").await;
    assert_problem(status, &value, 403, "may not change rules from db to web");
    let body = json!({"files": [{"source": "p", "text": "rules: []"}]}).to_string();
    let (status, _) = world.ask(Method::POST, "/v1/policy/apply", Some(&bearer), &body).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let body = json!({"revision": 0}).to_string();
    let (status, _) = world.ask(Method::POST, "/v1/policy/rollback", Some(&bearer), &body).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn groups_services_and_namespaces_are_made_changed_and_refused_by_name() {
    let world = town().await;
    let group = |verb: &str, selectors: &[&str]| json!({"name": "backends", "verb": verb, "selectors": selectors});
    for (body, code, word) in [
        (group("add", &["db"]), 404, "there is no group backends"),
        (group("create", &["dbb"]), 404, "did you mean db"),
        (group("create", &["group:x"]), 400, "holds no groups"),
        (group("create", &["db"]), 200, ""),
        (group("create", &[]), 409, "already"),
        (group("add", &["namespace:shop", "10.0.0.0/8"]), 200, ""),
        (group("remove", &["web"]), 404, "does not hold web"),
    ] {
        let (status, value) = world.post("/v1/groups", body).await;
        if code == 200 {
            assert_eq!(status, StatusCode::OK, "{value}");
        } else {
            assert_problem(status, &value, code, word);
        }
    }
    let groups = world.get("/v1/groups").await;
    assert_eq!(groups["items"][0]["members"], json!(["db", "shop/web"]), "{groups}");
    let rule = json!({"action": "allow", "from": "web", "to": "group:backends"});
    let (status, value) = world.post("/v1/rules", rule).await;
    assert_eq!((status, &value["result"]["pairs"]), (StatusCode::OK, &json!(2)), "{value}");
    let (status, value) = world.post("/v1/groups", group("delete", &[])).await;
    assert_problem(status, &value, 409, "r-1");

    let service = json!({"name": "store", "labels": ["role=db"]});
    assert_eq!(world.post("/v1/services", service.clone()).await.0, StatusCode::OK);
    assert_eq!(world.post("/v1/services", service).await.0, StatusCode::CONFLICT);
    assert_eq!(world.get("/v1/services").await["items"][0]["members"], json!(["db"]));
    let (status, value) = world.post("/v1/services", json!({"name": "stoer"})).await;
    assert_problem(status, &value, 404, "did you mean store");

    let labels = json!({"set": ["team=red"]});
    let (status, value) = world.post("/v1/namespaces/shop/labels", labels).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    assert!(world.get("/v1/namespaces").await.to_string().contains("team=red"));
    let (status, value) = world.post("/v1/namespaces/shpo/labels", json!({"remove": ["x"]})).await;
    assert_problem(status, &value, 404, "did you mean shop");
}

const NETWORK: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-db, namespace: default}
spec:
  podSelector: {matchLabels: {role: db}}
  ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 5432}]}]
";

#[tokio::test]
async fn network_policies_are_imported_replaced_reported_and_revoked() {
    let world = town().await;
    let import = async |text: &str| {
        let body = json!({"files": [{"source": "n.yaml", "text": text}]});
        world.post("/v1/policy/import", body).await
    };
    let (status, report) = import(NETWORK).await;
    assert_eq!(status, StatusCode::OK, "{report}");
    let policy = &report["result"]["policies"][0];
    assert_eq!((&policy["state"], &policy["selects"]), (&json!("new"), &json!(["db"])), "{report}");
    let notes = policy["notes"].to_string();
    assert!(notes.contains("not enforced outside the overlay"), "{report}");
    assert!(report["result"]["leftOpen"].to_string().contains("Kubernetes would leave it open"));

    let (_, again) = import(NETWORK).await;
    assert_eq!(again["result"]["change"]["changed"], false, "{again}");
    let (_, other) = import(&NETWORK.replace("5432", "5433")).await;
    assert_eq!(other["result"]["policies"][0]["state"], "replaced");
    let list = world.get("/v1/networkpolicies").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    assert!(world.export().await.contains("5433"));
    let exported = world.export().await;
    assert_eq!(world.applied(&exported).await["result"]["changed"], false);

    let (status, value) = import(&NETWORK.replace("podSelector: {m", "podSelectro: {m")).await;
    assert_problem(status, &value, 400, "default/to-db");
    let (status, value) = import(&NETWORK.replace("name: to-db", "generateName: to-")).await;
    assert_problem(status, &value, 400, "no name of its own");
    let (status, value) = import("rules: []").await;
    assert_problem(status, &value, 400, "NetworkPolicies");
    let id = &list["items"][0]["id"];
    let (status, value) = world.post("/v1/rules/revoke", json!({"rule": id})).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    assert_eq!(world.get("/v1/networkpolicies").await["items"], json!([]));
}

#[tokio::test]
async fn the_server_answers_matrix_lint_test_and_diff() {
    let world = town().await;
    world.applied(FILE).await;

    let (_, matrix) = world.post("/v1/policy/matrix", json!({})).await;
    let entry = json!({"from": "default/web", "to": "default/db", "services": ["tcp/5432"]});
    assert!(matrix["pairs"].as_array().unwrap().contains(&entry), "{matrix}");
    let (_, test) = world.post("/v1/policy/test", json!({})).await;
    assert_eq!(test["examination"]["passed"], 2, "{test}");
    let extra = json!({"tests": [{"source": "t", "text": "[{from: db, to: web, allow: true}]"}]});
    let (_, test) = world.post("/v1/policy/test", extra).await;
    assert!(test["failures"].to_string().contains("t:1: db → web"), "{test}");
    let lazy = json!({"action": "allow", "from": "web", "to": "role=nobody"});
    world.post("/v1/rules", lazy).await;
    let (_, lint) = world.post("/v1/policy/lint", json!({})).await;
    assert!(lint["findings"].to_string().contains("dangling"), "{lint}");
    let body = json!({"files": [{"source": "p", "text": "rules: []"}]});
    let (status, diff) = world.post("/v1/policy/diff", body).await;
    assert_eq!(status, StatusCode::OK, "{diff}");
    assert!(diff["pairs"].to_string().contains("tcp/5432"), "{diff}");
}

#[tokio::test]
async fn a_change_that_cuts_the_operators_own_way_needs_its_consent() {
    use crate::control::listen::Way;
    use crate::control::risk;
    let world = town().await;
    let rule = json!({"action": "allow", "from": "web", "to": "db", "services": ["tcp/7443"]});
    world.post("/v1/rules", rule).await;
    let address = async |name: &str| -> std::net::IpAddr {
        let entity = world.get(&format!("/v1/entities/default/{name}")).await;
        entity["members"][0]["address"].as_str().unwrap().parse().unwrap()
    };
    let (web, db) = (address("web").await, address("db").await);
    let way = Way { from: web, to: (db, 7443).into() };
    let token = world.token(json!({"role": "admin"})).await;
    let bearer = token.as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    let slot = crate::control::listen::Slot::for_tests();
    let ask = async |path: &str, body: Value, way: Option<Way>| {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("authorization", format!("Bearer {bearer}"))
            .extension(Origin::Tls { slot: Arc::clone(&slot), way });
        world.raw(request.body(HttpBody::from(body.to_string())).unwrap()).await
    };
    assert!(risk::road(&world.server.live().world, way).is_some());

    for (path, body) in [
        ("/v1/rules/revoke", json!({"rule": 1})),
        ("/v1/rules", json!({"action": "deny", "from": "any", "to": "db"})),
        ("/v1/entities/default/web/quarantine", json!({"on": true})),
        ("/v1/policy/apply", json!({"files": [{"source": "p", "text": "rules: []"}]})),
    ] {
        let (status, value) = ask(path, body, Some(way)).await;
        assert_problem(status, &value, 409, "--accept-risk");
    }
    assert_eq!(world.ids().await, [1]);
    // Controls: what leaves the way open, somebody who asks by another way, and consent.
    let harmless = json!({"action": "deny", "from": "shop/web", "to": "db"});
    assert_eq!(ask("/v1/rules", harmless, Some(way)).await.0, StatusCode::OK);
    let deny = json!({"action": "deny", "from": "any", "to": "db", "services": ["tcp"]});
    assert_eq!(ask("/v1/rules?dryRun=true", deny.clone(), None).await.0, StatusCode::OK);
    let (status, value) = ask("/v1/rules?acceptRisk=true", deny, Some(way)).await;
    assert_eq!(status, StatusCode::OK, "{value}");
}

#[tokio::test]
async fn five_thousand_rules_are_applied_and_found_unchanged() {
    let world = town().await;
    let rules: String = (0..5_000)
        .map(|n| format!("- {{action: allow, from: web, to: role=r{n}, ports: tcp/{}}}\n", n + 1))
        .collect();
    let file = format!("rules:\n{rules}");

    let done = world.applied(&file).await;

    assert_eq!(done["result"]["added"].as_array().unwrap().len(), 5_000);
    let exported = world.export().await;
    assert_eq!(world.applied(&exported).await["result"]["changed"], false);
}

#[tokio::test]
async fn lint_knows_what_is_used_and_which_saps_are_there() {
    let world = town().await;
    world.join("s9", "sap", json!({})).await;
    world.applied("rules: [{action: allow, from: web, to: db, path: [s9]}]").await;
    let kinds = async |days: u32| {
        let (status, value) = world.post("/v1/policy/lint", json!({"unusedDays": days})).await;
        assert_eq!(status, StatusCode::OK, "{value}");
        let all = value["findings"].as_array().unwrap().clone();
        all.iter().map(|one| one["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(0).await, ["no-live-sap"]);

    for node in world.server.live().nodes.values_mut() {
        node.polls = 1;
    }
    assert!(kinds(0).await.is_empty());
    assert!(kinds(1).await.is_empty(), "it is new");
    let mut conn = world.server.store.write().await.unwrap();
    sqlx::query("UPDATE rules SET created = created - 86400").execute(&mut *conn).await.unwrap();
    conn.commit().await.unwrap();
    assert_eq!(kinds(1).await, ["unused"]);
    assert!(kinds(2).await.is_empty());
}

mod clock;
mod copies;
mod errands;
mod flows;
mod outside;
mod paths;
mod policies;
mod roles;
mod tables;
mod why;

use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::http::{Method, Request};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::api::table::NodeTable;
use crate::control::listen::Origin;
use crate::control::server::Settings;

struct World {
    _dir: tempfile::TempDir,
    server: Arc<Server>,
    router: Router,
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        Settings { host_addresses: vec!["192.0.2.1".parse().unwrap()], ..Settings::of_tests() };
    let server = Server::open(dir.path(), settings).await.unwrap();
    let router = router(Arc::clone(&server));
    World { _dir: dir, server, router }
}

impl World {
    async fn raw(&self, request: Request<HttpBody>) -> (StatusCode, Value) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 64 << 20).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// As the host's admin, or with a bearer.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        bearer: Option<&str>,
        body: &str,
    ) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path);
        match bearer {
            Some(bearer) => request = request.header("authorization", format!("Bearer {bearer}")),
            None => request = request.extension(Origin::Unix { uid: 0 }),
        }
        self.raw(request.body(HttpBody::from(body.to_owned())).unwrap()).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask(Method::POST, path, None, &body.to_string()).await
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask(Method::GET, path, None, "").await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    async fn token(&self, extra: Value) -> Value {
        let mut body = json!({"role": "entity", "uses": 1, "expires": "1h"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let (status, value) = self.post("/v1/tokens", body).await;
        assert_eq!(status, StatusCode::OK, "{value}");
        value["result"]["text"].clone()
    }

    /// Joins and gives the credential.
    async fn join(&self, name: &str, kind: &str, extra: Value) -> String {
        let mut extra = extra;
        extra["role"] = json!(kind);
        let text = self.token(extra).await;
        let token: crate::api::node::JoinToken = text.as_str().unwrap().parse().unwrap();
        let credential = crate::control::store::random_secret().unwrap();
        let hash = crate::control::store::hash_of(&credential);
        let (status, value) = self
            .post(
                "/v1/join",
                json!({"secret": String::from(token.secret.clone()), "kind": kind,
                    "name": Value::Null, "hostName": name, "endpoints": ["198.51.100.7:6080"],
                    "credentialHash": String::from(hash)}),
            )
            .await;
        assert_eq!(status, StatusCode::OK, "{value}");
        String::from(credential)
    }

    /// What a node that has the table of serial `after` gets when it polls.
    async fn poll(&self, credential: &str, after: u64) -> (StatusCode, Value) {
        let path = format!("/v1/node/table?after={after}&incarnation={}", self.server.incarnation);
        self.ask(Method::GET, &path, Some(credential), "").await
    }

    async fn table(&self, credential: &str, after: u64) -> NodeTable {
        let asked = self.poll(credential, after);
        let (status, value) = tokio::time::timeout(Duration::from_secs(10), asked).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{value}");
        serde_json::from_value(value).unwrap()
    }

    /// Waits until so many entities poll, and nobody is behind.
    async fn settle(&self, entities: u64, limit: Duration) {
        until(self, limit, "/v1/status", "current", |status| {
            status["behind"] == json!([]) && status["entities"]["online"] == entities
        })
        .await;
    }
}

/// Asks until it is so.
async fn until(
    world: &World,
    limit: Duration,
    path: &str,
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Value {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let value = world.get(path).await;
        if is_so(&value) {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "not yet {what}: {value}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn assert_problem(status: StatusCode, value: &Value, expected: u16, word: &str) {
    assert_eq!(status.as_u16(), expected, "{value}");
    let problem: Problem = serde_json::from_value(value.clone()).unwrap();
    assert!(problem.to_string().contains(word), "`{word}` is not in: {problem}");
}

#[tokio::test]
async fn a_first_start_has_a_default_overlay_and_says_that_a_sap_is_missing() {
    let world = world().await;
    let status = world.get("/v1/status").await;

    assert_eq!(status["overlays"][0]["name"], "default");
    let problems = status["problems"].to_string();
    assert!(problems.contains("overlay default has no SaP"), "{problems}");
}

#[tokio::test]
async fn unknown_fields_malformed_and_oversized_bodies_are_problems_that_name_them() {
    let world = world().await;
    let before = world.get("/v1/overlays").await;

    let (status, value) = world.post("/v1/overlays", json!({"name": "a", "colour": 1})).await;
    assert_problem(status, &value, 400, "colour");
    let (status, value) = world.ask(Method::POST, "/v1/overlays", None, "{").await;
    assert_problem(status, &value, 400, "makes no sense");
    let long = "x".repeat((1 << 20) + 1);
    let (status, value) = world.ask(Method::POST, "/v1/overlays", None, &long).await;
    assert_problem(status, &value, 413, "1 MiB");
    let (status, value) =
        world.ask(Method::POST, "/v1/overlays?dryRnu=true", None, r#"{"name":"a"}"#).await;
    assert_problem(status, &value, 400, "dryRnu");
    let (status, value) = world.ask(Method::GET, "/v1/nothing", None, "").await;
    assert_problem(status, &value, 404, "no such path");
    let (status, value) = world.ask(Method::PUT, "/v1/overlays", None, "").await;
    assert_problem(status, &value, 405, "method");
    assert_eq!(world.get("/v1/overlays").await, before);
    let (status, _) = world.post("/v1/overlays", json!({"name": "a", "cidr": null})).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn sql_in_every_string_field_is_refused_or_kept_as_text() {
    let world = world().await;
    world.join("web", "entity", json!({})).await;
    let bad = "x'); DROP TABLE nodes; --";
    for (path, body) in [
        ("/v1/overlays", json!({"name": bad})),
        ("/v1/overlays", json!({"name": "a", "cidr": bad})),
        ("/v1/overlays", json!({"name": "a", "semantics": bad})),
        ("/v1/tokens", json!({"role": bad, "uses": 1, "expires": "1h"})),
        ("/v1/tokens", json!({"role": "entity", "uses": 1, "expires": bad})),
        ("/v1/tokens", json!({"role": "entity", "uses": 1, "expires": "1h", "name": bad})),
        ("/v1/tokens", json!({"role": "entity", "uses": 1, "expires": "1h", "overlays": [bad]})),
        ("/v1/tokens", json!({"role": "entity", "uses": 1, "expires": "1h", "namespaces": [bad]})),
        ("/v1/tokens", json!({"role": "entity", "uses": 1, "expires": "1h", "labels": [bad]})),
        (
            "/v1/tokens",
            json!({"role": "entity", "uses": 1, "expires": "1h", "ports": {bad: "tcp/1"}}),
        ),
        ("/v1/rules", json!({"action": "allow", "from": bad, "to": "any"})),
        ("/v1/rules", json!({"action": "allow", "from": "any", "to": bad})),
        ("/v1/rules", json!({"action": "allow", "from": "any", "to": "any", "services": [bad]})),
        (
            "/v1/rules",
            json!({"action": "allow", "from": "any", "to": "any", "path": {"via": [bad]}}),
        ),
        ("/v1/rules/revoke", json!({"from": bad, "to": "any"})),
        ("/v1/entities/default/web/labels", json!({"set": [bad]})),
        ("/v1/join/check", json!({"secret": bad, "kind": "entity"})),
        ("/v1/keys/rotate", json!({"to": bad})),
        ("/v1/policy/can", json!({"from": bad, "to": "web"})),
        ("/v1/policy/why", json!({"from": bad, "to": "web"})),
    ] {
        let (status, value) = world.post(path, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {value}");
    }
    for path in ["/v1/overlays/x'--", "/v1/entities/default/x'--", "/v1/tokens/t-1'--"] {
        let (status, value) = world.ask(Method::DELETE, path, None, "").await;
        assert!(status.is_client_error(), "{path}: {value}");
    }
    let rule = json!({"action": "allow", "from": "any", "to": "any", "reason": bad});
    let (status, value) = world.post("/v1/rules", rule).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    assert_eq!(world.get("/v1/rules").await["items"][0]["reason"], bad);
    assert_eq!(world.get("/v1/entities").await["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn nodes_viewers_and_namespaced_admins_may_do_what_is_theirs_alone() {
    let world = world().await;
    let node = world.join("web", "entity", json!({"namespaces": ["shop"]})).await;
    let viewer = world.token(json!({"role": "viewer"})).await;
    let admin = world.token(json!({"role": "admin", "namespaces": ["shop"]})).await;
    // `ova1.SECRET.PIN`: the secret is the bearer.
    let secret = |token: &Value| token.as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    let (viewer, admin) = (secret(&viewer), secret(&admin));
    let (viewer, admin) = (viewer.as_str(), admin.as_str());
    let inside = r#"{"action":"allow","from":"any","to":"shop/web"}"#;
    let outside = r#"{"action":"allow","from":"any","to":"any"}"#;

    for (bearer, method, path, body, expected) in [
        (node.as_str(), Method::GET, "/v1/entities", "", 403),
        (node.as_str(), Method::POST, "/v1/rules", outside, 403),
        (viewer, Method::GET, "/v1/entities", "", 200),
        (viewer, Method::POST, "/v1/rules", outside, 403),
        (viewer, Method::GET, "/v1/node/table", "", 403),
        (admin, Method::POST, "/v1/rules", outside, 403),
        (admin, Method::POST, "/v1/rules", inside, 200),
        (admin, Method::DELETE, "/v1/entities/shop/web", "", 403),
        ("00", Method::GET, "/v1/entities", "", 401),
        (&"0".repeat(64), Method::GET, "/v1/node/table", "", 401),
        ("' OR 1=1 --", Method::GET, "/v1/entities", "", 401),
    ] {
        let (status, value) = world.ask(method, path, Some(bearer), body).await;
        assert_eq!(status.as_u16(), expected, "{path}: {value}");
    }
    let nobody = Request::builder().uri("/v1/status").body(HttpBody::empty()).unwrap();
    assert_eq!(world.raw(nobody).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(world.get("/v1/rules").await["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_deleted_entity_leaves_nothing_to_a_later_bearer_of_its_name() {
    let world = world().await;
    for name in ["web", "db"] {
        world.join(name, "entity", json!({})).await;
    }
    let (status, _) =
        world.post("/v1/rules", json!({"action": "allow", "from": "web", "to": "db"})).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = world.ask(Method::DELETE, "/v1/entities/default/web", None, "").await;
    assert_eq!(status, StatusCode::OK);

    assert_eq!(world.get("/v1/rules").await["items"][0]["dangling"], json!(["web"]));
    world.join("web", "entity", json!({})).await;
    assert_eq!(world.get("/v1/rules").await["items"][0]["pairs"], 0);
    world.ask(Method::DELETE, "/v1/entities/default/web", None, "").await;
    world.join("elsewhere", "entity", json!({"name": "web"})).await;
    assert_eq!(world.get("/v1/rules").await["items"][0]["pairs"], 1);
}

#[tokio::test]
async fn revisions_dry_runs_and_audit_agree() {
    let world = world().await;
    let body = json!({"name": "lab", "cidr": "10.99.0.0/16"}).to_string();
    let revision = world.get("/v1/status").await["revision"].as_u64().unwrap();

    let path = "/v1/overlays?dryRun=true";
    let (status, value) = world.ask(Method::POST, path, None, &body).await;
    assert_eq!((status, &value["dryRun"]), (StatusCode::OK, &json!(true)));
    let path = format!("/v1/overlays?ifRevision={}", revision + 1);
    let (status, value) = world.ask(Method::POST, &path, None, &body).await;
    assert_problem(status, &value, 409, "revision");
    assert_eq!(world.get("/v1/status").await["revision"], revision);
    let path = format!("/v1/overlays?ifRevision={revision}");
    let (status, value) = world.ask(Method::POST, &path, None, &body).await;
    assert_eq!((status, &value["revision"]), (StatusCode::OK, &json!(revision + 1)));
    let audit = world.get("/v1/audit?limit=1").await;
    assert_eq!(audit["items"][0]["action"], "overlay create lab");
    assert_eq!(audit["items"][0]["actor"], "uid 0 (unix socket)");
    let (status, value) =
        world.post("/v1/overlays", json!({"name": "lab2", "cidr": "10.99.4.0/24"})).await;
    assert_problem(status, &value, 409, "lab");
}

#[tokio::test]
async fn tables_follow_rules_and_acknowledgements_make_a_change_enforced() {
    let world = Arc::new(world().await);
    let sap = world.join("sap-1", "sap", json!({})).await;
    let web = world.join("web", "entity", json!({})).await;
    let db = world.join("db", "entity", json!({})).await;
    let mut pollers = Vec::new();
    for credential in [sap, web.clone(), db] {
        let world = Arc::clone(&world);
        pollers.push(tokio::spawn(async move {
            let mut serial = 0;
            loop {
                serial = world.table(&credential, serial).await.serial.0;
            }
        }));
    }
    world.settle(2, Duration::from_secs(10)).await;
    let body = r#"{"action":"allow","from":"web","to":"db","services":["tcp/5432"]}"#;
    let (status, change) = world.ask(Method::POST, "/v1/rules?wait=5s", None, body).await;
    assert_eq!(status, StatusCode::OK, "{change}");
    assert_eq!(change["enforcement"]["enforced"], true, "{change}");
    assert_eq!(change["enforcement"]["enforcedBy"], json!(["sap-1"]), "{change}");
    assert_eq!(change["enforcement"]["acknowledged"], 3, "{change}");

    for poller in pollers {
        poller.abort();
    }
    let table = world.table(&web, 0).await;
    assert_eq!(table.body.overlays[0].send_keys.len(), 1);
    let (status, change) =
        world.ask(Method::POST, "/v1/rules/revoke?wait=50ms", None, r#"{"rule":1}"#).await;
    assert_eq!(status, StatusCode::OK, "{change}");
    assert_eq!(change["enforcement"]["enforced"], false, "{change}");
    assert!(change["enforcement"]["pending"].to_string().contains("sap-1"), "{change}");
    assert!(world.table(&web, table.serial.0).await.body.overlays[0].send_keys.is_empty());
}

#[tokio::test]
async fn a_rotation_goes_through_its_steps_as_nodes_acknowledge() {
    let world = Arc::new(world().await);
    let sap = world.join("sap-1", "sap", json!({})).await;
    let web = world.join("web", "entity", json!({})).await;
    let db = world.join("db", "entity", json!({})).await;
    world.post("/v1/rules", json!({"action": "allow", "from": "web", "to": "db"})).await;
    let driver = tokio::spawn(Arc::clone(&world.server).drive());
    let (status, change) = world.post("/v1/keys/rotate", json!({"to": "db"})).await;
    assert_eq!(status, StatusCode::OK, "{change}");
    let (status, again) = world.post("/v1/keys/rotate", json!({"to": "db"})).await;
    assert_problem(status, &again, 409, "rotated already");
    let key = world.table(&web, 0).await.body.overlays[0].send_keys[0].key;
    let keys = world.get("/v1/keys").await;
    assert!(keys.to_string().contains("adding") && keys.to_string().contains("sap-1"), "{keys}");

    let mut pollers = Vec::new();
    for credential in [sap, web.clone(), db] {
        let world = Arc::clone(&world);
        pollers.push(tokio::spawn(async move {
            let mut serial = 0;
            loop {
                serial = world.table(&credential, serial).await.serial.0;
            }
        }));
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let keys = world.get("/v1/keys").await;
        let done = keys["items"].as_array().unwrap().iter().any(|ring| {
            ring["to"] == "db" && ring["step"] == "steady" && ring["version"]["generation"] == 1
        });
        if done {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{keys}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for poller in pollers {
        poller.abort();
    }
    assert_ne!(world.table(&web, 0).await.body.overlays[0].send_keys[0].key, key);
    world.server.stop();
    driver.await.unwrap();
}

#[tokio::test]
async fn a_restart_keeps_serials_and_refuses_a_database_that_others_may_read() {
    use std::os::unix::fs::PermissionsExt;
    let world = world().await;
    let web = world.join("web", "entity", json!({})).await;
    let before = world.table(&web, 0).await;
    let (dir, settings) = (world._dir.path().to_owned(), world.server.settings.clone());
    world.server.close().await;

    let database = dir.join("server.db");
    let mode = |mode| std::fs::set_permissions(&database, PermissionsExt::from_mode(mode)).unwrap();
    mode(0o644);
    let problem = Server::open(&dir, settings.clone()).await.unwrap_err();
    assert!(problem.what.contains("others may read"), "{problem}");
    assert!(problem.fix.contains("chmod 600"), "{problem}");
    mode(0o600);
    let server = Server::open(&dir, settings).await.unwrap();
    let again =
        World { router: router(Arc::clone(&server)), server, _dir: tempfile::tempdir().unwrap() };
    assert_eq!(again.table(&web, 0).await, before);
}

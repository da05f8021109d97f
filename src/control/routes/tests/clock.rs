//! What the server does by itself as time goes by: rules end, keys rotate, laggards are cut off,
//! sources wait, ephemeral nodes go.

use super::*;
use crate::control::store::keys as key_rows;
use crate::types::NodeId;

/// Longest that anything here may take.
const SOON: Duration = Duration::from_secs(20);

/// A world with other times.
async fn world_with(change: impl FnOnce(&mut Settings)) -> Arc<World> {
    let first = world().await;
    let mut settings = first.server.settings.clone();
    change(&mut settings);
    first.server.close().await;
    let server = Server::open(first._dir.path(), settings).await.unwrap();
    Arc::new(World { router: router(Arc::clone(&server)), server, _dir: first._dir })
}

/// A node that takes and acknowledges each table, until it is dropped.
struct Poller(tokio::task::JoinHandle<()>);

impl Poller {
    fn new(world: &Arc<World>, credential: &str) -> Self {
        let (world, credential) = (Arc::clone(world), credential.to_owned());
        Self(tokio::spawn(async move {
            let mut serial = 0;
            loop {
                // 204: the test looked at this node's table meanwhile.
                let (_, value) = world.poll(&credential, serial).await;
                serial = value["serial"].as_u64().unwrap_or(serial);
            }
        }))
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The step of the ring towards `to`.
fn step<'a>(keys: &'a Value, to: &str) -> &'a str {
    let rings = keys["items"].as_array().unwrap();
    rings.iter().find(|ring| ring["to"] == to).map_or("", |ring| ring["step"].as_str().unwrap())
}

fn has_peer(table: &NodeTable) -> bool {
    !table.body.overlays[0].send_keys.is_empty()
}

#[tokio::test]
async fn a_rule_that_ends_is_taken_from_the_tables_and_others_stay() {
    let world = world_with(|_| {}).await;
    let web = world.join("web", "entity", json!({})).await;
    let db = world.join("db", "entity", json!({})).await;
    for (from, to, expires) in [("web", "db", json!("3s")), ("db", "web", Value::Null)] {
        let rule = json!({"action": "allow", "from": from, "to": to, "expires": expires});
        let (status, value) = world.post("/v1/rules", rule).await;
        assert_eq!(status, StatusCode::OK, "{value}");
    }
    // Only the one that ends gives `web` a right; the other one gives both a key.
    let rules = |table: &NodeTable| table.body.overlays[0].rules.len();
    let first = world.table(&web, 0).await;
    assert_eq!(rules(&first), 2);

    let driver = tokio::spawn(Arc::clone(&world.server).drive());
    let later = world.table(&web, first.serial.0).await;
    assert_eq!(rules(&later), 1, "{later:?}");
    assert_eq!(rules(&world.table(&db, 0).await), 1);
    world.server.stop();
    driver.await.unwrap();
}

#[tokio::test]
async fn a_scheduled_rotation_starts_by_itself_waits_for_laggards_and_is_audited() {
    let world = world_with(|settings| settings.key_interval = Duration::from_secs(2)).await;
    let sap = world.join("sap-1", "sap", json!({})).await;
    let web = world.join("web", "entity", json!({})).await;
    let db = world.join("db", "entity", json!({})).await;
    world.post("/v1/rules", json!({"action": "allow", "from": "web", "to": "db"})).await;
    let _nodes = [Poller::new(&world, &sap), Poller::new(&world, &web)];
    let driver = tokio::spawn(Arc::clone(&world.server).drive());

    // `db` is away: the rotation waits for it and says so.
    // The other two may need a moment on a busy machine.
    until(&world, SOON, "/v1/keys", "adding, with db alone away", |keys| {
        step(keys, "db") == "adding" && keys.to_string().contains(r#""waitingFor":["db"]"#)
    })
    .await;
    let audit = world.get("/v1/audit").await.to_string();
    assert!(audit.contains("key rotate --overlay default (scheduled)"), "{audit}");
    let _db = Poller::new(&world, &db);
    until(&world, SOON, "/v1/keys", "done", |keys| {
        let rings = keys["items"].as_array().unwrap();
        rings.iter().any(|ring| ring["to"] == "db" && ring["version"]["epoch"] != 0)
    })
    .await;
    world.server.stop();
    driver.await.unwrap();
}

#[tokio::test]
async fn a_hurried_rotation_cuts_off_who_is_away_at_its_deadline_and_not_before() {
    let world = world_with(|_| {}).await;
    let sap = world.join("sap-1", "sap", json!({})).await;
    let web = world.join("web", "entity", json!({})).await;
    world.join("db", "entity", json!({})).await;
    world.post("/v1/rules", json!({"action": "allow", "from": "web", "to": "db"})).await;
    let _nodes = [Poller::new(&world, &sap), Poller::new(&world, &web)];
    let driver = tokio::spawn(Arc::clone(&world.server).drive());

    let (status, value) = world.post("/v1/keys/rotate", json!({"to": "db", "now": true})).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    world.server.rotate().await.unwrap();
    assert_eq!(step(&world.get("/v1/keys").await, "db"), "adding", "its minute is not over");

    // A minute later, as the database sees it.
    let gate = Arc::clone(&world.server.gate).lock_owned().await;
    let mut transaction = world.server.store.write().await.unwrap();
    let rows = key_rows::rings(&mut transaction).await.unwrap();
    let mut row = rows.into_iter().find(|row| row.ring.next.is_some()).unwrap();
    row.ring.since_millis -= 60_000;
    row.ring.deadline_millis = row.ring.deadline_millis.map(|at| at - 60_000);
    key_rows::put_ring(&mut transaction, &row).await.unwrap();
    world.server.commit(transaction).await.unwrap();
    world.server.publish(crate::control::publish::Hold::Nobody).await.unwrap();
    let before = world.table(&web, 0).await.body.overlays[0].send_keys[0].key;
    drop(gate);

    until(&world, SOON, "/v1/keys", "cut off", |keys| step(keys, "db") != "adding").await;
    let audit = world.get("/v1/audit").await.to_string();
    assert!(audit.contains("key rotation to db cut off db"), "{audit}");
    until(&world, SOON, "/v1/keys", "done", |keys| step(keys, "db") == "steady").await;
    assert_ne!(world.table(&web, 0).await.body.overlays[0].send_keys[0].key, before);
    world.server.stop();
    driver.await.unwrap();
}

#[tokio::test]
async fn a_new_rule_comes_to_the_sap_and_the_destination_before_the_source() {
    let world = world_with(|_| {}).await;
    let sap = world.join("sap-1", "sap", json!({})).await;
    let web = world.join("web", "entity", json!({})).await;
    let db = world.join("db", "entity", json!({})).await;
    let (_sap, _web) = (Poller::new(&world, &sap), Poller::new(&world, &web));
    let slow = world.table(&db, 0).await.serial.0;
    let table = |credential: String, after: u64| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.table(&credential, after).await })
    };
    // `db` is connected, and takes its time.
    let mut waiting = table(db.clone(), slow);
    world.settle(2, SOON).await;

    let (status, value) =
        world.post("/v1/rules", json!({"action": "allow", "from": "web", "to": "db"})).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let new = (&mut waiting).await.unwrap();
    assert!(has_peer(&new) || !new.body.overlays[0].rules.is_empty());
    assert!(!has_peer(&world.table(&web, 0).await), "the source has it before the destination");
    let acknowledged = table(db, new.serial.0);
    let deadline = tokio::time::Instant::now() + SOON;
    while !has_peer(&world.table(&web, 0).await) {
        assert!(tokio::time::Instant::now() < deadline, "the source never got it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    acknowledged.abort();
}

#[tokio::test]
async fn a_node_cannot_acknowledge_what_it_was_never_shown() {
    let world = world_with(|_| {}).await;
    let web = world.join("web", "entity", json!({})).await;
    world.join("db", "entity", json!({})).await;
    let serial = world.table(&web, 0).await.serial.0;

    let asked = world.poll(&web, serial + 5);
    assert!(tokio::time::timeout(Duration::from_millis(50), asked).await.is_err());
    assert_eq!(world.get("/v1/entities/default/web").await["health"]["acknowledged"], 0);
}

#[tokio::test]
async fn an_ephemeral_node_that_stays_away_is_deleted_and_others_stay() {
    let world = world_with(|settings| settings.ephemeral_rest = Duration::from_secs(2)).await;
    let job = world.join("job", "entity", json!({"ephemeral": true})).await;
    let busy = world.join("busy", "entity", json!({"ephemeral": true})).await;
    world.join("web", "entity", json!({})).await;
    let _busy = Poller::new(&world, &busy);
    let driver = tokio::spawn(Arc::clone(&world.server).drive());

    let names = |entities: &Value| -> Vec<String> {
        let items = entities["items"].as_array().unwrap();
        items.iter().map(|entity| entity["name"].as_str().unwrap().to_owned()).collect()
    };
    let left = until(&world, SOON, "/v1/entities", "gone", |entities| {
        !names(entities).contains(&"job".to_owned())
    })
    .await;
    assert_eq!(names(&left), ["busy", "web"]);
    let (status, value) = world.ask(Method::GET, "/v1/node/table", Some(&job), "").await;
    assert_problem(status, &value, 401, "join again");
    let audit = world.get("/v1/audit").await.to_string();
    assert!(audit.contains("entity leave job"), "{audit}");
    world.server.stop();
    driver.await.unwrap();
}

#[tokio::test]
async fn a_dry_run_makes_no_token_and_named_ports_must_be_somebodys() {
    let world = world_with(|_| {}).await;
    let body = r#"{"role":"entity","uses":1,"expires":"1h"}"#;
    let (_, value) = world.ask(Method::POST, "/v1/tokens?dryRun=true", None, body).await;
    assert_eq!(value["result"]["text"], "", "a token that is none");
    let (_, value) = world.ask(Method::POST, "/v1/tokens", None, body).await;
    assert!(value["result"]["text"].as_str().unwrap().starts_with("ovt1."));

    world.join("web", "entity", json!({"ports": {"http": "tcp/8080"}})).await;
    world.join("db", "entity", json!({})).await;
    for (from, to, service, both, expected) in [
        ("db", "web", "tcp/http", false, 200),
        ("db", "web", "udp/http", false, 404),
        ("web", "db", "tcp/http", false, 404),
        ("web", "db", "tcp/http", true, 200),
        ("web", "role=later", "tcp/https", false, 200),
    ] {
        let rule = json!({"action": "allow", "from": from, "to": to, "both": both,
            "services": [service]});
        let (status, value) = world.post("/v1/rules", rule).await;
        assert_eq!(status.as_u16(), expected, "{from} {to} {service}: {value}");
    }
}

#[tokio::test]
async fn a_node_that_keeps_changing_its_endpoints_is_slowed_down_and_others_are_not() {
    let world = world_with(|_| {}).await;
    let web = world.join("web", "entity", json!({})).await;
    let db = world.join("db", "entity", json!({})).await;
    let report = |credential: &str, port: u16| {
        let (world, credential) = (Arc::clone(&world), credential.to_owned());
        let body = json!({"version": "0.1.0", "endpoints": [format!("198.51.100.7:{port}")],
            "problems": [], "roundTrips": []})
        .to_string();
        tokio::spawn(async move {
            world.ask(Method::POST, "/v1/node/report", Some(&credential), &body).await
        })
    };

    let many: Vec<_> = (7000..7020).map(|port| report(&web, port)).collect();
    let (status, value) = report(&db, 7100).await.unwrap();
    assert_eq!(status, StatusCode::NO_CONTENT, "{value}");
    let mut refused = 0;
    for one in many {
        let (status, value) = one.await.unwrap();
        if status == StatusCode::TOO_MANY_REQUESTS {
            assert_problem(status, &value, 429, "too often");
            refused += 1;
        } else {
            assert_eq!(status, StatusCode::NO_CONTENT, "{value}");
        }
    }
    assert!((15..=17).contains(&refused), "{refused} of 20");
}

#[tokio::test]
async fn an_alarm_rotates_its_pair_once_and_not_on_the_word_of_strangers() {
    let world = world_with(|settings| settings.key_grace = Duration::from_secs(1)).await;
    let sap = world.join("sap-1", "sap", json!({})).await;
    let web = world.join("web", "entity", json!({})).await;
    let db = world.join("db", "entity", json!({})).await;
    let other = world.join("other", "entity", json!({})).await;
    world.post("/v1/rules", json!({"action": "allow", "from": "any", "to": "db"})).await;
    let nodes: Vec<_> = [&sap, &web, &db, &other].map(|one| Poller::new(&world, one)).into();
    let id = async |credential: &str| world.table(credential, 0).await.body.node.id;
    let (web_id, db_id, other_id) = (id(&web).await, id(&db).await, id(&other).await);
    let driver = tokio::spawn(Arc::clone(&world.server).drive());
    let report = async |credential: &str, from: NodeId, to: NodeId| {
        let body = json!({"version": "0.1.0", "endpoints": ["198.51.100.7:6080"], "problems": [],
            "roundTrips": [], "guessed": [{"overlay": 1, "from": from, "to": to}]});
        let body = body.to_string();
        let path = "/v1/node/report";
        let (status, value) = world.ask(Method::POST, path, Some(credential), &body).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{value}");
    };
    let pairs = |keys: &Value| -> Vec<(String, u64)> {
        let rings = keys["items"].as_array().unwrap().iter();
        let pairs = rings.filter(|ring| !ring["from"].is_null());
        let fields = |ring: &Value| {
            assert_eq!(ring["to"], "db");
            let generation = ring["version"]["generation"].as_u64().unwrap();
            (ring["from"].as_str().unwrap().to_owned(), generation)
        };
        pairs.map(fields).collect()
    };

    // Whoever neither receives nor carries the pair, or names no pair at all.
    report(&web, web_id, db_id).await;
    report(&other, web_id, db_id).await;
    report(&db, db_id, db_id).await;
    report(&sap, NodeId(4_000), db_id).await;
    world.server.rotate().await.unwrap();
    assert_eq!(pairs(&world.get("/v1/keys").await), []);

    for (credential, from, name) in [(&sap, web_id, "web"), (&db, other_id, "other")] {
        report(credential, from, db_id).await;
        until(&world, SOON, "/v1/keys", "rotated by alarm", |keys| {
            step(keys, "db") == "steady" && pairs(keys).contains(&(name.to_owned(), 1))
        })
        .await;
        // At most once in 10 minutes.
        report(credential, from, db_id).await;
        world.server.rotate().await.unwrap();
    }
    let pairs = pairs(&world.get("/v1/keys").await);
    assert_eq!(pairs, [("web".to_owned(), 1), ("other".to_owned(), 1)]);
    let audit = world.get("/v1/audit").await.to_string();
    assert!(audit.contains("key rotate web db --overlay default --now (alarm of sap-1"), "{audit}");
    drop(nodes);
    world.server.stop();
    driver.await.unwrap();
}

#[tokio::test]
async fn receivers_are_told_when_the_old_key_ends_and_not_before_all_senders_have_the_new_one() {
    let world = world_with(|settings| settings.key_grace = Duration::from_secs(60)).await;
    let sap = world.join("sap-1", "sap", json!({})).await;
    let web = world.join("web", "entity", json!({})).await;
    let db = world.join("db", "entity", json!({})).await;
    world.post("/v1/rules", json!({"action": "allow", "from": "web", "to": "db"})).await;
    let _nodes = [Poller::new(&world, &sap), Poller::new(&world, &db)];
    let driver = tokio::spawn(Arc::clone(&world.server).drive());
    world.post("/v1/keys/rotate", json!({"to": "db"})).await;

    let db_keys = async |credential: &str| {
        let table = world.table(credential, 0).await;
        let overlay = &table.body.overlays[0];
        let row = overlay.destination_keys.iter().find(|row| row.accept.len() == 2);
        row.map(|row| row.old_until)
    };
    until(&world, SOON, "/v1/keys", "switching", |keys| step(keys, "db") == "switching").await;
    for credential in [&sap, &db] {
        assert_eq!(db_keys(credential).await, Some(None), "web may still stamp the old one");
    }

    let started = crate::control::server::now().0;
    let _web = Poller::new(&world, &web);
    until(&world, SOON, "/v1/keys", "retiring", |keys| step(keys, "db") == "retiring").await;
    for credential in [&sap, &db] {
        let end = db_keys(credential).await.flatten().unwrap().0;
        assert!((started + 60..=started + 80).contains(&end), "{end} after {started}");
    }
    world.server.stop();
    driver.await.unwrap();
}

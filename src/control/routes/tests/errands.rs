//! What the server asks of nodes while they wait, and what it takes for an answer.

use std::sync::Mutex;

use tokio::task::JoinSet;

use super::*;
use crate::api::errand::{Errand, ErrandReport, Order, Sighting, TRACERS_MAX, Tracer};
use crate::types::TracerId;

/// How a node of these tests answers when it is asked what it saw of tracers.
type Tells = fn(TracerId) -> Option<Sighting>;

fn passed(tracer: TracerId) -> Option<Sighting> {
    Some(Sighting { tracer, refused: None })
}

fn refused(tracer: TracerId) -> Option<Sighting> {
    Some(Sighting { tracer, refused: Some("no_rule".to_owned()) })
}

fn saw_nothing(_: TracerId) -> Option<Sighting> {
    None
}

struct Fleet {
    world: Arc<World>,
    credentials: [String; 3],
    sent: Arc<Mutex<Vec<Tracer>>>,
    nodes: JoinSet<()>,
}

/// A SaP, web and db, where web may ask db for tcp/5432; nobody polls yet.
async fn fleet() -> Fleet {
    let world = Arc::new(world().await);
    let mut credentials = Vec::new();
    for (name, kind) in [("sap-1", "sap"), ("web", "entity"), ("db", "entity")] {
        credentials.push(world.join(name, kind, json!({})).await);
    }
    let rule = json!({"action": "allow", "from": "web", "to": "db", "services": ["tcp/5432"]});
    assert_eq!(world.post("/v1/rules", rule).await.0, StatusCode::OK);
    let credentials = credentials.try_into().unwrap();
    Fleet { world, credentials, sent: Arc::default(), nodes: JoinSet::new() }
}

impl Fleet {
    /// Has SaP, web and db poll, as daemons do, and answer like this.
    async fn poll(&mut self, tells: [Tells; 3]) {
        for (credential, tells) in self.credentials.clone().into_iter().zip(tells) {
            let (world, sent) = (Arc::clone(&self.world), Arc::clone(&self.sent));
            self.nodes.spawn(async move {
                let mut serial = 0;
                loop {
                    let (status, value) = world.poll(&credential, serial).await;
                    if status == StatusCode::OK {
                        serial = value["serial"].as_u64().unwrap();
                    }
                    if status != StatusCode::ACCEPTED {
                        continue;
                    }
                    let Errand { id, order } = serde_json::from_value(value).unwrap();
                    let sightings = match order {
                        Order::Send(tracers) => {
                            sent.lock().unwrap().extend(tracers);
                            Vec::new()
                        }
                        Order::Tell(ids) => ids.into_iter().filter_map(tells).collect(),
                    };
                    let status = report(&world, &credential, id, sightings).await;
                    assert_eq!(status, StatusCode::NO_CONTENT);
                }
            });
        }
        self.world.settle(2, Duration::from_secs(10)).await;
    }

    /// The results of these tests, tried live.
    async fn live(&self, tests: Value) -> Value {
        let (status, answer) = self.world.post(LIVE, asked(tests)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["examination"]["results"].clone()
    }
}

const LIVE: &str = "/v1/policy/test/live";

fn asked(tests: Value) -> Value {
    json!({"tests": [{"source": "f", "text": json!({"tests": tests}).to_string()}]})
}

fn one(port: u16) -> Value {
    json!([{"from": "web", "to": "db", "protocol": "tcp", "port": port, "allow": true}])
}

async fn report(
    world: &World,
    credential: &str,
    errand: u64,
    sightings: Vec<Sighting>,
) -> StatusCode {
    let body = serde_json::to_string(&ErrandReport { errand, sightings }).unwrap();
    world.ask(Method::POST, "/v1/node/errand", Some(credential), &body).await.0
}

#[tokio::test]
async fn the_source_is_asked_to_send_and_everybody_on_the_way_to_tell() {
    let mut fleet = fleet().await;
    fleet.poll([passed, passed, passed]).await;

    let results = fleet.live(one(5432)).await;

    assert_eq!(
        (&results[0]["outcome"], &results[0]["allowed"]),
        (&json!("delivered"), &json!(true))
    );
    let entities = fleet.world.get("/v1/entities").await;
    let items = entities["items"].as_array().unwrap();
    let db = items.iter().find(|item| item["name"].to_string().contains("db")).unwrap();
    let sent = fleet.sent.lock().unwrap().clone();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(json!(sent[0].to), db["members"][0]["address"]);
    assert_eq!((sent[0].protocol, sent[0].port), (6, 5432));
}

#[tokio::test]
async fn who_refuses_is_named_and_what_nobody_saw_end_is_lost() {
    let mut refusing = fleet().await;
    refusing.poll([refused, passed, saw_nothing]).await;
    let results = refusing.live(one(5432)).await;
    let said = |field: &str| results[0][field].clone();
    assert_eq!([said("outcome"), said("by"), said("reason")], ["refused", "sap-1", "no_rule"]);
    assert_eq!(said("allowed"), false);

    let mut losing = fleet().await;
    losing.poll([passed, passed, saw_nothing]).await;
    let results = losing.live(one(5432)).await;
    assert_eq!([&results[0]["outcome"], &results[0]["by"]], ["lost", "sap-1"]);
    assert_eq!(results[0]["allowed"], Value::Null);
    // It was tried again, as the same tracer.
    let ids: Vec<TracerId> = losing.sent.lock().unwrap().iter().map(|tracer| tracer.id).collect();
    assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
}

#[tokio::test]
async fn nobody_answers_for_another_node_and_strangers_not_at_all() {
    let fleet = fleet().await;
    let [sap, web, _] = &fleet.credentials;
    let node = fleet.world.server.live().world.nodes.keys().copied().collect::<Vec<_>>();
    let asked = |id| {
        let server = Arc::clone(&fleet.world.server);
        let order = Order::Tell(vec![TracerId(1)]);
        tokio::spawn(async move { crate::control::errands::ask(&server, id, order).await })
    };
    // The poll of web brings the errand.
    let errand_of_web = async |serial: u64| -> Errand {
        let (status, value) = fleet.world.poll(web, serial).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{value}");
        serde_json::from_value(value).unwrap()
    };
    let table = fleet.world.table(web, 0).await;
    assert!(node.contains(&table.body.node.id));
    let answer = asked(table.body.node.id);
    let errand = errand_of_web(table.serial.0).await;

    let lie = vec![Sighting { tracer: TracerId(1), refused: None }];
    assert_eq!(report(&fleet.world, sap, errand.id, lie.clone()).await, StatusCode::NO_CONTENT);
    let nobody = "0".repeat(64);
    assert_eq!(report(&fleet.world, &nobody, errand.id, lie).await, StatusCode::UNAUTHORIZED);
    let truth = Sighting { tracer: TracerId(1), refused: Some("no_row".to_owned()) };
    let many = vec![truth.clone(); 2 * TRACERS_MAX];
    assert_eq!(report(&fleet.world, web, errand.id, many).await, StatusCode::NO_CONTENT);

    assert_eq!(answer.await.unwrap(), Some(vec![truth; TRACERS_MAX]));
    for body in ["{", r#"{"errand": 1, "sightings": [], "more": 1}"#, r#"{"errand": -1}"#] {
        let (status, value) =
            fleet.world.ask(Method::POST, "/v1/node/errand", Some(web), body).await;
        assert_problem(status, &value, 400, "makes no sense");
    }
}

#[tokio::test]
async fn who_is_away_is_not_tried_and_viewers_try_nothing() {
    let fleet = fleet().await;
    let results = fleet.live(one(5432)).await;
    assert_eq!(results[0]["outcome"], "not-sent");

    let viewer = fleet.world.token(json!({"role": "viewer"})).await;
    let secret = viewer.as_str().unwrap().split('.').nth(1).unwrap();
    let body = asked(one(5432)).to_string();
    let (status, value) = fleet.world.ask(Method::POST, LIVE, Some(secret), &body).await;
    assert_problem(status, &value, 403, "viewer");
    let many: Vec<Value> = (0..=TRACERS_MAX).map(|port| one(port as u16 + 1)[0].clone()).collect();
    let (status, value) = fleet.world.post(LIVE, asked(json!(many))).await;
    assert_problem(status, &value, 400, "too many tests");
    let (status, value) = fleet.world.post(LIVE, json!({})).await;
    assert_problem(status, &value, 400, "there is no test");
}

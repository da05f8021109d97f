//! Paths at the server: what nodes measure, what operators set and ask.

use super::*;

/// An overlay with two SaPs and two entities that may talk; gives the credentials of the entities.
async fn town() -> (World, [String; 2], [u64; 2]) {
    let world = world().await;
    world.join("s1", "sap", json!({})).await;
    world.join("s2", "sap", json!({})).await;
    let web = world.join("web", "entity", json!({})).await;
    let db = world.join("db", "entity", json!({})).await;
    let (status, value) =
        world.post("/v1/rules", json!({"action": "allow", "from": "web", "to": "db"})).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let id = |saps: &Value, at: usize| saps["items"][at]["id"].as_u64().unwrap();
    let saps = world.get("/v1/saps").await;
    (world, [web, db], [id(&saps, 0), id(&saps, 1)])
}

impl World {
    /// Reports round trips to the SaPs, twice, as they count from the second time on.
    async fn measure(&self, credential: &str, trips: [(u64, Option<u64>); 2]) {
        for _ in 0..2 {
            let trips = trips.map(|(sap, micros)| json!({"sap": sap, "micros": micros}));
            let report = json!({"version": "", "endpoints": ["198.51.100.7:6080"], "problems": [],
                "roundTrips": trips});
            let (status, value) = self
                .ask(Method::POST, "/v1/node/report", Some(credential), &report.to_string())
                .await;
            assert_eq!(status, StatusCode::NO_CONTENT, "{value}");
        }
    }

    async fn path(&self) -> Value {
        self.get("/v1/paths?from=web&to=db").await
    }
}

#[tokio::test]
async fn measured_round_trips_choose_the_sap_and_say_so() {
    let (world, [web, db], [s1, s2]) = town().await;
    let path = world.path().await;
    assert_eq!((&path["chosenBy"], &path["inUse"]), (&json!("auto"), &json!(0)));
    assert_eq!(path["candidates"][0]["path"], json!({"via": ["s1"]}));
    let before = world.table(&web, 0).await;
    assert!(before.body.overlays[0].preferences.is_empty());

    world.measure(&web, [(s1, Some(40_000)), (s2, Some(9_000))]).await;
    world.measure(&db, [(s1, Some(2_000)), (s2, Some(3_000))]).await;
    let path = world.path().await;
    assert_eq!(path["candidates"][0]["path"], json!({"via": ["s2"]}), "{path:#}");
    assert_eq!(path["candidates"][0]["fromMicros"], 9_000);
    let after = world.table(&web, before.serial.0).await;
    assert_eq!(after.body.overlays[0].preferences.len(), 1);

    // Jitter changes no table, and a SaP that does not answer is not in use.
    world.measure(&web, [(s1, Some(44_000)), (s2, Some(8_200))]).await;
    let newest = world.server.live().nodes.values().map(|node| node.newest_serial()).max();
    world.measure(&web, [(s1, Some(37_000)), (s2, None)]).await;
    assert_eq!(world.server.live().nodes.values().map(|node| node.newest_serial()).max(), newest);
    let path = world.path().await;
    assert_eq!(path["inUse"], 1, "{path:#}");
    assert!(path["why"].as_str().unwrap().contains("s2"), "{path:#}");

    let latency = world.get("/v1/paths/latency").await;
    assert_eq!(latency["items"].as_array().unwrap().len(), 4);
    assert_eq!(latency["items"][3]["entity"], "web");
    assert!(latency["items"][3]["micros"].is_null() && latency["items"][3]["heldMicros"].is_u64());
}

#[tokio::test]
async fn a_path_is_set_before_rules_refused_by_name_and_taken_back() {
    let (world, _, _) = town().await;
    let set = |path: Value| json!({"from": "db", "to": "web", "path": path});
    let (status, value) = world.post("/v1/paths", set(json!({"via": ["s2", "s1"]}))).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let path = world.path().await;
    assert_eq!(path["chosenBy"], "path set");
    assert_eq!(
        path["candidates"],
        json!([{"path": {"via": ["s1", "s2"]}, "answers": true,
        "fromMicros": null, "toMicros": null, "notes": path["candidates"][0]["notes"]}])
    );

    let (status, value) = world.post("/v1/paths", set(json!({"via": ["s2", "sx"]}))).await;
    assert_problem(status, &value, 404, "did you mean s");
    let (status, value) = world.post("/v1/paths", set(json!({"via": ["s2", "s1", "s2"]}))).await;
    assert_problem(status, &value, 400, "circle");
    let sap = world.ask(Method::DELETE, "/v1/saps/s2", None, "").await;
    assert_problem(sap.0, &sap.1, 409, "ovctl path auto");
    let (status, value) = world.post("/v1/saps/s2/drain", json!({"on": true})).await;
    assert_problem(status, &value, 409, "ovctl path auto");
    assert_eq!(world.path().await["chosenBy"], "path set", "nothing of this changed it");

    let (status, _) = world.post("/v1/paths", json!({"from": "web", "to": "db"})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(world.path().await["chosenBy"], "auto");
    let audit = world.get("/v1/audit?limit=2").await;
    assert_eq!(audit["items"][0]["action"], "path auto web db");
    assert_eq!(audit["items"][1]["action"], "path set db web via s2,s1");
}

#[tokio::test]
async fn a_plan_says_where_saps_should_stand_and_needs_measurements() {
    let (world, [web, db], [s1, s2]) = town().await;
    let (status, value) = world.ask(Method::GET, "/v1/saps/plan?count=1", None, "").await;
    assert_problem(status, &value, 409, "nothing was measured");

    world.measure(&web, [(s1, Some(40_000)), (s2, Some(40_000))]).await;
    world.measure(&db, [(s1, Some(40_000)), (s2, Some(40_000))]).await;
    let plan = world.get("/v1/saps/plan?count=1").await;
    assert_eq!(plan["pairs"], 1);
    assert!(plan["thenMicros"].as_u64() < plan["nowMicros"].as_u64(), "{plan:#}");
    assert!(plan["sites"][0]["sap"].is_null(), "beside an entity: {plan:#}");
    let (status, value) = world.ask(Method::GET, "/v1/saps/plan?count=0", None, "").await;
    assert_problem(status, &value, 400, "no SaP");
}

#[tokio::test]
async fn the_last_sap_is_not_drained() {
    let (world, ..) = town().await;
    let (status, value) = world.post("/v1/saps/s1/drain", json!({"on": true})).await;
    assert_eq!((status, &value["result"]["drain"]), (StatusCode::OK, &json!("leaving")));
    let (status, value) = world.post("/v1/saps/s2/drain", json!({"on": true})).await;
    assert_problem(status, &value, 409, "no other SaP serves");
    let (status, value) = world.post("/v1/saps/s1/drain", json!({"on": false})).await;
    assert_eq!((status, &value["result"]["drain"]), (StatusCode::OK, &Value::Null));
}

#[tokio::test]
async fn a_direct_path_to_an_entity_behind_a_nat_is_refused() {
    let (world, ..) = town().await;
    let sap = world.join("s3", "sap", json!({})).await;
    let direct = json!({"from": "web", "to": "db", "path": "direct"});
    let (status, value) = world.post("/v1/paths", direct.clone()).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let (status, _) = world.post("/v1/paths", json!({"from": "web", "to": "db"})).await;
    assert_eq!(status, StatusCode::OK);

    let db = world.get("/v1/entities/default/db").await["id"].clone();
    let report = json!({"version": "", "endpoints": ["198.51.100.7:6080"], "problems": [],
        "roundTrips": [], "translated": [{"entity": db, "from": "203.0.113.9:4000"}]});
    let path = "/v1/node/report";
    let (status, _) = world.ask(Method::POST, path, Some(&sap), &report.to_string()).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, value) = world.post("/v1/paths", direct).await;
    assert_problem(status, &value, 409, "db cannot be reached directly");
    let rule = json!({"action": "allow", "from": "web", "to": "db", "path": "direct"});
    let (status, value) = world.post("/v1/rules", rule).await;
    assert_problem(status, &value, 409, "203.0.113.9:4000");
}

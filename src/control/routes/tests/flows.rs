//! Flow records: what nodes may say, and whose count is shown.

use super::*;
use crate::api::flows::{FlowList, FlowReport, FlowRow, FlowVerdict};
use crate::control::server::now;
use crate::types::{DropReason, NodeId, OverlayId, RuleId, Timestamp};

fn row(from: u32, to: u32, verdict: FlowVerdict, packets: u64) -> FlowRow {
    let reason = (verdict == FlowVerdict::Denied).then(|| DropReason::NoRule.name().to_owned());
    FlowRow {
        overlay: OverlayId(1),
        rule: (verdict == FlowVerdict::Allowed).then_some(RuleId(1)),
        from: NodeId(from),
        to: Some(NodeId(to)),
        address: None,
        protocol: 6,
        port: Some(80),
        verdict,
        reason,
        packets,
        bytes: packets * 100,
        first: now(),
        last: now(),
    }
}

fn report(number: u64, records: Vec<FlowRow>) -> String {
    let report = FlowReport { run: 1, number, records, overflow: Vec::new() };
    serde_json::to_string(&report).unwrap()
}

struct Town {
    world: World,
    credentials: [String; 4],
}

/// a (1), b (2), c (3), and the SaP s1 (4); a may talk to b.
async fn town() -> Town {
    let world = world().await;
    let credentials = [
        world.join("a", "entity", json!({})).await,
        world.join("b", "entity", json!({})).await,
        world.join("c", "entity", json!({})).await,
        world.join("s1", "sap", json!({})).await,
    ];
    let rule = json!({"overlay": Value::Null, "action": "allow", "from": "a", "to": "b",
        "services": [], "both": false, "path": Value::Null, "expires": Value::Null,
        "reason": Value::Null});
    let (status, value) = world.post("/v1/rules", rule).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    Town { world, credentials }
}

impl Town {
    async fn report(&self, node: usize, body: &str) -> StatusCode {
        let credential = self.credentials[node - 1].as_str();
        let path = "/v1/node/flows";
        self.world.ask(Method::POST, path, Some(credential), body).await.0
    }

    async fn flows(&self, query: &str) -> FlowList {
        serde_json::from_value(self.world.get(&format!("/v1/flows{query}")).await).unwrap()
    }
}

#[tokio::test]
async fn what_all_saw_counts_once_and_what_was_dropped_counts_where_it_was() {
    let town = town().await;
    let allowed = |packets| row(1, 2, FlowVerdict::Allowed, packets);
    let denied = |packets| row(1, 2, FlowVerdict::Denied, packets);
    // 20 left a, one of which the SaP refused; 19 came to the SaP, 18 of them to b.
    assert_eq!(town.report(1, &report(1, vec![allowed(20), denied(3)])).await, 204);
    let at_sap = report(1, vec![allowed(19), denied(1)]);
    assert_eq!(town.report(4, &at_sap).await, 204);
    assert_eq!(town.flows("").await.items[0].packets, 19, "the SaP saw more than nobody");
    assert_eq!(town.report(2, &report(1, vec![allowed(18)])).await, 204);
    // Repeated, because the answer was lost.
    assert_eq!(town.report(4, &at_sap).await, 204);

    let list = town.flows("").await;

    let shown: Vec<_> = list
        .items
        .iter()
        .map(|flow| (flow.verdict, flow.packets, flow.seen_by.join(",")))
        .collect();
    assert_eq!(
        shown,
        [(FlowVerdict::Allowed, 18, "b".to_owned()), (FlowVerdict::Denied, 4, "a,s1".to_owned()),]
    );
    let first = &list.items[0];
    assert_eq!(
        (first.from.as_str(), first.to.as_str(), first.service.as_str(), first.rule),
        ("a", "b", "tcp/80", Some(RuleId(1)))
    );
    assert_eq!(town.flows("?denied=true&from=a&since=5m").await.items.len(), 1);
    assert_eq!(town.flows("?from=b").await.items.len(), 0);
    assert_eq!(town.flows("?limit=1").await.left_off, 1);

    let rule = town.world.get("/v1/rules/r-1").await;
    assert_eq!(rule["hits"]["packets"], 18, "{rule}");
    // No operator changed anything.
    assert_eq!(town.world.get("/v1/status").await["revision"], rule["revision"]);
}

#[tokio::test]
async fn a_node_speaks_of_itself_alone_and_a_sap_of_its_members() {
    let town = town().await;
    let lies: Vec<FlowRow> = vec![
        row(1, 2, FlowVerdict::Allowed, 1),
        row(1, 1, FlowVerdict::Allowed, 1),
        row(1, 3, FlowVerdict::Denied, 1),
        row(3, 99, FlowVerdict::Denied, 1),
        FlowRow { overlay: OverlayId(9), ..row(3, 2, FlowVerdict::Denied, 1) },
        FlowRow { reason: Some("made up".to_owned()), ..row(3, 2, FlowVerdict::Denied, 1) },
        FlowRow { reason: None, ..row(3, 2, FlowVerdict::Denied, 1) },
        FlowRow { address: "10.0.0.1".parse().ok(), to: None, ..row(3, 2, FlowVerdict::Denied, 1) },
        // The truth, and a clock that is wrong.
        FlowRow { last: Timestamp(200_000_000_000), ..row(3, 2, FlowVerdict::Denied, 7) },
    ];
    assert_eq!(town.report(3, &report(1, lies)).await, 204);
    let flows = town.flows("").await.items;
    // a -> c is c's own business, too.
    assert_eq!(flows.len(), 2, "{flows:?}");
    let own = flows.iter().find(|flow| flow.from == "c").unwrap();
    assert!(own.packets == 7 && own.last <= now());

    let (status, value) = town.world.ask(Method::POST, "/v1/node/flows", None, "{}").await;
    assert_eq!(status, 403, "{value}");
    let credential = Some(town.credentials[0].as_str());
    let (status, _) = town.world.ask(Method::GET, "/v1/flows", credential, "").await;
    assert_eq!(status, 403, "a node sees nothing of others");
    let viewer = town.world.token(json!({"role": "viewer"})).await;
    let viewer = viewer.as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    let (status, _) = town.world.ask(Method::GET, "/v1/flows", Some(&viewer), "").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn reports_are_bounded_in_length_and_number() {
    let town = town().await;
    let long = vec![row(1, 2, FlowVerdict::Allowed, 1); 1_001];
    assert_eq!(town.report(1, &report(1, long)).await, 400);
    assert_eq!(town.report(1, &report(1, Vec::new())).await, 204);
    assert_eq!(town.report(1, &report(2, Vec::new())).await, 429);
}

#[tokio::test]
async fn old_records_become_hours_and_go_when_their_time_is_up() {
    let town = town().await;
    let at = |age: u64, packets| {
        let then = Timestamp(now().0 - age);
        FlowRow { first: then, last: then, ..row(1, 2, FlowVerdict::Denied, packets) }
    };
    // Two periods of one hour that is over, one of now, and one that is too old.
    let hour = (now().0 / 3600 - 2) * 3600;
    let age = now().0 - hour;
    let records =
        vec![at(age - 10, 1), at(age - 700, 2), at(age - 1500, 4), at(0, 8), at(86_400, 16)];
    assert_eq!(town.report(1, &report(1, records)).await, 204);
    town.world.server.save_flows().await.unwrap();
    let rows = async || {
        let mut conn = town.world.server.store.read().await.unwrap();
        crate::control::store::flows::rows(&mut conn).await.unwrap()
    };
    assert_eq!(rows().await, 5);

    town.world.server.tidy_flows().await.unwrap();

    let left = town.flows("").await.items;
    assert_eq!(left.len(), 1);
    assert!([15, 31].contains(&left[0].packets), "{left:?}");
    assert!(rows().await <= 3);
    assert_eq!(town.flows("?since=5m").await.items[0].packets, 8);
}

#[tokio::test]
async fn a_suggestion_allows_what_was_recorded() {
    let town = town().await;
    let records = vec![row(1, 3, FlowVerdict::Denied, 4), row(1, 2, FlowVerdict::Audit, 2)];
    assert_eq!(town.report(1, &report(1, records)).await, 204);
    let ask = async |denied: bool| {
        let body = json!({"overlay": Value::Null, "since": "1h", "denied": denied});
        let (status, value) = town.world.post("/v1/policy/suggest", body).await;
        assert_eq!(status, 200, "{value}");
        (value["rules"].as_u64(), value["policy"].as_str().unwrap_or_default().to_owned())
    };
    let (count, text) = ask(false).await;
    assert!(count == Some(1) && text.contains("to: \"b\""), "{text}");
    let (count, text) = ask(true).await;
    assert!(count == Some(2) && text.contains("to: \"c\"") && text.contains("tcp/80"), "{text}");
}

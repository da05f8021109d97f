//! Why a flow passes or not, as the server tells it.

use super::*;
use crate::api::flows::{FlowReport, FlowRow, FlowVerdict};
use crate::api::node::RoundTrip;
use crate::api::why::{StageName, StageState, WhyAnswer};
use crate::control::server::now;
use crate::types::{DropReason, NodeId, OverlayId};

struct Town {
    world: World,
    /// The credential of a.
    a: String,
}

/// a (1), b (2), c (3), and the SaP s1 (4); a may talk to b on tcp/80.
async fn town() -> Town {
    let world = world().await;
    let a = world.join("a", "entity", json!({})).await;
    world.join("b", "entity", json!({})).await;
    world.join("c", "entity", json!({})).await;
    world.join("s1", "sap", json!({})).await;
    let town = Town { world, a };
    town.rule("allow", "a", "b").await;
    town
}

impl Town {
    async fn rule(&self, action: &str, from: &str, to: &str) {
        let rule = json!({"action": action, "from": from, "to": to, "services": ["tcp/80"]});
        let (status, value) = self.world.post("/v1/rules", rule).await;
        assert_eq!(status, StatusCode::OK, "{value}");
    }

    async fn why(&self, from: &str, to: &str, service: &str) -> WhyAnswer {
        let question = json!({"from": from, "to": to, "service": service});
        let (status, value) = self.world.post("/v1/policy/why", question).await;
        assert_eq!(status, StatusCode::OK, "{value}");
        serde_json::from_value(value).unwrap()
    }

    /// All nodes are connected and have their newest tables; a measured `micros` to s1.
    fn connect_all(&self, micros: Option<u64>) {
        let mut live = self.world.server.live();
        for (&id, node) in &mut live.nodes {
            node.polls = 1;
            node.acknowledged = node.newest_serial();
            if id == NodeId(1) {
                node.round_trips = vec![RoundTrip { sap: NodeId(4), micros }];
            }
        }
    }
}

fn state(answer: &WhyAnswer, wanted: StageName) -> (StageState, &str) {
    let found = answer.stages.iter().find(|stage| stage.stage == wanted).unwrap();
    (found.state, found.text.as_str())
}

#[tokio::test]
async fn a_denied_flow_shows_the_nearest_rule_what_was_dropped_and_what_would_allow_it() {
    let town = town().await;
    town.connect_all(Some(300));
    let dropped = |port, packets| FlowRow {
        overlay: OverlayId(1),
        rule: None,
        from: NodeId(1),
        to: Some(NodeId(3)),
        address: None,
        protocol: 6,
        port: Some(port),
        verdict: FlowVerdict::Denied,
        reason: Some(DropReason::NoRow.name().to_owned()),
        packets,
        bytes: packets * 60,
        first: now(),
        last: now(),
    };
    let records = vec![dropped(80, 14), dropped(443, 5)];
    let report = FlowReport { run: 1, number: 1, records, overflow: Vec::new() };
    let body = serde_json::to_string(&report).unwrap();
    let sent = town.world.ask(Method::POST, "/v1/node/flows", Some(&town.a), &body).await;
    assert_eq!(sent.0, 204);

    let answer = town.why("a", "c", "tcp/80").await;

    assert!(!answer.allowed && answer.rule.is_none());
    let names: Vec<StageName> = answer.stages.iter().map(|stage| stage.stage).collect();
    assert_eq!(
        names,
        [
            StageName::Membership,
            StageName::Path,
            StageName::Key,
            StageName::Rules,
            StageName::Endpoint
        ]
    );
    let near: Vec<&str> = answer.nearest.iter().map(|near| near.differs.as_str()).collect();
    assert_eq!(near, ["destination differs"]);
    assert_eq!(state(&answer, StageName::Path).0, StageState::Ok);
    assert_eq!(state(&answer, StageName::Key).0, StageState::Denied);
    assert_eq!(state(&answer, StageName::Rules).0, StageState::Denied);
    assert_eq!(state(&answer, StageName::Endpoint).0, StageState::Ok);
    let seen: Vec<(u64, &str)> =
        answer.seen.iter().map(|seen| (seen.packets, seen.service.as_str())).collect();
    assert_eq!(seen, [(14, "tcp/80")], "another port is another question");
    assert_eq!(answer.allow_with, ["ovctl policy allow a c --port tcp/80"]);

    town.rule("allow", "a", "c").await;
    let answer = town.why("a", "c", "tcp/80").await;
    assert!(answer.allowed && answer.allow_with.is_empty() && answer.nearest.is_empty());
    assert_eq!(state(&answer, StageName::Rules).0, StageState::Ok);
}

#[tokio::test]
async fn an_allowed_flow_shows_what_is_away_or_behind() {
    let town = town().await;
    let away = town.why("a", "b", "tcp/80").await;
    assert!(away.allowed);
    let (path, text) = state(&away, StageName::Path);
    assert!(path == StageState::Broken && text.contains("s1 is offline"), "{text}");
    let (endpoint, text) = state(&away, StageName::Endpoint);
    assert!(endpoint == StageState::Unsure && text.contains("b is offline"), "{text}");

    town.connect_all(None);
    let mute = town.why("a", "b", "tcp/80").await;
    let (path, text) = state(&mute, StageName::Path);
    assert!(path == StageState::Broken && text.contains("a gets no answer from s1"), "{text}");

    town.connect_all(Some(300));
    let well = town.why("a", "b", "tcp/80").await;
    for stage in &well.stages {
        assert_eq!(stage.state, StageState::Ok, "{}", stage.text);
    }
    assert!(state(&well, StageName::Key).1.starts_with("a stamps key 0.0 for b"), "{well:?}");

    town.rule("deny", "a", "b").await;
    let denied = town.why("a", "b", "tcp/80").await;
    assert!(!denied.allowed && denied.rule == Some(crate::types::RuleId(2)));
    assert_eq!(denied.allow_with, ["ovctl policy revoke r-2"]);
    let (_, text) = state(&denied, StageName::Endpoint);
    assert!(text.contains("has not confirmed its newest table"), "{text}");
}

#[tokio::test]
async fn strangers_and_nodes_are_refused() {
    let town = town().await;
    let question = json!({"from": "a", "to": "bb"});
    let (status, value) = town.world.post("/v1/policy/why", question).await;
    assert_problem(status, &value, 404, "did you mean b?");

    let question = json!({"from": "a", "to": "b"}).to_string();
    let ask = async |bearer: &str| {
        town.world.ask(Method::POST, "/v1/policy/why", Some(bearer), &question).await.0
    };
    assert_eq!(ask(&town.a).await, 403, "a node sees nothing of others");
    let viewer = town.world.token(json!({"role": "viewer"})).await;
    let secret = viewer.as_str().unwrap().split('.').nth(1).unwrap();
    assert_eq!(ask(secret).await, 200);
}

#[tokio::test]
async fn outsiders_strangers_groups_and_rules_of_files_have_answers_of_their_own() {
    let town = town().await;
    let (_, overlay) = town.world.post("/v1/overlays", json!({"name": "ops"})).await;
    assert_eq!(overlay["result"]["name"], "ops", "{overlay}");
    town.world.join("far", "entity", json!({"overlays": ["ops"]})).await;
    let why = async |from: &str, to: &str| town.why(from, to, "tcp/80").await;

    let stranger = why("a", "far").await;
    assert!(!stranger.allowed && stranger.overlay.is_none() && stranger.stages.len() == 1);
    let (membership, text) = state(&stranger, StageName::Membership);
    assert!(membership == StageState::Denied && text.contains("far is in ops"), "{text}");

    let outside = why("a", "ip:203.0.113.9").await;
    assert!(outside.to.name.is_none() && !outside.allowed);
    assert!(state(&outside, StageName::Path).1.contains("do not cross"), "{outside:?}");

    let b = why("a", "b").await.to.address.unwrap().to_string();
    let by_address = why("a", &b).await;
    assert_eq!(by_address.to.name.unwrap().to_string(), "b");
    assert!(by_address.allowed);

    let group = json!({"overlay": "default", "name": "all", "verb": "create",
        "selectors": ["b", "c"]});
    let (status, value) = town.world.post("/v1/groups", group).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let group = why("a", "group:all").await;
    assert_eq!((group.pairs, group.allowed_pairs), (2, 1));
    assert_eq!(group.to.name.unwrap().to_string(), "c", "the one that is denied");
    assert_eq!(group.allow_with, ["ovctl policy allow a group:all --port tcp/80"]);

    let file = json!({"overlay": "default", "files": [{"source": "p.yaml", "text":
        "rules:\n  - {action: allow, from: a, to: b}\n  - {action: deny, from: a, to: b}\n"}]});
    let (status, value) = town.world.post("/v1/policy/apply", file).await;
    assert_eq!(status, StatusCode::OK, "{value}");
    let denied = why("a", "b").await;
    let step = denied.allow_with.first().unwrap();
    assert!(step.contains("(p.yaml:3), then: ovctl policy apply -f p.yaml"), "{step}");
}

//! Rules about addresses outside: nobody but the guards of those who start the flows enforces them.

use super::*;

/// Everything to a range, and nothing else, from web.
const NETWORK: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: default}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]
";

async fn report(world: &World, credential: &str, overlays: Value) {
    let body = json!({"version": "0.1.0", "endpoints": ["198.51.100.7:6080"], "problems": [],
        "roundTrips": [], "holdsEgress": overlays});
    let (status, value) =
        world.ask(Method::POST, "/v1/node/report", Some(credential), &body.to_string()).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{value}");
}

#[tokio::test]
async fn answers_and_imports_say_whose_guards_hold_to_it() {
    let world = world().await;
    let web = world.join("web", "entity", json!({})).await;
    let said = async || {
        let question = json!({"from": "web", "to": "203.0.113.9"});
        let (_, can) = world.post("/v1/policy/can", question.clone()).await;
        let (_, why) = world.post("/v1/policy/why", question).await;
        let body = json!({"files": [{"source": "n.yaml", "text": NETWORK}]});
        let (_, import) = world.post("/v1/policy/import?dryRun=true", body).await;
        (can["enforced"] == true, why.to_string(), import.to_string())
    };

    let (enforced, why, import) = said().await;
    assert!(!enforced && why.contains("no SaP and no ovd judges them"), "{why}");
    let open = "not enforced outside the overlay: default/web runs no guard with egress by rules";
    assert!(import.contains(open) || import.contains(&open.replace("default/", "")), "{import}");

    report(&world, &web, json!([1])).await;
    let (enforced, why, import) = said().await;
    assert!(enforced && why.contains("the guard of the machine that starts the flow"), "{why}");
    assert!(!import.contains("not enforced"), "{import}");

    for other in [json!([]), json!([2])] {
        report(&world, &web, other).await;
        assert!(!said().await.0);
    }
}

#[tokio::test]
async fn a_change_is_enforced_when_the_guards_that_hold_to_it_have_it() {
    let world = world().await;
    let web = world.join("web", "entity", json!({})).await;
    world.join("sap-1", "sap", json!({})).await;
    let allow = async |to: &str| {
        let body = json!({"action": "allow", "from": "web", "to": to}).to_string();
        let (status, change) = world.ask(Method::POST, "/v1/rules?wait=50ms", None, &body).await;
        assert_eq!(status, StatusCode::OK, "{change}");
        change["enforcement"].clone()
    };

    // Nobody who has to do with it is late.
    assert_eq!(allow("203.0.113.0/24").await["enforced"], true);
    report(&world, &web, json!([1])).await;
    let late = allow("198.51.100.0/24").await;

    assert_eq!(late["enforced"], false, "{late}");
    assert!(late["pending"].to_string().contains("web"), "{late}");
    assert!(!late["pending"].to_string().contains("sap-1"), "{late}");
}

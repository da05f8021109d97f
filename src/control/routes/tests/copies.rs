//! Two processes of one node: which is served, and what the other one hears.

use super::*;

/// A table for one process, which waits.
async fn poll(world: &World, credential: &str, instance: u64, after: u64) -> (StatusCode, Value) {
    let path = format!("/v1/node/table?after={after}&incarnation={}", world.server.incarnation);
    let request = Request::builder()
        .uri(path)
        .header("authorization", format!("Bearer {credential}"))
        .header("ovmesh-instance", format!("{instance:016x}"))
        .body(HttpBody::empty())
        .unwrap();
    world.raw(request).await
}

async fn report(world: &World, credential: &str, instance: &str) -> (StatusCode, Value) {
    let body = json!({"version": "0.1.0", "endpoints": ["198.51.100.7:6080"], "problems": [],
        "roundTrips": []});
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/node/report")
        .header("authorization", format!("Bearer {credential}"))
        .header("ovmesh-instance", instance)
        .body(HttpBody::from(body.to_string()))
        .unwrap();
    world.raw(request).await
}

#[tokio::test]
async fn a_copy_gets_a_conflict_and_the_node_goes_on() {
    let world = Arc::new(world().await);
    let credential = world.join("web", "entity", json!({})).await;
    let serial = world.table(&credential, 0).await.serial.0;
    let driver = tokio::spawn(Arc::clone(&world.server).drive());
    // Asks on and on, as a node does; an answer without a table is none.
    let node = tokio::spawn({
        let (world, credential) = (Arc::clone(&world), credential.clone());
        async move {
            loop {
                let (status, value) = poll(&world, &credential, 1, serial).await;
                assert_eq!(status, StatusCode::NO_CONTENT, "{value}");
            }
        }
    });
    let is_heard = async |instance: &str| report(&world, &credential, instance).await.0;
    while is_heard("0000000000000002").await != StatusCode::CONFLICT {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(is_heard("0000000000000001").await, StatusCode::NO_CONTENT);

    for _ in 0..2 {
        let (status, value) = poll(&world, &credential, 2, serial).await;
        assert_problem(status, &value, 409, "is used twice");
    }
    let status = world.get("/v1/status").await["problems"].to_string();
    assert!(status.contains("web: its identity is used twice"), "{status}");
    let told = || async {
        let audit = world.get("/v1/audit").await.to_string();
        audit.matches("the identity of web is used twice").count()
    };
    while told().await == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(told().await, 1);
    assert!(!node.is_finished(), "the node was refused");

    // With the node gone the other one is it.
    node.abort();
    let _ = node.await;
    let served = poll(&world, &credential, 2, 0);
    let (status, _) = tokio::time::timeout(Duration::from_secs(5), served).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    driver.abort();
}

#[tokio::test]
async fn an_instance_that_is_none_is_refused() {
    let world = world().await;
    let credential = world.join("web", "entity", json!({})).await;
    let (status, value) = report(&world, &credential, "7").await;
    assert_problem(status, &value, 400, "ovmesh-instance");
}

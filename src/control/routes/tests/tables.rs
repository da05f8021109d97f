//! Tables on the wire: compressed, once, and in memory as long as they are needed.

use super::*;
use crate::api::gzip;
use crate::control::live::Kept;
use crate::types::NodeId;

/// The head's encoding and the bytes.
async fn asked(world: &World, credential: &str, accept: &str) -> (Option<String>, Vec<u8>) {
    let path = format!("/v1/node/table?after=0&incarnation={}", world.server.incarnation);
    let request = Request::builder()
        .uri(path)
        .header("authorization", format!("Bearer {credential}"))
        .header("accept-encoding", accept);
    let request = request.body(HttpBody::empty()).unwrap();
    let response = world.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let encoding = response.headers().get("content-encoding").cloned();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (encoding.map(|name| name.to_str().unwrap().to_owned()), bytes.to_vec())
}

/// Where the bytes of the newest table of the node are in memory, when they are there as they are sent.
fn document_of(world: &World, id: NodeId) -> Option<*const u8> {
    match &world.server.live().nodes[&id].shown.as_ref().unwrap().kept {
        Kept::Document(bytes) => Some(bytes.as_ptr()),
        Kept::Nothing | Kept::Body(_) => None,
    }
}

#[tokio::test]
async fn a_table_is_compressed_once_for_who_can_read_it_and_forgotten_when_it_is_acknowledged() {
    let world = world().await;
    let sap = world.join("sap", "sap", json!({})).await;
    for number in 0..12 {
        world.join(&format!("web-{number}"), "entity", json!({})).await;
    }
    let rule = json!({"action": "allow", "from": "any", "to": "any", "services": ["tcp/80"]});
    assert_eq!(world.post("/v1/rules", rule).await.0, StatusCode::OK);

    let (encoding, plain) = asked(&world, &sap, "identity").await;
    assert_eq!(encoding, None);
    let table: NodeTable = serde_json::from_slice(&plain).unwrap();
    let (encoding, packed) = asked(&world, &sap, "br, gzip;q=0.8").await;
    assert_eq!(encoding.as_deref(), Some("gzip"));
    assert_eq!(gzip::unpack(&packed, plain.len()).unwrap(), plain, "the same to the byte");
    // Half of it are keys, of which no more than half can be saved: two digits are a byte.
    assert!(packed.len() * 3 < plain.len() * 2, "{} of {}", packed.len(), plain.len());

    let first = document_of(&world, table.body.node.id).expect("it is kept");
    assert_eq!(asked(&world, &sap, "gzip").await.1, packed);
    assert_eq!(document_of(&world, table.body.node.id), Some(first), "it was made again");
    let poll = world.poll(&sap, table.serial.0);
    let forgotten = async {
        while document_of(&world, table.body.node.id).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        (status, _) = poll => panic!("there was nothing new: {status}"),
        forgotten = tokio::time::timeout(Duration::from_secs(10), forgotten) => forgotten.expect("kept for nobody"),
    }
    assert_eq!(asked(&world, &sap, "gzip").await.1, packed, "made anew, the same bytes");
}

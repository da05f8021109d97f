use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use ring::digest;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::types::NodeKind;

/// A TLS server on loopback that answers every request with `answer`; returns its address and pin.
async fn server(answer: impl Into<Vec<u8>>) -> (SocketAddr, Secret) {
    let answer = answer.into();
    let key = KeyPair::generate().unwrap();
    let pin = digest::digest(&digest::SHA256, &key.subject_public_key_info());
    let cert =
        CertificateParams::new(vec!["ovmesh".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut tls) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            if tls.read(&mut request).await.is_ok() {
                let _ = tls.write_all(&answer).await;
                let _ = tls.shutdown().await;
            }
        }
    });
    (address, Secret::new(pin.as_ref().try_into().unwrap()))
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn question() -> JoinCheck {
    JoinCheck { secret: Secret::new([3; 32]), kind: NodeKind::Entity }
}

const PREVIEW: &str =
    r#"{"apiVersion":"ovmesh/v1","overlays":[],"name":null,"clearUnderlay":false,"later":1}"#;

#[tokio::test]
async fn only_the_pinned_server_is_talked_to() {
    let (address, pin) = server(answer("200 OK", PREVIEW)).await;
    let url = format!("https://{address}");

    let right = Client::new(vec![url.clone()], &pin).unwrap().check(&question()).await;
    let wrong = Client::new(vec![url.clone()], &Secret::new([9; 32])).unwrap();
    let wrong = wrong.check(&question()).await.unwrap_err();

    assert!(!right.unwrap().clear_underlay);
    assert_eq!(wrong.code, ProblemCode::Unauthorized);
    assert!(wrong.what.contains("is not the one that made this token"), "{wrong}");
    assert!(wrong.what.contains(&url), "{wrong}");
}

#[tokio::test]
async fn a_packed_answer_is_read_and_one_that_is_too_long_unpacked_is_not() {
    let packed = gzip::pack(&[PREVIEW.as_bytes(), &[b' '; 100_000]].concat());
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        packed.len()
    );
    let (address, pin) = server([head.as_bytes(), &packed].concat()).await;
    let client = Client::new(vec![format!("https://{address}")], &pin).unwrap();

    assert!(!client.check(&question()).await.unwrap().clear_underlay);

    let ask = || client.send(Method::GET, "/", None, |request| request);
    assert!(document(ask().await.unwrap(), 200_000).await.is_ok());
    let why = document(ask().await.unwrap(), 10_000).await.unwrap_err();
    assert!(packed.len() < 10_000 && why.contains("longer than 10000"), "{why}");
}

#[tokio::test]
async fn addresses_are_tried_in_order_and_silent_ones_are_named() {
    // It has a port, and nobody listens.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let dead = format!("https://{}", closed.local_addr().unwrap());
    let (address, pin) = server(answer("200 OK", PREVIEW)).await;
    let url = format!("https://{address}");

    let client = Client::new(vec![dead.clone(), url.clone()], &pin).unwrap();
    let found = client.check(&question()).await;
    let lost = Client::new(vec![dead.clone()], &pin).unwrap().check(&question()).await;

    assert!(found.is_ok());
    assert_eq!(client.url(), url);
    let lost = lost.unwrap_err();
    assert_eq!(lost.code, ProblemCode::Unreachable);
    assert!(lost.what.contains(&dead) && lost.why.contains("refused"), "{lost}");
}

#[tokio::test]
async fn problems_of_the_server_arrive_whole() {
    let sent = Problem::new(ProblemCode::Conflict, "web is taken").why("w").fix("f");
    let body = serde_json::to_string(&sent).unwrap();
    let (address, pin) = server(answer("409 Conflict", &body)).await;
    let client = Client::new(vec![format!("https://{address}")], &pin).unwrap();

    assert_eq!(client.check(&question()).await.unwrap_err(), sent);
}

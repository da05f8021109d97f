//! What a stranger can do to the listener, over real sockets.

use std::time::Instant;

use axum::routing::{get, post};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// Takes any certificate: these clients are strangers.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A listener on loopback, for as long as the test runs.
struct Place {
    address: SocketAddr,
    _dir: tempfile::TempDir,
    running: tokio::task::JoinHandle<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    super::super::files::ensure_private_dir(&dir.path().join("data")).unwrap();
    let identity = Identity::load_or_make(&dir.path().join("data")).unwrap();
    let tcp = bind_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = tcp.local_addr().unwrap();
    let unix = bind_unix(&dir.path().join("s")).await.unwrap();
    let router = axum::Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/body", post(|body: axum::body::Bytes| async move { body.len().to_string() }))
        .layer(axum::extract::DefaultBodyLimit::max(1 << 20));
    let stop = std::future::pending::<()>();
    let running = tokio::spawn(serve(tcp, unix, identity, Vec::new(), router, stop));
    Place { address, _dir: dir, running }
}

impl Place {
    async fn plain(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn tls(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        let name = ServerName::try_from("ovmesh").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, self.plain().await).await
    }

    async fn is_served(&self) -> bool {
        let Ok(mut stream) = self.tls().await else { return false };
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        if stream.write_all(request).await.is_err() {
            return false;
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"hello")
    }
}

/// How long until the other side closes.
async fn closed_after(mut stream: impl AsyncRead + Unpin) -> Duration {
    let started = Instant::now();
    let mut rest = Vec::new();
    let read = stream.read_to_end(&mut rest);
    let _ = tokio::time::timeout(3 * HEADER, read).await.expect("it is never closed");
    started.elapsed()
}

fn assert_about(elapsed: Duration, expected: Duration) {
    let slack = Duration::from_secs(3);
    assert!(elapsed + slack > expected && elapsed < expected + slack, "{elapsed:?} {expected:?}");
}

#[tokio::test]
async fn half_open_and_idle_connections_and_slow_heads_are_closed_while_others_are_served() {
    let place = place().await;
    let silent = place.plain().await;
    let no_request = place.tls().await.unwrap();
    let mut idle = place.tls().await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let (slow, mut drip) = tokio::io::split(place.tls().await.unwrap());
    let dripping = tokio::spawn(async move {
        for byte in b"GET / HTTP/1.1\r\nx: ".iter().chain(&[b'a'; 10_000]) {
            if drip.write_all(&[*byte]).await.is_err() || drip.flush().await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });

    let (silent, no_request, idle, slow, is_served) = tokio::join!(
        closed_after(silent),
        closed_after(no_request),
        closed_after(idle),
        closed_after(slow),
        place.is_served(),
    );
    assert!(is_served, "the others keep everybody out");
    assert_about(silent, HANDSHAKE);
    for elapsed in [no_request, idle, slow] {
        assert_about(elapsed, HEADER);
    }
    dripping.abort();
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_no_more_until_some_end() {
    let place = place().await;
    let mut held = Vec::new();
    for _ in 0..PER_ADDRESS_MAX {
        held.push(place.tls().await.unwrap());
    }
    assert!(place.tls().await.is_err(), "one more than there may be");
    assert!(!place.is_served().await);

    held.truncate(PER_ADDRESS_MAX / 2);
    let deadline = Instant::now() + HANDSHAKE;
    while !place.is_served().await {
        assert!(Instant::now() < deadline, "no place is given back");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn heads_that_are_too_long_and_nonsense_are_refused_without_harm() {
    let place = place().await;
    for nonsense in [
        b"GET / HTTP/1.1\r\nx: ".iter().copied().chain([b'a'; 200_000]).collect::<Vec<u8>>(),
        b"\x16\x03\x01\x00\x05hello\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"POST /body HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_vec(),
    ] {
        let mut stream = place.tls().await.unwrap();
        let _ = stream.write_all(&nonsense).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(2 * HEADER, read).await.expect("it is never closed");
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
    assert!(place.is_served().await);
}

#[test]
fn a_poll_gives_its_place_among_quick_connections_back_once() {
    let counts: Arc<Mutex<Counts>> = Arc::default();
    let address = IpAddr::from([192, 0, 2, 1]);
    let slots: Vec<_> =
        (0..PER_ADDRESS_MAX).map(|_| Slot::take(&counts, address).unwrap()).collect();
    assert!(Slot::take(&counts, address).is_none());

    slots[0].becomes_poll();
    slots[0].becomes_poll();
    let one_more = Slot::take(&counts, address);
    assert!(one_more.is_some() && Slot::take(&counts, address).is_none());
    drop((slots, one_more));
    let left = counts.lock().unwrap();
    assert_eq!((left.quick, left.polls, left.by_address.len()), (0, 0, 0));
}

#[tokio::test]
async fn a_local_user_who_may_not_ask_is_told_so_on_every_path() {
    for path in ["/v1/status", "/v1/node/table", "/"] {
        let request = hyper::Request::builder().uri(path).body(axum::body::Body::empty()).unwrap();
        let response = refusing(1234).oneshot(request).await.unwrap();
        assert_eq!(response.status(), axum::http::StatusCode::FORBIDDEN);
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let problem: Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem.code, ProblemCode::Unauthorized);
        assert!(problem.what.contains("1234") && !problem.fix.is_empty(), "{problem}");
    }
}

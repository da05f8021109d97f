//! The health port with real sockets.

use super::*;

/// A program that answers one kind of request with `status`, and returns what it was asked.
async fn program(status: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let asked = read_head(&mut stream).await.unwrap();
        let answer = format!("HTTP/1.1 {status}\r\nLocation: /elsewhere\r\n\r\nsecret content");
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(asked).unwrap()
    });
    (port, serving)
}

async fn health(targets: &[String]) -> SocketAddr {
    let targets = targets.iter().map(|target| target.parse().unwrap()).collect();
    let port = HealthPort::bind("127.0.0.1:0".parse().unwrap(), targets).await.unwrap();
    let address = port.listener.local_addr().unwrap();
    tokio::spawn(port.serve());
    address
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: probe\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn what_the_program_answers_is_the_verdict_and_its_content_stays() {
    for (status, expected) in [("200 OK", "200"), ("302 Found", "200"), ("500 Broken", "500")] {
        let (port, asked) = program(status).await;
        let address = health(&[format!("web/liveness=http:{port}/healthz")]).await;

        let answer = get(address, "/web/liveness").await;

        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{status}: {answer}");
        assert!(!answer.contains("secret") && !answer.contains("Location"), "{answer}");
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("GET /healthz HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("Host: 127.0.0.1:{port}\r\n")), "{asked}");
        assert!(asked.contains("User-Agent: probe\r\n"), "{asked}");
    }
}

#[tokio::test]
async fn a_connection_is_enough_for_tcp_and_only_what_was_configured_is_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let address = health(&[format!("db/liveness=tcp:{port}")]).await;

    assert!(get(address, "/db/liveness").await.starts_with("HTTP/1.1 200 "));
    assert!(get(address, "/db/readiness").await.starts_with("HTTP/1.1 404 "));
    assert!(get(address, "/").await.starts_with("HTTP/1.1 404 "));
    drop(listener);
    assert!(get(address, "/db/liveness").await.starts_with("HTTP/1.1 503 "));
}

#[tokio::test]
async fn garbage_is_refused_and_hangs_nothing() {
    let address = health(&[]).await;

    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[b'x'; http::HEAD_MAX + 1]).await.unwrap();
    let mut answer = Vec::new();
    // It may reset the connection, as it did not read everything.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "));
    assert!(get(address, "/x").await.starts_with("HTTP/1.1 404 "), "it still answers");
}

#[tokio::test]
async fn more_than_fits_are_hung_up_on_and_room_comes_back() {
    let address = health(&[]).await;
    let mut held = Vec::new();
    for _ in 0..AT_ONCE {
        held.push(TcpStream::connect(address).await.unwrap());
    }

    let mut one_more = TcpStream::connect(address).await.unwrap();
    // With room it would be told that there is nothing of that name.
    let _ = one_more.write_all(b"GET /x HTTP/1.1\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = one_more.read_to_end(&mut answer).await;
    assert!(answer.is_empty(), "there was room for one more");

    drop(held);
    // Those that hung up are noticed in their own time.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    loop {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(b"GET /x HTTP/1.1\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        if answer.starts_with(b"HTTP/1.1 404 ") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "no room came back");
    }
}

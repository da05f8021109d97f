//! An HTTP/1.1 echo server, and the client that asks it: real requests, a connection each.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::report;

/// A server gives up on a client after this time.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until killed. The body is `NAME sees PEER`.
pub(crate) fn echo(address: SocketAddr, name: &str) -> Result<()> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    report::ready();
    for stream in listener.incoming() {
        let (stream, name) = (stream?, name.to_owned());
        // A client that goes away is not the server's problem.
        thread::spawn(move || drop(answer(stream, &name)));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, name: &str) -> Result<()> {
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    stream.set_nodelay(true)?;
    let mut request = Vec::<u8>::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut buffer)?;
        if read == 0 || request.len() > 16_384 {
            bail!("no request");
        }
        request.extend(&buffer[..read]);
    }
    let body = format!("{name} sees {}", stream.peer_addr()?.ip().to_canonical());
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len())?;
    Ok(())
}

/// Sends `count` requests one after the other; prints how many were answered with 200, each time in
/// microseconds from connect to the last byte, the last body, and the last error.
pub(crate) fn get(address: SocketAddr, count: u32, timeout: Duration) -> Result<()> {
    let (mut micros, mut failed_micros, mut body, mut error) = (Vec::new(), Vec::new(), None, None);
    for _ in 0..count {
        let started = Instant::now();
        match request(address, timeout) {
            Ok(text) => {
                micros.push(u64::try_from(started.elapsed().as_micros())?);
                body = Some(text);
            }
            Err(failure) => {
                failed_micros.push(u64::try_from(started.elapsed().as_micros())?);
                error = Some(format!("{failure:#}"));
            }
        }
    }
    report::print(&json!({
        "sent": count, "ok": micros.len(), "micros": micros, "body": body, "error": error,
        "failedMicros": failed_micros,
    }));
    Ok(())
}

fn request(address: SocketAddr, timeout: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("answered {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

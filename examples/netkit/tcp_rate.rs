//! How many bytes one TCP connection moves.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use socket2::SockRef;

use crate::report;

/// What one read or write takes, in bytes.
const BLOCK: usize = 128 << 10;
/// The kernel's name of the congestion control that all figures of this project are taken with.
const CUBIC: &[u8] = b"cubic";
/// How long the other end may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads everything that one connection after the other brings, and answers each with its count of
/// bytes, until killed.
pub(crate) fn sink(address: SocketAddr) -> Result<()> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    report::ready();
    let mut block = vec![0; BLOCK];
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut total = 0_u64;
        while let Ok(len @ 1..) = stream.read(&mut block) {
            total += len as u64;
        }
        // Whoever broke off does not want to know.
        let _ = stream.write_all(&total.to_be_bytes());
    }
    Ok(())
}

/// Writes for `length` as fast as it goes, and says how many bits a second arrived.
pub(crate) fn rate(target: SocketAddr, length: Duration) -> Result<()> {
    let mut stream = TcpStream::connect(target).context("cannot connect")?;
    SockRef::from(&stream).set_tcp_congestion(CUBIC).context("no cubic in this kernel")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let block = vec![0x5a; BLOCK];
    let begun = Instant::now();
    while begun.elapsed() < length {
        stream.write_all(&block)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total).context("the sink did not say what arrived")?;
    let (bytes, seconds) = (u64::from_be_bytes(total), begun.elapsed().as_secs_f64());
    report::print(&json!({ "bytes": bytes, "bitsPerSecond": bytes as f64 * 8.0 / seconds }));
    Ok(())
}

//! UDP: sinks that count, a sender at a pace, an echo server and its client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::json;

use crate::report::{self, File};

/// In bytes.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What [`send`] sends.
pub(crate) struct Burst {
    pub(crate) source: SocketAddr,
    pub(crate) target: SocketAddr,
    pub(crate) count: u32,
    pub(crate) interval_us: u64,
    pub(crate) size: usize,
    /// Ends it when it is there.
    pub(crate) stop: Option<PathBuf>,
}

/// Counts datagrams until killed.
pub(crate) fn sink(address: SocketAddr, file: &str) -> Result<()> {
    let socket = bind(address)?;
    socket.set_read_timeout(Some(File::INTERVAL))?;
    let (mut file, mut received, mut bytes) = (File::new(file), 0_u64, 0_u64);
    let mut by_source = BTreeMap::<String, u64>::new();
    let mut buffer = vec![0; 65_536];
    let mut last_millis = 0;
    file.write(&json!({ "received": 0, "bytes": 0, "bySource": {}, "lastMillis": 0 }))?;
    report::ready();
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, source)) => {
                received += 1;
                bytes += u64::try_from(length)?;
                last_millis = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
                *by_source.entry(source.ip().to_canonical().to_string()).or_default() += 1;
            }
            Err(error) if report::is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
        file.update(|| {
            json!({
                "received": received,
                "bytes": bytes,
                "bySource": by_source,
                // Of the wall clock, since 1970.
                "lastMillis": u64::try_from(last_millis).unwrap_or(u64::MAX),
            })
        })?;
    }
}

/// Counts datagrams by what is in them, until killed: `{"received": 3, "byPayload": {"01ff": 3}}`.
pub(crate) fn capture(address: SocketAddr, file: &str) -> Result<()> {
    let socket = bind(address)?;
    socket.set_read_timeout(Some(File::INTERVAL))?;
    let (mut file, mut received) = (File::new(file), 0_u64);
    let mut by_payload = BTreeMap::<String, u64>::new();
    let mut buffer = vec![0; 65_536];
    file.write(&json!({ "received": 0, "byPayload": {} }))?;
    report::ready();
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                received += 1;
                let digits = buffer[..length].iter().map(|byte| format!("{byte:02x}")).collect();
                *by_payload.entry(digits).or_default() += 1;
            }
            Err(error) if report::is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
        file.update(|| json!({ "received": received, "byPayload": by_payload }))?;
    }
}

/// Sends at a pace; a datagram that the kernel refuses counts as refused, not as an error.
pub(crate) fn send(burst: &Burst) -> Result<()> {
    let socket = bind(burst.source)?;
    let payload = vec![b'x'; burst.size];
    let started = Instant::now();
    let (mut sent, mut refused) = (0_u32, 0_u32);
    for number in 0..burst.count {
        if burst.stop.as_ref().is_some_and(|stop| stop.exists()) {
            break;
        }
        let due = Duration::from_micros(burst.interval_us * u64::from(number));
        report::pause(due.saturating_sub(started.elapsed()));
        match socket.send_to(&payload, burst.target) {
            Ok(_) => sent += 1,
            Err(_) => refused += 1,
        }
    }
    report::print(&json!({ "sent": sent, "refused": refused }));
    Ok(())
}

/// Returns each datagram to its sender until killed.
pub(crate) fn echo(address: SocketAddr) -> Result<()> {
    let socket = bind(address)?;
    report::ready();
    answer(&socket)
}

/// Returns each datagram to its sender, for ever.
pub(crate) fn answer(socket: &UdpSocket) -> ! {
    let mut buffer = vec![0; 65_536];
    loop {
        // An ICMP error for an earlier answer shows up here; the next datagram is still welcome.
        if let Ok((length, source)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], source);
        }
    }
}

/// How long [`ping`] waits in the end for echoes that were held up, where others came.
const LATE: Duration = Duration::from_secs(2);

/// Sends numbered datagrams and waits for the echo of each. One that comes after the patience for it is
/// received, too.
pub(crate) fn ping(target: SocketAddr, count: u32, timeout: Duration) -> Result<()> {
    let socket = bind(any_for(target))?;
    socket.connect(target).with_context(|| format!("no route to {target}"))?;
    let (mut waiting, mut micros, mut error) = (BTreeSet::new(), Vec::new(), None);
    for number in 0..count {
        let started = Instant::now();
        waiting.insert(number);
        match exchange(&socket, number, &mut waiting, timeout) {
            Ok(()) if waiting.contains(&number) => {}
            Ok(()) => micros.push(u64::try_from(started.elapsed().as_micros())?),
            Err(failure) => error = Some(failure.to_string()),
        }
    }
    if waiting.len() < usize::try_from(count)? {
        let _ = collect(&socket, &mut waiting, BTreeSet::is_empty, LATE);
    }
    let received = usize::try_from(count)? - waiting.len();
    report::print(
        &json!({ "sent": count, "received": received, "micros": micros, "error": error }),
    );
    Ok(())
}

/// Sends `number` and waits for its echo.
fn exchange(
    socket: &UdpSocket,
    number: u32,
    waiting: &mut BTreeSet<u32>,
    timeout: Duration,
) -> std::io::Result<()> {
    socket.send(&number.to_be_bytes())?;
    collect(socket, waiting, |waiting| !waiting.contains(&number), timeout)
}

/// Takes echoes out of `waiting` until `is_over`, or the time is.
fn collect(
    socket: &UdpSocket,
    waiting: &mut BTreeSet<u32>,
    is_over: impl Fn(&BTreeSet<u32>) -> bool,
    timeout: Duration,
) -> std::io::Result<()> {
    let deadline = Instant::now() + timeout;
    let mut buffer = [0; 64];
    while !is_over(waiting) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            Ok(4) => {
                let number = buffer.first_chunk().expect("64 bytes are more than 4");
                waiting.remove(&u32::from_be_bytes(*number));
            }
            Ok(_) => {}
            Err(error) if report::is_timeout(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Any port of this host that reaches `target`.
pub(crate) fn any_for(target: SocketAddr) -> SocketAddr {
    match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

pub(crate) fn bind(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"))?;
    // What waited for a restart comes in one burst; the kernel may give less, which works too.
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
    Ok(socket)
}

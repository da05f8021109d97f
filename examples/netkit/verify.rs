//! Traffic whose every byte is known beforehand, so that what was changed, lost, doubled or made up
//! on its way shows.
//!
//! Bytes are a function of a seed and their place. Each end knows what it must get and nobody has to
//! be told, so that an error cannot hide in what tells it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::report;

/// The seed of what the client of a connection sends.
const CLIENT: u64 = 0x6f76_6d65_7368_0001;
/// The seed of what the server sends.
const SERVER: u64 = 0x6f76_6d65_7368_0002;

/// The verdict of the server on a stream in which nothing is wrong.
const RIGHT: u64 = u64::MAX;

/// How long a server waits for its client.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lengths of writes, in turn: odd ones, tiny ones, and more than any segment.
const WRITES: [usize; 8] = [65_536, 1, 7, 1411, 4096, 63, 30_001, 1424];

/// Bytes of datagrams under way: less than any queue or buffer on their way holds.
const WINDOW_BYTES: usize = 32 << 10;
/// Datagrams under way.
const WINDOW: usize = 48;

/// An endless row of bytes (xorshift64*).
struct Bytes {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Bytes {
    fn new(seed: u64) -> Self {
        // A state of 0 would stay 0.
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, word: [0; 8], used: 8 }
    }

    fn next(&mut self) -> u8 {
        if self.used == 8 {
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            self.word = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes();
            self.used = 0;
        }
        self.used += 1;
        self.word[self.used - 1]
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        buffer.iter_mut().for_each(|byte| *byte = self.next());
    }
}

/// Serves [`tcp`]: one connection after the other, until killed.
pub(crate) fn tcp_serve(address: SocketAddr) -> Result<()> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    report::ready();
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || drop(serve_one(&stream)));
    }
    Ok(())
}

fn serve_one(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut count = [0; 8];
    let mut reader = stream;
    reader.read_exact(&mut count)?;
    let count = u64::from_be_bytes(count);
    let sender = send_in_background(stream, SERVER, count)?;
    let (wrong_at, _) = compare(stream, CLIENT, count)?;
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    let mut writer = stream;
    writer.write_all(&wrong_at.unwrap_or(RIGHT).to_be_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

/// Sends `count` known bytes and at the same time receives as many; both ends compare each. Prints
/// where the first wrong byte was, if there was any, and fails when the connection ends too early, or
/// does not end.
pub(crate) fn tcp(target: SocketAddr, count: u64, patience: Duration) -> Result<()> {
    let started = Instant::now();
    let stream = TcpStream::connect_timeout(&target, patience)
        .with_context(|| format!("cannot connect to {target}"))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut writer = &stream;
    writer.write_all(&count.to_be_bytes())?;
    let sender = send_in_background(&stream, CLIENT, count)?;
    let (wrong_here, received) = compare(&stream, SERVER, count)?;
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    let mut there = [0; 8];
    let mut reader = &stream;
    reader.read_exact(&mut there).context("the server says nothing of what it got")?;
    let there = Some(u64::from_be_bytes(there)).filter(|&at| at != RIGHT);
    let more = reader.read(&mut [0; 64]).context("the connection does not end")?;
    report::print(&json!({
        "received": received,
        "wrongHere": wrong_here,
        "wrongThere": there,
        "surplus": more,
        "millis": u64::try_from(started.elapsed().as_millis())?,
    }));
    Ok(())
}

fn send_in_background(
    stream: &TcpStream,
    seed: u64,
    count: u64,
) -> Result<thread::JoinHandle<Result<()>>> {
    let mut stream = stream.try_clone()?;
    Ok(thread::spawn(move || {
        let (mut bytes, mut left) = (Bytes::new(seed), usize::try_from(count)?);
        let mut buffer = vec![0; 65_536];
        for length in WRITES.iter().cycle() {
            let chunk = &mut buffer[..left.min(*length)];
            if chunk.is_empty() {
                break;
            }
            bytes.fill(chunk);
            stream.write_all(chunk).with_context(|| format!("stalled with {left} bytes to go"))?;
            left -= chunk.len();
        }
        Ok(())
    }))
}

/// Where the first wrong byte of the next `count` is, and how many came.
fn compare(mut stream: &TcpStream, seed: u64, count: u64) -> Result<(Option<u64>, u64)> {
    let (mut bytes, mut at, mut wrong) = (Bytes::new(seed), 0_u64, None);
    let mut buffer = vec![0; 65_536];
    while at < count {
        let room = buffer.len().min(usize::try_from(count - at)?);
        let length = stream
            .read(&mut buffer[..room])
            .with_context(|| format!("stalled after {at} of {count} bytes"))?;
        ensure!(length > 0, "ended after {at} of {count} bytes");
        for byte in &buffer[..length] {
            if *byte != bytes.next() && wrong.is_none() {
                wrong = Some(at);
            }
            at += 1;
        }
    }
    Ok((wrong, at))
}

/// The payload of copy `copy` of length `length`: its first byte says which copy, the others follow.
fn payload(length: usize, copy: u8) -> Vec<u8> {
    let mut payload = vec![copy; length];
    let seed = u64::try_from(length).unwrap_or(0) << 8 | u64::from(copy);
    if let Some(rest) = payload.get_mut(1..) {
        Bytes::new(seed.wrapping_add(1)).fill(rest);
    }
    payload
}

/// What came back.
#[derive(Default)]
struct Tally {
    lengths: BTreeSet<usize>,
    copies: u8,
    sent: u64,
    received: u64,
    /// Not what was sent.
    strange: u64,
    /// Sent, and back once more, or too late.
    doubled: u64,
    missing: u64,
    strange_lengths: BTreeSet<usize>,
    missing_lengths: BTreeSet<usize>,
}

/// Sends `copies` datagrams of every length, in bursts, to an echo server, and compares what comes
/// back with what was sent. Prints how many came, and what was strange or missing.
pub(crate) fn udp(target: SocketAddr, lengths: &str, copies: u8, timeout: Duration) -> Result<()> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target).with_context(|| format!("no route to {target}"))?;
    let lengths = read_lengths(lengths)?;
    let sent = lengths.iter().copied().collect();
    let mut tally = Tally { lengths: sent, copies, ..Tally::default() };
    let mut burst = Vec::new();
    for length in lengths {
        for copy in 0..copies {
            burst.push(payload(length, copy));
            let bytes: usize = burst.iter().map(Vec::len).sum();
            if burst.len() == WINDOW || bytes >= WINDOW_BYTES {
                tally.exchange(&socket, &std::mem::take(&mut burst), timeout)?;
            }
        }
    }
    tally.exchange(&socket, &burst, timeout)?;
    // Whatever is still under way was not to be.
    tally.drain(&socket)?;
    report::print(&json!({
        "sent": tally.sent,
        "received": tally.received,
        "strange": tally.strange,
        "doubled": tally.doubled,
        "missing": tally.missing,
        "strangeLengths": tally.strange_lengths,
        "missingLengths": tally.missing_lengths,
    }));
    Ok(())
}

/// `1-64,1431,4000`: lengths and ranges of them.
fn read_lengths(text: &str) -> Result<Vec<usize>> {
    let mut lengths = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let parse = |text: &str| text.parse::<usize>().with_context(|| format!("`{text}`"));
        lengths.extend(parse(first)?..=parse(last)?);
    }
    Ok(lengths)
}

impl Tally {
    fn exchange(&mut self, socket: &UdpSocket, burst: &[Vec<u8>], timeout: Duration) -> Result<()> {
        let mut waiting: BTreeSet<&[u8]> = BTreeSet::new();
        for datagram in burst {
            socket.send(datagram).with_context(|| format!("{} bytes", datagram.len()))?;
            self.sent += 1;
            waiting.insert(datagram);
        }
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![0; 65_536];
        while !waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(length) if waiting.remove(&buffer[..length]) => self.received += 1,
                Ok(length) => self.note_unexpected(&buffer[..length]),
                Err(error) if report::is_timeout(&error) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.missing += u64::try_from(waiting.len())?;
        self.missing_lengths.extend(waiting.iter().map(|datagram| datagram.len()));
        Ok(())
    }

    fn note_unexpected(&mut self, datagram: &[u8]) {
        let was_sent = datagram.first().is_some_and(|&copy| {
            copy < self.copies
                && self.lengths.contains(&datagram.len())
                && payload(datagram.len(), copy) == datagram
        });
        if was_sent {
            self.doubled += 1;
        } else {
            self.strange += 1;
            self.strange_lengths.insert(datagram.len());
        }
    }

    fn drain(&mut self, socket: &UdpSocket) -> Result<()> {
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut buffer = vec![0; 65_536];
        loop {
            match socket.recv(&mut buffer) {
                Ok(length) => self.note_unexpected(&buffer[..length]),
                Err(error) if report::is_timeout(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

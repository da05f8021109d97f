//! What runs on the machines: UDP sinks, a search for the rate at which loss is 1%, a ping-pong.
//!
//! Plain sockets with the buffers that the kernel gives to everybody: the numbers are those of an
//! ordinary program, one system call for a datagram at both ends.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use socket2::SockRef;

/// How much loss is still fine.
const LOSS_MAX: f64 = 0.01;
/// Where the search begins and ends, in datagrams a second.
const RATE_MIN: f64 = 4_000.0;
const RATE_MAX: f64 = 4_000_000.0;
/// Halvings of the range, on a logarithmic scale: the last step is 1.4%.
const STEPS: u32 = 9;
/// How often a rate is tried before it counts as too high.
const TRIES: u32 = 3;
/// Datagrams between two looks at the clock.
const BURST: u32 = 8;
/// How far ahead of its plan a sender must be to sleep rather than to yield.
const SLEEP_MIN: Duration = Duration::from_micros(100);
/// How long after the last datagram the sink is asked.
const SETTLE: Duration = Duration::from_millis(60);
/// What is asked of a sink, in datagrams too short to be counted.
const BEGIN: u8 = b'b';
const QUERY: u8 = b'q';

/// What one trial found.
struct Trial {
    sent: u32,
    received: u32,
    seconds: f64,
    receive_buffer: u64,
}

impl Trial {
    fn loss(&self) -> f64 {
        1.0 - f64::from(self.received) / f64::from(self.sent.max(1))
    }

    fn rate_sent(&self) -> f64 {
        f64::from(self.sent) / self.seconds
    }

    fn rate_received(&self) -> f64 {
        f64::from(self.received) / self.seconds
    }
}

/// Counts the datagrams of the running trial until killed.
pub(crate) fn sink(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    let receive_buffer = SockRef::from(&socket).recv_buffer_size()?;
    let mut buffer = [0; 2_048];
    let (mut trial, mut received) = (0_u32, 0_u32);
    println!("ready");
    loop {
        // An ICMP error for an earlier answer shows up here.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let Some((&[word, t0, t1, t2, t3], _)) = buffer.split_first_chunk::<5>() else { continue };
        let number = u32::from_be_bytes([t0, t1, t2, t3]);
        match (length, word) {
            (5, BEGIN) => {
                (trial, received) = (number, 0);
                let _ = socket.send_to(&buffer[..5], from);
            }
            (5, QUERY) if number == trial => {
                let answer = json!({ "received": received, "receiveBuffer": receive_buffer });
                let _ = socket.send_to(answer.to_string().as_bytes(), from);
            }
            (6.., _) if number == trial => received += 1,
            _ => {}
        }
    }
}

/// Finds the highest rate at which at most 1% of datagrams of `size` bytes is lost.
///
/// A trial that loses more is tried again, because a neighbour on the machine may be at fault.
pub(crate) fn search(target: SocketAddr, size: usize, trial: Duration) -> Result<()> {
    let socket = connect(target)?;
    let (mut low, mut high) = (RATE_MIN.ln(), RATE_MAX.ln());
    let (mut best, mut number) = (None::<Trial>, 0);
    for _ in 0..STEPS {
        let rate = f64::midpoint(low, high).exp();
        let mut kept = None;
        for _ in 0..TRIES {
            number += 1;
            let found = try_rate(&socket, number, rate, size, trial)?;
            if found.loss() <= LOSS_MAX {
                kept = Some(found);
                break;
            }
        }
        let Some(found) = kept else {
            high = rate.ln();
            continue;
        };
        low = rate.ln();
        let is_at_its_end = found.rate_sent() < 0.9 * rate;
        if best.as_ref().is_none_or(|best| found.rate_received() > best.rate_received()) {
            best = Some(found);
        }
        if is_at_its_end {
            // The sender can do no more; faster is no other trial.
            high = rate.ln();
            low = low.min(best.as_ref().map_or(low, |best| best.rate_sent().ln()));
        }
    }
    let Some(best) = best else { bail!("more than 1% is lost at {RATE_MIN} datagrams a second") };
    println!(
        "{}",
        json!({ "kpps": best.rate_received() / 1e3, "lossPercent": 100.0 * best.loss(),
            "receiveBuffer": best.receive_buffer, "trials": number })
    );
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "sends at a pace")]
fn try_rate(
    socket: &UdpSocket,
    number: u32,
    rate: f64,
    size: usize,
    length: Duration,
) -> Result<Trial> {
    ask(socket, BEGIN, number)?;
    let mut payload = vec![0_u8; size];
    payload[1..5].copy_from_slice(&number.to_be_bytes());
    let mut sent = 0_u32;
    let started = Instant::now();
    loop {
        let elapsed = started.elapsed();
        if elapsed >= length {
            break;
        }
        let ahead = Duration::from_secs_f64(f64::from(sent) / rate).saturating_sub(elapsed);
        if ahead >= SLEEP_MIN {
            std::thread::sleep(ahead);
        } else if !ahead.is_zero() {
            std::thread::yield_now();
        } else {
            for _ in 0..BURST {
                // One that the kernel refuses is lost as any other.
                let _ = socket.send(&payload);
            }
            sent += BURST;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let answer = ask(socket, QUERY, number)?;
    Ok(Trial {
        sent,
        received: u32::try_from(answer["received"].as_u64().unwrap_or(0))?,
        seconds,
        receive_buffer: answer["receiveBuffer"].as_u64().unwrap_or(0),
    })
}

/// Asks the sink until it answers; questions and answers may be lost too.
fn ask(socket: &UdpSocket, word: u8, number: u32) -> Result<Value> {
    let [t0, t1, t2, t3] = number.to_be_bytes();
    let question = [word, t0, t1, t2, t3];
    let mut buffer = [0; 256];
    for _ in 0..20 {
        let _ = socket.send(&question);
        let deadline = Instant::now() + Duration::from_millis(200);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let Ok(length) = socket.recv(&mut buffer) else { continue };
            match (word, buffer.get(..length)) {
                (BEGIN, Some(answer)) if answer == question => return Ok(Value::Null),
                (QUERY, Some(answer)) if answer.first() == Some(&b'{') => {
                    return Ok(serde_json::from_slice(answer)?);
                }
                _ => {}
            }
        }
    }
    bail!("the sink at {:?} does not answer", socket.peer_addr())
}

/// Returns each datagram to its sender until killed.
pub(crate) fn echo(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut buffer = [0; 2_048];
    println!("ready");
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// Sends one datagram after the other, each when the echo of the one before is there.
pub(crate) fn round_trips(target: SocketAddr, count: u32) -> Result<()> {
    let socket = connect(target)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut micros = Vec::new();
    let mut lost = 0_u32;
    let warm_up = count / 10 + 10;
    for number in 0..count + warm_up {
        let started = Instant::now();
        socket.send(&number.to_be_bytes())?;
        let mut buffer = [0; 64];
        let is_echo = loop {
            match socket.recv(&mut buffer) {
                Ok(4) if buffer[..4] == number.to_be_bytes() => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        if !is_echo {
            lost += 1;
            if lost > 5 {
                bail!("{lost} echoes of {target} did not come");
            }
        } else if number >= warm_up {
            micros.push(started.elapsed().as_secs_f64() * 1e6);
        }
    }
    micros.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = (micros.len().saturating_sub(1) as f64 * share).round();
        micros.get(index as usize).copied()
    };
    println!("{}", json!({ "p50": at(0.5), "p99": at(0.99), "count": micros.len(), "lost": lost }));
    Ok(())
}

fn connect(target: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(target).with_context(|| format!("no route to {target}"))?;
    Ok(socket)
}

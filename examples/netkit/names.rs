//! A name server that writes down what it is asked, and a client that asks as programs do.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::report::{self, File};

/// What every name's A record is.
const ANSWER: [u8; 4] = [192, 0, 2, 99];

/// Length of a message's header.
const HEADER: usize = 12;

const A: u16 = 1;

/// How often each name was asked for, by `udp` and `tcp`.
type Asked = Arc<Mutex<BTreeMap<&'static str, BTreeMap<String, u64>>>>;

/// Answers until killed; knows every name.
pub(crate) fn serve(address: SocketAddr, file: &str) -> Result<()> {
    let asked = Asked::default();
    let tcp = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let udp = UdpSocket::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    udp.set_read_timeout(Some(File::INTERVAL))?;
    let by_tcp = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let asked = Arc::clone(&by_tcp);
            thread::spawn(move || drop(converse(stream, &asked)));
        }
    });
    let mut file = File::new(file);
    file.write(&json!({}))?;
    report::ready();
    let mut buffer = [0; 4096];
    loop {
        match udp.recv_from(&mut buffer) {
            Ok((length, from)) => {
                if let Some(answer) = answer(&buffer[..length], "udp", &asked) {
                    udp.send_to(&answer, from)?;
                }
            }
            Err(error) if report::is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
        file.update(|| json!(*asked.lock().unwrap_or_else(PoisonError::into_inner)))?;
    }
}

fn converse(mut stream: impl Read + Write, asked: &Asked) -> Result<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut message)?;
        let Some(answer) = answer(&message, "tcp", asked) else { return Ok(()) };
        stream.write_all(&u16::try_from(answer.len())?.to_be_bytes())?;
        stream.write_all(&answer)?;
    }
}

fn answer(message: &[u8], way: &'static str, asked: &Asked) -> Option<Vec<u8>> {
    let (mut name, mut at) = (String::new(), HEADER);
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = message.get(at..at + length)?;
        name.push_str(&format!("{}.", String::from_utf8_lossy(label).to_lowercase()));
        at += length;
    }
    let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
    let question = message.get(HEADER..at + 4)?;
    let mut all = asked.lock().unwrap_or_else(PoisonError::into_inner);
    *all.entry(way).or_default().entry(name).or_default() += 1;
    let is_known = kind == A;
    let mut answer = message.get(..2)?.to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_known), 0, 0, 0, 0]);
    answer.extend(question);
    if is_known {
        // A pointer to the question's name, A, IN, a second to live, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(ANSWER);
    }
    Some(answer)
}

/// Asks `count` times as any program does; prints the addresses of the last time, in their order, and the
/// median time.
pub(crate) fn resolve(name: &str, count: u32) -> Result<()> {
    let (mut micros, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let start = Instant::now();
        let found = (name, 0).to_socket_addrs().with_context(|| format!("no {name}"))?;
        micros.push(u64::try_from(start.elapsed().as_micros())?);
        addresses = found.map(|found| found.ip().to_string()).collect();
    }
    micros.sort_unstable();
    let Some(median) = micros.get(micros.len() / 2) else { bail!("asked nothing") };
    report::print(&json!({ "addresses": addresses, "microsMedian": median }));
    Ok(())
}

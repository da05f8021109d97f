//! A flow of datagrams that lives long: how long the longest gap was, and what was lost.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::report::{self, File};
use crate::udp::{any_for, bind};

/// Sends numbered datagrams to an `udp-echo` at a pace for `seconds`, and notes when they come back. The
/// file says how many came back, how many before the last one are missing, and the longest gap between two.
pub(crate) fn run(target: SocketAddr, file: &str, interval_us: u64, seconds: u64) -> Result<()> {
    let socket = bind(any_for(target))?;
    socket.connect(target).with_context(|| format!("no route to {target}"))?;
    let mut file = File::new(file);
    let started = Instant::now();
    let mut pace = Pace::new(started, interval_us);
    let mut progress = Progress::new(started);
    file.write(&progress.json())?;
    report::ready();
    let mut buffer = [0; 64];
    while started.elapsed() < Duration::from_secs(seconds) {
        let wait = pace.wait();
        if wait.is_zero() {
            // What the kernel refuses is lost, like what nobody echoes.
            let _ = socket.send(&progress.sent.to_be_bytes());
            progress.sent += 1;
            pace.sent();
            continue;
        }
        socket.set_read_timeout(Some(wait.min(File::INTERVAL)))?;
        match socket.recv(&mut buffer) {
            Ok(_) => progress.note_echo(&buffer),
            // A refusal shows up here; the next echo is still welcome.
            Err(error) if !report::is_timeout(&error) => report::pause(Duration::from_millis(1)),
            Err(_) => {}
        }
        file.update(|| progress.json())?;
    }
    file.write(&progress.json())?;
    report::print(&progress.json());
    Ok(())
}

/// Pours datagrams at a pace on whoever sent one last, until killed: a flow in which hardly anything goes
/// the way of its starter.
pub(crate) fn pour(address: SocketAddr, interval_us: u64) -> Result<()> {
    let socket = bind(address)?;
    report::ready();
    let mut buffer = [0; 64];
    let (_, mut to) = socket.recv_from(&mut buffer)?;
    socket.set_nonblocking(true)?;
    let mut pace = Pace::new(Instant::now(), interval_us);
    for number in 0_u64.. {
        if let Ok((_, next)) = socket.recv_from(&mut buffer) {
            to = next;
        }
        let _ = socket.send_to(&number.to_be_bytes(), to);
        pace.sent();
        report::pause(pace.wait());
    }
    Ok(())
}

/// When the next datagram is due. Of a time in which this program stood still no more is made up for than
/// sockets can hold.
struct Pace {
    due: Instant,
    interval: Duration,
}

impl Pace {
    /// What is made up for.
    const BEHIND: Duration = Duration::from_millis(50);

    fn new(start: Instant, interval_us: u64) -> Self {
        Self { due: start, interval: Duration::from_micros(interval_us) }
    }

    fn wait(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }

    fn sent(&mut self) {
        let earliest = Instant::now().checked_sub(Self::BEHIND).unwrap_or(self.due);
        self.due = self.due.max(earliest) + self.interval;
    }
}

struct Progress {
    last: Instant,
    sent: u64,
    received: u64,
    gap: Duration,
    /// The numbers that came, each once.
    numbers: BTreeSet<u64>,
}

impl Progress {
    fn new(now: Instant) -> Self {
        Self { last: now, sent: 0, received: 0, gap: Duration::ZERO, numbers: BTreeSet::new() }
    }

    fn note_echo(&mut self, datagram: &[u8; 64]) {
        self.received += 1;
        let number = u64::from_be_bytes(*datagram.first_chunk().expect("64 bytes are more than 8"));
        self.numbers.insert(number);
        self.gap = self.gap.max(self.last.elapsed());
        self.last = Instant::now();
    }

    /// How many between the first and the last never came. One that came twice makes up for none.
    fn missing(&self) -> u64 {
        let (Some(first), Some(last)) = (self.numbers.first(), self.numbers.last()) else {
            return 0;
        };
        last - first + 1 - self.numbers.len() as u64
    }

    fn json(&self) -> Value {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        json!({
            "sent": self.sent,
            "received": self.received,
            "missing": self.missing(),
            "gapMillisMax": millis(self.gap),
            "sinceLastMillis": millis(self.last.elapsed()),
        })
    }
}

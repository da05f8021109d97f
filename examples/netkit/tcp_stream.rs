//! One TCP connection that lives long, with a line every 10 ms each way: what a revoked rule must
//! stop, and what a rotation or another SaP must not.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::report::{self, File};

/// Between two lines.
const PACE: Duration = Duration::from_millis(10);

/// Returns each line to its sender until killed.
pub(crate) fn echo(address: SocketAddr) -> Result<()> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    report::ready();
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || drop(echo_lines(&stream)));
    }
    Ok(())
}

fn echo_lines(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream;
    for line in BufReader::new(stream).lines() {
        writeln!(writer, "{}", line?)?;
    }
    Ok(())
}

/// Sends numbered lines for `seconds` and notes when the last one came back. The file says how many
/// came back, when the last one did (milliseconds since 1970), the longest gap between two, and why
/// the connection ended, if it did.
pub(crate) fn stream(target: SocketAddr, file: &str, seconds: u64) -> Result<()> {
    let mut file = File::new(file);
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))
        .with_context(|| format!("cannot connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(File::INTERVAL))?;
    let ended = Instant::now() + Duration::from_secs(seconds);
    let mut progress = Progress::new();
    file.write(&progress.json())?;
    report::ready();
    let mut reader = BufReader::new(&stream);
    let mut partial = String::new();
    while Instant::now() < ended {
        if let Err(error) = progress.round(&stream, &mut reader, &mut partial) {
            progress.error = Some(error.to_string());
            break;
        }
        file.update(|| progress.json())?;
    }
    file.write(&progress.json())?;
    report::print(&progress.json());
    Ok(())
}

struct Progress {
    sent: u64,
    received: u64,
    last: Instant,
    last_success_ms: Option<u64>,
    gap_ms_max: u64,
    error: Option<String>,
}

impl Progress {
    fn new() -> Self {
        Self {
            sent: 0,
            received: 0,
            last: Instant::now(),
            last_success_ms: None,
            gap_ms_max: 0,
            error: None,
        }
    }

    /// Sends the next line once the one before is back, so that a stall shows as a gap.
    fn round(
        &mut self,
        mut stream: &TcpStream,
        reader: &mut BufReader<&TcpStream>,
        partial: &mut String,
    ) -> std::io::Result<()> {
        if self.sent == self.received {
            self.sent += 1;
            writeln!(stream, "{}", self.sent)?;
        }
        // On a timeout `partial` keeps what came; the next round reads on.
        match reader.read_line(partial) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                partial.clear();
                self.received += 1;
                let gap = u64::try_from(self.last.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.gap_ms_max = self.gap_ms_max.max(gap);
                self.last = Instant::now();
                self.last_success_ms = since_1970();
                report::pause(PACE);
            }
            Err(error) if report::is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn json(&self) -> Value {
        json!({
            "sent": self.sent,
            "received": self.received,
            "lastSuccessMillis": self.last_success_ms,
            "gapMillisMax": self.gap_ms_max,
            "sinceLastMillis": u64::try_from(self.last.elapsed().as_millis()).unwrap_or(u64::MAX),
            "error": self.error,
        })
    }
}

fn since_1970() -> Option<u64> {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

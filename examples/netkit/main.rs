//! netkit: the traffic that tests and the demo send, and what counts it at the other end.
//!
//! One subcommand per file. Each prints one line of JSON when it is done. Those that run until they
//! are killed print `ready` once they listen; those that count write their JSON to a file, every
//! 50 ms, whole, so that a reader never sees half of it. Raw sockets need root or CAP_NET_RAW, which
//! machines of a test world have.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod checksum;
mod crowd;
mod flows;
mod gue_guess;
mod gue_send;
mod gue_train;
mod hex;
mod http;
mod icmp_ping;
mod ip_count;
mod ip_send;
mod names;
mod probe;
mod proxy;
mod refuse;
mod relay;
mod report;
mod supervise;
mod tcp_rate;
mod tcp_raw;
mod tcp_stream;
mod udp;
mod udp_stream;
mod verify;

use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// All there is.
const USAGE: &str = "\
usage: netkit COMMAND ...
  http-echo ADDR NAME                    serves HTTP; answers with NAME and the peer's address
  http-get ADDR COUNT [TIMEOUT_MS]       COUNT requests, a connection each
  udp-sink ADDR FILE                     counts datagrams, by source, and when the last one came
  udp-capture ADDR FILE                  counts datagrams, by their bytes in hexadecimal digits
  udp-send SRC DST COUNT INTERVAL_US SIZE [STOP_FILE]
                                         ends earlier when STOP_FILE is there
  udp-echo ADDR
  udp-ping DST COUNT [TIMEOUT_MS]        COUNT datagrams, 1 at a time, each expects its echo
  udp-stream DST FILE INTERVAL_US [SECONDS]
                                         numbered datagrams at a pace to an udp-echo and back
  udp-pour ADDR INTERVAL_US              datagrams at a pace for whoever sent one
  tcp-echo ADDR                          echoes lines
  tcp-stream DST FILE [SECONDS]          a line every 10 ms each way over one connection
  tcp-sink ADDR                          counts the bytes of connections
  tcp-rate DST MILLIS                    one connection, as fast as it goes, to a tcp-sink
  tcp-verify-serve ADDR
  tcp-verify DST BYTES [TIMEOUT_MS]      known bytes both ways at once; both ends compare each
  udp-verify DST LENGTHS COPIES [TIMEOUT_MS]
                                         known datagrams (LENGTHS: 1-64,1431) to an udp-echo and back
  udp-flows DST FLOWS ROUNDS [TIMEOUT_MS]
                                         FLOWS sockets, ROUNDS datagrams each, to an udp-echo
  icmp-ping DST COUNT [TIMEOUT_MS]       IPv4 or IPv6
  name-server ADDR FILE                  knows every name; counts those that it is asked for
  resolve NAME COUNT                     asks this machine's resolver COUNT times, as programs do
  probe-serve SERVICE...                 answers tcp/80, udp/53, sctp/80, 47 (a protocol)
  probe TIMEOUT_MS SERVICE@ADDR...       which of them answer, all asked at once; also icmp
  proxy PORT FILE inbound|outbound       takes connections that the kernel redirects to PORT on to where they
                                         were going (inbound: on loopback), and counts them by port
  gue-send SRC_ADDR:PORT DST_ADDR:PORT HEX|@HEXFILE COUNT
                                         sends any UDP payload, also from a port that is in use
  gue-guess SRC_ADDR:PORT DST_ADDR:PORT HEX COUNT RATE RIGHT_AT
                                         HEX with another key each time, RATE a second (0: all it can);
                                         guess RIGHT_AT is right
  gue-train SRC_ADDR:PORT DST_ADDR:PORT @HEXFILE
                                         datagrams, one a line, as trains; an empty line ends one
  ip-send HEX|@HEXFILE COUNT             whole IP packets, one a line, with their own headers
  ip-count ADDR FILE [MARK]              counts IP packets for ADDR, on every device, by TOS and TTL,
                                         and apart from them those for MARK
  refuse udp-segment|udp-gro|tun-offload:BITS,... PROGRAM...
                                         runs it as on a kernel that does not know these
  supervise keeping|forgetting PROGRAM...
                                         starts it again whenever it ends, at once, with what it had kept, or
                                         without; HUP restarts it, USR1 kills it, TERM ends both
  relay FILE SEED LOSS DUP REORDER MTU ADDR=MAC...
                                         hands on what comes for each ADDR, impaired (per 1000)
  crowd TOKENFILE NAME COUNT             COUNT nodes that join and apply tables, without packets
  raw-tcp SRC_ADDR:PORT DST_ADDR:PORT FLAGS COUNT
                                         segments with any flag byte (0x02 is SYN)
  raw-count ADDR FILE [PORT]             counts TCP segments for ADDR (to PORT) by flag byte";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netkit {}: {error:#}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let Some((command, rest)) = arguments.split_first() else { bail!("{USAGE}") };
    let rest = Arguments(rest);
    match command.as_str() {
        "http-echo" => http::echo(rest.parse(0)?, rest.text(1)?),
        "http-get" => http::get(rest.parse(0)?, rest.parse(1)?, rest.timeout(2)?),
        "udp-sink" => udp::sink(rest.parse(0)?, rest.text(1)?),
        "udp-capture" => udp::capture(rest.parse(0)?, rest.text(1)?),
        "udp-send" => udp::send(&udp::Burst {
            source: rest.parse(0)?,
            target: rest.parse(1)?,
            count: rest.parse(2)?,
            interval_us: rest.parse(3)?,
            size: rest.parse(4)?,
            stop: rest.optional(5)?,
        }),
        "udp-echo" => udp::echo(rest.parse(0)?),
        "udp-ping" => udp::ping(rest.parse(0)?, rest.parse(1)?, rest.timeout(2)?),
        "udp-stream" => udp_stream::run(
            rest.parse(0)?,
            rest.text(1)?,
            rest.parse(2)?,
            rest.optional(3)?.unwrap_or(3600),
        ),
        "udp-pour" => udp_stream::pour(rest.parse(0)?, rest.parse(1)?),
        "tcp-echo" => tcp_stream::echo(rest.parse(0)?),
        "tcp-stream" => {
            tcp_stream::stream(rest.parse(0)?, rest.text(1)?, rest.optional(2)?.unwrap_or(3600))
        }
        "tcp-sink" => tcp_rate::sink(rest.parse(0)?),
        "tcp-rate" => {
            tcp_rate::rate(rest.parse(0)?, std::time::Duration::from_millis(rest.parse(1)?))
        }
        "tcp-verify-serve" => verify::tcp_serve(rest.parse(0)?),
        "tcp-verify" => verify::tcp(rest.parse(0)?, rest.parse(1)?, rest.timeout(2)?),
        "udp-verify" => {
            verify::udp(rest.parse(0)?, rest.text(1)?, rest.parse(2)?, rest.timeout(3)?)
        }
        "udp-flows" => flows::run(rest.parse(0)?, rest.parse(1)?, rest.parse(2)?, rest.timeout(3)?),
        "icmp-ping" => icmp_ping::ping(rest.parse(0)?, rest.parse(1)?, rest.timeout(2)?),
        "name-server" => names::serve(rest.parse(0)?, rest.text(1)?),
        "resolve" => names::resolve(rest.text(0)?, rest.parse(1)?),
        "probe-serve" => probe::serve(rest.0),
        "probe" => {
            let (_, questions) = rest.0.split_first().context(USAGE)?;
            probe::ask(questions, std::time::Duration::from_millis(rest.parse(0)?))
        }
        "proxy" => proxy::run(rest.parse(0)?, rest.text(1)?, rest.text(2)?),
        "gue-send" => gue_send::send(rest.parse(0)?, rest.parse(1)?, rest.text(2)?, rest.parse(3)?),
        "gue-guess" => gue_guess::send(
            &gue_guess::Guessing {
                source: rest.parse(0)?,
                target: rest.parse(1)?,
                count: rest.parse(3)?,
                rate: rest.parse(4)?,
                right_at: rest.parse(5)?,
            },
            rest.text(2)?,
        ),
        "gue-train" => gue_train::send(rest.parse(0)?, rest.parse(1)?, rest.text(2)?),
        "ip-send" => ip_send::send(rest.text(0)?, rest.parse(1)?),
        "ip-count" => ip_count::count(rest.parse(0)?, rest.text(1)?, rest.optional(2)?),
        "refuse" => refuse::run(rest.text(0)?, rest.0.get(1..).unwrap_or(&[])),
        "supervise" => supervise::run(rest.text(0)?, rest.0.get(1..).unwrap_or(&[])),
        "relay" => relay::run(
            rest.text(0)?,
            &relay::Impairment {
                seed: rest.parse(1)?,
                loss: rest.parse(2)?,
                duplication: rest.parse(3)?,
                reordering: rest.parse(4)?,
                mtu: rest.parse(5)?,
            },
            rest.0.get(6..).unwrap_or(&[]),
        ),
        "raw-tcp" => {
            tcp_raw::send(rest.parse(0)?, rest.parse(1)?, byte(rest.text(2)?)?, rest.parse(3)?)
        }
        "crowd" => crowd::run(rest.text(0)?, rest.text(1)?, rest.parse(2)?),
        "raw-count" => tcp_raw::count(rest.parse(0)?, rest.text(1)?, rest.optional(2)?),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("no such command\n{USAGE}"),
    }
}

/// What follows the command.
struct Arguments<'a>(&'a [String]);

impl Arguments<'_> {
    fn text(&self, index: usize) -> Result<&str> {
        self.0.get(index).map(String::as_str).with_context(|| format!("too few words\n{USAGE}"))
    }

    fn parse<T>(&self, index: usize) -> Result<T>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        let text = self.text(index)?;
        text.parse().with_context(|| format!("`{text}` does not fit\n{USAGE}"))
    }

    fn optional<T>(&self, index: usize) -> Result<Option<T>>
    where
        T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    {
        (index < self.0.len()).then(|| self.parse(index)).transpose()
    }

    fn timeout(&self, index: usize) -> Result<std::time::Duration> {
        Ok(std::time::Duration::from_millis(self.optional(index)?.unwrap_or(2000)))
    }
}

/// A byte, decimal or `0x` hexadecimal.
fn byte(text: &str) -> Result<u8> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.with_context(|| format!("`{text}` is no byte"))
}

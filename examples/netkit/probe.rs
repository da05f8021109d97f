//! Many small questions at once: which of these services answer?
//!
//! A service is `tcp/80`, `udp/53`, `sctp/80`, `icmp`, or a protocol number. [`serve`] answers all but
//! `icmp`, which the kernel answers. SCTP and numbers are raw packets, so that nothing has to be in the
//! kernel for them; of SCTP there is the common header (RFC 9260 section 3.1) with nothing behind it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::udp::{self, any_for, bind};
use crate::{icmp_ping, report};

/// What packets carry behind their headers.
const PAYLOAD: &[u8] = b"netkit probe";

const SCTP: u8 = 132;

/// The port that SCTP probes come from.
const SCTP_CLIENT: u16 = 40_132;

#[derive(Clone, Copy)]
enum Service {
    Tcp(u16),
    Udp(u16),
    Icmp,
    /// By its number; the port means something in SCTP alone.
    Raw(u8, u16),
}

fn service(text: &str) -> Result<Service> {
    let (protocol, port) = text.split_once('/').unwrap_or((text, "0"));
    let port = port.parse().with_context(|| format!("`{port}` is no port"))?;
    Ok(match protocol {
        "tcp" => Service::Tcp(port),
        "udp" => Service::Udp(port),
        "sctp" => Service::Raw(SCTP, port),
        "icmp" => Service::Icmp,
        number => {
            Service::Raw(number.parse().with_context(|| format!("`{number}` is no protocol"))?, 0)
        }
    })
}

/// Answers until killed, on every address of this host.
pub(crate) fn serve(services: &[String]) -> Result<()> {
    for text in services {
        match service(text)? {
            Service::Tcp(port) => {
                let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                    .with_context(|| format!("cannot listen on {text}"))?;
                thread::spawn(move || {
                    for mut stream in listener.incoming().flatten() {
                        // A client that goes away is not the server's problem.
                        let _ = stream.write_all(PAYLOAD);
                    }
                });
            }
            Service::Udp(port) => {
                let socket = bind((Ipv6Addr::UNSPECIFIED, port).into())?;
                thread::spawn(move || udp::answer(&socket));
            }
            Service::Icmp => bail!("the kernel answers icmp"),
            Service::Raw(number, port) => {
                for domain in [Domain::IPV4, Domain::IPV6] {
                    let socket = raw(domain, number)?;
                    thread::spawn(move || answer_raw(&socket, number, port));
                }
            }
        }
    }
    report::ready();
    loop {
        thread::park();
    }
}

/// Asks all at once, and prints which answered within `timeout`, in their order:
/// `{"answered": [true, false]}`.
pub(crate) fn ask(questions: &[String], timeout: Duration) -> Result<()> {
    let mut asked = Vec::new();
    for question in questions {
        let (text, target) = question.split_once('@').context("a question is SERVICE@ADDR")?;
        let target: IpAddr = target.parse().with_context(|| format!("`{target}`"))?;
        let service = service(text)?;
        asked.push(thread::spawn(move || has_answer(service, target, timeout)));
    }
    let answers = asked.into_iter().map(|thread| thread.join().expect("no panic"));
    let answered = answers.collect::<Result<Vec<bool>>>()?;
    report::print(&json!({ "answered": answered }));
    Ok(())
}

fn has_answer(service: Service, target: IpAddr, timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    let mut buffer = [0; 2048];
    match service {
        Service::Tcp(port) => {
            let stream = TcpStream::connect_timeout(&(target, port).into(), timeout);
            let Ok(mut stream) = stream else { return Ok(false) };
            stream.set_read_timeout(Some(timeout))?;
            Ok(stream.read(&mut buffer).is_ok_and(|length| &buffer[..length] == PAYLOAD))
        }
        Service::Udp(port) => {
            let target = SocketAddr::new(target, port);
            let socket = bind(any_for(target))?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(timeout))?;
            // An error is an ICMP error: refused.
            let sent = socket.send(PAYLOAD);
            Ok(sent.is_ok() && matches!(socket.recv(&mut buffer), Ok(n) if n == PAYLOAD.len()))
        }
        Service::Icmp => icmp_ping::answers(target, timeout),
        Service::Raw(number, port) => {
            let target = SocketAddr::new(target, 0);
            let socket = raw(Domain::for_address(target), number)?;
            let message = message(number, SCTP_CLIENT, port);
            if socket.send_to(&message, target).is_err() {
                return Ok(false);
            }
            let expected = self::message(number, port, SCTP_CLIENT);
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(false);
                }
                socket.set_read_timeout(Some(left))?;
                match socket.recv_from(&mut buffer) {
                    Ok((length, from)) => {
                        let answer = behind_ip(&buffer[..length], from);
                        if from.ip() == target.ip() && answer == expected {
                            return Ok(true);
                        }
                    }
                    Err(error) if report::is_timeout(&error) => return Ok(false),
                    // An ICMP error; what is sent next clears it.
                    Err(_) => return Ok(false),
                }
            }
        }
    }
}

/// Sends each message back to where it came from, its ports the other way round.
fn answer_raw(socket: &UdpSocket, number: u8, port: u16) {
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        if behind_ip(&buffer[..length], from) == message(number, SCTP_CLIENT, port) {
            let _ = socket.send_to(&message(number, port, SCTP_CLIENT), from);
        }
    }
}

/// A socket for whole messages of one protocol: raw, with the calls of a socket for datagrams.
fn raw(domain: Domain, number: u8) -> Result<UdpSocket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(number))))
        .context("cannot open a raw socket (run as root or grant CAP_NET_RAW)")?;
    Ok(socket.into())
}

/// SCTP has ports, a verification tag and a checksum, both 0, before what others begin with.
fn message(number: u8, source: u16, target: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    if number == SCTP {
        bytes.extend(source.to_be_bytes());
        bytes.extend(target.to_be_bytes());
        bytes.extend([0; 8]);
    }
    bytes.extend(PAYLOAD);
    bytes
}

/// Raw IPv4 sockets see the IP header too.
fn behind_ip(packet: &[u8], from: SocketAddr) -> &[u8] {
    let skip = match packet.first() {
        Some(first) if from.is_ipv4() => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    packet.get(skip..).unwrap_or_default()
}

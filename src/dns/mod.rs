//! Answers overlay names from the table in force, and passes the rest on to the system's resolvers.
//!
//! `NAME.NAMESPACE.OVERLAY.ov.internal`, for the namespace `default` also `NAME.OVERLAY.ov.internal`;
//! A, AAAA and PTR. Questions about our own suffix or our own addresses never leave the host, whatever
//! the answer. UDP and TCP; bounded in number, size and time.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        reason = "questions must not panic"
    )
)]

mod message;
mod question;
mod upstream;
mod zone;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::types::OVERLAY_SUFFIX;
use message::{MESSAGE_MAX, Query};
pub use question::{answers, has_address};
pub use upstream::Upstream;
use zone::Verdict;
pub use zone::Zone;

/// How many questions are worked on at a time; more are dropped, and asked again by who asked.
const AT_ONCE: usize = 256;

/// How long a TCP connection may be idle.
const IDLE: Duration = Duration::from_secs(10);

/// How long to wait after a socket said no.
const PAUSE: Duration = Duration::from_millis(100);

/// Bound sockets, and what they answer from.
#[derive(Debug)]
pub struct Resolver {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

/// Where [`Resolver`] finds the names of the newest table.
#[derive(Clone, Debug)]
pub struct Names(Arc<Shared>);

impl Names {
    /// Answers from `zone` from now on.
    pub fn replace(&self, zone: Zone) {
        *self.0.zone.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(zone);
    }
}

#[derive(Debug)]
struct Shared {
    zone: Mutex<Arc<Zone>>,
    turn: AtomicUsize,
    upstream: Upstream,
    places: Arc<Semaphore>,
}

impl Shared {
    /// The answer of at most `max` bytes; none where there is to be none.
    async fn answer(&self, message: &[u8], is_tcp: bool) -> Option<Vec<u8>> {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(refusal) => return refusal,
        };
        let zone = Arc::clone(&self.zone.lock().unwrap_or_else(PoisonError::into_inner));
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let max = if is_tcp { MESSAGE_MAX } else { query.datagram_max() };
        match zone.find(&query.name, query.kind, turn) {
            Verdict::Answer(code, records) => {
                Some(query.answer(code, &records, OVERLAY_SUFFIX, max))
            }
            Verdict::Forward => {
                let answer = self.upstream.ask(&query, message, is_tcp).await;
                Some(answer.unwrap_or_else(|| query.failure()))
            }
        }
    }
}

impl Resolver {
    /// Binds `listen` for UDP and TCP.
    ///
    /// # Errors
    ///
    /// When one of them cannot be bound.
    pub async fn bind(listen: SocketAddr, upstream: Upstream) -> io::Result<Self> {
        let udp = UdpSocket::bind(listen).await?;
        // The same port for both where the kernel chooses it.
        let tcp = TcpListener::bind(udp.local_addr()?).await?;
        Self::over(udp, tcp, upstream)
    }

    /// Takes over the sockets of the process before this one. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When they are bound to something else, or no sockets.
    pub fn adopt(
        udp: OwnedFd,
        tcp: OwnedFd,
        listen: SocketAddr,
        upstream: Upstream,
    ) -> io::Result<Self> {
        let (udp, tcp) = (std::net::UdpSocket::from(udp), std::net::TcpListener::from(tcp));
        if [udp.local_addr()?, tcp.local_addr()?] != [listen; 2] {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Self::over(UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?, upstream)
    }

    fn over(udp: UdpSocket, tcp: TcpListener, upstream: Upstream) -> io::Result<Self> {
        let shared = Shared {
            zone: Mutex::default(),
            turn: AtomicUsize::new(0),
            upstream: upstream.without(udp.local_addr()?),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        };
        Ok(Self { udp: Arc::new(udp), tcp, shared: Arc::new(shared) })
    }

    /// What the process after this one gets: the sockets for UDP and for TCP.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.udp.as_fd(), self.tcp.as_fd()]
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// Where to put names.
    #[must_use]
    pub fn names(&self) -> Names {
        Names(Arc::clone(&self.shared))
    }

    /// Answers for ever.
    pub async fn serve(self) {
        tokio::join!(datagrams(self.udp, Arc::clone(&self.shared)), streams(self.tcp, self.shared));
    }
}

async fn datagrams(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else { continue };
        let message = buffer.get(..len).unwrap_or(&[]).to_vec();
        let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
        tokio::spawn(async move {
            if let Some(answer) = shared.answer(&message, false).await {
                // Who asked may be gone.
                let _ = socket.send_to(&answer, from).await;
            }
            drop(place);
        });
    }
}

async fn streams(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let _ = conversation(stream, &shared).await;
            drop(place);
        });
    }
}

/// Answers one question after another until the other end is done or too slow.
async fn conversation(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let message = tokio::time::timeout(IDLE, read_message(&mut stream)).await??;
        let Some(answer) = shared.answer(&message, true).await else { return Ok(()) };
        tokio::time::timeout(IDLE, stream.write_all(&framed(&answer))).await??;
    }
}

/// Reads a message and the length before it.
async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; len.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// A message with its length before it.
fn framed(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap_or(0);
    [len.to_be_bytes().as_slice(), message].concat()
}

#[cfg(test)]
mod tests;

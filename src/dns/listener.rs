//! An address where questions come in, by UDP and by TCP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{Outcome, Shared};

/// How long a TCP connection may be idle.
const IDLE: Duration = Duration::from_secs(10);

/// How long to wait after a socket said no.
const PAUSE: Duration = Duration::from_millis(100);

/// Two sockets at one address.
#[derive(Debug)]
pub struct Listener {
    udp: UdpSocket,
    tcp: TcpListener,
    at: SocketAddr,
}

/// How many ports are tried where the kernel chooses.
const PORTS_TRIED: u32 = 16;

impl Listener {
    /// Binds `listen` for UDP and TCP.
    ///
    /// # Errors
    ///
    /// When one of them cannot be bound.
    pub async fn bind(listen: SocketAddr) -> io::Result<Self> {
        let most = if listen.port() == 0 { PORTS_TRIED } else { 1 };
        let mut tries = 1;
        loop {
            let udp = UdpSocket::bind(listen).await?;
            // The same port for both where the kernel chooses it; of TCP it may be somebody's.
            let at = udp.local_addr()?;
            match TcpListener::bind(at).await {
                Ok(tcp) => return Ok(Self { udp, tcp, at }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < most => {
                    tries += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes over the sockets of the process before this one. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When they are no sockets, or at two addresses.
    pub fn adopt(udp: OwnedFd, tcp: OwnedFd) -> io::Result<Self> {
        let (udp, tcp) = (std::net::UdpSocket::from(udp), std::net::TcpListener::from(tcp));
        let at = udp.local_addr()?;
        if tcp.local_addr()? != at {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp: UdpSocket::from_std(udp)?, tcp: TcpListener::from_std(tcp)?, at })
    }

    /// Its address.
    #[must_use]
    pub fn at(&self) -> SocketAddr {
        self.at
    }

    /// What the process after this one gets: the sockets for UDP and for TCP.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.udp.as_fd(), self.tcp.as_fd()]
    }

    /// Has it answer as long as the runtime lives.
    pub(super) fn start(self, shared: &Arc<Shared>) {
        tokio::spawn(datagrams(Arc::new(self.udp), Arc::clone(shared)));
        tokio::spawn(streams(self.tcp, Arc::clone(shared)));
    }
}

/// Answers what is known here at once, however many questions wait for others.
async fn datagrams(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let message = buffer.get(..len).unwrap_or(&[]);
        match shared.look_up(message, false) {
            Outcome::Answer(None) => {}
            // Who asked may be gone, or too slow.
            Outcome::Answer(Some(answer)) => drop(socket.try_send_to(&answer, from)),
            Outcome::PassOn(query) => {
                let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else { continue };
                let message = message.to_vec();
                let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
                tokio::spawn(async move {
                    let answer = shared.ask_others(&query, &message, false).await;
                    let _ = socket.send_to(&answer, from).await;
                    drop(place);
                });
            }
        }
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
        let answer = match shared.look_up(&message, true) {
            Outcome::Answer(None) => return Ok(()),
            Outcome::Answer(Some(answer)) => answer,
            Outcome::PassOn(query) => shared.ask_others(&query, &message, true).await,
        };
        tokio::time::timeout(IDLE, stream.write_all(&framed(&answer))).await??;
    }
}

/// Reads a message and the length before it.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut message = vec![0; len.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// A message with its length before it.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap_or(0);
    [len.to_be_bytes().as_slice(), message].concat()
}

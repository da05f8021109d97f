//! The system's own resolvers: who is asked about everything that is not ours.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, UdpSocket};

use super::message::Query;
use super::{framed, read_message};
use crate::sys::redirect;

/// How long one resolver is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most resolvers that are asked, one after the other.
const SERVERS_MAX: usize = 3;

/// Resolvers, best first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
    /// Whether what this host sends to them comes to us unless it is exempt.
    is_redirected: bool,
}

impl Upstream {
    /// These.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, is_redirected: false }
    }

    /// These, at the usual port.
    #[must_use]
    pub fn of(servers: impl IntoIterator<Item = IpAddr>) -> Self {
        let servers = servers.into_iter().take(SERVERS_MAX);
        Self::new(servers.map(|server| SocketAddr::new(server, redirect::DNS_PORT)).collect())
    }

    /// Asks by sockets that are exempt from redirection.
    #[must_use]
    pub fn redirected(self) -> Self {
        Self { is_redirected: true, ..self }
    }

    /// Without our own listeners: nobody asks themselves.
    pub(super) fn without(mut self, own: &[SocketAddr]) -> Self {
        let is_own = |server: &SocketAddr, own: &SocketAddr| {
            let is_everywhere = own.ip().is_unspecified() && server.ip().is_loopback();
            server == own || is_everywhere && server.port() == own.port()
        };
        self.servers.retain(|server| !own.iter().any(|own| is_own(server, own)));
        self
    }

    /// The first answer that is one; none when nobody has any.
    pub(super) async fn ask(&self, query: &Query, message: &[u8], tcp: bool) -> Option<Vec<u8>> {
        for &server in &self.servers {
            let answer = async {
                if tcp {
                    self.by_tcp(server, message).await
                } else {
                    by_udp(server, query, message, self.is_redirected).await
                }
            };
            match tokio::time::timeout(PATIENCE, answer).await {
                Ok(Ok(answer)) if query.is_answered_by(&answer) => return Some(answer),
                Ok(Ok(_) | Err(_)) | Err(_) => {}
            }
        }
        None
    }

    async fn by_tcp(&self, server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
        let socket = match server {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if self.is_redirected {
            redirect::exempt(&socket)?;
        }
        let mut stream = socket.connect(server).await?;
        stream.write_all(&framed(message)).await?;
        read_message(&mut stream).await
    }
}

/// Asks from a port of its own, which only the kernel knows before; where `is_exempt`, by a socket whose packets
/// no redirect of ours takes.
pub(super) async fn by_udp(
    server: SocketAddr,
    query: &Query,
    message: &[u8],
    is_exempt: bool,
) -> io::Result<Vec<u8>> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    if is_exempt {
        redirect::exempt(&socket)?;
    }
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; query.forwarded_max()];
    loop {
        let len = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..len).unwrap_or(&[]);
        // What answers something else was meant for somebody else, or by nobody good.
        if query.is_answered_by(answer) {
            return Ok(answer.to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_asks_themselves() {
        let own: SocketAddr = "127.0.0.1:6053".parse().unwrap();
        let other: SocketAddr = "192.0.2.1:53".parse().unwrap();

        assert_eq!(Upstream::new(vec![own, other]).without(&[own]), Upstream::new(vec![other]));
        let everywhere: SocketAddr = "0.0.0.0:6053".parse().unwrap();
        let beside: SocketAddr = "127.0.0.1:53".parse().unwrap();
        assert_eq!(
            Upstream::new(vec![own, other, beside]).without(&[everywhere]),
            Upstream::new(vec![other, beside])
        );
    }
}

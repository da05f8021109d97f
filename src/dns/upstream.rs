//! The system's own resolvers: who is asked about everything that is not ours.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket};

use super::message::Query;
use super::{framed, read_message};

/// How long one resolver is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most resolvers that are asked, one after the other.
const SERVERS_MAX: usize = 3;

/// systemd-resolved's own listener: it may be told to ask us, and must not be asked by us.
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Resolvers, best first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream(Vec<SocketAddr>);

impl Upstream {
    /// These.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self(servers)
    }

    /// What this host uses now: systemd-resolved's upstream where it runs, else `/etc/resolv.conf`.
    #[must_use]
    pub fn of_system() -> Self {
        let read = |path| parse(&fs::read_to_string(Path::new(path)).unwrap_or_default());
        let plain = read("/etc/resolv.conf");
        let servers =
            if plain.contains(&STUB) { read("/run/systemd/resolve/resolv.conf") } else { plain };
        let others = servers.into_iter().filter(|&server| server != STUB);
        Self(others.take(SERVERS_MAX).map(|server| SocketAddr::new(server, 53)).collect())
    }

    /// The addresses of `/etc/resolv.conf`: whom programs here ask.
    #[must_use]
    pub fn configured() -> Vec<IpAddr> {
        let mut servers = parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        servers.truncate(SERVERS_MAX);
        servers
    }

    /// Without our own listener: nobody asks themselves.
    pub(super) fn without(mut self, own: SocketAddr) -> Self {
        let is_own = |server: &SocketAddr| {
            let is_everywhere = own.ip().is_unspecified() && server.ip().is_loopback();
            *server == own || is_everywhere && server.port() == own.port()
        };
        self.0.retain(|server| !is_own(server));
        self
    }

    /// The first answer that is one; none when nobody has any.
    pub(super) async fn ask(&self, query: &Query, message: &[u8], tcp: bool) -> Option<Vec<u8>> {
        for &server in &self.0 {
            let answer = async {
                if tcp {
                    by_tcp(server, message).await
                } else {
                    by_udp(server, query, message).await
                }
            };
            match tokio::time::timeout(PATIENCE, answer).await {
                Ok(Ok(answer)) if query.is_answered_by(&answer) => return Some(answer),
                Ok(Ok(_) | Err(_)) | Err(_) => {}
            }
        }
        None
    }
}

/// Asks from a port of its own, which only the kernel knows before.
pub(super) async fn by_udp(
    server: SocketAddr,
    query: &Query,
    message: &[u8],
) -> io::Result<Vec<u8>> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let len = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..len).unwrap_or(&[]);
        // What answers something else was meant for somebody else, or by nobody good.
        if query.is_answered_by(answer) {
            return Ok(answer.to_vec());
        }
    }
}

async fn by_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&framed(message)).await?;
    read_message(&mut stream).await
}

/// The `nameserver` lines of a resolver's configuration; those with a scope are left out.
fn parse(text: &str) -> Vec<IpAddr> {
    let words = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    words
        .filter_map(|words| match words.as_slice() {
            ["nameserver", server, ..] => server.parse().ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameservers_are_read_and_nothing_else() {
        let text = "# nameserver 192.0.2.9\nsearch a.example\nnameserver 192.0.2.1\n\
                    nameserver\nnameserver 2001:db8::1 # comment\nnameserver fe80::1%eth0\n";

        assert_eq!(
            parse(text),
            ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
    }

    #[test]
    fn nobody_asks_themselves() {
        let own: SocketAddr = "127.0.0.1:6053".parse().unwrap();
        let other: SocketAddr = "192.0.2.1:53".parse().unwrap();

        assert_eq!(Upstream::new(vec![own, other]).without(own), Upstream::new(vec![other]));
        let everywhere: SocketAddr = "0.0.0.0:6053".parse().unwrap();
        let beside: SocketAddr = "127.0.0.1:53".parse().unwrap();
        assert_eq!(
            Upstream::new(vec![own, other, beside]).without(everywhere),
            Upstream::new(vec![other, beside])
        );
    }
}

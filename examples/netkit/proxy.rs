//! A proxy for connections that the kernel redirects to it, as a service mesh has one beside each program:
//! it asks where a connection was going, and goes there itself.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use socket2::{Domain, SockRef, Socket, Type};

use crate::report::{self, File};

/// Tells its own connections from those of programs, which rules redirect.
const MARK: u32 = 1337;

/// How long a connection may take to come about.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// Where it goes with what comes.
#[derive(Clone, Copy)]
enum Side {
    /// To the program on this host, over the loopback.
    Inbound,
    /// Where the program wanted to.
    Outbound,
}

/// Connections by the port that they were for.
type Seen = Arc<Mutex<BTreeMap<u16, u64>>>;

/// Serves until killed. The file says `{"connections": 3, "byPort": {"8080": 3}}`.
pub(crate) fn run(port: u16, file: &str, side: &str) -> Result<()> {
    let side = match side {
        "inbound" => Side::Inbound,
        "outbound" => Side::Outbound,
        _ => bail!("`{side}` is neither inbound nor outbound"),
    };
    let seen = Seen::default();
    for address in [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()] {
        let (listener, seen) = (listen(address)?, Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                // What cannot be connected is closed, which its client sees.
                thread::spawn(move || drop(relay(&stream, side, &seen)));
            }
        });
    }
    let mut file = File::new(file);
    let count = || {
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "connections": seen.values().sum::<u64>(), "byPort": *seen })
    };
    file.write(&count())?;
    report::ready();
    loop {
        report::pause(File::INTERVAL);
        file.update(count)?;
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("cannot bind {address}"))?;
    socket.listen(128)?;
    Ok(socket.into())
}

fn relay(client: &TcpStream, side: Side, seen: &Seen) -> io::Result<()> {
    let original = original(client)?;
    let port = original.port();
    *seen.lock().unwrap_or_else(PoisonError::into_inner).entry(port).or_default() += 1;
    let target = match side {
        Side::Inbound if original.is_ipv4() => (Ipv4Addr::LOCALHOST, port).into(),
        Side::Inbound => (Ipv6Addr::LOCALHOST, port).into(),
        Side::Outbound => original,
    };
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_mark(MARK)?;
    socket.connect_timeout(&target.into(), CONNECT_WITHIN)?;
    let server = TcpStream::from(socket);
    let (from_client, to_server) = (client.try_clone()?, server.try_clone()?);
    let there = thread::spawn(move || copy(&from_client, &to_server));
    let back = copy(&server, client);
    let _ = there.join();
    back
}

/// Copies one direction to its end, and says that it ended.
fn copy(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    copied.map(drop)
}

/// Where a connection was going before the kernel redirected it.
fn original(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = if stream.local_addr()?.is_ipv4() {
        socket.original_dst_v4()?
    } else {
        socket.original_dst_v6()?
    };
    address.as_socket().ok_or_else(|| io::Error::other("no address"))
}

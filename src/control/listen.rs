//! One accept loop for TLS and for the unix socket: handshake and header timeouts, limits, an end.

mod places;

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tower::ServiceExt as _;

use places::Places;
pub(crate) use places::Slot;

use super::files::own_uid;
use super::tls::Identity;
use crate::api::{Problem, ProblemCode};

/// A client that has not finished its handshake by then is gone or hostile.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The same for the head of a request; idle connections end by it too.
const HEADER: Duration = Duration::from_secs(10);

/// How long running requests may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Under which address users of this host are counted who reach the unix socket and may not use it.
const LOCAL_STRANGERS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

/// Where a request comes from.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// The unix socket, by a user that may.
    Unix {
        /// The user.
        uid: u32,
    },
    /// TLS.
    Tls {
        /// Its place among the connections.
        slot: Arc<Slot>,
        /// Its two ends; none for strangers on the unix socket.
        way: Option<Way>,
    },
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// Who asks.
    pub(crate) from: IpAddr,
    /// Where the server was asked.
    pub(crate) to: SocketAddr,
}

/// Binds the TCP port.
///
/// # Errors
///
/// With the address and what keeps it.
pub async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, Problem> {
    TcpListener::bind(address).await.map_err(|error| {
        Problem::new(ProblemCode::Failed, format!("cannot listen on {address}"))
            .why(error.to_string())
            .fix("is another ovctl serve running? Else choose another port: --listen ADDR:PORT")
    })
}

/// Binds the unix socket (0600); takes the place of one that nobody listens on.
///
/// # Errors
///
/// With the path and what keeps it.
pub async fn bind_unix(path: &Path) -> Result<UnixListener, Problem> {
    let failed = |error: std::io::Error| {
        Problem::new(ProblemCode::Failed, format!("cannot listen on {}", path.display()))
            .why(error.to_string())
            .fix("is another ovctl serve running? Else choose another place: --socket PATH")
    };
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        super::files::ensure_private_dir(dir)?;
    }
    if tokio::net::UnixStream::connect(path).await.is_ok() {
        return Err(failed(std::io::Error::from(std::io::ErrorKind::AddrInUse)));
    }
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves both until `stop` ends, then lets running requests end.
pub async fn serve(
    tcp: TcpListener,
    unix: UnixListener,
    identity: Identity,
    admins: Vec<u32>,
    router: axum::Router,
    stop: impl Future<Output = ()>,
) {
    let (places, own) = (Arc::<Places>::default(), own_uid());
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = tcp.accept() => match accepted {
                Ok((stream, peer)) => {
                    // A node that polls waits long; noticing that it is gone must not.
                    let _ = stream.set_nodelay(true);
                    let from = peer.ip().to_canonical();
                    let slot = Slot::take(&places, from);
                    let way = stream.local_addr().ok().map(|to| Way { from, to });
                    let (acceptor, router) = (identity.acceptor.clone(), router.clone());
                    let watcher = graceful.watcher();
                    let origin = Origin::Tls { slot: Arc::clone(&slot), way };
                    tokio::spawn(slot.keep(async move {
                        let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
                        if let Ok(Ok(stream)) = handshake.await {
                            connection(stream, origin, router, watcher).await;
                        }
                    }));
                }
                Err(error) => pause(&error).await,
            },
            accepted = unix.accept() => match accepted {
                Ok((stream, _)) => {
                    // Whoever may read the database may be admin: root and the server's own user.
                    let uid = stream.peer_cred().map(|peer| peer.uid());
                    let Ok(uid) = uid else { continue };
                    let watcher = graceful.watcher();
                    if uid == 0 || uid == own || admins.contains(&uid) {
                        let origin = Origin::Unix { uid };
                        tokio::spawn(connection(stream, origin, router.clone(), watcher));
                    } else {
                        // Told why, so that nobody takes it for a server that is down.
                        let slot = Slot::take(&places, LOCAL_STRANGERS);
                        let origin = Origin::Tls { slot: Arc::clone(&slot), way: None };
                        tokio::spawn(slot.keep(connection(stream, origin, refusing(uid), watcher)));
                    }
                }
                Err(error) => pause(&error).await,
            },
        }
    }
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
}

/// Answers every request of a user who may not ask.
fn refusing(uid: u32) -> axum::Router {
    let problem = Problem::new(
        ProblemCode::Unauthorized,
        format!("the user {uid} may not administer this server"),
    )
    .why("its unix socket is for root, the server's own user, and the admin_uids of server.toml")
    .fix("run it as root or as the server's user, or use --server and --token-file");
    axum::Router::new().fallback(move || {
        std::future::ready((axum::http::StatusCode::FORBIDDEN, axum::Json(problem.clone())))
    })
}

/// Out of file descriptors, mostly: accepting at once again would spin.
async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Serves the requests of one connection.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    origin: Origin,
    router: axum::Router,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let service = hyper::service::service_fn(move |mut request: hyper::Request<_>| {
        request.extensions_mut().insert(origin.clone());
        router.clone().oneshot(request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(served).await {
        tracing::debug!(%error, "a connection ended");
    }
}

#[cfg(test)]
mod tests;

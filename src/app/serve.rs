//! `ovctl serve`: the coordination server as a program. It prints nothing: [`Started`] says what there
//! is to say.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::api::{Problem, ProblemCode};
use crate::config::server::ServerConfig;
use crate::control::listen::{self, bind_tcp, bind_unix};
use crate::control::tls::Identity;
use crate::control::{Server, Settings, files, router};

/// A server that is ready: its sockets are bound, its tables compiled.
#[derive(Debug)]
pub struct Started {
    /// Where HTTPS listens.
    pub listen: SocketAddr,
    /// Where admins on this host ask.
    pub socket: PathBuf,
    /// The URLs that tokens carry.
    pub urls: Vec<String>,
    server: Arc<Server>,
    identity: Identity,
    tcp: tokio::net::TcpListener,
    unix: tokio::net::UnixListener,
    admins: Vec<u32>,
}

/// Makes a server ready. `host_addresses` are the host's global addresses: they are the default URLs,
/// and no overlay may cover them.
///
/// # Errors
///
/// When the data directory, the database, the key or a socket cannot be used.
pub async fn start(config: ServerConfig, host_addresses: Vec<IpAddr>) -> Result<Started, Problem> {
    files::ensure_private_dir(&config.data_dir)?;
    let identity = Identity::load_or_make(&config.data_dir)?;
    // Bound before the database is touched: a second server on the same host ends here.
    let tcp = bind_tcp(config.listen).await?;
    let unix = bind_unix(&config.socket).await?;
    let listen = tcp.local_addr().map_err(|error| {
        Problem::new(ProblemCode::Failed, format!("cannot listen on {}", config.listen))
            .why(error.to_string())
    })?;
    let urls = if config.public_urls.is_empty() {
        default_urls(listen, &host_addresses)
    } else {
        config.public_urls.clone()
    };
    let settings = Settings {
        key_grace: config.key_grace,
        key_interval: config.key_interval,
        urls: urls.clone(),
        pin: identity.pin.clone(),
        host_addresses,
    };
    let server = Server::open(&config.data_dir, settings).await?;
    Ok(Started {
        listen,
        socket: config.socket,
        urls,
        server,
        identity,
        tcp,
        unix,
        admins: config.admin_uids,
    })
}

impl Started {
    /// What a person who started it wants to read: where it listens, and what to type next.
    #[must_use]
    pub fn greeting(&self) -> String {
        format!(
            "ovctl serve listens on {} and {}\nnodes will reach it at {}\nnext: ovctl token create --role sap\n",
            self.listen,
            self.socket.display(),
            self.urls.join(" ")
        )
    }

    /// Serves until `stop` ends; then requests end, and the database is closed.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let driver = tokio::spawn(Arc::clone(&self.server).drive());
        let server = Arc::clone(&self.server);
        let stop_polls = async move {
            stop.await;
            server.stop();
        };
        listen::serve(
            self.tcp,
            self.unix,
            self.identity,
            self.admins,
            router(Arc::clone(&self.server)),
            stop_polls,
        )
        .await;
        // It looks at `stop` once a second at the latest.
        let _ = driver.await;
        self.server.close().await;
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Runs a server until `stop` ends. `announce` is told once it is ready.
///
/// # Errors
///
/// As [`start`].
pub async fn serve(
    config: ServerConfig,
    host_addresses: Vec<IpAddr>,
    announce: &mut (dyn std::io::Write + Send),
    stop: impl Future<Output = ()>,
) -> Result<(), Problem> {
    let started = start(config, host_addresses).await?;
    // Nobody may be reading any more; that is no reason not to serve.
    let _ = announce.write_all(started.greeting().as_bytes());
    let _ = announce.flush();
    started.run(stop).await;
    Ok(())
}

/// One URL for each address of the host that the listener can be reached at; the loopback address when
/// there is none.
fn default_urls(listen: SocketAddr, host: &[IpAddr]) -> Vec<String> {
    let url = |ip: IpAddr| format!("https://{}", SocketAddr::new(ip, listen.port()));
    if !listen.ip().is_unspecified() {
        return vec![url(listen.ip())];
    }
    let reached = |ip: &&IpAddr| listen.is_ipv6() || ip.is_ipv4();
    let urls: Vec<String> = host.iter().filter(reached).map(|ip| url(*ip)).take(12).collect();
    if urls.is_empty() { vec![format!("https://127.0.0.1:{}", listen.port())] } else { urls }
}

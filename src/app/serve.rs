//! `ovctl serve`: the coordination server as a program. It prints nothing: [`Started`] says what there
//! is to say.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::node::{absolute, effective_uid, failed, hide_memory, init_log};
use super::service_manager::ServiceManager;
use super::shutdown;
use crate::api::{Problem, ProblemCode};
use crate::cli::args::ServeArgs;
use crate::config::node::default_paths;
use crate::config::server::{ServerConfig, ServerConfigError, ServerFile};
use crate::control::listen::{self, bind_tcp, bind_unix};
use crate::control::tls::Identity;
use crate::control::{Server, Settings, backup, files, router};
use crate::sys::limits;
use crate::sys::net::Network;

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
    /// The data directory is ours as long as it is there.
    _lock: std::fs::File,
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
    let lock = files::lock(&config.data_dir)?;
    backup::finish(&config.data_dir)?;
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
        ephemeral_rest: config.ephemeral_rest,
        flow_keep: config.flow_keep,
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
        _lock: lock,
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

/// Runs `ovctl serve` until SIGTERM or SIGINT. `announce` is told what [`Started::greeting`] says.
///
/// # Errors
///
/// When the configuration makes no sense, and as [`start`].
pub async fn run(
    args: ServeArgs,
    socket: Option<PathBuf>,
    announce: impl Fn(&str),
) -> Result<(), Problem> {
    hide_memory()?;
    init_log(args.log.clone(), None, false)?;
    let config = config(args, socket)?;
    if let Err(error) = limits::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is, and no more nodes than that can connect: \
             raise it with LimitNOFILE= or ulimit -n");
    }
    let network = Network::open().map_err(failed)?;
    let host_addresses = network.global_addresses(is_overlay_device).await.map_err(failed)?;
    let started = start(config, host_addresses).await?;
    started.greeting().lines().for_each(announce);
    let manager = ServiceManager::from_environment();
    // Who hears that it is up may stop it at once.
    let requested = shutdown::requested();
    manager.ready();
    let stop = async {
        match requested {
            Ok(requested) => drop(requested.await),
            // Without signals only SIGKILL ends it, which loses nothing that was acknowledged.
            Err(_) => std::future::pending::<()>().await,
        }
    };
    let stop = async {
        tokio::select! {
            () = stop => {}
            () = manager.keep_alive() => {}
        }
        manager.stopping();
    };
    started.run(stop).await;
    Ok(())
}

/// Where the server that these arguments would start keeps its data.
pub(super) fn data_dir(args: ServeArgs) -> Result<PathBuf, Problem> {
    Ok(config(args, None)?.data_dir)
}

/// The file, overruled by the command line, checked.
fn config(args: ServeArgs, socket: Option<PathBuf>) -> Result<ServerConfig, Problem> {
    let default_file = Path::new("/etc/ovmesh/server.toml");
    let file = match &args.config {
        Some(path) => ServerFile::read(path),
        None if default_file.exists() => ServerFile::read(default_file),
        None => Ok(ServerFile::default()),
    };
    let refuse = |error: ServerConfigError| {
        Problem::new(ProblemCode::Usage, "the server's configuration makes no sense")
            .why(error.to_string())
    };
    let mut file = file.map_err(refuse)?;
    file.data_dir = args.data_dir.or(file.data_dir).map(absolute);
    file.socket = socket.or(file.socket).map(absolute);
    file.listen = args.listen.or(file.listen);
    if !args.public_urls.is_empty() {
        file.public_urls = args.public_urls;
    }
    let environment = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let is_root = effective_uid()? == 0;
    let (data_dir, _) = default_paths("server", is_root, environment);
    // Its own place, also where root's server has a socket that clients would take.
    let (_, socket) = default_paths("ovctl", is_root, environment);
    file.with_defaults(data_dir, socket).map_err(refuse)
}

/// Whether a device is a TUN of `ovd`: `ov` and a number.
fn is_overlay_device(name: &str) -> bool {
    name.strip_prefix("ov").is_some_and(|number| number.parse::<u32>().is_ok())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::server::ServerFile;

    #[tokio::test]
    async fn it_serves_admins_on_the_socket_strangers_get_401_over_tls_and_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("server");
        let mut config =
            ServerFile::default().with_defaults(data.clone(), dir.path().join("s")).unwrap();
        config.listen = "127.0.0.1:0".parse().unwrap();
        let started = start(config.clone(), Vec::new()).await.unwrap();
        assert!(started.greeting().contains("ovctl token create --role sap"));
        let (listen, pin) = (started.listen, started.identity.pin.clone());
        assert_eq!(started.urls, [format!("https://{listen}")]);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(started.run(async move {
            let _ = stopped.await;
        }));

        let _ = rustls::crypto::ring::default_provider().install_default();
        let local = reqwest::Client::builder().unix_socket(config.socket.clone()).build().unwrap();
        let answer = local.get("http://ovctl/v1/status").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let stranger = reqwest::Client::builder()
            .no_proxy()
            .tls_danger_accept_invalid_certs(true)
            .build()
            .unwrap();
        let answer = stranger.get(format!("https://{listen}/v1/status")).send().await.unwrap();
        assert_eq!(answer.status(), 401);
        let mut second = config.clone();
        second.data_dir = dir.path().join("other");
        let problem = start(second, Vec::new()).await.unwrap_err();
        assert!(problem.what.contains("cannot listen"), "{problem}");

        stop.send(()).unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(20), running).await.unwrap().unwrap();
        assert!(!config.socket.exists());
        assert_eq!(Identity::load_or_make(&data).unwrap().pin, pin);
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
        let problem = start(config, Vec::new()).await.unwrap_err();
        assert!(problem.what.contains("others may read"), "{problem}");
    }

    #[test]
    fn urls_are_the_hosts_addresses_in_the_listeners_family() {
        let host = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];

        let all = default_urls("[::]:7443".parse().unwrap(), &host);
        assert_eq!(all, ["https://192.0.2.1:7443", "https://[2001:db8::1]:7443"]);
        let four = default_urls("0.0.0.0:1".parse().unwrap(), &host);
        assert_eq!(four, ["https://192.0.2.1:1"]);
        assert_eq!(default_urls("[::]:1".parse().unwrap(), &[]), ["https://127.0.0.1:1"]);
    }
}

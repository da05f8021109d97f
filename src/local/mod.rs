//! The unix-socket API of `ovd` and `ovsap`: HTTP, for root and the daemon's own user only. The socket's
//! mode is 0600, and whoever connects is asked of the kernel.
//!
//! It reads; what it is ordered, it hands on. Who asks for `/v1/takeover` gets the connection itself: what
//! goes over it then is no HTTP ([`ask_takeover`]).

#![forbid(unsafe_code)]

mod takeover;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Query, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::net::unix::SocketAddr;
use tokio::sync::{mpsc, oneshot};

use crate::api::local::{DenialList, LocalQuestion, LocalWhy, NodeStatus, Order};
use crate::api::{Problem, ProblemCode};
use crate::types::HumanDuration;
pub use takeover::ask_takeover;

/// An order on its way to who carries it out, and where to say how that went.
pub type Ordered = (Order, oneshot::Sender<Result<(), Problem>>);

/// A socket that is listened on; its file goes when this goes.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
    is_left: bool,
}

impl Socket {
    /// Listens on `path`. A socket that nobody listens on is replaced. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// `Conflict` when a live process listens there; `Failed` when it cannot be made.
    pub fn bind(path: &Path) -> Result<Self, Problem> {
        let failed = |error: &io::Error| {
            Problem::new(
                ProblemCode::Failed,
                format!("cannot listen on the socket {}", path.display()),
            )
            .why(error.to_string())
            .fix("give another place with --socket")
        };
        clear(path)?;
        if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(directory).map_err(|error| failed(&error))?;
        }
        // Bound under another name and renamed when its mode is right: nobody can connect before.
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let _ = fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside).map_err(|error| failed(&error))?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&beside, path))
            .map_err(|error| {
                let _ = fs::remove_file(&beside);
                failed(&error)
            })?;
        Ok(Self { path: path.to_owned(), listener: Some(listener), is_left: false })
    }

    /// Takes over the listener on `path` of the process before this one, whose the file is until
    /// [`Self::leave`] says otherwise. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// `Failed` when it is none.
    pub fn adopt(path: &Path, descriptor: OwnedFd) -> Result<Self, Problem> {
        let listener = std::os::unix::net::UnixListener::from(descriptor);
        let adopted =
            listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        adopted
            .map(|listener| Self { path: path.to_owned(), listener: Some(listener), is_left: true })
            .map_err(|error| {
                let what = format!("cannot take over the socket {}", path.display());
                Problem::new(ProblemCode::Failed, what).why(error.to_string())
            })
    }

    /// The listener, for the process after this one; none while it is served.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Whether the file is left to another process, which listens on it.
    pub fn leave(&mut self, is_left: bool) {
        self.is_left = is_left;
    }

    /// Answers `GET /v1/status`, `/v1/denied` and `/v1/why` with what the functions make, and hands on what
    /// comes by `POST /v1/order` where there is somebody to take it, and the connections of processes that
    /// want to take over (`POST /v1/takeover`), for ever; stops when it is dropped.
    ///
    /// # Errors
    ///
    /// When the socket breaks.
    pub async fn serve(
        &mut self,
        status: impl Fn() -> NodeStatus + Send + Sync + 'static,
        denied: impl Fn(Option<HumanDuration>) -> DenialList + Send + Sync + 'static,
        why: impl Fn(&LocalQuestion) -> Result<LocalWhy, Problem> + Send + Sync + 'static,
        orders: Option<mpsc::Sender<Ordered>>,
        successors: mpsc::Sender<UnixStream>,
    ) -> io::Result<()> {
        let status = Arc::new(status);
        let answer = move || {
            let status = Arc::clone(&status);
            async move {
                // It may run another program, to count what the guard matched.
                let status = tokio::task::spawn_blocking(move || status()).await;
                status.map(Json).map_err(|_| refusal(ended()))
            }
        };
        let denied = Arc::new(denied);
        let denials = move |Query(asked): Query<Asked>| {
            let denied = Arc::clone(&denied);
            async move { Json(denied(asked.since)) }
        };
        let why = Arc::new(why);
        let explain = move |Query(question): Query<LocalQuestion>| {
            let why = Arc::clone(&why);
            async move { why(&question).map(Json).map_err(refusal) }
        };
        let obey = move |Json(order): Json<Order>| {
            let orders = orders.clone();
            async move { pass_on(orders, order).await.map(Json).map_err(refusal) }
        };
        let hand_over = move |request: Request| {
            let successors = successors.clone();
            async move { upgrade(request, successors) }
        };
        let router = Router::new()
            .route("/v1/status", get(answer))
            .route("/v1/denied", get(denials))
            .route("/v1/why", get(explain))
            .route("/v1/order", post(obey))
            .route("/v1/takeover", post(hand_over))
            .fallback(unknown);
        let Some(listener) = self.listener.take() else { return Ok(()) };
        axum::serve(PeerChecked::new(listener)?, router).await
    }
}

/// Lets in root and the user that listens, by the credentials that the kernel keeps of the other end.
struct PeerChecked {
    listener: UnixListener,
    own_uid: u32,
}

impl PeerChecked {
    fn new(listener: UnixListener) -> io::Result<Self> {
        let (end, _) = tokio::net::UnixStream::pair()?;
        Ok(Self { listener, own_uid: end.peer_cred()?.uid() })
    }

    fn admits(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid
    }
}

impl axum::serve::Listener for PeerChecked {
    type Io = tokio::net::UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // It waits by itself when the process has no descriptor left.
            let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
            match stream.peer_cred() {
                Ok(peer) if self.admits(peer.uid()) => return (stream, address),
                Ok(peer) => {
                    tracing::debug!(uid = peer.uid(), "a stranger on the local socket");
                }
                Err(_) => {}
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// What may be asked of the refusals.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    since: Option<HumanDuration>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.is_left {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes the connection out of HTTP and hands it on.
fn upgrade(request: Request, successors: mpsc::Sender<UnixStream>) -> Response {
    let name = request.headers().get(header::UPGRADE);
    if name.is_none_or(|name| name != takeover::PROTOCOL) {
        let problem = Problem::new(ProblemCode::Usage, "this is no request to take over");
        return refusal(problem).into_response();
    }
    tokio::spawn(async move {
        let upgraded = hyper::upgrade::on(request).await.ok()?;
        let parts = auto::upgrade::downcast::<TokioIo<tokio::net::UnixStream>>(upgraded).ok()?;
        let stream = parts.io.into_inner().into_std().ok()?;
        // Who takes it may have ended: then the other end notices.
        successors.send(stream).await.ok()
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, takeover::PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Waits until `order` is carried out.
async fn pass_on(orders: Option<mpsc::Sender<Ordered>>, order: Order) -> Result<(), Problem> {
    let nobody = || Problem::new(ProblemCode::NotFound, "this program takes no orders");
    let (outcome, answer) = oneshot::channel();
    orders.ok_or_else(nobody)?.send((order, outcome)).await.map_err(|_| nobody())?;
    answer.await.map_err(|_| ended())?
}

fn ended() -> Problem {
    Problem::new(ProblemCode::Failed, "the daemon is stopping")
}

/// A problem as an answer.
fn refusal(problem: Problem) -> (StatusCode, Json<Problem>) {
    let status = match problem.code {
        ProblemCode::NotFound => StatusCode::NOT_FOUND,
        ProblemCode::Conflict => StatusCode::CONFLICT,
        ProblemCode::Usage
        | ProblemCode::Failed
        | ProblemCode::Unreachable
        | ProblemCode::Unauthorized
        | ProblemCode::Findings => StatusCode::BAD_REQUEST,
    };
    (status, Json(problem))
}

async fn unknown() -> (StatusCode, Json<Problem>) {
    let problem = Problem::new(ProblemCode::NotFound, "this program does not answer that")
        .fix("use ovd and ovctl of the same version");
    (StatusCode::NOT_FOUND, Json(problem))
}

/// Removes a socket that nobody listens on.
fn clear(path: &Path) -> Result<(), Problem> {
    let refuse = |code, why: String, fix: String| {
        let what = format!("cannot listen on the socket {}", path.display());
        Err(Problem::new(code, what).why(why).fix(fix))
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let fix = "give another place with --socket".to_owned();
            return refuse(ProblemCode::Failed, error.to_string(), fix);
        }
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let why = "something that is not a socket is in its place".to_owned();
            let fix = format!("remove {}, or give another --socket", path.display());
            return refuse(ProblemCode::Conflict, why, fix);
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .or_else(|error| {
                let fix = "give another place with --socket".to_owned();
                refuse(ProblemCode::Failed, error.to_string(), fix)
            }),
        Ok(_) | Err(_) => refuse(
            ProblemCode::Conflict,
            "another process listens on it".to_owned(),
            "stop that process, or give another --socket".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn status() -> NodeStatus {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "ovmesh/v1", "version": "0", "id": 3, "kind": "entity", "name": "web",
            "started": "2026-11-23T12:00:00Z",
            "server": {"url": "u", "reachable": true, "since": "2026-11-23T12:00:00Z", "error": null},
            "table": null, "endpoints": [], "overlays": [], "saps": [], "packets": {}, "drops": {},
            "flows": 0, "problems": []
        }))
        .unwrap()
    }

    fn denied(since: Option<HumanDuration>) -> DenialList {
        assert_eq!(since, "10m".parse().ok());
        DenialList { api_version: crate::types::ApiVersion::V1, items: Vec::new() }
    }

    fn why(question: &LocalQuestion) -> Result<LocalWhy, Problem> {
        assert_eq!((question.peer.as_str(), &question.service), ("db", &"tcp/80".parse().ok()));
        Err(Problem::new(ProblemCode::NotFound, "nobody"))
    }

    async fn ask(path: &Path, target: &str) -> String {
        let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn status_is_answered_on_a_private_socket() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run").join("ovd.sock");
        let mut socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let (successors, _nobody) = mpsc::channel(1);
        let serving =
            tokio::spawn(async move { socket.serve(status, denied, why, None, successors).await });

        let answer = ask(&path, "/v1/status").await;
        let unknown = ask(&path, "/v1/other").await;
        let denied = ask(&path, "/v1/denied?since=10m").await;
        let wrong = ask(&path, "/v1/denied?since=soon").await;
        let nobody = ask(&path, "/v1/why?peer=db&service=tcp/80").await;

        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"web\""), "{answer}");
        assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
        assert!(denied.starts_with("HTTP/1.1 200") && denied.contains("\"items\""), "{denied}");
        assert!(wrong.starts_with("HTTP/1.1 400"), "{wrong}");
        assert!(nobody.starts_with("HTTP/1.1 404") && nobody.contains("nobody"), "{nobody}");
        serving.abort();
        let _ = serving.await;
        assert!(!path.exists(), "the file goes with the socket");
    }

    #[tokio::test]
    async fn only_root_and_the_daemons_own_user_are_let_in() {
        let root = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(root.path().join("s")).unwrap();
        let socket = PeerChecked::new(listener).unwrap();

        let own = crate::config::user::effective_uid().unwrap();
        assert_eq!(socket.own_uid, own);
        assert!(socket.admits(own) && socket.admits(0));
        assert!(!socket.admits(own + 1));
    }

    #[tokio::test]
    async fn stale_sockets_are_replaced_and_live_ones_and_files_are_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("ovd.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());

        let live = Socket::bind(&path).unwrap();
        assert_eq!(Socket::bind(&path).unwrap_err().code, ProblemCode::Conflict);
        assert!(path.exists());
        drop(live);

        fs::write(&path, "precious").unwrap();
        assert_eq!(Socket::bind(&path).unwrap_err().code, ProblemCode::Conflict);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}

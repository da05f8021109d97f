//! Asks a server or a daemon: HTTP over a unix socket, or HTTPS with a pinned key and a token.
//!
//! It knows no noun: callers name the path and the type of the answer. Whatever goes wrong becomes
//! a [`Problem`] with the server's or daemon's address in it.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::args::Global;
use super::credential::{self, Credential};
use super::output::Output;
use crate::api::admin::ChangeOptions;
use crate::api::{Problem, ProblemCode};
use crate::config::ovctl;
use crate::pin;
use crate::types::{Name, Secret};

/// Longest answer that is read, in bytes: room for lists of a hundred thousand things.
const ANSWER_MAX: usize = 64 << 20;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer may take, beyond the time that the server was asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a server on this host may take to start: a first start makes a database and a key.
const START_TIMEOUT: Duration = Duration::from_secs(2);

/// How often to look whether it has.
const START_POLL: Duration = Duration::from_millis(50);

/// The query that asks for one overlay, or for all.
pub(super) fn of_overlay(overlay: Option<&Name>) -> Vec<(&'static str, String)> {
    overlay.iter().map(|overlay| ("overlay", overlay.to_string())).collect()
}

/// Speaks to one server or daemon.
pub struct Client {
    http: reqwest::Client,
    base: String,
    target: Target,
    bearer: Option<credential::Bearer>,
}

/// Who is spoken to: for messages.
enum Target {
    /// `ovctl serve` on this host.
    Server(PathBuf),
    /// `ovctl serve` by URL.
    Remote(String),
    /// `ovd` or `ovsap` on this host.
    Daemon(&'static str, PathBuf),
}

/// An answer, as understood and as received.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// As this version understands it.
    pub value: T,
    /// As received: fields of a newer server are kept for `-o json`.
    pub document: Value,
}

impl Client {
    /// The server that the global options name: `--server` with `--token-file`, else the socket.
    ///
    /// # Errors
    ///
    /// When the options do not make sense or the token file cannot be read.
    pub fn to_server(global: &Global, output: &mut Output) -> Result<Self, Problem> {
        let Some(server) = &global.server else {
            let path = global.socket.clone().unwrap_or_else(ovctl::server_socket);
            return Self::over_socket(path.clone(), Target::Server(path));
        };
        let Credential { url, pin, bearer, warning } =
            credential::read(server, global.token_file.as_deref())?;
        if let Some(warning) = warning {
            output.note(format!("warning: {warning}"));
        }
        let http = builder()
            .tls_backend_preconfigured(
                pin::client_config(&pin).map_err(|error| unusable(&error.to_string()))?,
            )
            .https_only(true)
            .build()
            .map_err(|error| unusable(&error.to_string()))?;
        Ok(Self { http, base: url.clone(), target: Target::Remote(url), bearer: Some(bearer) })
    }

    /// The daemon `program` on its local socket, or on the one that was named.
    ///
    /// # Errors
    ///
    /// Only when the HTTP client itself cannot be made.
    pub fn to_daemon(program: &'static str, socket: Option<&Path>) -> Result<Self, Problem> {
        let socket = socket.map_or_else(|| ovctl::node_socket(program), Path::to_owned);
        Self::over_socket(socket.clone(), Target::Daemon(program, socket))
    }

    fn over_socket(path: PathBuf, target: Target) -> Result<Self, Problem> {
        // No TLS is spoken here; the configuration only keeps the client from looking for one.
        let tls = pin::client_config(&Secret::new([0; 32]))
            .map_err(|error| unusable(&error.to_string()))?;
        let http = builder()
            .tls_backend_preconfigured(tls)
            .unix_socket(path)
            .build()
            .map_err(|error| unusable(&error.to_string()))?;
        Ok(Self { http, base: "http://localhost".to_owned(), target, bearer: None })
    }

    /// Asks for something and changes nothing.
    ///
    /// # Errors
    ///
    /// What the server says, or why it could not be asked.
    pub async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Answer<T>, Problem> {
        let request = self.http.get(self.url(path)).query(query).timeout(ANSWER_TIMEOUT);
        self.send(request).await
    }

    /// Asks a question that needs a body.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub async fn ask<Q: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        question: &Q,
    ) -> Result<Answer<T>, Problem> {
        let request = self.http.post(self.url(path)).json(question).timeout(ANSWER_TIMEOUT);
        self.send(request).await
    }

    /// Makes a change. Waits for its enforcement as long as `options` say.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub async fn change<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        options: &ChangeOptions,
    ) -> Result<Answer<T>, Problem> {
        let request = self.http.request(Method::POST, self.url(path)).json(body);
        self.send(self.with_options(request, options)).await
    }

    /// Deletes something.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        options: &ChangeOptions,
    ) -> Result<Answer<T>, Problem> {
        let request = self.http.request(Method::DELETE, self.url(path));
        self.send(self.with_options(request, options)).await
    }

    fn with_options(
        &self,
        request: reqwest::RequestBuilder,
        options: &ChangeOptions,
    ) -> reqwest::RequestBuilder {
        let wait = options.wait.map_or(Duration::ZERO, |wait| wait.0);
        request.query(options).timeout(ANSWER_TIMEOUT.saturating_add(wait))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    async fn send<T: DeserializeOwned>(
        &self,
        mut request: reqwest::RequestBuilder,
    ) -> Result<Answer<T>, Problem> {
        if let Some(bearer) = &self.bearer {
            request = request.bearer_auth(bearer.expose());
        }
        let response = self.connect(request).await.map_err(|error| self.target.failed(&error))?;
        let status = response.status();
        let body = self.body(response).await?;
        if !status.is_success() {
            return Err(self.target.refused(status, &body));
        }
        let strange = |error: serde_json::Error| {
            Problem::new(ProblemCode::Failed, format!("{} gave a strange answer", self.target))
                .why(error.to_string())
                .fix("is it an ovmesh server of this version? compare `ovctl --version` on both")
        };
        let document: Value = serde_json::from_slice(&body).map_err(strange)?;
        let value = T::deserialize(&document).map_err(strange)?;
        Ok(Answer { value, document })
    }

    /// Sends, and waits a moment for a server on this host that was started in the same breath
    /// (`ovctl serve &`). Nothing was sent as long as nobody took the connection.
    async fn connect(&self, request: reqwest::RequestBuilder) -> reqwest::Result<Response> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let Some(again) = request.try_clone() else { return request.send().await };
            match again.send().await {
                Err(error) if self.target.may_be_starting(&error) && Instant::now() < deadline => {
                    tokio::time::sleep(START_POLL).await;
                }
                answer => return answer,
            }
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Problem> {
        let mut body = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| self.target.failed(&error))?
        {
            if body.len() + chunk.len() > ANSWER_MAX {
                return Err(Problem::new(
                    ProblemCode::Failed,
                    format!("{} gave an answer that does not end", self.target),
                )
                .why(format!("more than {} MiB came", ANSWER_MAX >> 20)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// What all clients share: no proxy and no redirect can carry a token elsewhere.
fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("ovmesh/", env!("CARGO_PKG_VERSION")))
}

fn unusable(why: &str) -> Problem {
    Problem::new(ProblemCode::Failed, "cannot make an HTTP client").why(why)
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Server(path) => write!(f, "the server on {}", path.display()),
            Self::Remote(url) => write!(f, "the server at {url}"),
            Self::Daemon(program, path) => write!(f, "{program} on {}", path.display()),
        }
    }
}

impl Target {
    /// Whether a server on this host may be there in a moment.
    fn may_be_starting(&self, error: &reqwest::Error) -> bool {
        match self {
            Self::Server(_) => matches!(
                Cause::of(error).kind,
                Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
            ),
            Self::Remote(_) | Self::Daemon(..) => false,
        }
    }

    /// Why a request got no answer.
    fn failed(&self, error: &reqwest::Error) -> Problem {
        let cause = Cause::of(error);
        if cause.wrong_key {
            return Problem::new(
                ProblemCode::Unauthorized,
                format!("{self} is not the server that the token is for"),
            )
            .why("its key does not match the pin; nothing was sent")
            .fix("check the URL; after a new server key, make a new token there");
        }
        if cause.kind == Some(io::ErrorKind::PermissionDenied) {
            return Problem::new(ProblemCode::Unauthorized, format!("not allowed to ask {self}"))
                .why(cause.text)
                .fix(match self {
                    Self::Server(_) => {
                        "run it as root or as the server's user, or use --server and --token-file"
                    }
                    Self::Daemon(..) => "run it as root or as the daemon's user",
                    Self::Remote(_) => "check the firewall of this host",
                });
        }
        let what = match self {
            Self::Server(path) => format!("no server answers on {}", path.display()),
            Self::Remote(url) => format!("no server answers at {url}"),
            Self::Daemon(program, path) => {
                format!("{program} does not answer on {}", path.display())
            }
        };
        Problem::new(ProblemCode::Unreachable, what).why(cause.text).fix(match self {
            Self::Server(_) => {
                "start one: ovctl serve; or name another: --socket or --server".to_owned()
            }
            Self::Remote(_) => "check the address, and that `ovctl serve` runs there".to_owned(),
            Self::Daemon(program, _) => format!("start it: {program} run"),
        })
    }

    /// What a refusal says: the server's own words, or its status when it gave none.
    fn refused(&self, status: StatusCode, body: &[u8]) -> Problem {
        if let Ok(problem) = serde_json::from_slice(body) {
            return problem;
        }
        let code = match status.as_u16() {
            400 | 413 | 415 | 422 => ProblemCode::Usage,
            401 | 403 => ProblemCode::Unauthorized,
            404 => ProblemCode::NotFound,
            409 | 412 => ProblemCode::Conflict,
            502..=504 => ProblemCode::Unreachable,
            _ => ProblemCode::Failed,
        };
        let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
        Problem::new(code, format!("{self} answered {status}")).why(text.trim())
    }
}

/// The innermost reason of a failed request.
#[derive(Default)]
struct Cause {
    kind: Option<io::ErrorKind>,
    wrong_key: bool,
    text: String,
}

impl Cause {
    fn of(error: &reqwest::Error) -> Self {
        let mut cause = Self { text: error.to_string(), ..Self::default() };
        if error.is_timeout() {
            cause.text = "it did not answer in time".to_owned();
        }
        let mut next = error.source();
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                cause.kind = Some(error.kind());
            }
            cause.wrong_key |= pin::is_wrong_pin(error);
            cause.text = error.to_string();
            next = error.source();
        }
        cause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    fn to_server(global: &Global) -> Client {
        let mut output = Output::standard(crate::cli::args::Format::Table);
        Client::to_server(global, &mut output).unwrap()
    }

    async fn ask(path: PathBuf) -> Result<Answer<Value>, Problem> {
        let global = Global { socket: Some(path), ..Global::default() };
        to_server(&global).read("/v1/status", &[]).await
    }

    /// Answers one request with `response`, and says what was asked.
    async fn serve_once(listener: UnixListener, response: String) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let len = stream.read(&mut request).await.unwrap();
        stream.write_all(response.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..len]).into_owned()
    }

    fn http(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_somebody_there_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");

        let problem = ask(path.clone()).await.unwrap_err();
        assert_eq!(problem.code, ProblemCode::Unreachable);
        assert_eq!(problem.what, format!("no server answers on {}", path.display()));
        assert!(problem.fix.contains("ovctl serve"), "{problem}");

        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(serve_once(listener, http("200 OK", r#"{"a":1}"#)));
        assert_eq!(ask(path.clone()).await.unwrap().document["a"], 1);
        assert!(server.await.unwrap().starts_with("GET /v1/status HTTP/1.1"));

        // The file is still there, and nobody listens.
        assert_eq!(ask(path).await.unwrap_err().code, ProblemCode::Unreachable);
    }

    #[tokio::test]
    async fn a_daemon_that_is_down_is_named() {
        let client = Client::to_daemon("ovd", Some(Path::new("/nonexistent/ovd.sock"))).unwrap();

        let problem = client.read::<Value>("/v1/status", &[]).await.unwrap_err();

        assert_eq!(problem.code, ProblemCode::Unreachable);
        assert_eq!(problem.what, "ovd does not answer on /nonexistent/ovd.sock");
        assert_eq!(problem.fix, "start it: ovd run");
    }

    #[tokio::test]
    async fn the_servers_words_come_through() {
        let dir = tempfile::tempdir().unwrap();
        for (status, body, code, what) in [
            ("409 Conflict", r#"{"code":"conflict","what":"taken"}"#, 5, "taken"),
            ("403 Forbidden", "", 7, "answered 403 Forbidden"),
            ("502 Bad Gateway", "<html>", 6, "answered 502 Bad Gateway"),
            ("200 OK", "<html>", 1, "strange answer"),
        ] {
            let path = dir.path().join(code.to_string());
            let server =
                tokio::spawn(serve_once(UnixListener::bind(&path).unwrap(), http(status, body)));
            let problem = ask(path).await.unwrap_err();
            server.await.unwrap();
            assert_eq!(problem.code.exit_code(), code, "{problem}");
            assert!(problem.what.contains(what), "{problem}");
        }
    }

    #[tokio::test]
    async fn a_change_carries_its_options_in_the_query() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server =
            tokio::spawn(serve_once(UnixListener::bind(&path).unwrap(), http("200 OK", "{}")));
        let client = to_server(&Global { socket: Some(path), ..Global::default() });
        let options = ChangeOptions {
            dry_run: Some(true),
            if_revision: Some(crate::types::Revision(4)),
            accept_risk: None,
            wait: Some("10s".parse().unwrap()),
        };

        client.change::<_, Value>("/v1/rules", &Value::Null, &options).await.unwrap();

        let request = server.await.unwrap();
        assert!(
            request.starts_with("POST /v1/rules?dryRun=true&ifRevision=4&wait=10s HTTP/1.1"),
            "{request}"
        );
    }
}

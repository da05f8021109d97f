//! Requests to the coordination server. Never follows redirects, never uses a proxy, trusts the
//! pinned key only, and reads answers up to a bound.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::addresses::{Addresses, Resolver};
use crate::api::errand::{Errand, ErrandReport};
use crate::api::flows::FlowReport;
use crate::api::node::{
    INSTANCE_HEADER, JoinAnswer, JoinCheck, JoinPreview, JoinRequest, NodeReport, POLL_SECS,
};
use crate::api::table::NodeTable;
use crate::api::{Problem, ProblemCode, gzip};
use crate::pin;
use crate::types::{Incarnation, Instance, Revision, Secret, Serial, Timestamp};

/// For TCP and TLS together, for each address.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// For a whole short request.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A long-poll lasts [`POLL_SECS`]; what the server and the way there may add.
const POLL_WITHIN: Duration = Duration::from_secs(POLL_SECS + 15);

/// The longest answer that is read: a table of some hundred thousand members.
const BODY_MAX_BYTES: usize = 128 << 20;

/// The longest error that is read.
const PROBLEM_MAX_BYTES: usize = 64 << 10;

/// What a poll brings.
#[derive(Debug)]
pub enum Polled {
    /// A newer table.
    Table(Box<NodeTable>),
    /// Something to do meanwhile.
    Errand(Errand),
    /// Nothing within [`POLL_SECS`].
    Nothing,
}

/// Talks to one server, which may have several addresses.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    urls: Vec<String>,
    addresses: Arc<Addresses>,
    /// Index of the address that answered last: tried first.
    preferred: AtomicUsize,
    instance: Option<Instance>,
}

impl Client {
    /// A client for the server that holds the key `pin` and listens at one of `urls`.
    ///
    /// # Errors
    ///
    /// `Failed` when TLS cannot be set up.
    pub fn new(urls: Vec<String>, pin: &Secret) -> Result<Self, Problem> {
        let broken = |why: String| {
            Problem::new(ProblemCode::Failed, "cannot set up TLS towards the server").why(why)
        };
        if urls.is_empty() {
            return Err(broken("no address of the server is known".to_owned()));
        }
        let addresses = Arc::new(Addresses::new(&urls));
        let tls = pin::client_config(pin).map_err(|error| broken(error.to_string()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_WITHIN)
            .dns_resolver(Arc::new(Resolver(Arc::clone(&addresses))))
            .tcp_keepalive(Duration::from_secs(15))
            .user_agent(concat!("ovmesh/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| broken(reasons(&error)))?;
        Ok(Self { http, urls, addresses, preferred: AtomicUsize::new(0), instance: None })
    }

    /// The same, for a node's process, which says which one it is.
    #[must_use]
    pub fn of_process(self, instance: Instance) -> Self {
        Self { instance: Some(instance), ..self }
    }

    /// The address that answered last, or the first one.
    #[must_use]
    pub fn url(&self) -> &str {
        let preferred = self.preferred.load(Ordering::Relaxed);
        self.urls.get(preferred).map_or("", String::as_str)
    }

    /// Where all of them are.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Asks what a token is good for.
    ///
    /// # Errors
    ///
    /// The server's problem, or why it could not be asked.
    pub async fn check(&self, check: &JoinCheck) -> Result<JoinPreview, Problem> {
        let response = self.send(Method::POST, "/v1/join/check", None, |r| r.json(check)).await?;
        self.read(response).await
    }

    /// Joins. Repeating it with the same credential is harmless.
    ///
    /// # Errors
    ///
    /// The server's problem, or why it could not be asked.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer, Problem> {
        let response = self.send(Method::POST, "/v1/join", None, |r| r.json(request)).await?;
        self.read(response).await
    }

    /// Waits for a table as asked, and so acknowledges the one in force.
    ///
    /// # Errors
    ///
    /// The server's problem, or why it could not be asked.
    pub async fn table(
        &self,
        credential: &Secret,
        query: &TableQuery<'_>,
    ) -> Result<Polled, Problem> {
        let response = self
            .send(Method::GET, "/v1/node/table", Some(credential), |request| {
                let request = request.header(header::ACCEPT_ENCODING, gzip::NAME);
                request.query(query).timeout(POLL_WITHIN)
            })
            .await?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(Polled::Nothing),
            StatusCode::ACCEPTED => self.read(response).await.map(Polled::Errand),
            _ => self.read(response).await.map(|table| Polled::Table(Box::new(table))),
        }
    }

    /// Tells the server how this node is.
    ///
    /// # Errors
    ///
    /// The server's problem, or why it could not be told.
    pub async fn report(&self, credential: &Secret, report: &NodeReport) -> Result<(), Problem> {
        self.send(Method::POST, "/v1/node/report", Some(credential), |r| r.json(report)).await?;
        Ok(())
    }

    /// Tells the server what was counted.
    ///
    /// # Errors
    ///
    /// The server's problem, or why it could not be told.
    pub async fn report_flows(
        &self,
        credential: &Secret,
        report: &FlowReport,
    ) -> Result<(), Problem> {
        self.send(Method::POST, "/v1/node/flows", Some(credential), |r| r.json(report)).await?;
        Ok(())
    }

    /// Tells the server that an errand is done.
    ///
    /// # Errors
    ///
    /// The server's problem, or why it could not be told.
    pub async fn report_errand(
        &self,
        credential: &Secret,
        report: &ErrandReport,
    ) -> Result<(), Problem> {
        self.send(Method::POST, "/v1/node/errand", Some(credential), |r| r.json(report)).await?;
        Ok(())
    }

    /// Leaves: the server forgets this node.
    ///
    /// # Errors
    ///
    /// The server's problem, or why it could not be told.
    pub async fn leave(&self, credential: &Secret) -> Result<(), Problem> {
        self.send(Method::POST, "/v1/node/leave", Some(credential), |request| request).await?;
        Ok(())
    }

    /// The server's time, which its answer to anything has; none where it does not say.
    ///
    /// # Errors
    ///
    /// Why it could not be asked.
    pub async fn clock(&self) -> Result<Option<Timestamp>, Problem> {
        let (_, response) = self.reach(Method::GET, "/", None, |request| request).await?;
        let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        Ok(date.and_then(Timestamp::of_http_date))
    }

    /// Sends a request to the first address that takes it; an answer that is an error is a problem.
    async fn send(
        &self,
        method: Method,
        path: &str,
        credential: Option<&Secret>,
        finish: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Problem> {
        let (url, response) = self.reach(method, path, credential, finish).await?;
        if is_success(response.status()) { Ok(response) } else { Err(refusal(url, response).await) }
    }

    /// Sends a request to the first address that takes it; returns that and the answer, whatever it is.
    async fn reach(
        &self,
        method: Method,
        path: &str,
        credential: Option<&Secret>,
        finish: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<(&str, Response), Problem> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failure = None;
        for offset in 0..self.urls.len() {
            let index = (first + offset) % self.urls.len();
            let url = &self.urls[index];
            let full = format!("{}{path}", url.trim_end_matches('/'));
            let mut request = self.http.request(method.clone(), full).timeout(ANSWER_WITHIN);
            if let Some(credential) = credential {
                request = request.bearer_auth(String::from(credential.clone()));
            }
            if let Some(instance) = self.instance {
                request = request.header(INSTANCE_HEADER, instance.to_string());
            }
            match finish(request).send().await {
                Ok(response) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok((url, response));
                }
                Err(error) => {
                    let problem = self.unreachable(url, &error);
                    // A wrong key says more than that another address is silent.
                    if failure.as_ref().is_none_or(|f: &Problem| f.code == ProblemCode::Unreachable)
                    {
                        failure = Some(problem);
                    }
                }
            }
        }
        Err(failure.expect("INVARIANT: new() refuses an empty list of addresses"))
    }

    fn unreachable(&self, url: &str, error: &reqwest::Error) -> Problem {
        if pin::is_wrong_pin(error) {
            return Problem::new(
                ProblemCode::Unauthorized,
                format!("the server at {url} is not the one that made this token"),
            )
            .why("its key is not the pinned one: another server, one that was set up anew, or somebody in between")
            .fix("make a new token on the right server: ovctl token create");
        }
        let mut why = format!("{url}: {}", reasons(error));
        if self.urls.len() > 1 {
            let _ = write!(why, " (tried {} addresses)", self.urls.len());
        }
        Problem::new(
            ProblemCode::Unreachable,
            format!("cannot reach the coordination server at {url}"),
        )
        .why(why)
        .fix("check that `ovctl serve` runs there and that a firewall lets its TCP port through")
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Problem> {
        let body = document(response, BODY_MAX_BYTES).await.map_err(|why| {
            Problem::new(
                ProblemCode::Unreachable,
                format!("the answer of the server at {} broke off", self.url()),
            )
            .why(why)
            .fix("try again")
        })?;
        serde_json::from_slice(&body).map_err(|error| {
            Problem::new(
                ProblemCode::Failed,
                format!("cannot read the answer of the server at {}", self.url()),
            )
            .why(error.to_string())
            .fix("use the same ovmesh version on the server and on the nodes")
        })
    }
}

/// What a node has, and so what it waits for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TableQuery<'a> {
    /// The serial of the table in force.
    pub after: Serial,
    /// The life of the server that this node follows.
    pub incarnation: &'a Incarnation,
    /// A life of which it refused a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<&'a Incarnation>,
    /// The revision of the table in force, where it refused another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
}

fn is_success(status: StatusCode) -> bool {
    status.is_success()
}

/// The problem that an error answer carries; a made-up one when it carries none.
async fn refusal(url: &str, response: Response) -> Problem {
    let status = response.status();
    let body = bounded(response, PROBLEM_MAX_BYTES).await.unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_else(|_| {
        let code = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ProblemCode::Unauthorized,
            StatusCode::NOT_FOUND => ProblemCode::NotFound,
            StatusCode::CONFLICT => ProblemCode::Conflict,
            other if other.is_client_error() => ProblemCode::Usage,
            _ => ProblemCode::Failed,
        };
        Problem::new(code, format!("the server at {url} answered {status}"))
            .why("the answer carries no explanation: perhaps this is not an ovmesh server")
    })
}

/// Reads a body, and unpacks it when it is packed: at most `max` bytes either way.
async fn document(response: Response, max: usize) -> Result<Vec<u8>, String> {
    let encoding = response.headers().get(header::CONTENT_ENCODING);
    let is_packed = encoding.is_some_and(|name| name == gzip::NAME);
    let body = bounded(response, max).await?;
    if is_packed { gzip::unpack(&body, max) } else { Ok(body) }
}

/// Reads a body of at most `max` bytes.
async fn bounded(mut response: Response, max: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| reasons(&error))? {
        if body.len() + chunk.len() > max {
            return Err(format!("it is longer than {max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The last two reasons in the chain of `error`: the outer ones only say that a request failed.
fn reasons(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut texts: Vec<String> = Vec::new();
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.split_off(texts.len().saturating_sub(2)).join(": ")
}

#[cfg(test)]
mod tests;

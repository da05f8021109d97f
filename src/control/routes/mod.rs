//! HTTP: paths, bodies, queries; every answer that is not good is a [`Problem`].

mod admin;
mod drain;
mod flows;
mod live_test;
mod node;
mod paths;
mod policies;
mod restore;
mod rules;
mod views;
mod why;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;

use super::server::Server;
use super::store::StoreError;
use crate::api::{Problem, ProblemCode};

/// The longest body.
const BODY_MAX_BYTES: usize = 1 << 20;

/// A body that takes longer comes from nobody who means it.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// Longest text of an error that repeats what was sent.
const SHOWN_MAX: usize = 300;

/// A problem with the status that it is sent under.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    problem: Problem,
}

impl Refusal {
    /// What went wrong, without the status.
    pub(crate) fn into_problem(self) -> Problem {
        self.problem
    }

    /// 403: known, and not allowed to.
    pub(crate) fn forbidden(problem: Problem) -> Self {
        Self { status: StatusCode::FORBIDDEN, problem }
    }

    /// 429: not so often.
    pub(crate) fn too_many(problem: Problem) -> Self {
        Self { status: StatusCode::TOO_MANY_REQUESTS, problem }
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let status = StatusCode::from_u16(problem.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, problem }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Problem::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}

/// What a handler gives.
pub(crate) type Answer<T> = Result<Json<T>, Refusal>;

/// All routes.
pub fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/v1/status", get(views::status))
        .route("/v1/overlays", get(views::overlays).post(admin::create_overlay))
        .route("/v1/overlays/{name}", get(views::overlay).delete(admin::delete_overlay))
        .route("/v1/tokens", get(views::tokens).post(admin::create_token))
        .route("/v1/tokens/{id}", delete(admin::revoke_token))
        .route("/v1/entities", get(views::entities))
        .route("/v1/entities/{namespace}/{name}", get(views::entity).delete(admin::delete_entity))
        .route("/v1/entities/{namespace}/{name}/labels", post(admin::change_labels))
        .route("/v1/entities/{namespace}/{name}/quarantine", post(admin::quarantine))
        .route("/v1/overlays/{name}/audit", post(admin::audit_overlay))
        .route("/v1/saps", get(views::saps))
        .route("/v1/saps/plan", get(paths::plan))
        .route("/v1/saps/{name}", get(views::sap).delete(admin::delete_sap))
        .route("/v1/saps/{name}/drain", post(drain::drain))
        .route("/v1/paths", get(paths::path).post(paths::set_path))
        .route("/v1/paths/latency", get(paths::latency))
        .route("/v1/rules", get(views::rules).post(rules::create_rule))
        .route("/v1/rules/revoke", post(rules::revoke_rules))
        .route("/v1/rules/{id}", get(views::rule))
        .route("/v1/policy/can", post(views::can))
        .route("/v1/policy/export", get(policies::export))
        .route("/v1/policy/apply", post(policies::apply))
        .route("/v1/policy/diff", post(policies::diff))
        .route("/v1/policy/import", post(policies::import))
        .route("/v1/policy/rollback", post(policies::rollback))
        .route("/v1/policy/confirm", post(policies::confirm))
        .route("/v1/policy/history", get(policies::history))
        .route("/v1/policy/matrix", post(policies::matrix))
        .route("/v1/policy/lint", post(policies::lint))
        .route("/v1/policy/test", post(policies::test))
        .route("/v1/policy/test/live", post(live_test::live_test))
        .route("/v1/networkpolicies", get(policies::network_policies))
        .route("/v1/groups", get(rules::groups).post(rules::change_group))
        .route("/v1/services", get(rules::services).post(rules::change_service))
        .route("/v1/namespaces", get(views::namespaces))
        .route("/v1/namespaces/{name}/labels", post(admin::label_namespace))
        .route("/v1/policy/why", post(why::why))
        .route("/v1/policy/suggest", post(flows::suggest))
        .route("/v1/keys", get(views::keys))
        .route("/v1/keys/rotate", post(admin::rotate_keys))
        .route("/v1/audit", get(views::audit))
        .route("/v1/restore/accept", post(restore::accept))
        .route("/v1/flows", get(flows::list))
        .route("/v1/join/check", post(node::check))
        .route("/v1/join", post(node::join))
        .route("/v1/node/table", get(node::table))
        .route("/v1/node/report", post(node::report))
        .route("/v1/node/flows", post(flows::report))
        .route("/v1/node/errand", post(node::errand))
        .route("/v1/node/leave", post(node::leave))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .with_state(server)
}

async fn unknown_route() -> Refusal {
    Problem::new(ProblemCode::NotFound, "this server has no such path")
        .why("the client is newer than the server, or the path is mistyped")
        .fix("compare ovctl --version on both ends")
        .into()
}

async fn unknown_method() -> Refusal {
    Refusal {
        status: StatusCode::METHOD_NOT_ALLOWED,
        problem: Problem::new(ProblemCode::Usage, "this path does not take that method")
            .fix("compare ovctl --version on both ends"),
    }
}

/// A text that came from outside, safe to show.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect()
}

/// A JSON body; unknown fields are refused by name.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<Server>> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &Arc<Server>) -> Result<Self, Refusal> {
        let too_long = || Refusal {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            problem: Problem::new(ProblemCode::Usage, "the request is too long")
                .why("a body may have 1 MiB")
                .fix("send less at once"),
        };
        let announced = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > BODY_MAX_BYTES) {
            return Err(too_long());
        }
        let read = axum::body::to_bytes(request.into_body(), BODY_MAX_BYTES);
        let bytes = tokio::time::timeout(BODY_WITHIN, read)
            .await
            .map_err(|_| Refusal {
                status: StatusCode::REQUEST_TIMEOUT,
                problem: Problem::new(ProblemCode::Usage, "the request took too long to arrive")
                    .fix("try again on a better line"),
            })?
            .map_err(|_| too_long())?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            Problem::new(ProblemCode::Usage, "the request makes no sense")
                .why(shown(&error.to_string()))
                .fix("correct that field; when it is unknown, the server may be older than ovctl")
                .into()
        })
    }
}

/// Query parameters; unknown ones are refused by name.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Server>> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Server>) -> Result<Self, Refusal> {
        Query::<T>::try_from_uri(&parts.uri).map(|Query(value)| Self(value)).map_err(|error| {
            Problem::new(ProblemCode::Usage, "the query makes no sense")
                .why(shown(&error.to_string()))
                .fix("correct that parameter")
                .into()
        })
    }
}

/// Words in the path, parsed.
pub(crate) struct Words<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Server>> for Words<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Refusal> {
        match Path::<T>::from_request_parts(parts, server).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => {
                Err(Problem::new(ProblemCode::Usage, "the path names something impossible")
                    .why(shown(&rejection.body_text()))
                    .fix("correct the name")
                    .into())
            }
        }
    }
}

/// Runs work that may take long beside the threads that answer everybody.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Problem::new(ProblemCode::Failed, "the question was not answered")
            .why(error.to_string())
            .fix("this is a bug: please report it with the server's log")
    })
}

//! What nodes ask: joining, tables, reports, leaving.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Extensions, HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::time::Instant;

use super::{Answer, Body, Params, Refusal};
use crate::api::errand::ErrandReport;
use crate::api::node::{
    JoinAnswer, JoinCheck, JoinPreview, JoinRequest, NodeReport, POLL_SECS, USED_TWICE,
};
use crate::api::{Problem, ProblemCode, gzip};
use crate::control::auth::{Asks, Node};
use crate::control::listen::Origin;
use crate::control::live::{Keeps, Kept, Live, NodeState};
use crate::control::publish::Hold;
use crate::control::rotation;
use crate::control::server::{Server, now};
use crate::control::speaker::{Process, Turn};
use crate::control::store::{self, audit, join as joining, nodes, paths};
use crate::types::{Incarnation, NodeId, Revision, Serial};

type Shared = State<Arc<Server>>;

/// Most lines and letters of what a node complains of, and most round trips and entities behind NATs, that are kept.
const PROBLEMS_MAX: usize = 16;
const PROBLEM_LEN_MAX: usize = 200;
const ROUND_TRIPS_MAX: usize = 1024;

pub(super) async fn check(
    State(server): Shared,
    Body(request): Body<JoinCheck>,
) -> Answer<JoinPreview> {
    let mut conn = server.store.read().await?;
    Ok(Json(joining::check(&mut conn, &request, now()).await?))
}

pub(super) async fn join(
    State(server): Shared,
    extensions: Extensions,
    Body(request): Body<JoinRequest>,
) -> Answer<JoinAnswer> {
    // Whoever guesses secrets keeps no change waiting.
    joining::known(&mut *server.store.read().await?, &request.secret).await?;
    if let Some(Origin::Tls { slot, .. }) = extensions.get::<Origin>() {
        slot.becomes_known();
    }
    // The gate comes before the transaction, as everywhere, so that nobody waits for each other.
    let gate = Arc::clone(&server.gate).lock_owned().await;
    let mut transaction = server.store.write().await?;
    let (answer, done) = joining::join(&mut transaction, &request, now()).await?;
    if let Some(done) = done {
        let revision = store::revision(&mut transaction).await?;
        let actor = format!("node {}", answer.id);
        audit::record(&mut transaction, revision, now(), &actor, &done).await?;
        server.commit(transaction).await?;
        tracing::info!(node = %answer.name, id = %answer.id, "joined");
        server.publish(Hold::Entities).await?;
    }
    drop(gate);
    Ok(Json(answer))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TableQuery {
    #[serde(default)]
    after: u64,
    incarnation: Option<Incarnation>,
    /// The life of which it refused a table, because nobody accepted it.
    refused: Option<Incarnation>,
    /// Of the table in force, from who refused another.
    revision: Option<Revision>,
}

/// Counts a poll while it is open, also when its client goes away.
struct OpenPoll {
    server: Arc<Server>,
    node: NodeId,
    process: Option<Process>,
    is_answered: bool,
}

impl OpenPoll {
    fn begin(
        server: &Arc<Server>,
        node: NodeId,
        process: Option<Process>,
    ) -> Result<Self, Refusal> {
        server.live().nodes.get_mut(&node).ok_or_else(gone)?.polls += 1;
        Ok(Self { server: Arc::clone(server), node, process, is_answered: false })
    }

    /// Waits until this process speaks for its node.
    ///
    /// # Errors
    ///
    /// `Conflict` when another one does, and is there.
    async fn turn(&self) -> Result<(), Refusal> {
        let mut wake = self.state(|state| state.wake.subscribe())?;
        let mut turn = self.claim()?;
        while let Some(process) = self.process {
            match turn {
                Turn::Speaks => break,
                Turn::Refused => {
                    // The clockwork records it.
                    self.server.tick();
                    return Err(used_twice(&self.server.live(), self.node));
                }
                Turn::Later(until) => {
                    tokio::time::sleep_until(until).await;
                    turn = self.claim()?;
                }
                Turn::Waits(until) => {
                    let _ = tokio::time::timeout_at(until, wake.changed()).await;
                    turn =
                        self.state(|state| state.speaker.turn(process.instance, Instant::now()))?;
                }
            }
        }
        Ok(())
    }

    /// Says that this process is the node.
    fn claim(&self) -> Result<Turn, Refusal> {
        self.state(|state| {
            let turn = self.process.map(|process| state.speaker.poll(process, Instant::now()));
            if matches!(turn, Some(Turn::Waits(_) | Turn::Refused)) {
                // Ends the poll of the process that speaks: whoever is there asks again.
                state.poll_number += 1;
            }
            state.wake.send_modify(|count| *count = count.wrapping_add(1));
            turn.unwrap_or(Turn::Speaks)
        })
    }

    fn state<T>(&self, use_it: impl FnOnce(&mut NodeState) -> T) -> Result<T, Refusal> {
        Ok(use_it(self.server.live().nodes.get_mut(&self.node).ok_or_else(gone)?))
    }
}

impl Drop for OpenPoll {
    fn drop(&mut self) {
        if let Some(state) = self.server.live().nodes.get_mut(&self.node) {
            let now_exact = Instant::now();
            state.polls = state.polls.saturating_sub(1);
            state.polled = Some(now_exact);
            state.seen = Some(now());
            if let Some(process) = self.process {
                state.speaker.poll_ended(process.instance, self.is_answered, now_exact);
                state.wake.send_modify(|count| *count = count.wrapping_add(1));
            }
        }
    }
}

/// Another process is this node.
fn used_twice(live: &Live, node: NodeId) -> Refusal {
    let name = rotation::name_of(&live.world, node);
    let state = live.nodes.get(&node);
    let other =
        state.and_then(|state| state.speaker.copy(Instant::now())).map(|(served, _)| served);
    let place =
        other.and_then(|other| other.from).map_or_else(String::new, |ip| format!(" at {ip}"));
    Problem::new(ProblemCode::Conflict, format!("the identity of {name} {USED_TWICE}"))
        .why(format!("another process{place} runs as {name}, and the server heard of it first"))
        .fix(
            "stop whichever is the copy, remove its state directory, and join it with a new token \
             (ovctl token create)",
        )
        .into()
}

pub(super) async fn table(
    State(server): Shared,
    Node(id): Node,
    Asks(process): Asks,
    Params(query): Params<TableQuery>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Result<Response, Refusal> {
    if let Some(Origin::Tls { slot, .. }) = extensions.get::<Origin>() {
        slot.becomes_poll();
    }
    let mut open = OpenPoll::begin(&server, id, process)?;
    let answer = match open.turn().await {
        Ok(()) => next_table(&server, id, query, &headers).await,
        Err(refusal) => Err(refusal),
    };
    open.is_answered = true;
    answer
}

/// Waits until there is something for a node.
async fn next_table(
    server: &Arc<Server>,
    id: NodeId,
    query: TableQuery,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let other = query.incarnation.filter(|theirs| *theirs != server.incarnation);
    let after = if other.is_none() { Serial(query.after) } else { Serial(0) };
    // It said no once; asking again would not change its mind, an operator's word does.
    let must_wait = query.refused.as_ref() == Some(&server.incarnation);
    let refuses = |live: &Live| {
        let is_accepted = |life| live.lives.accepted.contains(life);
        must_wait && other.as_ref().is_some_and(|life| !is_accepted(life))
    };
    let (mut wake, number) = {
        let mut live = server.live();
        let state = live.nodes.get_mut(&id).ok_or_else(gone)?;
        state.poll_number += 1;
        state.seen = Some(now());
        state.keeps =
            other.clone().map(|life| Keeps { incarnation: life, revision: query.revision });
        state.acknowledge(after);
        // It has this one; should it lose it, it is compiled again.
        if let Some(table) = state.shown.as_mut().filter(|table| table.serial == after) {
            table.kept = Kept::Nothing;
        }
        // An older poll of the same node ends: its connection is dead, or soon will be.
        state.wake.send_modify(|count| *count = count.wrapping_add(1));
        (state.wake.subscribe(), state.poll_number)
    };
    server.tick();
    let deadline = Instant::now() + Duration::from_secs(POLL_SECS);
    let mut stopping = server.stopping.subscribe();
    loop {
        let new = {
            let live = server.live();
            let state = live.nodes.get(&id).ok_or_else(gone)?;
            let shown = state.shown.clone().filter(|table| table.serial > after);
            shown.filter(|_| !refuses(&live)).map(|table| (table, Arc::clone(&live.lives)))
        };
        if let Some((table, lives)) = new {
            let serial = table.serial;
            let document =
                table.document(server.incarnation.clone(), Arc::clone(&lives), id).await?;
            let mut live = server.live();
            let is_told = Arc::ptr_eq(&live.lives, &lives);
            let shown = live.nodes.get_mut(&id).and_then(|state| state.shown.as_mut());
            // Should the answer be lost, the next question gets the same bytes.
            if let Some(table) = shown.filter(|table| table.serial == serial && is_told) {
                table.kept = Kept::Document(document.clone());
            }
            drop(live);
            return answer(headers, document);
        }
        {
            let mut live = server.live();
            let refuses = refuses(&live);
            let state = live.nodes.get_mut(&id).ok_or_else(gone)?;
            let is_over =
                state.poll_number != number || *stopping.borrow() || Instant::now() >= deadline;
            if is_over && refuses {
                return Err(not_accepted());
            }
            if is_over {
                return Ok(StatusCode::NO_CONTENT.into_response());
            }
            if !refuses && let Some(errand) = state.errands.pop_front() {
                return Ok((StatusCode::ACCEPTED, Json(errand)).into_response());
            }
        }
        tokio::select! {
            changed = wake.changed() => if changed.is_err() { return Err(gone()); },
            _ = stopping.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
    }
}

/// The node brings news faster than tables should change.
fn restless() -> Refusal {
    Refusal::too_many(
        Problem::new(ProblemCode::Failed, "this node changes its endpoints too often")
            .why("each change makes new tables for others; one a second is enough")
            .fix("look at its network; it reports again by itself"),
    )
}

/// Nobody let the node follow this life of the server.
fn not_accepted() -> Refusal {
    Problem::new(ProblemCode::Conflict, "the server was restored, and nobody accepted that yet")
        .why("its tables may be older than the one in force")
        .fix("ovctl restore --accept")
        .into()
}

/// The node was deleted.
fn gone() -> Refusal {
    Problem::new(ProblemCode::Unauthorized, "this node was deleted")
        .why("an admin deleted it, or it left")
        .fix("join again with a new token: ovctl token create")
        .into()
}

/// A compressed document; unpacked for who does not say that it can do that.
fn answer(asked: &HeaderMap, document: Bytes) -> Result<Response, Refusal> {
    let json = (header::CONTENT_TYPE, "application/json");
    let takes = asked.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    if takes.is_some_and(|takes| takes.split([',', ';', ' ']).any(|name| name == gzip::NAME)) {
        return Ok(([json, (header::CONTENT_ENCODING, gzip::NAME)], document).into_response());
    }
    let plain = gzip::unpack(&document, usize::MAX)
        .map_err(|why| Problem::new(ProblemCode::Failed, "a table cannot be sent").why(why))?;
    Ok(([json], plain).into_response())
}

pub(super) async fn errand(
    State(server): Shared,
    Node(id): Node,
    Body(report): Body<ErrandReport>,
) -> StatusCode {
    server.errands().settle(id, report);
    StatusCode::NO_CONTENT
}

pub(super) async fn report(
    State(server): Shared,
    Node(id): Node,
    Asks(process): Asks,
    Body(report): Body<NodeReport>,
) -> Result<StatusCode, Refusal> {
    if let Some(process) = process {
        let live = server.live();
        let state = live.nodes.get(&id).ok_or_else(gone)?;
        if !state.speaker.may_speak(process.instance) {
            return Err(used_twice(&live, id));
        }
    }
    nodes::check_endpoints(&mut *server.store.read().await?, &report.endpoints).await?;
    let plain = |text: &str, max: usize| -> String {
        text.chars().filter(|c| !c.is_control()).take(max).collect()
    };
    let version = plain(&report.version, 40);
    if !report.guessed.is_empty() {
        server.live().note_guessed(id, &report.guessed);
        server.tick();
    }
    let (turn, held) = {
        let mut live = server.live();
        let world = Arc::clone(&live.world);
        let state = live.nodes.get_mut(&id).ok_or_else(gone)?;
        state.seen = Some(now());
        state.problems = report
            .problems
            .iter()
            .take(PROBLEMS_MAX)
            .map(|problem| plain(problem, PROBLEM_LEN_MAX))
            .collect();
        state.round_trips = report.round_trips;
        state.round_trips.truncate(ROUND_TRIPS_MAX);
        state.translated = report.translated;
        state.translated.truncate(ROUND_TRIPS_MAX);
        // Of overlays that it is not in it has nothing to say.
        let own = world.nodes.get(&id).map(|own| &own.addresses);
        state.holds_egress = report.holds_egress;
        state.holds_egress.retain(|overlay| own.is_some_and(|own| own.contains_key(overlay)));
        let held = world.nodes.get(&id).map(|own| state.measure(&world, own)).unwrap_or_default();
        let is_news =
            state.version != version || state.endpoints != report.endpoints || !held.is_empty();
        let turn = if is_news { Some(state.take_turn().ok_or_else(restless)?) } else { None };
        (turn, held)
    };
    if let Some(turn) = turn {
        tokio::time::sleep_until(turn).await;
        let gate = Arc::clone(&server.gate).lock_owned().await;
        let mut transaction = server.store.write().await?;
        let moved = nodes::report(&mut transaction, id, &report.endpoints, &version).await?;
        paths::hold(&mut transaction, id, &held).await?;
        if moved || !held.is_empty() {
            server.commit(transaction).await?;
            server.publish(Hold::Nobody).await?;
        } else {
            transaction.commit().await?;
        }
        if let Some(state) = server.live().nodes.get_mut(&id) {
            state.version = version;
            state.endpoints = report.endpoints;
        }
        drop(gate);
    }
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn leave(State(server): Shared, Node(id): Node) -> Result<StatusCode, Refusal> {
    let gate = Arc::clone(&server.gate).lock_owned().await;
    let mut transaction = server.store.write().await?;
    let done = joining::leave(&mut transaction, id, now()).await?;
    let revision = store::revision(&mut transaction).await?;
    let actor = format!("node {id}");
    audit::record(&mut transaction, revision, now(), &actor, &done).await?;
    server.commit(transaction).await?;
    server.publish(Hold::Nobody).await?;
    drop(gate);
    Ok(StatusCode::NO_CONTENT)
}

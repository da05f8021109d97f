//! Tests of the policy on the real path: tracers tell whether each holds (docs/adr/0012).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::json;

use super::{Answer, Body};
use crate::api::errand::TRACERS_MAX;
use crate::api::policy::{LiveQuestion, TestAnswer, TestFailure};
use crate::api::{Problem, ProblemCode};
use crate::control::auth::Admin;
use crate::control::policies::overlay_of;
use crate::control::rotation::name_of;
use crate::control::server::{Server, now};
use crate::control::tracers::{self, Flow, Outcome};
use crate::policy::{self, Scene, Test, TestResult, Trial, World, read_test_file, trial};
use crate::types::{ApiVersion, DropReason, Selector};

pub(super) async fn live_test(
    State(server): State<Arc<Server>>,
    admin: Admin,
    Body(question): Body<LiveQuestion>,
) -> Answer<TestAnswer> {
    let (world, policies) = {
        let live = server.live();
        (Arc::clone(&live.world), Arc::clone(&live.policies))
    };
    let overlay = overlay_of(&world, question.overlay.as_ref())?;
    let mut tests = policies.get(&overlay).map(|policy| policy.tests.clone()).unwrap_or_default();
    for file in &question.tests {
        tests.extend(read_test_file(&file.source, &file.text)?);
    }
    if tests.is_empty() && question.tests.is_empty() {
        return Err(Problem::new(ProblemCode::Usage, "there is no test")
            .why("neither --tests nor the policy in force has any")
            .fix("write {from: shop/web, to: shop/db, protocol: tcp, port: 5432, allow: true}")
            .into());
    }
    let scene = Scene::of(&world, overlay, now());
    let policy = policy::examine(&scene, &tests)?;
    let trials =
        tests.iter().map(|test| trial(&scene, test)).collect::<Result<Vec<Trial>, Problem>>()?;
    let flows: Vec<Flow> = trials.iter().flat_map(sent).collect();
    for flow in &flows {
        let [from, to] = [flow.from, flow.to].map(|id| Selector::Name(name_of(&world, id)));
        admin.may_change(&from, &to)?;
    }
    if flows.len() > TRACERS_MAX {
        return Err(Problem::new(ProblemCode::Usage, "there are too many tests")
            .why(format!("they take {} packets, and at most {TRACERS_MAX} are sent", flows.len()))
            .fix("ask for a port where a test asks for a whole protocol; or test in parts")
            .into());
    }
    let _turn = server.tracing.try_lock().map_err(|_| {
        Problem::new(ProblemCode::Conflict, "another live test is running")
            .why("one runs at a time")
            .fix("try again in a few seconds")
    })?;
    tracing::info!(actor = %admin.actor, tests = tests.len(), packets = flows.len(), "live test");
    let outcomes = tracers::trace(&server, overlay, &flows).await;
    let mut outcomes = flows.into_iter().zip(outcomes);
    let mut report = Report::default();
    for ((test, said), trial) in tests.iter().zip(&policy.results).zip(&trials) {
        match trial {
            Trial::Impossible(why) => report.skip(test, said, why),
            Trial::Flows { flows, .. } => {
                let theirs: Vec<_> = outcomes.by_ref().take(flows.len()).collect();
                report.add(&world, test, said, &theirs);
            }
        }
    }
    Ok(Json(report.answer()))
}

fn sent(trial: &Trial) -> Vec<Flow> {
    match trial {
        Trial::Impossible(_) => Vec::new(),
        Trial::Flows { from, to, flows } => flows
            .iter()
            .map(|(protocol, port)| Flow { from: *from, to: *to, protocol: *protocol, port: *port })
            .collect(),
    }
}

/// Results in the order of the tests.
#[derive(Default)]
struct Report {
    results: Vec<serde_json::Value>,
    passed: u64,
    failures: Vec<TestFailure>,
    skipped: Vec<TestFailure>,
}

impl Report {
    fn skip(&mut self, test: &Test, said: &TestResult, why: &str) {
        self.result(said, None, "skipped", (None, None));
        self.skipped.push(TestFailure { what: asked(test), why: why.to_owned() });
    }

    fn add(&mut self, world: &World, test: &Test, said: &TestResult, tried: &[(Flow, Outcome)]) {
        let is = |wanted: fn(&Outcome) -> bool| tried.iter().find(|(_, outcome)| wanted(outcome));
        let delivered = is(|outcome| *outcome == Outcome::Delivered);
        let unclear = is(|outcome| matches!(outcome, Outcome::Lost(_) | Outcome::Unsent(_)));
        let allowed = match (delivered, unclear) {
            (Some(_), _) => Some(true),
            (None, Some(_)) => None,
            (None, None) => Some(false),
        };
        let Some(decisive) = delivered.or(unclear).or(tried.first()) else { return };
        let told = match &decisive.1 {
            Outcome::Refused(by, reason) => (Some(*by), Some(reason.as_str())),
            Outcome::Lost(last) => (*last, None),
            Outcome::Delivered | Outcome::Unsent(_) => (None, None),
        };
        let by = told.0.map(|by| name_of(world, by).to_string());
        self.result(said, allowed, word(&decisive.1), (by, told.1));
        if allowed == Some(test.expected) {
            self.passed += 1;
            return;
        }
        let must = if test.expected { "must be allowed" } else { "must be denied" };
        let why = format!("{}; by the policy: {}", happened(world, decisive), said.why);
        self.failures.push(TestFailure { what: format!("{} {must}", asked(test)), why });
    }

    fn result(
        &mut self,
        said: &TestResult,
        allowed: Option<bool>,
        outcome: &str,
        (by, reason): (Option<String>, Option<&str>),
    ) {
        self.results.push(json!({
            "from": said.from, "to": said.to, "protocol": said.protocol, "port": said.port,
            "expected": said.expected, "allowed": allowed, "rule": said.rule,
            "outcome": outcome, "by": by, "reason": reason,
        }));
    }

    fn answer(self) -> TestAnswer {
        let examination = json!({
            "apiVersion": ApiVersion::V1, "results": self.results, "passed": self.passed,
            "failed": self.failures.len(), "skipped": self.skipped.len(),
        });
        TestAnswer { examination, failures: self.failures, skipped: self.skipped }
    }
}

fn asked(test: &Test) -> String {
    let what = test.service.as_ref().map_or_else(|| "anything".to_owned(), ToString::to_string);
    format!("{}: {} → {} {what}", test.place, test.from, test.to)
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Delivered => "delivered",
        Outcome::Refused(..) => "refused",
        Outcome::Lost(_) => "lost",
        Outcome::Unsent(_) => "not-sent",
    }
}

/// What became of a packet, in words.
fn happened(world: &World, (flow, outcome): &(Flow, Outcome)) -> String {
    let what = service(flow);
    match outcome {
        Outcome::Delivered => format!("{what} reached {}", name_of(world, flow.to)),
        Outcome::Refused(by, reason) => {
            let why = DropReason::named(reason).map_or("", DropReason::explanation);
            format!("{} refused {what}: {reason} ({why})", name_of(world, *by))
        }
        Outcome::Lost(None) => format!("{what} was not seen anywhere"),
        Outcome::Lost(Some(last)) => {
            format!("{what} passed {} and was not seen again", name_of(world, *last))
        }
        Outcome::Unsent(why) => format!("not tested: {why}"),
    }
}

fn service(flow: &Flow) -> String {
    match flow.protocol {
        6 => format!("tcp/{}", flow.port),
        17 => format!("udp/{}", flow.port),
        132 => format!("sctp/{}", flow.port),
        _ => "icmp".to_owned(),
    }
}

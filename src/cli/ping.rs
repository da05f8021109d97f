//! `ovd ping`: whether a member answers by the way that packets take, and who refused where it does not.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;

use super::Outcome;
use super::args::{Format, PingArgs};
use super::client::{Answer, Client};
use super::local_why::{peer, whom_to_ask};
use super::output::{Output, micros};
use crate::api::local::{Denial, DenialList, LocalWhy};
use crate::api::why::{StageName, StageState};
use crate::api::{Problem, ProblemCode};
use crate::types::{DropReason, Protocol, Service, Timestamp};

/// What came of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The peer answered after this time.
    Answer(Duration),
    /// Somebody refused it after this time: the peer, where nobody listens on the port, or policy.
    Refusal(Duration, String),
    /// Nothing, in the time that an answer may take.
    None,
}

/// What came of all requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    sent: u32,
    took: Vec<Duration>,
    denied: Option<Denial>,
}

/// Does what `ovd ping` asks; `ask` sends one request when it is time and waits for what comes of it.
///
/// # Errors
///
/// What the daemon says; unreachable when it does not answer; `Usage` for a service that cannot be asked;
/// what keeps `ask` from sending.
pub async fn run(
    output: &mut Output,
    args: &PingArgs,
    mut ask: impl AsyncFnMut(IpAddr, Option<u16>) -> Result<Reply, Problem>,
) -> Result<Outcome, Problem> {
    let port = port(&args.port)?;
    let client = Client::to_daemon("ovd", args.socket.as_deref())?;
    let query = [("peer", args.peer.clone()), ("service", args.port.to_string())];
    let why: LocalWhy = client.read("/v1/why", &query).await.map(|answer| answer.value)?;
    if let Some(stage) = why.stages.iter().find(|stage| stage.state == StageState::Denied) {
        return refuse(output, args, &why, &stage.text);
    }
    let is_table = output.format() == Format::Table;
    if is_table {
        output.line(format!("{} {}, by {}", peer(&why), args.port, way(&why)));
    }
    let begun = output.now();
    let mut tally = Tally::default();
    while tally.sent < args.count && tally.denied.is_none() {
        tally.sent += 1;
        let mut reply = ask(why.address, port).await?;
        if let Reply::Refusal(took, _) = reply {
            tally.denied = denial(&client, &why, &args.port, begun).await?;
            if tally.denied.is_none() && port.is_some() {
                // The peer's own reset: it is there, and packets pass both ways.
                reply = Reply::Answer(took);
            }
        }
        if let Reply::Answer(took) = reply {
            tally.took.push(took);
        }
        if is_table {
            output.line(line(tally.sent, &reply, tally.denied.as_ref()));
        }
    }
    if tally.took.is_empty() && tally.denied.is_none() {
        tally.denied = denial(&client, &why, &args.port, begun).await?;
    }
    match output.format() {
        Format::Table => {
            output.line(summary(&tally));
            if tally.took.is_empty() {
                output.note(whom_to_ask(&why));
            }
        }
        Format::Json => output.json(&document(args, &why, &tally)),
        Format::Name => output.line(word(&tally)),
    }
    Ok(match (&tally.denied, tally.took.is_empty()) {
        (Some(_), _) => Outcome::Denied,
        (None, true) => Outcome::NotSo,
        (None, false) => Outcome::Done,
    })
}

/// The TCP port to open; none where ICMP asks.
fn port(service: &Service) -> Result<Option<u16>, Problem> {
    match service {
        Service::Protocol(Protocol::Icmp) => Ok(None),
        Service::Ports(Protocol::Tcp, range) if range.first == range.last => Ok(Some(range.first)),
        Service::Protocol(_) | Service::Ports(..) | Service::Named(..) => Err(Problem::new(
            ProblemCode::Usage,
            format!("{service} cannot be asked for an answer"),
        )
        .why("only ICMP echo and a TCP port answer whoever asks")
        .fix("give -p icmp or one port such as -p tcp/443; ovd why tells what becomes of others")),
    }
}

/// This machine refuses it by itself: nothing needs to be sent.
fn refuse(
    output: &mut Output,
    args: &PingArgs,
    why: &LocalWhy,
    text: &str,
) -> Result<Outcome, Problem> {
    match output.format() {
        Format::Table => {
            output.line(format!("{} {}: refused here: {text}", peer(why), args.port));
            output.note(whom_to_ask(why));
        }
        Format::Json => {
            let mut document = document(args, why, &Tally::default());
            document["refused"] = json!(text);
            output.json(&document);
        }
        Format::Name => output.line("refused"),
    }
    Ok(Outcome::Denied)
}

/// What of it was refused since `begun`.
async fn denial(
    client: &Client,
    why: &LocalWhy,
    service: &Service,
    begun: Timestamp,
) -> Result<Option<Denial>, Problem> {
    let list: Answer<DenialList> = client.read("/v1/denied", &[]).await?;
    let service = service.to_string();
    Ok(list.value.items.into_iter().find(|denial| {
        denial.destination == why.address && denial.service == service && denial.last >= begun
    }))
}

fn way(why: &LocalWhy) -> &str {
    let stage = why.stages.iter().find(|stage| stage.stage == StageName::Path);
    stage.map_or("an unknown way", |stage| stage.text.as_str())
}

fn line(at: u32, reply: &Reply, denied: Option<&Denial>) -> String {
    match (reply, denied) {
        (Reply::Answer(took), _) => format!("  {at}  answered after {}", micros(in_micros(*took))),
        (Reply::None, _) => format!("  {at}  no answer"),
        (Reply::Refusal(..), Some(denied)) => {
            let reason = DropReason::named(&denied.reason);
            let reason = reason.map_or(denied.reason.as_str(), |reason| reason.explanation());
            format!("  {at}  refused by {}: {reason}", denied.by.name())
        }
        (Reply::Refusal(_, why), None) => format!("  {at}  no answer: {why}"),
    }
}

fn summary(tally: &Tally) -> String {
    let mut text = format!("{} sent, {} answered", tally.sent, tally.took.len());
    if let Some([low, middle, high]) = spread(tally) {
        let [low, middle, high] = [low, middle, high].map(micros);
        text.push_str(&format!(": {low} at least, {middle} in the middle, {high} at most"));
    }
    text
}

/// Least, median and most microseconds; none without an answer.
fn spread(tally: &Tally) -> Option<[u64; 3]> {
    let mut took: Vec<u64> = tally.took.iter().copied().map(in_micros).collect();
    took.sort_unstable();
    Some([*took.first()?, *took.get(took.len() / 2)?, *took.last()?])
}

fn in_micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

fn word(tally: &Tally) -> &'static str {
    match (&tally.denied, tally.took.is_empty()) {
        (Some(_), _) => "refused",
        (None, true) => "silent",
        (None, false) => "answers",
    }
}

fn document(args: &PingArgs, why: &LocalWhy, tally: &Tally) -> serde_json::Value {
    let spread =
        spread(tally).map(|[low, middle, high]| json!({"min": low, "median": middle, "max": high}));
    json!({
        "apiVersion": "ovmesh/v1",
        "overlay": why.overlay,
        "peer": why.peer,
        "address": why.address,
        "service": args.port,
        "path": way(why),
        "sent": tally.sent,
        "answered": tally.took.len(),
        "roundTripMicros": spread,
        "denied": tally.denied,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_answers_whoever_asks_can_be_asked() {
        assert_eq!(port(&"icmp".parse().unwrap()), Ok(None));
        assert_eq!(port(&"tcp/443".parse().unwrap()), Ok(Some(443)));
        for service in ["tcp", "tcp/1-2", "udp/53", "tcp/http", "47"] {
            let problem = port(&service.parse().unwrap()).unwrap_err();
            assert!(problem.what.contains(service) && problem.fix.contains("ovd why"), "{problem}");
        }
    }

    #[test]
    fn what_came_of_it_is_said_in_words() {
        let millis = Duration::from_millis;
        let tally = Tally { sent: 4, took: vec![millis(3), millis(1), millis(9)], denied: None };
        assert_eq!(
            summary(&tally),
            "4 sent, 3 answered: 1.0 ms at least, 3.0 ms in the middle, 9.0 ms at most"
        );
        assert_eq!(summary(&Tally { sent: 2, ..Tally::default() }), "2 sent, 0 answered");
        assert_eq!(word(&tally), "answers");

        let denial = Denial::of_tests();
        let refusal = Reply::Refusal(millis(1), "No route to host".to_owned());
        assert_eq!(line(1, &refusal, Some(&denial)), "  1  refused by sap: no rule allows it");
        assert_eq!(line(2, &refusal, None), "  2  no answer: No route to host");
        assert_eq!(line(3, &Reply::None, None), "  3  no answer");
    }
}

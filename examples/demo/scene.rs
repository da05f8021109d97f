//! Plays Figure 1: sets it up, sends the requests of every ordered pair, judges what came of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::fleet::{Binaries, Fleet, parse};
use crate::table::{self, Row};
use crate::world::{Process, World, poll};

/// The IPv4 overlay of the services.
const SERVICES: &str = "services";
/// The IPv6 overlay of S1 and the end user.
const USERS: &str = "users";
const SAP: &str = "sap-1";
/// Where every machine's HTTP server listens.
const PORT: u16 = 8080;
/// Requests of a pair, as in Table II ("at least 30 samples").
const REQUESTS: u32 = 30;

/// Who is in which overlays; S1 is in both.
const ENTITIES: &[(&str, &[&str])] =
    &[("s1", &[SERVICES, USERS]), ("s2", &[SERVICES]), ("s3", &[SERVICES]), ("user", &[USERS])];

/// How two machines reach one another in Table I.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Direct,
    BySap,
    Denied,
}

/// Table I, as unordered pairs; whatever is not listed is denied.
const TABLE_1: &[(&str, &str, Expected)] = &[
    ("s1", "s2", Expected::Direct),
    ("s1", "s3", Expected::BySap),
    ("user", "s1", Expected::BySap),
];

fn expected(from: &str, to: &str) -> Expected {
    let row = TABLE_1.iter().find(|row| [(row.0, row.1), (row.1, row.0)].contains(&(from, to)));
    row.map_or(Expected::Denied, |row| row.2)
}

/// Plays the demo; returns whether everything was as Table I says.
pub(crate) fn play(binaries: &Binaries) -> Result<bool> {
    println!("Figure 1: a server, a SaP, three services and a user, each in a network namespace");
    let world = World::new()?;
    let mut fleet = Fleet::start(&world, binaries)?;
    println!("  server is up");
    set_up(&mut fleet)?;
    let _servers = start_http_servers(&fleet)?;
    println!("\n{REQUESTS} HTTP requests for each ordered pair, a connection each:\n");

    let names: Vec<_> = ENTITIES.iter().map(|(name, _)| *name).collect();
    let mut rows = Vec::new();
    for from in &names {
        for to in names.iter().filter(|to| *to != from) {
            rows.push(try_pair(&fleet, from, to)?);
        }
    }

    table::print(&rows);
    for row in rows.iter().filter(|row| !row.why.is_empty()) {
        println!("{} -> {}  {}", row.from, row.to, row.why);
    }
    let differing = rows.iter().filter(|row| row.differs()).count();
    println!("\n{} of {} ordered pairs as Table I says", rows.len() - differing, rows.len());
    Ok(differing == 0)
}

/// Overlays, SaP, entities, and Table I as policy.
fn set_up(fleet: &mut Fleet) -> Result<()> {
    fleet.ovctl_ok(&["overlay", "create", SERVICES])?;
    fleet.ovctl_ok(&["overlay", "create", USERS, "--cidr", "fd70:6f76:6d65::/64"])?;
    fleet.sap(SAP, &[SERVICES, USERS])?;
    println!("  {SAP} joined");
    for (name, overlays) in ENTITIES {
        fleet.entity(name, overlays)?;
        println!("  {name} joined {}", overlays.join(" and "));
    }
    println!("\nTable I as policy:");
    for (from, to, expected) in TABLE_1 {
        let overlay = if [*from, *to].contains(&"user") { USERS } else { SERVICES };
        let mut rule = vec!["policy", "allow", from, to, "--both", "--overlay", overlay];
        if *expected == Expected::Direct {
            rule.push("--direct");
        }
        println!("  ovctl {}", rule.join(" "));
        // Waits until the nodes concerned enforce it.
        fleet.ovctl_ok(&rule)?;
    }
    Ok(())
}

fn start_http_servers(fleet: &Fleet) -> Result<Vec<Process>> {
    let listen = format!("[::]:{PORT}");
    ENTITIES
        .iter()
        .map(|(name, _)| fleet.netkit_spawn(name, "http-echo", &["http-echo", &listen, name]))
        .collect()
}

/// The overlay that two entities share, if any.
fn shared_overlay(from: &str, to: &str) -> Option<&'static str> {
    let overlays: BTreeMap<_, _> = ENTITIES.iter().copied().collect();
    let theirs = overlays.get(to)?;
    overlays.get(from)?.iter().copied().find(|overlay| theirs.contains(overlay))
}

/// Sends the requests of one ordered pair and judges them.
///
/// The path is told from the SaP's counter of forwarded packets, which the two ends cannot know:
/// by the SaP, each request costs it at least four packets; directly, none at all.
fn try_pair(fleet: &Fleet, from: &str, to: &str) -> Result<Row> {
    let expected = expected(from, to);
    let shared = shared_overlay(from, to);
    // Without a shared overlay the sender can only try the address that the other has elsewhere.
    let overlay = match (shared, to) {
        (Some(overlay), _) => overlay,
        (None, "user") => USERS,
        (None, _) => SERVICES,
    };
    let target = SocketAddr::new(fleet.address(to, overlay)?, PORT).to_string();
    let (count, timeout_ms) =
        if expected == Expected::Denied { (2, 500) } else { (REQUESTS, 2000) };
    if expected != Expected::Denied {
        // The first packets of a pair derive its keys; Table II is about those that follow.
        fleet.netkit_json(from, &["http-get", &target, "3", "2000"])?;
    }

    let before = settled_transit(fleet)?;
    let (count, timeout) = (count.to_string(), timeout_ms.to_string());
    let answer = fleet.netkit_json(from, &["http-get", &target, &count, &timeout])?;
    let carried = settled_transit(fleet)? - before;

    let (sent, ok) = (number(&answer["sent"]), number(&answer["ok"]));
    let path = match (ok, carried) {
        (0, _) => "-",
        (_, 0) => "direct",
        (ok, carried) if carried >= ok * 4 => SAP,
        (_, _) => "mixed",
    };
    let seen = match ok {
        0 => "denied".to_owned(),
        ok if ok == sent => "allowed".to_owned(),
        ok => format!("{ok} of {sent}"),
    };
    let (expected_seen, expected_path) = match expected {
        Expected::Direct => ("allowed", "direct"),
        Expected::BySap => ("allowed", SAP),
        Expected::Denied => ("denied", "-"),
    };
    let mut row = Row {
        from: from.to_owned(),
        to: to.to_owned(),
        expected: format!("{expected_seen}, {expected_path}"),
        seen: format!("{seen}, {path}"),
        carried,
        median_ms: median_ms(&answer["micros"]),
        why: String::new(),
        problem: String::new(),
    };
    if ok > 0 {
        let source = fleet.address(from, overlay)?;
        let wanted = format!("{to} sees {source}");
        if answer["body"] != wanted.as_str() {
            row.problem = format!("the answer was {}, not \"{wanted}\"", answer["body"]);
        }
    }
    if ok < sent {
        row.why = why_denied(fleet, from, to, shared)?;
        if expected != Expected::Denied {
            row.problem = format!("requests failed: {}", answer["error"]);
        }
    }
    Ok(row)
}

/// Why the server says that a pair is denied, in its words.
fn why_denied(fleet: &Fleet, from: &str, to: &str, shared: Option<&str>) -> Result<String> {
    let Some(overlay) = shared else {
        let overlays: BTreeMap<_, _> = ENTITIES.iter().copied().collect();
        let list = |name: &str| overlays.get(name).map_or(String::new(), |all| all.join(" and "));
        return Ok(format!(
            "they share no overlay: {from} is in {}, {to} in {}",
            list(from),
            list(to)
        ));
    };
    let port = format!("tcp/{PORT}");
    let question = ["policy", "can", from, to, "-p", &port, "--overlay", overlay, "-o", "json"];
    let answer = fleet.ovctl(&question)?;
    if answer.code == 0 {
        return Ok("the policy allows it, so something else is in the way".to_owned());
    }
    let verdict = parse(&answer.stdout).with_context(|| answer.stderr.clone())?;
    let mut why = verdict["why"].as_str().unwrap_or_default().to_owned();
    if let Some(nearest) = verdict["nearest"].get(0) {
        let field = |name: &str| nearest[name].as_str().unwrap_or_default().to_owned();
        why = format!("{why}; nearest: {} ({})", field("text"), field("differs"));
    }
    Ok(why)
}

/// Packets that the SaP has forwarded, once they have stopped growing: the last segments of a
/// connection may still be under way when its request is done.
fn settled_transit(fleet: &Fleet) -> Result<u64> {
    let mut last = None;
    poll(Duration::from_secs(5), "the SaP's counters to come to rest", || {
        let now = fleet.node(SAP)?.packets("transit")?;
        Ok((last.replace(now) == Some(now)).then_some(now))
    })
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn median_ms(micros: &Value) -> Option<f64> {
    let mut micros: Vec<f64> = micros.as_array()?.iter().filter_map(Value::as_f64).collect();
    micros.sort_by(f64::total_cmp);
    let middle = micros.len() / 2;
    let median = match micros.len() {
        0 => return None,
        length if length % 2 == 1 => micros[middle],
        _ => (micros[middle - 1] + micros[middle]) / 2.0,
    };
    Some(median / 1000.0)
}

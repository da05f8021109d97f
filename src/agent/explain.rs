//! `ovd why`: what this machine knows of a flow that its host would start, with the server away too.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::api::local::{Denial, LocalQuestion, LocalWhy, SapStatus, TableStatus};
use crate::api::why::{Stage, StageName, StageState};
use crate::api::{Problem, ProblemCode};
use crate::forward::{Explanation, Row, Ruling, Snapshot, Way};
use crate::types::{ApiVersion, EntityName, NodeId, Service, Timestamp};

/// What is known beside the snapshot in force.
#[derive(Debug)]
pub struct Known<'a> {
    /// Who this node is.
    pub name: &'a EntityName,
    /// Who bears which address.
    pub names: &'a BTreeMap<IpAddr, EntityName>,
    /// The SaPs, as probes found them.
    pub saps: &'a [SapStatus],
    /// The table that the snapshot is of.
    pub table: Option<&'a TableStatus>,
    /// What this host was refused lately, newest first.
    pub denials: Vec<Denial>,
    /// The time.
    pub now: Timestamp,
}

/// Answers `question`.
///
/// # Errors
///
/// `NotFound` for a peer that this node's tables do not name, or that is in no overlay of this node;
/// `Usage` for this node itself, and for ports by name, which only the server can resolve.
pub fn explain(
    snapshot: &Snapshot,
    known: &Known<'_>,
    question: &LocalQuestion,
) -> Result<LocalWhy, Problem> {
    let address = address(known, &question.peer)?;
    let asked = question.service.as_ref().map(|service| asked(service, address)).transpose()?;
    let found = snapshot.explain(address, asked, known.now).ok_or_else(|| {
        Problem::new(ProblemCode::NotFound, format!("{address} is in no overlay of this machine"))
            .why("packets for it take other ways, and ovmesh does not judge them")
            .fix("ovd status lists the overlays and their ranges")
    })?;
    if found.is_own {
        return Err(Problem::new(ProblemCode::Usage, format!("{address} is this machine itself"))
            .why("packets of a host to itself never enter the overlay")
            .fix("name another member"));
    }
    let stages = stages(snapshot, known, &found, address, question);
    let stops = |stage: &Stage| matches!(stage.state, StageState::Denied | StageState::Broken);
    let overlay = snapshot.overlays().nth(found.overlay);
    let is_about = |denial: &Denial| {
        denial.destination == address
            && question.service.as_ref().is_none_or(|one| one.to_string() == denial.service)
    };
    Ok(LocalWhy {
        api_version: ApiVersion::V1,
        passes: !stages.iter().any(stops),
        overlay: overlay.map(|overlay| overlay.name.clone()).unwrap_or_default(),
        from: known.name.clone(),
        address,
        peer: known.names.get(&address).cloned(),
        service: question.service.clone(),
        revision: known.table.map(|table| table.revision).unwrap_or_default(),
        stages,
        denied: known.denials.iter().filter(|denial| is_about(denial)).cloned().collect(),
    })
}

/// The address that a text means: itself, or that of the only member of this name.
fn address(known: &Known<'_>, peer: &str) -> Result<IpAddr, Problem> {
    if let Ok(address) = peer.strip_prefix("ip:").unwrap_or(peer).parse() {
        return Ok(address);
    }
    let named = known.names.iter().filter(|(_, name)| name.to_string() == peer);
    let found: Vec<IpAddr> = named.map(|(address, _)| *address).collect();
    match found[..] {
        [only] => Ok(only),
        [] => Err(Problem::new(
            ProblemCode::NotFound,
            format!("this machine's table names no {peer}"),
        )
        .why("a table names whom the rules let this machine talk to, and nobody else")
        .fix(format!("ask the server: ovctl why {} {peer}; or give an address", known.name))),
        _ => {
            let all: Vec<String> = found.iter().map(IpAddr::to_string).collect();
            Err(Problem::new(ProblemCode::Conflict, format!("{peer} has several addresses"))
                .why(all.join(", "))
                .fix("give one of them"))
        }
    }
}

fn asked(service: &Service, to: IpAddr) -> Result<(u8, Option<u16>), Problem> {
    let number = service.protocol().number(to.is_ipv6());
    match service {
        Service::Protocol(_) => Ok((number, None)),
        Service::Ports(_, range) if range.first == range.last => Ok((number, Some(range.first))),
        Service::Ports(..) | Service::Named(..) => {
            Err(Problem::new(ProblemCode::Usage, format!("{service} is not one port"))
                .why("tables have numbers alone, and each port may have another answer")
                .fix("ask for a number, such as tcp/443"))
        }
    }
}

fn stages(
    snapshot: &Snapshot,
    known: &Known<'_>,
    found: &Explanation,
    address: IpAddr,
    question: &LocalQuestion,
) -> Vec<Stage> {
    let peer = known.names.get(&address).map_or_else(|| address.to_string(), ToString::to_string);
    let overlay = snapshot.overlays().nth(found.overlay);
    let overlay = overlay.map(|overlay| overlay.name.to_string()).unwrap_or_default();
    let stage = |stage, state, text: String| Stage { stage, state, text };
    let Some(row) = &found.row else {
        let text = format!(
            "this machine's table of {overlay} has no row for {address}: no rule lets the two talk, \
             or nobody bears it"
        );
        return vec![stage(StageName::Membership, StageState::Denied, text)];
    };
    let membership = format!("{} and {peer} are members of {overlay}", known.name);
    let (path, text) = path(known, row, &peer);
    let mut stages = vec![
        stage(StageName::Membership, StageState::Ok, membership),
        stage(StageName::Path, path, text),
    ];
    stages.push(match row.has_key {
        true => stage(StageName::Key, StageState::Ok, format!("there is a key for {peer}")),
        false => stage(StageName::Key, StageState::Denied, format!("there is no key for {peer}")),
    });
    let what = question.service.as_ref().map(ToString::to_string).unwrap_or_default();
    let (rules, text) = match row.ruling {
        None => (StageState::Unsure, "ask about a service: -p tcp/443".to_owned()),
        Some(Ruling::Allowed(Some(rule))) => (StageState::Ok, format!("{rule} allows {what}")),
        Some(Ruling::Allowed(None)) => {
            (StageState::Ok, format!("nothing speaks of {what}, and unspoken traffic is open"))
        }
        Some(Ruling::Audited(rule)) => {
            (StageState::Unsure, format!("{what} passes for audit alone ({rule}), and is recorded"))
        }
        Some(Ruling::Refused(Some(rule))) => (StageState::Denied, format!("{rule} refuses {what}")),
        Some(Ruling::Refused(None)) => {
            (StageState::Denied, format!("no rule allows {what}; default deny"))
        }
    };
    stages.push(stage(StageName::Rules, rules, text));
    stages
}

fn path(known: &Known<'_>, row: &Row, peer: &str) -> (StageState, String) {
    let name = |id: &NodeId| {
        let sap = known.saps.iter().find(|sap| sap.id == *id);
        sap.map_or_else(|| id.to_string(), |sap| sap.name.clone())
    };
    // SaPs behind the first are not probed from here.
    let answers = |id: &NodeId| {
        let sap = known.saps.iter().find(|sap| sap.id == *id);
        sap.is_none_or(|sap| sap.alive)
    };
    let chain = |saps: &[NodeId]| saps.iter().map(name).collect::<Vec<_>>().join(" → ");
    match &row.way {
        Way::Nowhere => (StageState::Broken, "no SaP serves the overlay".to_owned()),
        Way::Direct(None) => (StageState::Broken, format!("direct, and {peer} has no endpoint")),
        Way::Direct(Some(endpoint)) => (StageState::Ok, format!("direct, to {endpoint}")),
        Way::Via(saps) => match saps.first() {
            Some(first) if !answers(first) => (
                StageState::Broken,
                format!("{}, but {} does not answer", chain(saps), name(first)),
            ),
            Some(_) | None => (StageState::Ok, format!("{} → {peer}", chain(saps))),
        },
        Way::AnyOf { saps, takes } => match takes.as_ref().filter(|sap| answers(sap)) {
            Some(sap) => (StageState::Ok, format!("{} → {peer}", name(sap))),
            None => {
                let all = saps.iter().map(name).collect::<Vec<_>>().join(", ");
                (StageState::Broken, format!("none of {all} answers"))
            }
        },
    }
}

//! `ovd status` and `ovsap status`: what the daemon on this host does, and the checks that scripts
//! and probes ask for.

use std::time::{Duration, Instant};

use super::args::{Check, Format, NodeStatusArgs};
use super::client::{Answer, Client};
use super::output::{Output, Table, counted, micros, relative, span};
use super::{Outcome, guard};
use crate::api::Problem;
use crate::api::local::{NamesStatus, NodeStatus};
use crate::types::{DnsHook, DropReason, HumanDuration, NodeKind, Timestamp};

/// How often `--check` asks while it waits.
const CHECK_PAUSE: Duration = Duration::from_millis(200);

/// Does what `ovd status` (`program` is `ovd`) or `ovsap status` asks.
///
/// # Errors
///
/// Unreachable when the daemon does not answer.
pub async fn run(
    program: &'static str,
    output: &mut Output,
    args: &NodeStatusArgs,
) -> Result<Outcome, Problem> {
    let client = Client::to_daemon(program, args.socket.as_deref())?;
    if let Some(check) = args.check {
        return wait_for(&client, output, check, args.wait).await;
    }
    let answer: Answer<NodeStatus> = client.read("/v1/status", &[]).await?;
    let status = &answer.value;
    match output.format() {
        Format::Json => output.json(&answer.document),
        Format::Name => output.line(status.name.to_string()),
        Format::Table => {
            let now = output.now();
            for line in lines(program, status, now) {
                output.line(line);
            }
        }
    }
    Ok(Outcome::Done)
}

/// Asks until `check` holds or the time is over; once, when there is none.
async fn wait_for(
    client: &Client,
    output: &mut Output,
    check: Check,
    wait: Option<HumanDuration>,
) -> Result<Outcome, Problem> {
    let deadline = wait.map(|wait| Instant::now() + wait.0);
    loop {
        let answer = client.read::<NodeStatus>("/v1/status", &[]).await;
        let faults = answer.map(|answer| faults(&answer.value, check));
        if matches!(&faults, Ok(faults) if faults.is_empty()) {
            return Ok(Outcome::Done);
        }
        if deadline.is_none_or(|deadline| Instant::now() >= deadline) {
            for fault in faults? {
                output.note(fault);
            }
            return Ok(Outcome::NotSo);
        }
        tokio::time::sleep(CHECK_PAUSE).await;
    }
}

/// Why `check` does not hold; empty when it does.
fn faults(status: &NodeStatus, check: Check) -> Vec<String> {
    let mut faults = Vec::new();
    match check {
        // It answered.
        Check::Live => {}
        Check::Ready => {
            if status.table.is_none() {
                faults.push("not ready: no table yet".to_owned());
            }
            if status.kind == NodeKind::Entity {
                for overlay in status.overlays.iter().filter(|overlay| overlay.device.is_none()) {
                    faults.push(format!("not ready: overlay {} has no TUN device", overlay.name));
                }
                // Without any SaP on its list an entity has direct pairs or none.
                if !status.saps.is_empty() && !status.saps.iter().any(|sap| sap.alive) {
                    let count = counted(status.saps.len() as u64, "SaP");
                    faults.push(format!("not ready: none of {count} answers"));
                }
            }
        }
        Check::Synced => {
            if !status.server.reachable {
                let why = status.server.error.as_deref().unwrap_or("no answer");
                faults.push(format!("not synced: {} is not reachable: {why}", status.server.url));
            }
            match &status.table {
                None => faults.push("not synced: no table yet".to_owned()),
                Some(table) if table.from_disk => faults.push(format!(
                    "not synced: revision {} comes from disk, the server has not confirmed it",
                    table.revision
                )),
                Some(_) => {}
            }
        }
    }
    faults
}

fn lines(program: &str, status: &NodeStatus, now: Timestamp) -> Vec<String> {
    let state = match (status.table.is_some(), status.server.reachable) {
        (true, true) => "connected",
        (true, false) => "running without the server",
        (false, _) => "waiting for its first table",
    };
    let up = span(now.0.saturating_sub(status.started.0));
    let mut lines = vec![
        format!("{program} {}  {state}, up {up}   {} {}", status.version, status.kind, status.name),
        server_line(status, now),
        table_line(status, now),
        format!(
            "receives  {}",
            status.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        ),
    ];
    lines.extend(status.guard.as_ref().map(guard::summary));
    lines.extend(status.names.as_ref().map(names_line));
    lines.extend(section(&overlay_table(status)));
    lines.extend(section(&sap_table(status)));
    lines.extend(section(&narrow_table(status)));
    lines.extend(section(&packet_table(status)));
    lines.extend(section(&drop_table(status)));
    if let Some(guard) = &status.guard {
        lines.extend(section(&guard::rules(guard)));
    }
    if status.denied > 0 {
        let count = counted(status.denied, "opening packet");
        lines.push(String::new());
        lines.push(format!("denied    {count} of this host in the last 10m: {program} denied"));
    }
    if !status.problems.is_empty() {
        lines.push(String::new());
        lines.extend(status.problems.iter().map(|problem| format!("! {problem}")));
    }
    lines
}

fn names_line(names: &NamesStatus) -> String {
    let listed = |items: Vec<String>| items.join(" ");
    let at = listed(names.listeners.iter().map(ToString::to_string).collect());
    let how = match names.hook {
        DnsHook::Auto | DnsHook::Off => "programs ask there by themselves".to_owned(),
        DnsHook::Resolved => "systemd-resolved asks there".to_owned(),
        DnsHook::Redirect => {
            let servers = names.redirected.iter().map(ToString::to_string).collect();
            format!("instead of {}", listed(servers))
        }
    };
    format!("names     {at}, {how}")
}

fn server_line(status: &NodeStatus, now: Timestamp) -> String {
    let server = &status.server;
    let since = span(now.0.saturating_sub(server.since.0));
    if server.reachable {
        return format!("server    {}   reachable for {since}", server.url);
    }
    let why = server.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    format!("server    {}   not reachable for {since}{why}", server.url)
}

/// What is in force, and what that means while the server is away.
fn table_line(status: &NodeStatus, now: Timestamp) -> String {
    let Some(table) = &status.table else {
        return "table     none: nothing may talk".to_owned();
    };
    let applied = relative(table.applied, now);
    let mut line = format!(
        "table     revision {}, serial {}, applied {applied}",
        table.revision, table.serial
    );
    if table.from_disk {
        line.push_str("; from disk, not yet confirmed by the server");
    }
    if !status.server.reachable {
        line.push_str("; flows it allows work, joins and changes wait for the server");
    }
    line
}

fn section(table: &Table) -> Vec<String> {
    let lines = table.lines();
    if lines.is_empty() {
        return lines;
    }
    std::iter::once(String::new()).chain(lines).collect()
}

fn overlay_table(status: &NodeStatus) -> Table {
    match status.kind {
        NodeKind::Entity => {
            let mut table =
                Table::new(&["OVERLAY", "ADDRESS", "CIDR", "DEVICE", "MTU", "PEERS", "RULES"]);
            for overlay in &status.overlays {
                table.row([
                    overlay.name.to_string(),
                    overlay.address.map(|address| address.to_string()).unwrap_or_default(),
                    overlay.cidr.to_string(),
                    overlay.device.clone().unwrap_or_default(),
                    overlay.mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
                    overlay.peers.to_string(),
                    overlay.rules.to_string(),
                ]);
            }
            table
        }
        NodeKind::Sap => {
            let mut table = Table::new(&["OVERLAY", "CIDR", "MEMBERS", "RULES"]);
            for overlay in &status.overlays {
                table.row([
                    overlay.name.to_string(),
                    overlay.cidr.to_string(),
                    overlay.peers.to_string(),
                    overlay.rules.to_string(),
                ]);
            }
            table
        }
    }
}

fn sap_table(status: &NodeStatus) -> Table {
    let heading = match status.kind {
        NodeKind::Entity => "SAP",
        NodeKind::Sap => "NODE",
    };
    let mut table = Table::new(&[heading, "ENDPOINT", "STATE", "ROUND TRIP"]);
    for sap in &status.saps {
        table.row([
            sap.name.clone(),
            sap.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
            if sap.alive { "answers" } else { "silent" }.to_owned(),
            sap.round_trip_micros.map(micros).unwrap_or_default(),
        ]);
    }
    table
}

fn narrow_table(status: &NodeStatus) -> Table {
    let mut table = Table::new(&["NARROW WAY TO", "MTU"]);
    for way in &status.narrow {
        table.row([way.destination.to_string(), way.mtu.to_string()]);
    }
    table
}

fn packet_table(status: &NodeStatus) -> Table {
    let mut table = Table::new(&["HALLWAY", "PACKETS", "BYTES"]);
    for (hallway, count) in &status.packets {
        table.row([hallway.clone(), count.packets.to_string(), count.bytes.to_string()]);
    }
    table
}

/// Reasons of a newer daemon have a name and no explanation here.
fn drop_table(status: &NodeStatus) -> Table {
    let mut table = Table::new(&["DROPPED", "PACKETS", "WHY"]);
    for (name, count) in &status.drops {
        let why = DropReason::named(name).map_or("", DropReason::explanation);
        table.row([name.clone(), count.to_string(), why.to_owned()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::local::NarrowWay;

    fn ready() -> NodeStatus {
        NodeStatus {
            packets: [("egress".to_owned(), Default::default())].into(),
            drops: [("no_rule".to_owned(), 4), ("from_the_future".to_owned(), 1)].into(),
            denied: 3,
            narrow: vec![NarrowWay { destination: "100.71.0.12".parse().unwrap(), mtu: 1364 }],
            names: Some(NamesStatus {
                hook: DnsHook::Redirect,
                listeners: vec!["127.0.0.1:6053".parse().unwrap()],
                redirected: vec!["192.0.2.53".parse().unwrap()],
            }),
            problems: vec!["the MTU of eth0 fell".to_owned()],
            ..NodeStatus::of_tests()
        }
    }

    #[test]
    fn one_screen_explains_drops_and_ends_with_problems() {
        let text = lines("ovd", &ready(), Timestamp(1_000_000)).join("\n");

        for part in [
            "ovd 0.1.0  connected, up 16m   entity web",
            "table     revision 43, serial 7, applied now",
            "names     127.0.0.1:6053, instead of 192.0.2.53",
            "default  100.71.0.11  100.71.0.0/16  ov0     1464  2      1",
            "sap-1  192.0.2.9:6080  answers  420 µs",
            "100.71.0.12    1364",
            "no_rule          4        no rule allows it",
            "from_the_future  1        –",
            "denied    3 opening packets of this host in the last 10m: ovd denied",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.ends_with("! the MTU of eth0 fell"), "{text}");
    }

    #[test]
    fn without_the_server_it_says_what_still_works() {
        let mut status = ready();
        status.server.reachable = false;
        status.server.error = Some("connection refused".to_owned());
        let text = lines("ovd", &status, Timestamp(1_000_000)).join("\n");

        assert!(text.contains("not reachable for 16m: connection refused"), "{text}");
        assert!(text.contains("flows it allows work"), "{text}");
    }

    #[test]
    fn checks_hold_for_a_good_node_and_name_what_is_missing() {
        for check in [Check::Live, Check::Ready, Check::Synced] {
            assert!(faults(&ready(), check).is_empty(), "{check:?}");
        }

        let mut broken = ready();
        broken.overlays[0].device = None;
        broken.saps[0].alive = false;
        assert_eq!(faults(&broken, Check::Ready).len(), 2);
        assert!(faults(&broken, Check::Synced).is_empty());
        broken.saps.clear();
        broken.overlays[0].device = Some("ov0".to_owned());
        assert!(faults(&broken, Check::Ready).is_empty());

        broken.table.as_mut().unwrap().from_disk = true;
        broken.server.reachable = false;
        assert_eq!(faults(&broken, Check::Synced).len(), 2);
        broken.table = None;
        assert_eq!(faults(&broken, Check::Ready).len(), 1);
        assert!(faults(&broken, Check::Live).is_empty());
    }

    #[test]
    fn a_sap_is_ready_without_anybody_to_serve() {
        let mut sap = NodeStatus { kind: NodeKind::Sap, ..ready() };
        sap.overlays[0].device = None;
        sap.saps[0].alive = false;

        assert!(faults(&sap, Check::Ready).is_empty());
        assert!(lines("ovsap", &sap, Timestamp(0)).join("\n").contains("MEMBERS"));
    }
}

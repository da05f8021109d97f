//! A host whose packet is refused, by its own `ovd`, by a SaP, or by the destination, hears so at once, and
//! `ovd denied` remembers why.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use ovmesh::types::DropReason;
use ovmesh::wire::control::{self, Message};
use ovmesh::wire::inner::Quoted;
use ovmesh::wire::notice::{Denied, Refuser};
use serde_json::Value;

use crate::fleet::{Kind, parse};
use crate::packet::hex;
use crate::support::{LAB, Rig, SOON, expect_refusal, number, play};
use crate::world::poll;

/// What `ovd denied` shows on a node.
fn denied(rig: &Rig, node: &str, options: &[&str]) -> Result<Vec<Value>> {
    let words = [&["denied", "-o", "json"], options].concat();
    let shown = parse(&rig.fleet.node(node)?.command(&words)?.success("denied")?)?;
    ensure!(shown["apiVersion"] == "ovmesh/v1", "{shown:#}");
    shown["items"].as_array().cloned().context("no items")
}

/// Waits until `ovd denied` shows `service` towards `to`, `count` times, and returns it.
fn expect_denied(rig: &Rig, node: &str, to: &str, service: &str, count: u64) -> Result<Value> {
    poll(SOON, &format!("{node} to have been denied {service} {count} times"), || {
        let found = denied(rig, node, &["--since", "10m"])?.into_iter().find(|denial| {
            denial["destination"] == to && denial["service"] == service && denial["count"] == count
        });
        Ok(found)
    })
}

/// One try to connect and ask: what went wrong, and how long it took.
fn connect(rig: &Rig, to: &str, port: u16) -> Result<(String, Duration)> {
    let target = rig.at(to, port)?.to_string();
    let report = rig.fleet.netkit_json("a", &["http-get", &target, "1", "3000"])?;
    let took = Duration::from_micros(report["failedMicros"][0].as_u64().unwrap_or(0));
    Ok((report["error"].as_str().unwrap_or_default().to_owned(), took))
}

#[test]
fn a_refused_host_hears_at_once_and_can_ask_why() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        let _server = rig.http_echo("b", 80)?;
        let _echo = rig.udp_echo("b", 7)?;
        rig.allow(&["a", "b", "--port", "tcp/80", "--port", "udp/7"])?;
        rig.deny(&["a", "b", "--port", "tcp/443"])?;
        ensure!(rig.http_get("a", "b", 80, 3)? == 3 && rig.udp_ping("a", "b", 7, 3)? == 3);
        ensure!(denied(rig, "a", &[])?.is_empty(), "what passes is no refusal");

        let b = rig.at("b", 0)?.ip().to_string();
        let c = rig.at("c", 0)?.ip().to_string();
        // What the machine itself knows, before anything is tried.
        for (peer, service, code, said) in [
            (b.as_str(), "tcp/80", 0, "r-1 allows tcp/80"),
            ("b", "udp/7", 0, "s1"),
            ("b", "tcp/81", 4, "no rule allows tcp/81"),
            ("b", "tcp/443", 4, "r-2 refuses tcp/443"),
            (c.as_str(), "tcp/80", 4, "no row"),
        ] {
            let mut why = None;
            // A SaP that just stood still for a moment is one that does not answer.
            poll(SOON, &format!("{peer} {service}: {code}, {said}"), || {
                let told = rig.fleet.node("a")?.command(&["why", peer, "-p", service])?;
                let is_right = told.code == code && told.stdout.contains(said);
                why = Some(told);
                Ok(is_right.then_some(()))
            })
            .with_context(|| format!("{why:?}"))?;
        }
        let own = rig.at("a", 0)?.ip().to_string();
        for (peer, code, said) in [
            ("203.0.113.9", 3, "no overlay of this machine"),
            ("nobody", 3, "names no nobody"),
            (own.as_str(), 2, "this machine itself"),
        ] {
            let why = rig.fleet.node("a")?.command(&["why", peer])?;
            expect_refusal(&why, code, &[said])?;
        }
        for (to, address, port, reason) in
            [("b", &b, 81, "no_rule"), ("b", &b, 443, "deny_rule"), ("c", &c, 80, "no_row")]
        {
            let (error, took) = connect(rig, to, port)?;
            ensure!(error.contains("refused"), "{to}:{port}: {error}");
            ensure!(took < Duration::from_secs(1), "{to}:{port}: refused after {took:?}");
            let denial = expect_denied(rig, "a", address, &format!("tcp/{port}"), 1)?;
            ensure!(denial["reason"] == reason, "{denial:#}");
            ensure!(denial["overlay"] == LAB && denial["by"] == "ovd", "{denial:#}");
        }
        for (to, address) in [("b", &b), ("c", &c)] {
            let target = rig.at(to, 9)?.to_string();
            let report = rig.fleet.netkit_json("a", &["udp-ping", &target, "1", "3000"])?;
            let error = report["error"].as_str().unwrap_or_default();
            ensure!(error.contains("os error"), "no ICMP error: {report}");
            expect_denied(rig, "a", address, "udp/9", 1)?;
        }
        // For people, and in status.
        let ovd = rig.fleet.node("a")?;
        let table = ovd.command(&["denied"])?.success("denied")?;
        ensure!(table.contains("tcp/81") && table.contains("no rule allows it"), "{table}");
        let status = ovd.command(&["status"])?.success("status")?;
        ensure!(status.contains("denied    5 opening packets of this host"), "{status}");

        // On whichever lane the packet comes.
        let ovd = rig.fleet.node_mut("a")?;
        ensure!(ovd.stop()? == 0, "a does not stop by itself");
        ovd.set_options(&["--lanes", "4"]);
        ovd.start()?;
        rig.reconnected()?;
        rig.settle()?;
        for port in 82..90 {
            let (error, took) = connect(rig, "b", port)?;
            ensure!(error.contains("refused"), "{port}: {error}");
            ensure!(took < Duration::from_secs(1), "{port}: refused after {took:?}");
        }

        // What is allowed afterwards works: no answer lingers.
        rig.allow(&["a", "b", "--port", "udp/9"])?;
        let _echo = rig.udp_echo("b", 9)?;
        ensure!(rig.udp_ping("a", "b", 9, 3)? == 3);
        Ok(())
    });
}

#[test]
fn ovd_ping_says_who_answers_who_refuses_and_where_there_is_silence() {
    play(&["s1"], &["a", "b"], |rig| {
        let b = rig.at("b", 0)?.ip().to_string();
        let ping = |words: &[&str]| rig.fleet.node("a")?.command(&[&["ping"], words].concat());
        let refused = |words: &[&str], says: &str| {
            let output = ping(words)?;
            ensure!(output.code == 4 && output.stdout.contains(says), "{output:?}");
            ensure!(output.stderr.contains("ovctl why a"), "{output:?}");
            Ok(())
        };
        expect_refusal(&ping(&["b"])?, 3, &["names no b", "ovctl why a b"])?;
        expect_refusal(&ping(&["b", "-p", "udp/53"])?, 2, &["udp/53 cannot be asked", "-p icmp"])?;
        refused(&[&b], "refused here")?;

        rig.allow(&["a", "b", "--port", "icmp", "--port", "tcp/9"])?;
        for words in [&["b", "-c", "2"][..], &[&b, "-c", "2", "-p", "tcp/9"]] {
            let text = ping(words)?.success("ovd ping")?;
            ensure!(
                text.contains(", by s1 → b\n") && text.contains("2 sent, 2 answered:"),
                "{text}"
            );
        }
        let answer = parse(&ping(&["b", "-c", "1", "-o", "json"])?.success("ovd ping -o json")?)?;
        ensure!(answer["answered"] == 1 && answer["roundTripMicros"]["max"].is_u64(), "{answer:#}");
        refused(&["b", "-p", "tcp/22"], "refused here: no rule allows tcp/22")?;

        rig.fleet.node_mut("b")?.kill()?;
        let silence = rig.fleet.node("a")?.command(&["ping", "b", "-c", "1"])?;
        ensure!(silence.code == 1 && silence.stdout.contains("1 sent, 0 answered"), "{silence:?}");
        Ok(())
    });
}

#[test]
fn in_a_silent_overlay_nobody_is_answered_but_all_is_remembered() {
    play(&["s1"], &["a"], |rig| {
        rig.fleet.ovctl_ok(&[
            "overlay",
            "create",
            "quiet",
            "--cidr",
            "10.71.0.0/16",
            "--silent",
        ])?;
        rig.fleet.join("s2", Kind::Sap, &["quiet"], &[])?;
        for name in ["d", "e"] {
            rig.fleet.join(name, Kind::Entity, &["quiet"], &[])?;
        }
        let target = format!("{}:80", rig.fleet.address("e", "quiet")?);
        let started = Instant::now();
        let report = rig.fleet.netkit_json("d", &["http-get", &target, "1", "700"])?;
        let error = report["error"].as_str().unwrap_or_default();

        ensure!(started.elapsed() >= Duration::from_millis(700), "an answer: {report}");
        ensure!(error.contains("timed out"), "{report}");
        let address = rig.fleet.address("e", "quiet")?.to_string();
        expect_denied(rig, "d", &address, "tcp/80", 1)?;

        // Beside it an overlay that speaks.
        let stranger = "10.70.200.200:80";
        let report = rig.fleet.netkit_json("a", &["http-get", stranger, "1", "3000"])?;
        let error = report["error"].as_str().unwrap_or_default();
        ensure!(error.contains("refused"), "{report}");
        Ok(())
    });
}

#[test]
fn a_host_hears_at_once_of_what_only_the_sap_refuses() {
    hears_of_a_refusal_further_on(&["a"], "sap", "s1");
}

#[test]
fn a_host_hears_at_once_of_what_only_the_destination_refuses() {
    hears_of_a_refusal_further_on(&["a", "s1"], "destination", "b");
}

/// The nodes in `behind` do not hear of a new deny rule; `refuser` does.
fn hears_of_a_refusal_further_on(behind: &[&str], by: &str, refuser: &str) {
    play(&["s1"], &["a", "b"], |rig| {
        let _servers = [rig.http_echo("b", 80)?, rig.http_echo("b", 443)?];
        let _echo = rig.udp_echo("b", 7)?;
        rig.allow(&["a", "b"])?;
        ensure!(rig.http_get("a", "b", 443, 3)? == 3 && rig.udp_ping("a", "b", 7, 3)? == 3);
        for node in behind {
            cut_off(rig, node)?;
        }
        let services = ["--port", "tcp/443,udp/53"];
        let deny = ["policy", "deny", "--overlay", LAB, "--no-wait", "a", "b"];
        rig.fleet.ovctl_ok(&[&deny[..], &services[..]].concat())?;
        poll(SOON, "the rule to be in force further on", || {
            Ok(connect(rig, "b", 443)?.0.contains("refused").then_some(()))
        })?;
        let before = denied(rig, "a", &[])?.len();
        ensure!(before > 0, "refused, and nobody knows why");

        let b = rig.at("b", 0)?.ip().to_string();
        let (error, took) = connect(rig, "b", 443)?;
        ensure!(error.contains("refused"), "{error}");
        ensure!(took < Duration::from_secs(1), "refused after {took:?}");
        let target = rig.at("b", 53)?.to_string();
        let report = rig.fleet.netkit_json("a", &["udp-ping", &target, "1", "3000"])?;
        let error = report["error"].as_str().unwrap_or_default();
        ensure!(error.contains("os error"), "no ICMP error: {report}");
        let denial = expect_denied(rig, "a", &b, "udp/53", 1)?;
        ensure!(denial["reason"] == "deny_rule" && denial["by"] == by, "{denial:#}");
        for node in behind {
            ensure!(rig.fleet.node(node)?.drops("deny_rule")? == 0, "{node} knew of it");
        }
        ensure!(rig.fleet.node(refuser)?.drops("deny_rule")? > 0, "{refuser} did not refuse");

        // Beside it everything goes on.
        ensure!(rig.http_get("a", "b", 80, 3)? == 3 && rig.udp_ping("a", "b", 7, 3)? == 3);

        // However often it is tried, a source is told ten times a second at most.
        let started = Instant::now();
        rig.udp_send("a", "b", 53, 400)?;
        let told = denials_of(rig, &b, "udp/53")?;
        let most = 1 + 10 * (started.elapsed().as_secs() + 2);
        ensure!((2..=most).contains(&told), "told {told} times in {:?}", started.elapsed());
        Ok(())
    });
}

#[test]
fn in_a_silent_overlay_a_sap_tells_nothing() {
    play(&[], &[], |rig| {
        let create = ["overlay", "create", "quiet", "--cidr", "10.71.0.0/16", "--silent"];
        rig.fleet.ovctl_ok(&create)?;
        rig.fleet.join("s2", Kind::Sap, &["quiet"], &[])?;
        for name in ["d", "e"] {
            rig.fleet.join(name, Kind::Entity, &["quiet"], &[])?;
        }
        let rule = |verb| ["policy", verb, "--overlay", "quiet", "--port", "tcp/80", "d", "e"];
        rig.fleet.ovctl_ok(&rule("allow"))?;
        rig.settle()?;
        let target = format!("{}:80", rig.fleet.address("e", "quiet")?);
        let _server = rig.run("e", &["http-echo", &target, "e"])?;
        let ask = |patience| rig.fleet.netkit_json("d", &["http-get", &target, "1", patience]);
        ensure!(number(&ask("3000")?, "ok")? == 1, "nothing passes before");

        cut_off(rig, "d")?;
        rig.fleet.ovctl_ok(&[&rule("deny")[..], &["--no-wait"]].concat())?;
        poll(SOON, "the SaP to refuse", || {
            let report = ask("700")?;
            let error = report["error"].as_str().unwrap_or_default();
            // Nothing was heard while it connected, or while it waited for the answer.
            let is_silence =
                ["timed out", "temporarily unavailable"].map(|what| error.contains(what));
            ensure!(error.is_empty() || is_silence.contains(&true), "an answer: {report}");
            Ok((rig.fleet.node("s2")?.drops("deny_rule")? > 0).then_some(()))
        })?;
        ensure!(denied(rig, "d", &[])?.is_empty(), "d was told");
        Ok(())
    });
}

/// From now on nothing that the server says reaches this node.
fn cut_off(rig: &Rig, node: &str) -> Result<()> {
    let route = format!("ip route add blackhole {}", rig.underlay(node)?.ip());
    rig.fleet.server.run(&route.split(' ').collect::<Vec<_>>())?.success(&route).map(drop)
}

/// How often `ovd denied` of a shows the service.
fn denials_of(rig: &Rig, to: &str, service: &str) -> Result<u64> {
    let is_it = |denial: &&Value| denial["destination"] == to && denial["service"] == service;
    let found = denied(rig, "a", &[])?;
    Ok(found.iter().filter(is_it).filter_map(|denial| denial["count"].as_u64()).sum())
}

#[test]
fn a_notice_is_believed_of_a_flow_that_waits_for_an_answer_and_of_no_other() {
    play(&["s1"], &["a", "b"], |rig| {
        let _echo = rig.tcp_echo("b", 7)?;
        rig.allow(&["a", "b"])?;
        let (a, b) = (rig.at("a", 0)?.ip(), rig.at("b", 0)?.ip());
        let flow = |port, to| (SocketAddr::new(a, port), SocketAddr::new(b, to));
        // One that b answers; and then, with the SaP away, one that nobody does.
        open(rig, flow(40_000, 7))?;
        poll(SOON, "b to answer", || {
            Ok((rig.fleet.node("a")?.packets("ingress")? > 0).then_some(()))
        })?;
        rig.fleet.node_mut("s1")?.stop()?;
        open(rig, flow(40_001, 80))?;

        let mut forged = notice(rig, flow(40_001, 80))?;
        *forged.last_mut().context("empty")? ^= 1;
        rig.drops_move("a", "control_mac", 1, || rig.inject("s1", "a", &[hex(&forged)], 1))?;
        for (port, to) in [(40_000, 7), (40_002, 80), (40_001, 81)] {
            let other = notice(rig, flow(port, to))?;
            rig.inject("s1", "a", &[hex(&other)], 1)?;
            // Its counter was used: it was read.
            rig.drops_move("a", "control_replay", 1, || rig.inject("s1", "a", &[hex(&other)], 1))?;
        }
        ensure!(denied(rig, "a", &[])?.is_empty(), "{:?}", denied(rig, "a", &[])?);

        // The control: the very same about a flow that waits.
        let half_open = notice(rig, flow(40_001, 80))?;
        rig.inject("s1", "a", &[hex(&half_open)], 1)?;
        let denial = expect_denied(rig, "a", &b.to_string(), "tcp/80", 1)?;
        ensure!(denial["by"] == "sap", "{denial:#}");
        Ok(())
    });
}

/// Sends an opening segment of this flow from a.
fn open(rig: &Rig, (source, destination): (SocketAddr, SocketAddr)) -> Result<()> {
    const SYN: u8 = 0x02;
    rig.raw_tcp("a", &[(source, destination, SYN)])
}

/// As s1 would sign it, later than all that it signed so far.
fn notice(rig: &Rig, (source, destination): (SocketAddr, SocketAddr)) -> Result<Vec<u8>> {
    let table = rig.table("a")?;
    let link = table.body.links.first().context("a has no link")?;
    let flow = Quoted {
        source: source.ip(),
        destination: destination.ip(),
        protocol: 6,
        source_port: source.port(),
        destination_port: destination.port(),
    };
    let denied = Denied { reason: DropReason::NoRule, by: Refuser::Sap, flow, sequence: 1000 };
    let counter = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let (bytes, len) = control::encode(link.id, &link.secret, counter, &Message::Denied(denied));
    Ok(bytes[..len].to_vec())
}

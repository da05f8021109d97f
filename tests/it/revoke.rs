//! A revoked rule stops flows that run, TCP and UDP, within a second; flows that the other side
//! started and still may start go on.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::support::{Counter, QUIET, Rig, Running, SOON, play};
use crate::world::{Process, poll};

/// After the command returned: what a flow may still do. The counters' own files are up to 50 ms old.
const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
fn revoking_stops_flows_that_run() {
    play(&["s1"], &["a", "b"], |rig| {
        let _servers = servers(rig)?;
        let sink = rig.udp_sink("b", 10)?;
        let rule = rig.allow(&["a", "b"])?;
        let tcp = stream(rig, "a", "b")?;
        let _udp = datagrams(rig, "a", "b")?;
        tcp.expect_growth("received", 20)?;
        sink.expect_growth("received", 20)?;

        rig.revoke(&[&rule])?;
        let revoked = Instant::now();

        stop(&[&sink, &tcp], revoked)?;
        ensure!(rig.can("a", "b", "tcp/80")? == 4);
        Ok(())
    });
}

#[test]
fn revoking_one_direction_keeps_the_flows_of_the_other() {
    play(&["s1"], &["a", "b"], |rig| {
        let _servers = servers(rig)?;
        let (at_a, at_b) = (rig.udp_sink("a", 10)?, rig.udp_sink("b", 10)?);
        let rule = rig.allow(&["a", "b"])?;
        rig.allow(&["b", "a"])?;
        let (from_a, from_b) = (stream(rig, "a", "b")?, stream(rig, "b", "a")?);
        let _udp = [datagrams(rig, "a", "b")?, datagrams(rig, "b", "a")?];
        for flow in [&at_a, &at_b, &from_a, &from_b] {
            flow.expect_growth("received", 20)?;
        }

        rig.revoke(&[&rule])?;
        let revoked = Instant::now();

        // The flow must not live on as an answer to itself.
        stop(&[&from_a, &at_b], revoked)?;
        for flow in [&at_a, &from_b] {
            flow.expect_growth("received", 20)?;
        }
        let gap = from_b.number("gapMillisMax")?;
        ensure!(gap < 1000, "the flow that b started stood still for {gap} ms");
        Ok(())
    });
}

#[test]
fn deleting_an_entity_stops_its_flows() {
    play(&["s1"], &["a", "b"], |rig| {
        let sink = rig.udp_sink("b", 10)?;
        rig.allow(&["a", "b"])?;
        let _udp = datagrams(rig, "a", "b")?;
        sink.expect_growth("received", 20)?;

        rig.fleet.ovctl_ok(&["entity", "delete", "a"])?;
        stop(&[&sink], Instant::now())
    });
}

fn servers(rig: &Rig) -> Result<[Running; 2]> {
    Ok([rig.tcp_echo("a", 7)?, rig.tcp_echo("b", 7)?])
}

/// A connection with a line every 10 ms each way.
fn stream(rig: &Rig, from: &str, to: &str) -> Result<Counter> {
    rig.counter(from, "tcp-stream", &rig.at(to, 7)?.to_string(), &["60"])
}

/// A datagram every 5 ms, for longer than any test lasts.
fn datagrams(rig: &Rig, from: &str, to: &str) -> Result<Process> {
    rig.udp_stream(from, to, 10, 12_000)
}

/// By the deadline the flows stand still, and go on to.
fn stop(flows: &[&Counter], revoked: Instant) -> Result<()> {
    let received = || flows.iter().map(|flow| flow.number("received")).collect::<Result<Vec<_>>>();
    let passed = |time: Duration| Ok((revoked.elapsed() >= time).then_some(()));
    poll(SOON, "the deadline", || passed(AT_ONCE))?;
    let then = received()?;
    poll(SOON, "some quiet", || passed(AT_ONCE + QUIET))?;
    let now = received()?;
    ensure!(now == then, "flows went from {then:?} to {now:?} after {AT_ONCE:?}");
    Ok(())
}

//! What a rule allows passes, in IPv4 and IPv6; of the rest nothing arrives, and each place that can
//! refuse counts exactly what it refused: the sender, the SaP, the destination.

use anyhow::{Result, ensure};

use crate::packet::{gue, udp};
use crate::settled::settled;
use crate::support::{LAB_CIDR, Rig, play_in};

/// How many datagrams are sent where none may arrive.
const REFUSED: u32 = 50;

#[test]
fn allowed_ipv4_passes_and_every_refusal_is_counted() {
    play_in(LAB_CIDR, &["s1"], &["a", "b", "c"], allowed_passes_and_every_refusal_is_counted);
}

#[test]
fn allowed_ipv6_passes_and_every_refusal_is_counted() {
    play_in("fd70::/64", &["s1"], &["a", "b", "c"], allowed_passes_and_every_refusal_is_counted);
}

fn allowed_passes_and_every_refusal_is_counted(rig: &mut Rig) -> Result<()> {
    rig.allow(&["a", "b", "--port", "tcp/80,udp/9,udp/11,icmp"])?;

    allowed_passes(rig)?;
    a_stranger_is_refused_by_its_own_daemon(rig)?;
    another_port_is_refused_by_the_senders_daemon(rig)?;
    what_gets_past_the_sender_is_refused_by_the_sap(rig)?;
    what_gets_past_the_sap_is_refused_by_the_destination(rig)
}

fn allowed_passes(rig: &Rig) -> Result<()> {
    let before = rig.fleet.node("s1")?.packets("transit")?;
    let _http = rig.http_echo("b", 80)?;
    let _echo = rig.udp_echo("b", 9)?;

    ensure!(rig.http_get("a", "b", 80, 3)? == 3, "TCP does not pass");
    ensure!(rig.udp_ping("a", "b", 9, 10)? == 10, "UDP does not pass");
    ensure!(rig.icmp_ping("a", "b", 5)? == 5, "ICMP does not pass");

    // 10 datagrams and 5 pings and their answers, and TCP on top.
    let moved = rig.fleet.node("s1")?.packets("transit")? - before;
    ensure!(moved >= 30, "only {moved} packets went through the SaP");
    Ok(())
}

fn a_stranger_is_refused_by_its_own_daemon(rig: &Rig) -> Result<()> {
    let transit = settled("what is counted late", || rig.fleet.node("s1")?.packets("transit"))?;
    let sink = rig.udp_sink("b", 10)?;

    rig.drops_move("c", "no_row", REFUSED.into(), || rig.udp_send("c", "b", 10, REFUSED))?;
    ensure!(rig.icmp_ping("c", "b", 2)? == 0, "a stranger's ping is answered");
    ensure!(rig.http_get("c", "b", 80, 1)? == 0, "a stranger's request is answered");

    ensure!(sink.received()? == 0, "something arrived");
    let moved = rig.fleet.node("s1")?.packets("transit")? - transit;
    ensure!(moved == 0, "{moved} packets went through the SaP");
    Ok(())
}

fn another_port_is_refused_by_the_senders_daemon(rig: &Rig) -> Result<()> {
    let refused = rig.udp_sink("b", 10)?;
    let control = rig.udp_sink("b", 11)?;

    rig.drops_move("a", "no_rule", REFUSED.into(), || rig.udp_send("a", "b", 10, REFUSED))?;
    rig.udp_send("a", "b", 11, REFUSED)?;

    control.expect_received(REFUSED.into())?;
    ensure!(refused.received()? == 0, "something arrived");
    Ok(())
}

fn what_gets_past_the_sender_is_refused_by_the_sap(rig: &Rig) -> Result<()> {
    let refused = rig.udp_sink("b", 10)?;
    let control = rig.udp_sink("b", 11)?;

    rig.drops_move("s1", "no_rule", REFUSED.into(), || inject(rig, "a", "s1", 10))?;
    inject(rig, "a", "s1", 11)?;

    control.expect_received(REFUSED.into())?;
    ensure!(refused.received()? == 0, "something arrived");
    Ok(())
}

fn what_gets_past_the_sap_is_refused_by_the_destination(rig: &Rig) -> Result<()> {
    let refused = rig.udp_sink("b", 10)?;
    let control = rig.udp_sink("b", 11)?;

    rig.drops_move("b", "no_rule", REFUSED.into(), || inject(rig, "s1", "b", 10))?;
    inject(rig, "s1", "b", 11)?;

    control.expect_received(REFUSED.into())?;
    ensure!(refused.received()? == 0, "something arrived");
    Ok(())
}

/// Sends datagrams from a to b, with the right key, from one node's data port to another's.
fn inject(rig: &Rig, from: &str, to: &str, port: u16) -> Result<()> {
    let inner = udp(rig.at("a", 40_000)?, rig.at("b", port)?, b"hello");
    rig.inject(from, to, &[gue(rig.send_key("a", "b")?, &inner)], REFUSED)
}

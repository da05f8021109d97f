//! Links that are narrower than the overlay's MTU: on the first leg and the last, hidden behind a router
//! or known to the sending kernel. Whoever meets them tells the source, whose host then sends less at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::family::Family::{self, V4, V6};
use crate::family::play_over;
use crate::integrity::{COPIES, restart, tcp, tcp_arrives, udp, verify};
use crate::support::{LAB_CIDR, Rig, SOON, number, play_in};
use crate::world::{Machine, poll};

/// What the narrow link takes.
const NARROW: &str = "1400";

/// What 1400 leaves of a packet: outer IPv4, UDP, GUE.
const FITS: u64 = 1400 - 36;

/// How long a transfer may take that is told of the narrow link; one that has to find out by itself
/// takes longer.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// Where the router stands.
type Leg = (&'static str, &'static str);

#[test]
fn behind_a_router_towards_the_destination_everything_passes() {
    everything_passes_behind_a_router(V4, V4, ("s1", "b"));
}

#[test]
fn behind_a_router_towards_the_sap_everything_passes() {
    everything_passes_behind_a_router(V6, V4, ("a", "s1"));
}

#[test]
fn behind_a_router_on_a_direct_path_everything_passes() {
    everything_passes_behind_a_router(V4, V4, ("a", "b"));
}

#[test]
fn behind_an_ipv6_router_towards_the_destination_everything_passes() {
    everything_passes_behind_a_router(V6, V6, ("s1", "b"));
}

#[test]
#[ignore = "long"]
fn behind_an_ipv6_router_towards_the_sap_everything_passes() {
    everything_passes_behind_a_router(V4, V6, ("a", "s1"));
}

#[test]
#[ignore = "long"]
fn behind_an_ipv6_router_on_a_direct_path_everything_passes() {
    everything_passes_behind_a_router(V6, V6, ("a", "b"));
}

fn everything_passes_behind_a_router(inside: Family, outside: Family, leg: Leg) {
    play_over(inside, outside, |rig| {
        let direct: &[&str] = if leg == ("a", "b") { &["--direct"] } else { &[] };
        rig.allow(&[&["a", "b"], direct].concat())?;
        let _router = put_router(rig, outside, leg)?;
        expect_told(rig)?;
        let status = rig.fleet.node("a")?.status()?;
        let fits = match outside {
            V4 => FITS,
            V6 => FITS - 20,
        };
        ensure!(status["narrow"][0]["mtu"] == fits, "{:#}", status["narrow"]);
        Ok(())
    });
}

#[test]
fn a_narrow_device_of_the_sap_is_no_secret() {
    play_in(LAB_CIDR, &["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        narrow_device(rig, "s1", "b")?;
        expect_told(rig)
    });
}

#[test]
fn a_device_that_became_narrow_while_ovd_runs_is_no_secret() {
    play_in(LAB_CIDR, &["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        narrow_device(rig, "a", "s1")?;
        expect_told(rig)?;
        // The device follows in time, so that hosts know it by themselves.
        poll(SOON, "a's device to follow", || Ok(has_followed(rig)?.then_some(())))?;
        verify(rig)
    });
}

/// One large datagram is lost to learn of the link, its sender hears so, and the next ones arrive; TCP
/// does not stall; then nothing at all is lost, either way.
fn expect_told(rig: &Rig) -> Result<()> {
    let mut was_told = false;
    poll(SOON, "large datagrams to arrive", || match udp(rig, "1400", "400") {
        Ok(report) => {
            ensure!(number(&report, "strange")? == 0, "{report}");
            Ok((number(&report, "received")? == COPIES).then_some(()))
        }
        // The host refuses the next one itself, once, with what it was told of the one before.
        Err(error) => {
            ensure!(format!("{error:#}").contains("Message too long"), "{error:#}");
            was_told = true;
            Ok(None)
        }
    })?;
    // Told after the first packets had been given up, its host knows, and refuses none.
    ensure!(
        was_told || has_followed(rig)? || has_learned(rig)?,
        "the link is not narrow, or nobody told the sender"
    );

    let started = Instant::now();
    tcp_arrives(rig)?;
    ensure!(started.elapsed() < TOLD_WITHIN, "TCP took {:?}", started.elapsed());
    verify(rig)
}

/// Whether a's device has the MTU that the narrow link leaves.
fn has_followed(rig: &Rig) -> Result<bool> {
    Ok(rig.fleet.node("a")?.status()?["overlays"][0]["mtu"] == FITS)
}

/// Whether a knows of a narrow way.
fn has_learned(rig: &Rig) -> Result<bool> {
    Ok(rig.fleet.node("a")?.status()?["narrow"].as_array().is_some_and(|ways| !ways.is_empty()))
}

/// Nothing was learned before, by either end.
#[test]
fn tcp_learns_of_a_narrow_link_by_itself() {
    play_in(LAB_CIDR, &["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let _router = put_router(rig, V4, ("s1", "b"))?;
        let before = rig.fleet.node("a")?.drops("too_big")?;

        let started = Instant::now();
        tcp_arrives(rig)?;

        ensure!(started.elapsed() < TOLD_WITHIN, "TCP took {:?}", started.elapsed());
        let refused = rig.fleet.node("a")?.drops("too_big")? - before;
        ensure!(refused > 0, "a was not told");
        Ok(())
    });
}

/// Without the router's messages nobody can know: what is too long vanishes and TCP stalls, unless the
/// hosts look for such links themselves.
#[test]
fn a_router_that_says_nothing_is_a_black_hole_for_what_is_too_long() {
    play_in(LAB_CIDR, &["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let router = put_router(rig, V4, ("s1", "b"))?;
        command(&router, "ip rule add pref 1 iif lo blackhole")?;

        let largest = FITS - 28;
        let fitting = format!("1-70,255-257,1023-1025,1200-{largest}");
        let report = udp(rig, &fitting, "3000")?;
        ensure!(number(&report, "missing")? == 0 && number(&report, "strange")? == 0, "{report}");
        ensure!(number(&report, "received")? > 200 * COPIES, "{report}");
        let longer = format!("{}-{},1431-1437,4000", largest + 1, largest + 5);
        let report = udp(rig, &longer, "300")?;
        ensure!(number(&report, "received")? == 0 && number(&report, "strange")? == 0, "{report}");

        let stalled = tcp(rig, "2000");
        ensure!(stalled.is_err(), "TCP passes now: {stalled:?}; say so in docs/operations.md");
        for name in ["a", "b"] {
            write_sysctl(rig.fleet.machine(name)?, "net/ipv4/tcp_mtu_probing", "2")?;
            write_sysctl(rig.fleet.machine(name)?, "net/ipv4/tcp_base_mss", "1024")?;
        }
        tcp_arrives(rig).context("with tcp_mtu_probing")
    });
}

/// With a route that says its MTU the overlay's is right from the start, and nothing is lost to learn.
#[test]
fn a_narrow_link_that_the_routes_know_of_loses_nothing() {
    play_in(LAB_CIDR, &["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let router = put_router(rig, V4, ("s1", "b"))?;
        for (name, via) in [("a", "dev eth0".to_owned()), ("b", format!("via {}", router.ip4))] {
            let to = rig.underlay("s1")?.ip();
            let route = format!("ip route replace {to} {via} mtu {NARROW}");
            command(rig.fleet.machine(name)?, &route)?;
        }
        restart(rig, ["full", "full", "full"])?;
        verify(rig)
    });
}

/// Puts a router into the way between two nodes, in both directions, over a link of MTU 1400.
fn put_router(rig: &Rig, outside: Family, (one, other): Leg) -> Result<Machine> {
    let router = rig.world.machine("router")?;
    match outside {
        V4 => {
            write_sysctl(&router, "net/ipv4/ip_forward", "1")?;
            for knob in ["all", "default", "eth0"] {
                write_sysctl(&router, &format!("net/ipv4/conf/{knob}/send_redirects"), "0")?;
            }
        }
        V6 => {
            write_sysctl(&router, "net/ipv6/conf/all/forwarding", "1")?;
            for node in [one, other] {
                let machine = rig.fleet.machine(node)?;
                write_sysctl(machine, "net/ipv6/conf/eth0/accept_redirects", "0")?;
            }
        }
    }
    for (from, to) in [(one, other), (other, one)] {
        let to = outside.of(rig.fleet.machine(to)?);
        let there = format!("ip route add {to} via {}", outside.of(&router));
        command(rig.fleet.machine(from)?, &there)?;
        command(&router, &format!("ip route add {to} dev eth0 mtu lock {NARROW}"))?;
    }
    Ok(router)
}

/// From now on `node` sends to `to` through a device of MTU 1400.
fn narrow_device(rig: &Rig, node: &str, to: &str) -> Result<()> {
    let machine = rig.fleet.machine(node)?;
    let (own, to) = (rig.underlay(node)?.ip(), rig.underlay(to)?.ip());
    command(machine, "ip link add narrow link eth0 type macvlan mode bridge")?;
    command(machine, &format!("ip link set narrow mtu {NARROW} up"))?;
    command(machine, &format!("ip route add {to} dev narrow src {own}"))
}

fn command(machine: &Machine, words: &str) -> Result<()> {
    machine.run(&words.split(' ').collect::<Vec<_>>())?.success(words).map(drop)
}

fn write_sysctl(machine: &Machine, name: &str, value: &str) -> Result<()> {
    let write = "echo \"$0\" > \"/proc/sys/$1\"";
    machine.run(&["sh", "-c", write, value, name])?.success(name).map(drop)
}

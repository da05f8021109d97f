//! What a machine with `egress = "rules"` may open to addresses outside of its overlays, and how TCP of
//! its containers fits into them. Everything that is closed is tried with the guard lifted first, when it
//! must work.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::guard::{Street, expect_going, expect_stopped, put_container, shell};
use crate::support::{LAB, Rig, SOON, play};
use crate::world::{Machine, poll};

const BY_RULES: [&str; 4] = ["--guard", "ports", "--egress", "rules"];

/// How soon after a command that does not wait a rule about the outside must be in force, at the best of
/// some times: this machine may be busy with other tests.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(1);

/// What `x` and `y` serve.
const SERVICES: [&str; 4] = ["probe-serve", "tcp/80", "tcp/443", "udp/53"];

/// What is asked of a machine outside, in both families.
fn ways(to: &Machine) -> Vec<String> {
    let (v4, v6) = (to.ip4, to.ip6);
    ["tcp/80", "tcp/443", "udp/53", "icmp"]
        .iter()
        .flat_map(|service| [format!("{service}@{v4}"), format!("{service}@{v6}")])
        .collect()
}

fn words(ways: &[String]) -> Vec<&str> {
    ways.iter().map(String::as_str).collect()
}

/// Which of `ways` are answered when `b` asks.
fn reached(street: &Street<'_>, ways: &[String]) -> Result<Vec<String>> {
    street.answered(&street.b, &words(ways))
}

fn expect_reached(street: &Street<'_>, ways: &[String], expected: &[String]) -> Result<()> {
    let mut last = Vec::new();
    poll(SOON, "what rules allow and nothing else", || {
        last = reached(street, ways)?;
        Ok((last == expected).then_some(()))
    })
    .with_context(|| format!("reached {last:?}, and rules allow {expected:?}"))
}

fn policy(rig: &Rig, verb: &str, rule: &[&str]) -> Result<()> {
    rig.fleet.ovctl_ok(&[&["policy", verb, "--overlay", LAB], rule].concat()).map(drop)
}

#[test]
fn nothing_leaves_but_to_what_rules_allow_and_ovmesh_needs() {
    play(&["s1"], &["a"], |rig| {
        let street = Street::new(rig, &BY_RULES)?;
        let y = street.rig.world.machine("y")?;
        let a = street.rig.fleet.machine("a")?.clone();
        let _inside = street.run(&street.b, &["probe-serve", "tcp/8080", "tcp/1234"])?;
        let _outside = [street.run(&street.x, &SERVICES)?, street.run(&y, &SERVICES)?];
        let all = [ways(&street.x), ways(&y)].concat();
        let (x4, x6) = (street.x.ip4, street.x.ip6);
        let only = |chosen: &dyn Fn(&str) -> bool| -> Vec<String> {
            all.iter().filter(|way| chosen(way)).cloned().collect()
        };

        street.ovd(&["guard", "off"])?;
        street.expect_open(&street.b, &words(&all))?;
        street.ovd(&["guard", "on"])?;
        ensure!(
            reached(&street, &all)?.is_empty(),
            "without a rule: {:?}",
            reached(&street, &all)?
        );
        ensure!(street.count("outside")? >= 16, "{}", street.count("outside")?);
        // The overlay's packets leave, and what comes in and is not closed is answered.
        street.expect_open(&a, &["tcp/8080@OVERLAY"])?;
        street.expect_open(&street.x, &["tcp/1234@B4", "tcp/1234@B6"])?;
        for rule in ["ovmesh", "answers"] {
            ensure!(street.count(rule)? > 0, "{rule} counted nothing");
        }

        // Each family, protocol and port by itself; a rule that goes takes effect as soon.
        let mut fastest = Duration::MAX;
        for address in [format!("{x4}/32"), format!("{x6}/128")] {
            let ip = address.split('/').next().unwrap_or_default();
            let allowed = only(&|way| way.ends_with(&format!("@{ip}")) && way.contains("p/"))
                .into_iter()
                .filter(|way| !way.starts_with("tcp/443"))
                .collect::<Vec<_>>();
            ensure!(allowed.len() == 2, "{allowed:?}");
            let rule = ["b", address.as_str()];
            let words = [&rule[..], &["--port", "tcp/80,udp/53", "--no-wait"]].concat();
            for (verb, words, expected) in [
                ("allow", &words[..], &allowed[..]),
                ("revoke", &["b", &address, "--no-wait"], &[]),
            ] {
                policy(street.rig, verb, words)?;
                let started = Instant::now();
                // One way alone is answered or refused at once.
                expect_reached(&street, &allowed[..1], &expected[..expected.len().min(1)])?;
                fastest = fastest.min(started.elapsed());
                expect_reached(&street, &all, expected)?;
            }
        }
        ensure!(fastest < IN_FORCE_WITHIN, "in force after {fastest:?}");

        // Exceptions, denials, ICMP; and no range lets packets for an overlay out.
        policy(street.rig, "allow", &["b", &format!("0.0.0.0/0!{x4}/32")])?;
        expect_reached(&street, &all, &only(&|way| way.ends_with(&format!("@{}", y.ip4))))?;
        policy(street.rig, "deny", &["b", &format!("{}/32", y.ip4), "--port", "icmp,tcp/443"])?;
        let left = only(&|way| way.ends_with(&y.ip4.to_string()) && way.contains("p/"));
        let left: Vec<String> = left.into_iter().filter(|w| !w.starts_with("tcp/443")).collect();
        expect_reached(&street, &all, &left)?;
        ensure!(street.count("outside_denied")? > 0 && street.count("outside_allowed")? > 0);
        street.expect_open(&a, &["tcp/8080@OVERLAY"])?;

        // It is told whether anybody holds to it.
        let can = |from: &str| {
            let words = ["policy", "can", from, &y.ip4.to_string(), "-p", "udp/53", "-o", "json"];
            crate::fleet::parse(&street.rig.fleet.ovctl(&words)?.stdout)
        };
        ensure!(can("b")?["enforced"] == true, "{}", can("b")?);
        let open = can("a")?;
        ensure!(open["enforced"] == false, "{open}");
        ensure!(open["why"].to_string().contains("not enforced outside the overlay"), "{open}");
        Ok(())
    });
}

#[test]
fn the_way_to_the_server_stays_open_whatever_happens() {
    play(&["s1"], &["a"], |rig| {
        let street = Street::new(rig, &BY_RULES)?;
        let a = street.rig.fleet.machine("a")?.clone();
        let _inside = street.run(&street.b, &["probe-serve", "tcp/8080"])?;
        let _outside = street.run(&street.x, &SERVICES)?;
        let world = ways(&street.x);
        // A rule that denies the server and the SaP, too.
        policy(street.rig, "deny", &["b", "10.99.0.0/24", "--accept-risk"])?;
        expect_reached(&street, &world, &[])?;

        street.rig.fleet.stop_server()?;
        street.rig.fleet.node_mut("b")?.kill()?;
        ensure!(reached(&street, &world)?.is_empty(), "open after a crash");
        street.rig.fleet.node_mut("b")?.start()?;
        street.expect_open(&a, &["tcp/8080@OVERLAY"])?;
        ensure!(reached(&street, &world)?.is_empty(), "open while the server is away");
        street.rig.fleet.start_server()?;
        street.rig.reconnected()?;

        policy(street.rig, "revoke", &["b", "10.99.0.0/24"])?;
        policy(street.rig, "allow", &["b", "10.99.0.0/24", "--port", "tcp/80", "--expires", "6s"])?;
        let allowed = [format!("tcp/80@{}", street.x.ip4)];
        expect_reached(&street, &world, &allowed)?;
        // The node ends the rule by itself.
        street.rig.fleet.stop_server()?;
        expect_reached(&street, &world, &[])?;
        street.rig.fleet.start_server()?;

        // Whoever lifts the guard opens the outside, and only then.
        street.ovd(&["guard", "off"])?;
        street.expect_open(&street.b, &words(&world))?;
        street.ovd(&["guard", "on"])?;
        ensure!(reached(&street, &world)?.is_empty(), "open with the guard back");
        Ok(())
    });
}

#[test]
fn a_server_with_a_name_is_found_where_name_servers_are_closed() {
    play(&["s1"], &["a"], |rig| {
        let server = rig.fleet.server.ip4.to_string();
        let street = Street::new(rig, &BY_RULES)?;
        let _outside = street.run(&street.x, &SERVICES)?;
        let hosts = street.rig.file("hosts");
        let state = street.b.state_dir().join("ovd");
        let node = street.rig.fleet.node_mut("b")?;
        node.stop()?;
        let see_hosts = format!("mount --bind {} /etc/hosts; exec \"$0\" \"$@\"", hosts.display());
        node.set_wrapper(&["sh", "-e", "-c", &see_hosts]);
        let identity = fs::read_to_string(state.join("identity.json"))?;
        fs::write(state.join("identity.json"), identity.replace(&server, "server.test"))?;
        fs::write(&hosts, format!("{server} server.test\n"))?;
        node.start()?;
        street.rig.reconnected()?;

        // Nobody knows the name any more, and the guard that is there would let no question out.
        fs::write(&hosts, "")?;
        street.rig.fleet.node_mut("b")?.kill()?;
        street.rig.fleet.node_mut("b")?.start()?;
        street.rig.reconnected()?;
        policy(street.rig, "allow", &["b", &format!("{}/32", street.x.ip4)])?;
        street.expect_open(&street.b, &["tcp/80@X4"])?;

        // The control: it is what was kept that leads there.
        street.rig.fleet.node_mut("b")?.stop()?;
        fs::remove_file(state.join("server.json"))?;
        street.rig.fleet.node_mut("b")?.start()?;
        poll(SOON, "b to miss its server", || {
            let server = &street.rig.fleet.node("b")?.status()?["server"];
            Ok((server["reachable"] == false).then_some(()))
        })
    });
}

#[test]
fn a_flow_of_ours_that_is_older_than_the_guard_ends_when_it_comes() {
    play(&["s1"], &["a"], |rig| {
        let street = Street::new(rig, &BY_RULES)?;
        let _echo = street.run(&street.x, &["tcp-echo", "[::]:7"])?;
        street.ovd(&["guard", "off"])?;
        let streams = [street.stream(&street.b, "X4:7")?, street.stream(&street.b, "[X6]:7")?];
        for stream in &streams {
            expect_going(stream)?;
        }

        street.ovd(&["guard", "on"])?;

        for stream in &streams {
            expect_stopped(stream)?;
        }
        Ok(())
    });
}

/// What the underlay's link of `b` takes.
const NARROW: u32 = 1300;

/// How much goes each way.
const BYTES: &str = "300000";

/// A container knows a wider link than the overlay has, and nobody may tell it: what routers say is
/// filtered, here and everywhere.
#[test]
fn tcp_of_containers_fits_into_a_narrow_overlay_where_icmp_is_filtered() {
    play(&["s1"], &["a"], |rig| {
        let street = Street::new(rig, &["--guard", "ports"])?;
        shell(&street.b, &format!("ip link set eth0 mtu {NARROW}"))?;
        street.rig.fleet.node_mut("b")?.stop()?;
        street.rig.fleet.node_mut("b")?.start()?;
        let container = put_container(&street)?;
        let pid = container.pid().context("the container has no process")?;
        let filter = street.rig.file("nft");
        fs::write(
            &filter,
            "add rule ip others prerouting iifname != \"c0\" tcp dport 8088 dnat to 172.18.0.2:8088\n\
             add table inet deaf\n\
             add chain inet deaf output { type filter hook output priority 0; }\n\
             add rule inet deaf output icmp type destination-unreachable drop\n",
        )?;
        shell(&street.b, &format!("nft -f {}", filter.display()))?;
        let netkit = street.rig.netkit();
        let serve = [
            "nsenter",
            &format!("--net=/proc/{pid}/ns/net"),
            &netkit,
            "tcp-verify-serve",
            "172.18.0.2:8088",
        ];
        let server = street.b.spawn("verify-serve", &serve)?;
        poll(SOON, "the server in the container", || {
            Ok(server.log_text().contains("ready").then_some(()))
        })?;
        let to = street.rig.at("b", 8088)?.to_string();
        let move_bytes = |patience: &str| {
            street.rig.fleet.netkit_json("a", &["tcp-verify", &to, BYTES, patience])
        };

        street.ovd(&["guard", "off"])?;
        let stalled = move_bytes("2000");
        ensure!(stalled.is_err(), "without the clamp it passes too: {stalled:?}");
        street.ovd(&["guard", "on"])?;
        move_bytes("8000")?;
        ensure!(street.count("mss_clamped")? > 0, "nothing was clamped");
        Ok(())
    });
}

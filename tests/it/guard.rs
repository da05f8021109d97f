//! The guard against a neighbour on the LAN: whatever it tries, it reaches no service past the overlay.
//!
//! Every way in is tried with the guard lifted first, when it must work, and over the overlay with the
//! guard in force, when it must work too.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::binaries;
use crate::fleet::{Kind, parse};
use crate::support::{Counter, LAB, Rig, Running, SOON, expect_refusal, play};
use crate::world::{Machine, Process, poll};

/// How soon the guard is back after another tool removed it.
const BACK_WITHIN: Duration = Duration::from_millis(1_100);

/// How long a probe waits for an answer that may not come.
const PATIENCE_MS: &str = "300";

/// What `b` translates, as Docker, Istio and `iptables -j REDIRECT` do, and the container behind 9090.
const TRANSLATIONS: &str = "\
add table ip others
add chain ip others prerouting { type nat hook prerouting priority dstnat; }
add rule ip others prerouting iifname != \"c0\" tcp dport 8081 redirect to :8080
add rule ip others prerouting iifname != \"c0\" tcp dport 7070 redirect to :15006
add rule ip others prerouting iifname != \"c0\" tcp dport 9090 dnat to 172.18.0.2:80
add chain ip others postrouting { type nat hook postrouting priority srcnat; }
add rule ip others postrouting ip saddr 172.18.0.0/24 oifname \"eth0\" masquerade
";

/// The ways in from the LAN: services that `b` has there. The last two stand for its overlay address (the
/// weak host model: Linux takes packets for any of its addresses on any interface) and for a container
/// that is reached by a route instead of a published port.
const WAYS_IN: [&str; 9] = [
    "tcp/8080@B4",
    "tcp/8080@B6",
    "udp/5353@B4",
    "udp/5353@B6",
    "tcp/8081@B4",
    "tcp/7070@B4",
    "tcp/9090@B4",
    "tcp/8080@OVERLAY",
    "tcp/9090@172.18.0.2",
];

/// The same over the overlay.
const OVERLAY_WAYS: [&str; 4] =
    ["tcp/8080@OVERLAY", "udp/5353@OVERLAY", "tcp/7070@OVERLAY", "tcp/9090@OVERLAY"];

/// A server, a SaP, `a` that may use what `b` serves, and a neighbour `x` that may not.
pub(crate) struct Street<'a> {
    pub(crate) rig: &'a mut Rig,
    pub(crate) b: Machine,
    pub(crate) x: Machine,
    overlay: IpAddr,
}

impl<'a> Street<'a> {
    /// Joins `b` with options of `ovd run`.
    pub(crate) fn new(rig: &'a mut Rig, options: &[&str]) -> Result<Self> {
        let b = rig.world.machine("b")?;
        let token =
            rig.fleet.token(&["--role", "entity", "--overlay", LAB, "--port", "admin=tcp/9443"])?;
        rig.fleet.add(b.clone(), Kind::Entity, &token, options)?;
        rig.allow(&["a", "b", "--port", "tcp/8080,udp/5353,tcp/7070,tcp/9090,tcp/8088"])?;
        let x = rig.world.machine("x")?;
        let overlay = rig.fleet.address("b", LAB)?;
        for way in [overlay, "172.18.0.2".parse()?] {
            shell(&x, &format!("ip route add {way} via {}", b.ip4))?;
        }
        Ok(Self { rig, b, x, overlay })
    }

    /// Which of `questions` are answered when `machine` asks them.
    pub(crate) fn answered(&self, machine: &Machine, questions: &[&str]) -> Result<Vec<String>> {
        let mut words = vec![self.rig.netkit(), "probe".to_owned(), PATIENCE_MS.to_owned()];
        words.extend(questions.iter().map(|question| self.address(question)));
        let answer = parse(&machine.run(&words)?.success("netkit probe")?)?;
        let answered = answer["answered"].as_array().context("no answers")?;
        ensure!(answered.len() == questions.len(), "{answer}");
        let yes = questions.iter().zip(answered).filter(|(_, yes)| **yes == true);
        Ok(yes.map(|(&question, _)| question.to_owned()).collect())
    }

    fn address(&self, question: &str) -> String {
        question
            .replace("B4", &self.b.ip4.to_string())
            .replace("B6", &self.b.ip6.to_string())
            .replace("X4", &self.x.ip4.to_string())
            .replace("X6", &self.x.ip6.to_string())
            .replace("OVERLAY", &self.overlay.to_string())
    }

    /// Every one of `ways` is answered.
    pub(crate) fn expect_open(&self, machine: &Machine, ways: &[&str]) -> Result<()> {
        let mut last = Vec::new();
        poll(SOON, "every way to be open", || {
            last = self.answered(machine, ways)?;
            Ok((last == ways).then_some(()))
        })
        .with_context(|| format!("open from {}: {last:?} of {ways:?}", machine.name))
    }

    /// None of `ways` is answered.
    fn expect_closed(&self, ways: &[&str]) -> Result<()> {
        let open = self.answered(&self.x, ways)?;
        ensure!(open.is_empty(), "open to the LAN: {open:?}");
        Ok(())
    }

    pub(crate) fn ovd(&self, words: &[&str]) -> Result<String> {
        self.rig.fleet.node("b")?.command(words)?.success(&words.join(" "))
    }

    fn guard(&self) -> Result<Value> {
        parse(&self.ovd(&["guard", "show", "-o", "json"])?)
    }

    pub(crate) fn count(&self, rule: &str) -> Result<u64> {
        let guard = self.guard()?;
        let rules = guard["rules"].as_array().context("no rules")?;
        let found = rules.iter().find(|row| row["name"] == rule);
        found.and_then(|row| row["packets"].as_u64()).with_context(|| format!("no {rule}: {guard}"))
    }

    pub(crate) fn run(&self, machine: &Machine, words: &[&str]) -> Result<Running> {
        self.rig.run_on(machine, words)
    }

    /// A connection to an echo server that goes on and on.
    pub(crate) fn stream(&self, machine: &Machine, target: &str) -> Result<Counter> {
        self.rig.counter_on(machine, "tcp-stream", &[&self.address(target)], &[])
    }
}

pub(crate) fn expect_going(stream: &Counter) -> Result<()> {
    stream.expect_growth("received", 4).context("the stream does not go on")
}

/// Nothing arrives any more; a line that was on its way may.
pub(crate) fn expect_stopped(stream: &Counter) -> Result<()> {
    let quiet = |state: &Value| state["sinceLastMillis"].as_u64().is_some_and(|ms| ms > 700);
    poll(SOON, "the stream to stop", || {
        let state = stream.read()?;
        Ok((quiet(&state) || !state["error"].is_null()).then_some(()))
    })
}

pub(crate) fn shell(machine: &Machine, script: &str) -> Result<String> {
    machine.run(&["sh", "-e", "-c", script])?.success(script)
}

/// Puts the translations in force and a container behind `b`, on the bridge interface `c0`.
pub(crate) fn put_container(street: &Street<'_>) -> Result<Process> {
    let netkit = street.rig.netkit();
    let inside = format!(
        "ip link set lo up; until ip link show eth0 2> /dev/null; do sleep 0.05; done; \
         ip address add 172.18.0.2/24 dev eth0; ip link set eth0 up; \
         ip route add default via 172.18.0.1; exec {netkit} probe-serve tcp/80 tcp/9090"
    );
    let container =
        street.b.spawn("container", &["unshare", "--net", "--", "sh", "-c", &inside])?;
    let pid = container.pid().context("the container has no process")?;
    shell(
        &street.b,
        &format!(
            "ip link add c0 type veth peer name eth0 netns {pid}; ip address add 172.18.0.1/24 dev c0; \
             ip link set c0 up; echo 1 > /proc/sys/net/ipv4/ip_forward; \
             printf '%s' '{TRANSLATIONS}' | nft -f -"
        ),
    )?;
    poll(SOON, "the container", || Ok(container.log_text().contains("ready").then_some(())))?;
    Ok(container)
}

#[test]
fn no_neighbour_reaches_a_service_past_the_overlay_by_any_way() {
    play(&["s1"], &["a"], |rig| {
        let street = Street::new(rig, &["--guard", "ports"])?;
        let services = ["probe-serve", "tcp/8080", "udp/5353", "tcp/15006"];
        let _services = street.run(&street.b, &services)?;
        let container = put_container(&street)?;
        let a = street.rig.fleet.machine("a")?.clone();

        street.ovd(&["guard", "off"])?;
        street.expect_open(&street.x, &WAYS_IN)?;
        street.expect_open(&a, &OVERLAY_WAYS)?;
        ensure!(street.guard()?["underlayOpen"] == true);
        poll(SOON, "the server to hear of it", || {
            let shown = street.rig.fleet.ovctl_json(&["entity", "show", "b"])?.to_string();
            Ok(shown.contains("guard: off until").then_some(()))
        })?;

        street.ovd(&["guard", "on"])?;
        street.expect_closed(&WAYS_IN)?;
        street.expect_open(&a, &OVERLAY_WAYS)?;
        let rules = [
            "overlay_address_elsewhere",
            "service_elsewhere",
            "service_translated",
            "service_forwarded",
        ];
        for rule in rules {
            ensure!(street.count(rule)? > 0, "{rule} counted nothing: {}", street.guard()?);
        }
        ensure!(street.count("mss_clamped")? > 0, "the container's segments were not clamped");
        let services = street.guard()?["services"].to_string();
        ensure!(services.contains("tcp/9443") && services.contains("tcp/8080"), "{services}");

        // What this machine and its containers ask of the LAN is nobody's business, whatever the port.
        let _remote = street.run(&street.x, &["probe-serve", "tcp/9090", "tcp/8080"])?;
        street.expect_open(&street.b, &["tcp/9090@X4", "tcp/8080@X4"])?;
        let netkit = street.rig.netkit();
        let pid = container.pid().context("the container has no process")?;
        let asked = format!(
            "nsenter --net=/proc/{pid}/ns/net {netkit} probe 1000 tcp/9090@{}",
            street.x.ip4
        );
        let answer = shell(&street.b, &asked)?;
        ensure!(answer.contains("[true]"), "a container cannot reach the LAN: {answer}");

        // Neither a crash nor a stop opens anything.
        street.rig.fleet.node_mut("b")?.kill()?;
        street.expect_closed(&WAYS_IN)?;
        street.rig.fleet.node_mut("b")?.start()?;
        street.expect_closed(&WAYS_IN)?;
        street.expect_open(&a, &OVERLAY_WAYS)?;
        street.rig.fleet.node_mut("b")?.stop()?;
        street.expect_closed(&WAYS_IN)
    });
}

#[test]
fn the_guard_is_back_soon_after_another_tool_flushed_it() {
    // Other tests have the processors, too.
    flushed(1, |took| took.iter().any(|one| *one <= BACK_WITHIN));
}

#[test]
#[ignore = "long"]
fn the_guard_is_back_soon_after_each_of_twenty_flushes() {
    flushed(20, |took| took.iter().all(|one| *one <= BACK_WITHIN));
}

/// `is_soon` says which of all times has to hold the limit.
fn flushed(times: usize, is_soon: fn(&[Duration]) -> bool) {
    play(&["s1"], &["a"], |rig| {
        let street = Street::new(rig, &["--guard", "ports"])?;
        let _services = street.run(&street.b, &["probe-serve", "tcp/8080", "udp/5353"])?;
        let ways = &WAYS_IN[..4];
        street.expect_closed(ways)?;

        let mut tools = vec![
            "nft flush ruleset",
            "nft delete table inet ovmesh",
            "nft flush chain inet ovmesh input",
            "nft insert rule inet ovmesh input accept",
        ];
        // The nft back end of iptables has tables of its own; what it does to them is none of ours.
        if shell(&street.b, "command -v iptables").is_ok() {
            tools.extend([
                "iptables -F",
                "ip6tables -F",
                "echo '*filter\nCOMMIT' | iptables-restore",
            ]);
        }
        let mut took = Vec::new();
        for round in 0..times {
            for tool in &tools {
                let before = shell(&street.b, "nft -s list table inet ovmesh")?;
                let script = format!(
                    "{tool}; t=$(date +%s%N); for n in $(seq 400); do \
                     [ \"$(nft -s list table inet ovmesh 2> /dev/null)\" = \"$BEFORE\" ] && \
                     {{ echo $(($(date +%s%N) - t)); exit 0; }}; sleep 0.01; done; exit 1"
                );
                let command = format!("export BEFORE='{}'; {script}", before.trim_end());
                let nanos = shell(&street.b, &command)
                    .with_context(|| format!("after `{tool}`, round {round}"))?;
                took.push(Duration::from_nanos(nanos.trim().parse()?));
                street.expect_closed(ways)?;
            }
        }
        ensure!(is_soon(&took), "away for {took:?} after each of {tools:?}");
        let put_back = street.guard()?["putBack"].as_u64().unwrap_or(0);
        ensure!(put_back >= 4 * times as u64, "put back {put_back} times");
        ensure!(street.ovd(&["guard", "check"])?.contains("put back"));
        Ok(())
    });
}

#[test]
fn a_flow_that_is_older_than_the_guard_ends_when_it_comes() {
    // Without any translation nothing is tracked before the guard comes.
    play(&["s1"], &["a"], |rig| {
        let street = Street::new(rig, &["--guard", "ports"])?;
        let a = street.rig.fleet.machine("a")?.clone();
        let _echo = street.run(&street.b, &["tcp-echo", "[::]:8088"])?;
        street.ovd(&["guard", "off"])?;
        let streams =
            [street.stream(&street.x, "B4:8088")?, street.stream(&street.x, "[B6]:8088")?];
        let inside = street.stream(&a, "OVERLAY:8088")?;
        for stream in streams.iter().chain([&inside]) {
            expect_going(stream)?;
        }

        street.ovd(&["guard", "on"])?;

        for stream in &streams {
            expect_stopped(stream)?;
        }
        expect_going(&inside)
    });
}

#[test]
fn mode_all_closes_every_port_and_spares_who_is_connected_by_ssh() {
    play(&["s1"], &["a"], |rig| {
        let street = Street::new(rig, &["--guard", "all"])?;
        let a = street.rig.fleet.machine("a")?.clone();
        let ways =
            ["tcp/8080@B4", "tcp/8080@B6", "tcp/1234@B4", "udp/5353@B4", "udp/5353@B6", "icmp@B4"];
        let _services =
            street.run(&street.b, &["probe-serve", "tcp/8080", "tcp/1234", "udp/5353"])?;
        let _sshd = street.run(&street.b, &["tcp-echo", "[::]:22"])?;
        let _remote = street.run(&street.x, &["probe-serve", "tcp/80", "udp/53"])?;
        street.ovd(&["guard", "off"])?;
        street.expect_open(&street.x, &ways)?;
        let session = street.stream(&street.x, "B4:22")?;
        expect_going(&session)?;

        street.ovd(&["guard", "on"])?;

        street.expect_closed(&ways)?;
        street.expect_open(&a, &["tcp/8080@OVERLAY", "udp/5353@OVERLAY"])?;
        expect_going(&session)?;
        let peers = street.guard()?["sshPeers"].to_string();
        ensure!(peers.contains(&street.x.ip4.to_string()), "{peers}");
        // What this machine asks for is answered: IPv6 needs its neighbours for it.
        let x6 = street.x.ip6;
        street.expect_open(
            &street.b,
            &["tcp/80@X4", "udp/53@X4", &format!("tcp/80@{x6}"), "icmp@X4"],
        )?;

        // Told so, it cuts the session too.
        street.rig.fleet.node_mut("b")?.stop()?;
        street.rig.fleet.node_mut("b")?.set_options(&["--guard", "all", "--lock-ssh"]);
        street.rig.fleet.node_mut("b")?.start()?;
        expect_stopped(&session)
    });
}

#[test]
fn without_nftables_it_does_not_start_and_says_what_to_do() {
    play(&[], &[], |rig| {
        let b = rig.world.machine("b")?;
        let token = rig.fleet.token(&["--role", "entity", "--overlay", LAB])?;
        let ovd = binaries().ovd.to_string_lossy().into_owned();
        // Where nft may be there is nothing, on this machine alone.
        let hide = "for place in /usr/sbin /sbin /usr/local/sbin; do \
                    mount -t tmpfs tmpfs \"$(readlink -f $place)\"; done; \
                    PATH=/usr/bin:/bin exec \"$0\" run --join \"$1\" $2 $3";
        let run = |options: [&str; 2]| {
            b.run(&["sh", "-c", hide, ovd.as_str(), token.as_str(), options[0], options[1]])
        };

        let refused = run(["--guard", "ports"])?;
        expect_refusal(
            &refused,
            1,
            &["no program `nft`", "apt-get install nftables", "--guard off"],
        )?;

        // The token was not used up.
        let process = b.spawn("ovd", &["sh", "-c", hide, &ovd, &token, "--guard", "off"])?;
        poll(SOON, "ovd to run without a guard", || {
            Ok(process.log_text().contains("joined as").then_some(()))
        })
    });
}

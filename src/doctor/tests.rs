//! A good machine, and what is found when one thing of it is otherwise.

use super::*;
use crate::api::doctor::Level::{Ok as Good, Problem, Warning};
use crate::api::local::{GuardStatus, NarrowWay, NodeStatus};
use crate::types::{GuardMode, Prefix, Timestamp};

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn status() -> NodeStatus {
    let mut status = NodeStatus {
        endpoints: vec!["10.0.0.7:6080".parse().unwrap()],
        guard: Some(GuardStatus::of_tests()),
        ..NodeStatus::of_tests()
    };
    status.overlays[0].name = "prod".parse().unwrap();
    status.saps[0].name = "s1".to_owned();
    status.saps[0].endpoint = Some("10.0.0.9:6080".parse().unwrap());
    status
}

fn good() -> Facts {
    Facts {
        membership: Membership::Member("web".parse().unwrap()),
        daemon: Daemon::Answers(Box::new(status())),
        net_admin: true,
        tun: Tun::Usable,
        state: State {
            path: "/var/lib/ovmesh/ovd".to_owned(),
            fault: None,
            free_bytes: Some(10 << 30),
        },
        clock: Clock {
            here: Timestamp(1_000),
            server: Some(Timestamp(999)),
            table_written: Some(Timestamp(900)),
        },
        server: vec![ServerAnswer {
            url: "https://server.example:7443".to_owned(),
            is_named: true,
            outcome: Ok(12),
        }],
        overlays: vec![overlay("100.71.0.0/16")],
        ways: vec![way("sap s1", "10.0.0.9", Ok(1500))],
        ranges: vec![range("10.0.0.0/24", "eth0"), range("172.17.0.0/16", "docker0")],
        addresses: vec!["10.0.0.7".parse().unwrap()],
        uplinks: vec![Uplink { name: "eth0".to_owned(), is_strict: true }],
        forwards: [true, false],
        filter: Filter {
            chains: Ok(Vec::new()),
            has_guard: true,
            has_legacy: false,
            tools: Vec::new(),
        },
        guard_mode: GuardMode::Ports,
        data_port: 6080,
        names: Names {
            servers: vec![("10.0.0.1".parse().unwrap(), true)],
            own: Some(("web.prod.ov.internal".to_owned(), Lookup::Found)),
        },
    }
}

fn overlay(cidr: &str) -> Overlay {
    let cidr = prefix(cidr);
    Overlay { name: "prod".parse().unwrap(), cidr, address: Some(cidr.addr()) }
}

fn way(name: &str, to: &str, mtu: Result<u32, String>) -> Way {
    Way { name: name.to_owned(), to: to.parse().unwrap(), mtu }
}

fn range(text: &str, user: &str) -> HostRange {
    HostRange { prefix: prefix(text), user: user.to_owned() }
}

fn chain(hook: Hook, drops: bool) -> Chain {
    Chain { name: "inet other input".to_owned(), hook, drops }
}

fn tailscale() -> Tool {
    Tool { name: "Tailscale".to_owned(), meaning: "drops".to_owned() }
}

/// Has the daemon say something else.
fn says(facts: &mut Facts, change: impl FnOnce(&mut NodeStatus)) {
    let Daemon::Answers(status) = &mut facts.daemon else { panic!("it is silent") };
    change(status);
}

fn silence(facts: &mut Facts) {
    facts.daemon = Daemon::Silent("ovd does not answer on /run/ovmesh/ovd.sock".to_owned());
}

fn guarded(facts: &mut Facts, change: impl FnOnce(&mut GuardStatus)) {
    says(facts, |status| change(status.guard.as_mut().unwrap()));
}

#[test]
fn a_good_machine_has_nothing_but_good_findings() {
    let found = examine(&good());

    let bad: Vec<_> = found.iter().filter(|finding| finding.level != Good).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let subjects: Vec<&str> = found.iter().map(|finding| finding.subject.as_str()).collect();
    assert_eq!(
        subjects,
        [
            "membership",
            "ovd",
            "rights",
            "state",
            "clock",
            "server https://server.example:7443",
            "sap s1",
            "firewall",
            "guard",
            "mtu",
            "addresses",
            "forwarding",
            "dns",
            "overlay names",
        ]
    );
}

/// What is changed, and what is found then: how bad, about what, and words of the finding.
type Case = (fn(&mut Facts), Level, &'static str, &'static [&'static str]);

const CASES: &[Case] = &[
    // Whether it runs, and may.
    (
        |facts| facts.membership = Membership::None,
        Warning,
        "membership",
        &["has not joined", "ovctl token create"],
    ),
    (silence, Problem, "ovd", &["/run/ovmesh/ovd.sock", "systemctl start ovd"]),
    (
        |facts| {
            silence(facts);
            facts.membership = Membership::None;
        },
        Warning,
        "ovd",
        &["does not run"],
    ),
    (
        |facts| says(facts, |status| status.problems = vec!["overlay prod: no right".to_owned()]),
        Problem,
        "ovd",
        &["overlay prod: no right", "ovd status"],
    ),
    (|facts| says(facts, |status| status.table = None), Problem, "ovd", &["no table"]),
    (
        |facts| {
            silence(facts);
            facts.tun = Tun::Missing;
        },
        Problem,
        "/dev/net/tun",
        &["modprobe tun"],
    ),
    (
        |facts| {
            says(facts, |status| status.overlays[0].device = None);
            facts.tun = Tun::Refused("Operation not permitted".to_owned());
        },
        Problem,
        "/dev/net/tun",
        &["Operation not permitted", "device cgroup"],
    ),
    (
        |facts| {
            silence(facts);
            facts.net_admin = false;
        },
        Warning,
        "rights",
        &["CAP_NET_ADMIN"],
    ),
    (
        |facts| facts.state.fault = Some(("its mode is 0755".to_owned(), "chmod 700".to_owned())),
        Problem,
        "state",
        &["0755", "chmod 700"],
    ),
    (|facts| facts.state.free_bytes = Some(5 << 20), Problem, "state", &["5 MiB", "make room"]),
    // Clocks.
    (
        |facts| facts.clock.here = Timestamp(1_030),
        Warning,
        "clock",
        &["31 s ahead of the server's", "timedatectl"],
    ),
    (|facts| facts.clock.here = Timestamp(9), Problem, "clock", &["990 s behind the server's"]),
    (
        |facts| {
            facts.clock.server = None;
            facts.clock.here = Timestamp(800);
        },
        Problem,
        "clock",
        &["100 s behind the time that the table"],
    ),
    // Whom it reaches.
    (
        |facts| facts.server[0].outcome = Err(("timed out".to_owned(), "look there".to_owned())),
        Problem,
        "server https://server.example:7443",
        &["timed out", "joins and changes wait", "look there"],
    ),
    (
        |facts| {
            let mut other = facts.server[0].clone();
            other.url = "https://10.0.0.1:7443".to_owned();
            other.outcome = Err(("timed out".to_owned(), "look there".to_owned()));
            facts.server.push(other);
        },
        Warning,
        "server https://10.0.0.1:7443",
        &["another URL of it answers"],
    ),
    (
        |facts| says(facts, |status| status.saps[0].alive = false),
        Problem,
        "sap s1",
        &["10.0.0.9:6080", "udp/6080", "ovsap status"],
    ),
    (
        |facts| {
            says(facts, |status| status.saps[0].alive = false);
            facts.filter.chains = Ok(vec![chain(Hook::Input, false)]);
        },
        Problem,
        "sap s1",
        &["on this machine these filter: inet other input"],
    ),
    (
        |facts| {
            says(facts, |status| status.saps[0].alive = false);
            facts.filter.chains = Ok(vec![chain(Hook::Input, true)]);
            facts.filter.has_legacy = true;
        },
        Problem,
        "sap s1",
        &["inet other input, iptables-legacy", "one drops all"],
    ),
    (
        |facts| says(facts, |status| status.saps[0].endpoint = None),
        Problem,
        "sap s1",
        &["nobody knows where it is", "--endpoint"],
    ),
    (|facts| says(facts, |status| status.saps.clear()), Warning, "saps", &["only direct pairs"]),
    // Filters.
    (
        |facts| facts.filter.chains = Ok(vec![chain(Hook::Input, true)]),
        Warning,
        "firewall inet other input",
        &["drops what no rule lets in", "udp dport 6080 accept"],
    ),
    (
        |facts| facts.filter.chains = Ok(vec![chain(Hook::Output, true)]),
        Warning,
        "firewall inet other input",
        &["lets out"],
    ),
    (
        |facts| facts.filter.has_legacy = true,
        Warning,
        "firewall iptables-legacy",
        &["iptables-legacy -S"],
    ),
    (
        |facts| facts.filter.chains = Err(("no program `nft`".to_owned(), "install".to_owned())),
        Problem,
        "firewall",
        &["there can be no guard", "install"],
    ),
    (
        |facts| {
            facts.filter.chains = Err(("no program `nft`".to_owned(), "install".to_owned()));
            facts.guard_mode = GuardMode::Off;
        },
        Warning,
        "firewall",
        &["nobody knows"],
    ),
    (
        |facts| {
            let tool = Tool { name: "Docker".to_owned(), meaning: "publishes ports".to_owned() };
            facts.filter.tools.push(tool);
        },
        Good,
        "Docker",
        &["publishes ports"],
    ),
    // The guard.
    (
        |facts| guarded(facts, |guard| guard.in_force = false),
        Problem,
        "guard",
        &["not in force", "ovd guard on"],
    ),
    (
        |facts| guarded(facts, |guard| guard.off_until = Some(Timestamp(2_000))),
        Warning,
        "guard",
        &["off until", "by order"],
    ),
    (
        |facts| guarded(facts, |guard| guard.mode = GuardMode::Off),
        Warning,
        "guard",
        &["it is off", "ovd.toml"],
    ),
    (
        |facts| guarded(facts, |guard| guard.underlay_open = true),
        Warning,
        "guard",
        &["closes no port", "--guard all"],
    ),
    (|facts| guarded(facts, |guard| guard.put_back = 2), Good, "guard", &["put back 2 times"]),
    (
        |facts| {
            silence(facts);
            facts.filter.has_guard = false;
        },
        Warning,
        "guard",
        &["not there", "start ovd"],
    ),
    (silence, Good, "guard", &["also while ovd is away"]),
    // MTUs.
    (
        |facts| facts.ways.push(way("sap s2", "10.0.0.8", Err("no route".to_owned()))),
        Problem,
        "route to sap s2",
        &["10.0.0.8 cannot be reached: no route", "ip route get 10.0.0.8"],
    ),
    (
        |facts| facts.ways.push(way("b", "fd00::8", Ok(1400))),
        Good,
        "mtu",
        &["b (fd00::8)", "1400", "packets of 1344 fit"],
    ),
    (
        |facts| {
            facts.ways[0].mtu = Ok(1315);
            facts.overlays = vec![overlay("fd70::/64")];
        },
        Problem,
        "mtu of overlay prod",
        &["1315", "1279 without our headers", "1316 or more"],
    ),
    (
        |facts| {
            facts.ways[0].mtu = Ok(1316);
            facts.overlays = vec![overlay("fd70::/64")];
        },
        Good,
        "mtu",
        &["1280 fit"],
    ),
    (
        |facts| {
            let destination = "100.71.0.12".parse().unwrap();
            says(facts, |status| status.narrow = vec![NarrowWay { destination, mtu: 1364 }]);
        },
        Warning,
        "mtu to 100.71.0.12",
        &["1364 bytes", "ip route replace"],
    ),
    (
        |facts| {
            let destination = "fd70::12".parse().unwrap();
            says(facts, |status| status.narrow = vec![NarrowWay { destination, mtu: 1264 }]);
        },
        Problem,
        "mtu to fd70::12",
        &["1264 bytes", "IPv6 needs 1280"],
    ),
    // Addresses.
    (
        |facts| facts.ranges.push(range("100.71.3.0/24", "eth0")),
        Problem,
        "overlay prod",
        &["100.71.3.0/24 on eth0 lies in its range", "ip route show"],
    ),
    (
        |facts| facts.ranges.push(range("100.64.0.0/10", "wg0")),
        Warning,
        "overlay prod",
        &["lies in 100.64.0.0/10 on wg0", "--cidr"],
    ),
    (
        |facts| {
            facts.ranges.push(range("100.100.100.100/32", "tailscale0"));
            facts.filter.tools.push(tailscale());
        },
        Problem,
        "overlay prod beside Tailscale",
        &["100.71.0.0/16 is in 100.64.0.0/10", "netfilter-mode=off"],
    ),
    (
        |facts| facts.ranges.push(range("100.100.100.100/32", "tailscale0")),
        Warning,
        "overlay prod beside Tailscale",
        &["takes for its own"],
    ),
    (
        |facts| {
            facts.filter.tools.push(tailscale());
            facts.overlays = vec![overlay("10.70.0.0/16")];
        },
        Good,
        "Tailscale",
        &["another range"],
    ),
    (
        |facts| facts.addresses = vec!["100.99.0.5".parse().unwrap()],
        Warning,
        "carrier's NAT",
        &["100.99.0.5", "--direct"],
    ),
    (
        |facts| facts.addresses = vec!["100.71.0.5".parse().unwrap()],
        Problem,
        "carrier's NAT",
        &["in the range of overlay prod"],
    ),
    // Forwarding.
    (
        |facts| guarded(facts, |guard| guard.in_force = false),
        Warning,
        "forwarding",
        &["no guard", "ip_forward=0"],
    ),
    (
        |facts| facts.uplinks.push(Uplink { name: "wlan0".to_owned(), is_strict: true }),
        Warning,
        "rp_filter of wlan0",
        &["several ways out", "rp_filter=2"],
    ),
    // Names.
    (
        |facts| facts.names.servers[0].1 = false,
        Problem,
        "dns",
        &["10.0.0.1", "server's name cannot be looked up"],
    ),
    (
        |facts| {
            facts.names.servers[0].1 = false;
            facts.server[0].is_named = false;
        },
        Warning,
        "dns",
        &["no answer from 10.0.0.1"],
    ),
    (|facts| facts.names.servers.clear(), Warning, "dns", &["names no name server"]),
    (
        |facts| facts.names.own.as_mut().unwrap().1 = Lookup::NotFound,
        Warning,
        "overlay names",
        &["do not find web.prod.ov.internal", "ovd status"],
    ),
    (
        |facts| facts.names.own.as_mut().unwrap().1 = Lookup::Silence,
        Warning,
        "overlay names",
        &["nobody answered"],
    ),
];

#[test]
fn what_is_otherwise_is_found_and_says_what_to_do() {
    for (number, (change, level, subject, words)) in CASES.iter().enumerate() {
        let mut facts = good();
        change(&mut facts);

        let found = examine(&facts);

        let is_it = |finding: &&Finding| {
            let text = format!("{} {}", finding.what, finding.fix);
            finding.subject == *subject && words.iter().all(|word| text.contains(word))
        };
        let finding = found.iter().find(is_it);
        let finding = finding.unwrap_or_else(|| panic!("case {number}, {subject}: {found:#?}"));
        assert_eq!(finding.level, *level, "case {number}: {finding:?}");
        let needs_fix = finding.level == Problem;
        assert!(!needs_fix || !finding.fix.is_empty(), "case {number}: {finding:?}");
    }
}

#[test]
fn without_ovd_what_only_it_knows_is_left_out() {
    let mut facts = good();
    silence(&mut facts);

    let found = examine(&facts);

    assert!(!found.iter().any(|finding| finding.subject.starts_with("sap ")), "{found:#?}");
    assert!(found.iter().any(|finding| finding.subject == "mtu"));
}

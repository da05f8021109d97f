//! The networks that are compared: each three machines `a -- m -- b`, with `m` routing between two
//! veth pairs of MTU 1500, and one way of getting packets from `a` to `b`.
//!
//! ```text
//!   a  10.K.1.1 ---- 10.K.1.254  m (10.K.9.9)  10.K.2.254 ---- 10.K.2.1  b
//! ```
//!
//! Every way has machines of its own, so that a firewall rule or a daemon of one costs no other
//! anything. The world's LAN is only for enrolment.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::fleet::{Binaries, Fleet, Kind};
use crate::world::{Machine, Process, World, poll};

/// Where the sink, the echo and the pinned echo listen on `b`.
pub(crate) const SINK_PORT: u16 = 7_000;
pub(crate) const ECHO_PORT: u16 = 7_001;
pub(crate) const PINNED_ECHO_PORT: u16 = 7_002;

/// The option of `ovd run` and `ovsap run` that turns every offload and batch off.
const NAIVE: &str = "--data-path=naive";

/// Wires up one site.
const WIRE: &str = r"
set -e
a=$1 m=$2 b=$3 k=$4
ip link add up0 netns $a type veth peer name down0 netns $m
ip link add up0 netns $b type veth peer name down1 netns $m
ip -n $a address add 10.$k.1.1/24 dev up0
ip -n $b address add 10.$k.2.1/24 dev up0
ip -n $m address add 10.$k.1.254/24 dev down0
ip -n $m address add 10.$k.2.254/24 dev down1
ip -n $m address add 10.$k.9.9/32 dev lo
for end in $a $b; do ip -n $end link set up0 mtu 1500 up; done
for port in down0 down1; do ip -n $m link set $port mtu 1500 up; done
ip -n $a route add 10.$k.0.0/16 via 10.$k.1.254
ip -n $b route add 10.$k.0.0/16 via 10.$k.2.254
exec nsenter --net=/run/netns/$m -- sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
";

/// Kernel VXLAN between the ends, and a firewall in the middle that drops what no rule allows.
const VXLAN: &str = r"
set -e
a=$1 m=$2 b=$3 k=$4
ip -n $a link add vx0 mtu 1450 type vxlan id 42 dstport 4789 local 10.$k.1.1 remote 10.$k.2.1 dev up0
ip -n $b link add vx0 mtu 1450 type vxlan id 42 dstport 4789 local 10.$k.2.1 remote 10.$k.1.1 dev up0
ip -n $a address add 10.200.0.1/24 dev vx0
ip -n $b address add 10.200.0.2/24 dev vx0
for end in $a $b; do ip -n $end link set vx0 up; done
exec nsenter --net=/run/netns/$m -- nft -f - <<END
table ip overlay_filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ip saddr 10.$k.1.1 ip daddr 10.$k.2.1 udp dport 4789 counter accept
    ip saddr 10.$k.2.1 ip daddr 10.$k.1.1 udp dport 4789 counter accept
  }
}
END
";

/// A way from `a` to `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Routed, nothing else.
    Raw,
    /// VXLAN of the kernel, routed and filtered in the middle.
    Vxlan,
    /// Ours over a SaP with every offload and batch turned off.
    Naive,
    /// Ours, end to end through the routed middle.
    Direct,
    /// Ours over a SaP on the middle.
    Sap,
    /// As it was in an earlier build.
    Before,
}

impl Way {
    /// For tables and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vxlan => "vxlan",
            Self::Naive => "naive",
            Self::Direct => "direct",
            Self::Sap => "sap",
            Self::Before => "before",
        }
    }

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Raw => "routed veth, no overlay",
            Self::Vxlan => "kernel VXLAN, nftables in the middle",
            Self::Naive => "ovmesh over a SaP, one packet a system call",
            Self::Direct => "ovmesh direct",
            Self::Sap => "ovmesh over a SaP",
            Self::Before => "ovmesh over a SaP, earlier build",
        }
    }
}

/// One way, ready to be measured.
pub(crate) struct Site {
    /// Which.
    pub(crate) way: Way,
    /// Who sends.
    pub(crate) a: Machine,
    /// The receiver's address on this way.
    pub(crate) target: IpAddr,
    /// Our programs on the way, with their machines and process ids.
    pub(crate) programs: Vec<Program>,
}

/// One of our programs.
#[derive(Clone)]
pub(crate) struct Program {
    /// `ovd a`, `ovsap`, `ovd b`.
    pub(crate) name: String,
    /// Where it runs.
    pub(crate) machine: Machine,
    /// Its process id on its machine.
    pub(crate) pid: String,
}

/// Everything that is compared, and what holds it up.
pub(crate) struct Sites {
    pub(crate) all: Vec<Site>,
    /// Ways that this build does not have, with the reason.
    pub(crate) missing: Vec<(Way, String)>,
    _servers: Vec<Process>,
    _fleets: Vec<(Fleet, World)>,
}

struct Trio {
    number: u8,
    a: Machine,
    m: Machine,
    b: Machine,
}

impl Trio {
    fn new(world: &World, name: &str, number: u8) -> Result<Self> {
        let machine = |end: &str| world.machine(&format!("{name}-{end}"));
        let trio = Self { number, a: machine("a")?, m: machine("m")?, b: machine("b")? };
        trio.script(world, WIRE)?;
        Ok(trio)
    }

    fn script(&self, world: &World, script: &str) -> Result<()> {
        let output = world
            .command()
            .args(["sh", "-c", script, "bench"])
            .args([&self.a.name, &self.m.name, &self.b.name])
            .arg(self.number.to_string())
            .output()?;
        if !output.status.success() {
            bail!("wiring {}: {}", self.a.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn address(&self, net: u8, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, net, host)
    }

    fn target(&self) -> IpAddr {
        self.address(2, 1).into()
    }

    /// Starts our programs on the three machines.
    fn join(&self, fleet: &mut Fleet, overlays: &[&str], options: &[&str]) -> Result<Vec<Program>> {
        let nodes = [
            (&self.m, Kind::Sap, self.address(9, 9), "sap", "ovsap"),
            (&self.a, Kind::Entity, self.address(1, 1), "entity", "ovd a"),
            (&self.b, Kind::Entity, self.address(2, 1), "entity", "ovd b"),
        ];
        let mut programs = Vec::new();
        for (machine, kind, address, role, name) in nodes {
            let mut token = vec!["--role", role];
            for overlay in overlays {
                token.extend(["--overlay", overlay]);
            }
            let token = fleet.token(&token)?;
            let (listen, endpoint) = (format!("{address}:6080"), address.to_string());
            let mut all = vec!["--listen", &listen, "--endpoint", &endpoint];
            all.extend(options);
            fleet.add(machine.clone(), kind, &token, &all)?;
            let pid = fleet.node_mut(&machine.name)?.process()?.pid();
            let pid = pid.with_context(|| format!("{name} has no process id"))?.to_string();
            programs.push(Program { name: name.to_owned(), machine: machine.clone(), pid });
        }
        Ok(programs)
    }
}

impl Sites {
    /// Makes all of them and starts what listens on them.
    pub(crate) fn new(programs: &Path, this: &Path, before: Option<&Path>) -> Result<Self> {
        let world = World::new()?;
        let binaries = binaries_in(programs, this)?;
        let mut fleet = Fleet::start(&world, &binaries)?;
        let (mut all, mut missing) = (Vec::new(), Vec::new());
        let site =
            |way, trio: &Trio, target, programs| Site { way, a: trio.a.clone(), target, programs };

        let raw = Trio::new(&world, "raw", 101)?;
        all.push(site(Way::Raw, &raw, raw.target(), Vec::new()));

        let vxlan = Trio::new(&world, "vxlan", 102)?;
        match vxlan.script(&world, VXLAN) {
            Ok(()) => all.push(site(Way::Vxlan, &vxlan, [10, 200, 0, 2].into(), Vec::new())),
            Err(error) => missing.push((Way::Vxlan, format!("{error:#}"))),
        }

        for overlay in ["direct", "sap", "naive"] {
            fleet.ovctl_ok(&["overlay", "create", overlay])?;
        }

        let naive = Trio::new(&world, "naive", 103)?;
        if has_naive(&naive.a, &binaries)? {
            let programs = naive.join(&mut fleet, &["naive"], &[NAIVE])?;
            allow(&fleet, &naive, "naive", false)?;
            let target = fleet.address(&naive.b.name, "naive")?;
            all.push(site(Way::Naive, &naive, target, programs));
        } else {
            missing.push((Way::Naive, format!("`ovd run` has no option {NAIVE}")));
        }

        let ours = Trio::new(&world, "ours", 104)?;
        let programs = ours.join(&mut fleet, &["direct", "sap"], &[])?;
        allow(&fleet, &ours, "direct", true)?;
        allow(&fleet, &ours, "sap", false)?;
        let ends = programs.iter().filter(|program| program.name != "ovsap").cloned().collect();
        all.push(site(Way::Direct, &ours, fleet.address(&ours.b.name, "direct")?, ends));
        all.push(site(Way::Sap, &ours, fleet.address(&ours.b.name, "sap")?, programs));

        let trios = [&raw, &vxlan, &naive, &ours];
        let mut servers = Vec::new();
        for trio in trios {
            servers.extend(serve(&trio.b, this)?);
        }
        let mut fleets = vec![(fleet, world)];
        if let Some(before) = before {
            let world = World::new()?;
            let mut fleet = Fleet::start(&world, &binaries_in(before, this)?)?;
            fleet.ovctl_ok(&["overlay", "create", "sap"])?;
            let trio = Trio::new(&world, "before", 105)?;
            let programs = trio.join(&mut fleet, &["sap"], &[])?;
            allow(&fleet, &trio, "sap", false)?;
            let target = fleet.address(&trio.b.name, "sap")?;
            all.push(site(Way::Before, &trio, target, programs));
            servers.extend(serve(&trio.b, this)?);
            fleets.push((fleet, world));
        }
        Ok(Self { all, missing, _servers: servers, _fleets: fleets })
    }
}

/// This program serves as the traffic tool too.
fn binaries_in(programs: &Path, this: &Path) -> Result<Binaries> {
    let found = |name: &str| -> Result<PathBuf> {
        let path = programs.join(name);
        if !path.exists() {
            bail!("{} is missing\n  do:  make bench", path.display());
        }
        Ok(path)
    };
    Ok(Binaries {
        ovctl: found("ovctl")?,
        ovd: found("ovd")?,
        ovsap: found("ovsap")?,
        netkit: this.to_owned(),
    })
}

/// Whether this build knows the option; a hidden one is not in the help, so it is tried.
fn has_naive(machine: &Machine, binaries: &Binaries) -> Result<bool> {
    let ovd = binaries.ovd.to_string_lossy().into_owned();
    // With `--help` nothing runs; an option that does not exist is refused before.
    let output = machine.run(&[ovd.as_str(), "run", NAIVE, "--help"])?;
    Ok(output.code == 0)
}

/// Lets the two ends of a site talk.
fn allow(fleet: &Fleet, trio: &Trio, overlay: &str, is_direct: bool) -> Result<()> {
    let (a, b) = (trio.a.name.as_str(), trio.b.name.as_str());
    let mut rule = vec!["policy", "allow", a, b, "--both", "--overlay", overlay];
    if is_direct {
        rule.push("--direct");
    }
    fleet.ovctl_ok(&rule).map(drop)
}

/// Starts what listens on `b`.
fn serve(machine: &Machine, this: &Path) -> Result<Vec<Process>> {
    let this = this.to_string_lossy().into_owned();
    let any = |port: u16| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).to_string();
    let own: [(&str, Vec<String>); 3] = [
        ("sink", vec![this.clone(), "udp-sink".to_owned(), any(SINK_PORT)]),
        ("echo", vec![this.clone(), "udp-echo".to_owned(), any(ECHO_PORT)]),
        (
            "pinned-echo",
            ["taskset", "-c", "0", &this, "udp-echo", &any(PINNED_ECHO_PORT)]
                .map(str::to_owned)
                .to_vec(),
        ),
    ];
    let mut servers = vec![machine.spawn("iperf3", &["iperf3", "-s"])?];
    for (name, command) in own {
        let mut process = machine.spawn(name, &command)?;
        poll(Duration::from_secs(10), &format!("{name} on {}", machine.name), || {
            if !process.is_running() {
                bail!("{name} ended: {}", process.log_text());
            }
            Ok(process.log_text().lines().any(|line| line == "ready").then_some(()))
        })?;
        servers.push(process);
    }
    Ok(servers)
}

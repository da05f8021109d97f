//! `ovd doctor`: gathers what there is to know about this machine, and has it judged.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use super::node::{self, Settings};
use crate::agent::client::Client;
use crate::agent::state::{Identity, StateDir};
use crate::api::Problem;
use crate::api::doctor::Diagnosis;
use crate::api::local::NodeStatus;
use crate::api::table::NodeTable;
use crate::cli;
use crate::cli::args::DoctorArgs;
use crate::cli::output::Output;
use crate::dns;
use crate::doctor::{
    self, Chain, Clock, Daemon, Facts, Filter, Hook, HostRange, Lookup, Membership, Names, Overlay,
    ServerAnswer, State, Tool, Tun, Uplink, Way,
};
use crate::guard;
use crate::sys::net::{Network, source_towards};
use crate::sys::{clock, limits};
use crate::types::{ApiVersion, EntityName, NodeKind, Timestamp};

/// The number of CAP_NET_ADMIN.
const NET_ADMIN_BIT: u32 = 12;

/// How many ways are asked for their MTU.
const WAYS_MAX: usize = 16;

/// Looks, judges and shows.
pub(super) fn run(args: &DoctorArgs) -> ExitCode {
    let mut output = Output::standard(args.output);
    let diagnosis = diagnose(args);
    let outcome = diagnosis.map(|diagnosis| cli::doctor::show(&mut output, &diagnosis));
    node::conclude(&mut output, outcome)
}

fn diagnose(args: &DoctorArgs) -> Result<Diagnosis, Problem> {
    let settings = Settings::new(NodeKind::Entity, args.node.clone().into())?;
    // What root alone may read comes before root uses files as the daemon's user.
    let (filter, tun) = (filter(), tun());
    let settings = settings.for_owner()?;
    let facts =
        node::runtime()?.block_on(gather(&settings, args.node.socket.as_deref(), filter, tun))?;
    Ok(Diagnosis { api_version: ApiVersion::V1, findings: doctor::examine(&facts) })
}

/// What the disk knows of this node.
struct Kept {
    identity: Option<Identity>,
    table: Option<NodeTable>,
    devices: BTreeSet<String>,
    fault: Option<(String, String)>,
}

async fn gather(
    settings: &Settings,
    socket: Option<&Path>,
    filter: Filter,
    tun: Tun,
) -> Result<Facts, Problem> {
    let network = Network::open().map_err(node::failed)?;
    let kept = kept(settings);
    let daemon = ask_daemon(socket).await;
    let status = match &daemon {
        Daemon::Answers(status) => Some(&**status),
        Daemon::Silent(_) => None,
    };
    let ServerFacts { answers: server, times, addresses } =
        ask_server(kept.identity.as_ref()).await;
    let (here, there) = times.map_or((clock::wall(), None), |(here, there)| (here, Some(there)));
    let ways = ways(&network, kept.table.as_ref(), status).await;
    let own = own_devices(&kept, status);
    let towards: Vec<IpAddr> =
        ways.iter().map(|way| way.to).chain(addresses.iter().map(SocketAddr::ip)).collect();
    let name = status.map(|status| &status.name).or(kept.identity.as_ref().map(|own| &own.name));
    let overlays = overlays(kept.table.as_ref(), status);
    let names = ask_names(name, &overlays).await;
    Ok(Facts {
        membership: match (name, &kept.fault) {
            (Some(name), _) => Membership::Member(name.clone()),
            (None, Some((what, _))) => Membership::Unknown(what.clone()),
            (None, None) => Membership::None,
        },
        net_admin: has_net_admin(),
        tun,
        state: state(settings, kept.fault),
        clock: Clock {
            here,
            server: there,
            table_written: StateDir::peek_written(&settings.state_dir),
        },
        server,
        ranges: ranges(&network, &own).await,
        addresses: sources(&towards),
        uplinks: uplinks(&network, &towards, &own).await,
        forwards: ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
            .map(|name| sysctl(name) == Some(1)),
        filter,
        guard_mode: settings.guard.mode,
        data_port: settings.listen.port(),
        overlays,
        ways,
        names,
        daemon,
    })
}

fn kept(settings: &Settings) -> Kept {
    let (dir, uid) = (&settings.state_dir, settings.uid);
    let (table, devices) = StateDir::peek(dir, uid);
    let (identity, fault) = match StateDir::peek_identity(dir, uid) {
        Ok(identity) => (identity, None),
        Err(Problem { what, why, fix, .. }) => (None, Some((format!("{what}: {why}"), fix))),
    };
    Kept { identity, table, devices: devices.into_values().collect(), fault }
}

fn state(settings: &Settings, fault: Option<(String, String)>) -> State {
    let dir = &settings.state_dir;
    let there = dir.ancestors().find(|ancestor| ancestor.exists());
    let free_bytes = there.and_then(|there| limits::free_bytes(there).ok());
    State { path: dir.display().to_string(), fault, free_bytes }
}

async fn ask_daemon(socket: Option<&Path>) -> Daemon {
    let status = async {
        let client = cli::client::Client::to_daemon("ovd", socket)?;
        client.read::<NodeStatus>("/v1/status", &[]).await
    };
    match status.await {
        Ok(answer) => Daemon::Answers(Box::new(answer.value)),
        Err(problem) => Daemon::Silent(problem.what),
    }
}

/// What came of asking the server.
#[derive(Default)]
struct ServerFacts {
    answers: Vec<ServerAnswer>,
    /// The time here and there when the first answer came.
    times: Option<(Timestamp, Timestamp)>,
    /// Where its URLs lead.
    addresses: Vec<SocketAddr>,
}

/// Asks each URL by itself, all at once.
async fn ask_server(identity: Option<&Identity>) -> ServerFacts {
    let mut found = ServerFacts::default();
    let Some(identity) = identity else { return found };
    let mut asked = Vec::new();
    for url in &identity.urls {
        let Ok(client) = Client::new(vec![url.clone()], &identity.pin) else { continue };
        let question = async move {
            let started = Instant::now();
            let answer = client.clock().await;
            (answer, clock::wall(), started.elapsed(), client.addresses().all())
        };
        asked.push((url.clone(), tokio::spawn(question)));
    }
    for (url, question) in asked {
        let Ok((answer, here, took, addresses)) = question.await else { continue };
        found.addresses.extend(addresses);
        let outcome = match answer {
            Ok(there) => {
                found.times = found.times.or(there.map(|there| (here, there)));
                Ok(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
            }
            Err(Problem { what, why, fix, .. }) => Err((format!("{what}: {why}"), fix)),
        };
        found.answers.push(ServerAnswer { is_named: !has_literal(&url), url, outcome });
    }
    found
}

/// Whether a URL has an address where others have a name.
fn has_literal(url: &str) -> bool {
    let authority = url.strip_prefix("https://").unwrap_or(url).trim_end_matches('/');
    let host = authority.trim_matches(['[', ']']);
    authority.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok()
}

fn overlays(table: Option<&NodeTable>, status: Option<&NodeStatus>) -> Vec<Overlay> {
    if let Some(status) = status {
        let overlays = status.overlays.iter();
        return overlays
            .map(|overlay| Overlay {
                name: overlay.name.clone(),
                cidr: overlay.cidr,
                address: overlay.address,
            })
            .collect();
    }
    let overlays = table.into_iter().flat_map(|table| &table.body.overlays);
    overlays
        .map(|overlay| Overlay {
            name: overlay.name.clone(),
            cidr: overlay.cidr,
            address: overlay.address,
        })
        .collect()
}

fn own_devices(kept: &Kept, status: Option<&NodeStatus>) -> BTreeSet<String> {
    let running = status.into_iter().flat_map(|status| &status.overlays);
    running
        .filter_map(|overlay| overlay.device.clone())
        .chain(kept.devices.iter().cloned())
        .collect()
}

/// The ways to SaPs and direct peers, as the table has them; without it those that the daemon names.
async fn ways(
    network: &Network,
    table: Option<&NodeTable>,
    status: Option<&NodeStatus>,
) -> Vec<Way> {
    let mut targets: Vec<(String, SocketAddr)> = Vec::new();
    if let Some(NodeTable { body, .. }) = table {
        targets.extend(body.hops().map(|(hop, endpoint)| (hop.to_string(), endpoint)));
    } else if let Some(status) = status {
        let saps = status.saps.iter();
        targets.extend(saps.filter_map(|sap| Some((format!("sap {}", sap.name), sap.endpoint?))));
    }
    let mut ways: Vec<Way> = Vec::new();
    for (name, endpoint) in targets {
        let to = endpoint.ip().to_canonical();
        if ways.len() >= WAYS_MAX {
            break;
        }
        if ways.iter().any(|way| way.to == to) {
            continue;
        }
        let mtu = network.mtu_towards(to).await.map_err(|error| error.why);
        ways.push(Way { name, to, mtu });
    }
    ways
}

async fn ranges(network: &Network, own: &BTreeSet<String>) -> Vec<HostRange> {
    let occupied = network.occupied().await.unwrap_or_default().into_iter();
    occupied
        .filter(|(_, user)| !own.contains(user))
        .map(|(prefix, user)| HostRange { prefix, user })
        .collect()
}

fn sources(towards: &[IpAddr]) -> Vec<IpAddr> {
    // Nothing is sent, so any port does.
    let found = towards.iter().filter_map(|&to| source_towards(SocketAddr::new(to, 9)).ok());
    found.collect::<BTreeSet<_>>().into_iter().collect()
}

async fn uplinks(network: &Network, towards: &[IpAddr], own: &BTreeSet<String>) -> Vec<Uplink> {
    let filter_of = |name: &str| sysctl(&format!("net/ipv4/conf/{name}/rp_filter")).unwrap_or(0);
    let everywhere = filter_of("all");
    let names = network.uplinks(towards).await.unwrap_or_default().into_iter();
    names
        .filter(|name| !own.contains(name))
        .map(|name| {
            // The larger one counts; 1 is strict, 2 is loose.
            let is_strict = filter_of(&name).max(everywhere) == 1;
            Uplink { name, is_strict }
        })
        .collect()
}

fn sysctl(name: &str) -> Option<u32> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

fn has_net_admin() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let rights = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    rights.is_some_and(|rights| rights & (1 << NET_ADMIN_BIT) != 0)
}

fn tun() -> Tun {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Tun::Usable,
        Err(error) if error.kind() == ErrorKind::NotFound => Tun::Missing,
        Err(error) => Tun::Refused(error.to_string()),
    }
}

fn filter() -> Filter {
    let is_used = |path| fs::read_to_string(path).is_ok_and(|tables| tables.contains("filter"));
    let has_legacy = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"].map(is_used);
    let has_legacy = has_legacy.contains(&true);
    let chains = match guard::chains() {
        Ok(chains) => chains,
        Err(error) => {
            let chains = Err((format!("{}: {}", error.what, error.why), error.fix));
            return Filter { chains, has_guard: false, has_legacy, tools: Vec::new() };
        }
    };
    let tools = guard::interference(&chains)
        .into_iter()
        .map(|found| Tool { name: found.tool.to_owned(), meaning: found.meaning.to_owned() });
    Filter {
        has_guard: chains.iter().any(guard::ForeignChain::is_ours),
        tools: tools.collect(),
        chains: Ok(chains.iter().filter(|chain| !chain.is_ours()).filter_map(hooked).collect()),
        has_legacy,
    }
}

/// A chain of filters that packets of this machine, or for it, run through.
fn hooked(chain: &guard::ForeignChain) -> Option<Chain> {
    let is_filter = chain.kind.as_deref() == Some("filter");
    let is_of_ip = ["ip", "ip6", "inet"].contains(&chain.family.as_str());
    let hook = match chain.hook.as_deref()? {
        "input" => Hook::Input,
        "output" => Hook::Output,
        _ => return None,
    };
    let name = format!("{} {} {}", chain.family, chain.table, chain.name);
    let drops = chain.policy.as_deref() == Some("drop");
    (is_filter && is_of_ip).then_some(Chain { name, hook, drops })
}

/// Asks as programs here do.
async fn ask_names(name: Option<&EntityName>, overlays: &[Overlay]) -> Names {
    let servers = dns::System::read().listed();
    let asked: Vec<_> =
        servers.iter().map(|&server| (server, tokio::spawn(dns::answers(server)))).collect();
    let place = overlays.iter().find_map(|overlay| Some((&overlay.name, overlay.address?)));
    let own = match (servers.first(), name, place) {
        (Some(&server), Some(name), Some((overlay, address))) => {
            let Some(name) = name.overlay_names(overlay).into_iter().next() else {
                return Names::default();
            };
            let found = dns::has_address(server, &name, address.is_ipv4()).await;
            let lookup = match found {
                Some(true) => Lookup::Found,
                Some(false) => Lookup::NotFound,
                None => Lookup::Silence,
            };
            Some((name, lookup))
        }
        _ => None,
    };
    let mut answered = Vec::new();
    for (server, question) in asked {
        answered.push((server, question.await.unwrap_or(false)));
    }
    Names { servers: answered, own }
}

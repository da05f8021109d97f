//! An entity is where it proves to be: behind a router that translates, after its mapping or its address
//! changed, and never where it only claims to be.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use ovmesh::wire::control::{self, Echo, Message};

use crate::fleet::Kind;
use crate::packet::{hex, udp};
use crate::support::{Counter, LAB, READY, Rig, SOON, expect_refusal, number, play};
use crate::trains::{drops, grown};
use crate::world::{Machine, poll};

/// How long traffic may stand still when an address or a mapping changes.
const BACK_WITHIN: Duration = Duration::from_secs(3);

/// How many of each forged message; fewer than a link is answered in a second.
const FORGED: u64 = 10;

/// A router between the LAN and the laptop, with a port of its own choice for each flow.
const ROUTER: &str = "echo 1 > /proc/sys/net/ipv4/ip_forward
ip link add in0 type veth peer name eth1 netns laptop
ip address add 192.168.77.1/24 dev in0
ip link set in0 up
nft -f - <<'END'
table ip nat {
  chain out {
    type nat hook postrouting priority srcnat
    oifname eth0 masquerade fully-random
  }
}
END";

/// Every mapping is lost, and the next ones are others: the router's own link was away.
const OTHER_MAPPINGS: &str = "nft flush chain ip nat out
nft add rule ip nat out ip protocol udp oifname eth0 masquerade to :30000-30999
ip link set eth0 down
ip link set eth0 up
ip route replace default via 10.99.0.1";

const BEHIND_THE_ROUTER: &str = "ip link set eth0 down
ip link set eth1 up
ip route replace default via 192.168.77.1";

const ON_THE_LAN: &str = "ip link set eth1 down
ip link set eth0 up
ip route replace default via 10.99.0.1";

#[test]
#[expect(clippy::print_stdout, reason = "the figures are what this is for")]
fn an_entity_behind_a_nat_is_reached_where_it_proved_to_be() {
    play(&["s1"], &["a"], |rig| {
        let (router, laptop) = (rig.world.machine("router")?, rig.world.machine("laptop")?);
        shell(&router, ROUTER)?;
        shell(&laptop, "ip address add 192.168.77.2/24 dev eth1")?;
        shell(&laptop, BEHIND_THE_ROUTER)?;
        let token = rig.fleet.token(&["--role", "entity", "--overlay", LAB])?;
        rig.fleet.add(laptop.clone(), Kind::Entity, &token, &[])?;
        rig.allow(&["a", "laptop", "--both", "--port", "udp/9,tcp/7"])?;
        let _servers =
            [rig.udp_echo("laptop", 9)?, rig.udp_echo("a", 9)?, rig.tcp_echo("laptop", 7)?];

        // Either side starts flows.
        ensure!(rig.udp_ping("laptop", "a", 9, 5)? == 5);
        ensure!(rig.udp_ping("a", "laptop", 9, 5)? == 5);
        let mapped = place(rig, "laptop")?;
        ensure!(mapped.ip() == router.ip4 && mapped.port() != 6080, "{mapped}");
        // Nobody but a SaP can know the way in.
        poll(SOON, "the server to know of the NAT", || {
            let set = rig.fleet.ovctl(&["path", "set", "a", "laptop", "--direct", "--dry-run"])?;
            Ok((set.code == 5).then_some(set))
        })
        .and_then(|set| expect_refusal(&set, 5, &["NAT", "laptop"]))?;

        // A router that forgets sooner than anybody speaks: each echo makes another mapping.
        forget_after(&router, 1)?;
        poll(READY, "another mapping", || Ok((place(rig, "laptop")? != mapped).then_some(())))?;
        poll(BACK_WITHIN, "the idle laptop to be reached", || {
            Ok((rig.udp_ping("a", "laptop", 9, 1)? == 1).then_some(()))
        })?;
        forget_after(&router, 60)?;

        let target = |port| Ok::<_, anyhow::Error>(rig.at("laptop", port)?.to_string());
        let flows = [
            rig.counter("a", "udp-stream", &target(9)?, &["5000"])?,
            rig.counter("a", "tcp-stream", &target(7)?, &[])?,
        ];
        goes_on(&flows)?;
        for (what, machine, script, ip, ports) in [
            ("another mapping", &router, OTHER_MAPPINGS, router.ip4, 30_000..31_000),
            ("out of the NAT", &laptop, ON_THE_LAN, laptop.ip4, 6_080..6_081),
            ("into the NAT", &laptop, BEHIND_THE_ROUTER, router.ip4, 30_000..31_000),
        ] {
            shell(machine, script)?;
            poll(SOON, what, || {
                let place = place(rig, "laptop")?;
                Ok((place.ip() == ip && ports.contains(&place.port())).then_some(()))
            })?;
            goes_on(&flows).context(what)?;
            let [udp, tcp] = [flows[0].number("gapMillisMax")?, flows[1].number("gapMillisMax")?];
            println!("{what}: the longest gap so far is {udp} ms (UDP), {tcp} ms (TCP)");
            let longest = Duration::from_millis(udp.max(tcp));
            ensure!(longest < BACK_WITHIN, "{what}: back after {longest:?}");
        }
        Ok(())
    });
}

#[test]
fn who_claims_anothers_endpoint_gets_nothing_and_diverts_nothing() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        rig.allow(&["a", "b", "--port", "udp/9"])?;
        rig.allow(&["a", "c", "--port", "udp/9"])?;
        let _echo = rig.udp_echo("b", 9)?;
        let at_c = rig.udp_sink("c", 9)?;
        let target = rig.at("c", 9)?.to_string();
        let [own, bs] = [rig.underlay("c")?, rig.underlay("b")?];
        rig.udp_send("a", "c", 9, 10)?;
        at_c.expect_received(10)?;

        // In the name of c, as c could, from the endpoint of b: b gets the challenges, c learns nothing.
        let forged = rig.file("echoes");
        let send = [rig.netkit(), "ip-send".into(), format!("@{}", forged.display()), "1".into()];
        // An echo of c's own in between makes those of the file old.
        poll(READY, "the challenges to be dropped by b", || {
            fs::write(&forged, echoes(rig, "c", bs, rig.underlay("s1")?)?.join("\n"))?;
            let dropped = rig.drops_move("b", "control_mac", FORGED, || {
                rig.fleet.machine("c")?.run(&send)?.success("ip-send").map(drop)
            });
            Ok(dropped.ok())
        })?;
        ensure!((place(rig, "c")?, place(rig, "b")?) == (own, bs), "something moved");
        rig.udp_send("a", "c", 9, 10)?;
        at_c.expect_received(20)?;
        ensure!(rig.udp_ping("a", "b", 9, 5)? == 5);

        // Said to the server it is no better: packets go where c's echoes come from.
        let claim = bs.to_string();
        rig.fleet.node_mut("c")?.stop()?;
        rig.fleet.node_mut("c")?.set_options(&["--endpoint", &claim]);
        rig.fleet.node_mut("c")?.start()?;
        poll(SOON, "the claim to be in the SaP's table", || {
            Ok(serde_json::to_string(&rig.table("s1")?)?.matches(&claim).nth(1).map(drop))
        })?;
        let before = drops(rig, "b")?;
        rig.udp_send("a", "c", 9, 10)?;
        at_c.expect_received(30)?;

        // Nor where nobody proved anything: c is silent, and the SaP starts without a memory.
        rig.fleet.node_mut("c")?.stop()?;
        rig.fleet.node_mut("s1")?.stop()?;
        let memory = rig.fleet.machine("s1")?.state_dir().join("ovsap/endpoints.json");
        ensure!(fs::read_to_string(&memory)?.contains(&own.to_string()), "it remembers c");
        fs::remove_file(&memory)?;
        rig.fleet.node_mut("s1")?.start()?;
        poll(SOON, "the SaP to know a and b", || {
            Ok((rig.udp_ping("a", "b", 9, 1)? == 1).then_some(()))
        })?;
        let words = ["udp-send", "0.0.0.0:0", &target, "10", "1000", "64"];
        rig.drops_move("s1", "no_path", 10, || rig.fleet.netkit_json("a", &words).map(drop))?;
        let at_b = grown(&before, &drops(rig, "b")?);
        ensure!(at_b.is_empty(), "b got what was not for it: {at_b:?}");

        // The control: c speaks, and is there.
        rig.fleet.node_mut("c")?.start()?;
        drop(at_c);
        let _echo = rig.udp_echo("c", 9)?;
        poll(SOON, "c to be reached", || Ok((rig.udp_ping("a", "c", 9, 1)? == 1).then_some(())))
    });
}

/// Echo requests of `node`, which its SaP could believe, from an endpoint that it forges.
fn echoes(rig: &Rig, node: &str, from: SocketAddr, sap: SocketAddr) -> Result<Vec<String>> {
    let table = rig.table(node)?;
    let link = table.body.links.first().with_context(|| format!("{node} has no link"))?;
    let now = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let echo = |number| {
        let echo = Echo { sequence: 7, cookie: number, ..Echo::default() };
        let message = Message::EchoRequest(echo);
        let (bytes, len) = control::encode(link.id, &link.secret, now + number, &message);
        hex(&udp(from, sap, &bytes[..len]))
    };
    Ok((0..FORGED).map(echo).collect())
}

/// Where the SaP sends packets for an entity.
fn place(rig: &Rig, entity: &str) -> Result<SocketAddr> {
    let status = rig.fleet.node("s1")?.status()?;
    let peers = status["saps"].as_array().context("no peers")?;
    let peer = peers.iter().find(|peer| peer["name"] == entity);
    let place = peer.and_then(|peer| peer["endpoint"].as_str());
    Ok(place.with_context(|| format!("{entity} is not there: {peers:?}"))?.parse()?)
}

/// Waits until each flow has moved on.
fn goes_on(flows: &[Counter]) -> Result<()> {
    for flow in flows {
        let start = number(&flow.read()?, "received")?;
        poll(SOON, "the flows to go on", || {
            Ok((flow.number("received")? >= start + 20).then_some(()))
        })?;
    }
    Ok(())
}

/// How long a router remembers a flow of datagrams.
fn forget_after(router: &Machine, seconds: u32) -> Result<()> {
    let write = ["", "_stream"].map(|kind| {
        format!("echo {seconds} > /proc/sys/net/netfilter/nf_conntrack_udp_timeout{kind}")
    });
    shell(router, &write.join(" && "))
}

fn shell(machine: &Machine, script: &str) -> Result<()> {
    machine.run(&["sh", "-e", "-c", script])?.success(script).map(drop)
}

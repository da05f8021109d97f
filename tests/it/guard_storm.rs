//! A neighbour that sends without a pause while everything happens to `ovd` that can: not one of its packets
//! reaches a service, and not one of this machine's leaves in clear.

use anyhow::{Context, Result, ensure};

use crate::fleet::parse;
use crate::guard::{Street, shell};
use crate::support::{Counter, LAB, SOON, number, play};
use crate::world::{Machine, Process, poll};

/// Between two datagrams of each sender, in microseconds: 1,000 a second.
const PACE_MICROS: &str = "1000";

/// How many datagrams of the neighbour have to come by in a state before it counts as tried.
const TRIED: u64 = 300;

/// A port that is no service and so open: what arrives there shows that the neighbour sends.
const WITNESS: u16 = 7777;

/// The ways in, each with a port of its own: `b`'s addresses on the LAN, its overlay address, and a source
/// that pretends to be a member.
const WAYS: [(&str, u16); 4] =
    [("IPv4", 5353), ("IPv6", 5354), ("the overlay address", 5355), ("a member's source", 5356)];

/// What other tools do to a machine's rules.
const FLUSHES: [&str; 5] = [
    "nft flush ruleset",
    "nft delete table inet ovmesh",
    "nft flush chain inet ovmesh input",
    "nft insert rule inet ovmesh input accept",
    "nft flush table inet ovmesh",
];

struct Storm<'a> {
    street: Street<'a>,
    /// What came by each of [`WAYS`].
    services: Vec<Counter>,
    witness: Counter,
    /// What of `b`'s packets for the overlay the neighbour saw.
    leaked: Counter,
    _senders: Vec<Process>,
}

impl<'a> Storm<'a> {
    fn new(street: Street<'a>) -> Result<Self> {
        let rig = &*street.rig;
        let [a, overlay] = ["a", "b"].map(|name| rig.fleet.address(name, LAB));
        let (a, overlay) = (a?, overlay?);
        rig.allow(&["a", "b", "--port", "udp/5353-5356"])?;
        rig.allow(&["b", "a", "--port", "udp/7"])?;
        let sink =
            |port: u16| rig.counter_on(&street.b, "udp-sink", &[&format!("[::]:{port}")], &[]);
        let services = WAYS.iter().map(|(_, port)| sink(*port)).collect::<Result<_>>()?;
        let witness = sink(WITNESS)?;
        let leaked = rig.counter_on(&street.x, "ip-count", &[&a.to_string()], &[])?;
        // The neighbour pretends to be a, and b's way to a is bent to the neighbour.
        shell(&street.x, &format!("ip address add {a}/32 dev eth0"))?;
        shell(&street.b, &format!("ip route replace {a} via {} dev eth0", street.x.ip4))?;
        let netkit = rig.netkit();
        let send = |machine: &Machine, log: &str, source: &str, target: &str| {
            let words = [netkit.as_str(), "udp-send", source, target, "4000000", PACE_MICROS, "64"];
            machine.spawn(log, &words)
        };
        let (b4, b6) = (street.b.ip4, street.b.ip6);
        let [one, two, three, four] = WAYS.map(|(_, port)| port);
        let any = "0.0.0.0:0";
        let senders = vec![
            send(&street.x, "to-v4", any, &format!("{b4}:{one}"))?,
            send(&street.x, "to-v6", "[::]:0", &format!("[{b6}]:{two}"))?,
            send(&street.x, "to-overlay", any, &format!("{overlay}:{three}"))?,
            send(&street.x, "pretended", &format!("{a}:0"), &format!("{b4}:{four}"))?,
            send(&street.x, "witness", any, &format!("{b4}:{WITNESS}"))?,
            send(&street.b, "to-a", any, &format!("{a}:7"))?,
        ];
        Ok(Self { street, services, witness, leaked, _senders: senders })
    }

    /// What came by each way, and what left in clear.
    fn counts(&self) -> Result<Vec<u64>> {
        self.services.iter().chain([&self.leaked]).map(Counter::received).collect()
    }

    /// The counts once what was on its way has arrived.
    fn settled(&self) -> Result<Vec<u64>> {
        poll(SOON, "the guard to hold", || {
            let before = self.counts()?;
            self.tried()?;
            Ok((self.counts()? == before).then_some(before))
        })
        .with_context(|| format!("{:?}", self.counts()))
    }

    /// The neighbour goes on for a while.
    fn tried(&self) -> Result<()> {
        self.witness.expect_growth("received", TRIED).context("the neighbour does not send")
    }

    fn expect_nothing_since(&self, before: &[u64], state: &str) -> Result<()> {
        self.tried().context(state.to_owned())?;
        let now = self.counts()?;
        ensure!(now == before, "{state}: by {WAYS:?}, and in clear: {now:?}, before {before:?}");
        Ok(())
    }

    fn put_back(&self) -> Result<u64> {
        let guard = self.street.ovd(&["guard", "show", "-o", "json"])?;
        number(&parse(&guard)?, "putBack")
    }
}

#[test]
fn a_storm_from_the_lan_finds_no_moment_without_a_guard() {
    storm(1, &FLUSHES[..1]);
}

#[test]
#[ignore = "long"]
fn a_storm_from_the_lan_finds_no_moment_in_twenty_crashes_and_five_flushes() {
    storm(20, &FLUSHES);
}

fn storm(crashes: usize, flushes: &[&str]) {
    play(&["s1"], &["a"], |rig| {
        let street = Street::new(rig, &["--guard", "ports"])?;
        let storm = &mut Storm::new(street)?;

        // The control: without a guard everything arrives, and leaves.
        storm.street.ovd(&["guard", "off"])?;
        for counter in storm.services.iter().chain([&storm.leaked]) {
            counter.expect_growth("received", TRIED).context("without a guard")?;
        }
        storm.street.ovd(&["guard", "on"])?;
        let before = storm.settled()?;

        for crash in 0..crashes {
            storm.street.rig.fleet.node_mut("b")?.kill()?;
            storm.expect_nothing_since(&before, &format!("killed, {crash}"))?;
            storm.street.rig.fleet.node_mut("b")?.start()?;
            storm.expect_nothing_since(&before, &format!("started again, {crash}"))?;
        }
        storm.street.rig.fleet.node_mut("b")?.stop()?;
        storm.expect_nothing_since(&before, "stopped")?;
        storm.street.rig.fleet.node_mut("b")?.start()?;
        storm.expect_nothing_since(&before, "started after a stop")?;

        // Rules that others flush are back within a second. Until then the LAN reaches services, and still
        // nothing of an overlay leaves in clear: the route leads to the device.
        let a = storm.street.rig.fleet.address("a", LAB)?;
        shell(&storm.street.b, &format!("ip route delete {a} via {}", storm.street.x.ip4))?;
        let leaked = storm.leaked.received()?;
        for flush in flushes {
            let put_back = storm.put_back()?;
            shell(&storm.street.b, flush)?;
            poll(SOON, &format!("the guard to be back after `{flush}`"), || {
                Ok((storm.put_back()? > put_back).then_some(()))
            })?;
            let before = storm.settled()?;
            storm.expect_nothing_since(&before, flush)?;
            ensure!(storm.leaked.received()? == leaked, "`{flush}`: packets left in clear");
        }

        // The overlay brings what it brought before all of this.
        storm.street.rig.udp_send("a", "b", WAYS[0].1, 20)?;
        let a = a.to_string();
        poll(SOON, "a's datagrams", || {
            let came = storm.services[0].read()?["bySource"][&a].as_u64().unwrap_or(0);
            Ok((came == 20).then_some(()))
        })
    });
}

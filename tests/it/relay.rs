//! A middle link that loses, doubles and reorders (`netkit relay`), between a SaP and an entity, in both
//! directions. Addresses, TTL and TOS stay as they are.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use crate::support::{Counter, Rig, SOON, number};
use crate::world::{Machine, poll};

/// What the link does: of 1000 datagrams so many are lost, doubled, held back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Link {
    pub(crate) seed: u64,
    pub(crate) loss: u32,
    pub(crate) duplication: u32,
    pub(crate) reordering: u32,
}

/// The largest IP packet that the link takes, in bytes.
pub(crate) const MTU: u16 = 1400;

/// The machine in the middle.
pub(crate) struct Relay {
    machine: Machine,
    ends: [(Machine, &'static str); 2],
}

impl Relay {
    /// Puts a machine between `s1` and `b`; nothing passes until [`Self::start`].
    pub(crate) fn between_s1_and_b(rig: &Rig) -> Result<Self> {
        let machine = rig.world.machine("middle")?;
        // The relay alone hands on.
        let off = "echo 0 > /proc/sys/net/ipv4/ip_forward; \
                   echo 0 > /proc/sys/net/ipv6/conf/all/forwarding";
        machine.run(&["sh", "-c", off])?.success("switch forwarding off")?;
        let ends = ["s1", "b"];
        for (from, to) in [("s1", "b"), ("b", "s1")] {
            let (from, to) = (rig.fleet.machine(from)?, rig.fleet.machine(to)?);
            for (to, via) in [
                (IpAddr::from(to.ip4), IpAddr::from(machine.ip4)),
                (to.ip6.into(), machine.ip6.into()),
            ] {
                let route = format!("ip route replace {to} via {via} dev eth0");
                from.run(&route.split(' ').collect::<Vec<_>>())?.success(&route)?;
            }
        }
        let end =
            |name: &'static str| Ok::<_, anyhow::Error>((rig.fleet.machine(name)?.clone(), name));
        Ok(Self { machine, ends: [end(ends[0])?, end(ends[1])?] })
    }

    /// Lets datagrams pass as `link` says, until the result is dropped.
    pub(crate) fn start(&self, rig: &Rig, link: Link) -> Result<Counter> {
        let machines = [&self.machine, &self.ends[0].0, &self.ends[1].0];
        let mut owners = Vec::new();
        for machine in machines {
            let mac = mac(machine)?;
            owners.push(format!("{}={mac}", machine.ip4));
            owners.push(format!("{}={mac}", machine.ip6));
        }
        let figures =
            [link.seed, link.loss.into(), link.duplication.into(), link.reordering.into()];
        let mut rest: Vec<String> = figures.iter().map(u64::to_string).collect();
        rest.push(MTU.to_string());
        rest.extend(owners);
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        rig.counter_on(&self.machine, "relay", &[], &rest)
    }
}

/// The address of a machine's device, as `ip link` shows it.
fn mac(machine: &Machine) -> Result<String> {
    let text = machine.run(&["ip", "-o", "link", "show", "eth0"])?.success("ip link")?;
    let mac = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    Ok(mac.with_context(|| text.clone())?.to_owned())
}

/// Waits until the relay holds nothing back, and checks that its counts add up.
pub(crate) fn settled(relay: &Counter) -> Result<serde_json::Value> {
    let mut last = serde_json::Value::Null;
    poll(SOON, "the relay to come to rest", || {
        let now = relay.read()?;
        let is_same = last == now;
        last = now;
        Ok(is_same.then_some(()))
    })?;
    let count = |field: &str| number(&last, field);
    let passed = count("arrived")? + count("doubled")? - count("lost")? - count("tooBig")?;
    ensure!(count("sent")? <= passed && count("sent")? + 64 >= passed, "{last}");
    Ok(last)
}

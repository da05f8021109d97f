//! No packet of an overlay leaves in clear, whatever happens to the daemon, its device or the routes.

use anyhow::{Result, ensure};

use crate::fleet::Kind;
use crate::support::{LAB, Rig, SOON, play};
use crate::world::{Machine, poll};

/// How many datagrams are sent in each state.
const SENT: u64 = 20;

/// Machine `b` with a guard, and a thief `x` on the LAN to whom `b`'s routes are bent: what leaves in
/// clear, `x` sees.
struct Trap<'a> {
    rig: &'a mut Rig,
    b: Machine,
    x: Machine,
    a_address: String,
}

impl Trap<'_> {
    /// Sends to `a`'s overlay address; returns how many of the datagrams `x` saw.
    fn leaked(&self) -> Result<u64> {
        let own = self.x.ip4.to_string();
        let seen = self.rig.counter_on(&self.x, "ip-count", &[&self.a_address], &[&own])?;
        self.send()?;
        let marker = format!("{own}:9");
        let netkit = self.rig.netkit();
        let words = [netkit.as_str(), "udp-send", "0.0.0.0:0", &marker, "1", "0", "8"];
        self.b.run(&words)?.success("send a marker")?;
        poll(SOON, "the marker", || Ok((seen.number("marks")? > 0).then_some(())))?;
        seen.received()
    }

    fn send(&self) -> Result<()> {
        let target = format!("{}:7", self.a_address);
        let count = SENT.to_string();
        let netkit = self.rig.netkit();
        let words = [netkit.as_str(), "udp-send", "0.0.0.0:0", &target, &count, "1000", "64"];
        // The kernel may refuse them: that is what they are for.
        self.b.run(&words)?.success("udp-send").map(drop)
    }

    fn expect_no_leak(&self, state: &str) -> Result<()> {
        let leaked = self.leaked()?;
        ensure!(leaked == 0, "{state}: {leaked} of {SENT} left in clear");
        Ok(())
    }

    fn shell(&self, script: &str) -> Result<String> {
        self.b.run(&["sh", "-e", "-c", script])?.success(script)
    }
}

/// What `ovd` could leave behind on a machine. Counters and link-local addresses are left out.
fn traces(machine: &Machine) -> Result<String> {
    let script = "ip -4 route show table all; ip -6 route show table all | grep -v fe80; ip rule; \
                  ip -6 rule; ip -o address | grep -v fe80 | sed 's/^[0-9]*: //'; nft list ruleset; \
                  cat /etc/resolv.conf";
    machine.run(&["sh", "-c", script])?.success(script)
}

#[test]
fn nothing_of_an_overlay_leaves_in_clear_and_down_leaves_nothing_behind() {
    leaks(1);
}

#[test]
#[ignore = "long"]
fn nothing_leaves_in_clear_through_twenty_crashes() {
    leaks(20);
}

fn leaks(crashes: usize) {
    play(&["s1"], &["a"], |rig| {
        let (b, x) = (rig.world.machine("b")?, rig.world.machine("x")?);
        let before = traces(&b)?;
        let token = rig.fleet.token(&["--role", "entity", "--overlay", LAB])?;
        rig.fleet.add(b.clone(), Kind::Entity, &token, &["--guard", "ports"])?;
        rig.allow(&["b", "a", "--port", "udp/7"])?;
        let a_address = rig.fleet.address("a", LAB)?.to_string();
        let sink = rig.udp_sink("a", 7)?;
        let trap = Trap { rig, b, x, a_address };

        trap.send()?;
        sink.expect_received(SENT)?;
        trap.expect_no_leak("as it should be")?;

        // TunnelVision: a route that is more specific than the overlay's.
        let bend = format!("ip route replace {} via {} dev eth0", trap.a_address, trap.x.ip4);
        trap.shell(&bend)?;
        trap.expect_no_leak("a more specific route")?;
        trap.rig.fleet.node("b")?.command(&["guard", "off"])?.success("guard off")?;
        let leaked = trap.leaked()?;
        ensure!(leaked == SENT, "without the guard {leaked} of {SENT} go by the bent route");
        trap.rig.fleet.node("b")?.command(&["guard", "on"])?.success("guard on")?;
        trap.expect_no_leak("a more specific route, and the guard is back")?;

        trap.shell("ip link delete ov0")?;
        trap.expect_no_leak("no device")?;
        for crash in 0..crashes {
            trap.rig.fleet.node_mut("b")?.kill()?;
            trap.expect_no_leak(&format!("killed, {crash}"))?;
            trap.rig.fleet.node_mut("b")?.start()?;
            trap.expect_no_leak(&format!("started again, {crash}"))?;
        }
        trap.rig.fleet.node_mut("b")?.stop()?;
        trap.expect_no_leak("stopped")?;

        // The route alone is no lock, and neither is needed where the other holds.
        trap.shell("nft delete table inet ovmesh")?;
        let leaked = trap.leaked()?;
        ensure!(leaked == SENT, "without the table {leaked} of {SENT} go by the bent route");
        trap.shell(&format!("ip route delete {}", trap.a_address))?;
        trap.shell(&format!("ip route replace default via {}", trap.x.ip4))?;
        trap.expect_no_leak("stopped, without the table: the unreachable route")?;

        trap.rig.fleet.node_mut("b")?.start()?;
        trap.rig.fleet.node("b")?.command(&["down"])?.success("ovd down")?;
        let leaked = trap.leaked()?;
        ensure!(leaked == SENT, "down, and {leaked} of {SENT} go as on any machine");
        trap.shell("ip route replace default via 10.99.0.1")?;
        let after = traces(&trap.b)?;
        ensure!(after == before, "traces:\n{before}\n--- after ovd down:\n{after}");
        Ok(())
    });
}

//! What older kernels do not know is refused by a filter of system calls at one of the ends; the other
//! end and the SaP have all. The programs find out by themselves and everything arrives all the same.

use anyhow::{Context, Result, ensure};

use crate::integrity::{device_packets, has_large, verify};
use crate::support::{LAB_CIDR, Rig, play_in};

/// What is left of the offloads when something is refused.
struct Kernel {
    /// As `netkit refuse` takes it.
    refused: &'static str,
    /// Whether the host gives large TCP packets to the overlay's device.
    takes_large_tcp: bool,
    /// Whether many datagrams leave in one send.
    sends_trains: bool,
}

/// From the newest to the oldest.
const KERNELS: [Kernel; 6] = [
    // Bits that nobody asks for: the filter by itself changes nothing.
    Kernel { refused: "tun-offload:80", takes_large_tcp: true, sends_trains: true },
    // Before 6.2: no UDP at the device.
    Kernel { refused: "tun-offload:60", takes_large_tcp: true, sends_trains: true },
    // No TCP either.
    Kernel { refused: "tun-offload:66", takes_large_tcp: false, sends_trains: true },
    // Not even checksums.
    Kernel { refused: "tun-offload:67", takes_large_tcp: false, sends_trains: true },
    // Before 5.0: no trains in.
    Kernel { refused: "udp-gro", takes_large_tcp: true, sends_trains: true },
    // Before 4.18: no trains out.
    Kernel { refused: "udp-segment,udp-gro", takes_large_tcp: true, sends_trains: false },
];

#[test]
fn whatever_an_older_kernel_refuses_everything_arrives() {
    play_in(LAB_CIDR, &["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        for kernel in &KERNELS {
            run_on(rig, kernel).with_context(|| format!("without {}", kernel.refused))?;
        }
        Ok(())
    });
}

fn run_on(rig: &mut Rig, kernel: &Kernel) -> Result<()> {
    let netkit = rig.netkit();
    let node = rig.fleet.node_mut("a")?;
    ensure!(node.stop()? == 0, "it does not stop by itself");
    node.set_wrapper(&[&netkit, "refuse", kernel.refused]);
    node.start()?;
    rig.reconnected()?;
    rig.settle()?;

    let before = sent(rig)?;
    verify(rig)?;
    let after = sent(rig)?;

    let [datagrams, from_host, to_wire] = std::array::from_fn(|at| after[at] - before[at]);
    ensure!(
        has_large(from_host, datagrams) == kernel.takes_large_tcp,
        "{datagrams} datagrams came from the host as {from_host} packets"
    );
    ensure!(
        has_large(to_wire, datagrams) == kernel.sends_trains,
        "{datagrams} datagrams left in {to_wire} sends"
    );
    Ok(())
}

/// Datagrams that a sent so far, in how many packets they came from its host, and in how many sends
/// they left.
fn sent(rig: &Rig) -> Result<[u64; 3]> {
    let a = rig.fleet.node("a")?;
    let [_, from_host] = device_packets(&a.machine, "ov0")?;
    let [_, to_wire] = device_packets(&a.machine, "eth0")?;
    Ok([a.packets("egress")?, from_host, to_wire])
}

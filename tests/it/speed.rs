//! The one speed that every test run asserts: offloads and batches against one packet a system call.
//!
//! Figures are for `make bench`. This notices when the fast way has quietly become the slow one, in
//! a debug build and with other tests beside it.

use anyhow::{Context, Result, ensure};

use crate::support::{Rig, play};

/// How much faster TCP must be. Release builds reach twice that.
const LEAST: f64 = 4.0;
/// Rounds at most, in each of which both ways have their turn.
const ROUNDS: usize = 12;
const MILLIS: &str = "600";

#[test]
fn tcp_over_a_sap_is_four_times_as_fast_as_packet_by_packet() {
    play(&["s1", "s2"], &["a", "b", "c", "d"], |rig| {
        for name in ["c", "s2", "d"] {
            let node = rig.fleet.node_mut(name)?;
            ensure!(node.stop()? == 0, "{name} does not stop by itself");
            node.set_options(&["--data-path=naive"]);
            node.start()?;
        }
        rig.reconnected()?;
        rig.allow(&["a", "b", "--port", "tcp/5001", "--via", "s1"])?;
        rig.allow(&["c", "d", "--port", "tcp/5001", "--via", "s2"])?;
        let _sinks = [sink(rig, "b")?, sink(rig, "d")?];

        // The best of each: whatever else the machine does can only make one slower.
        let (mut ours, mut naive) = (0_f64, 0_f64);
        for _ in 0..ROUNDS {
            ours = ours.max(rate(rig, "a", "b")?);
            naive = naive.max(rate(rig, "c", "d")?);
            if ours >= LEAST * naive {
                break;
            }
        }

        for sap in ["s1", "s2"] {
            let packets = rig.fleet.node(sap)?.packets("transit")?;
            ensure!(packets > 1000, "only {packets} packets went through {sap}");
        }
        let found = format!(
            "{:.0} Mbit/s, packet by packet {:.0}: {:.1} times as fast, expected {LEAST}",
            ours / 1e6,
            naive / 1e6,
            ours / naive
        );
        show(&found);
        ensure!(ours >= LEAST * naive, found);
        Ok(())
    });
}

#[expect(clippy::print_stderr, reason = "a figure that one wants to see, also when it is good")]
fn show(figure: &str) {
    eprintln!("{figure}");
}

fn sink(rig: &Rig, at: &str) -> Result<crate::support::Running> {
    rig.run(at, &["tcp-sink", &rig.at(at, 5001)?.to_string()])
}

/// In bits a second.
fn rate(rig: &Rig, from: &str, to: &str) -> Result<f64> {
    let words = ["tcp-rate", &rig.at(to, 5001)?.to_string(), MILLIS];
    rig.fleet.netkit_json(from, &words)?["bitsPerSecond"].as_f64().context("no rate")
}

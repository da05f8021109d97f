//! A SaP dies, or loses one of the two ends: traffic goes over another one within a second, TCP and UDP,
//! with the server away. When it is back it takes traffic again, after a while and without loss.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::support::{Counter, Rig, play};
use crate::world::poll;

/// How long traffic may be away.
const BACK_WITHIN_MILLIS: u64 = 1_000;

/// How long a SaP that came back may take until it carries traffic again.
const RETURN: Duration = Duration::from_secs(15);

/// What happens to `s1`, which carries everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    /// It is killed.
    Killed,
    /// Nothing passes between it and the destination.
    FarLeg,
    /// Nothing passes between it and the source.
    NearLeg,
}

#[test]
fn traffic_is_back_within_a_second_whatever_happens_to_its_sap() {
    // Other tests have the processors, too: a machine that stands still for a moment costs a retransmission.
    fails_over(&[(Mishap::FarLeg, 1), (Mishap::NearLeg, 1), (Mishap::Killed, 1)], 3);
}

#[test]
#[ignore = "long"]
fn traffic_is_back_within_a_second_many_times() {
    fails_over(&[(Mishap::Killed, 20), (Mishap::FarLeg, 10), (Mishap::NearLeg, 10)], 1);
}

/// Each mishap happens so often; one of `tries` has to hold the time.
#[expect(clippy::print_stdout, reason = "the figures are what this is for")]
fn fails_over(mishaps: &[(Mishap, u32)], tries: u32) {
    play(&["s1", "s2"], &["a", "b"], |rig| {
        let _servers = [rig.udp_echo("b", 9)?, rig.tcp_echo("b", 7)?];
        rig.allow(&["a", "b", "--port", "udp/9,udp/10,tcp/7"])?;
        rig.fleet.stop_server()?;
        for &(mishap, times) in mishaps {
            for time in 1..=times {
                let mut seen = Vec::new();
                let mut is_soon = false;
                while !is_soon && seen.len() < tries as usize {
                    let gaps @ [tcp, udp, poured] = gaps(rig, mishap)
                        .with_context(|| format!("{mishap:?}, time {time} of {times}"))?;
                    println!(
                        "{mishap:?} {time}/{times}: back after {tcp} ms (TCP), {udp} ms (UDP), {poured} \
                         ms (UDP of replies alone)"
                    );
                    is_soon = gaps.iter().all(|gap| *gap <= BACK_WITHIN_MILLIS);
                    seen.push(gaps);
                }
                ensure!(is_soon, "{mishap:?}: {seen:?} ms");
            }
        }
        println!("{}", socket_buffer(rig, "a")?);
        Ok(())
    });
}

/// Lets `mishap` happen under running flows and waits until everything is as before. Returns how long the
/// flows stood still, in milliseconds.
fn gaps(rig: &mut Rig, mishap: Mishap) -> Result<[u64; 3]> {
    let target = |port| Ok::<_, anyhow::Error>(rig.at("b", port)?.to_string());
    let tcp = rig.counter("a", "tcp-stream", &target(7)?, &[])?;
    let udp = rig.counter("a", "udp-stream", &target(9)?, &["5000"])?;
    // One datagram of the starter, and then only what the other side sends.
    let poured = format!("udp-pour {} 5000", target(10)?);
    let _pours = rig.run("b", &poured.split(' ').collect::<Vec<_>>())?;
    let poured = rig.counter("a", "udp-stream", &target(10)?, &["3600000000"])?;
    let flow = || -> Result<()> {
        tcp.expect_growth("received", 5)?;
        udp.expect_growth("received", 20)?;
        poured.expect_growth("received", 20)
    };
    flow()?;
    carries(rig, "s1")?;

    match mishap {
        Mishap::Killed => drop(rig.fleet.node_mut("s1")?.kill()?),
        Mishap::FarLeg => set_leg(rig, "s1", "b", false)?,
        Mishap::NearLeg => set_leg(rig, "s1", "a", false)?,
    }
    carries(rig, "s2")?;
    // In the counters the gap stands only when it is over.
    flow()?;
    let gap = |stream: &Counter| stream.number("gapMillisMax");
    let gaps = [gap(&tcp)?, gap(&udp)?, gap(&poured)?];

    match mishap {
        Mishap::Killed => rig.fleet.node_mut("s1")?.start()?,
        Mishap::FarLeg => set_leg(rig, "s1", "b", true)?,
        Mishap::NearLeg => set_leg(rig, "s1", "a", true)?,
    }
    let before = udp.number("missing")?;
    carries(rig, "s1")?;
    flow()?;
    let after = udp.number("missing")?;
    ensure!(after <= before + 10, "{} were lost when the SaP came back", after - before);
    Ok(gaps)
}

/// Waits until `sap` moves the packets of the flows.
fn carries(rig: &Rig, sap: &str) -> Result<()> {
    let before = rig.fleet.node(sap)?.packets("transit").unwrap_or(0);
    poll(RETURN, &format!("{sap} to carry the flows"), || {
        let now = rig.fleet.node(sap)?.packets("transit").unwrap_or(0);
        Ok((now >= before + 100).then_some(()))
    })
}

/// Lets nothing pass between two machines, or everything again: the other's address leads nowhere.
fn set_leg(rig: &Rig, one: &str, other: &str, up: bool) -> Result<()> {
    for (here, there) in [(one, other), (other, one)] {
        let address = rig.fleet.machine(there)?.ip4;
        let change = if up {
            format!("ip neigh del {address} dev eth0")
        } else {
            format!("ip neigh replace {address} lladdr 02:00:00:00:ff:ff dev eth0 nud permanent")
        };
        let words: Vec<_> = change.split(' ').collect();
        rig.fleet.machine(here)?.run(&words)?.success(&change)?;
    }
    Ok(())
}

/// The memory of a node's data socket, as the kernel says: figures depend on it.
fn socket_buffer(rig: &Rig, node: &str) -> Result<String> {
    let shown = rig.fleet.machine(node)?.run(&["ss", "-Huamn", "sport = :6080"])?;
    let memory = shown.stdout.split_whitespace().find(|word| word.starts_with("skmem"));
    Ok(format!("socket of {node}: {}", memory.unwrap_or("unknown")))
}

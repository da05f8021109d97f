//! Restarts under load: by `--takeover` and by a service manager that keeps descriptors not one packet is
//! lost, also of flows in which only the other side sends; after a crash traffic is back at once.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::binaries;
use crate::settled::nothing_missing;
use crate::support::{Counter, LAB, Rig, Running, SOON, play};
use crate::world::poll;

/// Microseconds between two datagrams of a stream: 2,000 a second, and as many echoes.
const FAST_MICROS: &str = "500";

/// Where other tests have the processors, too, and what comes may wait twice as long in a device's queue.
const BESIDE_OTHERS_MICROS: &str = "1000";

/// As many as it takes to see how long traffic is away.
const SLOW_MICROS: &str = "2000";

/// How many more have to come for a flow to go on.
const GROWTH: u64 = 300;

/// How long traffic may be away after a crash.
const ALONE_MILLIS: u64 = 500;

/// As long as other tests have the processors, too.
const BESIDE_OTHERS_MILLIS: u64 = 1_000;

#[test]
fn who_takes_over_loses_nothing() {
    take_over(1, BESIDE_OTHERS_MICROS);
}

#[test]
#[ignore = "long"]
fn who_takes_over_loses_nothing_twenty_times() {
    take_over(20, FAST_MICROS);
}

#[test]
fn restarts_lose_nothing_where_descriptors_are_kept() {
    restart(1, BESIDE_OTHERS_MICROS, BESIDE_OTHERS_MILLIS);
}

#[test]
#[ignore = "long"]
fn restarts_lose_nothing_where_descriptors_are_kept_twenty_times() {
    restart(20, FAST_MICROS, ALONE_MILLIS);
}

#[test]
fn traffic_is_back_at_once_after_a_crash_and_nothing_leaves_in_clear() {
    crash(5, |gaps| gaps.iter().any(|gap| *gap <= BESIDE_OTHERS_MILLIS));
}

#[test]
#[ignore = "long"]
fn traffic_is_back_at_once_after_twenty_crashes_and_nothing_leaves_in_clear() {
    crash(20, |gaps| gaps.iter().all(|gap| *gap <= ALONE_MILLIS));
}

/// Who is restarted: the starter of the flows, who answers, and the SaP between them.
const ALL: [&str; 3] = ["a", "b", "s1"];

fn allow(rig: &Rig) -> Result<()> {
    rig.allow(&["a", "b", "--port", "udp/9,udp/10"]).map(drop)
}

/// Two flows that `a` starts: each datagram of the first is echoed; in the second only `b` sends, after
/// one datagram of `a`.
struct Flows {
    echoed: Counter,
    poured: Counter,
    _servers: [Running; 2],
}

impl Flows {
    fn start(rig: &Rig, interval_micros: &str) -> Result<Self> {
        let [echo, pour] = [rig.at("b", 9)?.to_string(), rig.at("b", 10)?.to_string()];
        let _servers =
            [rig.udp_echo("b", 9)?, rig.run("b", &["udp-pour", &pour, interval_micros])?];
        let echoed = rig.counter("a", "udp-stream", &echo, &[interval_micros])?;
        let poured = rig.counter("a", "udp-stream", &pour, &["3600000000"])?;
        let flows = Self { echoed, poured, _servers };
        flows.go_on()?;
        Ok(flows)
    }

    fn go_on(&self) -> Result<()> {
        self.echoed.expect_growth("received", GROWTH)?;
        self.poured.expect_growth("received", GROWTH)
    }

    /// Both flows go on, and nothing is missing of either.
    #[expect(clippy::print_stderr, reason = "a figure to be read")]
    fn expect_nothing_lost(&self, what: &str) -> Result<()> {
        self.go_on()?;
        // What is under way is not missing: numbers count up to the highest that came back.
        let lost = nothing_missing(&[&self.echoed, &self.poured]);
        let missing = [self.echoed.number("missing")?, self.poured.number("missing")?];
        eprintln!(
            "{what}: missing {missing:?} of {} and {}; longest gaps {} and {} ms",
            self.echoed.received()?,
            self.poured.received()?,
            self.echoed.number("gapMillisMax")?,
            self.poured.number("gapMillisMax")?,
        );
        lost.with_context(|| what.to_owned())
    }
}

fn take_over(times: usize, interval_micros: &str) {
    play(&["s1"], &["a", "b"], |rig| {
        allow(rig)?;
        let flows = Flows::start(rig, interval_micros)?;
        for time in 1..=times {
            for name in ALL {
                let code = rig.fleet.node_mut(name)?.take_over()?;
                ensure!(code == 0, "the one before exited with {code}");
                let status = rig.fleet.node(name)?.status()?;
                ensure!(status["problems"] == serde_json::json!([]), "{status:#}");
                flows.expect_nothing_lost(&format!("{name} taken over, {time} of {times}"))?;
            }
        }
        ensure!(rig.udp_ping("a", "b", 11, 2)? == 0, "policy is in force, too");

        // Who cannot take over leaves the one before at its work.
        let program = binaries().ovd.to_string_lossy().into_owned();
        let machine = rig.fleet.machine("a")?.clone();
        let words =
            [program.as_str(), "run", "--takeover", "--guard", "off", "--state-dir", "/tmp/not"];
        let output = machine.run(&words)?;
        ensure!(output.code == 1 || output.code == 5, "{output:?}");
        flows.expect_nothing_lost("a refused takeover")?;

        // The control: a start that takes nothing over does not know who may be answered.
        rig.fleet.node_mut("a")?.stop()?;
        rig.fleet.node_mut("a")?.start()?;
        flows.echoed.expect_growth("received", GROWTH)?;
        let poured = flows.poured.received()?;
        flows.echoed.expect_growth("received", GROWTH)?;
        ensure!(flows.poured.received()? == poured, "a flow that nobody knows goes on");
        ensure!(flows.echoed.number("missing")? > 0, "the control lost nothing");
        Ok(())
    });
}

/// Has the program of `name` started by something that restarts it at once.
fn supervise(rig: &mut Rig, name: &str, how: &str) -> Result<()> {
    let netkit = rig.netkit();
    let node = rig.fleet.node_mut(name)?;
    node.stop()?;
    node.set_wrapper(&[&netkit, "supervise", how]);
    node.start()
}

/// Sends the supervisor of `name` a signal and waits until another process serves.
fn signal(rig: &mut Rig, name: &str, signal: &str) -> Result<()> {
    let node = rig.fleet.node_mut(name)?;
    let starts = |log: String| log.matches("supervise: a start").count();
    let before = starts(node.process()?.log_text());
    node.process()?.signal(signal)?;
    poll(SOON, &format!("another process on {name}"), || {
        Ok((starts(node.process()?.log_text()) > before).then_some(()))
    })?;
    node.wait_ready()
}

fn restart(times: usize, interval_micros: &str, back_within_millis: u64) {
    play(&["s1"], &["a", "b"], |rig| {
        for name in ALL {
            supervise(rig, name, "keeping")?;
        }
        allow(rig)?;
        let flows = Flows::start(rig, interval_micros)?;
        for time in 1..=times {
            for name in ALL {
                signal(rig, name, "HUP")?;
                flows.expect_nothing_lost(&format!("{name} restarted, {time} of {times}"))?;
            }
        }
        // Of a crash that much is lost as was read and not sent; what the flow table knew is not.
        drop(flows);
        let flows = Flows::start(rig, interval_micros)?;
        signal(rig, "a", "USR1")?;
        flows.go_on()?;
        let gap = flows.poured.number("gapMillisMax")?;
        ensure!(gap <= back_within_millis, "away for {gap} ms after a crash");
        Ok(())
    });
}

#[expect(clippy::print_stderr, reason = "a figure to be read")]
fn crash(times: usize, is_at_once: fn(&[u64]) -> bool) {
    play(&["s1"], &["a", "b"], |rig| {
        rig.fleet.node_mut("a")?.set_options(&["--guard", "ports"]);
        supervise(rig, "a", "forgetting")?;
        allow(rig)?;
        let b_address = rig.fleet.address("b", LAB)?.to_string();
        let s1 = rig.fleet.machine("s1")?.clone();
        let a = rig.fleet.machine("a")?.clone();
        // What leaves in clear goes to the default router; let that be s1, which sees it.
        let route = format!("ip route replace default via {}", s1.ip4);
        a.run(&["sh", "-c", &route])?.success(&route)?;
        let in_clear = rig.counter_on(&s1, "ip-count", &[&b_address], &[])?;
        let mut gaps = Vec::new();
        for _ in 0..times {
            // A flow for each crash, so that each has its own longest gap.
            let flows = Flows::start(rig, SLOW_MICROS)?;
            signal(rig, "a", "USR1")?;
            flows.echoed.expect_growth("received", GROWTH)?;
            gaps.push(flows.echoed.number("gapMillisMax")?);
        }
        eprintln!("{times} crashes, traffic back after {gaps:?} ms");
        ensure!(is_at_once(&gaps), "{gaps:?}");
        ensure!(in_clear.received()? == 0, "{} left in clear", in_clear.received()?);

        // The control: without the unreachable route and the device they do.
        rig.fleet.node_mut("a")?.stop()?;
        rig.fleet.node("a")?.command(&["down"])?.success("ovd down")?;
        let words =
            [&rig.netkit(), "udp-send", "0.0.0.0:0", &format!("{b_address}:9"), "5", "1000", "8"];
        a.run(&words)?.success("udp-send")?;
        poll(Duration::from_secs(5), "packets in clear", || {
            Ok((in_clear.received()? >= 5).then_some(()))
        })?;
        Ok(())
    });
}

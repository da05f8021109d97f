//! The test bench itself: machines reach one another, and nothing outlives its owner.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::binaries;
use crate::world::{Machine, Process, World, poll};

const SOON: Duration = Duration::from_secs(10);

/// Two machines and the traffic tool.
struct Pair {
    world: World,
    a: Machine,
    b: Machine,
    netkit: String,
}

impl Pair {
    fn new() -> Self {
        let world = World::new().unwrap();
        let (a, b) = (world.machine("a").unwrap(), world.machine("b").unwrap());
        Self { world, a, b, netkit: binaries().netkit.display().to_string() }
    }

    fn run(&self, machine: &Machine, words: &str) -> Value {
        let command = format!("{} {words}", self.netkit);
        let command: Vec<_> = command.split(' ').collect();
        let output = machine.run(&command).unwrap().success(words).unwrap();
        serde_json::from_str(&output).unwrap()
    }

    fn spawn(&self, machine: &Machine, words: &str) -> Process {
        let command = format!("{} {words}", self.netkit);
        let name = words.replace(['/', ' ', ':', '[', ']'], "_");
        let process = machine.spawn(&name, &command.split(' ').collect::<Vec<_>>()).unwrap();
        poll(SOON, words, || Ok(process.log_text().contains("ready").then_some(()))).unwrap();
        process
    }

    /// A file that netkit writes, and how to read it.
    fn file(&self, name: &str) -> (String, impl Fn() -> Value + use<>) {
        let path = self.world.dir().join(name);
        let text = path.display().to_string();
        (text, move || serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap())
    }
}

#[test]
fn machines_of_a_world_reach_one_another_in_both_families_and_only_while_plugged_in() {
    let pair = Pair::new();
    for address in [pair.b.ip4.to_string(), pair.b.ip6.to_string()] {
        let answer = pair.run(&pair.a, &format!("icmp-ping {address} 3"));
        assert_eq!(answer["received"], 3, "{address}: {answer}");
    }

    pair.b.set_link(false).unwrap();
    let answer = pair.run(&pair.a, &format!("icmp-ping {} 1 200", pair.b.ip4));
    assert_eq!(answer["received"], 0);

    pair.b.set_link(true).unwrap();
    let answer = pair.run(&pair.a, &format!("icmp-ping {} 3 1000", pair.b.ip4));
    assert_ne!(answer["received"], 0);
}

#[test]
fn each_machine_has_its_own_host_name_and_directories() {
    let world = World::new().unwrap();
    let (a, b) = (world.machine("a").unwrap(), world.machine("b").unwrap());

    for machine in [&a, &b] {
        let script = "cat /proc/sys/kernel/hostname; echo x > /run/ovmesh/f; ls /var/lib/ovmesh";
        let output = machine.run(&["sh", "-c", script]).unwrap();
        assert_eq!(output.stdout.trim(), machine.name);
    }

    assert!(a.run_dir().join("f").exists() && b.run_dir().join("f").exists());
    assert!(!Path::new("/run/ovmesh/f").exists(), "the host's own directory was written to");
}

#[test]
fn http_and_udp_are_sent_received_and_counted() {
    let pair = Pair::new();
    let _http = pair.spawn(&pair.b, "http-echo [::]:8080 b");
    let _echo = pair.spawn(&pair.b, "udp-echo [::]:7");
    let (file, sunk) = pair.file("sink");
    let _sink = pair.spawn(&pair.b, &format!("udp-sink [::]:9 {file}"));

    for (mine, theirs) in [
        (pair.a.ip4.to_string(), pair.b.ip4.to_string()),
        (format!("[{}]", pair.a.ip6), format!("[{}]", pair.b.ip6)),
    ] {
        let answer = pair.run(&pair.a, &format!("http-get {theirs}:8080 5"));
        assert_eq!(answer["ok"], 5, "{answer}");
        assert_eq!(answer["body"], format!("b sees {}", mine.trim_matches(['[', ']'])));
        assert_eq!(pair.run(&pair.a, &format!("udp-ping {theirs}:7 5"))["received"], 5);
        let sent = pair.run(&pair.a, &format!("udp-send {mine}:0 {theirs}:9 20 100 100"));
        assert_eq!(sent["sent"], 20);
    }
    poll(SOON, "40 datagrams", || Ok((sunk()["received"] == 40).then_some(()))).unwrap();
    assert_eq!(sunk()["bytes"], 4000);

    // The control: nobody listens there, and nothing is reported as received.
    let answer = pair.run(&pair.a, &format!("http-get {}:8081 1 200", pair.b.ip4));
    assert_eq!(answer["ok"], 0);
    assert_eq!(pair.run(&pair.a, &format!("udp-ping {}:8 2 100", pair.b.ip4))["received"], 0);
}

#[test]
fn a_stream_notes_that_it_stalls_and_that_it_goes_on() {
    let pair = Pair::new();
    let _echo = pair.spawn(&pair.b, "tcp-echo [::]:7");
    let (file, seen) = pair.file("stream");
    let target = pair.b.ip4;
    let mut stream = pair.spawn(&pair.a, &format!("tcp-stream {target}:7 {file} 30"));
    poll(SOON, "lines", || Ok((seen()["received"].as_u64() > Some(10)).then_some(()))).unwrap();

    pair.b.set_link(false).unwrap();
    poll(SOON, "a stall", || Ok((seen()["sinceLastMillis"].as_u64() > Some(300)).then_some(())))
        .unwrap();
    let stalled_at = seen()["received"].as_u64();
    pair.b.set_link(true).unwrap();

    poll(SOON, "more lines", || Ok((seen()["received"].as_u64() > stalled_at).then_some(())))
        .unwrap();
    assert!(seen()["gapMillisMax"].as_u64() >= Some(300));
    assert_eq!(stream.stop().unwrap(), -1, "ended by the signal");
}

#[test]
fn raw_segments_arrive_with_their_flags_and_muted_machines_answer_nothing() {
    let pair = Pair::new();
    pair.b.mute_tcp().unwrap();
    for (a, b) in [
        (pair.a.ip4.to_string(), pair.b.ip4.to_string()),
        (format!("[{}]", pair.a.ip6), format!("[{}]", pair.b.ip6)),
    ] {
        let (at_b, seen_b) = pair.file("at-b");
        let (at_a, seen_a) = pair.file("at-a");
        let bare = |address: &str| address.trim_matches(['[', ']']).to_owned();
        let mut counter_b = pair.spawn(&pair.b, &format!("raw-count {} {at_b} 80", bare(&b)));
        let mut counter_a = pair.spawn(&pair.a, &format!("raw-count {} {at_a}", bare(&a)));

        for flags in [0_u8, 0x02, 0x29, 0xff] {
            let sent = pair.run(&pair.a, &format!("raw-tcp {a}:4000 {b}:80 {flags} 3"));
            assert_eq!(sent, json!({ "sent": 3, "refused": 0 }));
        }
        let wanted = json!({ "total": 12, "byFlags": { "0": 3, "2": 3, "41": 3, "255": 3 } });
        poll(SOON, "12 segments", || Ok((seen_b() == wanted).then_some(()))).unwrap();
        assert_eq!(seen_a()["total"], 0, "a muted machine sent a RST");

        // The control: machine a is not muted, so what b sends to it is answered with RST.
        pair.run(&pair.b, &format!("raw-tcp {b}:80 {a}:4000 0x02 1"));
        poll(SOON, "RST with ACK", || Ok((seen_b()["byFlags"]["20"] == 1).then_some(()))).unwrap();
        counter_a.kill().unwrap();
        counter_b.kill().unwrap();
    }
}

#[test]
fn gue_bytes_are_sent_from_a_port_that_is_in_use() {
    let pair = Pair::new();
    let _taken = pair.spawn(&pair.a, "udp-echo [::]:6080");
    let (file, sunk) = pair.file("sink");
    let _sink = pair.spawn(&pair.b, &format!("udp-sink [::]:6080 {file}"));
    let (a, b) = (&pair.a, &pair.b);

    let hex = "010480001a2b3c4d45";
    pair.run(a, &format!("gue-send {}:6080 {}:6080 {hex} 4", a.ip4, b.ip4));
    pair.run(a, &format!("gue-send [{}]:6080 [{}]:6080 {hex} 4", a.ip6, b.ip6));

    poll(SOON, "8 datagrams", || Ok((sunk()["received"] == 8).then_some(()))).unwrap();
    assert_eq!(sunk()["bytes"], 72);
}

#[test]
fn a_command_that_does_not_end_is_killed_and_reported() {
    let world = World::new().unwrap();
    let a = world.machine("a").unwrap();
    let marker = "31.4159";

    let error = a.run_for(&["sleep", marker], Duration::from_millis(300)).unwrap_err();

    assert!(format!("{error:#}").contains("in vain"), "{error:#}");
    let count = || Ok(processes_with(&["sleep", marker]).is_empty().then_some(()));
    poll(SOON, "the command to be gone", count).unwrap();
}

#[test]
fn killing_the_owner_ends_the_world_and_removes_its_directory() {
    let demo = binaries().netkit.with_file_name("demo");
    let mut owner = Command::new(demo)
        .arg("--shell")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let dir = std::env::temp_dir().join(format!("ovmesh-world-{}-0", owner.id()));
    let marker = format!("27.{}", owner.id());
    let mut stdin = owner.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, format!("on s1 sleep {marker} &\n").as_bytes()).unwrap();
    // The controls: the world is there, and something runs in it.
    let running = || Ok((!processes_with(&["sleep", &marker]).is_empty()).then_some(()));
    poll(SOON, "a process in the world", running).unwrap();
    assert!(dir.exists());

    owner.kill().unwrap();
    owner.wait().unwrap();

    poll(SOON, "the world to be gone", || {
        let gone = processes_with(&[&marker]).is_empty() && !dir.exists();
        Ok((gone && processes_with(&[&dir.display().to_string()]).is_empty()).then_some(()))
    })
    .unwrap();
}

/// Processes that have all these words on their command line.
fn processes_with(words: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        if words.iter().all(|word| command.split('\0').any(|have| have == *word)) {
            found.push(entry.path());
        }
    }
    found
}

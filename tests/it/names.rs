//! Overlay names, asked of a real `ovd`, and by programs that know nothing of it.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::fleet::{Kind, parse};
use crate::support::{Counter, LAB, Rig, SOON, play};
use crate::world::{Machine, poll};

/// What the name servers of these tests say of every name.
const ELSEWHERE: &str = "192.0.2.99";

/// Types of records.
const A: &str = "01";
const SRV: &str = "21";

/// Asks for records of `name`, of a type in hexadecimal digits, with nothing but bash; the answer's header.
fn lookup(machine: &Machine, name: &str, kind: &str) -> Result<String> {
    let labels: String = name
        .split('.')
        .map(|label| {
            let letters: String = label.bytes().map(|byte| format!("\\\\x{byte:02x}")).collect();
            format!("\\\\x{:02x}{letters}", label.len())
        })
        .collect();
    let ask = format!(
        "exec 3<>/dev/udp/127.0.0.1/6053; \
         printf '\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00{}\\x00\\x00\\x{kind}\\x00\\x01' >&3; \
         timeout 3 head -c 12 <&3 | od -An -tx1 -v | tr -d ' \\n'",
        labels.replace("\\\\", "\\")
    );
    machine.run(&["bash", "-c", &ask])?.success("a lookup")
}

#[test]
fn a_host_finds_whom_it_may_talk_to_by_name_and_nobody_else() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        let node = rig.fleet.node_mut("a")?;
        node.stop()?;
        node.set_options(&["--dns-listen", "127.0.0.1:6053"]);
        node.start()?;
        rig.allow(&["a", "b"])?;
        let machine = rig.fleet.machine("a")?;

        // The header of an answer: flags with the code, one question, and how many records.
        poll(SOON, "b's name", || {
            let answer = lookup(machine, "b.lab.ov.internal", A)?;
            Ok((answer == "123481800001000100000000").then_some(()))
        })?;
        let unknown = lookup(machine, "c.lab.ov.internal", A)?;
        ensure!(unknown == "123481830001000000010000", "c is none of a's: {unknown}");
        rig.revoke(&["a", "b"])?;
        poll(SOON, "b's name to go", || {
            let answer = lookup(machine, "b.lab.ov.internal", A)?;
            Ok(answer.starts_with("12348183").then_some(()))
        })
    });
}

/// What a program on `machine` finds when it asks its resolver; none when there is no such name.
fn resolve(rig: &Rig, machine: &Machine, name: &str) -> Result<Option<Vec<String>>> {
    let output = machine.run(&[rig.netkit().as_str(), "resolve", name, "1"])?;
    if output.code != 0 {
        return Ok(None);
    }
    let report = parse(&output.stdout)?;
    let addresses = report["addresses"].as_array().context("no addresses")?;
    Ok(Some(addresses.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
}

/// A name server of the underlay that writes down what it is asked.
struct NameServer(Counter);

impl NameServer {
    fn start(rig: &Rig, machine: &Machine, ip: IpAddr) -> Result<Self> {
        let at = std::net::SocketAddr::new(ip, 53).to_string();
        rig.counter_on(machine, "name-server", &[&at], &[]).map(Self)
    }

    /// How often names that end so were asked for, by one way.
    fn asked(&self, way: &str, end: &str) -> Result<u64> {
        let report = self.0.read()?;
        let names = report[way].as_object().cloned().unwrap_or_default();
        Ok(names
            .iter()
            .filter(|(name, _)| name.contains(end))
            .filter_map(|(_, n)| n.as_u64())
            .sum())
    }

    /// Waits until a name was asked for.
    fn expect(&self, way: &str, name: &str) -> Result<()> {
        poll(SOON, &format!("{name} to be asked for by {way}"), || {
            Ok((self.asked(way, name)? > 0).then_some(()))
        })
    }

    /// That no name of ours came here.
    fn knows_none_of_ours(&self) -> Result<()> {
        let ours = self.asked("udp", "ov.internal")? + self.asked("tcp", "ov.internal")?;
        ensure!(ours == 0, "asked elsewhere: {}", self.0.read()?);
        Ok(())
    }
}

/// The tables of the packet filter that are ours.
fn tables(machine: &Machine) -> Result<Vec<String>> {
    let listed = machine.run(&["nft", "list", "tables"])?.success("nft list tables")?;
    Ok(listed.lines().filter(|line| line.contains("ovmesh")).map(str::to_owned).collect())
}

fn names_status(rig: &Rig) -> Result<Value> {
    Ok(rig.fleet.node("a")?.status()?["names"].clone())
}

#[test]
fn programs_find_names_with_nothing_configured_and_no_name_leaves_the_host() {
    play(&["s1"], &["a", "b"], |rig| {
        let machine = rig.fleet.machine("a")?.clone();
        let far = rig.world.machine("ns")?;
        let v4 = NameServer::start(rig, &far, far.ip4.into())?;
        let v6 = NameServer::start(rig, &far, far.ip6.into())?;
        rig.set_resolvers(&machine, &format!("nameserver {}\n", far.ip4))?;
        rig.allow(&["a", "b"])?;
        rig.fleet.node_mut("a")?.stop()?;
        rig.fleet.node_mut("a")?.set_options(&["--guard", "ports"]);
        let _web = rig.http_echo("b", 80)?;

        // Without ovd it would leave: the name server is one that writes such names down.
        let b = vec![rig.fleet.address("b", LAB)?.to_string()];
        ensure!(resolve(rig, &machine, "control.ov.internal")? == Some(vec![ELSEWHERE.into()]));
        v4.expect("udp", "control.ov.internal")?;
        rig.fleet.node_mut("a")?.start()?;
        poll(SOON, "b's name", || {
            Ok((resolve(rig, &machine, "b.lab.ov.internal")? == Some(b.clone())).then_some(()))
        })?;
        let before = v4.asked("udp", "ov.internal")?;

        let fetch = "exec 3<>/dev/tcp/b.lab.ov.internal/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; \
                     timeout 5 cat <&3";
        let page = machine.run(&["bash", "-c", fetch])?.success("a fetch by name")?;
        ensure!(page.contains("b sees"), "{page}");
        ensure!(resolve(rig, &machine, "nobody.lab.ov.internal")?.is_none());
        let over_tcp = ["env", "RES_OPTIONS=use-vc", &rig.netkit(), "resolve"].map(str::to_owned);
        let by_tcp = |name: &str| {
            let words = [over_tcp.as_slice(), &[name.to_owned(), "1".to_owned()]].concat();
            machine.run(&words)
        };
        ensure!(by_tcp("b.lab.ov.internal")?.stdout.contains(&b[0]), "by TCP");
        // The control: what is not ours goes on to whom it was for, by the way that it came.
        ensure!(by_tcp("other.example")?.stdout.contains(ELSEWHERE));
        v4.expect("tcp", "other.example")?;
        ensure!(resolve(rig, &machine, "other.example")? == Some(vec![ELSEWHERE.into()]));
        v4.expect("udp", "other.example")?;
        ensure!(v4.asked("udp", "ov.internal")? == before, "a name of ours left the host");

        // It follows the configuration, to the other family.
        rig.set_resolvers(&machine, &format!("nameserver {}\n", far.ip6))?;
        let expected = json!([far.ip6.to_string()]);
        poll(SOON, "the other name server", || {
            Ok((names_status(rig)?["redirected"] == expected).then_some(()))
        })?;
        ensure!(resolve(rig, &machine, "b.lab.ov.internal")? == Some(b.clone()), "over IPv6");
        ensure!(resolve(rig, &machine, "nobody.lab.ov.internal")?.is_none());
        ensure!(resolve(rig, &machine, "other.example")? == Some(vec![ELSEWHERE.into()]));
        v6.expect("udp", "other.example")?;
        v6.knows_none_of_ours()?;
        ensure!(tables(&machine)?.len() == 2, "{:?}", tables(&machine)?);

        // Who takes over goes on with it; who is killed leaves nothing of it, at once.
        rig.fleet.node_mut("a")?.take_over()?;
        poll(SOON, "the hook of the next one alone", || {
            Ok((tables(&machine)?.len() == 2).then_some(()))
        })?;
        ensure!(resolve(rig, &machine, "b.lab.ov.internal")? == Some(b.clone()), "taken over");
        v6.knows_none_of_ours()?;
        rig.fleet.node_mut("a")?.kill()?;
        ensure!(resolve(rig, &machine, "killed.example")? == Some(vec![ELSEWHERE.into()]));
        ensure!(tables(&machine)? == ["table inet ovmesh"], "{:?}", tables(&machine)?);

        rig.fleet.node_mut("a")?.start()?;
        poll(SOON, "b's name again", || {
            Ok((resolve(rig, &machine, "b.lab.ov.internal")? == Some(b.clone())).then_some(()))
        })?;
        rig.fleet.node("a")?.command(&["down"])?.success("ovd down")?;
        ensure!(tables(&machine)?.is_empty(), "{:?}", tables(&machine)?);
        ensure!(resolve(rig, &machine, "down.example")? == Some(vec![ELSEWHERE.into()]));

        // Where nothing may leave, names of ours are found all the same, and no others.
        rig.fleet.node_mut("a")?.set_options(&["--guard", "ports", "--egress", "rules"]);
        rig.fleet.node_mut("a")?.start()?;
        poll(SOON, "b's name where nothing may leave", || {
            Ok((resolve(rig, &machine, "b.lab.ov.internal")? == Some(b.clone())).then_some(()))
        })?;
        ensure!(resolve(rig, &machine, "closed.example")?.is_none());
        ensure!(v6.asked("udp", "closed.example")? == 0);
        Ok(())
    });
}

#[test]
fn systemd_resolved_is_told_where_programs_ask_it_and_else_there_is_a_redirect() {
    play(&["s1"], &["a", "b"], |rig| {
        let machine = rig.fleet.machine("a")?.clone();
        // It stands in for resolvectl: writes down what it is told, and refuses where it is to.
        let (program, told) = (rig.world.dir().join("bin/resolvectl"), rig.file("told"));
        let (told_path, refuse) = (told.display().to_string(), rig.file("refuse"));
        let script = format!(
            "#!/bin/sh\n[ ! -e {} ] || {{ echo 'Access denied' >&2; exit 1; }}\necho \"$@\" >> {told_path}\n",
            refuse.display()
        );
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        rig.set_resolvers(&machine, "nameserver 127.0.0.53\n")?;
        rig.allow(&["a", "b"])?;
        let path =
            format!("PATH={}:{}", program.with_file_name("").display(), std::env::var("PATH")?);
        rig.fleet.node_mut("a")?.stop()?;
        rig.fleet.node_mut("a")?.set_wrapper(&["env", &path]);
        rig.fleet.node_mut("a")?.start()?;

        poll(SOON, "systemd-resolved to be told", || {
            let is_told = fs::read_to_string(&told).unwrap_or_default();
            let lines: Vec<&str> = is_told.lines().collect();
            Ok((lines.contains(&"domain ov0 ~ov.internal ~70.10.in-addr.arpa")
                && lines.contains(&"dns ov0 127.0.0.1:6053"))
            .then_some(()))
        })?;
        poll(SOON, "the status to say so", || {
            Ok((names_status(rig)?["hook"] == "resolved").then_some(()))
        })?;
        ensure!(tables(&machine)?.is_empty(), "no redirect beside it: {:?}", tables(&machine)?);

        fs::write(&refuse, "")?;
        rig.fleet.node_mut("a")?.stop()?;
        rig.fleet.node_mut("a")?.start()?;
        poll(SOON, "a redirect instead", || {
            Ok((names_status(rig)?["hook"] == "redirect").then_some(()))
        })?;
        let b = vec![rig.fleet.address("b", LAB)?.to_string()];
        ensure!(resolve(rig, &machine, "b.lab.ov.internal")? == Some(b));
        Ok(())
    });
}

#[test]
fn a_service_is_whom_its_labels_mean_and_this_host_knows() {
    play(&["s1"], &["a"], |rig| {
        let options = ["--label", "app=api", "--port", "http=tcp/8080"];
        for name in ["b", "c", "d"] {
            rig.join(name, Kind::Entity, &options)?;
        }
        let node = rig.fleet.node_mut("a")?;
        node.stop()?;
        node.start()?;
        rig.fleet.ovctl_ok(&["service", "create", "api", "app=api", "--overlay", LAB])?;
        let machine = rig.fleet.machine("a")?.clone();
        let expect = |who: &[&str]| {
            let mut expected = Vec::new();
            for name in who {
                expected.push(rig.fleet.address(name, LAB)?.to_string());
            }
            expected.sort();
            poll(SOON, &format!("{who:?} to be the service"), || {
                let mut found = resolve(rig, &machine, "api.lab.ov.internal")?.unwrap_or_default();
                found.sort();
                Ok((found == expected).then_some(()))
            })
        };

        rig.allow(&["a", "b"])?;
        rig.allow(&["a", "c"])?;
        // d is an instance too, and none of a's business.
        expect(&["b", "c"])?;
        // Two records, and the addresses of two hosts.
        let ports = "_http._tcp.api.lab.ov.internal";
        let header = lookup(&machine, ports, SRV)?;
        ensure!(header == "123481800001000200000002", "{header}");
        rig.fleet.ovctl_ok(&["entity", "label", "c", "app-"])?;
        expect(&["b"])?;
        let header = lookup(&machine, ports, SRV)?;
        ensure!(header == "123481800001000100000001", "{header}");
        rig.fleet.ovctl_ok(&["entity", "label", "c", "app=api"])?;
        expect(&["b", "c"])?;
        rig.fleet.ovctl_ok(&["service", "delete", "api", "--overlay", LAB])?;
        expect(&[])
    });
}

/// The figure of the design, by the way of programs: their resolver, the redirect, the table.
#[test]
#[ignore = "long"]
#[expect(clippy::print_stderr, reason = "a figure")]
fn programs_find_names_in_less_than_a_millisecond() {
    play(&["s1"], &["a", "b"], |rig| {
        let far = rig.world.machine("ns")?;
        let machine = rig.fleet.machine("a")?.clone();
        rig.set_resolvers(&machine, &format!("nameserver {}\n", far.ip4))?;
        let _server = NameServer::start(rig, &far, far.ip4.into())?;
        rig.allow(&["a", "b"])?;
        rig.fleet.node_mut("a")?.stop()?;
        rig.fleet.node_mut("a")?.start()?;
        poll(SOON, "b's name", || Ok(resolve(rig, &machine, "b.lab.ov.internal")?.map(drop)))?;

        let netkit = rig.netkit();
        let median = |name: &str| {
            let words = [netkit.as_str(), "resolve", name, "1000"].map(str::to_owned);
            let report = parse(&machine.run(&words)?.success("1000 lookups")?)?;
            report["microsMedian"].as_u64().context("no median")
        };
        let (ours, others) = (median("b.lab.ov.internal")?, median("other.example")?);
        rig.fleet.node_mut("a")?.kill()?;
        let direct = median("other.example")?;
        eprintln!("median µs of a lookup: {ours}, of others' names {others}, without ovd {direct}");
        ensure!(ours < 1000, "{ours} µs");
        Ok(())
    });
}

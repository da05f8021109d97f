//! Kubernetes without Kubernetes: manifests are held against its schema, and a namespace plays the
//! pod: `ovd` with the arguments and exactly the rights that the manifest gives, kubelet beside it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::binaries;
use crate::support::{LAB, SOON, play};
use crate::world::{Machine, poll};

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/kubernetes").join(name)
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap()
}

/// `ovctl kubernetes inject`.
fn inject(manifest: &str) -> Result<String> {
    let mut command = Command::new(binaries().ovctl);
    let command = command.args(["kubernetes", "inject"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(manifest.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ovctl kubernetes inject failed");
    Ok(String::from_utf8(output.stdout)?)
}

/// Names and types of fields, of `tests/vectors/kubernetes/fields.json`.
struct Schema {
    kinds: BTreeMap<String, String>,
    types: BTreeMap<String, BTreeMap<String, String>>,
}

impl Schema {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path.join("tests/vectors/kubernetes/fields.json")).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let part = |key: &str| value[key].clone();
        Self {
            kinds: serde_json::from_value(part("kinds")).unwrap(),
            types: serde_json::from_value(part("types")).unwrap(),
        }
    }

    /// What is wrong with an object, a line each.
    fn complaints(&self, object: &Value) -> Vec<String> {
        let word = |key: &str| object[key].as_str().unwrap_or("?");
        let kind = format!("{} {}", word("apiVersion"), word("kind"));
        let mut found = Vec::new();
        match self.kinds.get(&kind) {
            Some(name) => self.check(object, name, &kind, &mut found),
            None => found.push(format!("{kind}: no such kind")),
        }
        found
    }

    fn check(&self, value: &Value, wanted: &str, place: &str, found: &mut Vec<String>) {
        let wanted = wanted.trim_start_matches('!');
        let inner = |ends: [char; 2]| wanted.strip_prefix(ends[0])?.strip_suffix(ends[1]);
        if let Some(wanted) = inner(['[', ']']) {
            let Some(items) = value.as_array() else {
                return found.push(format!("{place}: no list"));
            };
            for (number, item) in items.iter().enumerate() {
                self.check(item, wanted, &format!("{place}[{number}]"), found);
            }
            return;
        }
        if let Some(wanted) = inner(['{', '}']) {
            let Some(fields) = value.as_object() else {
                return found.push(format!("{place}: no map"));
            };
            for (key, item) in fields {
                self.check(item, wanted, &format!("{place}.{key}"), found);
            }
            return;
        }
        if let Some(fields) = self.types.get(wanted) {
            let Some(object) = value.as_object() else {
                return found.push(format!("{place}: no object"));
            };
            for (key, item) in object {
                let place = format!("{place}.{key}");
                match fields.get(key) {
                    Some(wanted) => self.check(item, wanted, &place, found),
                    None => found.push(format!("{place}: no such field")),
                }
            }
            for (key, _) in fields.iter().filter(|(_, wanted)| wanted.starts_with('!')) {
                if !object.contains_key(key) {
                    found.push(format!("{place}: {key} is missing"));
                }
            }
            return;
        }
        let is_fit = match wanted {
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "intOrString" => value.is_string() || value.is_u64(),
            "quantity" => value.is_string() || value.is_number(),
            _ => true,
        };
        if !is_fit {
            found.push(format!("{place}: {value} is no {wanted}"));
        }
    }
}

#[test]
fn manifests_are_what_kubernetes_knows() {
    let schema = Schema::read();
    let mut checked = 0;
    for entry in fs::read_dir(config("")).unwrap() {
        let path = entry.unwrap().path();
        for object in documents(&fs::read_to_string(&path).unwrap()) {
            assert_eq!(schema.complaints(&object), Vec::<String>::new(), "{}", path.display());
            checked += 1;
        }
    }
    assert!(checked >= 7, "{checked} objects");

    let app = fs::read_to_string(config("app.yaml")).unwrap();
    let injected = documents(&inject(&app).unwrap());
    assert_eq!(schema.complaints(&injected[0]), Vec::<String>::new());
    let shown = documents(&fs::read_to_string(config("sidecar.yaml")).unwrap());
    assert_eq!(
        injected, shown,
        "sidecar.yaml is not what `ovctl kubernetes inject` makes of app.yaml"
    );

    // The schema would find mistakes.
    let spec = "/spec/template/spec";
    for (place, planted, complaint) in [
        (format!("{spec}/hostNetwrk"), json!(true), "hostNetwrk: no such field"),
        (format!("{spec}/initContainers/0/restartPolicy"), json!(1), "1 is no string"),
        (format!("{spec}/containers/0/ports/0"), json!({}), "containerPort is missing"),
        ("/kind".to_owned(), json!("Deploymnt"), "no such kind"),
    ] {
        let mut broken = shown[0].clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        let parent = broken.pointer_mut(parent).unwrap();
        if let Some(items) = parent.as_array_mut() {
            items[0] = planted;
        } else {
            parent[key] = planted;
        }
        let found = schema.complaints(&broken);
        assert!(found.iter().any(|line| line.contains(complaint)), "{place}: {found:?}");
    }
}

/// Plays the container's runtime: mounts, a user, rights.
const START: &str = r#"
set -e
rights=$1
shift
mkdir -p /run/secrets/ovmesh
mount -t tmpfs tmpfs /run/secrets/ovmesh
cp /var/lib/ovmesh/token /run/secrets/ovmesh/token
# What tells every program that it is in a pod: the guard closes all that no overlay brings.
export KUBERNETES_SERVICE_HOST=10.96.0.1
exec setpriv --no-new-privs --bounding-set="$rights" --inh-caps=-all --ambient-caps=-all "$@"
"#;

/// The strings of a list.
fn words(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A container's command, with the program that was built.
fn command(words: Vec<String>) -> Vec<String> {
    let ovd = binaries().ovd.to_string_lossy().into_owned();
    std::iter::once(ovd).chain(words.into_iter().skip(1)).collect()
}

/// What kubelet, on another machine, gets for a probe.
fn kubelet(machine: &Machine, pod: &Machine, probe: &Value) -> Result<String> {
    let port = probe["httpGet"]["port"].as_u64().context("a port")?;
    let path = probe["httpGet"]["path"].as_str().context("a path")?;
    let ask = format!(
        "exec 3<>/dev/tcp/{ip}/{port}; printf 'GET {path} HTTP/1.1\\r\\nHost: {ip}:{port}\\r\\n\\r\\n' >&3; \
         head -n 1 <&3",
        ip = pod.ip4
    );
    machine.run(&["timeout", "2", "bash", "-c", &ask])?.success("kubelet's probe")
}

#[test]
fn ovd_has_enough_with_what_the_manifest_grants_and_answers_for_the_program() {
    let app = fs::read_to_string(config("app.yaml")).unwrap();
    let injected = documents(&inject(&app).unwrap()).remove(0);
    let spec = injected["spec"]["template"]["spec"].clone();
    let sidecar = spec["initContainers"][0].clone();
    assert_eq!(words(&sidecar["securityContext"]["capabilities"]["drop"]), ["ALL"]);
    let rights: String = words(&sidecar["securityContext"]["capabilities"]["add"])
        .iter()
        .map(|right| format!(",+{}", right.to_lowercase()))
        .collect();

    play(&["s1"], &["b"], |rig| {
        let pod = rig.world.machine("web-0")?;
        rig.set_resolvers(&pod, "nameserver 10.96.0.10\n")?;
        let token = rig.fleet.token(&["--overlay", LAB, "--uses", "0", "--ephemeral"])?;
        fs::write(pod.state_dir().join("token"), token)?;
        let run = command([words(&sidecar["command"]), words(&sidecar["args"])].concat());
        let start = |rights: &str| -> Vec<String> {
            let play = ["sh", "-c", START, "start", rights].map(str::to_owned);
            play.into_iter().chain(run.iter().cloned()).collect()
        };

        // One right less, and it does not start, and says which.
        let poor = pod.run(&start("-all"))?;
        ensure!(poor.code == 1 && poor.stderr.contains("CAP_NET_ADMIN"), "{poor:?}");

        let mut ovd = pod.spawn("ovd", &start(&format!("-all{rights}")))?;
        let probe = command(words(&sidecar["startupProbe"]["exec"]["command"]));
        poll(SOON, "the startup probe", || {
            ensure!(ovd.is_running(), "{}", ovd.log_text());
            Ok((pod.run(&probe)?.code == 0).then_some(()))
        })?;
        let pid = ovd.pid().context("it has no process")?;
        let status = pod.run(&["cat", &format!("/proc/{pid}/status")])?.success("status")?;
        ensure!(status.contains("CapEff:\t0000000000001000"), "{status}");

        rig.allow(&["web-0", "b"])?;
        let echo = rig.udp_echo("b", 7)?;
        let netkit = rig.netkit();
        let ping = [netkit.as_str(), "udp-ping", &rig.at("b", 7)?.to_string(), "3", "400"];
        let report = pod.run(&ping)?.success("udp-ping")?;
        ensure!(report.contains("\"received\":3"), "{report}");
        drop(echo);
        // The cluster's DNS knows nothing of it, and cannot even be reached.
        let found = pod.run(&[netkit.as_str(), "resolve", "b.lab.ov.internal", "1"])?;
        let address = rig.fleet.address("b", LAB)?.to_string();
        ensure!(found.stdout.contains(&address), "{found:?}");

        // A cluster's own DNS can be given the overlay's names.
        let export = ["dns", "export", "headless-services", "--overlay", LAB];
        let objects = documents(&rig.fleet.ovctl_ok(&export)?);
        ensure!(objects.len() == 4, "{objects:#?}");
        for object in &objects {
            ensure!(Schema::read().complaints(object).is_empty(), "{object:#}");
        }
        let hosts = rig.fleet.ovctl_ok(&["dns", "export", "hosts", "--overlay", LAB])?;
        let line = format!("{} b.lab.ov.internal", rig.fleet.address("b", LAB)?);
        ensure!(hosts.lines().any(|found| found.starts_with(&line)), "{hosts}");

        let node = rig.fleet.server.clone();
        let container = &spec["containers"][0];
        let probes = ["readinessProbe", "livenessProbe"].map(|key| &container[key]);
        for probe in probes {
            let answer = kubelet(&node, &pod, probe)?;
            ensure!(answer.starts_with("HTTP/1.1 503 "), "with no program: {answer}");
        }
        let direct = json!({"httpGet": {"port": 8080, "path": "/ready"}});
        let _program = rig.run_on(&pod, &["http-echo", "0.0.0.0:8080", "web"])?;
        for probe in probes {
            let answer = kubelet(&node, &pod, probe)?;
            ensure!(answer.starts_with("HTTP/1.1 200 "), "with the program: {answer}");
        }
        ensure!(kubelet(&node, &pod, &direct).is_err(), "the guard lets the node to the program");
        let lifted = pod.run(&command(words(&json!(["ovd", "guard", "off"]))))?;
        lifted.success("ovd guard off")?;
        let answer = kubelet(&node, &pod, &direct)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "without the guard: {answer}");

        // A container that restarts has the same arguments.
        ovd.kill()?;
        let again = pod.spawn("ovd-again", &start(&format!("-all{rights}")))?;
        poll(SOON, "the startup probe", || Ok((pod.run(&probe)?.code == 0).then_some(())))?;
        ensure!(again.log_text().contains("--join is ignored"), "{}", again.log_text());
        Ok(())
    });
}

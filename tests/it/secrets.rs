//! Secrets stay where they belong: not in logs at any level, not in answers, not in process lists or
//! environments; and what others could read is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::binaries;
use crate::fleet::{Kind, parse};
use crate::support::{LAB, Rig, play};

/// Every way in which 32 secret bytes, or the 4 of a key, may be written.
fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = |bytes: &[u8]| {
        let numbers: Vec<_> = bytes.iter().map(u8::to_string).collect();
        numbers.join(", ")
    };
    let mut forms = vec![hex.to_uppercase().into_bytes(), hex.into_bytes()];
    if let Ok(key) = <[u8; 4]>::try_from(bytes) {
        let number = u32::from_be_bytes(key);
        forms.push(number.to_string().into_bytes());
        forms.push(format!("{:08x}", number.swap_bytes()).into_bytes());
    } else {
        // The end of an encoding differs by what stands behind it.
        let whole = |text: String| text.as_bytes()[..40].to_vec();
        forms.push(whole(STANDARD.encode(bytes)));
        forms.push(whole(URL_SAFE_NO_PAD.encode(bytes)));
        forms.push(bytes.to_vec());
        forms.push(list(&bytes[..8]).into_bytes());
    }
    forms
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

/// All secrets that were found, each with the file it is from.
#[derive(Default)]
struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    fn add(&mut self, from: &str, bytes: Vec<u8>) {
        self.0.push((from.to_owned(), bytes));
    }

    /// Everything in a JSON document that is 64 hexadecimal digits, but pins: those are public.
    fn add_json(&mut self, from: &str, value: &Value) {
        match value {
            Value::String(text) => self.0.extend(unhex(text).map(|bytes| (from.to_owned(), bytes))),
            Value::Array(items) => items.iter().for_each(|item| self.add_json(from, item)),
            Value::Object(fields) => {
                for (key, item) in fields.iter().filter(|(key, _)| *key != "pin") {
                    self.add_json(&format!("{from} {key}"), item);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// The secret inside of a token, and the token.
    fn add_token(&mut self, from: &str, token: &str) -> Result<()> {
        let body = token.split('.').nth(1).context("no token")?;
        if token.starts_with("ovt1.") {
            let json: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body)?)?;
            self.add_json(from, &json);
        }
        self.add(from, body.as_bytes().to_vec());
        Ok(())
    }

    /// Where `text` has one of them.
    fn found_in(&self, text: &[u8]) -> Option<&str> {
        let hit = |(_, bytes): &&(String, Vec<u8>)| {
            let longer = (bytes.len() > 32).then(|| bytes.clone());
            let forms = longer.map_or_else(|| forms(bytes), |text| vec![text]);
            forms.iter().any(|form| contains(text, form))
        };
        self.0.iter().find(hit).map(|(from, _)| from.as_str())
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).ok();
    (0..64).step_by(2).map(byte).collect()
}

/// What the state of a node holds.
fn add_state(secrets: &mut Secrets, rig: &Rig, node: &str, program: &str) -> Result<()> {
    let state = rig.fleet.machine(node)?.state_dir().join(program);
    for name in ["identity.json", "table.json"] {
        let document = parse(&fs::read_to_string(state.join(name))?)?;
        secrets.add_json(&format!("{node} {name}"), &document);
        let overlays = document["body"]["overlays"].as_array().into_iter().flatten();
        for row in overlays.flat_map(|overlay| overlay["sendKeys"].as_array().into_iter().flatten())
        {
            let keys = row.as_object().context("a row is an object")?;
            let keys = keys.iter().filter(|(name, _)| name.to_lowercase().contains("key"));
            for key in keys.filter_map(|(_, key)| u32::try_from(key.as_u64()?).ok()) {
                secrets.add(&format!("{node} send key"), key.to_be_bytes().to_vec());
            }
        }
    }
    Ok(())
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { files_below(&path, found)? } else { found.push(path) }
    }
    Ok(())
}

#[test]
fn no_secret_is_in_logs_answers_process_lists_or_environments() {
    play(&[], &[], |rig| {
        rig.fleet.stop_server()?;
        rig.fleet.start_server_with(&["--log", "trace"])?;
        let mut secrets = Secrets::default();
        for (name, kind) in [("s1", Kind::Sap), ("a", Kind::Entity), ("b", Kind::Entity)] {
            let token = rig.fleet.token(&["--role", kind.role(), "--overlay", LAB])?;
            secrets.add_token(name, &token)?;
            let machine = rig.world.machine(name)?;
            rig.fleet.add(machine, kind, &token, &["--log", "trace"])?;
        }
        let admin = rig.fleet.token(&["--role", "admin"])?;
        secrets.add_token("admin", &admin)?;
        let admin_file = rig.world.dir().join("admin.token");
        fs::write(&admin_file, &admin)?;
        let url = format!("https://{}:7443", rig.fleet.server.ip4);
        let (ovctl, file) = (binaries().ovctl, admin_file.to_string_lossy().into_owned());
        let ovctl = ovctl.to_string_lossy();
        let remote = [&*ovctl, "--server", &url, "--token-file", &file, "-o", "json", "status"];
        let mut answers = rig.fleet.machine("a")?.run(&remote)?.success("status by a token")?;
        rig.allow(&["a", "b"])?;
        let echo = rig.udp_echo("b", 7)?;
        ensure!(rig.udp_ping("a", "b", 7, 3)? == 3);
        drop(echo);

        let key = fs::read_to_string(rig.fleet.server.state_dir().join("server/server.key"));
        let key = key.context("the server's key")?;
        let line = key.lines().nth(1).context("a PEM file has lines")?;
        secrets.add("server key", line.as_bytes()[..48].to_vec());
        for (node, program) in [("s1", "ovsap"), ("a", "ovd"), ("b", "ovd")] {
            add_state(&mut secrets, rig, node, program)?;
        }
        let sources: BTreeSet<_> = secrets.0.iter().map(|(from, _)| from.as_str()).collect();
        for wanted in [
            "a identity.json credential",
            "a send key",
            "b table.json body overlays destinationKeys accept secret",
            "s1 table.json body links secret",
        ] {
            ensure!(sources.contains(wanted), "{wanted} is not in {sources:?}");
        }

        for words in [
            &["key", "list"][..],
            &["token", "list"],
            &["entity", "show", "a"],
            &["audit", "list"],
            &["why", "a", "b"],
        ] {
            answers += &rig.fleet.ovctl_ok(&[words, &["-o", "json"]].concat())?;
        }
        for words in [&["status"][..], &["denied"], &["why", "b"]] {
            let output = rig.fleet.node("a")?.command(&[words, &["-o", "json"]].concat())?;
            answers += &output.stdout;
        }
        ensure!(secrets.found_in(answers.as_bytes()).is_none(), "in an answer");

        let lists = ["sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ"];
        let lists = rig.fleet.server.run(&lists)?.stdout;
        ensure!(lists.contains("serve") && lists.contains("PATH="), "nothing was listed");
        let found = secrets.found_in(lists.as_bytes());
        ensure!(found.is_none(), "{found:?} is in a process list");

        let mut files = Vec::new();
        files_below(rig.world.dir(), &mut files)?;
        let logs: Vec<_> = files
            .iter()
            .filter(|path| path.extension().is_some_and(|kind| kind == "log"))
            .collect();
        let mut read = 0;
        for path in &logs {
            let text = fs::read(path)?;
            read += text.len();
            let found = secrets.found_in(&text);
            ensure!(found.is_none(), "{found:?} is in {}", path.display());
        }
        let node = rig.fleet.node_mut("a")?.process()?.log_text();
        ensure!(node.contains(" TRACE "), "it does not log at every level");
        ensure!(logs.len() >= 4 && read > 10_000, "{} logs, {read} bytes", logs.len());

        // What is looked for is found where it is.
        for (from, bytes) in &secrets.0 {
            for form in if bytes.len() > 32 { vec![bytes.clone()] } else { forms(bytes) } {
                let planted = [b"a log line ".as_slice(), &form, b" ends\n"].concat();
                ensure!(secrets.found_in(&planted).is_some(), "{from} would not be found");
            }
        }
        let own = fs::read(rig.fleet.machine("a")?.state_dir().join("ovd/identity.json"))?;
        ensure!(secrets.found_in(&own).is_some());
        Ok(())
    });
}

#[test]
fn a_reusable_token_in_an_argument_is_refused_and_one_for_a_single_use_is_not() {
    play(&[], &[], |rig| {
        let reusable = rig.fleet.token(&["--overlay", LAB, "--uses", "0"])?;
        let single = rig.fleet.token(&["--overlay", LAB])?;
        let ovd = binaries().ovd.to_string_lossy().into_owned();
        let machine = rig.world.machine("a")?;

        let refused = machine.run(&[ovd.as_str(), "join", &reusable])?;
        ensure!(refused.code == 2 && refused.stderr.contains("reusable token"), "{refused:?}");
        ensure!(refused.stderr.contains("@FILE"), "{refused:?}");
        ensure!(!machine.state_dir().join("ovd").exists(), "it kept something");
        let tokens = rig.fleet.ovctl_json(&["token", "list"])?;
        ensure!(tokens["items"][0]["used"] == 0, "{tokens:#}");

        machine.run(&[ovd.as_str(), "join", &single])?.success("ovd join TOKEN")?;
        let file = rig.file("token");
        fs::write(&file, &reusable)?;
        let other = rig.world.machine("b")?;
        let from_file = format!("@{}", file.display());
        other.run(&[ovd.as_str(), "join", &from_file])?.success("ovd join @FILE")?;
        Ok(())
    });
}

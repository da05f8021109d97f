//! Joining: what tokens admit, and that everything else is refused with a clear error and leaves
//! nothing behind.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ovmesh::api::node::JoinToken;
use ovmesh::types::Secret;
use serde_json::{Value, json};

use crate::binaries;
use crate::fleet::{Fleet, Kind};
use crate::support::{Rig, SOON, Turn, expect_refusal, http_over, play};
use crate::world::{Machine, Output, World, poll};

/// How soon a machine must be online, as the first answer through the overlay shows.
const FIRST_PING_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn tokens_that_do_not_admit_are_refused_and_leave_nothing() {
    play(&[], &[], |rig| {
        let joiner = Joiner::new(rig, "m")?;
        let used = rig.fleet.token(&["--overlay", "lab", "--name", "first"])?;
        let output = joiner.join(&used, "first", &[])?;
        ensure!(output.code == 0, "the control: {output:?}");

        joiner.refused(&used, 7, &["used", "ovctl token create"])?;
        let revoked = rig.fleet.ovctl_json(&["token", "create", "--overlay", "lab"])?;
        let id = revoked["result"]["token"]["id"].as_str().context("a token has an id")?;
        rig.fleet.ovctl_ok(&["token", "revoke", id])?;
        let text = revoked["result"]["text"].as_str().context("a token has a text")?;
        joiner.refused(text, 7, &["revoked"])?;

        let expired = rig.fleet.token(&["--overlay", "lab", "--expires", "1s"])?;
        let made = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        poll(SOON, "the token to expire", || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
            Ok((now >= made + Duration::from_secs(3)).then_some(()))
        })?;
        joiner.refused(&expired, 7, &["expired"])?;

        let unknown = altered(&used, |token| token.secret = Secret::new([7; 32]))?;
        joiner.refused(&unknown, 7, &["does not know", "ovctl token create"])?;
        let sap = rig.fleet.token(&["--role", "sap"])?;
        joiner.refused(&sap, 7, &["sap"])?;
        for malformed in ["ovt1.", "ovt1.%%%", "ovt2.abcd", "hello", &used[..used.len() - 9]] {
            joiner.refused(malformed, 2, &["malformed"])?;
        }
        let admin = rig.fleet.token(&["--role", "admin"])?;
        joiner.refused(&admin, 2, &["malformed"])
    });
}

#[test]
fn from_the_command_to_the_first_policed_ping_it_takes_less_than_5_s() {
    play(&["s1"], &["a"], |rig| {
        let laptop = rig.world.machine("laptop")?;
        rig.allow(&["role=laptop", "a", "--port", "udp/7"])?;
        let token = rig.fleet.token(&["--overlay", "lab", "--label", "role=laptop"])?;
        let _echoes = [rig.udp_echo("a", 7)?, rig.udp_echo("a", 8)?];
        let netkit = rig.netkit();
        let [allowed, refused] = [rig.at("a", 7)?, rig.at("a", 8)?].map(|to| to.to_string());
        let answers = |to: &str| -> Result<bool> {
            let output = laptop.run(&[netkit.as_str(), "udp-ping", to, "1", "200"])?;
            Ok(output.stdout.contains("\"received\":1"))
        };
        ensure!(!answers(&allowed)?, "answered before it joined");

        let ovd = binaries().ovd.to_string_lossy().into_owned();
        let started = Instant::now();
        let _ovd = laptop.spawn("ovd", &[&ovd, "run", "--join", &token, "--guard", "ports"])?;
        let took =
            poll(SOON, "the first answer", || Ok(answers(&allowed)?.then(|| started.elapsed())))?;

        show(&format!("from `ovd run --join` to the first policed ping: {took:.1?}"));
        ensure!(took < FIRST_PING_WITHIN, "{took:?}");
        ensure!(!answers(&refused)?, "what no rule allows is answered");
        rig.allow(&["role=laptop", "a", "--port", "udp/8"])?;
        poll(SOON, "the control", || Ok(answers(&refused)?.then_some(())))
    });
}

#[expect(clippy::print_stderr, reason = "a figure that one wants to see, also when it is good")]
fn show(figure: &str) {
    eprintln!("{figure}");
}

#[test]
fn an_endpoint_in_the_open_is_refused_unless_the_token_allows_it() {
    play(&[], &[], |rig| {
        let joiner = Joiner::new(rig, "m")?;
        let open = ["--endpoint", "203.0.113.7"];
        let token = rig.fleet.token(&["--overlay", "lab"])?;

        let refused = joiner.join(&token, "refused", &open)?;
        expect_refusal(
            &refused,
            5,
            &["underlay at 203.0.113.7 is not declared managed", "in clear", "--clear-underlay"],
        )?;
        ensure!(!joiner.state("refused").exists(), "state was left behind");

        // The controls: the same token with another endpoint, and another token with the same.
        ensure!(joiner.join(&token, "private", &["--name", "private"])?.code == 0);
        let clear = rig.fleet.token(&["--overlay", "lab", "--clear-underlay"])?;
        let words = [&open[..], &["--name", "clear"]].concat();
        let joined = joiner.join(&clear, "clear", &words)?;
        ensure!(joined.code == 0, "{joined:?}");
        Ok(())
    });
}

#[test]
fn nothing_goes_in_clear_to_a_sap_in_the_open_unless_the_token_allowed_it() {
    play(&[], &["a"], |rig| {
        for name in ["c", "e"] {
            rig.join(name, Kind::Entity, &["--clear-underlay"])?;
        }
        let sap = rig.world.machine("s1")?;
        let open = "203.0.113.9";
        let command = |machine: &Machine, words: &str| {
            let command: Vec<&str> = words.split(' ').collect();
            machine.run(&command)?.success(words).map(drop)
        };
        command(&sap, &format!("ip address add {open}/32 dev eth0"))?;
        for name in ["a", "c", "e"] {
            let machine = rig.fleet.machine(name)?;
            command(machine, &format!("ip route add {open} dev eth0"))?;
            command(&sap, &format!("ip route add {} dev eth0 src {open}", machine.ip4))?;
        }
        let token = rig.fleet.token(&["--role", "sap", "--overlay", "lab", "--clear-underlay"])?;
        rig.fleet.add(sap, Kind::Sap, &token, &["--endpoint", open])?;
        rig.allow(&["a", "e", "--port", "udp/7"])?;
        rig.allow(&["c", "e", "--port", "udp/7"])?;
        let _echo = rig.udp_echo("e", 7)?;

        poll(
            SOON,
            "who may to reach e",
            || Ok((rig.udp_ping("c", "e", 7, 1)? == 1).then_some(())),
        )?;
        ensure!(rig.udp_ping("a", "e", 7, 3)? == 0, "a speaks to a SaP in the open");
        let problems = rig.fleet.node("a")?.status()?["problems"].to_string();
        let expected = format!("SaP s1 at {open}:6080 is beyond underlays declared managed");
        ensure!(problems.contains(&expected), "{problems}");
        let none = rig.fleet.node("c")?.status()?["problems"].to_string();
        ensure!(none == "[]", "{none}");
        Ok(())
    });
}

#[test]
fn an_impostor_is_refused_before_it_sees_the_secret() {
    let _turn = Turn::take();
    let world = World::new().unwrap();
    let (binaries, outcome) = (binaries(), Fleet::start(&world, &binaries()));
    let fleet = outcome.unwrap();
    let other = world.machine("other").unwrap();
    let ovctl = binaries.ovctl.to_string_lossy().into_owned();
    let url = format!("https://{}:7443", other.ip4);
    let mut impostor =
        other.spawn("ovctl-serve", &[&ovctl, "serve", "--public-url", &url]).unwrap();
    poll(Duration::from_secs(30), "the other server", || {
        ensure!(impostor.is_running(), "{}", impostor.log_text());
        Ok((other.run(&[&ovctl, "status"])?.code == 0).then_some(()))
    })
    .unwrap();
    let joiner = Joiner {
        machine: world.machine("m").unwrap(),
        program: binaries.ovd.to_string_lossy().into_owned(),
    };

    // A token of one server that leads to another one: as if somebody stood in between.
    let token = fleet.token(&[]).unwrap();
    let misled = altered(&token, |token| token.urls = vec![url.clone()]).unwrap();
    joiner.refused(&misled, 7, &["is not the one that made this token"]).unwrap();
    let wrong_pin = altered(&token, |token| token.pin = Secret::new([1; 32])).unwrap();
    joiner.refused(&wrong_pin, 7, &["is not the one that made this token"]).unwrap();
    let nobody = altered(&token, |token| token.urls = vec!["https://10.99.0.99:7443".into()]);
    joiner.refused(&nobody.unwrap(), 6, &["10.99.0.99"]).unwrap();

    // The control: the token was not used up by any of this. And with state, only its server's
    // tokens are passed over; another server's are refused.
    let output = joiner.join(&token, "good", &[]).unwrap();
    assert_eq!(output.code, 0, "{output:?}");
    let foreign = other.run(&[&ovctl, "token", "create"]).unwrap().stdout;
    let again = joiner.run(foreign.trim(), "good").unwrap();
    expect_refusal(&again, 5, &["another server"]).unwrap();
}

#[test]
fn of_16_joins_at_once_with_one_token_one_wins() {
    play(&[], &[], |rig| {
        let token = rig.fleet.token(&["--overlay", "lab"])?;
        let joiners: Vec<Joiner> =
            (0..16).map(|number| Joiner::new(rig, &format!("n{number}"))).collect::<Result<_>>()?;

        let mut joins = Vec::new();
        for joiner in &joiners {
            let join = joiner.machine.spawn("join", &joiner.words(&token, "ovd", &[]))?;
            joins.push((joiner.state("ovd"), join));
        }
        let mut won = 0;
        for (state, join) in &mut joins {
            let code = join.wait(Duration::from_secs(30))?;
            ensure!([0, 7].contains(&code), "exit code {code}:\n{}", join.log_text());
            ensure!(state.exists() == (code == 0), "{} was left behind", state.display());
            won += u32::from(code == 0);
        }

        ensure!(won == 1, "{won} joined");
        let entities = rig.fleet.ovctl_json(&["entity", "list"])?;
        ensure!(entities["items"].as_array().map(Vec::len) == Some(1), "{entities:#}");
        Ok(())
    });
}

#[test]
fn a_taken_name_is_a_conflict_and_does_not_use_the_token_up() {
    play(&[], &[], |rig| {
        let joiner = Joiner::new(rig, "m")?;
        let first = rig.fleet.token(&["--overlay", "lab"])?;
        ensure!(joiner.join(&first, "first", &["--name", "web"])?.code == 0);

        let second = rig.fleet.token(&["--overlay", "lab"])?;
        let taken = joiner.join(&second, "second", &["--name", "web"])?;
        expect_refusal(&taken, 5, &["web", "taken"])?;
        ensure!(!joiner.state("second").exists(), "state was left behind");
        ensure!(joiner.join(&second, "second", &["--name", "web2"])?.code == 0);

        let named = rig.fleet.token(&["--overlay", "lab", "--name", "db"])?;
        let other = joiner.join(&named, "third", &["--name", "cache"])?;
        expect_refusal(&other, 5, &["db", "--name"])?;
        for bad in ["Web", "-web", "web_1", "", "x'; DROP TABLE nodes; --", &"a".repeat(64)] {
            let output = joiner.join(&named, "third", &[&format!("--name={bad}")])?;
            expect_refusal(&output, 2, &["name"])?;
        }
        ensure!(!joiner.state("third").exists(), "state was left behind");
        Ok(())
    });
}

#[test]
fn a_joiner_cannot_claim_namespace_labels_or_a_deleted_name() {
    play(&["s1"], &["a"], |rig| {
        rig.join("b", Kind::Entity, &[])?;
        rig.allow(&["a", "b"])?;
        rig.allow(&["a", "role=db"])?;
        rig.allow(&["a", "namespace:shop"])?;
        ensure!(rig.can("a", "b", "udp/9")? == 0, "the control");

        // There is no word for either, and a request that has one is refused.
        let joiner = Joiner::new(rig, "m")?;
        let token = rig.fleet.token(&["--overlay", "lab"])?;
        for words in [["--namespace", "shop"], ["--label", "role=db"]] {
            expect_refusal(&joiner.join(&token, "claims", &words)?, 2, &[words[0]])?;
        }
        let secret = String::from(parsed(&token)?.secret);
        let socket = rig.fleet.server.run_dir().join("ovctl.sock");
        let request = json!({
            "secret": secret, "kind": "entity", "name": "claims", "hostName": null,
            "endpoints": ["10.99.0.77:6080"], "credentialHash": "ab".repeat(32),
        });
        let join = |request: &Value| {
            http_over(&socket, "POST", "/v1/join", request.to_string().as_bytes())
        };
        for claim in ["namespace", "labels", "ports", "role", "id"] {
            let mut request = request.clone();
            request[claim] = json!("shop");
            let (status, answer) = join(&request)?;
            ensure!(status == 400, "{claim}: {status} {answer}");
        }
        let (status, answer) = join(&request)?;
        ensure!(status == 200, "the control: {status} {answer}");
        let claims = rig.fleet.ovctl_json(&["entity", "show", "claims"])?;
        ensure!(claims["labels"] == json!([]), "{claims:#}");

        // b goes, and another b comes with a token that was not made for it.
        rig.fleet.ovctl_ok(&["entity", "delete", "b"])?;
        let token = rig.fleet.token(&["--overlay", "lab"])?;
        let output = joiner.join(&token, "b", &["--name", "b"])?;
        ensure!(output.code == 0, "{output:?}");
        ensure!(rig.can("a", "b", "udp/9")? == 4, "the new b inherited the old one's rule");
        ensure!(rig.can("b", "a", "udp/9")? == 4);
        let rules = rig.fleet.ovctl_json(&["policy", "list"])?;
        let dangling = rules["items"][0]["dangling"].clone();
        ensure!(dangling == json!(["b"]), "the rule says that it dangles: {dangling}");
        Ok(())
    });
}

#[test]
fn an_overlay_that_collides_with_the_joiners_networks_is_refused() {
    play(&[], &[], |rig| {
        // The server cannot know this network; only the joiner can.
        let joiner = Joiner::new(rig, "m")?;
        let add = ["ip", "address", "add", "10.50.3.1/16", "dev", "lo"];
        joiner.machine.run(&add)?.success("add an address")?;
        rig.fleet.ovctl_ok(&["overlay", "create", "clash", "--cidr", "10.50.0.0/16"])?;

        let token = rig.fleet.token(&["--overlay", "clash"])?;
        joiner.refused(&token, 5, &["clash", "10.50.0.0/16"])?;

        let other = joiner.elsewhere(rig, "n")?;
        let output = other.join(&token, "good", &[])?;
        ensure!(output.code == 0, "the token is not used up, and fits elsewhere: {output:?}");
        Ok(())
    });
}

/// A machine on which `ovd join` is tried, each time with a state directory of its own.
struct Joiner {
    machine: Machine,
    program: String,
}

impl Joiner {
    fn new(rig: &Rig, name: &str) -> Result<Self> {
        let program = binaries().ovd.to_string_lossy().into_owned();
        Ok(Self { machine: rig.world.machine(name)?, program })
    }

    fn elsewhere(&self, rig: &Rig, name: &str) -> Result<Self> {
        Ok(Self { machine: rig.world.machine(name)?, program: self.program.clone() })
    }

    /// A state directory, seen from here.
    fn state(&self, name: &str) -> PathBuf {
        self.machine.state_dir().join(name)
    }

    fn words(&self, token: &str, state: &str, options: &[&str]) -> Vec<String> {
        let state = format!("/var/lib/ovmesh/{state}");
        let mut words = vec![self.program.as_str(), "join", token, "--state-dir", &state];
        words.extend(options);
        words.into_iter().map(str::to_owned).collect()
    }

    fn join(&self, token: &str, state: &str, options: &[&str]) -> Result<Output> {
        self.machine.run(&self.words(token, state, options))
    }

    /// Starts the daemon with a token, which must end by itself.
    fn run(&self, token: &str, state: &str) -> Result<Output> {
        let state = format!("/var/lib/ovmesh/{state}");
        self.machine.run(&[&self.program, "run", "--join", token, "--state-dir", &state])
    }

    /// The token is refused, and no state is left behind.
    fn refused(&self, token: &str, code: i32, words: &[&str]) -> Result<()> {
        let output = self.join(token, "refused", &[])?;
        expect_refusal(&output, code, words)?;
        ensure!(!output.stderr.contains(token) || token.len() < 20, "the error shows the token");
        ensure!(!self.state("refused").exists(), "state was left behind");
        Ok(())
    }
}

fn parsed(token: &str) -> Result<JoinToken> {
    token.parse().map_err(|problem: ovmesh::api::Problem| anyhow::anyhow!("{problem}"))
}

/// A token with something else in it.
fn altered(token: &str, change: impl FnOnce(&mut JoinToken)) -> Result<String> {
    let mut token = parsed(token)?;
    change(&mut token);
    Ok(token.to_string())
}

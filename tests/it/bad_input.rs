//! Bad input from operators: a clear error with the right exit code, and nothing changed.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::binaries;
use crate::support::{Rig, expect_refusal, http_over, play};
use crate::world::Machine;

/// What a hostile operator types where a text is expected.
const SQL: [&str; 3] =
    ["x'; DROP TABLE rules; --", "x\" OR 1=1 --", "1); DELETE FROM nodes; SELECT (1"];

#[test]
fn mistakes_of_operators_are_refused_with_the_right_exit_code() {
    play(&[], &[], |rig| {
        members(rig)?;
        let rule = rig.allow_no_wait(&["alpha", "beta", "--port", "tcp/80"])?;

        for cidr in ["10.71.0.0/33", "10.71.0", "banana", "10.71.0.0/-1", "fd00::/129", ""] {
            refused(rig, &["overlay", "create", "x", "--cidr", cidr], 2, &["cidr"])?;
        }
        for cidr in ["10.70.0.0/16", "10.70.3.0/24", "10.0.0.0/8"] {
            refused(rig, &["overlay", "create", "x", "--cidr", cidr], 5, &["lab", cidr])?;
        }
        // The network that the server itself stands in.
        refused(rig, &["overlay", "create", "x", "--cidr", "10.99.0.0/24"], 5, &["10.99.0.0/24"])?;
        refused(rig, &["overlay", "create", "lab"], 5, &["lab", "exists"])?;
        let long = "a".repeat(64);
        for name in ["Lab", "-lab", "lab-", "la_b", "lab.x", "", "ü", &long] {
            refused(rig, &["overlay", "create", "--", name], 2, &["name"])?;
        }

        for port in ["tcp/70000", "tcp/0", "tcp/9-8", "icmp/1", "256", "tcp/", "udp/-1", "http"] {
            refused(rig, &["policy", "allow", "alpha", "beta", "--port", port], 2, &[port])?;
        }
        refused(rig, &["policy", "allow", "alpha", "betta"], 3, &["betta", "did you mean beta"])?;
        refused(rig, &["policy", "allow", "nobody", "beta"], 3, &["nobody"])?;
        refused(
            rig,
            &["policy", "allow", "alpha", "beta", "--overlay", "lap"],
            3,
            &["lap", "lab"],
        )?;
        refused(rig, &["policy", "allow", "alpha", "beta", "--via", "s9"], 3, &["s9"])?;
        refused(rig, &["policy", "allow", "alpha", "beta", "--expires", "0s"], 2, &["0s"])?;
        refused(rig, &["policy", "revoke", "r-999"], 3, &["r-999"])?;
        refused(rig, &["policy", "show", "r-999"], 3, &["r-999"])?;
        refused(rig, &["overlay", "show", "nowhere"], 3, &["nowhere"])?;
        refused(rig, &["entity", "show", "nobody"], 3, &["nobody"])?;
        refused(rig, &["entity", "delete", "nobody"], 3, &["nobody"])?;
        refused(rig, &["sap", "delete", "nobody"], 3, &["nobody"])?;
        refused(rig, &["key", "rotate", "nobody"], 3, &["nobody"])?;
        refused(rig, &["key", "rotate"], 2, &["--all"])?;
        refused(rig, &["token", "create", "--overlay", "nowhere"], 3, &["nowhere"])?;
        refused(rig, &["token", "create", "--expires", "soon"], 2, &["soon"])?;
        refused(rig, &["overlay", "delete", "lab"], 5, &["lab", "members"])?;

        let revision = rig.fleet.ovctl_json(&["status"])?["revision"].as_u64();
        let revision = revision.context("status has no revision")?;
        let allow = ["policy", "allow", "beta", "alpha", "--no-wait", "--if-revision"];
        let stale = (revision - 1).to_string();
        refused(rig, &[&allow[..], &[&stale]].concat(), 5, &["revision"])?;
        let before = everything(rig)?;
        rig.fleet.ovctl_ok(&[&allow[..], &[&revision.to_string(), "--dry-run"]].concat())?;
        ensure!(everything(rig)? == before, "a dry run changed something");
        rig.fleet.ovctl_ok(&[&allow[..], &[&revision.to_string()]].concat())?;

        ensure!(rig.can("alpha", "beta", "tcp/80")? == 0, "the control: {rule}");
        ensure!(rig.can("alpha", "beta", "tcp/81")? == 4, "a verdict of deny has its own code");
        Ok(())
    });
}

#[test]
fn sql_in_every_text_changes_nothing() {
    play(&[], &[], |rig| {
        members(rig)?;
        rig.allow_no_wait(&["alpha", "beta"])?;
        for sql in SQL {
            for words in [
                &["overlay", "create", sql][..],
                &["overlay", "create", "x", "--cidr", sql],
                &["overlay", "show", sql],
                &["overlay", "delete", sql],
                &["token", "create", "--overlay", sql],
                &["token", "create", "--name", sql],
                &["token", "create", "--namespace", sql],
                &["token", "create", "--label", sql],
                &["token", "create", "--port", sql],
                &["token", "create", "--expires", sql],
                &["token", "revoke", sql],
                &["entity", "list", "--overlay", sql],
                &["entity", "show", sql],
                &["entity", "label", sql, "a=b"],
                &["entity", "label", "alpha", sql],
                &["entity", "delete", sql],
                &["sap", "show", sql],
                &["sap", "delete", sql],
                &["policy", "allow", sql, "beta"],
                &["policy", "allow", "alpha", sql],
                &["policy", "deny", "alpha", sql],
                &["policy", "allow", "alpha", "beta", "--overlay", sql],
                &["policy", "allow", "alpha", "beta", "--port", sql],
                &["policy", "allow", "alpha", "beta", "--via", sql],
                &["policy", "allow", "alpha", "beta", "--expires", sql],
                &["policy", "revoke", sql],
                &["policy", "revoke", "alpha", sql],
                &["policy", "show", sql],
                &["policy", "can", "alpha", sql],
                &["policy", "can", "alpha", "beta", "-p", sql],
                &["key", "rotate", sql],
                &["key", "rotate", "--overlay", sql],
                &["key", "list", "--overlay", sql],
            ] {
                let before = everything(rig)?;
                let output = rig.fleet.ovctl(words)?;
                ensure!([2, 3].contains(&output.code), "{words:?}: {output:?}");
                ensure!(!output.stderr.contains("panicked"), "{words:?}: {output:?}");
                ensure!(!output.stderr.to_lowercase().contains("sqlite"), "{words:?}: {output:?}");
                ensure!(everything(rig)? == before, "{words:?} changed something");
            }
            // A reason may be any text, and comes back as it was written.
            let rule = rig.allow_no_wait(&["beta", "alpha", "--reason", sql])?;
            let shown = rig.fleet.ovctl_json(&["policy", "show", &rule])?;
            ensure!(shown["reason"] == sql, "{shown:#}");
            rig.revoke(&[&rule, "--no-wait"])?;
        }
        raw_requests_are_refused(rig)
    });
}

/// What `ovctl` would never send.
fn raw_requests_are_refused(rig: &Rig) -> Result<()> {
    let socket = rig.fleet.server.run_dir().join("ovctl.sock");
    let before = everything(rig)?;
    let rule = json!({ "action": "allow", "from": "alpha", "to": "beta", "services": [] });
    let with = |field: &str, value: Value| {
        let mut request = rule.clone();
        request[field] = value;
        request.to_string().into_bytes()
    };
    let big = with("reason", Value::from("x".repeat(2 << 20)));
    for (path, body, statuses) in [
        ("/v1/rules", with("unknown", json!(1)), 400..500),
        ("/v1/rules", with("from", json!(SQL[0])), 400..500),
        ("/v1/rules", with("overlay", json!(SQL[1])), 400..500),
        ("/v1/rules", with("services", json!(["tcp/70000"])), 400..500),
        ("/v1/rules", with("from", json!({ "a": [[[[]]]] })), 400..500),
        ("/v1/rules?ifRevision=x", rule.to_string().into_bytes(), 400..500),
        ("/v1/rules?unknown=1", rule.to_string().into_bytes(), 400..500),
        ("/v1/rules", b"{".to_vec(), 400..500),
        ("/v1/rules", vec![0xff; 100], 400..500),
        ("/v1/rules", Vec::new(), 400..500),
        ("/v1/rules", vec![b'['; 100_000], 400..500),
        ("/v1/rules", big, 413..414),
        ("/v1/nowhere", b"{}".to_vec(), 404..405),
    ] {
        let (status, answer) = http_over(&socket, "POST", path, &body)?;
        ensure!(statuses.contains(&status), "{path}: {status} {answer}");
        ensure!(!answer.contains("panicked"), "{answer}");
    }
    ensure!(everything(rig)? == before, "a refused request changed something");

    let (status, answer) =
        http_over(&socket, "POST", "/v1/rules?dryRun=true", rule.to_string().as_bytes())?;
    ensure!(status == 200, "the control: {status} {answer}");
    Ok(())
}

#[test]
fn rights_end_where_the_token_ends() {
    play(&[], &[], |rig| {
        members(rig)?;
        let laptop = rig.world.machine("laptop")?;
        let url = format!("https://{}:7443", rig.fleet.server.ip4);
        let remote = |token: &Path, words: &[&str]| {
            let ovctl = binaries().ovctl;
            let (ovctl, token) = (ovctl.to_string_lossy(), token.to_string_lossy());
            let target = [&*ovctl, "--server", &url, "--token-file", &token];
            laptop.run(&[&target[..], words].concat())
        };
        let allow = ["policy", "allow", "alpha", "beta", "--no-wait"];

        let viewer = token_file(rig, &rig.fleet.token(&["--role", "viewer"])?)?;
        remote(&viewer, &["policy", "list"])?.success("ovctl policy list as a viewer")?;
        let before = everything(rig)?;
        for words in [
            &allow[..],
            &["token", "create"],
            &["overlay", "create", "x"],
            &["entity", "delete", "alpha"],
            &["key", "rotate", "--all"],
        ] {
            expect_refusal(&remote(&viewer, words)?, 7, &["viewer"])?;
        }
        let forged = token_file(rig, &format!("ova1.{}", "ab".repeat(32)))?;
        let pin = pin_of(&rig.fleet.token(&["--overlay", "lab"])?)?;
        let pinned = token_file(rig, &format!("ova1.{}.{pin}", "ab".repeat(32)))?;
        expect_refusal(&remote(&forged, &["policy", "list"])?, 7, &[])?;
        expect_refusal(&remote(&pinned, &["policy", "list"])?, 7, &[])?;
        let after = everything(rig)?;
        ensure!(after["rules"] == before["rules"] && after["entities"] == before["entities"]);

        let admin = token_file(rig, &rig.fleet.token(&["--role", "admin"])?)?;
        remote(&admin, &allow)?.success("ovctl policy allow as an admin")?;

        // Nobody there: over the network, and on a socket.
        let ovctl = binaries().ovctl;
        let ovctl = ovctl.to_string_lossy();
        let (gone, admin) = ("https://10.99.0.99:7443", admin.to_string_lossy());
        let unreachable =
            laptop.run(&[&*ovctl, "--server", gone, "--token-file", &admin, "status"])?;
        expect_refusal(&unreachable, 6, &["10.99.0.99"])?;
        let unreachable = laptop.run(&[&*ovctl, "--socket", "/nowhere.sock", "status"])?;
        expect_refusal(&unreachable, 6, &["/nowhere.sock"])
    });
}

#[test]
fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    play(&[], &[], |rig| {
        members(rig)?;
        let before = everything(rig)?;
        rig.fleet.stop_server()?;
        let database = database(&rig.fleet.server.state_dir().join("server"))?;
        execute(
            &database,
            "INSERT INTO _sqlx_migrations \
             (version, description, success, checksum, execution_time) \
             VALUES (99990101000000, 'from the future', TRUE, x'00', 0)",
        )?;
        let bytes = std::fs::read(&database)?;

        expect_refusal(&serve(&rig.fleet.server)?, 1, &["newer version"])?;
        ensure!(std::fs::read(&database)? == bytes, "the database was written to");

        execute(&database, "DELETE FROM _sqlx_migrations WHERE version = 99990101000000")?;
        rig.fleet.start_server()?;
        ensure!(everything(rig)? == before, "something was lost");
        Ok(())
    });
}

#[test]
fn state_directories_that_others_can_read_are_refused() {
    play(&["s1"], &["a"], |rig| {
        rig.fleet.node_mut("a")?.stop()?;
        rig.fleet.node_mut("s1")?.stop()?;
        rig.fleet.stop_server()?;
        let programs = binaries();
        for (machine, program, state) in [
            (rig.fleet.machine("a")?, &programs.ovd, "ovd"),
            (rig.fleet.machine("s1")?, &programs.ovsap, "ovsap"),
            (&rig.fleet.server, &programs.ovctl, "server"),
        ] {
            let verb = if state == "server" { "serve" } else { "run" };
            let dir = machine.state_dir().join(state);
            let chmod = |mode| std::fs::set_permissions(&dir, Permissions::from_mode(mode));
            for mode in [0o755, 0o750, 0o701, 0o777] {
                chmod(mode)?;
                let output = machine.run(&[&*program.to_string_lossy(), verb])?;
                expect_refusal(
                    &output,
                    1,
                    &[&format!("/var/lib/ovmesh/{state}"), "must be 0700", "chmod"],
                )
                .with_context(|| format!("{state} with mode {mode:o}"))?;
            }
            chmod(0o700)?;
        }

        rig.fleet.start_server()?;
        rig.fleet.node_mut("s1")?.start()?;
        rig.fleet.node_mut("a")?.start()
    });
}

/// Two entities that joined and do not run: names for rules.
pub(crate) fn members(rig: &Rig) -> Result<()> {
    let machine = rig.world.machine("m")?;
    let ovd = binaries().ovd;
    for name in ["alpha", "beta"] {
        let token = rig.fleet.token(&["--overlay", "lab", "--name", name])?;
        let state = format!("/var/lib/ovmesh/{name}");
        let words = [&*ovd.to_string_lossy(), "join", &token, "--state-dir", &state];
        machine.run(&words)?.success("ovd join")?;
    }
    Ok(())
}

/// Everything that operators can change.
pub(crate) fn everything(rig: &Rig) -> Result<Value> {
    // Asked for directly: this is done hundreds of times.
    let socket = rig.fleet.server.run_dir().join("ovctl.sock");
    let list = |noun: &str| {
        let (status, body) = http_over(&socket, "GET", &format!("/v1/{noun}"), b"")?;
        ensure!(status == 200, "{noun}: {status} {body}");
        crate::fleet::parse(&body)
    };
    Ok(json!({
        "overlays": list("overlays")?,
        "entities": list("entities")?,
        "saps": list("saps")?,
        "tokens": list("tokens")?,
        "rules": list("rules")?,
        "keys": list("keys")?,
        "audit": list("audit?limit=500")?,
    }))
}

/// The command is refused and nothing is changed.
fn refused(rig: &Rig, words: &[&str], code: i32, said: &[&str]) -> Result<()> {
    let before = everything(rig)?;
    let output = rig.fleet.ovctl(words)?;
    expect_refusal(&output, code, said).with_context(|| format!("ovctl {}", words.join(" ")))?;
    ensure!(everything(rig)? == before, "ovctl {} changed something", words.join(" "));
    Ok(())
}

pub(crate) fn token_file(rig: &Rig, token: &str) -> Result<PathBuf> {
    let file = rig.file("admin-token");
    std::fs::write(&file, token)?;
    std::fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    Ok(file)
}

/// The pin of the server's key, as join tokens carry it.
fn pin_of(token: &str) -> Result<String> {
    let token: ovmesh::api::node::JoinToken =
        token.parse().map_err(|problem: ovmesh::api::Problem| anyhow::anyhow!("{problem}"))?;
    Ok(String::from(token.pin))
}

/// Runs the server, which must end by itself.
fn serve(machine: &Machine) -> Result<crate::world::Output> {
    machine.run(&[&*binaries().ovctl.to_string_lossy(), "serve"])
}

/// The one SQLite database in a directory.
fn database(dir: &Path) -> Result<PathBuf> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() && std::fs::read(&path)?.starts_with(b"SQLite format 3\0") {
            return Ok(path);
        }
    }
    anyhow::bail!("no database in {}", dir.display())
}

/// Writes to a database that nobody uses.
fn execute(database: &Path, sql: &'static str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let options = SqliteConnectOptions::new().filename(database).disable_statement_logging();
        let mut connection: SqliteConnection = options.connect().await?;
        sqlx::query(sql).execute(&mut connection).await?;
        // So that all of it is in the one file.
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    })
}

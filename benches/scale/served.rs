//! The same town in a database, under a real server.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ovmesh::api::table::Action;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::town::{self, Line, SAPS, Side, Size};
use crate::{ROUNDS, median, millis_since, row};

/// How long a server may take to start.
const READY: Duration = Duration::from_secs(60);

/// A running server; it ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fills a database, runs a server on it, and asks it for changes.
pub(crate) fn measure(size: Size, lines: &[Line]) -> Result<Value, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (data, socket) = (dir.path().join("data"), dir.path().join("s.sock"));
    println!("\na real server on such a database");
    // The first start makes the database.
    drop(serve(&data, &socket)?.0);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(fill(
        &data.join("server.db"),
        size,
        lines,
    ))?;
    let (server, started) = serve(&data, &socket)?;
    row("start: database read, all tables compiled and written down", started, "ms");
    row("memory after the start", memory(&server, "VmRSS")?, "MB");

    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        let rule = json!({"action": "allow", "from": format!("e{}", round + 1),
            "to": format!("e{}", size.entities / 2), "services": ["tcp/9"]});
        times[0].push(post(&socket, "/v1/rules", &rule)?);
        let (from, to) = (format!("app=a{round}"), format!("app=a{}", size.groups() - 1 - round));
        let rule = json!({"action": "allow", "from": from, "to": to, "services": ["tcp/443"]});
        times[1].push(post(&socket, "/v1/rules", &rule)?);
        let labels = json!({"set": [format!("app=a{}", size.groups() / 2)]});
        let path = format!("/v1/entities/default/e{}/labels", round + 1);
        times[2].push(post(&socket, &path, &labels)?);
    }
    let [rule, groups, label] = times.map(median);
    row("one rule between two entities: request to answer", rule, "ms");
    row("one rule between two groups: request to answer", groups, "ms");
    row("one entity gets another label: request to answer", label, "ms");
    let peak = memory(&server, "VmHWM")?;
    row("peak memory", peak, "MB");
    Ok(json!({
        "startMillis": started, "ruleMillis": rule, "groupRuleMillis": groups,
        "labelMillis": label, "peakMegabytes": peak,
    }))
}

/// Starts a server and waits until it answers; gives the time that took in milliseconds.
#[allow(clippy::disallowed_methods, reason = "it asks until there is an answer, with a deadline")]
fn serve(data_dir: &Path, socket: &Path) -> Result<(Server, f64), Box<dyn Error>> {
    let started = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ovctl"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--public-url", "https://127.0.0.1:7443"]);
    command.arg("--data-dir").arg(data_dir).arg("--socket").arg(socket);
    let log = std::fs::File::create(data_dir.with_extension("log"))?;
    let server = Server(command.stdout(Stdio::null()).stderr(log).spawn()?);
    while started.elapsed() < READY {
        if request(socket, "GET", "/v1/overlays", "").is_ok() {
            return Ok((server, millis_since(started)));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let log = std::fs::read_to_string(data_dir.with_extension("log"))?;
    Err(format!("the server did not start:\n{log}").into())
}

/// One figure of /proc/PID/status, in megabytes.
fn memory(server: &Server, what: &str) -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.0.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).ok_or("no such figure")?;
    let kilobytes: f64 = line.trim_matches(|c: char| !c.is_ascii_digit()).parse()?;
    Ok(kilobytes / 1024.0)
}

/// Posts and gives the milliseconds until the answer.
fn post(socket: &Path, path: &str, body: &Value) -> Result<f64, Box<dyn Error>> {
    let started = Instant::now();
    request(socket, "POST", path, &body.to_string())?;
    Ok(millis_since(started))
}

fn request(socket: &Path, method: &str, path: &str, body: &str) -> Result<(), Box<dyn Error>> {
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: ovmesh\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = BufReader::new(stream);
    let mut status = String::new();
    answer.read_line(&mut status)?;
    let mut rest = String::new();
    answer.read_to_string(&mut rest)?;
    if status.contains(" 200 ") {
        Ok(())
    } else {
        Err(format!("{method} {path}: {status}{rest}").into())
    }
}

/// Writes the town into a database that a first start made.
async fn fill(path: &Path, size: Size, lines: &[Line]) -> Result<(), sqlx::Error> {
    let mut conn = SqliteConnectOptions::new().filename(path).connect().await?;
    let mut transaction = conn.begin().await?;
    // Links name SaPs, which come last.
    sqlx::query("PRAGMA defer_foreign_keys = ON").execute(&mut *transaction).await?;
    let cidr: String =
        sqlx::query_scalar("SELECT cidr FROM overlays").fetch_one(&mut *transaction).await?;
    let cidr = cidr.parse().expect("a range");
    for id in 1..=size.entities + SAPS {
        node(&mut transaction, size, id).await?;
        if id > size.entities {
            continue;
        }
        sqlx::query("INSERT INTO members (overlay, node, address) VALUES (1, ?, ?)")
            .bind(id)
            .bind(town::address(cidr, id).to_string())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("INSERT INTO node_labels (node, key, value) VALUES (?, 'app', ?)")
            .bind(id)
            .bind(format!("a{}", town::app_of(id)))
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO key_rings (overlay, source, destination, epoch, generation, step, rotated, \
             since_millis) SELECT 1, 0, ?, max(epoch), 0, 'steady', 0, 0 FROM epochs",
        )
        .bind(id)
        .execute(&mut *transaction)
        .await?;
        for sap in size.entities + 1..=size.entities + SAPS {
            sqlx::query("INSERT INTO links (entity, sap, secret) VALUES (?, ?, randomblob(32))")
                .bind(id)
                .bind(sap)
                .execute(&mut *transaction)
                .await?;
        }
    }
    for line in lines {
        let text = |side: Side| match side {
            Side::Entity(id) => (town::name(id).to_string(), Some(id)),
            Side::App(_) => (side.selector().to_string(), None),
        };
        let ((from_text, from_node), (to_text, to_node)) = (text(line.from), text(line.to));
        let services = serde_json::to_string(&line.services()).expect("our types serialise");
        sqlx::query(
            "INSERT INTO rules (overlay, action, from_text, from_node, to_text, to_node, services, \
             both, revision, created, created_by) VALUES (1, ?, ?, ?, ?, ?, ?, 0, 0, 0, 'bench')",
        )
        .bind(if line.action == Action::Allow { "allow" } else { "deny" })
        .bind(from_text)
        .bind(from_node)
        .bind(to_text)
        .bind(to_node)
        .bind(services)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    conn.close().await
}

async fn node(conn: &mut SqliteConnection, size: Size, id: u32) -> Result<(), sqlx::Error> {
    let is_sap = id > size.entities;
    sqlx::query(
        "INSERT INTO nodes (id, kind, namespace, name, ephemeral, all_overlays, credential_hash, \
         joined) VALUES (?, ?, 'default', ?, 0, ?, randomblob(32), 0)",
    )
    .bind(id)
    .bind(if is_sap { "sap" } else { "entity" })
    .bind(format!("e{id}"))
    .bind(is_sap)
    .execute(&mut *conn)
    .await?;
    sqlx::query("INSERT INTO node_endpoints (node, position, endpoint) VALUES (?, 0, ?)")
        .bind(id)
        .bind(town::endpoint(id).to_string())
        .execute(&mut *conn)
        .await?;
    if is_sap {
        sqlx::query("INSERT INTO sap_overlays (sap, overlay) VALUES (?, 1)")
            .bind(id)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

//! The server alone, killed in the middle of changes: what it acknowledged is there afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::binaries;
use crate::world::poll;

/// How many change things at the same time.
const HANDS: usize = 4;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(20);

/// A server on loopback, killed when it is dropped.
struct Server(Child);

impl Server {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("s");
        let child = Command::new(&binaries().ovctl)
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "error", "--data-dir"])
            .arg(dir.join("data"))
            .arg("--socket")
            .arg(&socket)
            .env_remove("OVCTL_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self(child);
        poll(START, "the server's start", || Ok(ask(&socket, "GET", "/v1/status", ""))).unwrap();
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The answer, if the whole of it came and it is a good one.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| serde_json::from_str(body).ok())?
}

/// Makes tokens until the server is gone; notes those that it acknowledged.
fn change(socket: PathBuf, done: Arc<Mutex<Vec<(String, u64)>>>, stop: Arc<AtomicBool>) {
    let body = r#"{"role":"entity","uses":1,"expires":"1h"}"#;
    while !stop.load(Ordering::Relaxed) {
        let Some(answer) = ask(&socket, "POST", "/v1/tokens", body) else { continue };
        let id = answer["result"]["token"]["id"].as_str().unwrap().to_owned();
        done.lock().unwrap().push((id, answer["revision"].as_u64().unwrap()));
    }
}

#[test]
fn no_acknowledged_change_is_lost_when_the_server_is_killed() {
    kill_in_bursts(20);
}

#[test]
#[ignore = "long"]
fn no_acknowledged_change_is_lost_when_the_server_is_killed_fifty_times() {
    kill_in_bursts(50);
}

/// Kills the server in the middle of so many bursts of changes, and looks for what it acknowledged.
#[expect(clippy::print_stderr, reason = "the figure that was asked for")]
fn kill_in_bursts(kills: usize) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let socket = dir.path().join("s");
    let done: Arc<Mutex<Vec<(String, u64)>>> = Arc::default();
    let mut pin = None;
    for kill in 0..kills {
        let server = Server::start(dir.path());
        let key = fs::read(dir.path().join("data/server.key")).unwrap();
        assert_eq!(*pin.get_or_insert_with(|| key.clone()), key, "the key is another");
        let stop = Arc::new(AtomicBool::new(false));
        let hands: Vec<_> = (0..HANDS)
            .map(|_| {
                let (socket, done, stop) = (socket.clone(), Arc::clone(&done), Arc::clone(&stop));
                std::thread::spawn(move || change(socket, done, stop))
            })
            .collect();
        let before = done.lock().unwrap().len();
        // More each time, so that it is not always the same moment of a change.
        let enough = before + 5 + kill;
        let is_enough = || Ok((done.lock().unwrap().len() >= enough).then_some(()));
        poll(START, "acknowledged changes", is_enough).unwrap();
        drop(server);
        stop.store(true, Ordering::Relaxed);
        hands.into_iter().for_each(|hand| hand.join().unwrap());
    }

    let server = Server::start(dir.path());
    let tokens = ask(&socket, "GET", "/v1/tokens", "").unwrap();
    let there: BTreeSet<&str> =
        tokens["items"].as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap()).collect();
    let done = done.lock().unwrap();
    for (id, _) in done.iter() {
        assert!(there.contains(id.as_str()), "{id} was acknowledged and is gone");
    }
    let revisions: BTreeSet<u64> = done.iter().map(|(_, revision)| *revision).collect();
    assert_eq!(revisions.len(), done.len(), "two changes have one revision");
    let status = ask(&socket, "GET", "/v1/status", "").unwrap();
    assert!(status["revision"].as_u64() >= revisions.last().copied());
    drop(server);
    // Each change has its audit record, also one whose answer did not come.
    let recorded = inspect(&dir.path().join("data/server.db"));
    assert_eq!(recorded.iter().map(String::as_str).collect::<BTreeSet<_>>(), there);
    eprintln!("{kills} kills, {} acknowledged changes, all there", done.len());
}

/// Checks the database, and gives the tokens that the audit records say were made.
#[tokio::main(flavor = "current_thread")]
async fn inspect(database: &Path) -> BTreeSet<String> {
    let options = SqliteConnectOptions::new().filename(database);
    let mut conn: SqliteConnection = options.connect().await.unwrap();
    let found: String =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut conn).await.unwrap();
    assert_eq!(found, "ok");
    let actions: Vec<String> =
        sqlx::query_scalar("SELECT action FROM audit").fetch_all(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let made = actions.iter().filter_map(|action| action.strip_prefix("token create "));
    made.filter_map(|rest| rest.split(' ').next()).map(str::to_owned).collect()
}

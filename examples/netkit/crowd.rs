//! Many nodes in one process: they join, wait for tables and acknowledge them over HTTPS, with the client
//! that agents have. They forward nothing and keep nothing on disk.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ovmesh::agent::client::{Client, Polled, TableQuery};
use ovmesh::agent::sync::backoff;
use ovmesh::api::Problem;
use ovmesh::api::node::{JoinRequest, JoinToken};
use ovmesh::sys::limits::raise_open_files;
use ovmesh::types::{Name, NodeKind, Secret, Serial};
use rand::Rng as _;
use ring::digest::{SHA256, digest};
use tokio::sync::{Semaphore, mpsc};

/// How many join at the same time.
const JOINING: usize = 8;

/// How long a node may take to join and to get its first table.
const PATIENCE: Duration = Duration::from_secs(120);

/// Joins `count` entities NAME-0, NAME-1, … with the token in a file, says `ready` when each has its first
/// table, and keeps them until it is killed.
pub(crate) fn run(token_file: &str, name: &str, count: u16) -> Result<()> {
    raise_open_files()?;
    let text = std::fs::read_to_string(token_file).context(token_file.to_owned())?;
    let token: JoinToken = text.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(keep(Arc::new(token), name, count))
}

async fn keep(token: Arc<JoinToken>, name: &str, count: u16) -> Result<()> {
    let joining = Arc::new(Semaphore::new(JOINING));
    let (tell, mut told) = mpsc::unbounded_channel();
    for number in 0..count {
        let name = Name::new(&format!("{name}-{number}"))?;
        let (token, joining, tell) = (Arc::clone(&token), Arc::clone(&joining), tell.clone());
        tokio::spawn(async move {
            if let Err(problem) = node(&token, name, number, &joining, &tell).await {
                let _ = tell.send(Err(problem));
            }
        });
    }
    for _ in 0..count {
        match tokio::time::timeout(PATIENCE, told.recv()).await.context("nodes without a table")? {
            Some(Ok(())) => {}
            Some(Err(problem)) => return Err(problem.into()),
            None => bail!("invariant: we have a sender ourselves"),
        }
    }
    println!("ready");
    std::future::pending().await
}

/// One node, for ever.
async fn node(
    token: &JoinToken,
    name: Name,
    number: u16,
    joining: &Semaphore,
    tell: &mpsc::UnboundedSender<Result<(), Problem>>,
) -> Result<(), Problem> {
    let client = Client::new(token.urls.clone(), &token.pin)?;
    let mut credential = [0; 32];
    rand::rng().fill_bytes(&mut credential);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &credential).as_ref());
    let [high, low] = number.to_be_bytes();
    let request = JoinRequest {
        secret: token.secret.clone(),
        kind: NodeKind::Entity,
        name: Some(name),
        host_name: None,
        endpoints: vec![([198, 18, high, low], 6080).into()],
        credential_hash: Secret::new(hash),
    };
    let turn = joining.acquire().await;
    let mut incarnation = client.join(&request).await?.incarnation;
    drop(turn);
    let credential = Secret::new(credential);
    let (mut after, mut failures) = (Serial(0), 0);
    loop {
        let query = TableQuery { after, incarnation: &incarnation, refused: None, revision: None };
        match client.table(&credential, &query).await {
            Ok(Polled::Nothing | Polled::Errand(_)) => failures = 0,
            Ok(Polled::Table(table)) => {
                failures = 0;
                if after == Serial(0) {
                    let _ = tell.send(Ok(()));
                }
                (after, incarnation) = (table.serial, table.incarnation);
            }
            Err(_) => {
                failures += 1;
                tokio::time::sleep(backoff(failures)).await;
            }
        }
    }
}

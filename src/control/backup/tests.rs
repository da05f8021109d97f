use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::api::admin::{Role, TokenCreate};
use crate::api::node::JoinRequest;
use crate::control::server::{Server, Settings};
use crate::control::store::{self, Store, join, nodes, tokens};
use crate::types::{HumanDuration, Name, NodeId, NodeKind, Secret};

/// A server's directory, and room beside it.
struct Place {
    root: tempfile::TempDir,
    data: PathBuf,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("server");
        Self { root, data }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Starts and stops a server, as a daemon would.
    async fn start(&self) -> Arc<Server> {
        files::ensure_private_dir(&self.data).unwrap();
        finish(&self.data).unwrap();
        tls::Identity::load_or_make(&self.data).unwrap();
        Server::open(&self.data, Settings::of_tests()).await.unwrap()
    }

    async fn life(&self) -> String {
        let server = self.start().await;
        let life = server.incarnation.to_string();
        server.close().await;
        life
    }

    fn key(&self) -> String {
        fs::read_to_string(self.data.join(KEY)).unwrap()
    }

    fn entries(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(&self.data).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

async fn token(store: &Store, role: Role, uses: u32) -> (String, Secret) {
    let request = TokenCreate {
        role,
        overlays: Vec::new(),
        name: None,
        namespaces: Vec::new(),
        labels: BTreeSet::new(),
        ports: std::collections::BTreeMap::new(),
        uses,
        expires: HumanDuration(Duration::from_secs(3600)),
        ephemeral: false,
        clear_underlay: false,
    };
    let secret = store::random_secret().unwrap();
    let mut transaction = store.write().await.unwrap();
    let done = tokens::create(&mut transaction, &request, &secret, now()).await.unwrap();
    transaction.commit().await.unwrap();
    (done.result.id, secret)
}

async fn join(store: &Store, name: &str, kind: NodeKind) -> NodeId {
    let role = if kind == NodeKind::Sap { Role::Sap } else { Role::Entity };
    let (_, secret) = token(store, role, 1).await;
    let request = JoinRequest {
        secret,
        kind,
        name: None,
        host_name: Some(Name::new(name).unwrap()),
        endpoints: vec!["192.0.2.7:6080".parse().unwrap()],
        credential_hash: store::random_secret().unwrap(),
    };
    let mut transaction = store.write().await.unwrap();
    let (answer, _) = join::join(&mut transaction, &request, now()).await.unwrap();
    transaction.commit().await.unwrap();
    answer.id
}

/// What of secrets nodes are told: epochs and links.
async fn secrets(data: &Path) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let store = Store::open(&data.join(DATABASE)).await.unwrap();
    let mut conn = store.read().await.unwrap();
    let epochs = store::keys::epochs(&mut conn).await.unwrap();
    let epochs = epochs.into_iter().map(|(_, _, secret, _)| secret.expose().to_vec()).collect();
    let links = rows::link_secrets(&mut conn).await.unwrap();
    drop(conn);
    store.close().await;
    (epochs, links)
}

#[tokio::test]
async fn a_backup_of_a_running_server_is_private_whole_and_overwrites_nothing() {
    let place = Place::new();
    let file = place.file("backup");
    let problem = back_up(&place.data, &file).await.unwrap_err();
    assert_eq!(problem.code, ProblemCode::NotFound, "{problem}");
    assert!(!file.exists());

    let server = place.start().await;
    join(&server.store, "web", NodeKind::Entity).await;
    let made = back_up(&place.data, &file).await.unwrap();

    assert_eq!((made.entities, made.saps), (1, 0));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let names = fs::read_dir(place.root.path()).unwrap().count();
    assert_eq!(names, 2, "something is left beside it");
    let before = fs::read(&file).unwrap();
    let problem = back_up(&place.data, &file).await.unwrap_err();
    assert_eq!(problem.code, ProblemCode::Conflict, "{problem}");
    assert_eq!(fs::read(&file).unwrap(), before);
    // It goes on while there is a backup, and the backup is of before.
    join(&server.store, "db", NodeKind::Entity).await;
    server.close().await;
    fs::remove_dir_all(&place.data).unwrap();

    restore(&place.data, &file, RestoreOptions::default()).await.unwrap();

    let server = place.start().await;
    assert_eq!(server.live().world.nodes.len(), 1);
    server.close().await;
}

#[tokio::test]
async fn a_restore_has_the_key_of_before_a_life_of_its_own_and_gives_no_number_again() {
    let place = Place::new();
    let file = place.file("backup");
    let server = place.start().await;
    let first = server.incarnation.clone();
    let web = join(&server.store, "web", NodeKind::Entity).await;
    let revision = back_up(&place.data, &file).await.unwrap().revision;
    let lost = join(&server.store, "db", NodeKind::Entity).await;
    server.close().await;
    let key = place.key();
    let secrets_before = secrets(&place.data).await;
    fs::remove_dir_all(&place.data).unwrap();

    let done = restore(&place.data, &file, RestoreOptions::default()).await.unwrap();

    assert_eq!(place.key(), key);
    assert_eq!(secrets(&place.data).await.0, secrets_before.0);
    let server = place.start().await;
    assert_ne!(server.incarnation, first);
    assert!(done.revision > revision);
    let lives = Arc::clone(&server.live().lives);
    assert!(lives.waits && lives.accepted.is_empty(), "{lives:?}");
    let next = join(&server.store, "db", NodeKind::Entity).await;
    assert!(next > lost && lost > web, "{next} was given out before");
    // Nothing counts as acknowledged by nodes that follow another life.
    assert!(server.live().nodes.values().all(|node| node.acknowledged.0 == 0));
    server.close().await;
}

#[tokio::test]
async fn what_cannot_be_restored_is_named_and_changes_nothing() {
    let place = Place::new();
    let file = place.file("backup");
    let server = place.start().await;
    join(&server.store, "web", NodeKind::Entity).await;
    back_up(&place.data, &file).await.unwrap();
    server.close().await;
    let life = place.life().await;
    let good = fs::read(&file).unwrap();
    let replace = RestoreOptions { replace: true, ..RestoreOptions::default() };
    let before = place.entries();

    let lock = files::lock(&place.data).unwrap();
    let problem = restore(&place.data, &file, replace).await.unwrap_err();
    assert!(problem.to_string().contains("a server runs on it"), "{problem}");
    drop(lock);
    let problem = restore(&place.data, &file, RestoreOptions::default()).await.unwrap_err();
    assert!(problem.to_string().contains("there is a server in"), "{problem}");

    // A page in the middle, the end, everything; and what is a database and no backup.
    let mut damaged = good.clone();
    damaged[4096 * 3..4096 * 4].fill(0x55);
    let cases: [(&[u8], &str); 4] = [
        (&damaged, "is damaged"),
        (&good[..good.len() / 2], "is damaged"),
        (
            b"not a database at all, though it is long enough to have a header of one",
            "is not a backup",
        ),
        (b"", "is not a backup"),
    ];
    for (bytes, words) in cases {
        fs::write(&file, bytes).unwrap();
        let problem = restore(&place.data, &file, replace).await.unwrap_err();
        let text = problem.to_string();
        let is_named = text.contains(words) || text.contains("is not a backup");
        assert!(is_named && text.contains(file.to_str().unwrap()), "{problem}");
    }
    fs::copy(place.data.join(DATABASE), &file).unwrap();
    let problem = restore(&place.data, &file, replace).await.unwrap_err();
    assert!(problem.what.contains("is not a backup"), "{problem}");

    fs::write(&file, &good).unwrap();
    rows::pretend_newer(&file).await;
    let problem = restore(&place.data, &file, replace).await.unwrap_err();
    assert!(problem.what.contains("a newer version of ovctl"), "{problem}");
    assert!(problem.what.contains(file.to_str().unwrap()), "{problem}");

    assert_eq!(place.life().await, life, "a refused restore changed something");
    let left = place.entries();
    assert!(left.iter().all(|name| before.contains(name) || name == "lock"), "{left:?}");
    // The control: the same bytes undamaged.
    fs::write(&file, &good).unwrap();
    restore(&place.data, &file, replace).await.unwrap();
    assert_ne!(place.life().await, life);
    let problem = restore(&place.data, &file, replace).await.unwrap_err();
    assert!(problem.what.contains("an earlier restore replaced"), "{problem}");
}

#[tokio::test]
async fn a_machine_that_dies_at_any_step_of_a_restore_has_the_old_server_or_the_new_one() {
    // A restore is copied at each point at which it can stop, and started there.
    for step in 0..8 {
        let place = Place::new();
        let file = place.file("backup");
        let server = place.start().await;
        join(&server.store, "web", NodeKind::Entity).await;
        back_up(&place.data, &file).await.unwrap();
        join(&server.store, "db", NodeKind::Entity).await;
        // As a kill leaves it: with a journal that holds the newest changes.
        let (ready, prepared) = (place.data.join(READY), place.data.join(PREPARED));
        let crashed = place.file("crashed");
        fs::create_dir(&crashed).unwrap();
        for name in place.entries() {
            fs::copy(place.data.join(&name), crashed.join(&name)).unwrap();
        }
        server.close().await;
        fs::remove_dir_all(&place.data).unwrap();
        fs::rename(&crashed, &place.data).unwrap();
        fs::set_permissions(&place.data, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(place.data.join(JOURNALS[0]).exists(), "there is no journal to lose");

        let options = RestoreOptions { replace: true, ..RestoreOptions::default() };
        // Without a comparison, which would write the journal into the database.
        prepare(&place.data, &prepared, &file, &options, false).await.unwrap();
        let replaced = place.data.join(REPLACED);
        let go = |from: &Path, to: &Path| {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::rename(from, to).unwrap();
        };
        let all: [&dyn Fn(); 7] = [
            &|| go(&prepared, &ready),
            &|| go(&place.data.join(JOURNALS[0]), &replaced.join(JOURNALS[0])),
            &|| go(&place.data.join(JOURNALS[1]), &replaced.join(JOURNALS[1])),
            &|| go(&place.data.join(DATABASE), &replaced.join(DATABASE)),
            &|| go(&ready.join(DATABASE), &place.data.join(DATABASE)),
            &|| go(&place.data.join(KEY), &replaced.join(KEY)),
            &|| go(&ready.join(KEY), &place.data.join(KEY)),
        ];
        all.iter().take(step).for_each(|act| act());

        let server = place.start().await;

        let is_new = step > 0;
        let names = server.live().world.nodes.len();
        assert_eq!(names, if is_new { 1 } else { 2 }, "step {step}");
        assert_eq!(server.live().lives.backup_made.is_some(), is_new, "step {step}");
        assert!(!ready.exists(), "step {step}");
        server.close().await;
        if is_new {
            let old = Store::open(&replaced.join(DATABASE)).await.unwrap();
            let all = nodes::all(&mut old.read().await.unwrap()).await.unwrap();
            assert_eq!(all.len(), 2, "step {step}: the replaced server lost something");
            old.close().await;
        }
    }
}

#[tokio::test]
async fn rekey_makes_every_key_and_link_secret_anew_and_leaves_the_servers_key() {
    let place = Place::new();
    let file = place.file("backup");
    let server = place.start().await;
    join(&server.store, "sap", NodeKind::Sap).await;
    join(&server.store, "web", NodeKind::Entity).await;
    back_up(&place.data, &file).await.unwrap();
    server.close().await;
    let (key, (epochs, links)) = (place.key(), secrets(&place.data).await);
    assert!(!epochs.is_empty() && !links.is_empty());

    for rekey in [false, true] {
        let other = Place::new();
        let options = RestoreOptions { rekey, ..RestoreOptions::default() };
        restore(&other.data, &file, options).await.unwrap();

        let (new_epochs, new_links) = secrets(&other.data).await;
        assert_eq!(other.key(), key);
        assert_eq!((new_epochs.len(), new_links.len()), (epochs.len(), links.len()));
        let kept = new_epochs.iter().filter(|secret| epochs.contains(secret)).count()
            + new_links.iter().filter(|secret| links.contains(secret)).count();
        assert_eq!(kept, if rekey { 0 } else { epochs.len() + links.len() });
    }
}

#[tokio::test]
async fn what_comes_back_and_what_is_lost_is_listed() {
    let place = Place::new();
    let file = place.file("backup");
    let server = place.start().await;
    let web = join(&server.store, "web", NodeKind::Entity).await;
    let (spendable, _) = token(&server.store, Role::Entity, 1).await;
    let (viewer, _) = token(&server.store, Role::Viewer, 0).await;
    back_up(&place.data, &file).await.unwrap();
    join(&server.store, "db", NodeKind::Entity).await;
    let mut transaction = server.store.write().await.unwrap();
    let record = nodes::one(&mut transaction, web).await.unwrap().unwrap();
    nodes::delete(&mut transaction, &record, now()).await.unwrap();
    tokens::revoke(&mut transaction, &viewer).await.unwrap();
    transaction.commit().await.unwrap();
    server.close().await;

    let options = RestoreOptions { replace: true, accept: true, ..RestoreOptions::default() };
    let done = restore(&place.data, &file, options).await.unwrap();

    let differences = done.differences.unwrap();
    assert_eq!(differences.unknown_nodes, ["entity default/db"]);
    assert_eq!(differences.nodes_back, ["entity default/web"]);
    assert_eq!(differences.tokens_back, [format!("{viewer} (viewer)")]);
    assert!(differences.rules_back.is_empty() && differences.rules_gone.is_empty());
    assert_eq!(done.revoked_tokens, [spendable]);
    assert_eq!(done.good_tokens, [format!("{viewer} (viewer)")]);
    let server = place.start().await;
    let lives = Arc::clone(&server.live().lives);
    assert!(!lives.waits && lives.accepted.len() == 1, "{lives:?}");
    server.close().await;
}

use std::collections::BTreeMap;
use std::path::PathBuf;

use sqlx::{ConnectOptions as _, Connection as _};

use super::*;
use crate::api::admin::{OverlayCreate, Role, Semantics, TokenCreate};
use crate::api::node::JoinRequest;
use crate::types::{EntityName, HumanDuration, Name, NodeKind};

const NOW: Timestamp = Timestamp(1_800_000_000);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn entity_token(uses: u32, given: Option<&str>) -> TokenCreate {
    TokenCreate {
        role: Role::Entity,
        overlays: Vec::new(),
        name: given.map(name),
        namespaces: Vec::new(),
        labels: ["app=web".parse().unwrap()].into(),
        ports: BTreeMap::new(),
        uses,
        expires: HumanDuration(Duration::from_secs(3600)),
        ephemeral: false,
        clear_underlay: false,
    }
}

fn request(secret: &Secret, host: &str, credential: u8) -> JoinRequest {
    JoinRequest {
        secret: secret.clone(),
        kind: NodeKind::Entity,
        name: None,
        host_name: Some(name(host)),
        endpoints: vec!["192.0.2.7:6080".parse().unwrap()],
        credential_hash: Secret::new([credential; 32]),
    }
}

async fn store() -> (tempfile::TempDir, PathBuf, Store) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.db");
    let store = Store::open(&path).await.unwrap();
    let mut tx = store.write().await.unwrap();
    initialise(&mut tx, &[], NOW).await.unwrap();
    tx.commit().await.unwrap();
    (dir, path, store)
}

async fn make_token(store: &Store, request: &TokenCreate) -> Secret {
    let secret = random_secret().unwrap();
    let mut tx = store.write().await.unwrap();
    tokens::create(&mut tx, request, &secret, NOW).await.unwrap();
    tx.commit().await.unwrap();
    secret
}

async fn join_once(
    store: &Store,
    request: &JoinRequest,
    now: Timestamp,
) -> Result<crate::api::node::JoinAnswer, Problem> {
    let mut tx = store.write().await?;
    let (answer, _) = join::join(&mut tx, request, now).await?;
    tx.commit().await?;
    Ok(answer)
}

#[tokio::test]
async fn of_64_joins_with_one_single_use_token_one_wins_100_times_of_100() {
    let (_dir, path, first) = store().await;
    let mut stores = vec![first];
    for _ in 1..8 {
        stores.push(Store::open(&path).await.unwrap());
    }
    for round in 0..100_u32 {
        let secret = make_token(&stores[0], &entity_token(1, None)).await;
        let mut racers = tokio::task::JoinSet::new();
        for racer in 0..64_usize {
            let store = stores[racer % 8].clone();
            let mut wanted = request(&secret, &format!("e{round}-{racer}"), 0);
            let mut hash = [7; 32];
            hash[..4].copy_from_slice(&round.to_be_bytes());
            hash[4] = u8::try_from(racer).unwrap();
            wanted.credential_hash = Secret::new(hash);
            racers.spawn(async move { join_once(&store, &wanted, NOW).await });
        }
        let results = racers.join_all().await;
        let winners = results.iter().filter(|result| result.is_ok()).count();
        let refused = results
            .iter()
            .filter(|result| {
                result.as_ref().is_err_and(|problem| {
                    problem.code == ProblemCode::Unauthorized && problem.what.contains("used up")
                })
            })
            .count();
        assert_eq!((winners, refused), (1, 63), "round {round}");
    }
    let nodes = nodes::all(&mut stores[0].read().await.unwrap()).await.unwrap();
    assert_eq!(nodes.len(), 100);
}

#[tokio::test]
async fn a_lost_answer_can_be_repeated_and_a_stranger_with_the_token_gets_nothing() {
    let (_dir, _, store) = store().await;
    let secret = make_token(&store, &entity_token(1, None)).await;
    let wanted = request(&secret, "web", 1);

    let first = join_once(&store, &wanted, NOW).await.unwrap();
    let again = join_once(&store, &wanted, NOW).await.unwrap();
    assert_eq!(to_value(&first), to_value(&again));
    let stranger = request(&secret, "web2", 2);
    let problem = join_once(&store, &stranger, NOW).await.unwrap_err();
    assert_eq!(problem.code, ProblemCode::Unauthorized);
    assert!(problem.why.contains("web"), "{problem}");
}

#[tokio::test]
async fn expired_revoked_unknown_and_foreign_tokens_say_so_and_leave_nothing_behind() {
    let (_dir, _, store) = store().await;
    let expired = make_token(&store, &entity_token(1, None)).await;
    let revoked = make_token(&store, &entity_token(1, None)).await;
    let mut tx = store.write().await.unwrap();
    tokens::revoke(&mut tx, "t-2").await.unwrap();
    tx.commit().await.unwrap();
    let mut sap = entity_token(1, None);
    sap.role = Role::Sap;
    sap.labels.clear();
    let foreign = make_token(&store, &sap).await;

    for (secret, at, word) in [
        (&expired, NOW.after(Duration::from_secs(3600)), "expired"),
        (&revoked, NOW, "revoked"),
        (&Secret::new([9; 32]), NOW, "does not know"),
        (&foreign, NOW, "does not admit"),
    ] {
        let problem = join_once(&store, &request(secret, "web", 1), at).await.unwrap_err();
        assert_eq!(problem.code, ProblemCode::Unauthorized, "{word}");
        assert!(problem.what.contains(word), "{problem}");
        assert!(!problem.why.is_empty() && !problem.fix.is_empty(), "{problem}");
    }
    assert!(nodes::all(&mut store.read().await.unwrap()).await.unwrap().is_empty());
    join_once(&store, &request(&expired, "web", 1), NOW).await.unwrap();
}

#[tokio::test]
async fn a_taken_name_is_refused_and_uses_no_token_up() {
    let (_dir, _, store) = store().await;
    let many = make_token(&store, &entity_token(0, None)).await;
    let once = make_token(&store, &entity_token(1, None)).await;
    join_once(&store, &request(&many, "web", 1), NOW).await.unwrap();

    let problem = join_once(&store, &request(&once, "web", 2), NOW).await.unwrap_err();
    assert_eq!(problem.code, ProblemCode::Conflict);
    assert_eq!(problem.code.exit_code(), 5);
    let answer = join_once(&store, &request(&once, "db", 2), NOW).await.unwrap();
    assert_eq!(answer.name.to_string(), "db");
    assert_eq!(answer.memberships.len(), 1);
}

#[tokio::test]
async fn an_address_rests_until_ten_minutes_passed_and_everybody_knows() {
    let (_dir, _, store) = store().await;
    let secret = make_token(&store, &entity_token(0, None)).await;
    let first = join_once(&store, &request(&secret, "a", 1), NOW).await.unwrap();
    let other = join_once(&store, &request(&secret, "b", 2), NOW).await.unwrap();
    let mut tx = store.write().await.unwrap();
    let a: EntityName = "a".parse().unwrap();
    let gone = nodes::delete_named(&mut tx, NodeKind::Entity, &a, NOW).await.unwrap();
    assert_eq!(gone.result.id, first.id);
    let changed = [(other.id, (crate::types::Serial(5), Secret::new([1; 32])))].into();
    tables::publish(&mut tx, &changed).await.unwrap();
    tx.commit().await.unwrap();
    let old = first.memberships[0].address;

    let early = join_once(&store, &request(&secret, "c", 3), NOW).await.unwrap();
    assert_ne!(early.memberships[0].address, old);
    let later = NOW.after(Duration::from_secs(601));
    let unacked = join_once(&store, &request(&secret, "d", 4), later).await.unwrap();
    assert_ne!(unacked.memberships[0].address, old);
    let mut tx = store.write().await.unwrap();
    tables::acknowledge(&mut tx, &[(other.id, crate::types::Serial(5))].into()).await.unwrap();
    tx.commit().await.unwrap();
    let free = join_once(&store, &request(&secret, "e", 5), later).await.unwrap();
    assert_eq!(free.memberships[0].address, old);
}

#[tokio::test]
async fn a_database_from_a_newer_version_is_refused_and_left_alone() {
    let (_dir, path, first) = store().await;
    let mut tx = first.write().await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'later', 1, x'00', 0)",
    )
    .execute(&mut *tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    first.close().await;

    let problem = Store::open(&path).await.unwrap_err();
    assert!(problem.what.contains("newer version"), "{problem}");
    assert!(problem.why.contains("9999") && !problem.fix.is_empty(), "{problem}");
}

#[tokio::test]
async fn overlays_have_either_semantics_and_names_of_their_own() {
    let (_dir, _, store) = store().await;
    let mut tx = store.write().await.unwrap();
    let make = |text: &str, semantics| OverlayCreate {
        name: name(text),
        cidr: None,
        semantics,
        silent: false,
    };

    let taken = overlays::create(&mut tx, &make("default", Semantics::DefaultDeny), &[], NOW).await;
    assert_eq!(taken.unwrap_err().code, ProblemCode::Conflict);
    for (text, semantics) in [("d", Semantics::DefaultDeny), ("k", Semantics::Kubernetes)] {
        overlays::create(&mut tx, &make(text, semantics), &[], NOW).await.unwrap();
        let kept =
            overlays::list(&mut tx).await.unwrap().into_iter().find(|o| o.name == name(text));
        assert_eq!(kept.unwrap().semantics, semantics);
    }
}

/// What a server of the first version wrote: web may talk to db, over sap-1.
const FIRST_VERSION: &str = "
    INSERT INTO meta (one, incarnation, revision) VALUES (1, '0123456789abcdef0123456789abcdef', 7);
    INSERT INTO overlays (id, name, cidr, semantics, silent, created)
        VALUES (1, 'default', '10.70.0.0/16', 'default-deny', 0, 1);
    INSERT INTO nodes (id, kind, namespace, name, ephemeral, all_overlays, joined, version)
        VALUES (1, 'entity', 'default', 'web', 0, 0, 1, '0.0.9'),
        (2, 'entity', 'shop', 'db', 0, 0, 1, '0.0.9'),
        (3, 'sap', 'default', 'sap-1', 0, 1, 1, '0.0.9');
    INSERT INTO node_labels VALUES (2, 'role', 'db');
    INSERT INTO members VALUES (1, 1, '10.70.0.11'), (1, 2, '10.70.0.12');
    INSERT INTO links VALUES (1, 1, 3, zeroblob(32)), (2, 2, 3, zeroblob(32));
    INSERT INTO epochs VALUES (1, 0, zeroblob(32), 1);
    INSERT INTO rules (id, overlay, action, from_text, from_node, to_text, services, both, reason,
        revision, created, created_by)
        VALUES (18, 1, 'allow', 'web', 1, 'role=db', '[\"tcp/5432\"]', 0, 'why', 7, 1, 'uid 0');
    INSERT INTO node_tables VALUES (1, 5, zeroblob(32), 5);";

#[tokio::test]
async fn a_database_of_every_older_version_is_brought_up_to_date_and_keeps_what_it_holds() {
    let versions: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    assert!(versions.len() >= 5, "{versions:?}");
    for version in versions {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut old = options.foreign_keys(true).connect().await.unwrap();
        MIGRATIONS.run_to(version, &mut old).await.unwrap();
        sqlx::raw_sql(FIRST_VERSION).execute(&mut old).await.unwrap();
        old.close().await.unwrap();

        let store = Store::open(&path).await.unwrap();
        let mut tx = store.write().await.unwrap();
        initialise(&mut tx, &[], NOW).await.unwrap();
        let all = (world::load(&mut tx).await.unwrap(), policies::all(&mut tx).await.unwrap());
        let (known, policies) = &all;
        assert_eq!(revision(&mut tx).await.unwrap(), Revision(7), "version {version}");
        assert_eq!((known.nodes.len(), known.links.len(), known.overlays.len()), (3, 2, 1));
        assert!(known.nodes.values().all(|node| !node.is_quarantined));
        let overlay = crate::types::OverlayId(1);
        let rule = &policies[&overlay].rules[&crate::types::RuleId(18)];
        assert!(!rule.facts.is_audit && rule.facts.name.is_none(), "{rule:?}");
        assert_eq!(rule.reason.as_deref(), Some("why"));
        assert_eq!(tables::all(&mut tx).await.unwrap().len(), 1);

        // And it can be changed, and what changed is written down.
        changes::take(&mut tx).await.unwrap();
        let mut after = policies[&overlay].clone();
        after.rules.clear();
        let changed = policies[&overlay].changes_to(&after);
        let stamp = policies::Stamp {
            overlay,
            revision: Revision(8),
            at: NOW,
            actor: "test",
            action: "test",
        };
        policies::write(&mut tx, stamp, &after, &changed).await.unwrap();
        let pending = changes::pending(&mut tx).await.unwrap();
        let (world, now) = world::load_changed(&mut tx, (known, policies), &pending).await.unwrap();
        assert!(world.rules.is_empty() && now[&overlay] == after, "version {version}: {pending:?}");
        let back = policies::as_of(&mut tx, overlay, Revision(8), Revision(7)).await.unwrap();
        assert_eq!(back, policies[&overlay]);
    }
}

#[tokio::test]
async fn hits_of_rules_and_network_policies_that_are_gone_are_forgotten() {
    use crate::types::RuleId;
    let (_dir, _, store) = store().await;
    let mut tx = store.write().await.unwrap();
    let here = "INSERT INTO rules (id, overlay, action, from_text, to_text, services, both, revision, \
                created, created_by) VALUES (1, 1, 'allow', 'any', 'any', '[]', 0, 1, 1, 'test'); \
                INSERT INTO network_policies VALUES (1, 1, 'default/p', '{}');";
    sqlx::raw_sql(here).execute(&mut *tx).await.unwrap();
    let sums = crate::control::flows::Sums { packets: 1, bytes: 1, first: NOW, last: NOW };
    let kept = [RuleId::AUDIT_MODE, RuleId(1), RuleId::network_policy(1)];
    let gone = [RuleId(2), RuleId::network_policy(2)];
    let hits = kept.iter().chain(&gone).map(|id| (*id, sums)).collect();
    flows::add(&mut tx, &BTreeMap::new(), &hits).await.unwrap();
    assert_eq!(flows::hits(&mut tx).await.unwrap().len(), 5);

    flows::tidy(&mut tx, Duration::from_secs(60), NOW).await.unwrap();

    let left: Vec<RuleId> = flows::hits(&mut tx).await.unwrap().into_keys().collect();
    assert_eq!(left, kept);
}

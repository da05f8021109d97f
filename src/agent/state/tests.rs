use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::api::table::{TableBody, TableNode};
use crate::types::{Name, Revision, Serial};

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn name() -> EntityName {
    EntityName { namespace: Name::default(), name: Name::new("web").unwrap() }
}

fn identity() -> Identity {
    Identity {
        api_version: ApiVersion::V1,
        id: NodeId(3),
        kind: NodeKind::Entity,
        name: name(),
        credential: Secret::new([1; 32]),
        urls: vec!["https://192.0.2.1:7443".to_owned()],
        pin: Secret::new([2; 32]),
        incarnation: Incarnation("aa".to_owned()),
        clear_underlay: false,
    }
}

fn table(serial: u64) -> NodeTable {
    NodeTable {
        api_version: ApiVersion::V1,
        incarnation: Incarnation("aa".to_owned()),
        succeeds: Vec::new(),
        serial: Serial(serial),
        revision: Revision(1),
        body: TableBody {
            node: TableNode {
                id: NodeId(3),
                kind: NodeKind::Entity,
                name: name(),
                ports: Vec::new(),
            },
            saps: Vec::new(),
            links: Vec::new(),
            overlays: Vec::new(),
        },
    }
}

/// A place for a state directory, and our uid.
fn place() -> (tempfile::TempDir, PathBuf, u32) {
    let root = tempfile::tempdir().unwrap();
    let uid = fs::metadata(root.path()).unwrap().uid();
    let path = root.path().join("deep").join("ovd");
    (root, path, uid)
}

#[test]
fn what_is_kept_is_read_again_and_private() {
    let (_root, path, uid) = place();
    let state = StateDir::open(&path, uid).unwrap();
    assert_eq!(state.identity().unwrap(), None);

    state.save_identity(&identity()).unwrap();
    state.save_devices(&BTreeMap::from([(OverlayId(1), "ov0".to_owned())])).unwrap();
    drop(state);

    let state = StateDir::open(&path, uid).unwrap();
    assert_eq!(state.identity().unwrap(), Some(identity()));
    assert_eq!(state.devices()[&OverlayId(1)], "ov0");
    assert_eq!(StateDir::peek_identity(&path, uid).unwrap(), Some(identity()));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
    for entry in fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o7777, 0o600, "{:?}", entry.path());
    }
}

#[test]
fn directories_that_others_can_read_are_refused() {
    let (_root, path, uid) = place();
    drop(StateDir::open(&path, uid).unwrap());
    for mode in [0o750, 0o705, 0o770] {
        chmod(&path, mode);

        let problem = StateDir::open(&path, uid).unwrap_err();

        assert!(problem.why.contains(&format!("{mode:04o}")), "{problem}");
        assert!(problem.fix.contains("chmod 700"), "{problem}");
    }
    chmod(&path, 0o700);
    assert!(StateDir::open(&path, uid).is_ok());
}

#[test]
fn directories_of_others_and_links_are_refused() {
    let (root, path, uid) = place();
    drop(StateDir::open(&path, uid).unwrap());
    let link = root.path().join("link");
    symlink(&path, &link).unwrap();

    assert!(StateDir::open(&path, uid + 1).unwrap_err().why.contains("belongs to uid"));
    assert!(StateDir::open(&link, uid).unwrap_err().why.contains("not a directory"));
    assert!(StateDir::open(&path, uid).is_ok());
}

#[test]
fn files_that_others_can_read_and_links_are_refused() {
    let (root, path, uid) = place();
    let state = StateDir::open(&path, uid).unwrap();
    state.save_identity(&identity()).unwrap();
    let file = path.join(IDENTITY);

    chmod(&file, 0o640);
    assert!(state.identity().unwrap_err().why.contains("0640"));
    chmod(&file, 0o600);
    assert!(state.identity().unwrap().is_some());

    let elsewhere = root.path().join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    assert!(state.identity().unwrap_err().why.contains("not a plain file"));
}

#[test]
fn a_second_process_is_refused() {
    let (_root, path, uid) = place();
    let first = StateDir::open(&path, uid).unwrap();

    assert_eq!(StateDir::open(&path, uid).unwrap_err().code, ProblemCode::Conflict);
    drop(first);
    assert!(StateDir::open(&path, uid).is_ok());
}

#[test]
fn a_broken_newest_table_falls_back_to_the_one_before_and_says_so() {
    let (_root, path, uid) = place();
    let state = StateDir::open(&path, uid).unwrap();
    assert_eq!(state.table(), (None, Vec::new()));
    assert_eq!(state.table_written(), None);
    state.save_table(&table(1)).unwrap();
    assert!(state.table_written().is_some_and(|at| at.0 > 1_700_000_000));
    state.save_table(&table(2)).unwrap();
    assert_eq!(state.table(), (Some(table(2)), Vec::new()));
    assert_eq!(state.table_before(), Some(table(1)));

    fs::write(path.join(TABLE), b"{\"apiVersion\":").unwrap();

    let (found, problems) = state.table();
    assert_eq!(found, Some(table(1)));
    assert!(problems[0].contains("table.json"), "{problems:?}");
    state.save_table(&table(3)).unwrap();
    assert_eq!(state.table(), (Some(table(3)), Vec::new()));
    assert_eq!(state.table_before(), Some(table(1)), "a broken table pushes nothing out");
}

#[test]
fn leftovers_of_a_crash_while_writing_are_harmless() {
    let (_root, path, uid) = place();
    let state = StateDir::open(&path, uid).unwrap();
    state.save_table(&table(1)).unwrap();
    fs::write(path.join("table.json.tmp"), b"half").unwrap();
    fs::write(path.join("table.prev.json.tmp"), b"half").unwrap();

    state.save_table(&table(2)).unwrap();

    assert_eq!(state.table(), (Some(table(2)), Vec::new()));
}

#[test]
fn a_failed_join_leaves_nothing_behind_that_was_not_there() {
    let (root, path, uid) = place();

    StateDir::open(&path, uid).unwrap().abandon();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);

    fs::create_dir_all(&path).unwrap();
    chmod(&path, 0o700);
    StateDir::open(&path, uid).unwrap().abandon();
    assert!(path.exists(), "what the operator made stays");
}

//! Holds the floor plan that `src/lib.rs` draws: who imports whom, which room may use which
//! package, where `unsafe` and clocks may be, how long a file may get.
//!
//! The table of rooms is read from the documentation of `src/lib.rs`, so that what people read is
//! what is held. Each check is itself checked: a planted violation must be found.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use source::{NamedPath, Source};

/// Rooms without clock, socket, thread, file or chance.
const PURE: &[&str] = &["types", "wire", "api", "policy", "keys", "forward", "probe", "doctor"];

/// Packages that only some places may use: a room, or a folder in it. `bin` and `app` put programs
/// together from rooms and are held to this table too.
const HOMES: &[(&str, &[&str])] = &[
    ("anyhow", &["app", "cli"]),
    ("axum", &["control", "local"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("clap_mangen", &["cli"]),
    ("granit_parser", &["cli"]),
    ("hyper", &["control", "local"]),
    ("hyper_util", &["control", "local"]),
    ("libc", &["sys"]),
    ("rcgen", &["control"]),
    ("reqwest", &["agent", "cli"]),
    ("ring", &["keys", "wire", "control", "agent", "pin"]),
    ("rtnetlink", &["sys"]),
    ("rustls", &["control", "pin", "app"]),
    ("serde_saphyr", &["policy"]),
    ("socket2", &["sys"]),
    ("sqlx", &["control/store"]),
    ("tokio_rustls", &["control"]),
    ("toml", &["config", "cli"]),
    ("tower", &["control", "local"]),
    ("tracing_subscriber", &["telemetry"]),
    ("tun", &["sys"]),
];

/// Lines of the longest file. Past it a file is two things.
const LINES_MAX: usize = 600;

/// The table in `src/lib.rs`.
struct Plan {
    /// In the order of the table.
    rooms: Vec<String>,
    /// None stands for `all`.
    allowed: BTreeMap<String, Option<BTreeSet<String>>>,
    /// The modules that `src/lib.rs` declares.
    declared: BTreeSet<String>,
}

impl Plan {
    /// Reads the rows `//! | [`room`] | what | imports |`.
    fn parse(lib: &str) -> Self {
        let (mut rooms, mut allowed) = (Vec::new(), BTreeMap::new());
        for line in lib.lines() {
            let Some(row) = line.strip_prefix("//! | [`") else { continue };
            let Some((room, rest)) = row.split_once("`]") else { continue };
            let imports = rest.trim().trim_end_matches('|').rsplit('|').next().unwrap().trim();
            let imports = match imports {
                "all" => None,
                "-" => Some(BTreeSet::new()),
                list => Some(list.split(',').map(|room| room.trim().to_owned()).collect()),
            };
            rooms.push(room.to_owned());
            allowed.insert(room.to_owned(), imports);
        }
        let declared = lib
            .lines()
            .filter_map(|line| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned()));
        Self { rooms, allowed, declared: declared.collect() }
    }

    fn may_import(&self, from: &str, to: &str) -> bool {
        match self.allowed.get(from) {
            Some(Some(rooms)) => rooms.contains(to),
            Some(None) => true,
            None => false,
        }
    }
}

/// Everything that is wrong, a line each.
fn violations(plan: &Plan, sources: &[Source]) -> Vec<String> {
    let sources: Vec<_> = sources.iter().filter(|source| !is_for_tests(source, sources)).collect();
    let mut found = Vec::new();
    let mut edges = BTreeSet::new();
    for source in &sources {
        let Some(room) = source.room() else {
            found.extend(program_violations(source));
            continue;
        };
        for path in &source.paths {
            let place = format!("{}:{}", source.path, path.line);
            let shown = path.segments.join("::");
            if let Some(target) = room_of(plan, source, path).filter(|target| target != room) {
                edges.insert((room.to_owned(), target.clone()));
                if !plan.may_import(room, &target) {
                    found.push(format!("{place}: `{room}` may not import `{target}` ({shown})"));
                }
            }
            if let Some(homes) = away_from_home(source, path) {
                found.push(format!("{place}: `{shown}` belongs in {homes} alone"));
            }
            if PURE.contains(&room)
                && let Some(what) = impurity(path)
            {
                found.push(format!("{place}: `{room}` is pure and may not use {what} ({shown})"));
            }
            // `tokio::sync` has the other end of the channel that control messages leave by.
            if room == "dataplane" && path.segments[0] == "tokio" && !path.leads_to("tokio::sync") {
                found.push(format!("{place}: hallways run on OS threads, not on tokio"));
            }
        }
        for line in source.unsafe_lines.iter().filter(|_| room != "sys") {
            found.push(format!("{}:{line}: `unsafe` lives in `sys` alone", source.path));
        }
    }
    found.extend(cycle(&edges).map(|rooms| format!("a cycle: {}", rooms.join(" -> "))));
    found
}

/// Files over the limit, wherever they are.
fn too_long(sources: &[Source]) -> Vec<String> {
    let long = sources.iter().filter(|source| source.lines > LINES_MAX);
    long.map(|source| format!("{}: {} lines, at most {LINES_MAX}", source.path, source.lines))
        .collect()
}

/// Where the table, the declarations and the folders disagree.
fn plan_violations(plan: &Plan, folders: &BTreeSet<String>) -> Vec<String> {
    let listed: BTreeSet<_> = plan.rooms.iter().cloned().collect();
    let mut found = Vec::new();
    for room in folders.symmetric_difference(&listed) {
        found.push(format!("`{room}` is a folder or a row of the table in src/lib.rs, not both"));
    }
    for room in plan.declared.symmetric_difference(&listed) {
        found.push(format!("`{room}` is declared or a row of the table in src/lib.rs, not both"));
    }
    for (index, room) in plan.rooms.iter().enumerate() {
        for import in plan.allowed.get(room).into_iter().flatten().flatten() {
            if !plan.rooms[..index].contains(import) {
                found
                    .push(format!("`{room}` may import `{import}`, which does not stand above it"));
            }
        }
    }
    found
}

/// Programs only open the door: `ovmesh::app`.
fn program_violations(source: &Source) -> Vec<String> {
    let is_program = source.path.starts_with("src/bin/");
    let crate_paths = source.paths.iter().filter(|path| path.segments[0] == "ovmesh");
    crate_paths
        .filter(|path| is_program && path.segments.get(1).is_none_or(|room| room != "app"))
        .map(|path| format!("{}:{}: a program imports `app` alone", source.path, path.line))
        .collect()
}

/// Whether a file is a module that its parent builds for tests only, or lies in such a one.
fn is_for_tests(source: &Source, all: &[Source]) -> bool {
    all.iter().any(|parent| {
        let folder = match parent.path.strip_suffix("mod.rs") {
            Some(folder) => folder.to_owned(),
            None => format!("{}/", parent.path.trim_end_matches(".rs")),
        };
        // `#[path]` counts from the folder that the parent lies in.
        let beside = parent.path.rsplit_once('/').map_or("", |(beside, _)| beside);
        let mut files = parent.test_files.iter();
        if files.any(|file| source.path == format!("{beside}/{file}")) {
            return true;
        }
        parent.test_modules.iter().any(|module| {
            source.path == format!("{folder}{module}.rs")
                || source.path.starts_with(&format!("{folder}{module}/"))
        })
    })
}

/// The room that a path leads into: `crate::room::...`, or enough `super`s and then a room.
fn room_of(plan: &Plan, source: &Source, path: &NamedPath) -> Option<String> {
    let supers = path.segments.iter().take_while(|segment| *segment == "super").count();
    let room = if path.segments[0] == "crate" {
        path.segments.get(1)?
    } else if supers > 0 && supers == source.depth() + path.inline_depth {
        path.segments.get(supers)?
    } else {
        return None;
    };
    // A name that is no room stands at the root by mistake: report it as it is.
    (plan.rooms.contains(room) || room.starts_with(char::is_lowercase)).then(|| room.clone())
}

/// The homes of a package that is used elsewhere.
fn away_from_home(source: &Source, path: &NamedPath) -> Option<String> {
    let package = path.segments[0].trim_start_matches("r#");
    let (_, homes) = HOMES.iter().find(|(name, _)| *name == package)?;
    let below = source.path.strip_prefix("src/")?;
    let at_home = homes.iter().any(|home| {
        below.strip_prefix(home).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
    });
    (!at_home).then(|| homes.join(", "))
}

/// What a pure room may not touch.
fn impurity(path: &NamedPath) -> Option<&'static str> {
    let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
    let is_type = |name: &str| name.starts_with(char::is_uppercase);
    if segments.windows(2).any(|pair| is_type(pair[0]) && pair[1] == "now") {
        return Some("a clock");
    }
    for segment in &segments {
        match *segment {
            "SystemTime" => return Some("a clock"),
            "UdpSocket" | "TcpStream" | "TcpListener" | "UnixStream" | "UnixListener" => {
                return Some("a socket");
            }
            _ => {}
        }
    }
    match segments.as_slice() {
        ["std", "fs" | "process" | "env", ..] => Some("the operating system"),
        ["std", "thread", ..] => Some("threads"),
        ["tokio", ..] => Some("tokio"),
        ["rand", ..] | ["ring", "rand", ..] => Some("chance"),
        _ => None,
    }
}

/// One cycle among the rooms, if there is any.
fn cycle(edges: &BTreeSet<(String, String)>) -> Option<Vec<String>> {
    fn walk(
        edges: &BTreeSet<(String, String)>,
        trail: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        let here = trail.last()?.clone();
        for (_, next) in edges.iter().filter(|(from, _)| *from == here) {
            if let Some(start) = trail.iter().position(|room| room == next) {
                let mut cycle = trail[start..].to_vec();
                cycle.push(next.clone());
                return Some(cycle);
            }
            if !done.contains(next) {
                trail.push(next.clone());
                if let Some(cycle) = walk(edges, trail, done) {
                    return Some(cycle);
                }
                trail.pop();
            }
        }
        done.insert(here);
        None
    }
    let mut done = BTreeSet::new();
    edges.iter().find_map(|(from, _)| walk(edges, &mut vec![from.clone()], &mut done))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn real_plan() -> Plan {
    Plan::parse(&std::fs::read_to_string(root().join("src/lib.rs")).unwrap())
}

#[test]
fn the_crate_keeps_to_its_floor_plan() {
    let sources = Source::tree(root(), "src");
    // The controls: there is a table, and the reader finds the imports that everybody has.
    assert!(real_plan().rooms.len() > 10);
    let imports = sources.iter().flat_map(|source| &source.paths);
    assert!(imports.filter(|path| path.segments.starts_with(&["crate".into()])).count() > 10);

    let found = violations(&real_plan(), &sources);

    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_floor_plan_lists_every_folder_and_rooms_import_only_from_above() {
    let folders = std::fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap());
    let folders = folders.filter(|entry| entry.path().is_dir());
    let folders = folders.map(|entry| entry.file_name().to_str().unwrap().to_owned());
    let folders: BTreeSet<_> = folders.filter(|name| name != "bin").collect();

    let found = plan_violations(&real_plan(), &folders);

    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn no_file_is_longer_than_600_lines() {
    let folders = ["src", "tests", "examples", "benches", "fuzz"];
    let folders = folders.into_iter().filter(|folder| root().join(folder).exists());
    let sources: Vec<_> = folders
        .flat_map(|folder| Source::tree(root(), folder))
        .filter(|source| !source.path.contains("/target/"))
        .collect();

    let found = too_long(&sources);

    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// The checks, checked on planted sources.
mod planted {
    use super::*;

    const LIB: &str = "\
//! | room | what it is for | may import |
//! |---|---|---|
//! | [`types`] | words | - |
//! | [`wire`] | bytes | types |
//! | [`forward`] | verdicts | types, wire |
//! | [`sys`] | the kernel | types, wire |
//! | [`dataplane`] | hallways | types, wire, forward, sys |
//! | [`control`] | the server | types |
//! | [`app`] | doors | all |
pub mod types;
pub mod wire;
pub mod forward;
pub mod sys;
pub mod dataplane;
pub mod control;
pub mod app;
";

    fn found(path: &str, text: &str) -> Vec<String> {
        violations(&Plan::parse(LIB), &[Source::parse(path, text)])
    }

    #[track_caller]
    fn caught(path: &str, text: &str, message: &str) {
        let found = found(path, text);
        assert!(found.iter().any(|line| line.contains(message)), "{path}: {text}\n{found:?}");
    }

    #[track_caller]
    fn fine(path: &str, text: &str) {
        assert_eq!(found(path, text), Vec::<String>::new(), "{path}: {text}");
    }

    #[test]
    fn imports_are_caught_however_they_are_written() {
        fine("src/forward/mod.rs", "use crate::wire::Gue; use super::types::Name;");
        for text in [
            "use crate::sys::Tun;",
            "use crate::{types::Name, sys::{Tun, Udp}};",
            "use crate::{\n    types::Name,\n    sys,\n};",
            "fn f() -> crate::sys::Tun { todo!() }",
            "use super::sys::Tun;",
            "mod inner { use super::super::sys::Tun; }",
            "use crate::nowhere::Thing;",
        ] {
            caught("src/forward/mod.rs", text, "`forward` may not import");
        }
        caught("src/forward/flows.rs", "use super::super::sys::Tun;", "may not import `sys`");
        fine("src/forward/flows.rs", "use super::sys::Slot; mod inner { use super::super::sys; }");
        fine("src/app/mod.rs", "use crate::{control, dataplane, sys};");
        caught("src/control/mod.rs", "use crate::app::run;", "may not import `app`");
    }

    #[test]
    fn comments_strings_and_tests_are_no_imports() {
        fine("src/wire/a.rs", "// crate::sys\n/* crate::sys /* x */ crate::sys */ fn f() {}");
        fine(
            "src/wire/a.rs",
            r####"const A: &str = "crate::sys"; const B: &str = r#"" crate::sys "#;"####,
        );
        fine("src/wire/a.rs", "const Q: char = '\"'; fn f<'a>(x: &'a u8) {} // crate::sys \"");
        fine(
            "src/wire/a.rs",
            "#[cfg(test)]\nmod tests { use crate::sys::Tun; fn f() { unsafe {} } }",
        );
        fine("src/wire/a.rs", "#[cfg(test)] use crate::{sys::Tun, app}; fn f() {}");
        fine("src/wire/a.rs", "fn f() -> impl Fn() + use<> { let x = 1; || () }");
        // The control: what follows a test module is read again.
        let after = "#[cfg(test)] mod tests { fn f() {} }\nuse crate::sys::Tun;";
        caught("src/wire/a.rs", after, "src/wire/a.rs:2: `wire` may not import `sys`");
    }

    #[test]
    fn modules_in_files_of_their_own_count_as_tests_when_their_parent_says_so() {
        let plan = Plan::parse(LIB);
        let model = Source::parse("src/wire/model.rs", "use crate::sys::Tun;");
        let marked = Source::parse("src/wire/mod.rs", "#[cfg(test)]\nmod model;");
        let unmarked = Source::parse("src/wire/mod.rs", "mod model;");

        assert!(violations(&plan, &[marked, model.clone()]).is_empty());
        let text = "#[cfg(test)]\n#[path = \"model.rs\"]\nmod tests;";
        let elsewhere = Source::parse("src/wire/gue.rs", text);
        assert!(violations(&plan, &[elsewhere, model.clone()]).is_empty());
        assert_eq!(violations(&plan, &[unmarked, model]).len(), 1);
    }

    #[test]
    fn packages_away_from_home_are_caught() {
        fine("src/control/store/rules.rs", "use sqlx::SqlitePool;");
        fine("src/control/store.rs", "use sqlx::SqlitePool;");
        caught("src/control/routes.rs", "use sqlx::SqlitePool;", "belongs in control/store alone");
        caught("src/forward/mod.rs", "fn f(fd: libc::c_int) {}", "belongs in sys alone");
        caught("src/wire/mod.rs", "fn f() -> anyhow::Result<()> { Ok(()) }", "belongs in app, cli");
        fine("src/sys/mod.rs", "use tun::Device; use libc::iovec;");
        fine("src/wire/mod.rs", "use self::tun::Header; use crate::wire::tun::Header;");
    }

    #[test]
    fn pure_rooms_are_kept_pure() {
        for text in [
            "fn f() { let now = Instant::now(); }",
            "fn f() { let now = std::time::Instant::now(); }",
            "use std::time::{Duration, SystemTime};",
            "use std::net::{IpAddr, UdpSocket};",
            "use std::{fmt, fs};",
            "fn f() { std::thread::spawn(|| ()); }",
            "use tokio::sync::watch;",
            "use rand::Rng;",
        ] {
            caught("src/forward/mod.rs", text, "`forward` is pure");
        }
        fine("src/forward/mod.rs", "use std::net::IpAddr; use std::time::{Duration, Instant};");
        fine("src/control/mod.rs", "use std::fs; fn f() { Instant::now(); }");
        caught("src/dataplane/mod.rs", "use tokio::task;", "not on tokio");
        fine("src/dataplane/mod.rs", "use tokio::sync::mpsc;");
    }

    #[test]
    fn unsafe_outside_of_sys_is_caught() {
        caught("src/wire/mod.rs", "fn f() { unsafe { g() } }", "src/wire/mod.rs:1: `unsafe`");
        fine("src/sys/mod.rs", "fn f() { unsafe { g() } }");
        fine("src/wire/mod.rs", "// unsafe\nconst S: &str = \"unsafe\"; fn unsafe_name() {}");
    }

    #[test]
    fn programs_only_open_the_door() {
        fine("src/bin/ovd.rs", "fn main() { ovmesh::app::ovd::main() }");
        caught("src/bin/ovd.rs", "fn main() { ovmesh::sys::go() }", "imports `app` alone");
    }

    #[test]
    fn cycles_are_caught_also_where_the_table_would_allow_them() {
        let lib = LIB.replace("bytes | types |", "bytes | types, forward |");
        let sources = [
            Source::parse("src/wire/mod.rs", "use crate::forward::Verdict;"),
            Source::parse("src/forward/mod.rs", "use crate::wire::Gue;"),
        ];

        let found = violations(&Plan::parse(&lib), &sources);

        assert_eq!(found, ["a cycle: forward -> wire -> forward"]);
        assert!(violations(&Plan::parse(LIB), &sources[1..]).is_empty());
    }

    #[test]
    fn a_table_that_disagrees_with_the_folders_is_caught() {
        let plan = Plan::parse(LIB);
        let mut folders: BTreeSet<_> = plan.rooms.iter().cloned().collect();
        assert!(plan_violations(&plan, &folders).is_empty());

        folders.insert("attic".to_owned());
        assert!(plan_violations(&plan, &folders)[0].contains("`attic` is a folder"));
        let undeclared = Plan::parse(&LIB.replace("pub mod sys;\n", ""));
        folders.remove("attic");
        assert!(plan_violations(&undeclared, &folders)[0].contains("`sys` is declared"));
        let upward = Plan::parse(&LIB.replace("| words | -", "| words | wire"));
        assert!(plan_violations(&upward, &folders)[0].contains("does not stand above it"));
    }

    #[test]
    fn a_file_of_601_lines_is_caught() {
        assert!(too_long(&[Source::parse("src/wire/a.rs", &"\n".repeat(600))]).is_empty());
        assert_eq!(too_long(&[Source::parse("src/wire/a.rs", &"\n".repeat(601))]).len(), 1);
    }
}

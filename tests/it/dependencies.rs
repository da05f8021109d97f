//! What we build on: permissive licences, from crates.io, nothing that deny.toml bans. `make deny` asks
//! more (all platforms, texts of licences), and takes a minute to build.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The lists of deny.toml.
struct Rules {
    allowed: BTreeSet<String>,
    /// Crate and licence.
    exceptions: BTreeSet<(String, String)>,
    banned: BTreeSet<String>,
}

impl Rules {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
        let file: toml::Value = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
        let list = |value: &toml::Value| value.as_array().unwrap().clone();
        let exceptions = list(&file["licenses"]["exceptions"]).into_iter().flat_map(|one| {
            let licences = list(&one["allow"]);
            licences.into_iter().map(move |licence| (text(&one["crate"]), text(&licence)))
        });
        Self {
            allowed: list(&file["licenses"]["allow"]).iter().map(text).collect(),
            exceptions: exceptions.collect(),
            banned: list(&file["bans"]["deny"]).iter().map(|one| text(&one["crate"])).collect(),
        }
    }

    /// What is wrong with a package of `cargo metadata`.
    fn objection(&self, package: &Value) -> Option<String> {
        let name = package["name"].as_str().unwrap();
        if package["source"].is_null() {
            return None;
        }
        if package["source"] != CRATES_IO {
            return Some(format!("{name} comes from {}", package["source"]));
        }
        if self.banned.contains(name) {
            return Some(format!("{name} is banned by deny.toml"));
        }
        let licence = package["license"].as_str().unwrap_or("no licence");
        (!self.permits(name, licence)).then(|| format!("{name} has the licence {licence}"))
    }

    /// Whether we may use `name` under an SPDX expression. `AND` binds closer than `OR`, `WITH` closest.
    fn permits(&self, name: &str, expression: &str) -> bool {
        let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        let mut rest = &words[..];
        let permits = self.any_of(name, &mut rest);
        assert!(rest.is_empty(), "{name}: not understood: {expression}");
        permits
    }

    fn any_of(&self, name: &str, rest: &mut &[&str]) -> bool {
        let mut permits = self.all_of(name, rest);
        while let ["OR", after @ ..] = rest {
            *rest = after;
            permits |= self.all_of(name, rest);
        }
        permits
    }

    fn all_of(&self, name: &str, rest: &mut &[&str]) -> bool {
        let mut permits = self.one(name, rest);
        while let ["AND", after @ ..] = rest {
            *rest = after;
            permits &= self.one(name, rest);
        }
        permits
    }

    fn one(&self, name: &str, rest: &mut &[&str]) -> bool {
        let licence = match rest {
            ["(", after @ ..] => {
                *rest = after;
                let permits = self.any_of(name, rest);
                assert_eq!(rest.first(), Some(&")"), "{name}: a parenthesis stays open");
                *rest = &rest[1..];
                return permits;
            }
            [licence, "WITH", exception, after @ ..] => {
                *rest = after;
                format!("{licence} WITH {exception}")
            }
            [licence, after @ ..] => {
                *rest = after;
                (*licence).to_owned()
            }
            [] => panic!("{name}: the expression ends early"),
        };
        self.allowed.contains(&licence) || self.exceptions.contains(&(name.to_owned(), licence))
    }
}

#[test]
fn all_we_build_on_is_permissive_and_from_crates_io() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let used: BTreeSet<&str> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|node| node["id"].as_str())
        .collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let packages: Vec<&Value> =
        packages.filter(|package| used.contains(package["id"].as_str().unwrap())).collect();
    assert!(packages.len() > 100, "only {} packages", packages.len());

    let rules = Rules::read();
    let objections: Vec<String> =
        packages.into_iter().filter_map(|package| rules.objection(package)).collect();
    assert!(objections.is_empty(), "{objections:#?}");
}

#[test]
fn what_is_not_permissive_is_refused() {
    let rules = Rules::read();
    let good = [
        ("any", "MIT"),
        ("any", "MIT/Apache-2.0"),
        ("any", "GPL-3.0-only OR MIT"),
        ("any", "(MIT OR GPL-2.0) AND Unicode-3.0"),
        ("any", "Apache-2.0 WITH LLVM-exception OR GPL-2.0"),
        ("tun", "WTFPL"),
    ];
    for (name, licence) in good {
        assert!(rules.permits(name, licence), "{name}: {licence}");
    }
    let bad = [
        ("any", "GPL-3.0-only"),
        ("any", "MIT AND GPL-3.0-only"),
        ("any", "(MIT OR ISC) AND MPL-2.0"),
        ("any", "GPL-2.0 WITH Classpath-exception-2.0"),
        ("any", "WTFPL"),
    ];
    for (name, licence) in bad {
        assert!(!rules.permits(name, licence), "{name}: {licence}");
    }
    let package = |name: &str, source: &str| serde_json::json!({"name": name, "source": source, "license": "MIT"});
    assert!(rules.objection(&package("any", CRATES_IO)).is_none());
    assert!(rules.objection(&package("any", "git+https://example.org/any")).is_some());
    assert!(rules.objection(&package("openssl-sys", CRATES_IO)).is_some());
}

/// Who adds a dependency has to tell the lock file of the fuzz targets, too: `cd fuzz && cargo metadata > /dev/null`.
#[test]
fn the_fuzz_targets_are_locked_to_what_we_build_on() {
    let read = |path: &str| -> toml::Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let (manifest, lock) = (read("Cargo.toml"), read("fuzz/Cargo.lock"));
    let ours = manifest["dependencies"].as_table().unwrap().keys().cloned();
    let packages = lock["package"].as_array().unwrap();
    let package = packages.iter().find(|one| one["name"].as_str() == Some("ovmesh")).unwrap();
    // `name`, or `name version` where there are several.
    let name = |entry: &toml::Value| entry.as_str().unwrap().split(' ').next().unwrap().to_owned();
    let locked = package["dependencies"].as_array().unwrap().iter().map(name);

    assert_eq!(locked.collect::<BTreeSet<_>>(), ours.collect::<BTreeSet<_>>());
}

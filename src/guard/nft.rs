//! Runs `nft`, the program: its language is the same from version to version, the kernel's is not.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::render::TABLE;
use crate::sys::SysError;

/// Where the program is when the PATH does not lead there, as the PATH of services often does not.
const PLACES: [&str; 4] = ["nft", "/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft"];

const NO_PROGRAM: &str = "there is no program `nft` on this machine";
const NO_KERNEL: &str = "this kernel has no nf_tables";

/// What to do where there can be no guard.
const WITHOUT: &str = "or run without a guard: `guard = \"off\"` in ovd.toml, or --guard off; then \
     nothing but routes keeps packets of overlays off other interfaces, and services are open there";

/// Runs `nft ARGUMENTS` with `script` as its input; returns what it printed. Waits for it: a few
/// milliseconds.
pub(super) fn run(arguments: &[&str], script: &str) -> Result<String, SysError> {
    let what = || format!("cannot use nftables (`nft {}`)", arguments.join(" "));
    let failed = |error: &std::io::Error| SysError::from_io(what(), error);
    for program in PLACES {
        let spawned = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            spawned => spawned.map_err(|error| failed(&error))?,
        };
        if let Some(mut input) = child.stdin.take() {
            // One that has ended early says why on its standard error.
            let _ = input.write_all(script.as_bytes());
        }
        let output = child.wait_with_output().map_err(|error| failed(&error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        return Err(refusal(what(), &String::from_utf8_lossy(&output.stderr)));
    }
    Err(SysError::new(what(), NO_PROGRAM)
        .fix(format!("install it (apt-get install nftables), {WITHOUT}")))
}

/// What `nft` complained about.
fn refusal(what: String, complaint: &str) -> SysError {
    let first = complaint.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason");
    let error = SysError::new(what, first.trim());
    let says = |words: &str| complaint.contains(words);
    if says("Operation not permitted") || says("must be root") {
        return error.fix(crate::sys::NET_ADMIN);
    }
    if says("rotocol not supported") || says("peration not supported") || says("nvalid argument") {
        return SysError::new(error.what, format!("{NO_KERNEL}: {}", error.why))
            .fix(format!("load it (modprobe nf_tables nft_ct), {WITHOUT}"));
    }
    error
}

/// Whether this machine cannot have had a guard, for want of the program or of the kernel's part.
#[must_use]
pub fn is_missing(error: &SysError) -> bool {
    error.why.starts_with(NO_PROGRAM) || error.why.starts_with(NO_KERNEL)
}

/// Whether `nft` failed because what it was asked about is not there.
pub(super) fn is_absent(error: &SysError) -> bool {
    error.why.contains("No such file or directory")
}

/// A counter of a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Counter {
    family: String,
    table: String,
    pub(super) name: String,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// A chain of anybody's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ForeignChain {
    /// `ip`, `ip6`, `inet`, …
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// `filter`, `nat` or `route`, where the kernel runs it by itself.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Where it does: `input`, `output`, `forward`, …
    pub hook: Option<String>,
    /// What becomes of packets that no rule decides: `accept` or `drop`.
    pub policy: Option<String>,
}

impl ForeignChain {
    /// Whether it is one of the guard.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        (self.family.as_str(), self.table.as_str()) == ("inet", TABLE)
    }
}

#[derive(Debug, Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Debug, Deserialize)]
struct Item {
    counter: Option<Counter>,
    chain: Option<ForeignChain>,
}

fn items(json: &str) -> Result<Vec<Item>, SysError> {
    let listing: Result<Listing, _> = serde_json::from_str(json);
    listing
        .map(|listing| listing.nftables)
        .map_err(|error| SysError::new("cannot read what `nft -j list` prints", error))
}

/// The counters of the table `inet TABLE`.
pub(super) fn counters(table: &str) -> Result<Vec<Counter>, SysError> {
    let json = run(&["-j", "list", "counters", "table", "inet", table], "")?;
    let counters = items(&json)?.into_iter().filter_map(|item| item.counter);
    // Some versions list those of all tables.
    Ok(counters.filter(|found| found.family == "inet" && found.table == table).collect())
}

/// Every chain on this machine.
///
/// # Errors
///
/// When nftables cannot be asked.
pub fn chains() -> Result<Vec<ForeignChain>, SysError> {
    let json = run(&["-j", "list", "chains"], "")?;
    Ok(items(&json)?.into_iter().filter_map(|item| item.chain).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_gives_counters_and_chains() {
        let json = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"chain": {"family": "ip", "table": "nat", "name": "DOCKER", "handle": 1}},
            {"counter": {"family": "inet", "name": "closed", "table": "ovmesh", "handle": 2,
             "packets": 3, "bytes": 180}},
            {"chain": {"family": "inet", "table": "filter", "name": "input", "handle": 1,
             "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}}]}"#;

        let items = items(json).unwrap();

        let chain = items[1].chain.as_ref().unwrap();
        assert_eq!((chain.name.as_str(), chain.hook.as_deref()), ("DOCKER", None));
        let chain = items[3].chain.as_ref().unwrap();
        let hooked = [&chain.kind, &chain.hook, &chain.policy].map(|word| word.as_deref().unwrap());
        assert_eq!(hooked, ["filter", "input", "drop"]);
        let counter = items[2].counter.as_ref().unwrap();
        assert_eq!((counter.packets, counter.bytes), (3, 180));
    }

    #[test]
    fn refusals_say_what_to_do() {
        let no_right = refusal("x".into(), "Operation not permitted (you must be root)\nlist");
        assert!(no_right.fix.contains("CAP_NET_ADMIN"), "{no_right}");
        let no_kernel = refusal(
            "x".into(),
            "netlink: Error: cache initialization failed: Protocol not supported",
        );
        assert!(is_missing(&no_kernel) && !is_missing(&no_right), "{no_kernel}");
        assert!(no_kernel.fix.contains("guard = \"off\""), "{no_kernel}");
        let absent = refusal("x".into(), "Error: No such file or directory\nlist table");
        assert!(is_absent(&absent) && absent.fix.is_empty(), "{absent}");
    }
}

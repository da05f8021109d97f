//! The guard's table on this machine: put in force, put back, taken away.

use std::net::SocketAddr;

use super::nft;
use super::render::{TABLE, render};
use super::rules::{Egress, Intent, Member, RuleName, rules};
use crate::sys::{SysError, nftables};
use crate::types::{GuardMode, Protocol};

/// The table that this process keeps in force. It stays when the process ends, however it ends.
#[derive(Debug, Default)]
pub struct Table {
    wanted: Option<Wanted>,
    /// Whether the one of an earlier process was taken away, if there was any.
    is_swept: bool,
}

#[derive(Debug)]
struct Wanted {
    script: String,
    /// How `nft` shows the table when it is as it should be.
    listing: String,
    /// What was the last transaction of all when it was so.
    generation: u32,
}

/// What came of looking at the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// As it should be.
    Whole,
    /// Somebody had changed or removed it; it is back.
    PutBack,
}

/// How often a rule matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The rule.
    pub rule: RuleName,
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Table {
    /// Puts `script` in force, all at once; nothing happens where it is the one in force.
    ///
    /// # Errors
    ///
    /// When `nft` or the kernel refuses; what was in force stays.
    pub async fn put(&mut self, script: String) -> Result<(), SysError> {
        if self.wanted.as_ref().is_some_and(|wanted| wanted.script == script) {
            return Ok(());
        }
        // Whatever comes of it, there may be a table then.
        self.is_swept = false;
        self.wanted = Some(blocking(move || put(script)).await?);
        Ok(())
    }

    /// Looks whether anybody touched the table, and puts it back. As long as nobody changes any packet
    /// filter on this machine it costs three system calls.
    ///
    /// # Errors
    ///
    /// When it is not as it should be and cannot be put back.
    pub async fn keep(&mut self) -> Result<Condition, SysError> {
        let Some(wanted) = &mut self.wanted else { return Ok(Condition::Whole) };
        let now = generation()?;
        if now == wanted.generation {
            return Ok(Condition::Whole);
        }
        if blocking(list).await? == wanted.listing {
            wanted.generation = now;
            return Ok(Condition::Whole);
        }
        let script = wanted.script.clone();
        // What cannot be put back is not in force: the next attempt is a new one.
        self.wanted = None;
        self.wanted = Some(blocking(move || put(script)).await?);
        Ok(Condition::PutBack)
    }

    /// Whether a table is kept in force.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.wanted.is_some()
    }

    /// Takes the table away; nothing happens where it was taken away before.
    ///
    /// # Errors
    ///
    /// When `nft` or the kernel refuses.
    pub async fn remove(&mut self) -> Result<(), SysError> {
        if self.wanted.is_some() || !self.is_swept {
            blocking(sweep).await?;
            self.wanted = None;
            self.is_swept = true;
        }
        Ok(())
    }
}

/// How often each rule matched, since the table was made. Waits for `nft`, a few milliseconds.
///
/// # Errors
///
/// When the table cannot be read.
pub fn counts() -> Result<Vec<Count>, SysError> {
    let counters = nft::counters(TABLE)?;
    let count = |rule: RuleName| {
        let found = counters.iter().find(|counter| counter.name == rule.name())?;
        Some(Count { rule, packets: found.packets, bytes: found.bytes })
    };
    Ok(RuleName::ALL.into_iter().filter_map(count).collect())
}

/// Takes the table away, whoever put it there. One that is not there is no error.
///
/// # Errors
///
/// When `nft` or the kernel refuses.
pub fn sweep() -> Result<(), SysError> {
    let script = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n");
    nft::run(&["-f", "-"], &script).map(drop)
}

/// Has the kernel check a guard of every kind of rule, and changes nothing: better to miss `nft`, the
/// kernel's module or the right now than after a token is used up.
///
/// # Errors
///
/// What is missing, by name, and how to go on without it.
pub fn check_machine() -> Result<(), SysError> {
    let any = |mode: GuardMode| Intent {
        mode,
        members: ["10.0.0.1", "fd00::1"]
            .into_iter()
            .filter_map(|address| {
                let address = address.parse().ok()?;
                Some(Member { device: "ov0".to_owned(), range: address, address: address.addr() })
            })
            .collect(),
        services: "tcp/1".parse().into_iter().collect(),
        data_port: 1,
        health_port: None,
        uplinks: vec!["eth0".to_owned()],
        ssh_peers: Vec::new(),
        ssh_ports: Vec::new(),
        egress: Some(Egress {
            ovmesh: [(Protocol::Udp, SocketAddr::from(([10, 0, 0, 1], 1)))].into(),
            ..Egress::default()
        }),
        listening: vec![1],
    };
    for mode in [GuardMode::Ports, GuardMode::All] {
        nft::run(&["-c", "-f", "-"], &render(&rules(&any(mode))))?;
    }
    Ok(())
}

fn put(script: String) -> Result<Wanted, SysError> {
    if let Err(error) = nft::run(&["-f", "-"], &script) {
        // A table of another version may have a chain elsewhere: then it goes in the same transaction.
        let anew = format!("add table inet {TABLE}\ndelete table inet {TABLE}\n{script}");
        nft::run(&["-f", "-"], &anew).map_err(|_| error)?;
    }
    // Read before the listing: what changes in between is noticed the next time.
    let generation = generation()?;
    Ok(Wanted { script, listing: list()?, generation })
}

/// The table without its counts; empty when it is not there.
fn list() -> Result<String, SysError> {
    match nft::run(&["-s", "list", "table", "inet", TABLE], "") {
        Err(error) if nft::is_absent(&error) => Ok(String::new()),
        listed => listed,
    }
}

fn generation() -> Result<u32, SysError> {
    nftables::generation()
        .map_err(|error| SysError::from_io("cannot ask nf_tables whether it changed", &error))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SysError> + Send + 'static,
) -> Result<T, SysError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| SysError::new("cannot run nft", error))?
}

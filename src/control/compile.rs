//! Tables as bytes, on all cores: cut, written as JSON, hashed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::keyset::Keys;
use crate::api::{Problem, ProblemCode};
use crate::policy::{Blueprint, Bodies, Body, ForkJoin, Sequential, World};
use crate::types::{NodeId, OverlayId, Secret, Timestamp};

/// All that tables are made of, at one moment.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) blueprint: Blueprint,
    pub(crate) keys: Arc<Keys>,
}

/// A compiled table.
#[derive(Debug)]
pub(crate) struct Compiled {
    /// The body as JSON, unless nobody waits for it: then it is compiled again when asked for.
    pub(crate) body: Option<Arc<str>>,
    /// SHA-256 of the body.
    pub(crate) hash: Secret,
    /// By overlay whom an entity sends to. They are those who send to it, too: a rule gives both ends
    /// a key.
    pub(crate) peers: Vec<(OverlayId, Box<[NodeId]>)>,
}

/// From so many nodes on a part of a blueprint takes longer than it takes to start a thread.
const FORK_FROM: usize = 1_000;

/// Does two things at the same time.
#[derive(Clone, Copy, Debug)]
pub struct TwoThreads;

impl ForkJoin for TwoThreads {
    fn join<A: Send, B>(
        &self,
        one: impl FnOnce() -> A + Send,
        other: impl FnOnce() -> B,
    ) -> (A, B) {
        std::thread::scope(|scope| {
            let one = scope.spawn(one);
            let other = other();
            (one.join().expect("invariant: compiling does not panic"), other)
        })
    }
}

impl Source {
    /// What comes after this one: works out who is meant by the rules that are in force at `now`.
    pub(crate) fn next(&self, world: Arc<World>, keys: Arc<Keys>, now: Timestamp) -> Self {
        let blueprint = if world.nodes.len() < FORK_FROM {
            self.blueprint.next(&Sequential, world, now)
        } else {
            self.blueprint.next(&TwoThreads, world, now)
        };
        Self { blueprint, keys }
    }

    /// The nodes whose tables may be others than those of `older`.
    pub(crate) fn touched_since(&self, older: &Self) -> BTreeSet<NodeId> {
        let is_same = Arc::ptr_eq(&self.keys, &older.keys);
        let rings = if is_same { Vec::new() } else { self.keys.changed_since(&older.keys) };
        self.blueprint.touched_since(&older.blueprint, &rings)
    }

    /// Compiles the tables of `nodes`; nodes that are not there are left out. Bodies are kept for those in
    /// `awaited` only, so that a fleet's tables are never in memory all at once.
    pub(crate) fn compile(
        &self,
        nodes: &BTreeSet<NodeId>,
        awaited: &BTreeSet<NodeId>,
    ) -> Vec<(NodeId, Compiled)> {
        let bodies = Bodies::new(&self.blueprint, &*self.keys);
        let tasks = bodies.tasks(nodes);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                let made = bodies.run(*task);
                done.extend(made.map(|(id, body)| (id, compiled(body, awaited.contains(&id)))));
            }
            done
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut all: Vec<(NodeId, Compiled)> = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..cores.min(tasks.len())).map(|_| scope.spawn(work)).collect();
            let mut all = work();
            for helper in helpers {
                all.extend(helper.join().expect("invariant: compiling does not panic"));
            }
            all
        });
        all.sort_by_key(|(id, _)| *id);
        all
    }

    /// Compiles one table.
    pub(crate) fn table(&self, id: NodeId) -> Option<Compiled> {
        Bodies::new(&self.blueprint, &*self.keys).body(id).map(|body| compiled(body, true))
    }
}

fn compiled(body: Body, keeps_body: bool) -> Compiled {
    let mut hash = [0; 32];
    let digest = ring::digest::digest(&ring::digest::SHA256, body.text.as_bytes());
    hash.copy_from_slice(digest.as_ref());
    let senders = body.own.overlays.iter().filter(|overlay| !overlay.send_keys.is_empty());
    let peers = senders
        .map(|overlay| {
            let member = |to: u32| overlay.members.get(usize::try_from(to).ok()?);
            let peers = overlay.send_keys.iter().filter_map(|row| Some(member(row.to)?.id));
            (overlay.id, peers.collect())
        })
        .collect();
    let text = keeps_body.then(|| Arc::from(body.text));
    Compiled { body: text, hash: Secret::new(hash), peers }
}

/// Compiling panicked.
pub(crate) fn not_compiled(error: tokio::task::JoinError) -> Problem {
    Problem::new(ProblemCode::Failed, "the tables were not compiled")
        .why(error.to_string())
        .fix("this is a bug: please report it with the server's log")
}

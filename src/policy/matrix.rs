//! The whole of a policy as pairs: who may open what to whom; and how two policies differ.

use serde::Serialize;

use super::judge::End;
use super::reach::Reach;
use super::scene::Scene;
use crate::api::admin::Semantics;

/// One ordered pair of members between which something may be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixPair {
    /// Who starts.
    pub from: String,
    /// Who is talked to.
    pub to: String,
    /// What may be opened.
    pub reach: Reach,
}

/// All pairs of different members that may open something, by the order of the inventory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// What unspoken traffic means.
    pub semantics: Semantics,
    /// Names of all members.
    pub members: Vec<String>,
    /// The pairs that may open something.
    pub pairs: Vec<MatrixPair>,
}

/// What a change of policy does to one ordered pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PairChange {
    /// Who starts.
    pub from: String,
    /// Who is talked to.
    pub to: String,
    /// What may be opened then and not before.
    pub gained: Vec<String>,
    /// What might be opened before and not then.
    pub lost: Vec<String>,
}

impl Matrix {
    /// Asks for each ordered pair of members.
    #[must_use]
    pub fn new(scene: &Scene) -> Self {
        let ends: Vec<End> = scene.members().map(|(id, _)| End::Member(id)).collect();
        let overview = scene.overview();
        let mut pairs = Vec::new();
        for from in &ends {
            for to in ends.iter().filter(|to| *to != from) {
                let reach = Reach::seen(&overview, from, to);
                if !reach.is_empty() {
                    let (from, to) = (scene.end_name(from), scene.end_name(to));
                    pairs.push(MatrixPair { from, to, reach });
                }
            }
        }
        let members = ends.iter().map(|end| scene.end_name(end)).collect();
        Self { semantics: scene.semantics(), members, pairs }
    }
}

/// What is gained and lost, per ordered pair, between two policies over one inventory. Empty exactly
/// when the matrices are equal. Addresses outside are not compared.
#[must_use]
pub fn difference(before: &Scene, after: &Scene) -> Vec<PairChange> {
    let ends: Vec<End> = before.members().map(|(id, _)| End::Member(id)).collect();
    let (old_view, new_view) = (before.overview(), after.overview());
    let mut changes = Vec::new();
    for from in &ends {
        for to in ends.iter().filter(|to| *to != from) {
            let (old, new) = (Reach::seen(&old_view, from, to), Reach::seen(&new_view, from, to));
            if old != new {
                changes.push(PairChange {
                    from: before.end_name(from),
                    to: before.end_name(to),
                    gained: new.without(&old).words(),
                    lost: old.without(&new).words(),
                });
            }
        }
    }
    changes
}

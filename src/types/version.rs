//! What counts up: revisions, serials, and the incarnation of the server that counts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Grows by one with each change that an operator makes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// Per node: grows when the bytes of its table change for any reason.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Serial(pub u64);

/// One life of the server's database: 128 random bits in hex. A restore starts a new one, so that
/// serials of different lives are never compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub String);

macro_rules! show_inner {
    ($($name:ident),*) => {
        $(impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        })*
    };
}
show_inner!(Revision, Serial, Incarnation);

/// The version mark of every JSON document: always `ovmesh/v1`. Another one is refused on reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// `ovmesh/v1`
    #[default]
    #[serde(rename = "ovmesh/v1")]
    V1,
}

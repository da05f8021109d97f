//! Authorization keys: how they are derived, and the steps of their rotation. Pure.
//!
//! The paper gives each destination one key that every sender knows. Here that key is `Kb`, and
//! each sender gets its own value derived from it, so that a key stolen from one sender is
//! worth nothing to another (design section 5).

mod derive;
pub mod rotation;

pub use derive::{DestinationKey, destination_secret};

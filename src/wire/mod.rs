//! Bytes to types and back: GUE, inner IP and L4 views, control messages.
//!
//! Nothing here copies a payload or panics on any input. What is refused is a [`DropReason`], which
//! is a counter.
//!
//! [`DropReason`]: crate::types::DropReason

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        reason = "packets must not panic"
    )
)]

pub mod answer;
mod checksum;
pub mod control;
pub mod cookie;
#[cfg(test)]
mod corpus_tests;
pub mod gue;
pub mod inner;
pub mod notice;
pub mod start;
pub mod tracer;

pub use inner::{Facts, Family};

//! The coordination server.

pub(crate) mod selection;
pub(crate) mod store;
pub(crate) mod suggest;

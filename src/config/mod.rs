//! TODO

pub mod ovctl;

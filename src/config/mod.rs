//! TOML to one validated configuration per program. Parsed once, before any socket opens.

pub mod node;
pub mod ovctl;

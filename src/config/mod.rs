//! TOML to one validated configuration per program. Durations and addresses are parsed here, once,
//! before any socket opens.

pub mod node;
pub mod ovctl;
pub mod server;
pub mod user;

//! TOML to one validated configuration per program. Durations and addresses are parsed here; nothing
//! is opened.

pub mod server;

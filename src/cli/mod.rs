//! The command line of the three programs: arguments, and for `ovctl` one file per noun that asks
//! the server and shows its answer. Only `output` prints.

pub mod args;
pub mod client;
mod credential;
pub mod output;
mod pin;

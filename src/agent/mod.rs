//! The node's side of the control plane: joins, pulls tables, persists them, turns them into
//! snapshots, reports, and drives probes.
//!
//! It starts from the table on disk and talks to the network afterwards: a node forwards after a
//! reboot with the server away. It never sees `dataplane`; `app` hands over what this room makes.

#![forbid(unsafe_code)]

pub mod addresses;
pub mod client;
pub mod denials;
pub mod explain;
pub mod flows;
pub mod guesses;
pub mod health;
pub mod join;
pub mod notices;
pub mod pace;
pub mod probes;
pub mod report;
pub mod snapshot;
pub mod state;
pub mod sync;
pub mod tracers;
pub mod underlay;

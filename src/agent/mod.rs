//! Pulls tables, persists them, turns them into snapshots; reports; drives probes.

pub mod snapshot;

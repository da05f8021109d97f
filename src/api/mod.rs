//! The contract between the coordination server, the agents on nodes, and `ovctl`: versioned serde
//! structs without behaviour.
//!
//! Requests refuse unknown fields; responses ignore them, so that an old client can talk to a
//! newer server. Every top-level document carries `"apiVersion": "ovmesh/v1"`.

pub mod admin;
pub mod backup;
pub mod can;
pub mod doctor;
pub mod errand;
pub mod flows;
pub mod gzip;
pub mod key;
pub mod local;
pub mod node;
pub mod path;
pub mod policy;
pub mod problem;
pub mod shared;
pub mod table;
pub mod why;

pub use problem::{Problem, ProblemCode};
pub use shared::Shared;

//! The coordination server: who is who, who may talk to whom, and the table of each node. It never
//! sees a packet, and nodes go on without it.
//!
//! | file | what |
//! |---|---|
//! | `server` | one change at a time: gate, transaction, publication, enforcement |
//! | `store` | the database, and all of the SQL |
//! | `live` | what is in memory: the world, tables, how far each node is |
//! | `speaker` | which process speaks for a node: restarts and copies |
//! | `publish`, `compile` | what a change touches: compile, compare, count up, wake; sources last |
//! | `document` | a table as it is sent, compressed once |
//! | `enforce` | whether a change has come to those who must enforce it |
//! | `policies` | changes of policies: files, history, confirmation, imports |
//! | `risk` | what a change must not cut: the way of who asks, and tests that held |
//! | `keyset`, `rotation`, `driver` | keys, the steps of their rotation, the clockwork |
//! | `flows` | what nodes say that happened, on its way to the database |
//! | `errands`, `tracers` | what nodes are asked to do beside; packets of live tests |
//! | `backup` | backups, and data directories made of them |
//! | `listen`, `tls`, `auth`, `routes` | HTTP: accept loop, key, who asks, what is answered |

mod auth;
pub mod backup;
mod compile;
mod document;
mod drain;
mod driver;
mod enforce;
mod errands;
pub mod files;
mod flows;
mod keyset;
pub mod listen;
mod live;
mod paths;
mod policies;
mod publish;
mod risk;
mod rotation;
mod routes;
mod selection;
mod server;
#[cfg(test)]
mod simulation;
mod speaker;
mod store;
mod suggest;
pub mod tls;
mod tracers;

pub use compile::TwoThreads;
pub use routes::router;
pub use server::{Server, Settings};

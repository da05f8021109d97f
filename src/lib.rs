//! ovmesh: Layer 3 network policy that a developer can enforce on any infrastructure.
//!
//! This is the floor plan; `tests/it/architecture.rs` holds it. A room imports only from the rooms
//! named behind it, all of them above it.
//!
//! | room | what it is for | may import |
//! |---|---|---|
//! | [`types`] | vocabulary: ids, names, prefixes, keys, serials | - |
//! | [`wire`] | bytes to types and back: GUE, inner IP and L4 views, control messages | types |
//! | [`api`] | the contract between server, agents and ovctl: versioned serde structs | types |
//! | [`policy`] | intent + inventory to one table per node; can, explain. Pure | types, api |
//! | [`keys`] | derivation, epochs, rotation steps. Pure | types |
//! | [`forward`] | one packet's facts in, one verdict out; the flow table. Pure | types, wire, keys |
//! | [`probe`] | when to probe, what answers mean. Pure | types, wire |
//! | [`doctor`] | facts of a machine in, what is wrong with it out. Pure | types, wire, api |
//! | [`sys`] | the kernel and all `unsafe`: TUN, UDP batches, routes | types, wire |
//! | [`dataplane`] | the three hallways on OS threads: egress, ingress, transit | types, wire, forward, sys |
//! | [`guard`] | desired firewall rules (pure), rendering, apply and sweep | types, sys |
//! | [`pin`] | TLS that trusts exactly one server key | types |
//! | [`agent`] | pull, persist, turn tables into snapshots; report; drive probes | types, wire, api, keys, forward, probe, pin |
//! | [`local`] | the unix-socket API of ovd and ovsap | types, api |
//! | [`health`] | the health port: asks the program beside ovd | types |
//! | [`dns`] | answers overlay names, passes the rest on | types, sys |
//! | [`control`] | the coordination server: routes, auth, store, watch, rotation | types, api, policy, keys |
//! | [`config`] | TOML to one validated config per program | types |
//! | [`cli`] | arguments of all programs; one file per noun; tables and JSON | types, api, config, policy, pin |
//! | [`telemetry`] | logs | types |
//! | [`app`] | builds each program from rooms, owns every task and thread | all |
//!
//! Pure rooms (`types`, `wire`, `api`, `policy`, `keys`, `forward`, `probe`, `doctor`) own no clock, no socket
//! and no thread: `now` is passed in. `unsafe` lives in [`sys`] alone.

pub mod agent;
pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod dns;
pub mod doctor;
pub mod forward;
pub mod guard;
pub mod health;
pub mod keys;
pub mod local;
pub mod pin;
pub mod policy;
pub mod probe;
pub mod sys;
pub mod telemetry;
pub mod types;
pub mod wire;

//! Builds each program from rooms, owns every task and thread, and shuts down in order. The only room
//! that knows them all.

#![forbid(unsafe_code)]

#[cfg(test)]
mod agreement;
mod answers;
mod applier;
mod backup;
mod control_loop;
mod daemon;
mod devices;
mod doctor;
mod down;
mod endpoints;
mod errands;
mod guard_command;
mod guarding;
mod guessing;
mod handover;
mod naming;
pub mod node;
mod outside;
pub mod ovctl;
pub mod ovd;
pub mod ovsap;
mod ping;
mod roaming;
pub mod serve;
mod service_manager;
mod shutdown;
mod unit;
mod up;

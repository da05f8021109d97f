//! Builds each program from rooms, owns every task, and shuts down in order.

pub mod serve;

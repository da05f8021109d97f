//! The three hallways, on OS threads: no lock, no channel, no allocation per packet.

pub mod publish;

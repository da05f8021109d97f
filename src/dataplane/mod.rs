//! The three hallways, on OS threads.
//!
//! 1. **egress** (`ovd`, a thread for each TUN): a batch from the TUN; facts; verdicts, one for each
//!    large packet; cutting; trains with the GUE headers to the UDP socket.
//! 2. **ingress** (`ovd`, one thread): trains from the UDP socket; of each datagram header, outer
//!    source, facts, verdict, ECN; runs of one flow to the TUN, one write each.
//! 3. **transit** (`ovsap`, one thread): trains from the UDP socket; of each datagram header, outer
//!    source, facts, verdict; what passes as trains by hop, size, TOS and TTL (less one).
//!
//! That is one lane. Further lanes are the same once more: a socket of the same address, a queue of
//! each device, threads and counters of their own. They share the snapshot and the flow table, so that
//! a reply is known on whichever lane it comes.
//!
//! Every packet is first judged, a pure function over bytes, and then put where `sys` groups what
//! leaves. Sealed hops will stand around the judging: `open` before it, `seal` after it; the places
//! are marked.
//!
//! Per packet there is no lock, no channel, no allocation and no log; the snapshot, the devices and
//! the time are read once a batch. Control messages leave the hallway by a bounded channel, under a
//! budget for sources that the node does not know; so do the facts of refused opening packets
//! and of packets that are too long, for whoever answers it or tells their source (`notice`).
//!
//! ```text
//! TUN ──> egress  ──> judge ──> send ──> UDP
//! TUN <── write  <── judge <── ingress <─┤         judge: wire::gue, wire::inner, forward::Snapshot
//!                    control <───────────┤
//! UDP <── send   <── judge <── transit <─┘
//! ```

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        reason = "packets must not panic"
    )
)]

mod control;
mod counters;
mod deliver;
mod ecn;
mod egress;
mod hallway;
mod ingress;
mod notice;
mod plane;
pub mod publish;
mod train;
mod transit;

pub use control::{ControlPort, ControlSender, PUNT_CAPACITY, Punted, Punter};
pub use counters::{Counters, HallwayCounters, Passed, Way};
pub use egress::{Egress, TracerDoor};
pub use hallway::{Basis, now};
pub use ingress::{Devices, Ingress};
pub use notice::{HostDoor, Listener, Origin, Refusal, Teller, Told};
pub use plane::{EntityPlane, SapPlane};
pub use transit::Transit;

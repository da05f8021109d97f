//! The kernel: TUN devices, UDP in batches, addresses and routes, wake-ups, the clock.
//!
//! The only room with `unsafe`. It moves bytes and knows nothing of policy; what the kernel refuses
//! becomes a [`SysError`] with a remedy at start, and an [`std::io::Error`] or a
//! [`crate::types::DropReason`] afterwards.
//!
//! | module | what |
//! |---|---|
//! | [`batch`] | the buffers that hallways work on |
//! | [`offload`] | cutting and joining packets, checksums: pure |
//! | [`tun`] | a TUN device, read in batches, with offloads where the kernel has them |
//! | [`udp`] | the data socket: trains of datagrams in and out, TTL and TOS of each packet |
//! | [`net`] | addresses, MTUs and routes, by netlink |
//! | [`address_watch`] | when addresses and routes change |
//! | [`nftables`] | whether anybody changed the packet filter; its messages |
//! | [`echo`] | ICMP echo requests |
//! | [`redirect`] | brings questions for name servers here |
//! | [`descriptors`] | what one process hands to the next |
//! | [`memory`] | memory that outlives a process |
//! | [`wake`] | gets a thread out of the call that it waits in |
//! | [`limits`] | what the kernel lets a process have |
//! | [`process`] | what the kernel is told about this process |
//! | [`clock`] | the only place that reads the time for packets |

#![allow(
    unsafe_code,
    reason = "this room owns the kernel's interfaces; each block says why it is sound"
)]
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

pub mod address_watch;
pub mod batch;
pub mod clock;
pub mod descriptors;
pub mod echo;
pub mod limits;
pub mod memory;
pub mod net;
pub mod nftables;
pub mod offload;
pub mod process;
pub mod redirect;
pub mod tun;
pub mod udp;
pub mod wake;

mod cmsg;
mod error;
mod netlink;
mod sockaddr;

pub(crate) use error::NET_ADMIN;
pub use error::SysError;

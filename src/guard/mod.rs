//! The guard: keeps packets of overlays on the overlays' devices, and others away from what this
//! machine serves.
//!
//! One nftables table of our own, `inet ovmesh`, for both families, replaced whole. [`rules`] decides
//! what stands in it from an [`Intent`], and is pure; [`render`](fn@render) writes it down for `nft`;
//! [`Table`] puts it in force, puts it back, and takes it away. Nobody else's table is touched.

#![forbid(unsafe_code)]

mod interference;
mod nft;
mod render;
mod rules;
mod services;
mod sockets;
mod table;

pub use interference::{Interference, interference};
pub use nft::{ForeignChain, chains, is_missing};
pub use render::render;
pub use rules::{Egress, Intent, Member, Outside, Rule, RuleName, rules};
pub use services::Services;
pub use sockets::{Sockets, sockets};
pub use table::{Condition, Count, Table, check_machine, counts, sweep};

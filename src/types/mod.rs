//! The vocabulary of ovmesh: ids, names, prefixes, keys, serials.
//!
//! Parsing happens in constructors, so a value that exists is valid. This room imports nothing of
//! ours, owns no clock and no socket.

mod cidr;
mod data_path;
mod dns_hook;
mod drop_reason;
mod duration;
mod guard;
mod health_target;
mod id;
mod instance;
mod key;
mod lanes;
mod name;
mod selector;
mod service;
mod tier;
mod version;

pub use cidr::{CidrBlock, CidrError};
pub use data_path::{DataPath, ParseDataPathError};
pub use dns_hook::{DnsHook, ParseDnsHookError};
pub use drop_reason::DropReason;
pub use duration::{HumanDuration, Timestamp};
pub use guard::{GuardEgress, GuardMode, ParseGuardError};
pub use health_target::{HealthQuestion, HealthTarget, ParseHealthTargetError};
pub use id::{LinkId, NodeId, NodeKind, OverlayId, RuleId, TracerId};
pub use instance::Instance;
pub use ipnet::IpNet as Prefix;
pub use key::{AuthorizationKey, Epoch, Generation, KeyVersion, Secret};
pub use lanes::{Lanes, ParseLanesError};
pub use name::{EntityName, Label, Name, OVERLAY_SUFFIX, ParseNameError};
pub use selector::{Selector, SelectorError};
pub use service::{PortRange, Protocol, Service, ServiceError};
pub use tier::Tier;
pub use version::{ApiVersion, Incarnation, Revision, Serial};

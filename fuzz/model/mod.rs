//! What must hold of any input: one module for each fuzz target. The targets and the replay of their
//! corpora (`tests/it/corpora.rs`) both come here, so that what was found once is looked for always.

pub mod coalesce;
pub mod control_decode;
pub mod gue_decode;
pub mod inner_parse;
mod naive;
pub mod offload;
pub mod transit;
pub mod vnet_header;

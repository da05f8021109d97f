//! What the fuzz targets check.

#[path = "model/mod.rs"]
pub mod model;

//! Tests of the whole room: small towns by hand, and random worlds against a naive model.

mod answers;
mod conformance;
mod documents;
mod lint;
mod offline;
mod outside;
mod paths;
mod preferences;
mod property;
mod scale;
mod selection;
mod suggestions;
mod tables;
mod touched;
mod why;

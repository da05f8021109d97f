//! Judges how a machine is set up for its overlays: facts in, findings out.
//!
//! [`Facts`] is what somebody else has gathered; each check is a function of it. Where a thing was not
//! looked at, or cannot be known, there is no finding about it.

mod daemon;
mod facts;
mod firewall;
mod names;
mod reach;
mod underlay;

#[cfg(test)]
mod tests;

pub use facts::{
    Chain, Clock, Daemon, Facts, Filter, Hook, HostRange, Lookup, Membership, Names, Overlay,
    ServerAnswer, State, Tool, Tun, Uplink, Way,
};

use crate::api::doctor::{Finding, Level};

/// Everything that can be said of `facts`, in the order of a packet's needs.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let checks = [
        daemon::membership,
        daemon::daemon,
        daemon::rights,
        daemon::state,
        reach::clock,
        reach::server,
        reach::saps,
        firewall::filters,
        firewall::guard,
        firewall::tools,
        underlay::mtu,
        underlay::narrow,
        underlay::conflicts,
        underlay::carrier_nat,
        underlay::forwarding,
        names::upstream,
        names::own,
    ];
    checks.iter().flat_map(|check| check(facts)).collect()
}

fn ok(subject: impl Into<String>, what: impl Into<String>) -> Finding {
    Finding { level: Level::Ok, subject: subject.into(), what: what.into(), fix: String::new() }
}

fn warning(subject: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) -> Finding {
    let (subject, what, fix) = (subject.into(), what.into(), fix.into());
    Finding { level: Level::Warning, subject, what, fix }
}

fn problem(subject: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) -> Finding {
    let (subject, what, fix) = (subject.into(), what.into(), fix.into());
    Finding { level: Level::Problem, subject, what, fix }
}

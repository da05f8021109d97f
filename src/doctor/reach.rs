//! Whom this machine reaches: the server, and the SaPs by real probes; and whether clocks agree.

use super::{Daemon, Facts, Hook, ok, problem, warning};
use crate::api::doctor::Finding;
use crate::types::NodeKind;

/// Clocks of good machines differ by less, the second that a `Date` is cut to included, in seconds.
const SKEW_SMALL_SECS: u64 = 5;

/// From here on rules and tokens end noticeably early or late, in seconds.
const SKEW_LARGE_SECS: u64 = 60;

/// What a wrong clock does.
const WRONG_CLOCK: &str = "rules and tokens that expire do so early or late";

/// How to set it right.
const SET_CLOCK: &str = "timedatectl set-ntp true, or: chronyc makestep";

pub(super) fn clock(facts: &Facts) -> Vec<Finding> {
    let here = facts.clock.here.0;
    if let Some(server) = facts.clock.server {
        let skew = here.abs_diff(server.0);
        let side = if here < server.0 { "behind" } else { "ahead of" };
        let what = format!("it is {skew} s {side} the server's: {WRONG_CLOCK}");
        return vec![if skew <= SKEW_SMALL_SECS {
            ok("clock", "it agrees with the server's")
        } else if skew <= SKEW_LARGE_SECS {
            warning("clock", what, SET_CLOCK)
        } else {
            problem("clock", what, SET_CLOCK)
        }];
    }
    match facts.clock.table_written {
        Some(written) if here < written.0 => vec![problem(
            "clock",
            format!(
                "it is {} s behind the time that the table here was written at: {WRONG_CLOCK}",
                written.0 - here
            ),
            SET_CLOCK,
        )],
        Some(_) | None => Vec::new(),
    }
}

/// Another URL of the same server is no loss as long as one answers.
pub(super) fn server(facts: &Facts) -> Vec<Finding> {
    let is_answered = facts.server.iter().any(|answer| answer.outcome.is_ok());
    facts
        .server
        .iter()
        .map(|answer| {
            let subject = format!("server {}", answer.url);
            match &answer.outcome {
                Ok(millis) => ok(subject, format!("it answered within {millis} ms")),
                Err((why, fix)) if is_answered => {
                    warning(subject, format!("{why}; another URL of it answers"), fix)
                }
                Err((why, fix)) => problem(
                    subject,
                    format!("{why}; what is allowed goes on, joins and changes wait"),
                    fix,
                ),
            }
        })
        .collect()
}

/// `ovd` asks each SaP all the time; without it nobody may, because a probe is signed.
pub(super) fn saps(facts: &Facts) -> Vec<Finding> {
    let Daemon::Answers(status) = &facts.daemon else { return Vec::new() };
    if status.kind == NodeKind::Sap || status.table.is_none() {
        return Vec::new();
    }
    if status.saps.is_empty() {
        return vec![warning(
            "saps",
            "there is none on this machine's list: only direct pairs can talk",
            "run one: ovctl token create --role sap, then ovsap run --join TOKEN",
        )];
    }
    let suspects = suspects(facts);
    status
        .saps
        .iter()
        .map(|sap| {
            let subject = format!("sap {}", sap.name);
            let Some(endpoint) = sap.endpoint else {
                return problem(
                    subject,
                    "nobody knows where it is",
                    "start it, or give it an address: ovsap run --endpoint IP",
                );
            };
            if sap.alive {
                let took = sap.round_trip_micros.map_or_else(String::new, |micros| {
                    format!(", round trip {}.{} ms", micros / 1000, micros % 1000 / 100)
                });
                return ok(subject, format!("{endpoint} answers{took}"));
            }
            problem(
                subject,
                format!(
                    "no answer from {endpoint}: it does not run, or something drops udp/{} on the way, \
                     here or there",
                    endpoint.port()
                ),
                format!(
                    "there: ovsap status; on the way: let udp/{} pass both ways{suspects}",
                    endpoint.port()
                ),
            )
        })
        .collect()
}

/// The filters of this machine that may be what drops packets.
fn suspects(facts: &Facts) -> String {
    let Ok(chains) = &facts.filter.chains else { return String::new() };
    let names: Vec<&str> = chains.iter().map(|chain| chain.name.as_str()).collect();
    if names.is_empty() && !facts.filter.has_legacy {
        return String::new();
    }
    let mut text = "; on this machine these filter: ".to_owned();
    text.push_str(&names.join(", "));
    if facts.filter.has_legacy {
        text.push_str(if names.is_empty() { "iptables-legacy" } else { ", iptables-legacy" });
    }
    let drops_in = chains.iter().any(|chain| chain.hook == Hook::Input && chain.drops);
    if drops_in {
        text.push_str(" (one drops all that no rule lets in)");
    }
    text
}

//! The daemon itself: whether it has joined, runs, and has what it needs to.

use super::{Daemon, Facts, Membership, Tun, ok, problem, warning};
use crate::api::doctor::Finding;

/// Below this much room tables may not fit, in bytes.
const ROOM_MIN_BYTES: u64 = 64 << 20;

pub(super) fn membership(facts: &Facts) -> Vec<Finding> {
    vec![match &facts.membership {
        Membership::Member(name) => ok("membership", format!("this machine is {name}")),
        Membership::None => warning(
            "membership",
            "this machine has not joined",
            "make a token on the server (ovctl token create), then: ovd run --join TOKEN",
        ),
        Membership::Unknown(why) => warning(
            "membership",
            format!("cannot tell whether this machine has joined: {why}"),
            "run this as root or as the daemon's user",
        ),
    }]
}

pub(super) fn daemon(facts: &Facts) -> Vec<Finding> {
    let status = match &facts.daemon {
        Daemon::Answers(status) => status,
        Daemon::Silent(why) => {
            let what = format!("it does not run here, or cannot be asked: {why}");
            return vec![match &facts.membership {
                Membership::Member(_) => problem("ovd", what, "systemctl start ovd, or: ovd run"),
                Membership::None | Membership::Unknown(_) => warning("ovd", what, ""),
            }];
        }
    };
    let mut found: Vec<Finding> =
        status.problems.iter().map(|line| problem("ovd", line, "ovd status")).collect();
    if status.table.is_none() {
        found.push(problem(
            "ovd",
            "it has no table yet: nothing may talk",
            "see what is said of the server",
        ));
    }
    if found.is_empty() {
        found.push(ok("ovd", format!("version {} runs and reports no problem", status.version)));
    }
    found
}

/// A daemon that runs with all its devices has shown that it may.
pub(super) fn rights(facts: &Facts) -> Vec<Finding> {
    if let Daemon::Answers(status) = &facts.daemon
        && status.overlays.iter().all(|overlay| overlay.device.is_some())
    {
        return vec![ok("rights", "ovd may make devices and routes")];
    }
    let mut found = Vec::new();
    match &facts.tun {
        Tun::Usable => {}
        Tun::Missing => found.push(problem(
            "/dev/net/tun",
            "it is not there: there can be no device for an overlay",
            "modprobe tun; for a container: --device /dev/net/tun --cap-add NET_ADMIN",
        )),
        Tun::Refused(why) => found.push(problem(
            "/dev/net/tun",
            format!("it cannot be opened: {why}"),
            "run as root; EPERM as root means that the device cgroup forbids it: allow `c 10:200 rwm`",
        )),
    }
    if !facts.net_admin {
        found.push(warning(
            "rights",
            "this command has no CAP_NET_ADMIN; ovd needs it",
            "run this as root, or grant it to ovd (systemd: AmbientCapabilities=CAP_NET_ADMIN)",
        ));
    }
    if found.is_empty() {
        found.push(ok("rights", "devices and routes can be made"));
    }
    found
}

pub(super) fn state(facts: &Facts) -> Vec<Finding> {
    let state = &facts.state;
    if let Some((what, fix)) = &state.fault {
        return vec![problem("state", what, fix)];
    }
    match state.free_bytes {
        Some(free) if free < ROOM_MIN_BYTES => vec![problem(
            "state",
            format!("{} MiB are left for {}: new tables may not fit", free >> 20, state.path),
            "make room on that disk",
        )],
        Some(free) => {
            vec![ok("state", format!("{}, {} MiB free", state.path, free >> 20))]
        }
        None => Vec::new(),
    }
}

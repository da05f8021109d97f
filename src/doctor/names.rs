//! Names, as programs on this machine ask for them.

use super::{Facts, Lookup, ok, problem, warning};
use crate::api::doctor::Finding;

pub(super) fn upstream(facts: &Facts) -> Vec<Finding> {
    let servers = &facts.names.servers;
    let silent: Vec<String> = servers
        .iter()
        .filter(|(_, answers)| !answers)
        .map(|(server, _)| server.to_string())
        .collect();
    let needs_names = facts.server.iter().any(|answer| answer.is_named);
    if servers.is_empty() {
        return vec![warning(
            "dns",
            "/etc/resolv.conf names no name server: programs here find no names outside of overlays",
            "name one there",
        )];
    }
    if silent.is_empty() {
        return vec![ok("dns", "the name servers of this machine answer")];
    }
    let what = format!("no answer from {}", silent.join(", "));
    let fix = "look at /etc/resolv.conf; with egress by rules allow udp/53 to them";
    vec![if silent.len() == servers.len() && needs_names {
        problem("dns", format!("{what}: the server's name cannot be looked up"), fix)
    } else {
        warning("dns", what, fix)
    }]
}

pub(super) fn own(facts: &Facts) -> Vec<Finding> {
    let Some((name, lookup)) = &facts.names.own else { return Vec::new() };
    vec![match lookup {
        Lookup::Found => ok("overlay names", format!("{name} is found, as programs ask for it")),
        Lookup::NotFound => warning(
            "overlay names",
            format!("programs on this machine do not find {name}: another name server answered"),
            "see `ovd status` for how names are hooked, and dns in ovd.toml",
        ),
        Lookup::Silence => warning(
            "overlay names",
            format!("nobody answered when asked for {name}"),
            "see what is said of dns",
        ),
    }]
}

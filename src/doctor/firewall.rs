//! Filters on this machine: others', which may drop wrapped packets, and the guard.

use super::{Chain, Daemon, Facts, Hook, ok, problem, warning};
use crate::api::doctor::Finding;
use crate::api::local::GuardStatus;
use crate::types::GuardMode;

/// Says nothing of what a chain's rules do: whether packets pass, the probes of SaPs show.
pub(super) fn filters(facts: &Facts) -> Vec<Finding> {
    let chains = match &facts.filter.chains {
        Ok(chains) => chains,
        Err((why, fix)) => {
            return vec![match facts.guard_mode {
                GuardMode::Off => {
                    warning("firewall", format!("nobody knows what filters here: {why}"), fix)
                }
                GuardMode::Ports | GuardMode::All => {
                    problem("firewall", format!("there can be no guard: {why}"), fix)
                }
            }];
        }
    };
    let mut found = Vec::new();
    let dropping =
        |hook| chains.iter().filter(move |chain: &&Chain| chain.hook == hook && chain.drops);
    for chain in dropping(Hook::Input) {
        found.push(warning(
            format!("firewall {}", chain.name),
            format!(
                "it drops what no rule lets in: what SaPs send arrives as answers to this machine, \
                 direct peers need a rule for udp/{}",
                facts.data_port
            ),
            format!(
                "let udp/{} in there (nft: udp dport {} accept)",
                facts.data_port, facts.data_port
            ),
        ));
    }
    for chain in dropping(Hook::Output) {
        found.push(warning(
            format!("firewall {}", chain.name),
            "it drops what no rule lets out",
            format!("let udp/{} and tcp to the server out there", facts.data_port),
        ));
    }
    if facts.filter.has_legacy {
        found.push(warning(
            "firewall iptables-legacy",
            "rules of the old iptables are in force, which nftables does not show",
            format!(
                "see iptables-legacy -S, ip6tables-legacy -S: udp/{} must pass",
                facts.data_port
            ),
        ));
    }
    if found.is_empty() {
        found.push(ok("firewall", "no other filter here drops by default"));
    }
    found
}

pub(super) fn guard(facts: &Facts) -> Vec<Finding> {
    let status = match &facts.daemon {
        Daemon::Answers(status) => status.guard.as_ref(),
        Daemon::Silent(_) => None,
    };
    vec![match status {
        Some(guard) => running(guard),
        None if facts.filter.has_guard => ok("guard", "its table stands, also while ovd is away"),
        None if facts.guard_mode == GuardMode::Off => off(),
        // Before the first start there is nothing to guard.
        None if facts.overlays.is_empty() => return Vec::new(),
        None => warning(
            "guard",
            "its table is not there: services are open on the underlay, and only routes keep packets of \
             overlays inside",
            "start ovd",
        ),
    }]
}

fn running(guard: &GuardStatus) -> Finding {
    if let Some(until) = guard.off_until {
        return warning("guard", format!("it is off until {until}, by order"), "ovd guard on");
    }
    if guard.mode == GuardMode::Off {
        return off();
    }
    if !guard.in_force {
        return problem(
            "guard",
            "it is not in force: packets of overlays wait for it",
            "ovd guard on, ovd guard check",
        );
    }
    if guard.underlay_open {
        return warning(
            "guard",
            "it closes no port: whoever reaches this machine reaches what it serves",
            "name its ports (ovctl entity port), give rules ports, or run ovd with --guard all",
        );
    }
    let mut what = format!("mode {} is in force", guard.mode);
    if guard.put_back > 0 {
        what.push_str(&format!("; put back {} times after others changed it", guard.put_back));
    }
    ok("guard", what)
}

fn off() -> Finding {
    warning(
        "guard",
        "it is off: services are open on the underlay, and only routes keep packets of overlays inside",
        "guard = \"ports\" in ovd.toml, unless others guard this machine",
    )
}

/// Those beside us, and what that means. Tailscale is looked at beside the ranges of overlays.
pub(super) fn tools(facts: &Facts) -> Vec<Finding> {
    let tools = facts.filter.tools.iter().filter(|tool| tool.name != "Tailscale");
    tools.map(|tool| ok(&tool.name, format!("is here: {}", tool.meaning))).collect()
}

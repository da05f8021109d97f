//! The guard's table, written down for `nft`. Pure.

use std::fmt::Write as _;

use super::rules::{Chain, Rule, RuleName, Verdict};

/// What the table is called; its family is `inet`.
pub(super) const TABLE: &str = "ovmesh";

impl Chain {
    const ALL: [Self; 4] = [Self::Prerouting, Self::Input, Self::Forward, Self::Output];

    fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
        }
    }

    fn priority(self) -> i32 {
        match self {
            Self::Prerouting => -300,
            Self::Input | Self::Forward | Self::Output => -10,
        }
    }
}

impl Verdict {
    fn words(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
            Self::Reject => "reject with icmpx type admin-prohibited",
            Self::ClampMss => "tcp option maxseg size set rt mtu",
        }
    }
}

/// One transaction: whatever stood in the table is replaced, and there is no moment without rules. Counters
/// that are there already go on.
#[must_use]
pub fn render(rules: &[Rule]) -> String {
    let mut text = format!("add table inet {TABLE}\nflush table inet {TABLE}\n");
    for name in RuleName::ALL {
        let _ = writeln!(text, "add counter inet {TABLE} {}", name.name());
    }
    for chain in Chain::ALL {
        let (name, priority) = (chain.name(), chain.priority());
        let _ = writeln!(
            text,
            "add chain inet {TABLE} {name} {{ type filter hook {name} priority {priority}; policy accept; }}"
        );
    }
    for Rule { chain, name, condition, verdict } in rules {
        let _ = writeln!(
            text,
            "add rule inet {TABLE} {} {} counter name {} {}",
            chain.name(),
            condition.trim(),
            name.name(),
            verdict.words()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_a_line_after_its_chain_and_its_counter() {
        let rule = Rule {
            chain: Chain::Input,
            name: RuleName::Closed,
            condition: "iifname != { \"lo\" } ".to_owned(),
            verdict: Verdict::Drop,
        };

        let text = render(&[rule]);

        let at = |line: &str| text.lines().position(|found| found == line).unwrap();
        let rule = at("add rule inet ovmesh input iifname != { \"lo\" } counter name closed drop");
        assert!(at("add table inet ovmesh") < at("flush table inet ovmesh"));
        assert!(at("add counter inet ovmesh closed") < rule);
        let chain =
            "add chain inet ovmesh input { type filter hook input priority -10; policy accept; }";
        assert!(at(chain) < rule);
    }
}

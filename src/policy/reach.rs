//! What may be opened between two ends, in one canonical form, so that two policies can be compared
//! by what they do and not by how they are written.

use std::collections::BTreeSet;
use std::fmt;

use super::judge::{End, Overview};
use super::scene::Scene;
use super::span::{Span, without};
use crate::types::Protocol;

/// Protocols and ports, each once: equal exactly when the same flows may be opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach(Vec<Block>);

/// Neighbouring protocols with the same ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    protocols: (u8, u8),
    /// Sorted, apart from each other.
    ports: Vec<(u16, u16)>,
}

impl Reach {
    /// What `from` may open to `to`.
    #[must_use]
    pub fn between(scene: &Scene, from: &End, to: &End) -> Self {
        Self::seen(&scene.overview(), from, to)
    }

    /// As [`Self::between`], for many pairs of one scene.
    pub(super) fn seen(overview: &Overview<'_>, from: &End, to: &End) -> Self {
        Self::of(&overview.reach(from, to))
    }

    pub(super) fn of(spans: &[Span]) -> Self {
        let starts: BTreeSet<u16> = spans
            .iter()
            .flat_map(|span| [u16::from(span.protocols.0), u16::from(span.protocols.1) + 1])
            .collect();
        let mut blocks: Vec<Block> = Vec::new();
        for (first, next) in starts.iter().zip(starts.iter().skip(1)) {
            let (Ok(first), Ok(last)) = (u8::try_from(*first), u8::try_from(*next - 1)) else {
                continue;
            };
            let covering = spans.iter().filter(|s| s.protocols.0 <= first && last <= s.protocols.1);
            let ports = merged(covering.map(|span| span.ports).collect());
            match blocks.last_mut() {
                Some(block)
                    if block.ports == ports
                        && u16::from(block.protocols.1) + 1 == u16::from(first) =>
                {
                    block.protocols.1 = last;
                }
                Some(_) | None if !ports.is_empty() => {
                    blocks.push(Block { protocols: (first, last), ports });
                }
                Some(_) | None => {}
            }
        }
        Self(blocks)
    }

    fn spans(&self) -> Vec<Span> {
        let spans = self.0.iter().flat_map(|block| {
            block.ports.iter().map(|ports| Span { protocols: block.protocols, ports: *ports })
        });
        spans.collect()
    }

    /// What this has and `other` has not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self::of(&without(self.spans(), &other.spans()))
    }

    /// Whether nothing may be opened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether everything may be opened.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::of(&[Span::ALL])
    }

    /// As rules spell it: `tcp/80`, `udp`, `icmp`; `any` for everything, `any but tcp/22` where that is
    /// shorter.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        if self.is_everything() {
            return vec!["any".to_owned()];
        }
        let plain: Vec<String> = self.0.iter().flat_map(Block::words).collect();
        let rest = Self::of(&[Span::ALL]).without(self);
        let but: Vec<String> = rest.0.iter().flat_map(Block::words).collect();
        if but.len() < plain.len() { vec![format!("any but {}", but.join(","))] } else { plain }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(","))
    }
}

impl Block {
    fn words(&self) -> Vec<String> {
        let (first, last) = self.protocols;
        let all_ports = self.ports == [(0, u16::MAX)];
        if first != last {
            return match all_ports {
                true => vec![format!("{first}-{last}")],
                // Only what is cut out of everything looks like this.
                false => (first..=last)
                    .flat_map(|one| Self { protocols: (one, one), ..self.clone() }.words())
                    .collect(),
            };
        }
        let name = match first {
            1 => "icmp".to_owned(),
            58 => "icmpv6".to_owned(),
            6 => Protocol::Tcp.to_string(),
            17 => Protocol::Udp.to_string(),
            132 => Protocol::Sctp.to_string(),
            number => number.to_string(),
        };
        if all_ports {
            return vec![name];
        }
        let one = |&(low, high): &(u16, u16)| {
            if low == high { format!("{name}/{low}") } else { format!("{name}/{low}-{high}") }
        };
        self.ports.iter().map(one).collect()
    }
}

/// Sorted ranges without overlap.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (low, high) in ranges {
        match merged.last_mut() {
            Some(last) if u32::from(low) <= u32::from(last.1) + 1 => last.1 = last.1.max(high),
            Some(_) | None => merged.push((low, high)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::span::spans;
    use crate::types::Service;

    fn of(texts: &[&str]) -> Reach {
        let services: Vec<Service> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Reach::of(&spans(&services, false))
    }

    #[test]
    fn the_same_flows_have_the_same_form_and_the_fewest_words() {
        for (texts, words) in [
            (&["tcp/80", "tcp/81-90", "tcp/85-99"][..], "tcp/80-99"),
            (&["udp", "tcp", "udp/53"], "tcp,udp"),
            (&["icmp", "47", "sctp/1"], "icmp,47,sctp/1"),
        ] {
            assert_eq!(of(texts).to_string(), words);
        }
        let all = Reach::of(&[Span::ALL]);
        assert_eq!(all.to_string(), "any");
        assert_eq!(all.without(&of(&["tcp/22"])).to_string(), "any but tcp/22");
        assert_eq!(of(&["tcp/1-10"]).without(&of(&["tcp/3-4"])).to_string(), "tcp/1-2,tcp/5-10");
        assert!(of(&["tcp/1-10"]).without(&of(&["tcp"])).is_empty());
        assert_eq!(of(&["tcp/5", "tcp/6"]), of(&["tcp/5-6"]));
    }
}

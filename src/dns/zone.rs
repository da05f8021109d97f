//! The names of a table: what they stand for, and the way back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{A, AAAA, ANY, Code, PTR, Record};
use crate::types::{EntityName, Name, OVERLAY_SUFFIX as SUFFIX, Prefix};

/// Everything that can be answered from one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    names: BTreeMap<String, Vec<IpAddr>>,
    /// Names that others stand below of.
    between: BTreeSet<String>,
    addresses: BTreeMap<IpAddr, String>,
    /// Whose addresses nobody else is asked about.
    ranges: Vec<Prefix>,
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is about us, and this is the answer.
    Answer(Code, Vec<Record>),
    /// It is about others.
    Forward,
}

impl Zone {
    /// Adds an overlay and those of its members that the table speaks of: whom this host may talk to, and
    /// who may talk to it.
    pub fn add_overlay<'a>(
        &mut self,
        overlay: &Name,
        range: Prefix,
        members: impl Iterator<Item = (&'a EntityName, IpAddr)>,
    ) {
        self.ranges.push(range);
        self.between.extend([SUFFIX.to_owned(), format!("{overlay}.{SUFFIX}")]);
        for (member, address) in members {
            self.between.insert(format!("{}.{overlay}.{SUFFIX}", member.namespace));
            let names = member.overlay_names(overlay);
            self.addresses.extend(names.first().map(|name| (address, name.clone())));
            for name in names {
                self.names.entry(name).or_default().push(address);
            }
        }
    }

    /// What `name` (lower case) is asked for. `turn` says which of several addresses comes first.
    pub(super) fn find(&self, name: &str, kind: u16, turn: usize) -> Verdict {
        if let Some(address) = reverse(name) {
            if !self.ranges.iter().any(|range| range.contains(&address)) {
                return Verdict::Forward;
            }
            let Some(name) = self.addresses.get(&address) else {
                return Verdict::Answer(Code::NoName, Vec::new());
            };
            let is_asked = [PTR, ANY].contains(&kind);
            let records = if is_asked { vec![Record::Name(name.clone())] } else { Vec::new() };
            return Verdict::Answer(Code::Ok, records);
        }
        if name != SUFFIX && !name.ends_with(&format!(".{SUFFIX}")) {
            return Verdict::Forward;
        }
        let Some(addresses) = self.names.get(name) else {
            let code = if self.between.contains(name) { Code::Ok } else { Code::NoName };
            return Verdict::Answer(code, Vec::new());
        };
        let is_asked = |address: &&IpAddr| match kind {
            A => address.is_ipv4(),
            AAAA => address.is_ipv6(),
            _ => kind == ANY,
        };
        let mut records: Vec<Record> =
            addresses.iter().filter(is_asked).map(|&address| Record::Address(address)).collect();
        if !records.is_empty() {
            let first = turn % records.len();
            records.rotate_left(first);
        }
        Verdict::Answer(Code::Ok, records)
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` is about.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = digits.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0_u128;
    let mut count = 0;
    for digit in digits.split('.') {
        let value =
            if digit.len() == 1 { u128::from_str_radix(digit, 16).ok()? } else { return None };
        bits = (bits >> 4) | (value << 124);
        count += 1;
    }
    (count == 32).then_some(IpAddr::V6(Ipv6Addr::from(bits)))
}

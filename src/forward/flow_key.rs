//! What names a flow.

use std::net::{IpAddr, Ipv6Addr};

use crate::wire::inner::Quoted;

/// What kind of key it is; never 0, which marks a free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A flow with ports, or without.
    Ports = 1,
    /// Echo requests of the lower address and their replies.
    EchoOfLower = 2,
    /// Echo requests of the higher address and their replies.
    EchoOfHigher = 3,
    /// A fragmented packet of the lower address.
    FragmentOfLower = 4,
    /// A fragmented packet of the higher address.
    FragmentOfHigher = 5,
}

/// Names a flow, the same in both directions. Packed as the slots hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowKey(pub(super) [u64; KEY_WORDS]);

/// Words of a key.
pub(super) const KEY_WORDS: usize = 6;

/// One end of a flow with its port or whatever stands for it.
pub(super) type End = (IpAddr, u16);

impl FlowKey {
    /// The flow between two ends with different addresses.
    pub(super) fn ports(overlay: u32, protocol: u8, a: End, b: End) -> Self {
        Self::new(overlay, protocol, a, b, [Kind::Ports; 2])
    }

    /// The echoes that `requester` asks `responder` for.
    pub(super) fn echo(overlay: u32, protocol: u8, requester: End, responder: IpAddr) -> Self {
        let kinds = [Kind::EchoOfLower, Kind::EchoOfHigher];
        Self::new(overlay, protocol, requester, (responder, 0), kinds)
    }

    /// The fragments of one packet.
    pub(super) fn fragment(
        overlay: u32,
        protocol: u8,
        from: IpAddr,
        to: IpAddr,
        identification: u32,
    ) -> Self {
        let (high, low) = ((identification >> 16) as u16, identification as u16);
        let kinds = [Kind::FragmentOfLower, Kind::FragmentOfHigher];
        Self::new(overlay, protocol, (from, high), (to, low), kinds)
    }

    /// `kinds`: where `a` is the lower one, and where it is the higher one.
    fn new(overlay: u32, protocol: u8, a: End, b: End, kinds: [Kind; 2]) -> Self {
        let [if_lower, if_higher] = kinds;
        let (low, high, kind) =
            if is_lower(a.0, b.0) { (a, b, if_lower) } else { (b, a, if_higher) };
        let [l0, l1] = words(low.0);
        let [h0, h1] = words(high.0);
        let ports = u64::from(low.1) << 16 | u64::from(high.1);
        let meta = u64::from(overlay) << 32 | u64::from(protocol) << 8 | kind as u64;
        Self([l0, l1, h0, h1, ports, meta])
    }

    /// Whether it is such as the functions above make of a flow: no free slot, no fragment, ends in their
    /// order.
    pub(super) fn is_flow(&self) -> bool {
        let [l0, l1, h0, h1, _, meta] = self.0;
        let kind = meta & 0xFF;
        (Kind::Ports as u64..=Kind::EchoOfHigher as u64).contains(&kind) && [l0, l1] < [h0, h1]
    }

    /// What the quota of the starter counts under.
    pub(super) fn starter(&self, is_lower: bool) -> (u64, u64, u64) {
        let [l0, l1, h0, h1, _, meta] = self.0;
        if is_lower { (l0, l1, meta >> 32) } else { (h0, h1, meta >> 32) }
    }

    /// The lower and the higher address.
    pub(super) fn ends(&self) -> (IpAddr, IpAddr) {
        let [l0, l1, h0, h1, ..] = self.0;
        let address = |high: u64, low: u64| {
            let bits = u128::from(high) << 64 | u128::from(low);
            IpAddr::V6(Ipv6Addr::from(bits)).to_canonical()
        };
        (address(l0, l1), address(h0, h1))
    }

    /// The flow as the opening packet of its starter names it; nothing for what is no flow.
    pub(super) fn opened(&self, starter_is_lower: bool) -> Option<Quoted> {
        let [.., ports, meta] = self.0;
        let (low, high) = self.ends();
        let (low_port, high_port) = ((ports >> 16) as u16, ports as u16);
        let (source, destination, source_port, destination_port) = if starter_is_lower {
            (low, high, low_port, high_port)
        } else {
            (high, low, high_port, low_port)
        };
        let protocol = (meta >> 8) as u8;
        self.is_flow().then_some(Quoted {
            source,
            destination,
            protocol,
            source_port,
            destination_port,
        })
    }
}

/// Whether `a` is the lower end of the flow between `a` and `b`.
pub(super) fn is_lower(a: IpAddr, b: IpAddr) -> bool {
    words(a) < words(b)
}

fn words(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
        IpAddr::V6(address) => u128::from(address),
    };
    [(bits >> 64) as u64, bits as u64]
}

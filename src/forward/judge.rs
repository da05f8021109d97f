//! Policy with state: whether a packet between two members passes (design sections 3.4, 3.6, 3.7).

use super::flows::{FlowKey, FlowTable, Found, Phase, is_lower};
use super::matcher::{Asked, Decision, Matcher};
use super::{Facts, Now};
use crate::types::DropReason;
use crate::wire::inner::{Fragment, Quoted, Upper};

const TCP: u8 = 6;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Where the question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At an end of the flow, which sees every packet: TCP has state too.
    End,
    /// At a SaP, which may see a TCP flow from its middle on.
    Sap,
}

/// The rules in force, and what is known of flows.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) matcher: &'a Matcher,
    pub(super) overlay: u32,
    pub(super) flows: &'a FlowTable,
    /// Changes whenever the rules in force may have.
    pub(super) token: u32,
    pub(super) now: Now,
    pub(super) place: Place,
}

/// A packet from one member to another.
#[derive(Clone, Copy)]
pub(super) struct Crossing<'a> {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) facts: &'a Facts,
}

/// A packet that passes.
pub(super) struct Passed<'a> {
    /// Its flow, where there is an entry.
    pub(super) flow: Option<Found<'a>>,
    /// Whether the other side started the flow.
    pub(super) is_reply: bool,
}

/// A flow as one of its packets names it.
pub(super) struct Named {
    pub(super) key: FlowKey,
    /// Whether the packet's source is the lower end.
    pub(super) source_is_lower: bool,
    /// What the packet asks for, seen as a forward packet.
    pub(super) forward: Asked,
    /// What its flow asked for, seen as a reply.
    pub(super) reverse: Asked,
}

impl<'a> Judge<'a> {
    /// Whether the packet passes.
    pub(super) fn pass(&self, crossing: Crossing<'_>) -> Result<Passed<'a>, DropReason> {
        let facts = crossing.facts;
        if let Fragment::Later { identification } = facts.fragment {
            return self.later_fragment(crossing, identification);
        }
        if facts.tracer.is_some() {
            return self.tracer(crossing);
        }
        let passed = match facts.upper {
            Upper::IcmpError { quoted, .. } => self.icmp_error(crossing, &quoted)?,
            Upper::Tcp { source_port, destination_port, flags } => {
                let named = self.named(facts, source_port, destination_port);
                match self.place {
                    Place::End => self.tcp(crossing, &named, flags)?,
                    Place::Sap => self.tcp_without_state(crossing, &named, flags)?,
                }
            }
            Upper::Ports { source_port, destination_port } => {
                let named = self.named(facts, source_port, destination_port);
                self.tracked(crossing, &named, true)?
            }
            Upper::Echo { is_request, identifier } => {
                let named = self.named_echo(facts, is_request, identifier);
                self.tracked(crossing, &named, is_request)?
            }
            // Ports behind extension headers: it may open anything, so it never passes as a reply,
            // and leaves nothing that a reply could pass by.
            Upper::Opaque if has_ports(facts.protocol) => {
                let asked = Asked { protocol: facts.protocol, port: None };
                self.forward(crossing, asked)?;
                Passed { flow: None, is_reply: false }
            }
            Upper::Opaque => {
                let named = self.named_opaque(facts);
                self.tracked(crossing, &named, true)?
            }
        };
        if let Fragment::First { identification } = facts.fragment {
            let key = self.fragment_key(facts, identification);
            let from_lower = is_lower(facts.source, facts.destination);
            self.flows.insert(&key, from_lower, Phase::Fragment, self.token, self.now);
        }
        Ok(passed)
    }

    /// A tracer: judged as the packet that opens a flow which nobody knows, and leaves no entry that a
    /// reply could pass by.
    fn tracer(&self, crossing: Crossing<'_>) -> Result<Passed<'a>, DropReason> {
        let named = self.named_by(crossing.facts).ok_or(DropReason::NoFlow)?;
        self.forward(crossing, named.forward)?;
        Ok(Passed { flow: None, is_reply: false })
    }

    /// Whether the packet belongs to a flow that is known already; says nothing about the rules. For
    /// TCP at a SaP, which remembers no flows of it, any segment but an opening one does: what it hits
    /// the destination knows.
    pub(super) fn has_flow(&self, facts: &Facts) -> bool {
        if let Fragment::Later { identification } = facts.fragment {
            return self.is_live(&self.fragment_key(facts, identification));
        }
        match facts.upper {
            Upper::Tcp { flags, .. } if is_opening(flags) => false,
            Upper::Tcp { .. } if self.place == Place::Sap => true,
            Upper::IcmpError { quoted, .. } if self.place == Place::Sap => {
                quoted.protocol == TCP || self.is_live(&self.quoted_key(&quoted))
            }
            Upper::IcmpError { quoted, .. } => self.is_live(&self.quoted_key(&quoted)),
            Upper::Tcp { source_port, destination_port, .. }
            | Upper::Ports { source_port, destination_port } => {
                self.is_live(&self.named(facts, source_port, destination_port).key)
            }
            Upper::Echo { is_request, identifier } => {
                self.is_live(&self.named_echo(facts, is_request, identifier).key)
            }
            Upper::Opaque => self.is_live(&self.named_opaque(facts).key),
        }
    }

    fn is_live(&self, key: &FlowKey) -> bool {
        self.flows.find(key, self.now).is_some_and(|flow| flow.phase() != Phase::Tombstone)
    }

    /// TCP at an end.
    fn tcp(
        &self,
        crossing: Crossing<'_>,
        named: &Named,
        flags: u8,
    ) -> Result<Passed<'a>, DropReason> {
        let is_opening = is_opening(flags);
        let Some(mut flow) = self.flows.find(&named.key, self.now) else {
            return self.tcp_without_entry(crossing, named, flags);
        };
        if flow.starter_is_lower() == named.source_is_lower {
            let phase = if flow.phase() != Phase::Tombstone {
                after(flow.phase(), flags, false)
            } else if is_opening {
                Phase::Opening
            } else {
                Phase::Established
            };
            return self.go_forward(crossing, named, flow, phase);
        }
        if flow.phase() == Phase::Tombstone {
            flow.touch(self.now);
            return Err(DropReason::FlowRevoked);
        }
        if is_opening {
            // The other side of a flow opens one with the same ports: by its own right or not at
            // all. It becomes the starter once the old flow is over.
            self.forward(crossing, named.forward)?;
            if flow.phase() != Phase::Closing {
                return Ok(Passed { flow: Some(flow), is_reply: true });
            }
            return Ok(self.open(named, named.source_is_lower, Phase::Opening));
        }
        self.still_allowed(crossing, named.reverse, &mut flow)?;
        self.guess_holds(crossing.from, crossing.to, named.forward, &mut flow)?;
        let phase = after(flow.phase(), flags, true);
        flow.update(phase, self.token, self.now);
        Ok(Passed { flow: Some(flow), is_reply: true })
    }

    fn tcp_without_entry(
        &self,
        crossing: Crossing<'_>,
        named: &Named,
        flags: u8,
    ) -> Result<Passed<'a>, DropReason> {
        let forward = self.decide(crossing.from, crossing.to, named.forward);
        if is_opening(flags) {
            refusal(forward)?;
            return Ok(self.open(named, named.source_is_lower, Phase::Opening));
        }
        let reverse_allows = || self.decide(crossing.to, crossing.from, named.reverse).is_allow();
        if !self.flows.is_in_grace(self.now) {
            if forward.is_allow() || reverse_allows() {
                return Err(DropReason::NoFlow);
            }
            refusal(forward)?;
        }
        let may_reply = reverse_allows();
        if forward.is_allow() {
            let phase = after(Phase::Established, flags, false);
            let mut passed = self.open(named, named.source_is_lower, phase);
            // Either side may have started it. Then both have to be allowed from here on, so that
            // neither's revoked flow lives on as a reply to the other.
            if may_reply && let Some(flow) = &mut passed.flow {
                flow.mark_guess();
            }
            return Ok(passed);
        }
        if may_reply {
            // Whoever sends this could make the other side pay for hours of entries: until that one
            // has answered, it counts as half-open.
            let phase = after(Phase::Answered, flags, true);
            let passed = self.open(named, !named.source_is_lower, phase);
            return Ok(Passed { is_reply: true, ..passed });
        }
        refusal(forward)?;
        Err(DropReason::NoFlow)
    }

    /// TCP at a SaP: a rule, or its reverse when it is not an opening segment.
    fn tcp_without_state(
        &self,
        crossing: Crossing<'_>,
        named: &Named,
        flags: u8,
    ) -> Result<Passed<'a>, DropReason> {
        if let Some(passed) = self.remembered(named, flags) {
            return Ok(passed);
        }
        let forward = self.decide(crossing.from, crossing.to, named.forward);
        let is_reply = !forward.is_allow();
        let passes = forward.is_allow()
            || !is_opening(flags)
                && self.decide(crossing.to, crossing.from, named.reverse).is_allow();
        if !passes {
            refusal(forward)?;
        }
        // A reply is remembered by what it answers. One that answers nothing leaves nothing: the entry
        // would be at the cost of the other side, which never asked.
        if !is_reply {
            return Ok(self.open(named, named.source_is_lower, Phase::Stateless));
        }
        Ok(Passed { flow: None, is_reply })
    }

    /// The answer that the rules in force gave to a segment of the same flow and direction: a memory
    /// of the verdict, never a state that the verdict depends on.
    fn remembered(&self, named: &Named, flags: u8) -> Option<Passed<'a>> {
        let flow = self.flows.find(&named.key, self.now)?;
        if flow.token() != self.token || flow.phase() != Phase::Stateless {
            return None;
        }
        let is_reply = flow.starter_is_lower() != named.source_is_lower;
        if is_reply && is_opening(flags) {
            return None;
        }
        flow.touch(self.now);
        Some(Passed { flow: Some(flow), is_reply })
    }

    /// Everything but TCP. `may_open` is false for what is always a reply.
    fn tracked(
        &self,
        crossing: Crossing<'_>,
        named: &Named,
        may_open: bool,
    ) -> Result<Passed<'a>, DropReason> {
        let Some(mut flow) = self.flows.find(&named.key, self.now) else {
            let forward = self.decide(crossing.from, crossing.to, named.forward);
            if may_open {
                refusal(forward)?;
                return Ok(self.open(named, named.source_is_lower, Phase::Stateless));
            }
            let is_known = forward.is_allow()
                || self.decide(crossing.to, crossing.from, named.reverse).is_allow();
            if !is_known {
                refusal(forward)?;
            }
            return Err(DropReason::NoFlow);
        };
        if flow.starter_is_lower() == named.source_is_lower {
            return self.go_forward(crossing, named, flow, Phase::Stateless);
        }
        if flow.phase() == Phase::Tombstone {
            flow.touch(self.now);
            return Err(DropReason::FlowRevoked);
        }
        self.still_allowed(crossing, named.reverse, &mut flow)?;
        flow.update(Phase::Stateless, self.token, self.now);
        Ok(Passed { flow: Some(flow), is_reply: true })
    }

    /// A packet of the side that started the flow: judged by the rules in force every time, which
    /// costs no lookup while they are those by which it was judged last. Where they allow it again,
    /// a tombstone is a flow again.
    fn go_forward(
        &self,
        crossing: Crossing<'_>,
        named: &Named,
        mut flow: Found<'a>,
        phase: Phase,
    ) -> Result<Passed<'a>, DropReason> {
        let was_allowed = flow.token() == self.token && flow.phase() != Phase::Tombstone;
        if !was_allowed && !self.decide(crossing.from, crossing.to, named.forward).is_allow() {
            flow.update(Phase::Tombstone, self.token, self.now);
            return Err(DropReason::FlowRevoked);
        }
        self.guess_holds(crossing.to, crossing.from, named.reverse, &mut flow)?;
        flow.update(phase, self.token, self.now);
        Ok(Passed { flow: Some(flow), is_reply: false })
    }

    /// Whether the other side, which started `flow`, still may. Asks the rules only when they may
    /// have changed since the flow was judged last.
    fn still_allowed(
        &self,
        crossing: Crossing<'_>,
        asked: Asked,
        flow: &mut Found<'a>,
    ) -> Result<(), DropReason> {
        let is_allowed =
            flow.token() == self.token || self.decide(crossing.to, crossing.from, asked).is_allow();
        if is_allowed {
            return Ok(());
        }
        flow.update(Phase::Tombstone, self.token, self.now);
        Err(DropReason::FlowRevoked)
    }

    /// Where nobody saw who started the flow: whether the side that was not taken for the starter
    /// would still be allowed to start it. The other direction is judged already.
    fn guess_holds(
        &self,
        from: u32,
        to: u32,
        asked: Asked,
        flow: &mut Found<'a>,
    ) -> Result<(), DropReason> {
        let holds = !flow.is_guess()
            || flow.token() == self.token && flow.phase() != Phase::Tombstone
            || self.decide(from, to, asked).is_allow();
        if holds {
            return Ok(());
        }
        flow.update(Phase::Tombstone, self.token, self.now);
        Err(DropReason::FlowRevoked)
    }

    /// An ICMP error passes when it quotes a live flow and goes from the quoted packet's destination
    /// to its source.
    fn icmp_error(
        &self,
        crossing: Crossing<'_>,
        quoted: &Quoted,
    ) -> Result<Passed<'a>, DropReason> {
        let facts = crossing.facts;
        if quoted.source != facts.destination || quoted.destination != facts.source {
            return Err(DropReason::NoFlow);
        }
        let Quoted { protocol, source_port, destination_port, .. } = *quoted;
        let sent = Asked { protocol, port: has_ports(protocol).then_some(destination_port) };
        let answered = Asked { protocol, port: has_ports(protocol).then_some(source_port) };
        let none = Passed { flow: None, is_reply: true };
        if protocol == TCP && self.place == Place::Sap {
            let is_known = self.decide(crossing.to, crossing.from, sent).is_allow()
                || self.decide(crossing.from, crossing.to, answered).is_allow();
            return if is_known { Ok(none) } else { Err(DropReason::NoFlow) };
        }
        let key = self.quoted_key(quoted);
        let mut flow = self.flows.find(&key, self.now).ok_or(DropReason::NoFlow)?;
        if flow.phase() == Phase::Tombstone {
            return Err(DropReason::FlowRevoked);
        }
        // The quoted packet went from `to` to `from`; who of the two started the flow?
        let quoted_is_forward =
            flow.starter_is_lower() == is_lower(quoted.source, quoted.destination);
        if quoted_is_forward {
            self.still_allowed(crossing, sent, &mut flow)?;
        } else {
            let turned = Crossing { from: crossing.to, to: crossing.from, facts };
            self.still_allowed(turned, answered, &mut flow)?;
        }
        Ok(none)
    }

    /// A fragment without ports: by rules that need none, or because its first part was allowed.
    fn later_fragment(
        &self,
        crossing: Crossing<'_>,
        identification: u32,
    ) -> Result<Passed<'a>, DropReason> {
        let facts = crossing.facts;
        let key = self.fragment_key(facts, identification);
        let first = self.flows.find(&key, self.now).filter(|first| first.token() == self.token);
        let asked = Asked { protocol: facts.protocol, port: None };
        if first.is_some() || self.decide(crossing.from, crossing.to, asked).is_allow() {
            return Ok(Passed { flow: first, is_reply: false });
        }
        Err(DropReason::Fragment)
    }

    fn open(&self, named: &Named, starter_is_lower: bool, phase: Phase) -> Passed<'a> {
        let flow = self.flows.insert(&named.key, starter_is_lower, phase, self.token, self.now);
        Passed { flow, is_reply: false }
    }

    fn forward(&self, crossing: Crossing<'_>, asked: Asked) -> Result<(), DropReason> {
        refusal(self.decide(crossing.from, crossing.to, asked))
    }

    pub(super) fn decide(&self, from: u32, to: u32, asked: Asked) -> Decision {
        self.matcher.decide(from, to, asked, self.now.wall)
    }

    pub(super) fn named(&self, facts: &Facts, source_port: u16, destination_port: u16) -> Named {
        let source = (facts.source, source_port);
        let destination = (facts.destination, destination_port);
        let protocol = facts.protocol;
        Named {
            key: FlowKey::ports(self.overlay, protocol, source, destination),
            source_is_lower: is_lower(facts.source, facts.destination),
            forward: Asked { protocol, port: Some(destination_port) },
            reverse: Asked { protocol, port: Some(source_port) },
        }
    }

    pub(super) fn named_opaque(&self, facts: &Facts) -> Named {
        let asked = Asked { protocol: facts.protocol, port: None };
        Named { forward: asked, reverse: asked, ..self.named(facts, 0, 0) }
    }

    pub(super) fn named_echo(&self, facts: &Facts, is_request: bool, identifier: u16) -> Named {
        let protocol = facts.protocol;
        let asked = Asked { protocol, port: None };
        let (requester, responder) = if is_request {
            (facts.source, facts.destination)
        } else {
            (facts.destination, facts.source)
        };
        Named {
            key: FlowKey::echo(self.overlay, protocol, (requester, identifier), responder),
            source_is_lower: is_lower(facts.source, facts.destination),
            forward: asked,
            reverse: asked,
        }
    }

    pub(super) fn quoted_key(&self, quoted: &Quoted) -> FlowKey {
        let Quoted { source, destination, protocol, source_port, destination_port } = *quoted;
        let is_icmp = protocol == if source.is_ipv4() { 1 } else { 58 };
        match (is_icmp, destination_port) {
            (true, 0) => FlowKey::echo(self.overlay, protocol, (source, source_port), destination),
            (true, identifier) => {
                FlowKey::echo(self.overlay, protocol, (destination, identifier), source)
            }
            (false, _) => FlowKey::ports(
                self.overlay,
                protocol,
                (source, source_port),
                (destination, destination_port),
            ),
        }
    }

    pub(super) fn fragment_key(&self, facts: &Facts, identification: u32) -> FlowKey {
        let Facts { source, destination, protocol, .. } = *facts;
        FlowKey::fragment(self.overlay, protocol, source, destination, identification)
    }
}

/// SYN set and ACK clear, whatever the other flags.
fn is_opening(flags: u8) -> bool {
    flags & (SYN | ACK) == SYN
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | 17 | 132)
}

/// The phase of a TCP flow after one more segment.
fn after(phase: Phase, flags: u8, is_reply: bool) -> Phase {
    if flags & (FIN | RST) != 0 {
        return Phase::Closing;
    }
    match phase {
        Phase::Closing if is_opening(flags) && !is_reply => Phase::Opening,
        Phase::Opening if is_reply && flags & ACK != 0 => Phase::Answered,
        Phase::Answered if !is_reply && flags & SYN == 0 => Phase::Established,
        Phase::Opening
        | Phase::Answered
        | Phase::Established
        | Phase::Closing
        | Phase::Stateless
        | Phase::Tombstone
        | Phase::Fragment => phase,
    }
}

fn refusal(decision: Decision) -> Result<(), DropReason> {
    match decision {
        Decision::Allow(_) | Decision::Open | Decision::Audit(_) => Ok(()),
        Decision::Deny(_) => Err(DropReason::DenyRule),
        Decision::Isolated(_) | Decision::NoRule => Err(DropReason::NoRule),
    }
}

//! Which packets tell whether a test holds on the real path.

use super::examine::Test;
use super::judge::{End, Overview};
use super::scene::Scene;
use super::span::{Span, overlap, without};
use crate::api::Problem;
use crate::types::NodeId;

/// Most packets for one test, which may ask for whole protocols.
const FLOWS_MAX: usize = 8;

/// What to send for a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// Nothing: why it cannot be tried.
    Impossible(String),
    /// The opening packets of flows between two members. A test that wants an allowed one has one here; one
    /// that wants all of them denied has one for each stretch that the policy tells apart.
    Flows {
        /// Who starts.
        from: NodeId,
        /// Who is asked.
        to: NodeId,
        /// Protocol number and destination port (0 where there is none).
        flows: Vec<(u8, u16)>,
    },
}

/// What to send for `test`.
///
/// # Errors
///
/// `Usage` for an end that is nobody.
pub fn trial(scene: &Scene, test: &Test) -> Result<Trial, Problem> {
    let wrong =
        |problem: Problem| Problem { what: format!("{}: {}", test.place, problem.what), ..problem };
    let (from, to) = (scene.end(&test.from).map_err(wrong)?, scene.end(&test.to).map_err(wrong)?);
    let outside =
        |end: &End| Trial::Impossible(format!("{} is outside the overlay", scene.end_name(end)));
    match (&from, &to) {
        (End::Outside(_), _) => Ok(outside(&from)),
        (_, End::Outside(_)) => Ok(outside(&to)),
        (End::Member(one), End::Member(other)) if one == other => {
            Ok(Trial::Impossible("packets of a host to itself never leave it".to_owned()))
        }
        (End::Member(source), End::Member(target)) => {
            let overview = scene.overview();
            let asked = overview.asked(test.service.as_ref(), &to);
            if asked.is_empty() {
                let why = format!("{} has no port of that name", scene.end_name(&to));
                return Ok(Trial::Impossible(why));
            }
            let traceable = overlap(&asked, &traceable(overview.is_ipv6(&to)));
            if traceable.is_empty() {
                let why = "only tcp, udp, sctp and icmp can be tried";
                return Ok(Trial::Impossible(why.to_owned()));
            }
            let flows = flows(&overview, (&from, &to), traceable, test.expected);
            Ok(Trial::Flows { from: *source, to: *target, flows })
        }
    }
}

fn flows(
    overview: &Overview<'_>,
    (from, to): (&End, &End),
    asked: Vec<Span>,
    is_one_enough: bool,
) -> Vec<(u8, u16)> {
    let reach = overview.reach(from, to);
    let open = overlap(&asked, &reach);
    let shut = without(asked, &reach);
    let mut flows: Vec<(u8, u16)> =
        open.iter().chain(&shut).map(|span| (span.protocols.0, span.ports.0)).collect();
    flows.truncate(if is_one_enough { 1 } else { FLOWS_MAX });
    flows
}

/// What tracers there are: protocols with ports, and echoes.
fn traceable(is_ipv6: bool) -> Vec<Span> {
    let one = |protocol: u8, ports| Span { protocols: (protocol, protocol), ports };
    let with_ports = [6, 17, 132].map(|protocol| one(protocol, (1, u16::MAX)));
    let echo = one(if is_ipv6 { 58 } else { 1 }, (0, 0));
    with_ports.into_iter().chain([echo]).collect()
}

//! What a change must not do by accident: cut the way that it was asked for by, or break tests that
//! held. Pure.
//!
//! The *operator's own access* is the connection that a change is asked for by, when it crosses an
//! overlay: both of its addresses are those of members, and the one that asks may open connections
//! to the server's port there. An admin on the server's unix socket, or on a network that is no
//! overlay, cannot be cut off by a policy.

use std::net::SocketAddr;

use super::listen::Way;
use super::selection;
use crate::api::{Problem, ProblemCode};
use crate::policy::{End, Scene, Test, World, examine, judge};
use crate::types::{NodeId, OverlayId, PortRange, Protocol, Service, Timestamp};

/// The way of who asks, through an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Road {
    overlay: OverlayId,
    from: NodeId,
    to: NodeId,
    server: SocketAddr,
}

/// The overlay and the two members that a connection is between; none for any other connection.
pub(crate) fn road(world: &World, way: Way) -> Option<Road> {
    let (from, to) = (way.from.to_canonical(), way.to.ip().to_canonical());
    let (overlay, _) = world
        .overlays
        .iter()
        .find(|(_, facts)| facts.cidr.contains(&from) && facts.cidr.contains(&to))?;
    let member = |address| {
        let has = |facts: &crate::policy::NodeFacts| facts.addresses.get(overlay) == Some(&address);
        world.nodes.iter().find(|(_, facts)| has(facts)).map(|(id, _)| *id)
    };
    let (from, to) = (member(from)?, member(to)?);
    (from != to).then_some(Road { overlay: *overlay, from, to, server: way.to })
}

/// Refuses a change after which the way is shut that was open.
///
/// # Errors
///
/// `Conflict`, with the option that accepts it.
pub(crate) fn refuse_cut(
    before: &World,
    after: &World,
    road: &Road,
    now: Timestamp,
) -> Result<(), Problem> {
    let port = PortRange { first: road.server.port(), last: road.server.port() };
    let service = Service::Ports(Protocol::Tcp, port);
    let (from, to) = (End::Member(road.from), End::Member(road.to));
    let verdict = |world: &World| {
        let is_there = |id: &NodeId| {
            let node = world.nodes.get(id);
            node.is_some_and(|node| node.addresses.contains_key(&road.overlay))
        };
        if !is_there(&road.from) || !is_there(&road.to) {
            return (false, "one of the two is no member any more".to_owned());
        }
        let is_held = |id: &NodeId| world.nodes.get(id).is_some_and(|node| node.is_quarantined);
        if is_held(&road.from) || is_held(&road.to) {
            return (false, "one of the two is in quarantine".to_owned());
        }
        let scene = Scene::of(world, road.overlay, now);
        judge(&scene, &from, &to, Some(&service))
            .map_or((false, String::new()), |verdict| (verdict.allowed, verdict.why))
    };
    if !verdict(before).0 {
        return Ok(());
    }
    let (allowed, why) = verdict(after);
    if allowed {
        return Ok(());
    }
    let name = |id: &NodeId| before.nodes.get(id).map(|node| node.name.to_string());
    let (from, to) = (name(&road.from).unwrap_or_default(), name(&road.to).unwrap_or_default());
    let overlay = selection::overlay_name(before, road.overlay);
    Err(Problem::new(
        ProblemCode::Conflict,
        "this would cut you off from the server; nothing was changed",
    )
    .why(format!(
        "you ask from {from} in the overlay {overlay}, and {from} could not reach {to} {service} any \
         more: {why}"
    ))
    .fix("add --accept-risk to go on all the same, best with --confirm-within 60s"))
}

/// Refuses a change that breaks a test of an overlay's policy that held before it. A test whose ends
/// are gone cannot be asked, and forbids nothing.
///
/// # Errors
///
/// `Findings`, with each test that would fail.
pub(crate) fn refuse_broken(
    before: &World,
    after: &World,
    overlay: OverlayId,
    tests: &[Test],
    now: Timestamp,
) -> Result<(), Problem> {
    if !after.overlays.contains_key(&overlay) {
        return Ok(());
    }
    let (old, new) = (Scene::of(before, overlay, now), Scene::of(after, overlay, now));
    let holds = |scene: &Scene, test: &Test| {
        examine(scene, [test]).ok().map(|examination| examination.failed == 0)
    };
    let broken: Vec<&Test> = tests
        .iter()
        .filter(|test| holds(&new, test) == Some(false) && holds(&old, test) != Some(false))
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    super::policies::refuse_failures(&examine(&new, broken)?)
}

//! Which SaP a pair goes over by default, and what is set for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::api::table::{OverlayTable, PathHops};
use crate::policy::testing::{FakeKeys, NOW, O, add_rule, endpoint, town};
use crate::policy::{Drain, PathSource, Paths, World, check_pair_path, compile};
use crate::types::NodeId;

const WEB: NodeId = NodeId(1);
const DB: NodeId = NodeId(2);
const CACHE: NodeId = NodeId(3);
const SAP1: NodeId = NodeId(11);
const SAP2: NodeId = NodeId(12);

fn label(world: &mut World, id: NodeId, label: &str) {
    Arc::make_mut(world.nodes.get_mut(&id).unwrap()).labels.insert(label.parse().unwrap());
}

fn leg(world: &mut World, id: NodeId, sap: NodeId, micros: u32) {
    Arc::make_mut(world.nodes.get_mut(&id).unwrap()).round_trips.insert(sap, micros);
}

/// The SaPs for a pair, which are the same in both directions.
fn order(world: &World, from: NodeId, to: NodeId) -> Vec<NodeId> {
    let saps = |from, to| -> Vec<NodeId> {
        let paths = Paths::new(world, O, NOW);
        let ways = paths.between(from, to);
        let hops = |ways: &[PathHops]| ways.iter().cloned().collect::<BTreeSet<_>>();
        assert_eq!(hops(&paths.among(from, to)), hops(&ways));
        ways.iter()
            .filter_map(|way| match way {
                PathHops::Via(chain) => chain.first().copied(),
                PathHops::Direct | PathHops::Elsewhere => None,
            })
            .collect()
    };
    assert_eq!(saps(from, to), saps(to, from));
    saps(from, to)
}

fn table(world: &World, id: NodeId) -> OverlayTable {
    compile(world, &FakeKeys::default(), NOW)[&id].overlays[0].clone()
}

#[test]
fn hosts_go_before_zones_and_zones_before_round_trips() {
    let mut world = town();
    assert_eq!(order(&world, WEB, DB), [SAP1, SAP2], "by age, where nothing is known");

    leg(&mut world, WEB, SAP1, 30_000);
    leg(&mut world, DB, SAP1, 1_000);
    leg(&mut world, WEB, SAP2, 10_000);
    assert_eq!(order(&world, WEB, DB), [SAP1, SAP2], "of the other one leg was not measured");
    leg(&mut world, DB, SAP2, 10_000);
    assert_eq!(order(&world, WEB, DB), [SAP2, SAP1], "20 ms over both legs, not 31");

    label(&mut world, WEB, "zone=fra");
    label(&mut world, SAP1, "zone=fra");
    assert_eq!(order(&world, WEB, DB), [SAP1, SAP2]);
    label(&mut world, DB, "topology.kubernetes.io/zone=ams");
    label(&mut world, SAP2, "zone=ams");
    assert_eq!(order(&world, WEB, DB), [SAP2, SAP1], "a zone each: round trips decide");
    assert_eq!(order(&world, WEB, CACHE), [SAP1, SAP2]);

    Arc::make_mut(world.nodes.get_mut(&SAP1).unwrap()).endpoints = vec![endpoint(2)];
    assert_eq!(order(&world, WEB, DB), [SAP1, SAP2], "on db's host");
}

#[test]
fn tables_name_other_orders_by_sets_and_only_where_they_are_other() {
    let mut world = town();
    add_rule(&mut world, 1, "allow any -> any");
    assert!(table(&world, WEB).preferences.is_empty());

    label(&mut world, SAP2, "zone=ams");
    label(&mut world, DB, "zone=ams");
    let web = table(&world, WEB);
    let [row] = web.preferences.as_slice() else { panic!("{:?}", web.preferences) };
    assert_eq!(row.saps, [SAP2, SAP1]);
    let with: Vec<NodeId> =
        web.sets[row.with as usize].iter().map(|member| web.members[*member as usize].id).collect();
    assert_eq!(with, [DB]);
    let db = table(&world, DB);
    assert_eq!(db.preferences.len(), 1, "db prefers it with everybody");
    assert_eq!(db.sets[db.preferences[0].with as usize].len(), 3);
    assert!(table(&world, SAP1).preferences.is_empty(), "a SaP takes what comes");
}

#[test]
fn what_was_set_goes_before_rules_and_measurements() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db via 11");
    let paths = |world: &World| {
        let paths = Paths::new(world, O, NOW);
        (paths.source(DB, WEB), paths.between(WEB, DB), paths.between(DB, WEB))
    };
    let via = |saps: &[u32]| vec![PathHops::Via(saps.iter().map(|id| NodeId(*id)).collect())];
    assert_eq!(
        paths(&world),
        (Some(PathSource::Rule(crate::types::RuleId(1))), via(&[11]), via(&[11]))
    );

    world.paths.insert((O, WEB, DB), PathHops::Via(vec![SAP2, SAP1]));
    assert_eq!(paths(&world), (Some(PathSource::Set), via(&[12, 11]), via(&[11, 12])));
    let rows = |id| table(&world, id).paths;
    assert_eq!(rows(WEB)[0].hops, PathHops::Via(vec![SAP2, SAP1]));
    assert_eq!(rows(SAP1)[0].hops, PathHops::Via(vec![SAP2, SAP1]));

    world.paths.insert((O, WEB, DB), PathHops::Direct);
    let web = table(&world, WEB);
    assert_eq!(web.paths.len(), 1);
    assert_eq!(web.paths[0].hops, PathHops::Direct);
    assert!(!web.members[1].endpoints.is_empty(), "it knows where db is");
}

#[test]
fn paths_that_nobody_could_take_are_refused() {
    let mut world = town();
    let check = |world: &World, path| check_pair_path(world, O, [WEB, DB], &path).is_ok();
    assert!(check(&world, PathHops::Direct) && check(&world, PathHops::Via(vec![SAP2, SAP1])));
    assert!(!check(&world, PathHops::Via(vec![SAP1, SAP2, SAP1])), "a circle");
    assert!(!check(&world, PathHops::Via(vec![DB])), "no SaP");
    assert!(!check(&world, PathHops::Via(Vec::new())));
    Arc::make_mut(world.nodes.get_mut(&DB).unwrap()).endpoints.clear();
    assert!(!check(&world, PathHops::Direct), "nobody knows where db is");
}

#[test]
fn a_drained_sap_comes_last_and_then_gets_nothing() {
    let mut world = town();
    add_rule(&mut world, 1, "allow any -> any");
    label(&mut world, WEB, "zone=fra");
    label(&mut world, SAP1, "zone=fra");

    Arc::make_mut(world.nodes.get_mut(&SAP1).unwrap()).drain = Drain::Leaving;
    assert_eq!(order(&world, WEB, DB), [SAP2, SAP1], "though it is in the same zone");
    let web = table(&world, WEB);
    assert_eq!((web.default_saps, web.empty_saps), (vec![SAP2, SAP1], Vec::new()));

    Arc::make_mut(world.nodes.get_mut(&SAP1).unwrap()).drain = Drain::Empty;
    let web = table(&world, WEB);
    assert_eq!((web.default_saps, web.empty_saps), (vec![SAP2, SAP1], vec![SAP1]));
}

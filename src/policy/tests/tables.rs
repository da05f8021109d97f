//! What is in tables, and what is not.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::table::{OverlayTable, PathHops, TableBody};
use crate::policy::compile;
use crate::policy::testing::{
    FakeKeys, NOW, O, Reader, add_entity, add_rule, add_sap, empty_town, ids, service, town,
};
use crate::policy::{World, next_expiry};
use crate::types::{Generation, Name, NodeId, Timestamp};

fn tables(world: &World) -> BTreeMap<NodeId, TableBody> {
    compile(world, &FakeKeys::default(), NOW)
}

fn overlay_of(world: &World, id: u32) -> OverlayTable {
    tables(world)[&NodeId(id)].overlays[0].clone()
}

#[test]
fn without_rules_a_table_knows_only_its_owner() {
    let web = overlay_of(&town(), 1);

    assert_eq!(Reader(&web).members(), ids(&[1]));
    assert_eq!(Reader(&web).targets(), ids(&[1]));
    assert!(web.rules.is_empty() && web.send_keys.is_empty() && web.sets.is_empty());
    assert_eq!(web.default_saps, [NodeId(11), NodeId(12)]);
    assert!(overlay_of(&town(), 11).members.is_empty(), "a SaP holds no keys without a rule");
}

#[test]
fn an_allowed_pair_gets_keys_at_both_ends_and_at_the_sap() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db tcp/5432");
    let (web, db, cache, sap) = (
        overlay_of(&world, 1),
        overlay_of(&world, 2),
        overlay_of(&world, 3),
        overlay_of(&world, 11),
    );

    assert_eq!(Reader(&web).sends(), ids(&[2]));
    assert_eq!(Reader(&db).sends(), ids(&[1]), "to reply");
    assert_eq!(Reader(&cache).members(), ids(&[3]));
    assert_eq!(Reader(&sap).targets(), ids(&[1, 2]), "Kb of both: replies are destined, too");
    assert_eq!(Reader(&sap).members(), ids(&[1, 2]));
    assert!(Reader(&web).reachable().is_empty(), "endpoints are for direct pairs");
    assert_eq!(Reader(&sap).reachable(), ids(&[1, 2]));
    assert!(Reader(&db).opens(NodeId(1), NodeId(2), 6, 5432, NOW));
    assert!(!Reader(&db).opens(NodeId(2), NodeId(1), 6, 5432, NOW));
}

#[test]
fn wide_rules_are_cut_at_entities_and_stay_sets_at_saps() {
    let mut world = town();
    add_rule(&mut world, 1, "allow role=web -> db");
    let web = overlay_of(&world, 1);
    let sap = overlay_of(&world, 11);

    assert_eq!(Reader(&web).members(), ids(&[1, 2]), "shop/web is in the rule, but no peer of web");
    assert_eq!((sap.rules.len(), &sap.sets[..]), (1, &[vec![0, 2], vec![1]][..]));
}

#[test]
fn tables_of_saps_grow_with_rules_and_not_with_pairs() {
    let mut world = empty_town();
    for id in 1..=200 {
        add_entity(&mut world, id, &format!("e{id}"), &["all=1"]);
    }
    add_sap(&mut world, 201, "sap", &[O]);
    add_rule(&mut world, 1, "allow all=1 -> any");
    add_rule(&mut world, 2, "deny e1 -> e2");
    let sap = overlay_of(&world, 201);

    assert_eq!((sap.rules.len(), sap.sets.len(), sap.members.len()), (2, 3, 200));
}

#[test]
fn a_denial_of_everything_takes_the_keys_away_and_one_of_ports_does_not() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db");
    add_rule(&mut world, 2, "deny web -> db tcp/22");
    assert_eq!(Reader(&overlay_of(&world, 1)).sends(), ids(&[2]));

    add_rule(&mut world, 3, "deny web -> any");
    assert_eq!(Reader(&overlay_of(&world, 1)).members(), ids(&[1]));
    assert_eq!(Reader(&overlay_of(&world, 11)).targets(), ids(&[]));

    add_rule(&mut world, 4, "allow db -> web");
    assert_eq!(Reader(&overlay_of(&world, 1)).sends(), ids(&[2]), "web replies to db");
    assert!(!Reader(&overlay_of(&world, 1)).opens(NodeId(1), NodeId(2), 6, 80, NOW));
}

#[test]
fn a_denial_that_ends_before_the_allow_leaves_the_keys() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db until 2000");
    add_rule(&mut world, 2, "deny web -> db until 1500");
    for id in [1, 2, 11] {
        let table = overlay_of(&world, id);
        assert!(!Reader(&table).opens(NodeId(1), NodeId(2), 6, 80, NOW), "{id}");
        assert!(Reader(&table).opens(NodeId(1), NodeId(2), 6, 80, Timestamp(1500)), "{id}");
    }
    assert_eq!(next_expiry(&world, NOW), Some(Timestamp(1500)));

    add_rule(&mut world, 2, "deny web -> db until 2000");
    assert!(Reader(&overlay_of(&world, 1)).sends().is_empty());
}

#[test]
fn a_rule_that_ends_now_is_out() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db until 1001");
    assert_eq!(overlay_of(&world, 1).rules[0].not_after, Some(Timestamp(1001)));

    add_rule(&mut world, 1, "allow web -> db until 1000");
    assert_eq!(
        tables(&world),
        tables(&{
            let mut without = world.clone();
            without.rules.clear();
            without
        })
    );
}

#[test]
fn named_ports_are_those_of_each_destination() {
    let mut world = town();
    let http = || Name::new("http").unwrap();
    for (id, port) in [(1, "tcp/80"), (2, "tcp/8080"), (4, "udp/80")] {
        let facts = Arc::make_mut(world.nodes.get_mut(&NodeId(id)).unwrap());
        facts.ports.insert(http(), [service(port)].into());
    }
    add_rule(&mut world, 1, "allow cache <-> any tcp/http");
    let sap = overlay_of(&world, 11);

    let opens = |to, port| Reader(&sap).opens(NodeId(3), NodeId(to), 6, port, NOW);
    assert!(opens(1, 80) && opens(2, 8080));
    assert!(!opens(1, 8080) && !opens(2, 80) && !opens(4, 80));
    assert!(!Reader(&sap).opens(NodeId(1), NodeId(3), 6, 80, NOW), "cache names no such port");
    assert_eq!(Reader(&sap).members(), ids(&[1, 2, 3]));
}

#[test]
fn a_direct_pair_knows_where_the_other_is_and_no_sap_carries_it() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db direct");
    add_rule(&mut world, 2, "allow web -> cache");
    let web = overlay_of(&world, 1);
    let sap = overlay_of(&world, 11);

    assert_eq!(Reader(&web).hops(NodeId(1), NodeId(2)), Some(PathHops::Direct));
    assert_eq!(Reader(&web).hops(NodeId(1), NodeId(3)), None);
    assert_eq!(Reader(&web).reachable(), ids(&[1, 2]));
    assert_eq!(Reader(&sap).members(), ids(&[1, 3]), "db has nothing to do with the SaP");

    add_rule(&mut world, 3, "allow any -> any icmp");
    let sap = overlay_of(&world, 11);
    assert_eq!(Reader(&sap).hops(NodeId(2), NodeId(1)), Some(PathHops::Elsewhere));
}

#[test]
fn a_chain_is_in_the_tables_of_its_saps_and_elsewhere_in_others() {
    let mut world = town();
    add_sap(&mut world, 13, "sap3", &[O]);
    add_rule(&mut world, 1, "allow db <-> web via 12,11");
    add_rule(&mut world, 2, "allow db -> cache");
    let all = tables(&world);
    let chain = |saps: &[u32]| Some(PathHops::Via(saps.iter().copied().map(NodeId).collect()));
    let hops = |id: u32, from: u32, to: u32| {
        Reader(&all[&NodeId(id)].overlays[0]).hops(NodeId(from), NodeId(to))
    };
    let neighbours =
        |id: u32| -> Vec<u32> { all[&NodeId(id)].saps.iter().map(|row| row.id.0).collect() };

    assert_eq!(hops(1, 1, 2), chain(&[11, 12]));
    assert_eq!(hops(2, 2, 1), chain(&[12, 11]));
    assert_eq!(hops(11, 2, 1), chain(&[12, 11]));
    assert_eq!(neighbours(11), [12]);
    assert_eq!(neighbours(12), [11]);
    assert_eq!(neighbours(13), [0; 0]);
    assert_eq!(neighbours(1), [11, 12, 13]);
    assert_eq!(Reader(&all[&NodeId(13)].overlays[0]).members(), ids(&[2, 3]));
}

#[test]
fn a_path_that_cannot_be_walked_leaves_the_pair_out() {
    for rule in ["allow web -> db via 11,13", "allow web -> db via 11,11", "allow web -> db via 2"]
    {
        let mut world = town();
        add_rule(&mut world, 1, "allow web -> cache");
        add_rule(&mut world, 2, rule);
        assert_eq!(Reader(&overlay_of(&world, 1)).members(), ids(&[1, 3]), "{rule}");
        assert_eq!(Reader(&overlay_of(&world, 11)).members(), ids(&[1, 3]), "{rule}");
    }
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db direct");
    assert_eq!(Reader(&overlay_of(&world, 1)).sends(), ids(&[2]));
    Arc::make_mut(world.nodes.get_mut(&NodeId(2)).unwrap()).endpoints.clear();
    assert!(Reader(&overlay_of(&world, 1)).sends().is_empty());
}

#[test]
fn a_member_with_itself_is_no_pair() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web <-> web");
    add_rule(&mut world, 2, "deny web -> any");
    let without = compile(&town(), &FakeKeys::default(), NOW);

    assert_eq!(tables(&world), without);
    add_rule(&mut world, 3, "allow cache -> any");
    assert!(!Reader(&overlay_of(&world, 3)).sends().contains(&NodeId(3)));
    let sap = overlay_of(&world, 11);
    let to = &sap.sets[sap.rules.iter().find(|row| row.id.0 == 3).unwrap().to as usize];
    assert_eq!(to.len(), 3, "cache is cut off the other side");
}

#[test]
fn pairs_rotated_alone_are_told_to_receivers_only() {
    let mut world = town();
    add_rule(&mut world, 1, "allow web -> db");
    let rotated = BTreeMap::from([
        ((NodeId(1), NodeId(2)), vec![Generation(0), Generation(1)]),
        ((NodeId(3), NodeId(2)), vec![Generation(5)]),
    ]);
    let tables = compile(&world, &FakeKeys { rotated }, NOW);
    let generations = |id: u32| {
        let rows = &tables[&NodeId(id)].overlays[0].pair_generations;
        rows.iter().map(|row| (row.from, row.to, row.accept.len())).collect::<Vec<_>>()
    };

    assert_eq!(generations(11), [(0, 1, 2)]);
    assert_eq!(generations(2), [(0, 1, 2)]);
    assert_eq!(generations(1), [], "the sender only stamps");
}

#[test]
fn links_are_told_to_both_ends_and_nobody_else() {
    let mut world = town();
    add_sap(&mut world, 13, "idle", &[]);
    let all = tables(&world);
    let peers =
        |id: u32| -> Vec<u32> { all[&NodeId(id)].links.iter().map(|row| row.peer.0).collect() };

    assert_eq!(peers(1), [11, 12]);
    assert_eq!(peers(11), [1, 2, 3, 4]);
    assert_eq!(peers(13), [0; 0]);
    assert!(all[&NodeId(13)].overlays.is_empty());
}

//! Which paths contradict each other.

use std::sync::Arc;

use crate::policy::testing::{NOW, O, add_entity, add_overlay, add_rule, add_sap, rule, town};
use crate::policy::{RuleConflict, check_rule};
use crate::types::{NodeId, OverlayId, RuleId};

fn check(there: &str, new: &str) -> Result<(), RuleConflict> {
    let mut world = town();
    add_rule(&mut world, 7, there);
    check_rule(&world, &rule(&world, new), NOW)
}

#[test]
fn two_rules_that_disagree_about_a_pair_are_refused() {
    for (there, new) in [
        ("allow web -> db direct", "allow web -> db via 11"),
        ("allow web -> db direct", "allow db -> web via 11"),
        ("allow web -> db via 11", "allow web -> db via 12"),
        ("allow web -> db via 11,12", "allow web -> db via 12,11"),
        ("allow web -> db via 11,12", "allow db -> web via 11,12"),
        ("allow any -> any direct", "deny role=web -> role=db via 11"),
        ("allow any -> any via 11,12", "allow db -> web via 11,12"),
        ("allow any -> any via 11,12", "allow any -> any via 12,11"),
        ("allow x=1 -> db direct", "allow x=1 -> db via 11"),
        ("allow x=1 -> db direct", "allow db -> x=1 via 11"),
        ("allow x=1 -> db via 11,12", "allow db -> x=1 via 11,12"),
    ] {
        let found = check(there, new);
        let is_path = matches!(&found, Err(RuleConflict::Path { other: RuleId(7), .. }));
        assert!(is_path, "{there} / {new}: {found:?}");
    }
}

#[test]
fn rules_that_agree_or_do_not_meet_stand() {
    for (there, new) in [
        ("allow web -> db direct", "allow web -> db"),
        ("allow web -> db", "allow web -> db via 11"),
        ("allow web -> db direct", "allow db <-> web tcp/80 direct"),
        ("allow web -> db via 11", "allow db -> web via 11"),
        ("allow web -> db via 11,12", "allow db -> web via 12,11"),
        ("allow web -> db via 11,12", "allow web -> db udp via 11,12"),
        ("allow any -> any via 11,12", "allow web -> db via 11,12"),
        ("allow any -> any via 11,12", "allow db -> web via 12,11"),
        ("allow any -> any via 11,12", "allow any -> any tcp via 11,12"),
        ("allow web -> db direct", "allow web -> cache via 11"),
        ("allow web -> db direct until 1000", "allow web -> db via 11"),
        ("allow x=1 -> db direct", "allow x=2 -> db via 11"),
        ("allow x=1 -> db via 11,12", "allow db -> x=1 via 12,11"),
        ("allow web -> any direct", "allow web -> web via 11"),
    ] {
        assert_eq!(check(there, new), Ok(()), "{there} / {new}");
    }
}

#[test]
fn a_conflict_names_the_rule_the_pair_and_the_path() {
    let error = check("allow role=web -> db via 11,12", "allow web -> any direct").unwrap_err();
    assert_eq!(error.to_string(), "r-7 already gives web and db the path via sap1,sap2");

    let error = check("allow x=1 -> db direct", "allow x=1 -> db via 11").unwrap_err();
    assert_eq!(error.to_string(), "r-7 already gives x=1 and db the path direct");
}

#[test]
fn chains_are_sound() {
    let mut world = town();
    add_overlay(&mut world, OverlayId(2), "six", "fd70::/64");
    add_sap(&mut world, 13, "sap3", &[OverlayId(2)]);
    for (new, why) in [
        ("allow web -> db via 11,12,11", "the path goes over sap1 twice"),
        ("allow web -> db via 11,14", "over n-14, which is no SaP"),
        ("allow web -> db via 2", "over db, which is no SaP"),
        ("allow web -> db via 13", "over sap3, which does not serve the overlay default"),
    ] {
        let error = check_rule(&world, &rule(&world, new), NOW).unwrap_err().to_string();
        assert!(error.contains(why), "{new}: {error}");
    }
    assert_eq!(check_rule(&world, &rule(&world, "allow web -> db via 11,12"), NOW), Ok(()));
    let mut lost = rule(&world, "allow web -> db");
    lost.overlay = OverlayId(9);
    assert_eq!(
        check_rule(&world, &lost, NOW),
        Err(RuleConflict::NoOverlay { overlay: OverlayId(9) })
    );
}

#[test]
fn a_direct_pair_needs_endpoints_at_both_ends() {
    let mut world = town();
    add_entity(&mut world, 5, "mute", &["mute=1"]);
    Arc::make_mut(world.nodes.get_mut(&NodeId(5)).unwrap()).endpoints.clear();
    for new in ["allow mute -> db direct", "allow db -> mute direct", "allow db <-> mute=1 direct"]
    {
        let error = check_rule(&world, &rule(&world, new), NOW).unwrap_err().to_string();
        assert!(error.starts_with("mute has no underlay endpoint"), "{error}");
    }
    for new in ["allow mute -> db", "allow mute -> mute direct", "allow web -> db direct"] {
        assert_eq!(check_rule(&world, &rule(&world, new), NOW), Ok(()), "{new}");
    }
    assert!(world.overlays.contains_key(&O));
}

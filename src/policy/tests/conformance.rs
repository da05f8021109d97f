//! The conformance cases: each is an inventory, NetworkPolicies, and what Kubernetes answers.

use std::path::Path;

use crate::policy::{Document, NetworkPolicy, Scene, examine, read_inventory};
use crate::types::Timestamp;

#[test]
fn every_case_is_answered_as_kubernetes_answers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/netpol");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();

    let (mut asked, mut wrong) = (0, Vec::new());
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let inventory = read_inventory(name, &text, Timestamp(0)).unwrap();
        let scene = Scene::new(&inventory, &[], None, Timestamp(0)).unwrap();
        let examination = examine(&scene, &inventory.tests).unwrap();
        asked += examination.results.len();
        for result in examination.results {
            if result.expected != result.allowed {
                wrong.push(format!("{}: {:?}", result.place, result));
            }
        }
    }

    assert!(files.len() >= 25 && asked > 200, "{} files, {asked} questions", files.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_policy_of_every_case_is_read_back_from_its_manifest_as_it_was() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/netpol");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for document in read_inventory("case", &text, Timestamp(0)).unwrap().policies {
            let Document::Network(policy, _) = document else { continue };
            let manifest = policy.manifest().to_string();
            let again = NetworkPolicy::from_manifest("manifest", &manifest).unwrap();
            assert_eq!((&again, again.manifest()), (policy.as_ref(), policy.manifest()));
            read += 1;
        }
    }
    assert!(read >= 25, "{read} policies");
}

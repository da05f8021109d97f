//! Finds the pods of a manifest.

use super::super::args::InjectArgs;
use super::pod;
use super::yaml::Node;
use crate::api::{Problem, ProblemCode};

/// What came of it, by name.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) injected: Vec<String>,
    pub(super) already: Vec<String>,
}

/// Deepest list of lists that is looked into.
const LISTS_MAX: usize = 8;

/// Adds `ovd` to every pod of a document.
///
/// # Errors
///
/// What cannot be injected, with the name of the object.
pub(super) fn inject(
    document: &mut Node,
    args: &InjectArgs,
    done: &mut Done,
) -> Result<(), Problem> {
    inject_below(document, args, done, 0)
}

fn inject_below(
    document: &mut Node,
    args: &InjectArgs,
    done: &mut Done,
    depth: usize,
) -> Result<(), Problem> {
    let Some(kind) = document.text_of("kind").map(str::to_owned) else {
        return Err(Problem::new(ProblemCode::Usage, "a document is no Kubernetes object")
            .why("it has no `kind`"));
    };
    if kind == "List" {
        if depth == LISTS_MAX {
            return Err(Problem::new(ProblemCode::Usage, "lists are nested too deep"));
        }
        if let Some(Node::List(items)) = document.get_mut("items") {
            for item in items {
                inject_below(item, args, done, depth + 1)?;
            }
        }
        return Ok(());
    }
    let name = document
        .get("metadata")
        .and_then(|metadata| metadata.text_of("name").or_else(|| metadata.text_of("generateName")));
    let name = format!("{kind} {}", name.unwrap_or("without a name"));
    let way: &[&str] = match kind.as_str() {
        "Pod" => &[],
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" => &["spec", "template"],
        "CronJob" => &["spec", "jobTemplate", "spec", "template"],
        _ => return pass(document, &name),
    };
    let mut template = document;
    for step in way {
        template = template.get_mut(step).ok_or_else(|| {
            Problem::new(ProblemCode::Usage, format!("{name} has no {}", way.join(".")))
        })?;
    }
    if pod::inject(template, &name, args)? {
        done.injected.push(name);
    } else {
        done.already.push(name);
    }
    Ok(())
}

/// Lets an object of another kind pass, unless it makes pods: one without `ovd` would look like one
/// with it.
fn pass(document: &Node, name: &str) -> Result<(), Problem> {
    let template = document.get("spec").and_then(|spec| spec.get("template"));
    let pods = [template, document.get("template")].into_iter().flatten();
    if pods.filter_map(|pod| pod.get("spec")).any(|spec| spec.get("containers").is_some()) {
        return Err(Problem::new(ProblemCode::Usage, format!("{name} makes pods in its own way"))
            .why("this kind is not known here, so its pods would be without ovd")
            .fix("inject what its controller makes, or take it out of the input"));
    }
    Ok(())
}

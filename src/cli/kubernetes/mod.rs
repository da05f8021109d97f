//! `ovctl kubernetes inject`: manifests in, the same manifests with `ovd` beside the program out.

mod inject;
mod pod;
mod yaml;

use std::io::Read;

use super::Outcome;
use super::args::InjectArgs;
use super::output::Output;
use crate::api::{Problem, ProblemCode};

/// The most that is read from stdin, in bytes.
const INPUT_MAX: u64 = 16 << 20;

/// Reads manifests from `input` and writes what came of them.
///
/// # Errors
///
/// What is no YAML, or cannot be injected, by name. Nothing is written then.
pub fn run(output: &mut Output, input: impl Read, args: &InjectArgs) -> Result<Outcome, Problem> {
    let mut text = String::new();
    input.take(INPUT_MAX + 1).read_to_string(&mut text).map_err(|error| {
        Problem::new(ProblemCode::Usage, "cannot read manifests from stdin").why(error.to_string())
    })?;
    if text.len() as u64 > INPUT_MAX {
        return Err(Problem::new(ProblemCode::Usage, "stdin does not end")
            .why(format!("more than {} MiB came", INPUT_MAX >> 20)));
    }
    let mut documents = yaml::read(&text)
        .map_err(|why| Problem::new(ProblemCode::Usage, "stdin is no YAML").why(why))?;
    let mut done = inject::Done::default();
    for document in &mut documents {
        inject::inject(document, args, &mut done)?;
    }
    if done.injected.is_empty() && done.already.is_empty() {
        return Err(Problem::new(ProblemCode::NotFound, "there is no pod in these manifests")
            .why("nothing on stdin is a Pod or has a template for one")
            .fix("give Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob"));
    }
    let text = yaml::write(&documents);
    // What is written means what was read, or is not written.
    if yaml::read(&text).as_ref() != Ok(&documents) {
        return Err(Problem::new(
            ProblemCode::Usage,
            "stdin has YAML that cannot be kept as it is",
        )
        .fix("pass it through `kubectl create --dry-run=client -o json -f -` first"));
    }
    output.raw(&text);
    for name in &done.injected {
        output.note(format!("{name}: ovd added"));
    }
    for name in &done.already {
        output.note(format!("{name}: has ovd already, left alone"));
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests;

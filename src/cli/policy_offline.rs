//! `ovctl policy test|matrix|lint|diff` over files: reads them, asks `policy`, shows the answer.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Outcome;
use super::args::{Format, MatrixForm, OfflineCommand, PolicyTestArgs, SceneArgs};
use super::output::{Output, Table, counted};
use crate::api::admin::Semantics;
use crate::api::{Problem, ProblemCode};
use crate::policy::{
    DOCUMENT_BYTES_MAX, Document, Examination, Inventory, Matrix, Scene, difference, examine, lint,
    read_inventory, read_policies, read_test_file,
};

/// Does what was asked.
///
/// # Errors
///
/// `Usage` for files that cannot be read or understood, with file and line.
pub fn run(output: &mut Output, command: &OfflineCommand) -> Result<Outcome, Problem> {
    match command {
        OfflineCommand::Test(args) => test(output, args),
        OfflineCommand::Matrix(args) => {
            let (scene, _) = Files::read(output, &args.scene)?.scene()?;
            Ok(show_matrix(output, &Matrix::new(&scene), args.form))
        }
        OfflineCommand::Lint(args) => {
            let (scene, _) = Files::read(output, &args.scene)?.scene()?;
            Ok(show_findings(output, &scene))
        }
        OfflineCommand::Diff(args) => {
            let after = Files::read(output, &args.scene)?;
            let before = Files { policies: policies(output, &args.old)?, ..after.clone() };
            Ok(show_difference(output, &before.scene()?.0, &after.scene()?.0))
        }
    }
}

/// What the files of a question hold.
#[derive(Clone)]
struct Files {
    inventory: Inventory,
    policies: Vec<Document>,
    semantics: Option<Semantics>,
    now: crate::types::Timestamp,
}

impl Files {
    fn read(output: &Output, args: &SceneArgs) -> Result<Self, Problem> {
        let Some(path) = &args.inventory else {
            return Err(Problem::new(ProblemCode::Usage, "--inventory is missing")
                .why("this version judges files alone, not the policy of a server")
                .fix("describe who is there in a file: see docs/policy.md"));
        };
        let inventory = read_inventory(&path.display().to_string(), &text(path)?, output.now())?;
        let semantics = args.semantics.map(Semantics::from);
        let policies = policies(output, &args.files)?;
        Ok(Self { inventory, policies, semantics, now: output.now() })
    }

    /// The scene, and the tests that its files hold.
    fn scene(&self) -> Result<(Scene, Vec<&crate::policy::Test>), Problem> {
        let scene = Scene::new(&self.inventory, &self.policies, self.semantics, self.now)?;
        let documents = self.inventory.policies.iter().chain(&self.policies);
        let in_policies = documents.flat_map(|document| match document {
            Document::Policy(policy) => policy.tests.as_slice(),
            Document::Network(_) => &[],
        });
        Ok((scene, self.inventory.tests.iter().chain(in_policies).collect()))
    }
}

fn policies(output: &Output, paths: &[PathBuf]) -> Result<Vec<Document>, Problem> {
    let mut documents = Vec::new();
    for path in paths {
        for file in files_in(path)? {
            let source = file.display().to_string();
            documents.extend(read_policies(&source, &text(&file)?, output.now())?);
        }
    }
    Ok(documents)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(ProblemCode::Usage, format!("cannot read {}", path.display()))
        .why(error.to_string())
}

/// The file itself, or the YAML and JSON files of a folder, by name.
fn files_in(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| unreadable(path, &error))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| unreadable(path, &error))?.path();
        let is_policy = file
            .extension()
            .and_then(std::ffi::OsStr::to_str)
            .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"));
        if is_policy && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Problem::new(ProblemCode::Usage, format!("no policy in {}", path.display()))
            .why("a folder is read for its files *.yaml, *.yml and *.json"));
    }
    Ok(files)
}

/// The text of a file; `-` is stdin. One byte more than allowed is read, so that what is too long is
/// noticed and never read whole.
fn text(path: &Path) -> Result<String, Problem> {
    let limit = DOCUMENT_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|error| unreadable(path, &error))?;
    String::from_utf8(bytes).map_err(|_| {
        Problem::new(ProblemCode::Usage, format!("cannot read {}", path.display()))
            .why("it is no UTF-8 text")
    })
}

fn test(output: &mut Output, args: &PolicyTestArgs) -> Result<Outcome, Problem> {
    let files = Files::read(output, &args.scene)?;
    let (scene, mut tests) = files.scene()?;
    let mut named = Vec::new();
    for path in &args.tests {
        named.extend(read_test_file(&path.display().to_string(), &text(path)?)?);
    }
    tests.extend(&named);
    if tests.is_empty() && args.tests.is_empty() {
        return Err(Problem::new(ProblemCode::Usage, "there is no test")
            .why("neither --tests nor a file given with -f or --inventory has any")
            .fix("write {from: shop/web, to: shop/db, protocol: tcp, port: 5432, allow: true}"));
    }
    let examination = examine(&scene, tests)?;
    show_examination(output, &examination);
    Ok(if examination.failed == 0 { Outcome::Done } else { Outcome::Findings })
}

fn show_examination(output: &mut Output, examination: &Examination) {
    match output.format() {
        Format::Json => output.json(&examination.json()),
        Format::Name | Format::Table => {
            let failed = examination.results.iter().filter(|r| r.expected != r.allowed);
            for result in failed {
                let word = |allowed: bool| if allowed { "allowed" } else { "denied" };
                let port = match &result.port {
                    Some(crate::policy::TestPort::Number(port)) => format!("/{port}"),
                    Some(crate::policy::TestPort::Name(name)) => format!("/{name}"),
                    None => String::new(),
                };
                let what = result.protocol.as_deref().unwrap_or(match result.port {
                    Some(_) => "tcp",
                    None => "anything",
                });
                output.line(format!(
                    "FAILED  {}: {} → {} {what}{port} is {} and must be {}",
                    result.place,
                    result.from,
                    result.to,
                    word(result.allowed),
                    word(result.expected)
                ));
                output.line(format!("        why: {}", result.why));
            }
            output.line(format!("{} passed, {} failed", examination.passed, examination.failed));
        }
    }
}

fn show_matrix(output: &mut Output, matrix: &Matrix, form: MatrixForm) -> Outcome {
    match (output.format(), form) {
        (Format::Json, _) | (_, MatrixForm::Json) => output.json(&matrix.json()),
        (_, MatrixForm::Csv) => output.raw(&matrix.csv()),
        (_, MatrixForm::Dot) => output.raw(&matrix.dot()),
        (Format::Name | Format::Table, MatrixForm::Table) => {
            let mut table = Table::new(&["FROM", "", "TO", "MAY OPEN"]);
            for pair in &matrix.pairs {
                let what = pair.reach.to_string();
                table.row([pair.from.clone(), "→".to_owned(), pair.to.clone(), what]);
            }
            output.table(&table);
            let members = matrix.members.len();
            let all = members * members.saturating_sub(1);
            let shut = all.saturating_sub(matrix.pairs.len());
            output.note(format!(
                "{} of {} may open something, {shut} nothing",
                counted(matrix.pairs.len() as u64, "pair"),
                all
            ));
        }
    }
    Outcome::Done
}

fn show_findings(output: &mut Output, scene: &Scene) -> Outcome {
    let findings = lint(scene);
    match output.format() {
        Format::Json => {
            output.json(&json!({ "apiVersion": "ovmesh/v1", "findings": findings }));
        }
        Format::Name | Format::Table => {
            let mut table = Table::new(&["FINDING", "RULE", "WHY"]);
            for finding in &findings {
                let word = finding.kind.word().to_owned();
                table.row([word, finding.rule.clone(), finding.why.clone()]);
            }
            output.table(&table);
            if findings.is_empty() {
                output.note("nothing found");
            }
        }
    }
    if findings.is_empty() { Outcome::Done } else { Outcome::Findings }
}

fn show_difference(output: &mut Output, before: &Scene, after: &Scene) -> Outcome {
    let changes = difference(before, after);
    match output.format() {
        Format::Json => {
            output.json(&json!({ "apiVersion": "ovmesh/v1", "changes": changes }));
        }
        Format::Name | Format::Table => {
            let mut table = Table::new(&["FROM", "", "TO", "GAINED", "LOST"]);
            for change in &changes {
                table.row([
                    change.from.clone(),
                    "→".to_owned(),
                    change.to.clone(),
                    change.gained.join(","),
                    change.lost.join(","),
                ]);
            }
            output.table(&table);
            if changes.is_empty() {
                output.note("the two policies let the same flows be opened between members");
            }
        }
    }
    if changes.is_empty() { Outcome::Done } else { Outcome::Findings }
}

//! `ovctl policy test|matrix|lint|diff` over files: reads them, asks `policy`, shows the answer.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::Outcome;
use super::args::{OfflineCommand, PolicyTestArgs, SceneArgs};
use super::output::Output;
use super::policy_answers;
use crate::api::admin::Semantics;
use crate::api::policy::{
    LintFinding, MatrixAnswer, MatrixEntry, PairDifference, PolicyFile, TestAnswer, TestFailure,
};
use crate::api::{Problem, ProblemCode};
use crate::policy::{
    DOCUMENT_BYTES_MAX, Document, Finding, Inventory, Matrix, MatrixPair, Observed, PairChange,
    Scene, difference, examine, lint, read_inventory, read_policies, read_test_file,
    refuse_nothing,
};
use crate::types::ApiVersion;

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
            let matrix = matrix_answer(Matrix::new(&scene));
            Ok(policy_answers::matrix(output, &matrix, args.form))
        }
        OfflineCommand::Lint(args) => {
            let (scene, _) = Files::read(output, &args.scene)?.scene()?;
            let findings: Vec<LintFinding> =
                lint(&scene, &Observed::default()).into_iter().map(finding).collect();
            Ok(policy_answers::findings(output, &findings))
        }
        OfflineCommand::Diff(args) => {
            let after = Files::read(output, &args.scene)?;
            let before = Files { policies: policies(output, &args.old)?, ..after.clone() };
            let changes = difference(&before.scene()?.0, &after.scene()?.0);
            let changes: Vec<PairDifference> = changes.into_iter().map(pair_difference).collect();
            Ok(policy_answers::differences(output, &changes))
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
            Document::Network(..) => &[],
        });
        Ok((scene, self.inventory.tests.iter().chain(in_policies).collect()))
    }
}

fn policies(output: &Output, paths: &[PathBuf]) -> Result<Vec<Document>, Problem> {
    let (mut documents, mut texts) = (Vec::new(), Vec::new());
    for path in paths {
        for file in files_in(path)? {
            let source = file.display().to_string();
            let text = text(&file)?;
            documents.extend(read_policies(&source, &text, output.now())?);
            texts.push((source, text));
        }
    }
    refuse_nothing(texts.iter().map(|(source, text)| (source.as_str(), text.as_str())))?;
    Ok(documents)
}

/// The files under `paths` as they are sent to a server.
///
/// # Errors
///
/// `Usage` for what cannot be read, or is longer than a server takes.
pub(crate) fn policy_files(paths: &[PathBuf]) -> Result<Vec<PolicyFile>, Problem> {
    let mut files = Vec::new();
    let mut bytes = 0;
    for path in paths {
        for file in files_in(path)? {
            let source = file.display().to_string();
            let text = text(&file)?;
            bytes += serde_json::to_string(&text).map_or(text.len(), |text| text.len());
            if bytes + SENT_BESIDE > DOCUMENT_BYTES_MAX {
                return Err(Problem::new(ProblemCode::Usage, format!("{source} is too large"))
                    .why("a server takes 1 MiB at once, and together the files have more")
                    .fix(
                        "say more with labels, groups and lists of ends; or use several overlays",
                    ));
            }
            files.push(PolicyFile { source, text });
        }
    }
    Ok(files)
}

/// Room in a request for what is not text of files.
const SENT_BESIDE: usize = 4096;

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
    let failures = examination.failures().into_iter();
    let failures = failures.map(|(what, why)| TestFailure { what, why }).collect();
    let examination = examination.json();
    let answer = TestAnswer { failures, examination, skipped: Vec::new() };
    Ok(policy_answers::tests(output, &answer))
}

fn matrix_answer(matrix: Matrix) -> MatrixAnswer {
    let entry = |pair: MatrixPair| MatrixEntry {
        services: pair.reach.words(),
        from: pair.from,
        to: pair.to,
    };
    MatrixAnswer {
        api_version: ApiVersion::V1,
        semantics: matrix.semantics,
        members: matrix.members,
        pairs: matrix.pairs.into_iter().map(entry).collect(),
    }
}

fn finding(finding: Finding) -> LintFinding {
    LintFinding { kind: finding.kind.word().to_owned(), rule: finding.rule, why: finding.why }
}

fn pair_difference(change: PairChange) -> PairDifference {
    let PairChange { from, to, gained, lost } = change;
    PairDifference { from, to, gained, lost }
}

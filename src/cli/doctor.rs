//! `ovd doctor`: what was found on this machine, a line each, with what to do.

use super::Outcome;
use super::args::Format;
use super::output::{Output, counted};
use crate::api::doctor::{Diagnosis, Finding, Level};

/// Shows what was found; a problem makes the command fail.
pub fn show(output: &mut Output, diagnosis: &Diagnosis) -> Outcome {
    let findings = &diagnosis.findings;
    match output.format() {
        Format::Json => output.json(&serde_json::json!(diagnosis)),
        Format::Name => {
            let bad = findings.iter().filter(|finding| finding.level != Level::Ok);
            bad.for_each(|finding| output.line(&finding.subject));
        }
        Format::Table => {
            lines(findings).iter().for_each(|line| output.line(line));
            output.note(summary(findings));
        }
    }
    if count(findings, Level::Problem) == 0 { Outcome::Done } else { Outcome::NotSo }
}

/// A finding is a line, and what to do about it another one below.
fn lines(findings: &[Finding]) -> Vec<String> {
    let width = findings.iter().map(|finding| finding.subject.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for Finding { level, subject, what, fix } in findings {
        lines.push(format!("{:<7}  {subject:<width$}  {what}", level.name()));
        if !fix.is_empty() {
            lines.push(format!("{:<7}  {:<width$}  do: {fix}", "", ""));
        }
    }
    lines
}

fn summary(findings: &[Finding]) -> String {
    let problems = counted(count(findings, Level::Problem), "problem");
    format!("{problems}, {}", counted(count(findings, Level::Warning), "warning"))
}

fn count(findings: &[Finding], level: Level) -> u64 {
    let found = findings.iter().filter(|finding| finding.level == level).count();
    u64::try_from(found).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::pages;
    use crate::types::ApiVersion;

    fn diagnosis(levels: &[Level]) -> Diagnosis {
        let finding = |level: &Level| Finding {
            level: *level,
            subject: "clock".to_owned(),
            what: "it is 90 s behind the server's".to_owned(),
            fix: if *level == Level::Ok { String::new() } else { "set it".to_owned() },
        };
        let findings = levels.iter().map(finding).collect();
        Diagnosis { api_version: ApiVersion::V1, findings }
    }

    #[test]
    fn each_line_says_what_to_do_and_a_problem_fails() {
        let (mut output, data, notes) = pages(Format::Table);

        let outcome = show(&mut output, &diagnosis(&[Level::Ok, Level::Warning, Level::Problem]));

        assert_eq!(outcome, Outcome::NotSo);
        assert_eq!(
            data.text(),
            "ok       clock  it is 90 s behind the server's\n\
             warning  clock  it is 90 s behind the server's\n                do: set it\n\
             problem  clock  it is 90 s behind the server's\n                do: set it\n"
        );
        assert_eq!(notes.text(), "1 problem, 1 warning\n");
    }

    #[test]
    fn warnings_do_not_fail_and_json_has_everything() {
        let (mut output, data, _) = pages(Format::Json);

        let outcome = show(&mut output, &diagnosis(&[Level::Ok, Level::Warning]));

        assert_eq!(outcome, Outcome::Done);
        let value: serde_json::Value = serde_json::from_str(&data.text()).unwrap();
        assert_eq!(value["apiVersion"], "ovmesh/v1");
        assert_eq!(value["findings"][1]["level"], "warning");
        assert_eq!(value["findings"][1]["fix"], "set it");
    }
}

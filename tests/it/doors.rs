//! What a newcomer does first: the demo, and the README's commands, word for word.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::binaries;

fn demo() -> PathBuf {
    binaries().netkit.with_file_name("demo")
}

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// The commands in the README's section "From nothing to a policed ping".
fn commands_by_hand() -> String {
    let readme = readme();
    let (_, section) = readme.split_once("## From nothing to a policed ping").unwrap();
    section.split("```").nth(1).unwrap().trim_start().to_owned()
}

/// Types into `make shell` and returns all that it printed.
fn type_into_shell(text: &str) -> String {
    let mut shell = Command::new(demo())
        .arg("--shell")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The end of its input ends the shell.
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn the_demo_plays_figure_1_as_table_1_says() {
    let output = Command::new(demo()).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);

    assert!(output.status.success(), "{text}{error}");
    assert!(text.contains("12 of 12 ordered pairs as Table I says"), "{text}");
}

#[test]
fn the_commands_of_the_readme_lead_to_a_policed_ping() {
    let commands = commands_by_hand();
    assert_eq!(commands.lines().count(), 5, "the README promises five commands:\n{commands}");

    let text = type_into_shell(&format!(
        "{commands}echo backwards\non s2 ping -c 2 -W 1 $(address s1)\necho done\n"
    ));

    let (forward, backwards) = text.split_once("backwards\n").unwrap_or((&text, ""));
    assert!(!forward.contains(" 100% packet loss") && forward.contains(" received"), "{text}");
    assert!(backwards.contains(" 100% packet loss"), "a rule has one direction:\n{text}");
}

#[test]
fn the_shell_shows_the_commands_of_the_readme() {
    let text = type_into_shell("exit\n");

    for command in commands_by_hand().lines() {
        assert!(text.contains(command), "`{command}` is not in:\n{text}");
    }
}

#[test]
fn the_readme_names_only_documents_that_exist() {
    let readme = readme();
    let links = readme.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let links: Vec<_> = links.filter(|link| !link.starts_with("http")).collect();
    assert!(links.len() > 5);

    for link in links {
        let (file, heading) = link.split_once('#').unwrap_or((link, ""));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        assert!(path.exists(), "{link} does not exist");
        if !heading.is_empty() {
            let text = fs::read_to_string(path).unwrap();
            let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
            let mut anchors = headings
                .map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"));
            assert!(anchors.any(|anchor| anchor == heading), "{link} leads to no heading");
        }
    }
}

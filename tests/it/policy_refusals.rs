//! Policies that cannot be, through `ovctl policy apply`: refused with the line and the nearest valid
//! name, and nothing changed.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bad_input::{everything, members};
use crate::support::{LAB, Rig, expect_refusal, play};

/// One rule in the third line.
fn rule(fields: &str) -> String {
    format!("overlay: lab\nrules:\n  - {{action: allow, from: alpha, to: beta{fields}}}\n")
}

/// A NetworkPolicy whose `spec` begins in the fifth line.
fn network_policy(spec: &str) -> String {
    let head =
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: np}\nspec:\n";
    format!("{head}{spec}")
}

/// Texts, with the exit code of their refusal, the line (0: none is named), and what it must say.
fn malformed() -> Vec<(String, i32, u32, &'static [&'static str])> {
    let plain = |text: &str| text.to_owned();
    let twice = network_policy("  podSelector: {}\n");
    vec![
        // Typing mistakes and unknown names.
        (
            plain("overlay: lab\nrules:\n  - {action: allow, from: alhpa, to: beta}\n"),
            2,
            3,
            &["did you mean alpha"],
        ),
        (
            plain("overlay: lab\nrules:\n  - {acton: allow, from: alpha, to: beta}\n"),
            2,
            3,
            &["did you mean action"],
        ),
        (
            plain("overlay: lab\nrules:\n  - {action: alow, from: alpha, to: beta}\n"),
            2,
            3,
            &["alow", "allow or deny"],
        ),
        (plain("rulse: []\n"), 2, 1, &["rulse", "did you mean rules"]),
        (plain("overlay: lap\nrules: []\n"), 3, 0, &["lap", "did you mean lab"]),
        (
            plain(
                "groups:\n  heads: [alpha]\nrules:\n  - {action: allow, from: 'group:haeds', to: beta}\n",
            ),
            2,
            4,
            &["did you mean group:heads"],
        ),
        (
            plain(
                "services: {api: role=api}\nrules:\n  - {action: allow, from: 'service:apy', to: beta}\n",
            ),
            2,
            3,
            &["did you mean service:api"],
        ),
        (
            plain("rules: []\ntests:\n  - {from: alpha, to: betta, allow: true}\n"),
            2,
            3,
            &["did you mean beta"],
        ),
        (rule(", path: [s11]"), 2, 3, &["s11", "did you mean"]),
        // Values that cannot be.
        (
            plain(
                "rules:\n  - action: allow\n    from: alpha\n    to: beta\n    ports: tcp/70000\n",
            ),
            2,
            5,
            &["tcp/70000", "1-65535"],
        ),
        (rule(", ports: tcp/0"), 2, 3, &["tcp/0"]),
        (rule(", ports: [-1]"), 2, 3, &["-1"]),
        (rule(", ports: tcp/90-80"), 2, 3, &["tcp/90-80"]),
        (rule(", ports: tcp/htpp"), 2, 3, &["tcp/htpp"]),
        (rule(", ports: 80.5"), 2, 3, &["number"]),
        (rule(", both: yes"), 2, 3, &["true or false"]),
        (rule(", expires: soon"), 2, 3, &["soon"]),
        (rule(", name: \"a\\u001b[31m\""), 2, 3, &["name"]),
        (
            plain("rules:\n  - {action: allow, from: alpha, to: 10.0.0.1/8}\n"),
            2,
            2,
            &["10.0.0.0/8"],
        ),
        (
            plain("rules:\n  - {action: allow, from: alpha, to: 10.0.0.0/33}\n"),
            2,
            2,
            &["10.0.0.0/33"],
        ),
        (plain("rules:\n  - {action: allow, from: alpha, to: bеta}\n"), 2, 2, &["u{435}"]),
        // Rules that contradict themselves or each other.
        (rule(", path: [s1, s2, s1]"), 2, 3, &["s1 twice", "circle"]),
        (
            plain(
                "rules:\n  - {action: allow, from: alpha, to: beta, path: [s1]}\n  - {action: allow, from: beta, to: any, path: [s2]}\n",
            ),
            5,
            3,
            &["bad.yaml:2", "already gives"],
        ),
        (plain("rules:\n  - {action: allow, from: alpha, to: alpha}\n"), 2, 2, &["both ends"]),
        (
            plain("rules: []\ntests:\n  - {from: alpha, to: beta, allow: true}\n"),
            8,
            3,
            &["must be allowed"],
        ),
        (plain("groups: {a: ['group:a']}\nrules: []\n"), 2, 1, &["no groups"]),
        // What is no policy.
        (plain(""), 2, 0, &["bad.yaml", "rules: []"]),
        (plain("# nothing\n---\n"), 2, 0, &["rules: []"]),
        (plain("hello\n"), 2, 1, &["mapping"]),
        (plain("rules: 7\n"), 2, 1, &["list"]),
        (plain("rules:\n  - allow\n"), 2, 2, &["mapping"]),
        (plain("rules:\n  - {action: allow, from: {role: web}, to: beta}\n"), 2, 2, &["text"]),
        (plain("rules: []\nrules: []\n"), 2, 2, &["`rules` is there twice"]),
        (plain("rules:\n\t- {action: allow}\n"), 2, 2, &["tab"]),
        (plain("rules: [{action: allow\n"), 2, 1, &["unclosed"]),
        (plain("rules:\0\n"), 2, 1, &["unexpected"]),
        ("[".repeat(20_000), 2, 1, &["nested too deeply"]),
        (bomb(), 2, 5, &["aliases"]),
        (format!("# {}", "x".repeat(10 << 20)), 2, 0, &["too large"]),
        (plain("apiVersion: ovmesh/v2\nkind: Policy\nrules: []\n"), 2, 1, &["ovmesh/v1"]),
        // NetworkPolicies.
        (
            network_policy("  podSelector: {}\n")
                .replace("networking.k8s.io/v1", "extensions/v1beta1"),
            2,
            1,
            &["extensions/v1beta1", "np"],
        ),
        (network_policy("  podSelector: {}\n  ingres: []\n"), 2, 6, &["did you mean ingress"]),
        (
            network_policy(
                "  podSelector: {}\n  ingress:\n    - ports: [{port: 90, endPort: 80}]\n",
            ),
            2,
            7,
            &["endPort", "default/np"],
        ),
        (
            network_policy(
                "  podSelector: {matchExpressions: [{key: a, operator: Inn, values: [b]}]}\n",
            ),
            2,
            5,
            &["Inn", "NotIn"],
        ),
        (network_policy("  podSelector: {}\n  policyTypes: [Ingres]\n"), 2, 6, &["Ingres"]),
        (format!("{twice}---\n{twice}"), 2, 0, &["default/np", "twice"]),
    ]
}

/// Aliases that stand for 10^9 values.
fn bomb() -> String {
    let mut text = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (name, before) in ('b'..='i').zip('a'..) {
        let ten = vec![format!("*{before}"); 10].join(",");
        text.push_str(&format!("{name}: &{name} [{ten}]\n"));
    }
    text
}

#[test]
fn a_policy_that_cannot_be_is_refused_and_nothing_changes() {
    play(&["s1", "s2"], &[], |rig| {
        members(rig)?;
        let file = rig.world.dir().join("bad.yaml");
        let path = file.to_str().unwrap_or_default();
        // The control: the same rule without a mistake, which the refusals must leave alone.
        fs::write(&file, rule(", ports: tcp/80, path: [s1, s2]"))?;
        rig.fleet.ovctl_ok(&["policy", "apply", "-f", path, "--no-wait"])?;
        let before = state(rig)?;

        let mut wrong = Vec::new();
        for (text, code, line, said) in malformed() {
            fs::write(&file, &text)?;
            let apply = ["policy", "apply", "-f", path, "--overlay", LAB];
            let apply = if text.contains("overlay: lap") { &apply[..4] } else { &apply[..] };
            let refused = rig.fleet.ovctl(apply)?;
            let place = format!("bad.yaml:{line}");
            let check = expect_refusal(&refused, code, said).and_then(|()| {
                ensure!(line == 0 || refused.stderr.contains(&place), "{place}: {refused:?}");
                ensure!(state(rig)? == before, "it changed something");
                Ok(())
            });
            if let Err(error) = check {
                let shown: String = text.chars().take(200).collect();
                wrong.push(format!("{shown}\n{error:#}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
        Ok(())
    });
}

/// Everything that a change would show in; SaPs run, so what they report is left out.
fn state(rig: &Rig) -> Result<Value> {
    let export = rig.fleet.ovctl_ok(&["policy", "export", "--overlay", LAB])?;
    let all = everything(rig)?;
    let parts = ["overlays", "tokens", "rules", "audit"].map(|part| all[part].clone());
    Ok(json!({ "export": export, "rest": parts }))
}

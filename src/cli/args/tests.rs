//! What may be typed, and what it means.

use clap::{CommandFactory as _, Parser as _};

use super::*;
use crate::types::{GuardEgress, GuardMode, Selector};

fn ovctl(line: &str) -> Result<Ovctl, clap::Error> {
    Ovctl::try_parse_from(std::iter::once("ovctl").chain(line.split_whitespace()))
}

fn rule(line: &str) -> RuleArgs {
    let OvctlCommand::Policy(PolicyCommand::Allow(rule) | PolicyCommand::Deny(rule)) =
        ovctl(line).unwrap().command
    else {
        panic!("{line} is no rule")
    };
    rule
}

#[test]
fn every_program_has_a_sound_grammar() {
    Ovctl::command().debug_assert();
    Ovd::command().debug_assert();
    Ovsap::command().debug_assert();
}

#[test]
fn every_program_shows_its_exit_codes() {
    for mut command in [Ovctl::command(), Ovd::command(), Ovsap::command()] {
        let help = command.render_help().to_string();
        assert!(help.contains("4  the verdict is deny"), "{help}");
    }
}

#[test]
fn a_rule_is_read_whole() {
    let rule = rule(
        "policy allow shop/web role=db,tier=back --port tcp/443,udp/53 -p icmp --both \
         --via sap-1,sap-2 --overlay prod --expires 8h --if-revision 4 --wait 2s",
    );

    assert_eq!(rule.from, "shop/web".parse::<Selector>().unwrap());
    assert_eq!(rule.to, "role=db,tier=back".parse::<Selector>().unwrap());
    assert_eq!(rule.ports.len(), 3);
    assert!(rule.both && !rule.direct);
    assert_eq!(rule.via.len(), 2);
    let options = rule.change.options();
    assert_eq!(options.if_revision, Some(Revision(4)));
    assert_eq!(options.wait.unwrap().to_string(), "2s");
    assert_eq!(options.dry_run, None);
}

#[test]
fn changes_wait_ten_seconds_unless_told_otherwise() {
    assert_eq!(rule("policy deny a b").change.options().wait.unwrap().to_string(), "10s");
    assert_eq!(rule("policy deny a b --no-wait").change.options().wait, None);
    assert!(ovctl("policy deny a b --no-wait --wait 3s").is_err());
}

#[test]
fn usage_errors_exit_with_two() {
    for bad in [
        "",
        "policy",
        "policy allow web",
        "policy allow Web db",
        "policy allow web db --port tcp/0",
        "policy allow web db --direct --via sap-1",
        "policy allow web db --expires soon",
        "policy test --semantics open",
        "policy matrix --as png",
        "policy lint web",
        "overlay create a_b",
        "overlay create a --cidr 10.0.0.0/33",
        "token create --uses -1",
        "token create --port http=tcp/80-90",
        "key rotate --all db",
        "key rotate a b c",
        "audit list --limit 0",
        "entity label web",
        "--output yaml status",
    ] {
        let error = ovctl(bad).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{bad}: {error}");
    }
    assert!(ovctl("policy allow web db --port tcp/1").is_ok());
    assert!(ovctl("policy test --inventory i -f a -f b --tests t --semantics kubernetes").is_ok());
    assert!(ovctl("policy matrix --inventory i --file a --as dot").is_ok());
    assert!(ovctl("policy diff --inventory i --old a -f b").is_ok());
}

#[test]
fn nouns_have_plural_and_short_names() {
    for line in [
        "overlays ls",
        "ov list",
        "tokens list",
        "tok ls",
        "entities list",
        "ent ls",
        "saps ls",
        "policies list",
        "pol ls",
        "keys list",
        "entity list -o name",
        "-o json status",
    ] {
        assert!(ovctl(line).is_ok(), "{line}");
    }
}

#[test]
fn the_socket_of_serve_is_the_global_one() {
    let parsed = ovctl(
        "serve --data-dir d --listen 127.0.0.1:0 --public-url https://a:1 --public-url https://b:2 \
         --socket s --config c",
    )
    .unwrap();

    assert_eq!(parsed.global.socket, Some("s".into()));
    let OvctlCommand::Serve(serve) = parsed.command else { panic!() };
    assert_eq!(serve.public_urls.len(), 2);
}

#[test]
fn rotation_needs_something_to_rotate() {
    let target = |line: &str| {
        let OvctlCommand::Key(KeyCommand::Rotate(args)) = ovctl(line).unwrap().command else {
            panic!("{line} rotates nothing")
        };
        args.target()
    };

    assert_eq!(target("key rotate --all"), Ok(RotateTarget::All));
    assert!(matches!(target("key rotate db"), Ok(RotateTarget::Entity(_))));
    assert!(matches!(target("key rotate web db --overlay o"), Ok(RotateTarget::Pair { .. })));
    assert!(matches!(target("key rotate --overlay o"), Ok(RotateTarget::Overlay(_))));
    assert_eq!(target("key rotate").unwrap_err().code, crate::api::ProblemCode::Usage);
}

#[test]
fn nodes_run_with_and_without_a_token() {
    let run = |line: &str| {
        let parsed = Ovd::try_parse_from(line.split_whitespace()).unwrap();
        let OvdCommand::Run(run) = parsed.command else { panic!("{line} runs nothing") };
        run
    };

    assert_eq!(run("ovd run"), OvdRunArgs::default());
    let OvdRunArgs { run, guard, egress, lock_ssh, .. } = run(
        "ovd run --join @/t --endpoint 192.0.2.1 --endpoint [2001:db8::1]:7 --name web \
                   --listen 127.0.0.1:6081 --state-dir d --socket s --log debug --guard all --egress rules --lock-ssh",
    );
    assert_eq!((guard, lock_ssh), (Some(GuardMode::All), true));
    assert_eq!(egress, Some(GuardEgress::Rules));
    assert_eq!(run.join, Some(JoinSource::File("/t".into())));
    assert_eq!(run.endpoints[0].or_port(6080).to_string(), "192.0.2.1:6080");
    assert_eq!(run.endpoints[1].or_port(6080).to_string(), "[2001:db8::1]:7");
    assert!(Ovsap::try_parse_from(["ovsap", "join", "-"]).is_ok());
    assert!(Ovsap::try_parse_from(["ovsap", "run", "--endpoint", "host"]).is_err());
    assert!(Ovd::try_parse_from(["ovd", "status", "--check", "synced", "-o", "json"]).is_ok());
}

#[test]
fn a_token_never_shows_in_debug_output() {
    let parsed = Ovd::try_parse_from(["ovd", "run", "--join", "ovt1.secret"]).unwrap();

    assert!(!format!("{parsed:?}").contains("secret"));
}

#[test]
fn labels_are_set_and_removed() {
    assert!(matches!("role=web".parse(), Ok(LabelEdit::Set(_))));
    assert_eq!("role-".parse(), Ok(LabelEdit::Remove("role".to_owned())));
    assert!("-".parse::<LabelEdit>().is_err());
    assert!("role".parse::<LabelEdit>().is_err());
}

#[test]
fn an_entity_is_meant_by_name_or_address() {
    assert!(matches!("10.0.0.1".parse(), Ok(EntityRef::Address(_))));
    assert!(matches!("fd00::1".parse(), Ok(EntityRef::Address(_))));
    assert!(matches!("shop/web".parse(), Ok(EntityRef::Name(_))));
    assert!("10.0.0".parse::<EntityRef>().is_err());
}

#[test]
fn usage_errors_are_json_where_json_was_asked_for() {
    let wants = |line: &str, preset| {
        ovctl::wants_json(line.split_whitespace().map(ToOwned::to_owned), preset)
    };
    for line in ["-o json x", "-ojson", "x --output json", "--output=json", "-o=json"] {
        assert!(wants(line, None), "{line}");
    }
    assert!(wants("x", Some("json")));
    for (line, preset) in [("-o table", Some("json")), ("x json", None), ("--overlay json", None)] {
        assert!(!wants(line, preset), "{line}");
    }

    let problem = ovctl::usage_problem(&ovctl("policy allow a").unwrap_err().to_string());
    assert!(problem.what.contains("required"), "{problem}");
    assert!(problem.why.contains("<TO>") && problem.why.contains("Usage:"), "{problem}");
}

//! Who may start a flow, towards which port, and that answers pass: names, labels, `any`, deny.

use anyhow::{Result, ensure};

use crate::support::{Rig, play};

#[test]
fn a_rule_lets_one_side_start_and_the_other_answer() {
    play(&["s1"], &["a", "b"], |rig| {
        rig.allow(&["a", "b"])?;
        let _servers = [rig.http_echo("a", 80)?, rig.http_echo("b", 80)?];
        let _echoes = [rig.udp_echo("a", 9)?, rig.udp_echo("b", 9)?];
        let sink = rig.udp_sink("a", 10)?;

        ensure!(rig.http_get("a", "b", 80, 3)? == 3, "a may open TCP to b and gets answers");
        ensure!(rig.udp_ping("a", "b", 9, 10)? == 10, "answers to datagrams pass");
        ensure!(rig.icmp_ping("a", "b", 3)? == 3, "answers to pings pass");

        ensure!(rig.http_get("b", "a", 80, 2)? == 0, "b may not open TCP to a");
        ensure!(rig.udp_ping("b", "a", 9, 3)? == 0, "b may not start with a datagram");
        ensure!(rig.icmp_ping("b", "a", 2)? == 0, "b may not ping a");
        rig.drops_move("b", "no_rule", 20, || rig.udp_send("b", "a", 10, 20))?;
        ensure!(sink.received()? == 0, "something arrived");

        ensure!(rig.can("a", "b", "tcp/80")? == 0 && rig.can("b", "a", "tcp/80")? == 4);
        rig.allow(&["b", "a", "--port", "udp/10"])?;
        rig.udp_send("b", "a", 10, 20)?;
        sink.expect_received(20)
    });
}

#[test]
fn ports_and_both_directions_are_honoured() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        rig.allow(&["a", "b", "--port", "tcp/80,tcp/8000-8010"])?;
        rig.allow(&["a", "c", "--both", "--port", "tcp/80"])?;
        let mut servers = Vec::new();
        for port in [80, 81, 7999, 8000, 8010, 8011] {
            servers.push(rig.http_echo("b", port)?);
        }
        servers.push(rig.http_echo("a", 80)?);
        servers.push(rig.http_echo("c", 80)?);
        servers.push(rig.http_echo("c", 81)?);

        for port in [80, 8000, 8010] {
            ensure!(rig.http_get("a", "b", port, 1)? == 1, "tcp/{port} is allowed");
        }
        for port in [81, 7999, 8011] {
            ensure!(rig.http_get("a", "b", port, 1)? == 0, "tcp/{port} is not allowed");
        }
        ensure!(rig.udp_ping("a", "b", 80, 1)? == 0, "udp/80 is not tcp/80");
        ensure!(rig.icmp_ping("a", "b", 1)? == 0, "a rule with ports is not about pings");

        ensure!(rig.http_get("a", "c", 80, 1)? == 1, "the one direction");
        ensure!(rig.http_get("c", "a", 80, 1)? == 1, "the other direction");
        ensure!(rig.http_get("a", "c", 81, 1)? == 0, "the port is the destination's");
        Ok(())
    });
}

#[test]
fn labels_any_and_deny_decide_who_may_start() {
    play(&["s1"], &["a", "b", "c"], |rig| {
        let _echoes = [rig.udp_echo("b", 53)?, rig.udp_echo("c", 53)?, rig.udp_echo("c", 9)?];

        // A label that nobody bears is a rule about nobody, until somebody gets it.
        rig.allow(&["role=web", "role=db", "--port", "udp/53"])?;
        label(rig, "c", "role=db")?;
        ensure!(rig.udp_ping("a", "c", 53, 2)? == 0, "a has no label");
        label(rig, "a", "role=web")?;
        ensure!(rig.udp_ping("a", "c", 53, 5)? == 5, "a and c bear the labels");
        ensure!(rig.udp_ping("b", "c", 53, 2)? == 0, "b does not");
        label(rig, "a", "role-")?;
        ensure!(rig.udp_ping("a", "c", 53, 2)? == 0, "a lost the label");

        rig.allow(&["any", "c", "--port", "udp/9"])?;
        ensure!(rig.udp_ping("a", "c", 9, 5)? == 5 && rig.udp_ping("b", "c", 9, 5)? == 5);

        deny_goes_first_and_lets_answers_pass(rig)
    });
}

fn label(rig: &Rig, entity: &str, edit: &str) -> Result<()> {
    rig.fleet.ovctl_ok(&["entity", "label", entity, edit])?;
    rig.settle()
}

fn deny_goes_first_and_lets_answers_pass(rig: &Rig) -> Result<()> {
    let sink = rig.udp_sink("c", 10)?;
    rig.allow(&["b", "c", "--port", "udp/10"])?;
    rig.udp_send("b", "c", 10, 20)?;
    sink.expect_received(20)?;

    // Of udp/9 alone, so that b keeps a row for c and the reason is the rule's own.
    let deny = rig.deny(&["b", "c", "--port", "udp/9"])?;
    ensure!(rig.udp_ping("b", "c", 9, 2)? == 0, "deny goes before allow");
    ensure!(rig.udp_ping("a", "c", 9, 5)? == 5, "deny is about b alone");
    rig.drops_move("b", "deny_rule", 20, || rig.udp_send("b", "c", 9, 20))?;

    // c may start, so b may answer, although b may not start anything.
    rig.deny(&["b", "c"])?;
    rig.allow(&["c", "b", "--port", "udp/53"])?;
    ensure!(rig.udp_ping("c", "b", 53, 5)? == 5, "answers pass a deny rule");
    ensure!(rig.can("b", "c", "udp/9")? == 4 && rig.can("c", "b", "udp/53")? == 0);

    rig.revoke(&["b", "c"])?;
    ensure!(rig.fleet.ovctl(&["policy", "show", &deny])?.code == 3, "the deny rule is gone");
    Ok(())
}

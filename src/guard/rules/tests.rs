use super::*;

fn intent(mode: GuardMode) -> Intent {
    let member = |device: &str, range: &str, address: &str| Member {
        device: device.to_owned(),
        range: range.parse().unwrap(),
        address: address.parse().unwrap(),
    };
    Intent {
        mode,
        members: vec![
            member("ov0", "100.70.0.0/16", "100.70.0.5"),
            member("ov1", "fd01::/64", "fd01::5"),
        ],
        services: ["tcp/8000-8010", "tcp/443", "udp/53"]
            .iter()
            .map(|s| s.parse().unwrap())
            .collect(),
        data_port: 6080,
        health_port: None,
        uplinks: vec!["eth0".to_owned()],
        ssh_peers: vec!["192.0.2.7".parse().unwrap()],
        ssh_ports: vec![22],
        egress: None,
        listening: vec![22, 443],
    }
}

fn shown(intent: &Intent) -> Vec<String> {
    let line = |rule: &Rule| {
        let Rule { chain, name, condition, verdict } = rule;
        format!("{chain:?} {} {condition} {verdict:?}", name.name())
    };
    rules(intent).iter().map(line).collect()
}

/// The place of the one rule that has all `parts`.
fn place(lines: &[String], parts: &[&str]) -> usize {
    let found: Vec<usize> =
        (0..lines.len()).filter(|&at| parts.iter().all(|part| lines[at].contains(part))).collect();
    assert_eq!(found.len(), 1, "{parts:?}: {found:?} of\n{}", lines.join("\n"));
    found[0]
}

#[test]
fn off_is_no_rule_at_all() {
    assert!(rules(&intent(GuardMode::Off)).is_empty());
}

#[test]
fn packets_of_overlays_stay_inside_in_both_families_and_modes() {
    for mode in [GuardMode::Ports, GuardMode::All] {
        let lines = shown(&intent(mode));

        for (family, address, range) in
            [("ip ", "100.70.0.5/32", "100.70.0.0/16"), ("ip6 ", "fd01::5/128", "fd01::/64")]
        {
            for chain in ["Prerouting", "Input"] {
                let own =
                    ["iifname != { \"lo\", \"ov0\", \"ov1\" }", family, "daddr", address, "Drop"];
                place(&lines, &[&own[..], &[chain]].concat());
            }
            let source = place(&lines, &["Prerouting", "saddr", family, range, "Drop"]);
            assert!(lines[source].contains("iifname != { \"lo\", \"ov0\", \"ov1\" }"));
            let clear = ["oifname != { \"lo\", \"ov0\", \"ov1\" }", "daddr", family, range];
            place(&lines, &[&clear[..], &["Output overlay_in_clear", "Reject"]].concat());
            let forward =
                place(&lines, &[&clear[..], &["Forward overlay_in_clear", "Drop"]].concat());
            assert!(!lines[forward].contains("iifname"), "wherever it comes from");
            assert!(forward < place(&lines, &["Forward own_replies"]), "replies too");
        }
    }
}

#[test]
fn services_are_closed_by_the_port_now_and_by_the_port_before_translation() {
    let lines = shown(&intent(GuardMode::Ports));

    let replies = place(&lines, &["Input own_replies", "ct direction reply Accept"]);
    let now = place(&lines, &["Input", "tcp dport { 443, 8000-8010 } Drop"]);
    assert!(replies < now);
    place(&lines, &["Input", "udp dport { 53 } Drop"]);
    for port in ["443", "8000-8010"] {
        place(&lines, &["Input", &format!("meta l4proto tcp ct original proto-dst {port} Drop")]);
    }
    // Containers may ask anybody for any port, and nobody may ask containers for ours.
    let away = "oifname != { \"eth0\", \"lo\", \"ov0\", \"ov1\" } tcp dport { 443, 8000-8010 }";
    place(&lines, &["Forward", away]);
    place(&lines, &["Forward", "iifname { \"eth0\" } ct status dnat tcp dport"]);
    place(&lines, &["Output older_flow", "tcp sport { 443, 8000-8010 }", "!= syn Drop"]);
    // No rule asks for a state that an older flow does not have.
    assert!(!lines.iter().any(|line| line.starts_with("Input") && line.contains("ct state")));
    assert!(!lines.iter().any(|line| line.contains(" closed ")), "ports leaves the rest open");
}

#[test]
fn all_ends_with_a_drop_of_everything_that_was_not_let_in() {
    let lines = shown(&intent(GuardMode::All));

    let closed = place(&lines, &["Input closed", "Drop"]);
    for open in ["udp dport 6080", "nd-neighbor-solicit", "udp dport 68", "udp dport 546"] {
        assert!(place(&lines, &["Input", open, "Accept"]) < closed);
    }
    let mut inputs = lines.iter().filter(|line| line.starts_with("Input"));
    assert_eq!(inputs.next_back(), Some(&lines[closed]));
    place(&lines, &["Output older_flow", "tcp sport { 22, 443 }"]);
}

#[test]
fn ssh_peers_go_before_what_closes_their_port_and_can_be_left_out() {
    for mode in [GuardMode::Ports, GuardMode::All] {
        let mut intent = intent(mode);
        intent.services = ["tcp/22"].iter().map(|text| text.parse().unwrap()).collect();
        let lines = shown(&intent);
        let ssh =
            place(&lines, &["Input ssh", "ip saddr { 192.0.2.7/32 } tcp dport { 22 } Accept"]);
        let first_drop = lines
            .iter()
            .position(|line| line.starts_with("Input service") || line.starts_with("Input closed"));
        assert!(Some(ssh) < first_drop);

        intent.ssh_peers.clear();
        assert!(!shown(&intent).iter().any(|line| line.starts_with("Input ssh")));
    }
}

#[test]
fn a_flow_that_was_misread_before_the_rules_came_is_none_of_ours() {
    for (mode, closed) in [(GuardMode::Ports, "{ 443 }"), (GuardMode::All, "{ 22, 443 }")] {
        let lines = shown(&intent(mode));

        let misread = format!("tcp dport {closed} ct direction reply Drop");
        let misread = place(&lines, &["Input older_flow", &misread]);
        assert!(place(&lines, &["Input ssh"]) < misread);
        assert!(misread < place(&lines, &["Input own_replies"]));
    }
}

#[test]
fn without_an_overlay_or_a_service_the_rules_are_still_rules() {
    let intent = Intent {
        members: Vec::new(),
        services: Services::default(),
        uplinks: Vec::new(),
        ..intent(GuardMode::Ports)
    };

    let lines = shown(&intent);

    assert!(lines.iter().all(|line| !line.contains("{  }")), "{lines:?}");
    assert_eq!(lines.len(), 3, "replies twice, ssh: {lines:?}");
}

#[test]
fn overlapping_ranges_are_named_once_and_strange_interfaces_never() {
    let mut intent = intent(GuardMode::Ports);
    intent.members[1] = Member { device: "ov1".to_owned(), ..intent.members[0].clone() };
    intent.members[1].range = "100.70.8.0/24".parse().unwrap();
    intent.uplinks.push("x\" accept; add".to_owned());

    let lines = shown(&intent);

    assert!(lines.iter().all(|line| !line.contains("100.70.8.0") && !line.contains("accept;")));
    place(&lines, &["Output overlay_in_clear", "{ 100.70.0.0/16 }"]);
}

#[test]
fn every_rule_has_a_counter_of_its_name() {
    for mode in [GuardMode::Ports, GuardMode::All] {
        for rule in rules(&intent(mode)) {
            assert!(RuleName::ALL.contains(&rule.name) && !rule.name.explanation().is_empty());
        }
    }
    let mut names: Vec<&str> = RuleName::ALL.iter().map(|name| name.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), RuleName::ALL.len());
}

#[test]
fn segments_into_overlays_are_clamped_before_anything_is_accepted() {
    let lines = shown(&intent(GuardMode::Ports));

    for way in ["iifname", "oifname"] {
        let rule = format!("Forward mss_clamped {way} {{ \"ov0\", \"ov1\" }}");
        let clamp = place(&lines, &[&rule, "== syn ClampMss"]);
        assert!(clamp < place(&lines, &["Forward own_replies"]));
    }
}

#[test]
fn egress_lets_out_what_rules_and_ovmesh_need_and_nothing_else() {
    let outside = |cidr: Option<&str>, except: &[&str], services: &[&str]| Outside {
        cidr: cidr.map(|cidr| cidr.parse().unwrap()),
        except: except.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        services: services.iter().map(|service| service.parse().unwrap()).collect(),
    };
    let mut intent = intent(GuardMode::Ports);
    intent.egress = Some(Egress {
        ovmesh: [
            (Protocol::Udp, "192.0.2.9:6080".parse().unwrap()),
            (Protocol::Udp, "[::ffff:192.0.2.8]:6081".parse().unwrap()),
            (Protocol::Tcp, "[2001:db8::9]:7443".parse().unwrap()),
        ]
        .into(),
        denied: vec![outside(Some("10.9.0.0/16"), &[], &[])],
        allowed: vec![
            outside(Some("10.0.0.0/8"), &["10.1.0.0/16"], &["tcp/443", "icmp"]),
            outside(None, &[], &["udp/53", "tcp/dns"]),
            outside(Some("2001:db8::/32"), &[], &["icmp"]),
            outside(
                Some("0.0.0.0/0"),
                &["192.0.2.0/24", "192.0.2.128/25"],
                &["tcp/80", "tcp/81-90"],
            ),
        ],
        unspoken_passes: false,
    });

    let lines = shown(&intent);

    let out =
        |part: &str| place(&lines, &["Output", "oifname != { \"lo\", \"ov0\", \"ov1\" }", part]);
    let last = out("}  Reject");
    assert_eq!(lines.iter().rposition(|line| line.starts_with("Output")), Some(last));
    let denied = out("ip daddr 10.9.0.0/16 Reject");
    for part in [
        "ip daddr 10.0.0.0/8 ip daddr != { 10.1.0.0/16 } tcp dport { 443 } Accept",
        "ip daddr 10.0.0.0/8 ip daddr != { 10.1.0.0/16 } meta l4proto 1 Accept",
        "meta nfproto ipv4 udp dport { 53 } Accept",
        "meta nfproto ipv6 udp dport { 53 } Accept",
        "ip6 daddr 2001:db8::/32 meta l4proto 58 Accept",
        "meta nfproto ipv4 ip daddr != { 192.0.2.0/24 } tcp dport { 80-90 } Accept",
    ] {
        assert!((denied..last).contains(&out(part)), "{part}");
    }
    for part in [
        "ip daddr . udp dport { 192.0.2.8 . 6081, 192.0.2.9 . 6080 } Accept",
        "ip6 daddr . tcp dport { 2001:db8::9 . 7443 } Accept",
        "ct direction reply Accept",
        "ip daddr 127.0.0.0/8 Accept",
        "ip6 daddr ::1 Accept",
        "sport 68",
    ] {
        assert!(out(part) < denied, "{part}");
    }
    // Overlays' own packets are refused before any range may let them out.
    assert!(place(&lines, &["Output overlay_in_clear", "100.70.0.0/16"]) < out("answers"));
    place(&lines, &["Forward outside oifname { \"eth0\" }", "Reject"]);
    place(&lines, &["Input older_flow", "tcp dport != { 22, 443 } ct state new tcp"]);

    intent.egress.as_mut().unwrap().unspoken_passes = true;
    assert!(!shown(&intent).iter().any(|line| line.starts_with("Output outside oifname")));
}

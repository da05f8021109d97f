use super::*;
use crate::api::Shared;
use crate::api::table::{LinkRow, MemberRow, OverlayTable, SapRow, TableBody, TableNode};
use crate::types::{ApiVersion, EntityName, Incarnation, Name, OverlayId, Revision, Serial};

const LINK: LinkId = LinkId(7);
const ENTITY: NodeId = NodeId(3);
const SAP: NodeId = NodeId(1);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn entity_address() -> SocketAddr {
    "10.0.0.3:6080".parse().unwrap()
}

fn sap_address() -> SocketAddr {
    "10.0.0.1:6080".parse().unwrap()
}

fn entity_name(name: &str) -> EntityName {
    EntityName { namespace: Name::default(), name: Name::new(name).unwrap() }
}

fn table(kind: NodeKind, secret: u8) -> NodeTable {
    let (id, peer) = match kind {
        NodeKind::Entity => (ENTITY, SAP),
        NodeKind::Sap => (SAP, ENTITY),
    };
    NodeTable {
        api_version: ApiVersion::V1,
        incarnation: Incarnation("aa".to_owned()),
        succeeds: Vec::new(),
        serial: Serial(1),
        revision: Revision(1),
        body: TableBody {
            node: TableNode { id, kind, name: entity_name("me"), ports: Vec::new() },
            saps: vec![SapRow {
                id: SAP,
                name: Name::new("sap-1").unwrap(),
                endpoints: vec![sap_address()],
            }],
            links: vec![LinkRow { id: LINK, peer, secret: Secret::new([secret; 32]) }],
            overlays: vec![OverlayTable {
                id: OverlayId(1),
                name: Name::default(),
                cidr: "100.71.0.0/16".parse().unwrap(),
                address: None,
                silent: false,
                members: vec![Shared::new(MemberRow {
                    id: ENTITY,
                    name: entity_name("web"),
                    address: "100.71.0.5".parse().unwrap(),
                    endpoints: vec![entity_address()],
                })],
                sets: Vec::new(),
                unspoken_passes: false,
                outside: Default::default(),
                isolated: vec![],
                rules: Vec::new(),
                paths: Vec::new(),
                default_saps: vec![SAP],
                preferences: Vec::new(),
                empty_saps: Vec::new(),
                destination_keys: Vec::new(),
                pair_generations: Vec::new(),
                send_keys: Vec::new(),
                services: Vec::new(),
            }],
        },
    }
}

fn start() -> Probes {
    Probes::start(ms(0), Duration::from_secs(1_700_000_000), &Secret::new([0x5a; 32]))
}

fn node(kind: NodeKind, secret: u8) -> Probes {
    let mut probes = start();
    probes.replace_links(&table(kind, secret), ms(0));
    probes
}

/// One request of `entity` from `from`, and what `sap` says to it; returns its kind. Nothing when no request
/// is due.
fn ask(entity: &mut Probes, sap: &mut Probes, from: SocketAddr, now: Duration) -> Option<u8> {
    entity.handle_timeout(now);
    let request = entity.poll_transmit(now)?;
    assert_eq!(request.to, sap_address());
    sap.handle_datagram(from, &request.bytes, now).unwrap();
    let answer = sap.poll_transmit(now).unwrap();
    assert_eq!(answer.to, from, "to where the request came from, and nowhere else");
    assert!(answer.bytes.len() <= request.bytes.len(), "no amplification");
    assert_eq!(sap.poll_transmit(now), None);
    entity.handle_datagram(sap_address(), &answer.bytes, now).unwrap();
    answer.bytes.get(13).copied()
}

const REPLY: Option<u8> = Some(2);
const CHALLENGE: Option<u8> = Some(8);

#[test]
fn an_entity_and_its_sap_find_each_other() {
    let mut entity = node(NodeKind::Entity, 5);
    let mut sap = node(NodeKind::Sap, 5);

    assert_eq!(ask(&mut entity, &mut sap, entity_address(), ms(0)), CHALLENGE);
    assert_eq!(entity.changes(), [], "a challenge is no answer yet");
    assert_eq!((sap.proofs().endpoint(ENTITY), sap.peers(ms(0))[0].is_alive), (None, false));
    assert!(!sap.notify(ENTITY, &Message::NoPath(NoPath { node: SAP })), "nobody proved a place");
    let request = entity.poll_transmit(ms(0)).unwrap();
    sap.handle_datagram(entity_address(), &request.bytes, ms(1)).unwrap();
    let reply = sap.poll_transmit(ms(1)).unwrap();
    assert_eq!(reply.to, entity_address());
    entity.handle_datagram(sap_address(), &reply.bytes, ms(2)).unwrap();

    assert_eq!(entity.changes(), [Change::Sap { sap: SAP, is_alive: true }]);
    assert_eq!(entity.changes(), []);
    assert_eq!(entity.peers(ms(2))[0].round_trip, Some(ms(2)));
    assert_eq!(sap.proofs().endpoint(ENTITY), Some(entity_address()));
    let seen = &sap.peers(ms(2))[0];
    assert!(seen.is_alive && seen.name == "web", "{seen:?}");
    assert!(!sap.peers(ms(60_000))[0].is_alive);
    assert_eq!(seen.translated, None);
}

#[test]
fn who_moves_is_asked_to_prove_it_and_is_found_there_afterwards() {
    let mut entity = node(NodeKind::Entity, 5);
    let mut sap = node(NodeKind::Sap, 5);
    let asked = |entity: &mut Probes, sap: &mut Probes, from: SocketAddr, now: u64| {
        entity.handle_moved(ms(now));
        ask(entity, sap, from, ms(now))
    };
    assert_eq!(asked(&mut entity, &mut sap, entity_address(), 0), CHALLENGE);
    assert_eq!(asked(&mut entity, &mut sap, entity_address(), 0), REPLY);
    // Each answer brings the next cookie.
    for now in (0..60_000).step_by(5_000) {
        assert_eq!(asked(&mut entity, &mut sap, entity_address(), now), REPLY, "{now}");
    }

    let elsewhere: SocketAddr = "192.168.9.9:4000".parse().unwrap();
    assert_eq!(asked(&mut entity, &mut sap, elsewhere, 60_000), CHALLENGE);
    assert_eq!(sap.proofs().endpoint(ENTITY), Some(entity_address()), "not before it is proved");
    assert_eq!(ask(&mut entity, &mut sap, elsewhere, ms(60_000)), REPLY);
    assert_eq!(sap.proofs().endpoint(ENTITY), Some(elsewhere));
    assert_eq!(sap.peers(ms(60_000))[0].translated, Some(elsewhere), "behind a NAT");
    assert_eq!(sap.peers(ms(60_000))[0].endpoint, Some(elsewhere));

    // In the open nothing is sent in clear, unless that was allowed.
    let open: SocketAddr = "203.0.113.9:4000".parse().unwrap();
    entity.handle_moved(ms(61_000));
    let request = entity.poll_transmit(ms(61_000)).unwrap().bytes;
    let refused = sap.handle_datagram(open, &request, ms(61_000));
    assert_eq!((refused, sap.poll_transmit(ms(61_000))), (Err(DropReason::OuterSource), None));
    sap.allow_open();
    assert_eq!(asked(&mut entity, &mut sap, open, 61_000), CHALLENGE);
}

#[test]
fn a_claim_to_anothers_endpoint_gets_a_challenge_there_and_moves_nothing() {
    const THIEF: NodeId = NodeId(9);
    let (link, secret) = (LinkId(8), Secret::new([6; 32]));
    let mut sap_table = table(NodeKind::Sap, 5);
    sap_table.body.links.push(LinkRow { id: link, peer: THIEF, secret: secret.clone() });
    let (mut entity, mut sap) = (node(NodeKind::Entity, 5), node(NodeKind::Sap, 5));
    sap.replace_links(&sap_table, ms(0));
    ask(&mut entity, &mut sap, entity_address(), ms(0));
    assert_eq!(ask(&mut entity, &mut sap, entity_address(), ms(0)), REPLY);

    // From its own place it has a cookie, which says nothing about another place.
    let mut counter = 0;
    let mut claim = |sap: &mut Probes, from: SocketAddr, cookie: u64| {
        counter += 1;
        let echo = Message::EchoRequest(Echo { cookie, ..Echo::default() });
        let (bytes, len) = control::encode(link, &secret, counter, &echo);
        sap.handle_datagram(from, &bytes[..len], ms(0))?;
        let answer = sap.poll_transmit(ms(0)).unwrap();
        assert_eq!(answer.to, from);
        control::decode(&answer.bytes, &secret).map(|(_, message)| message)
    };
    let thief: SocketAddr = "10.0.0.9:6080".parse().unwrap();
    let Ok(Message::Challenge(Echo { cookie, .. })) = claim(&mut sap, thief, 0) else {
        panic!("not challenged")
    };
    for guess in [0, cookie, 1] {
        let answer = claim(&mut sap, entity_address(), guess);
        assert!(matches!(answer, Ok(Message::Challenge(_))), "{answer:?}");
    }
    assert_eq!(sap.proofs().endpoint(ENTITY), Some(entity_address()));
    assert_eq!(sap.proofs().endpoint(THIEF), None);
    // The control: at home the cookie is good.
    assert!(matches!(claim(&mut sap, thief, cookie), Ok(Message::EchoReply(_))));
    assert_eq!(sap.proofs().endpoint(THIEF), Some(thief));

    // Whoever has a link is answered so many times a second.
    let answers = (0..100).filter(|_| claim(&mut sap, entity_address(), 0).is_ok()).count();
    assert_eq!(answers + 5, 20);
    assert_eq!(claim(&mut sap, thief, cookie), Err(DropReason::ControlBudget));
}

#[test]
fn what_was_proved_outlives_tables_and_processes_but_not_the_entity() {
    let mut entity = node(NodeKind::Entity, 5);
    let mut sap = node(NodeKind::Sap, 5);
    ask(&mut entity, &mut sap, entity_address(), ms(0));
    ask(&mut entity, &mut sap, entity_address(), ms(0));
    sap.replace_links(&table(NodeKind::Sap, 5), ms(1));
    assert_eq!(sap.proofs().endpoint(ENTITY), Some(entity_address()));

    let mut next = start();
    next.remember(sap.proofs().all().clone());
    next.replace_links(&table(NodeKind::Sap, 5), ms(0));
    assert_eq!(next.proofs().endpoint(ENTITY), Some(entity_address()));

    let mut without = table(NodeKind::Sap, 5);
    without.body.links.clear();
    next.replace_links(&without, ms(1));
    assert_eq!(next.proofs().endpoint(ENTITY), None);
}

#[test]
fn a_copy_keeps_quiet() {
    let mut entity = node(NodeKind::Entity, 5);
    entity.set_quiet(true);
    assert_eq!((entity.poll_transmit(ms(0)), entity.next_deadline()), (None, None));
    entity.set_quiet(false);
    assert!(entity.poll_transmit(ms(0)).is_some());
}

#[test]
fn replays_wrong_macs_unknown_links_and_reflections_are_dropped() {
    let mut entity = node(NodeKind::Entity, 5);
    let mut sap = node(NodeKind::Sap, 5);
    let request = entity.poll_transmit(ms(0)).unwrap().bytes;

    let mut stranger = node(NodeKind::Sap, 6);
    let wrong = stranger.handle_datagram(entity_address(), &request, ms(0));
    assert_eq!(wrong, Err(DropReason::ControlMac));
    let mut nobody = start();
    let unknown = nobody.handle_datagram(entity_address(), &request, ms(0));
    assert_eq!(unknown, Err(DropReason::ControlMac));
    let reflected = entity.handle_datagram(sap_address(), &request, ms(0));
    assert_eq!(reflected, Err(DropReason::ControlType));

    assert_eq!(sap.handle_datagram(entity_address(), &request, ms(0)), Ok(None));
    let replayed = sap.handle_datagram(entity_address(), &request, ms(0));
    assert_eq!(replayed, Err(DropReason::ControlReplay));
    assert!(sap.poll_transmit(ms(0)).is_some());
    assert!(sap.poll_transmit(ms(0)).is_none(), "one answer for one request");
}

#[test]
fn a_silent_sap_is_dead_and_a_new_table_tells_it_again() {
    let mut entity = node(NodeKind::Entity, 5);
    for _ in 0..3 {
        let now = entity.next_deadline().unwrap();
        entity.poll_transmit(now).unwrap();
        let now = entity.next_deadline().unwrap();
        entity.handle_timeout(now);
    }

    assert_eq!(entity.changes(), [Change::Sap { sap: SAP, is_alive: false }]);
    entity.replace_links(&table(NodeKind::Entity, 5), ms(9_000));
    assert_eq!(entity.changes(), [Change::Sap { sap: SAP, is_alive: false }]);
}

#[test]
fn strangers_cost_at_most_their_budget() {
    let mut sap = node(NodeKind::Sap, 5);
    let mut entity = node(NodeKind::Entity, 6);
    let forged = entity.poll_transmit(ms(0)).unwrap().bytes;
    let stranger: SocketAddr = "10.9.9.9:999".parse().unwrap();

    let outcomes: Vec<_> =
        (0..60).map(|_| sap.handle_datagram(stranger, &forged, ms(0)).unwrap_err()).collect();

    assert_eq!(outcomes.iter().filter(|o| **o == DropReason::ControlMac).count(), 50);
    assert_eq!(outcomes.iter().filter(|o| **o == DropReason::ControlBudget).count(), 10);
}

#[test]
fn a_notice_counts_once_and_only_from_its_own_sap() {
    use crate::wire::notice::TooBig;
    let message = Message::TooBig(TooBig {
        source: "100.71.0.5".parse().unwrap(),
        destination: "100.71.0.6".parse().unwrap(),
        mtu: 1364,
    });
    let mut sap = node(NodeKind::Sap, 5);
    let mut entity = node(NodeKind::Entity, 5);
    sap.remember([(ENTITY, entity_address())]);
    assert!(!sap.notify(NodeId(99), &message), "there is no link to n-99");
    assert!(sap.notify(ENTITY, &message));
    let notice = sap.poll_transmit(ms(0)).unwrap();
    assert_eq!(notice.to, entity_address());

    let mut heard = |bytes: &[u8]| entity.handle_datagram(sap_address(), bytes, ms(0));
    let mut forged = notice.bytes.clone();
    forged[25] ^= 1;
    assert_eq!(heard(&forged), Err(DropReason::ControlMac));
    assert_eq!(heard(&notice.bytes), Ok(Some(Heard { peer: SAP, message })));
    assert_eq!(heard(&notice.bytes), Err(DropReason::ControlReplay));
    // Another node's link has another secret, and the SaP takes none of its own messages back.
    let mut other = node(NodeKind::Sap, 6);
    other.remember([(ENTITY, entity_address())]);
    assert!(other.notify(ENTITY, &message));
    let foreign = other.poll_transmit(ms(0)).unwrap();
    assert_eq!(heard(&foreign.bytes), Err(DropReason::ControlMac));
    let reflected = sap.handle_datagram(entity_address(), &notice.bytes, ms(0));
    assert_eq!(reflected, Err(DropReason::ControlType));
}

#[test]
fn a_sap_that_lost_somebody_says_so_and_is_asked_until_it_hears_him_again() {
    let found_at = found_again(true);
    assert!((6_000..6_500).contains(&found_at), "{found_at}");
    let found_at = found_again(false);
    assert!((3_000..3_500).contains(&found_at), "better than no SaP at all: {found_at}");
}

/// When an entity takes somebody for found whom its SaP had lost and hears again after 3,000 ms; perhaps
/// another SaP reaches him all the time.
fn found_again(has_second_sap: bool) -> u64 {
    const SECOND_SAP: NodeId = NodeId(2);
    const OTHER: NodeId = NodeId(9);
    let (mut entity_table, mut sap_table) = (table(NodeKind::Entity, 5), table(NodeKind::Sap, 5));
    for table in [&mut entity_table, &mut sap_table] {
        let members = &mut table.body.overlays[0].members;
        let mut other = MemberRow::clone(&members[0]);
        (other.id, other.name) = (OTHER, entity_name("db"));
        members.push(Shared::new(other));
    }
    let (other_link, other_secret) = (LinkId(8), Secret::new([6; 32]));
    let other_address: SocketAddr = "10.0.0.9:6080".parse().unwrap();
    sap_table.body.links.push(LinkRow {
        id: other_link,
        peer: OTHER,
        secret: other_secret.clone(),
    });
    let mut second_table = table(NodeKind::Sap, 5);
    second_table.body.links[0].id = LinkId(11);
    let second_address: SocketAddr = "10.0.0.2:6080".parse().unwrap();
    if has_second_sap {
        let (saps, links) = (&mut entity_table.body.saps, &mut entity_table.body.links);
        saps.push(SapRow { id: SECOND_SAP, endpoints: vec![second_address], ..saps[0].clone() });
        links.push(LinkRow { id: LinkId(11), peer: SECOND_SAP, ..links[0].clone() });
    }
    let mut second = node(NodeKind::Sap, 5);
    second.replace_links(&second_table, ms(0));
    let (mut entity, mut sap) = (node(NodeKind::Entity, 5), node(NodeKind::Sap, 5));
    entity.replace_links(&entity_table, ms(0));
    sap.replace_links(&sap_table, ms(0));
    sap.remember([(ENTITY, entity_address())]);

    // Packets for OTHER, and not a word of it.
    let sent = BTreeSet::from([OTHER]);
    sap.handle_sent(&sent, ms(0));
    sap.handle_timeout(ms(399));
    assert_eq!(sap.silent(ms(399)), BTreeSet::new());
    sap.handle_timeout(ms(400));
    assert_eq!(sap.silent(ms(400)), sent);
    assert!(sap.notify(ENTITY, &Message::NoPath(NoPath { node: OTHER })));
    let notice = sap.poll_transmit(ms(500)).unwrap().bytes;
    assert_eq!(entity.handle_datagram(sap_address(), &notice, ms(501)), Ok(None));
    let lost = Change::Peer { sap: SAP, peer: OTHER, reaches: false };
    assert_eq!(entity.changes(), [lost]);
    entity.replace_links(&entity_table, ms(600));
    assert_eq!(entity.changes(), [lost], "a new table hears of it, too");

    // It asks in each echo.
    let mut found_at = None;
    for now in (1_000..9_000).step_by(10) {
        if now == 3_000 {
            let mut cookie = 0;
            for counter in 1..=2 {
                let echo = Message::EchoRequest(Echo { cookie, ..Echo::default() });
                let (bytes, len) = control::encode(other_link, &other_secret, counter, &echo);
                sap.handle_datagram(other_address, &bytes[..len], ms(now)).unwrap();
                let answer = sap.poll_transmit(ms(now)).unwrap().bytes;
                let (Message::Challenge(echo) | Message::EchoReply(echo)) =
                    control::decode(&answer, &other_secret).unwrap().1
                else {
                    panic!("no answer")
                };
                cookie = echo.cookie;
            }
        }
        entity.handle_activity(ms(now));
        entity.handle_timeout(ms(now));
        sap.handle_timeout(ms(now));
        while let Some(echo) = entity.poll_transmit(ms(now)) {
            let asked = if echo.to == second_address { &mut second } else { &mut sap };
            asked.handle_datagram(entity_address(), &echo.bytes, ms(now)).unwrap();
            let reply = asked.poll_transmit(ms(now)).unwrap().bytes;
            entity.handle_datagram(echo.to, &reply, ms(now)).unwrap();
        }
        let found = Change::Peer { sap: SAP, peer: OTHER, reaches: true };
        if entity.changes().contains(&found) {
            found_at = Some(now);
        }
    }
    found_at.unwrap()
}

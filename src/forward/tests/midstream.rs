//! TCP that runs already when the process starts.

use super::*;

#[test]
fn tcp_in_mid_stream_is_taken_up_for_a_minute_after_a_start() {
    let world = World::new(vec![rule(1, A, B, &["tcp/443"])]);
    let b = world.entity(B);
    for (second, expected) in [(0, None), (59, None), (60, Some(DropReason::NoFlow))] {
        let flows = table().started(at(0));
        let answer = world.tcp(B, A, ANSWER, ACK);
        assert_eq!(reason(b.egress(0, &answer, &flows, at(second))), expected, "{second}");
        let flows = table().started(at(0));
        let data = world.tcp(A, B, REQUEST, ACK);
        assert_eq!(reason(world.ingress(&b, &data, &flows, at(second))), expected, "{second}");
        let foreign = world.tcp(B, A, (444, 40_000), ACK);
        let refused = reason(b.egress(0, &foreign, &flows, at(second)));
        assert_eq!(refused, Some(DropReason::NoRule));
    }
}

#[test]
fn a_flow_of_unknown_origin_dies_with_either_direction() {
    let both = World::new(vec![rule(1, A, B, &[]), rule(2, B, A, &[])]);
    let only = [World::new(vec![rule(1, A, B, &[])]), World::new(vec![rule(2, B, A, &[])])];
    let before = both.entity(B);
    let (data, answer) = (both.tcp(A, B, REQUEST, ACK), both.tcp(B, A, ANSWER, ACK));
    for after in &only {
        let after = after.entity(B);
        for by_a in [true, false] {
            let ask = |snapshot: &Snapshot, by_a: bool, flows: &FlowTable, second| {
                reason(if by_a {
                    both.ingress(snapshot, &data, flows, at(second))
                } else {
                    snapshot.egress(0, &answer, flows, at(second))
                })
            };
            let flows = table().started(at(0));
            assert_eq!(ask(&before, by_a, &flows, 1), None);
            assert_eq!(ask(&before, !by_a, &flows, 2), None);
            for by_a in [true, false] {
                let refused = ask(&after, by_a, &flows, 3);
                assert_eq!(refused, Some(DropReason::FlowRevoked));
            }
        }
    }
    // The control: of a flow whose opening segment was seen only the starter's direction counts.
    for (after, expected) in only.iter().zip([None, Some(DropReason::FlowRevoked)]) {
        let flows = table().started(at(0));
        let opening = both.tcp(A, B, REQUEST, SYN);
        assert_eq!(reason(both.ingress(&before, &opening, &flows, at(1))), None);
        let later = reason(after.entity(B).egress(0, &answer, &flows, at(2)));
        assert_eq!(later, expected);
    }
}

#[test]
fn a_reply_taken_up_in_mid_stream_is_half_open_until_its_starter_is_heard() {
    let world = World::new(vec![rule(1, A, B, &["tcp/443"])]);
    let b = world.entity(B);
    let (data, answer) = (world.tcp(A, B, REQUEST, ACK), world.tcp(B, A, ANSWER, ACK));
    for (is_heard, expected) in [(false, Some(DropReason::NoFlow)), (true, None)] {
        let flows = table().started(at(0));
        assert_eq!(reason(b.egress(0, &answer, &flows, at(10))), None);
        if is_heard {
            assert_eq!(reason(world.ingress(&b, &data, &flows, at(11))), None);
        }
        assert_eq!(reason(world.ingress(&b, &data, &flows, at(71))), expected);
    }
}

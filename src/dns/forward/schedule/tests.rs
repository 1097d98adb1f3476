use proptest::prelude::*;

use super::*;
use world::{Behaviour, Edns, GOOD, Reach, SILENT, World, answer};

mod world;

const FULL: Form = Form {
    mixed: true,
    edns: true,
};
const WRITTEN: Form = Form {
    mixed: false,
    edns: true,
};
const WITHOUT_EDNS: Form = Form {
    mixed: true,
    edns: false,
};
const SIMPLEST: Form = Form {
    mixed: false,
    edns: false,
};

fn milliseconds(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_good_upstream_gets_one_question_in_the_full_form() {
    let mut world = World::new(&[GOOD, GOOD]);
    for _ in 0..3 {
        let asked = world.ask(true);
        assert_eq!(asked.found, Some((0, true)));
        assert_eq!((asked.after, asked.forms()), (milliseconds(20), vec![FULL]));
    }
}

#[test]
fn one_lost_packet_does_not_change_the_order_of_the_upstreams() {
    let mut world = World::new(&[GOOD, GOOD]);
    world.ask(true);
    world.behaviours[0].lost = 1;
    assert_eq!(world.ask(true).found, Some((0, true)));
    world.behaviours[0].lost = 0;
    let asked = world.ask(true);
    assert_eq!((asked.found, asked.places()), (Some((0, true)), vec![0]));
}

#[test]
fn the_first_upstream_is_the_first_again_as_soon_as_it_answers_again() {
    let mut world = World::new(&[SILENT, GOOD, GOOD]);
    assert_eq!(world.ask(true).found, Some((1, true)));
    let asked = world.ask(true);
    assert_eq!((asked.found, asked.places()), (Some((1, true)), vec![1]));
    world.behaviours[0] = GOOD;
    world.wait(2_000);
    let asked = world.ask(true);
    assert_eq!(asked.after, milliseconds(20), "the client does not wait");
    let mut places = asked.places();
    places.sort_unstable();
    assert_eq!(places, [0, 1], "both are asked at once");
    let asked = world.ask(true);
    assert_eq!((asked.found, asked.places()), (Some((0, true)), vec![0]));
}

#[test]
fn a_dead_first_upstream_delays_no_client_once_it_is_known() {
    let mut world = World::new(&[SILENT, GOOD]);
    world.ask(true);
    for _ in 0..20 {
        world.wait(700);
        let asked = world.ask(true);
        assert_eq!(
            (asked.found, asked.after),
            (Some((1, true)), milliseconds(20))
        );
    }
}

#[test]
fn immediate_errors_use_up_no_turn() {
    let unreachable = Behaviour {
        reach: Reach::Unreachable,
        ..GOOD
    };
    let mut world = World::new(&[unreachable, unreachable, unreachable, GOOD]);
    for _ in 0..2 {
        let asked = world.ask(true);
        assert_eq!(
            (asked.found, asked.after),
            (Some((3, true)), milliseconds(20))
        );
    }
}

#[test]
fn every_upstream_gets_its_turn_however_many_are_dead() {
    for dead in 1..10 {
        let mut behaviours = vec![SILENT; dead];
        behaviours.push(Behaviour {
            delay: 1_500,
            edns: Edns::Dropped,
            drops_mixed: true,
            ..GOOD
        });
        let asked = World::new(&behaviours).ask(true);
        assert_eq!(asked.found, Some((dead, true)));
    }
}

#[test]
fn an_upstream_that_always_needs_a_second_and_a_half_works() {
    let slow = Behaviour {
        delay: 1_500,
        ..GOOD
    };
    let mut world = World::new(&[slow]);
    for exists in [true, false, true] {
        let asked = world.ask(exists);
        assert_eq!(asked.found, Some((0, exists)));
    }
    assert_eq!(world.ask(true).after, milliseconds(1_500));
    // A slow reply is no evidence about the form of the query.
    assert_eq!(world.ask(true).forms()[0], FULL);
}

#[test]
fn an_upstream_without_mixed_case_gets_the_name_as_the_client_wrote_it_and_is_remembered() {
    let loses = Behaviour {
        loses_case: true,
        stream: Reach::Refused,
        ..GOOD
    };
    let sensitive = Behaviour {
        case_sensitive: true,
        ..GOOD
    };
    let drops = Behaviour {
        drops_mixed: true,
        ..GOOD
    };
    for behaviour in [loses, sensitive, drops] {
        let mut world = World::new(&[behaviour]);
        let asked = world.ask(true);
        assert_eq!(asked.found, Some((0, true)), "{behaviour:?}");
        assert!(asked.after < milliseconds(700));
        let asked = world.ask(true);
        assert_eq!(asked.forms(), [WRITTEN], "{behaviour:?}");
        assert_eq!(asked.found, Some((0, true)));
        world.wait(61_000);
        assert_eq!(world.ask(true).forms()[0], FULL, "it is tried again");
    }
}

#[test]
fn a_stream_keeps_the_protection_when_an_upstream_changes_the_case() {
    let mut world = World::new(&[Behaviour {
        loses_case: true,
        ..GOOD
    }]);
    for _ in 0..3 {
        let transports: Vec<Transport> = world
            .ask(true)
            .sends
            .iter()
            .map(|(_, s)| s.transport)
            .collect();
        assert_eq!(transports, [Transport::Udp, Transport::Tcp]);
    }
}

#[test]
fn an_upstream_that_refuses_or_drops_edns_is_queried_without_it_and_is_remembered() {
    for edns in [Edns::FormErr, Edns::Dropped] {
        let mut world = World::new(&[Behaviour { edns, ..GOOD }]);
        let asked = world.ask(true);
        assert_eq!(asked.found, Some((0, true)), "{edns:?}");
        assert!(asked.after < milliseconds(700));
        let asked = world.ask(true);
        assert_eq!(asked.forms(), [WITHOUT_EDNS], "{edns:?}");
        world.wait(61_000);
        assert_eq!(world.ask(true).forms()[0], FULL, "it is tried again");
    }
}

#[test]
fn an_upstream_without_mixed_case_and_edns_is_remembered_too() {
    let mut world = World::new(&[Behaviour {
        edns: Edns::Dropped,
        drops_mixed: true,
        ..GOOD
    }]);
    assert_eq!(world.ask(true).found, Some((0, true)));
    assert_eq!(world.ask(true).forms(), [SIMPLEST]);
}

#[test]
fn one_domain_cannot_take_the_protection_from_others() {
    let mut world = World::new(&[GOOD]);
    world.ask(true);
    for _ in 0..10 {
        world.behaviours[0].drops_mixed = true;
        world.ask(true);
        world.behaviours[0].drops_mixed = false;
        assert_eq!(world.ask(true).forms(), [FULL]);
    }
}

#[test]
fn that_a_name_does_not_exist_is_verified_as_the_client_wrote_it() {
    let mut world = World::new(&[GOOD]);
    for _ in 0..2 {
        let asked = world.ask(false);
        assert_eq!(asked.found, Some((0, false)));
        assert_eq!(asked.forms(), [FULL, WRITTEN]);
    }
}

#[test]
fn a_private_name_that_only_the_first_upstream_knows_is_not_denied_by_the_second() {
    let mut world = World::new(&[GOOD, GOOD]);
    let plan = world.memory.plan(&world.servers, world.now);
    let mut schedule = Schedule::new(plan, world.now);
    let mut now = world.now;
    let mut second = None;
    while second.is_none() {
        while let Some(send) = schedule.poll(now) {
            if send.place == 1 {
                second = Some(send.attempt);
            }
        }
        now = schedule.poll_timeout().expect("it waits").max(now);
    }
    let mut denial = answer(false);
    denial.code = ResponseCode::NoError;
    schedule.handle_reply(second.expect("sent"), Received::Answer(denial), now);
    assert!(schedule.outcome().is_none());
    schedule.handle_reply(0, Received::Answer(answer(true)), now);
    assert!(matches!(
        schedule.outcome(),
        Some(Outcome::Answer { place: 0, .. })
    ));
}

#[test]
fn when_no_upstream_is_reachable_the_client_gets_an_error_at_once() {
    let unreachable = Behaviour {
        reach: Reach::Unreachable,
        ..GOOD
    };
    let asked = World::new(&[unreachable; 3]).ask(true);
    assert_eq!((asked.found, asked.after), (None, Duration::ZERO));
    assert_eq!(World::new(&[]).ask(true).found, None);
}

fn reach() -> impl Strategy<Value = Reach> {
    prop_oneof![
        3 => Just(Reach::Good),
        1 => Just(Reach::Silent),
        1 => Just(Reach::Unreachable),
        1 => Just(Reach::Refused),
    ]
}

prop_compose! {
    fn behaviour()(
        reach in reach(),
        stream in reach(),
        delay in prop_oneof![0..100u64, 0..1_500u64, 1_400..=1_500u64, 1_500..6_000u64],
        edns in prop_oneof![Just(Edns::Handled), Just(Edns::Dropped), Just(Edns::FormErr)],
        flags in any::<[bool; 3]>(),
        cuts in prop::bool::weighted(0.2),
        fails in prop::bool::weighted(0.1),
        lost in prop_oneof![4 => Just(0usize), 1 => 1..4usize],
    ) -> Behaviour {
        let [loses_case, case_sensitive, drops_mixed] = flags;
        Behaviour { reach, stream, delay, edns, loses_case, case_sensitive, drops_mixed, cuts, fails, lost }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Over several questions, with what was learnt from the earlier ones, and upstreams that change in between.
    #[test]
    fn whenever_one_upstream_can_answer_the_client_gets_the_right_answer(
        behaviours in prop::collection::vec(behaviour(), 1..6),
        questions in prop::collection::vec(
            (0..5_000u64, any::<bool>(), prop::option::of((any::<prop::sample::Index>(), behaviour()))),
            1..8,
        ),
    ) {
        let mut world = World::new(&behaviours);
        for (wait, exists, change) in questions {
            if let Some((index, behaviour)) = change {
                let at = index.index(world.behaviours.len());
                world.behaviours[at] = behaviour;
            }
            world.wait(wait);
            let asked = world.ask(exists);
            if let Some((_, found)) = asked.found {
                prop_assert_eq!(found, exists, "a wrong answer: {:#?}", asked);
            }
            let usable = world.behaviours.iter().any(Behaviour::is_usable);
            prop_assert!(
                asked.found.is_some() || !usable,
                "no answer: {:#?} of {:#?}", asked, world.behaviours
            );
        }
    }

    /// The first upstream was dead, nothing is known about what it supports, and the second one is good.
    #[test]
    fn the_first_upstream_is_used_again_whatever_it_does_not_support(
        mut first in behaviour(),
        waits in prop::collection::vec(100..3_000u64, 8),
    ) {
        first = Behaviour { reach: Reach::Good, fails: false, lost: 0, delay: first.delay % 100, ..first };
        if first.cuts {
            first.stream = Reach::Good;
        }
        let mut world = World::new(&[SILENT, GOOD]);
        prop_assert_eq!(world.ask(true).found, Some((1, true)));
        world.behaviours[0] = first;
        for wait in waits {
            world.wait(wait);
            prop_assert!(world.ask(true).found.is_some());
        }
        world.wait(2_000);
        world.ask(true);
        for _ in 0..3 {
            let asked = world.ask(true);
            prop_assert_eq!(asked.found, Some((0, true)), "{:#?}", asked);
        }
    }
}

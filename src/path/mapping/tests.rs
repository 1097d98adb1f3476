use std::net::{Ipv4Addr, Ipv6Addr};

use super::proof::{DOUBTED_FOR, PROVE_INTERVAL};
use super::*;
use crate::testbed::records::plan;

const SECOND: Duration = Duration::from_secs(1);

fn site() -> Site {
    Site {
        gateway: Ipv4Addr::new(192, 168, 1, 1).into(),
        interface: 2,
        own: Ipv4Addr::new(192, 168, 1, 10).into(),
        port: 51820,
    }
}

fn granted(external: &str) -> Granted {
    Granted {
        protocol: Protocol::Pcp,
        external: external.parse().expect("a literal"),
        lifetime: LIFETIME,
    }
}

const OUTER: &str = "203.0.113.7:49152";

/// The mapping at a time that goes forward.
struct World {
    mapping: Mapping<u8>,
    now: Instant,
    provers: Vec<Prover<u8>>,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut mapping = Mapping::new(true, 0, now);
        assert!(!mapping.set_site(Some(site()), now));
        Self {
            mapping,
            now,
            provers: Vec::new(),
        }
    }

    /// A mapping that the router has just reported.
    fn held(external: &str) -> Self {
        let mut world = Self::new();
        world.ask();
        assert!(!world.answer(Ok(granted(external))));
        world
    }

    fn poll(&mut self) -> Vec<Action<u8>> {
        self.mapping.poll(&self.provers, self.now)
    }

    /// The request that is due.
    fn ask(&mut self) -> Request {
        match self.poll().as_slice() {
            [Action::Ask(request)] => *request,
            other => panic!("{other:?}"),
        }
    }

    fn answer(&mut self, result: Result<Granted, Refusal>) -> bool {
        let number = self.mapping.number;
        let answer = Answer { number, result };
        self.mapping.handle_answer(answer, &plan(), self.now)
    }

    fn outer(&self) -> SocketAddr {
        OUTER.parse().expect("a literal")
    }

    /// Lets time pass, and returns the seconds at which something is to be done. A peer that is asked to try answers as `tries` says.
    fn run(
        &mut self,
        seconds: u64,
        mut tries: impl FnMut(&mut Mapping<u8>, u8, Instant),
    ) -> Vec<(u64, Action<u8>)> {
        let (start, mut done) = (self.now, Vec::new());
        for second in 0..seconds {
            self.now = start + Duration::from_secs(second);
            for action in self.poll() {
                if let Action::Try(peer) = &action {
                    tries(&mut self.mapping, *peer, self.now);
                }
                done.push((second, action));
            }
        }
        self.now = start + Duration::from_secs(seconds);
        done
    }
}

fn relayed(peer: u8) -> Prover<u8> {
    Prover {
        peer,
        is_relayed: true,
        seen: None,
    }
}

fn direct(peer: u8, seen: &str) -> Prover<u8> {
    Prover {
        peer,
        is_relayed: false,
        seen: Some(seen.parse().expect("a literal")),
    }
}

#[test]
fn a_mapping_is_asked_for_at_the_gateway_and_renewed_at_half_its_lifetime() {
    let mut world = World::new();
    let request = world.ask();
    let expected = Request {
        number: 2,
        site: site(),
        port: 49152,
        order: Protocol::ALL,
    };
    assert_eq!(request, expected);
    assert_eq!(world.poll(), []);
    assert!(!world.answer(Ok(granted(OUTER))));
    assert_eq!(world.mapping.offered(), Some(world.outer()));
    world.now += LIFETIME / 2 - SECOND;
    assert_eq!(world.poll(), []);
    world.now += SECOND;
    assert_eq!(world.poll(), [Action::Renew(3)]);
    assert_eq!(world.poll(), []);
    assert!(!world.answer(Ok(granted(OUTER))));
    world.now += LIFETIME / 2;
    assert_eq!(world.poll(), [Action::Renew(4)]);
}

#[test]
fn a_mapping_that_is_not_renewed_is_asked_for_again_at_its_end() {
    let mut world = World::held(OUTER);
    world.now += LIFETIME / 2;
    assert_eq!(world.poll(), [Action::Renew(3)]);
    let silent = Refusal::Silent(site().gateway);
    assert!(!world.answer(Err(silent)));
    assert!(world.mapping.report().is_some());
    let actions = world.run(LIFETIME.as_secs() / 2 + 2, |_, _, _| {});
    let renewals = actions.iter();
    let renewals = renewals.filter(|(_, action)| matches!(action, Action::Renew(_)));
    assert!((1..=120).contains(&renewals.count()), "{actions:?}");
    let [.., (at, Action::Delete), (_, Action::Ask(_))] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(*at, LIFETIME.as_secs() / 2);
}

#[test]
fn an_outer_address_that_strangers_do_not_reach_is_no_mapping_and_says_why() {
    for (outer, reserved) in [
        ("10.1.2.3", Reserved::Private),
        ("192.168.178.20", Reserved::Private),
        ("172.16.0.1", Reserved::Private),
        ("100.64.0.2", Reserved::Shared),
        ("127.0.0.1", Reserved::Local),
        ("169.254.3.4", Reserved::Local),
        ("0.0.0.0", Reserved::Local),
        ("224.0.0.1", Reserved::Local),
        ("255.255.255.255", Reserved::Local),
        ("10.210.7.1", Reserved::Mesh),
        ("2001:db8::1", Reserved::Ipv6),
    ] {
        let ip: IpAddr = outer.parse().expect("a literal");
        let mut world = World::new();
        world.ask();
        let lie = Granted {
            external: SocketAddr::new(ip, 49152),
            ..granted(OUTER)
        };
        assert!(world.answer(Ok(lie)), "{outer}: it is to be deleted");
        let why = Refusal::Outer(Protocol::Pcp, ip, reserved);
        assert_eq!(world.mapping.why(), Some(&why));
        assert_eq!(world.mapping.offered(), None);
        assert!(why.reason().contains(outer), "{}", why.reason());
        let remedy = why.remedy(51820).expect("there is one");
        let is_provider = matches!(reserved, Reserved::Shared | Reserved::Mesh);
        assert_eq!(remedy.contains("provider"), is_provider, "{remedy}");
        let index = why.index().expect("a router that refuses");
        assert_eq!(world.mapping.refused()[index], 1);
    }
}

#[test]
fn an_answer_without_a_port_or_with_no_lifetime_is_refused() {
    for lie in [
        Granted {
            external: "203.0.113.7:0".parse().expect("a literal"),
            ..granted(OUTER)
        },
        Granted {
            lifetime: Duration::ZERO,
            ..granted(OUTER)
        },
    ] {
        let mut world = World::new();
        world.ask();
        let _ = world.answer(Ok(lie));
        assert!(matches!(world.mapping.why(), Some(Refusal::Denied(..))));
        assert_eq!(world.mapping.offered(), None);
    }
}

#[test]
fn no_lifetime_makes_this_node_renew_without_end() {
    let mut world = World::new();
    world.ask();
    let short = Granted {
        lifetime: Duration::from_millis(1),
        ..granted(OUTER)
    };
    let _ = world.answer(Ok(short));
    let mut renewals = 0;
    for _ in 0..600 {
        world.now += SECOND;
        for action in world.poll() {
            renewals += u32::from(matches!(action, Action::Renew(_)));
            let _ = world.answer(Ok(short));
        }
    }
    assert_eq!(renewals, 10);
    let mut world = World::new();
    world.ask();
    let _ = world.answer(Ok(Granted {
        lifetime: Duration::from_secs(u32::MAX.into()),
        ..granted(OUTER)
    }));
    assert!(world.mapping.poll_timeout() <= Some(world.now + 12 * 3600 * SECOND));
}

#[test]
fn a_second_answer_and_one_to_an_earlier_request_change_nothing() {
    let mut world = World::held(OUTER);
    let late = Answer {
        number: 1,
        result: Ok(granted("203.0.113.9:1")),
    };
    let _ = (world.mapping).handle_answer(late, &plan(), world.now);
    assert!(!world.answer(Ok(granted("203.0.113.9:2"))));
    assert_eq!(world.mapping.offered(), Some(world.outer()));
    // Between two networks the answer of the first one arrives.
    let mut world = World::new();
    let request = world.ask();
    let other = Site {
        own: Ipv4Addr::new(192, 168, 1, 11).into(),
        ..site()
    };
    assert!(!world.mapping.set_site(Some(other), world.now));
    assert_eq!(world.ask().site, other);
    let late = Answer {
        number: request.number,
        result: Ok(granted(OUTER)),
    };
    let _ = (world.mapping).handle_answer(late, &plan(), world.now);
    assert_eq!(world.mapping.report(), None);
}

#[test]
fn another_network_needs_another_mapping() {
    let mut world = World::held(OUTER);
    assert!(!world.mapping.set_site(Some(site()), world.now));
    let other = Site {
        gateway: Ipv4Addr::new(192, 168, 7, 1).into(),
        own: Ipv4Addr::new(192, 168, 7, 9).into(),
        ..site()
    };
    assert!(world.mapping.set_site(Some(other), world.now));
    assert_eq!(world.mapping.offered(), None);
    assert_eq!(world.ask().site, other);
    let _ = world.answer(Ok(granted(OUTER)));
    // The same addresses, but perhaps another router.
    world.mapping.handle_network_changed(world.now);
    let actions = world.poll();
    assert!(matches!(actions.as_slice(), [Action::Renew(_)]));
    assert!(world.mapping.set_site(None, world.now));
    assert_eq!(world.mapping.why(), Some(&Refusal::NoGateway));
    assert_eq!((world.poll(), world.mapping.poll_timeout()), (vec![], None));
}

#[test]
fn a_host_with_a_public_address_and_one_that_is_told_not_to_ask_no_router() {
    let now = Instant::now();
    let public = Site {
        own: Ipv4Addr::new(203, 0, 113, 4).into(),
        ..site()
    };
    let mut mapping: Mapping<u8> = Mapping::new(true, 0, now);
    let _ = mapping.set_site(Some(public), now);
    assert_eq!(mapping.poll(&[], now), []);
    assert_eq!(mapping.why(), Some(&Refusal::Public(public.own)));
    let mut mapping: Mapping<u8> = Mapping::new(false, 0, now);
    let _ = mapping.set_site(Some(site()), now);
    assert_eq!(mapping.poll(&[], now), []);
    assert_eq!(mapping.poll_timeout(), None);
}

#[test]
fn a_silent_router_is_asked_more_and_more_seldom() {
    let mut world = World::new();
    let (mut asked, start) = (Vec::new(), world.now);
    for second in 0..24 * 3600 {
        world.now = start + Duration::from_secs(second);
        for action in world.poll() {
            assert!(matches!(action, Action::Ask(_)), "{action:?}");
            asked.push(second);
            let _ = world.answer(Err(Refusal::Silent(site().gateway)));
        }
    }
    assert_eq!(asked[..5], [0, 60, 180, 420, 900]);
    assert_eq!(asked.len(), 6 + 23);
    // A request that is never answered ends as well.
    let mut world = World::new();
    let actions = world.run(200, |_, _, _| {});
    let asked: Vec<u64> = actions.iter().map(|(at, _)| *at).collect();
    assert_eq!(asked, [0, 90]);
}

#[test]
fn a_datagram_that_arrives_where_the_peer_sees_the_outer_address_proves_the_mapping() {
    let mut world = World::held(OUTER);
    world.provers = vec![direct(1, "203.0.113.7:51820")];
    assert_eq!(world.poll(), [Action::Try(1)]);
    // While somebody could show it, it is not offered before.
    assert_eq!(world.mapping.offered(), None);
    world.mapping.handle_tried(&1, world.now);
    assert_eq!(world.mapping.awaited(world.now), [1]);
    let other = "203.0.113.7:51820".parse().expect("a literal");
    world.mapping.handle_seen(&1, other, world.now);
    assert_eq!(world.mapping.offered(), None);
    world.now += SECOND / 10;
    world.mapping.handle_seen(&1, world.outer(), world.now);
    assert_eq!(world.mapping.offered(), Some(world.outer()));
    let proven = world.mapping.report().and_then(|report| report.proven);
    assert_eq!(proven, Some(world.now));
    assert_eq!(world.mapping.awaited(world.now), [0; 0]);
    // The next proof is asked for after some time, of the same peer if there is no other.
    let actions = world.run(60, |mapping, peer, now| {
        let outer = OUTER.parse().expect("a literal");
        mapping.handle_seen(&peer, outer, now);
    });
    let interval = PROVE_INTERVAL.as_secs();
    let tries: Vec<u64> = actions.iter().map(|(at, _)| *at).collect();
    assert_eq!(tries, [interval, 2 * interval]);
}

#[test]
fn what_arrived_before_the_mapping_was_made_proves_nothing() {
    let mut world = World::new();
    let before = world.now;
    world.ask();
    world.now += SECOND;
    let _ = world.answer(Ok(granted(OUTER)));
    world.mapping.handle_seen(&1, world.outer(), before);
    let report = world.mapping.report().expect("it is held");
    assert_eq!(report.proven, None);
}

#[test]
fn a_mapping_that_peers_try_in_vain_is_made_anew_within_a_minute_by_another_protocol_and_port() {
    let mut world = World::held(OUTER);
    world.provers = vec![direct(1, "203.0.113.7:51820"), relayed(2)];
    let actions = world.run(61, |mapping, peer, now| mapping.handle_tried(&peer, now));
    let asked = |action: &Action<u8>| matches!(action, Action::Try(_));
    let tries: Vec<(u64, Action<u8>)> = actions.iter().filter(|(_, a)| asked(a)).cloned().collect();
    let expected = [0, 1, 3, 7, 15, 25].into_iter();
    let peers = [2, 1].into_iter().cycle().map(Action::Try);
    assert_eq!(tries, expected.zip(peers).collect::<Vec<_>>());
    let [.., (at, Action::Delete), (again, Action::Ask(request))] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert!(*at <= 60 && *again <= 60, "{at} {again}");
    assert_eq!(request.port, 49153);
    let last = [Protocol::NatPmp, Protocol::Upnp, Protocol::Pcp];
    assert_eq!(request.order, last);
}

#[test]
fn a_router_that_lies_again_and_again_is_asked_more_and_more_seldom() {
    let mut world = World::new();
    world.provers = vec![relayed(1)];
    let (mut asked, start) = (Vec::new(), world.now);
    for second in 0..4 * 3600 {
        world.now = start + Duration::from_secs(second);
        for action in world.poll() {
            match action {
                Action::Ask(_) => {
                    asked.push(second);
                    let _ = world.answer(Ok(granted(OUTER)));
                }
                Action::Try(peer) => world.mapping.handle_tried(&peer, world.now),
                Action::Renew(_) | Action::Delete => {}
            }
        }
    }
    let first = asked.get(1).copied().unwrap_or_default();
    assert!(first <= 60, "{asked:?}");
    assert!((5..=10).contains(&asked.len()), "{asked:?}");
    assert!(matches!(world.mapping.why(), Some(Refusal::Dead(..))));
}

#[test]
fn lost_datagrams_and_peers_that_do_not_try_make_no_mapping_dead() {
    // The peer never says that it sends: it is of an earlier version, or has no IPv4.
    let mut world = World::held(OUTER);
    world.provers = vec![relayed(1)];
    let actions = world.run(600, |_, _, _| {});
    assert!(!actions.iter().any(|(_, action)| *action == Action::Delete));
    // Every second attempt is lost.
    let mut world = World::held(OUTER);
    world.provers = vec![relayed(1)];
    let mut turn = 0;
    let actions = world.run(600, |mapping, peer, now| {
        turn += 1;
        mapping.handle_tried(&peer, now);
        if turn % 2 == 0 {
            let outer = OUTER.parse().expect("a literal");
            mapping.handle_seen(&peer, outer, now);
        }
    });
    assert!(!actions.iter().any(|(_, action)| *action == Action::Delete));
}

#[test]
fn one_peer_that_claims_to_try_does_not_kill_a_mapping_that_others_prove() {
    let mut world = World::held(OUTER);
    world.provers = vec![relayed(1), relayed(2)];
    let actions = world.run(3600, |mapping, peer, now| {
        mapping.handle_tried(&peer, now);
        if peer == 2 {
            let outer = OUTER.parse().expect("a literal");
            mapping.handle_seen(&peer, outer, now);
        }
    });
    assert!(!actions.iter().any(|(_, action)| *action == Action::Delete));
}

#[test]
fn a_proven_mapping_that_dies_is_noticed_and_made_anew() {
    let mut world = World::held(OUTER);
    world.provers = vec![relayed(1), relayed(2)];
    world.poll();
    world.mapping.handle_seen(&1, world.outer(), world.now);
    assert!(world.mapping.offered().is_some());
    let actions = world.run(100, |mapping, peer, now| mapping.handle_tried(&peer, now));
    let deleted = actions.iter().find(|(_, action)| *action == Action::Delete);
    let (at, _) = deleted.expect("it is deleted");
    assert_eq!(*at, (PROVE_INTERVAL + DOUBTED_FOR).as_secs());
    assert!(*at < 60);
}

#[test]
fn peers_that_would_get_in_without_the_mapping_are_not_asked() {
    for prover in [
        // It has a translation at the outer address already.
        direct(1, OUTER),
        // It is in this node's own network.
        direct(1, "192.168.1.10:51820"),
        // It was not measured yet.
        Prover {
            seen: None,
            ..direct(1, OUTER)
        },
    ] {
        let mut world = World::held(OUTER);
        world.provers = vec![prover];
        assert_eq!(world.run(120, |_, _, _| {}), []);
        // Nobody can show that it works, so peers are told of it.
        assert_eq!(world.mapping.offered(), Some(world.outer()));
    }
}

#[test]
fn a_mapping_at_this_nodes_own_port_is_proven_only_by_a_peer_behind_a_relay() {
    let same = "203.0.113.7:51820";
    let outer = same.parse().expect("a literal");
    let mut world = World::held(same);
    world.provers = vec![direct(1, "203.0.113.7:51821"), relayed(2)];
    assert_eq!(world.poll(), [Action::Try(2)]);
    world.mapping.handle_seen(&1, outer, world.now);
    let proven = |world: &World| world.mapping.report().and_then(|report| report.proven);
    assert_eq!(proven(&world), None);
    world.mapping.handle_seen(&2, outer, world.now);
    assert_eq!(proven(&world), Some(world.now));
}

/// A host with a public IPv6 address behind a router that is known by its link-local address.
fn site_v6() -> Site {
    Site {
        gateway: "fe80::1".parse().expect("a literal"),
        interface: 2,
        own: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10).into(),
        port: 51820,
    }
}

const OWN_V6: &str = "[2001:db8::10]:51820";

impl World {
    fn behind_a_firewall() -> Self {
        let mut world = Self::new();
        assert!(!world.mapping.set_site(Some(site_v6()), world.now));
        world
    }
}

#[test]
fn a_hole_for_ipv6_is_asked_for_at_this_nodes_own_port_and_another_one_is_refused() {
    let mut world = World::behind_a_firewall();
    assert_eq!(world.ask().port, 51820);
    assert!(!world.answer(Ok(granted(OWN_V6))));
    let report = world.mapping.report().expect("it is held");
    assert_eq!(report.granted.external.to_string(), OWN_V6);
    for other in [
        "[2001:db8::10]:51821",
        "[2001:db8::77]:51820",
        "203.0.113.7:51820",
    ] {
        let mut world = World::behind_a_firewall();
        world.ask();
        let is_deleted = world.answer(Ok(granted(other)));
        assert!(is_deleted, "the router has opened it: {other}");
        assert_eq!(world.mapping.report(), None, "{other}");
        let why = world.mapping.why().map(Refusal::reason);
        assert!(
            why.is_some_and(|why| why.contains("in place of [2001:db8::10]:51820")),
            "{other}"
        );
    }
    let mut silent = World::behind_a_firewall();
    silent.ask();
    let _ = silent.answer(Err(Refusal::Silent(site_v6().gateway)));
    assert_eq!(
        silent.mapping.why().map(Refusal::reason).as_deref(),
        Some("the router fe80::1 does not answer PCP over IPv6")
    );
}

#[test]
fn a_hole_for_ipv6_is_proven_only_by_a_peer_that_was_asked_while_it_was_relayed() {
    let own: SocketAddr = OWN_V6.parse().expect("a literal");
    let mut world = World::behind_a_firewall();
    world.ask();
    assert!(!world.answer(Ok(granted(OWN_V6))));
    // A peer to which this node sends sees the same address without a hole, and is not asked.
    world.provers = vec![direct(1, OWN_V6)];
    assert_eq!(world.poll(), []);
    world.mapping.handle_seen(&1, own, world.now);
    let proven = |world: &World| world.mapping.report().and_then(|report| report.proven);
    assert_eq!(proven(&world), None);
    world.provers = vec![relayed(2)];
    world.now += 10 * SECOND;
    assert_eq!(world.poll(), [Action::Try(2)]);
    world.mapping.handle_tried(&2, world.now);
    world.now += SECOND;
    world.mapping.handle_seen(&2, own, world.now);
    assert_eq!(proven(&world), Some(world.now));
}

#[test]
fn the_router_is_never_asked_for_this_nodes_own_port() {
    let now = Instant::now();
    for port in [49152, 49153, 65535] {
        let mut mapping: Mapping<u8> = Mapping::new(true, port - 49152, now);
        let _ = mapping.set_site(Some(Site { port, ..site() }), now);
        let actions = mapping.poll(&[], now);
        let [Action::Ask(request)] = actions.as_slice() else {
            panic!("{actions:?}");
        };
        assert!(request.port != port && request.port >= 49152);
    }
}

#[test]
fn the_preferred_protocol_with_a_public_outer_address_is_taken() {
    let mesh = plan();
    let gateway = site().gateway;
    let public: Finding = Ok([203, 0, 113, 7].into());
    let private: Finding = Ok([10, 0, 0, 1].into());
    let silent: Finding = Err(Refusal::Silent(gateway));
    let choice = |findings: [Option<Finding>; 3]| choose(&Protocol::ALL, &findings, &mesh, gateway);
    assert_eq!(choice([None, Some(public.clone()), None]), Choice::Wait);
    let take = Choice::Take(Protocol::Pcp);
    assert_eq!(choice([Some(public.clone()), None, None]), take);
    let take = Choice::Take(Protocol::NatPmp);
    assert_eq!(
        choice([Some(silent.clone()), Some(public.clone()), None]),
        take
    );
    // A router that lies by one protocol may not lie by another one.
    let take = Choice::Take(Protocol::Upnp);
    let findings = [Some(private.clone()), Some(silent.clone()), Some(public)];
    assert_eq!(choice(findings), take);
    let outer = Refusal::Outer(Protocol::NatPmp, [10, 0, 0, 1].into(), Reserved::Private);
    let findings = [Some(silent.clone()), Some(private), Some(silent.clone())];
    assert_eq!(choice(findings), Choice::None(outer));
    let all = [Some(silent.clone()), Some(silent.clone()), Some(silent)];
    assert_eq!(choice(all), Choice::None(Refusal::Silent(gateway)));
}

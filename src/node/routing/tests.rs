use std::sync::Arc;

use super::*;
use crate::policy::Policy;
use crate::records::netmap::Rules;
use crate::testbed::records as build;

const LAN: &str = "192.168.1.0/24";

fn net(text: &str) -> Ipv4Net {
    text.parse().expect("a literal")
}

/// A mesh of the nodes 1 (this one), 2 and 3. `routes` has the networks with the nodes that route to them.
fn netmap(routes: &[(&str, &[u8])]) -> Netmap {
    let members = (1..=3u8).map(|n| {
        let id = build::id(n);
        let member = build::member(&id, &format!("n{n}"), build::block(n.into()));
        (id, member)
    });
    let routes = routes.iter().map(|(network, gateways)| {
        let gateways = gateways.iter().map(|n| build::id(*n));
        (net(network), gateways.collect())
    });
    Netmap {
        mesh: Some(build::mesh()),
        members: members.collect(),
        routes: routes.collect(),
        ..Netmap::default()
    }
}

/// Follows the map. `ways` has the nodes whose way is known: whether each is silent, and how far it is.
fn follow(
    routing: &mut Routing,
    netmap: &Netmap,
    interfaces: &[(&str, &str)],
    ways: &[(u8, bool, u8)],
) -> bool {
    let interfaces = interfaces.iter().map(|(name, net)| {
        let net = net.parse().expect("a literal");
        ((*name).to_owned(), net)
    });
    let interfaces: Vec<(String, IpNet)> = interfaces.collect();
    routing.follow(
        netmap,
        &RoutingInput {
            own: build::id(1),
            interfaces: &interfaces,
            standing: &standing(ways),
        },
    )
}

fn standing(ways: &[(u8, bool, u8)]) -> impl Fn(&PublicKey) -> Standing {
    move |id| {
        let way = ways.iter().find(|(n, ..)| build::id(*n) == *id);
        way.map_or(
            Standing {
                is_silent: false,
                group: u8::MAX,
            },
            |(_, is_silent, group)| Standing {
                is_silent: *is_silent,
                group: *group,
            },
        )
    }
}

fn chosen(routing: &Routing, network: &str) -> Option<PublicKey> {
    routing.chosen().get(&net(network)).copied()
}

#[test]
fn the_nearest_member_that_answers_is_used_and_the_other_one_takes_over_when_it_is_silent() {
    let netmap = netmap(&[(LAN, &[2, 3])]);
    let mut routing = Routing::default();
    assert!(follow(
        &mut routing,
        &netmap,
        &[],
        &[(2, false, 1), (3, false, 2)]
    ));
    assert_eq!(chosen(&routing, LAN), Some(build::id(2)));
    let is_current = |is_silent| {
        let ways = [(2, is_silent, 1), (3, false, 2)];
        routing.is_current(&netmap, standing(&ways))
    };
    assert!(is_current(false) && !is_current(true));
    assert!(follow(
        &mut routing,
        &netmap,
        &[],
        &[(2, true, 1), (3, false, 2)]
    ));
    assert_eq!(chosen(&routing, LAN), Some(build::id(3)));
    assert!(follow(
        &mut routing,
        &netmap,
        &[],
        &[(2, false, 1), (3, false, 2)]
    ));
    assert_eq!(
        chosen(&routing, LAN),
        Some(build::id(2)),
        "the nearer one is back"
    );
    let changes = routing.take_changes();
    assert_eq!(changes.len(), 3);
    assert_eq!(changes[1].by, Some(build::label("n3")));
}

#[test]
fn of_equally_near_members_the_one_in_use_stays_in_use() {
    let netmap = netmap(&[(LAN, &[2, 3])]);
    for first in [2, 3] {
        let mut routing = Routing::default();
        let other = 5 - first;
        follow(
            &mut routing,
            &netmap,
            &[],
            &[(first, false, 1), (other, true, 1)],
        );
        assert_eq!(chosen(&routing, LAN), Some(build::id(first)));
        assert!(!follow(
            &mut routing,
            &netmap,
            &[],
            &[(first, false, 1), (other, false, 1)]
        ));
        assert_eq!(chosen(&routing, LAN), Some(build::id(first)));
    }
}

#[test]
fn a_network_whose_members_are_all_silent_keeps_its_way() {
    let netmap = netmap(&[(LAN, &[2])]);
    let mut routing = Routing::default();
    follow(&mut routing, &netmap, &[], &[(2, true, 1)]);
    assert_eq!(chosen(&routing, LAN), Some(build::id(2)));
}

#[test]
fn a_network_that_is_permitted_no_more_leads_to_nobody() {
    let mut routing = Routing::default();
    follow(&mut routing, &netmap(&[(LAN, &[2])]), &[], &[]);
    assert!(follow(&mut routing, &netmap(&[]), &[], &[]));
    assert!(routing.chosen().is_empty() && routing.is_idle(&netmap(&[])));
    let last = routing.take_changes().pop().expect("a change");
    assert_eq!((last.network, last.by), (net(LAN), None));
}

#[test]
fn the_network_that_this_machine_is_in_is_not_sent_into_the_tunnel() {
    let netmap = netmap(&[
        (LAN, &[2]),
        ("192.168.0.0/16", &[2]),
        ("192.168.1.128/25", &[3]),
        ("192.168.9.0/24", &[3]),
    ]);
    let mut routing = Routing::default();
    follow(&mut routing, &netmap, &[("eth0", "192.168.1.7/24")], &[]);
    let networks: Vec<String> = routing.chosen().keys().map(ToString::to_string).collect();
    // The kernel prefers the interface to the wider network.
    assert_eq!(networks, ["192.168.0.0/16", "192.168.9.0/24"]);
    let problems = routing.problems(&netmap, &build::label("n1"));
    assert_eq!(problems.len(), 2);
    assert!(problems[0].why.contains("eth0"), "{problems:?}");
    let rows = routing.rows(&netmap, &build::id(1), standing(&[]));
    let not_used = rows.iter().filter(|row| row.state == RouteState::NotUsed);
    assert_eq!(not_used.count(), 2);
}

#[test]
fn the_member_that_routes_to_a_wider_network_is_no_host_of_the_networks_that_this_node_has_in_it() {
    let netmap = netmap(&[
        ("192.168.0.0/22", &[2]),
        ("192.168.2.0/24", &[1]),
        ("192.168.9.0/24", &[3]),
    ]);
    let mut routing = Routing::default();
    follow(&mut routing, &netmap, &[("eth0", "192.168.1.0/24")], &[]);
    let networks: Vec<String> = routing.chosen().keys().map(ToString::to_string).collect();
    assert_eq!(networks, ["192.168.0.0/22", "192.168.9.0/24"]);
    let lan = (
        "eth0".to_owned(),
        "192.168.1.0/24".parse().expect("a literal"),
    );
    let through = routing.through_tunnel(&[lan]);
    assert_eq!(
        through,
        [
            (net("192.168.0.0/24"), build::id(2)),
            (net("192.168.3.0/24"), build::id(2)),
            (net("192.168.9.0/24"), build::id(3)),
        ]
    );
    // A network inside one to which this node routes is reached by the other member as a whole.
    let wider = self::netmap(&[("192.168.0.0/16", &[1]), ("192.168.9.0/24", &[3])]);
    follow(&mut routing, &wider, &[], &[]);
    let through = routing.through_tunnel(&[]);
    assert_eq!(through, [(net("192.168.9.0/24"), build::id(3))]);
}

#[test]
fn the_network_to_which_this_node_routes_itself_is_not_sent_to_others() {
    let netmap = netmap(&[(LAN, &[1, 2]), ("192.168.9.0/24", &[1])]);
    let mut routing = Routing::default();
    assert!(follow(&mut routing, &netmap, &[], &[]));
    assert!(routing.chosen().is_empty());
    assert_eq!(routing.own().len(), 2);
    let rows = routing.rows(&netmap, &build::id(1), standing(&[]));
    let states: Vec<RouteState> = rows.iter().map(|row| row.state).collect();
    let own = states.iter().filter(|state| **state == RouteState::Own);
    assert_eq!((states.len(), own.count()), (3, 2));
}

#[test]
fn a_network_that_would_take_the_tunnel_s_own_datagrams_is_left_out() {
    let hindered = |network: &str, endpoints: &[&str]| {
        let mut netmap = netmap(&[(network, &[2])]);
        let endpoints = endpoints.iter().map(|e| e.parse().expect("a literal"));
        let endpoints: Vec<SocketAddr> = endpoints.collect();
        if let Some(member) = netmap.members.get_mut(&build::id(2)) {
            *member = Member {
                endpoints,
                ..member.clone()
            };
        }
        let mut routing = Routing::default();
        follow(&mut routing, &netmap, &[], &[]);
        routing.chosen().is_empty()
    };
    // The address of a node in its own network is one of several.
    assert!(!hindered(LAN, &["192.168.1.10:51820", "203.0.113.7:51820"]));
    assert!(!hindered(LAN, &[]));
    assert!(hindered(
        "203.0.113.0/24",
        &["192.168.1.10:51820", "203.0.113.7:51820"]
    ));
    assert!(hindered("10.1.0.0/16", &["10.1.0.5:51820"]));
    assert!(!hindered("10.1.0.0/16", &["10.2.0.5:51820"]));
}

#[test]
fn a_member_behind_a_router_routes_to_its_local_network_and_is_reached_at_the_router() {
    let hindered = |network: &str| {
        let mut netmap = netmap(&[(network, &[2])]);
        if let Some(member) = netmap.members.get_mut(&build::id(2)) {
            member.endpoints = vec!["192.168.1.10:51820".parse().expect("a literal")];
            member.at_router.observed = vec!["203.0.113.7:4000".parse().expect("a literal")];
        }
        let mut routing = Routing::default();
        follow(&mut routing, &netmap, &[], &[]);
        routing.chosen().is_empty()
    };
    assert!(!hindered(LAN));
    assert!(hindered("203.0.113.0/24"));
}

#[test]
fn an_offer_without_permission_is_a_problem_that_names_the_line_that_is_missing() {
    let routing = Routing::new(vec![net(LAN).into(), net("192.168.2.0/24").into()]);
    let mut netmap = netmap(&[]);
    let name = build::label("n1");
    let open = routing.problems(&netmap, &name);
    assert_eq!(open.len(), 1, "without a policy there is no permission");
    let text = "language = 1\n[[route]]\nnode = \"n1\"\nprefix = \"192.168.0.0/23\"\n";
    netmap.rules = Rules::Policy(Arc::new(Policy::parse(text).expect("a literal")));
    let problems = routing.problems(&netmap, &name);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].what.contains("192.168.2.0/24"), "{problems:?}");
    assert!(!problems[0].what.contains(LAN), "{problems:?}");
    assert!(
        problems[0]
            .fix
            .contains("[[route]] node = \"n1\" prefix = \"192.168.2.0/24\""),
        "{problems:?}"
    );
    assert!(
        routing.problems(&netmap, &build::label("n2"))[0]
            .what
            .contains(LAN)
    );
}

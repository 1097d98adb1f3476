use super::*;

fn end(name: &str, endpoints: &[&str]) -> End {
    End {
        name: name.to_owned(),
        endpoints: endpoints
            .iter()
            .map(|text| text.parse().expect("a literal"))
            .collect(),
        outer: None,
    }
}

/// The /24 of an IPv4 endpoint.
fn network(endpoint: &str) -> ipnet::IpNet {
    let (address, _) = endpoint.split_once(':').expect("a port");
    format!("{address}/24").parse().expect("a literal")
}

/// `nas` does not reach `web-1`, and never did.
fn unreached(own: &[&str], peer: &[&str]) -> Situation {
    Situation {
        own: end("nas", own),
        peer: end("web-1", peer),
        reach: Reach::Unreachable,
        is_heard: false,
        arrives: false,
        any_heard: true,
        networks: own.iter().map(|endpoint| network(endpoint)).collect(),
        ipv6: Ipv6State::None,
        calls: Calls::Pending,
        isolated: None,
    }
}

const HOME: &[&str] = &["192.168.1.20:51820"];
const OTHER_HOME: &[&str] = &["10.0.7.2:51820"];
const PUBLIC: &[&str] = &["203.0.113.9:51821", "10.9.0.1:51821"];

#[test]
fn two_nodes_behind_routers_are_told_to_forward_a_port_or_to_have_ipv6() {
    let behind = unreached(HOME, OTHER_HOME);
    assert_eq!(
        behind.remedies(),
        [
            "on web-1's router forward UDP 51820 to 10.0.7.2, or on nas's router forward UDP 51820 to 192.168.1.20, or give both IPv6"
        ]
    );
    let mut with_ipv6 = Situation {
        ipv6: Ipv6State::Public,
        ..behind
    };
    with_ipv6.own.outer = "198.51.100.7".parse().ok();
    assert_eq!(
        with_ipv6.remedies(),
        [
            "on web-1's router forward UDP 51820 to 10.0.7.2, or on nas's router (198.51.100.7) forward UDP 51820 to 192.168.1.20, or give web-1 IPv6"
        ]
    );
}

#[test]
fn the_node_with_a_public_address_has_to_open_its_port() {
    assert_eq!(
        unreached(HOME, PUBLIC).remedies(),
        [
            "open UDP port 51821 of web-1 (203.0.113.9) for UDP datagrams from everywhere, because nas is behind a router and has to speak first"
        ]
    );
    assert_eq!(
        unreached(PUBLIC, HOME).remedies(),
        [
            "open UDP port 51821 of nas (203.0.113.9) for UDP datagrams from everywhere, because web-1 is behind a router and has to speak first",
            "check that meshd runs on web-1, and that its network lets UDP out"
        ]
    );
    assert_eq!(
        unreached(PUBLIC, &["198.51.100.3:51820", "[2001:db8::3]:51820"]).remedies(),
        [
            "open UDP port 51821 of nas (203.0.113.9) and UDP port 51820 of web-1 (198.51.100.3 or 2001:db8::3), in both directions, in every firewall between them"
        ]
    );
}

#[test]
fn two_machines_in_one_network_have_firewalls_and_no_router_between_them() {
    let near = unreached(HOME, &["192.168.1.30:51820"]);
    assert_eq!(
        near.remedies(),
        [
            "open UDP port 51820 of nas (192.168.1.20) and UDP port 51820 of web-1 (192.168.1.30) in the firewalls of the two machines, which are in one network"
        ]
    );
    let same_address = unreached(HOME, HOME);
    let told = same_address.remedies().concat();
    assert!(told.starts_with("on web-1's router forward"), "{told}");
}

#[test]
fn a_network_in_which_no_peer_answers_is_suspected_to_drop_udp() {
    let alone = Situation {
        any_heard: false,
        ..unreached(HOME, PUBLIC)
    };
    assert_eq!(
        alone.remedies().last().map(String::as_str),
        Some(
            "let this network's firewall pass UDP from port 51820 to the outside, because no peer answers at all"
        )
    );
}

#[test]
fn handshakes_that_arrive_and_are_not_answered_are_lost_on_the_way_back() {
    let half = Situation {
        arrives: true,
        ..unreached(PUBLIC, &["198.51.100.3:51820"])
    };
    assert_eq!(
        half.remedies(),
        [
            "let UDP datagrams from UDP port 51821 of nas (203.0.113.9) pass to UDP port 51820 of web-1 (198.51.100.3), because handshakes of web-1 arrive and the answers to them are lost"
        ]
    );
}

#[test]
fn a_peer_that_was_reached_before_or_has_no_address_is_to_be_looked_at() {
    let lost = Situation {
        is_heard: true,
        ..unreached(HOME, PUBLIC)
    };
    assert_eq!(
        lost.remedies(),
        [
            "check that web-1 and its network are up, because it was reached before; if it will not come back, run `meshctl node remove web-1`"
        ]
    );
    assert_eq!(
        unreached(HOME, &[]).remedies(),
        ["check that meshd runs on web-1, because it has published no address yet"]
    );
}

#[test]
fn a_node_that_is_no_member_or_that_reaches_its_peer_is_told_nothing_about_ports() {
    let of = |isolated| Situation {
        isolated,
        ..unreached(HOME, PUBLIC)
    };
    assert_eq!(
        of(Some(Isolated::Removed)).remedies(),
        [
            "run `meshctl leave` on this machine, then `meshctl join` with a new token, because the mesh removed this node"
        ]
    );
    assert_eq!(
        of(Some(Isolated::Copied)).remedies(),
        [
            "run `meshctl leave` on this machine, then `meshctl join` with a new token, because another machine has the same keys"
        ]
    );
    let reached = Situation {
        reach: Reach::Reachable,
        ..unreached(HOME, PUBLIC)
    };
    assert!(reached.remedies().is_empty());
}

#[test]
fn each_endpoint_that_leads_nowhere_has_its_own_reason() {
    let situation = unreached(HOME, PUBLIC);
    let endpoint = |text: &str| text.parse().expect("a literal");
    let unusable = |text| situation.why_unusable(endpoint(text));
    assert_eq!(
        unusable("192.168.1.20:51820").as_deref(),
        Some("this host has the same address in its own network")
    );
    assert_eq!(
        unusable("[2001:db8::7]:51820").as_deref(),
        Some("no IPv6 here")
    );
    assert_eq!(unusable("203.0.113.9:51821"), None);
    let failed = |text| situation.why_failed(endpoint(text));
    assert_eq!(
        failed("10.9.0.1:51821"),
        "an address of web-1's private network, which others reach only through its router"
    );
    assert_eq!(
        failed("192.168.1.30:51821"),
        "a firewall drops it, or web-1 is in another network with the same addresses"
    );
    assert_eq!(
        failed("203.0.113.9:51821"),
        "a firewall drops it, or meshd does not run on web-1"
    );
}

#[test]
fn addresses_that_no_stranger_reaches_are_private() {
    for (text, expected) in [
        ("10.1.2.3", true),
        ("100.64.0.1", true),
        ("100.128.0.1", false),
        ("169.254.1.1", true),
        ("203.0.113.9", false),
        ("fd00::1", true),
        ("fe80::1", true),
        ("2001:db8::1", false),
    ] {
        assert_eq!(
            is_private(text.parse().expect("a literal")),
            expected,
            "{text}"
        );
    }
}

#[test]
fn what_a_call_shows_is_the_last_remedy_if_a_router_is_in_between() {
    let last = |calls, peer: &[&str]| {
        let situation = Situation {
            calls,
            ..unreached(HOME, peer)
        };
        situation.remedies().pop().unwrap_or_default()
    };
    let sent = |by_coordinator, by_peers| {
        let calls = Calls::Unanswered {
            by_coordinator,
            by_peers,
        };
        last(calls, OTHER_HOME)
    };
    assert_eq!(
        sent(false, 2),
        "connect web-1 to the coordinator, or to a member that this node reaches as well, because it did not answer the last call of this node (sent by 2 members)"
    );
    assert!(sent(true, 0).ends_with("(sent over the coordinator)"));
    assert!(sent(true, 1).ends_with("(sent over the coordinator and by 1 member)"));
    assert!(last(Calls::NoWay, OTHER_HOME).starts_with("connect this node to the coordinator"));
    assert!(last(Calls::Unsupported, PUBLIC).starts_with("upgrade meshd on web-1"));
    assert!(last(Calls::Answered, OTHER_HOME).starts_with("let a member with a public address"));
    // The other remedies stay.
    let before = unreached(HOME, OTHER_HOME).remedies();
    let with_call = Situation {
        calls: Calls::Answered,
        ..unreached(HOME, OTHER_HOME)
    };
    assert_eq!(with_call.remedies()[..before.len()], before);
    let public = Situation {
        calls: Calls::Answered,
        ..unreached(PUBLIC, &["203.0.113.77:51820"])
    };
    assert_eq!(
        public.remedies(),
        unreached(PUBLIC, &["203.0.113.77:51820"]).remedies()
    );
}

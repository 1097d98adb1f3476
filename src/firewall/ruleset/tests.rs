mod differential;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use super::*;
use crate::firewall::{LocalPolicy, Mapped, Outside, StateV6};
use crate::policy::{Asked, PortSet};
use crate::records::kinds::Protocol;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("a literal")
}

fn net(text: &str) -> Ipv4Net {
    text.parse().expect("a literal")
}

fn mapped(container: &str) -> Mapped {
    Mapped {
        container: ip(container),
        pid: None,
        name: "db-1".into(),
        ports: Some(BTreeSet::from([
            (Protocol::Tcp, NonZeroU16::new(5432).expect("not 0")),
            (Protocol::Udp, NonZeroU16::new(53).expect("not 0")),
        ])),
    }
}

fn without_containers() -> FirewallState {
    FirewallState {
        interface: "mesh0".into(),
        prefix: net("10.210.0.0/16"),
        block: net("10.210.1.0/24"),
        node: ip("10.210.1.1"),
        bridges: BTreeMap::new(),
        mappings: BTreeMap::new(),
        service_addresses: BTreeMap::new(),
        native: None,
        outside: Outside::default(),
        policy: None,
        guests: BTreeSet::new(),
        v6: None,
    }
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("a literal")
}

/// The part for IPv6 of a node whose containers have no IPv6.
fn without_containers_v6() -> StateV6 {
    StateV6 {
        prefix: "fd00:1:2::/48".parse().expect("a literal"),
        block: "fd00:1:2:1::/64".parse().expect("a literal"),
        node: v6("fd00:1:2:1::1"),
        networks: BTreeMap::new(),
        mappings: BTreeMap::new(),
        guests: BTreeSet::new(),
    }
}

fn mapped_v6(container: &str) -> Mapped<Ipv6Addr> {
    let Mapped {
        pid, name, ports, ..
    } = mapped("172.18.0.2");
    Mapped {
        container: v6(container),
        pid,
        name,
        ports,
    }
}

/// The containers of [`with_policy`], which have addresses of both families, and the same policy for both.
fn dual() -> FirewallState {
    let subnet = |text: &str| vec![text.parse().expect("a literal")];
    let state = with_policy();
    let policy = |node: IpAddr, web: IpAddr, db: IpAddr| {
        let (of_db, of_node) = asked_of_servers();
        let names = PortSet::of(Asked::Port(Protocol::Udp, 53));
        [
            (web, db, of_db),
            (node, web, PortSet::everything()),
            (node, db, names),
            (db, node, of_node),
        ]
    };
    let [v4, v6_too] = [
        policy(
            ip("10.210.1.1").into(),
            ip("10.210.1.2").into(),
            ip("10.210.1.3").into(),
        ),
        policy(
            v6("fd00:1:2:1::1").into(),
            v6("fd00:1:2:1::2").into(),
            v6("fd00:1:2:1::3").into(),
        ),
    ];
    FirewallState {
        policy: Some(LocalPolicy::allowing(&[v4, v6_too].concat())),
        v6: Some(StateV6 {
            networks: BTreeMap::from([
                ("br-0a1b2c3d4e5f".into(), subnet("fd00:18::/64")),
                ("docker0".into(), subnet("fd00:17::/64")),
            ]),
            mappings: BTreeMap::from([
                (v6("fd00:1:2:1::2"), mapped_v6("fd00:18::2")),
                (v6("fd00:1:2:1::3"), mapped_v6("fd00:17::5")),
            ]),
            ..without_containers_v6()
        }),
        ..state
    }
}

fn table_v6(state: &FirewallState) -> String {
    let part = state.v6.as_ref().expect("it has IPv6");
    ValidState::of(state).table_v6(part, &state.interface, false)
}

fn with_containers() -> FirewallState {
    FirewallState {
        bridges: BTreeMap::from([
            ("br-0a1b2c3d4e5f".into(), vec![net("172.18.0.0/16")]),
            ("docker0".into(), vec![net("172.17.0.0/16")]),
        ]),
        mappings: BTreeMap::from([
            (ip("10.210.1.2"), mapped("172.18.0.2")),
            (ip("10.210.1.3"), mapped("172.17.0.5")),
        ]),
        service_addresses: BTreeMap::from([
            (ip("10.210.0.64"), vec![ip("10.210.1.2"), ip("10.210.2.7")]),
            (ip("10.210.0.65"), vec![]),
            (ip("10.210.0.66"), vec![ip("10.210.3.4")]),
        ]),
        ..without_containers()
    }
}

fn table(state: &FirewallState) -> String {
    ValidState::of(state).table(state, false)
}

#[test]
fn the_whole_table_of_a_node_with_containers() {
    assert_eq!(table(&with_containers()), include_str!("containers.nft"));
}

#[test]
fn the_whole_table_of_a_node_without_containers() {
    assert_eq!(table(&without_containers()), include_str!("empty.nft"));
}

#[test]
fn the_whole_tables_of_the_other_families() {
    let state = FirewallState {
        v6: Some(without_containers_v6()),
        ..with_containers()
    };
    let ports = BTreeMap::from([(
        ip("172.18.0.2").into(),
        vec!["veth12ab".to_owned(), "veth34cd".to_owned()],
    )]);
    assert_eq!(
        table_v6(&state) + &guard_bridges(&state, &ports, None),
        include_str!("guards.nft")
    );
}

#[test]
fn the_whole_tables_of_a_node_whose_containers_have_ipv6() {
    let state = dual();
    let ports = BTreeMap::from([
        (ip("172.18.0.2").into(), vec!["veth12ab".to_owned()]),
        (v6("fd00:18::2").into(), vec!["veth12ab".to_owned()]),
        (
            v6("fd00:17::5").into(),
            vec!["veth34cd".to_owned(), "veth56ef".to_owned()],
        ),
    ]);
    assert_eq!(
        table_v6(&state) + &guard_bridges(&state, &ports, None),
        include_str!("dual.nft")
    );
    // What is of IPv4 does not depend on it.
    assert_eq!(table(&state), include_str!("policy.nft"));
    let valid = ValidState::of(&state);
    let part = state.v6.as_ref().expect("it has IPv6");
    let rule = "\t\tct status dnat ct original ip6 daddr fd00:1:2::/48 meta mark set meta mark | 0x02000000\n";
    let with_mark = valid.table_v6(part, "mesh0", true);
    assert!(with_mark.contains(rule), "{with_mark}");
    assert_eq!(with_mark.replace(rule, ""), table_v6(&state));
}

#[test]
fn a_kernel_that_cannot_translate_ipv6_still_guards_the_prefix() {
    let state = dual();
    let part = state.v6.as_ref().expect("it has IPv6");
    let guard = ValidState::of(&state).guard_v6(part, "mesh0");
    assert!(guard.contains("ip6 saddr fd00:1:2::/48 drop"));
    let translating = ["dnat", "snat", "type nat", "ct status", "own_names"];
    for word in translating {
        assert!(!guard.contains(word), "{word} in {guard}");
    }
    // What containers may ask of the node does not depend on a translation.
    let to_node = |text: &str| {
        let chain = text.split_once("chain to_node {");
        let chain = chain.and_then(|(_, rest)| rest.split_once("\n\t}"));
        chain.map(|(chain, _)| chain.to_owned())
    };
    assert!(to_node(&guard).is_some_and(|chain| chain.ends_with("\tdrop")));
    assert_eq!(to_node(&guard), to_node(&table_v6(&state)));
    let without = FirewallState {
        policy: None,
        ..state
    };
    let part = without.v6.as_ref().expect("it has IPv6");
    let guard = ValidState::of(&without).guard_v6(part, "mesh0");
    for word in ["ct state", "ct direction", "ct original"] {
        assert!(!guard.contains(word), "{word} in {guard}");
    }
}

#[test]
fn invalid_ipv6_addresses_are_left_out_and_named() {
    let honest = table_v6(&dual());
    let mut state = dual();
    let part = state.v6.as_mut().expect("it has IPv6");
    for (instance, container) in [
        ("fd00:1:2:1::1", "fd00:17::9"),
        ("fd00:1:2:2::2", "fd00:17::9"),
        ("fd00:1:2:1::9", "::1"),
        ("fd00:1:2:1::a", "fd00:1:2:1::2"),
        ("fd00:1:2:1::b", "::"),
        ("fd00:1:2:1::c", "ff02::1"),
        ("fd00:1:2:1::d", "fe80::2"),
        ("fd00:1:2:1::e", "fd00:18::2"),
    ] {
        part.mappings.insert(v6(instance), mapped_v6(container));
    }
    let wide = vec!["fd00::/8".parse().expect("a literal")];
    part.networks.insert("docker0".into(), wide);
    let valid = ValidState::of(&state);
    assert_eq!(valid.left_out.len(), 9, "{:#?}", valid.left_out);
    let expected = honest.replace("fd00:17::/64, ", "");
    assert_eq!(table_v6(&state), expected);
}

#[test]
fn a_policy_decides_about_connections_over_ipv6_as_over_ipv4() {
    let state = dual();
    let valid = ValidState::of(&state);
    let local = valid.local_v6().expect("containers");
    let (web, db) = ("fd00:18::2", "fd00:17::5");
    let tcp = |port| Asked::Port(Protocol::Tcp, port);
    for (from, to, server, asked, allowed) in [
        (web, "fd00:1:2:1::3", db, tcp(5432), true),
        (web, "fd00:1:2:1::3", db, Asked::Icmp, true),
        (web, "fd00:1:2:1::3", db, tcp(22), false),
        (db, "fd00:1:2:1::2", web, tcp(5432), false),
        ("fd00:17::9", "fd00:1:2:1::3", db, tcp(5432), false),
        (db, "fd00:1:2:1::1", "fd00:1:2:1::1", tcp(9150), true),
        (web, "fd00:1:2:1::1", "fd00:1:2:1::1", tcp(9150), false),
        ("fd00:1:2:2::7", "fd00:1:2:1::3", db, tcp(22), true),
        (web, "2001:db8::1", "2001:db8::1", tcp(22), true),
    ] {
        let found = local.allows((v6(from), v6(to), v6(server)), asked);
        assert_eq!(found, allowed, "{from} to {to} at {server}: {asked}");
    }
    let of_v4 = (ip("172.18.0.2"), ip("10.210.1.3"), ip("172.17.0.5"));
    assert!(local.allows(of_v4, tcp(22)), "that is not decided here");
}

#[test]
fn a_container_that_accepts_connections_on_all_ports_has_no_rule_about_ports() {
    let mut state = with_containers();
    let one = state.mappings.get_mut(&ip("10.210.1.3"));
    one.expect("there").ports = None;
    let text = table(&state);
    assert!(text.contains("10.210.1.2 . tcp . 5432, 10.210.1.2 . udp . 53"));
    assert!(!text.contains("10.210.1.3 . "));
    for mapped in state.mappings.values_mut() {
        mapped.ports = None;
    }
    assert!(!table(&state).contains("declar"));
}

#[test]
fn a_service_address_leads_to_the_containers_that_declare_the_port() {
    let mut state = with_containers();
    let other = state.mappings.get_mut(&ip("10.210.1.3")).expect("there");
    other.ports = Some(BTreeSet::from([(
        Protocol::Tcp,
        NonZeroU16::new(9187).expect("not 0"),
    )]));
    let both = vec![ip("10.210.1.2"), ip("10.210.1.3")];
    state.service_addresses = BTreeMap::from([(ip("10.210.0.64"), both)]);
    let text = table(&state);
    let rules = "\tchain services {
\t\tip daddr 10.210.0.64 tcp dport 5432 dnat to 172.18.0.2
\t\tip daddr 10.210.0.64 tcp dport 9187 dnat to 172.17.0.5
\t\tip daddr 10.210.0.64 udp dport 53 dnat to 172.18.0.2
\t\tip daddr 10.210.0.64 meta l4proto icmp dnat to numgen random mod 2 map { 0 : 172.17.0.5, 1 : 172.18.0.2 }
\t}\n";
    assert!(text.contains(rules), "{text}");
}

#[test]
fn the_mark_is_set_only_if_it_is_requested() {
    let state = with_containers();
    let with = ValidState::of(&state).table(&state, true);
    let rule = "\t\tct status dnat ct original ip daddr 10.210.0.0/16 meta mark set meta mark | 0x02000000\n";
    assert!(with.contains(rule));
    assert_eq!(with.replace(rule, ""), table(&state));
}

#[test]
fn a_name_cannot_add_a_rule() {
    let honest = table(&with_containers());
    for name in [
        "br\" } ; flush ruleset",
        "br*",
        "br\n}",
        "",
        "-",
        "br/0",
        "sixteen-letters-",
        "mesh0",
        "brücke",
    ] {
        let mut state = with_containers();
        state
            .bridges
            .insert(name.into(), vec![net("172.30.0.0/16")]);
        let container = state.mappings.get_mut(&ip("10.210.1.2")).expect("there");
        container.name = format!("x\" }} {name}");
        let valid = ValidState::of(&state);
        assert_eq!(valid.left_out.len(), 1, "{name:?}: {valid:?}");
        assert_eq!(valid.table(&state, false), honest, "{name:?}");
        let ports = BTreeMap::from([(ip("172.18.0.2").into(), vec![name.to_owned()])]);
        if name != "mesh0" {
            let none = guard_bridges(&state, &BTreeMap::new(), None);
            assert_eq!(guard_bridges(&state, &ports, None), none);
        }
    }
}

#[test]
fn invalid_addresses_are_left_out_and_named() {
    let honest = table(&with_containers());
    let mut state = with_containers();
    for (instance, container) in [
        ("10.210.1.1", "172.17.0.9"),
        ("10.210.2.2", "172.17.0.9"),
        ("10.210.1.9", "127.0.0.1"),
        ("10.210.1.10", "10.210.1.2"),
        ("10.210.1.11", "0.0.0.0"),
        ("10.210.1.12", "224.0.0.1"),
        ("10.210.1.13", "172.18.0.2"),
    ] {
        state.mappings.insert(ip(instance), mapped(container));
    }
    for service in ["10.210.0.53", "10.210.1.64", "192.0.2.1"] {
        state
            .service_addresses
            .insert(ip(service), vec![ip("10.210.1.2")]);
    }
    state
        .bridges
        .insert("br-wide".into(), vec![net("10.0.0.0/8")]);
    let valid = ValidState::of(&state);
    assert_eq!(valid.left_out.len(), 11, "{:#?}", valid.left_out);
    let bridges = "\"br-0a1b2c3d4e5f\", ";
    let expected = honest.replace(bridges, &format!("{bridges}\"br-wide\", "));
    assert_eq!(valid.table(&state, false), expected);
}

#[test]
fn a_service_address_never_leads_to_another_or_to_a_removed_instance() {
    let mut state = with_containers();
    state.service_addresses = BTreeMap::from([
        (
            ip("10.210.0.64"),
            vec![
                ip("10.210.0.65"),
                ip("10.210.1.99"),
                ip("10.210.1.1"),
                ip("10.210.1.1"),
            ],
        ),
        (ip("10.210.0.65"), vec![]),
    ]);
    let valid = ValidState::of(&state);
    assert_eq!(
        valid.services(),
        &BTreeMap::from([
            (ip("10.210.0.64"), vec![ip("10.210.1.1")]),
            (ip("10.210.0.65"), vec![])
        ])
    );
}

#[test]
fn containers_with_mesh_addresses_of_their_own_are_not_translated() {
    let mut state = with_containers();
    state.native = Some(Native {
        bridge: "br-mesh".into(),
        range: net("10.210.1.0/25"),
    });
    state.bridges.insert("br-mesh".into(), vec![state.prefix]);
    state.mappings = BTreeMap::from([
        (ip("10.210.1.5"), mapped("10.210.1.5")),
        (ip("10.210.1.130"), mapped("172.17.0.5")),
        // The first is outside the range; the second is the node's own address.
        (ip("10.210.1.140"), mapped("10.210.1.140")),
        (ip("10.210.1.1"), mapped("10.210.1.1")),
    ]);
    let services = BTreeMap::from([(ip("10.210.0.64"), vec![ip("10.210.1.5")])]);
    state.service_addresses = services;
    let valid = ValidState::of(&state);
    assert_eq!(valid.left_out.len(), 2, "{:?}", valid.left_out);
    let text = valid.table(&state, false);
    let at = |rule: &str| {
        let found = text.find(rule);
        found.unwrap_or_else(|| panic!("{rule} is not in {text}"))
    };
    at("elements = { 172.17.0.0/16, 172.18.0.0/16 }");
    at("elements = { 10.210.1.130 : 172.17.0.5 }");
    at("ip daddr 10.210.0.64 tcp dport 5432 dnat to 10.210.1.5");
    assert!(
        at("ct original ip daddr @natives meta l4proto != icmp") < at("ip daddr @natives accept")
    );
    assert!(
        at("iifname \"br-mesh\" ip saddr 10.210.1.2-10.210.1.127 accept")
            < at("ip saddr 10.210.0.0/16 drop")
    );
    assert!(at("ip daddr @natives accept") < at("ip daddr 10.210.1.0/24 goto refuse"));
    assert!(
        at(
            "oifname != { \"mesh0\", \"br-mesh\" } ip saddr 10.210.1.2-10.210.1.127 ct original ip daddr != 10.210.0.0/16 masquerade"
        ) < at("chain own_sources")
    );
    assert!(
        valid
            .table(&state, true)
            .contains("ct original ip daddr @natives meta mark set")
    );
}

#[test]
fn each_node_has_an_equal_share_of_a_service_address() {
    let mut state = with_containers();
    state.mappings.clear();
    let service = ip("10.210.0.64");
    state.service_addresses = BTreeMap::from([(
        service,
        vec![
            ip("10.210.2.7"),
            ip("10.210.3.4"),
            ip("10.210.3.5"),
            ip("10.210.3.6"),
        ],
    )]);
    let text = ValidState::of(&state).table(&state, false);
    let rule = "ip daddr 10.210.0.64 dnat to numgen random mod 131072 map { 0-65535 : 10.210.2.7, 65536-87380 : 10.210.3.4, 87381-109225 : 10.210.3.5, 109226-131071 : 10.210.3.6 }";
    assert!(text.contains(rule), "{text}");
}

#[test]
fn a_service_address_never_leads_out_of_the_mesh_or_to_containers_that_are_not_exposed() {
    let mut state = with_containers();
    let outside = [
        "169.254.169.254",
        "172.17.0.9",
        "172.18.0.2",
        "192.168.1.1",
        "8.8.8.8",
        "127.0.0.1",
        // These are in block 0: the DNS address, and a service address that this node does not know.
        "10.210.0.53",
        "10.210.0.200",
    ];
    state.service_addresses = BTreeMap::from([(
        ip("10.210.0.64"),
        outside.into_iter().chain(["10.210.2.7"]).map(ip).collect(),
    )]);
    let valid = ValidState::of(&state);
    assert_eq!(valid.services()[&ip("10.210.0.64")], [ip("10.210.2.7")]);
}

/// What one container may ask of the other one, and the other one of the node.
fn asked_of_servers() -> (PortSet, PortSet) {
    let mut to_db = PortSet::of(Asked::Port(Protocol::Tcp, 5432));
    to_db.add(&PortSet::of(Asked::Icmp));
    let mut to_node = PortSet::of_range(Protocol::Tcp, 9100..=9200);
    to_node.add(&PortSet::of(Asked::Other));
    (to_db, to_node)
}

/// A policy between the two containers and the node.
fn with_policy() -> FirewallState {
    let (node, web, db) = (ip("10.210.1.1"), ip("10.210.1.2"), ip("10.210.1.3"));
    let port = |protocol, port| PortSet::of(Asked::Port(protocol, port));
    let (to_db, to_node) = asked_of_servers();
    FirewallState {
        policy: Some(LocalPolicy::allowing(&[
            (web, db, to_db),
            (node, web, PortSet::everything()),
            (node, db, port(Protocol::Udp, 53)),
            (db, node, to_node),
        ])),
        ..with_containers()
    }
}

#[test]
fn the_whole_table_of_a_node_with_a_policy() {
    assert_eq!(table(&with_policy()), include_str!("policy.nft"));
}

#[test]
fn a_rule_that_notes_a_packet_has_no_verdict_because_it_does_not_match_while_its_set_is_full() {
    let tables = [
        include_str!("policy.nft"),
        include_str!("dual.nft"),
        include_str!("bridged.nft"),
    ];
    for (table, count) in tables.into_iter().zip([7, 7, 2]) {
        let rules = table.lines().filter(|line| line.contains(" update @"));
        let rules: Vec<&str> = rules.collect();
        assert_eq!(rules.len(), count);
        for rule in rules {
            assert!(rule.ends_with(" counter }"), "{rule}");
        }
    }
}

#[test]
fn a_node_without_containers_has_no_rules_of_the_policy() {
    let state = FirewallState {
        policy: with_policy().policy,
        ..without_containers()
    };
    assert_eq!(table(&state), include_str!("empty.nft"));
}

#[test]
fn a_policy_decides_about_connections_as_its_rules_do() {
    let state = with_policy();
    let valid = ValidState::of(&state);
    let local = valid.local().expect("containers");
    let (web, db) = ("172.18.0.2", "172.17.0.5");
    let tcp = |port| Asked::Port(Protocol::Tcp, port);
    let names = Asked::Port(Protocol::Udp, 53);
    for (from, to, server, asked, allowed) in [
        (web, "10.210.1.3", db, tcp(5432), true),
        (web, "10.210.0.64", db, tcp(5432), true),
        (web, "10.210.1.3", db, Asked::Icmp, true),
        (web, "10.210.1.3", db, tcp(22), false),
        (web, "10.210.1.3", db, Asked::Other, false),
        (web, "10.210.1.2", web, tcp(22), true),
        (db, "10.210.1.2", web, tcp(5432), false),
        // A container that is not exposed, and the host.
        ("172.17.0.9", "10.210.1.3", db, names, true),
        ("172.17.0.9", "10.210.1.3", db, tcp(5432), false),
        ("10.210.1.1", "10.210.1.2", web, tcp(22), true),
        (db, "10.210.1.1", "10.210.1.1", tcp(9150), true),
        (db, "10.210.1.1", "172.17.0.9", tcp(9099), false),
        (web, "10.210.1.1", "10.210.1.1", tcp(9150), false),
        // The node resolves names for its containers.
        (web, "10.210.1.1", "10.210.1.1", names, true),
        // Not between two ends of this host.
        ("10.210.2.7", "10.210.1.3", db, tcp(22), true),
        (web, "10.210.2.7", "10.210.2.7", tcp(22), true),
        (web, "192.0.2.1", "192.0.2.1", tcp(22), true),
        ("192.0.2.1", "198.51.100.1", db, tcp(22), true),
    ] {
        let found = local.allows((ip(from), ip(to), ip(server)), asked);
        assert_eq!(found, allowed, "{from} to {to} at {server}: {asked}");
    }
}

/// A host with containers up to this number. All of them may ask each other for metrics, and those with even numbers the first one for
/// everything.
fn many(last: u8) -> FirewallState {
    let address = |n: u8| Ipv4Addr::new(10, 210, 1, n);
    let metrics = PortSet::of(Asked::Port(Protocol::Tcp, 9100));
    let all = || 2..=last;
    let pairs = all().flat_map(|from| all().map(move |to| (from, to)));
    let pairs = pairs.map(|(from, to)| {
        let ports = if to == 2 && from.is_multiple_of(2) {
            PortSet::everything()
        } else {
            metrics.clone()
        };
        (address(from), address(to), ports)
    });
    let pairs: Vec<_> = pairs.collect();
    FirewallState {
        mappings: all()
            .map(|n| (address(n), mapped(&format!("172.18.0.{n}"))))
            .collect(),
        policy: Some(LocalPolicy::allowing(&pairs)),
        ..with_containers()
    }
}

#[test]
fn what_every_container_may_ask_has_one_element_for_each_server_and_not_for_each_pair() {
    let state = many(200);
    let text = table(&state);
    assert_eq!(text.matches(" . tcp . 9100").count(), 199);
    let all = text.find("set between_all").and_then(|at| text.get(at..));
    let all = all.and_then(|text| text.split('}').next()).expect("a set");
    // Each container and itself, and those that may ask the first one for everything.
    assert_eq!(all.matches(" . 172.").count(), 199 + 99);
}

#[test]
fn a_policy_for_many_containers_decides_as_its_pairs_do() {
    let state = many(9);
    let valid = ValidState::of(&state);
    let (local, policy) = (valid.local().expect("containers"), state.policy.as_ref());
    let address = |n: u8| Ipv4Addr::new(10, 210, 1, n);
    for (from, to) in (2..=9).flat_map(|from| (2..=9).map(move |to| (from, to))) {
        let ports =
            policy.and_then(|policy| policy.between(address(from).into(), address(to).into()));
        let (client, server) = (
            ip(&format!("172.18.0.{from}")),
            ip(&format!("172.18.0.{to}")),
        );
        let tcp = |port| Asked::Port(Protocol::Tcp, port);
        for asked in [tcp(9100), tcp(9101), tcp(0), Asked::Icmp, Asked::Other] {
            let found = local.allows((client, address(to), server), asked);
            let expected = ports.as_ref().is_some_and(|ports| ports.contains(asked));
            assert_eq!(found, expected, "{from} to {to}: {asked}");
        }
    }
}

#[test]
fn a_container_with_a_mesh_address_of_its_own_is_a_member_by_that_address() {
    let mut state = with_policy();
    state.native = Some(Native {
        bridge: "br-mesh".into(),
        range: net("10.210.1.0/25"),
    });
    let native = state.mappings.get_mut(&ip("10.210.1.2")).expect("there");
    native.container = ip("10.210.1.2");
    let text = table(&state);
    for elements in [
        "set members {\n\t\ttype ipv4_addr\n\t\telements = { 10.210.1.2, 172.17.0.5 }",
        "set mapped {\n\t\ttype ipv4_addr\n\t\telements = { 172.17.0.5 }",
        "elements = { 10.210.1.2 . 172.17.0.5 . tcp . 5432 }",
    ] {
        assert!(text.contains(elements), "{elements} in {text}");
    }
    let at = |rule: &str| {
        text.find(rule)
            .unwrap_or_else(|| panic!("{rule} in {text}"))
    };
    assert!(at("jump local_policy") < at("iifname \"br-mesh\" oifname \"br-mesh\" accept"));
}

#[test]
fn two_containers_with_mesh_addresses_on_one_bridge_are_held_to_the_policy_by_the_bridge() {
    let mut state = with_policy();
    state.native = Some(Native {
        bridge: "br-mesh".into(),
        range: net("10.210.1.0/25"),
    });
    let bridge = |state: &FirewallState| {
        let valid = ValidState::of(state);
        guard_bridges(state, &BTreeMap::new(), valid.local())
    };
    let mapped = bridge(&state);
    assert!(!mapped.contains("chain local_policy"), "both are mapped");
    for (instance, mapped) in &mut state.mappings {
        mapped.container = *instance;
    }
    assert_eq!(bridge(&state), include_str!("bridged.nft"));
}

#[test]
fn packets_to_a_guest_are_not_refused_like_those_to_an_address_without_a_target() {
    let mut state = with_containers();
    let before = table(&state);
    state.guests = BTreeSet::from([ip("10.210.1.253"), ip("10.210.1.254")]);
    let except = "ip daddr 10.210.1.0/24 ip daddr != { 10.210.1.253, 10.210.1.254 } goto refuse";
    let text = table(&state);
    assert_eq!(text.matches(except).count(), 2);
    let plain = text.replace(" ip daddr != { 10.210.1.253, 10.210.1.254 }", "");
    assert_eq!(plain, before);
    let mut state = dual();
    let part = state.v6.as_mut().expect("it has IPv6");
    part.guests = BTreeSet::from([v6("fd00:1:2:1::fe")]);
    let except = "ip6 daddr fd00:1:2:1::/64 ip6 daddr != { fd00:1:2:1::fe } goto refuse";
    assert_eq!(table_v6(&state).matches(except).count(), 2);
}

#[test]
fn packets_to_a_service_outside_get_the_address_of_this_machine_and_nothing_is_sent_as_that_service()
 {
    let mut state = with_containers();
    state
        .mappings
        .insert(ip("10.210.1.9"), mapped("192.0.2.50"));
    state.outside.instances.insert(ip("10.210.1.9"));
    let table = table(&state);
    let has = |line: &str| table.lines().any(|l| l.trim() == line);
    assert!(table.contains("10.210.1.9 : 192.0.2.50"), "{table}");
    assert!(!table.contains("192.0.2.50 : 10.210.1.9"), "{table}");
    assert!(table.contains("10.210.1.9 . tcp . 5432"), "{table}");
    let masquerade =
        "ct status dnat ct original ip daddr 10.210.0.0/16 ip daddr @outside masquerade";
    assert!(has(masquerade), "{table}");
    // The rule for containers comes after it: it would give them their instance address, to which the service has no route.
    let place = |line: &str| table.lines().position(|l| l.trim() == line);
    let containers =
        "ct status dnat ct original ip daddr 10.210.0.0/16 snat to ip saddr map @identities";
    assert!(place(masquerade) < place(containers), "{table}");
}

#[test]
fn a_service_outside_that_leads_to_a_container_does_not_take_its_instance_address() {
    let mut state = without_containers();
    for instance in ["10.210.1.9", "10.210.1.200"] {
        state.mappings.insert(ip(instance), mapped("172.17.0.2"));
    }
    state.outside.instances.insert(ip("10.210.1.9"));
    let valid = ValidState::of(&state);
    assert_eq!(valid.left_out.len(), 1, "{:?}", valid.left_out);
    assert!(valid.left_out[0].contains("10.210.1.9"));
    let table = table(&state);
    assert!(table.contains("10.210.1.200 : 172.17.0.2"), "{table}");
    assert!(table.contains("172.17.0.2 : 10.210.1.200"), "{table}");
    assert!(!table.contains("@outside"), "{table}");
}

#[test]
fn a_node_that_routes_forwards_to_its_networks_and_lets_their_answers_into_the_tunnel() {
    let mut state = without_containers();
    state.outside.routes = vec![net("192.168.1.0/24"), net("192.168.7.0/24")];
    let text = table(&state);
    let has = |line: &str| text.lines().any(|l| l.trim() == line);
    let networks = "{ 192.168.1.0/24, 192.168.7.0/24 }";
    for line in [
        format!("oifname != \"mesh0\" ip saddr 10.210.0.0/16 ip daddr {networks} masquerade"),
        format!("oifname \"mesh0\" ip saddr != 10.210.1.0/24 ip saddr != {networks} drop"),
        format!("ct original ip saddr 10.210.0.0/16 ct original ip daddr {networks} accept"),
    ] {
        assert!(has(&line), "{line}\n{text}");
    }
    // New connections from the mesh to anything else are still dropped.
    let drop = "iifname \"mesh0\" ct state new ct status & dnat == 0 drop";
    let place = |part: &str| text.lines().position(|line| line.contains(part));
    assert!(
        has(drop) && place("ct original ip saddr") < place(drop),
        "{text}"
    );
    assert!(!table(&without_containers()).contains("masquerade"));
}

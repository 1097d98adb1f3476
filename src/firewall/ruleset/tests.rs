use std::net::Ipv4Addr;

use super::*;
use crate::firewall::Mapped;

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
    }
}

fn bare() -> Wiring {
    Wiring {
        interface: "mesh0".into(),
        prefix: net("10.210.0.0/16"),
        block: net("10.210.1.0/24"),
        node: ip("10.210.1.1"),
        bridges: BTreeMap::new(),
        mappings: BTreeMap::new(),
        service_addresses: BTreeMap::new(),
        native: None,
    }
}

fn wired() -> Wiring {
    Wiring {
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
        ..bare()
    }
}

fn table(wiring: &Wiring) -> String {
    Sound::of(wiring).table(wiring, false)
}

#[test]
fn the_whole_table_of_a_node_with_containers() {
    assert_eq!(table(&wired()), include_str!("wired.nft"));
}

#[test]
fn the_whole_table_of_a_node_without_any() {
    assert_eq!(table(&bare()), include_str!("bare.nft"));
}

#[test]
fn the_whole_tables_of_the_other_families() {
    let wiring = wired();
    let v6 = Sound::of(&wiring).guard_v6("mesh0", "fd00:1:2::/48".parse().expect("a literal"));
    let ports = BTreeMap::from([(
        ip("172.18.0.2"),
        vec!["veth12ab".to_owned(), "veth34cd".to_owned()],
    )]);
    assert_eq!(
        format!("{v6}{}", guard_bridges(&ports)),
        include_str!("guards.nft")
    );
}

#[test]
fn the_mark_is_set_only_where_it_is_asked_for() {
    let wiring = wired();
    let with = Sound::of(&wiring).table(&wiring, true);
    let rule = "\t\tct status dnat ct original ip daddr 10.210.0.0/16 meta mark set meta mark | 0x02000000\n";
    assert!(with.contains(rule));
    assert_eq!(with.replace(rule, ""), table(&wiring));
}

#[test]
fn a_name_cannot_bring_a_rule_of_its_own() {
    let honest = table(&wired());
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
        let mut wiring = wired();
        wiring
            .bridges
            .insert(name.into(), vec![net("172.30.0.0/16")]);
        let container = wiring.mappings.get_mut(&ip("10.210.1.2")).expect("there");
        container.name = format!("x\" }} {name}");
        let sound = Sound::of(&wiring);
        assert_eq!(sound.left_out.len(), 1, "{name:?}: {sound:?}");
        assert_eq!(sound.table(&wiring, false), honest, "{name:?}");
        let ports = BTreeMap::from([(ip("172.18.0.2"), vec![name.to_owned()])]);
        if name != "mesh0" {
            assert_eq!(guard_bridges(&ports), guard_bridges(&BTreeMap::new()));
        }
    }
}

#[test]
fn addresses_that_make_no_sense_are_left_out_and_named() {
    let honest = table(&wired());
    let mut wiring = wired();
    for (instance, container) in [
        ("10.210.1.1", "172.17.0.9"),
        ("10.210.2.2", "172.17.0.9"),
        ("10.210.1.9", "127.0.0.1"),
        ("10.210.1.10", "10.210.1.2"),
        ("10.210.1.11", "0.0.0.0"),
        ("10.210.1.12", "224.0.0.1"),
        ("10.210.1.13", "172.18.0.2"),
    ] {
        wiring.mappings.insert(ip(instance), mapped(container));
    }
    for service in ["10.210.0.53", "10.210.1.64", "192.0.2.1"] {
        wiring
            .service_addresses
            .insert(ip(service), vec![ip("10.210.1.2")]);
    }
    wiring
        .bridges
        .insert("br-wide".into(), vec![net("10.0.0.0/8")]);
    let sound = Sound::of(&wiring);
    assert_eq!(sound.left_out.len(), 11, "{:#?}", sound.left_out);
    let bridges = "\"br-0a1b2c3d4e5f\", ";
    let expected = honest.replace(bridges, &format!("{bridges}\"br-wide\", "));
    assert_eq!(sound.table(&wiring, false), expected);
}

#[test]
fn a_service_address_never_leads_to_another_or_to_an_instance_that_is_gone() {
    let mut wiring = wired();
    wiring.service_addresses = BTreeMap::from([
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
    let sound = Sound::of(&wiring);
    assert_eq!(
        sound.services(),
        &BTreeMap::from([
            (ip("10.210.0.64"), vec![ip("10.210.1.1")]),
            (ip("10.210.0.65"), vec![])
        ])
    );
}

#[test]
fn containers_with_mesh_addresses_of_their_own_are_not_translated() {
    let mut wiring = wired();
    wiring.native = Some(Native {
        bridge: "br-mesh".into(),
        range: net("10.210.1.0/25"),
    });
    wiring.bridges.insert("br-mesh".into(), vec![wiring.prefix]);
    wiring.mappings = BTreeMap::from([
        (ip("10.210.1.5"), mapped("10.210.1.5")),
        (ip("10.210.1.130"), mapped("172.17.0.5")),
        // Not of the range; and the node's.
        (ip("10.210.1.140"), mapped("10.210.1.140")),
        (ip("10.210.1.1"), mapped("10.210.1.1")),
    ]);
    let services = BTreeMap::from([(ip("10.210.0.64"), vec![ip("10.210.1.5")])]);
    wiring.service_addresses = services;
    let sound = Sound::of(&wiring);
    assert_eq!(sound.left_out.len(), 2, "{:?}", sound.left_out);
    let text = sound.table(&wiring, false);
    let at = |rule: &str| {
        let found = text.find(rule);
        found.unwrap_or_else(|| panic!("{rule} is not in {text}"))
    };
    at("elements = { 172.17.0.0/16, 172.18.0.0/16 }");
    at("elements = { 10.210.1.130 : 172.17.0.5 }");
    at("ip daddr 10.210.0.64 dnat to 10.210.1.5");
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
        sound
            .table(&wiring, true)
            .contains("ct original ip daddr @natives meta mark set")
    );
}

#[test]
fn each_node_has_an_equal_share_of_a_service_address() {
    let mut wiring = wired();
    wiring.mappings.clear();
    let service = ip("10.210.0.64");
    wiring.service_addresses = BTreeMap::from([(
        service,
        vec![
            ip("10.210.2.7"),
            ip("10.210.3.4"),
            ip("10.210.3.5"),
            ip("10.210.3.6"),
        ],
    )]);
    let text = Sound::of(&wiring).table(&wiring, false);
    let rule = "ip daddr 10.210.0.64 dnat to numgen random mod 131072 map { 0-65535 : 10.210.2.7, 65536-87380 : 10.210.3.4, 87381-109225 : 10.210.3.5, 109226-131071 : 10.210.3.6 }";
    assert!(text.contains(rule), "{text}");
}

#[test]
fn a_service_address_never_leads_out_of_the_mesh_or_to_containers_that_are_not_exposed() {
    let mut wiring = wired();
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
    wiring.service_addresses = BTreeMap::from([(
        ip("10.210.0.64"),
        outside.into_iter().chain(["10.210.2.7"]).map(ip).collect(),
    )]);
    let sound = Sound::of(&wiring);
    assert_eq!(sound.services()[&ip("10.210.0.64")], [ip("10.210.2.7")]);
}

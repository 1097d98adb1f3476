use std::collections::{BTreeMap, BTreeSet};

use hickory_proto::op::{Message, MessageType, OpCode, Query};

use super::*;
use crate::dns::explain::{Part, explain};
use crate::dns::names::{Outcome, handle};
use crate::dns::transport::Transport;
use crate::dns::zone::{WhenNoneUsable, ZoneInput};
use crate::model::address::MeshAddresses;
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey, WireGuardKey};
use crate::records::kinds::{Health, Instance, MESH_ID, Mesh, Protocol, Service, Source};
use crate::records::netmap::{AtRouter, Member, Netmap};
use crate::records::service_address::ServiceAddresses;

pub(in crate::dns) fn label(text: &str) -> Label {
    Label::parse(text).expect("a literal")
}

pub(in crate::dns) fn id(n: u8) -> PublicKey {
    PublicKey([n; 32])
}

/// Nodes n1 to n3, and `web` on each of them with this health.
pub(in crate::dns) fn netmap(health: [Health; 3]) -> Netmap {
    let addresses = MeshAddresses {
        prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
        prefix_v6: "fd00:1:2::/48".parse().expect("a literal"),
        node_block_v4: 24,
        node_block_v6: 64,
    };
    let mesh = Mesh {
        id: MESH_ID.into(),
        version: 1,
        domain: label("mesh"),
        addresses,
        coordinators: vec![],
    };
    let mut netmap = Netmap {
        mesh: Some(mesh),
        ..Netmap::default()
    };
    for (n, health) in (1u8..).zip(health) {
        let block = addresses.block(n.into()).expect("in the plan");
        let member = Member {
            id: id(n),
            name: label(&format!("n{n}")),
            issued_at: UnixSeconds(n.into()),
            tags: vec![],
            wireguard_key: WireGuardKey([n; 32]),
            block,
            endpoints: vec![],
            without_ipv6: false,
            speaks_paths: false,
            relays: vec![],
            at_router: AtRouter::default(),
            stream: None,
        };
        netmap.members.insert(id(n), member);
        let port = |number: u16, name: Option<&str>| Port {
            number: number.try_into().expect("not zero"),
            protocol: Protocol::Tcp,
            name: name.map(label),
        };
        let service = Service {
            id: Service::id_of(&id(n), None, &label("web")),
            version: 1,
            node: id(n),
            name: label("web"),
            project: None,
            service_address: None,
            instances: vec![Instance {
                id: label(&format!("n{n}-80")),
                addresses: vec![block.node_v4().into(), block.node_v6().into()],
                ports: vec![port(80, None), port(9187, Some("metrics"))],
                health,
                weight: 10,
                priority: 0,
                source: Source::Cli,
                allow: vec![],
                public: vec![],
            }],
        };
        netmap.services.insert(service.id.clone(), service);
    }
    netmap
}

pub(in crate::dns) fn zone_of(
    netmap: &Netmap,
    unreachable: &[u8],
    when_none_usable: WhenNoneUsable,
) -> Zone {
    let balanced = &["10.210.0.77".parse().expect("a literal")].into();
    zone_with(netmap, unreachable, when_none_usable, balanced)
}

fn zone_with(
    netmap: &Netmap,
    unreachable: &[u8],
    when_none_usable: WhenNoneUsable,
    balanced: &BTreeSet<Ipv4Addr>,
) -> Zone {
    Zone::build(&ZoneInput {
        netmap,
        own: id(1),
        unreachable: &unreachable.iter().map(|n| id(*n)).collect(),
        groups: &BTreeMap::new(),
        when_none_usable,
        lingering: &BTreeSet::from(["gone.svc".to_owned()]),
        balanced,
        held: &ServiceAddresses::default(),
        serial: 7,
        most_addresses: crate::dns::zone::MAX_ADDRESSES,
    })
}

pub(in crate::dns) const HEALTHY: [Health; 3] = [Health::Healthy; 3];

fn ask_zone(zone: &Zone, name: &str, record_type: RecordType) -> Answer {
    match answer(
        zone,
        &Name::from_ascii(name).expect("a literal"),
        record_type,
        42,
    ) {
        Verdict::Answer(answer) => answer,
        Verdict::Forward => panic!("{name} would be forwarded"),
    }
}

fn ask(name: &str, record_type: RecordType) -> Answer {
    ask_zone(
        &zone_of(&netmap(HEALTHY), &[], WhenNoneUsable::All),
        name,
        record_type,
    )
}

/// The data of the answers, sorted.
fn data(answer: &Answer) -> Vec<String> {
    let mut data: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
    data.sort();
    data
}

#[test]
fn every_name_of_a_service_is_answered() {
    for (name, record_type, expected) in [
        (
            "web.svc.mesh.",
            RecordType::A,
            vec!["10.210.1.1", "10.210.2.1", "10.210.3.1"],
        ),
        (
            "WEB.Svc.MESH.",
            RecordType::AAAA,
            vec!["fd00:1:2:1::1", "fd00:1:2:2::1", "fd00:1:2:3::1"],
        ),
        ("n2-80.web.svc.mesh.", RecordType::A, vec!["10.210.2.1"]),
        ("web.svc.n3.node.mesh.", RecordType::A, vec!["10.210.3.1"]),
        ("n3.node.mesh.", RecordType::A, vec!["10.210.3.1"]),
        ("n3.node.mesh.", RecordType::AAAA, vec!["fd00:1:2:3::1"]),
        ("ns.mesh.", RecordType::A, vec!["10.210.1.1"]),
        ("mesh.", RecordType::NS, vec!["ns.mesh."]),
        ("svc.mesh.", RecordType::NS, vec!["ns.mesh."]),
        (
            "1.2.210.10.in-addr.arpa.",
            RecordType::PTR,
            vec!["n2.node.mesh."],
        ),
        (
            "_metrics._tcp.web.svc.mesh.",
            RecordType::SRV,
            vec![
                "0 10 9187 n1-80.web.svc.mesh.",
                "0 10 9187 n2-80.web.svc.mesh.",
                "0 10 9187 n3-80.web.svc.mesh.",
            ],
        ),
        (
            "_web._tcp.svc.mesh.",
            RecordType::SRV,
            vec![
                "0 10 80 n1-80.web.svc.mesh.",
                "0 10 80 n2-80.web.svc.mesh.",
                "0 10 80 n3-80.web.svc.mesh.",
            ],
        ),
        (
            "mesh.",
            RecordType::SOA,
            vec!["ns.mesh. hostmaster.mesh. 7 5 5 86400 5"],
        ),
    ] {
        let answer = ask(name, record_type);
        assert_eq!(
            (answer.code, data(&answer)),
            (
                ResponseCode::NoError,
                expected.iter().map(ToString::to_string).collect()
            ),
            "{name} {record_type}"
        );
        assert!(answer.authority.is_empty());
    }
}

#[test]
fn srv_targets_come_with_their_addresses() {
    let answer = ask("web.svc.mesh.", RecordType::SRV);
    assert_eq!(answer.answers.len(), 6, "two ports of three instances");
    assert_eq!(
        answer.additional.len(),
        6,
        "two families of three instances"
    );
}

#[test]
fn a_reverse_name_in_ipv6_is_answered() {
    let name = Name::from(
        "fd00:1:2:3::1"
            .parse::<std::net::Ipv6Addr>()
            .expect("a literal"),
    );
    assert_eq!(
        data(&ask(&name.to_string(), RecordType::PTR)),
        ["n3.node.mesh."]
    );
}

#[test]
fn the_apex_of_a_reverse_zone_has_a_soa_and_a_name_server() {
    for apex in ["210.10.in-addr.arpa.", "2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa."] {
        assert_eq!(data(&ask(apex, RecordType::NS)), ["ns.mesh."]);
        let answer = ask(apex, RecordType::SOA);
        let [soa] = answer.answers.as_slice() else {
            panic!("one SOA of {apex}: {answer:?}")
        };
        assert_eq!(soa.name.to_string(), apex);
        assert_eq!(soa.record_type(), RecordType::SOA);
        assert!(answer.authority.is_empty());
        let below = ask(&format!("2.{apex}"), RecordType::SOA);
        assert!(below.answers.is_empty(), "{below:?}");
    }
}

#[test]
fn negative_answers_tell_nodata_from_nxdomain_and_carry_the_soa() {
    for (name, record_type, code, owner) in [
        (
            "web.svc.mesh.",
            RecordType::MX,
            ResponseCode::NoError,
            "svc.mesh.",
        ),
        (
            "gone.svc.mesh.",
            RecordType::A,
            ResponseCode::NoError,
            "svc.mesh.",
        ),
        (
            "_tcp.web.svc.mesh.",
            RecordType::A,
            ResponseCode::NoError,
            "svc.mesh.",
        ),
        (
            "svc.n1.node.mesh.",
            RecordType::A,
            ResponseCode::NoError,
            "node.mesh.",
        ),
        (
            "svc.mesh.",
            RecordType::A,
            ResponseCode::NoError,
            "svc.mesh.",
        ),
        ("mesh.", RecordType::A, ResponseCode::NoError, "mesh."),
        (
            "never.svc.mesh.",
            RecordType::A,
            ResponseCode::NXDomain,
            "svc.mesh.",
        ),
        (
            "never.node.mesh.",
            RecordType::A,
            ResponseCode::NXDomain,
            "node.mesh.",
        ),
        (
            "a.b.c.mesh.",
            RecordType::A,
            ResponseCode::NXDomain,
            "mesh.",
        ),
        (
            "x.n1-80.web.svc.mesh.",
            RecordType::A,
            ResponseCode::NXDomain,
            "svc.mesh.",
        ),
        (
            "9.9.210.10.in-addr.arpa.",
            RecordType::PTR,
            ResponseCode::NXDomain,
            "210.10.in-addr.arpa.",
        ),
        (
            "b._dns-sd._udp.0.2.210.10.in-addr.arpa.",
            RecordType::PTR,
            ResponseCode::NXDomain,
            "210.10.in-addr.arpa.",
        ),
        (
            "01.2.210.10.in-addr.arpa.",
            RecordType::PTR,
            ResponseCode::NXDomain,
            "210.10.in-addr.arpa.",
        ),
        (
            "1.1.2.210.10.in-addr.arpa.",
            RecordType::PTR,
            ResponseCode::NXDomain,
            "210.10.in-addr.arpa.",
        ),
        (
            "_x.2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.",
            RecordType::PTR,
            ResponseCode::NXDomain,
            "2.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.",
        ),
        (
            "2.210.10.in-addr.arpa.",
            RecordType::PTR,
            ResponseCode::NoError,
            "210.10.in-addr.arpa.",
        ),
        (
            "1.2.210.10.in-addr.arpa.",
            RecordType::A,
            ResponseCode::NoError,
            "210.10.in-addr.arpa.",
        ),
    ] {
        let answer = ask(name, record_type);
        assert_eq!((answer.code, answer.answers.len()), (code, 0), "{name}");
        let soa: Vec<String> = answer
            .authority
            .iter()
            .map(|r| format!("{} {} {}", r.name, r.ttl, r.record_type()))
            .collect();
        assert_eq!(soa, [format!("{owner} 5 SOA")], "{name}");
    }
}

#[test]
fn a_label_that_is_not_text_belongs_to_no_existing_name() {
    let name =
        Name::from_labels([b"a\0b".as_slice(), b"svc", b"mesh"]).expect("any bytes make a label");
    let zone = zone_of(&netmap(HEALTHY), &[], WhenNoneUsable::All);
    let Verdict::Answer(answer) = answer(&zone, &name, RecordType::A, 0) else {
        panic!("ours")
    };
    assert_eq!(
        (answer.code, answer.authority.len()),
        (ResponseCode::NXDomain, 1)
    );
}

#[test]
fn other_names_are_forwarded_and_mesh_names_never() {
    let zone = zone_of(&netmap(HEALTHY), &[], WhenNoneUsable::All);
    for name in [
        "example.com.",
        "notmesh.",
        "mesh.example.",
        "1.1.1.10.in-addr.arpa.",
        "10.in-addr.arpa.",
        "b._dns-sd._udp.10.in-addr.arpa.",
        ".",
    ] {
        let name = Name::from_ascii(name).expect("a literal");
        assert_eq!(
            answer(&zone, &name, RecordType::A, 0),
            Verdict::Forward,
            "{name}"
        );
    }
}

#[test]
fn unusable_instances_are_left_out_of_answers() {
    for (health, unreachable, expected) in [
        (
            [Health::Healthy, Health::Unhealthy, Health::Healthy],
            vec![],
            vec!["10.210.1.1", "10.210.3.1"],
        ),
        (
            [Health::Healthy, Health::Draining, Health::Starting],
            vec![],
            vec!["10.210.1.1"],
        ),
        (
            [Health::Healthy, Health::Unknown, Health::Healthy],
            vec![3],
            vec!["10.210.1.1", "10.210.2.1"],
        ),
        (
            HEALTHY,
            vec![1],
            vec!["10.210.1.1", "10.210.2.1", "10.210.3.1"],
        ),
    ] {
        let answer = ask_zone(
            &zone_of(&netmap(health), &unreachable, WhenNoneUsable::All),
            "web.svc.mesh.",
            RecordType::A,
        );
        assert_eq!(
            (data(&answer), answer.flagged),
            (expected.iter().map(ToString::to_string).collect(), false)
        );
    }
}

#[test]
fn when_none_is_usable_the_rest_is_answered_and_flagged_or_nothing() {
    let health = [Health::Unhealthy, Health::Draining, Health::Healthy];
    let answer = ask_zone(
        &zone_of(&netmap(health), &[3], WhenNoneUsable::All),
        "web.svc.mesh.",
        RecordType::A,
    );
    assert_eq!(
        (data(&answer), answer.flagged),
        (vec!["10.210.1.1".into(), "10.210.3.1".into()], true)
    );
    let answer = ask_zone(
        &zone_of(&netmap(health), &[3], WhenNoneUsable::None),
        "web.svc.mesh.",
        RecordType::A,
    );
    assert_eq!(
        (answer.code, data(&answer)),
        (ResponseCode::NoError, vec![])
    );
}

#[test]
fn the_own_node_comes_first_and_the_rest_in_every_order() {
    let zone = zone_of(&netmap(HEALTHY), &[], WhenNoneUsable::All);
    let name = Name::from_ascii("web.svc.mesh.").expect("a literal");
    let mut seconds = BTreeSet::new();
    for entropy in 0..64u64 {
        let Verdict::Answer(answer) = answer(
            &zone,
            &name,
            RecordType::A,
            entropy.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        ) else {
            panic!("ours")
        };
        assert_eq!(answer.answers[0].data.to_string(), "10.210.1.1");
        seconds.insert(answer.answers[1].data.to_string());
    }
    assert_eq!(seconds.len(), 2);
}

#[test]
fn a_node_that_has_not_joined_forwards_everything() {
    let name = Name::from_ascii("web.svc.mesh.").expect("a literal");
    assert_eq!(
        answer(&Zone::default(), &name, RecordType::A, 0),
        Verdict::Forward
    );
}

#[test]
fn the_addresses_answered_are_at_most_as_many_as_configured_and_others_each_time() {
    let zone = zone_of(&crowd(60), &[], WhenNoneUsable::All);
    let mut seen = BTreeSet::new();
    for entropy in 0..200 {
        let name = Name::from_ascii("web.svc.mesh.").expect("a literal");
        let Verdict::Answer(found) = answer(&zone, &name, RecordType::A, entropy * 77) else {
            panic!("a name of the mesh");
        };
        let addresses: BTreeSet<String> = data(&found).into_iter().collect();
        assert_eq!(addresses.len(), 8);
        seen.extend(addresses);
    }
    assert_eq!(seen.len(), 60);
    assert_eq!(
        ask_zone(&zone, "web.svc.mesh.", RecordType::SRV)
            .answers
            .len(),
        32
    );
}

#[test]
fn srv_and_txt_answers_of_the_largest_service_fit_whole_into_a_message_over_tcp() {
    let mut netmap = crowd(250);
    for service in netmap.services.values_mut() {
        for (n, instance) in service.instances.iter_mut().enumerate() {
            instance.id = label(&format!("{}-{n:03}", "i".repeat(59)));
            instance.addresses = (1..=4)
                .map(|host| IpAddr::from([0xfd00, 1, 2, 2, 0, 0, n as u16, host]))
                .collect();
            let first = instance.ports[0].clone();
            instance.ports = (60_001..60_017)
                .map(|number: u16| Port {
                    number: number.try_into().expect("not zero"),
                    ..first.clone()
                })
                .collect();
        }
    }
    let zone = zone_of(&netmap, &[], WhenNoneUsable::All);
    for record_type in [RecordType::SRV, RecordType::TXT] {
        let mut query = Message::new(1, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii("web.svc.mesh.").expect("a literal");
        query.add_query(Query::query(name, record_type));
        let bytes = query.to_vec().expect("a small message");
        let Outcome::Reply(reply) = handle(&zone, &bytes, Transport::Tcp, 42) else {
            panic!("a name of the mesh");
        };
        let reply = Message::from_vec(&reply).expect("a reply that parses");
        assert!(!reply.metadata.truncation, "{record_type}");
        assert_eq!(reply.answers.len(), 32, "{record_type}");
    }
}

/// The netmap, and three that want names of others: an instance `nearest` of `web` on n3, and an instance `db` of the
/// service `shop` on n2 beside the service `db` of the project `shop` on n3.
pub(in crate::dns) fn clashing() -> Netmap {
    let mut netmap = netmap(HEALTHY);
    let web = netmap.services.values().find(|s| s.node == id(3));
    let web = web.expect("on each node").clone();
    for (node, name, project, instance, address) in [
        (3, "web", None, "nearest", "10.210.3.9"),
        (2, "shop", None, "db", "10.210.2.9"),
        (3, "db", Some("shop"), "n3-db", "10.210.3.8"),
    ] {
        let (name, project) = (label(name), project.map(label));
        let service_id = Service::id_of(&id(node), project.as_ref(), &name);
        let instance = Instance {
            id: label(instance),
            addresses: vec![address.parse().expect("a literal")],
            ..web.instances[0].clone()
        };
        let service = netmap.services.entry(service_id.clone());
        let service = service.or_insert_with(|| Service {
            id: service_id,
            node: id(node),
            name,
            project,
            instances: vec![],
            ..web.clone()
        });
        service.instances.push(instance);
    }
    netmap
}

#[test]
fn an_instance_called_nearest_does_not_own_the_name_of_the_nearest_instances() {
    let zone = zone_of(&clashing(), &[], WhenNoneUsable::All);
    let of = |name, record_type| data(&ask_zone(&zone, name, record_type));
    assert_eq!(of("nearest.web.svc.mesh.", RecordType::A), ["10.210.1.1"]);
    let all = of("web.svc.mesh.", RecordType::A);
    assert!(all.contains(&"10.210.3.9".to_owned()), "it is one of all");
    for name in ["web.svc.mesh.", "nearest.web.svc.mesh."] {
        let targets = of(name, RecordType::SRV);
        assert!(
            !targets.iter().any(|t| t.contains("nearest")),
            "{targets:?}"
        );
    }
    let reverse = of("9.3.210.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(reverse, Vec::<String>::new());
}

#[test]
fn a_service_of_a_project_called_nearest_does_not_hide_the_nearest_instances() {
    let mut netmap = clashing();
    for service in netmap.services.values_mut() {
        if service.project.is_some() {
            service.name = label("nearest");
            service.project = Some(label("web"));
        }
    }
    let zone = zone_of(&netmap, &[], WhenNoneUsable::All);
    let nearest = ask_zone(&zone, "nearest.web.svc.mesh.", RecordType::A);
    assert_eq!(data(&nearest), ["10.210.1.1"]);
}

#[test]
fn the_name_of_a_service_of_a_project_is_no_instances() {
    let zone = zone_of(&clashing(), &[], WhenNoneUsable::All);
    let of = |name, record_type| data(&ask_zone(&zone, name, record_type));
    assert_eq!(of("db.shop.svc.mesh.", RecordType::A), ["10.210.3.8"]);
    assert_eq!(of("shop.svc.mesh.", RecordType::A), ["10.210.2.9"]);
    let targets = of("db.shop.svc.mesh.", RecordType::SRV);
    assert!(!targets.is_empty());
    assert!(
        targets
            .iter()
            .all(|t| t.ends_with(" n3-db.db.shop.svc.mesh."))
    );
    // The instance stays reachable by a name with the key of its node in it, which no other node can have.
    let qualified = "db-020202020202.shop.svc.mesh.";
    let srv = of("shop.svc.mesh.", RecordType::SRV);
    assert_eq!(srv.len(), 2);
    assert!(srv.iter().all(|t| t.ends_with(&format!(" {qualified}"))));
    assert_eq!(of(qualified, RecordType::A), ["10.210.2.9"]);
    let reverse = of("9.2.210.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(reverse, [qualified]);
    let name = Name::from_ascii("db.shop.svc.mesh.").expect("a literal");
    let explained = explain(&zone, &name);
    assert!(
        explained
            .iter()
            .all(|(i, part)| *part == Part::Answered && i.node == label("n3"))
    );
    assert_eq!(explained.len(), 1);
    // Without the project the instance has its name.
    let mut alone = clashing();
    alone
        .services
        .retain(|_, service| service.project.is_none());
    let zone = zone_of(&alone, &[], WhenNoneUsable::All);
    let own = ask_zone(&zone, "db.shop.svc.mesh.", RecordType::A);
    assert_eq!(data(&own), ["10.210.2.9"]);
}

#[test]
fn nearest_answers_the_instances_of_the_nearest_group_alone() {
    let netmap = netmap(HEALTHY);
    let own = zone_of(&netmap, &[], WhenNoneUsable::All);
    let of = |zone: &Zone, name| data(&ask_zone(zone, name, RecordType::A));
    assert_eq!(of(&own, "nearest.web.svc.mesh."), ["10.210.1.1"]);
    let mut elsewhere = netmap.clone();
    elsewhere.services.retain(|_, s| s.node != id(1));
    let zone = zone_of(&elsewhere, &[], WhenNoneUsable::All);
    let mut both = of(&zone, "nearest.web.svc.mesh.");
    both.sort();
    assert_eq!(both, ["10.210.2.1", "10.210.3.1"]);
    assert_eq!(
        ask_zone(&own, "nearest.web.svc.mesh.", RecordType::SRV)
            .answers
            .len(),
        2
    );
    for absent in ["nearest.n1.node.mesh.", "nearest.never.svc.mesh."] {
        let answer = ask_zone(&own, absent, RecordType::A);
        assert_eq!(answer.code, ResponseCode::NXDomain, "{absent}");
    }
}

/// One service, `web`, with so many instances on n2, each with an address of its own.
pub(in crate::dns) fn crowd(instances: u8) -> Netmap {
    let mut netmap = netmap(HEALTHY);
    netmap.services.retain(|_, s| s.node == id(2));
    for service in netmap.services.values_mut() {
        let first = service.instances.remove(0);
        service.instances = (0..instances)
            .map(|n| Instance {
                id: label(&format!("c{n}")),
                addresses: vec![IpAddr::from([10, 210, 2, n])],
                ports: first.ports[..1].to_vec(),
                ..first.clone()
            })
            .collect();
    }
    netmap
}
/// The netmap, and a container on n2 that is `web` and `app` of the project `shop`, the one of `blog` on n3.
fn with_containers() -> Netmap {
    let mut netmap = netmap(HEALTHY);
    for (node, name, project, address) in [
        (2, "web", None, "10.210.2.9"),
        (2, "app", Some("shop"), "10.210.2.9"),
        (3, "app", Some("blog"), "10.210.3.9"),
    ] {
        let project = project.map(label);
        let name = label(name);
        let service_id = Service::id_of(&id(node), project.as_ref(), &name);
        let instance = Instance {
            id: label(&format!("n{node}-c")),
            addresses: vec![address.parse().expect("a literal")],
            ports: vec![Port {
                number: 80.try_into().expect("not zero"),
                protocol: Protocol::Tcp,
                name: None,
            }],
            health: Health::Healthy,
            weight: 10,
            priority: 0,
            source: Source::Docker,
            allow: vec![],
            public: vec![],
        };
        let service = netmap.services.entry(service_id.clone());
        let service = service.or_insert_with(|| Service {
            id: service_id,
            version: 1,
            node: id(node),
            name,
            project,
            service_address: None,
            instances: vec![],
        });
        service.instances.push(instance);
    }
    netmap
}

#[test]
fn services_of_two_projects_never_mix() {
    let zone = zone_of(&with_containers(), &[], WhenNoneUsable::All);
    let of = |name, record_type| data(&ask_zone(&zone, name, record_type));
    assert_eq!(of("app.shop.svc.mesh.", RecordType::A), ["10.210.2.9"]);
    assert_eq!(of("app.blog.svc.mesh.", RecordType::A), ["10.210.3.9"]);
    assert_eq!(
        of("app.shop.svc.mesh.", RecordType::SRV),
        ["0 10 80 n2-c.app.shop.svc.mesh."]
    );
    assert_eq!(
        of("_app._tcp.app.shop.svc.mesh.", RecordType::SRV),
        ["0 10 80 n2-c.app.shop.svc.mesh."]
    );
    assert_eq!(of("n2-c.app.shop.svc.mesh.", RecordType::A), ["10.210.2.9"]);
    for absent in [
        "app.svc.mesh.",
        "app.svc.n2.node.mesh.",
        "app.other.svc.mesh.",
    ] {
        let answer = ask_zone(&zone, absent, RecordType::A);
        assert_eq!(answer.code, ResponseCode::NXDomain, "{absent}");
    }
    assert_eq!(
        ask_zone(&zone, "app.shop.svc.mesh.", RecordType::AAAA).code,
        ResponseCode::NoError
    );
}

#[test]
fn a_container_with_ipv6_has_an_aaaa_record_and_the_name_of_one_without_has_no_data() {
    let address: std::net::IpAddr = "fd00:1:2:2::9".parse().expect("a literal");
    let mut netmap = with_containers();
    let services = netmap.services.values_mut();
    let instances = services.flat_map(|service| &mut service.instances);
    for instance in instances.filter(|instance| instance.id.as_str() == "n2-c") {
        instance.addresses.push(address);
    }
    let zone = zone_of(&netmap, &[], WhenNoneUsable::All);
    let of = |name: &str, record_type| ask_zone(&zone, name, record_type);
    for name in ["app.shop.svc.mesh.", "n2-c.app.shop.svc.mesh."] {
        assert_eq!(data(&of(name, RecordType::A)), ["10.210.2.9"]);
        assert_eq!(data(&of(name, RecordType::AAAA)), ["fd00:1:2:2::9"]);
    }
    let none = of("app.blog.svc.mesh.", RecordType::AAAA);
    assert_eq!((none.code, none.answers.len()), (ResponseCode::NoError, 0));
    let reverse = Name::from(address).to_string();
    assert_eq!(data(&of(&reverse, RecordType::PTR)), ["n2-c.web.svc.mesh."]);
}

#[test]
fn the_reverse_name_of_a_container_is_its_short_one() {
    let zone = zone_of(&with_containers(), &[], WhenNoneUsable::All);
    let of = |name| data(&ask_zone(&zone, name, RecordType::PTR));
    assert_eq!(of("9.2.210.10.in-addr.arpa."), ["n2-c.web.svc.mesh."]);
    assert_eq!(of("9.3.210.10.in-addr.arpa."), ["n3-c.app.blog.svc.mesh."]);
}

#[test]
fn a_service_address_stands_for_the_instances_in_addresses_and_srv_keeps_them() {
    let mut netmap = with_containers();
    for service in netmap.services.values_mut() {
        if service.name.as_str() == "web" && service.node == id(2) {
            service.service_address = Some("10.210.0.77".parse().expect("a literal"));
        }
    }
    let zone = zone_of(&netmap, &[3], WhenNoneUsable::All);
    let of = |name, record_type| data(&ask_zone(&zone, name, record_type));
    assert_eq!(of("web.svc.mesh.", RecordType::A), ["10.210.0.77"]);
    let none = ask_zone(&zone, "web.svc.mesh.", RecordType::AAAA);
    assert_eq!((none.code, none.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(of("web.svc.mesh.", RecordType::SRV).len(), 5);
    assert_eq!(of("n2-c.web.svc.mesh.", RecordType::A), ["10.210.2.9"]);
    assert_eq!(
        of("77.0.210.10.in-addr.arpa.", RecordType::PTR),
        ["web.svc.mesh."]
    );
    let usable: Vec<String> = zone
        .service_addresses()
        .into_iter()
        .flat_map(|(address, instances)| {
            std::iter::once(address)
                .chain(instances)
                .map(|a| a.to_string())
        })
        .collect();
    assert_eq!(
        usable,
        ["10.210.0.77", "10.210.1.1", "10.210.2.1", "10.210.2.9"]
    );

    // Until the kernel of this node balances it, it leads nowhere.
    let zone = zone_with(&netmap, &[3], WhenNoneUsable::All, &BTreeSet::new());
    let answer = ask_zone(&zone, "web.svc.mesh.", RecordType::A);
    let mut addresses = data(&answer);
    addresses.sort();
    assert_eq!(addresses, ["10.210.1.1", "10.210.2.1", "10.210.2.9"]);
}

/// The netmap with one instance of `web` on n1 and on n2, and with this many on n3, whose ids begin with the name of n1.
fn hostile(instances: u8) -> Netmap {
    let mut netmap = netmap(HEALTHY);
    for service in netmap.services.values_mut() {
        let first = service.instances[0].clone();
        if service.node == id(3) {
            service.instances = (0..instances)
                .map(|n| Instance {
                    id: label(&format!("n1-{}", 80 + u16::from(n))),
                    addresses: vec![[10, 210, 3, n].into()],
                    ports: vec![first.ports[0].clone(); 16],
                    weight: u16::MAX,
                    ..first.clone()
                })
                .collect();
        } else {
            service.instances[0].ports.truncate(1);
        }
    }
    netmap
}

fn ask_with(zone: &Zone, name: &str, record_type: RecordType, entropy: u64) -> Answer {
    let name = Name::from_ascii(name).expect("a literal");
    let entropy = entropy.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match answer(zone, &name, record_type, entropy) {
        Verdict::Answer(answer) => answer,
        Verdict::Forward => panic!("a name of the mesh"),
    }
}

#[test]
fn each_node_that_serves_a_name_has_an_equal_share_of_the_positions() {
    let mut netmap = hostile(254);
    // The own node always comes first, so it is left out.
    netmap.services.retain(|_, service| service.node != id(1));
    let zone = zone_of(&netmap, &[], WhenNoneUsable::All);
    let (mut first, mut targets) = (0, 0);
    for entropy in 0..400 {
        let answer = ask_with(&zone, "web.svc.mesh.", RecordType::A, entropy);
        let addresses = data(&answer);
        assert_eq!(addresses.len(), 8);
        assert!(
            addresses.contains(&"10.210.2.1".to_owned()),
            "{addresses:?}"
        );
        first += usize::from(answer.answers[0].data.to_string() == "10.210.2.1");
        let srv = data(&ask_with(&zone, "web.svc.mesh.", RecordType::SRV, entropy));
        assert_eq!(srv.len(), 32);
        let honest: Vec<&String> = srv.iter().filter(|s| s.contains(" n2-80.")).collect();
        targets += honest.len();
        // A node chooses the weights that it publishes, so they must not enlarge its share.
        let weight = |text: &str| -> u64 {
            let mut words = text.split(' ');
            words.nth(1).and_then(|w| w.parse().ok()).expect("a weight")
        };
        let all: u64 = srv.iter().map(|s| weight(s)).sum();
        let own: u64 = honest.iter().map(|s| weight(s)).sum();
        assert!(own * 11 >= all, "{own} of {all}");
        let txt = data(&ask_with(&zone, "web.svc.mesh.", RecordType::TXT, entropy));
        assert!(txt.iter().any(|text| text.contains("node=n2")), "{txt:?}");
    }
    assert!((150..=250).contains(&first), "{first} of 400");
    assert_eq!(targets, 400);
}

#[test]
fn with_more_nodes_than_places_each_node_is_answered_as_often_as_another() {
    let mut netmap = netmap(HEALTHY);
    let (member, service) = (
        netmap.members[&id(2)].clone(),
        netmap.services.values().find(|s| s.node == id(2)).cloned(),
    );
    let service = service.expect("on each node");
    netmap.services.retain(|_, s| s.node != id(1));
    for n in 4..=100u8 {
        let member = Member {
            id: id(n),
            name: label(&format!("n{n}")),
            ..member.clone()
        };
        netmap.members.insert(id(n), member);
        // Every tenth node has many instances.
        let count = if n % 10 == 0 { 20 } else { 1 };
        let instances = (0..count).map(|i| Instance {
            id: label(&format!("n{n}-{i}")),
            addresses: vec![[10, 210, n, i].into()],
            ..service.instances[0].clone()
        });
        let service = Service {
            id: Service::id_of(&id(n), None, &service.name),
            node: id(n),
            instances: instances.collect(),
            ..service.clone()
        };
        netmap.services.insert(service.id.clone(), service);
    }
    let zone = zone_of(&netmap, &[], WhenNoneUsable::All);
    let mut answered: BTreeMap<u8, usize> = BTreeMap::new();
    for entropy in 0..4000 {
        let answer = ask_with(&zone, "web.svc.mesh.", RecordType::A, entropy);
        assert_eq!(answer.answers.len(), 8);
        for record in &answer.answers {
            let RData::A(address) = &record.data else {
                panic!("an address")
            };
            *answered.entry(address.0.octets()[2]).or_default() += 1;
        }
    }
    // There are 99 nodes and 32,000 places, so each node gets about 323.
    assert_eq!(answered.len(), 99);
    let (least, most) = (answered.values().min(), answered.values().max());
    assert!(least >= Some(&220) && most <= Some(&440), "{answered:?}");
}

#[test]
fn nearer_nodes_come_first_and_do_not_take_the_places_of_others() {
    // n3 is as near as a node can be, and has many instances.
    let netmap = hostile(254);
    let zone = Zone::build(&ZoneInput {
        netmap: &netmap,
        own: id(9),
        unreachable: &BTreeSet::new(),
        groups: &BTreeMap::from([(id(3), 1), (id(1), 5), (id(2), 6)]),
        when_none_usable: WhenNoneUsable::All,
        lingering: &BTreeSet::new(),
        balanced: &BTreeSet::new(),
        held: &ServiceAddresses::default(),
        serial: 1,
        most_addresses: 8,
    });
    for entropy in 0..50 {
        let answer = ask_with(&zone, "web.svc.mesh.", RecordType::A, entropy);
        let addresses: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
        assert!(addresses[..6].iter().all(|a| a.starts_with("10.210.3.")));
        assert_eq!(addresses[6..], ["10.210.1.1", "10.210.2.1"]);
        let nearest = data(&ask_with(
            &zone,
            "nearest.web.svc.mesh.",
            RecordType::A,
            entropy,
        ));
        assert!(!nearest.is_empty());
        assert!(nearest.iter().all(|a| a.starts_with("10.210.3.")));
    }
}

#[test]
fn an_instance_with_the_id_of_another_nodes_does_not_get_its_name_and_stays_reachable() {
    // n3 copies the ids of n1. The name is n1's because it begins with the name of n1, or because n1 joined first.
    for (earlier, renamed) in [(1, false), (3, false), (1, true)] {
        let mut netmap = hostile(3);
        let joined = UnixSeconds(0);
        netmap
            .members
            .get_mut(&id(earlier))
            .expect("there")
            .issued_at = joined;
        let name = if renamed { "other-1" } else { "n1-80" };
        if renamed {
            for service in netmap.services.values_mut() {
                service.instances[0].id = label(name);
            }
        }
        let zone = zone_of(&netmap, &[], WhenNoneUsable::All);
        let of = |name: &str, record_type| data(&ask_zone(&zone, name, record_type));
        assert_eq!(
            of(&format!("{name}.web.svc.mesh."), RecordType::A),
            ["10.210.1.1"]
        );
        let qualified = format!("{name}-030303030303.web.svc.mesh.");
        let reverse = of("0.3.210.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(reverse, [qualified.as_str()]);
        assert_eq!(of(&qualified, RecordType::A), ["10.210.3.0"]);
        for entropy in 0..20 {
            let answer = ask_with(&zone, "web.svc.mesh.", RecordType::SRV, entropy);
            for record in &answer.answers {
                let RData::SRV(srv) = &record.data else {
                    panic!("a service")
                };
                let address = ask_zone(&zone, &srv.target.to_string(), RecordType::A);
                let of_n1 = srv.target.to_string() == format!("{name}.web.svc.mesh.");
                assert_eq!(data(&address)[0] == "10.210.1.1", of_n1, "{srv}");
            }
        }
    }
}

#[test]
fn a_name_with_the_key_of_a_node_resolves_to_that_node() {
    // n1 and n2 use the same id, so the name of n2's instance has the key of n2 in it. n3 claims that name too, and joined first.
    let mut netmap = hostile(1);
    netmap.members.get_mut(&id(3)).expect("there").issued_at = UnixSeconds(0);
    for service in netmap.services.values_mut() {
        let id = if service.node == id(3) {
            "x-1-020202020202"
        } else {
            "x-1"
        };
        service.instances[0].id = label(id);
    }
    let zone = zone_of(&netmap, &[], WhenNoneUsable::All);
    let of = |name: &str| data(&ask_zone(&zone, name, RecordType::A));
    assert_eq!(of("x-1.web.svc.mesh."), ["10.210.1.1"]);
    assert_eq!(of("x-1-020202020202.web.svc.mesh."), ["10.210.2.1"]);
}

#[test]
fn a_service_of_a_project_does_not_take_the_instances_of_a_service_out_of_its_answers() {
    // n3 gives a service of the project `web` the name of n2's instance.
    let mut netmap = netmap(HEALTHY);
    let mut taken = netmap
        .services
        .values()
        .find(|s| s.node == id(3))
        .cloned()
        .expect("there");
    taken.name = label("n2-80");
    taken.project = Some(label("web"));
    taken.id = Service::id_of(&id(3), taken.project.as_ref(), &taken.name);
    netmap.services.insert(taken.id.clone(), taken);
    let zone = zone_of(&netmap, &[], WhenNoneUsable::All);
    let srv = data(&ask_zone(&zone, "_web._tcp.web.svc.mesh.", RecordType::SRV));
    assert_eq!(srv.len(), 3, "{srv:?}");
    assert!(
        srv.iter()
            .any(|s| s.ends_with(" 80 n2-80-020202020202.web.svc.mesh.")),
        "{srv:?}"
    );
}

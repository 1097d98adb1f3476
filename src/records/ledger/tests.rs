use super::*;
use crate::model::WireGuardKey;
use crate::model::time::UnixSeconds;
use crate::records::kinds::{Name, Node, Revocation, RevokedKind, Service, Token};
use crate::testbed::records as build;
use crate::testbed::records::{LATER, NOW, block, key, label};

const MESH: u8 = 1;
const TOKEN: u8 = 2;

fn mesh() -> Envelope {
    build::sealed(&Record::Mesh(build::mesh()), MESH)
}

fn token_record(uses: u32, tags: &[&str]) -> Token {
    Token {
        tags: tags.iter().map(|t| label(t)).collect(),
        uses,
        ..build::token(&key(TOKEN).public())
    }
}

fn membership_record(node: u8, name: &str) -> Membership {
    Membership {
        wireguard_key: WireGuardKey([node; 32]),
        ..build::membership(&key(node).public(), &key(TOKEN).public(), name)
    }
}

fn membership(node: u8) -> Envelope {
    Envelope::seal(
        &Record::Membership(membership_record(node, &format!("n{node}"))),
        &key(TOKEN),
    )
}

fn node_record(node: u8, version: u64, index: u32) -> Node {
    Node {
        version,
        wireguard_key: WireGuardKey([node; 32]),
        endpoints: vec!["192.0.2.7:51820".parse().expect("a literal")],
        ..build::node(&key(node).public(), block(index))
    }
}

fn node(node: u8, version: u64, index: u32) -> Envelope {
    Envelope::seal(&Record::Node(node_record(node, version, index)), &key(node))
}

fn service_record(node: u8, version: u64, address: &str) -> Service {
    let address = address.parse().expect("a literal");
    let instance = build::instance("i", vec![address]);
    Service {
        version,
        ..build::service(&key(node).public(), "web", vec![instance])
    }
}

fn service(node: u8, version: u64, address: &str) -> Envelope {
    Envelope::seal(
        &Record::Service(service_record(node, version, address)),
        &key(node),
    )
}

fn revocation(of: u8, revoked: RevokedKind, at: UnixSeconds) -> Envelope {
    let revocation = Revocation {
        id: key(of).public(),
        version: 1,
        revoked,
        at,
        stays: None,
    };
    Envelope::seal(&Record::Revocation(revocation), &key(MESH))
}

/// A mesh, a token with `uses` uses and the tag `db`, nothing else.
fn ledger(uses: u32) -> Ledger {
    let mut ledger = Ledger::new(key(MESH).public());
    ledger.apply(mesh()).expect("signed by the mesh key");
    ledger
        .apply(Envelope::seal(
            &Record::Token(token_record(uses, &["db"])),
            &key(MESH),
        ))
        .expect("signed by the mesh key");
    ledger
}

/// Nodes 10 and 11 are members with blocks 1 and 2.
fn two_nodes() -> Ledger {
    let mut ledger = ledger(2);
    for (index, n) in [10u8, 11].into_iter().enumerate() {
        ledger.apply(membership(n)).expect("within the token");
        ledger
            .apply(node(n, 5, index as u32 + 1))
            .expect("its own record");
    }
    ledger
}

#[test]
fn members_with_their_services_make_the_netmap() {
    let mut ledger = two_nodes();
    ledger
        .apply(service(10, 1, "10.210.1.1"))
        .expect("in its block");
    let netmap = ledger.netmap();
    assert_eq!(netmap.members.len(), 2);
    assert_eq!(
        netmap.by_name(&label("n10")).map(|m| m.block),
        Some(block(1))
    );
    assert_eq!(netmap.services.len(), 1);
}

#[test]
fn an_address_that_the_mesh_does_not_carry_is_in_nobodys_netmap() {
    let mut ledger = two_nodes();
    let mut record = service_record(10, 1, "10.210.1.1");
    let address = |text: &str| text.parse().expect("a literal");
    record.instances[0]
        .addresses
        .push(address("169.254.169.254"));
    let mut outside = record.instances[0].clone();
    outside.id = label("outside");
    outside.addresses = vec![address("192.0.2.80"), address("2001:db8::80")];
    record.instances.push(outside);
    let seal = |record: Service| Envelope::seal(&Record::Service(record), &key(10));
    ledger.apply(seal(record.clone())).expect("it is kept");
    let mut netmap = ledger.netmap();
    let shown = |netmap: &crate::records::netmap::Netmap| -> Vec<Vec<std::net::IpAddr>> {
        let services = netmap.services.values();
        let instances = services.flat_map(|s| &s.instances);
        instances.map(|i| i.addresses.clone()).collect()
    };
    assert_eq!(shown(&netmap), [[address("10.210.1.1")]]);
    record.instances.remove(0);
    record.version = 2;
    ledger.apply(seal(record.clone())).expect("it is newer");
    assert!(ledger.renew(&mut netmap, &record.id).is_some());
    assert_eq!(shown(&netmap), Vec::<Vec<std::net::IpAddr>>::new());
    assert_eq!(netmap, ledger.netmap());
}

#[test]
fn a_record_that_is_too_long_is_not_taken_for_a_forged_one() {
    let mut ledger = two_nodes();
    let mut record = service_record(10, 1, "10.210.1.1");
    record.instances = vec![record.instances[0].clone(); MAX_PAYLOAD / 100];
    let long = Envelope::seal(&Record::Service(record), &key(10));
    let bytes = long.payload.len();
    assert_eq!(ledger.apply(long), Err(Refused::TooLong(bytes)));
}

#[test]
fn only_the_mesh_key_makes_tokens() {
    let mut ledger = ledger(1);
    let mut wider = token_record(1000, &["db", "admin"]);
    wider.version = 2;
    for forger in [TOKEN, 10, 99] {
        let forged = Envelope::seal(&Record::Token(wider.clone()), &key(forger));
        assert!(matches!(ledger.apply(forged), Err(Refused::Signer(_))));
    }
    let mut renamed = Envelope::seal(&Record::Token(wider), &key(99));
    renamed.signer = key(MESH).public();
    assert_eq!(ledger.apply(renamed), Err(Refused::Signature));
}

#[test]
fn a_token_admits_as_many_nodes_as_it_says() {
    let mut ledger = ledger(1);
    ledger.apply(membership(10)).expect("the first");
    assert_eq!(ledger.apply(membership(10)), Ok(Applied::Unchanged));
    assert_eq!(ledger.apply(membership(11)), Err(Refused::TokenSpent(1)));
    ledger
        .apply(revocation(10, RevokedKind::Node, NOW))
        .expect("signed by the mesh key");
    assert_eq!(
        ledger.apply(membership(11)),
        Err(Refused::TokenSpent(1)),
        "removal gives no use back"
    );
}

#[test]
fn a_member_has_the_tags_of_its_token_or_those_it_asks_for() {
    let ledger = ledger(9);
    let granted = ledger
        .token(&key(TOKEN).public())
        .expect("held")
        .tags
        .clone();
    let mut member = membership_record(10, "n10");
    assert_eq!(ledger.tags_of(&member), granted);
    assert!(!granted.is_empty());
    member.tags = vec![granted[0].clone(), label("admin")];
    assert_eq!(ledger.tags_of(&member), granted[..1]);
}

#[test]
fn a_membership_stays_within_its_token() {
    let mut ledger = ledger(9);
    let mut tagged = membership_record(10, "n10");
    tagged.tags = vec![label("db"), label("admin")];
    assert_eq!(
        ledger.apply(Envelope::seal(&Record::Membership(tagged), &key(TOKEN))),
        Err(Refused::Tag("admin".into()))
    );
    let mut late = membership_record(10, "n10");
    late.issued_at = LATER;
    assert_eq!(
        ledger.apply(Envelope::seal(&Record::Membership(late), &key(TOKEN))),
        Err(Refused::TokenExpired)
    );
    let self_signed = Envelope::seal(&Record::Membership(membership_record(10, "n10")), &key(10));
    assert!(matches!(ledger.apply(self_signed), Err(Refused::Signer(_))));
    let mut unknown = membership_record(10, "n10");
    unknown.token = key(77).public();
    assert_eq!(
        ledger.apply(Envelope::seal(&Record::Membership(unknown), &key(77))),
        Err(Refused::UnknownToken)
    );
}

#[test]
fn a_revoked_token_admits_nobody_and_keeps_whom_it_admitted() {
    let mut ledger = ledger(9);
    let mut early = membership_record(10, "n10");
    early.issued_at = UnixSeconds(NOW.0 - 1);
    ledger
        .apply(Envelope::seal(&Record::Membership(early), &key(TOKEN)))
        .expect("before the revocation");
    ledger
        .apply(revocation(TOKEN, RevokedKind::Token, NOW))
        .expect("signed by the mesh key");
    assert_eq!(ledger.apply(membership(11)), Err(Refused::TokenRevoked));
    ledger.apply(node(10, 1, 1)).expect("still a member");
    // The certificate of another node that it admitted before may come later than the revocation.
    let mut late = membership_record(12, "n12");
    late.issued_at = UnixSeconds(NOW.0 - 1);
    ledger
        .apply(Envelope::seal(&Record::Membership(late), &key(TOKEN)))
        .expect("before the revocation");
}

#[test]
fn versions_only_grow() {
    let mut ledger = two_nodes();
    assert!(matches!(
        ledger.apply(node(10, 4, 1)),
        Err(Refused::Stale {
            offered: 4,
            held: 5,
            ..
        })
    ));
    assert!(matches!(
        ledger.apply(node(10, 6, 1)),
        Ok(Applied::Changed(_))
    ));
}

#[test]
fn a_block_stays_with_who_holds_it() {
    let mut ledger = two_nodes();
    assert!(matches!(
        ledger.apply(node(11, 6, 1)),
        Err(Refused::BlockTaken(_))
    ));
    assert!(matches!(
        ledger.apply(node(10, 6, 0)),
        Err(Refused::ForeignBlock(_))
    ));
    let mut stolen_key = node_record(11, 6, 2);
    stolen_key.wireguard_key = WireGuardKey([10; 32]);
    assert!(matches!(
        ledger.apply(Envelope::seal(&Record::Node(stolen_key), &key(11))),
        Err(Refused::KeyTaken)
    ));
    ledger
        .apply(revocation(10, RevokedKind::Node, NOW))
        .expect("signed by the mesh key");
    ledger
        .apply(node(11, 7, 1))
        .expect("the block is free again");
}

#[test]
fn a_service_cannot_point_into_anothers_block_or_name_another_node() {
    let mut ledger = two_nodes();
    for (version, address) in [
        (1, "10.210.2.1"),
        (2, "192.0.2.80"),
        (3, "::ffff:10.210.2.1"),
    ] {
        ledger
            .apply(service(10, version, address))
            .expect("its own word");
        assert!(ledger.netmap().services.is_empty(), "{address}");
    }
    let others = Envelope::seal(
        &Record::Service(service_record(11, 1, "10.210.2.1")),
        &key(10),
    );
    assert!(matches!(ledger.apply(others), Err(Refused::Signer(_))));
}

#[test]
fn a_removed_node_is_out_with_all_it_said() {
    let mut ledger = two_nodes();
    ledger
        .apply(service(10, 1, "10.210.1.1"))
        .expect("in its block");
    ledger
        .apply(revocation(10, RevokedKind::Node, NOW))
        .expect("signed by the mesh key");
    assert!(ledger.netmap().by_name(&label("n10")).is_none());
    assert!(ledger.netmap().services.is_empty());
    assert_eq!(ledger.apply(node(10, 9, 1)), Err(Refused::NodeRevoked));
    assert_eq!(
        ledger.apply(service(10, 9, "10.210.1.1")),
        Err(Refused::NodeRevoked)
    );
}

#[test]
fn an_endpoint_inside_the_mesh_is_refused() {
    let mut ledger = two_nodes();
    for endpoint in ["10.210.2.1:51820", "[::ffff:10.210.2.1]:51820"] {
        let mut inside = node_record(10, 6, 1);
        inside.endpoints = vec![endpoint.parse().expect("a literal")];
        assert!(matches!(
            ledger.apply(Envelope::seal(&Record::Node(inside), &key(10))),
            Err(Refused::ForeignAddress(_))
        ));
    }
}

#[test]
fn an_endpoint_to_which_not_every_node_can_send_is_left_out_of_the_netmap() {
    let mut ledger = two_nodes();
    let good = "192.0.2.7:51820".parse().expect("a literal");
    let mut record = node_record(10, 6, 1);
    record.endpoints = [
        "169.254.169.254:53",
        "[fe80::1]:53",
        "[::ffff:192.0.2.9]:53",
    ]
    .map(|endpoint| endpoint.parse().expect("a literal"))
    .to_vec();
    record.endpoints.push(good);
    record.observed.clone_from(&record.endpoints);
    ledger
        .apply(Envelope::seal(&Record::Node(record), &key(10)))
        .expect("versions that did not look at this may have sent it");
    let netmap = ledger.netmap();
    let member = netmap.by_name(&label("n10")).expect("a member");
    assert_eq!(member.endpoints, [good]);
    assert_eq!(member.at_router.observed, [good]);
}

#[test]
fn a_ledger_refills_an_empty_one() {
    let mut full = two_nodes();
    full.apply(service(10, 1, "10.210.1.1"))
        .expect("in its block");
    full.apply(revocation(11, RevokedKind::Node, NOW))
        .expect("signed by the mesh key");
    let unknown = r#"{"kind":"weather","id":"x","version":1}"#;
    full.apply(Envelope::seal_payload(unknown.into(), &key(10)))
        .expect("said by a member");
    let mut empty = Ledger::new(key(MESH).public());
    for envelope in full.envelopes() {
        empty
            .apply(envelope.clone())
            .expect("in an order that can be taken in");
    }
    assert_eq!(empty.netmap(), full.netmap());
    assert_eq!(empty.len(), full.len());
}

#[test]
fn of_two_nodes_with_one_name_the_earlier_keeps_it() {
    let mut ledger = ledger(2);
    let mut second = membership_record(11, "n10");
    second.issued_at = UnixSeconds(NOW.0 + 1);
    ledger
        .apply(Envelope::seal(&Record::Membership(second), &key(TOKEN)))
        .expect("within the token");
    ledger.apply(membership(10)).expect("within the token");
    ledger.apply(node(10, 1, 1)).expect("a member");
    ledger.apply(node(11, 1, 2)).expect("a member");
    let netmap = ledger.netmap();
    assert_eq!(
        netmap.by_name(&label("n10")).map(|m| m.id),
        Some(key(10).public())
    );
    assert_eq!(netmap.members.len(), 2);
}

fn departure(of: u8, by: u8) -> Envelope {
    let departure = crate::records::kinds::Departure {
        id: key(of).public(),
        version: 1,
    };
    Envelope::seal(&Record::Departure(departure), &key(by))
}

#[test]
fn a_node_departs_by_its_own_word_and_what_it_held_is_free() {
    let mut ledger = Ledger::new(key(MESH).public());
    let token = Envelope::seal(&Record::Token(token_record(2, &[])), &key(MESH));
    for envelope in [
        mesh(),
        token,
        membership(10),
        membership(11),
        node(10, 1, 1),
    ] {
        ledger.apply(envelope).expect("by the rules");
    }
    assert_eq!(
        ledger.apply(node(11, 1, 1)),
        Err(Refused::BlockTaken(block(1).v4.to_string()))
    );
    for (of, by) in [(10, 11), (10, MESH), (10, TOKEN)] {
        assert!(matches!(
            ledger.apply(departure(of, by)),
            Err(Refused::Signer(_))
        ));
    }
    for stranger in [12, TOKEN] {
        assert_eq!(
            ledger.apply(departure(stranger, stranger)),
            Err(Refused::NotAMember)
        );
    }
    ledger.apply(departure(10, 10)).expect("its own word");
    assert!(ledger.is_revoked(&key(10).public()));
    assert_eq!(ledger.node(&key(10).public()), None);
    assert_eq!(ledger.apply(node(10, 2, 1)), Err(Refused::NodeRevoked));
    ledger.apply(node(11, 1, 1)).expect("the block is free");

    // In the order in which it is passed on, another takes it all in.
    let mut other = Ledger::new(key(MESH).public());
    for envelope in ledger.envelopes() {
        other.apply(envelope.clone()).expect("held by the first");
    }
    assert!(other.envelopes().eq(ledger.envelopes()));
}

#[test]
fn a_departure_that_is_repeated_leaves_the_machine_in_that_joined_again_by_the_same_name() {
    let mut ledger = Ledger::new(key(MESH).public());
    let token = Envelope::seal(&Record::Token(token_record(2, &[])), &key(MESH));
    for envelope in [mesh(), token, membership(10), node(10, 1, 1)] {
        ledger.apply(envelope).expect("by the rules");
    }
    let name = membership_record(10, "n10").name;
    let departed = ledger.names().remove(&key(10).public()).expect("a member");
    let departure = departure(10, 10);
    ledger.apply(departure.clone()).expect("its own word");
    assert!(!ledger.is_name_of_another(&departed, &key(11).public()));
    let again = Membership {
        name: departed.clone(),
        ..membership_record(11, name.as_str())
    };
    ledger
        .apply(Envelope::seal(&Record::Membership(again), &key(TOKEN)))
        .expect("a use is left");
    ledger.apply(node(11, 1, 1)).expect("the block is free");
    assert_eq!(ledger.apply(departure), Ok(Applied::Unchanged));
    let members: Vec<_> = ledger.netmap().members.into_values().collect();
    let members: Vec<_> = members.iter().map(|m| (m.id, &m.name)).collect();
    assert_eq!(members, [(key(11).public(), &departed)]);
    assert_eq!(ledger.departures().count(), 1);
    ledger
        .apply(revocation(10, RevokedKind::Node, UnixSeconds(1)))
        .expect("signed by the mesh key");
    assert_eq!(ledger.departures().count(), 0, "the removal is enough");
}

#[test]
fn a_node_that_moves_frees_the_block_and_the_key_it_had() {
    let mut ledger = Ledger::new(key(MESH).public());
    let token = Envelope::seal(&Record::Token(token_record(2, &[])), &key(MESH));
    for envelope in [
        mesh(),
        token,
        membership(10),
        membership(11),
        node(10, 1, 1),
    ] {
        ledger.apply(envelope).expect("by the rules");
    }
    ledger.apply(node(10, 2, 2)).expect("nobody's block");
    let stolen_key = Node {
        wireguard_key: WireGuardKey([10; 32]),
        ..node_record(11, 1, 1)
    };
    let stolen_key = Envelope::seal(&Record::Node(stolen_key), &key(11));
    assert!(ledger.apply(stolen_key).is_err());
    assert!(ledger.apply(node(11, 1, 2)).is_err());
    ledger.apply(node(11, 1, 1)).expect("free again");
}

fn name(of: u8, version: u64, name: &str) -> Envelope {
    let record = Name {
        id: key(of).public(),
        version,
        name: label(name),
    };
    Envelope::seal(&Record::Name(record), &key(of))
}

#[test]
fn a_node_has_another_name_where_nobody_else_has_it() {
    let mut ledger = Ledger::new(key(MESH).public());
    let token = Envelope::seal(&Record::Token(token_record(3, &[])), &key(MESH));
    let members = [10, 11, 12].map(membership);
    let nodes = [node(10, 1, 1), node(11, 1, 2), node(12, 1, 3)];
    for envelope in [mesh(), token].into_iter().chain(members).chain(nodes) {
        ledger.apply(envelope).expect("by the rules");
    }
    let called = |ledger: &Ledger, n: u8| {
        let netmap = ledger.netmap();
        netmap.members[&key(n).public()].name.to_string()
    };
    ledger.apply(name(10, 1, "web")).expect("its own word");
    assert_eq!(called(&ledger, 10), "web");
    // No node gets a name that another node joined with or already has, even if the other node is younger.
    let taken = |name: &str| Err(Refused::NameTaken(name.into()));
    assert_eq!(ledger.apply(name(10, 2, "n11")), taken("n11"));
    assert_eq!(called(&ledger, 10), "web");
    ledger.apply(name(12, 1, "db")).expect("its own word");
    for n in [10, 11] {
        assert_eq!(ledger.apply(name(n, 2, "db")), taken("db"));
    }
    assert_eq!(called(&ledger, 12), "db");
    assert!(ledger.is_name_of_another(&label("db"), &key(10).public()));
    assert!(ledger.is_name_of_another(&label("n11"), &key(10).public()));
    assert!(!ledger.is_name_of_another(&label("n10"), &key(10).public()));
    // Nobody else speaks for it.
    let forged = Name {
        id: key(10).public(),
        version: 9,
        name: label("evil"),
    };
    let forged = Envelope::seal(&Record::Name(forged), &key(11));
    assert!(matches!(ledger.apply(forged), Err(Refused::Signer(_))));
    // A removed node's name is free.
    ledger.apply(departure(11, 11)).expect("its own word");
    ledger.apply(name(10, 3, "n11")).expect("its own word");
    assert_eq!(called(&ledger, 10), "n11");
    ledger.apply(departure(12, 12)).expect("its own word");
    ledger.apply(name(10, 4, "db")).expect("its own word");
    assert_eq!(called(&ledger, 10), "db");
}

mod bounds;
mod changes;
mod orders;
mod policies;
mod ranks;

use super::*;
use crate::model::time::UnixSeconds;
use crate::model::{KeyProof, SigningKey};
use crate::records::kinds::{Door, GuestLease, MAX_GUEST_TAGS, Node, Record, Token};
use crate::records::ledger::Applied;
use crate::records::{Envelope, Ledger};
use crate::testbed::records as build;
use crate::testbed::records::label;

const MESH: u8 = 1;
const DOOR: u8 = 10;

fn guest(n: u8, name: &str) -> Guest {
    let id = WireGuardKey([n; 32]);
    let door = Door::seal(build::id(DOOR), &id, &[n; 32], &[n; 32]).expect("a key");
    Guest {
        id,
        version: u64::from(n),
        name: label(name),
        tags: vec![label("ops")],
        doors: vec![door],
        preshared_hash: Guest::hash_of(&[n; 32]),
        expires_at: None,
    }
}

fn sealed(guest: &Guest, by: &SigningKey) -> Envelope {
    Envelope::seal_payload(guest.payload(), by)
}

fn removal(guest: &Guest, by: &SigningKey) -> Envelope {
    Envelope::seal_payload(Guest::removal_payload(guest.id), by)
}

/// The private half of the key of the tunnel of [`DOOR`].
const NODE_SECRET: [u8; 32] = [5; 32];

fn node_key() -> WireGuardKey {
    let secret = x25519_dalek::StaticSecret::from(NODE_SECRET);
    WireGuardKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
}

/// A ledger with the node [`DOOR`], which has leased these hosts.
fn ledger(leases: &[(u8, u16)]) -> Ledger {
    let mut ledger = Ledger::new(build::id(MESH));
    let (id, token) = (build::id(DOOR), build::id(2));
    let lease = |(n, host): &(u8, u16)| GuestLease {
        key: WireGuardKey([*n; 32]),
        host: *host,
        heard: true,
    };
    let node = Node {
        wireguard_key: node_key(),
        key_proof: Some(KeyProof::make(&NODE_SECRET, &id, &[1; 32])),
        guests: leases.iter().map(lease).collect(),
        ..build::node(&id, build::block(1))
    };
    let token_record = Token {
        uses: 5,
        ..build::token(&token)
    };
    for (record, signer) in [
        (Record::Mesh(build::mesh()), MESH),
        (Record::Token(token_record), MESH),
        (
            Record::Membership(build::membership(&id, &token, "web-1")),
            2,
        ),
        (Record::Node(node), DOOR),
    ] {
        ledger.apply(build::sealed(&record, signer)).expect("valid");
    }
    ledger
}

fn names(ledger: &Ledger) -> Vec<String> {
    guests(ledger).keys().map(ToString::to_string).collect()
}

#[test]
fn the_mesh_key_adds_and_removes_guests_and_a_member_does_neither() {
    let mut ledger = ledger(&[]);
    let (mesh_key, member) = (build::key(MESH), build::key(DOOR));
    let anna = guest(7, "anna");
    ledger
        .apply(sealed(&anna, &member))
        .expect("a record of a member's own");
    assert!(names(&ledger).is_empty());
    let applied = ledger
        .apply(sealed(&anna, &mesh_key))
        .expect("the mesh key's");
    let Applied::Changed(key) = applied else {
        panic!("{applied:?}");
    };
    assert_eq!(record_at(&ledger, &key), Some(anna.clone()));
    assert_eq!(record_of(&ledger, &anna.id), Some(anna.clone()));
    assert_eq!(record_of(&ledger, &WireGuardKey([8; 32])), None);
    assert_eq!(names(&ledger), ["anna"]);
    ledger
        .apply(removal(&anna, &member))
        .expect("a record of a member's own");
    assert_eq!(names(&ledger), ["anna"]);
    let removal = removal(&anna, &mesh_key);
    let removed = removal.key().expect("a header");
    assert_eq!(Guest::removed_by(&removed), Some(anna.id));
    ledger.apply(removal).expect("the mesh key's");
    assert!(names(&ledger).is_empty());
    // A later record of the same guest does not bring it back.
    let again = Guest {
        version: 900,
        ..anna
    };
    ledger
        .apply(sealed(&again, &mesh_key))
        .expect("the mesh key's");
    assert!(names(&ledger).is_empty());
}

#[test]
fn the_keys_of_records_about_guests_are_told_from_those_of_other_records() {
    let (anna, mesh_key) = (guest(7, "anna"), build::key(MESH));
    let key_of = |envelope: Envelope| envelope.key().expect("a header");
    let by_member = format!("{GUEST_REMOVAL} of {}", build::id(DOOR));
    for (key, is_concerned, removes) in [
        (key_of(sealed(&anna, &mesh_key)), true, None),
        (key_of(removal(&anna, &mesh_key)), true, Some(anna.id)),
        (RecordKey::parse(GUEST_REMOVAL, "anna"), true, None),
        (
            RecordKey::parse(&by_member, &anna.id.to_string()),
            false,
            None,
        ),
        (RecordKey::Mesh, false, None),
    ] {
        assert_eq!(Guest::is_concerned(&key), is_concerned, "{key}");
        assert_eq!(Guest::removed_by(&key), removes, "{key}");
    }
}

#[test]
fn a_version_without_guests_holds_their_records_under_the_same_keys() {
    let envelope = sealed(&guest(7, "anna"), &build::key(MESH));
    let (header, record) = Record::parse(&envelope.payload).expect("a header");
    assert_eq!(record, Record::Unknown);
    assert!(matches!(header.key, RecordKey::Unknown { .. }));
    assert_eq!(
        (header.key.kind(), header.key.id().into_owned()),
        (GUEST, WireGuardKey([7; 32]).to_string())
    );
}

#[test]
fn of_two_guests_with_one_name_the_first_has_it_and_the_key_of_a_node_is_no_guest() {
    let mut ledger = ledger(&[]);
    let mesh_key = build::key(MESH);
    let of_node = Guest {
        id: node_key(),
        ..guest(9, "node")
    };
    for guest in [guest(8, "anna"), guest(7, "anna"), of_node] {
        ledger
            .apply(sealed(&guest, &mesh_key))
            .expect("the mesh key's");
    }
    let guests = guests(&ledger);
    assert_eq!(guests.len(), 1);
    assert_eq!(guests[&label("anna")].id, WireGuardKey([7; 32]));
}

#[test]
fn a_member_that_claims_the_key_of_a_guest_without_a_proof_takes_nothing_from_it() {
    let mut ledger = ledger(&[]);
    let anna = guest(7, "anna");
    ledger
        .apply(sealed(&anna, &build::key(MESH)))
        .expect("the mesh key's");
    let (id, token) = (build::id(11), build::id(2));
    let claim = Node {
        wireguard_key: anna.id,
        ..build::node(&id, build::block(2))
    };
    for (record, signer) in [
        (Record::Membership(build::membership(&id, &token, "n11")), 2),
        (Record::Node(claim), 11),
    ] {
        ledger.apply(build::sealed(&record, signer)).expect("held");
    }
    assert_eq!(names(&ledger), ["anna"]);
}

#[test]
fn a_record_that_breaks_a_bound_is_no_guest() {
    let anna = guest(7, "anna");
    let twice = Guest {
        doors: [anna.doors.clone(), anna.doors.clone()].concat(),
        ..anna.clone()
    };
    let tags = Guest {
        tags: vec![label("t"); MAX_GUEST_TAGS + 1],
        ..anna
    };
    for odd in [twice, tags] {
        let mut ledger = ledger(&[]);
        ledger.apply(sealed(&odd, &build::key(MESH))).expect("held");
        assert!(names(&ledger).is_empty());
    }
}

#[test]
fn a_door_reads_the_preshared_key_and_another_node_does_not() {
    let anna = guest(7, "anna");
    let read = |n: u8| anna.preshared(&build::key(n)).map(|secret| *secret);
    assert_eq!(read(DOOR), Some([7; 32]));
    assert_eq!(read(11), None);
    let other = Guest {
        preshared_hash: Guest::hash_of(&[8; 32]),
        ..anna.clone()
    };
    assert!(other.preshared(&build::key(DOOR)).is_none());
    let renamed = Guest {
        id: WireGuardKey([9; 32]),
        ..anna
    };
    assert!(renamed.preshared(&build::key(DOOR)).is_none());
}

#[test]
fn a_guest_is_in_the_map_with_the_addresses_that_its_door_leased_and_only_then() {
    let in_map = |leases: &[(u8, u16)], added: &[Guest]| {
        let mut ledger = ledger(leases);
        for guest in added {
            let envelope = sealed(guest, &build::key(MESH));
            ledger.apply(envelope).expect("the mesh key's");
        }
        ledger.netmap().guests
    };
    let anna = guest(7, "anna");
    let found = in_map(&[(7, 254)], std::slice::from_ref(&anna));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].v4.to_string(), "10.210.1.254");
    assert_eq!(found[0].v6.to_string(), "fd00:1:2:1::fe");
    assert!(found[0].heard);
    // A node leases addresses only to guests that the mesh key let in at this node, and only instance addresses, each once.
    assert!(in_map(&[(7, 254)], &[]).is_empty());
    for host in [0, 1, 255, 256] {
        assert!(in_map(&[(7, host)], std::slice::from_ref(&anna)).is_empty());
    }
    let elsewhere = Guest {
        doors: vec![],
        ..anna.clone()
    };
    assert!(in_map(&[(7, 254)], &[elsewhere]).is_empty());
    let both = [anna, guest(8, "bert")];
    assert_eq!(in_map(&[(7, 254), (8, 254)], &both).len(), 1);
}

#[test]
fn a_guest_expires_at_its_time_and_without_one_never() {
    let mut anna = guest(7, "anna");
    assert!(!anna.is_expired(UnixSeconds(u64::MAX)));
    anna.expires_at = Some(UnixSeconds(100));
    assert!(!anna.is_expired(UnixSeconds(99)) && anna.is_expired(UnixSeconds(100)));
}

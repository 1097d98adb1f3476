//! Under a policy, a member that offers a name without the right to it is in no answer, whatever the member, another member or the
//! coordinator does.

use std::collections::BTreeSet;

use meshd::model::PublicKey;
use meshd::records::kinds::{MeshPolicy, Record, Service};
use meshd::records::netmap::Netmap;
use meshd::records::service_address::ServiceAddresses;
use meshd::records::subjects::subjects;
use meshd::records::{Envelope, Ledger};

use crate::kit::{Identity, record};
use crate::small_mesh::{SmallMesh, assert_taken};
use crate::zones::{addresses, zone};

/// Only `m1` may serve `db`.
const POLICY: &str = r#"
language = 1
default = "allow"
[[serve]]
names = ["db"]
by = ["node:m1"]
"#;
/// Everybody may serve every name.
const OPEN: &str = "language = 1\ndefault = \"allow\"\n";

fn policy(version: u64, text: &str) -> record::Draft {
    let record = Record::Policy(MeshPolicy::new(version, text));
    let payload: serde_json::Value = serde_json::from_str(&record.payload()).expect("just made");
    record::Draft::new("policy", "mesh")
        .version(version)
        .with("text", &payload["text"])
}

/// Both members of `mesh` offer `db`.
fn offer_db(mesh: &mut SmallMesh) {
    for member in &mesh.members {
        let instance = record::instance("db-5432", member.block.node_v4(), 5432);
        let offer = record::service(member.id(), "db", &[instance]);
        assert_taken(mesh.ledger.apply(offer.signed_by(member.key())));
    }
}

/// The nodes whose addresses are in the answer for `db.svc.mesh`.
fn answered(mesh: &SmallMesh, netmap: &Netmap) -> Vec<PublicKey> {
    let zone = zone(netmap, &BTreeSet::new(), &ServiceAddresses::default());
    let addresses = addresses(&zone, "db.svc.mesh.", 1);
    let members = mesh.members.iter();
    let of = members.filter(|member| addresses.contains(&member.block.node_v4()));
    of.map(|member| member.id()).collect()
}

/// The nodes that are subjects with the service `db`.
fn subjects_of_db(mesh: &SmallMesh, netmap: &Netmap) -> Vec<PublicKey> {
    let offering = subjects(netmap).into_iter();
    let offering = offering.filter(|s| s.services.iter().any(|o| o.service.to_string() == "db"));
    let addresses: Vec<_> = offering.flat_map(|subject| subject.addresses).collect();
    let members = mesh.members.iter();
    let of = members.filter(|member| addresses.contains(&member.block.node_v4().into()));
    of.map(|member| member.id()).collect()
}

#[test]
fn a_name_offered_without_the_right_is_in_no_answer_and_is_no_subject() {
    let mut mesh = SmallMesh::new(2);
    offer_db(&mut mesh);
    let [honest, thief] = [mesh.members[0].id(), mesh.members[1].id()];
    let netmap = mesh.ledger.netmap();
    assert_eq!(answered(&mesh, &netmap), [honest, thief]);
    let signed = mesh.by_mesh_key(&policy(1, POLICY));
    assert_taken(mesh.ledger.apply(signed));
    let mut netmap = mesh.ledger.netmap();
    assert_eq!(answered(&mesh, &netmap), [honest]);
    assert_eq!(subjects_of_db(&mesh, &netmap), [honest]);

    // A new version of the record takes the short way into the map of the mesh.
    let instance = record::instance("db-1", mesh.members[1].block.node_v4(), 5432);
    let again = record::service(thief, "db", &[instance]);
    assert_taken(mesh.ledger.apply(again.signed_by(mesh.members[1].key())));
    let id = Service::id_of(&thief, None, &"db".parse().expect("a label"));
    mesh.ledger.renew(&mut netmap, &id);
    assert_eq!(netmap, mesh.ledger.netmap());
    assert_eq!(answered(&mesh, &netmap), [honest]);
    let unlawful: Vec<PublicKey> = netmap.unlawful.values().map(|u| u.node).collect();
    assert_eq!(unlawful, [thief]);
}

#[test]
fn neither_a_member_nor_a_coordinator_takes_the_policy_out_of_force() {
    let mut mesh = SmallMesh::new(2);
    offer_db(&mut mesh);
    let honest = mesh.members[0].id();
    let before = mesh.by_mesh_key(&policy(1, OPEN));
    let present = mesh.by_mesh_key(&policy(2, POLICY));
    for record in [&before, &present] {
        assert_taken(mesh.ledger.apply(record.clone()));
    }
    let thief = mesh.members[1].key();
    let coordinator = Identity::of(99);
    // The coordinator has every record that was ever published, and keys of its own.
    let offered: Vec<Envelope> = vec![
        before,
        policy(u64::MAX, OPEN).signed_by(thief),
        policy(u64::MAX, OPEN).signed_by(coordinator.key()),
        policy(u64::MAX, OPEN).forged(coordinator.key(), mesh.ledger.mesh_key()),
        Envelope {
            payload: present.payload.replace("node:m1", "node:m2"),
            ..present.clone()
        },
    ];
    for record in offered {
        let _ = mesh.ledger.apply(record);
        let netmap = mesh.ledger.netmap();
        assert_eq!(answered(&mesh, &netmap), [honest]);
        assert_eq!(subjects_of_db(&mesh, &netmap), [honest]);
    }
}

#[test]
fn a_policy_that_a_coordinator_holds_back_comes_from_a_peer() {
    let mut mesh = SmallMesh::new(2);
    offer_db(&mut mesh);
    let mut held_back: Ledger = mesh.ledger.clone();
    assert_taken(mesh.ledger.apply(mesh.by_mesh_key(&policy(1, POLICY))));
    for record in mesh.ledger.envelopes_for_peers() {
        held_back.apply(record.clone()).expect("a peer holds it");
    }
    let netmap = held_back.netmap();
    assert_eq!(answered(&mesh, &netmap), [mesh.members[0].id()]);
}

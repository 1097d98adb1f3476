//! The holder of a token does not replace the membership of another node, even with a stolen coordinator.

use meshd::model::SigningKey;
use meshd::records::Envelope;
use meshd::records::ledger::{Applied, Refused};

use crate::kit::record::Draft;
use crate::kit::{Identity, Stolen, record};
use crate::mesh::Mesh;
use crate::node_kit::mesh_key;
use crate::small_mesh::{SmallMesh, assert_taken};

/// The key of a token that leaked.
fn leaked() -> SigningKey {
    SigningKey::from_seed(&[77; 32])
}

/// The certificate of the token that leaked. The mesh key has not signed it yet.
fn certificate() -> Draft {
    record::token(leaked().public()).with("uses", 9)
}

/// A membership with the victim's own keys and a later date, by the token that leaked. The victim did not sign it.
fn forged(victim: &Identity) -> Envelope {
    record::membership(leaked().public(), victim, "stolen")
        .with("issued_at", record::now() + 60)
        .signed_by(&leaked())
}

#[test]
fn a_stolen_coordinator_with_a_leaked_token_replaces_no_membership() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    let victim = Identity::stolen_from(&mesh.nodes[1].host.path("/run/state"));
    let certificate = certificate().version(1).signed_by(&mesh_key(&mesh));
    let name = mesh.status(1).node.expect("it has joined").name;
    let stolen = Stolen::coordinator_of(&mut mesh);
    stolen.send(vec![certificate, forged(&victim)]);
    mesh.wait_until("both nodes refuse the membership", || {
        (0..2).all(|n| {
            let log = std::fs::read_to_string(mesh.log(n)).unwrap_or_default();
            log.contains(&Refused::Unproven.to_string())
        })
    });
    let peers = mesh.status(0).peers;
    let names: Vec<_> = peers.iter().map(|peer| &peer.name).collect();
    assert_eq!(names, [&name]);
    assert!(mesh.pings(0, &mesh.addresses(1).0.to_string()));
}

#[test]
fn no_other_token_replaces_the_membership_of_a_node_of_an_earlier_version() {
    let mut mesh = SmallMesh::new(2);
    let victim = mesh.members[0].clone();
    let certificate = mesh.by_mesh_key(&certificate());
    assert_taken(mesh.ledger.apply(certificate));
    let refused = mesh.ledger.apply(forged(&victim.identity));
    assert_eq!(refused, Err(Refused::Unproven));
    assert!(mesh.ledger.holds(&victim.membership));
}

#[test]
fn a_node_that_proves_its_membership_takes_its_place_back() {
    let mut mesh = SmallMesh::new(0);
    let certificate = mesh.by_mesh_key(&certificate());
    assert_taken(mesh.ledger.apply(certificate));
    let token = mesh.token.clone();
    let victim = mesh.next_member(&token);
    let forged = forged(&victim.identity);
    assert_taken(mesh.ledger.apply(forged.clone()));
    let own = record::membership(token.key.public(), &victim.identity, "m1")
        .proven_by(victim.key())
        .signed_by(&token.key);
    assert_taken(mesh.ledger.apply(own.clone()));
    assert_eq!(mesh.ledger.apply(own), Ok(Applied::Unchanged));
    assert_eq!(mesh.ledger.apply(forged), Err(Refused::Unproven));
    let names = mesh.ledger.names();
    assert_eq!(names[&victim.id()].as_str(), "m1");
}

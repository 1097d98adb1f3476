//! No member's record displaces another signer's record of a kind that this version does not know.

use meshd::records::{Envelope, Ledger};

use crate::kit::{Coordinator, apply_all, record, taken};
use crate::small_mesh::{SmallMesh, assert_taken};

/// The records of the kind `grant` that a ledger offers to others, sorted.
fn grants(ledger: &Ledger) -> Vec<Envelope> {
    let envelopes = ledger.envelopes().cloned();
    let mut grants: Vec<Envelope> = envelopes
        .filter(|envelope| envelope.payload.contains(r#""kind":"grant""#))
        .collect();
    grants.sort_by_key(|envelope| envelope.signature.0);
    grants
}

fn sorted(mut envelopes: Vec<Envelope>) -> Vec<Envelope> {
    envelopes.sort_by_key(|envelope| envelope.signature.0);
    envelopes
}

#[test]
fn a_claim_by_a_member_keeps_no_record_of_the_mesh_key_out() {
    let mesh = SmallMesh::new(2);
    let [thief, other] = [&mesh.members[0], &mesh.members[1]];
    let highest = |id: &str| {
        let draft = record::unknown("grant", id).version(u64::MAX);
        draft.signed_by(thief.key())
    };
    // The administrator's next kind may have any ids: plain ones, and ones that look like the keys under which a ledger keeps the
    // records of members apart.
    let ids = [
        "db".to_owned(),
        format!("{}/db", thief.id()),
        format!("grant of {}", thief.id()),
        format!("{}/db", other.id()),
    ];
    let claims: Vec<Envelope> = ids.iter().map(|id| highest(id)).collect();
    let by_administrator: Vec<Envelope> = ids
        .iter()
        .map(|id| mesh.by_mesh_key(&record::unknown("grant", id).version(1)))
        .collect();
    let all = sorted([claims.clone(), by_administrator.clone()].concat());
    for (first, second) in [(&claims, &by_administrator), (&by_administrator, &claims)] {
        let mut ledger = mesh.ledger.clone();
        let results = apply_all(&mut ledger, first.iter().chain(second).cloned());
        assert_eq!(taken(&results), 2 * ids.len(), "{results:?}");
        assert_eq!(grants(&ledger), all);
        // A peer receives both records of each id.
        let mut peer = mesh.ledger.clone();
        for envelope in ledger.envelopes_for_peers() {
            peer.apply(envelope.clone()).expect("what was held there");
        }
        assert_eq!(grants(&peer), all);
        // The ledger also accepts a later version of the administrator's record.
        let next = mesh.by_mesh_key(&record::unknown("grant", "db").version(2));
        assert_taken(ledger.apply(next.clone()));
        assert!(grants(&ledger).contains(&next));
        assert!(!grants(&ledger).contains(&by_administrator[0]));
    }
}

#[test]
fn two_members_that_claim_each_others_records_keep_nothing_from_each_other() {
    let mesh = SmallMesh::new(2);
    let [a, b] = [&mesh.members[0], &mesh.members[1]];
    let of = |id: &str, version| record::unknown("grant", id).version(version);
    let (id_of_a, id_of_b) = (format!("{}/x", a.id()), format!("{}/x", b.id()));
    let claims = [
        of(&id_of_b, u64::MAX).signed_by(a.key()),
        of(&id_of_a, u64::MAX).signed_by(b.key()),
        of("x", u64::MAX).signed_by(a.key()),
    ];
    let own = [
        of(&id_of_a, 1).signed_by(a.key()),
        of(&id_of_b, 1).signed_by(b.key()),
        of("x", 1).signed_by(b.key()),
    ];
    let mut ledger = mesh.ledger.clone();
    let results = apply_all(&mut ledger, claims.iter().chain(&own).cloned());
    assert_eq!(taken(&results), claims.len() + own.len(), "{results:?}");

    // The removal of one member drops its records, and leaves those of the other.
    assert_taken(ledger.apply(mesh.by_mesh_key(&record::revocation_of_node(a.id()))));
    assert_eq!(
        grants(&ledger),
        sorted(vec![claims[1].clone(), own[1].clone(), own[2].clone()])
    );
}

#[tokio::test]
async fn a_coordinator_stores_the_administrators_record_beside_a_claim_and_sends_both_after_a_restart()
 {
    let mut coordinator = Coordinator::start();
    let thief = coordinator.join("thief").await;
    let honest = coordinator.join("honest").await;
    let ids = ["db".to_owned(), format!("{}/db", thief.id())];
    let claims: Vec<Envelope> = ids
        .iter()
        .map(|id| record::unknown("grant", id).version(u64::MAX))
        .map(|draft| draft.signed_by(thief.key()))
        .collect();
    let mut stream = thief.stream(&coordinator).await;
    assert_eq!(stream.publish(claims.clone()).await.accepted(), 2);
    let own: Vec<Envelope> = ids
        .iter()
        .map(|id| record::unknown("grant", id).version(1))
        .map(|draft| draft.signed_by(coordinator.mesh_key()))
        .collect();
    coordinator.submit(own.clone()).expect("its mesh key");
    coordinator.restart();
    let mut stream = honest.stream(&coordinator).await;
    for record in claims.iter().chain(&own) {
        stream.await_record(record).await.expect("it is held");
    }
}

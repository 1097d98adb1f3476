//! A member that fills its share of the ledger leaves the shares of all others free.

use meshd::model::SigningKey;
use meshd::protocol::JoinToken;
use meshd::records::ledger::Refused;
use meshd::records::ledger::usage::{MAX_RECORDS, MAX_UNKNOWN_RECORDS};
use meshd::records::{Envelope, Ledger};

use crate::kit::{Coordinator, Identity, Member, apply_all, record, taken};
use crate::small_mesh::{SmallMesh, assert_taken};

/// Makes the `n`-th of an endless row of records that fill the share of a member.
type Filling = fn(&Member, usize) -> Envelope;

fn small_unknown(thief: &Member, n: usize) -> Envelope {
    thief.unknown("weather", n)
}

fn unknown_of_many_kinds(thief: &Member, n: usize) -> Envelope {
    thief.unknown(&format!("kind-{n}"), "x")
}

fn large_unknown(thief: &Member, n: usize) -> Envelope {
    let draft = record::unknown("weather", n).padded(30_000);
    draft.signed_by(thief.key())
}

fn withdrawn_services(thief: &Member, n: usize) -> Envelope {
    let service = record::service(thief.id(), &format!("s{n}"), &[]);
    service.signed_by(thief.key())
}

fn large_services(thief: &Member, n: usize) -> Envelope {
    let service = thief.service(&format!("s{n}")).padded(30_000);
    service.signed_by(thief.key())
}

/// Services of which each has eight versions, every one larger than the one before.
fn services_that_grow(thief: &Member, n: usize) -> Envelope {
    let service = thief.service(&format!("s{}", n / 8));
    service.padded(n % 8 * 8_000).signed_by(thief.key())
}

const FILLINGS: [(&str, Filling); 6] = [
    ("small records of an unknown kind", small_unknown),
    ("records of many unknown kinds", unknown_of_many_kinds),
    ("large records of an unknown kind", large_unknown),
    ("withdrawn services", withdrawn_services),
    ("large services", large_services),
    ("services that grow", services_that_grow),
];

/// Fills the share of `thief` until the ledger refuses a record for lack of room.
fn fill(ledger: &mut Ledger, thief: &Member, filling: Filling) {
    for n in 0..2 * MAX_RECORDS {
        match ledger.apply(filling(thief, n)) {
            Ok(_) => {}
            Err(Refused::Full(_)) => return,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("a member has no bound");
}

/// Asserts that a ledger whose shares of `thieves` are full accepts records of the administrator, of another member and of a new
/// one, and that the thieves' records are gone once the thieves are removed.
fn assert_others_go_on(mesh: &SmallMesh, ledger: &mut Ledger, thieves: &[Member], what: &str) {
    let honest = &mesh.members[2];
    let token = SigningKey::from_seed(&[7; 32]);
    assert_taken(ledger.apply(mesh.by_mesh_key(&record::token(token.public()))));
    assert_taken(ledger.apply(honest.service("db").signed_by(honest.key())));
    let with = JoinToken {
        key: token,
        ..mesh.token.clone()
    };
    let newcomer = mesh.next_member(&with);
    assert_taken(ledger.apply(newcomer.membership.clone()));
    assert_taken(ledger.apply(newcomer.node().signed_by(newcomer.key())));
    assert_taken(ledger.apply(newcomer.service("web").signed_by(newcomer.key())));
    // No record of the mesh key is refused for lack of room. Its kind makes no difference.
    let tokens = (0..600u32).map(|n| {
        let seed: [u8; 32] = std::array::from_fn(|at| n.to_be_bytes()[at % 4]);
        mesh.by_mesh_key(&record::token(SigningKey::from_seed(&seed).public()))
    });
    assert_eq!(taken(&apply_all(ledger, tokens)), 600, "{what}");
    let policy = (0..100).map(|n| mesh.by_mesh_key(&record::unknown("policy", n).padded(20_000)));
    assert_eq!(taken(&apply_all(ledger, policy)), 100, "{what}");

    for thief in thieves {
        assert_taken(ledger.apply(mesh.by_mesh_key(&record::revocation_of_node(thief.id()))));
        let left = ledger.envelopes().filter(|e| e.signer == thief.id());
        assert_eq!(left.count(), 0, "{what}");
        assert!(
            ledger.usage_of(&thief.id()).records <= 1,
            "{what}: only the membership is held"
        );
    }
    assert!(ledger.service(&format!("{}/db", honest.id())).is_some());
}

#[test]
fn whatever_a_member_fills_its_share_with_a_ledger_takes_in_what_others_say() {
    for (what, filling) in FILLINGS {
        let mut mesh = SmallMesh::new(3);
        let thieves = mesh.members[..1].to_vec();
        fill(&mut mesh.ledger, &thieves[0], filling);
        // A node's ledger holds what the coordinator's ledger holds.
        let mut of_node = mesh.copy();
        let mut of_coordinator = mesh.ledger.clone();
        assert_others_go_on(&mesh, &mut of_coordinator, &thieves, what);
        assert_others_go_on(&mesh, &mut of_node, &thieves, what);
    }
}

#[test]
fn members_that_work_together_fill_their_own_shares_alone() {
    let mut mesh = SmallMesh::new(3);
    let thieves = mesh.members[..2].to_vec();
    for thief in &thieves {
        for filling in [small_unknown, withdrawn_services] {
            fill(&mut mesh.ledger, thief, filling);
        }
    }
    let mut ledger = mesh.ledger.clone();
    assert_others_go_on(&mesh, &mut ledger, &thieves, "two members");
}

#[test]
fn no_member_spends_the_share_of_another() {
    let mut mesh = SmallMesh::new(2);
    let [thief, victim] = [mesh.members[0].clone(), mesh.members[1].clone()];
    let before = mesh.ledger.usage_of(&victim.id());
    for n in 0..100 {
        let in_its_name = record::service(victim.id(), &format!("s{n}"), &[]);
        let forgeries = [
            in_its_name.signed_by(thief.key()),
            in_its_name.forged(thief.key(), victim.id()),
            record::unknown("weather", n).forged(thief.key(), victim.id()),
        ];
        let results = apply_all(&mut mesh.ledger, forgeries);
        assert_eq!(taken(&results), 0, "{results:?}");
        // These are the thief's own records, with ids that look like the victim's.
        let own = thief.unknown("weather", format!("{}/{n}", victim.id()));
        let _ = mesh.ledger.apply(own);
    }
    assert_eq!(mesh.ledger.usage_of(&victim.id()), before);
    let of_thief = mesh.ledger.usage_of(&thief.id());
    assert_eq!(of_thief.unknown_records, MAX_UNKNOWN_RECORDS);
    let words = (0..MAX_UNKNOWN_RECORDS).map(|n| victim.unknown("weather", n));
    let results = apply_all(&mut mesh.ledger, words);
    assert_eq!(taken(&results), MAX_UNKNOWN_RECORDS, "{results:?}");
}

#[tokio::test]
async fn a_coordinator_whose_members_filled_their_shares_admits_removes_and_stores_as_before() {
    let coordinator = Coordinator::start();
    let thief = coordinator.join("thief").await;
    let accomplice = coordinator.join("accomplice").await;
    let honest = coordinator.join("honest").await;
    let mut news = honest.stream(&coordinator).await;
    let mut streams = Vec::new();
    for member in [&thief, &accomplice] {
        let mut stream = member.stream(&coordinator).await;
        let more = MAX_UNKNOWN_RECORDS + 2;
        let records = record::many_unknown("weather", more, member.key());
        let answer = stream.publish(records).await;
        let expected = (MAX_UNKNOWN_RECORDS as u32, 2);
        assert_eq!((answer.accepted(), answer.refused().len()), expected);
        let full = |why: &String| why.contains("over their bound");
        assert!(answer.refused().iter().all(full), "{answer:?}");
        streams.push(stream);
    }

    let newcomer = coordinator.join("newcomer").await;
    let own = [
        honest.node().signed_by(honest.key()),
        honest.service("db").signed_by(honest.key()),
    ];
    assert_eq!(news.publish(own.to_vec()).await.accepted(), 2);
    for member in [&thief, &accomplice] {
        coordinator.remove_node(member.id());
        assert!(!coordinator.has_node(&member.id()));
    }
    for mut stream in streams {
        stream.end().await;
    }
    // A node that connects later does not receive records of the removed members.
    let mut later = newcomer.stream(&coordinator).await;
    later.await_record(&own[1]).await.expect("a snapshot");
    let said = |by: &Identity| later.received.iter().any(|r| r.signer == by.id());
    assert!(!said(&thief.identity) && !said(&accomplice.identity));
}

//! When a node is removed or departs, the coordinator deletes the node's records from its store.

use meshd::coordinator::store::{Effect, Sqlite, Store as _, Stored, Write};
use meshd::records::Envelope;
use meshd::records::kinds::{Departure, Record, RecordKey};

use crate::kit::{Coordinator, Member};

/// How many records of an unknown kind one node publishes. It may not publish more.
const UNKNOWN: usize = 16;

fn stored(coordinator: &Coordinator) -> Vec<Stored> {
    let path = coordinator.state_directory().join("records.db");
    let mut store = Sqlite::open(&path).expect("its file");
    store.load().expect("readable").records
}

/// The kinds of the records in the store that `member` has signed.
fn kinds(coordinator: &Coordinator, member: &Member) -> Vec<String> {
    let all = stored(coordinator).into_iter();
    let own = all.filter(|stored| stored.envelope.signer == member.id());
    let mut kinds: Vec<String> = own.map(|stored| stored.key.kind().to_owned()).collect();
    kinds.dedup();
    kinds
}

async fn speak(coordinator: &Coordinator, member: &Member) {
    let mut records = vec![
        member.node().signed_by(member.key()),
        member.service("web").signed_by(member.key()),
    ];
    records.extend((0..UNKNOWN).map(|n| member.unknown("weather", n)));
    let count = u32::try_from(records.len()).expect("few");
    let answer = member.stream(coordinator).await.publish(records).await;
    assert_eq!(answer.accepted(), count, "{answer:?}");
}

#[tokio::test]
async fn a_removal_or_departure_deletes_all_that_the_node_signed() {
    let mut coordinator = Coordinator::start();
    let [stays, removed, departs] = [
        coordinator.join("stays").await,
        coordinator.join("removed").await,
        coordinator.join("departs").await,
    ];
    for member in [&stays, &removed, &departs] {
        speak(&coordinator, member).await;
    }
    coordinator.remove_node(removed.id());
    let departure = Record::Departure(Departure::of(departs.id()));
    let departure = Envelope::seal(&departure, departs.key());
    let mut stream = departs.stream(&coordinator).await;
    assert_eq!(stream.publish(vec![departure]).await.accepted(), 1);
    coordinator.kill();
    let unknown = format!("weather of {}", stays.id());
    assert_eq!(
        kinds(&coordinator, &stays),
        ["node", "service", unknown.as_str()]
    );
    assert!(kinds(&coordinator, &removed).is_empty());
    assert_eq!(kinds(&coordinator, &departs), ["departure"]);
    coordinator.restart();
    let log = coordinator.log();
    assert!(!log.contains("does not verify"), "{log}");
}

#[tokio::test]
async fn what_an_earlier_version_kept_of_a_removed_node_is_deleted_at_the_start_in_one_line() {
    let mut coordinator = Coordinator::start();
    let removed = coordinator.join("removed").await;
    let stays = coordinator.join("stays").await;
    speak(&coordinator, &stays).await;
    coordinator.remove_node(removed.id());
    coordinator.kill();
    let before = stored(&coordinator).len();
    // The earlier version stored these records under keys without the signer.
    let weather = |n: usize| {
        let id = format!("place {n}");
        Write {
            key: RecordKey::parse("weather", &id),
            envelope: removed.unknown("weather", id),
            gone: Vec::new(),
            effect: Effect::None,
        }
    };
    let path = coordinator.state_directory().join("records.db");
    let writes: Vec<Write> = (0..1000).map(weather).collect();
    let mut store = Sqlite::open(&path).expect("its file");
    store.put(&writes).expect("writable");
    drop(store);
    coordinator.restart();
    coordinator.kill();
    assert_eq!(stored(&coordinator).len(), before);
    let log = coordinator.log();
    assert_eq!(log.matches("cleaned the store").count(), 1, "{log}");
    assert!(!log.contains("does not verify"), "{log}");
    coordinator.restart();
    assert!(coordinator.has_node(&stays.id()));
    assert_eq!(coordinator.log().matches("cleaned the store").count(), 1);
}

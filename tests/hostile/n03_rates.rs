//! A member writes at a limited rate, and none of its records is lost. A forged record ends the stream of the member
//! that sent it.

use std::time::{Duration, Instant};

use meshd::protocol::control::Refusal;
use meshd::protocol::token::SpkiPin;
use meshd::records::Envelope;
use serde_json::json;

use crate::kit::{Answer, Coordinator, End, Hello, Member, Stream, record};

/// How many records a member may write at once, and how many each second after that.
const BURST: usize = 100;
const RATE: usize = 20;
/// Only a hang takes that long, or a limit that counts records which it should not count.
const GENEROUS: Duration = Duration::from_secs(40);

fn services(member: &Member, count: usize) -> Vec<Envelope> {
    let services = (0..count).map(|n| member.service(&format!("s{n}")).signed_by(member.key()));
    services.collect()
}

/// The shortest time in which the coordinator may accept `count` records.
fn least(count: usize) -> Duration {
    // The allowance grows a little before the first of them is sent.
    Duration::from_secs_f64((count - BURST) as f64 / RATE as f64 * 0.95)
}

#[tokio::test]
async fn a_member_with_many_records_takes_longer_loses_none_and_holds_up_nobody() {
    let coordinator = Coordinator::start();
    let busy = coordinator.join("busy").await;
    let other = coordinator.join("other").await;
    let mut stream = busy.stream(&coordinator).await;
    let mut others = other.stream(&coordinator).await;
    let records = services(&busy, 256);
    let publish = async {
        let begun = Instant::now();
        let answer = stream.publish(records.clone()).await;
        (begun.elapsed(), answer)
    };
    let meanwhile = async {
        let mut answered = 0;
        for record in services(&other, 50) {
            answered += others.publish(vec![record]).await.accepted();
        }
        (Instant::now(), answered)
    };
    let begun = Instant::now();
    let ((time, answer), (done, answered)) = tokio::join!(publish, meanwhile);
    assert_eq!(answer.accepted(), 256, "{answer:?}");
    assert!(answer.refused().is_empty(), "{answer:?}");
    assert!(time >= least(256), "{time:?}");
    assert!(time < GENEROUS, "{time:?}");
    assert_eq!(answered, 50);
    assert!(
        done.duration_since(begun) < time,
        "the other member had to wait for the busy one"
    );
    for record in records {
        others.await_record(&record).await.expect("it is passed on");
    }
}

#[tokio::test]
async fn another_stream_is_no_second_allowance() {
    let coordinator = Coordinator::start();
    let member = coordinator.join("member").await;
    let begun = Instant::now();
    for n in 0..4 {
        // Each stream is one of a restarted node or one without an instance.
        let hello = if n % 2 == 0 {
            Hello::default()
        } else {
            Hello::without_instance()
        };
        let mut stream = Stream::open(&coordinator, member.key(), &hello)
            .await
            .expect("a member");
        assert_eq!(stream.publish(services(&member, 50)).await.accepted(), 50);
        stream.socket.close(None).await.expect("it is open");
        stream.end().await;
    }
    assert!(begun.elapsed() >= least(200), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn refused_records_cost_as_much_as_others_and_held_ones_nothing() {
    let coordinator = Coordinator::start();
    let member = coordinator.join("member").await;
    let victim = coordinator.join("victim").await;
    let mut stream = member.stream(&coordinator).await;
    // The coordinator holds these records. A node offers such records again each time it connects.
    let held = services(&member, 50);
    assert_eq!(stream.publish(held.clone()).await.accepted(), 50);
    let begun = Instant::now();
    for _ in 0..40 {
        let answer = stream.publish(held.clone()).await;
        assert!(answer.refused().is_empty(), "{answer:?}");
    }
    assert!(begun.elapsed() < GENEROUS, "{:?}", begun.elapsed());
    // The signatures are valid, but the member may not sign services of another node.
    let foreign = |n: usize| {
        let service = record::service(victim.id(), &format!("f{n}"), &[]);
        service.signed_by(member.key())
    };
    let begun = Instant::now();
    let answer = stream.publish((0..200).map(foreign).collect()).await;
    assert_eq!(answer.refused().len(), 200, "{answer:?}");
    assert!(begun.elapsed() >= least(200), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_forged_or_oversized_record_ends_a_members_stream_with_the_reason() {
    let coordinator = Coordinator::start();
    let member = coordinator.join("member").await;
    let victim = coordinator.join("victim").await;
    let mut long = member.service("long").signed_by(member.key());
    long.payload = " ".repeat(64 * 1024 + 1);
    let mut broken = member.service("broken").signed_by(member.key());
    broken.payload = broken.payload.replace("broken", "forged");
    let good = member.service("good").signed_by(member.key());
    for (record, why) in [
        (victim.node().forged(member.key(), victim.id()), "signature"),
        (broken, "signature"),
        (
            record::token(member.id()).forged(member.key(), coordinator.mesh_key().public()),
            "signature",
        ),
        (long, "bytes"),
    ] {
        let mut stream = member.stream(&coordinator).await;
        let answer = stream.publish(vec![good.clone(), record]).await;
        let Answer::Ended(End(Some((Refusal::Protocol, message)))) = answer else {
            panic!("{answer:?}");
        };
        assert!(message.contains(why), "{message}");
    }
    // The member may connect again, and its own records are accepted.
    let mut stream = member.stream(&coordinator).await;
    let better = member.service("good").signed_by(member.key());
    assert_eq!(stream.publish(vec![better]).await.accepted(), 1);
}

#[tokio::test]
async fn a_store_is_filled_again_without_a_wait() {
    let full = Coordinator::start();
    let mut records = Vec::new();
    let (mut members, mut marks) = (Vec::new(), Vec::new());
    for n in 0..16 {
        let member = full.join(&format!("n{n}")).await;
        let mut stream = member.stream(&full).await;
        marks.push(stream.mark().await);
        let mut own = services(&member, 90);
        own.push(member.node().signed_by(member.key()));
        assert_eq!(stream.publish(own).await.accepted(), 91);
        members.push(member);
    }
    let mut stream = members[0].stream(&full).await;
    for member in &members {
        let last = member.membership.clone();
        stream.await_record(&last).await.expect("all records come");
    }
    while stream.received.len() < 16 * 93 + 1 {
        stream.hear().await.expect("all records come");
    }
    records.extend(stream.received.clone());

    let emptied = empty_store_of(&full);
    let at = (emptied.address(), full.pin());
    // Each member proves its own membership, and then one of them offers all the records of the others.
    for (member, mark) in members.iter().zip(&marks) {
        let token = format!("\"id\":\"{}\"", member.token.key.public());
        let token = records.iter().find(|r| r.payload.contains(&token));
        let proof = vec![token.expect("its token").clone(), member.membership.clone()];
        offer(&emptied, full.pin(), member, mark, &proof).await;
    }
    let mut stream = Stream::open(&at, members[3].key(), &Hello::default())
        .await
        .expect("a member");
    let begun = Instant::now();
    let mut accepted = 0;
    for part in records.chunks(256) {
        let answer = stream.publish(part.to_vec()).await;
        assert!(!answer.has_ended(), "{answer:?}");
        accepted += answer.accepted();
    }
    // At the rate for a node's own records this would take more than a minute.
    assert!(begun.elapsed() < GENEROUS, "{:?}", begun.elapsed());
    assert!(accepted >= 16 * 91, "{accepted}");
}

/// Starts a coordinator with the keys of `full` and a store that holds only the mesh record.
pub(crate) fn empty_store_of(full: &Coordinator) -> Coordinator {
    let state = tempfile::tempdir().expect("a temporary directory");
    for file in ["tls.key", "tls.crt"] {
        std::fs::copy(full.state_directory().join(file), state.path().join(file)).expect("files");
    }
    let emptied = Coordinator::start_on(state.path(), full.mesh_key().clone());
    let init = emptied.admin(&["init"]);
    assert!(init.status.success(), "{init:?}");
    emptied
}

/// Offers records as a former member, again and again, until the coordinator has enough records to admit it.
pub(crate) async fn offer(
    coordinator: &Coordinator,
    pin: SpkiPin,
    member: &Member,
    mark: &str,
    records: &[Envelope],
) -> Answer {
    for _ in 0..120 {
        let at = (coordinator.address(), pin);
        let stream = Stream::open(&at, member.key(), &Hello::without_instance()).await;
        let mut stream = stream.expect("a stranger may say who it is");
        let mark = json!({"type": "mark", "mark": mark});
        stream.say(&mark).await.expect("it reads");
        let answer = stream.publish(records.to_vec()).await;
        if coordinator.has_node(&member.id()) {
            return answer;
        }
        // A node waits as long as this between two attempts.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("{} is not taken again", member.name);
}

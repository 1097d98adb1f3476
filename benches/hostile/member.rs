//! The attacks of one member.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use meshd::protocol::control::FromCoordinator;
use meshd::records::Envelope;
use serde_json::json;
use tokio::time::{sleep, timeout, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use crate::kit::{Hello, Member, Stream, record};
use crate::setting::Ground;

/// How many small records a message has. The coordinator accepts few records a second, so it would answer a message with more of them
/// only after the attack.
const SMALL: usize = 32;
/// The size in bytes of a large record's padding. A record may have 64 KiB.
const LARGE: usize = 60_000;
/// How many streams the attacker that reads nothing holds open.
const STREAMS: usize = 64;

/// How long the attacker waits for a stream to open before it tries the next one.
const OPENING: Duration = Duration::from_millis(500);

/// How many records and streams had which outcome.
#[derive(Debug, Default)]
struct Count {
    accepted: u64,
    refused: u64,
    /// Streams that the coordinator ended or did not accept.
    ended: u64,
}

impl Count {
    fn shown(&self) -> String {
        format!(
            "{} accepted, {} refused, {} streams ended",
            self.accepted, self.refused, self.ended
        )
    }
}

/// Publishes without waiting for answers until the attack is over. When the stream ends, it opens another one.
async fn publish(
    ground: &Ground<'_>,
    member: &Member,
    mut records: impl FnMut(u64) -> Vec<Envelope>,
) -> Count {
    let mut count = Count::default();
    let mut sequence = 0;
    while !ground.is_over() {
        let hello = Hello::default();
        let opened = Stream::open(&ground.setting.target, member.key(), &hello);
        let Ok(Ok(stream)) = timeout_at(ground.deadline(), opened).await else {
            count.ended += 1;
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        let (mut sink, mut source) = stream.socket.split();
        let counted = &mut count;
        let reading = async move {
            while let Some(Ok(frame)) = source.next().await {
                if let Message::Text(text) = frame
                    && text.starts_with(r#"{"type":"published""#)
                    && let Ok(FromCoordinator::Published {
                        accepted, refused, ..
                    }) = serde_json::from_str(&text)
                {
                    counted.accepted += u64::from(accepted);
                    counted.refused += refused.len() as u64;
                }
            }
        };
        let writing = async {
            loop {
                sequence += 1;
                let message =
                    json!({"type": "publish", "sequence": sequence, "records": records(sequence)});
                if sink.send(Message::text(message.to_string())).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let ended = timeout_at(ground.deadline(), async {
            tokio::select! {
                () = reading => {}
                () = writing => {}
            }
        });
        if ended.await.is_ok() {
            count.ended += 1;
        }
    }
    count
}

/// Joins a member and publishes its node record, so that it may publish services.
async fn at_full_right(ground: &Ground<'_>) -> Member {
    let member = ground.member("thief").await;
    let mut stream = member.stream(&ground.setting.target).await;
    let node = member.node().signed_by(member.key());
    stream.publish(vec![node]).await;
    member
}

/// Publishes the records that `make` makes of the member and a number.
fn attack(
    ground: &Ground,
    records: usize,
    make: impl Fn(&Member, u64) -> Envelope + Send + Sync,
) -> String {
    ground.run(async || {
        let member = at_full_right(ground).await;
        let count = publish(ground, &member, |sequence| {
            (0..records as u64)
                .map(|n| make(&member, sequence * records as u64 + n))
                .collect()
        });
        count.await.shown()
    })
}

/// Publishes services, each with another name.
pub(crate) fn small(ground: &Ground) -> String {
    attack(ground, SMALL, |member, n| {
        member.service(&format!("s{n}")).signed_by(member.key())
    })
}

/// Publishes services as large as a record may be.
pub(crate) fn large(ground: &Ground) -> String {
    attack(ground, 16, |member, n| {
        let service = member.service(&format!("s{n}")).padded(LARGE);
        service.signed_by(member.key())
    })
}

pub(crate) fn unknown(ground: &Ground) -> String {
    attack(ground, SMALL, |member, n| member.unknown("weather", n))
}

/// Publishes names for another node, signed by the member.
pub(crate) fn refused(ground: &Ground) -> String {
    let victim = crate::kit::Identity::of(8).id();
    attack(ground, SMALL, move |member, n| {
        record::name(victim, &format!("s{n}")).signed_by(member.key())
    })
}

pub(crate) fn forged(ground: &Ground) -> String {
    // All records have the same signature, so the attacker does not spend time on signing. The coordinator verifies each of them.
    let member = crate::kit::Identity::of(9);
    let signature = record::unknown("weather", 0)
        .signed_by(member.key())
        .signature;
    attack(ground, SMALL, move |member, n| Envelope {
        payload: record::unknown("weather", n).payload(),
        signer: member.id(),
        signature,
    })
}

/// Opens streams, publishes large records on each of them and reads nothing.
pub(crate) fn unread(ground: &Ground) -> String {
    ground.run(async || {
        let member = at_full_right(ground).await;
        let (mut held, mut opened) = (std::collections::VecDeque::new(), 0);
        while !ground.is_over() {
            let hello = Hello::without_instance();
            let stream = Stream::open(&ground.setting.target, member.key(), &hello);
            let Ok(Ok(mut stream)) = timeout(OPENING, stream).await else {
                sleep(Duration::from_millis(5)).await;
                continue;
            };
            opened += 1;
            let services = (0..8).map(|n| {
                let service = member.service(&format!("s{n}")).padded(LARGE);
                service.signed_by(member.key())
            });
            let services: Vec<Envelope> = services.collect();
            // A coordinator that reads has taken the records by then.
            let _ = timeout(OPENING, stream.send_records(&services)).await;
            held.push_back(stream);
            if held.len() > STREAMS {
                held.pop_front();
            }
        }
        format!("{opened} streams opened, {} held", held.len())
    })
}

//! Keeps the view up to date: by a watch from the revision it has, by a fresh listing where a watch has nothing to tell
//! any more, and by looking at regular times whether a watch has left something out.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Error, EventType, WatchOptions};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Shared;
use super::keys::Key;
use super::link::{end_of, jitter};
use super::view::{Change, hash_of};

/// How often the head is looked at: a watch that has gone deaf is noticed within twice that.
const PULSE: Duration = Duration::from_secs(1);
/// How long a watch may lag.
const LAG: Duration = Duration::from_secs(1);
/// Pulses between two comparisons of everything.
const COMPARISON: u64 = 60;
/// How long a watch may take to begin.
const BEGIN: Duration = Duration::from_secs(2);
const MAX_EVENTS: usize = 64 << 20;

/// Follows until the store is closed.
pub(super) async fn follow(shared: Arc<Shared>) {
    loop {
        let index = shared.link.index();
        let watched = tokio::select! {
            watched = watch(&shared) => watched,
            () = shared.deaf.notified() => Err(Error::WatchError("it tells nothing".into())),
        };
        match watched {
            Ok(Lost::Track(why)) => {
                tracing::warn!("{why}; this coordinator lists everything anew");
                if let Err(error) = shared.list().await {
                    tracing::warn!(%error, "etcd cannot be read");
                }
            }
            Ok(Lost::Ended) => shared.link.leave(index),
            Err(error) => {
                tracing::info!(%error, "a watch of etcd broke, and begins again at another member");
                shared.link.leave(index);
            }
        }
        sleep(jitter(Duration::from_millis(200))).await;
    }
}

/// Why a watch is over.
enum Lost {
    /// What it would tell does not follow on what is known.
    Track(&'static str),
    /// The member ended it.
    Ended,
}

async fn watch(shared: &Shared) -> Result<Lost, Error> {
    let from = shared.view().at + 1;
    let begun = timeout(BEGIN, async {
        let (_, client) = shared.link.client().await?;
        let options = WatchOptions::new()
            .with_range(end_of(&shared.link.key("")))
            .with_start_revision(from);
        client
            .watch_client()
            .max_decoding_message_size(MAX_EVENTS)
            .watch(shared.link.key(""), Some(options))
            .await
    });
    let mut stream = begun
        .await
        .map_err(|_| Error::WatchError("it does not begin".into()))??;
    while let Some(message) = stream.message().await? {
        if message.compact_revision() > 0 {
            return Ok(Lost::Track("etcd has compacted what was not seen"));
        }
        if message.canceled() {
            return Err(Error::WatchError(message.cancel_reason().to_owned()));
        }
        let renamed = message.events().iter().any(|event| {
            let key = event.kv().and_then(|kv| shared.link.parse(kv.key()));
            key == Some(Key::Id)
        });
        if renamed {
            return Ok(Lost::Track("etcd was restored from a snapshot"));
        }
        let mut revision: Option<(i64, Vec<Change>)> = None;
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let at = kv.mod_revision();
            if let Some((before, changes)) = revision.take_if(|(before, _)| *before != at) {
                shared.apply(before, changes);
            }
            let (_, changes) = revision.get_or_insert_with(|| (at, Vec::new()));
            changes.extend(shared.link.parse(kv.key()).map(|key| Change {
                key,
                value: (event.event_type() == EventType::Put).then(|| kv.value().to_vec()),
            }));
        }
        if let Some((at, changes)) = revision {
            shared.apply(at, changes);
        }
    }
    Ok(Lost::Ended)
}

/// Looks after the watch until the store is closed.
pub(super) async fn look_after(shared: Arc<Shared>) {
    let mut pulses = interval(PULSE);
    pulses.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for count in 1u64.. {
        pulses.tick().await;
        shared.seen.save();
        let [head, id] = [Key::Head, Key::Id].map(|key| shared.link.key(&key.text()));
        let (known, name) = {
            let view = shared.view();
            (view.at, view.id().to_owned())
        };
        let (Ok((Some((_, at)), counted)), Ok(Some((id, _)))) = (
            shared.link.read_counted(head).await,
            shared.link.read(id).await,
        ) else {
            continue;
        };
        // A cluster that was restored counts from where it was, and may have come to where this view is since.
        if counted < known || id != name.as_bytes() {
            tracing::warn!("etcd is not what it was; all is read anew");
            if let Err(error) = shared.list().await {
                tracing::warn!(%error, "etcd cannot be read");
            }
            shared.deaf.notify_one();
        } else if !shared.wait_for(at, LAG).await {
            shared.deaf.notify_one();
        } else if count.is_multiple_of(COMPARISON) {
            compare(&shared).await;
        }
    }
}

/// Compares everything with what is in etcd: watches have been known to lose events.
pub(super) async fn compare(shared: &Shared) {
    let (at, ours) = {
        let view = shared.view();
        (view.at, view.hash())
    };
    // A revision compacted meanwhile is compared the next time.
    let Ok(marks) = shared.link.marks(at).await else {
        return;
    };
    if hash_of(marks) != ours {
        tracing::error!("etcd holds other records than its watch told; all are read anew");
        if let Err(error) = shared.list().await {
            tracing::warn!(%error, "etcd cannot be read");
        }
    }
}

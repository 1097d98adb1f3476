//! Keeps the view up to date: by a watch from its revision on, by a new listing if a watch cannot deliver all changes,
//! and by regular checks for missed events.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Error, EventType, WatchOptions};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Shared;
use super::keys::Key;
use super::link::{end_of, jitter};
use super::view::{Change, hash_of};

/// The interval at which the head is checked. A watch that misses events is noticed within twice this time.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the watch may be behind the head.
const MAX_WATCH_LAG: Duration = Duration::from_secs(1);
/// The number of checks between two comparisons of all keys.
const CHECKS_PER_COMPARISON: u64 = 60;
/// How long a watch may take to start.
const WATCH_START_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_EVENTS: usize = 64 << 20;

/// Follows the changes until the store is closed.
pub(super) async fn follow(shared: Arc<Shared>) {
    loop {
        let index = shared.link.index();
        let watched = tokio::select! {
            watched = watch(&shared) => watched,
            () = shared.missed_events.notified() => Err(Error::WatchError("the watch delivers no events".into())),
        };
        match watched {
            Ok(WatchEnd::Incomplete(why)) => {
                tracing::warn!("{why}; this coordinator lists everything again");
                if let Err(error) = shared.list().await {
                    tracing::warn!(%error, "etcd cannot be read");
                }
            }
            Ok(WatchEnd::Closed) => shared.link.leave(index),
            Err(error) => {
                tracing::info!(%error, "a watch of etcd failed; it continues at another member");
                shared.link.leave(index);
            }
        }
        sleep(jitter(Duration::from_millis(200))).await;
    }
}

/// Why a watch ended.
enum WatchEnd {
    /// The watch cannot deliver the changes after the view's revision.
    Incomplete(&'static str),
    /// The member closed it.
    Closed,
}

/// The end of a watch that delivered a write which does not follow the last one.
const OTHER_HISTORY: WatchEnd = WatchEnd::Incomplete(
    "etcd continues another history than the one that was followed, so it was restored from a snapshot",
);

async fn watch(shared: &Shared) -> Result<WatchEnd, Error> {
    let from = shared.view().at + 1;
    let begun = timeout(WATCH_START_TIMEOUT, async {
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
        .map_err(|_| Error::WatchError("the watch does not start".into()))??;
    while let Some(message) = stream.message().await? {
        if message.compact_revision() > 0 {
            return Ok(WatchEnd::Incomplete(
                "etcd has compacted changes that were not delivered",
            ));
        }
        if message.canceled() {
            return Err(Error::WatchError(message.cancel_reason().to_owned()));
        }
        let renamed = message.events().iter().any(|event| {
            let key = event.kv().and_then(|kv| shared.link.parse(kv.key()));
            key == Some(Key::Id)
        });
        if renamed {
            return Ok(WatchEnd::Incomplete("etcd was restored from a snapshot"));
        }
        let mut revision: Option<(i64, Vec<Change>)> = None;
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let at = kv.mod_revision();
            if let Some((before, changes)) = revision.take_if(|(before, _)| *before != at)
                && shared.apply(before, changes).is_err()
            {
                return Ok(OTHER_HISTORY);
            }
            let (_, changes) = revision.get_or_insert_with(|| (at, Vec::new()));
            changes.extend(shared.link.parse(kv.key()).map(|key| Change {
                key,
                value: (event.event_type() == EventType::Put).then(|| kv.value().to_vec()),
            }));
        }
        if let Some((at, changes)) = revision
            && shared.apply(at, changes).is_err()
        {
            return Ok(OTHER_HISTORY);
        }
    }
    Ok(WatchEnd::Closed)
}

/// Checks the watch until the store is closed.
pub(super) async fn check_watch(shared: Arc<Shared>) {
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for count in 1u64.. {
        checks.tick().await;
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
        // A restored cluster counts on from its old revision, and may have passed the revision of this view since.
        if counted < known || id != name.as_bytes() {
            tracing::warn!(
                "etcd was replaced or restored; this coordinator lists everything again"
            );
            if let Err(error) = shared.list().await {
                tracing::warn!(%error, "etcd cannot be read");
            }
            shared.missed_events.notify_one();
        } else if !shared.wait_for(at, MAX_WATCH_LAG).await {
            shared.missed_events.notify_one();
        } else if count.is_multiple_of(CHECKS_PER_COMPARISON) {
            compare(&shared).await;
        }
    }
}

/// Compares the view with etcd, since watches have been known to lose events.
pub(super) async fn compare(shared: &Shared) {
    let (at, ours) = {
        let view = shared.view();
        (view.at, view.hash())
    };
    // This fails if etcd has compacted the revision in the meantime. The next comparison has a newer revision.
    let Ok(marks) = shared.link.marks(at).await else {
        return;
    };
    if hash_of(marks) != ours {
        tracing::error!(
            "etcd has other records than its watch delivered; this coordinator lists everything again"
        );
        if let Err(error) = shared.list().await {
            tracing::warn!(%error, "etcd cannot be read");
        }
    }
}

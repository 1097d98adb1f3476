//! etcd: one store for several coordinators, all equal.
//!
//! Every write is one transaction that compares the head with the one this coordinator has taken in, so that what it
//! decided is decided on all there is; those of uses of tokens, blocks and the mesh key compare these as well. A
//! transaction whose answer is lost is tried again: the head says by a random word whether it was carried out.
//!
//! A store is called from threads that may wait; what speaks to etcd runs on one of its own.
//!
//! | module | what it is |
//! |---|---|
//! | `calls` | the calls of the store |
//! | `keys` | what lies under which key |
//! | `view` | what is known of it |
//! | `plan` | what a write changes |
//! | `link` | calls, and which member takes them |
//! | `follow` | how the view stays true |
//! | `seen` | whether the cluster was restored from a snapshot |

mod calls;
mod follow;
mod keys;
mod link;
mod plan;
#[cfg(test)]
pub(super) mod rig;
mod seen;
mod view;

use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Compare, CompareOp, DeleteOptions, Txn, TxnOp};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::timeout;

use self::keys::Key;
use self::link::Link;
use self::plan::Plan;
use self::seen::Seen;
use self::view::{Change, Head, View, lease_start_text};
use super::sqlite::new_id;
use super::{EtcdSettings, LeaseStart, StoreError};

/// Operations in a transaction at most; etcd takes 128 unless told otherwise.
const OPERATIONS: usize = 120;
/// Records in a transaction at most: each takes up to five operations.
const RECORDS: usize = 22;
/// Octets of records in a transaction at most; etcd takes requests of 1.5 MiB unless told otherwise.
const OCTETS: usize = 512 * 1024;
/// How long a watch may take to tell what another coordinator wrote before all is listed anew.
const LAG: Duration = Duration::from_millis(1500);
/// How long a write is repeated while other coordinators write.
const CONTENTION: Duration = Duration::from_secs(8);
/// The longest pause before the next attempt.
const MAX_PAUSE: Duration = Duration::from_millis(15);
/// How long a node counts as connected after it was said to be.
const PRESENCE: Duration = Duration::from_secs(900);
/// Listings in a row at most that are older than what is known when they are there.
const TRIES: u32 = 5;

/// Records in etcd.
pub struct Etcd {
    shared: Arc<Shared>,
    runtime: Handle,
    /// When the first attempt of the present write failed because others had written.
    contended: Option<Instant>,
    /// Ends the thread when it goes.
    _stop: oneshot::Sender<()>,
    #[cfg(test)]
    rig: Option<rig::Rig>,
}

/// What the tasks on etcd's thread and the store share.
struct Shared {
    link: Link,
    view: Mutex<View>,
    /// The revision in the view that is of etcd's own counting.
    at: watch::Sender<i64>,
    /// The last revision of ours.
    revision: watch::Sender<u64>,
    /// The watch has left something out.
    deaf: Notify,
    seen: Seen,
}

impl Shared {
    fn view(&self) -> MutexGuard<'_, View> {
        // A panic in the view is a bug that was reported where it happened, and the comparison mends what it left.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, at: i64, changes: Vec<Change>) {
        let (at, revision, news) = {
            let mut view = self.view();
            view.apply(at, changes);
            self.seen.note(view.id(), view.head.revision);
            (view.at, view.head.revision, view.has_news())
        };
        self.at.send_replace(at);
        if news {
            self.revision.send_replace(revision);
        }
    }

    /// Reads everything anew.
    async fn list(&self) -> Result<(), StoreError> {
        for left in (0..TRIES).rev() {
            let (mark, known) = (self.seen.mark(), self.view().at);
            let listed = self.read().await?;
            let (at, revision) = (listed.at, listed.head.revision);
            if mark.is_ahead_of(listed.id(), revision) {
                if left == 0 {
                    return Err(StoreError::Behind);
                }
                self.mark_restored(&listed).await?;
                continue;
            }
            {
                let mut view = self.view();
                // The watch was faster, and would not tell again what lies between.
                if left > 0 && (known..view.at).contains(&at) {
                    continue;
                }
                self.seen.note(listed.id(), revision);
                *view = listed;
            }
            self.at.send_replace(at);
            self.revision.send_replace(revision);
            break;
        }
        Ok(())
    }

    async fn read(&self) -> Result<View, StoreError> {
        let listing = self.link.list().await?;
        Ok(View::listed(listing.at, listing.entries))
    }

    /// The cluster came from a snapshot that misses what has happened since. From now on it is another store, to which
    /// nodes tell all they hold; tokens issued before may have been spent, and blocks leased, unknown to it.
    async fn mark_restored(&self, listed: &View) -> Result<(), StoreError> {
        let blocks = listed.holders.keys().chain(listed.released.keys());
        let leases = LeaseStart::beyond(blocks.max().copied().unwrap_or(0))?;
        let key = |key: Key| self.link.key(&key.text());
        let put = |what: Key, value: String| TxnOp::put(key(what), value, None);
        let all = DeleteOptions::new().with_prefix();
        let txn = Txn::new()
            .when([Compare::mod_revision(
                key(Key::Head),
                CompareOp::Equal,
                listed.head.at,
            )])
            .and_then([
                put(Key::Id, new_id()?),
                put(Key::Restored, String::new()),
                put(Key::Leases, lease_start_text(leases)),
                put(Key::Head, Head::text(listed.head.revision, &new_id()?)),
                TxnOp::delete(self.link.key(keys::ISSUED), Some(all)),
            ]);
        if self.link.transact(txn).await?.succeeded() {
            tracing::warn!(
                revision = listed.head.revision,
                "etcd holds fewer records than before, and is treated as restored from a snapshot"
            );
        }
        Ok(())
    }

    /// Whether the view reaches etcd's revision `at` in time.
    async fn wait_for(&self, at: i64, limit: Duration) -> bool {
        let mut reached = self.at.subscribe();
        matches!(
            timeout(limit, reached.wait_for(|reached| *reached >= at)).await,
            Ok(Ok(_))
        )
    }

    /// Makes a store, if there is none.
    async fn begin(&self) -> Result<(), StoreError> {
        let id = self.link.key(&Key::Id.text());
        let put = |key: &Key, value: String| TxnOp::put(self.link.key(&key.text()), value, None);
        let txn = Txn::new()
            .when([Compare::create_revision(id, CompareOp::Equal, 0)])
            .and_then([
                put(&Key::Id, new_id()?),
                put(&Key::Head, Head::text(0, &new_id()?)),
            ]);
        self.link.transact(txn).await?;
        self.list().await
    }

    /// Carries changes out, if nobody has written since what was `taken`. `word` tells this transaction from others.
    async fn commit(
        &self,
        revision: u64,
        word: &str,
        absent: &[Key],
        changes: Vec<Change>,
        others: Vec<TxnOp>,
        taken: i64,
    ) -> Result<(), StoreError> {
        let key = |key: &Key| self.link.key(&key.text());
        let head = Change {
            key: Key::Head,
            value: Some(Head::text(revision, word).into_bytes()),
        };
        let changes: Vec<Change> = std::iter::once(head).chain(changes).collect();
        let mut compares = vec![Compare::mod_revision(
            key(&Key::Head),
            CompareOp::Equal,
            taken,
        )];
        compares.extend(
            absent
                .iter()
                .map(|k| Compare::create_revision(key(k), CompareOp::Equal, 0)),
        );
        let mut operations: Vec<TxnOp> = changes
            .iter()
            .map(|change| match &change.value {
                Some(value) => TxnOp::put(key(&change.key), value.clone(), None),
                None => TxnOp::delete(key(&change.key), None),
            })
            .collect();
        operations.extend(others);
        let txn = Txn::new()
            .when(compares)
            .and_then(operations)
            .or_else([TxnOp::get(key(&Key::Head), None)]);
        let answer = self.link.transact(txn).await?;
        if answer.succeeded() {
            let at = answer
                .header()
                .map_or(0, etcd_client::ResponseHeader::revision);
            self.apply(at, changes);
            return Ok(());
        }
        let held = answer.op_responses().into_iter().find_map(|held| {
            let etcd_client::TxnOpResponse::Get(held) = held else {
                return None;
            };
            let kv = held.kvs().first()?;
            Head::parse(kv.value(), kv.mod_revision())
        });
        let Some(held) = held else {
            return Err(StoreError::Failed(
                "its head is gone; has somebody deleted keys in etcd?".into(),
            ));
        };
        if held.word == word {
            // It was carried out before, and the answer was lost.
            self.apply(held.at, changes);
            return Ok(());
        }
        if held.at <= taken || !self.wait_for(held.at, LAG).await {
            self.deaf.notify_one();
            self.list().await?;
        }
        Err(StoreError::Behind)
    }
}

impl Etcd {
    /// Connects, and makes a store if there is none under the prefix. `seen` is a file of this coordinator's, by which it
    /// knows a store that was restored from a snapshot.
    ///
    /// # Errors
    /// No member answers, or the settings are of no use.
    pub fn open(settings: &EtcdSettings, seen: Option<PathBuf>) -> Result<Self, StoreError> {
        let failed = |e: std::io::Error| StoreError::Failed(e.to_string());
        let shared = Arc::new(Shared {
            link: Link::new(settings)?,
            view: Mutex::default(),
            at: watch::channel(0).0,
            revision: watch::channel(0).0,
            deaf: Notify::new(),
            seen: Seen::load(seen),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("etcd".into())
            .spawn(move || {
                let _ = runtime.block_on(stopped);
            })
            .map_err(failed)?;
        let store = Self {
            shared,
            runtime: handle,
            contended: None,
            _stop: stop,
            #[cfg(test)]
            rig: None,
        };
        store.run(|shared| async move { shared.begin().await })?;
        store
            .runtime
            .spawn(follow::follow(Arc::clone(&store.shared)));
        store
            .runtime
            .spawn(follow::look_after(Arc::clone(&store.shared)));
        Ok(store)
    }

    /// Ends the cluster with the store.
    #[cfg(test)]
    pub(super) fn keep(&mut self, rig: rig::Rig) {
        self.rig = Some(rig);
    }

    /// Runs a task on etcd's thread, and waits for it.
    fn run<T, F>(&self, task: impl FnOnce(Arc<Shared>) -> F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (sender, receiver) = sync_channel(1);
        let task = task(Arc::clone(&self.shared));
        self.runtime.spawn(async move {
            let _ = sender.send(task.await);
        });
        receiver
            .recv()
            .unwrap_or_else(|_| Err(StoreError::Failed("the coordinator is stopping".into())))
    }

    /// Writes what `fill` plans, and gives what it gives.
    fn write<T>(
        &mut self,
        fill: impl FnOnce(&mut Plan<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let word = new_id()?;
        let (given, revision, taken, absent, mut changes, released) = {
            let mut view = self.shared.view();
            if view.has_news() {
                return Err(StoreError::Behind);
            }
            view.own = Some(word.clone());
            let mut plan = Plan::new(&view);
            let given = fill(&mut plan)?;
            if plan.is_empty() {
                return Ok(given);
            }
            let absent = std::mem::take(&mut plan.absent);
            let released = std::mem::take(&mut plan.released);
            let revision = plan.revision;
            (
                given,
                revision,
                view.taken,
                absent,
                plan.into_changes(),
                released,
            )
        };
        let others: Vec<TxnOp> = released
            .iter()
            .map(|node| TxnOp::delete(self.shared.link.key(&keys::farewell(node)), None))
            .collect();
        // What does not fit is what a node said that is out now: nobody takes that in, whenever it goes.
        let room = OPERATIONS.saturating_sub(1 + others.len());
        let mut rest = Vec::new();
        if changes.len() > room {
            changes.sort_by_key(|change| {
                matches!(change.key, Key::Record(_)) && change.value.is_none()
            });
            rest = changes.split_off(room);
        }
        let result = self.run(|shared| async move {
            shared
                .commit(revision, &word, &absent, changes, others, taken)
                .await
        });
        if result.is_err() {
            // It may be carried out yet; then it is news like any other's.
            self.shared.view().own = None;
        }
        result?;
        for part in rest.chunks(OPERATIONS - 1) {
            self.delete(part.to_vec())?;
        }
        Ok(given)
    }

    /// Deletes keys in a transaction of its own.
    fn delete(&mut self, changes: Vec<Change>) -> Result<(), StoreError> {
        let word = new_id()?;
        let (revision, taken) = {
            let mut view = self.shared.view();
            view.own = Some(word.clone());
            (view.head.revision, view.taken)
        };
        let deleted = self.run(|shared| async move {
            shared
                .commit(revision, &word, &[], changes, Vec::new(), taken)
                .await
        });
        match deleted {
            // Left behind: a record that the ledger refuses.
            Err(StoreError::Behind) => Ok(()),
            other => other,
        }
    }

    fn put_text(&self, key: &str, value: String) -> Result<(), StoreError> {
        let key = self.shared.link.key(key);
        self.run(|shared| async move {
            let put = shared.link.call(|client| {
                let (key, value) = (key.clone(), value.clone());
                async move { client.kv_client().put(key, value, None).await }
            });
            put.await.map(drop)
        })
    }
}

#[cfg(test)]
mod tests;

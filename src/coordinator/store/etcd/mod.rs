//! A store in etcd for several coordinators with equal rights.
//!
//! Every write is one transaction. It compares the head with the one up to which this coordinator has read, so that the
//! write was decided with the newest state. Uses of tokens, blocks and the mesh key are compared as well. A transaction
//! whose answer is lost is tried again: a random nonce in the head tells whether it was already applied.
//!
//! The calls of the store block their thread. The connections to etcd have a thread of their own.
//!
//! | module | what it is |
//! |---|---|
//! | `calls` | the calls of the store |
//! | `keys` | the keys in etcd and their values |
//! | `view` | what this coordinator has read |
//! | `txn` | the changes of a write |
//! | `link` | requests, and the choice of a member |
//! | `follow` | keeps the view up to date |
//! | `seen` | whether the cluster was restored from a snapshot |

mod calls;
#[cfg(test)]
pub(super) mod fixture;
mod follow;
mod keys;
mod link;
mod seen;
mod txn;
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
use self::seen::Seen;
use self::txn::EtcdTxn;
use self::view::{Basis, Change, EtcdView, Head, OtherHistory, lease_start_text};
use super::sqlite::new_id;
use super::{EtcdSettings, LeaseStart, StoreError};

/// The maximum number of operations in a transaction. etcd accepts 128 by default.
const MAX_OPERATIONS: usize = 120;
/// The maximum number of records in a transaction. Each takes up to five operations.
const MAX_RECORDS: usize = 22;
/// The maximum size of the records in a transaction, in bytes. etcd accepts requests of 1.5 MiB by default.
const MAX_RECORD_BYTES: usize = 512 * 1024;
/// How long the watch may take to deliver the changes of another coordinator before everything is listed again.
const WATCH_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long a write is tried again while other coordinators write.
const CONTENTION_TIMEOUT: Duration = Duration::from_secs(8);
/// The longest pause before the next attempt.
const MAX_PAUSE: Duration = Duration::from_millis(15);
/// How long a node counts as connected after it was last reported.
const PRESENCE_TTL: Duration = Duration::from_secs(900);
/// The maximum number of listings in a row that turn out to be outdated.
const MAX_LISTINGS: u32 = 5;

/// A store in etcd.
pub struct Etcd {
    shared: Arc<Shared>,
    runtime: Handle,
    /// The time of the first attempt of the present write that failed because of another write.
    contended: Option<Instant>,
    /// Dropping this ends the thread.
    _stop: oneshot::Sender<()>,
    #[cfg(test)]
    fixture: Option<fixture::EtcdFixture>,
}

/// The state that the tasks on etcd's thread share with the store.
struct Shared {
    link: Link,
    view: Mutex<EtcdView>,
    /// etcd's own revision of the view.
    at: watch::Sender<i64>,
    /// The last revision of the store.
    revision: watch::Sender<u64>,
    /// Notified if the watch has missed an event.
    missed_events: Notify,
    seen: Seen,
}

impl Shared {
    fn view(&self) -> MutexGuard<'_, EtcdView> {
        // A panic while the view was locked was reported where it happened, and the comparison corrects the view.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, at: i64, changes: Vec<Change>) -> Result<(), OtherHistory> {
        let (at, revision, news) = {
            let mut view = self.view();
            view.apply(at, changes)?;
            self.seen.note(view.id(), view.head.revision);
            (view.at, view.head.revision, view.has_news())
        };
        self.at.send_replace(at);
        if news {
            self.revision.send_replace(revision);
        }
        Ok(())
    }

    /// Applies a transaction of this coordinator, which etcd has applied.
    fn apply_own(&self, at: i64, changes: Vec<Change>) {
        // The transaction compared the head, so this fails only if the view has changed to another history since.
        if self.apply(at, changes).is_err() {
            self.missed_events.notify_one();
        }
    }

    /// Lists everything again.
    async fn list(&self) -> Result<(), StoreError> {
        for left in (0..MAX_LISTINGS).rev() {
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
                // The watch was faster than the listing, and would not deliver the changes in between again.
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

    async fn read(&self) -> Result<EtcdView, StoreError> {
        let listing = self.link.list().await?;
        Ok(EtcdView::listed(listing.at, listing.entries))
    }

    /// Marks a cluster that was restored from a snapshot. From now on it is another store, to which nodes offer all
    /// records that they hold. Tokens that were issued before may have been spent, and blocks leased, without a trace
    /// in the snapshot.
    async fn mark_restored(&self, listed: &EtcdView) -> Result<(), StoreError> {
        let blocks = listed
            .decisions
            .holders
            .keys()
            .chain(listed.decisions.released.keys());
        let leases = LeaseStart::beyond(blocks.max().copied().unwrap_or(0))?;
        let key = |key: Key| self.link.key(&key.text());
        let put = |what: Key, value: String| TxnOp::put(key(what), value, None);
        let all = DeleteOptions::new().with_prefix();
        let txn = Txn::new().when(self.unchanged(&listed.basis())).and_then([
            put(Key::Id, new_id()?),
            put(Key::Restored, String::new()),
            put(Key::Leases, lease_start_text(leases)),
            put(Key::Head, Head::text(listed.head.revision, &new_id()?)),
            TxnOp::delete(self.link.key(keys::ISSUED), Some(all)),
        ]);
        if self.link.transact(txn).await?.succeeded() {
            tracing::warn!(
                revision = listed.head.revision,
                "etcd has fewer records than before; it is treated as restored from a snapshot"
            );
        }
        Ok(())
    }

    /// Waits until the view reaches etcd's revision `at`. Returns false after `limit`.
    async fn wait_for(&self, at: i64, limit: Duration) -> bool {
        let mut reached = self.at.subscribe();
        matches!(
            timeout(limit, reached.wait_for(|reached| *reached >= at)).await,
            Ok(Ok(_))
        )
    }

    /// Creates a store if there is none.
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

    /// The comparisons that hold only while the store is in the state `basis`. They compare values: a restored etcd
    /// counts its own revisions again from that of the snapshot, so that another write can have the same one.
    fn unchanged(&self, basis: &Basis) -> [Compare; 2] {
        let equal = |key: Key, value: &str| {
            Compare::value(self.link.key(&key.text()), CompareOp::Equal, value)
        };
        let head = Head::text(basis.head.revision, &basis.head.nonce);
        [equal(Key::Id, &basis.id), equal(Key::Head, &head)]
    }

    /// Applies changes if the store is still in the state `basis`. `nonce` distinguishes this transaction from others.
    async fn commit(
        &self,
        revision: u64,
        nonce: &str,
        absent: &[Key],
        changes: Vec<Change>,
        others: Vec<TxnOp>,
        basis: Basis,
    ) -> Result<(), StoreError> {
        let key = |key: &Key| self.link.key(&key.text());
        let head = Change {
            key: Key::Head,
            value: Some(Head::text(revision, nonce).into_bytes()),
        };
        let changes: Vec<Change> = std::iter::once(head).chain(changes).collect();
        let mut compares = Vec::from(self.unchanged(&basis));
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
            self.apply_own(at, changes);
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
                "the head is missing in etcd; check whether keys were deleted there".into(),
            ));
        };
        if held.nonce == nonce {
            // It was applied before, and the answer was lost.
            self.apply_own(held.at, changes);
            return Ok(());
        }
        if held.at <= basis.head.at || !self.wait_for(held.at, WATCH_TIMEOUT).await {
            self.missed_events.notify_one();
            self.list().await?;
        }
        Err(StoreError::Behind)
    }
}

impl Etcd {
    /// Connects, and creates a store if there is none under the prefix. `seen` is a file of this coordinator, with
    /// which it recognizes a store that was restored from a snapshot.
    ///
    /// # Errors
    /// No member answers, or the settings cannot be used.
    pub fn open(settings: &EtcdSettings, seen: Option<PathBuf>) -> Result<Self, StoreError> {
        let failed = |e: std::io::Error| StoreError::Failed(e.to_string());
        let shared = Arc::new(Shared {
            link: Link::new(settings)?,
            view: Mutex::default(),
            at: watch::channel(0).0,
            revision: watch::channel(0).0,
            missed_events: Notify::new(),
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
            fixture: None,
        };
        store.run(|shared| async move { shared.begin().await })?;
        store
            .runtime
            .spawn(follow::follow(Arc::clone(&store.shared)));
        store
            .runtime
            .spawn(follow::check_watch(Arc::clone(&store.shared)));
        Ok(store)
    }

    /// Ends the cluster together with the store.
    #[cfg(test)]
    pub(super) fn end_with_store(&mut self, fixture: fixture::EtcdFixture) {
        self.fixture = Some(fixture);
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

    /// Writes the changes that `fill` adds, and returns the result of `fill`.
    fn write<T>(
        &mut self,
        fill: impl FnOnce(&mut EtcdTxn<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let random = new_id()?;
        let (given, revision, nonce, basis, absent, mut changes, released) = {
            let mut view = self.shared.view();
            if view.has_news() {
                return Err(StoreError::Behind);
            }
            let nonce = view.head.next_nonce(&random);
            view.own = Some(nonce.clone());
            let mut txn = EtcdTxn::new(&view);
            let given = fill(&mut txn)?;
            if txn.is_empty() {
                return Ok(given);
            }
            let absent = std::mem::take(&mut txn.absent);
            let released = std::mem::take(&mut txn.released);
            let revision = txn.revision;
            (
                given,
                revision,
                nonce,
                view.basis(),
                absent,
                txn.into_changes(),
                released,
            )
        };
        let others: Vec<TxnOp> = released
            .iter()
            .map(|node| TxnOp::delete(self.shared.link.key(&keys::departure(node)), None))
            .collect();
        // Only deletions of a removed node's records can exceed the limit. These records may be deleted later, since no
        // ledger accepts them any more.
        let room = MAX_OPERATIONS.saturating_sub(1 + others.len());
        let mut rest = Vec::new();
        if changes.len() > room {
            changes.sort_by_key(|change| {
                matches!(change.key, Key::Record(_)) && change.value.is_none()
            });
            rest = changes.split_off(room);
        }
        let result = self.run(|shared| async move {
            shared
                .commit(revision, &nonce, &absent, changes, others, basis)
                .await
        });
        if result.is_err() {
            // The transaction may still be applied. It is news then, like the writes of others.
            self.shared.view().own = None;
        }
        result?;
        for part in rest.chunks(MAX_OPERATIONS - 1) {
            self.delete(part.to_vec())?;
        }
        Ok(given)
    }

    /// Deletes keys in a separate transaction.
    fn delete(&mut self, changes: Vec<Change>) -> Result<(), StoreError> {
        let random = new_id()?;
        let (nonce, basis) = {
            let mut view = self.shared.view();
            if view.has_news() {
                // The records remain. The ledger refuses them.
                return Ok(());
            }
            let nonce = view.head.next_nonce(&random);
            view.own = Some(nonce.clone());
            (nonce, view.basis())
        };
        let deleted = self.run(|shared| async move {
            shared
                .commit(basis.head.revision, &nonce, &[], changes, Vec::new(), basis)
                .await
        });
        match deleted {
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

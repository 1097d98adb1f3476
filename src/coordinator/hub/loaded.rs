//! What a store holds, as it is kept in memory.

use std::time::Instant;

use super::changes::{Changes, rank};
use super::refill::Refill;
use super::{Contents, State};
use crate::coordinator::store::{Effect, Store, StoreError, Stored, Write};
use crate::model::record::RecordKey;
use crate::wire::Ledger;
use crate::wire::ledger::{Applied, Refused};

/// Verified, and ready to be taken over.
pub(super) struct Loaded {
    store_id: String,
    ledger: Option<Ledger>,
    revision: u64,
    changes: Changes,
    restored: bool,
    leftovers: Leftovers,
}

/// What a store of an earlier version holds otherwise than this one would.
#[derive(Default)]
struct Leftovers {
    /// Records of nodes that are out, that are over a bound, or that have given way to others.
    gone: Vec<RecordKey>,
    /// Records under another key than the ledger's.
    moved: Vec<(RecordKey, Write)>,
}

impl Loaded {
    /// Everything in `store`, from which what an earlier version left behind is deleted first.
    pub(super) fn cleaned(store: &mut dyn Store) -> Result<Self, StoreError> {
        let loaded = Self::from(store.load()?);
        if loaded.leftovers.is_empty() {
            return Ok(loaded);
        }
        let count = loaded.leftovers.gone.len() + loaded.leftovers.moved.len();
        match loaded.leftovers.clean(store) {
            Ok(()) => tracing::info!(records = count, "cleaned the store of an earlier version"),
            // They do no harm but that they take room.
            Err(error) => tracing::warn!(%error, records = count, "the store is not cleaned"),
        }
        Ok(Self::from(store.load()?))
    }
}

impl Leftovers {
    fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.moved.is_empty()
    }

    fn clean(self, store: &mut dyn Store) -> Result<(), StoreError> {
        let mut gone = self.gone;
        // Written first: a coordinator that is killed in between finds both, and goes on.
        let mut writes = Vec::new();
        for (before, write) in self.moved {
            gone.push(before);
            writes.push(write);
        }
        let most = store.bounds().records;
        for part in writes.chunks(most) {
            store.put(part)?;
        }
        store.forget(&gone)
    }
}

impl From<Contents> for Loaded {
    fn from(contents: Contents) -> Self {
        let mut ledger = contents.mesh_key.map(Ledger::new);
        let mut changes = Changes::new();
        for stored in &contents.records {
            changes.push(stored.revision, stored.key.clone());
        }
        // By revision, a record may come before what it rests on: that got a new version since.
        let mut records = contents.records;
        records.sort_by_key(|stored| rank(&stored.key.kind));
        let mut leftovers = Leftovers::default();
        if let Some(ledger) = &mut ledger {
            let mut taken = Vec::new();
            for stored in records {
                taken.extend(take(ledger, stored, &mut leftovers));
            }
            let dropped = |key: &RecordKey| ledger.entry(key).is_none();
            leftovers.gone.extend(taken.into_iter().filter(dropped));
        }
        Self {
            store_id: contents.id,
            ledger,
            revision: contents.revision,
            changes,
            restored: contents.restored,
            leftovers,
        }
    }
}

/// Takes one record into the ledger; gives its key, if it is there under that.
fn take(ledger: &mut Ledger, stored: Stored, leftovers: &mut Leftovers) -> Option<RecordKey> {
    let Stored { key, envelope, .. } = stored;
    match ledger.apply(envelope.clone()) {
        Ok(Applied::Changed(held)) if held != key => {
            let write = Write {
                key: held,
                envelope,
                gone: Vec::new(),
                effect: Effect::None,
            };
            leftovers.moved.push((key, write));
            None
        }
        Ok(Applied::Changed(key)) => Some(key),
        // It was written under the right key, and not deleted under another one.
        Ok(Applied::Unchanged)
        | Err(
            Refused::NodeRevoked
            | Refused::NotAMember
            | Refused::Full(_)
            | Refused::Stale { .. }
            | Refused::Forked(_),
        ) => {
            leftovers.gone.push(key);
            None
        }
        Err(refused) => {
            tracing::warn!(record = %key, %refused, "a record in the store does not verify and is left out");
            None
        }
    }
}

impl State {
    /// Takes over what is in the store.
    pub(super) fn take_over(&mut self, loaded: Loaded) {
        if loaded.restored && (self.refill.is_none() || self.store_id != loaded.store_id) {
            tracing::warn!(
                "the store misses what happened after it was saved; nobody is admitted until the nodes have told"
            );
            self.refill = Some(Refill::new(Instant::now()));
        }
        self.store_id = loaded.store_id;
        self.ledger = loaded.ledger;
        self.changes = loaded.changes;
        self.revision = loaded.revision;
    }
}

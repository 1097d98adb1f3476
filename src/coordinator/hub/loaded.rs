//! What a store holds, as it is kept in memory.

use std::time::Instant;

use super::changes::{Changes, rank};
use super::refill::Refill;
use super::{Contents, State};
use crate::wire::Ledger;

/// Verified, and ready to be taken over.
pub(super) struct Loaded {
    store_id: String,
    ledger: Option<Ledger>,
    revision: u64,
    changes: Changes,
    restored: bool,
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
        for stored in records {
            if let Some(ledger) = &mut ledger
                && let Err(refused) = ledger.apply(stored.envelope)
            {
                tracing::warn!(record = %stored.key, %refused, "a record in the store does not verify and is left out");
            }
        }
        Self {
            store_id: contents.id,
            ledger,
            revision: contents.revision,
            changes,
            restored: contents.restored,
        }
    }
}

impl State {
    /// Takes over what is in the store.
    pub(super) fn take_over(&mut self, loaded: Loaded) {
        if loaded.restored && (self.refill.is_none() || self.store_id != loaded.store_id) {
            tracing::warn!(
                "the store was restored from a backup; nobody is admitted until the nodes have told what happened since"
            );
            self.refill = Some(Refill::new(Instant::now()));
        }
        self.store_id = loaded.store_id;
        self.ledger = loaded.ledger;
        self.changes = loaded.changes;
        self.revision = loaded.revision;
    }
}

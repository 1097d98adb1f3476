//! The contents of a store, verified and indexed.

use std::time::Instant;

use super::changes::Changes;
use super::refill::Refill;
use super::state::State;
use crate::coordinator::store::{Contents, Effect, Store, StoreError, Stored, Write};
use crate::records::Ledger;
use crate::records::kinds::RecordKey;
use crate::records::ledger::{Applied, Refused};

/// The verified contents of a store, ready to replace the hub's state.
pub(super) struct Loaded {
    store_id: String,
    ledger: Option<Ledger>,
    revision: u64,
    changes: Changes,
    restored: bool,
    leftovers: Leftovers,
}

/// Records of an earlier version that this version would delete or store under another key.
#[derive(Default)]
struct Leftovers {
    /// Records of nodes that were removed, records that exceed a bound, and records that other records replace.
    gone: Vec<RecordKey>,
    /// Records that are stored under a key other than the ledger's, with the write that stores them under that.
    moved: Vec<(RecordKey, Write)>,
}

impl Loaded {
    /// Loads `store`, after deleting the records that an earlier version left behind.
    pub(super) fn cleaned(store: &mut dyn Store) -> Result<Self, StoreError> {
        let loaded = Self::from(store.load()?);
        if loaded.leftovers.is_empty() {
            return Ok(loaded);
        }
        let count = loaded.leftovers.gone.len() + loaded.leftovers.moved.len();
        match loaded.leftovers.clean(store) {
            Ok(()) => tracing::info!(records = count, "cleaned the store of an earlier version"),
            // The leftovers only take space, so the coordinator starts anyway.
            Err(error) => {
                tracing::warn!(%error, records = count, "the records that an earlier version left behind could not be deleted")
            }
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
        // The moved records are written before the old ones are deleted. If the coordinator is killed in between, its next start
        // finds both and continues.
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
        let mut leftovers = Leftovers::default();
        if let Some(ledger) = &mut ledger {
            let mut records = contents.records;
            // By revision, a record may come before one that it depends on, if that got a new version since. And a coordinator
            // that is killed while it cleans the store leaves copies under other keys, which must not replace the records.
            records.sort_by_cached_key(|stored| (stored.key.stage(), is_misplaced(ledger, stored)));
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

/// Whether a record is stored under a key other than the ledger's.
fn is_misplaced(ledger: &Ledger, stored: &Stored) -> bool {
    let header = stored.envelope.header();
    header.is_some_and(|header| ledger.key_of(&header, &stored.envelope.signer) != stored.key)
}

/// Applies one record to the ledger. Returns its key if the ledger holds it under the key that the store has.
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
        // A record that is held already is stored under the right key as well, and was applied before this copy.
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
    pub(super) fn take_over(&mut self, loaded: Loaded, now: Instant) {
        if loaded.restored && (self.refill.is_none() || self.store_id != loaded.store_id) {
            tracing::warn!(
                "the store lacks what happened after it was saved; nobody is admitted until the nodes have sent the records they hold"
            );
            self.refill = Some(Refill::new(now));
        }
        self.store_id = loaded.store_id;
        self.ledger = loaded.ledger;
        self.changes = loaded.changes;
        self.revision = loaded.revision;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::model::time::UnixSeconds;
    use crate::model::{Label, SigningKey, WireGuardKey};
    use crate::records::Envelope;
    use crate::records::kinds::{Membership, Record, Token};

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    fn stored(revision: u64, key: RecordKey, envelope: Envelope) -> Stored {
        Stored {
            revision,
            key,
            envelope,
        }
    }

    /// A member's record of a kind that this version does not know.
    fn weather(version: u64) -> Envelope {
        let text = format!(r#"{{"kind":"weather","id":"here","version":{version}}}"#);
        Envelope::seal_payload(text, &key(3))
    }

    #[test]
    fn a_copy_under_another_key_does_not_replace_the_record_under_the_right_key() {
        let token = Token {
            id: key(2).public(),
            version: 1,
            tags: Vec::new(),
            uses: 1,
            created_at: UnixSeconds(1),
            expires_at: UnixSeconds(100),
            ephemeral: false,
        };
        let membership = Membership {
            id: key(3).public(),
            version: 1,
            token: key(2).public(),
            name: Label::parse("n3").expect("a literal"),
            wireguard_key: WireGuardKey([3; 32]),
            tags: Vec::new(),
            issued_at: UnixSeconds(2),
            proof: None,
        };
        let token = Envelope::seal(&Record::Token(token), &key(1));
        let membership = Envelope::seal(&Record::Membership(membership), &key(2));
        let misplaced = RecordKey::parse("weather", "here");
        let right = RecordKey::parse(&format!("weather of {}", key(3).public()), "here");
        for version in [1, 2] {
            let loaded = Loaded::from(Contents {
                id: String::new(),
                mesh_key: Some(key(1).public()),
                records: vec![
                    stored(1, token.key().expect("it has a header"), token.clone()),
                    stored(
                        2,
                        membership.key().expect("it has a header"),
                        membership.clone(),
                    ),
                    stored(3, misplaced.clone(), weather(1)),
                    stored(4, right.clone(), weather(version)),
                ],
                revision: 4,
                restored: false,
            });
            assert_eq!(loaded.leftovers.gone, std::slice::from_ref(&misplaced));
            assert!(loaded.leftovers.moved.is_empty());
            let ledger = loaded.ledger.expect("there is a mesh key");
            assert!(ledger.holds(&weather(version)));
        }
    }
}

//! What this coordinator has read of the contents of etcd: everything except the text of the records. Pure.
//!
//! A view is the state at one of etcd's own revisions, and changes by whole revisions, as the watch delivers them. Each
//! transaction of a coordinator writes [`Key::Head`], so that a comparison of that key tells whether this view is still
//! up to date.

use std::collections::{BTreeMap, HashMap, HashSet};

use sha2::{Digest as _, Sha256};

use super::super::{Contents, LeaseStart, News, Stored};
use super::keys::{Key, Written};
use crate::model::{Label, PublicKey};
use crate::records::Envelope;
use crate::records::kinds::RecordKey;

/// A key and its new value, which is none if the key was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Key,
    pub(super) value: Option<Vec<u8>>,
}

/// What separates the random part of a nonce from that of the write before. Random parts are hexadecimal digits.
const AFTER: char = '<';

/// The last revision of the store, the nonce of the transaction that wrote it, and etcd's revision of that transaction. The nonce has a
/// random part, and that of the write before. So the heads are a chain, and a watch that continues in another history of etcd, after a
/// snapshot was restored, is noticed with the first write that it delivers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) revision: u64,
    pub(super) nonce: String,
    pub(super) at: i64,
}

impl Head {
    /// The text of the value in etcd.
    pub(super) fn text(revision: u64, nonce: &str) -> String {
        format!("{revision} {nonce}")
    }

    /// The nonce of a transaction that follows this head.
    pub(super) fn next_nonce(&self, random: &str) -> String {
        format!("{random}{AFTER}{}", self.random_part())
    }

    fn random_part(&self) -> &str {
        self.nonce.split(AFTER).next().unwrap_or_default()
    }

    /// Whether this head can be the next one after `before`. An earlier version of the coordinator, and one that marks a restored
    /// store, writes a head that does not name the one before.
    fn follows(&self, before: &Self) -> bool {
        let previous = self.nonce.split_once(AFTER).map(|(_, previous)| previous);
        previous.is_none_or(|previous| previous == before.random_part())
    }

    /// Parses the value in etcd.
    pub(super) fn parse(value: &[u8], at: i64) -> Option<Self> {
        let (revision, nonce) = std::str::from_utf8(value).ok()?.split_once(' ')?;
        Some(Self {
            revision: revision.parse().ok()?,
            nonce: nonce.to_owned(),
            at,
        })
    }
}

/// A revision of etcd follows another one than the last one of the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OtherHistory;

/// The state of the store on which a transaction depends: its name and its last write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Basis {
    pub(super) id: String,
    pub(super) head: Head,
}

/// The revision of a record, and the digest of a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordPlace {
    pub(super) revision: u64,
    pub(super) digest: Option<[u8; 32]>,
}

/// The contents of etcd that this coordinator has read.
#[derive(Debug, Default)]
pub(super) struct EtcdView {
    /// etcd's revision of this view.
    pub(super) at: i64,
    pub(super) head: Head,
    /// etcd's revision of the head up to which the hub has received all changes.
    pub(super) delivered: i64,
    /// The nonce of this coordinator's present transaction.
    pub(super) own: Option<String>,
    id: String,
    mesh_key: Option<PublicKey>,
    records: RecordIndex,
    pub(super) decisions: Decisions,
    /// etcd's revision of each key.
    mod_revisions: BTreeMap<Key, i64>,
    restored: bool,
}

/// Which records there are, and which of them the hub has not received.
#[derive(Debug, Default)]
struct RecordIndex {
    places: BTreeMap<RecordKey, RecordPlace>,
    by_revision: HashMap<u64, RecordKey>,
    /// The records that the hub has not received yet.
    undelivered: BTreeMap<u64, Stored>,
    /// Whether `undelivered` has all records, after a listing.
    listed: bool,
}

/// What is decided once for all coordinators: uses of tokens, names and blocks.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    pub(super) issued: HashSet<PublicKey>,
    pub(super) uses: HashMap<PublicKey, HashSet<PublicKey>>,
    pub(super) names: HashMap<PublicKey, Label>,
    pub(super) holders: BTreeMap<u32, PublicKey>,
    pub(super) blocks: HashMap<PublicKey, u32>,
    pub(super) released: BTreeMap<u32, u64>,
    /// The first block to lease, if the store was restored.
    pub(super) lease_start: Option<LeaseStart>,
}

impl EtcdView {
    /// Creates the view of a listing: all keys with etcd's revision of each, as of revision `at`.
    pub(super) fn listed(at: i64, listing: Vec<(Change, i64)>) -> Self {
        let mut view = Self::default();
        view.records.listed = true;
        for (change, marked) in listing {
            view.set(marked, change, true);
        }
        view.at = at;
        view
    }

    /// Applies one of etcd's revisions. A revision that is already applied changes nothing.
    ///
    /// # Errors
    /// The revision does not follow the last one of this view, so it belongs to another history. The view did not change.
    pub(super) fn apply(&mut self, at: i64, changes: Vec<Change>) -> Result<(), OtherHistory> {
        if at <= self.at {
            return Ok(());
        }
        let head = changes.iter().find(|change| change.key == Key::Head);
        let value = head.and_then(|change| change.value.as_ref());
        let head = value.and_then(|value| Head::parse(value, at));
        if head.as_ref().is_some_and(|head| !head.follows(&self.head)) {
            return Err(OtherHistory);
        }
        let own = head.is_some_and(|head| self.own.as_ref() == Some(&head.nonce));
        for change in changes {
            self.set(at, change, !own);
        }
        self.at = at;
        if own {
            self.delivered = at;
        }
        Ok(())
    }

    fn set(&mut self, at: i64, Change { key, value }: Change, undelivered: bool) {
        match (&key, &value) {
            (Key::Head, Some(value)) => {
                if let Some(head) = Head::parse(value, at) {
                    self.head = head;
                }
            }
            (Key::Id, Some(value)) => self.id = String::from_utf8_lossy(value).into_owned(),
            (Key::Mesh, Some(value)) => self.mesh_key = parse(value),
            (Key::Head | Key::Id | Key::Mesh, None) => {}
            (Key::Restored, value) => self.restored = value.is_some(),
            (Key::Leases, value) => {
                self.decisions.lease_start = value.as_deref().and_then(parse_lease_start);
            }
            (Key::Record(revision), Some(value)) => self.set_record(*revision, value, undelivered),
            (Key::Record(revision), None) => {
                self.records.undelivered.remove(revision);
                if let Some(key) = self.records.by_revision.remove(revision)
                    && self
                        .records
                        .places
                        .get(&key)
                        .is_some_and(|p| p.revision == *revision)
                {
                    self.records.places.remove(&key);
                }
            }
            (Key::Issued(token), Some(_)) => {
                self.decisions.issued.insert(*token);
            }
            (Key::Issued(token), None) => {
                self.decisions.issued.remove(token);
            }
            (Key::Use(token, node), Some(_)) => {
                self.decisions.uses.entry(*token).or_default().insert(*node);
            }
            (Key::Use(token, node), None) => {
                if let Some(nodes) = self.decisions.uses.get_mut(token) {
                    nodes.remove(node);
                }
            }
            (Key::Name(node), Some(value)) => {
                if let Some(name) = parse(value) {
                    self.decisions.names.insert(*node, name);
                }
            }
            (Key::Name(node), None) => {
                self.decisions.names.remove(node);
            }
            (Key::Block(block), value) => {
                self.set_holder(*block, value.as_deref().and_then(parse::<PublicKey>));
            }
            (Key::Released(block), Some(value)) => {
                self.decisions
                    .released
                    .insert(*block, parse(value).unwrap_or(0));
            }
            (Key::Released(block), None) => {
                self.decisions.released.remove(block);
            }
        }
        if value.is_some() {
            self.mod_revisions.insert(key, at);
        } else {
            self.mod_revisions.remove(&key);
        }
    }

    fn set_record(&mut self, revision: u64, value: &[u8], undelivered: bool) {
        let Written { key, envelope } = match serde_json::from_slice(value) {
            Ok(written) => written,
            Err(error) => {
                tracing::warn!(revision, %error, "a record in the store cannot be read; its node will send it again");
                return;
            }
        };
        let place = RecordPlace {
            revision,
            digest: matches!(key, RecordKey::Membership(_)).then(|| digest(&envelope)),
        };
        if let Some(before) = self.records.places.insert(key.clone(), place) {
            self.records.undelivered.remove(&before.revision);
        }
        self.records.by_revision.insert(revision, key.clone());
        if undelivered {
            let stored = Stored {
                revision,
                key,
                envelope,
            };
            self.records.undelivered.insert(revision, stored);
        }
    }

    fn set_holder(&mut self, block: u32, holder: Option<PublicKey>) {
        // In one transaction, a node's new block may be listed before its old one is deleted.
        if let Some(before) = self.decisions.holders.remove(&block)
            && self.decisions.blocks.get(&before) == Some(&block)
        {
            self.decisions.blocks.remove(&before);
        }
        if let Some(node) = holder {
            self.decisions.holders.insert(block, node);
            self.decisions.blocks.insert(node, block);
        }
    }

    /// The revision of a record.
    pub(super) fn place(&self, key: &RecordKey) -> Option<RecordPlace> {
        self.records.places.get(key).copied()
    }

    /// Whether there are changes that the hub has not received.
    pub(super) fn has_news(&self) -> bool {
        self.records.listed || self.head.at != self.delivered
    }

    /// The records that the hub has not received yet.
    pub(super) fn take_news(&mut self) -> Option<News> {
        if !self.has_news() {
            return None;
        }
        let records = std::mem::take(&mut self.records.undelivered)
            .into_values()
            .collect();
        self.delivered = self.head.at;
        Some(if std::mem::take(&mut self.records.listed) {
            News::Everything(Contents {
                id: self.id.clone(),
                mesh_key: self.mesh_key,
                records,
                revision: self.head.revision,
                restored: self.restored,
            })
        } else {
            News::Changes {
                mesh_key: self.mesh_key,
                records,
                revision: self.head.revision,
                restored: self.restored,
            }
        })
    }

    /// The state on which a transaction depends that is made from this view.
    pub(super) fn basis(&self) -> Basis {
        Basis {
            id: self.id.clone(),
            head: self.head.clone(),
        }
    }

    /// The store's name.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn mesh_key(&self) -> Option<PublicKey> {
        self.mesh_key
    }

    /// A hash over all keys and their last revisions. Two views with the same hash have the same contents.
    pub(super) fn hash(&self) -> [u8; 32] {
        hash(self.mod_revisions.iter().map(|(key, at)| (key.text(), *at)))
    }
}

/// The hash of a view or of a listing, in any order of its keys.
pub(super) fn hash_of(mut marks: Vec<(Key, i64)>) -> [u8; 32] {
    marks.sort();
    hash(marks.iter().map(|(key, at)| (key.text(), *at)))
}

fn hash(marks: impl Iterator<Item = (String, i64)>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for (key, at) in marks {
        hash.update(key);
        hash.update(at.to_be_bytes());
    }
    hash.finalize().into()
}

/// A hash of a record's signer, signature and text.
pub(super) fn digest(envelope: &Envelope) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(envelope.signer.0);
    hash.update(envelope.signature.0);
    hash.update(&envelope.payload);
    hash.finalize().into()
}

/// The value of [`Key::Leases`].
pub(super) fn lease_start_text(start: LeaseStart) -> String {
    format!("{} {}", start.above, start.turn)
}

fn parse_lease_start(value: &[u8]) -> Option<LeaseStart> {
    let (above, turn) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    Some(LeaseStart {
        above: above.parse().ok()?,
        turn: turn.parse().ok()?,
    })
}

fn parse<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;

    fn record(revision: u64, id: &str) -> Change {
        let written = Written {
            key: RecordKey::parse("node", id),
            envelope: Envelope::seal_payload("{}".into(), &SigningKey::from_seed(&[1; 32])),
        };
        Change {
            key: Key::Record(revision),
            value: serde_json::to_vec(&written).ok(),
        }
    }

    fn head(revision: u64, nonce: &str) -> Change {
        Change {
            key: Key::Head,
            value: Some(Head::text(revision, nonce).into_bytes()),
        }
    }

    fn gone(key: Key) -> Change {
        Change { key, value: None }
    }

    /// The revisions of the records in the news, and the last revision.
    fn news(view: &mut EtcdView) -> Option<(Vec<u64>, u64)> {
        let (records, revision) = match view.take_news()? {
            News::Everything(contents) => (contents.records, contents.revision),
            News::Changes {
                records, revision, ..
            } => (records, revision),
        };
        Some((
            records.iter().map(|stored| stored.revision).collect(),
            revision,
        ))
    }

    #[test]
    fn changes_by_others_are_news_once_and_in_their_last_version() {
        let mut view = EtcdView::default();
        view.apply(5, vec![record(1, "a"), head(1, "x")])
            .expect("the next revision");
        view.apply(6, vec![gone(Key::Record(1)), record(2, "a"), head(2, "x")])
            .expect("the next revision");
        assert_eq!(news(&mut view), Some((vec![2], 2)));
        assert_eq!(news(&mut view), None);
        // The watch began again and delivered an event twice.
        view.apply(6, vec![record(2, "a"), head(2, "x")])
            .expect("the next revision");
        assert_eq!(news(&mut view), None);
    }

    #[test]
    fn a_revision_of_another_history_is_not_applied() {
        let next = |view: &EtcdView, random: &str| head(9, &view.head.next_nonce(random));
        let mut view = EtcdView::default();
        view.apply(5, vec![head(1, "a0")]).expect("the first head");
        let second = next(&view, "a1");
        view.apply(6, vec![record(2, "a"), second])
            .expect("it names the one before");
        assert_eq!(view.head.nonce, "a1<a0");
        let mut restored = EtcdView::default();
        restored
            .apply(5, vec![head(1, "a0")])
            .expect("the first head");
        for other in ["b1", "b2"] {
            let head = next(&restored, other);
            restored
                .apply(restored.at + 1, vec![head])
                .expect("the next");
        }
        // The watch continues after revision 6, and delivers the revision 7 of the other history.
        let theirs = next(&restored, "b3");
        let before = view.hash();
        assert_eq!(
            view.apply(7, vec![record(3, "b"), theirs]),
            Err(OtherHistory)
        );
        assert_eq!((view.at, view.hash()), (6, before));
        let ours = next(&view, "a2");
        assert_eq!(view.apply(7, vec![ours]), Ok(()));
        let of_earlier_version = head(10, "c0");
        assert_eq!(view.apply(8, vec![of_earlier_version]), Ok(()));
        let after = next(&view, "a3");
        assert_eq!(view.apply(9, vec![after]), Ok(()));
    }

    #[test]
    fn changes_by_this_coordinator_are_not_news() {
        let mut view = EtcdView {
            own: Some("me".into()),
            ..EtcdView::default()
        };
        view.apply(5, vec![record(1, "a"), head(1, "me")])
            .expect("the next revision");
        assert_eq!(news(&mut view), None);
        assert_eq!((view.delivered, view.head.revision), (5, 1));
    }

    #[test]
    fn a_listing_is_everything_and_has_the_hash_of_the_changes_that_led_to_it() {
        let mut followed = EtcdView::default();
        followed
            .apply(5, vec![record(1, "a"), head(1, "x")])
            .expect("the next revision");
        followed
            .apply(6, vec![gone(Key::Record(1)), record(2, "a"), head(2, "x")])
            .expect("the next revision");
        let listing = vec![(head(2, "x"), 6), (record(2, "a"), 6)];
        let marks = listing.iter().map(|(c, at)| (c.key.clone(), *at)).collect();
        assert_eq!(followed.hash(), hash_of(marks));
        let mut listed = EtcdView::listed(9, listing);
        assert_eq!(listed.hash(), followed.hash());
        assert_eq!(news(&mut listed), Some((vec![2], 2)));
        listed
            .apply(10, vec![gone(Key::Record(2)), head(2, "x")])
            .expect("the next revision");
        assert_ne!(listed.hash(), followed.hash());
    }

    #[test]
    fn a_node_that_moves_has_only_its_new_block() {
        let (node, mut view) = (PublicKey([1; 32]), EtcdView::default());
        let holds = |block| Change {
            key: Key::Block(block),
            value: Some(node.to_string().into_bytes()),
        };
        view.apply(1, vec![holds(3)]).expect("the next revision");
        view.apply(2, vec![holds(1), gone(Key::Block(3))])
            .expect("the next revision");
        assert_eq!(view.decisions.blocks.get(&node), Some(&1));
        assert_eq!(view.decisions.holders.len(), 1);
    }
}

//! What this coordinator knows of what is in etcd: all but the records' text. Pure.
//!
//! It is true as of one of etcd's own revisions, and changes by whole ones, as a watch tells them. Each transaction of
//! a coordinator writes [`Key::Head`], so that a compare of that one key tells whether this view is still the truth.

use std::collections::{BTreeMap, HashMap, HashSet};

use sha2::{Digest as _, Sha256};

use super::super::{Contents, LeaseStart, News, Stored};
use super::keys::{Key, Written};
use crate::model::{Label, PublicKey};
use crate::records::Envelope;
use crate::records::kinds::RecordKey;

/// A key and its new value; no value: it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Key,
    pub(super) value: Option<Vec<u8>>,
}

/// The last revision of ours, who wrote it, and at which of etcd's revisions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) revision: u64,
    pub(super) word: String,
    pub(super) at: i64,
}

impl Head {
    /// The value in etcd.
    pub(super) fn text(revision: u64, word: &str) -> String {
        format!("{revision} {word}")
    }

    /// From the value in etcd.
    pub(super) fn parse(value: &[u8], at: i64) -> Option<Self> {
        let (revision, word) = std::str::from_utf8(value).ok()?.split_once(' ')?;
        Some(Self {
            revision: revision.parse().ok()?,
            word: word.to_owned(),
            at,
        })
    }
}

/// Where a record is, and for memberships what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) revision: u64,
    pub(super) digest: Option<[u8; 32]>,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Etcd's revision that it is true of.
    pub(super) at: i64,
    pub(super) head: Head,
    /// The head up to which the hub has taken everything in.
    pub(super) taken: i64,
    /// The word of this coordinator's transaction under way.
    pub(super) own: Option<String>,
    id: String,
    mesh_key: Option<PublicKey>,
    places: BTreeMap<RecordKey, Place>,
    by_revision: HashMap<u64, RecordKey>,
    /// What the hub has not taken in.
    fresh: BTreeMap<u64, Stored>,
    /// Everything is in `fresh`.
    listed: bool,
    /// Etcd's revision of each key.
    marks: BTreeMap<Key, i64>,
    pub(super) issued: HashSet<PublicKey>,
    pub(super) uses: HashMap<PublicKey, HashSet<PublicKey>>,
    pub(super) names: HashMap<PublicKey, Label>,
    pub(super) holders: BTreeMap<u32, PublicKey>,
    pub(super) blocks: HashMap<PublicKey, u32>,
    pub(super) released: BTreeMap<u32, u64>,
    restored: bool,
    /// Where leases begin, if the store was restored.
    pub(super) lease_start: Option<LeaseStart>,
}

impl View {
    /// Of a listing: all keys with etcd's revision of each, as of `at`.
    pub(super) fn listed(at: i64, listing: Vec<(Change, i64)>) -> Self {
        let mut view = Self {
            listed: true,
            ..Self::default()
        };
        for (change, marked) in listing {
            view.set(marked, change, true);
        }
        view.at = at;
        view
    }

    /// Takes over one of etcd's revisions; one that is known changes nothing.
    pub(super) fn apply(&mut self, at: i64, changes: Vec<Change>) {
        if at <= self.at {
            return;
        }
        let own = changes.iter().any(|change| {
            change.key == Key::Head
                && change
                    .value
                    .as_ref()
                    .and_then(|value| Head::parse(value, at))
                    .is_some_and(|head| self.own.as_ref() == Some(&head.word))
        });
        for change in changes {
            self.set(at, change, !own);
        }
        self.at = at;
        if own {
            self.taken = at;
        }
    }

    fn set(&mut self, at: i64, Change { key, value }: Change, fresh: bool) {
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
                self.lease_start = value.as_deref().and_then(parse_lease_start);
            }
            (Key::Record(revision), Some(value)) => self.set_record(*revision, value, fresh),
            (Key::Record(revision), None) => {
                self.fresh.remove(revision);
                if let Some(key) = self.by_revision.remove(revision)
                    && self
                        .places
                        .get(&key)
                        .is_some_and(|p| p.revision == *revision)
                {
                    self.places.remove(&key);
                }
            }
            (Key::Issued(token), Some(_)) => {
                self.issued.insert(*token);
            }
            (Key::Issued(token), None) => {
                self.issued.remove(token);
            }
            (Key::Use(token, node), Some(_)) => {
                self.uses.entry(*token).or_default().insert(*node);
            }
            (Key::Use(token, node), None) => {
                if let Some(nodes) = self.uses.get_mut(token) {
                    nodes.remove(node);
                }
            }
            (Key::Name(node), Some(value)) => {
                if let Some(name) = parse(value) {
                    self.names.insert(*node, name);
                }
            }
            (Key::Name(node), None) => {
                self.names.remove(node);
            }
            (Key::Block(block), value) => {
                self.set_holder(*block, value.as_deref().and_then(parse::<PublicKey>));
            }
            (Key::Released(block), Some(value)) => {
                self.released.insert(*block, parse(value).unwrap_or(0));
            }
            (Key::Released(block), None) => {
                self.released.remove(block);
            }
        }
        if value.is_some() {
            self.marks.insert(key, at);
        } else {
            self.marks.remove(&key);
        }
    }

    fn set_record(&mut self, revision: u64, value: &[u8], fresh: bool) {
        let Written { key, envelope } = match serde_json::from_slice(value) {
            Ok(written) => written,
            Err(error) => {
                tracing::warn!(revision, %error, "a record in the store cannot be read; its node will send it again");
                return;
            }
        };
        let place = Place {
            revision,
            digest: matches!(key, RecordKey::Membership(_)).then(|| digest(&envelope)),
        };
        if let Some(before) = self.places.insert(key.clone(), place) {
            self.fresh.remove(&before.revision);
        }
        self.by_revision.insert(revision, key.clone());
        if fresh {
            let stored = Stored {
                revision,
                key,
                envelope,
            };
            self.fresh.insert(revision, stored);
        }
    }

    fn set_holder(&mut self, block: u32, holder: Option<PublicKey>) {
        // In one transaction a node's new block may come before its old one goes.
        if let Some(before) = self.holders.remove(&block)
            && self.blocks.get(&before) == Some(&block)
        {
            self.blocks.remove(&before);
        }
        if let Some(node) = holder {
            self.holders.insert(block, node);
            self.blocks.insert(node, block);
        }
    }

    /// Where a record is.
    pub(super) fn place(&self, key: &RecordKey) -> Option<Place> {
        self.places.get(key).copied()
    }

    /// Whether there is something the hub has not taken in.
    pub(super) fn has_news(&self) -> bool {
        self.listed || self.head.at != self.taken
    }

    /// What the hub has not taken in.
    pub(super) fn take_news(&mut self) -> Option<News> {
        if !self.has_news() {
            return None;
        }
        let records = std::mem::take(&mut self.fresh).into_values().collect();
        self.taken = self.head.at;
        Some(if std::mem::take(&mut self.listed) {
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

    /// The store's name.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The mesh key.
    pub(super) fn mesh_key(&self) -> Option<PublicKey> {
        self.mesh_key
    }

    /// A hash over which keys there are and when each was last written; two views with one hash are one.
    pub(super) fn hash(&self) -> [u8; 32] {
        hash(self.marks.iter().map(|(key, at)| (key.text(), *at)))
    }
}

/// The hash of a view, or of a listing in any order of its keys.
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

/// Tells a record's text and signature from any other's.
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

    fn head(revision: u64, word: &str) -> Change {
        Change {
            key: Key::Head,
            value: Some(Head::text(revision, word).into_bytes()),
        }
    }

    fn gone(key: Key) -> Change {
        Change { key, value: None }
    }

    /// The revisions of the records that are news, and the last one.
    fn news(view: &mut View) -> Option<(Vec<u64>, u64)> {
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
    fn what_others_wrote_is_news_once_and_in_its_last_version() {
        let mut view = View::default();
        view.apply(5, vec![record(1, "a"), head(1, "x")]);
        view.apply(6, vec![gone(Key::Record(1)), record(2, "a"), head(2, "x")]);
        assert_eq!(news(&mut view), Some((vec![2], 2)));
        assert_eq!(news(&mut view), None);
        // Told twice by a watch that began again.
        view.apply(6, vec![record(2, "a"), head(2, "x")]);
        assert_eq!(news(&mut view), None);
    }

    #[test]
    fn what_this_one_wrote_itself_is_no_news() {
        let mut view = View {
            own: Some("me".into()),
            ..View::default()
        };
        view.apply(5, vec![record(1, "a"), head(1, "me")]);
        assert_eq!(news(&mut view), None);
        assert_eq!((view.taken, view.head.revision), (5, 1));
    }

    #[test]
    fn a_listing_is_everything_and_has_the_hash_of_the_changes_that_led_to_it() {
        let mut followed = View::default();
        followed.apply(5, vec![record(1, "a"), head(1, "x")]);
        followed.apply(6, vec![gone(Key::Record(1)), record(2, "a"), head(2, "x")]);
        let listing = vec![(head(2, "x"), 6), (record(2, "a"), 6)];
        let marks = listing.iter().map(|(c, at)| (c.key.clone(), *at)).collect();
        assert_eq!(followed.hash(), hash_of(marks));
        let mut listed = View::listed(9, listing);
        assert_eq!(listed.hash(), followed.hash());
        assert_eq!(news(&mut listed), Some((vec![2], 2)));
        listed.apply(10, vec![gone(Key::Record(2)), head(2, "x")]);
        assert_ne!(listed.hash(), followed.hash());
    }

    #[test]
    fn a_node_that_moves_has_only_its_new_block() {
        let (node, mut view) = (PublicKey([1; 32]), View::default());
        let holds = |block| Change {
            key: Key::Block(block),
            value: Some(node.to_string().into_bytes()),
        };
        view.apply(1, vec![holds(3)]);
        view.apply(2, vec![holds(1), gone(Key::Block(3))]);
        assert_eq!(view.blocks.get(&node), Some(&1));
        assert_eq!(view.holders.len(), 1);
    }
}

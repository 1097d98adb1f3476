//! What streams read: parts of all records, or of what changed. A part is looked up when it is sent. A stream keeps no
//! records between two parts but the key of the last one, so a slow reader holds next to nothing.

use super::{Hub, State};
use crate::model::record::RecordKey;
use crate::wire::Envelope;
use crate::wire::control::MAX_RECORDS;

/// Bytes of payload in a part at most, if it has more than one record: many nodes may read at once.
const MAX_PART: usize = 64 * 1024;
/// Changes that are read as such at most. A stream that is further behind reads everything.
const MAX_CHANGES: usize = 1024;

/// How far a stream has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// It holds all up to this revision; none, if it begins with everything.
    revision: Option<u64>,
    /// What it is in the middle of.
    reading: Option<Reading>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    /// The revision it holds after the last part. What changes while the parts are sent has a later one.
    until: u64,
    everything: bool,
    /// The last record of the part before.
    after: Option<RecordKey>,
}

/// Some of what a stream is to receive.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// In an order in which they can be taken in.
    pub records: Vec<Envelope>,
    /// The revision that the stream holds with them: the one it had before, unless it is the last part.
    pub revision: u64,
}

impl Cursor {
    /// Behind `revision`.
    #[must_use]
    pub fn at(revision: u64) -> Self {
        Self {
            revision: Some(revision),
            reading: None,
        }
    }

    /// Before everything.
    #[must_use]
    pub fn start() -> Self {
        Self {
            revision: None,
            reading: None,
        }
    }
}

impl Hub {
    /// The next part for a stream at `cursor`, which moves behind it; none, if the stream is up to date.
    #[must_use]
    pub fn read_part(&self, cursor: &mut Cursor) -> Option<Part> {
        let state = self.read();
        let mut reading = match cursor.reading.take() {
            Some(reading) => reading,
            None if cursor.revision.is_some_and(|at| at >= state.revision) => return None,
            None => Reading {
                until: state.revision,
                everything: false,
                after: None,
            },
        };
        let changed = cursor
            .revision
            .filter(|_| !reading.everything)
            .and_then(|from| state.changed_keys(from, reading.until));
        if changed.is_none() && !reading.everything {
            reading = Reading {
                until: state.revision,
                everything: true,
                after: None,
            };
        }
        let (records, last) = match changed {
            Some(keys) => state.part_of(&keys, reading.after.as_ref()),
            None => state.part_of_all(reading.after.as_ref()),
        };
        let before = cursor.revision.filter(|_| !reading.everything).unwrap_or(0);
        let is_last = last.is_none();
        if is_last {
            cursor.revision = Some(reading.until);
        } else {
            cursor.reading = Some(Reading {
                after: last,
                ..reading.clone()
            });
        }
        Some(Part {
            records,
            revision: if is_last { reading.until } else { before },
        })
    }
}

impl State {
    /// What changed after `from` up to `until`; none, if that is too much or not known any more.
    fn changed_keys(&self, from: u64, until: u64) -> Option<Vec<&RecordKey>> {
        if !self.changes.reaches_back_to(from) {
            return None;
        }
        let keys = self.changes.between(from, until);
        (keys.len() <= MAX_CHANGES).then_some(keys)
    }

    /// The part of `keys` that comes behind `after`, and its last key, if there is another part.
    fn part_of(
        &self,
        keys: &[&RecordKey],
        after: Option<&RecordKey>,
    ) -> (Vec<Envelope>, Option<RecordKey>) {
        let begin = after.map_or(0, |after| {
            keys.partition_point(|key| super::changes::order(key) <= super::changes::order(after))
        });
        // A record that is gone was said by a node that is out.
        let entries = keys.iter().skip(begin).filter_map(|key| {
            let entry = self.ledger.as_ref()?.entry(key)?;
            Some((*key, &entry.envelope))
        });
        part(entries)
    }

    /// The part of all records that comes behind `after`, and its last key, if there is another part.
    fn part_of_all(&self, after: Option<&RecordKey>) -> (Vec<Envelope>, Option<RecordKey>) {
        part(
            self.ledger
                .iter()
                .flat_map(|ledger| ledger.envelopes_after(after)),
        )
    }
}

/// As many records as a part may have, and the key of the last one, if there are more.
fn part<'a>(
    records: impl Iterator<Item = (&'a RecordKey, &'a Envelope)>,
) -> (Vec<Envelope>, Option<RecordKey>) {
    let mut bytes = 0;
    let mut part: Vec<Envelope> = Vec::new();
    let mut last: Option<&RecordKey> = None;
    for (key, envelope) in records {
        bytes += envelope.payload.len();
        if !part.is_empty() && (part.len() >= MAX_RECORDS || bytes > MAX_PART) {
            return (part, last.cloned());
        }
        part.push(envelope.clone());
        last = Some(key);
    }
    (part, None)
}

//! How streams read records: in parts, either of all records or of those that changed. The hub collects a part when it is sent.
//! Between two parts a stream stores only the key of the last record, so a slow reader needs little memory.

use super::state::State;
use super::view::View;
use crate::protocol::control::MAX_RECORDS;
use crate::records::batch::Room;
use crate::records::{Envelope, RecordKey};

/// The maximum payload of a part of more than one record, in bytes. It is small because many nodes may read at once.
const MAX_PART: usize = 64 * 1024;
/// The maximum number of changed records that a stream reads as changes. A stream that is further behind reads all records.
const MAX_CHANGES: usize = 1024;

/// How far a stream has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The stream has received all records up to this revision; absent if it has to read all records.
    revision: Option<u64>,
    /// The read that has begun and has parts left.
    reading: Option<Reading>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    /// The revision that the stream has reached after the last part. A change during the read has a later revision.
    until: u64,
    /// Whether all records are read, and not only those that changed.
    everything: bool,
    /// The last record of the previous part.
    after: Option<RecordKey>,
}

/// Some of the records that a stream has to receive.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The records, in an order in which a ledger accepts them.
    pub records: Vec<Envelope>,
    /// The revision that the stream has reached with this part. It changes only with the last part of a read.
    pub revision: u64,
}

impl Cursor {
    /// A cursor of a stream that has received all records up to `revision`.
    #[must_use]
    pub fn at(revision: u64) -> Self {
        Self {
            revision: Some(revision),
            reading: None,
        }
    }

    /// A cursor of a stream that has received nothing.
    #[must_use]
    pub fn start() -> Self {
        Self {
            revision: None,
            reading: None,
        }
    }
}

impl View {
    /// Returns the next part for the stream, and moves its cursor past the part; none, if the stream is up to date.
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
    /// The records that changed after revision `from` up to `until`; none, if they are too many or not known any more.
    fn changed_keys(&self, from: u64, until: u64) -> Option<Vec<&RecordKey>> {
        if !self.changes.reaches_back_to(from) {
            return None;
        }
        let keys = self.changes.between(from, until);
        (keys.len() <= MAX_CHANGES).then_some(keys)
    }

    /// The part of `keys` that follows `after`, and its last key if another part follows.
    fn part_of(
        &self,
        keys: &[&RecordKey],
        after: Option<&RecordKey>,
    ) -> (Vec<Envelope>, Option<RecordKey>) {
        let begin = after.map_or(0, |after| keys.partition_point(|key| *key <= after));
        // A record is missing if its node was removed since, or if it gave way to another record.
        let entries = keys.iter().skip(begin).filter_map(|key| {
            let entry = self.ledger.as_ref()?.entry(key)?;
            Some((*key, &entry.envelope))
        });
        part(entries)
    }

    /// The part of all records that follows `after`, and its last key if another part follows.
    fn part_of_all(&self, after: Option<&RecordKey>) -> (Vec<Envelope>, Option<RecordKey>) {
        part(
            self.ledger
                .iter()
                .flat_map(|ledger| ledger.envelopes_after(after)),
        )
    }
}

/// As many records as fit into a part, and the key of the last one if more records are left.
fn part<'a>(
    records: impl Iterator<Item = (&'a RecordKey, &'a Envelope)>,
) -> (Vec<Envelope>, Option<RecordKey>) {
    let mut room = Room::new(MAX_RECORDS, MAX_PART);
    let mut part: Vec<Envelope> = Vec::new();
    let mut last: Option<&RecordKey> = None;
    for (key, envelope) in records {
        if !room.take(envelope) {
            return (part, last.cloned());
        }
        part.push(envelope.clone());
        last = Some(key);
    }
    (part, None)
}

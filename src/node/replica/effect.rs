//! The values that a replica returns to its shell, and the answers of the shell.

use super::newcomers::{InStep, NewcomerLists};
use super::position::Position;
use super::request::Opening;
use crate::model::{Label, PublicKey};
use crate::node::unwritten::Part;
use crate::protocol::control::FromNode;
use crate::protocol::join::JoinRequest;
use crate::protocol::url::CoordinatorUrl;
use crate::records::Envelope;
use crate::records::kinds::RecordKey;
use crate::records::ledger::Refused;

/// An action that the shell carries out for the replica.
#[derive(Debug)]
pub enum Effect {
    /// Send a message on the control stream. Messages are sent in order. A stream that cannot take one has to close, since
    /// the replica offers its records again when the stream opens.
    Send(FromNode),
    /// The next stream opens at this position.
    SetPosition(Position),
    /// Close the stream, so that it opens again at the position of [`Effect::SetPosition`].
    Reopen,
    /// The next stream opens to one of these coordinators.
    SetUrls(Vec<CoordinatorUrl>),
    /// Write to disk. The shell answers with [`super::Replica::handle_written`]. No other write follows before the answer.
    Write(WriteRequest),
    /// Begin a conversation with a peer. The shell reports its end with [`super::Replica::handle_conversation_ended`].
    Dial {
        peer: PublicKey,
        /// The messages that are sent before the comparison.
        opening: Opening,
    },
    /// Ask one of these coordinators which block is leased to this node, and join again if it does not know this node. The answer
    /// is given to [`super::Replica::handle_leased`].
    AskLease {
        /// The coordinators.
        urls: Vec<CoordinatorUrl>,
        request: JoinRequest,
    },
    /// The coordinator answered the publication with this number.
    Answered {
        /// The number that [`super::Publication::sequence`] returned.
        sequence: u64,
        answer: Answer,
    },
    /// The stream closed, so that no open publication gets an answer any more.
    Unanswered,
}

/// The answer of the coordinator to a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// All records are stored.
    Stored,
    /// Records were refused, but an offer of them again would change nothing.
    Settled,
    /// Records were refused.
    Refused,
}

/// A request to write to disk. The parts are written in the order of the fields. If the records cannot be written, nothing
/// else is: what follows from records that are lost in a crash must not survive them. If the lists of newcomers cannot be
/// written, the position is not: the coordinator sends no membership again that is before the position.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct WriteRequest {
    /// Records for `records.jsonl`.
    pub records: Option<RecordsWrite>,
    /// The new content of `in_step.json`.
    pub in_step: Option<InStep>,
    /// The new content of `newcomers.json`.
    pub newcomers: Option<NewcomerLists>,
    /// The new content of `position.json`.
    pub position: Option<Position>,
}

/// The records that are written to `records.jsonl`.
#[derive(Debug, PartialEq, Eq)]
pub enum RecordsWrite {
    /// Append these records.
    Append(Vec<Envelope>),
    /// Replace the content with these records.
    All(Vec<Envelope>),
}

/// The answer to a [`WriteRequest`].
#[derive(Debug, Default)]
pub struct WriteOutcome {
    /// The result of each part that was tried.
    pub results: Vec<(Part, Result<(), String>)>,
    /// The number of lines that `records.jsonl` has now.
    pub record_lines: usize,
}

impl WriteOutcome {
    /// Whether `part` was tried and is on disk.
    #[must_use]
    pub(super) fn is_written(&self, part: Part) -> bool {
        self.results
            .iter()
            .any(|(tried, result)| *tried == part && result.is_ok())
    }
}

/// The result of [`super::Replica::publish`].
#[derive(Debug, Default)]
pub struct Publication {
    /// The number whose [`Effect::Answered`] tells that the coordinator has the records. None if no stream is open, or if there
    /// was nothing to publish.
    pub sequence: Option<u64>,
    /// The records that changed the own ledger.
    pub accepted: Vec<RecordKey>,
    /// The records that the own ledger refused.
    pub refused: Vec<(Envelope, Refused)>,
}

/// What changed since the last call of [`super::Replica::take_changes`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The records that changed in the ledger.
    pub records: Vec<RecordKey>,
    /// Whether this node became a duplicate, or is one no longer.
    pub duplicate: bool,
    /// Whether the records of this node are to be computed and published again, although this node did not change: another
    /// machine published records with its key.
    pub own: bool,
    /// The name that this node wants from now on, because another node has the one that it wanted.
    pub name: Option<Label>,
}

impl Changes {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_any_sort_is_no_empty_one() {
        assert!(Changes::default().is_empty());
        let record = Changes {
            records: vec![RecordKey::Mesh],
            ..Changes::default()
        };
        let duplicate = Changes {
            duplicate: true,
            ..Changes::default()
        };
        assert!(!record.is_empty() && !duplicate.is_empty());
    }
}

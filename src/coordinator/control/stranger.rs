//! A node that proved its identity and is no member: it may publish what proves that it belongs here, since this store
//! may be an emptied or restored one, and nothing else. Its time, its messages and the number of its kind are bounded:
//! anybody can make a key and open a stream.

use std::time::Duration;

use tokio::time::Instant;

use super::End;
use crate::coordinator::hub::{Hub, Position, Proof};
use crate::model::PublicKey;
use crate::wire::Envelope;
use crate::wire::control::Refusal;

/// How long a stranger may stay one.
const PATIENCE: Duration = Duration::from_secs(30);
/// Messages from a stranger at most, of any kind.
const MAX_MESSAGES: u32 = 64;
/// Bytes of them at most: a node of an earlier version offers all it holds, what proves its membership among the first.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Memberships that a stranger may show at most. Each is verified.
const MAX_MEMBERSHIPS: u32 = 8;

/// What a stranger has left.
#[derive(Debug)]
pub(super) struct Stranger {
    since: Instant,
    messages: u32,
    bytes: usize,
    memberships: u32,
    /// Why its membership is not taken yet.
    later: Option<String>,
}

impl Stranger {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            messages: 0,
            bytes: 0,
            memberships: 0,
            later: None,
        }
    }

    /// Until when it may stay.
    pub(super) fn end(&self) -> Instant {
        self.since + PATIENCE
    }

    /// Counts a message.
    pub(super) fn handle_message(&mut self, bytes: usize) -> Result<(), End> {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.messages > MAX_MESSAGES || self.bytes > MAX_BYTES {
            return Err(self.refusal());
        }
        Ok(())
    }

    /// A record of it is to be taken later.
    pub(super) fn handle_later(&mut self, why: String) {
        self.later = Some(why);
    }

    /// It has published all that it holds. Where that is to be taken later, it comes again: a stream that waits would hold
    /// the place of another.
    pub(super) fn handle_told(&self) -> Result<(), End> {
        match &self.later {
            Some(_) => Err(self.refusal()),
            None => Ok(()),
        }
    }

    /// Why it may not stay.
    pub(super) fn refusal(&self) -> End {
        match &self.later {
            Some(why) => End::Refuse(Refusal::Busy, why.clone()),
            None => not_a_member(),
        }
    }

    /// Whether a record may prove that the node belongs here. Others are not worth a verification.
    pub(super) fn may_prove(&mut self, hub: &Hub, node: &PublicKey, record: &Envelope) -> bool {
        match hub.proof(node, record) {
            Proof::None => false,
            Proof::MeshKey => true,
            Proof::Membership => {
                self.memberships += 1;
                self.memberships <= MAX_MEMBERSHIPS
            }
        }
    }
}

/// Refuses a stream to one more stranger than there may be.
pub(super) fn too_many() -> End {
    End::Refuse(
        Refusal::Busy,
        "too many nodes that are not members here are connected; try again".to_owned(),
    )
}

/// What a stranger receives in place of the store's name and revision. The name is new each time: no node takes it for
/// that of a store it knows, so it offers all that it holds.
pub(super) fn position() -> Position {
    Position {
        store: format!("{:016x}", getrandom::u64().unwrap_or_default()),
        revision: 0,
        snapshot: true,
    }
}

fn not_a_member() -> End {
    End::Refuse(
        Refusal::NotAMember,
        "this node is no member of the coordinator's mesh; join with a token: meshctl join TOKEN"
            .to_owned(),
    )
}

//! An unverified node has proved its identity and is not a member. It may publish records that prove its membership, since this
//! store may have been emptied or restored, and no other records. Anybody can make a key and open a stream, so the time and the
//! messages of an unverified node are limited, and so is the number of such nodes.

use std::time::Duration;

use tokio::time::Instant;

use super::end::End;
use crate::coordinator::hub::{Hub, Proof, StreamStart};
use crate::model::PublicKey;
use crate::os::random;
use crate::protocol::control::Refusal;
use crate::records::Envelope;

/// How long an unverified node may stay connected without becoming a member.
const UNVERIFIED_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum number of messages of any kind from one unverified node.
const MAX_MESSAGES: u32 = 64;
/// The maximum size of these messages together, in bytes. A node of an earlier version offers all records that it holds, and
/// those that prove its membership come first.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// The maximum number of memberships that one unverified node may present, since each is verified.
const MAX_MEMBERSHIPS: u32 = 8;

/// How much of its limits one unverified node has used.
#[derive(Debug)]
pub(super) struct Unverified {
    since: Instant,
    messages: u32,
    bytes: usize,
    memberships: u32,
    /// The reason why its membership is not accepted yet, if there is one.
    later: Option<String>,
}

impl Unverified {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            messages: 0,
            bytes: 0,
            memberships: 0,
            later: None,
        }
    }

    /// The time when the stream ends unless the node is a member by then.
    pub(super) fn end(&self) -> Instant {
        self.since + UNVERIFIED_TIMEOUT
    }

    /// Counts a message. Returns the end of the stream if the message exceeds a limit.
    pub(super) fn handle_message(&mut self, bytes: usize) -> Result<(), End> {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.messages > MAX_MESSAGES || self.bytes > MAX_BYTES {
            return Err(self.refusal());
        }
        Ok(())
    }

    /// Stores the reason why one of its records may be accepted only later.
    pub(super) fn handle_later(&mut self, why: String) {
        self.later = Some(why);
    }

    /// Handles that the node has published all records that it holds. If one of them may be accepted only later, the stream ends
    /// and the node tries again: a stream that waits would occupy the place of another.
    pub(super) fn handle_fully_offered(&self) -> Result<(), End> {
        match &self.later {
            Some(_) => Err(self.refusal()),
            None => Ok(()),
        }
    }

    /// The refusal that the node receives when it may not stay.
    pub(super) fn refusal(&self) -> End {
        match &self.later {
            Some(why) => End::Refuse(Refusal::Busy, why.clone()),
            None => not_a_member(),
        }
    }

    /// Whether a record may prove the node's membership. The coordinator verifies no other records of an unverified node.
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

/// The refusal when the maximum number of unverified nodes is connected.
pub(super) fn too_many() -> End {
    End::Refuse(
        Refusal::Busy,
        "too many nodes that are not members here are connected; try again".to_owned(),
    )
}

/// The start of the stream that an unverified node receives in place of the store's own. Its name is random, so no node knows a store of that
/// name, and each node offers all records that it holds.
pub(super) fn stream_start() -> StreamStart {
    StreamStart {
        store: format!("{:016x}", random::u64().unwrap_or_default()),
        revision: 0,
        snapshot: true,
    }
}

fn not_a_member() -> End {
    End::Refuse(
        Refusal::NotAMember,
        "this node is no member of the coordinator's mesh; join with a token: meshctl join -"
            .to_owned(),
    )
}

//! What became of the records that a node published.

use std::time::Duration;

use super::members::{Administered, MemberChange};
use crate::model::Label;
use crate::protocol::control::RefusedReason;
use crate::records::RecordKey;
use crate::records::ledger::Refused;

/// What became of published records.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The number of records that were new.
    pub accepted: u32,
    /// Each refused record with the reason. The key is absent if the payload does not contain one.
    pub refused: Vec<(Option<RecordKey>, PublishRefused)>,
    /// The transitions of members, which are logged.
    pub changes: Vec<MemberChange>,
    /// The records of the administrator, which have events.
    pub administered: Vec<Administered>,
    /// Whether there are events that have to be on disk before the sender receives an answer.
    pub has_events: bool,
}

impl Published {
    /// Why records were refused.
    pub fn reasons(&self) -> impl Iterator<Item = &PublishRefused> {
        self.refused.iter().map(|(_, reason)| reason)
    }
}

/// Why a published record is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishRefused {
    /// It breaks a rule of the ledger.
    #[error(transparent)]
    Ledger(#[from] Refused),
    /// A membership that did not come through a join, and that nothing else proves. The ledger has no clock, so a
    /// certificate dated back would outlive the expiry and the revocation of its token.
    #[error("the token has not admitted this node; it has to join")]
    NeverJoined,
    /// A membership that may be accepted after this time.
    #[error("{}", not_yet(.0))]
    NotYet(Duration),
    /// A membership that differs from the one held of the same node.
    #[error("a membership changes when its node joins, and its name with `meshctl rename`")]
    ChangedMembership,
    /// A node record with a block that is leased to another node, or of a node to which another block is leased.
    #[error("the address block {0} is not leased to this node")]
    Leased(String),
    /// The revocation of a token does not list this member, which the token admitted.
    #[error(
        "the node {0} has joined with the token and is not in the list of those that stay; try again"
    )]
    LeftOut(Label),
}

impl PublishRefused {
    /// What the node that published the record can do about it.
    #[must_use]
    pub fn reason(&self) -> RefusedReason {
        match self {
            Self::Ledger(Refused::Stale { .. } | Refused::Forked(_)) => RefusedReason::Stale,
            Self::Ledger(Refused::BlockTaken(_) | Refused::ForeignBlock(_)) | Self::Leased(_) => {
                RefusedReason::Block
            }
            Self::Ledger(Refused::NameTaken(_)) => RefusedReason::Name,
            _ => RefusedReason::Other,
        }
    }
}

/// The message for people that says when a refused node may try again.
fn not_yet(left: &Duration) -> String {
    format!(
        "the coordinator's store has lost recent records, and its members send these first; try again in {} s",
        left.as_secs() + 1
    )
}

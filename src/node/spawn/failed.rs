//! Why a call about spawned containers fails.

use crate::containers::control::EngineFault;
use crate::model::text;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::spawn::Refused;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::node) enum Failed {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the container engine of this node cannot do that: {0}")]
    Engine(#[from] EngineFault),
    /// The engine downloaded an image, and does not have it.
    #[error("the engine does not have the image {0} after it was downloaded; try again")]
    NoImage(String),
    /// The ledger cannot be written, so nothing is created.
    #[error("meshd cannot write which containers it creates, so it creates none: {0}")]
    Unwritten(String),
    /// The time of the container was over before the engine created it.
    #[error("the engine took longer than the container may exist; try again")]
    TooLate,
    /// The caller began too many, and did not wait for their end.
    #[error(
        "{0} starts and stops of this container run already, which are the most; try again when one of them has ended"
    )]
    TooManyChanges(usize),
    #[error("the system has no random numbers")]
    NoRandom,
    #[error("meshd is stopping; try again once it runs")]
    Stopping,
}

impl Failed {
    /// The code of the answer.
    pub(in crate::node) fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(refused) => refused.code(),
            Self::Engine(EngineFault::Rejected(404, _)) => ErrorCode::NotFound,
            Self::Engine(EngineFault::Rejected(409, _)) => ErrorCode::Conflict,
            Self::Engine(_) | Self::NoImage(_) | Self::TooLate | Self::Stopping => {
                ErrorCode::Unreachable
            }
            Self::TooManyChanges(_) => ErrorCode::Busy,
            Self::Unwritten(_) => ErrorCode::Configuration,
            Self::NoRandom => ErrorCode::Internal,
        }
    }
}

impl From<Failed> for ApiError {
    fn from(failed: Failed) -> Self {
        Self::new(failed.code(), text::message(&failed.to_string()))
    }
}

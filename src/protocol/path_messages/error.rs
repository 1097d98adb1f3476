//! Why a message was not read.

/// Why a message was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathMessageError {
    /// The message ends before its header or its body does.
    #[error("the message is too short")]
    Truncated,
    /// A later version has this type of message. This is no fault of the sender.
    #[error("messages of type {0} belong to a later version")]
    UnknownType(u8),
    /// No version has this number.
    #[error("there is no version 0")]
    Version,
    /// The parts of the message do not fill it, or bytes follow it.
    #[error("the message is longer than its parts")]
    Length,
    /// An address has a family that does not exist.
    #[error("there is no address family {0}")]
    Family(u8),
    /// A list is longer than a message may have.
    #[error("{found} entries, of {most} that a message may have")]
    TooMany {
        /// The number of entries.
        found: usize,
        /// The maximum number of entries.
        most: usize,
    },
}

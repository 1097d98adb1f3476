//! The rules that a record fulfils on its own, whatever else a ledger holds.

use std::net::IpAddr;

use crate::model::address::is_never_remote;
use crate::model::name::Label;

/// A record that breaks a rule of its own kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The payload is not the JSON of its kind.
    #[error("the payload is not a record: {0}")]
    Malformed(String),
    /// A list is longer than its bound.
    #[error("the record has {found} {what}; {most} are allowed")]
    TooMany {
        /// The contents of the list.
        what: &'static str,
        /// The length of the list.
        found: usize,
        /// The maximum length of the list.
        most: usize,
    },
    /// The id is not the one that goes with the other fields.
    #[error("the record's id is not that of its content")]
    WrongId,
    /// The address cannot be that of an instance or a tunnel.
    #[error("{0} cannot be an address here")]
    Address(IpAddr),
    /// The instance has no address or no port.
    #[error("instance {0} has no {1}")]
    Empty(Label, &'static str),
}

/// Refuses an address that is never another machine's unicast address. Addresses that are useless for another reason are left out of
/// the netmap instead: versions that refuse different records would never agree on the contents of their ledgers.
pub(super) fn check_address(address: IpAddr) -> Result<(), RecordError> {
    if is_never_remote(address) {
        return Err(RecordError::Address(address));
    }
    Ok(())
}

pub(super) fn bounded(what: &'static str, found: usize, most: usize) -> Result<(), RecordError> {
    if found > most {
        Err(RecordError::TooMany { what, found, most })
    } else {
        Ok(())
    }
}

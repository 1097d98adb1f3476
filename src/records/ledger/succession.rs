//! Decides which of two versions of a record is kept.

use std::cmp::Ordering;

use super::{Entry, Refused};
use crate::records::RecordKey;
use crate::records::kinds::{Header, Membership, Record};

/// Whether an offered record replaces `held`, which has the same key and another payload. The error says that it does not.
pub(super) fn permit(
    held: &Entry,
    key: &RecordKey,
    header: &Header,
    record: &Record,
    payload: &str,
) -> Result<(), Refused> {
    let mut order = header.version.cmp(&held.version);
    if let (Record::Membership(before), Record::Membership(offered)) = (&held.record, record) {
        match compare_proofs(before, offered)? {
            Ordering::Greater => return Ok(()),
            // Of two memberships the date decides before the version does.
            _ => order = offered.issued_at.cmp(&before.issued_at).then(order),
        }
    }
    match order {
        Ordering::Less => Err(Refused::Stale {
            key: key.clone(),
            offered: header.version,
            held: held.version,
        }),
        Ordering::Equal if payload < held.envelope.payload.as_str() => {
            Err(Refused::Forked(key.clone()))
        }
        Ordering::Equal | Ordering::Greater => Ok(()),
    }
}

/// Whether the proof of its node decides for the offered membership. If it decides against it, that is the error. A membership
/// without a proof may be one that the holder of a token signed for the node of somebody else.
fn compare_proofs(held: &Membership, offered: &Membership) -> Result<Ordering, Refused> {
    match (held.is_proven(), offered.is_proven()) {
        (false, true) => Ok(Ordering::Greater),
        (true, false) => Err(Refused::Unproven),
        (false, false) if held.token != offered.token => Err(Refused::Unproven),
        _ => Ok(Ordering::Equal),
    }
}

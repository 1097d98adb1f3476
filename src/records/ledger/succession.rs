//! Decides which of two versions of a record is kept.

use std::cmp::Ordering;

use super::{Entry, Refused};
use crate::records::RecordKey;
use crate::records::kinds::{Header, Membership, Record};

/// Decides whether an offered record replaces `held`, which has the same key and another payload. The error is the reason if it does
/// not.
pub(super) fn permit(
    held: &Entry,
    key: &RecordKey,
    header: &Header,
    record: &Record,
    payload: &str,
) -> Result<(), Refused> {
    let mut order = header.version.cmp(&held.version);
    if let (Record::Membership(before), Record::Membership(offered)) = (&held.record, record) {
        if is_first_proof(before, offered)? {
            return Ok(());
        }
        // The date of a membership decides before its version does.
        order = offered.issued_at.cmp(&before.issued_at).then(order);
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

/// Whether only the offered membership has a proof of the node, and so replaces the held one whatever its date. The error is the
/// reason if it lacks a proof that it needs: the holder of any token can sign a membership of another node, but without a proof.
fn is_first_proof(held: &Membership, offered: &Membership) -> Result<bool, Refused> {
    match (held.is_proven(), offered.is_proven()) {
        (false, true) => Ok(true),
        (true, false) => Err(Refused::Unproven),
        (false, false) if held.token != offered.token => Err(Refused::Unproven),
        _ => Ok(false),
    }
}

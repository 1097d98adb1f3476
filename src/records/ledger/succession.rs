//! Decides which of two versions of a record is kept.

use std::cmp::Ordering;

use super::{Entry, Refused};
use crate::records::RecordKey;
use crate::records::envelope::Authentic;
use crate::records::kinds::{Header, Record};

/// Decides whether an offered record replaces `held`, which has the same key and another payload. The error is the reason if it does
/// not.
pub(super) fn permit(
    held: &Entry,
    key: &RecordKey,
    header: &Header,
    record: &Record,
    envelope: &Authentic,
) -> Result<(), Refused> {
    let mut order = header.version.cmp(&held.version);
    if let (Record::Membership(before), Record::Membership(offered)) = (&held.record, record) {
        let is_other_token = before.token != offered.token;
        if is_first_proof(held.is_proven, envelope.is_proven(), is_other_token)? {
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
        Ordering::Equal if envelope.payload < held.envelope.payload => {
            Err(Refused::Forked(key.clone()))
        }
        Ordering::Equal | Ordering::Greater => Ok(()),
    }
}

/// Whether only the `offered` membership has a proof of the node and the `held` one has none. It then replaces the held one whatever its
/// date. The error is the reason if it lacks a proof that it needs: the holder of any token can sign a membership of another node, but without a proof.
fn is_first_proof(held: bool, offered: bool, is_other_token: bool) -> Result<bool, Refused> {
    match (held, offered) {
        (false, true) => Ok(true),
        (true, false) => Err(Refused::Unproven),
        (false, false) if is_other_token => Err(Refused::Unproven),
        _ => Ok(false),
    }
}

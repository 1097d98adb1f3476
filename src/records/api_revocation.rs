//! The revocation of an API token. API tokens themselves are no records: the possession of a token is the proof of its rights.
//!
//! A revocation is a record that the mesh key signed, whose kind is [`KIND`] and whose id is that of the token. A ledger holds it under
//! [`RecordKey::Unknown`], as versions without API tokens do. So all versions hold the same records in the same order, and their
//! digests agree. No member can revoke a token: a ledger appends the signer to the kind of a record that the mesh key did not sign.

use serde::Serialize;

use super::envelope::Envelope;
use super::key::RecordKey;
use super::ledger::Table;
use crate::model::{PublicKey, SigningKey};

/// The kind of the records.
const KIND: &str = "api_revocation";

#[derive(Serialize)]
struct Payload<'a> {
    kind: &'a str,
    id: PublicKey,
    version: u64,
}

/// Signs the revocation of `token` with the mesh key. All revocations of a token are one text, so that ledgers agree whichever they
/// received first.
#[must_use]
pub fn seal(token: PublicKey, mesh_key: &SigningKey) -> Envelope {
    let payload = Payload {
        kind: KIND,
        id: token,
        version: 1,
    };
    let payload = serde_json::to_string(&payload).expect("it is a map with text keys");
    Envelope::seal_payload(payload, mesh_key)
}

/// Whether `table` holds the revocation of `token`.
#[must_use]
pub fn is_revoked(table: &Table, token: &PublicKey) -> bool {
    table.entry(&key_of(token)).is_some()
}

/// Returns the token that the record with this key in a ledger revokes. None if the record is another one.
#[must_use]
pub fn revoked_by(key: &RecordKey) -> Option<PublicKey> {
    let token = key.id().parse().ok()?;
    (*key == key_of(&token)).then_some(token)
}

fn key_of(token: &PublicKey) -> RecordKey {
    RecordKey::parse(KIND, &token.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Ledger;
    use crate::records::ledger::Applied;
    use crate::testbed::records as build;

    #[test]
    fn the_mesh_key_revokes_a_token_and_nobody_else_does() {
        let mesh_key = build::key(1);
        let mut ledger = Ledger::new(mesh_key.public());
        let (token, other) = (build::id(7), build::id(8));
        assert!(ledger.apply(seal(token, &build::key(2))).is_err());
        assert!(!is_revoked(&ledger, &token));
        let applied = ledger.apply(seal(token, &mesh_key));
        let Ok(Applied::Changed(key)) = applied else {
            panic!("{applied:?}");
        };
        assert_eq!(revoked_by(&key), Some(token));
        assert!(is_revoked(&ledger, &token) && !is_revoked(&ledger, &other));
        assert_eq!(ledger.apply(seal(token, &mesh_key)), Ok(Applied::Unchanged));
    }

    #[test]
    fn the_key_of_another_record_revokes_no_token() {
        let id = build::id(7).to_string();
        let capitals = id.to_uppercase();
        for (kind, id) in [
            ("token", id.as_str()),
            ("weather", id.as_str()),
            (KIND, "7"),
            (KIND, capitals.as_str()),
        ] {
            assert_eq!(revoked_by(&RecordKey::parse(kind, id)), None, "{kind} {id}");
        }
        let of_member = format!("{KIND} of {}", build::id(3));
        assert_eq!(revoked_by(&RecordKey::parse(&of_member, &id)), None);
    }
}

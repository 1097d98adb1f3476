//! The kind of record that carries the policy of the mesh.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::MESH_ID;
use super::members::Lenient;
use crate::policy::{Policy, PolicyError};

/// Pairs of characters that a record has in exchange for each other. The first of each pair is frequent in policies, and JSON writes it
/// with two bytes. The second is rare, and JSON writes it with one. Without the exchange, rules with the maximum length of a policy would
/// be longer in JSON than [`MAX_PAYLOAD`](crate::records::envelope::MAX_PAYLOAD), which earlier versions enforce too.
const EXCHANGED: [(char, char); 2] = [('"', '\u{7f}'), ('\n', '`')];

/// The policy of the mesh. There is one such record; its id is [`MESH_ID`]. A ledger holds it whatever its text is, so that ledgers of
/// all versions hold the same records. Each node decides for itself which policy is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshPolicy {
    /// Always [`MESH_ID`].
    pub id: String,
    /// The version, which grows with each change.
    pub version: u64,
    /// The text as the administrator wrote it; none if this version does not understand the form of the record.
    #[serde(
        default,
        serialize_with = "exchanged",
        deserialize_with = "known_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub text: Option<String>,
    /// The text of another policy that is tried: nodes list what it would deny, and let it pass.
    #[serde(
        default,
        serialize_with = "exchanged",
        deserialize_with = "known_text",
        skip_serializing_if = "Option::is_none"
    )]
    pub tried: Option<String>,
}

/// Why this version does not understand a record of the policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotUnderstood {
    #[error("its record has a form of a later version")]
    Form,
    #[error(transparent)]
    Text(#[from] PolicyError),
}

impl MeshPolicy {
    /// A policy with this text.
    #[must_use]
    pub fn new(version: u64, text: &str) -> Self {
        Self {
            id: MESH_ID.to_owned(),
            version,
            text: Some(text.to_owned()),
            tried: None,
        }
    }

    /// The same policy, and another one that is tried beside it.
    #[must_use]
    pub fn trying(self, tried: &str) -> Self {
        Self {
            tried: Some(tried.to_owned()),
            ..self
        }
    }

    /// Parses the text.
    ///
    /// # Errors
    /// This version does not understand the form of the record or the text.
    pub fn policy(&self) -> Result<Policy, NotUnderstood> {
        let text = self.text.as_deref().ok_or(NotUnderstood::Form)?;
        Ok(Policy::parse(text)?)
    }
}

fn exchange(text: &str) -> String {
    let other = |c: char| {
        let pair = EXCHANGED.iter().find(|(a, b)| c == *a || c == *b);
        pair.map_or(c, |(a, b)| if c == *a { *b } else { *a })
    };
    text.chars().map(other).collect()
}

#[expect(clippy::ref_option, reason = "serde passes a reference")]
fn exchanged<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_deref().map(exchange).serialize(serializer)
}

fn known_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Lenient::<String>::deserialize(deserializer)? {
        Lenient::Known(text) => Some(exchange(&text)),
        Lenient::Other(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::MAX_POLICY;
    use crate::records::envelope::MAX_PAYLOAD;
    use crate::records::kinds::{Header, Record, RecordKey};

    fn read(payload: &str) -> (Header, Record) {
        Record::parse(payload).expect("a ledger holds it")
    }

    #[test]
    fn the_longest_text_of_rules_fits_into_a_payload_and_comes_back() {
        let rule = "[[allow]]\nfrom = [\"shop/web\"]\nto = [\"db:5432\"]\n";
        let mut text = rule.repeat(MAX_POLICY / rule.len() + 1);
        text.truncate(MAX_POLICY);
        let record = Record::Policy(MeshPolicy::new(u64::MAX, &text));
        let payload = record.payload();
        assert!(payload.len() <= MAX_PAYLOAD, "{}", payload.len());
        assert_eq!(read(&payload).1, record);
    }

    #[test]
    fn every_text_comes_back_as_it_was() {
        for text in ["", "a = 'b'\r\n\t# \u{e4}\\", "`\u{7f}\"\n`", "~^|"] {
            let record = Record::Policy(MeshPolicy::new(1, text));
            assert_eq!(read(&record.payload()).1, record, "{text:?}");
            let trying = MeshPolicy::new(1, "a").trying(text);
            assert_eq!(trying.tried.as_deref(), Some(text));
            let record = Record::Policy(trying);
            assert_eq!(read(&record.payload()).1, record, "{text:?}");
        }
    }

    /// Earlier versions know no policies and hold each of these records.
    #[test]
    fn a_record_in_a_form_of_a_later_version_is_held_without_a_text() {
        let record = |fields: &str| {
            read(&format!(
                r#"{{"kind":"policy","id":"mesh","version":7{fields}}}"#
            ))
        };
        let without = Record::Policy(MeshPolicy {
            text: None,
            ..MeshPolicy::new(7, "")
        });
        for odd in ["", r#","text":5"#, r#","text":null"#, r#","text":{"a":[]}"#] {
            let (header, record) = record(odd);
            assert_eq!((&header.key, header.version), (&RecordKey::Policy, 7));
            assert_eq!(record, without, "{odd}");
        }
        let (header, twice) = record(r#","text":"a","text":"b""#);
        assert_eq!((header.key, twice), (RecordKey::Policy, Record::Unknown));
    }

    #[test]
    fn a_policy_with_another_id_is_a_record_of_a_kind_that_is_not_known() {
        let (header, record) = read(r#"{"kind":"policy","id":"other","version":1,"text":"a"}"#);
        assert_eq!(record, Record::Unknown);
        assert_eq!((header.key.kind(), &*header.key.id()), ("policy", "other"));
    }
}

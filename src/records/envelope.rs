//! The signed envelope: an opaque payload, the signer, and the signature over the exact bytes of the payload.
//!
//! No node encodes a payload again, so the versions need no canonical form, and a node forwards fields of later versions
//! unchanged. Signatures are Ed25519 (RFC 8032) over a context prefix and the payload.

use serde::{Deserialize, Serialize};

use super::key::RecordKey;
use super::kinds::{Header, Record, RecordError};
use crate::model::key::signature_text;
use crate::model::{PublicKey, SigningKey};

/// The maximum length of a payload, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The purpose of a signature. A signature for one purpose is not valid for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A record in an envelope.
    Record,
    /// A node's proof, at its join, that it holds the identity it claims.
    Join,
    /// A node's answer to the challenge of a control stream.
    Control,
    /// A node's proof that another machine has its keys.
    DuplicateProof,
    /// A node's proof towards another node.
    Peer,
    /// A node's answer to the challenge of a relay, by a stream.
    Relay,
    /// A node's call to another node, over a coordinator.
    Call,
    /// The certificate in an API token.
    ApiToken,
}

impl Purpose {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Record => b"meshd record v1\0",
            Self::Join => b"meshd join v1\0",
            Self::Control => b"meshd control v1\0",
            Self::DuplicateProof => b"meshd copy v1\0",
            Self::Peer => b"meshd peer v1\0",
            Self::Relay => b"meshd relay v1\0",
            Self::Call => b"meshd call v1\0",
            Self::ApiToken => b"meshd api token v1\0",
        }
    }
}

/// An Ed25519 signature, written in base64 without padding.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature(#[serde(with = "signature_text")] pub [u8; 64]);

impl Signature {
    /// Signs `message` for `purpose`.
    #[must_use]
    pub fn make(key: &SigningKey, purpose: Purpose, message: &[u8]) -> Self {
        Self(key.sign(&[purpose.prefix(), message].concat()))
    }

    /// Whether `signer` signed `message` for `purpose`.
    #[must_use]
    pub fn holds(&self, signer: &PublicKey, purpose: Purpose, message: &[u8]) -> bool {
        signer.verifies(&[purpose.prefix(), message].concat(), &self.0)
    }
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&signature_text::encode(&self.0))
    }
}

/// A signed payload. Its signature is not verified until [`Envelope::is_authentic`] or [`Authentic::verify`] does that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The JSON text of a record.
    pub payload: String,
    /// The key that signed the payload.
    pub signer: PublicKey,
    /// The signature over the bytes of the payload.
    pub signature: Signature,
}

impl Envelope {
    /// Signs a record.
    #[must_use]
    pub fn seal(record: &Record, key: &SigningKey) -> Self {
        Self::seal_payload(record.payload(), key)
    }

    /// Signs a payload, which need not be a valid record.
    #[must_use]
    pub fn seal_payload(payload: String, key: &SigningKey) -> Self {
        let signature = Signature::make(key, Purpose::Record, payload.as_bytes());
        Self {
            payload,
            signer: key.public(),
            signature,
        }
    }

    /// Parses the fields that every payload has. They are not verified.
    #[must_use]
    pub fn header(&self) -> Option<Header> {
        if self.payload.len() > MAX_PAYLOAD {
            return None;
        }
        serde_json::from_str(&self.payload).ok()
    }

    /// Returns the key that the payload claims. It is not verified.
    #[must_use]
    pub fn key(&self) -> Option<RecordKey> {
        self.header().map(|header| header.key)
    }

    /// Whether the signature is the signer's over this very payload.
    #[must_use]
    pub fn is_authentic(&self) -> bool {
        self.payload.len() <= MAX_PAYLOAD
            && self
                .signature
                .holds(&self.signer, Purpose::Record, self.payload.as_bytes())
    }
}

impl AsRef<Envelope> for Envelope {
    fn as_ref(&self) -> &Envelope {
        self
    }
}

/// An envelope whose signature was verified, with its parsed payload. A ledger accepts it without another verification and without
/// parsing it again. These take longer than all else that a ledger does, so the caller can do them before it locks the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentic {
    envelope: Envelope,
    parsed: Result<(Header, Record), RecordError>,
    is_proven: bool,
}

impl Authentic {
    /// Verifies the signature; returns none if it is not the signer's. A payload that is not a valid record is authentic too: the
    /// ledger refuses it with the reason.
    #[must_use]
    pub fn verify(envelope: Envelope) -> Option<Self> {
        if !envelope.is_authentic() {
            return None;
        }
        let parsed = Record::parse(&envelope.payload);
        let is_proven = matches!(&parsed, Ok((_, Record::Membership(m))) if m.is_proven());
        Some(Self {
            envelope,
            parsed,
            is_proven,
        })
    }

    /// Whether the payload is a membership with a valid proof of its node. The proof is a signature too, so it was verified together
    /// with that of the envelope.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// Returns the parsed payload.
    ///
    /// # Errors
    /// The payload is not a valid record.
    pub fn parsed(&self) -> Result<(&Header, &Record), RecordError> {
        match &self.parsed {
            Ok((header, record)) => Ok((header, record)),
            Err(error) => Err(error.clone()),
        }
    }

    /// Returns the envelope and its parsed payload.
    ///
    /// # Errors
    /// The payload is not a valid record.
    pub fn into_parts(self) -> Result<(Envelope, Header, Record), RecordError> {
        let (header, record) = self.parsed?;
        Ok((self.envelope, header, record))
    }

    /// Returns the envelope alone.
    #[must_use]
    pub fn into_envelope(self) -> Envelope {
        self.envelope
    }
}

impl AsRef<Envelope> for Authentic {
    fn as_ref(&self) -> &Envelope {
        &self.envelope
    }
}

impl std::ops::Deref for Authentic {
    type Target = Envelope;

    fn deref(&self) -> &Envelope {
        &self.envelope
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_is_authentic_until_one_byte_changes() {
        let key = SigningKey::from_seed(&[5; 32]);
        let envelope = Envelope::seal_payload("{\"kind\":\"x\"}".into(), &key);
        assert!(envelope.is_authentic());
        let travelled: Envelope =
            serde_json::from_str(&serde_json::to_string(&envelope).expect("plain data"))
                .expect("just written");
        assert_eq!(travelled, envelope);
        let mut changed = envelope.clone();
        changed.payload = changed.payload.replace('x', "y");
        assert!(!changed.is_authentic());
        let mut other = envelope;
        other.signer = SigningKey::from_seed(&[6; 32]).public();
        assert!(!other.is_authentic());
    }

    #[test]
    fn a_signature_for_one_purpose_is_none_for_another() {
        let key = SigningKey::from_seed(&[5; 32]);
        let signature = Signature::make(&key, Purpose::Control, b"nonce");
        assert!(signature.holds(&key.public(), Purpose::Control, b"nonce"));
        assert!(!signature.holds(&key.public(), Purpose::Record, b"nonce"));
    }

    #[test]
    fn a_payload_over_the_bound_is_never_authentic_and_has_no_header() {
        let key = SigningKey::from_seed(&[5; 32]);
        let text = r#"{"kind":"weather","id":"x","version":1}"#;
        for (bytes, is_read) in [(MAX_PAYLOAD, true), (MAX_PAYLOAD + 1, false)] {
            let spaces = " ".repeat(bytes - text.len());
            let envelope = Envelope::seal_payload(format!("{text}{spaces}"), &key);
            assert_eq!(envelope.payload.len(), bytes);
            assert_eq!(envelope.is_authentic(), is_read);
            assert_eq!(envelope.header().is_some(), is_read);
        }
    }

    #[test]
    fn a_signature_is_shown_as_it_is_written() {
        let signature = Signature([7; 64]);
        let text = serde_json::to_string(&signature).expect("plain data");
        assert_eq!(format!("\"{signature:?}\""), text);
    }
}

//! The contents of an API token, and its text.
//!
//! A token is `mesha1_` and the base64url form (RFC 4648 section 5, no padding) of: 32 bytes SHA-256 of the coordinator's public key
//! (SPKI), 64 bytes signature, the certificate as JSON, and the first 4 bytes of SHA-256 over all of this. The signature is the mesh
//! key's, over the hash and the certificate. With the last bytes, a token that was cut or mistyped differs from one that is refused.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::scope::Scope;
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey, SigningKey};
use crate::protocol::token::{SpkiPin, decode_checked, encode_checked};
use crate::records::envelope::{Purpose, Signature};

/// The prefix of every token of this form.
pub const PREFIX: &str = "mesha1_";
/// The maximum number of nodes in a certificate.
pub const MAX_NODES: usize = 64;
/// The maximum number of selectors of callers in a certificate.
pub const MAX_BINDINGS: usize = 16;
/// The maximum number of scopes in a certificate.
const MAX_SCOPES: usize = 32;
/// The maximum length of a token, in bytes. It fits into the head of a request, beside other headers.
const MAX_TEXT: usize = 8 * 1024;

/// The contents of a token. A field that a later version adds may restrict the token, so a version that does not know the field refuses
/// the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiCertificate {
    /// The name of the token in logs and in its revocation: 32 random bytes, in the form of a key.
    pub id: PublicKey,
    /// The name of the token for people.
    pub name: Label,
    /// The calls that it permits.
    pub scopes: Vec<Scope>,
    /// The nodes whose API it permits. If there are none, it permits that of all nodes and of the coordinators.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Label>,
    /// The callers that may use it: selectors of the policy, which the address of the caller has to match. If there are none, any
    /// caller may use it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// The time at which the token was made.
    pub created_at: UnixSeconds,
    /// From this time on it permits nothing.
    pub expires_at: UnixSeconds,
}

/// An API token. `Debug` shows no more than its id.
#[derive(Clone)]
pub struct ApiToken {
    certificate: ApiCertificate,
    pin: SpkiPin,
    signature: Signature,
    /// The certificate as it was signed.
    payload: String,
}

/// The reason why a text is not a token that this version understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiTokenError {
    /// The text does not begin like a token.
    #[error(
        "this is not an API token: one begins with `mesha1_`; give the whole word that `meshctl api-token create` printed"
    )]
    NotAToken,
    /// The text begins like a token, and was cut or mistyped.
    #[error(
        "the API token is garbled (cut off or mistyped); give the whole word that `meshctl api-token create` printed"
    )]
    Garbled,
    /// The certificate has a form of a later version.
    #[error(
        "this version does not understand what the API token permits; upgrade meshd and mesh-coordinator, or make another token"
    )]
    NotUnderstood,
}

impl ApiToken {
    /// Signs a token with the mesh key. `pin` is the hash of the TLS key of the coordinators.
    #[must_use]
    pub fn sign(certificate: ApiCertificate, pin: SpkiPin, mesh_key: &SigningKey) -> Self {
        let payload = serde_json::to_string(&certificate).expect("it is a map with text keys");
        let message = message_of(&pin, &payload);
        Self {
            signature: Signature::make(mesh_key, Purpose::ApiToken, &message),
            certificate,
            pin,
            payload,
        }
    }

    /// Parses a token. Its signature is not verified.
    ///
    /// # Errors
    /// The text is no token, or it is damaged, or of a later version.
    pub fn parse(text: &str) -> Result<Self, ApiTokenError> {
        let encoded = text
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(ApiTokenError::NotAToken)?;
        if encoded.len() > MAX_TEXT {
            return Err(ApiTokenError::Garbled);
        }
        let body = decode_checked(encoded).ok_or(ApiTokenError::Garbled)?;
        let (pin, signature, payload) = split(&body).ok_or(ApiTokenError::Garbled)?;
        let certificate: ApiCertificate =
            serde_json::from_str(payload).map_err(|_| ApiTokenError::NotUnderstood)?;
        let is_bounded = certificate.scopes.len() <= MAX_SCOPES
            && certificate.nodes.len() <= MAX_NODES
            && certificate.from.len() <= MAX_BINDINGS;
        if !is_bounded {
            return Err(ApiTokenError::NotUnderstood);
        }
        Ok(Self {
            certificate,
            pin,
            signature,
            payload: payload.to_owned(),
        })
    }

    /// Whether the token was made with the key of this mesh. This verifies a signature.
    #[must_use]
    pub fn is_of(&self, mesh_key: &PublicKey) -> bool {
        let message = message_of(&self.pin, &self.payload);
        self.signature.holds(mesh_key, Purpose::ApiToken, &message)
    }

    /// The contents of the token. They are authentic only if the token is of the mesh ([`ApiToken::is_of`]).
    #[must_use]
    pub fn certificate(&self) -> &ApiCertificate {
        &self.certificate
    }

    /// The hash of the TLS key of the coordinators.
    #[must_use]
    pub fn pin(&self) -> SpkiPin {
        self.pin
    }

    /// The token as text. It is a secret.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        let payload = self.payload.as_bytes();
        let body = Zeroizing::new([&self.pin.0[..], &self.signature.0[..], payload].concat());
        Zeroizing::new(format!("{PREFIX}{}", *encode_checked(&body)))
    }
}

impl fmt::Debug for ApiToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiToken({})", self.certificate.id.short())
    }
}

fn split(body: &[u8]) -> Option<(SpkiPin, Signature, &str)> {
    let (pin, rest) = body.split_first_chunk::<32>()?;
    let (signature, payload) = rest.split_first_chunk::<64>()?;
    let payload = std::str::from_utf8(payload).ok()?;
    Some((SpkiPin(*pin), Signature(*signature), payload))
}

/// The bytes that are signed.
fn message_of(pin: &SpkiPin, payload: &str) -> Vec<u8> {
    [&pin.0[..], payload.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::protocol::token::CHECK;
    use crate::testbed::records as build;

    const PIN: SpkiPin = SpkiPin([9; 32]);

    fn certificate() -> ApiCertificate {
        ApiCertificate {
            id: PublicKey([7; 32]),
            name: build::label("ci"),
            scopes: vec![Scope::StatusRead, Scope::Drain],
            nodes: vec![build::label("web-1")],
            from: vec!["ci/runner".to_owned()],
            created_at: UnixSeconds(100),
            expires_at: UnixSeconds(200),
        }
    }

    /// The text of a token whose certificate is `payload`, signed with the mesh key.
    fn text_of(payload: &str) -> String {
        let token = ApiToken {
            certificate: certificate(),
            pin: PIN,
            signature: Signature::make(
                &build::key(1),
                Purpose::ApiToken,
                &message_of(&PIN, payload),
            ),
            payload: payload.to_owned(),
        };
        token.text().to_string()
    }

    #[test]
    fn a_token_is_read_as_it_was_made_and_is_of_its_mesh_alone() {
        let token = ApiToken::sign(certificate(), PIN, &build::key(1));
        let read = ApiToken::parse(&format!(" {}\n", *token.text())).expect("a token");
        assert_eq!(read.certificate(), &certificate());
        assert_eq!(read.pin(), PIN);
        assert_eq!(read.text(), token.text());
        assert!(read.is_of(&build::id(1)));
        assert!(!read.is_of(&build::id(2)));
        assert!(token.text().len() < 700, "{}", token.text().len());
    }

    #[test]
    fn no_byte_of_a_token_can_be_changed() {
        let token = ApiToken::sign(certificate(), PIN, &build::key(1));
        let text = token.text();
        let encoded = text.strip_prefix(PREFIX).expect("a token");
        let bytes = URL_SAFE_NO_PAD.decode(encoded).expect("base64");
        let body = bytes.len() - CHECK;
        for at in 0..body {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let garbled = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&changed));
            assert!(ApiToken::parse(&garbled).is_err(), "byte {at}");
            // Somebody who changes a token on purpose corrects the check too.
            let check = Sha256::digest(&changed[..body]);
            changed[body..].copy_from_slice(&check[..CHECK]);
            let forged = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&changed));
            let is_accepted = ApiToken::parse(&forged).is_ok_and(|t| t.is_of(&build::id(1)));
            assert!(!is_accepted, "byte {at}");
        }
    }

    #[test]
    fn other_words_and_damaged_tokens_are_told_apart() {
        let text = ApiToken::sign(certificate(), PIN, &build::key(1))
            .text()
            .to_string();
        let parse = |text: &str| ApiToken::parse(text).map(drop);
        for other in ["", "mesh1_x", "Bearer", "MESHA1_AAAA"] {
            assert_eq!(parse(other), Err(ApiTokenError::NotAToken), "{other}");
        }
        let long = format!("{PREFIX}{}", "A".repeat(MAX_TEXT + 1));
        for damaged in [
            PREFIX,
            &text[..text.len() - 1],
            &text[..80],
            &long,
            "mesha1_%",
        ] {
            assert_eq!(parse(damaged), Err(ApiTokenError::Garbled), "{damaged}");
        }
    }

    #[test]
    fn a_certificate_that_this_version_does_not_understand_permits_nothing() {
        let payload = serde_json::to_string(&certificate()).expect("plain data");
        assert!(ApiToken::parse(&text_of(&payload)).is_ok());
        let many = serde_json::to_string(&vec!["tag:a"; MAX_BINDINGS + 1]).expect("plain data");
        let bound = payload.replace(r#"["ci/runner"]"#, &many);
        let later = payload.replacen('{', r#"{"projects":["shop"],"#, 1);
        let twice = payload.replacen('{', r#"{"expires_at":999,"#, 1);
        for odd in ["", "{}", "[]", &bound, &later, &twice] {
            let parsed = ApiToken::parse(&text_of(odd)).map(drop);
            assert_eq!(parsed, Err(ApiTokenError::NotUnderstood), "{odd}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_token_unless_the_mesh_key_signed_them(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            payload in ".{0,200}",
        ) {
            let garbage = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&bytes));
            prop_assert!(ApiToken::parse(&garbage).is_err());
            let check = Sha256::digest(&bytes);
            let whole = [bytes.as_slice(), &check[..CHECK]].concat();
            let forged = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&whole));
            prop_assert!(!ApiToken::parse(&forged).is_ok_and(|token| token.is_of(&build::id(1))));
            prop_assert!(ApiToken::parse(&payload).is_err());
            prop_assert!(ApiToken::parse(&text_of(&payload)).is_err());
        }
    }

    #[test]
    fn a_token_that_is_logged_shows_its_id_and_not_itself() {
        let token = ApiToken::sign(certificate(), PIN, &build::key(1));
        assert_eq!(format!("{token:?}"), "ApiToken(070707070707)");
    }
}

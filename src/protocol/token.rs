//! The join token: one printable word that admits one or more nodes.
//!
//! A token is `mesh1_` and the base64url form (RFC 4648 section 5, no padding) of: 32 bytes SHA-256 of the
//! coordinator's public key (SPKI), 32 bytes mesh key, 32 bytes seed of the token's own key, one byte with the number
//! of URLs, each URL after one byte with its length, and the first 4 bytes of SHA-256 over all of this. With these last
//! bytes, a token that was cut or mistyped differs from one that a coordinator refuses.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::url::CoordinatorUrl;
use crate::model::{PublicKey, SigningKey};

/// The prefix of every token of this form.
pub const PREFIX: &str = "mesh1_";
/// The maximum number of URLs in a token.
pub const MAX_URLS: usize = 8;

/// SHA-256 of a TLS server's SubjectPublicKeyInfo (RFC 7469 section 2.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct SpkiPin(pub [u8; 32]);

impl SpkiPin {
    /// The hash of a public key, in the form that certificates have (SubjectPublicKeyInfo, RFC 5280 section 4.1).
    #[must_use]
    pub fn of(public_key_info: &[u8]) -> Self {
        Self(Sha256::digest(public_key_info).into())
    }
}

impl fmt::Debug for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// The contents of a join token. `Debug` does not show the key's seed.
#[derive(Debug, Clone)]
pub struct JoinToken {
    /// The URLs of coordinators, which are tried in this order.
    pub urls: Vec<CoordinatorUrl>,
    /// The hash of the TLS key of these coordinators.
    pub pin: SpkiPin,
    /// The public key of the mesh.
    pub mesh_key: PublicKey,
    /// The key that signs the membership certificate. It never leaves the node that joins.
    pub key: SigningKey,
}

/// The reason why a text is not a usable token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text does not begin like a token.
    #[error(
        "this is not a join token: one begins with `mesh1_`; copy the whole word that `meshctl token create` printed"
    )]
    NotAToken,
    /// The text begins like a token, and was cut or mistyped.
    #[error(
        "the join token is garbled (cut off or mistyped); copy the whole word that `meshctl token create` printed"
    )]
    Garbled,
}

impl JoinToken {
    /// Parses a token.
    ///
    /// # Errors
    /// The text is no token, or it is a damaged one.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        // The size of the longest possible token: the fixed fields, and the maximum number of URLs of the maximum length.
        if encoded.len() > (101 + MAX_URLS * 256) * 4 / 3 + 4 {
            return Err(TokenError::Garbled);
        }
        let body = decode_checked(encoded).ok_or(TokenError::Garbled)?;
        Self::decode(&body).ok_or(TokenError::Garbled)
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (pin, rest) = body.split_first_chunk::<32>()?;
        let (mesh_key, rest) = rest.split_first_chunk::<32>()?;
        let (seed, rest) = rest.split_first_chunk::<32>()?;
        let (&count, mut rest) = rest.split_first()?;
        let mut urls = Vec::new();
        for _ in 0..count {
            let (&length, tail) = rest.split_first()?;
            let (url, tail) = tail.split_at_checked(usize::from(length))?;
            urls.push(std::str::from_utf8(url).ok()?.parse().ok()?);
            rest = tail;
        }
        (rest.is_empty() && !urls.is_empty() && urls.len() <= MAX_URLS).then(|| Self {
            urls,
            pin: SpkiPin(*pin),
            mesh_key: PublicKey(*mesh_key),
            key: SigningKey::from_seed(seed),
        })
    }
}

impl fmt::Display for JoinToken {
    /// The text of the token, including its secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = Vec::with_capacity(256);
        body.extend_from_slice(&self.pin.0);
        body.extend_from_slice(&self.mesh_key.0);
        body.extend_from_slice(self.key.seed().as_slice());
        let urls: Vec<String> = self
            .urls
            .iter()
            .take(MAX_URLS)
            .map(ToString::to_string)
            .collect();
        body.push(u8::try_from(urls.len()).unwrap_or(u8::MAX));
        for url in urls {
            // A parsed host has at most 255 bytes. The check below refuses a URL that is too long with its scheme and port.
            body.push(u8::try_from(url.len()).map_err(|_| fmt::Error)?);
            body.extend_from_slice(url.as_bytes());
        }
        write!(f, "{PREFIX}{}", *encode_checked(&body))
    }
}

/// The number of bytes at the end of a token that show whether it was cut or mistyped.
pub(super) const CHECK: usize = 4;

/// Returns the base64url form of `body` and of its check, which is the beginning of its SHA-256.
pub(super) fn encode_checked(body: &[u8]) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(body.len() + CHECK));
    bytes.extend_from_slice(body);
    bytes.extend(Sha256::digest(body).iter().take(CHECK));
    Zeroizing::new(URL_SAFE_NO_PAD.encode(&*bytes))
}

/// Returns the body of a text that [`encode_checked`] made. None if the text was cut or mistyped.
pub(super) fn decode_checked(encoded: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).ok()?);
    let (body, check) = bytes.split_last_chunk::<CHECK>()?;
    if Sha256::digest(body).get(..CHECK)? != check {
        return None;
    }
    let length = body.len();
    bytes.truncate(length);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> JoinToken {
        JoinToken {
            urls: vec![
                "https://192.0.2.1:7443".parse().expect("a literal"),
                "https://[2001:db8::1]:7443".parse().expect("a literal"),
            ],
            pin: SpkiPin([1; 32]),
            mesh_key: PublicKey([2; 32]),
            key: SigningKey::from_seed(&[3; 32]),
        }
    }

    #[test]
    fn a_token_survives_its_text_form() {
        let parsed = JoinToken::parse(&format!(" {}\n", token())).expect("just written");
        assert_eq!(
            (parsed.urls, parsed.pin, parsed.mesh_key),
            (token().urls, token().pin, token().mesh_key)
        );
        assert_eq!(parsed.key.public(), token().key.public());
    }

    #[test]
    fn a_text_that_is_no_token_is_told_from_a_damaged_one() {
        assert_eq!(
            JoinToken::parse("hello").map(drop),
            Err(TokenError::NotAToken)
        );
        assert_eq!(
            JoinToken::parse("mesh1_").map(drop),
            Err(TokenError::Garbled)
        );
        let word = token().to_string();
        for end in PREFIX.len()..word.len() {
            assert_eq!(
                JoinToken::parse(&word[..end]).map(drop),
                Err(TokenError::Garbled),
                "{end}"
            );
        }
    }

    #[test]
    fn debug_output_never_shows_the_seed() {
        let shown = format!("{:?}", token());
        assert!(!shown.contains("3, 3, 3") && !shown.contains("030303"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in "(mesh1_)?[ -~]{0,300}") {
            let _ = JoinToken::parse(&text);
        }

        #[test]
        fn one_changed_character_is_always_noticed(at in 6usize..180, to in "[A-Za-z0-9_-]") {
            let word = token().to_string();
            prop_assume!(at < word.len() - 1 && word[at..=at] != to);
            let changed = format!("{}{to}{}", &word[..at], &word[at + 1..]);
            prop_assert!(JoinToken::parse(&changed).is_err());
        }
    }
}

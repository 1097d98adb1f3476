//! A secret of 32 bytes that only one node can read, although everybody has its sealed form.
//!
//! It is sealed to the identity key of the node, which never changes: a new key for each secret agrees with the identity key on a key
//! (X25519, RFC 7748), with which ChaCha20-Poly1305 (RFC 8439) encrypts. One key pair for signatures and for this exchange is safe (Thormarker,
//! "On using the same key pair for Ed25519 and an X25519 based KEM", 2021). Pure: the caller has the random numbers.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chacha20poly1305::{AeadInPlace as _, ChaCha20Poly1305, KeyInit as _, Nonce, Tag};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::key::{PublicKey, SigningKey};

/// The size of a secret in bytes.
pub const SECRET: usize = 32;
/// The size in bytes of the tag behind the encrypted secret.
const TAG: usize = 16;

/// A sealed secret, written in base64 without padding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// The public half of the key that is used for this secret only.
    exchange: [u8; 32],
    secret: [u8; SECRET],
    tag: [u8; TAG],
}

impl Sealed {
    /// Seals `secret` to the node with the identity key `to`. `about` is what the secret is for: it can be opened for nothing else.
    /// `random` must be new for each secret. None if `to` is no key.
    #[must_use]
    pub fn seal(
        secret: &[u8; SECRET],
        to: &PublicKey,
        about: &[u8],
        random: &[u8; 32],
    ) -> Option<Self> {
        let once = x25519_dalek::StaticSecret::from(*random);
        let exchange = x25519_dalek::PublicKey::from(&once).to_bytes();
        let theirs = x25519_dalek::PublicKey::from(to.exchange_key()?);
        let agreed = once.diffie_hellman(&theirs);
        if !agreed.was_contributory() {
            return None;
        }
        let cipher = cipher(agreed.as_bytes(), &exchange, to);
        let mut sealed = Self {
            exchange,
            secret: *secret,
            tag: [0; TAG],
        };
        let tag = cipher
            .encrypt_in_place_detached(&Nonce::default(), about, &mut sealed.secret)
            .ok()?;
        sealed.tag.copy_from_slice(&tag);
        Some(sealed)
    }

    /// The secret, for the node that it is sealed to. None for every other node, and if it was sealed for something else.
    #[must_use]
    pub fn open(&self, own: &SigningKey, about: &[u8]) -> Option<Zeroizing<[u8; SECRET]>> {
        let agreed = own.agree(&self.exchange)?;
        let cipher = cipher(&agreed, &self.exchange, &own.public());
        let mut secret = Zeroizing::new(self.secret);
        let tag = Tag::from(self.tag);
        cipher
            .decrypt_in_place_detached(&Nonce::default(), about, secret.as_mut_slice(), &tag)
            .ok()?;
        Some(secret)
    }
}

/// The cipher of one secret. Its key is used once, so the nonce may be the same for all.
fn cipher(agreed: &[u8; 32], exchange: &[u8; 32], to: &PublicKey) -> ChaCha20Poly1305 {
    let mut key: [u8; 32] = Sha256::new()
        .chain_update(b"meshd sealed secret v1\0")
        .chain_update(agreed)
        .chain_update(exchange)
        .chain_update(to.0)
        .finalize()
        .into();
    let cipher = ChaCha20Poly1305::new((&key).into());
    zeroize::Zeroize::zeroize(&mut key);
    cipher
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed")
    }
}

impl Serialize for Sealed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = [&self.exchange[..], &self.secret, &self.tag].concat();
        serializer.serialize_str(&STANDARD_NO_PAD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Sealed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD_NO_PAD.decode(&text).unwrap_or_default();
        let parts = bytes.split_first_chunk::<32>();
        let parts = parts.and_then(|(exchange, rest)| {
            let (secret, rest) = rest.split_first_chunk::<SECRET>()?;
            let tag: [u8; TAG] = rest.try_into().ok()?;
            Some((*exchange, *secret, tag))
        });
        let (exchange, secret, tag) =
            parts.ok_or_else(|| serde::de::Error::custom("a sealed secret has 80 bytes"))?;
        Ok(Self {
            exchange,
            secret,
            tag,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    fn sealed() -> Sealed {
        Sealed::seal(&[7; 32], &key(1).public(), b"anna", &[9; 32]).expect("a key")
    }

    #[test]
    fn a_secret_is_opened_by_the_node_that_it_is_sealed_to_and_by_no_other() {
        let opened = |n: u8| sealed().open(&key(n), b"anna").map(|secret| *secret);
        assert_eq!(opened(1), Some([7; 32]));
        assert_eq!(opened(2), None);
    }

    #[test]
    fn a_secret_is_opened_for_what_it_was_sealed_for_and_for_nothing_else() {
        assert!(sealed().open(&key(1), b"bert").is_none());
        let mut other = sealed();
        other.secret[0] ^= 1;
        assert!(other.open(&key(1), b"anna").is_none());
    }

    #[test]
    fn a_sealed_secret_survives_its_text_and_does_not_have_the_secret_in_it() {
        let text = serde_json::to_string(&sealed()).expect("a text");
        assert_eq!(serde_json::from_str::<Sealed>(&text).ok(), Some(sealed()));
        assert_ne!(sealed().secret, [7; 32]);
        for odd in [r#""""#, r#""AAAA""#, "5", r#""not base64!""#] {
            assert!(serde_json::from_str::<Sealed>(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn bytes_that_are_no_key_get_no_secret() {
        // These bytes are on no point of the curve, and the others are a point of small order.
        for odd in [[2; 32], [0; 32]] {
            let sealed = Sealed::seal(&[7; 32], &PublicKey(odd), b"anna", &[9; 32]);
            let opened = sealed.and_then(|sealed| sealed.open(&key(1), b"anna"));
            assert!(opened.is_none());
        }
    }
}

//! Keys: Ed25519 for signatures (RFC 8032), Curve25519 for WireGuard (RFC 7748), and the proof that a node holds the private half of its
//! WireGuard key: an XEdDSA signature ("The XEdDSA and VXEdDSA Signature Schemes", Perrin 2016, section 2).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use curve25519_dalek::MontgomeryPoint;
use ed25519_dalek::hazmat::{ExpandedSecretKey, raw_sign};
use ed25519_dalek::{Signer as _, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha512};
use zeroize::Zeroizing;

/// The public half of an Ed25519 key, written as 64 hexadecimal digits. It identifies a node, a token or a mesh.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

/// The text is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a key: {0}")]
pub struct KeyError(&'static str);

impl PublicKey {
    /// Whether `signature` over `message` was made with this key. The verification is strict: a signature has one valid form, and keys
    /// of small order are refused.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        ed25519_dalek::VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature))
                .is_ok()
        })
    }

    /// Returns the form of this key for an exchange of keys (RFC 7748). None if it is no key.
    #[must_use]
    pub(super) fn exchange_key(&self) -> Option<[u8; 32]> {
        let key = VerifyingKey::from_bytes(&self.0).ok()?;
        Some(key.to_montgomery().to_bytes())
    }

    /// Returns the first 12 digits, with which people can distinguish the keys of one mesh.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl std::str::FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 64 || !text.is_ascii() {
            return Err(KeyError("64 hexadecimal digits are expected"));
        }
        let mut bytes = [0u8; 32];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = std::str::from_utf8(digits)
                .ok()
                .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|d| u8::from_str_radix(d, 16).ok())
                .ok_or(KeyError("64 hexadecimal digits are expected"))?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// An Ed25519 key that signs. Its memory is wiped when it is dropped; `Debug` shows only the public half.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// Returns the key of a 32-byte seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Returns the seed, so that it can be stored. It is wiped when it is dropped.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Returns the public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Returns the key on which this key and the exchange key `theirs` agree (RFC 7748). None if `theirs` is a point of small order, with
    /// which every key agrees on the same.
    #[must_use]
    pub(super) fn agree(&self, theirs: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
        let own = x25519_dalek::StaticSecret::from(self.0.to_scalar_bytes());
        let agreed = own.diffie_hellman(&x25519_dalek::PublicKey::from(*theirs));
        let is_safe = agreed.was_contributory();
        is_safe.then(|| Zeroizing::new(agreed.to_bytes()))
    }

    /// Signs `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().short())
    }
}

/// A WireGuard public key, written in base64 as by `wg`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WireGuardKey(pub [u8; 32]);

impl fmt::Display for WireGuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for WireGuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for WireGuardKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        STANDARD
            .decode(text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or(KeyError("44 characters of base64 are expected"))
    }
}

impl Serialize for WireGuardKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WireGuardKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A node's proof that it holds the private half of the WireGuard key in its record, written in base64
/// without padding.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyProof(#[serde(with = "signature_text")] pub [u8; 64]);

impl KeyProof {
    /// Makes the proof of `node` for the WireGuard key whose private half is `secret`. `random` must be new for each proof.
    #[must_use]
    pub fn make(secret: &[u8; 32], node: &PublicKey, random: &[u8; 32]) -> Self {
        let nonce_key = Sha512::new()
            .chain_update(XEDDSA_NONCE)
            .chain_update(secret)
            .chain_update(random)
            .finalize();
        let mut bytes = Zeroizing::new([0u8; 64]);
        let nonce_key = nonce_key.iter().copied();
        (bytes
            .iter_mut()
            .zip(secret.iter().copied().chain(nonce_key)))
        .for_each(|(to, from)| *to = from);
        let mut key = ExpandedSecretKey::from_bytes(&bytes);
        let mut public = VerifyingKey::from(&key);
        // Two Edwards keys correspond to a WireGuard key. XEdDSA signs with the one whose sign bit is 0.
        if is_negative(&public) {
            key.scalar = -key.scalar;
            public = VerifyingKey::from(&key);
        }
        let wireguard = WireGuardKey(public.to_montgomery().to_bytes());
        let message = key_proof_message(node, &wireguard);
        Self(raw_sign::<Sha512>(&key, &message, &public).to_bytes())
    }

    /// Whether `node` holds the private half of `key`.
    #[must_use]
    pub fn holds(&self, node: &PublicKey, key: &WireGuardKey) -> bool {
        let Some(edwards) = MontgomeryPoint(key.0).to_edwards(0) else {
            return false;
        };
        // Only the canonical form of a key is valid: a comparison of keys would take another form of the same point for another key.
        edwards.to_montgomery().to_bytes() == key.0
            && PublicKey(edwards.compress().to_bytes())
                .verifies(&key_proof_message(node, key), &self.0)
    }
}

/// The input of XEdDSA's hash_1 begins with 2^256 - 2, little-endian, so that no other hash has the same input.
const XEDDSA_NONCE: [u8; 32] = {
    let mut prefix = [0xff; 32];
    prefix[0] = 0xfe;
    prefix
};

fn is_negative(key: &VerifyingKey) -> bool {
    key.as_bytes()[31] & 0x80 != 0
}

/// Returns the message that is signed: the purpose and both keys.
fn key_proof_message(node: &PublicKey, key: &WireGuardKey) -> Vec<u8> {
    [&b"meshd key v1\0"[..], &node.0, &key.0].concat()
}

impl fmt::Debug for KeyProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&signature_text::encode(&self.0))
    }
}

/// The proof that the holder of a node's identity key wants the membership that contains this proof: a signature with the
/// identity key, written in base64 without padding.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityProof(#[serde(with = "signature_text")] pub [u8; 64]);

impl IdentityProof {
    /// Signs `content`, the other fields of the membership, with the key `identity`.
    #[must_use]
    pub fn make(identity: &SigningKey, content: &[u8]) -> Self {
        Self(identity.sign(&identity_proof_message(content)))
    }

    /// Whether the holder of the key `node` signed `content`.
    #[must_use]
    pub fn holds(&self, node: &PublicKey, content: &[u8]) -> bool {
        node.verifies(&identity_proof_message(content), &self.0)
    }
}

/// Returns the message that is signed: the purpose and the content. No message that is signed for another purpose begins in
/// this way.
fn identity_proof_message(content: &[u8]) -> Vec<u8> {
    [&b"meshd membership v1\0"[..], content].concat()
}

impl fmt::Debug for IdentityProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&signature_text::encode(&self.0))
    }
}

/// The text form of Ed25519 signatures: base64 without padding.
pub(crate) mod signature_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD_NO_PAD;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Returns the 86 characters of a signature.
    pub(crate) fn encode(bytes: &[u8; 64]) -> String {
        STANDARD_NO_PAD.encode(bytes)
    }

    pub(crate) fn serialize<S: Serializer>(
        bytes: &[u8; 64],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; 64], D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD_NO_PAD
            .decode(&text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| serde::de::Error::custom("a signature is 86 characters of base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WireGuard key of a private half made of `byte`.
    fn wireguard(byte: u8) -> ([u8; 32], WireGuardKey) {
        let secret = x25519_dalek::StaticSecret::from([byte; 32]);
        let public = x25519_dalek::PublicKey::from(&secret);
        (secret.to_bytes(), WireGuardKey(public.to_bytes()))
    }

    #[test]
    fn a_key_proof_holds_for_its_node_and_key_only() {
        let (mut positive, mut negative) = (0, 0);
        for byte in 1..20 {
            let (secret, key) = wireguard(byte);
            let node = SigningKey::from_seed(&[7; 32]).public();
            let proof = KeyProof::make(&secret, &node, &[byte; 32]);
            assert!(proof.holds(&node, &key), "{byte}");
            assert!(!proof.holds(&SigningKey::from_seed(&[8; 32]).public(), &key));
            assert!(!proof.holds(&node, &wireguard(byte + 1).1));
            let mut changed = proof;
            changed.0[3] ^= 1;
            assert!(!changed.holds(&node, &key));
            let scalar = ExpandedSecretKey::from_bytes(&{
                let mut bytes = [0; 64];
                bytes[..32].copy_from_slice(&secret);
                bytes
            });
            if is_negative(&VerifyingKey::from(&scalar)) {
                negative += 1;
            } else {
                positive += 1;
            }
        }
        // Keys of both signs were among them.
        assert!(positive > 0 && negative > 0, "{positive} {negative}");
    }

    #[test]
    fn no_proof_holds_for_keys_of_small_order_or_another_form() {
        let node = SigningKey::from_seed(&[7; 32]).public();
        let (secret, key) = wireguard(5);
        let proof = KeyProof::make(&secret, &node, &[1; 32]);
        let mut high_bit = key;
        high_bit.0[31] |= 0x80;
        assert!(!proof.holds(&node, &high_bit));
        for weak in [0u8, 1] {
            let mut bytes = [0; 32];
            bytes[0] = weak;
            assert!(!proof.holds(&node, &WireGuardKey(bytes)));
            assert!(!KeyProof([0; 64]).holds(&node, &WireGuardKey(bytes)));
        }
    }

    #[test]
    fn keys_survive_their_text_form() {
        let key = SigningKey::from_seed(&[7; 32]).public();
        assert_eq!(key.to_string().parse(), Ok(key));
        let wireguard = WireGuardKey([9; 32]);
        assert_eq!(wireguard.to_string().parse(), Ok(wireguard));
    }

    #[test]
    fn texts_that_are_no_keys_are_refused() {
        assert!("".parse::<PublicKey>().is_err());
        assert!("+1".repeat(32).parse::<PublicKey>().is_err());
        assert!("zz".repeat(32).parse::<PublicKey>().is_err());
        assert!("AAAA".parse::<WireGuardKey>().is_err());
    }

    #[test]
    fn a_signature_holds_for_its_message_and_key_only() {
        let key = SigningKey::from_seed(&[1; 32]);
        let signature = key.sign(b"message");
        assert!(key.public().verifies(b"message", &signature));
        assert!(!key.public().verifies(b"messagf", &signature));
        assert!(
            !SigningKey::from_seed(&[2; 32])
                .public()
                .verifies(b"message", &signature)
        );
    }

    #[test]
    fn debug_output_never_shows_a_secret() {
        let key = SigningKey::from_seed(&[0xab; 32]);
        assert!(!format!("{key:?}").contains("abab"));
    }
}

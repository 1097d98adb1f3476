//! Marks: text that a coordinator sends to each member, and that the member returns when it connects again.
//!
//! A mark states that a node was a member of a store when that store had a certain revision. The coordinator authenticates
//! it (HMAC, RFC 2104) with a key derived from its TLS key, which nodes pin. So the marks of a store that was lost, or that
//! went back in time, still verify, and coordinators that share a TLS key verify each other's marks. Nodes store a mark
//! unchanged and return it when they connect. A mark is bound to its node: one member cannot use the mark of another.
//!
//! A member cannot forge a mark, so it cannot claim a revision that its store never had.

use ring::hmac;

use crate::model::PublicKey;
use crate::protocol::control::MAX_MARK;

/// Separates this use of the TLS key from any other.
const CONTEXT: &[u8] = b"meshd marks v1";

/// Makes and verifies marks. `Debug` does not show the key.
#[derive(Clone)]
pub struct MarkKey(hmac::Key);

/// The contents of an authentic mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The store's name.
    pub store: String,
    /// The revision that the store had when the mark was made.
    pub revision: u64,
}

impl MarkKey {
    /// Derives the key from `secret`, the coordinator's TLS key.
    #[must_use]
    pub fn derive(secret: &[u8]) -> Self {
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), CONTEXT);
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// Makes a mark which states that `node` is a member of `store` at `revision`.
    #[must_use]
    pub fn make(&self, node: &PublicKey, store: &str, revision: u64) -> String {
        let said = format!("{revision}.{store}");
        let tag = hmac::sign(&self.0, &message(node, &said));
        let digits: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        format!("{said}.{digits}")
    }

    /// Verifies a mark for `node` and returns its contents; none, if it was not made for `node` with this key.
    #[must_use]
    pub fn read(&self, node: &PublicKey, mark: &str) -> Option<Mark> {
        if mark.len() > MAX_MARK {
            return None;
        }
        let (said, digits) = mark.rsplit_once('.')?;
        // A tag has the form of a key: 32 bytes in hexadecimal.
        let tag: PublicKey = digits.parse().ok()?;
        hmac::verify(&self.0, &message(node, said), &tag.0).ok()?;
        let (revision, store) = said.split_once('.')?;
        Some(Mark {
            store: store.to_owned(),
            revision: revision.parse().ok()?,
        })
    }
}

impl std::fmt::Debug for MarkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MarkKey")
    }
}

fn message(node: &PublicKey, said: &str) -> Vec<u8> {
    [&node.0[..], said.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_by_who_made_it_and_for_its_node_alone() {
        let (key, other) = (MarkKey::derive(b"one"), MarkKey::derive(b"other"));
        let (node, another) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let mark = key.make(&node, "00ff", 17);
        let read = Mark {
            store: "00ff".into(),
            revision: 17,
        };
        assert_eq!(key.read(&node, &mark), Some(read.clone()));
        assert_eq!(MarkKey::derive(b"one").read(&node, &mark), Some(read));
        assert_eq!(other.read(&node, &mark), None);
        assert_eq!(key.read(&another, &mark), None);
    }

    #[test]
    fn no_changed_or_invented_mark_is_read() {
        let (key, node) = (MarkKey::derive(b"one"), PublicKey([1; 32]));
        let mark = key.make(&node, "00ff", 17);
        let greatest = u64::MAX.to_string();
        for changed in [
            mark.replacen("17", "18", 1),
            mark.replacen("17", &greatest, 1),
            mark.replacen("00ff", "00fe", 1),
            mark.clone() + "0",
            mark.replace('.', ""),
            format!("{greatest}.00ff.{}", "0".repeat(64)),
            "x".repeat(1 << 20),
            String::new(),
            "..".into(),
        ] {
            assert_eq!(key.read(&node, &changed), None, "{changed:.80}");
        }
    }
}

//! A call: a node asks another one, over a coordinator that both are connected to or by way of a peer that both reach, to open direct
//! paths to each other.
//!
//! Where two nodes have no path and no common relay, no message passes between them, so they cannot agree on a moment to open their
//! routers (see `path::punch`). A call carries what the message `paths` of [`super::path_messages`] says for this: the addresses of
//! the caller, and whether the other node is asked to open its router and to answer, or is answered.
//!
//! The identity key of the caller signs the addresses together with the receiver and the time, so neither a coordinator nor a peer can
//! make a call, change one, or pass it to somebody else. They store nothing: they pass a call on at once, or drop it. A node sends the
//! same call by more than one way, and the receiver follows the copy that arrives first.
//!
//! # Time
//!
//! A call is valid for 30 s. Clocks of two nodes may differ by an hour, so the receiver does not compare the time of a call with its own
//! clock alone. `path::calls` has the rules.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize};

use crate::model::{PublicKey, SigningKey};
use crate::records::envelope::{Purpose, Signature};

/// The maximum number of addresses in a call.
pub const MAX_CANDIDATES: usize = 16;

/// A call, without its caller and its receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Whether the receiver is asked to open its router and to answer. Otherwise it is answered.
    pub asks: bool,
    /// The addresses at which the caller may be reached, best first, at most [`MAX_CANDIDATES`].
    #[serde(deserialize_with = "first_candidates")]
    pub candidates: Vec<SocketAddr>,
    /// The time of the call by the clock of the caller, in milliseconds since 1970.
    pub at: u64,
    /// The signature of the caller's identity key, with purpose `Call`.
    pub signature: Signature,
}

impl Call {
    /// Signs a call to `to`. Of more candidates than are possible the first ones are taken.
    #[must_use]
    pub fn sign(
        key: &SigningKey,
        to: &PublicKey,
        asks: bool,
        mut candidates: Vec<SocketAddr>,
        at: u64,
    ) -> Self {
        candidates.truncate(MAX_CANDIDATES);
        let message = message(to, asks, &candidates, at);
        Self {
            asks,
            candidates,
            at,
            signature: Signature::make(key, Purpose::Call, &message),
        }
    }

    /// Whether `from` has signed this call for `to`.
    #[must_use]
    pub fn is_authentic(&self, from: &PublicKey, to: &PublicKey) -> bool {
        let message = message(to, self.asks, &self.candidates, self.at);
        self.signature.holds(from, Purpose::Call, &message)
    }
}

/// The signed bytes. Each part has a length that follows from the bytes before it, so no two calls have the same ones.
fn message(to: &PublicKey, asks: bool, candidates: &[SocketAddr], at: u64) -> Vec<u8> {
    let mut message = Vec::with_capacity(64 + candidates.len() * 19);
    message.extend(to.0);
    message.push(u8::from(asks));
    message.extend(at.to_be_bytes());
    for candidate in candidates {
        match candidate.ip() {
            IpAddr::V4(v4) => {
                message.push(4);
                message.extend(v4.octets());
            }
            IpAddr::V6(v6) => {
                message.push(6);
                message.extend(v6.octets());
            }
        }
        message.extend(candidate.port().to_be_bytes());
    }
    message
}

/// The first candidates. The signature does not hold for a part of a longer list.
fn first_candidates<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<SocketAddr>, D::Error> {
    let mut candidates = Vec::<SocketAddr>::deserialize(deserializer)?;
    candidates.truncate(MAX_CANDIDATES);
    Ok(candidates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    fn candidates(count: u16) -> Vec<SocketAddr> {
        let of = |n| SocketAddr::from(([203, 0, 113, 7], n));
        (1..=count).map(of).collect()
    }

    #[test]
    fn only_the_caller_makes_a_call_and_nobody_changes_it_or_passes_it_to_another() {
        let (from, to) = (key(1), key(2).public());
        let call = Call::sign(&from, &to, true, candidates(3), 7);
        assert!(call.is_authentic(&from.public(), &to));
        assert!(!call.is_authentic(&key(3).public(), &to));
        assert!(!call.is_authentic(&from.public(), &key(3).public()));
        let changes: [fn(&mut Call); 4] = [
            |call| call.asks = false,
            |call| call.at += 1,
            |call| call.candidates.truncate(2),
            |call| call.candidates[0].set_port(9),
        ];
        for change in changes {
            let mut changed = call.clone();
            change(&mut changed);
            assert!(!changed.is_authentic(&from.public(), &to));
        }
    }

    #[test]
    fn a_call_has_at_most_sixteen_candidates() {
        let (from, to) = (key(1), key(2).public());
        let call = Call::sign(&from, &to, true, candidates(40), 7);
        assert_eq!(call.candidates.len(), MAX_CANDIDATES);
        let mut long = call.clone();
        long.candidates = candidates(1000);
        let text = serde_json::to_string(&long).expect("a document");
        let read: Call = serde_json::from_str(&text).expect("a call");
        // What is left is what was signed here.
        assert_eq!(read, call);
        let read: Result<Call, _> = serde_json::from_str(r#"{"asks":true,"candidates":["x"]}"#);
        assert!(read.is_err());
    }
}

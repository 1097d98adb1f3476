//! Records from node to node, inside the tunnel, while the coordinator is away.
//!
//! A conversation is short. One node connects to another at its mesh address over TCP, both send what the other lacks, and the connection is
//! closed. Messages are JSON texts, each after its length in four bytes, the most significant first.
//!
//! ```text
//! who dials                                who is dialled
//!   hello {node, nonce}                 ->
//!                                       <-  hello {node, nonce}, proof {signature}
//!   proof {signature}                   ->
//!   records, the newest of its own      ->
//!   ask {nodes it holds back}           ->
//!   summary {of all it holds}           ->
//!                                       <-  vouch {memberships of those}
//!                                       <-  same, and that is all; or
//!                                       <-  signers {digest of each one's records}
//!   records of those that differ        ->
//!   want {those that differ}            ->
//!                                       <-  records of those, done
//! ```
//!
//! A node that leaves the mesh connects to its peers as well. It sends its departure as its records, compares nothing, and closes the
//! connection when it has received `received`.
//!
//! Both sides prove that they hold the identity keys that they name. This is necessary because any program on a member's machine can
//! connect: a container without its own address sends from its node's address. The ledger verifies all records as always.
//!
//! A membership, a block and a name are claims that can conflict with those of other nodes. A node accepts new claims only from
//! a coordinator. From a peer it accepts such a record only if the record renews a claim that it holds already, and ignores it
//! otherwise. A ledger has no clock, so a node compares the date of a membership that is new to it with the time when it was last
//! in step with a coordinator. It holds a membership back that is too old, and asks its peers for that membership with `ask`. A
//! peer answers with `vouch`, which carries the memberships that it received when they were made. A peer of an earlier version
//! ignores `ask`, and vouches for no node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::PublicKey;
use crate::records::batch::batches;
use crate::records::digest::Digest;
use crate::records::envelope::{Envelope, Signature};

/// The TCP port. A node listens on it only at its mesh address and on the tunnel device. The policy of the packet path does not apply to
/// this port, because records are verified by their signatures.
pub const PORT: u16 = 7444;
/// The version of this protocol.
pub const PROTOCOL: u32 = 1;
/// The maximum size of a message, in bytes.
pub const MAX_FRAME: usize = 1024 * 1024;
/// The maximum number of records in a message.
pub const MAX_RECORDS: usize = 256;
/// The maximum total payload of a message, in bytes. Quoting may double it.
const MAX_PAYLOADS: usize = 256 * 1024;
/// The maximum number of signers in a message.
pub const MAX_SIGNERS: usize = 4096;
/// The maximum number of nodes in an `ask`, and of memberships in a `vouch`.
pub const MAX_ASKED: usize = 32;
/// The maximum size of a message until the sender has proved its identity, in bytes.
pub const MAX_UNPROVEN_FRAME: usize = 4096;

/// Messages between two nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PeerMessage {
    /// The first message.
    Hello {
        protocol: u32,
        /// The identity key of the sender.
        node: PublicKey,
        /// 32 random bytes in hexadecimal, which the receiver signs.
        nonce: String,
    },
    /// Proves the identity of the sender.
    Proof {
        /// A signature over [`proof_message`], with purpose `Peer`.
        signature: Signature,
    },
    /// Records, which the receiver has to verify.
    Records {
        /// At most [`MAX_RECORDS`].
        records: Vec<Envelope>,
    },
    /// Asks for the memberships of these nodes, which the sender holds back. It is sent before `summary`.
    Ask {
        /// At most [`MAX_ASKED`].
        nodes: Vec<PublicKey>,
    },
    /// Answers `ask`: the sender received these memberships when they were made. It is sent before the answer to `summary`.
    Vouch {
        /// At most one for each node in the `ask`.
        memberships: Vec<Envelope>,
    },
    /// A digest of all that the sender holds.
    Summary {
        /// See [`crate::records::digest::Digests::summary`].
        digest: Digest,
    },
    /// Both sides hold the same records.
    Same,
    /// A digest of each signer's records.
    Signers {
        /// At most [`MAX_SIGNERS`].
        signers: BTreeMap<PublicKey, Digest>,
        /// Whether this message is the last one with signers.
        last: bool,
    },
    /// Asks for the records of these signers.
    Want {
        /// At most [`MAX_SIGNERS`].
        signers: Vec<PublicKey>,
        /// Whether this message is the last one with signers.
        last: bool,
    },
    /// The sender has sent all requested records.
    Done,
    /// The receiver has the departure of the node that connected. It sends this before it applies the departure, because that ends the tunnel.
    Received,
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

/// The text that `node` signs (purpose `Peer`) for `other`, which sent `nonce`.
#[must_use]
pub fn proof_message(nonce: &str, node: &PublicKey, other: &PublicKey) -> Vec<u8> {
    [nonce.as_bytes(), b"\0", &node.0, &other.0].concat()
}

/// Cuts a list of records into messages. An empty list gives none.
#[must_use]
pub fn messages(records: Vec<Envelope>) -> Vec<PeerMessage> {
    batches(records, MAX_RECORDS, MAX_PAYLOADS)
        .map(|records| PeerMessage::Records { records })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;
    use crate::records::envelope::MAX_PAYLOAD;

    #[test]
    fn no_message_is_larger_than_a_reader_takes() {
        let key = SigningKey::from_seed(&[1; 32]);
        let large = Envelope::seal_payload("\"".repeat(MAX_PAYLOAD), &key);
        let small = Envelope::seal_payload("{}".into(), &key);
        for records in [vec![large; 40], vec![small; 1000]] {
            let count = records.len();
            let mut found = 0;
            for message in messages(records) {
                let text = serde_json::to_string(&message).expect("plain data");
                assert!(text.len() <= MAX_FRAME, "{}", text.len());
                let PeerMessage::Records { records } = message else {
                    panic!("records")
                };
                assert!(records.len() <= MAX_RECORDS);
                found += records.len();
            }
            assert_eq!(found, count);
        }
        let id = key.public();
        let signers: BTreeMap<PublicKey, Digest> = (0..MAX_SIGNERS)
            .map(|n| {
                let mut id = id;
                id.0[..8].copy_from_slice(&n.to_be_bytes());
                (id, Digest([0xff; 16]))
            })
            .collect();
        let last = false;
        let text = serde_json::to_string(&PeerMessage::Signers { signers, last });
        assert!(text.expect("plain data").len() <= MAX_FRAME);
    }

    #[test]
    fn a_message_of_a_later_version_is_passed_over() {
        let text = r#"{"type":"gossip","about":"weather"}"#;
        assert_eq!(
            serde_json::from_str::<PeerMessage>(text).ok(),
            Some(PeerMessage::Unknown)
        );
    }
}

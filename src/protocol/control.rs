//! The control stream: WebSocket (RFC 6455) text frames over TLS, one JSON message each.
//!
//! ```text
//! node                               coordinator
//!   hello {protocol, node, ...}  ->
//!                                <-  challenge {nonce}        or  refuse {..}
//!   proof {signature}            ->
//!                                <-  welcome {revision, ..}   or  refuse {..}
//!                                <-  changes {revision, records}, as often as there are any
//!                                <-  seen {address}, to a member, once
//!   publish {sequence, records}  ->
//!                                <-  published {sequence, ..}
//!   call {to, call}, a member to another one  ->
//!                                <-  call {from, call}, to that member
//!   told, once the coordinator has answered an offer of all records ->
//!                                <-  mark {mark}, to a member, after `welcome` and with some pings
//!                                <-  summary {revision, fingerprint}, after each mark
//!   mark {mark}, before any `publish`, if the node has one ->
//! ```
//!
//! The node sends the name of a store and the last revision of it that it holds. The coordinator sends the changes
//! since then, or all records if the store is another one or no longer knows the changes since then. Both sides send
//! WebSocket pings.
//!
//! A node that is no member receives a `welcome` with a random name and revision 0 in place of the store's. It publishes what
//! proves its membership, and then receives a second `welcome` with the store's own, before the changes.
//!
//! # Marks
//!
//! A coordinator whose store was lost, or went back in time, no longer knows who its members were. So each member stores a
//! proof of its membership: a mark. Only the coordinator can make marks, and it verifies a mark that a node returns.
//!
//! # Versions
//!
//! The node sends the range of protocol versions that it supports, from `oldest` to `protocol`. The coordinator chooses
//! the highest one that it supports, too ([`agree`]), and sends it in `welcome`; or it refuses with `version`. Within
//! one version, fields and kinds of messages may be added. A receiver ignores those that it does not know.
//!
//! # Duplicate identities
//!
//! Two machines that use one node's keys differ in their `instance`. When a second instance of a connected node
//! arrives, the coordinator sends `copy` to the first one, and the first one signs the instance of the second with the
//! key that both have. With this signature the coordinator refuses the second one. No coordinator can forge the
//! signature, and a node never signs its own instance.
//!
//! ```text
//! original                           coordinator                               copy
//!                                                          <- hello {instance: B}
//!                                <-  copy {instance: B}
//!   vouch {instance: B, signature} ->
//!                                                           refuse {clone, proof} ->
//! ```

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::api::{message, messages};
use super::call::Call;
use crate::model::PublicKey;
use crate::records::RecordKey;
use crate::records::batch::batches;
use crate::records::envelope::{Envelope, Signature};
use crate::records::fingerprint::Fingerprint;

/// The path of the stream.
pub const PATH: &str = "/v1/control";
/// The newest version of the protocol that this program supports.
pub const PROTOCOL: u32 = 1;
/// The oldest version of the protocol that this program supports.
pub const OLDEST: u32 = 1;
/// The maximum size of one message to a node, in bytes.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// The maximum size of one message that a coordinator accepts from a member, in bytes. No node sends a larger one (see
/// [`parts`]). The limit is lower for a sender that has not proved its identity.
pub const MAX_FROM_NODE: usize = 1280 * 1024;
/// The maximum size of a message that is not a `publish`, in bytes.
const MAX_OTHER: usize = 64 * 1024;
/// The maximum number of records in one message. A longer list is sent in several messages.
pub const MAX_RECORDS: usize = 256;
/// The maximum total payload of a message with several records, in bytes. Quoting may double it, and signatures are
/// added. The result is still far below the maximum size of a message, so that receivers need no large buffers.
const MAX_PAYLOADS: usize = 512 * 1024;
/// The maximum size of a mark, in bytes. A receiver ignores a longer one.
pub const MAX_MARK: usize = 256;
/// Seconds between pings. A side that receives nothing for three times as long closes the connection.
pub const PING_SECONDS: u64 = 10;

/// Messages from a node to the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromNode {
    /// The first message.
    Hello {
        /// The newest protocol version that the node supports.
        protocol: u32,
        /// The oldest protocol version that the node supports. It is absent if this is the newest one, too.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        oldest: Option<u32>,
        /// The version of the node's program, for people.
        version: String,
        /// The node's identity key.
        node: PublicKey,
        /// The name of the store from which the node last received records.
        store: Option<String>,
        /// The last revision of that store that the node holds.
        revision: u64,
        /// A random number of this run of the program. Two different numbers at one time belong to two machines with
        /// the same keys.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        instance: Option<String>,
    },
    /// The answer to the challenge.
    Proof {
        /// A signature over [`proof_message`].
        signature: Signature,
    },
    /// New versions of records: the node's own ones, or those of others that it holds.
    Publish {
        /// The coordinator returns this number in `published`.
        sequence: u64,
        /// At most [`MAX_RECORDS`].
        records: Vec<Envelope>,
    },
    /// The departure of a node whose token is ephemeral. The coordinator publishes it when the node stays away.
    Farewell {
        /// The departure, signed by the node.
        departure: Envelope,
    },
    /// The node has offered all records that it holds, and the coordinator has answered each `publish` of this offer. A node makes
    /// such an offer to a store that is new to it, or if the two hold different records.
    Told,
    /// The last mark that this node received from a coordinator. The node sends it before any `publish` of a stream.
    Mark {
        /// The mark as it was received.
        mark: String,
    },
    /// A call to another member. The coordinator passes it on if that member is connected to it, and answers nothing.
    Call {
        /// The identity key of the other member.
        to: PublicKey,
        call: Call,
    },
    /// The answer to `copy`: the other instance is another machine with the same keys.
    Vouch {
        /// The instance of the other machine.
        instance: String,
        /// A signature over [`copy_message`], with purpose `Copy`.
        signature: Signature,
    },
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

impl FromNode {
    /// Parses a message. To parse an enum whose tag is one of its fields, the JSON library first buffers all fields,
    /// and that takes many times the size of the message. So a `publish`, which may be large, is parsed directly, and
    /// any other message over a size limit is ignored.
    ///
    /// # Errors
    /// The text is not JSON, or it lacks a field that its kind of message needs.
    pub fn read(text: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(rename = "type", borrow)]
            kind: std::borrow::Cow<'a, str>,
        }
        #[derive(Deserialize)]
        struct Published {
            sequence: u64,
            records: Vec<Envelope>,
        }
        let Kind { kind } = serde_json::from_str(text)?;
        match kind.as_ref() {
            "publish" => {
                let Published { sequence, records } = serde_json::from_str(text)?;
                Ok(Self::Publish { sequence, records })
            }
            _ if text.len() > MAX_OTHER => Ok(Self::Unknown),
            _ => serde_json::from_str(text),
        }
    }
}

/// Messages from the coordinator to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromCoordinator {
    /// Requests a proof of the node's identity.
    Challenge {
        /// 32 random bytes in hexadecimal.
        nonce: String,
    },
    /// The coordinator accepts the node. Changes follow.
    Welcome {
        /// The version of the protocol on this stream.
        protocol: u32,
        /// The name of the store. A restored or new store has another name.
        #[serde(deserialize_with = "message")]
        store: String,
        /// The present revision of the store.
        revision: u64,
        /// Whether the following changes are all records, and not only those since the node's revision.
        snapshot: bool,
    },
    /// Records that changed, in order.
    Changes {
        /// The revision that the node holds after it has applied the records.
        revision: u64,
        /// At most [`MAX_RECORDS`].
        records: Vec<Envelope>,
    },
    /// The answer to `publish`: the accepted records are on disk.
    Published {
        /// The number of the `publish`.
        sequence: u64,
        /// The number of records that were new.
        accepted: u32,
        /// The reasons why other records were refused.
        #[serde(deserialize_with = "messages")]
        refused: Vec<String>,
        /// The refused records by key. A coordinator of an earlier version does not send this field.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        refused_records: Vec<RefusedRecord>,
        /// Whether the coordinator could not write its store. It has then decided nothing about the records. A coordinator of an
        /// earlier version does not send this field.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        failed: bool,
    },
    /// The fingerprint of all records that the coordinator holds. A node that has received all changes up to the same revision
    /// compares it with its own fingerprint.
    Summary {
        /// The revision of the store.
        revision: u64,
        fingerprint: Fingerprint,
    },
    /// A mark, which proves to the coordinator that the node was a member of its store at a certain revision. The node stores
    /// the last mark and returns it with its next stream.
    Mark {
        /// The mark has at most [`MAX_MARK`] bytes. Only the coordinator interprets it.
        #[serde(deserialize_with = "message")]
        mark: String,
    },
    /// The address from which the coordinator sees the connection of this member, once after `welcome`. It may be that of a
    /// router or of a proxy between them.
    Seen { address: IpAddr },
    /// Another member calls this one.
    Call {
        /// The identity key of the member whose stream the call came by. The signature shows whether it is the caller.
        from: PublicKey,
        call: Call,
    },
    /// Another instance of this node has connected. The node is asked whether it is another machine.
    Copy {
        /// The instance of the other machine.
        instance: String,
    },
    /// The coordinator ends the stream.
    Refuse {
        /// The kind of the refusal.
        reason: Refusal,
        /// One line for people.
        #[serde(deserialize_with = "message")]
        message: String,
        /// With `clone`: the signature of the other machine over this node's instance, from `vouch`. Without it a node
        /// does not believe that it is the duplicate.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<Signature>,
    },
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

/// A record of a `publish` that the coordinator refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRecord {
    /// The key of the refused record.
    #[serde(flatten)]
    pub key: RecordKey,
    /// One line for people.
    #[serde(deserialize_with = "message")]
    pub message: String,
    /// The reason, as far as the node can act on it.
    #[serde(default, skip_serializing_if = "RefusedReason::is_other")]
    pub reason: RefusedReason,
}

impl RefusedRecord {
    /// The maximum length of a kind and an id together that the coordinator sends back. Those that a node makes are shorter.
    const MAX_KEY: usize = 512;

    /// Makes the refusal of the record with this key; none, if the key is longer than any that a node makes.
    #[must_use]
    pub fn new(key: RecordKey, message: String, reason: RefusedReason) -> Option<Self> {
        (key.kind().len() + key.id().len() <= Self::MAX_KEY).then_some(Self {
            key,
            message,
            reason,
        })
    }
}

/// The reason why a record is refused, as far as its node acts on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedReason {
    /// The coordinator holds a newer version, or another payload with the same version.
    Stale,
    /// Another node has the address block.
    Block,
    /// Another node has the name.
    Name,
    /// Any other reason, including reasons that only later versions know.
    #[default]
    #[serde(other)]
    Other,
}

impl RefusedReason {
    /// Whether the reason adds nothing to the message, so that it need not be sent.
    #[must_use]
    pub fn is_other(&self) -> bool {
        *self == Self::Other
    }
}

/// The reasons why a coordinator refuses a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The coordinator does not support the protocol version.
    Version,
    /// The node is not a member of this store. It may publish records that prove its membership.
    NotAMember,
    /// The node was removed from the mesh.
    Revoked,
    /// Another machine with the same keys is connected.
    Clone,
    /// The proof of the identity is not valid.
    Proof,
    /// A message violates the protocol.
    Protocol,
    /// The node receives too slowly, or there are too many connections.
    Busy,
    /// A reason of a later version.
    #[serde(other)]
    Unknown,
}

/// The text that a node signs (purpose `Control`): the nonce and the hash of the TLS key that the node sees. So a
/// coordinator cannot forward the challenge of another one.
#[must_use]
pub fn proof_message(nonce: &str, pin: &super::token::SpkiPin) -> Vec<u8> {
    [nonce.as_bytes(), b"\0", &pin.0].concat()
}

/// The text that the original of two machines with the same keys signs (purpose `Copy`).
#[must_use]
pub fn copy_message(instance: &str) -> Vec<u8> {
    instance.as_bytes().to_vec()
}

/// The version to use with a side that supports the versions from `oldest` to `newest`: the highest common one, if there is one.
#[must_use]
pub fn agree(oldest: u32, newest: u32) -> Option<u32> {
    let highest = newest.min(PROTOCOL);
    (oldest <= highest && highest >= OLDEST).then_some(highest)
}

/// The reason for people why there is no common version.
#[must_use]
pub fn disagreement(oldest: u32, newest: u32) -> String {
    let spoken = |oldest: u32, newest: u32| {
        if oldest == newest {
            newest.to_string()
        } else {
            format!("{oldest} to {newest}")
        }
    };
    format!(
        "the node speaks protocol {}, this coordinator speaks {}; upgrade the older of the two",
        spoken(oldest, newest),
        spoken(OLDEST, PROTOCOL)
    )
}

/// Cuts a list of records into messages. There is at least one message, which may be empty.
#[must_use]
pub fn parts(records: Vec<Envelope>) -> Vec<Vec<Envelope>> {
    let mut parts: Vec<Vec<Envelope>> = batches(records, MAX_RECORDS, MAX_PAYLOADS).collect();
    if parts.is_empty() {
        parts.push(Vec::new());
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;
    use crate::records::envelope::MAX_PAYLOAD;

    #[test]
    fn the_highest_version_both_speak_is_agreed_on() {
        assert_eq!(agree(PROTOCOL, PROTOCOL), Some(PROTOCOL));
        assert_eq!(agree(OLDEST, PROTOCOL + 5), Some(PROTOCOL));
        assert_eq!(agree(0, PROTOCOL), Some(PROTOCOL));
        assert_eq!(agree(PROTOCOL + 1, PROTOCOL + 1), None);
        assert_eq!(agree(OLDEST - 1, OLDEST - 1), None);
        assert_eq!(agree(PROTOCOL, OLDEST - 1), None);
        assert_eq!(agree(u32::MAX, 0), None);
    }

    fn record(bytes: usize) -> Envelope {
        // Quotes are the worst case of a payload: each one takes two bytes in the message.
        Envelope::seal_payload("\"".repeat(bytes), &SigningKey::from_seed(&[1; 32]))
    }

    fn sizes(records: Vec<Envelope>) -> Vec<usize> {
        parts(records).iter().map(Vec::len).collect()
    }

    #[test]
    fn no_text_of_a_coordinator_forges_a_line() {
        let read = |text: &str| serde_json::from_str::<FromCoordinator>(text).expect("a message");
        let refuse =
            read(r#"{"type":"refuse","reason":"busy","message":"no\nWARN forged \u001b[2J"}"#);
        assert!(
            matches!(&refuse, FromCoordinator::Refuse { message, .. } if message == "no?WARN forged ?[2J"),
            "{refuse:?}"
        );
        let published =
            read(r#"{"type":"published","sequence":1,"accepted":0,"refused":["a\nb","c"]}"#);
        assert!(
            matches!(&published, FromCoordinator::Published { refused, .. } if refused == &["a?b", "c"]),
            "{published:?}"
        );
        let welcome =
            r#"{"type":"welcome","protocol":1,"store":"a\nb","revision":1,"snapshot":true}"#;
        let welcome = read(welcome);
        assert!(
            matches!(&welcome, FromCoordinator::Welcome { store, .. } if store == "a?b"),
            "{welcome:?}"
        );
    }

    #[test]
    fn refused_records_are_named_and_those_of_other_versions_are_understood() {
        let old = r#"{"type":"published","sequence":1,"accepted":0,"refused":["a"]}"#;
        let read = |text: &str| serde_json::from_str::<FromCoordinator>(text).expect("a message");
        assert!(
            matches!(read(old), FromCoordinator::Published { refused_records, .. } if refused_records.is_empty())
        );
        let later = r#"{"type":"published","sequence":1,"accepted":0,"refused":["a"],"refused_records":[{"kind":"node","id":"x","message":"a\nb","reason":"moonlight"}]}"#;
        let FromCoordinator::Published {
            refused_records, ..
        } = read(later)
        else {
            panic!("published")
        };
        let key = RecordKey::parse("node", "x");
        let named = RefusedRecord::new(key.clone(), "a?b".into(), RefusedReason::Other);
        assert_eq!(refused_records, Vec::from_iter(named));
        let long = RecordKey::parse("node", &"x".repeat(64 * 1024));
        assert_eq!(
            RefusedRecord::new(long, String::new(), RefusedReason::Stale),
            None
        );
    }

    #[test]
    fn no_message_has_more_records_than_it_may() {
        assert_eq!(sizes(vec![]), [0]);
        assert_eq!(sizes(vec![record(1); 256]), [256]);
        assert_eq!(sizes(vec![record(1); 600]), [256, 256, 88]);
    }

    #[test]
    fn no_message_is_larger_than_a_reader_takes() {
        let parts = parts(vec![record(MAX_PAYLOAD); 100]);
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 100);
        for records in parts {
            let (revision, sequence) = (u64::MAX, u64::MAX);
            let changes = FromCoordinator::Changes {
                revision,
                records: records.clone(),
            };
            let publish = FromNode::Publish { sequence, records };
            let text = serde_json::to_string(&changes).expect("plain data");
            assert!(text.len() < MAX_MESSAGE, "{}", text.len());
            let text = serde_json::to_string(&publish).expect("plain data");
            assert!(text.len() < MAX_FROM_NODE, "{}", text.len());
            assert_eq!(FromNode::read(&text).ok(), Some(publish));
        }
    }

    #[test]
    fn messages_are_read_as_their_kinds_are_and_large_ones_of_other_kinds_are_passed_over() {
        let read = |text: &str| FromNode::read(text).ok();
        assert_eq!(read(r#"{"type":"told"}"#), Some(FromNode::Told));
        assert_eq!(read(r#"{"a":[1],"type":"sing"}"#), Some(FromNode::Unknown));
        let publish = r#"{"records":[],"new":{"a":1},"type":"publish","sequence":3}"#;
        assert!(matches!(
            read(publish),
            Some(FromNode::Publish { sequence: 3, records }) if records.is_empty()
        ));
        let large = format!(
            r#"{{"type":"hello","store":[{}0]}}"#,
            "0,".repeat(MAX_OTHER)
        );
        assert_eq!(read(&large), Some(FromNode::Unknown));
        for text in [
            "",
            "{}",
            "[]",
            r#"{"type":1}"#,
            r#"{"type":"publish"}"#,
            r#"{"type":"publish","sequence":1,"records":[0]}"#,
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}

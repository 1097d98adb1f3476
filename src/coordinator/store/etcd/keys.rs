//! The keys in etcd and their values.
//!
//! | key after the prefix | value |
//! |---|---|
//! | `head` | the last revision, and the nonce of the transaction that wrote it, which names the one before |
//! | `id`, `pin`, `mesh` | the store's name, the hash of the TLS key, the mesh key |
//! | `restored`, `leases` | present while nodes have not offered what a restored snapshot lacks; the [`LeaseStart`](super::super::LeaseStart) of a restored store |
//! | `record/REVISION` | a record, as [`Written`]; its next version has a revision of its own |
//! | `issued/TOKEN`, `use/TOKEN/NODE`, `name/NODE`, `block/INDEX`, `released/INDEX` | what is decided once for all coordinators |
//! | `farewell/NODE`, `present/NODE` | stored departures, and connected nodes; read when they are needed |

use serde::{Deserialize, Serialize};

use crate::model::PublicKey;
use crate::records::Envelope;
use crate::records::kinds::RecordKey;

/// A key whose value every coordinator has in memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// The last revision.
    Head,
    /// The store's name.
    Id,
    /// The mesh key.
    Mesh,
    /// Present while nodes have not offered what a restored snapshot lacks.
    Restored,
    /// From which block on a restored store leases blocks.
    Leases,
    /// The record with this revision.
    Record(u64),
    /// The token was issued through this store.
    Issued(PublicKey),
    /// The token admitted the node.
    Use(PublicKey, PublicKey),
    /// The name of a node.
    Name(PublicKey),
    /// The holder of a block.
    Block(u32),
    /// The revision at which a block became free.
    Released(u32),
}

/// The value of [`Key::Record`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Written {
    #[serde(flatten)]
    pub(super) key: RecordKey,
    pub(super) envelope: Envelope,
}

impl Key {
    /// The key in etcd, without the prefix. Numbers have leading zeros, so that keys are in the order of the numbers.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Head => "head".to_owned(),
            Self::Id => "id".to_owned(),
            Self::Mesh => "mesh".to_owned(),
            Self::Restored => "restored".to_owned(),
            Self::Leases => "leases".to_owned(),
            Self::Record(revision) => format!("record/{revision:020}"),
            Self::Issued(token) => format!("issued/{token}"),
            Self::Use(token, node) => format!("use/{token}/{node}"),
            Self::Name(node) => format!("name/{node}"),
            Self::Block(block) => format!("block/{block:010}"),
            Self::Released(block) => format!("released/{block:010}"),
        }
    }

    /// Parses a key without the prefix. None if it is not one of these.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text.split_once('/') {
            None => match text {
                "head" => Self::Head,
                "id" => Self::Id,
                "mesh" => Self::Mesh,
                "restored" => Self::Restored,
                "leases" => Self::Leases,
                _ => return None,
            },
            Some(("record", revision)) => Self::Record(revision.parse().ok()?),
            Some(("issued", token)) => Self::Issued(token.parse().ok()?),
            Some(("use", rest)) => {
                let (token, node) = rest.split_once('/')?;
                Self::Use(token.parse().ok()?, node.parse().ok()?)
            }
            Some(("name", node)) => Self::Name(node.parse().ok()?),
            Some(("block", block)) => Self::Block(block.parse().ok()?),
            Some(("released", block)) => Self::Released(block.parse().ok()?),
            Some(_) => return None,
        })
    }
}

/// The prefix of the tokens that were issued through this store.
pub(super) const ISSUED: &str = "issued/";

/// The key of a node's stored departure.
pub(super) fn departure(node: &PublicKey) -> String {
    format!("farewell/{node}")
}

/// The prefix of the connected nodes.
pub(super) const PRESENT: &str = "present/";
/// The key of the hash of the TLS key.
pub(super) const PIN: &str = "pin";
/// A key that is written only to test whether etcd accepts writes.
pub(super) const PROBE: &str = "probe";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_parsed_from_its_text() {
        let (a, b) = (PublicKey([1; 32]), PublicKey([2; 32]));
        for key in [
            Key::Head,
            Key::Id,
            Key::Mesh,
            Key::Restored,
            Key::Leases,
            Key::Record(u64::MAX),
            Key::Issued(a),
            Key::Use(a, b),
            Key::Name(b),
            Key::Block(7),
            Key::Released(u32::MAX),
        ] {
            assert_eq!(Key::parse(&key.text()), Some(key));
        }
        for other in ["", "pin", "present/x", "record/x", "use/x", "later/1"] {
            assert_eq!(Key::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_keys_of_records_are_in_the_order_of_their_revisions() {
        assert!(Key::Record(9).text() < Key::Record(10).text());
    }
}

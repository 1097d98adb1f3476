//! What lies under which key in etcd.
//!
//! | key behind the prefix | value |
//! |---|---|
//! | `head` | the last revision, and a random word of who wrote it |
//! | `id`, `pin`, `mesh` | the store's name, the hash of the TLS key, the mesh key |
//! | `restored`, `leases` | nodes have yet to tell what a restored snapshot misses; where leases begin since |
//! | `record/REVISION` | a record, as [`Written`]; its next version lies under a revision of its own |
//! | `issued/TOKEN`, `use/TOKEN/NODE`, `name/NODE`, `block/INDEX`, `released/INDEX` | what is decided once for all |
//! | `farewell/NODE`, `present/NODE` | departures kept, and who is connected; read when they are needed |

use serde::{Deserialize, Serialize};

use crate::model::PublicKey;
use crate::records::Envelope;
use crate::records::kinds::RecordKey;

/// A key whose value every coordinator holds in memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// The last revision.
    Head,
    /// The store's name.
    Id,
    /// The mesh key.
    Mesh,
    /// The nodes have not told yet what a restored snapshot misses.
    Restored,
    /// Where leases begin in a store that was restored.
    Leases,
    /// The record of a revision.
    Record(u64),
    /// The token was issued here.
    Issued(PublicKey),
    /// The token admitted the node.
    Use(PublicKey, PublicKey),
    /// A node's name.
    Name(PublicKey),
    /// Who has the block.
    Block(u32),
    /// When the block became free: a revision.
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
    /// As it is in etcd, without the prefix. Numbers have leading zeros, so that they are in order.
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

    /// Of a key without the prefix; nothing, if it is none of those.
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

/// Below this are the tokens issued here.
pub(super) const ISSUED: &str = "issued/";

/// Where a node's departure is kept.
pub(super) fn farewell(node: &PublicKey) -> String {
    format!("farewell/{node}")
}

/// Below this are the nodes that are connected.
pub(super) const PRESENT: &str = "present/";
/// Where the hash of the TLS key is.
pub(super) const PIN: &str = "pin";
/// Written only to see whether etcd can be written.
pub(super) const PROBE: &str = "probe";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_again_in_its_text() {
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
    fn records_lie_in_the_order_of_their_revisions() {
        assert!(Key::Record(9).text() < Key::Record(10).text());
    }
}

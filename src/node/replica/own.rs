//! The identity of this node, as far as the synchronisation of records needs it.

use crate::model::address::Block;
use crate::model::{PublicKey, SigningKey};
use crate::protocol::url::CoordinatorUrl;
use crate::records::Ledger;

/// The identity of this node.
#[derive(Debug, Clone)]
pub struct Own {
    /// The key that signs the records of this node.
    pub key: SigningKey,
    /// The addresses that are leased to this node.
    pub block: Block,
    /// The coordinators that the token of this node named.
    pub urls: Vec<CoordinatorUrl>,
}

impl Own {
    /// The public half of the identity key, which names this node.
    pub(super) fn id(&self) -> PublicKey {
        self.key.public()
    }

    /// The coordinators that the mesh record names, and then those that the token named. The token's list may be out of date,
    /// but it still works if the list in the mesh record is wrong.
    #[must_use]
    pub fn coordinators(&self, ledger: &Ledger) -> Vec<CoordinatorUrl> {
        let listed = ledger.mesh().map_or(&[][..], |mesh| &mesh.coordinators);
        let mut urls: Vec<CoordinatorUrl> =
            listed.iter().filter_map(|url| url.parse().ok()).collect();
        for url in &self.urls {
            if !urls.contains(url) {
                urls.push(url.clone());
            }
        }
        urls
    }
}

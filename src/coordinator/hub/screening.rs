//! Decisions about an offered record that need neither a verification nor the writer's lock.

use std::sync::atomic::Ordering;

use super::view::View;
use crate::model::PublicKey;
use crate::records::ledger::Refused;
use crate::records::{Envelope, RecordKey};

/// The result of screening an offered record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Screened {
    /// The store holds this record already.
    Held,
    /// The record would be refused even if its signature holds.
    Refused(Refused),
    /// The record has to be verified.
    Unverified,
}

/// What a record may prove for a node that is not a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Nothing.
    None,
    /// The record names the mesh key as its signer.
    MeshKey,
    /// The record claims to be the node's membership.
    Membership,
}

impl View {
    /// Compares a record with the records held. The caller has checked the length of the payload.
    #[must_use]
    pub fn screen(&self, record: &Envelope) -> Screened {
        let Some(header) = record.header() else {
            return Screened::Unverified;
        };
        let state = self.read();
        let Some(ledger) = &state.ledger else {
            return Screened::Unverified;
        };
        if ledger.holds_with(&header, record) {
            return Screened::Held;
        }
        let refused = if ledger.is_revoked(&record.signer) {
            Some(Refused::NodeRevoked)
        } else if matches!(header.key, RecordKey::Membership(_)) {
            // Of two memberships the date decides before the version does.
            None
        } else {
            let key = ledger.key_of(&header, &record.signer);
            let held = ledger.entry(&key).filter(|held| {
                held.envelope.signer == record.signer && held.version > header.version
            });
            held.map(|held| Refused::Stale {
                key,
                offered: header.version,
                held: held.version,
            })
        };
        match refused {
            Some(refused) => {
                let counts = &self.counts;
                counts.publish_refused.fetch_add(1, Ordering::Relaxed);
                Screened::Refused(refused)
            }
            None => Screened::Unverified,
        }
    }

    /// What `record` may prove for `node`, judged by its unverified contents.
    #[must_use]
    pub fn proof(&self, node: &PublicKey, record: &Envelope) -> Proof {
        let state = self.read();
        if state
            .ledger
            .as_ref()
            .is_some_and(|ledger| ledger.mesh_key() == record.signer)
        {
            return Proof::MeshKey;
        }
        drop(state);
        match record.header() {
            Some(header) if header.key == RecordKey::Membership(*node) => Proof::Membership,
            _ => Proof::None,
        }
    }

    /// Whether a token with this key is known.
    #[must_use]
    pub fn knows_token(&self, token: &PublicKey) -> bool {
        let state = self.read();
        let ledger = state.ledger.as_ref();
        ledger.is_some_and(|ledger| ledger.token(token).is_some())
    }
}

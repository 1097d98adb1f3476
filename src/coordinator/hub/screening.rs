//! What can be said of an offered record without a verification, and without waiting for a writer.

use std::sync::atomic::Ordering;

use super::Hub;
use crate::model::PublicKey;
use crate::model::record::{Header, RecordKey};
use crate::wire::Envelope;
use crate::wire::ledger::Refused;

/// What becomes of a record that is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Screened {
    /// This very record is held.
    Held,
    /// It would be refused, whether or not its signature holds.
    Refused(Refused),
    /// Its signature decides.
    Unverified,
}

/// What a record may prove for a node that is no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Nothing.
    None,
    /// It says that the mesh key signed it.
    MeshKey,
    /// It says that it is the node's membership.
    Membership,
}

const MEMBERSHIP: &str = "membership";

impl Hub {
    /// Compares a record with what is held.
    #[must_use]
    pub fn screen(&self, record: &Envelope) -> Screened {
        let Ok(header) = serde_json::from_str::<Header>(&record.payload) else {
            return Screened::Unverified;
        };
        let state = self.read();
        let Some(ledger) = &state.ledger else {
            return Screened::Unverified;
        };
        if ledger.holds(record) {
            return Screened::Held;
        }
        let refused = if ledger.is_revoked(&record.signer) {
            Some(Refused::NodeRevoked)
        } else if header.kind == MEMBERSHIP {
            // Their versions do not decide alone.
            None
        } else {
            let key = RecordKey {
                kind: header.kind,
                id: header.id,
            };
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

    /// What `record` may prove for `node`, by what it says.
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
        match serde_json::from_str::<Header>(&record.payload) {
            Ok(header) if header.kind == MEMBERSHIP && header.id == node.to_string() => {
                Proof::Membership
            }
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

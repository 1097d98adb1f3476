//! Departures that no coordinator has acknowledged yet, one file each, `departing-ID.json`.
//!
//! The file outlives the node's identity. It contains the key that proves the identity of the departing node, and the
//! coordinators. It is written before the identity is deleted, so that a kill at any moment leaves one of the two.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Identity, Pending, StateDir, StateError, Way};
use crate::model::time::UnixSeconds;
use crate::model::{PublicKey, SigningKey};
use crate::records::Envelope;
use crate::records::kinds::{Departure, Record};

const PREFIX: &str = "departing-";
const SUFFIX: &str = ".json";
/// The maximum number of departures that are kept. Each belongs to a join of this machine. More of them are a sign of a fault
/// that repeats itself.
const MAX_DEPARTING: usize = 64;

/// A node of this machine that departs.
#[derive(Debug, Clone)]
pub struct Departing {
    /// The identity key of the node. It signs the departure, and proves the identity of its sender.
    pub identity: SigningKey,
    /// The coordinators.
    pub way: Way,
    /// When the departure was signed.
    pub since: UnixSeconds,
}

impl Departing {
    /// The departure of a node that was admitted.
    #[must_use]
    pub fn of(identity: &Identity, since: UnixSeconds) -> Self {
        Self {
            identity: identity.keys.identity.clone(),
            way: Way {
                mesh_key: identity.mesh_key,
                urls: identity.urls.clone(),
                pin: identity.pin,
            },
            since,
        }
    }

    /// The departure of a node that a coordinator may have admitted. None if no coordinator was asked.
    #[must_use]
    pub fn of_pending(pending: &Pending, since: UnixSeconds) -> Option<Self> {
        let way = pending.way.clone().filter(|_| pending.asked)?;
        Some(Self {
            identity: pending.keys.identity.clone(),
            way,
            since,
        })
    }

    /// The node that departs.
    #[must_use]
    pub fn id(&self) -> PublicKey {
        self.identity.public()
    }

    /// The record that is published.
    #[must_use]
    pub fn envelope(&self) -> Envelope {
        Envelope::seal(&Record::Departure(Departure::of(self.id())), &self.identity)
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    identity_seed: Zeroizing<String>,
    #[serde(flatten)]
    way: Way,
    since: UnixSeconds,
}

impl StateDir {
    /// Writes a departure that is to be sent to a coordinator.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn add_departing(&self, departing: &Departing) -> Result<(), StateError> {
        let stored = Stored {
            identity_seed: Zeroizing::new(PublicKey(*departing.identity.seed()).to_string()),
            way: departing.way.clone(),
            since: departing.since,
        };
        self.write(&name_of(&departing.id()), &stored)
    }

    /// The departures that no coordinator has acknowledged. A damaged file is left out.
    #[must_use]
    pub fn departing(&self) -> Vec<Departing> {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
            .take(MAX_DEPARTING)
            .filter_map(|name| self.read_or_nothing::<Stored>(&name).ok().flatten())
            .filter_map(|stored| {
                let seed = stored.identity_seed.parse::<PublicKey>().ok()?;
                Some(Departing {
                    identity: SigningKey::from_seed(&seed.0),
                    way: stored.way,
                    since: stored.since,
                })
            })
            .collect()
    }

    /// Deletes a departure, since a coordinator has it.
    pub fn remove_departing(&self, id: &PublicKey) {
        let _ = std::fs::remove_file(self.path(&name_of(id)));
    }
}

fn name_of(id: &PublicKey) -> String {
    format!("{PREFIX}{id}{SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::token::SpkiPin;

    fn departing(n: u8) -> Departing {
        Departing {
            identity: SigningKey::from_seed(&[n; 32]),
            way: Way {
                mesh_key: PublicKey([1; 32]),
                urls: vec!["https://192.0.2.1:7443".parse().expect("a literal")],
                pin: SpkiPin([2; 32]),
            },
            since: UnixSeconds(3),
        }
    }

    #[test]
    fn a_departure_outlives_the_membership_and_a_damaged_one_hides_no_other() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::open(&parent.path().join("state")).expect("a new directory");
        for n in [1, 2] {
            dir.add_departing(&departing(n)).expect("room on the disk");
        }
        dir.clear();
        std::fs::write(dir.path(&name_of(&departing(1).id())), b"{").expect("ours");
        let [kept] = &dir.departing()[..] else {
            panic!("one is whole")
        };
        assert_eq!(
            (kept.id(), &kept.way, kept.envelope()),
            (
                departing(2).id(),
                &departing(2).way,
                departing(2).envelope()
            )
        );
        dir.remove_departing(&departing(2).id());
        assert!(dir.departing().is_empty());
    }
}

//! Guests: devices with nothing but a WireGuard app, which reach the mesh through a node, their *door*.
//!
//! A guest is a record that the mesh key signed, whose kind is [`GUEST`] and whose id is the WireGuard key of the guest. A record of the kind
//! [`GUEST_REMOVAL`] with the same id removes it for good. As with the revocations of API tokens, a ledger holds both under
//! [`RecordKey::Unknown`], as versions without guests do: so all versions hold the same records in the same order, and their digests agree.
//! No member can add or remove a guest, since a ledger appends the signer to the kind of a record that the mesh key did not sign.
//!
//! The record has the preshared key of the tunnel once for each door, sealed to that door ([`Sealed`]). Each door leases addresses of its block
//! to its guests, and says so in its node record ([`GuestLease`]). So the owner of a guest's addresses is the door, and other nodes need to
//! know nothing of guests to carry their packets.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::model::address::Block;
use crate::model::time::UnixSeconds;
use crate::model::{Label, PublicKey, Sealed, SigningKey, WireGuardKey};
use crate::records::key::RecordKey;

/// The kind of the records of guests.
pub const GUEST: &str = "guest";
/// The kind of the records that remove guests.
pub const GUEST_REMOVAL: &str = "guest_removal";
/// The maximum number of guests of one door.
pub const MAX_GUESTS: usize = 64;
/// The maximum number of doors of one guest.
pub const MAX_DOORS: usize = 8;
/// The maximum number of tags of a guest.
pub const MAX_GUEST_TAGS: usize = 32;

/// A guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The WireGuard key of the guest.
    pub id: WireGuardKey,
    /// The version, which grows with each change.
    pub version: u64,
    /// The name: `<name>.guest.<domain>`, and `guest:<name>` in policies.
    pub name: Label,
    /// The tags that policies select.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Label>,
    /// The nodes through which the guest reaches the mesh.
    pub doors: Vec<Door>,
    /// The hash of the preshared key, with which a door and the owner of the configuration can compare theirs.
    pub preshared_hash: PublicKey,
    /// The time from which no door lets the guest in; none if it stays until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixSeconds>,
}

/// A node through which a guest reaches the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    /// The identity key of the node.
    pub node: PublicKey,
    /// The preshared key, sealed to the node.
    pub preshared: Sealed,
}

/// The lease of a guest's addresses, in the record of its door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GuestLease {
    /// The WireGuard key of the guest.
    pub key: WireGuardKey,
    /// The number of the host in both parts of the door's block.
    pub host: u16,
    /// Whether the door has heard the guest lately.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub heard: bool,
}

impl GuestLease {
    /// The addresses of the guest in the block of its door. None if the block has no such instance address.
    #[must_use]
    pub fn addresses(&self, block: &Block) -> Option<(Ipv4Addr, Ipv6Addr)> {
        block.instance(self.host)
    }
}

#[derive(Serialize)]
struct Payload<'a> {
    kind: &'a str,
    #[serde(flatten)]
    guest: &'a Guest,
}

#[derive(Serialize)]
struct Removal<'a> {
    kind: &'a str,
    id: WireGuardKey,
    version: u64,
}

impl Guest {
    /// Parses the payload of a record of the kind [`GUEST`]. None if it breaks a rule of guests.
    #[must_use]
    pub fn parse(payload: &str) -> Option<Self> {
        let guest: Self = serde_json::from_str(payload).ok()?;
        guest.is_bounded().then_some(guest)
    }

    /// Returns the payload of the record, as the mesh key is to sign it.
    #[must_use]
    pub fn payload(&self) -> String {
        let payload = Payload {
            kind: GUEST,
            guest: self,
        };
        serde_json::to_string(&payload).expect("it is a map with text keys")
    }

    /// Returns the payload of the removal of the guest `id`. All removals of a guest are one text, so that ledgers agree whichever they
    /// received first.
    #[must_use]
    pub fn removal_payload(id: WireGuardKey) -> String {
        let payload = Removal {
            kind: GUEST_REMOVAL,
            id,
            version: 1,
        };
        serde_json::to_string(&payload).expect("it is a map with text keys")
    }

    /// Returns the guest that the record with the key `key` removes. None if it is another record.
    #[must_use]
    pub fn removed_by(key: &RecordKey) -> Option<WireGuardKey> {
        let id: Option<WireGuardKey> = key.id().parse().ok();
        id.filter(|id| key.kind() == GUEST_REMOVAL && id.to_string() == key.id())
    }

    /// Whether `key` is that of a record about a guest.
    #[must_use]
    pub fn is_concerned(key: &RecordKey) -> bool {
        matches!(key.kind(), GUEST | GUEST_REMOVAL)
    }

    /// The part of the record that is about a door.
    #[must_use]
    pub fn door(&self, node: &PublicKey) -> Option<&Door> {
        self.doors.iter().find(|door| door.node == *node)
    }

    /// Whether the guest has expired.
    #[must_use]
    pub fn is_expired(&self, now: UnixSeconds) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// The preshared key, for the door whose identity key is `own`. None if it is not sealed to this door, or is another one than the record
    /// has the hash of.
    #[must_use]
    pub fn preshared(&self, own: &SigningKey) -> Option<Zeroizing<[u8; 32]>> {
        let door = self.door(&own.public())?;
        let secret = door.preshared.open(own, &about(&self.id))?;
        (Self::hash_of(&secret) == self.preshared_hash).then_some(secret)
    }

    /// The hash of a preshared key, in the form of a key.
    #[must_use]
    pub fn hash_of(preshared: &[u8; 32]) -> PublicKey {
        let hash = Sha256::new()
            .chain_update(b"meshd preshared key v1\0")
            .chain_update(preshared)
            .finalize();
        PublicKey(hash.into())
    }

    /// Whether the record keeps to its bounds.
    fn is_bounded(&self) -> bool {
        let doors: BTreeSet<&PublicKey> = self.doors.iter().map(|door| &door.node).collect();
        self.tags.len() <= MAX_GUEST_TAGS
            && self.doors.len() <= MAX_DOORS
            && doors.len() == self.doors.len()
    }
}

impl Door {
    /// Seals the preshared key of the guest `id` to the node `node`. `random` must be new for each door. None if `node` is no key.
    #[must_use]
    pub fn seal(
        node: PublicKey,
        id: &WireGuardKey,
        preshared: &[u8; 32],
        random: &[u8; 32],
    ) -> Option<Self> {
        let preshared = Sealed::seal(preshared, &node, &about(id), random)?;
        Some(Self { node, preshared })
    }
}

/// What the preshared key of a guest is sealed for.
fn about(id: &WireGuardKey) -> Vec<u8> {
    [&b"preshared key of guest\0"[..], &id.0].concat()
}

//! The durable store of a coordinator, behind one trait: a SQLite file of one coordinator, or an etcd cluster that several
//! coordinators share.
//!
//! Besides records the store keeps what must be decided once for all coordinators that share it: which node spent a use of a
//! token, and which node has which name and which block. Each call is one transaction, and its effect is on disk when the call
//! returns.
//!
//! The store records which tokens it issued. For those, its table of admissions is complete; for tokens from before a restoration
//! it may not be. So a store that was restored from a backup forgets which tokens it issued and takes another name, because nodes
//! may have joined after the backup.
//!
//! A store that several coordinators share accepts a write only from a coordinator that has read all earlier writes.
//! Any other coordinator receives [`StoreError::Behind`], applies [`Store::news`], decides its write again and repeats
//! it. So all coordinators hold the same records under the same revisions, and no coordinator decides with an old
//! state.

mod backup;
#[cfg(feature = "etcd")]
mod etcd;
mod memory;
mod sqlite;

use std::collections::HashSet;
use std::path::PathBuf;

use tokio::sync::watch;

pub(super) use backup::FILE;
pub use backup::{back_up, restore};
#[cfg(feature = "etcd")]
pub use etcd::Etcd;
#[cfg(all(test, feature = "etcd"))]
pub(crate) use etcd::fixture::EtcdFixture;
pub use memory::{Memory, MemoryBackup, MemoryDisk, Sharing};
pub use sqlite::Sqlite;

use crate::model::{Label, PublicKey};
use crate::os::random;
use crate::records::Envelope;
use crate::records::kinds::RecordKey;

/// The contents of a store.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The random name of this store. Revisions of a store with another name cannot be compared with this one's.
    pub id: String,
    /// The key that all records are verified up to. It is absent before `meshctl init`.
    pub mesh_key: Option<PublicKey>,
    /// All records, in the order of their revisions.
    pub records: Vec<Stored>,
    /// The last revision.
    pub revision: u64,
    /// Whether the store came from a backup, and the nodes have not yet offered the records that are newer.
    pub restored: bool,
}

/// A record in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The revision at which this version of the record was stored.
    pub revision: u64,
    pub key: RecordKey,
    pub envelope: Envelope,
}

/// A record to be stored, with its effects.
#[derive(Debug, Clone)]
pub struct Write {
    pub key: RecordKey,
    pub envelope: Envelope,
    /// Other records that the ledger dropped because of this one. They are deleted in the same transaction.
    pub gone: Vec<RecordKey>,
    /// The effect on tokens, names and blocks, in the same transaction.
    pub effect: Effect,
}

/// The effect of a record on tokens, names and blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    None,
    /// The administrator issued this token through this store.
    Issued(PublicKey),
    /// A removed node was a member, so it counts as a use of its token.
    Spent {
        /// The removed node.
        node: PublicKey,
        /// The token that admitted it.
        token: PublicKey,
    },
    /// A node is a member that did not join through this store. It counts as a use of its token, and it has its name.
    Admitted {
        node: PublicKey,
        /// The token that admitted it.
        token: PublicKey,
        name: Label,
    },
    /// A node published which block it has. The block that it had before becomes free.
    Leased {
        node: PublicKey,
        /// The index of the block.
        block: u32,
    },
    /// These nodes are not members any more. Their names and blocks become free; the uses of tokens that they spent stay spent.
    Released(Vec<PublicKey>),
}

/// A node to be admitted.
#[derive(Debug, Clone)]
pub struct Admission {
    pub node: PublicKey,
    pub name: Label,
    pub token: PublicKey,
    /// How many nodes the token may admit.
    pub uses: u32,
    /// How many blocks the address plan has. Block 0 is never leased.
    pub blocks: u32,
    /// The key of the membership record.
    pub key: RecordKey,
    pub envelope: Envelope,
}

/// The result of an admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// The index of the node's address block.
    pub block: u32,
    /// The revision at which its membership was stored.
    pub revision: u64,
}

/// What other coordinators wrote.
#[derive(Debug, Clone)]
pub enum News {
    /// The records that changed.
    Changes {
        /// The key that all records are verified up to.
        mesh_key: Option<PublicKey>,
        /// The records in the order of their revisions, with only the last version of each.
        records: Vec<Stored>,
        /// The last revision.
        revision: u64,
        /// As in [`Contents`].
        restored: bool,
    },
    /// All records, because the changes are not known any more.
    Everything(Contents),
}

/// The maximum size of one [`Store::put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The maximum number of records.
    pub records: usize,
    /// The maximum size of their payloads together, in bytes. A single record may be larger.
    pub bytes: usize,
}

/// The settings of the connection to an etcd cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdSettings {
    /// `http://` or `https://`, host and port of each member.
    pub endpoints: Vec<String>,
    /// The prefix of all keys.
    pub prefix: String,
    /// The user of the coordinator, if etcd requires one.
    pub user: Option<String>,
    /// The file with that user's password.
    pub password_file: Option<PathBuf>,
    /// The certificates (PEM) of the authorities that sign etcd's certificates.
    pub ca_file: Option<PathBuf>,
    /// The coordinator's own certificate (PEM), if etcd requires one.
    pub certificate_file: Option<PathBuf>,
    /// The key of that certificate (PEM).
    pub key_file: Option<PathBuf>,
}

/// The first block to lease in a store that came from a backup. It is a random block in the upper half of those that were never
/// leased, because blocks that were leased after the backup lie directly above those in the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LeaseStart {
    /// The highest block that was leased in the backup.
    above: u32,
    /// A random number that selects one of the blocks in that half.
    turn: u32,
}

impl LeaseStart {
    /// For a store in which no block is leased beyond `above`.
    fn beyond(above: u32) -> Result<Self, StoreError> {
        let turn = random::u32().map_err(|e| StoreError::Failed(e.to_string()))?;
        Ok(Self { above, turn })
    }

    /// The first block to lease, in a mesh with this number of blocks.
    fn block(self, blocks: u32) -> u32 {
        let first = u64::from(self.above) + 1;
        let half = u64::from(blocks).saturating_sub(first) / 2;
        let start = first + half + ((half * u64::from(self.turn)) >> 32);
        u32::try_from(start).unwrap_or(1)
    }
}

/// Why a store refuses a call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The token has admitted the maximum number of nodes.
    #[error(
        "the token is spent: it has admitted {0} node(s), all it may; make another with `meshctl token create`"
    )]
    TokenSpent(u32),
    /// Another node has the name.
    #[error("the name {0} is taken by another node")]
    NameTaken(Label),
    /// No block is left.
    #[error(
        "all {0} address blocks of the mesh are leased; remove nodes with `meshctl node remove`, or plan a larger mesh"
    )]
    NoBlock(u32),
    /// The disk is full.
    #[error(
        "the disk with the coordinator's state is full; make room there and try again, nothing that was acknowledged is lost"
    )]
    Full,
    /// Another coordinator wrote something that this one has not read.
    #[error("other coordinators write at the same time; try again")]
    Behind,
    /// Any other failure.
    #[error("the coordinator's store failed: {0}")]
    Failed(String),
}

/// The number of attempts of a write, in a store without a time limit for them.
const MAX_ATTEMPTS: u32 = 64;

/// The durable tables of records, leases and token uses. A call that succeeds has its effect on disk. A call that fails has none.
pub trait Store: Send + 'static {
    /// Loads all contents.
    ///
    /// # Errors
    /// The store cannot be read.
    fn load(&mut self) -> Result<Contents, StoreError>;

    /// Sets the mesh key, once.
    ///
    /// # Errors
    /// The store cannot be written.
    fn set_mesh_key(&mut self, key: &PublicKey) -> Result<(), StoreError>;

    /// Stores records in order, each under a revision of its own and without gaps. Returns the last revision. A call without
    /// records tests whether the store can be written.
    ///
    /// # Errors
    /// The store cannot be written; none is stored then.
    fn put(&mut self, writes: &[Write]) -> Result<u64, StoreError>;

    /// Spends a use of the token, reserves the name, leases a block and stores the membership, all or nothing. A node
    /// that the same token has admitted before spends nothing and keeps its block. The same membership has the same
    /// result again.
    ///
    /// # Errors
    /// Which of these is not possible.
    fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError>;

    /// Whether the administrator issued the token through this store. Then the store knows all uses of the token.
    ///
    /// # Errors
    /// The store cannot be read.
    fn is_issued_here(&mut self, token: &PublicKey) -> Result<bool, StoreError>;

    /// Stores the departure that a node has signed in advance. It replaces an earlier one.
    ///
    /// # Errors
    /// The store cannot be written.
    fn store_departure(&mut self, node: &PublicKey, departure: &Envelope)
    -> Result<(), StoreError>;

    /// The stored departure of a node.
    ///
    /// # Errors
    /// The store cannot be read.
    fn departure(&mut self, node: &PublicKey) -> Result<Option<Envelope>, StoreError>;

    /// Records that the nodes have offered what happened between a backup and its restoration.
    ///
    /// # Errors
    /// The store cannot be written.
    fn set_refilled(&mut self) -> Result<(), StoreError>;

    /// Marks a store that has lost records as restored from a backup ([`Contents::restored`]), and gives it a new name. So nodes
    /// offer all records that they hold, and the store no longer relies on knowing all uses of tokens.
    ///
    /// # Errors
    /// The store cannot be written, and nothing has changed.
    fn set_restored(&mut self) -> Result<(), StoreError>;

    /// Whether the node may have the block: the block is leased to it, or the node has no lease and the block is leased
    /// to nobody.
    ///
    /// # Errors
    /// The store cannot be read.
    fn may_lease(&mut self, node: &PublicKey, block: u32) -> Result<bool, StoreError>;

    /// Whether the block may have been leased to a node without the knowledge of this store: the store was restored, and
    /// the block is leased to nobody.
    ///
    /// # Errors
    /// The store cannot be read.
    fn may_have_leased(&mut self, block: u32) -> Result<bool, StoreError>;

    /// Deletes records that the ledger does not hold, without a new revision. A record that is not stored is skipped.
    ///
    /// # Errors
    /// The store cannot be written.
    fn forget(&mut self, records: &[RecordKey]) -> Result<(), StoreError>;

    /// Whether the token may have admitted the node without the knowledge of this store. That is impossible if the
    /// token was issued through this store and did not admit the node through it.
    ///
    /// # Errors
    /// The store cannot be read.
    fn may_have_admitted(
        &mut self,
        token: &PublicKey,
        node: &PublicKey,
    ) -> Result<bool, StoreError>;

    /// The maximum size of one [`Store::put`].
    fn bounds(&self) -> Bounds {
        Bounds {
            records: usize::MAX,
            bytes: usize::MAX,
        }
    }

    /// What other coordinators wrote since the last call, or since the contents were loaded.
    ///
    /// # Errors
    /// The store cannot be read.
    fn news(&mut self) -> Result<Option<News>, StoreError> {
        Ok(None)
    }

    /// Waits until [`Store::news`] knows all that other coordinators have written.
    ///
    /// # Errors
    /// The store cannot be read.
    fn sync(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Called after a write that failed with [`StoreError::Behind`], with the number of attempts that failed before it. Returns
    /// whether the write should be tried again. A store that other processes write to pauses first.
    fn another_attempt(&mut self, attempt: u32) -> bool {
        attempt < MAX_ATTEMPTS
    }

    /// A receiver that is notified of news; absent if no other coordinator uses the store.
    fn followed(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// Tells the other coordinators which nodes are connected to this one. The information is valid for some minutes.
    ///
    /// # Errors
    /// The store cannot be written.
    fn set_present(&mut self, _nodes: &[PublicKey]) -> Result<(), StoreError> {
        Ok(())
    }

    /// The nodes that are connected to any of the coordinators that share the store, or were some minutes ago.
    ///
    /// # Errors
    /// The store cannot be read.
    fn present(&mut self) -> Result<HashSet<PublicKey>, StoreError> {
        Ok(HashSet::new())
    }

    /// Stores the hash of the coordinator's TLS key, unless one is stored. Returns the stored one. All coordinators that share a
    /// store must have the same key.
    ///
    /// # Errors
    /// The store cannot be written.
    fn note_pin(&mut self, pin: &str) -> Result<String, StoreError> {
        Ok(pin.to_owned())
    }
}

#[cfg(test)]
mod tests;

//! Where records are kept: a narrow trait, so that one machine's SQLite and a shared store look the same.
//!
//! Besides records the store keeps what must be decided once for all coordinators that share it: which node spent a
//! token's use, which name and which block is whose. Each call is one transaction, and what it did is on disk when
//! it returns. Which tokens were issued here is kept too: for those the admissions held are all there ever were. A
//! store brought back from a backup must forget that (and take another id), since nodes may have joined after it.
//!
//! A store that several coordinators share takes a write only from one that has seen all that is in it: any other is
//! told [`StoreError::Behind`], takes in what is [`Store::news`] to it, looks at its write again, and comes back. So all
//! hold the same records under the same revisions, and each decides on what is true.

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
pub(crate) use etcd::rig::Rig;
pub use memory::{Memory, MemoryBackup, MemoryDisk, Sharing};
pub use sqlite::Sqlite;

use crate::model::{Label, PublicKey};
use crate::records::Envelope;
use crate::records::kinds::RecordKey;

/// Everything in the store.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Random name of this store: another one's revisions mean nothing here.
    pub id: String,
    /// What everything is verified up to; absent before `meshctl init`.
    pub mesh_key: Option<PublicKey>,
    /// All records, in the order of their revisions.
    pub records: Vec<Stored>,
    /// The last revision.
    pub revision: u64,
    /// It came from a backup, and the nodes have not yet told all that happened since.
    pub restored: bool,
}

/// A record as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The revision that brought this version of it.
    pub revision: u64,
    /// Which record.
    pub key: RecordKey,
    /// What travels.
    pub envelope: Envelope,
}

/// A record to be stored, and what follows from it.
#[derive(Debug, Clone)]
pub struct Write {
    /// Which record.
    pub key: RecordKey,
    /// What travels.
    pub envelope: Envelope,
    /// Other records that the ledger dropped because of this one. They are deleted in the same transaction.
    pub gone: Vec<RecordKey>,
    /// Takes effect in the same transaction.
    pub effect: Effect,
}

/// What follows from a record for tokens, names and blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The administrator issued this token here.
    Issued(PublicKey),
    /// A removed node was a member, so it counts as a use of its token.
    Spent {
        /// The removed node.
        node: PublicKey,
        /// The token that admitted it.
        token: PublicKey,
    },
    /// A node is a member that did not join here: it counts as a use of its token, and has its name.
    Admitted {
        /// Who.
        node: PublicKey,
        /// By which token.
        token: PublicKey,
        /// Under which name.
        name: Label,
    },
    /// A node says which block it has. The block it had before is free.
    Leased {
        /// Who.
        node: PublicKey,
        /// Index of the block.
        block: u32,
    },
    /// These nodes are not members any more: their names and blocks are free. Their uses of a token stay spent.
    Released(Vec<PublicKey>),
}

/// A node to be admitted.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Who.
    pub node: PublicKey,
    /// Under which name.
    pub name: Label,
    /// With which token.
    pub token: PublicKey,
    /// How many nodes that token may admit.
    pub uses: u32,
    /// How many blocks the address plan has; block 0 is nobody's.
    pub blocks: u32,
    /// The membership record.
    pub key: RecordKey,
    /// As it is stored.
    pub envelope: Envelope,
}

/// The node is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Index of its address block.
    pub block: u32,
    /// The revision that holds its membership.
    pub revision: u64,
}

/// What other coordinators wrote.
#[derive(Debug, Clone)]
pub enum News {
    /// What changed, up to this revision.
    Changes {
        /// What everything is verified up to.
        mesh_key: Option<PublicKey>,
        /// In the order of their revisions; of several versions of one only the last.
        records: Vec<Stored>,
        /// The last revision.
        revision: u64,
        /// As in [`Contents`].
        restored: bool,
    },
    /// What changed is not known any more.
    Everything(Contents),
}

/// How much one [`Store::put`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Records at most.
    pub records: usize,
    /// Octets of their payloads at most; a single record may have more.
    pub octets: usize,
}

/// Where an etcd cluster is, and how to speak to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdSettings {
    /// `http://` or `https://`, host and port of each member.
    pub endpoints: Vec<String>,
    /// All keys begin with it.
    pub prefix: String,
    /// Who the coordinator is, if etcd asks.
    pub user: Option<String>,
    /// Holds that user's password.
    pub password_file: Option<PathBuf>,
    /// Certificates (PEM) that etcd's are signed by.
    pub ca_file: Option<PathBuf>,
    /// The coordinator's own certificate (PEM), if etcd asks for one.
    pub certificate_file: Option<PathBuf>,
    /// Its key (PEM).
    pub key_file: Option<PathBuf>,
}

/// Where leases begin in a store that came from a backup: somewhere in the upper half of what was never leased, since those
/// given after the backup was taken lie right above those in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LeaseStart {
    /// The highest block leased by then.
    above: u32,
    /// Random: from which of the blocks in that half.
    turn: u32,
}

impl LeaseStart {
    /// For a store in which no block is leased beyond `above`.
    fn beyond(above: u32) -> Result<Self, StoreError> {
        let turn = getrandom::u32().map_err(|e| StoreError::Failed(e.to_string()))?;
        Ok(Self { above, turn })
    }

    /// The first block to lease, of a mesh of so many.
    fn block(self, blocks: u32) -> u32 {
        let first = u64::from(self.above) + 1;
        let half = u64::from(blocks).saturating_sub(first) / 2;
        let start = first + half + ((half * u64::from(self.turn)) >> 32);
        u32::try_from(start).unwrap_or(1)
    }
}

/// Why a store does not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The token has admitted as many nodes as it may.
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
    /// Another coordinator wrote something that this one has not seen.
    #[error("other coordinators write at the same time; try again")]
    Behind,
    /// Anything else.
    #[error("the coordinator's store failed: {0}")]
    Failed(String),
}

/// The number of attempts of a write, in a store without a time limit for them.
const MAX_ATTEMPTS: u32 = 64;

/// Records, leases and token uses, durable. A call that returns has its effect on disk; one that fails has none.
pub trait Store: Send + 'static {
    /// Everything, at the start.
    ///
    /// # Errors
    /// The store cannot be read.
    fn load(&mut self) -> Result<Contents, StoreError>;

    /// Sets the mesh key, once.
    ///
    /// # Errors
    /// The store cannot be written.
    fn set_mesh_key(&mut self, key: &PublicKey) -> Result<(), StoreError>;

    /// Stores records, each under a revision of its own, in order and without gaps; gives the last revision. Nothing
    /// to store is a test whether the store can be written.
    ///
    /// # Errors
    /// The store cannot be written; none is stored then.
    fn put(&mut self, writes: &[Write]) -> Result<u64, StoreError>;

    /// Spends a use of the token, takes the name, leases a block and stores the membership: all or nothing. A node
    /// admitted before with the same token spends nothing and keeps its block; the very same membership gives the same
    /// answer again.
    ///
    /// # Errors
    /// Says which of these cannot be.
    fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError>;

    /// Whether the administrator issued the token to this very store: all its uses are known here then.
    ///
    /// # Errors
    /// The store cannot be read.
    fn is_issued_here(&mut self, token: &PublicKey) -> Result<bool, StoreError>;

    /// Keeps a node's departure until it is due; a later one replaces it.
    ///
    /// # Errors
    /// The store cannot be written.
    fn set_farewell(&mut self, node: &PublicKey, departure: &Envelope) -> Result<(), StoreError>;

    /// The departure kept for a node.
    ///
    /// # Errors
    /// The store cannot be read.
    fn farewell(&mut self, node: &PublicKey) -> Result<Option<Envelope>, StoreError>;

    /// The nodes have told what happened between a backup and its restoration.
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

    /// Whether the node may have the block: the block is leased to it, or the node has no lease and the block is leased to nobody.
    ///
    /// # Errors
    /// The store cannot be read.
    fn may_lease(&mut self, node: &PublicKey, block: u32) -> Result<bool, StoreError>;

    /// Deletes records that the ledger does not hold, without a new revision. A record that is not stored is skipped.
    ///
    /// # Errors
    /// The store cannot be written.
    fn forget(&mut self, records: &[RecordKey]) -> Result<(), StoreError>;

    /// Whether a membership that comes by itself, by this token, may be one that this store has not seen: not if
    /// the token was issued here and did not admit the node here.
    ///
    /// # Errors
    /// The store cannot be read.
    fn may_have_admitted(
        &mut self,
        token: &PublicKey,
        node: &PublicKey,
    ) -> Result<bool, StoreError>;

    /// How much one [`Store::put`] takes.
    fn bounds(&self) -> Bounds {
        Bounds {
            records: usize::MAX,
            octets: usize::MAX,
        }
    }

    /// What others wrote since the last call, or since everything was loaded.
    ///
    /// # Errors
    /// The store cannot be read.
    fn news(&mut self) -> Result<Option<News>, StoreError> {
        Ok(None)
    }

    /// Waits until all that others have written is news.
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

    /// Wakes who waits for news; absent if there never is any.
    fn followed(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// Tells the others which nodes are connected here. Holds for a few minutes.
    ///
    /// # Errors
    /// The store cannot be written.
    fn set_present(&mut self, _nodes: &[PublicKey]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Who is, or was minutes ago, connected to any of the coordinators that share the store.
    ///
    /// # Errors
    /// The store cannot be read.
    fn present(&mut self) -> Result<HashSet<PublicKey>, StoreError> {
        Ok(HashSet::new())
    }

    /// Notes the hash of the TLS key that nodes know this coordinator by; gives the one noted first. All that
    /// share a store have to have the same.
    ///
    /// # Errors
    /// The store cannot be written.
    fn note_pin(&mut self, pin: &str) -> Result<String, StoreError> {
        Ok(pin.to_owned())
    }
}

#[cfg(test)]
mod tests;

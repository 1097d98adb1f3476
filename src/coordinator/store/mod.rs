//! Where records are kept: a narrow trait, so that one machine's SQLite and a shared store look the same.

mod sqlite;

pub use sqlite::Sqlite;

use crate::model::record::RecordKey;
use crate::model::{Label, PublicKey};
use crate::wire::Envelope;

/// Everything in the store.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Random name of this store: another one's revisions mean nothing here.
    pub id: String,
    /// What everything is verified up to; absent before `meshctl init`.
    pub mesh_key: Option<PublicKey>,
    /// All records with the revision that brought them, in that order.
    pub records: Vec<(u64, Envelope)>,
    /// The last revision.
    pub revision: u64,
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

/// Why a store does not do as asked.
#[derive(Debug, thiserror::Error)]
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
        "all {0} address blocks of the mesh are leased; remove nodes with `meshctl node remove`"
    )]
    NoBlock(u32),
    /// The disk is full.
    #[error("the disk of the coordinator's state is full; make room there, nothing was lost")]
    Full,
    /// Anything else.
    #[error("the coordinator's store failed: {0}")]
    Failed(String),
}

/// Records, leases and token uses, durable. A call that returns has its effect on disk.
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

    /// Stores records, each under a revision of its own; gives the last one.
    ///
    /// # Errors
    /// The store cannot be written; none is stored then.
    fn put(&mut self, records: &[(RecordKey, Envelope)]) -> Result<u64, StoreError>;

    /// Spends a use of the token, takes the name, leases a block and stores the membership: all or nothing.
    /// A node admitted before, with the same token, gets the same block again.
    ///
    /// # Errors
    /// Says which of these cannot be.
    fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError>;

    /// A node admitted elsewhere, or before this store was made, says which block it has.
    ///
    /// # Errors
    /// The store cannot be written.
    fn note_lease(
        &mut self,
        node: &PublicKey,
        name: &Label,
        token: &PublicKey,
        block: u32,
    ) -> Result<(), StoreError>;

    /// The node is gone: its name and block are free. Its token's use stays spent.
    ///
    /// # Errors
    /// The store cannot be written.
    fn release(&mut self, node: &PublicKey) -> Result<(), StoreError>;
}

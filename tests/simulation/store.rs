//! The disk of the coordinators in a simulation: the product's store in memory, with notes for the invariants and with faults
//! that are made on purpose.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meshd::coordinator::store::{
    Admission, Admitted, Bounds, Contents, Memory, MemoryBackup, MemoryDisk, News, Sharing, Store,
    StoreError, Write,
};
use meshd::model::PublicKey;
use meshd::records::Envelope;
use meshd::records::kinds::RecordKey;
use tokio::sync::watch;

use super::random::Random;
use super::truth::Life;

/// A fault that is put into a simulation to find out whether its invariants notice it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// The store leases a block that another node has.
    LeaseTwice,
    /// A node's ledger accepts a record with a wrong signer.
    WrongSigner,
    /// A node's zone has lost a name.
    LoseName,
}

#[derive(Debug, Default)]
struct Notes {
    backup: Option<MemoryBackup>,
    life: Life,
    restores: u64,
    /// The blocks that were leased, in their order.
    leased: Vec<u32>,
}

/// The disk of a store, which outlives the programs that use it.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    disk: MemoryDisk,
    notes: Arc<Mutex<Notes>>,
    sabotage: Option<Sabotage>,
}

impl Disk {
    /// A disk for this number of coordinators.
    pub(crate) fn new(coordinators: usize, seed: u64, sabotage: Option<Sabotage>) -> Self {
        let sharing = if coordinators > 1 {
            Sharing::Shared
        } else {
            Sharing::Exclusive
        };
        let mut random = Random::new(seed);
        Self {
            disk: MemoryDisk::new(sharing, move || random.next()),
            notes: Arc::default(),
            sabotage,
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows with each loss of records.
    pub(crate) fn life(&self) -> Life {
        self.notes().life
    }

    /// How often the store was taken for one that lost records.
    pub(crate) fn restores(&self) -> u64 {
        self.notes().restores
    }

    pub(crate) fn open(&self) -> Box<dyn Store> {
        Box::new(Watched {
            store: self.disk.open(),
            disk: self.clone(),
        })
    }

    /// The machine of a coordinator lost power. Returns whether acknowledged writes were lost.
    pub(crate) fn crash(&self) -> bool {
        let has_lost = self.disk.crash();
        self.notes().life += u64::from(has_lost);
        has_lost
    }

    /// From now on the disk acknowledges writes before they are stored, and stores them when [`Disk::sync`] is called.
    pub(crate) fn set_cached(&self, is_cached: bool) {
        self.disk.set_cached(is_cached);
    }

    pub(crate) fn sync(&self) {
        self.disk.sync();
    }

    pub(crate) fn make_room(&self) {
        self.disk.set_failure(None);
    }

    /// Fills the disk, or makes room on it. Returns whether it is full now.
    pub(crate) fn toggle_full(&self) -> bool {
        let is_full = !self.disk.is_failing();
        self.disk.set_failure(is_full.then_some(StoreError::Full));
        is_full
    }

    pub(crate) fn back_up(&self) {
        let backup = self.disk.back_up();
        self.notes().backup = Some(backup);
    }

    /// The owner gets the store back from an attacker, and treats it as one that was restored from a backup.
    pub(crate) fn mistrust(&self) {
        self.disk.restore(&self.disk.back_up());
        let mut notes = self.notes();
        notes.life += 1;
        notes.restores += 1;
    }

    /// Puts the backup back. With `is_told` the store knows that it is a backup, as after `mesh-coordinator restore`. Returns
    /// false if there is no backup.
    pub(crate) fn restore(&self, is_told: bool) -> bool {
        let mut notes = self.notes();
        let Some(backup) = notes.backup.clone() else {
            return false;
        };
        notes.life += 1;
        if is_told {
            notes.restores += 1;
            self.disk.restore(&backup);
        } else {
            self.disk.put_back(&backup);
        }
        true
    }
}

/// The store as one coordinator has it open.
struct Watched {
    store: Memory,
    disk: Disk,
}

impl Store for Watched {
    fn load(&mut self) -> Result<Contents, StoreError> {
        self.store.load()
    }

    fn set_mesh_key(&mut self, key: &PublicKey) -> Result<(), StoreError> {
        self.store.set_mesh_key(key)
    }

    fn put(&mut self, writes: &[Write]) -> Result<u64, StoreError> {
        self.store.put(writes)
    }

    fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError> {
        let mut admitted = self.store.admit(admission)?;
        let mut notes = self.disk.notes();
        let is_new = !notes.leased.contains(&admitted.block);
        if self.disk.sabotage == Some(Sabotage::LeaseTwice)
            && is_new
            && let Some(other) = notes.leased.get(2)
        {
            admitted.block = *other;
        }
        notes.leased.push(admitted.block);
        Ok(admitted)
    }

    fn is_issued_here(&mut self, token: &PublicKey) -> Result<bool, StoreError> {
        self.store.is_issued_here(token)
    }

    fn store_departure(
        &mut self,
        node: &PublicKey,
        departure: &Envelope,
    ) -> Result<(), StoreError> {
        self.store.store_departure(node, departure)
    }

    fn departure(&mut self, node: &PublicKey) -> Result<Option<Envelope>, StoreError> {
        self.store.departure(node)
    }

    fn set_refilled(&mut self) -> Result<(), StoreError> {
        self.store.set_refilled()
    }

    fn set_restored(&mut self) -> Result<(), StoreError> {
        self.store.set_restored()?;
        let mut notes = self.disk.notes();
        notes.life += 1;
        notes.restores += 1;
        Ok(())
    }

    fn may_lease(&mut self, node: &PublicKey, block: u32) -> Result<bool, StoreError> {
        self.store.may_lease(node, block)
    }

    fn may_have_leased(&mut self, block: u32) -> Result<bool, StoreError> {
        self.store.may_have_leased(block)
    }

    fn forget(&mut self, records: &[RecordKey]) -> Result<(), StoreError> {
        self.store.forget(records)
    }

    fn may_have_admitted(
        &mut self,
        token: &PublicKey,
        node: &PublicKey,
    ) -> Result<bool, StoreError> {
        self.store.may_have_admitted(token, node)
    }

    fn bounds(&self) -> Bounds {
        self.store.bounds()
    }

    fn news(&mut self) -> Result<Option<News>, StoreError> {
        self.store.news()
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.store.sync()
    }

    fn followed(&self) -> Option<watch::Receiver<u64>> {
        self.store.followed()
    }

    fn set_present(&mut self, nodes: &[PublicKey]) -> Result<(), StoreError> {
        self.store.set_present(nodes)
    }

    fn present(&mut self) -> Result<HashSet<PublicKey>, StoreError> {
        self.store.present()
    }

    fn another_attempt(&mut self, attempt: u32) -> bool {
        self.store.another_attempt(attempt)
    }

    fn note_pin(&mut self, pin: &str) -> Result<String, StoreError> {
        self.store.note_pin(pin)
    }
}

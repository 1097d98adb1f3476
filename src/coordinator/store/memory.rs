//! A store in memory that decides as the SQLite store does. Tests and simulations use it.
//!
//! A [`MemoryDisk`] holds the contents and outlives the coordinators that use it. Each coordinator opens a [`Memory`]
//! on it. Several coordinators may share a disk, as they share an etcd cluster. The disk can be full, can fail, can
//! lose writes that were not synced, and can be copied and put back. It takes its randomness from the caller, so that a
//! simulation is determined by its seed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{
    Admission, Admitted, Contents, Effect, LeaseStart, News, Store, StoreError, Stored, Write,
};
use crate::model::{Label, PublicKey};
use crate::records::Envelope;
use crate::records::kinds::RecordKey;

/// How many coordinators write to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// One coordinator, as with a SQLite file.
    Exclusive,
    /// Several coordinators, as with an etcd cluster. A write of a coordinator that has not read all earlier ones fails with
    /// [`StoreError::Behind`].
    Shared,
}

/// The disk of a [`Memory`] store. Clones refer to the same disk.
#[derive(Debug, Clone)]
pub struct MemoryDisk {
    disk: Arc<Mutex<Disk>>,
    sharing: Sharing,
    revision: watch::Sender<u64>,
}

/// A copy of a disk's contents.
#[derive(Debug, Clone)]
pub struct MemoryBackup(Tables);

struct Disk {
    tables: Tables,
    /// What a crash leaves; absent if every write is synced.
    synced: Option<Synced>,
    /// Every write fails with this error.
    failure: Option<StoreError>,
    /// Grows with every change, including those without a revision.
    changes: u64,
    /// Grows whenever the contents are replaced as a whole.
    replacements: u64,
    /// The nodes that are connected to each of the coordinators that opened the disk.
    present: BTreeMap<u64, Vec<PublicKey>>,
    opened: u64,
    pin: Option<String>,
    random: Box<dyn FnMut() -> u64 + Send>,
}

/// The contents of a disk at the last sync.
struct Synced {
    tables: Tables,
    /// The number of changes that they contain.
    changes: u64,
}

#[derive(Debug, Clone, Default)]
struct Tables {
    id: String,
    mesh_key: Option<PublicKey>,
    records: BTreeMap<RecordKey, (u64, Envelope)>,
    revision: u64,
    restored: bool,
    issued: BTreeSet<PublicKey>,
    /// Pairs of a token and a node that it admitted.
    admissions: BTreeSet<(PublicKey, PublicKey)>,
    names: BTreeMap<PublicKey, Label>,
    leases: BTreeMap<PublicKey, u32>,
    /// Blocks that were leased once, with the revision at which they became free.
    released: BTreeMap<u32, u64>,
    departures: BTreeMap<PublicKey, Envelope>,
    lease_start: Option<LeaseStart>,
}

impl MemoryDisk {
    /// A new and empty disk. `random` gives the name of the store and the start of leases after a restoration.
    pub fn new(sharing: Sharing, mut random: impl FnMut() -> u64 + Send + 'static) -> Self {
        let tables = Tables {
            id: new_id(&mut random),
            ..Tables::default()
        };
        let disk = Disk {
            tables,
            synced: None,
            failure: None,
            changes: 0,
            replacements: 0,
            present: BTreeMap::new(),
            opened: 0,
            pin: None,
            random: Box::new(random),
        };
        Self {
            disk: Arc::new(Mutex::new(disk)),
            sharing,
            revision: watch::channel(0).0,
        }
    }

    /// Opens the disk for one coordinator.
    #[must_use]
    pub fn open(&self) -> Memory {
        let mut disk = self.disk();
        disk.opened += 1;
        Memory {
            number: disk.opened,
            seen: Seen::of(&disk),
            disk: self.clone(),
        }
    }

    /// Makes every write fail with `error` from now on, or lets writes succeed again. [`StoreError::Full`] is a full disk.
    pub fn set_failure(&self, error: Option<StoreError>) {
        self.disk().failure = error;
    }

    /// Whether writes fail.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.disk().failure.is_some()
    }

    /// Makes the disk keep its writes in a cache that a crash loses, until [`MemoryDisk::sync`] is called. Without a cache every
    /// write is synced before it returns, which is what SQLite and etcd do.
    pub fn set_cached(&self, is_cached: bool) {
        let mut disk = self.disk();
        disk.synced = is_cached.then(|| Synced::of(&disk));
    }

    /// Syncs all writes.
    pub fn sync(&self) {
        let mut disk = self.disk();
        if disk.synced.is_some() {
            disk.synced = Some(Synced::of(&disk));
        }
    }

    /// Loses the writes that were not synced. Returns whether there were any. The caller also drops the hubs that use the disk,
    /// because their programs ended.
    pub fn crash(&self) -> bool {
        let mut disk = self.disk();
        let Some(synced) = disk.synced.take() else {
            return false;
        };
        let has_lost = synced.changes < disk.changes;
        if has_lost {
            disk.replace(synced.tables);
        }
        disk.synced = Some(Synced::of(&disk));
        has_lost
    }

    /// Copies the contents.
    #[must_use]
    pub fn back_up(&self) -> MemoryBackup {
        MemoryBackup(self.disk().tables.clone())
    }

    /// Replaces the contents by those of `backup`. Nothing in the store indicates that, as when a file is replaced by
    /// an older copy.
    pub fn put_back(&self, backup: &MemoryBackup) {
        self.disk().replace(backup.0.clone());
        self.notify();
    }

    /// Replaces the contents by those of `backup` and marks them as restored, as `mesh-coordinator restore` does.
    pub fn restore(&self, backup: &MemoryBackup) {
        let mut disk = self.disk();
        disk.replace(backup.0.clone());
        disk.mark_restored();
        drop(disk);
        self.sync();
        self.notify();
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the coordinators that share the disk.
    fn notify(&self) {
        let revision = self.disk().tables.revision;
        self.revision.send_replace(revision);
    }
}

impl Synced {
    fn of(disk: &Disk) -> Self {
        Self {
            tables: disk.tables.clone(),
            changes: disk.changes,
        }
    }
}

impl Disk {
    fn replace(&mut self, tables: Tables) {
        self.tables = tables;
        self.changes += 1;
        self.replacements += 1;
        if self.synced.is_some() {
            self.synced = Some(Synced::of(self));
        }
    }

    fn mark_restored(&mut self) {
        self.tables.id = new_id(&mut self.random);
        let turn = u32::try_from((self.random)() >> 32).unwrap_or(0);
        let blocks = self
            .tables
            .leases
            .values()
            .chain(self.tables.released.keys());
        let above = blocks.copied().max().unwrap_or(0);
        self.tables.restored = true;
        self.tables.issued.clear();
        self.tables.lease_start = Some(LeaseStart { above, turn });
        self.changes += 1;
        self.replacements += 1;
    }
}

fn new_id(random: &mut dyn FnMut() -> u64) -> String {
    format!("{:016x}{:016x}", random(), random())
}

impl Tables {
    fn write(&mut self, key: &RecordKey, envelope: &Envelope) -> u64 {
        self.revision += 1;
        let stored = (self.revision, envelope.clone());
        self.records.insert(key.clone(), stored);
        self.revision
    }

    fn delete(&mut self, records: &[RecordKey]) {
        for key in records {
            self.records.remove(key);
        }
    }

    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::None => {}
            Effect::Issued(token) => {
                self.issued.insert(*token);
            }
            Effect::Spent { node, token } => {
                self.admissions.insert((*token, *node));
            }
            Effect::Admitted { node, token, name } => {
                self.admissions.insert((*token, *node));
                self.names.insert(*node, name.clone());
            }
            Effect::Leased { node, block } => {
                self.free_lease(node, Some(*block));
                self.leases.retain(|_, leased| leased != block);
                self.leases.insert(*node, *block);
            }
            Effect::Released(nodes) => {
                for node in nodes {
                    self.free_lease(node, None);
                    self.leases.remove(node);
                    self.names.remove(node);
                    self.departures.remove(node);
                }
            }
        }
    }

    /// Adds the node's block, unless it is `kept`, to those that are free again.
    fn free_lease(&mut self, node: &PublicKey, kept: Option<u32>) {
        if let Some(block) = self.leases.get(node).copied()
            && Some(block) != kept
        {
            self.released.insert(block, self.revision);
        }
    }

    fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError> {
        let (token, node) = (admission.token, admission.node);
        if !self.admissions.contains(&(token, node)) {
            let used = self.admissions.iter().filter(|(by, _)| *by == token);
            if used.count() >= admission.uses as usize {
                return Err(StoreError::TokenSpent(admission.uses));
            }
        }
        let mut names = self.names.iter();
        if names.any(|(by, name)| *by != node && *name == admission.name) {
            return Err(StoreError::NameTaken(admission.name.clone()));
        }
        let leased = self.leases.get(&node).copied();
        let block = leased
            .or_else(|| self.free_block(admission.blocks))
            .ok_or(StoreError::NoBlock(admission.blocks.saturating_sub(1)))?;
        self.admissions.insert((token, node));
        self.names.insert(node, admission.name.clone());
        self.leases.insert(node, block);
        let stored = self.records.get(&admission.key);
        let revision = match stored.filter(|(_, envelope)| *envelope == admission.envelope) {
            Some((revision, _)) => *revision,
            None => self.write(&admission.key, &admission.envelope),
        };
        Ok(Admitted { block, revision })
    }

    /// The lowest block at or above the start of leases that was never leased, otherwise the lowest such block of all, otherwise
    /// the block that has been free for the longest time.
    fn free_block(&self, blocks: u32) -> Option<u32> {
        let leased: BTreeSet<u32> = self.leases.values().copied().collect();
        let is_new = |block: &u32| !leased.contains(block) && !self.released.contains_key(block);
        let start = self.lease_start.map_or(1, |start| start.block(blocks));
        let new = (start..blocks)
            .find(is_new)
            .or_else(|| (1..blocks).find(is_new));
        new.or_else(|| {
            let released = self.released.iter();
            released
                .filter(|(block, _)| **block < blocks && !leased.contains(block))
                .min_by_key(|(block, turn)| (**turn, **block))
                .map(|(block, _)| *block)
        })
    }

    /// The records with a revision above `revision`, in the order of their revisions.
    fn records_after(&self, revision: u64) -> Vec<Stored> {
        let mut records: Vec<Stored> = self
            .records
            .iter()
            .filter(|(_, (at, _))| *at > revision)
            .map(|(key, (revision, envelope))| Stored {
                revision: *revision,
                key: key.clone(),
                envelope: envelope.clone(),
            })
            .collect();
        records.sort_by_key(|stored| stored.revision);
        records
    }

    fn contents(&self) -> Contents {
        Contents {
            id: self.id.clone(),
            mesh_key: self.mesh_key,
            records: self.records_after(0),
            revision: self.revision,
            restored: self.restored,
        }
    }
}

/// A store on a [`MemoryDisk`].
#[derive(Debug)]
pub struct Memory {
    disk: MemoryDisk,
    /// Distinguishes the stores that are open on one disk.
    number: u64,
    seen: Seen,
}

/// How far a store has read what other stores wrote to the same disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    revision: u64,
    changes: u64,
    replacements: u64,
}

impl Seen {
    fn of(disk: &Disk) -> Self {
        Self {
            revision: disk.tables.revision,
            changes: disk.changes,
            replacements: disk.replacements,
        }
    }
}

impl Memory {
    /// Makes one change, which is either complete or has no effect, if this store has read all that others wrote.
    fn change<T>(
        &mut self,
        change: impl FnOnce(&mut Disk) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let is_behind = self.seen != Seen::of(&self.disk.disk());
        if self.disk.sharing == Sharing::Shared && is_behind {
            return Err(self
                .disk
                .disk()
                .failure
                .clone()
                .unwrap_or(StoreError::Behind));
        }
        self.change_always(change)
    }

    /// Makes one change that does not depend on what others wrote.
    fn change_always<T>(
        &mut self,
        change: impl FnOnce(&mut Disk) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut disk = self.disk.disk();
        if let Some(error) = &disk.failure {
            return Err(error.clone());
        }
        let has_read_all = self.seen == Seen::of(&disk);
        let result = change(&mut disk)?;
        disk.changes += 1;
        let seen = Seen::of(&disk);
        drop(disk);
        if has_read_all {
            self.seen = seen;
        }
        self.disk.notify();
        Ok(result)
    }

    fn read<T>(&self, read: impl FnOnce(&Tables) -> T) -> Result<T, StoreError> {
        Ok(read(&self.disk.disk().tables))
    }
}

impl Store for Memory {
    fn load(&mut self) -> Result<Contents, StoreError> {
        let disk = self.disk.disk();
        let (contents, seen) = (disk.tables.contents(), Seen::of(&disk));
        drop(disk);
        self.seen = seen;
        Ok(contents)
    }

    fn set_mesh_key(&mut self, key: &PublicKey) -> Result<(), StoreError> {
        self.change(|disk| {
            disk.tables.mesh_key = Some(*key);
            Ok(())
        })
    }

    fn put(&mut self, writes: &[Write]) -> Result<u64, StoreError> {
        if writes.is_empty() {
            let disk = self.disk.disk();
            return match &disk.failure {
                Some(error) => Err(error.clone()),
                None => Ok(disk.tables.revision),
            };
        }
        self.change(|disk| {
            for write in writes {
                disk.tables.write(&write.key, &write.envelope);
                disk.tables.delete(&write.gone);
                disk.tables.apply(&write.effect);
            }
            Ok(disk.tables.revision)
        })
    }

    fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError> {
        self.change(|disk| disk.tables.admit(admission))
    }

    fn is_issued_here(&mut self, token: &PublicKey) -> Result<bool, StoreError> {
        self.read(|tables| tables.issued.contains(token))
    }

    fn store_departure(
        &mut self,
        node: &PublicKey,
        departure: &Envelope,
    ) -> Result<(), StoreError> {
        self.change_always(|disk| {
            disk.tables.departures.insert(*node, departure.clone());
            Ok(())
        })
    }

    fn departure(&mut self, node: &PublicKey) -> Result<Option<Envelope>, StoreError> {
        self.read(|tables| tables.departures.get(node).cloned())
    }

    fn set_refilled(&mut self) -> Result<(), StoreError> {
        self.change_always(|disk| {
            disk.tables.restored = false;
            Ok(())
        })
    }

    fn set_restored(&mut self) -> Result<(), StoreError> {
        self.change_always(|disk| {
            disk.mark_restored();
            Ok(())
        })
    }

    fn may_lease(&mut self, node: &PublicKey, block: u32) -> Result<bool, StoreError> {
        self.read(|tables| {
            let mut leases = tables.leases.iter();
            !leases.any(|(by, leased)| (by == node) != (*leased == block))
        })
    }

    fn may_have_leased(&mut self, block: u32) -> Result<bool, StoreError> {
        self.read(|tables| {
            let is_leased = tables.leases.values().any(|leased| *leased == block);
            tables.lease_start.is_some() && !is_leased
        })
    }

    fn forget(&mut self, records: &[RecordKey]) -> Result<(), StoreError> {
        self.change(|disk| {
            disk.tables.delete(records);
            Ok(())
        })
    }

    fn may_have_admitted(
        &mut self,
        token: &PublicKey,
        node: &PublicKey,
    ) -> Result<bool, StoreError> {
        self.read(|tables| {
            !tables.issued.contains(token) || tables.admissions.contains(&(*token, *node))
        })
    }

    fn news(&mut self) -> Result<Option<News>, StoreError> {
        let disk = self.disk.disk();
        let seen = Seen::of(&disk);
        if self.disk.sharing == Sharing::Exclusive || seen == self.seen {
            return Ok(None);
        }
        let news = if seen.replacements == self.seen.replacements {
            News::Changes {
                mesh_key: disk.tables.mesh_key,
                records: disk.tables.records_after(self.seen.revision),
                revision: seen.revision,
                restored: disk.tables.restored,
            }
        } else {
            News::Everything(disk.tables.contents())
        };
        drop(disk);
        self.seen = seen;
        Ok(Some(news))
    }

    fn followed(&self) -> Option<watch::Receiver<u64>> {
        (self.disk.sharing == Sharing::Shared).then(|| self.disk.revision.subscribe())
    }

    fn set_present(&mut self, nodes: &[PublicKey]) -> Result<(), StoreError> {
        let mut disk = self.disk.disk();
        disk.present.insert(self.number, nodes.to_vec());
        Ok(())
    }

    fn present(&mut self) -> Result<HashSet<PublicKey>, StoreError> {
        if self.disk.sharing == Sharing::Exclusive {
            return Ok(HashSet::new());
        }
        Ok(self
            .disk
            .disk()
            .present
            .values()
            .flatten()
            .copied()
            .collect())
    }

    fn note_pin(&mut self, pin: &str) -> Result<String, StoreError> {
        let mut disk = self.disk.disk();
        Ok(disk.pin.get_or_insert_with(|| pin.to_owned()).clone())
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("id", &self.tables.id)
            .field("revision", &self.tables.revision)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SigningKey;

    fn disk(sharing: Sharing) -> MemoryDisk {
        let mut next = 0u64;
        MemoryDisk::new(sharing, move || {
            next += 1;
            next
        })
    }

    fn write(id: &str) -> Write {
        Write {
            key: RecordKey::parse("weather", id),
            envelope: Envelope::seal_payload("{}".into(), &SigningKey::from_seed(&[1; 32])),
            gone: Vec::new(),
            effect: Effect::None,
        }
    }

    #[test]
    fn a_crash_loses_exactly_the_writes_after_the_last_sync() {
        let disk = disk(Sharing::Exclusive);
        let mut store = disk.open();
        store.put(&[write("a")]).expect("writable");
        disk.set_cached(true);
        store.put(&[write("b")]).expect("writable");
        disk.sync();
        store.put(&[write("c")]).expect("writable");
        disk.crash();
        let contents = disk.open().load().expect("readable");
        let ids: Vec<_> = contents.records.iter().map(|s| s.key.id()).collect();
        assert_eq!((ids.len(), contents.revision), (2, 2));
    }

    #[test]
    fn a_store_that_has_not_read_the_writes_of_another_is_behind() {
        let disk = disk(Sharing::Shared);
        let (mut one, mut other) = (disk.open(), disk.open());
        one.put(&[write("a")]).expect("writable");
        assert!(matches!(other.put(&[write("b")]), Err(StoreError::Behind)));
        assert!(matches!(
            other.news().expect("readable"),
            Some(News::Changes { records, revision: 1, .. }) if records.len() == 1
        ));
        assert_eq!(other.put(&[write("b")]).expect("has read all"), 2);
        assert!(other.news().expect("readable").is_none(), "its own write");
    }

    #[test]
    fn a_failed_write_has_no_effect() {
        let disk = disk(Sharing::Exclusive);
        let mut store = disk.open();
        disk.set_failure(Some(StoreError::Full));
        assert!(matches!(store.put(&[]), Err(StoreError::Full)));
        assert!(matches!(store.put(&[write("a")]), Err(StoreError::Full)));
        disk.set_failure(None);
        assert_eq!(store.load().expect("readable").revision, 0);
        assert_eq!(store.put(&[write("a")]).expect("room"), 1);
    }

    #[test]
    fn a_backup_that_is_put_back_is_the_older_store_and_a_restored_one_is_another() {
        let disk = disk(Sharing::Exclusive);
        let mut store = disk.open();
        let id = store.load().expect("readable").id;
        let backup = disk.back_up();
        store.put(&[write("a")]).expect("writable");
        disk.put_back(&backup);
        let contents = disk.open().load().expect("readable");
        assert_eq!((contents.id.as_str(), contents.revision), (id.as_str(), 0));
        disk.restore(&backup);
        let contents = disk.open().load().expect("readable");
        assert!(contents.restored && contents.id != id);
    }
}

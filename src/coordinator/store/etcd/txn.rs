//! Computes the changes of a write in etcd from a view. Pure.

use std::collections::{BTreeMap, HashMap};

use super::super::{Admission, Admitted, Effect, StoreError, Write};
use super::keys::{Key, Written};
use super::view::{Change, Decisions, EtcdView, digest};
use crate::model::{Label, PublicKey};
use crate::records::Envelope;
use crate::records::kinds::RecordKey;

/// The changes of one transaction. Each key has one.
#[derive(Debug)]
pub(super) struct EtcdTxn<'a> {
    view: &'a EtcdView,
    /// The last revision after this transaction.
    pub(super) revision: u64,
    changes: BTreeMap<Key, Option<Vec<u8>>>,
    /// Keys that must not exist yet.
    pub(super) absent: Vec<Key>,
    /// Nodes whose stored departure is no longer needed.
    pub(super) released: Vec<PublicKey>,
    /// The revision of each record after this transaction. None for a record that is deleted.
    places: BTreeMap<RecordKey, Option<u64>>,
    blocks: HashMap<PublicKey, Option<u32>>,
}

impl<'a> EtcdTxn<'a> {
    pub(super) fn new(view: &'a EtcdView) -> Self {
        Self {
            view,
            revision: view.head.revision,
            changes: BTreeMap::new(),
            absent: Vec::new(),
            released: Vec::new(),
            places: BTreeMap::new(),
            blocks: HashMap::new(),
        }
    }

    /// Whether there are no changes.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The changes, without the head.
    pub(super) fn into_changes(self) -> Vec<Change> {
        self.changes
            .into_iter()
            .map(|(key, value)| Change { key, value })
            .collect()
    }

    /// Sets the mesh key.
    pub(super) fn set_mesh_key(&mut self, key: &PublicKey) {
        self.put(Key::Mesh, key.to_string());
        self.absent.push(Key::Mesh);
    }

    /// Stores a record with its effects.
    pub(super) fn write(&mut self, write: &Write) -> Result<(), StoreError> {
        self.write_record(&write.key, &write.envelope)?;
        write.gone.iter().for_each(|key| self.forget(key));
        match &write.effect {
            Effect::None => {}
            Effect::Issued(token) => self.put(Key::Issued(*token), String::new()),
            Effect::Spent { node, token } => {
                self.put(Key::Use(*token, *node), String::new());
            }
            Effect::Admitted { node, token, name } => {
                self.put(Key::Use(*token, *node), String::new());
                self.put(Key::Name(*node), name.as_str().to_owned());
            }
            Effect::Leased { node, block } => {
                self.rest(node, Some(*block));
                // Another node may have been leased the block and never used it.
                if let Some(other) = self.view.decisions.holders.get(block)
                    && other != node
                {
                    self.blocks.insert(*other, None);
                }
                self.lease(node, *block);
            }
            Effect::Released(nodes) => nodes.iter().for_each(|node| self.release(node)),
        }
        Ok(())
    }

    /// Admits a node, or returns why it cannot be admitted.
    pub(super) fn admit(&mut self, admission: &Admission) -> Result<Admitted, StoreError> {
        let Admission { token, node, .. } = admission;
        let used = self.view.decisions.uses.get(token);
        if !used.is_some_and(|nodes| nodes.contains(node)) {
            if used.map_or(0, |nodes| nodes.len()) >= admission.uses as usize {
                return Err(StoreError::TokenSpent(admission.uses));
            }
            self.put(Key::Use(*token, *node), String::new());
            self.absent.push(Key::Use(*token, *node));
        }
        let is_taken =
            |(other, name): (&PublicKey, &Label)| other != node && *name == admission.name;
        if self.view.decisions.names.iter().any(is_taken) {
            return Err(StoreError::NameTaken(admission.name.clone()));
        }
        if self.view.decisions.names.get(node) != Some(&admission.name) {
            self.put(Key::Name(*node), admission.name.as_str().to_owned());
        }
        let block = match self.view.decisions.blocks.get(node) {
            Some(block) => *block,
            None => {
                let block = free_block(self.view, admission.blocks)
                    .ok_or(StoreError::NoBlock(admission.blocks.saturating_sub(1)))?;
                self.lease(node, block);
                self.absent.push(Key::Block(block));
                block
            }
        };
        let held = self.view.place(&admission.key);
        let revision = match held {
            Some(place) if place.digest == Some(digest(&admission.envelope)) => place.revision,
            _ => self.write_record(&admission.key, &admission.envelope)?,
        };
        Ok(Admitted { block, revision })
    }

    fn put(&mut self, key: Key, value: String) {
        self.changes.insert(key, Some(value.into_bytes()));
    }

    fn delete(&mut self, key: Key) {
        self.changes.insert(key, None);
    }

    fn write_record(&mut self, key: &RecordKey, envelope: &Envelope) -> Result<u64, StoreError> {
        self.forget(key);
        self.revision += 1;
        let written = Written {
            key: key.clone(),
            envelope: envelope.clone(),
        };
        let text =
            serde_json::to_string(&written).map_err(|e| StoreError::Failed(e.to_string()))?;
        self.put(Key::Record(self.revision), text);
        self.places.insert(key.clone(), Some(self.revision));
        Ok(self.revision)
    }

    /// Deletes a record, if it is stored.
    pub(super) fn forget(&mut self, key: &RecordKey) {
        let held = match self.places.get(key) {
            Some(place) => *place,
            None => self.view.place(key).map(|place| place.revision),
        };
        if let Some(revision) = held {
            self.delete(Key::Record(revision));
            self.places.insert(key.clone(), None);
        }
    }

    fn block_of(&self, node: &PublicKey) -> Option<u32> {
        match self.blocks.get(node) {
            Some(block) => *block,
            None => self.view.decisions.blocks.get(node).copied(),
        }
    }

    fn lease(&mut self, node: &PublicKey, block: u32) {
        self.put(Key::Block(block), node.to_string());
        self.blocks.insert(*node, Some(block));
    }

    /// Adds the node's block, unless it is `keeps`, to those that are free again.
    fn rest(&mut self, node: &PublicKey, keeps: Option<u32>) {
        if let Some(block) = self.block_of(node)
            && Some(block) != keeps
        {
            self.delete(Key::Block(block));
            self.put(Key::Released(block), self.revision.to_string());
        }
    }

    fn release(&mut self, node: &PublicKey) {
        self.rest(node, None);
        self.blocks.insert(*node, None);
        self.delete(Key::Name(*node));
        self.released.push(*node);
    }
}

/// The lowest block from the start of leases on that was never leased; otherwise the block that has been free for the
/// longest time.
fn free_block(view: &EtcdView, blocks: u32) -> Option<u32> {
    let Decisions {
        holders,
        released,
        lease_start,
        ..
    } = &view.decisions;
    let never = |block: &u32| !holders.contains_key(block) && !released.contains_key(block);
    let start = lease_start.map_or(1, |start| start.block(blocks));
    (start..blocks)
        .chain(1..start.min(blocks))
        .find(never)
        .or_else(|| {
            released
                .iter()
                .filter(|(block, _)| **block < blocks && !holders.contains_key(block))
                .min_by_key(|(block, turn)| (**turn, **block))
                .map(|(block, _)| *block)
        })
}

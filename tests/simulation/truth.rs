//! What really happened in a simulation: who signed which record, what honest coordinators acknowledged, and which blocks they
//! leased. The invariants compare the state of the programs with it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use meshd::model::{PublicKey, SigningKey};
use meshd::records::Envelope;
use meshd::records::kinds::{Record, RecordKey};

/// The name that a simulation gives to one life of a store. A store that is put back from a backup begins another life.
pub(crate) type Life = u64;

#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// All records that a holder of a key made with it, by signature.
    signed: HashMap<[u8; 64], Envelope>,
    /// Those that were signed by the owner of what they are about.
    rightful: HashSet<[u8; 64]>,
    /// The same as `signed` in the order in which they were made, for those who replay old ones.
    pub(crate) history: Vec<Envelope>,
    /// The newest of each record that an honest coordinator acknowledged, in the life of the store to which it was written.
    acknowledged: BTreeMap<Life, BTreeMap<(PublicKey, RecordKey), Envelope>>,
    /// The blocks that honest coordinators leased in each life of a store, and to which node.
    leases: BTreeMap<Life, BTreeMap<u32, PublicKey>>,
    /// The nodes that honest coordinators admitted with each token in each life of a store.
    admitted: BTreeMap<(Life, PublicKey), BTreeSet<PublicKey>>,
    /// How often the store lost records.
    pub(crate) losses: u64,
}

impl Truth {
    /// Signs a record for the holder of `key`.
    pub(crate) fn sign(&mut self, record: &Record, key: &SigningKey) -> Envelope {
        self.sign_payload(record.payload(), key)
    }

    pub(crate) fn sign_payload(&mut self, payload: String, key: &SigningKey) -> Envelope {
        let envelope = Envelope::seal_payload(payload, key);
        self.note_signed(&envelope);
        envelope
    }

    /// A program signed this record with the key that it holds.
    pub(crate) fn note_signed(&mut self, envelope: &Envelope) {
        let signature = envelope.signature.0;
        if self.signed.insert(signature, envelope.clone()).is_none() {
            self.history.push(envelope.clone());
        }
    }

    /// A program signed this record, and gave it to nobody but a coordinator that keeps it.
    pub(crate) fn note_deposited(&mut self, envelope: &Envelope) {
        self.signed.insert(envelope.signature.0, envelope.clone());
    }

    /// Whether the signer of this record made it.
    pub(crate) fn was_signed(&self, envelope: &Envelope) -> bool {
        self.signed.get(&envelope.signature.0) == Some(envelope)
    }

    /// Whether [`Truth::note_rightful`] was called for this record.
    pub(crate) fn is_rightful(&self, envelope: &Envelope) -> bool {
        self.rightful.contains(&envelope.signature.0) && self.was_signed(envelope)
    }

    /// The signer of this record made it, and has the right to sign it.
    pub(crate) fn note_rightful(&mut self, envelope: &Envelope) {
        self.rightful.insert(envelope.signature.0);
    }

    /// An honest coordinator acknowledged that this record is stored.
    pub(crate) fn acknowledge(&mut self, life: Life, envelope: &Envelope) {
        let Some(header) = envelope.header() else {
            return;
        };
        let key = (envelope.signer, header.key);
        let held = self.acknowledged.entry(life).or_default();
        let is_older = held
            .get(&key)
            .and_then(Envelope::header)
            .is_some_and(|held| held.version > header.version);
        if !is_older {
            held.insert(key, envelope.clone());
        }
    }

    pub(crate) fn acknowledged(&self, life: Life) -> impl Iterator<Item = &Envelope> {
        let records = self.acknowledged.get(&life);
        records.into_iter().flat_map(BTreeMap::values)
    }

    /// An honest coordinator admitted `node` and leased `block` to it. Returns another node to which the block was leased before.
    pub(crate) fn admit(
        &mut self,
        life: Life,
        token: PublicKey,
        node: PublicKey,
        block: u32,
    ) -> Option<PublicKey> {
        self.admitted.entry((life, token)).or_default().insert(node);
        let before = self.leases.entry(life).or_default().insert(block, node);
        before.filter(|before| *before != node)
    }

    /// Whether an honest coordinator ever admitted the node.
    pub(crate) fn has_admitted(&self, node: &PublicKey) -> bool {
        self.admitted.values().any(|nodes| nodes.contains(node))
    }

    pub(crate) fn admitted(&self) -> impl Iterator<Item = (&PublicKey, usize)> {
        let admitted = self.admitted.iter();
        admitted.map(|((_, token), nodes)| (token, nodes.len()))
    }
}

/// The key that has the right to sign this record. It is derived from the contents of the record and from nothing that the
/// ledger computes.
pub(crate) fn rightful_signer(envelope: &Envelope, mesh: &PublicKey) -> Option<PublicKey> {
    let record: serde_json::Value = serde_json::from_str(&envelope.payload).ok()?;
    let key = |field: &str| record.get(field)?.as_str()?.parse::<PublicKey>().ok();
    match record.get("kind")?.as_str()? {
        "mesh" | "token" | "revocation" => Some(*mesh),
        "membership" => key("token"),
        "departure" | "node" | "name" => key("id"),
        "service" => key("node"),
        // Any member may sign records of kinds that this version does not know.
        _ => Some(envelope.signer),
    }
}

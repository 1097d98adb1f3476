//! The policy in force on this node. Pure.
//!
//! The ledger holds the policy record with the highest version, whether this version of meshd understands it or not. In force is the last
//! one that it understood: it stays in force if a later one is in a language that this node does not speak, and over a restart. If
//! there was none, only control traffic passes, and nobody may serve a name: what this node does not understand opens nothing.

use std::sync::Arc;

use super::transitions::policy::PolicyChange;
use crate::model::PublicKey;
use crate::policy::{Policy, Table};
use crate::protocol::local::Problem;
use crate::records::envelope::Signature;
use crate::records::kinds::Record;
use crate::records::netmap::{Netmap, Rules};
use crate::records::subjects::subjects;
use crate::records::{Envelope, Ledger, RecordKey};

/// The policy in force, and what it is compiled to.
#[derive(Debug, Clone)]
pub(super) struct PolicyInForce {
    rules: Rules,
    /// The record of the policy in force, which is kept on disk.
    record: Option<Envelope>,
    /// The version of that record.
    version: Option<u64>,
    /// The record of the ledger that was examined last.
    examined: Option<Signature>,
    ignored: Option<Ignored>,
    table: Arc<Table>,
    /// The policy that is tried beside the one in force.
    tried: Option<Arc<Policy>>,
    /// Whether the file of the record is out of date.
    is_unwritten: bool,
}

/// A policy that is not in force, because this version does not understand it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ignored {
    version: u64,
    why: String,
}

impl PolicyInForce {
    /// Starts with the record that is on disk, if there is one. Nothing passes before the first [`PolicyInForce::compile`].
    pub(super) fn new(record: Option<Envelope>, mesh_key: &PublicKey) -> Self {
        let mut policy = Self {
            rules: Rules::Open,
            record: None,
            version: None,
            examined: None,
            ignored: None,
            table: Arc::new(Table::closed()),
            tried: None,
            is_unwritten: false,
        };
        if let Some(record) = record.filter(|r| r.signer == *mesh_key && r.is_authentic()) {
            policy.examine(record);
            policy.is_unwritten = false;
            // A later version understood the record, and an earlier one was installed again.
            policy.examined = None;
        }
        policy
    }

    /// Follows the policy record of the ledger. Returns what changed.
    pub(super) fn follow(&mut self, ledger: &Ledger) -> Option<PolicyChange> {
        // A record does not leave a ledger, so a policy stays in force whose record was lost on disk.
        let held = &ledger.entry(&RecordKey::Policy)?.envelope;
        if self.examined == Some(held.signature) {
            return None;
        }
        let before = (self.version, self.ignored.clone());
        self.examine(held.clone());
        if (self.version, &self.ignored) == (before.0, &before.1) {
            return None;
        }
        Some(match (&self.ignored, self.version) {
            (None, version) => PolicyChange::InForce {
                version: version.unwrap_or_default(),
            },
            (Some(ignored), None) => PolicyChange::Closed {
                version: ignored.version,
                why: ignored.why.clone(),
            },
            (Some(ignored), Some(in_force)) => PolicyChange::Ignored {
                version: ignored.version,
                in_force,
                why: ignored.why.clone(),
            },
        })
    }

    fn examine(&mut self, record: Envelope) {
        self.examined = Some(record.signature);
        let Ok((header, parsed)) = Record::parse(&record.payload) else {
            return;
        };
        let version = header.version;
        let text = match &parsed {
            Record::Policy(policy) => policy.text.as_deref(),
            _ => None,
        };
        let policy = match text {
            Some(text) => Policy::parse(text).map_err(|error| error.to_string()),
            None => Err("its record has a form of a later version".to_owned()),
        };
        match policy {
            Ok(policy) => {
                // A text that is not understood is tried by the nodes that understand it.
                let tried = match &parsed {
                    Record::Policy(policy) => policy.tried.as_deref(),
                    _ => None,
                };
                let tried = tried.and_then(|text| Policy::parse(text).ok());
                self.tried = tried.map(Arc::new);
                self.rules = Rules::Policy(Arc::new(policy));
                self.version = Some(version);
                self.ignored = None;
                self.is_unwritten |= self.record.as_ref() != Some(&record);
                self.record = Some(record);
            }
            Err(why) => {
                if self.rules == Rules::Open {
                    self.rules = Rules::Closed;
                }
                self.ignored = Some(Ignored { version, why });
            }
        }
    }

    /// What the map of the mesh is computed under.
    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The record of the policy in force; none if there is none.
    pub(super) fn record(&self) -> Option<&Envelope> {
        self.record.as_ref()
    }

    /// The version of the policy in force; none if there is none.
    pub(super) fn version(&self) -> Option<u64> {
        self.version
    }

    /// Compiles the policy for the subjects of `netmap`. Returns the table, which is to be enforced.
    pub(super) fn compile(&mut self, netmap: &Netmap) -> Arc<Table> {
        let table = match &netmap.rules {
            Rules::Closed => Table::closed(),
            rules => Table::compile(rules.policy(), &subjects(netmap)),
        };
        self.table = Arc::new(table);
        Arc::clone(&self.table)
    }

    /// Compiles the policy that is tried, if there is one, for the subjects of `netmap`.
    pub(super) fn compile_tried(&self, netmap: &Netmap) -> Option<Arc<Table>> {
        let tried = self.tried.as_deref()?;
        Some(Arc::new(Table::compile(Some(tried), &subjects(netmap))))
    }

    /// The table that is enforced.
    pub(super) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The record of the policy in force, if its file is out of date.
    pub(super) fn unwritten(&self) -> Option<&Envelope> {
        self.record.as_ref().filter(|_| self.is_unwritten)
    }

    /// Handles that this record was written to disk.
    pub(super) fn handle_written(&mut self, written: &Envelope) {
        self.is_unwritten &= self.record.as_ref() != Some(written);
    }

    /// The problem of a policy that this version does not understand.
    pub(super) fn problem(&self) -> Option<Problem> {
        let ignored = self.ignored.as_ref()?;
        let consequence = match self.version {
            Some(version) => format!("the policy before it stays in force (version {version})"),
            None => "nothing but the traffic of the mesh itself passes, and no name is served"
                .to_owned(),
        };
        Some(Problem {
            what: format!("this node does not understand the policy of the mesh; {consequence}"),
            why: format!("version {} of the policy: {}", ignored.version, ignored.why),
            fix: "install the version of meshd that the other nodes have, or apply a policy in the language of this one with `meshctl policy apply`"
                .into(),
        })
    }
}

#[cfg(test)]
mod tests;

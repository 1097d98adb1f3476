//! The policy in force on this node. Pure.
//!
//! The ledger holds the policy record with the highest version, whether this version of meshd understands it or not. The policy in force
//! is the last one that this node understood. It stays in force if a later one is in a language that this node does not speak, and over
//! a restart. If there was none, only control traffic passes, and nobody may serve a name: a policy that is not understood opens nothing.

use std::sync::Arc;
use std::time::Instant;

use self::pace::Pace;
use super::transitions::policy::PolicyChange;
use crate::model::PublicKey;
use crate::policy::{OPEN, Policy, PolicyError, Table};
use crate::protocol::local::Problem;
use crate::records::envelope::Signature;
use crate::records::kinds::Record;
use crate::records::netmap::{Netmap, Rules};
use crate::records::subjects::{Moved, is_narrowed, subjects};
use crate::records::{Envelope, Ledger, RecordKey};

mod pace;

/// The policy in force, and the table to which it is compiled.
#[derive(Debug, Clone)]
pub(super) struct PolicyInForce {
    rules: Rules,
    /// The record of the policy in force, which is kept on disk.
    record: Option<Envelope>,
    /// The version of that record.
    version: Option<u64>,
    /// The record of the ledger that was examined last. None if there was none since the start.
    examined: Option<Signature>,
    ignored: Option<Ignored>,
    table: Arc<Table>,
    /// The table of the policy that is tried.
    tried_table: Option<Arc<Table>>,
    pace: Pace,
    /// The policy that is tried beside the one in force, or why this version does not understand it.
    tried: Option<Result<Arc<Policy>, PolicyError>>,
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
            tried_table: None,
            pace: Pace::default(),
            tried: None,
            is_unwritten: false,
        };
        if let Some(record) = record.filter(|r| r.signer == *mesh_key && r.is_authentic())
            && let Ok((header, parsed)) = Record::parse(&record.payload)
        {
            policy.examine(&record, header.version, &parsed);
            policy.is_unwritten = false;
        }
        policy
    }

    /// Follows the policy record of the ledger. Returns what changed.
    pub(super) fn follow(&mut self, ledger: &Ledger) -> Vec<PolicyChange> {
        // No record leaves a ledger. If there is a policy in the file and none in the ledger, the ledger lost it on disk, and the policy
        // from the file stays in force.
        let Some(held) = ledger.entry(&RecordKey::Policy) else {
            return Vec::new();
        };
        let signature = held.envelope.signature;
        if self.examined == Some(signature) {
            return Vec::new();
        }
        // If an earlier version of meshd was installed, it may not understand the record from the file. That is not reported yet.
        let reported = self.examined.and(self.ignored.clone());
        let (before, rules) = (self.in_force(), self.rules.clone());
        self.examined = Some(signature);
        self.examine(&held.envelope, held.version, &held.record);
        if self.in_force() == before && self.ignored == reported {
            return Vec::new();
        }
        match (&self.ignored, self.version) {
            (None, version) => self.understood(&rules, version.unwrap_or_default()),
            (Some(ignored), None) => vec![PolicyChange::Closed {
                version: ignored.version,
                why: ignored.why.clone(),
            }],
            (Some(ignored), Some(in_force)) => vec![PolicyChange::Ignored {
                version: ignored.version,
                in_force,
                why: ignored.why.clone(),
            }],
        }
    }

    /// The changes that a record makes, if this version understands it. `before` are the rules before it.
    fn understood(&self, before: &Rules, version: u64) -> Vec<PolicyChange> {
        let tried = self.tried.as_ref().map(|tried| match tried {
            Ok(_) => PolicyChange::Tried { version },
            Err(why) => PolicyChange::NotTried {
                version,
                why: why.to_string(),
            },
        });
        // The record of a policy that is tried has the text of the one in force too, and a text that allows everything if there was none.
        let text = self.rules.policy().map(Policy::text);
        let is_same = *before == self.rules || (*before == Rules::Open && text == Some(OPEN));
        let in_force = (tried.is_none() || !is_same).then_some(PolicyChange::InForce { version });
        in_force.into_iter().chain(tried).collect()
    }

    /// The signature of the record of the policy in force.
    fn in_force(&self) -> Option<Signature> {
        self.record.as_ref().map(|record| record.signature)
    }

    /// Puts the policy of a record in force, if this version understands it. `parsed` is the payload of the record.
    fn examine(&mut self, record: &Envelope, version: u64, parsed: &Record) {
        match parsed.policy() {
            Ok(policy) => {
                let tried = match parsed {
                    Record::Policy(policy) => policy.tried.as_deref(),
                    _ => None,
                };
                self.tried = tried.map(|text| Policy::parse(text).map(Arc::new));
                self.rules = Rules::Policy(Arc::new(policy));
                self.version = Some(version);
                self.ignored = None;
                self.is_unwritten |= self.record.as_ref() != Some(record);
                self.record = Some(record.clone());
            }
            Err(why) => {
                if self.rules == Rules::Open {
                    self.rules = Rules::Closed;
                }
                let why = why.to_string();
                self.ignored = Some(Ignored { version, why });
            }
        }
    }

    /// The rules under which the map of the mesh is computed.
    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The version of the policy in force; none if there is none.
    pub(super) fn version(&self) -> Option<u64> {
        self.version
    }

    /// Whether another policy is tried beside the one in force.
    pub(super) fn is_trying(&self) -> bool {
        matches!(self.tried, Some(Ok(_)))
    }

    /// Compiles the policy for the subjects of `netmap`.
    pub(super) fn compile(&mut self, netmap: &Netmap) {
        let subjects = if is_cheap(netmap) {
            Vec::new()
        } else {
            subjects(netmap)
        };
        let table = match &netmap.rules {
            Rules::Closed => Table::closed(),
            rules => Table::compile(rules.policy(), &subjects),
        };
        self.table = Arc::new(table);
        self.tried_table = match &self.tried {
            Some(Ok(tried)) => Some(Arc::new(Table::compile(Some(tried.as_ref()), &subjects))),
            Some(Err(_)) | None => None,
        };
    }

    /// The policy was compiled.
    pub(super) fn handle_compiled(&mut self, began: Instant, ended: Instant) {
        self.pace.handle_compiled(began, ended);
    }

    /// Whether the policy was never compiled.
    pub(super) fn is_uncompiled(&self) -> bool {
        self.pace.is_first()
    }

    /// Whether the policy is to be compiled at once after a change of members. Otherwise, the change is deferred.
    pub(super) fn may_compile(&self, netmap: &Netmap, now: Instant) -> bool {
        !self.pace.is_resting(now) || is_cheap(netmap)
    }

    /// Defers a change of members, after which the map is `netmap`. Returns whether the table closes more addresses until it is compiled
    /// again.
    pub(super) fn defer(&mut self, moved: Moved, netmap: &Netmap) -> bool {
        // A table that lets everything pass does not depend on the owners of addresses, as long as none of them narrows who may reach it.
        let stays_open = self.table.allows_everything() && !is_narrowed(netmap);
        let moved = if stays_open { Moved::default() } else { moved };
        match self.pace.defer(moved, &self.table) {
            Some(closed) => {
                self.table = Arc::new(self.table.without(closed.iter().copied()));
                true
            }
            None => false,
        }
    }

    /// When the policy is to be compiled for changes that were deferred.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.pace.poll_timeout()
    }

    /// The table of the policy that is tried.
    pub(super) fn tried_table(&self) -> Option<&Arc<Table>> {
        self.tried_table.as_ref()
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

    /// The problem of a policy that is tried and that this version does not understand.
    pub(super) fn untried(&self) -> Option<Problem> {
        let why = self.tried.as_ref()?.as_ref().err()?;
        Some(Problem {
            what: "this node does not understand the policy that is tried, and does not list what it would deny".into(),
            why: why.to_string(),
            fix: "install the version of meshd that the other nodes have, or try a policy in the language of this one with `meshctl policy apply --dry-run`"
                .into(),
        })
    }
}

/// Whether a table for this map needs no subjects. Many meshes have no policy and no `mesh.allow`, so everything passes there.
fn is_cheap(netmap: &Netmap) -> bool {
    match netmap.rules {
        Rules::Open => !is_narrowed(netmap),
        Rules::Closed => true,
        Rules::Policy(_) => false,
    }
}

#[cfg(test)]
mod tests;

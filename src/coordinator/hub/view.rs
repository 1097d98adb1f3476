//! What streams and administrators read without waiting for the disk.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ipnet::{Ipv4Net, Ipv6Net};
use tokio::sync::watch;

use super::members::Caused;
use super::state::{Standing, State};
use crate::coordinator::MarkKey;
use crate::model::time::Now;
use crate::model::{Label, PublicKey};
use crate::os::audit::{Audit, Who};
use crate::protocol::admin::UrlProblem;
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;
use crate::records::Envelope;
use crate::records::fingerprint::Fingerprint;

/// What does not change while the coordinator runs.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The URLs at which nodes reach the coordinator.
    pub urls: Vec<CoordinatorUrl>,
    /// The hash of the TLS key that nodes pin.
    pub pin: SpkiPin,
    /// Makes and verifies the marks, which prove that a node was a member.
    pub marks: MarkKey,
    /// The domain of a new mesh.
    pub domain: Label,
    /// The IPv4 prefix of a new mesh.
    pub prefix_v4: Ipv4Net,
    /// The prefix length of its node blocks.
    pub node_block_v4: u8,
    /// The IPv6 prefix of a new mesh.
    pub prefix_v6: Ipv6Net,
    /// The log of events.
    pub audit: Audit,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Nodes that were admitted.
    pub joins: AtomicU64,
    /// Joins that were refused.
    pub joins_refused: AtomicU64,
    /// Published records that were accepted.
    pub published: AtomicU64,
    /// Published records that were refused.
    pub publish_refused: AtomicU64,
    /// Writes that the store refused.
    pub store_failures: AtomicU64,
}

/// Where a stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStart {
    /// The name of the store.
    pub store: String,
    /// The present revision of the store.
    pub revision: u64,
    /// Whether the stream begins with all records.
    pub snapshot: bool,
}

/// The readable part of a [`super::Hub`]. Its lock is held only to look something up or to change it in memory.
pub struct View {
    /// Counts since the start.
    pub counts: Counts,
    pub(super) setup: Setup,
    pub(super) revision: watch::Sender<u64>,
    state: RwLock<State>,
    /// The public URLs that do not lead back to this coordinator.
    pub url_problems: UrlProblems,
}

/// The public URLs that did not lead back to the coordinator when they were last checked.
#[derive(Debug, Default)]
pub struct UrlProblems(Mutex<Vec<UrlProblem>>);

impl UrlProblems {
    #[must_use]
    pub fn read(&self) -> Vec<UrlProblem> {
        let held = self.0.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the problems by those of the last check.
    pub fn set(&self, problems: Vec<UrlProblem>) {
        let held = self.0.lock();
        *held.unwrap_or_else(PoisonError::into_inner) = problems;
    }
}

impl View {
    pub(super) fn new(setup: Setup, state: State) -> Self {
        Self {
            counts: Counts::default(),
            setup,
            revision: watch::Sender::new(state.revision),
            state: RwLock::new(state),
            url_problems: UrlProblems::default(),
        }
    }

    // A panic while the lock was held is a bug, and it was reported where it happened. A coordinator that continues with the
    // present state is better than one that answers nobody.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hash of the TLS key that nodes pin.
    #[must_use]
    pub fn pin(&self) -> SpkiPin {
        self.setup.pin
    }

    /// A receiver that is notified of each new revision.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The last revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// The last revision, and the fingerprint of all records. None if there is no mesh.
    #[must_use]
    pub fn summary(&self) -> Option<(u64, Fingerprint)> {
        let state = self.read();
        let ledger = state.ledger.as_ref()?;
        Some((state.revision, ledger.fingerprint()))
    }

    /// All records, in an order in which a ledger accepts them, and the revision that they represent.
    #[must_use]
    pub fn snapshot(&self) -> (Vec<Envelope>, u64) {
        let state = self.read();
        let records = state.ledger.iter().flat_map(|ledger| ledger.envelopes());
        (records.cloned().collect(), state.revision)
    }

    /// Where a stream begins whose node holds `revision` of `store`.
    #[must_use]
    pub fn stream_start(&self, store: Option<&str>, revision: u64) -> StreamStart {
        let state = self.read();
        let same = store == Some(state.store_id.as_str());
        if same && revision > state.revision {
            tracing::warn!(
                theirs = revision,
                ours = state.revision,
                "a node has received a later revision of this store than the store has: was its file replaced by an older copy?"
            );
        }
        let resumes = same && revision <= state.revision && state.changes.reaches_back_to(revision);
        StreamStart {
            store: state.store_id.clone(),
            revision: state.revision,
            snapshot: !resumes,
        }
    }

    /// Whether the store still has this name.
    #[must_use]
    pub fn is_on(&self, store: &str) -> bool {
        self.read().store_id == store
    }

    /// Whether there is a mesh to serve.
    #[must_use]
    pub fn has_mesh(&self) -> bool {
        let state = self.read();
        let ledger = state.ledger.as_ref();
        ledger.is_some_and(|ledger| ledger.mesh().is_some())
    }

    /// Whether `node` is a member, was removed, or neither.
    #[must_use]
    pub fn standing(&self, node: &PublicKey) -> Standing {
        self.read().standing(node)
    }

    /// Handles that a stream of `node` was opened or closed.
    pub fn set_connected(&self, node: PublicKey, is_open: bool, now: Now) {
        let back = self.write().set_connected(node, is_open, now.monotonic);
        if let Some(back) = back {
            self.setup.audit.note(&Caused(&back, &Who::Daemon));
        }
    }

    /// Handles that a node has offered all records that it holds, to this store or to the one that it knew before.
    pub fn handle_fully_offered(&self, node: &PublicKey) {
        if self.read().refill.is_none() || self.standing(node) != Standing::Member {
            return;
        }
        if let Some(refill) = &mut self.write().refill {
            refill.handle_fully_offered(*node);
        }
    }
}

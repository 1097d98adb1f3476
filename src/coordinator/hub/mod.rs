//! The hub: the ledger in memory, the store behind it, and the changes that streams follow.
//!
//! | file | what it does |
//! |---|---|
//! | `view` | what streams and administrators read, without waiting for the disk |
//! | `writer` | the store, its health, and the turn of the one writer |
//! | `join`, `intake`, `loss`, `absence` | what a turn is used for |
//! | `claims`, `refill`, `effects` | rules for records that nodes send |
//! | `members` | the transitions of members that have events |
//! | [`api`] | what the API over the network needs |
//! | `reading`, `changes` | the parts of the records that a stream receives |
//!
//! There are two locks. A writer holds the lock of the store for as long as the disk takes, so that writes come one after the
//! other. The lock of the state is held only to look something up or to change it in memory, so that streams and readers never
//! wait for the disk. A record is in memory shortly before it is on disk. It gets a revision, and its sender an acknowledgement,
//! only when it is on disk. A write that fails returns the memory to what is on disk.
//!
//! A stream has no queue of its own. It has a cursor into the list of recent changes, so a slow reader costs nobody anything, and
//! one that fell behind the beginning of the list receives a snapshot.
//!
//! Several coordinators may share a store. The hub applies what they wrote when it becomes known, and before each write. A write
//! that was decided without the latest writes of others is undone and decided again.
//!
//! The hub reads no clock: each method that needs the time takes it as an argument.

mod absence;
pub mod api;
mod changes;
mod claims;
mod effects;
mod errors;
mod former;
mod intake;
mod join;
mod listing;
mod loaded;
mod loss;
mod members;
mod published;
mod reading;
mod refill;
mod screening;
mod state;
mod view;
mod writer;

use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use self::errors::fault;
use self::intake::Origin;
pub use self::listing::Size;
use self::loaded::Loaded;
use self::members::Caused;
pub use self::members::{Administered, MemberChange, MemberTurn};
pub use self::published::{PublishRefused, Published};
pub use self::reading::{Cursor, Part};
pub use self::screening::{Proof, Screened};
pub use self::state::Standing;
use self::state::State;
pub use self::view::{Counts, Setup, StreamStart, View};
use self::writer::{Turn, Writer};
use super::enroll::{self, Proven};
use super::store::{Store, StoreError};
use crate::model::PublicKey;
use crate::model::time::Now;
use crate::os::audit::{Audit, Who};
use crate::protocol::admin::Submit;
use crate::protocol::api::ApiError;
use crate::protocol::join::{JoinCheck, JoinRequest, JoinResponse};
use crate::records::Envelope;
use crate::records::envelope::Authentic;
use crate::records::ledger::verified;

/// A coordinator without its sockets. It dereferences to its [`View`]: the methods of the view never wait for the disk, and those
/// of the hub itself may.
pub struct Hub {
    view: View,
    writer: Mutex<Writer>,
}

impl Deref for Hub {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

impl Hub {
    /// Loads the store and verifies its contents.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn open(mut store: Box<dyn Store>, setup: Setup, now: Now) -> Result<Self, StoreError> {
        let loaded = Loaded::cleaned(&mut *store)?;
        let mut state = State::new(now.monotonic);
        state.take_over(loaded, now.monotonic);
        Ok(Self {
            view: View::new(setup, state),
            writer: Mutex::new(Writer::new(store)),
        })
    }

    // A panic while the lock was held is a bug, and it was reported where it happened. The coordinator continues.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn to write.
    fn turn(&self, now: Now) -> Turn<'_> {
        self.turn_by(Who::Daemon, now)
    }

    /// Waits for the turn to write what somebody asked for.
    fn turn_by(&self, by: Who, now: Now) -> Turn<'_> {
        Turn {
            writer: self.writer(),
            view: &self.view,
            now,
            by,
        }
    }

    /// The log of events.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.view.setup.audit
    }

    /// Admits a node, for the machine `by`. Waits for the disk.
    ///
    /// # Errors
    /// One line for the person who joins the node.
    pub fn join(&self, request: &JoinRequest, by: Who, now: Now) -> Result<JoinResponse, ApiError> {
        // The signatures are verified before the writer's turn, so that nobody waits for that.
        match enroll::prove(request) {
            Ok(proven) => self.join_proven(&proven, by, now),
            Err(error) => self.count_join(Err(error)),
        }
    }

    /// Admits a node whose request was verified before.
    ///
    /// # Errors
    /// As for [`Hub::join`].
    pub(super) fn join_proven(
        &self,
        proven: &Proven,
        by: Who,
        now: Now,
    ) -> Result<JoinResponse, ApiError> {
        let joined = self.turn_by(by, now).join(proven);
        if joined.is_ok() {
            self.audit().flush();
        }
        self.count_join(joined)
    }

    fn count_join(&self, result: Result<JoinResponse, ApiError>) -> Result<JoinResponse, ApiError> {
        if result.is_ok() {
            self.counts.joins.fetch_add(1, Ordering::Relaxed);
        }
        self.count_refused(&result);
        result
    }

    /// Examines a join as [`Hub::join`] does, and changes nothing. Only the store decides whether the token has uses left and
    /// whether a block is free, so a join that passes here may still be refused.
    ///
    /// # Errors
    /// As for [`Hub::join`].
    pub fn check_join(&self, request: &JoinRequest, now: Now) -> Result<JoinCheck, ApiError> {
        let proven = enroll::prove(request);
        self.count_refused(&proven);
        self.check_proven(&proven?, now)
    }

    /// Examines a join whose request was verified before.
    ///
    /// # Errors
    /// As for [`Hub::join`].
    pub(super) fn check_proven(&self, proven: &Proven, now: Now) -> Result<JoinCheck, ApiError> {
        let checked = self.turn(now).check_join(proven);
        self.count_refused(&checked);
        checked
    }

    fn count_refused<T>(&self, result: &Result<T, ApiError>) {
        if result.is_err() {
            self.counts.joins_refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Handles records that a stream of the node `sender` offers. Verifies their signatures, then waits for the disk.
    ///
    /// # Errors
    /// The store cannot be written, and no record was accepted.
    pub fn publish(
        &self,
        sender: &PublicKey,
        records: Vec<Envelope>,
        now: Now,
    ) -> Result<Published, ApiError> {
        let mut forged = Vec::new();
        // A verification takes longer than all other steps, so it is done before the writer's turn.
        let records: Vec<Authentic> = records
            .into_iter()
            .filter(|record| !self.read().holds(record))
            .filter_map(|record| verified(record).map_err(|why| forged.push(why)).ok())
            .collect();
        let mut published = {
            let mut turn = self.turn(now);
            turn.notice_loss(&records)?;
            turn.take_in(records, Origin::Stream(*sender))?
        };
        if published.has_events {
            self.audit().flush();
        }
        // A forged record ends the stream, so its key is not needed.
        let forged = forged
            .into_iter()
            .map(|why| (None, PublishRefused::Ledger(why)));
        published.refused.extend(forged);
        let counts = &self.counts;
        counts
            .published
            .fetch_add(published.accepted.into(), Ordering::Relaxed);
        counts
            .publish_refused
            .fetch_add(published.refused.len() as u64, Ordering::Relaxed);
        Ok(published)
    }

    /// Accepts signed records of the administrator, all or none, and the mesh key the first time. `by` is the process that sends
    /// them. Waits for the disk.
    ///
    /// # Errors
    /// Which record is refused and why.
    pub fn submit(&self, submit: Submit, by: Who, now: Now) -> Result<u64, ApiError> {
        let submitted = self.turn_by(by, now).submit(submit);
        self.audit().flush();
        submitted
    }

    /// Treats the store as restored from a backup, if this mark proves that it went back in time. Waits for the disk.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn examine_loss(&self, node: &PublicKey, mark: &str, now: Now) -> Result<(), ApiError> {
        self.turn(now).examine_loss(node, mark)
    }

    /// Stores the departure that an ephemeral node has signed in advance, until the node stays away. Waits for the disk.
    ///
    /// # Errors
    /// The departure is not the node's own, the node is no ephemeral member, or the store cannot be written.
    pub fn store_departure(
        &self,
        node: &PublicKey,
        departure: &Envelope,
        now: Now,
    ) -> Result<(), ApiError> {
        absence::check_departure(&self.read(), node, departure)?;
        self.turn(now).store_departure(node, departure)
    }

    /// Publishes the departures of ephemeral nodes that have been away for too long. Waits for the disk.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn dismiss_absent(&self, now: Now) -> Result<(), ApiError> {
        let due = absence::due(&self.read(), now.monotonic);
        if due.is_empty() {
            return Ok(());
        }
        self.turn(now).dismiss(due)
    }

    /// Records which members have been without a stream for too long.
    pub fn note_away(&self, now: Now) {
        let is_alone = self.writer().store.followed().is_none();
        let changes = absence::newly_away(&mut self.view.write(), is_alone, now.monotonic);
        for change in &changes {
            self.audit().note(&Caused(change, &Who::Daemon));
        }
    }

    /// Tells the other coordinators which ephemeral nodes are connected to this one. Waits for the store.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn announce_present(&self) -> Result<(), ApiError> {
        let mut writer = self.writer();
        let present = absence::connected_ephemeral(&self.read());
        writer.store.set_present(&present).map_err(fault)
    }

    /// A receiver that is notified when other coordinators have written; absent if no others share the store.
    #[must_use]
    pub fn follow_others(&self) -> Option<watch::Receiver<u64>> {
        self.writer().store.followed()
    }

    /// Applies what other coordinators wrote. May wait for a write of this one.
    pub fn handle_news(&self, now: Now) {
        if let Err(error) = self.turn(now).catch_up() {
            tracing::warn!(%error, "the writes of other coordinators cannot be read");
        }
    }
}

#[cfg(test)]
mod tests;

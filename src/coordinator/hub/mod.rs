//! The hub: the ledger in memory, the store behind it, and the changes that streams follow.
//!
//! There are two locks. Who writes holds the store's, for as long as the disk takes, so that writes come one after
//! the other. The state's is held only to look something up or to change it in memory, so that streams and readers
//! never wait for the disk. A record is in memory shortly before it is on disk; it gets a revision, and its sender an
//! acknowledgement, only then, and a write that fails takes memory back to what is on disk.
//!
//! A stream has no queue of its own: it has a cursor into the list of recent changes, so that a slow reader costs
//! nobody anything, and one that fell behind the list's beginning gets a snapshot.
//!
//! A store may be shared with other coordinators. What they wrote is taken in as it becomes known, and before each
//! write; one that was decided on too little is undone and decided again.

mod absence;
mod changes;
mod claims;
mod listing;
mod loaded;
mod loss;
mod reading;
mod refill;
mod screening;
mod shared;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use ipnet::{Ipv4Net, Ipv6Net};
use tokio::sync::watch;

use self::changes::Changes;
pub use self::listing::Size;
use self::loaded::Loaded;
pub use self::reading::{Cursor, Part};
use self::refill::{Phase, Refill};
pub use self::screening::{Proof, Screened};
use super::MarkKey;
use super::enroll::{self, Proven};
use super::store::{Admission, Contents, Effect, Store, StoreError, Write};
use crate::model::time::{Now, UnixSeconds};
use crate::model::{Label, PublicKey};
use crate::protocol::admin::Submit;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::control::RefusedReason;
use crate::protocol::join::{JoinCheck, JoinRequest, JoinResponse};
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;
use crate::records::batch::batches;
use crate::records::envelope::Authentic;
use crate::records::kinds::{Membership, Record, RecordKey, RevokedKind};
use crate::records::ledger::{Refused, Replaced, verified};
use crate::records::{Envelope, Ledger};

/// After a write that failed, how long no other is tried: going back to what is on disk takes a while in a large mesh.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(2);

/// What does not change while the coordinator runs.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How nodes reach it.
    pub urls: Vec<CoordinatorUrl>,
    /// The key they find there.
    pub pin: SpkiPin,
    /// Makes and verifies the marks, which prove that a node was a member.
    pub marks: MarkKey,
    /// Domain of a new mesh.
    pub domain: Label,
    /// IPv4 prefix of a new mesh.
    pub prefix_v4: Ipv4Net,
    /// Length of its node blocks.
    pub node_block_v4: u8,
    /// IPv6 prefix of a new mesh.
    pub prefix_v6: Ipv6Net,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Nodes admitted.
    pub joins: AtomicU64,
    /// Joins refused.
    pub joins_refused: AtomicU64,
    /// Records taken in.
    pub published: AtomicU64,
    /// Records refused.
    pub publish_refused: AtomicU64,
    /// Writes that the store refused.
    pub store_failures: AtomicU64,
}

/// The coordinator's state.
pub struct Hub {
    setup: Setup,
    writer: Mutex<Writer>,
    state: RwLock<State>,
    revision: watch::Sender<u64>,
    /// Counts since the start.
    pub counts: Counts,
}

struct Writer {
    store: Box<dyn Store>,
    health: Health,
    /// When all that others wrote was known.
    synced: Option<Instant>,
}

/// How the store took the last write.
enum Health {
    Good,
    Failed {
        at: Instant,
        /// What was in the way.
        error: StoreError,
        /// Memory may still hold what the disk does not.
        ahead: bool,
    },
}

struct State {
    store_id: String,
    ledger: Option<Ledger>,
    revision: u64,
    changes: Changes,
    connected: HashMap<PublicKey, usize>,
    /// Since when nodes have been away that were here.
    absent: HashMap<PublicKey, Instant>,
    started: Instant,
    /// Set while the store has lost records and waits for the nodes to offer them.
    refill: Option<Refill>,
    /// Nodes that are not members and were members according to their marks. A coordinator has admitted each of them once.
    former: HashSet<PublicKey>,
}

/// What became of published records.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// How many were new.
    pub accepted: u32,
    /// Why others were refused.
    pub refused: Vec<PublishRefused>,
    /// The key of each refused record in the same order; absent where the payload does not tell it.
    pub refused_keys: Vec<Option<RecordKey>>,
}

/// Why a published record is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishRefused {
    /// It breaks a rule of the ledger.
    #[error(transparent)]
    Ledger(#[from] Refused),
    /// A membership that did not come through a join, and that nothing else proves. The ledger has no clock: a
    /// certificate dated back would outlive its token's end and revocation.
    #[error("the token has not admitted this node; it has to join")]
    NeverJoined,
    /// A membership that may be accepted after this time.
    #[error("{}", claims::not_yet(.0))]
    NotYet(Duration),
    /// A membership that differs from the one held of the same node.
    #[error("a membership changes when its node joins, and its name with `meshctl rename`")]
    ChangedMembership,
    /// A node record with a block that is leased to another node, or of a node to which another block is leased.
    #[error("the address block {0} is not leased to this node")]
    Leased(String),
    /// The revocation of a token does not list this member, which the token admitted.
    #[error(
        "the node {0} has joined with the token and is not in the list of those that stay; try again"
    )]
    LeftOut(Label),
}

impl PublishRefused {
    /// What the node that published the record can do about it.
    #[must_use]
    pub fn reason(&self) -> RefusedReason {
        match self {
            Self::Ledger(Refused::Stale { .. } | Refused::Forked(_)) => RefusedReason::Stale,
            Self::Ledger(Refused::BlockTaken(_) | Refused::ForeignBlock(_)) | Self::Leased(_) => {
                RefusedReason::Block
            }
            _ => RefusedReason::Other,
        }
    }
}

/// Where records come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// They come on a stream of this node.
    Stream(PublicKey),
    Administrator,
}

/// What a node is to the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// In.
    Member,
    /// Removed.
    Revoked,
    /// Not known, or not yet.
    Stranger,
}

/// Where a stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The store's name.
    pub store: String,
    /// Its revision now.
    pub revision: u64,
    /// Whether the stream begins with everything.
    pub snapshot: bool,
}

impl Hub {
    /// Loads the store and verifies what is in it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn open(mut store: Box<dyn Store>, setup: Setup, now: Now) -> Result<Self, StoreError> {
        let loaded = Loaded::cleaned(&mut *store)?;
        let mut state = State {
            store_id: String::new(),
            ledger: None,
            revision: 0,
            changes: Changes::new(),
            connected: HashMap::new(),
            absent: HashMap::new(),
            started: now.monotonic,
            refill: None,
            former: HashSet::new(),
        };
        state.take_over(loaded, now.monotonic);
        let (revision, _) = watch::channel(state.revision);
        Ok(Self {
            setup,
            writer: Mutex::new(Writer {
                store,
                health: Health::Good,
                synced: None,
            }),
            state: RwLock::new(state),
            revision,
            counts: Counts::default(),
        })
    }

    // A panic while a lock was held is a bug that was reported where it happened; going on with what is there is
    // better than a coordinator that answers nobody.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that nodes pin.
    #[must_use]
    pub fn pin(&self) -> SpkiPin {
        self.setup.pin
    }

    /// Tells of new revisions.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Admits a node, or says why not. Waits for the disk.
    ///
    /// # Errors
    /// One line for the person who joins.
    pub fn join(&self, request: &JoinRequest, now: Now) -> Result<JoinResponse, ApiError> {
        let result = self.try_join(request, now);
        let count = if result.is_ok() {
            &self.counts.joins
        } else {
            &self.counts.joins_refused
        };
        count.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn try_join(&self, request: &JoinRequest, now: Now) -> Result<JoinResponse, ApiError> {
        // The signatures are verified before the lock is taken, so that nobody waits for that.
        let proven = enroll::prove(request)?;
        let mut writer = self.writer();
        self.recover(&mut writer, now.monotonic).map_err(fault)?;
        let mut attempt = 0;
        let (membership, key, admitted) = loop {
            self.catch_up(&mut writer, now.monotonic).map_err(fault)?;
            let (membership, admission) =
                self.examine_in_sync(&mut writer, request, &proven, now)?;
            match writer.store.admit(&admission) {
                Ok(admitted) => break (membership, admission.key, admitted),
                Err(StoreError::Behind) if writer.store.another_attempt(attempt) => attempt += 1,
                Err(error) => {
                    if matches!(error, StoreError::Full | StoreError::Failed(_)) {
                        self.note_failure(&error);
                    }
                    return Err(self.explain(error, &membership));
                }
            }
        };
        let mut state = self.write();
        let state = &mut *state;
        let ledger = state.ledger.as_mut().ok_or_else(no_mesh)?;
        // Nobody else writes: what was permitted above is permitted now.
        ledger
            .replace_authentic(proven.envelope().clone())
            .map_err(|why| ApiError::new(ErrorCode::Internal, why.to_string()))?;
        let block = ledger
            .mesh()
            .and_then(|mesh| mesh.addresses.block(admitted.block))
            .ok_or_else(|| {
                ApiError::new(
                    ErrorCode::Internal,
                    "the leased block is outside the address plan",
                )
            })?;
        let records = [
            RecordKey::Mesh,
            RecordKey::Token(membership.token),
            RecordKey::Membership(membership.id),
        ]
        .iter()
        .filter_map(|key| ledger.entry(key))
        .map(|entry| entry.envelope.clone())
        .collect();
        if admitted.revision > state.revision {
            state.changes.push(admitted.revision, key);
            state.revision = admitted.revision;
            self.revision.send_replace(state.revision);
            tracing::info!(node = %membership.name, id = membership.id.short(), block = %block.v4, "admitted");
        }
        Ok(JoinResponse {
            block,
            records,
            revision: admitted.revision,
        })
    }

    /// Examines a join as [`Hub::join`] does, and changes nothing. Only the store decides whether the token has uses left
    /// and whether a block is free, so a join that passes here may still be refused.
    ///
    /// # Errors
    /// As for [`Hub::join`].
    pub fn check_join(&self, request: &JoinRequest, now: Now) -> Result<JoinCheck, ApiError> {
        let proven = enroll::prove(request)?;
        let mut writer = self.writer();
        self.catch_up(&mut writer, now.monotonic).map_err(fault)?;
        let (membership, _) = self.examine_in_sync(&mut writer, request, &proven, now)?;
        let state = self.read();
        let ledger = state.ledger.as_ref().ok_or_else(no_mesh)?;
        let keys = [RecordKey::Mesh, RecordKey::Token(membership.token)];
        let entries = keys.iter().filter_map(|key| ledger.entry(key));
        Ok(JoinCheck {
            records: entries.map(|entry| entry.envelope.clone()).collect(),
        })
    }

    /// What is asked of the store for a join that nothing else stands in the way of.
    fn examine_in_sync(
        &self,
        writer: &mut Writer,
        request: &JoinRequest,
        proven: &Proven,
        now: Now,
    ) -> Result<(Membership, Admission), ApiError> {
        let examined = match self.examine(writer, request, proven, now) {
            // What is missing, or frees the name, may be on its way from another coordinator.
            Err(_) | Ok((_, _, true)) if self.sync(writer, now.monotonic).map_err(fault)? => {
                self.examine(writer, request, proven, now)
            }
            examined => examined,
        };
        let (membership, admission, is_taken) = examined?;
        if is_taken {
            let taken = StoreError::NameTaken(membership.name.clone());
            return Err(self.explain(taken, &membership));
        }
        Ok((membership, admission))
    }

    /// What stands in the way of a join besides the store, and what is asked of that.
    fn examine(
        &self,
        writer: &mut Writer,
        request: &JoinRequest,
        proven: &Proven,
        now: Now,
    ) -> Result<(Membership, Admission, bool), ApiError> {
        self.permit_after_restore(writer, request, now.monotonic)?;
        let state = self.read();
        let ledger = state.ledger.as_ref().ok_or_else(no_mesh)?;
        let granted = enroll::check(proven, ledger, UnixSeconds::from_system(now.wall))?;
        // The store knows the names that nodes joined with, and not those they have now.
        let is_taken = ledger.is_name_of_another(&granted.membership.name, &granted.membership.id);
        let admission = Admission {
            node: granted.membership.id,
            name: granted.membership.name.clone(),
            token: granted.membership.token,
            uses: granted.uses,
            blocks: granted.addresses.block_count(),
            key: RecordKey::Membership(granted.membership.id),
            envelope: request.membership.clone(),
        };
        Ok((granted.membership, admission, is_taken))
    }

    /// Whether a store that came from a backup can know that this join spends nothing twice.
    fn permit_after_restore(
        &self,
        writer: &mut Writer,
        request: &JoinRequest,
        now: Instant,
    ) -> Result<(), ApiError> {
        let busy = |text: String| Err(ApiError::new(ErrorCode::Busy, text));
        match self.phase(now) {
            None => Ok(()),
            Some(Phase::Over) => self.end_refill(writer),
            // Who was granted the same before has it from the backup.
            Some(_) if self.holds(&request.membership) => Ok(()),
            Some(Phase::Nobody(left)) => busy(format!(
                "the coordinator was restored from a backup and first hears from its nodes what has happened since; try again in {} s",
                left.as_secs() + 1
            )),
            Some(Phase::NewTokens(_) | Phase::Alone)
                if writer
                    .store
                    .is_issued_here(&request.membership.signer)
                    .map_err(fault)? =>
            {
                Ok(())
            }
            Some(Phase::NewTokens(_) | Phase::Alone) => busy(
                "the coordinator was restored from a backup and does not know yet whether this token was spent since; make a new one with `meshctl token create`, or try again when the nodes are back".to_owned(),
            ),
        }
    }

    /// Where a store that came from a backup stands; nothing, if it is like any other.
    fn phase(&self, now: Instant) -> Option<Phase> {
        let state = self.read();
        let refill = state.refill.as_ref()?;
        let members = state.ledger.iter().flat_map(|ledger| {
            ledger
                .memberships()
                .map(|membership| membership.id)
                .filter(|id| !ledger.is_revoked(id))
        });
        Some(refill.phase(members, now))
    }

    fn end_refill(&self, writer: &mut Writer) -> Result<(), ApiError> {
        writer.store.set_refilled().map_err(fault)?;
        self.write().refill = None;
        tracing::info!("the nodes have told what happened since the backup; tokens admit as usual");
        Ok(())
    }

    fn holds(&self, envelope: &Envelope) -> bool {
        let state = self.read();
        state
            .ledger
            .as_ref()
            .is_some_and(|ledger| ledger.holds(envelope))
    }

    /// A node has offered all it holds: of this store, or of the one it knew before.
    pub fn handle_told(&self, node: &PublicKey) {
        if self.read().refill.is_none() || self.standing(node) != Standing::Member {
            return;
        }
        if let Some(refill) = &mut self.write().refill {
            refill.handle_told(*node);
        }
    }

    /// Handles records that a stream of the node `who` offers. Verifies their signatures, then waits for the disk.
    ///
    /// # Errors
    /// The store cannot be written; none was taken in then.
    pub fn publish(
        &self,
        who: &PublicKey,
        records: Vec<Envelope>,
        now: Now,
    ) -> Result<Published, ApiError> {
        let mut forged = Vec::new();
        // A verification takes longer than all other steps, so it is done before the writer's lock is taken.
        let records: Vec<Authentic> = records
            .into_iter()
            .filter(|record| !self.holds(record))
            .filter_map(|record| verified(record).map_err(|why| forged.push(why)).ok())
            .collect();
        let mut writer = self.writer();
        self.notice_loss(&mut writer, &records, now.monotonic)?;
        let mut published = self.take_in(&mut writer, records, Origin::Stream(*who), now)?;
        drop(writer);
        let forged = forged.into_iter().map(PublishRefused::Ledger);
        published.refused.extend(forged);
        // A forged record ends the stream, so its key is not needed.
        published.refused_keys.resize(published.refused.len(), None);
        let counts = &self.counts;
        counts
            .published
            .fetch_add(published.accepted.into(), Ordering::Relaxed);
        counts
            .publish_refused
            .fetch_add(published.refused.len() as u64, Ordering::Relaxed);
        Ok(published)
    }

    /// Takes signed records of the administrator in, all or none; with a mesh key the first time. Waits for the disk.
    ///
    /// # Errors
    /// Says which record is refused and why.
    pub fn submit(&self, submit: Submit, now: Now) -> Result<u64, ApiError> {
        let mut writer = self.writer();
        self.catch_up(&mut writer, now.monotonic).map_err(fault)?;
        let held = self.read().ledger.as_ref().map(Ledger::mesh_key);
        let new = match (held, submit.mesh_key) {
            (None, None) => return Err(no_mesh()),
            (Some(held), Some(offered)) if held != offered => {
                return Err(ApiError::new(
                    ErrorCode::Conflict,
                    format!(
                        "this coordinator serves the mesh {} already; use that mesh's key, or give the new mesh a coordinator of its own",
                        held.short()
                    ),
                ));
            }
            (None, Some(key)) => Some(Ledger::new(key)),
            (Some(_), _) => None,
        };
        match (&new, &self.read().ledger) {
            (Some(ledger), _) | (None, Some(ledger)) => rehearse(ledger, &submit.records)?,
            (None, None) => return Err(no_mesh()),
        }
        if let Some(ledger) = new {
            // A key without records does no harm if the next write fails: `init` is run again.
            let stored = writer.store.set_mesh_key(&ledger.mesh_key());
            stored
                .inspect_err(|error| self.note_failure(error))
                .map_err(fault)?;
            self.write().ledger = Some(ledger);
        }
        let records = submit.records.into_iter().map(verified);
        let records: Result<Vec<Authentic>, Refused> = records.collect();
        let records = records.map_err(is_refused)?;
        let published = self.take_in(&mut writer, records, Origin::Administrator, now)?;
        match published.refused.into_iter().next() {
            Some(why) => Err(ApiError::new(ErrorCode::Conflict, why.to_string())),
            None => Ok(self.read().revision),
        }
    }

    fn take_in(
        &self,
        writer: &mut Writer,
        records: Vec<Authentic>,
        origin: Origin,
        now: Now,
    ) -> Result<Published, ApiError> {
        self.recover(writer, now.monotonic).map_err(fault)?;
        let mut published = Published::default();
        let bounds = writer.store.bounds();
        for part in batches(records, bounds.records, bounds.octets) {
            let mut attempt = 0;
            let taken = loop {
                let result = self
                    .catch_up(writer, now.monotonic)
                    .and_then(|()| self.take_in_part(writer, &part, origin, now));
                match result {
                    Err(StoreError::Behind) if writer.store.another_attempt(attempt) => {
                        attempt += 1
                    }
                    taken => break taken,
                }
            };
            let taken = taken.map_err(|error| self.fail(writer, error, now.monotonic))?;
            published.accepted += taken.accepted;
            published.refused.extend(taken.refused);
            published.refused_keys.extend(taken.refused_keys);
        }
        Ok(published)
    }

    /// Takes in as many records as the store takes at once.
    fn take_in_part(
        &self,
        writer: &mut Writer,
        records: &[Authentic],
        origin: Origin,
        now: Now,
    ) -> Result<Published, StoreError> {
        let mut published = Published::default();
        let (mut writes, mut replaced) = (Vec::new(), Vec::new());
        for envelope in records {
            match self.apply(writer, envelope, origin, now)? {
                Ok(Some((write, before))) => {
                    writes.push(write);
                    replaced.push(before);
                }
                Ok(None) => {}
                Err(refused) => {
                    published.refused.push(refused);
                    published.refused_keys.push(envelope.key());
                }
            }
        }
        if writes.is_empty() {
            return Ok(published);
        }
        let last = match writer.store.put(&writes) {
            Err(StoreError::Behind) => {
                self.undo(writer, replaced, now.monotonic)?;
                return Err(StoreError::Behind);
            }
            last => last?,
        };
        published.accepted = u32::try_from(writes.len()).unwrap_or(u32::MAX);
        let mut state = self.write();
        let first = last.saturating_sub(writes.len() as u64) + 1;
        for (revision, write) in (first..).zip(writes) {
            state.changes.push(revision, write.key);
        }
        state.revision = last;
        self.revision.send_replace(last);
        Ok(published)
    }

    /// A write failed: memory goes back to what is on disk.
    fn fail(&self, writer: &mut Writer, error: StoreError, now: Instant) -> ApiError {
        self.note_failure(&error);
        let reloaded = self.reload(writer, now);
        writer.health = Health::Failed {
            at: now,
            error: error.clone(),
            ahead: reloaded.is_err(),
        };
        fault(error)
    }

    /// Takes everything from the store. Who reads meanwhile sees what was there before.
    fn reload(&self, writer: &mut Writer, now: Instant) -> Result<(), StoreError> {
        let loaded = Loaded::from(writer.store.load()?);
        let mut state = self.write();
        state.take_over(loaded, now);
        self.revision.send_replace(state.revision);
        Ok(())
    }

    /// Takes one record into memory; gives what is to be written, if it is new, and what was there.
    fn apply(
        &self,
        writer: &mut Writer,
        envelope: &Authentic,
        origin: Origin,
        now: Now,
    ) -> Result<Result<Option<(Write, Replaced)>, PublishRefused>, StoreError> {
        if self.holds(envelope) {
            return Ok(Ok(None));
        }
        if let Origin::Stream(who) = origin
            && let Err(refused) = self.permit_on_stream(writer, &who, envelope, now)?
        {
            return Ok(Err(refused));
        }
        if origin == Origin::Administrator
            && let Some(member) = self.left_out(envelope)
        {
            return Ok(Err(PublishRefused::LeftOut(member)));
        }
        let mut state = self.write();
        let Some(ledger) = &mut state.ledger else {
            return Ok(Err(Refused::NoMesh.into()));
        };
        Ok(match ledger.replace_authentic(envelope.clone()) {
            Ok(None) => Ok(None),
            Err(refused) => Err(refused.into()),
            Ok(Some(replaced)) => {
                let write = Write {
                    effect: effect_of(ledger, &replaced, origin),
                    key: replaced.key().clone(),
                    envelope: Envelope::clone(envelope),
                    gone: replaced.dropped().to_vec(),
                };
                Ok(Some((write, replaced)))
            }
        })
    }

    /// After a write that failed: waits a little, then finds out whether the store can be written again.
    fn recover(&self, writer: &mut Writer, now: Instant) -> Result<(), StoreError> {
        let Health::Failed { at, error, ahead } = &writer.health else {
            return Ok(());
        };
        if now.saturating_duration_since(*at) < PAUSE_AFTER_FAILURE {
            return Err(error.clone());
        }
        let ahead = *ahead;
        if let Err(error) = writer.store.put(&[]) {
            writer.health = Health::Failed {
                at: now,
                error: error.clone(),
                ahead,
            };
            return Err(error);
        }
        if ahead {
            self.reload(writer, now)?;
        }
        writer.health = Health::Good;
        Ok(())
    }

    fn note_failure(&self, error: &StoreError) {
        self.counts.store_failures.fetch_add(1, Ordering::Relaxed);
        tracing::error!(%error, "a write to the store failed");
    }

    /// The last revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// Everything, in an order in which it can be taken in, and the revision it stands for.
    #[must_use]
    pub fn snapshot(&self) -> (Vec<Envelope>, u64) {
        let state = self.read();
        let records = state.ledger.iter().flat_map(|ledger| ledger.envelopes());
        (records.cloned().collect(), state.revision)
    }

    /// Where a stream begins that holds `revision` of `store`.
    #[must_use]
    pub fn position(&self, store: Option<&str>, revision: u64) -> Position {
        let state = self.read();
        let same = store == Some(state.store_id.as_str());
        if same && revision > state.revision {
            tracing::warn!(
                theirs = revision,
                ours = state.revision,
                "a node has seen more of this store than it holds: was its file replaced by an older copy?"
            );
        }
        let resumes = same && revision <= state.revision && state.changes.reaches_back_to(revision);
        Position {
            store: state.store_id.clone(),
            revision: state.revision,
            snapshot: !resumes,
        }
    }

    /// Whether the store is the one of this name still.
    #[must_use]
    pub fn is_on(&self, store: &str) -> bool {
        self.read().store_id == store
    }

    /// Whether there is a mesh to serve.
    #[must_use]
    pub fn has_mesh(&self) -> bool {
        let state = self.read();
        state
            .ledger
            .as_ref()
            .is_some_and(|ledger| ledger.mesh().is_some())
    }

    /// Whether `node` is a member, was removed, or neither.
    #[must_use]
    pub fn standing(&self, node: &PublicKey) -> Standing {
        match &self.read().ledger {
            Some(ledger) if ledger.is_revoked(node) => Standing::Revoked,
            Some(ledger) if ledger.membership(node).is_some() => Standing::Member,
            _ => Standing::Stranger,
        }
    }

    /// A stream of `node` opened or closed.
    pub fn set_connected(&self, node: PublicKey, open: bool, now: Now) {
        let mut state = self.write();
        let count = state.connected.entry(node).or_default();
        *count = if open {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            state.connected.remove(&node);
            if state
                .ledger
                .as_ref()
                .is_some_and(|ledger| ledger.membership(&node).is_some())
            {
                state.absent.insert(node, now.monotonic);
            }
        } else {
            state.absent.remove(&node);
        }
    }

    fn explain(&self, error: StoreError, membership: &Membership) -> ApiError {
        match error {
            StoreError::NameTaken(name) => {
                let suggestion = self.free_name(&name).to_string();
                let text = format!(
                    "another node is called {name}; join with `--name {suggestion}`, or remove that one with `meshctl node remove {name}`"
                );
                ApiError {
                    suggestion: Some(suggestion),
                    ..ApiError::new(ErrorCode::Conflict, text)
                }
            }
            StoreError::TokenSpent(_) => ApiError::new(ErrorCode::Forbidden, error.to_string()),
            StoreError::NoBlock(_) => ApiError::new(ErrorCode::Conflict, error.to_string()),
            StoreError::Behind => fault(error),
            StoreError::Full | StoreError::Failed(_) => {
                tracing::error!(node = %membership.name, "a join failed");
                fault(error)
            }
        }
    }

    /// `name` with the lowest number behind it that nobody has.
    fn free_name(&self, name: &Label) -> Label {
        let state = self.read();
        let taken: HashSet<Label> = state
            .ledger
            .iter()
            .flat_map(|ledger| {
                let joined = ledger
                    .memberships()
                    .filter(|m| !ledger.is_revoked(&m.id))
                    .map(|m| m.name.clone());
                joined.chain(ledger.names().into_values())
            })
            .collect();
        (2u64..)
            .map(|number| name.with_suffix(&number.to_string()))
            .find(|candidate| !taken.contains(candidate))
            .expect("there are more numbers than nodes")
    }
}

/// What follows for tokens, names and blocks from a record just taken in.
fn effect_of(ledger: &Ledger, replaced: &Replaced, origin: Origin) -> Effect {
    match ledger.entry(replaced.key()).map(|entry| &entry.record) {
        // A later version of a token that came on a stream says nothing about the nodes that the token has admitted.
        Some(Record::Token(token)) if origin == Origin::Administrator && replaced.is_first() => {
            Effect::Issued(token.id)
        }
        Some(Record::Membership(membership)) if ledger.is_revoked(&membership.id) => {
            Effect::Spent {
                node: membership.id,
                token: membership.token,
            }
        }
        Some(Record::Membership(membership)) => Effect::Admitted {
            node: membership.id,
            token: membership.token,
            name: membership.name.clone(),
        },
        Some(Record::Node(node)) => ledger
            .mesh()
            .and_then(|mesh| mesh.addresses.index_of(&node.block))
            .map_or(Effect::None, |block| Effect::Leased {
                node: node.id,
                block,
            }),
        Some(Record::Revocation(revocation)) if revocation.revoked == RevokedKind::Node => {
            Effect::Released(vec![revocation.id])
        }
        Some(Record::Revocation(_)) => {
            let members = replaced.dropped().iter().filter_map(|key| match key {
                RecordKey::Membership(node) => Some(*node),
                _ => None,
            });
            let nodes: Vec<PublicKey> = members.collect();
            if nodes.is_empty() {
                Effect::None
            } else {
                Effect::Released(nodes)
            }
        }
        Some(Record::Departure(departure)) => Effect::Released(vec![departure.id]),
        _ => Effect::None,
    }
}

/// Whether `ledger` would take all of `records` in.
fn rehearse(ledger: &Ledger, records: &[Envelope]) -> Result<(), ApiError> {
    if let [record] = records {
        return ledger.check(record).map_err(is_refused);
    }
    // Several may rest on each other.
    let mut rehearsal = ledger.clone();
    for record in records {
        rehearsal.apply(record.clone()).map_err(is_refused)?;
    }
    Ok(())
}

fn is_refused(why: Refused) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("a record is refused: {why}"))
}

fn no_mesh() -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        "the coordinator has no mesh yet; run `meshctl init` on it",
    )
}

/// A failure of the store, for whoever asked.
fn fault(error: StoreError) -> ApiError {
    let code = match error {
        StoreError::Behind => ErrorCode::Busy,
        _ => ErrorCode::Internal,
    };
    ApiError::new(code, error.to_string())
}

#[cfg(test)]
mod tests;

//! The hub: the ledger in memory, the store behind it, and the changes that streams follow.
//!
//! One lock holds everything, for as long as one change takes. A stream does not have a queue of its own: it has a
//! cursor into the list of recent changes, so that a slow reader costs nobody anything, and one that fell behind the
//! list's begin gets a snapshot.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use ipnet::{Ipv4Net, Ipv6Net};
use tokio::sync::watch;

use super::enroll;
use super::store::{Admission, Store, StoreError};
use crate::model::record::{MESH_ID, Membership, Record, RecordKey, RevokedKind};
use crate::model::time::UnixSeconds;
use crate::model::{Label, MeshAddresses, PublicKey};
use crate::wire::admin::{MeshState, NodeList, NodeRow, Submit, TokenList, TokenRow, TokenState};
use crate::wire::api::{ApiError, ErrorCode};
use crate::wire::control::MAX_RECORDS;
use crate::wire::join::{JoinRequest, JoinResponse};
use crate::wire::ledger::{Applied, Refused};
use crate::wire::token::SpkiPin;
use crate::wire::url::CoordinatorUrl;
use crate::wire::{Envelope, Ledger};

/// Changes kept for streams that resume.
const RECENT: usize = 16_384;

/// What does not change while the coordinator runs.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How nodes reach it.
    pub urls: Vec<CoordinatorUrl>,
    /// The key they find there.
    pub pin: SpkiPin,
    /// Domain of a new mesh.
    pub domain: Label,
    /// IPv4 prefix of a new mesh.
    pub prefix_v4: Ipv4Net,
    /// Length of its node blocks.
    pub node_block_v4: u8,
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
}

/// The coordinator's state.
pub struct Hub {
    setup: Setup,
    inner: Mutex<Inner>,
    revision: watch::Sender<u64>,
    /// Counts since the start.
    pub counts: Counts,
}

struct Inner {
    store: Box<dyn Store>,
    store_id: String,
    ledger: Option<Ledger>,
    revision: u64,
    recent: VecDeque<(u64, Envelope)>,
    connected: HashMap<PublicKey, usize>,
    ula: Ipv6Net,
}

/// What a stream sends next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it is up to date.
    UpToDate,
    /// These, and then it is at this revision.
    Changes(Vec<Envelope>, u64),
    /// It is too far behind: everything.
    Snapshot,
}

impl Hub {
    /// Loads the store and verifies what is in it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn open(mut store: Box<dyn Store>, setup: Setup) -> Result<Self, StoreError> {
        let contents = store.load()?;
        let mut ledger = contents.mesh_key.map(Ledger::new);
        let mut recent = VecDeque::new();
        for (revision, envelope) in contents.records {
            if let Some(ledger) = &mut ledger
                && let Err(refused) = ledger.apply(envelope.clone())
                && refused != Refused::NodeRevoked
            {
                tracing::warn!(revision, %refused, "a record in the store does not verify and is left out");
                continue;
            }
            if recent.len() == RECENT {
                recent.pop_front();
            }
            recent.push_back((revision, envelope));
        }
        let inner = Inner {
            store,
            store_id: contents.id,
            ledger,
            revision: contents.revision,
            recent,
            connected: HashMap::new(),
            ula: random_ula(),
        };
        let (revision, _) = watch::channel(contents.revision);
        Ok(Self {
            setup,
            inner: Mutex::new(inner),
            revision,
            counts: Counts::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
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

    /// Admits a node, or says why not.
    ///
    /// # Errors
    /// One line for the person who joins.
    pub fn join(&self, request: &JoinRequest) -> Result<JoinResponse, ApiError> {
        let result = self.try_join(request);
        let count = if result.is_ok() {
            &self.counts.joins
        } else {
            &self.counts.joins_refused
        };
        count.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn try_join(&self, request: &JoinRequest) -> Result<JoinResponse, ApiError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let ledger = inner.ledger.as_mut().ok_or_else(no_mesh)?;
        let now = UnixSeconds::from_system(SystemTime::now());
        let membership = enroll::check(request, ledger, now)?;
        let (mesh, token) = ledger
            .mesh()
            .zip(ledger.token(&membership.token))
            .ok_or_else(no_mesh)?;
        let addresses = mesh.addresses;
        let admission = Admission {
            node: membership.id,
            name: membership.name.clone(),
            token: membership.token,
            uses: token.uses,
            blocks: addresses.block_count(),
            key: RecordKey {
                kind: "membership".into(),
                id: membership.id.to_string(),
            },
            envelope: request.membership.clone(),
        };
        let admitted = inner
            .store
            .admit(&admission)
            .map_err(|error| explain(error, ledger, &membership))?;
        let _ = ledger.apply(request.membership.clone());
        let block = addresses.block(admitted.block).ok_or_else(|| {
            ApiError::new(
                ErrorCode::Internal,
                "the leased block is outside the address plan",
            )
        })?;
        let records = [
            ("mesh", MESH_ID.to_owned()),
            ("token", membership.token.to_string()),
            ("membership", membership.id.to_string()),
        ]
        .into_iter()
        .filter_map(|(kind, id)| {
            ledger.entry(&RecordKey {
                kind: kind.into(),
                id,
            })
        })
        .map(|entry| entry.envelope.clone())
        .collect();
        inner.note(admitted.revision, request.membership.clone());
        self.revision.send_replace(inner.revision);
        tracing::info!(node = %membership.name, id = membership.id.short(), block = %block.v4, "admitted");
        Ok(JoinResponse {
            block,
            records,
            revision: admitted.revision,
        })
    }

    /// Takes records in; gives how many were new and why others were refused.
    ///
    /// # Errors
    /// The store cannot be written; none was taken in then.
    pub fn publish(&self, records: Vec<Envelope>) -> Result<(u32, Vec<String>), ApiError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let Some(ledger) = &mut inner.ledger else {
            return Ok((0, vec!["the coordinator has no mesh yet".into()]));
        };
        let mut refused = Vec::new();
        let mut accepted = Vec::new();
        for envelope in records {
            match ledger.apply(envelope.clone()) {
                Ok(Applied::Changed(key)) => accepted.push((key, envelope)),
                Ok(Applied::Unchanged) => {}
                Err(why) => refused.push(why.to_string()),
            }
        }
        self.counts
            .published
            .fetch_add(accepted.len() as u64, Ordering::Relaxed);
        self.counts
            .publish_refused
            .fetch_add(refused.len() as u64, Ordering::Relaxed);
        if accepted.is_empty() {
            return Ok((0, refused));
        }
        let last = match inner.store.put(&accepted) {
            Ok(last) => last,
            Err(error) => {
                inner.reload();
                return Err(ApiError::new(ErrorCode::Internal, error.to_string()));
            }
        };
        let count = accepted.len() as u64;
        for (at, (key, envelope)) in accepted.iter().enumerate() {
            inner.note(last + 1 - count + at as u64, envelope.clone());
            inner.settle(key);
        }
        self.revision.send_replace(inner.revision);
        Ok((count as u32, refused))
    }

    /// What a stream at `cursor` sends next.
    #[must_use]
    pub fn next(&self, cursor: u64) -> Next {
        let inner = self.lock();
        if cursor >= inner.revision {
            return Next::UpToDate;
        }
        // The list has every revision of which the record is still the newest; a gap within it is a record that was
        // replaced later in it.
        let begins = inner
            .recent
            .front()
            .map_or(u64::MAX, |(revision, _)| *revision);
        if cursor + 1 < begins && inner.recent.len() == RECENT {
            return Next::Snapshot;
        }
        let first = inner
            .recent
            .partition_point(|(revision, _)| *revision <= cursor);
        let records: Vec<&(u64, Envelope)> =
            inner.recent.iter().skip(first).take(MAX_RECORDS).collect();
        let revision = if first + records.len() == inner.recent.len() {
            inner.revision
        } else {
            records
                .last()
                .map_or(inner.revision, |(revision, _)| *revision)
        };
        Next::Changes(
            records
                .into_iter()
                .map(|(_, envelope)| envelope.clone())
                .collect(),
            revision,
        )
    }

    /// Everything, in an order in which it can be taken in, and the revision it stands for.
    #[must_use]
    pub fn snapshot(&self) -> (Vec<Envelope>, u64) {
        let inner = self.lock();
        (
            inner
                .ledger
                .iter()
                .flat_map(Ledger::envelopes)
                .cloned()
                .collect(),
            inner.revision,
        )
    }

    /// The store's name, its revision, and whether a stream that holds `revision` of `store` needs a snapshot.
    #[must_use]
    pub fn position(&self, store: Option<&str>, revision: u64) -> (String, u64, bool) {
        let inner = self.lock();
        let known = store == Some(inner.store_id.as_str()) && revision <= inner.revision;
        (inner.store_id.clone(), inner.revision, !known)
    }

    /// Whether `node` is a member, was removed, or neither.
    #[must_use]
    pub fn standing(&self, node: &PublicKey) -> Standing {
        match &self.lock().ledger {
            Some(ledger) if ledger.is_revoked(node) => Standing::Revoked,
            Some(ledger) if ledger.membership(node).is_some() => Standing::Member,
            _ => Standing::Stranger,
        }
    }

    /// A stream of `node` opened or closed.
    pub fn set_connected(&self, node: PublicKey, open: bool) {
        let mut inner = self.lock();
        let count = inner.connected.entry(node).or_default();
        *count = if open {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            inner.connected.remove(&node);
        }
    }

    /// Records held, the revision, and streams open.
    #[must_use]
    pub fn size(&self) -> (usize, u64, usize) {
        let inner = self.lock();
        (
            inner.ledger.as_ref().map_or(0, Ledger::len),
            inner.revision,
            inner.connected.values().sum(),
        )
    }

    /// What an administrator's command needs to know.
    #[must_use]
    pub fn mesh_state(&self) -> MeshState {
        let inner = self.lock();
        let addresses = MeshAddresses {
            prefix_v4: self.setup.prefix_v4,
            prefix_v6: inner.ula,
            node_block_v4: self.setup.node_block_v4,
            node_block_v6: 64,
        };
        MeshState {
            mesh_key: inner.ledger.as_ref().map(Ledger::mesh_key),
            mesh: inner
                .ledger
                .as_ref()
                .and_then(|ledger| ledger.mesh().cloned()),
            urls: self.setup.urls.clone(),
            pin: self.setup.pin,
            configured_domain: self.setup.domain.clone(),
            configured_addresses: addresses,
        }
    }

    /// Takes signed records of the administrator in, all or none; with a mesh key the first time.
    ///
    /// # Errors
    /// Says which record is refused and why.
    pub fn submit(&self, submit: Submit) -> Result<u64, ApiError> {
        {
            let mut inner = self.lock();
            let held = inner.ledger.as_ref().map(Ledger::mesh_key);
            match (held, submit.mesh_key) {
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
                (None, Some(key)) => {
                    // Nothing is stored for a key that did not sign what comes with it.
                    dry_run(&Ledger::new(key), &submit.records)?;
                    inner
                        .store
                        .set_mesh_key(&key)
                        .map_err(|e| ApiError::new(ErrorCode::Internal, e.to_string()))?;
                    inner.ledger = Some(Ledger::new(key));
                }
                _ => {}
            }
            if let Some(ledger) = &inner.ledger {
                dry_run(ledger, &submit.records)?;
            }
        }
        let (_, refused) = self.publish(submit.records)?;
        match refused.into_iter().next() {
            Some(why) => Err(ApiError::new(ErrorCode::Conflict, why)),
            None => Ok(self.lock().revision),
        }
    }

    /// All tokens, newest first.
    #[must_use]
    pub fn tokens(&self) -> TokenList {
        let inner = self.lock();
        let now = UnixSeconds::from_system(SystemTime::now());
        let mut tokens: Vec<TokenRow> = inner
            .ledger
            .iter()
            .flat_map(|ledger| ledger.tokens().map(move |token| (ledger, token)))
            .map(|(ledger, token)| {
                let used = u32::try_from(ledger.admitted_by(&token.id)).unwrap_or(u32::MAX);
                let state = if ledger.is_token_revoked(&token.id) {
                    TokenState::Revoked
                } else if used >= token.uses {
                    TokenState::Spent
                } else if now >= token.expires_at {
                    TokenState::Expired
                } else {
                    TokenState::Valid
                };
                TokenRow {
                    id: token.id,
                    tags: token.tags.clone(),
                    uses: token.uses,
                    used,
                    created_at: token.created_at,
                    expires_at: token.expires_at,
                    ephemeral: token.ephemeral,
                    state,
                }
            })
            .collect();
        tokens.sort_by_key(|token| (std::cmp::Reverse(token.created_at), token.id));
        TokenList { schema: 1, tokens }
    }

    /// All members, by name.
    #[must_use]
    pub fn nodes(&self) -> NodeList {
        let inner = self.lock();
        let mut nodes: Vec<NodeRow> = inner
            .ledger
            .iter()
            .flat_map(|ledger| {
                ledger
                    .memberships()
                    .filter(|m| !ledger.is_revoked(&m.id))
                    .map(|membership| {
                        let record = ledger.node(&membership.id);
                        NodeRow {
                            id: membership.id,
                            name: membership.name.clone(),
                            tags: membership.tags.clone(),
                            address_v4: record.map(|r| r.block.node_v4()),
                            address_v6: record.map(|r| r.block.node_v6()),
                            endpoints: record.map(|r| r.endpoints.clone()).unwrap_or_default(),
                            connected: inner.connected.contains_key(&membership.id),
                            joined_at: membership.issued_at,
                        }
                    })
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        NodeList { schema: 1, nodes }
    }
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

impl Inner {
    /// Appends a change that is in the store.
    fn note(&mut self, revision: u64, envelope: Envelope) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((revision, envelope));
        self.revision = self.revision.max(revision);
    }

    /// Goes back to what is on disk, after a write that failed.
    fn reload(&mut self) {
        let Ok(contents) = self.store.load() else {
            return;
        };
        let mut ledger = contents.mesh_key.map(Ledger::new);
        for (_, envelope) in contents.records {
            if let Some(ledger) = &mut ledger {
                let _ = ledger.apply(envelope);
            }
        }
        self.ledger = ledger;
    }

    /// Keeps leases in step with records that came by themselves. A failure is mended at the next one.
    fn settle(&mut self, key: &RecordKey) {
        let Some(ledger) = &self.ledger else { return };
        let result = match ledger.entry(key).map(|entry| &entry.record) {
            Some(Record::Revocation(revocation)) if revocation.revoked == RevokedKind::Node => {
                self.store.release(&revocation.id)
            }
            Some(Record::Node(node)) => {
                let index = ledger
                    .mesh()
                    .and_then(|mesh| mesh.addresses.index_of(&node.block));
                match (ledger.membership(&node.id), index) {
                    (Some(membership), Some(index)) => {
                        self.store
                            .note_lease(&node.id, &membership.name, &membership.token, index)
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!(%error, record = %key, "cannot note the lease");
        }
    }
}

fn dry_run(ledger: &Ledger, records: &[Envelope]) -> Result<(), ApiError> {
    for envelope in records {
        ledger.check(envelope).map_err(|why| {
            ApiError::new(ErrorCode::Conflict, format!("a record is refused: {why}"))
        })?;
    }
    Ok(())
}

fn no_mesh() -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        "the coordinator has no mesh yet; run `meshctl init` on it",
    )
}

fn explain(error: StoreError, ledger: &Ledger, membership: &Membership) -> ApiError {
    match error {
        StoreError::NameTaken(name) => {
            let free = (2..)
                .map(|n| name.with_suffix(&n.to_string()))
                .find(|candidate| !ledger.memberships().any(|m| m.name == *candidate));
            let suggestion = free.map(|label| label.to_string());
            let text = format!(
                "another node is called {name}; join with `--name {}`, or remove that one with `meshctl node remove {name}`",
                suggestion.as_deref().unwrap_or("ANOTHER")
            );
            ApiError {
                suggestion,
                ..ApiError::new(ErrorCode::Conflict, text)
            }
        }
        StoreError::TokenSpent(_) => ApiError::new(ErrorCode::Forbidden, error.to_string()),
        StoreError::NoBlock(_) => ApiError::new(ErrorCode::Conflict, error.to_string()),
        StoreError::Full | StoreError::Failed(_) => {
            tracing::error!(%error, node = %membership.name, "a join failed");
            ApiError::new(ErrorCode::Internal, error.to_string())
        }
    }
}

/// A random unique local prefix (RFC 4193 section 3.2.1).
fn random_ula() -> Ipv6Net {
    let mut random = [0u8; 5];
    // Without randomness the prefix is still valid, and nobody but the administrator's `init` reads it.
    let _ = getrandom::fill(&mut random);
    let [a, b, c, d, e] = random;
    let address = std::net::Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    Ipv6Net::new(address, 48).expect("48 is a prefix length")
}

//! Changes to the peers of a running tunnel. Each change puts another table in the place of the one before, and one change
//! is made at a time.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use x25519_dalek::StaticSecret;

use super::allowed_ips::AllowedIps;
use super::config::PeerConfig;
use super::drops::DropReason;
use super::endpoint::Endpoint;
use super::keys::StaticKeys;
use super::paths::Choice;
use super::peer::Peer;
use super::shared::Shared;
use super::table::Table;
use super::udp::Sender;
use crate::os::{clock, random};

/// The peers of a running tunnel.
pub(super) struct Peers {
    pub(super) shared: Arc<Shared>,
    changing: Mutex<()>,
    /// How many members there have been: the number of the next one.
    members: AtomicU64,
}

impl Peers {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            changing: Mutex::new(()),
            members: AtomicU64::new(0),
        }
    }

    /// Lets no other change begin while the guard is held.
    pub(super) fn lock_changes(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table as it is now.
    pub(super) fn table(&self) -> Arc<Table> {
        self.shared.table.load_full()
    }

    /// Replaces all peers and guests. Those that stay keep their sessions, and their endpoint unless another one is configured than
    /// before. A peer with the key of a guest is left out.
    pub(super) fn set(&self, peers: Vec<PeerConfig>, guests: Vec<PeerConfig>) {
        let changing = self.lock_changes();
        let old = self.table();
        let count = peers.len() + guests.len();
        let mut by_key: HashMap<[u8; 32], Arc<Peer>> = HashMap::with_capacity(count);
        let mut taken = HashSet::with_capacity(count);
        let mut prefixes = Vec::new();
        let peers = peers.into_iter().map(|config| (config, false));
        let guests = guests.into_iter().map(|config| (config, true));
        // The administrator has let a guest in with its key, and a member may only claim it.
        for (config, is_guest) in guests.chain(peers) {
            let claimed = by_key.get(&config.public_key);
            if !is_guest && claimed.is_some_and(|held| held.is_guest) {
                continue;
            }
            let held = old.by_key.get(&config.public_key);
            let peer = match held.filter(|held| held.is_guest == is_guest) {
                Some(peer) => {
                    self.configure(peer, &config);
                    Arc::clone(peer)
                }
                None => {
                    let index = free_index(|i| taken.contains(&i) || old.by_index.contains_key(&i));
                    let member = self.members.fetch_add(1, Ordering::Relaxed);
                    let live = Arc::clone(&self.shared.live);
                    let make = if is_guest { Peer::guest } else { Peer::new };
                    let peer = make(config.clone(), index, member, live);
                    if let Some(keys) = old.door.keys.as_ref().filter(|_| is_guest) {
                        let _ = peer.bound.set(Arc::clone(keys));
                    }
                    Arc::new(peer)
                }
            };
            let nets = config.allowed_ips.iter();
            prefixes.extend(nets.map(|net| (*net, Arc::clone(&peer))));
            taken.insert(peer.index);
            by_key.insert(peer.public_key, peer);
        }
        let new = Table {
            by_key,
            allowed: AllowedIps::new(prefixes),
            ..(*old).clone()
        };
        self.store(new.completed(&old));
        drop(changing);
        self.initiate_keepalives();
    }

    /// Gives a peer another configuration. Its sessions end if they were made with other secrets or timers.
    fn configure(&self, peer: &Peer, config: &PeerConfig) {
        let mut state = peer.lock();
        let follows = state.paths.choice == Choice::Roaming || state.endpoint().is_none();
        if config.endpoint != state.config.endpoint && config.endpoint.is_some() && follows {
            state
                .paths
                .set_endpoint(config.endpoint.map(Endpoint::from));
        }
        let before = &state.config;
        if config.preshared_key != before.preshared_key
            || config.persistent_keepalive != before.persistent_keepalive
        {
            let lost = state.forget();
            self.shared.drops.add_many(DropReason::NoAnswer, lost);
        }
        state.config = config.clone();
    }

    /// Changes the keys of this node. All sessions end.
    pub(super) fn set_private_key(&self, key: Option<StaticSecret>) {
        let _changing = self.lock_changes();
        let old = self.table();
        self.end_sessions(&old);
        self.store(Table {
            keys: key.map(|key| Arc::new(StaticKeys::new(key))),
            previous: None,
            retired: Vec::new(),
            ..(*old).clone()
        });
        // Between the two steps a thread may have made a session with the old keys.
        self.end_sessions(&old);
    }

    fn end_sessions(&self, table: &Table) {
        for peer in table.by_key.values() {
            let lost = peer.lock().forget();
            self.shared.drops.add_many(DropReason::NoAnswer, lost);
        }
    }

    /// Makes a change that leaves the peers as they are.
    pub(super) fn change_settings(&self, change: impl FnOnce(&mut Table)) {
        let _changing = self.lock_changes();
        let mut table = (*self.table()).clone();
        change(&mut table);
        self.store(table);
    }

    /// Makes a change that may retire peers. `change` gets a function that makes the successor of a peer with another public
    /// key.
    pub(super) fn change_table(
        &self,
        change: impl FnOnce(&Table, &dyn Fn(&Peer, [u8; 32]) -> Arc<Peer>) -> Table,
    ) {
        let _changing = self.lock_changes();
        let old = self.table();
        let made = RefCell::new(HashSet::new());
        let successor = |peer: &Peer, key: [u8; 32]| {
            let taken = |i| old.by_index.contains_key(&i) || made.borrow().contains(&i);
            let index = free_index(taken);
            made.borrow_mut().insert(index);
            Arc::new(peer.successor(key, index))
        };
        self.store(change(&old, &successor).completed(&old));
        // The successors have sources whose routes were not looked up yet.
        self.shared.wakes.recheck.wake();
    }

    fn store(&self, table: Table) {
        self.shared.table.store(Arc::new(table));
    }

    /// Starts a handshake with each peer that is configured to be kept alive and has no session.
    pub(super) fn initiate_keepalives(&self) {
        let shared = &self.shared;
        let table = shared.table.load();
        let mut sender = Sender::new_small();
        let now = Instant::now();
        for peer in table.by_key.values() {
            let mut state = peer.lock();
            if state.noise.is_none() && state.config.persistent_keepalive.is_some() {
                let to = state.endpoint();
                shared.initiate(&table, (peer, &mut state), to, &mut sender, now);
            }
            drop(state);
            sender.flush_if_full(&shared.sockets.load()[0], &shared.drops);
        }
        sender.flush(&shared.sockets.load()[0], &shared.drops);
    }

    /// Changes the state of a member's current and retired peers.
    pub(super) fn for_each_of(&self, key: &[u8; 32], change: impl Fn(&Peer)) {
        let table = self.shared.table.load();
        if let Some(peer) = table.by_key.get(key) {
            change(peer);
            for retired in table.retired_of(peer) {
                change(retired);
            }
        }
    }

    /// Sends to `endpoint` from now on, from the address that the kernel chooses.
    pub(super) fn set_endpoint(&self, key: &[u8; 32], endpoint: SocketAddr) {
        self.for_each_of(key, |peer| {
            let endpoint = Some(Endpoint::from(endpoint));
            peer.lock().paths.set_endpoint(endpoint);
        });
    }
}

/// A random 24-bit number that is not `taken`.
fn free_index(taken: impl Fn(u32) -> bool) -> u32 {
    loop {
        let index = random::u32().unwrap_or_else(|_| clock_nanoseconds()) & 0x00ff_ffff;
        if !taken(index) {
            return index;
        }
    }
}

/// A number for a system that cannot produce random ones: an index only has to be unique.
fn clock_nanoseconds() -> u32 {
    clock::wall()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos())
}

//! Replacing a key, this node's own or a peer's, without losing a packet.
//!
//! WireGuard binds a session to the keys of both ends. When one of the keys is replaced, the member has two peers for a
//! while: the retired peer with the old keys and their session, and the current peer with the new keys. Both belong to the
//! same member, so packets that either of them receives may come from all addresses of the member. Packets to the member are
//! sealed by the retired peer, which also renews its sessions, until the current peer has received something. So it does
//! not matter which of the two ends learns of the new key first, or when. After [`OVERLAP`] the retired peer is removed. If both
//! ends replace their keys at the same time, there are two retired peers, and the one with a session is used.

use std::sync::Arc;
use std::time::{Duration, Instant};

use x25519_dalek::StaticSecret;

use super::config::PeerConfig;
use super::keys::StaticKeys;
use super::peer::Peer;
use super::peers::Peers;
use super::table::Table;

/// How long an old key is accepted: three times the life of a session (WireGuard section 6.1), so that a peer with a session
/// has made a new one in that time.
pub const OVERLAP: Duration = Duration::from_secs(600);

/// The keys of a running tunnel: this node's own and those of its peers.
pub struct Keys<'a>(pub(super) &'a Peers);

impl Keys<'_> {
    /// The private key of this node.
    #[must_use]
    pub fn private_key(&self) -> Option<StaticSecret> {
        let table = self.0.table();
        table.keys.as_ref().map(|keys| keys.secret().clone())
    }

    /// Sets the private key that guests have their sessions with. It is set once, before there are guests: the configurations of guests have
    /// its public half, so it is never rotated.
    pub fn set_guest_key(&self, key: StaticSecret) {
        let keys = Arc::new(StaticKeys::new(key));
        self.0.change_settings(|table| table.door.keys = Some(keys));
    }

    /// Does what [`super::Tunnel::set_peers`] does, with guests: devices that reach the mesh through this node. A guest has one address of each
    /// family.
    pub fn set_peers_and_guests(&self, peers: Vec<PeerConfig>, guests: Vec<PeerConfig>) {
        self.0.set(peers, guests);
    }

    /// Changes the private key of this node at once. All sessions end.
    pub fn set_private_key(&self, key: Option<StaticSecret>) {
        self.0.set_private_key(key);
    }

    /// Replaces the private key of this node. The old key is accepted for [`OVERLAP`].
    pub fn rotate(&self, key: StaticSecret, now: Instant) {
        let keys = Arc::new(StaticKeys::new(key));
        let change = |old: &Table, successor: Successor<'_>| rotated(old, keys, now, successor);
        self.0.change_table(change);
        self.0.initiate_keepalives();
    }

    /// Replaces the public key of a peer, which keeps its session until there is one with the new key.
    pub fn replace_key(&self, before: &[u8; 32], key: [u8; 32], now: Instant) {
        self.0
            .change_table(|old, successor| with_key_replaced(old, before, key, now, successor));
        self.0.initiate_keepalives();
    }

    /// Whether an old key of this node is still accepted.
    #[must_use]
    pub fn is_rotating(&self) -> bool {
        self.0.table().previous.is_some()
    }

    /// Makes each current peer that has received something the sending peer, and removes what is over at `now`. To be called
    /// every few seconds.
    pub fn settle(&self, now: Instant) {
        let table = self.0.table();
        if !table.retired.is_empty() || table.previous.is_some() {
            self.0.change_table(|old, _| settled(old, now));
        }
    }
}

impl std::fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("is_rotating", &self.is_rotating())
            .finish_non_exhaustive()
    }
}

/// Makes the successor of a peer, with this public key.
type Successor<'a> = &'a dyn Fn(&Peer, [u8; 32]) -> Arc<Peer>;

/// The table after this node got other keys.
fn rotated(old: &Table, keys: Arc<StaticKeys>, now: Instant, successor: Successor<'_>) -> Table {
    let mut new = old.clone();
    let Some(before) = new.keys.replace(keys) else {
        return new;
    };
    let until = now + OVERLAP;
    new.previous = Some((Arc::clone(&before), until));
    // Guests have keys of their own.
    let peers = || old.by_key.iter().filter(|(_, peer)| !peer.is_guest);
    for (key, peer) in peers() {
        new.by_key.insert(*key, successor(peer, *key));
    }
    for (_, peer) in peers() {
        new.retire(Arc::clone(peer), until);
    }
    for retired in &new.retired {
        // A peer that was retired earlier is already bound to the keys that it has its sessions with.
        let _ = retired.peer.bound.set(Arc::clone(&before));
    }
    new
}

/// The table after a peer got another public key.
fn with_key_replaced(
    old: &Table,
    before: &[u8; 32],
    key: [u8; 32],
    now: Instant,
    successor: Successor<'_>,
) -> Table {
    let mut new = old.clone();
    // A member may have claimed the key of a guest, which stays that of the guest.
    if old.by_key.get(before).is_some_and(|peer| peer.is_guest) {
        return new;
    }
    if let Some(peer) = new.by_key.remove(before) {
        let current = successor(&peer, key);
        new.retire(peer, now + OVERLAP);
        new.by_key.entry(key).or_insert(current);
    }
    new
}

/// The table without what is over at `now`.
fn settled(old: &Table, now: Instant) -> Table {
    let mut new = old.clone();
    new.retired.retain(|retired| retired.until > now);
    new.previous.take_if(|(_, until)| *until <= now);
    new
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::table::tests::{keys, peer, table};
    use super::*;

    fn successors() -> impl Fn(&Peer, [u8; 32]) -> Arc<Peer> {
        let next = Cell::new(100);
        move |peer, key| {
            next.set(next.get() + 1);
            Arc::new(peer.successor(key, next.get()))
        }
    }

    #[test]
    fn after_a_rotation_each_member_has_a_retired_peer_with_the_old_keys_and_a_current_one_with_the_new()
     {
        let now = Instant::now();
        let old = table(&[peer(2, 1, 7, "10.0.0.2/32"), peer(3, 2, 8, "10.0.0.3/32")]);
        let new = rotated(&old, keys(9), now, &successors()).completed(&old);
        assert_eq!((new.by_key.len(), new.by_index.len()), (2, 4));
        for retired in &new.retired {
            assert_eq!(retired.until, now + OVERLAP);
            let of = new.keys_of(&retired.peer).map(|keys| keys.public());
            assert_eq!(of, Some(keys(1).public()));
            let current = &new.by_key[&retired.peer.public_key];
            assert_eq!(current.member, retired.peer.member);
            let of = new.keys_of(current).map(|keys| keys.public());
            assert_eq!(of, Some(keys(9).public()));
        }
        let later = now + OVERLAP;
        let kept = settled(&new, later - Duration::from_secs(1)).completed(&new);
        assert_eq!((kept.by_index.len(), kept.previous.is_some()), (4, true));
        let over = settled(&new, later).completed(&new);
        assert_eq!((over.by_index.len(), over.previous.is_some()), (2, false));
    }

    #[test]
    fn a_guest_keeps_its_session_and_the_keys_of_its_configuration_through_a_rotation() {
        let member = peer(2, 1, 7, "10.0.0.2/32");
        let config = peer(3, 2, 8, "10.0.0.3/32").lock().config.clone();
        let guest = Arc::new(Peer::guest(config, 2, 8, Arc::default()));
        let mut old = table(&[member, Arc::clone(&guest)]);
        let guest_keys = keys(5);
        let _ = guest.bound.set(Arc::clone(&guest_keys));
        old.door.keys = Some(Arc::clone(&guest_keys));
        let new = rotated(&old, keys(9), Instant::now(), &successors()).completed(&old);
        assert!(Arc::ptr_eq(&new.by_key[&guest.public_key], &guest));
        assert_eq!(new.retired.len(), 1, "the member");
        let initiator = new.initiator(&guest_keys, &guest.public_key);
        assert!(initiator.is_some_and(|found| Arc::ptr_eq(found, &guest)));
        for other in [keys(1), keys(9)] {
            assert!(new.initiator(&other, &guest.public_key).is_none());
        }
    }

    #[test]
    fn a_member_that_claimed_the_key_of_a_guest_takes_nothing_from_it_by_another_key() {
        let config = peer(3, 2, 8, "10.0.0.3/32").lock().config.clone();
        let guest = Arc::new(Peer::guest(config, 2, 8, Arc::default()));
        let old = table(&[Arc::clone(&guest)]);
        let (now, key) = (Instant::now(), keys(7).public());
        let new = with_key_replaced(&old, &guest.public_key, key, now, &successors());
        let new = new.completed(&old);
        assert!(Arc::ptr_eq(&new.by_key[&guest.public_key], &guest));
        assert!(!new.by_key.contains_key(&key) && new.retired.is_empty());
        let owner = new.allowed.owner("10.0.0.3".parse().expect("a literal"));
        assert!(owner.is_some_and(|owner| Arc::ptr_eq(owner, &guest)));
    }

    #[test]
    fn a_node_without_keys_gets_them_and_retires_nothing() {
        let mut old = table(&[peer(2, 1, 7, "10.0.0.2/32")]);
        old.keys = None;
        let new = rotated(&old, keys(9), Instant::now(), &successors());
        assert!(new.keys.is_some() && new.previous.is_none() && new.retired.is_empty());
        assert_eq!(new.by_key[&keys(2).public()].index, 1);
    }

    #[test]
    fn a_peer_with_another_key_stays_the_same_member_and_an_unknown_one_changes_nothing() {
        let now = Instant::now();
        let old = table(&[peer(2, 1, 7, "10.0.0.2/32")]);
        let (before, after) = (keys(2).public(), keys(3).public());
        let new = with_key_replaced(&old, &before, after, now, &successors()).completed(&old);
        assert!(!new.by_key.contains_key(&before));
        assert_eq!(new.by_key[&after].member, 7);
        assert!(new.by_index.contains_key(&1), "the old session goes on");
        let none = with_key_replaced(&new, &before, after, now, &successors()).completed(&new);
        assert_eq!((none.by_key.len(), none.retired.len()), (1, 1));
    }
}

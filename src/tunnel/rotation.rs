//! A key is replaced, this node's own or a peer's, and no packet is lost.
//!
//! WireGuard binds a session to the keys of both ends. When one is replaced, the peer is there twice for a while: the *elder*
//! with the session and the keys there were, and the *heir* with those there are. Both are the same member, so that what
//! either receives is the owner's. The elder carries what is sent, and begins its sessions anew, until the heir has heard the
//! peer; so it does not matter which of the two ends, or when, learns of the new key. After [`OVERLAP`] the elder goes. When
//! both ends replace their keys at the same time there are two elders, and the one with a session carries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::{Table, Tunnel};
use super::noise::StaticKeys;
use super::peer::Peer;

/// How long an old key goes on: three times what a session lasts (WireGuard section 6.1), so that whoever has one has
/// made a new one since.
pub const OVERLAP: Duration = Duration::from_secs(600);

/// Elders of a member at most: one for either end's last key, and one to spare. Whoever changes its key more often than that
/// loses what it had.
const ELDERS: usize = 3;

/// A peer as it was before a key was replaced.
#[derive(Clone)]
pub(super) struct Elder {
    pub(super) peer: Arc<Peer>,
    /// When it goes.
    pub(super) until: Instant,
}

impl Table {
    /// The key that `peer` speaks to, if there is any.
    pub(super) fn identity_of<'a>(&'a self, peer: &'a Peer) -> Option<&'a Arc<StaticKeys>> {
        peer.bound.get().or(self.identity.as_ref())
    }

    /// Which of this node's keys a handshake message is for: a hash for each.
    pub(super) fn meant(&self, datagram: &[u8]) -> Option<&Arc<StaticKeys>> {
        let previous = self.previous.iter().map(|(identity, _)| identity);
        let both = self.identity.iter().chain(previous);
        let mut both = both.filter(|identity| identity.is_for_us(datagram));
        both.next()
    }

    /// The peer whose key is `key`, that speaks to `identity`.
    pub(super) fn initiator(
        &self,
        identity: &Arc<StaticKeys>,
        key: &[u8; 32],
    ) -> Option<&Arc<Peer>> {
        let elders = self.elders.iter().map(|elder| &elder.peer);
        let elders = elders.filter(|peer| peer.public_key == *key);
        let mut all = self.by_key.get(key).into_iter().chain(elders);
        all.find(|peer| {
            self.identity_of(peer)
                .is_some_and(|of| Arc::ptr_eq(of, identity))
        })
    }

    /// The elders of `peer`, the latest first.
    pub(super) fn elders_of(&self, peer: &Peer) -> impl Iterator<Item = &Arc<Peer>> {
        let elders = self.elders.iter().rev().map(|elder| &elder.peer);
        elders.filter(move |elder| elder.member == peer.member && elder.index != peer.index)
    }

    /// Who carries what is sent to the member that `heir` is now.
    pub(super) fn carrier<'a>(&'a self, heir: &'a Arc<Peer>) -> &'a Arc<Peer> {
        let has_session = |elder: &&Arc<Peer>| {
            let state = elder.lock();
            state
                .noise
                .as_ref()
                .is_some_and(|noise| noise.session_age().is_some())
        };
        let mut elders = self.elders_of(heir).peekable();
        if elders.peek().is_none() || heir.lock().last_receive.is_some() {
            return heir;
        }
        elders.find(has_session).unwrap_or(heir)
    }

    /// Makes `peer` an elder.
    fn retire(&mut self, peer: Arc<Peer>, until: Instant) {
        let of_member = |elder: &Elder| elder.peer.member == peer.member;
        if self.elders.iter().filter(|elder| of_member(elder)).count() >= ELDERS
            && let Some(first) = self.elders.iter().position(of_member)
        {
            self.elders.remove(first);
        }
        self.elders.push(Elder { peer, until });
    }
}

impl Tunnel {
    /// Replaces this node's key. Whoever does not know the new one speaks to the old one for [`OVERLAP`].
    pub fn rotate(&self, key: x25519_dalek::StaticSecret, now: Instant) {
        self.change_table(|old, fresh| {
            let Some(identity) = &old.identity else {
                return Table {
                    identity: Some(Arc::new(StaticKeys::new(key))),
                    ..old.clone()
                };
            };
            let until = now + OVERLAP;
            let heirs = old.by_key.iter().map(|(key, peer)| {
                let heir = fresh(peer, *key);
                (*key, heir)
            });
            let mut new = Table {
                identity: Some(Arc::new(StaticKeys::new(key))),
                previous: Some((Arc::clone(identity), until)),
                by_key: heirs.collect(),
                ..old.clone()
            };
            for peer in old.by_key.values() {
                new.retire(Arc::clone(peer), until);
            }
            for elder in &new.elders {
                // One that is bound already keeps its key.
                let _ = elder.peer.bound.set(Arc::clone(identity));
            }
            new
        });
        self.keep_alive();
    }

    /// A peer has a new key: it keeps its session until there is one with that.
    pub fn replace_key(&self, before: &[u8; 32], key: [u8; 32], now: Instant) {
        self.change_table(|old, fresh| {
            let mut new = old.clone();
            if let Some(peer) = new.by_key.remove(before) {
                let heir = fresh(&peer, key);
                new.retire(peer, now + OVERLAP);
                new.by_key.entry(key).or_insert(heir);
            }
            new
        });
        self.keep_alive();
    }

    /// Whether a key that this node had goes on.
    #[must_use]
    pub fn is_rotating(&self) -> bool {
        self.table().previous.is_some()
    }

    /// Lets heirs take over that have heard their peers, and elders go whose time is over. To be called now and then.
    pub fn settle(&self, now: Instant) {
        let table = self.table();
        if table.elders.is_empty() && table.previous.is_none() {
            return;
        }
        self.change_table(|old, _| {
            let mut new = old.clone();
            new.elders.retain(|elder| elder.until > now);
            new.previous.take_if(|(_, until)| *until <= now);
            new
        });
    }
}

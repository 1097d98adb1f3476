//! The peers and routes of a tunnel as one immutable value, which the data threads load once a batch.
//!
//! A change makes another table and puts it in the place of the one before. The peers themselves are shared between
//! tables, so their sessions outlive a change.
//!
//! While a key is replaced (see [`super::rotation`]), a member has several peers: the *current peer* with its present keys,
//! and *retired peers* with the keys and sessions it had before. The *sending peer* is the one that packets to the member
//! are sealed by.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use foldhash::fast::RandomState;
use ipnet::IpNet;

use super::allowed_ips::AllowedIps;
use super::guard::Guard;
use super::keys::StaticKeys;
use super::local_service::LocalService;
use super::peer::Peer;
use super::used_relays::UsedRelays;

/// The maximum number of retired peers of a member: one for the last key of either end, and one to spare. A member that
/// changes its key more often loses its oldest session.
const MAX_RETIRED: usize = 3;

/// A peer as it was before a key was replaced.
#[derive(Clone)]
pub(super) struct RetiredPeer {
    pub(super) peer: Arc<Peer>,
    /// When it is removed.
    pub(super) until: Instant,
}

/// The peers and routes.
#[derive(Clone)]
pub(super) struct Table {
    /// The keys of this node. Without them, nothing is sealed or opened.
    pub(super) keys: Option<Arc<StaticKeys>>,
    /// The keys that this node had before, and when they stop being accepted.
    pub(super) previous: Option<(Arc<StaticKeys>, Instant)>,
    pub(super) retired: Vec<RetiredPeer>,
    /// The current peers by their public key.
    pub(super) by_key: HashMap<[u8; 32], Arc<Peer>>,
    /// The current and the retired peers by their index, which is looked up for the datagrams of each message from the kernel.
    pub(super) by_index: HashMap<u32, Arc<Peer>, RandomState>,
    /// The sending peer for each address.
    pub(super) allowed: AllowedIps<Arc<Peer>>,
    /// The networks outside the mesh to which peers route.
    pub(super) routed: Routed,
    pub(super) local_service: Option<Arc<LocalService>>,
    /// The relays that this node may use.
    pub(super) relays: Arc<UsedRelays>,
    /// The networks that packets of peers may go to. If there are none, they may go anywhere.
    pub(super) own_networks: Arc<[IpNet]>,
    /// The policy between members. Without one everything passes.
    pub(super) guard: Option<Guard>,
    /// What this node is to its guests.
    pub(super) door: Door,
}

/// The networks outside the mesh to which peers route.
#[derive(Clone)]
pub(super) struct Routed {
    /// The networks, each with the public key of the peer that routes to it.
    pub(super) networks: Arc<[(IpNet, [u8; 32])]>,
    /// The sending peer for each of these networks. No address that a member owns itself is looked up here.
    peers: AllowedIps<Arc<Peer>>,
}

/// What a node is to its guests.
#[derive(Clone, Default)]
pub(super) struct Door {
    /// Whether one of the peers is a guest.
    pub(super) has_guests: bool,
    /// The keys of this node that guests have their sessions with.
    pub(super) keys: Option<Arc<StaticKeys>>,
}

impl Table {
    /// A table without peers.
    pub(super) fn new(keys: Option<Arc<StaticKeys>>) -> Self {
        Self {
            keys,
            previous: None,
            retired: Vec::new(),
            by_key: HashMap::new(),
            by_index: HashMap::default(),
            allowed: AllowedIps::new([]),
            routed: Routed {
                networks: Arc::default(),
                peers: AllowedIps::new([]),
            },
            local_service: None,
            relays: Arc::default(),
            own_networks: Arc::default(),
            guard: None,
            door: Door::default(),
        }
    }

    /// The sending peer for `address`: that of the member that owns it, or of the one that routes to it.
    #[inline]
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        let owner = self.allowed.owner(address);
        owner.or_else(|| self.routed.peers.owner(address))
    }

    /// Sets the networks outside the mesh, each with the public key of the peer that routes to it. Of a prefix that is given more than
    /// once, the last peer counts.
    pub(super) fn set_routes(&mut self, networks: Arc<[(IpNet, [u8; 32])]>) {
        let peers = networks.iter().filter_map(|(network, key)| {
            // A member may claim the key of a guest, and no guest routes.
            let current = self.by_key.get(key).filter(|peer| !peer.is_guest)?;
            Some((*network, Arc::clone(self.sending_peer(current))))
        });
        let peers = AllowedIps::new(peers);
        self.routed = Routed { networks, peers };
    }

    /// Whether a packet of a peer may go to `destination`: to this node's networks, and not to an address that each node
    /// serves for itself alone.
    #[inline]
    pub(super) fn accepts_destination(&self, destination: IpAddr) -> bool {
        let service = self.local_service.as_ref();
        let is_served = service.is_some_and(|service| service.has(destination));
        let nets = &self.own_networks;
        let is_own = || nets.is_empty() || nets.iter().any(|net| net.contains(&destination));
        !is_served && is_own()
    }

    /// The keys of this node that `peer` has its sessions with, if this node has any.
    #[inline]
    pub(super) fn keys_of<'a>(&'a self, peer: &'a Peer) -> Option<&'a Arc<StaticKeys>> {
        peer.bound.get().or(self.keys.as_ref())
    }

    /// The keys of this node that a handshake message is addressed to. Costs a hash for each key.
    pub(super) fn keys_for(&self, datagram: &[u8]) -> Option<&Arc<StaticKeys>> {
        let previous = self.previous.iter().map(|(keys, _)| keys);
        let guests = self.door.keys.iter().filter(|_| self.door.has_guests);
        let mut all = self.keys.iter().chain(previous).chain(guests);
        all.find(|keys| keys.is_for_us(datagram))
    }

    /// The peer with the public key `key` that has its sessions with `keys`.
    pub(super) fn initiator(&self, keys: &Arc<StaticKeys>, key: &[u8; 32]) -> Option<&Arc<Peer>> {
        let retired = self.retired.iter().map(|retired| &retired.peer);
        let retired = retired.filter(|peer| peer.public_key == *key);
        let mut all = self.by_key.get(key).into_iter().chain(retired);
        all.find(|peer| self.keys_of(peer).is_some_and(|of| Arc::ptr_eq(of, keys)))
    }

    /// The retired peers of the member that `peer` is the current peer of, the latest first.
    pub(super) fn retired_of(&self, peer: &Peer) -> impl Iterator<Item = &Arc<Peer>> {
        let retired = self.retired.iter().rev().map(|retired| &retired.peer);
        retired.filter(move |retired| retired.member == peer.member && retired.index != peer.index)
    }

    /// The sending peer of the member that `current` is the current peer of: a retired peer with a session, until the
    /// current peer has received something.
    pub(super) fn sending_peer<'a>(&'a self, current: &'a Arc<Peer>) -> &'a Arc<Peer> {
        let mut retired = self.retired_of(current).peekable();
        if retired.peek().is_none() || current.lock().last_receive.is_some() {
            return current;
        }
        retired
            .find(|peer| peer.lock().has_session())
            .unwrap_or(current)
    }

    /// The sending peer for the member with this public key.
    pub(super) fn sending_peer_of(&self, key: &[u8; 32]) -> Option<&Arc<Peer>> {
        self.by_key.get(key).map(|peer| self.sending_peer(peer))
    }

    /// Retires `peer` until then.
    pub(super) fn retire(&mut self, peer: Arc<Peer>, until: Instant) {
        let of_member = |retired: &RetiredPeer| retired.peer.member == peer.member;
        let count = self.retired.iter().filter(|retired| of_member(retired));
        if count.count() >= MAX_RETIRED
            && let Some(oldest) = self.retired.iter().position(of_member)
        {
            self.retired.remove(oldest);
        }
        self.retired.push(RetiredPeer { peer, until });
    }

    /// Completes a table that replaces `old`: retired peers of members that are gone are removed, all peers are indexed, and
    /// each prefix leads to the sending peer. The current peers take over the counts of retired peers that were removed,
    /// so that the counts of a member only grow.
    pub(super) fn completed(mut self, old: &Self) -> Self {
        let members: HashMap<u64, Arc<Peer>> = self
            .by_key
            .values()
            .map(|peer| (peer.member, Arc::clone(peer)))
            .collect();
        self.door.has_guests = members.values().any(|peer| peer.is_guest);
        self.retired
            .retain(|retired| members.contains_key(&retired.peer.member));
        let retired = self.retired.iter().map(|retired| &retired.peer);
        self.by_index = self
            .by_key
            .values()
            .chain(retired)
            .map(|peer| (peer.index, Arc::clone(peer)))
            .collect();
        for RetiredPeer { peer, .. } in &old.retired {
            if !self.by_index.contains_key(&peer.index)
                && let Some(current) = members.get(&peer.member)
            {
                current.count_rx(peer.rx_bytes.load(Ordering::Relaxed) as usize);
                current.count_tx(peer.tx_bytes.load(Ordering::Relaxed) as usize);
            }
        }
        self.allowed = self.allowed.map(|owner| {
            let current = members.get(&owner.member).unwrap_or(owner);
            Arc::clone(self.sending_peer(current))
        });
        self.set_routes(Arc::clone(&self.routed.networks));
        self
    }
}

#[cfg(test)]
pub(in crate::tunnel) mod tests {
    use std::time::Duration;

    use x25519_dalek::StaticSecret;

    use super::super::config::PeerConfig;
    use super::*;

    pub(in crate::tunnel) fn keys(n: u8) -> Arc<StaticKeys> {
        Arc::new(StaticKeys::new(StaticSecret::from([n; 32])))
    }

    /// A peer with the public key of `n` that owns `net`.
    pub(in crate::tunnel) fn peer(n: u8, index: u32, member: u64, net: &str) -> Arc<Peer> {
        let config = PeerConfig {
            public_key: keys(n).public(),
            preshared_key: None,
            endpoint: None,
            allowed_ips: vec![net.parse().expect("a literal")],
            persistent_keepalive: None,
        };
        Arc::new(Peer::new(config, index, member, Arc::default()))
    }

    /// A table with these current peers, each with the addresses that it owns.
    pub(in crate::tunnel) fn table(peers: &[Arc<Peer>]) -> Table {
        let mut table = Table::new(Some(keys(1)));
        let prefixes = peers.iter().flat_map(|peer| {
            let nets = peer.lock().config.allowed_ips.clone();
            nets.into_iter().map(|net| (net, Arc::clone(peer)))
        });
        table.allowed = AllowedIps::new(prefixes);
        let by_key = peers.iter().map(|peer| (peer.public_key, Arc::clone(peer)));
        table.by_key = by_key.collect();
        table.completed(&Table::new(None))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("a literal")
    }

    fn owner(table: &Table, of: &str) -> Option<u32> {
        table.allowed.owner(address(of)).map(|peer| peer.index)
    }

    #[test]
    fn packets_of_peers_go_to_own_networks_and_not_to_addresses_that_each_node_serves() {
        struct Silent;
        impl super::super::local_service::LocalHandler for Silent {
            fn datagram(
                &self,
                _: std::net::SocketAddr,
                _: std::net::SocketAddr,
                _: &[u8],
            ) -> super::super::local_service::Handled {
                super::super::local_service::Handled::Refused
            }
            fn segment(&self, _: IpAddr, _: &[u8]) -> super::super::local_service::Handled {
                super::super::local_service::Handled::Refused
            }
        }
        let mut table = table(&[]);
        assert!(table.accepts_destination(address("203.0.113.1")));
        table.own_networks = [IpNet::from(address("10.0.0.1"))].into();
        assert!(!table.accepts_destination(address("203.0.113.1")));
        assert!(table.accepts_destination(address("10.0.0.1")));
        table.local_service = Some(Arc::new(LocalService {
            addresses: vec![address("10.0.0.1")],
            handler: Arc::new(Silent),
        }));
        assert!(!table.accepts_destination(address("10.0.0.1")));
    }

    #[test]
    fn a_network_leads_to_the_peer_that_routes_to_it_and_to_none_when_that_is_gone() {
        let (near, far) = (peer(2, 1, 7, "10.0.0.2/32"), peer(3, 2, 8, "10.0.0.3/32"));
        let mut table = table(&[Arc::clone(&near), Arc::clone(&far)]);
        let owner = |table: &Table, of: &str| table.owner(address(of)).map(|peer| peer.index);
        assert_eq!(owner(&table, "192.168.1.7"), None);
        let routes = |key: [u8; 32]| -> Arc<[(IpNet, [u8; 32])]> {
            // A network that has the address of a member takes nothing away from the member.
            [("192.168.1.0/24", key), ("10.0.0.0/8", key)]
                .map(|(net, key)| (net.parse::<IpNet>().expect("a literal"), key))
                .into()
        };
        table.set_routes(routes(near.public_key));
        assert_eq!(owner(&table, "192.168.1.7"), Some(1));
        assert_eq!(owner(&table, "10.0.0.3"), Some(2));
        assert_eq!(owner(&table, "192.168.2.7"), None);
        assert!(!table.allowed.is_first_host(address("192.168.1.1")));
        table.set_routes(routes(far.public_key));
        assert_eq!(owner(&table, "192.168.1.7"), Some(2));
        let mut without = table.clone();
        without.by_key.remove(&far.public_key);
        let without = without.completed(&table);
        assert_eq!(owner(&without, "192.168.1.7"), None);
    }

    #[test]
    fn a_member_is_sent_to_by_its_current_peer_once_that_has_received_or_no_retired_one_has_a_session()
     {
        let (before, after) = (peer(2, 1, 7, "10.0.0.2/32"), peer(3, 2, 7, "10.0.0.2/32"));
        let now = Instant::now();
        let old = table(&[Arc::clone(&before)]);
        let mut new = old.clone();
        new.by_key = HashMap::from([(after.public_key, Arc::clone(&after))]);
        new.retire(Arc::clone(&before), now + Duration::from_secs(600));
        let new = new.completed(&old);
        assert_eq!(owner(&new, "10.0.0.2"), Some(2), "no peer has a session");
        before.lock().noise = Some(Box::new(super::super::noise::tests::established().0));
        let new = new.clone().completed(&new);
        assert_eq!(owner(&new, "10.0.0.2"), Some(1), "the retired one has");
        after.lock().last_receive = Some(now);
        let new = new.clone().completed(&new);
        assert_eq!(
            owner(&new, "10.0.0.2"),
            Some(2),
            "the current one has received"
        );
        assert_eq!(new.by_index.len(), 2, "and both still receive");
    }

    #[test]
    fn an_initiation_is_for_the_peer_that_has_its_sessions_with_the_keys_it_is_addressed_to() {
        let (before, after) = (peer(2, 1, 7, "10.0.0.2/32"), peer(2, 2, 7, "10.0.0.2/32"));
        let (old_keys, new_keys) = (keys(1), keys(9));
        let mut new = table(&[Arc::clone(&after)]);
        new.keys = Some(Arc::clone(&new_keys));
        let _ = before.bound.set(Arc::clone(&old_keys));
        new.retire(Arc::clone(&before), Instant::now());
        let initiator = |keys| {
            new.initiator(keys, &before.public_key)
                .map(|peer| peer.index)
        };
        assert_eq!(initiator(&old_keys), Some(1));
        assert_eq!(initiator(&new_keys), Some(2));
        assert_eq!(initiator(&keys(5)), None);
    }

    #[test]
    fn retired_peers_are_bounded_for_each_member_and_leave_with_it_and_their_counts_stay() {
        let (current, other) = (
            peer(2, 100, 7, "10.0.0.2/32"),
            peer(3, 101, 8, "10.0.0.3/32"),
        );
        let now = Instant::now();
        let mut old = table(&[Arc::clone(&current), Arc::clone(&other)]);
        for index in 0..5 {
            let retired = peer(2, index, 7, "10.0.0.2/32");
            retired.count_rx(10);
            old.retire(retired, now);
        }
        old.retire(peer(3, 50, 8, "10.0.0.3/32"), now);
        let kept: Vec<u32> = old.retired_of(&current).map(|peer| peer.index).collect();
        assert_eq!(kept, [4, 3, 2], "the latest first");
        let mut new = old.clone();
        new.by_key.remove(&other.public_key);
        new.retired.retain(|retired| retired.peer.index != 2);
        let new = new.completed(&old);
        let left: Vec<u32> = new
            .retired
            .iter()
            .map(|retired| retired.peer.index)
            .collect();
        assert_eq!(left, [3, 4], "the other member is gone");
        assert_eq!(current.rx_bytes.load(Ordering::Relaxed), 10);
    }
}

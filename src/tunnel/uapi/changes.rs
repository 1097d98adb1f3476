//! Changes of peers as a request asks for them.

use std::collections::{BTreeSet, HashMap, HashSet};

use ipnet::IpNet;

use super::super::config::PeerConfig;
use super::request::PeerChange;

/// The peers of a device, which a request changes one after the other. A request may name more than 100,000 allowed IPs, so
/// the owner of each is looked up in a map.
pub(super) struct Changes {
    /// The peers in their order. The place of a removed peer is empty.
    peers: Vec<Option<PeerConfig>>,
    places: HashMap<[u8; 32], usize>,
    owners: HashMap<IpNet, usize>,
}

impl Changes {
    pub(super) fn new(peers: Vec<PeerConfig>) -> Self {
        let mut changes = Self {
            peers: Vec::with_capacity(peers.len()),
            places: HashMap::with_capacity(peers.len()),
            owners: HashMap::new(),
        };
        for (place, peer) in peers.into_iter().enumerate() {
            changes.places.insert(peer.public_key, place);
            let nets = peer.allowed_ips.iter().map(|net| (*net, place));
            changes.owners.extend(nets);
            changes.peers.push(Some(peer));
        }
        changes
    }

    pub(super) fn into_peers(self) -> Vec<PeerConfig> {
        self.peers.into_iter().flatten().collect()
    }

    pub(super) fn apply(&mut self, change: &PeerChange) {
        if change.remove {
            if let Some(place) = self.places.remove(&change.public_key)
                && let Some(peer) = self.peers.get_mut(place).and_then(Option::take)
            {
                for net in &peer.allowed_ips {
                    self.owners.remove(net);
                }
            }
            return;
        }
        let place = match self.places.get(&change.public_key) {
            Some(place) => *place,
            None if change.update_only => return,
            None => self.add(change.public_key),
        };
        if let Some(Some(peer)) = self.peers.get_mut(place) {
            if let Some(key) = change.preshared_key {
                peer.preshared_key = (key != [0; 32]).then_some(key);
            }
            peer.endpoint = change.endpoint.or(peer.endpoint);
            if let Some(seconds) = change.persistent_keepalive {
                peer.persistent_keepalive = (seconds != 0).then_some(seconds);
            }
            if change.replace_allowed_ips {
                for net in peer.allowed_ips.drain(..) {
                    self.owners.remove(&net);
                }
            }
        }
        self.change_allowed(place, &change.allowed_ips);
    }

    fn add(&mut self, public_key: [u8; 32]) -> usize {
        let place = self.peers.len();
        self.peers.push(Some(PeerConfig {
            public_key,
            preshared_key: None,
            endpoint: None,
            allowed_ips: Vec::new(),
            persistent_keepalive: None,
        }));
        self.places.insert(public_key, place);
        place
    }

    /// Adds allowed IPs to the peer at `place` and removes others. Each belongs to one peer: the last one that claimed it.
    fn change_allowed(&mut self, place: usize, nets: &[(IpNet, bool)]) {
        let mut gained = Vec::new();
        // The list of each peer that loses allowed IPs is filtered once.
        let mut losers = BTreeSet::new();
        for (net, add) in nets {
            let owner = self.owners.get(net).copied();
            if *add && owner != Some(place) {
                losers.extend(owner);
                self.owners.insert(*net, place);
                gained.push(*net);
            } else if !*add && owner == Some(place) {
                self.owners.remove(net);
                losers.insert(place);
            }
        }
        if let Some(Some(peer)) = self.peers.get_mut(place) {
            peer.allowed_ips.extend(gained);
        }
        for loser in losers {
            if let Some(Some(peer)) = self.peers.get_mut(loser) {
                let mut kept = HashSet::new();
                let owners = &self.owners;
                peer.allowed_ips
                    .retain(|net| owners.get(net) == Some(&loser) && kept.insert(*net));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::*;

    fn apply(peers: &mut Vec<PeerConfig>, change: &PeerChange) {
        let mut changes = Changes::new(std::mem::take(peers));
        changes.apply(change);
        *peers = changes.into_peers();
    }

    fn peer(n: u8, nets: &[&str]) -> PeerChange {
        PeerChange {
            public_key: [n; 32],
            allowed_ips: nets
                .iter()
                .map(|net| (net.parse().expect("a literal"), true))
                .collect(),
            ..PeerChange::default()
        }
    }

    #[test]
    fn an_allowed_ip_belongs_to_the_last_peer_that_claimed_it() {
        let mut peers = Vec::new();
        apply(&mut peers, &peer(1, &["10.0.0.0/24", "10.0.1.0/24"]));
        apply(&mut peers, &peer(2, &["10.0.0.0/24"]));
        let nets: Vec<usize> = peers.iter().map(|peer| peer.allowed_ips.len()).collect();
        assert_eq!(nets, [1, 1]);
    }

    #[test]
    fn an_allowed_ip_is_in_the_list_once_however_often_a_request_names_it() {
        let net: IpNet = "10.0.0.0/24".parse().expect("a literal");
        for (steps, count) in [
            (&[true, true][..], 1),
            (&[true, false], 0),
            (&[false, true], 1),
            (&[true, false, true], 1),
        ] {
            let mut peers = Vec::new();
            let change = PeerChange {
                allowed_ips: steps.iter().map(|add| (net, *add)).collect(),
                ..peer(1, &[])
            };
            apply(&mut peers, &change);
            assert_eq!(peers[0].allowed_ips.len(), count, "{steps:?}");
        }
    }

    #[test]
    fn a_request_of_many_allowed_ips_costs_no_more_than_their_number() {
        let nets: Vec<(IpNet, bool)> = (0..130_000u32)
            .map(|n| {
                let v6 = Ipv6Addr::from(u128::from(n));
                (IpNet::from(IpAddr::V6(v6)), true)
            })
            .collect();
        let mut peers = Vec::new();
        for key in [1, 2] {
            let change = PeerChange {
                allowed_ips: nets.clone(),
                ..peer(key, &[])
            };
            apply(&mut peers, &change);
        }
        let counts: Vec<usize> = peers.iter().map(|peer| peer.allowed_ips.len()).collect();
        assert_eq!(counts, [0, 130_000]);
    }

    #[test]
    fn peers_are_changed_in_place_and_removed() {
        let mut peers = Vec::new();
        apply(
            &mut peers,
            &PeerChange {
                update_only: true,
                ..peer(1, &[])
            },
        );
        assert_eq!(peers, []);
        apply(&mut peers, &peer(1, &["10.0.0.0/24"]));
        apply(
            &mut peers,
            &PeerChange {
                replace_allowed_ips: true,
                persistent_keepalive: Some(25),
                ..peer(1, &["fd00::/64"])
            },
        );
        assert_eq!(
            peers[0].allowed_ips,
            ["fd00::/64".parse().expect("a literal")]
        );
        assert_eq!(peers[0].persistent_keepalive, Some(25));
        apply(
            &mut peers,
            &PeerChange {
                remove: true,
                ..peer(1, &[])
            },
        );
        assert_eq!(peers, []);
    }
}

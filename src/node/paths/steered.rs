//! The peers whose paths are chosen here, and the relays that lead to them. Pure.
//!
//! A relay is a member that offers to relay in its echoes. It leads to a peer if the peer names it in its record, or else it may
//! lead there. The members that this node hears on direct paths are also those for which this node relays.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::model::{NodeAddress, Path, PublicKey};
use crate::path::Peers;
use crate::path::link::{Evidence, Link, LinkReport};
use crate::path::links::Candidate;
use crate::path::peer::{Action, Report};
use crate::tunnel::{PathReport, UsableRelay};

/// The maximum number of relays by which a peer is looked for.
const MAX_RELAYS: usize = 3;
/// A direct path by which a member was heard within this time is one of its paths.
const HEARD_WITHIN: Duration = Duration::from_secs(180);

/// A peer whose paths are chosen here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SteeredPeer {
    /// Its mesh address.
    pub address: NodeAddress,
    /// The paths to it that need no relay.
    pub direct: Vec<Candidate>,
    /// The relays that it names, best first.
    pub relays: Vec<PublicKey>,
}

/// Something that the caller does with the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SteerAction {
    /// Do this with the paths to a peer.
    Steer(PublicKey, Action),
    /// Let the path to this peer follow its datagrams.
    Release(PublicKey),
    /// Use these relays.
    Relays(Vec<UsableRelay>),
    /// Relay for the member with this address if its frames come from these endpoints.
    RelayFor(NodeAddress, Vec<SocketAddr>),
}

/// The peers whose paths are chosen here.
#[derive(Debug)]
pub(super) struct Steered {
    /// Whether peers are reached through relays.
    uses_relays: bool,
    paths: Peers,
    peers: BTreeMap<PublicKey, SteeredPeer>,
    offers: BTreeMap<PublicKey, UsableRelay>,
    heard: BTreeMap<PublicKey, Vec<SocketAddr>>,
    actions: Vec<SteerAction>,
    /// Whether the relays have changed since the last poll.
    has_new_relays: bool,
}

impl Steered {
    /// No peers yet. They are reached through relays if `uses_relays`.
    pub(super) fn new(uses_relays: bool) -> Self {
        Self {
            uses_relays,
            paths: Peers::default(),
            peers: BTreeMap::new(),
            offers: BTreeMap::new(),
            heard: BTreeMap::new(),
            actions: Vec::new(),
            has_new_relays: false,
        }
    }

    /// Sets the peers. The state of those that stay is kept. `known` says whether a peer that is not among them is still one.
    pub(super) fn set(
        &mut self,
        peers: BTreeMap<PublicKey, SteeredPeer>,
        known: impl Fn(&PublicKey) -> bool,
        now: Instant,
    ) {
        let before = std::mem::replace(&mut self.peers, peers);
        for (id, peer) in before {
            if self.peers.contains_key(&id) {
                continue;
            }
            if known(&id) {
                self.actions.push(SteerAction::Release(id));
            }
            self.has_new_relays |= self.offers.remove(&id).is_some();
            if self.heard.remove(&id).is_some() {
                let gone = SteerAction::RelayFor(peer.address, Vec::new());
                self.actions.push(gone);
            }
        }
        self.renew(now);
    }

    /// Computes the candidates of all peers.
    fn renew(&mut self, now: Instant) {
        let peers = self.peers.iter();
        let peers: Vec<(PublicKey, Vec<Candidate>)> = peers
            .map(|(id, peer)| (*id, self.candidates(id, peer)))
            .collect();
        for id in self.paths.set(peers, now) {
            // Each peer is kept alive, so it is to be reached from the beginning.
            self.paths.handle_wanted(&id, now);
        }
    }

    /// The paths by which a peer may be reached: the direct ones, and the best relays.
    fn candidates(&self, id: &PublicKey, peer: &SteeredPeer) -> Vec<Candidate> {
        let named = peer
            .relays
            .iter()
            .filter(|relay| self.offers.contains_key(*relay));
        let mut relays: Vec<&PublicKey> = named.collect();
        let mut others: Vec<&PublicKey> = self.offers.keys().collect();
        others.retain(|other| !relays.contains(other));
        others.sort_by_key(|relay| self.round_trip(relay));
        relays.extend(others);
        let relays = relays.into_iter().filter(|relay| *relay != id);
        let relays = relays.filter_map(|relay| self.offers.get(relay));
        let most = if self.uses_relays { MAX_RELAYS } else { 0 };
        let relays = relays.take(most).map(|relay| Candidate {
            path: Path::Relay(relay.node),
            evidence: Evidence::Host,
        });
        // The relays come first, so that no number of direct paths displaces them.
        relays.chain(peer.direct.iter().copied()).collect()
    }

    /// The round trip to a relay, for the order of relays. Those without one come last.
    fn round_trip(&self, relay: &PublicKey) -> Duration {
        let links = self.paths.get(relay).map(|peer| peer.links().all());
        let direct = links.into_iter().flatten();
        let direct = direct.filter(|link| link.path.relay().is_none());
        direct.filter_map(Link::srtt).min().unwrap_or(Duration::MAX)
    }

    /// Whether the paths to this peer are chosen here.
    pub(super) fn contains(&self, id: &PublicKey) -> bool {
        self.peers.contains_key(id)
    }

    /// The paths to all peers.
    pub(super) fn paths(&self) -> &Peers {
        &self.paths
    }

    /// The paths to all peers.
    pub(super) fn paths_mut(&mut self) -> &mut Peers {
        &mut self.paths
    }

    /// The paths to a peer, as the tunnel has them.
    pub(super) fn handle_report(&mut self, id: &PublicKey, report: &PathReport, now: Instant) {
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        let direct = || {
            report
                .paths
                .iter()
                .filter(|seen| seen.path.relay().is_none())
        };
        let offer = direct().filter_map(|seen| {
            let relay = UsableRelay {
                node: peer.address,
                endpoint: seen.path.endpoint()?,
                others: Vec::new(),
                tag: seen.offer?.tag,
            };
            // The path in use is preferred, so that paths that are equally good do not take turns.
            let is_primary = Some(seen.path) == report.primary;
            Some(((is_primary, seen.answered.map(|trip| trip.at)), relay))
        });
        let mut offer = offer.max_by_key(|(rank, _)| *rank).map(|(_, relay)| relay);
        if let Some(offer) = &mut offer {
            let endpoints = direct().filter_map(|seen| seen.path.endpoint());
            offer.others = endpoints.filter(|at| *at != offer.endpoint).collect();
            // The order in the tunnel changes as paths make room for others.
            offer.others.sort_unstable();
        }
        if self.offers.get(id) != offer.as_ref() {
            self.has_new_relays = true;
            match offer {
                Some(offer) => self.offers.insert(*id, offer),
                None => self.offers.remove(id),
            };
        }
        let is_young = |at: Instant| now.saturating_duration_since(at) < HEARD_WITHIN;
        let heard = direct().filter(|seen| seen.heard.is_some_and(is_young));
        let heard: Vec<SocketAddr> = heard.filter_map(|seen| seen.path.endpoint()).collect();
        if self.heard.get(id).map_or(&[][..], |before| before) != heard {
            let action = SteerAction::RelayFor(peer.address, heard.clone());
            self.actions.push(action);
            self.heard.insert(*id, heard);
        }
        self.paths.handle_report(id, &report_of(report), now);
    }

    /// What is to be done now.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<SteerAction> {
        let mut actions = std::mem::take(&mut self.actions);
        if std::mem::take(&mut self.has_new_relays) {
            let relays = self.offers.values().cloned().collect();
            actions.push(SteerAction::Relays(relays));
            self.renew(now);
        }
        let steered = self.paths.poll(now).into_iter();
        actions.extend(steered.map(|(id, action)| SteerAction::Steer(id, action)));
        actions
    }

    /// When [`Steered::poll`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.paths.poll_timeout()
    }
}

/// What the tunnel reports about a peer, as the machine takes it.
fn report_of(report: &PathReport) -> Report {
    let links = report.paths.iter().map(|seen| LinkReport {
        path: seen.path,
        heard: seen.heard,
        answered: seen.answered.map(|trip| trip.at),
        sample: seen.sample.map(|trip| (trip.at, trip.took)),
        answers: seen.answers,
    });
    Report {
        is_offered: report.is_steered,
        primary: report.primary,
        links: links.collect(),
        waits_since: report.waits_since,
        sent: report.last_send,
        heard: report.last_receive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::path_messages::RelayOffer;
    use crate::tunnel::{PathSeen, RoundTrip};

    fn id(n: u8) -> PublicKey {
        PublicKey([n; 32])
    }

    fn address(n: u8) -> NodeAddress {
        NodeAddress([10, 210, n, 1].into())
    }

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 51820))
    }

    fn peer(n: u8, relays: &[u8]) -> (PublicKey, SteeredPeer) {
        let direct = Candidate {
            path: Path::Direct(endpoint(n)),
            evidence: Evidence::Host,
        };
        let peer = SteeredPeer {
            address: address(n),
            direct: vec![direct],
            relays: relays.iter().map(|n| id(*n)).collect(),
        };
        (id(n), peer)
    }

    /// The peer is heard at its endpoint, and offers to relay with this tag.
    fn report(n: u8, tag: Option<u32>, now: Instant) -> PathReport {
        let trip = RoundTrip {
            at: now,
            took: Duration::from_millis(u64::from(n)),
        };
        let seen = PathSeen {
            path: Path::Direct(endpoint(n)),
            heard: Some(now),
            answered: Some(trip),
            sample: Some(trip),
            answers: 1,
            seen: None,
            offer: tag.map(|tag| RelayOffer { load: 0, tag }),
        };
        PathReport {
            is_steered: true,
            primary: Some(seen.path),
            paths: vec![seen],
            waits_since: None,
            last_send: None,
            last_receive: Some(now),
        }
    }

    fn offered(actions: &[SteerAction], to: u8) -> Vec<Path> {
        let mut offers = actions.iter().filter_map(|action| match action {
            SteerAction::Steer(id_of, Action::Offer(paths, _)) if *id_of == id(to) => Some(paths),
            _ => None,
        });
        offers.next_back().cloned().unwrap_or_default()
    }

    #[test]
    fn a_member_that_offers_to_relay_leads_to_the_others_those_first_that_they_name() {
        let now = Instant::now();
        let mut steered = Steered::new(true);
        let peers = [
            peer(1, &[5]),
            peer(2, &[]),
            peer(3, &[]),
            peer(4, &[]),
            peer(5, &[]),
        ];
        steered.set(peers.into(), |_| true, now);
        let actions = steered.poll(now);
        assert_eq!(offered(&actions, 1), [Path::Direct(endpoint(1))]);
        for n in 2..=5 {
            steered.handle_report(&id(n), &report(n, Some(u32::from(n)), now), now);
        }
        let actions = steered.poll(now);
        let relay = |n| UsableRelay {
            node: address(n),
            endpoint: endpoint(n),
            others: Vec::new(),
            tag: u32::from(n),
        };
        let relays = SteerAction::Relays((2..=5).map(relay).collect());
        assert!(actions.contains(&relays), "{actions:?}");
        let to = |n| Path::Relay(address(n));
        let to_first = offered(&actions, 1);
        assert_eq!(to_first, [Path::Direct(endpoint(1)), to(5), to(2), to(3)]);
        let to_second = offered(&actions, 2);
        assert_eq!(to_second, [Path::Direct(endpoint(2)), to(3), to(4), to(5)]);
        // An offer that ends, or a member that leaves, is no relay any more.
        steered.handle_report(&id(5), &report(5, None, now), now);
        let actions = steered.poll(now);
        let relays = SteerAction::Relays((2..=4).map(relay).collect());
        assert!(actions.contains(&relays), "{actions:?}");
        steered.set([peer(1, &[])].into(), |_| false, now);
        let actions = steered.poll(now);
        assert!(actions.contains(&SteerAction::Relays(Vec::new())));
        let gone = SteerAction::RelayFor(address(2), Vec::new());
        assert!(actions.contains(&gone), "{actions:?}");
    }

    #[test]
    fn a_node_that_uses_no_relays_has_no_paths_through_them() {
        let now = Instant::now();
        for (uses_relays, expected) in [(true, 2), (false, 1)] {
            let mut steered = Steered::new(uses_relays);
            steered.set([peer(1, &[2]), peer(2, &[])].into(), |_| true, now);
            steered.handle_report(&id(2), &report(2, Some(2), now), now);
            let paths = offered(&steered.poll(now), 1);
            assert_eq!(paths.len(), expected, "{paths:?}");
        }
    }

    #[test]
    fn frames_of_a_relay_are_accepted_from_all_its_direct_paths() {
        let now = Instant::now();
        let mut steered = Steered::new(true);
        steered.set([peer(1, &[])].into(), |_| true, now);
        let mut report = report(1, Some(1), now);
        let second: SocketAddr = "[2001:db8::1]:51820".parse().expect("a literal");
        for path in [Path::Direct(second), Path::Relay(address(2))] {
            report.paths.insert(
                0,
                PathSeen {
                    path,
                    offer: None,
                    ..report.paths[0]
                },
            );
        }
        steered.handle_report(&id(1), &report, now);
        let relay = UsableRelay {
            node: address(1),
            endpoint: endpoint(1),
            others: vec![second],
            tag: 1,
        };
        let relays = SteerAction::Relays(vec![relay]);
        assert!(steered.poll(now).contains(&relays));
    }

    #[test]
    fn this_node_relays_for_the_members_that_it_hears_directly() {
        let now = Instant::now();
        let mut steered = Steered::new(true);
        steered.set([peer(1, &[])].into(), |_| true, now);
        let _ = steered.poll(now);
        steered.handle_report(&id(1), &report(1, None, now), now);
        let heard = SteerAction::RelayFor(address(1), vec![endpoint(1)]);
        assert!(steered.poll(now).contains(&heard));
        steered.handle_report(&id(1), &report(1, None, now), now);
        assert!(!steered.poll(now).contains(&heard), "only once");
    }

    #[test]
    fn a_peer_that_speaks_of_paths_no_more_is_released_unless_it_is_gone() {
        let now = Instant::now();
        for stays in [true, false] {
            let mut steered = Steered::new(true);
            steered.set([peer(1, &[])].into(), |_| true, now);
            steered.set(BTreeMap::new(), |_| stays, now);
            let released = steered.poll(now).contains(&SteerAction::Release(id(1)));
            assert_eq!(released, stays);
        }
    }
}

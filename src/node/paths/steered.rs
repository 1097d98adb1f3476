//! The peers whose paths are chosen here, and the relays that lead to them. Pure.
//!
//! This node relays for the members whose packets reach it on direct paths. It forwards nothing by a path that failed: such a datagram
//! would be lost, and could spoil the next punch at the member's router.
//!
//! A relay that was started again accepts no tag from before its start. So when packets through a relay are not answered, the relay itself
//! is asked. Its echo has the new tag, and if there is no echo, a handshake shows the relay that its session is a new one. The
//! peers that did not answer through it are then tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::relays::Relays;
use crate::model::{NodeAddress, Path, PublicKey};
use crate::path::Peers;
use crate::path::link::{Evidence, Link, LinkReport};
use crate::path::links::{Candidate, abandoned};
use crate::path::peer::{Action, PeerPaths, Report, State};
use crate::protocol::path_messages::ByeReason;
use crate::tunnel::{PathReport, UsableRelay};

/// A direct path counts as a path of a member for this time after the last packet on it.
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
    paths: Peers,
    peers: BTreeMap<PublicKey, SteeredPeer>,
    relays: Relays,
    heard: BTreeMap<PublicKey, Vec<SocketAddr>>,
    /// The nodes to which streams are open.
    streams: BTreeSet<NodeAddress>,
    actions: Vec<SteerAction>,
}

impl Steered {
    /// No peers yet. They are reached through relays if `uses_relays`.
    pub(super) fn new(uses_relays: bool) -> Self {
        Self {
            paths: Peers::default(),
            peers: BTreeMap::new(),
            relays: Relays::new(uses_relays),
            heard: BTreeMap::new(),
            streams: BTreeSet::new(),
            actions: Vec::new(),
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
            self.relays.forget_peer(&id);
            if self.heard.remove(&id).is_some() {
                let gone = SteerAction::RelayFor(peer.address, Vec::new());
                self.actions.push(gone);
            }
        }
        self.renew(now);
    }

    /// Streams to these nodes are open.
    pub(super) fn set_streams(&mut self, streams: BTreeSet<NodeAddress>, now: Instant) {
        if self.streams == streams {
            return;
        }
        let is_more = !streams.is_subset(&self.streams);
        self.streams = streams;
        self.renew(now);
        if is_more {
            // The paths in use do not work, or there would be no stream. For an idle peer that is not noticed otherwise.
            self.paths.handle_network_changed(now);
        }
    }

    /// Computes the candidates of all peers.
    fn renew(&mut self, now: Instant) {
        let measured = self.relays.measured(|relay| round_trip(&self.paths, relay));
        let (relays, streams, peers) = (&mut self.relays, &self.streams, self.peers.iter());
        let peers = peers.map(|(id, peer)| {
            let relays = relays.candidates(id, &peer.relays, &measured);
            (*id, peer.candidates(streams, relays))
        });
        for id in self.paths.set(peers, now) {
            // Each peer is kept alive, so it is to be reached from the beginning.
            self.paths.handle_wanted(&id, now);
        }
    }

    /// A peer has sent the round trips to the relays that it can use.
    pub(super) fn handle_relays(
        &mut self,
        id: &PublicKey,
        trips: Vec<(NodeAddress, Duration)>,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        if self.relays.handle_hints(id, trips, now) {
            let measured = self.relays.measured(|relay| round_trip(&self.paths, relay));
            let relays = self.relays.candidates(id, &peer.relays, &measured);
            let candidates = peer.candidates(&self.streams, relays);
            self.paths.set_candidates(id, candidates, now);
        }
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
        let has_new_session = self.relays.handle_report(id, peer.address, report);
        self.paths.handle_report(id, &report_of(report), now);
        let links = self.paths.get(id).map(PeerPaths::links);
        let failed = links.map(abandoned).unwrap_or_default();
        let direct = report.paths.iter().filter_map(|seen| {
            let is_young = |at: Instant| now.saturating_duration_since(at) < HEARD_WITHIN;
            seen.path
                .endpoint()
                .filter(|_| seen.heard.is_some_and(is_young) && !failed.contains(&seen.path))
        });
        let heard: Vec<SocketAddr> = direct.collect();
        if self.heard.get(id).map_or(&[][..], |before| before) != heard {
            let action = SteerAction::RelayFor(peer.address, heard.clone());
            self.actions.push(action);
            self.heard.insert(*id, heard);
        }
        if has_new_session && self.is_led_by(peer.address) {
            self.paths.handle_session(id, now);
        }
    }

    /// Whether the relay with this address leads to a peer.
    fn is_led_by(&self, relay: NodeAddress) -> bool {
        let leads = |link: &Link| link.path.relay() == Some(relay) && link.last().is_some();
        let mut peers = self.peers.keys().filter_map(|id| self.paths.get(id));
        peers.any(|peer| peer.links().all().iter().any(leads))
    }

    /// The peer stops, or changes its network. The peers that are reached through it take their standbys as well.
    pub(super) fn handle_bye(&mut self, id: &PublicKey, reason: ByeReason, now: Instant) {
        if self.paths.handle_bye(id, reason, now)
            && let Some(peer) = self.peers.get(id)
        {
            self.paths.handle_relay_gone(peer.address, now);
        }
    }

    /// What is to be done now.
    pub(super) fn poll(&mut self, now: Instant) -> Vec<SteerAction> {
        let mut actions = std::mem::take(&mut self.actions);
        if let Some((relays, renewed)) = self.relays.take() {
            actions.push(SteerAction::Relays(relays));
            self.renew(now);
            for relay in renewed {
                self.paths.handle_relay_renewed(relay, now);
            }
        }
        let due = self.paths.due(now);
        let steered = self.paths.poll(now).into_iter();
        actions.extend(steered.map(|(id, action)| SteerAction::Steer(id, action)));
        self.doubt_relays(&due, now);
        actions
    }

    /// Asks the relays through which packets to these peers are not answered.
    fn doubt_relays(&mut self, peers: &[PublicKey], now: Instant) {
        let peers = peers.iter().filter_map(|id| self.paths.get(id));
        let silent: Vec<NodeAddress> = peers.flat_map(silent_relays).collect();
        for relay in self.relays.doubt(&silent, now) {
            self.paths.handle_doubt(&relay, now);
        }
    }

    /// When [`Steered::poll`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.paths.poll_timeout()
    }
}

impl SteeredPeer {
    /// The paths by which the peer may be reached. There are streams only where UDP does not pass, so they come before relays. Both come
    /// before the direct paths, so that no number of these displaces them.
    fn candidates(
        &self,
        streams: &BTreeSet<NodeAddress>,
        relays: Vec<Candidate>,
    ) -> Vec<Candidate> {
        let streams = streams.iter().map(|node| Candidate {
            path: Path::Stream(*node),
            evidence: Evidence::Host,
        });
        let direct = self.direct.iter().copied();
        streams.chain(relays).chain(direct).collect()
    }
}

/// The shortest round trip to a relay by a direct path.
fn round_trip(paths: &Peers, relay: &PublicKey) -> Option<Duration> {
    let links = paths.get(relay)?.links().all().iter();
    let direct = links.filter(|link| link.path.relay().is_none());
    direct.filter_map(Link::srtt).min()
}

/// The relays through which packets to a peer are not answered.
fn silent_relays(peer: &PeerPaths) -> Vec<NodeAddress> {
    let links = peer.links();
    match peer.state() {
        State::Suspect { .. } => {
            let primary = links.primary().and_then(|path| path.relay());
            primary.into_iter().collect()
        }
        State::Lost { .. } => {
            let paths = links.all().iter().map(|link| link.path);
            paths.filter_map(|path| path.relay()).collect()
        }
        State::Cold | State::Opening { .. } | State::Open => Vec::new(),
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
        let offer = tag.map(|tag| RelayOffer { load: 0, tag });
        PathReport::of(Path::Direct(endpoint(n)), trip, offer)
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

    fn through(n: u8) -> Path {
        Path::Relay(address(n))
    }

    /// The first peer is heard through these relays at `heard`, the first of which is in use. Packets are sent since `waits`.
    fn through_relays(relays: &[u8], heard: Instant, waits: Option<Instant>) -> PathReport {
        let mut report = report(1, None, heard);
        let paths = relays.iter().map(|n| PathSeen {
            path: through(*n),
            ..report.paths[0]
        });
        report.paths = paths.collect();
        report.primary = Some(report.paths[0].path);
        (report.waits_since, report.last_send) = (waits, waits);
        report
    }

    /// A node that reaches the first peer through these relays, and the time of the last poll.
    fn relayed(relays: &[u8]) -> (Steered, Instant) {
        let now = Instant::now();
        let mut steered = Steered::new(true);
        let peers = relays.iter().map(|n| peer(*n, &[]));
        steered.set(peers.chain([peer(1, relays)]).collect(), |_| true, now);
        for n in relays {
            steered.handle_report(&id(*n), &report(*n, Some(7), now), now);
        }
        let _ = steered.poll(now);
        steered.handle_report(&id(1), &through_relays(relays, now, None), now);
        let _ = actions(&mut steered, now, 3000);
        let state = steered.paths.get(&id(1)).map(PeerPaths::state);
        assert_eq!(state, Some(State::Open));
        (steered, now + Duration::from_secs(3))
    }

    /// What is to be done with a peer in so many milliseconds, and after how many of them.
    fn actions(steered: &mut Steered, from: Instant, ms: u64) -> Vec<(u64, u8, Action)> {
        let times = (0..ms).map(|ms| (ms, from + Duration::from_millis(ms)));
        let actions = times.flat_map(|(ms, now)| {
            let actions = steered.poll(now).into_iter();
            actions.filter_map(move |action| match action {
                SteerAction::Steer(id, action) => Some((ms, id.0[0], action)),
                _ => None,
            })
        });
        actions.collect()
    }

    #[test]
    fn a_relay_that_was_started_again_is_asked_for_its_tag_and_the_peers_behind_it_are_tried_again()
    {
        let (mut steered, now) = relayed(&[2]);
        let heard = now - Duration::from_secs(3);
        let quiet = actions(&mut steered, now, 1000);
        assert!(quiet.iter().all(|(_, to, _)| *to != 2), "{quiet:?}");
        let now = now + Duration::from_secs(1);
        let silent = through_relays(&[2], heard, Some(now - Duration::from_millis(500)));
        steered.handle_report(&id(1), &silent, now);
        let asked = actions(&mut steered, now, 300);
        let to_relay = |wanted: &Action| {
            let asked = asked.iter().filter(|(_, to, of)| *to == 2 && of == wanted);
            asked.map(|(ms, ..)| *ms).collect::<Vec<u64>>()
        };
        let probes = to_relay(&Action::Probe(Path::Direct(endpoint(2))));
        assert_eq!(probes.len(), 3, "{asked:?}");
        assert!(to_relay(&Action::Open).iter().all(|ms| *ms < 250));
        assert_eq!(to_relay(&Action::Open).len(), 1);
        // The handshake begins a session, by which the relay is asked.
        let now = now + Duration::from_millis(310);
        let mut session = report(2, Some(7), heard);
        session.sessions = 2;
        steered.handle_report(&id(2), &session, now);
        let asked = actions(&mut steered, now, 10);
        let probe = Action::Probe(Path::Direct(endpoint(2)));
        assert!(asked.contains(&(0, 2, probe)), "{asked:?}");
        // The relay gives another tag.
        let now = now + Duration::from_millis(20);
        let mut echo = report(2, Some(8), now);
        echo.sessions = 2;
        steered.handle_report(&id(2), &echo, now);
        let actions = steered.poll(now);
        let tag = actions.iter().find_map(|action| match action {
            SteerAction::Relays(relays) => Some(relays[0].tag),
            _ => None,
        });
        assert_eq!(tag, Some(8));
        let again = SteerAction::Steer(id(1), Action::Probe(through(2)));
        assert!(actions.contains(&again), "{actions:?}");
    }

    #[test]
    fn a_relay_is_asked_rarely_while_a_peer_behind_it_does_not_answer() {
        let (mut steered, mut now) = relayed(&[2]);
        let heard = now - Duration::from_secs(3);
        let mut probes = 0;
        for _ in 0..60 {
            steered.handle_report(&id(1), &through_relays(&[2], heard, Some(heard)), now);
            // The relay itself answers.
            steered.handle_report(&id(2), &report(2, Some(7), now), now);
            let asked = actions(&mut steered, now, 1000);
            let is_sent = |of: &Action| matches!(of, Action::Probe(_) | Action::Open);
            let sent = asked.iter().filter(|(_, to, of)| *to == 2 && is_sent(of));
            probes += sent.count();
            now += Duration::from_secs(1);
        }
        assert!((1..=60).contains(&probes), "{probes}");
    }

    #[test]
    fn a_relay_that_says_good_bye_is_left_by_the_peers_that_are_reached_through_it() {
        let (mut steered, now) = relayed(&[2, 3]);
        steered.handle_bye(&id(2), ByeReason::Stopping, now);
        let actions = actions(&mut steered, now, 1);
        assert!(
            actions.contains(&(0, 1, Action::Use(through(3), None))),
            "{actions:?}"
        );
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
    fn this_node_relays_by_no_path_that_failed_until_the_member_is_heard_by_it() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut steered = Steered::new(true);
        let (member, mut behind_router) = peer(1, &[2]);
        behind_router.direct = Vec::new();
        steered.set(
            [(member, behind_router), peer(2, &[])].into(),
            |_| true,
            now,
        );
        steered.handle_report(&id(2), &report(2, Some(2), now), now);
        let _ = steered.poll(now);
        let mut seen = report(1, None, now);
        let relayed = PathSeen {
            path: through(2),
            ..seen.paths[0]
        };
        seen.paths.push(relayed);
        steered.handle_report(&id(1), &seen, now);
        let there = SteerAction::RelayFor(address(1), vec![endpoint(1)]);
        assert!(steered.poll(now).contains(&there));
        // The standby takes over.
        steered.handle_bye(&id(1), ByeReason::Roaming, at(1));
        seen.primary = Some(through(2));
        steered.handle_report(&id(1), &seen, at(2));
        let nowhere = SteerAction::RelayFor(address(1), Vec::new());
        assert!(steered.poll(at(2)).contains(&nowhere));
        seen.paths[0].heard = Some(at(3));
        steered.handle_report(&id(1), &seen, at(3));
        assert!(steered.poll(at(3)).contains(&there));
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

//! A node as far as paths are concerned: the product's machines, and the shell that carries out what they return.
//!
//! The shell does what `src/node/joined/probing.rs`, `src/node/joined/relaying.rs` and the threads of the data plane do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use meshd::model::{NodeAddress, Path, PublicKey};
use meshd::node::paths::{PathAction, PathPeer, Paths, SteerAction, SteeredPeer};
use meshd::path::candidates::Observed;
use meshd::path::link::Evidence;
use meshd::path::links::Candidate as LinkCandidate;
use meshd::path::peer::{Action as Steer, State};
use meshd::path::punch::Punching;
use meshd::path::relays::{MeasuredRelay, OwnRelays};
use meshd::protocol::path_messages::{
    Candidate, CandidateKind, Message as PathMessageKind, PathMessage, Paths as PathsMessage, Probe,
};
use meshd::tunnel::PathReport;
use meshd::tunnel::relay::RelayLimit;
use meshd::tunnel::testbed::{Arrival, BareTunnel, Hop, Origin, SizeTest};

use super::network::{Datagram, TTL};
use super::wireguard::{Inner, Kind, Message, Opened, Sessions, Tick};
use crate::network::At;
use crate::random::Random;

/// As in `src/node/joined/relaying.rs` and `src/node/reach.rs`.
const ECHO_WITHIN: Duration = Duration::from_secs(300);
const SEEN_WITHIN: Duration = Duration::from_secs(60);
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);
/// As in `src/tunnel/inbound.rs`.
const REVIVAL_INTERVAL: Duration = Duration::from_secs(1);
const MTU: u16 = 1420;
const LIMIT: RelayLimit = RelayLimit {
    bits_per_second: 200_000_000,
};

/// What a node says about itself in its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) observed: Vec<SocketAddr>,
    pub(crate) relays: Vec<PublicKey>,
}

/// Something that a node does, which the world carries out or checks.
#[derive(Debug)]
pub(crate) enum Output {
    /// A datagram for a peer, or for the relay that is named.
    Send {
        datagram: Datagram,
        /// The node at whose endpoint it is sent.
        to: usize,
        /// Whether it is a probe that the choice of paths asked for.
        is_probe: bool,
    },
    /// The record of the node changed.
    Publish(Record),
    /// A packet of another node arrived.
    Received(usize),
    /// A peer agreed that it waits for datagrams at these addresses.
    Consent(usize, Vec<SocketAddr>),
}

pub(crate) struct Node {
    number: usize,
    pub(crate) own: SocketAddr,
    is_public: bool,
    epoch: Instant,
    paths: Paths,
    pub(crate) tunnel: BareTunnel,
    sessions: BTreeMap<usize, Sessions>,
    pub(crate) peers: BTreeMap<usize, (Record, bool)>,
    reach: Reach,
    record: Option<Record>,
    /// When a handshake was last begun because a peer's frame was refused.
    revived: BTreeMap<usize, At>,
    /// The peers of whose paths the tunnel has news.
    news: Vec<NodeAddress>,
    /// The bytes of the messages that it forwarded.
    pub(crate) forwarded: usize,
    pub(crate) out: Vec<Output>,
}

/// As `src/node/reach.rs`.
#[derive(Default)]
struct Reach {
    punching: Punching<PublicKey>,
    observed: Observed<PublicKey>,
    relays: OwnRelays<PublicKey>,
    measured: Option<At>,
    seq: u32,
    /// Addresses that a liar lists as its own.
    lies: Vec<SocketAddr>,
}

/// The number of a node in its key and in its address.
pub(crate) fn id(number: usize) -> PublicKey {
    PublicKey([number as u8 + 1; 32])
}

pub(crate) fn number(id: &PublicKey) -> usize {
    usize::from(id.0[0]) - 1
}

pub(crate) fn address(number: usize) -> NodeAddress {
    NodeAddress([10, 210, number as u8 + 1, 1].into())
}

pub(crate) fn number_of(address: NodeAddress) -> usize {
    usize::from(address.0.octets()[2]) - 1
}

impl Node {
    pub(crate) fn new(
        number: usize,
        own: SocketAddr,
        is_public: bool,
        lies: Vec<SocketAddr>,
        epoch: Instant,
    ) -> Self {
        let limit = is_public.then_some(LIMIT);
        let reach = Reach {
            lies,
            ..Reach::default()
        };
        Self {
            number,
            own,
            is_public,
            epoch,
            paths: Paths::new(MTU, true),
            tunnel: BareTunnel::new([number as u8; 32], limit, epoch),
            sessions: BTreeMap::new(),
            peers: BTreeMap::new(),
            reach,
            record: None,
            revived: BTreeMap::new(),
            news: Vec::new(),
            forwarded: 0,
            out: Vec::new(),
        }
    }

    fn at(&self, now: At) -> Instant {
        self.epoch + now
    }

    /// The path by which packets are sent to a peer.
    pub(crate) fn primary(&self, peer: usize) -> Option<Path> {
        Some(self.tunnel.hop(address(peer), None)?.path)
    }

    /// What the choice of paths knows of those to a peer.
    pub(crate) fn describe(&self, peer: usize) -> &'static str {
        let found = self.paths.steered().get(&id(peer));
        let state = found.map(|peer| peer.state());
        state.map_or("unknown", |state| match state {
            State::Cold => "cold",
            State::Opening { .. } => "opening",
            State::Open => "open",
            State::Suspect { .. } => "suspect",
            State::Lost { .. } => "lost",
        })
    }

    /// The record of another node arrived, or a newer one.
    pub(crate) fn handle_record(&mut self, peer: usize, record: Record, serves: bool, now: At) {
        self.tunnel.add_peer(address(peer));
        self.sessions.entry(peer).or_default();
        self.peers.insert(peer, (record, serves));
        let peers = self.peers.iter().map(|(peer, (record, serves))| PathPeer {
            id: id(*peer),
            endpoints: record.endpoints.clone(),
            serves: *serves,
            steered: Some(steered(*peer, record)),
        });
        let now = self.at(now);
        self.paths.set_peers(peers.collect(), now);
    }

    pub(crate) fn poll_timeout(&self) -> Option<At> {
        let paths = self.paths.poll_timeout();
        let punch = self.reach.punching.poll_timeout();
        let next = paths.into_iter().chain(punch).min()?;
        Some(next.saturating_duration_since(self.epoch))
    }

    /// The timer of the paths is due.
    pub(crate) fn handle_timer(&mut self, now: At, random: &mut Random) {
        if self.paths.is_due(self.at(now)) {
            self.poll_all(now, random);
        }
        self.poll_relaying(now, random);
        self.poll_steered(now, random);
    }

    /// Whether the tunnel has news of peers.
    pub(crate) fn has_news(&mut self) -> bool {
        self.news.extend(self.tunnel.take_news());
        !self.news.is_empty()
    }

    /// The tunnel has news of peers.
    pub(crate) fn handle_news(&mut self, now: At, random: &mut Random) {
        let mut news = std::mem::take(&mut self.news);
        news.sort_unstable();
        news.dedup();
        for of in news {
            let peer = number_of(of);
            let Some(report) = self.tunnel.report(of) else {
                continue;
            };
            let said = self.tunnel.take_said(of);
            self.paths.handle_report(&id(peer), &report, self.at(now));
            self.handle_seen(peer, &report, now);
            if let Some(paths) = &said.paths {
                self.handle_paths(peer, paths, now, random);
            }
            if let Some(reason) = said.bye {
                self.paths.handle_bye(&id(peer), reason, self.at(now));
            }
        }
        self.poll_relaying(now, random);
        self.paths.handle_news(self.at(now));
        self.poll_steered(now, random);
    }

    fn poll_steered(&mut self, now: At, random: &mut Random) {
        let time = self.at(now);
        for peer in self.paths.reports_due(time) {
            if let Some(report) = self.tunnel.report(address(number(&peer))) {
                self.paths.handle_report(&peer, &report, time);
            }
        }
        for action in self.paths.poll_steered(time) {
            match action {
                SteerAction::Steer(peer, action) => self.steer(number(&peer), action, now, random),
                SteerAction::Release(_) => {}
                SteerAction::Relays(relays) => self.tunnel.set_relays(&relays),
                SteerAction::RelayFor(member, endpoints) => {
                    self.tunnel.relay_for(member, &endpoints, time);
                }
            }
        }
    }

    fn steer(&mut self, peer: usize, action: Steer, now: At, random: &mut Random) {
        let (of, time) = (address(peer), self.at(now));
        match action {
            Steer::Offer(paths, opens) => self.tunnel.offer(of, &paths, &opens, time),
            Steer::Open => {
                self.tunnel.open(of);
                self.initiate_again(peer, false, now, random);
            }
            Steer::Probe(path) => self.probe(peer, Some(path), now, random),
            Steer::Use(path, gap) => self.tunnel.use_path(of, &path, gap, time),
            Steer::Watch(patience, heard, sent) => {
                self.tunnel.watch(of, Some(patience), heard, sent);
            }
        }
    }

    /// As `poll_all` in `src/node/joined/probing.rs`.
    fn poll_all(&mut self, now: At, random: &mut Random) {
        let mut actions = Vec::new();
        let time = self.at(now);
        for (peer, (_, serves)) in &self.peers {
            let of = address(*peer);
            let Some(status) = self.tunnel.status(of, wall(now)) else {
                continue;
            };
            let searching = self.paths.is_searching(&id(*peer));
            let answered = searching.then(|| self.tunnel.take_answered_size(of));
            let answered = answered.flatten();
            let limit =
                (self.paths).handle_peer_status(id(*peer), *serves, &status, answered, time);
            actions.extend(limit);
        }
        let (due, _) = self.paths.poll(time);
        for action in actions.into_iter().chain(due) {
            match action {
                PathAction::Probe(peer) => self.probe(number(&peer), None, now, random),
                PathAction::Try(..) => {}
                PathAction::ProbeSizes(peer, sizes) => {
                    for size in sizes {
                        self.probe_size(number(&peer), size, now, random);
                    }
                }
                PathAction::Limit(peer, bytes) => {
                    self.tunnel.set_path_mtu(address(number(&peer)), bytes);
                }
                PathAction::Arm(peer, heard, sent) => {
                    self.tunnel.watch(address(number(&peer)), None, heard, sent);
                }
            }
        }
    }

    fn poll_relaying(&mut self, now: At, random: &mut Random) {
        let measured = self.reach.measured;
        if measured.is_none_or(|at| now.saturating_sub(at) >= MEASURE_INTERVAL) {
            self.reach.measured = Some(now);
            self.measure(now);
        }
        let relayed = self.paths.steered().relayed();
        let time = self.at(now);
        let steered = self.paths.steered();
        let is_heard = |peer: &PublicKey| steered.is_open(peer);
        let is_direct = |peer: &PublicKey| steered.is_direct(peer);
        let punching = &mut self.reach.punching;
        for peer in punching.poll(&relayed, is_heard, is_direct, time) {
            self.send_paths(number(&peer), true, now, random);
        }
    }

    /// Measures the relays, and publishes another record if it has to change.
    fn measure(&mut self, now: At) {
        let time = self.at(now);
        let peers = self.peers.keys().filter(|_| !self.is_public);
        let measured = peers.filter_map(|peer| {
            let report = self.tunnel.report(address(*peer))?;
            measured_relay(id(*peer), &report, time)
        });
        let measured: Vec<MeasuredRelay<PublicKey>> = measured.collect();
        self.reach.relays.handle_measured(&measured, time);
        self.reach.observed.refresh_record(time);
        let mut endpoints = vec![self.own];
        endpoints.extend(&self.reach.lies);
        let observed = self.reach.observed.recorded().iter();
        let observed = observed.filter(|seen| !endpoints.contains(seen));
        let record = Record {
            observed: observed.copied().collect(),
            relays: self.reach.relays.chosen().to_vec(),
            endpoints,
        };
        if self.record.as_ref() != Some(&record) {
            self.record = Some(record.clone());
            self.out.push(Output::Publish(record));
        }
    }

    fn handle_seen(&mut self, peer: usize, report: &PathReport, now: At) {
        let mut paths = report.paths.iter();
        let primary = paths.find(|path| Some(path.path) == report.primary);
        if let Some(path) = primary
            && let (Some(seen), Some(trip)) = (path.seen, path.answered)
            && self.at(now).saturating_duration_since(trip.at) < SEEN_WITHIN
        {
            self.reach.observed.handle_seen(id(peer), seen, trip.at);
        }
    }

    fn handle_paths(&mut self, peer: usize, paths: &PathsMessage, now: At, random: &mut Random) {
        let addresses = paths.candidates.iter().map(|candidate| candidate.address);
        let addresses: Vec<SocketAddr> = addresses.collect();
        let time = self.at(now);
        let steps = (self.reach.punching).handle_paths(id(peer), paths.punch, time);
        if let Some(hops) = steps.open {
            for to in &addresses {
                if self.reach.punching.may_open(id(peer), *to, time) {
                    let datagram = Datagram {
                        from: self.own,
                        to: *to,
                        ttl: hops,
                        header: None,
                        message: None,
                    };
                    self.out.push(Output::Send {
                        datagram,
                        to: peer,
                        is_probe: false,
                    });
                }
            }
        }
        if steps.answer {
            self.send_paths(peer, false, now, random);
        }
        if steps.probe {
            let paths: Vec<Path> = addresses.into_iter().map(Path::Direct).collect();
            self.paths.handle_consent(&id(peer), &paths, time);
        }
    }

    fn send_paths(&mut self, peer: usize, punch: bool, now: At, random: &mut Random) {
        self.reach.seq = self.reach.seq.wrapping_add(1);
        let mut known = vec![self.own];
        known.extend(&self.reach.lies);
        let of = |kind| move |address: SocketAddr| Candidate { kind, address };
        let observed = self.reach.observed.addresses(&known).into_iter();
        let candidates = known.iter().copied().map(of(CandidateKind::Host));
        let candidates = candidates.chain(observed.map(of(CandidateKind::Observed)));
        let message = PathsMessage {
            seq: self.reach.seq,
            punch,
            candidates: candidates.collect(),
            ..PathsMessage::default()
        };
        let has_session = self.sessions[&peer].has_session(now);
        let path = self
            .paths
            .steered()
            .last_heard(&id(peer))
            .filter(|_| !punch);
        let hop = path.and_then(|path| self.tunnel.hop(address(peer), Some(&path)));
        let hop = hop.or_else(|| self.tunnel.hop(address(peer), None));
        if let Some(hop) = hop.filter(|_| has_session) {
            let nonce = random.next();
            self.send_path_message(
                peer,
                hop,
                nonce,
                PathMessageKind::Paths(message),
                false,
                now,
            );
        }
    }

    fn send_path_message(
        &mut self,
        peer: usize,
        hop: Hop,
        nonce: u64,
        message: PathMessageKind,
        is_probe: bool,
        now: At,
    ) {
        let mut bytes = vec![0; 1500];
        let message = PathMessage { nonce, message };
        let length = message
            .write(&mut bytes)
            .expect("it is no longer than it may be");
        bytes.truncate(length);
        let sessions = self.sessions.get_mut(&peer).expect("the peer is known");
        if let Ok(kind) = sessions.seal(Inner::PathMessage(bytes), now) {
            self.send(peer, hop, kind, is_probe);
        }
    }

    fn probe(&mut self, peer: usize, path: Option<Path>, now: At, random: &mut Random) {
        let Some(hop) = self.tunnel.hop(address(peer), path.as_ref()) else {
            return;
        };
        let has_session = self.sessions[&peer].has_session(now);
        // A path is tested under a session only.
        if path.is_some() && !has_session {
            return;
        }
        let nonce = random.next();
        let left = has_session.then_some(hop.path);
        let time = self.at(now);
        (self.tunnel).handle_probe(address(peer), nonce, left, None, time);
        let probe = PathMessageKind::Probe(Probe::with_size(0, 0, 0));
        if has_session {
            self.send_path_message(peer, hop, nonce, probe, path.is_some(), now);
        } else {
            let mut bytes = vec![0; 1500];
            let message = PathMessage {
                nonce,
                message: probe,
            };
            let length = message.write(&mut bytes).expect("there is room");
            bytes.truncate(length);
            self.seal(peer, Inner::PathMessage(bytes), now, random);
        }
    }

    fn probe_size(&mut self, peer: usize, size: u16, now: At, random: &mut Random) {
        if self.sessions[&peer].has_session(now) {
            let nonce = random.next();
            let time = self.at(now);
            (self.tunnel).handle_probe(address(peer), nonce, None, Some(size), time);
            self.seal(peer, Inner::Sized(nonce, size), now, random);
        }
    }

    /// Seals something and sends it by the path in use, or begins a handshake.
    fn seal(&mut self, peer: usize, inner: Inner, now: At, random: &mut Random) {
        let Some(hop) = self.tunnel.hop(address(peer), None) else {
            return;
        };
        let sessions = self.sessions.get_mut(&peer).expect("the peer is known");
        match sessions.seal(inner, now) {
            Ok(kind) => self.send(peer, hop, kind, false),
            Err(true) => self.initiate(peer, now, random),
            Err(false) => {}
        }
    }

    /// A program sends a packet to a peer.
    pub(crate) fn send_packet(&mut self, peer: usize, now: At, random: &mut Random) {
        if self.tunnel.hop(address(peer), None).is_some() {
            let time = self.at(now);
            self.tunnel.handle_sent(address(peer), time);
            self.seal(peer, Inner::Packet, now, random);
        }
    }

    /// Begins a handshake if none is in progress.
    fn initiate(&mut self, peer: usize, now: At, random: &mut Random) {
        if !self.sessions[&peer].is_initiating() {
            self.initiate_again(peer, false, now, random);
        }
    }

    /// Begins a handshake in place of the one in progress. `is_repeated` says whether a timer does so.
    fn initiate_again(&mut self, peer: usize, is_repeated: bool, now: At, random: &mut Random) {
        let of = address(peer);
        let sessions = self.sessions.get_mut(&peer).expect("the peer is known");
        if self.tunnel.hop(of, None).is_none() {
            return;
        }
        let kind = sessions.initiate(random.next(), now);
        let time = self.at(now);
        for hop in self.tunnel.initiate(of, is_repeated, time) {
            self.send(peer, hop, kind.clone(), false);
        }
    }

    /// The timers of the sessions and of the paths run. Returns when those of the paths are due again at the latest.
    pub(crate) fn tick(&mut self, now: At, random: &mut Random) -> Option<At> {
        for peer in self.peers.keys().copied().collect::<Vec<usize>>() {
            let sessions = self.sessions.get_mut(&peer).expect("the peer is known");
            match sessions.tick(now) {
                Tick::Nothing => {}
                Tick::Initiate => self.initiate_again(peer, true, now, random),
                Tick::Keepalive => self.seal(peer, Inner::Keepalive, now, random),
            }
        }
        self.tick_paths(now)
    }

    /// The timers of the paths run.
    pub(crate) fn tick_paths(&mut self, now: At) -> Option<At> {
        let next = self.tunnel.handle_time(self.at(now))?;
        Some(next.saturating_duration_since(self.epoch))
    }

    fn send(&mut self, peer: usize, hop: Hop, kind: Kind, is_probe: bool) {
        let message = Message {
            from: self.number,
            to: peer,
            kind,
        };
        let datagram = Datagram {
            from: self.own,
            to: hop.to,
            ttl: TTL,
            header: hop.header,
            message: Some(Rc::new(message)),
        };
        let to = hop.path.relay().map_or(peer, number_of);
        self.out.push(Output::Send {
            datagram,
            to,
            is_probe,
        });
    }

    /// A datagram arrived.
    pub(crate) fn receive(&mut self, datagram: &Datagram, now: At, random: &mut Random) {
        let Some(message) = &datagram.message else {
            return;
        };
        let time = self.at(now);
        let bytes = message.kind.size();
        let arrival = (self.tunnel).accept(datagram.from, datagram.header, bytes, time);
        let origin = match arrival {
            Arrival::Dropped => return,
            // A handshake lets the peer ask for another tag.
            Arrival::Refused(peer) => {
                let peer = number_of(peer);
                let last = self.revived.insert(peer, now);
                return match last.filter(|at| now.saturating_sub(*at) < REVIVAL_INTERVAL) {
                    Some(last) => drop(self.revived.insert(peer, last)),
                    None => self.initiate(peer, now, random),
                };
            }
            Arrival::Forward(to, header) => {
                self.forwarded += bytes;
                let forwarded = Datagram {
                    from: self.own,
                    to,
                    ttl: TTL,
                    header: Some(header),
                    message: Some(Rc::clone(message)),
                };
                return self.out.push(Output::Send {
                    datagram: forwarded,
                    to: message.to,
                    is_probe: false,
                });
            }
            Arrival::Own(origin) => origin,
        };
        // A message for another node does not open here, and a relay must not name another sender.
        let label = datagram.header.map(|header| NodeAddress(header.label));
        let is_from = label.is_none_or(|label| label == address(message.from));
        let is_peer = self.peers.contains_key(&message.from);
        if message.to == self.number && is_from && is_peer {
            self.open(message, origin, now);
        }
    }

    fn open(&mut self, message: &Message, origin: Origin, now: At) {
        let (peer, time) = (message.from, self.at(now));
        let of = address(peer);
        let sessions = self.sessions.get_mut(&peer).expect("the peer is known");
        match sessions.open(&message.kind, now) {
            Opened::Refused => {}
            Opened::Reply(reply) => {
                self.tunnel.handle_handshake(of, origin, None);
                self.send(peer, origin.hop(), reply, false);
            }
            Opened::Established => {
                self.tunnel.handle_received(of, origin, time);
                self.tunnel.handle_handshake(of, origin, Some(wall(now)));
                self.seal_back(peer, Inner::Keepalive, origin, now);
                self.send_waiting(peer, origin, now);
            }
            Opened::Data(inner) => {
                self.tunnel.handle_received(of, origin, time);
                self.send_waiting(peer, origin, now);
                let session = message.kind.session();
                self.handle_inner(peer, (inner, session), origin, now);
            }
        }
    }

    fn handle_inner(
        &mut self,
        peer: usize,
        (inner, session): (Inner, u8),
        origin: Origin,
        now: At,
    ) {
        let (of, time) = (address(peer), self.at(now));
        match inner {
            Inner::Packet => self.out.push(Output::Received(peer)),
            Inner::Keepalive => {}
            Inner::Sized(nonce, _) => {
                let test = SizeTest::Probe(session);
                self.tunnel.handle_size_test(of, origin, test, time);
                self.seal_back(peer, Inner::SizedAnswer(nonce), origin, now);
            }
            Inner::SizedAnswer(nonce) => {
                let test = SizeTest::Answer(nonce);
                self.tunnel.handle_size_test(of, origin, test, time);
            }
            Inner::PathMessage(bytes) => {
                if let Ok(PathMessage {
                    message: PathMessageKind::Paths(paths),
                    ..
                }) = PathMessage::parse(&bytes)
                    && !paths.punch
                {
                    let addresses = paths.candidates.iter().map(|c| c.address);
                    self.out.push(Output::Consent(peer, addresses.collect()));
                }
                let payload = (&bytes[..], session);
                let echo = self.tunnel.handle_message(of, origin, payload, time);
                if let Some((echo, hop)) = echo {
                    self.send_path_message(peer, hop, echo.nonce, echo.message, false, now);
                }
            }
        }
    }

    /// Sends something back to where a message came from.
    fn seal_back(&mut self, peer: usize, inner: Inner, origin: Origin, now: At) {
        let sessions = self.sessions.get_mut(&peer).expect("the peer is known");
        if let Ok(kind) = sessions.seal(inner, now) {
            self.send(peer, origin.hop(), kind, false);
        }
    }

    fn send_waiting(&mut self, peer: usize, origin: Origin, now: At) {
        let sessions = self.sessions.get_mut(&peer).expect("the peer is known");
        for inner in std::mem::take(&mut sessions.waiting) {
            self.seal_back(peer, inner, origin, now);
        }
    }
}

/// As `steered` in `src/node/joined/stages.rs`.
fn steered(peer: usize, record: &Record) -> SteeredPeer {
    let of = |evidence| {
        move |endpoint: &SocketAddr| LinkCandidate {
            path: Path::Direct(*endpoint),
            evidence,
        }
    };
    let endpoints = record.endpoints.iter().map(of(Evidence::Host));
    let observed = record.observed.iter().map(of(Evidence::Observed));
    SteeredPeer {
        address: address(peer),
        direct: endpoints.chain(observed).collect(),
        relays: record.relays.clone(),
    }
}

/// As `measured_relay` in `src/node/joined/relaying.rs`.
fn measured_relay(
    relay: PublicKey,
    report: &PathReport,
    now: Instant,
) -> Option<MeasuredRelay<PublicKey>> {
    let primary = report.primary.filter(|path| path.endpoint().is_some())?;
    let path = report.paths.iter().find(|path| path.path == primary)?;
    let is_recent = now.saturating_duration_since(path.answered?.at) < ECHO_WITHIN;
    is_recent.then_some(MeasuredRelay {
        relay,
        rtt: path.sample?.took,
        load: path.offer?.load,
    })
}

fn wall(now: At) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000) + now
}

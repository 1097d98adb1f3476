//! A joined node at work: its ledger, tunnel, network, resolver and control stream, kept in step.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::config::Config;
use super::control::join::join;
use super::control::stream::{Stream, StreamConfig};
use super::device::{self, DeviceEvents};
use super::dns_address;
use super::docker::{self, Docker, DockerEvents};
use super::gossip::{Gossip, PeerEvent};
use super::host::{self, HostNetwork, Inward, Ipv6, Plan, ResolvConf, SplitDns, Upkeep, Wanted};
use super::names::{Names, NamesConfig, NamesInput};
use super::own_records::{self, OwnRecords};
use super::paths::{PathAction, PathPeer, Paths};
use super::replica::acceptance::NodeRecord;
use super::replica::{self, Answer, Effect, Own, Position, Replica, StreamEvent, WriteOutcome};
use super::resolv_conf::Keeper;
use super::resolved::ResolvedLink;
use super::state::departing::Departing;
use super::state::records::RecordLog;
use super::state::writer::Writer;
use super::state::{Identity, Keys, Previous, StateDir};
use super::unwritten::{Part, Unwritten};
use crate::containers::{ContainerId, Report, Wired, network};
use crate::dns::forward::Server;
use crate::dns::{Allowed, DnsServer, Replaced, Resolver, TunnelDns, Upstream};
use crate::firewall::{Firewall, Mapped, Native, Wiring};
use crate::model::address::Block;
use crate::model::time::{UnixSeconds, next_version};
use crate::model::{Label, PublicKey, ServiceName, WireGuardKey};
use crate::os::clock;
use crate::os::tasks::Tasks;
use crate::path::watch::Reach;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::local::{DepartureState, Problem};
use crate::records::kinds::{Instance, Name, Node, Record, RecordKey, Service, Source};
use crate::records::ledger::Applied;
use crate::records::netmap::Netmap;
use crate::records::{Envelope, Ledger};
use crate::services::Checker;
use crate::services::registry::{Key, Registry};
use crate::tunnel::{PeerConfig, Tunnel, TunnelConfig, TunnelError};

/// Seconds between datagrams to a peer in any case: keeps address translation on the way open.
const KEEPALIVE: u16 = 25;
/// The maximum number of peers to which a node hands its departure when it leaves. Each of them costs a socket; the others
/// receive it from these.
const MAX_DEPARTURE_PEERS: usize = 256;
/// How long a node that stops waits until its last records are on disk.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes that are due within this time are made when the node stops.
const FLUSH_AHEAD: Duration = Duration::from_secs(2);
/// The maximum number of times that one event makes this node publish its own records.
const MAX_ROUNDS: usize = 4;

/// A joined node.
pub(super) struct Mesh {
    pub(super) config: Arc<Config>,
    pub(super) identity: Identity,
    /// The records, and what is offered, requested and sent to peers.
    pub(super) replica: Replica,
    writer: Writer,
    pub(super) netmap: Netmap,
    pub(super) registry: Registry,
    pub(super) tunnel: Tunnel,
    pub(super) paths: Paths,
    pub(super) names: Names,
    pub(super) dns: Option<Dns>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) plan: Plan,
    pub(super) damaged: usize,
    pub(super) troubles: BTreeMap<&'static str, Problem>,
    pub(super) docker: Option<Docker>,
    pub(super) firewall: Firewall,
    pub(super) own_records: OwnRecords,
    /// Bridges of the container engine, with their subnets.
    bridges: BTreeMap<String, Vec<Ipv4Net>>,
    dir: StateDir,
    pub(super) unwritten: Unwritten,
    pub(super) network: Upkeep,
    allowed: Arc<ArcSwap<Allowed>>,
    checker: Checker<Key>,
    control: Stream,
    pub(super) gossip: Gossip,
    /// Those that wait for the answer to a publication, by its number.
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    /// Receives the answers of the coordinator to requests for this node's lease.
    lease_answers: mpsc::Sender<Block>,
    /// Until when a join waits for the coordinator to accept this node's record, and where the outcome is sent.
    first_word: Option<(Instant, oneshot::Sender<Result<(), String>>)>,
}

/// The resolver at work.
pub(super) struct Dns {
    pub(super) resolver: Arc<Resolver>,
    /// At the DNS address, inside the tunnel device.
    pub(super) inside: Arc<TunnelDns>,
    /// On the node's own addresses.
    pub(super) server: DnsServer,
    /// Where the server is to listen.
    wanted: Vec<SocketAddr>,
    /// Tells systemd-resolved.
    pub(super) resolved: Option<ResolvedLink>,
    /// Keeps /etc/resolv.conf.
    pub(super) keeper: Option<Keeper>,
}

/// What of a joined node runs in other tasks and comes back as events.
pub(super) struct Events {
    pub(super) stream: mpsc::Receiver<StreamEvent>,
    pub(super) writes: mpsc::Receiver<WriteOutcome>,
    pub(super) verdicts: mpsc::Receiver<(Key, bool)>,
    pub(super) docker: Option<DockerEvents>,
    pub(super) firewall: watch::Receiver<u64>,
    pub(super) host: watch::Receiver<u64>,
    pub(super) peers: mpsc::Receiver<PeerEvent>,
    pub(super) device: DeviceEvents,
    /// The answers of the coordinator to requests for this node's lease.
    pub(super) leases: mpsc::Receiver<Block>,
}

/// The kind of failure a tunnel's is.
pub(super) fn code_of(error: &TunnelError) -> ErrorCode {
    match error {
        TunnelError::Permission => ErrorCode::Permission,
        TunnelError::Io(..) => ErrorCode::Internal,
        TunnelError::NoTun
        | TunnelError::Name(_)
        | TunnelError::InterfaceTaken(_)
        | TunnelError::PortTaken(_) => ErrorCode::Configuration,
    }
}

impl Dns {
    /// Where it answers, the address that is the same on every node first.
    pub(super) fn listen(&self) -> Vec<SocketAddr> {
        let inside = self.inside.listen().into_iter();
        inside.chain(self.server.listen().iter().copied()).collect()
    }
}

impl Mesh {
    /// Brings everything up from what is on disk, with `fresh` records besides. Nothing is left behind on failure.
    ///
    /// # Errors
    /// One line on what is missing or in the way.
    pub(super) async fn start(
        config: Arc<Config>,
        dir: StateDir,
        identity: Identity,
        registry: Registry,
        fresh: Option<&Ledger>,
    ) -> Result<(Self, Events), ApiError> {
        let (log, loaded) = RecordLog::open(&dir.path("records.jsonl"), identity.mesh_key)
            .map_err(super::state::StateError::from)?;
        let mut ledger = loaded.ledger;
        let mut log = log;
        if let Some(fresh) = fresh {
            let new: Vec<Envelope> = fresh
                .envelopes()
                .filter(|e| matches!(ledger.apply((*e).clone()), Ok(Applied::Changed(_))))
                .cloned()
                .collect();
            let written = if log.is_whole() {
                log.append(&new)
            } else {
                log.replace(ledger.envelopes())
            };
            written.map_err(super::state::StateError::from)?;
        }
        let Some((addresses, domain)) = ledger.mesh().map(|m| (m.addresses, m.domain.clone()))
        else {
            return Err(ApiError::new(
                ErrorCode::Configuration,
                "the mesh record on disk is lost; run `meshctl leave`, then join again with a new token",
            ));
        };
        // What was lost on disk comes again, from the beginning.
        let position = if loaded.damaged > 0 || fresh.is_some() {
            Position::default()
        } else {
            dir.position()
        };

        let internal =
            |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::Internal, error.to_string());
        let network = HostNetwork::open().map_err(|e| internal(&e))?;
        let survey = network.survey().await.map_err(|e| internal(&e))?;
        let (interfaces, guests) = (host::interfaces(), survey.guest_bridges());
        let mtu = config
            .tunnel
            .mtu
            .unwrap_or_else(|| host::tunnel_mtu(&interfaces, &config.tunnel.interface, &guests));
        let wall = UnixSeconds::from_system(SystemTime::now());
        let previous = identity
            .previous
            .as_ref()
            .filter(|p| p.until > wall && p.until <= wall.plus(crate::tunnel::OVERLAP));
        let goes_on = previous.is_some();
        let first_key = previous.map_or(&identity.keys.wireguard, |p| &p.wireguard);
        let tunnel_config = TunnelConfig {
            interface: config.tunnel.interface.clone(),
            mtu,
            listen_port: config.tunnel.listen_port,
            private_key: Some(first_key.clone()),
            workers: config.tunnel.workers,
        };
        let tunnel = device::when_free(|| Tunnel::start(tunnel_config.clone()))
            .await
            .map_err(|error| ApiError::new(code_of(&error), error.to_string()))?;
        let device = DeviceEvents::of(&tunnel).map_err(|error| {
            ApiError::new(
                ErrorCode::Internal,
                format!("cannot watch the tunnel device: {error}"),
            )
        })?;
        let own = [
            IpAddr::V4(identity.block.node_v4()),
            IpAddr::V6(identity.block.node_v6()),
        ];
        tunnel.set_local_addresses(own.to_vec());
        tunnel.set_own_networks(&[identity.block.v4.into(), identity.block.v6.into()]);
        let mut plan = Plan::new(&config.tunnel.interface, mtu, &identity.block, &addresses);
        let native = config.docker.as_ref().filter(|d| d.network);
        let native = native.map(|_| network::Plan {
            prefix: addresses.prefix_v4,
            block: identity.block.v4,
            node: identity.block.node_v4(),
            mtu,
        });
        if native.is_some() {
            plan.halve();
        }
        network.set_discipline(tunnel.index()).await;
        let applied = network.apply(&plan, tunnel.index()).await;
        let applied = applied.map_err(|e| internal(&e))?;
        let applied = applied.ok_or_else(|| internal(&"the tunnel device is gone already"))?;
        // Without IPv4 there is no node; without IPv6 there is one, and a problem.
        if let Some(refused) = applied.refused.iter().find(|refused| !refused.is_ipv6()) {
            return Err(internal(refused));
        }
        let wanted = Wanted {
            plan: plan.clone(),
            index: tunnel.index(),
            fitted: 0,
            mesh: addresses,
            block: identity.block,
            peers: Vec::new(),
        };
        let network = Upkeep::start(network, wanted, &applied);

        let names = Names::new(
            NamesConfig {
                own: identity.keys.identity.public(),
                when_none_usable: config.dns.when_none_usable,
                max_addresses: config.dns.max_addresses,
            },
            dir.service_addresses(),
        );
        let allowed = allowed(&addresses, &identity.block, &BTreeMap::new());
        let allowed = Arc::new(ArcSwap::from_pointee(allowed));
        let upstream = Arc::new(Upstream::new());
        let dns = config.dns.enabled.then(|| {
            let resolver = Arc::new(Resolver::new(
                Arc::clone(names.zone()),
                Arc::clone(&allowed),
                Arc::clone(&upstream),
            ));
            let wanted = own.iter().chain(&config.dns.listen);
            Dns {
                inside: dns_address::answer_at(
                    &tunnel,
                    Arc::clone(&resolver),
                    addresses,
                    identity.block,
                ),
                server: DnsServer::new(Arc::clone(&resolver)),
                wanted: wanted.map(|ip| SocketAddr::new(*ip, 53)).collect(),
                resolved: config.dns.split_dns.then(|| {
                    ResolvedLink::start(tunnel.index(), SplitDns::new(&domain, &addresses))
                }),
                keeper: config.dns.manage_resolv_conf.then(|| {
                    let runtime_dir = config.runtime_dir();
                    Keeper::start(&config.state_dir, runtime_dir, addresses.dns_v4().into())
                }),
                resolver,
            }
        });

        let own_identity = Own {
            key: identity.keys.identity.clone(),
            block: identity.block,
            urls: identity.urls.clone(),
        };
        let (stream_events, stream) = mpsc::channel(256);
        let (verdict_events, verdicts) = mpsc::channel(256);
        let control = Stream::start(
            StreamConfig {
                urls: own_identity.coordinators(&ledger),
                pin: identity.pin,
                identity: identity.keys.identity.clone(),
            },
            position.clone(),
            stream_events,
        );
        let (gossip, peer_events) = Gossip::start(
            identity.keys.identity.clone(),
            identity.block.node_v4(),
            config.tunnel.interface.clone(),
        );
        // Records that were lost on disk are sent again with old dates: they are accepted like all records at a join.
        let is_new = loaded.lost > 0 || fresh.is_some();
        let members = ledger.memberships().map(|m| m.id);
        let start = replica::Start {
            own: own_identity,
            newcomers: dir.newcomers(is_new, members, Instant::now()),
            ledger,
            position,
            record_lines: log.lines(),
            records_whole: log.is_whole(),
        };
        let replica = Replica::new(start, clock::now());
        let (writer, writes) = Writer::start(log, dir.clone());
        let (lease_answers, leases) = mpsc::channel(1);
        let (docker, docker_events) = match &config.docker {
            None => (None, None),
            Some(settings) => {
                let block = identity.block.v4;
                let around = docker::surroundings(settings, &identity.name, &own, block, native);
                let (docker, events) = Docker::start(settings, around, &dir);
                (Some(docker), Some(events))
            }
        };
        // A kernel without IPv6 has nothing of it to guard.
        let guarded = applied.ipv6 != Ipv6::Absent;
        let firewall = Firewall::start(guarded.then_some(addresses.prefix_v6));
        let (looks, host_looks) = (firewall.looks(), network.looks());
        let mut mesh = Self {
            docker,
            firewall,
            own_records: OwnRecords::default(),
            bridges: BTreeMap::new(),
            checker: Checker::new(verdict_events),
            damaged: loaded.damaged,
            netmap: Netmap::default(),
            paths: Paths::new(mtu),
            names,
            troubles: BTreeMap::new(),
            waiting: HashMap::new(),
            lease_answers,
            first_word: None,
            config,
            identity,
            replica,
            writer,
            registry,
            tunnel,
            dns,
            upstream,
            plan,
            dir,
            unwritten: Unwritten::default(),
            network,
            allowed,
            control,
            gossip,
        };
        mesh.keep_again();
        mesh.refresh_surroundings();
        mesh.listen().await;
        mesh.publish_own();
        mesh.refresh();
        if goes_on {
            let key = mesh.identity.keys.wireguard.clone();
            mesh.tunnel.keys().rotate(key, Instant::now());
        }
        mesh.checker
            .set(mesh.registry.targets(&mesh.identity.block));
        for problem in mesh.registry.problems(&mesh.identity.block) {
            tracing::warn!(why = %problem.why, "{}", problem.what);
        }
        let events = Events {
            stream,
            writes,
            verdicts,
            docker: docker_events,
            firewall: looks,
            host: host_looks,
            peers: peer_events,
            device,
            leases,
        };
        Ok((mesh, events))
    }

    /// This node's addresses.
    pub(super) fn own_addresses(&self) -> [IpAddr; 2] {
        [
            IpAddr::V4(self.identity.block.node_v4()),
            IpAddr::V6(self.identity.block.node_v6()),
        ]
    }

    /// This node's identity key.
    pub(super) fn id(&self) -> PublicKey {
        self.identity.keys.identity.public()
    }

    /// An event of the control stream.
    pub(super) fn handle_stream(&mut self, event: StreamEvent) {
        self.replica.handle_stream(event, clock::now());
        self.follow_replica();
    }

    /// The writer carried a request out.
    pub(super) fn handle_written(&mut self, outcome: &WriteOutcome) {
        self.note_written(outcome);
        self.follow_replica();
    }

    fn note_written(&mut self, outcome: &WriteOutcome) {
        for (part, result) in &outcome.results {
            self.unwritten.note(*part, result.clone());
        }
        self.replica.handle_written(outcome, clock::now());
    }

    /// An event of a conversation with a peer.
    pub(super) fn handle_peer_event(&mut self, event: PeerEvent) {
        let now = clock::now();
        match event {
            PeerEvent::Request(request, reply) => {
                if let Some(answer) = self.replica.handle_request(request, now) {
                    let _ = reply.send(answer);
                }
            }
            PeerEvent::Ended(peer, succeeded) => {
                self.replica
                    .handle_conversation_ended(&peer, succeeded, now);
            }
        }
        self.follow_replica();
    }

    /// Carries out what the replica wants to be done, and brings everything in step with what changed in it.
    fn follow_replica(&mut self) {
        for _ in 0..MAX_ROUNDS {
            self.carry_out_all();
            let changes = self.replica.take_changes();
            if changes.is_empty() {
                break;
            }
            if changes.duplicate {
                self.refresh();
            } else if !changes.records.is_empty() {
                self.refresh_after(&changes.records);
            }
            if let Some(name) = changes.name {
                self.follow_name(name);
            }
            if changes.own {
                self.publish_own();
            }
        }
        self.tell_first_word(Instant::now());
    }

    fn carry_out_all(&mut self) {
        while let Some(effect) = self.replica.poll_effect() {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send(message) => drop(self.control.send(message)),
            Effect::SetPosition(position) => self.control.set_position(position),
            Effect::Reopen => self.control.reopen(),
            Effect::SetUrls(urls) => self.control.set_urls(urls),
            Effect::Write(request) => self.writer.write(request),
            Effect::Dial { peer, opening } => self.gossip.dial(peer, opening),
            Effect::AskLease { urls, request } => {
                let (pin, answers) = (self.identity.pin, self.lease_answers.clone());
                let request = async move {
                    match join(&urls, pin, &request).await {
                        Ok(response) => drop(answers.send(response.block).await),
                        Err(error) => {
                            tracing::debug!(%error, "the coordinator does not answer which block is leased to this node");
                        }
                    }
                };
                Tasks::current().spawn_child("request for the lease", request);
            }
            Effect::Answered { sequence, answer } => {
                if let Some(waiting) = self.waiting.remove(&sequence) {
                    let _ = waiting.send(answer);
                }
            }
            Effect::Unanswered => self.waiting.clear(),
        }
    }

    /// Writes what the replica has not written yet.
    async fn flush(&mut self, writes: &mut mpsc::Receiver<WriteOutcome>) {
        let mut now = clock::now();
        now.monotonic += FLUSH_AHEAD;
        self.replica.handle_time(now);
        loop {
            let effects = std::iter::from_fn(|| self.replica.poll_effect());
            let writes_due = effects.filter_map(|effect| match effect {
                Effect::Write(request) => Some(request),
                _ => None,
            });
            for request in writes_due.collect::<Vec<_>>() {
                self.writer.write(request);
            }
            if !self.replica.is_writing() {
                return;
            }
            match writes.recv().await {
                Some(outcome) => self.note_written(&outcome),
                None => return,
            }
        }
    }

    /// Returns an event that fires when the coordinator has accepted or refused this node's record, or when `limit` is over.
    /// In the last two cases it carries the reason.
    pub(in crate::node) fn when_taken(
        &mut self,
        limit: Duration,
    ) -> oneshot::Receiver<Result<(), String>> {
        let (sender, receiver) = oneshot::channel();
        let now = Instant::now();
        self.first_word = Some((now + limit, sender));
        self.tell_first_word(now);
        receiver
    }

    fn tell_first_word(&mut self, now: Instant) {
        let Some((until, sender)) = self.first_word.take() else {
            return;
        };
        let outcome = match self.replica.acceptance().node_record() {
            NodeRecord::Accepted => Ok(()),
            NodeRecord::Refused(why) => Err(format!("the coordinator refuses the record: {why}")),
            NodeRecord::Unanswered if now >= until => Err(self
                .replica
                .link()
                .failure()
                .unwrap_or("the coordinator does not answer")
                .to_owned()),
            NodeRecord::Unanswered => {
                self.first_word = Some((until, sender));
                return;
            }
        };
        let _ = sender.send(outcome);
    }

    /// This node's departure, for the coordinators that it knows of.
    pub(in crate::node) fn departing(&self) -> Departing {
        let mut departing =
            Departing::of(&self.identity, UnixSeconds::from_system(SystemTime::now()));
        departing.way.urls = self.replica.coordinators();
        departing
    }

    /// Why this node signs no departure, if it does not: another machine with its keys goes on, or it is out already.
    pub(in crate::node) fn stays_silent(&self) -> Option<DepartureState> {
        if self.replica.link().is_called_duplicate() {
            Some(DepartureState::Copy)
        } else if self.replica.is_removed() {
            Some(DepartureState::Unneeded)
        } else {
            None
        }
    }

    /// Publishes this node's departure over the open stream. Returns an event for the answer of the coordinator, or none if no
    /// stream is open.
    pub(in crate::node) fn publish_departure(
        &mut self,
        departure: Envelope,
    ) -> Option<oneshot::Receiver<Answer>> {
        let sequence = self.replica.publish_departure(departure)?;
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(sequence, sender);
        self.carry_out_all();
        Some(receiver)
    }

    /// Hands this node's departure to the peers that are not known to be away. Returns how many received it.
    pub(in crate::node) fn send_departure(
        &self,
        departure: &Envelope,
    ) -> impl Future<Output = usize> + use<> {
        let away = |id: &PublicKey| self.paths.reach().get(id) == Some(&Reach::Unreachable);
        let own = self.id();
        let peers = self.netmap.members.values();
        let peers = peers.filter(|peer| peer.id != own && !away(&peer.id));
        let peers = peers.map(|peer| (peer.id, peer.block.node_v4()));
        let peers = peers.take(MAX_DEPARTURE_PEERS).collect();
        self.gossip.hand_over(departure, peers)
    }

    /// The coordinator answered that `block` is leased to this node. Returns the new identity if the node moves to that block.
    pub(in crate::node) fn handle_lease(&mut self, block: Block) -> Option<Identity> {
        let block = self.replica.handle_leased(block)?;
        Some(Identity {
            block,
            ..self.identity.clone()
        })
    }

    /// Whether this node was removed from the mesh, by its records or by the answer of a coordinator.
    pub(super) fn is_removed(&self) -> bool {
        self.replica.is_removed()
    }

    /// Writes what the disk refused before.
    fn keep_again(&mut self) {
        if self.unwritten.has(Part::OldKey) {
            self.forget_old_key();
        }
        self.keep_leases();
    }

    fn keep_leases(&mut self) {
        if let Some(docker) = &mut self.docker {
            let written = docker.keep(&self.dir);
            self.unwritten.note(Part::Leases, written);
        }
    }

    fn forget_old_key(&mut self) {
        let written = self.dir.set_identity(&self.identity);
        self.unwritten.note(Part::OldKey, written);
    }

    pub(super) fn trouble(&mut self, key: &'static str, what: &str, why: String, fix: &str) {
        self.troubles.insert(
            key,
            Problem {
                what: what.into(),
                why,
                fix: fix.into(),
            },
        );
    }

    /// Says what this node has and serves, where that has changed. Gives an event for when the coordinator has it, if
    /// it is connected and there was anything to say.
    pub(super) fn publish_own(&mut self) -> Option<oneshot::Receiver<Answer>> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let id = self.id();
        let mut own_node = None;
        if let Some(mesh) = self.replica.ledger().mesh() {
            let bridges = self.docker.as_ref().map(Docker::bridges);
            let inward = Inward {
                engine: bridges.unwrap_or_default().into_keys().collect(),
                guests: self.network.guest_bridges(),
            };
            let endpoints = host::candidates(
                &host::interfaces(),
                &self.config.tunnel.interface,
                &mesh.addresses,
                self.tunnel.listen_port(),
                &inward,
            );
            let held = self.replica.ledger().node(&id);
            let wireguard_key = self.identity.keys.wireguard_public();
            let proof = held.filter(|held| held.wireguard_key == wireguard_key);
            let proof = proof.and_then(|held| held.key_proof);
            let node = Node {
                id,
                version: held.map_or(0, |n| n.version),
                wireguard_key,
                block: self.identity.block,
                endpoints,
                without_ipv6: self.network.ipv6() != Ipv6::On,
                key_proof: proof.or_else(|| self.identity.keys.prove_wireguard()),
                services_from: held.map_or(0, |n| n.services_from),
            };
            let is_new = held != Some(&node);
            own_node = Some((node, is_new));
        }
        let mut services = self.wanted_services();
        self.leave_out_ipv6(&mut services);
        let wanted = self.own_records.fit(services);
        self.own_records.begin_round();
        let changed = {
            let floor = self
                .replica
                .ledger()
                .node(&id)
                .map_or(0, |held| held.services_from);
            let acceptance = self.replica.acceptance();
            let mut draft = own_records::Draft::new(id, floor, acceptance, now, wall);
            draft.services(self.replica.ledger().services_of(&id), wanted);
            if let Some((node, is_new)) = own_node {
                draft.node(node, is_new);
            }
            draft.name(self.replica.ledger().wanted_name(&id), &self.identity.name);
            draft.finish()
        };
        let word = self.publish(changed);
        self.own_records.end_round();
        word
    }

    /// Takes this node's IPv6 address out of services, where its machine has no IPv6.
    fn leave_out_ipv6(&self, services: &mut BTreeMap<String, Service>) {
        if self.network.ipv6() == Ipv6::On {
            return;
        }
        let own = IpAddr::V6(self.identity.block.node_v6());
        for instance in services.values_mut().flat_map(|s| &mut s.instances) {
            if instance.addresses.iter().any(|address| *address != own) {
                instance.addresses.retain(|address| *address != own);
            }
        }
    }

    /// Calls this node `name` from now on. Gives what [`Mesh::publish_own`] does.
    ///
    /// # Errors
    /// Somebody else is called so, or the disk refuses.
    pub(super) fn rename(
        &mut self,
        name: Label,
    ) -> Result<Option<oneshot::Receiver<Answer>>, ApiError> {
        let id = self.id();
        if self.replica.ledger().is_name_of_another(&name, &id) {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("another node is called {name}, or joined with that name; choose another"),
            ));
        }
        let identity = Identity {
            name: name.clone(),
            ..self.identity.clone()
        };
        self.dir.set_identity(&identity)?;
        self.identity = identity;
        if let Some(docker) = &mut self.docker {
            docker.set_node_name(name.clone());
        }
        let ledger = self.replica.ledger();
        let held = ledger.wanted_name(&id).map_or(0, |held| held.version);
        let key = RecordKey::Name(id);
        let held = self.replica.acceptance().last_version(&key, held);
        let word = self.publish(vec![Record::Name(Name {
            id,
            version: next_version(held, SystemTime::now()),
            name,
        })]);
        // Instances are called after their node.
        Ok(self.publish_own().or(word))
    }

    /// This node has another name, because another node has the one that it wanted.
    fn follow_name(&mut self, name: Label) {
        self.identity.name = name.clone();
        if let Err(error) = self.dir.set_identity(&self.identity) {
            tracing::warn!(%error, "the name that this node has now is not on disk");
        }
        if let Some(docker) = &mut self.docker {
            docker.set_node_name(name);
        }
        // Instances are called after their node.
        self.publish_own();
    }

    /// Gives the tunnel a new key; the one before goes on for a while. Gives the key and what [`Mesh::publish_own`] does.
    ///
    /// # Errors
    /// It was changed a moment ago, or the disk refuses.
    pub(super) fn rotate_key(
        &mut self,
    ) -> Result<(WireGuardKey, Option<oneshot::Receiver<Answer>>), ApiError> {
        if self.tunnel.keys().is_rotating() {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!(
                    "the key was changed less than {} min ago, and the one before still goes on; try again later",
                    crate::tunnel::OVERLAP.as_secs() / 60
                ),
            ));
        }
        let fresh = Keys::generate().map_err(|e| {
            ApiError::new(
                ErrorCode::Internal,
                format!("the system has no randomness to give: {e}"),
            )
        })?;
        let mut identity = self.identity.clone();
        let wireguard = std::mem::replace(&mut identity.keys.wireguard, fresh.wireguard);
        identity.previous = Some(Previous {
            wireguard,
            until: UnixSeconds::from_system(SystemTime::now()).plus(crate::tunnel::OVERLAP),
        });
        self.dir.set_identity(&identity)?;
        self.identity = identity;
        // Before anybody hears of it: who does begins a session with it at once.
        let key = self.identity.keys.wireguard.clone();
        self.tunnel.keys().rotate(key, Instant::now());
        tracing::info!(key = %self.identity.keys.wireguard_public(), "the tunnel has a new key");
        Ok((self.identity.keys.wireguard_public(), self.publish_own()))
    }

    /// Forgets the key before, once it does not go on any more.
    fn end_rotation(&mut self, now: Instant) {
        self.tunnel.keys().settle(now);
        if self.identity.previous.is_some() && !self.tunnel.keys().is_rotating() {
            self.identity.previous = None;
            self.forget_old_key();
        }
    }

    /// Signs records of this node, keeps them and offers them. Returns an event for when the coordinator has stored them.
    fn publish(&mut self, records: Vec<Record>) -> Option<oneshot::Receiver<Answer>> {
        if records.is_empty() {
            return None;
        }
        let publication = self.replica.publish(records, clock::now());
        for key in &publication.accepted {
            self.own_records.handle_accepted(key);
        }
        for (envelope, refused) in publication.refused {
            self.own_records.handle_refused(&envelope, refused);
        }
        let receiver = publication.sequence.map(|sequence| {
            let (sender, receiver) = oneshot::channel();
            self.waiting.insert(sequence, sender);
            receiver
        });
        self.carry_out_all();
        let changes = self.replica.take_changes();
        if !changes.records.is_empty() {
            self.refresh_after(&changes.records);
        }
        receiver
    }

    /// The records of this node's services, by id, without a version.
    fn wanted_services(&self) -> BTreeMap<String, Service> {
        let id = self.id();
        let mut wanted = self.registry.records(
            &id,
            &self.identity.name,
            &self.own_addresses(),
            &self.identity.block,
        );
        let Some(docker) = &self.docker else {
            return wanted;
        };
        let mut merge = |name: ServiceName, instances: Vec<Instance>, address| {
            let id_of = Service::id_of(&id, name.project.as_ref(), &name.name);
            let service = wanted.entry(id_of.clone()).or_insert_with(|| Service {
                id: id_of,
                version: 0,
                node: id,
                name: name.name,
                project: name.project,
                service_address: None,
                instances: Vec::new(),
            });
            service.service_address = address;
            service.instances.extend(instances);
        };
        let in_place = self.firewall.in_place();
        let (true, Some(in_place)) = (docker.is_settled(), in_place) else {
            // What ran before a restart of meshd still does, as far as anybody knows.
            for held in self.replica.ledger().services_of(&id) {
                let instances = held.instances.iter();
                let from_containers: Vec<Instance> = instances
                    .filter(|i| i.source == Source::Docker)
                    .cloned()
                    .collect();
                if !from_containers.is_empty() {
                    merge(held.service_name(), from_containers, held.service_address);
                }
            }
            return wanted;
        };
        let wired = if self.firewall.in_force() {
            let mappings = in_place.mappings.iter();
            Wired::Mapped(mappings.map(|(a, mapped)| (*a, mapped.container)).collect())
        } else {
            Wired::Impossible
        };
        let mut addresses = self.names.service_addresses().clone();
        let plan = self.replica.ledger().mesh().map(|mesh| mesh.addresses);
        for (name, offer) in docker.offers(self.registry.drained(), wired) {
            let address = plan
                .filter(|_| offer.service_address)
                .and_then(|plan| addresses.choose(&plan, name.clone()));
            merge(name, offer.instances, address);
        }
        wanted
    }

    /// The engine says something.
    pub(super) fn handle_engine(&mut self, reports: Vec<Report>) {
        if let Some(docker) = &mut self.docker {
            docker.handle_reports(reports);
            self.containers_changed();
        }
    }

    /// Probes of containers came to verdicts.
    pub(super) fn handle_probes(&mut self, verdicts: Vec<(ContainerId, bool)>) {
        if let Some(docker) = &mut self.docker {
            docker.handle_probes(verdicts);
            self.containers_changed();
        }
    }

    /// The kernel has been brought to what is wanted: what is mapped now can be published, and a service address that is
    /// balanced now can be answered.
    pub(super) fn handle_wired(&mut self) {
        let in_place = self
            .firewall
            .in_place()
            .filter(|_| self.firewall.in_force());
        let balanced = in_place.map_or_else(BTreeSet::new, |wiring| {
            wiring.service_addresses.keys().copied().collect()
        });
        if self.names.set_balanced(balanced) {
            self.rebuild_zone();
        }
        self.publish_own();
    }

    /// Unmaps what is gone before anything else, and publishes nothing before it is mapped: an engine gives the address
    /// of a container that ended to the next at once.
    fn containers_changed(&mut self) {
        self.wire();
        self.publish_own();
        self.follow_bridges();
        self.keep_leases();
    }

    /// Lets those ask for names that are on the engine's bridges.
    fn follow_bridges(&mut self) {
        let (bridges, outer) = self.container_bridges();
        if bridges != self.bridges {
            self.bridges = bridges;
            self.refresh_allowed();
        }
        if outer.is_empty() {
            self.troubles.remove("bridges");
            return;
        }
        let what = format!(
            "containers on {} have no way into the mesh, and no names of it",
            outer.join(", ")
        );
        let why = "an interface that leads out of this machine is a port of the same bridge, so other machines would have them too".to_owned();
        self.trouble(
            "bridges",
            &what,
            why,
            "give these containers a network with a bridge of its own",
        );
    }

    /// The bridges of the engine's networks, with their subnets; and those left out, since other machines are on them.
    fn container_bridges(&self) -> (BTreeMap<String, Vec<Ipv4Net>>, Vec<String>) {
        let mut bridges = self
            .docker
            .as_ref()
            .map(Docker::bridges)
            .unwrap_or_default();
        let outer = self.network.outer_bridges();
        let left_out = bridges.extract_if(.., |name, _| outer.contains(name));
        let left_out = left_out.map(|(name, _)| name).collect();
        (bridges, left_out)
    }

    /// Hands the kernel's part over.
    fn wire(&self) {
        let Some(mesh) = self.replica.ledger().mesh() else {
            return;
        };
        let docker = self.docker.as_ref();
        // Rules from before a restart of meshd are right until it is known what runs.
        if docker.is_some_and(|docker| !docker.is_settled()) {
            return;
        }
        let mappings = docker.map(Docker::mappings).unwrap_or_default();
        let mappings = mappings.into_iter().map(|(address, mapping)| {
            let mapped = Mapped {
                container: mapping.container,
                pid: mapping.pid,
                name: mapping.name,
            };
            (address, mapped)
        });
        self.firewall.set(Wiring {
            interface: self.config.tunnel.interface.clone(),
            prefix: mesh.addresses.prefix_v4,
            block: self.identity.block.v4,
            node: self.identity.block.node_v4(),
            // Without an engine's word there are no container networks: the name of a bridge opens nothing.
            bridges: self.container_bridges().0,
            mappings: mappings.collect(),
            service_addresses: self.names.zone().load().service_addresses(),
            native: docker.and_then(Docker::native).map(|plan| Native {
                bridge: network::BRIDGE.into(),
                range: plan.range(),
            }),
        });
    }

    /// Takes back what other programs were told, and what was put on the machine.
    pub(super) async fn stop(mut self, mut events: Events) {
        self.keep_service_addresses();
        let flushed = timeout(FLUSH_TIMEOUT, self.flush(&mut events.writes)).await;
        if flushed.is_err() {
            tracing::warn!("the disk does not answer; the last changes are not written");
        }
        if let Some(resolved) = self.dns.as_mut().and_then(|dns| dns.resolved.as_mut()) {
            resolved.stop().await;
        }
        self.firewall.stop().await;
        drop(self.docker.take());
        if let Some(docker) = self.config.docker.as_ref().filter(|d| d.network) {
            network::take_away(&docker.sockets).await;
        }
        self.writer.stop().await;
    }

    /// The services of this node changed: keep them, check them, say so.
    pub(super) fn services_changed(
        &mut self,
    ) -> Result<Option<oneshot::Receiver<Answer>>, ApiError> {
        self.dir.set_services(&self.registry.stored())?;
        self.checker
            .set(self.registry.targets(&self.identity.block));
        Ok(self.publish_own())
    }

    /// Brings tunnel, watch and zone in step with the ledger.
    fn refresh(&mut self) {
        let before = std::mem::replace(&mut self.netmap, self.replica.ledger().netmap());
        let now = Instant::now();
        let id = self.id();
        for (id, member) in self.netmap.members.iter().filter(|(m, _)| **m != id) {
            if let Some(before) = before.members.get(id)
                && before.wireguard_key != member.wireguard_key
            {
                self.tunnel.keys().replace_key(
                    &before.wireguard_key.0,
                    member.wireguard_key.0,
                    now,
                );
            }
        }
        let serving: BTreeSet<PublicKey> = self.netmap.services.values().map(|s| s.node).collect();
        let others = self.netmap.members.values().filter(|m| m.id != id);
        let paths = others.clone().map(|m| PathPeer {
            id: m.id,
            endpoints: m.endpoints.clone(),
            serves: serving.contains(&m.id),
        });
        self.paths.set_peers(paths.collect(), now);
        let peers = others
            .filter(|_| !self.replica.link().is_duplicate())
            .map(|member| PeerConfig {
                public_key: member.wireguard_key.0,
                preshared_key: None,
                endpoint: self.paths.endpoint(&member.id),
                allowed_ips: vec![IpNet::V4(member.block.v4), IpNet::V6(member.block.v6)],
                persistent_keepalive: Some(KEEPALIVE),
            })
            .collect();
        self.tunnel.set_peers(peers);
        let members = || self.netmap.members.values().filter(|m| m.id != id);
        self.gossip
            .set_peers(members().map(|m| (m.block.node_v4(), m.id)).collect());
        let ways = members().map(|m| (m.name.to_string(), m.addresses()));
        self.network.set(|wanted| wanted.peers = ways.collect());
        self.rebuild_zone();
    }

    /// Brings everything in step with records that changed; if they are of services alone, at no more than their cost.
    fn refresh_after(&mut self, changed: &[RecordKey]) {
        if !changed
            .iter()
            .all(|key| matches!(key, RecordKey::Service(_)))
        {
            return self.refresh();
        }
        let ids: BTreeSet<_> = changed.iter().map(RecordKey::id).collect();
        let mut replaced = Vec::new();
        for id in &ids {
            let service = self.replica.ledger().service(id);
            let Some(node) = service.map(|service| service.node) else {
                return self.refresh();
            };
            let served = self.netmap.serves(&node);
            replaced.push((id, self.replica.ledger().renew(&mut self.netmap, id)));
            // Who serves is watched more closely.
            if served != self.netmap.serves(&node) {
                return self.refresh();
            }
        }
        let replaced: Vec<Replaced<'_>> = replaced
            .iter()
            .map(|(id, before)| Replaced {
                before: before.as_ref(),
                now: self.netmap.services.get(id.as_ref()),
            })
            .collect();
        let input = names_input(&self.netmap, &self.paths);
        if self.names.replace(&input, &replaced, Instant::now()) {
            self.wire();
        }
    }

    /// Computes the zone from nothing: for when members changed, or what is known of the paths to them.
    fn rebuild_zone(&mut self) {
        let input = names_input(&self.netmap, &self.paths);
        self.names.rebuild(&input, Instant::now());
        self.wire();
    }

    /// Does what is due. It is called twice a second.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        self.end_rotation(now);
        let regrouped = self.poll_paths(now);
        let time = clock::now();
        for (id, reach) in self.paths.reach() {
            let is_reached = *reach == Reach::Reachable;
            self.replica.handle_reach(id, is_reached, time);
        }
        self.replica.handle_time(time);
        self.follow_replica();
        if regrouped {
            self.rebuild_zone();
        }
        self.names.handle_time(now);
        if self.docker.as_mut().is_some_and(|d| d.handle_time(now)) {
            self.containers_changed();
        }
    }

    /// Passes the state of the peers from the tunnel to the paths, and carries out on the tunnel what the paths return.
    /// Returns whether the names have to be computed again.
    fn poll_paths(&mut self, now: Instant) -> bool {
        let id = self.id();
        let mut actions = Vec::new();
        for member in self.netmap.members.values().filter(|m| m.id != id) {
            let key = &member.wireguard_key.0;
            let Some(status) = self.tunnel.peer(key) else {
                continue;
            };
            let searching = self.paths.is_searching(&member.id);
            let answered = searching.then(|| self.tunnel.probing().take_answered_size(key));
            let serves = self.netmap.serves(&member.id);
            let answered = answered.flatten();
            let paths = &mut self.paths;
            let limit = paths.handle_peer_status(member.id, serves, &status, answered, now);
            if let Some(PathAction::Limit(_, bytes)) = limit
                && (bytes != self.plan.mtu || status.path_mtu != u16::MAX)
            {
                tracing::info!(endpoint = ?status.endpoint, bytes, "the path to a peer carries packets of another size");
            }
            actions.extend(limit);
        }
        let (due, regrouped) = self.paths.poll(now);
        actions.extend(due);
        for action in actions {
            self.act_on_path(action);
        }
        regrouped
    }

    fn act_on_path(&self, action: PathAction) {
        let (PathAction::Probe(id)
        | PathAction::Try(id, _)
        | PathAction::ProbeSizes(id, _)
        | PathAction::Limit(id, _)) = &action;
        let Some(member) = self.netmap.members.get(id) else {
            return;
        };
        let (key, address) = (&member.wireguard_key.0, member.block.node_v4().into());
        let [own, _] = self.own_addresses();
        match action {
            PathAction::Probe(_) => self.tunnel.probing().probe(key, own, address),
            PathAction::Try(_, endpoint) => {
                self.tunnel.set_endpoint(key, endpoint);
                self.tunnel.probing().initiate(key);
            }
            PathAction::ProbeSizes(_, sizes) => {
                self.tunnel.probing().probe_sizes(key, own, address, &sizes)
            }
            PathAction::Limit(_, bytes) => self.tunnel.set_path_mtu(key, bytes),
        }
    }

    /// Puts back what somebody took away, and notices what changed around: addresses, resolvers. To be called every few
    /// seconds.
    pub(super) async fn reconcile(&mut self) {
        self.keep_service_addresses();
        // A device that is gone is about to be made again.
        if !self.tunnel.is_gone() {
            self.is_device_elsewhere().await;
        }
        self.keep_again();
        self.refresh_surroundings();
        self.follow_bridges();
        self.listen().await;
        self.wire();
        self.publish_own();
    }

    /// Writes which service has which address, so that no address moves when meshd starts again. This is not done at each
    /// change: other members can cause changes, and each write waits for the disk.
    fn keep_service_addresses(&mut self) {
        if let Some(addresses) = self.names.unwritten() {
            match self.dir.set_service_addresses(addresses) {
                Ok(()) => self.names.handle_written(),
                Err(error) => {
                    tracing::warn!(%error, "cannot write the service addresses to disk");
                }
            }
        }
    }

    /// Somebody changed something on this machine, and what is meshd's has been put back.
    pub(super) async fn handle_host(&mut self) {
        // For example, the machine may no longer forward, or a bridge of containers may have got a port to another machine.
        self.firewall.look();
        self.follow_bridges();
        self.wire();
        self.listen().await;
        self.publish_own();
    }

    /// Listens wherever it does not yet, and says where it cannot. The DNS address needs none of that.
    async fn listen(&mut self) {
        let Some(dns) = &mut self.dns else { return };
        let v6 = IpAddr::V6(self.identity.block.node_v6());
        let there = |at: &&SocketAddr| at.ip() != v6 || self.network.ipv6() == Ipv6::On;
        let wanted: Vec<SocketAddr> = dns.wanted.iter().filter(there).copied().collect();
        let refused = dns.server.listen_on(&wanted);
        if refused.is_empty() {
            self.troubles.remove("dns");
            return;
        }
        let [v4, _] = dns.inside.listen();
        let fix = format!(
            "nothing, if programs ask {}; else find out who listens with `ss -ulpn sport = :53`, and end it or keep it off the mesh's addresses",
            v4.ip()
        );
        let why: Vec<String> = refused.iter().map(ToString::to_string).collect();
        self.trouble(
            "dns",
            "names are not answered at all of this node's addresses",
            why.join("; "),
            &fix,
        );
    }

    fn refresh_surroundings(&mut self) {
        let mut own: BTreeSet<IpAddr> = host::interfaces()
            .into_iter()
            .map(|i| i.address)
            .filter(|a| !a.is_loopback())
            .collect();
        own.extend(
            self.dns
                .iter()
                .flat_map(|dns| dns.inside.listen())
                .map(|at| at.ip()),
        );
        let servers = if self.config.dns.upstreams.is_empty() {
            let found = host::resolvers(&ResolvConf::new(&self.config.state_dir));
            found.into_iter().map(Server::from).collect()
        } else {
            self.config.dns.upstreams.clone()
        };
        self.upstream.set(&servers, &own);
        self.refresh_allowed();
    }

    fn refresh_allowed(&self) {
        if let Some(mesh) = self.replica.ledger().mesh() {
            let allowed = allowed(&mesh.addresses, &self.identity.block, &self.bridges);
            self.allowed.store(Arc::new(allowed));
        }
    }
}

/// What the zone is computed from.
fn names_input<'a>(netmap: &'a Netmap, paths: &'a Paths) -> NamesInput<'a> {
    NamesInput {
        netmap,
        unreachable: paths.unreachable(),
        groups: paths.distances().groups(),
    }
}

/// Who may ask for names: the mesh, the host and its containers. `block` is the block of this node. `bridges` are those
/// that the engine reports for its networks. From any other network only this machine itself may ask, whatever name the
/// interface has.
fn allowed(
    addresses: &crate::model::MeshAddresses,
    block: &Block,
    bridges: &BTreeMap<String, Vec<Ipv4Net>>,
) -> Allowed {
    let loopback = ["127.0.0.0/8", "::1/128"].iter();
    let mut nets: Vec<IpNet> = loopback.filter_map(|net| net.parse().ok()).collect();
    nets.extend(bridges.values().flatten().copied().map(IpNet::V4));
    nets.extend(host::interfaces().iter().map(|i| match i.net {
        Some(net) if bridges.contains_key(&i.name) => net.trunc(),
        _ => i.address.into(),
    }));
    Allowed::new(nets).with_mesh(*addresses, *block)
}

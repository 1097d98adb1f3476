//! A joined node at work: its ledger, tunnel, network, resolver and control stream, kept in step.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net};
use tokio::sync::{mpsc, oneshot, watch};

use super::config::Config;
use super::control::stream::{Event, Position, Stream, StreamConfig};
use super::device::{self, DeviceEvents};
use super::dns_address;
use super::docker::{self, Docker, DockerEvents};
use super::gossip::{Ask, Peers};
use super::host::{self, HostNetwork, Inward, Ipv6, Plan, ResolvConf, SplitDns, Upkeep, Wanted};
use super::names::{Names, NamesConfig, NamesInput};
use super::own_records::{self, OwnRecords};
use super::paths::{PathAction, PathPeer, Paths};
use super::replica::acceptance::Acceptance;
use super::replica::newcomers::Newcomers;
use super::replica::refusals::PeerRefusals;
use super::resolv_conf::Keeper;
use super::resolved::ResolvedLink;
use super::state::records::RecordLog;
use super::state::{Identity, Keys, Previous, StateDir};
use super::unwritten::{Part, Unwritten};
use crate::containers::{ContainerId, Report, Wired, network};
use crate::dns::forward::Server;
use crate::dns::{Allowed, DnsServer, Replaced, Resolver, TunnelDns, Upstream};
use crate::firewall::{Firewall, Mapped, Native, Wiring};
use crate::model::address::Block;
use crate::model::time::{UnixSeconds, next_version};
use crate::model::{Label, PublicKey, ServiceName, WireGuardKey};
use crate::path::watch::Reach;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::control::Refusal;
use crate::protocol::local::Problem;
use crate::protocol::url::CoordinatorUrl;
use crate::records::kinds::{Departure, Instance, Name, Node, Record, RecordKey, Service, Source};
use crate::records::ledger::Applied;
use crate::records::netmap::Netmap;
use crate::records::{Envelope, Ledger};
use crate::services::Checker;
use crate::services::registry::{Key, Registry};
use crate::tunnel::{PeerConfig, Tunnel, TunnelConfig, TunnelError};

mod departing;
mod intake;
mod lease;
mod offer;

use self::departing::Departures;
use self::lease::Lease;

/// Seconds between datagrams to a peer in any case: keeps address translation on the way open.
const KEEPALIVE: u16 = 25;
/// How long the coordinator may take to confirm what this node says, before this node tells its peers itself.
const CONFIRM: Duration = Duration::from_millis(500);

/// What the coordinator stream told last.
#[derive(Debug, Clone)]
pub(super) struct StreamState {
    pub(super) url: String,
    pub(super) connected: bool,
    pub(super) synced: Option<Instant>,
    pub(super) refusal: Option<String>,
    pub(super) revoked: bool,
    /// Another machine with this node's keys is connected: this one keeps off its peers.
    pub(super) cloned: bool,
    /// A coordinator claims that, and may have no proof of it.
    pub(super) called_copy: bool,
}

/// A joined node.
pub(super) struct Mesh {
    pub(super) config: Arc<Config>,
    pub(super) identity: Identity,
    pub(super) ledger: Ledger,
    pub(super) netmap: Netmap,
    pub(super) registry: Registry,
    pub(super) tunnel: Tunnel,
    pub(super) paths: Paths,
    pub(super) names: Names,
    pub(super) dns: Option<Dns>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) plan: Plan,
    pub(super) stream: StreamState,
    pub(super) position: Position,
    pub(super) damaged: usize,
    pub(super) troubles: BTreeMap<&'static str, Problem>,
    pub(super) docker: Option<Docker>,
    pub(super) firewall: Firewall,
    pub(super) own_records: OwnRecords,
    /// Bridges of the container engine, with their subnets.
    bridges: BTreeMap<String, Vec<Ipv4Net>>,
    dir: StateDir,
    log: RecordLog,
    pub(super) unwritten: Unwritten,
    pub(super) network: Upkeep,
    allowed: Arc<ArcSwap<Allowed>>,
    checker: Checker<Key>,
    control: Stream,
    pub(super) peers: Peers,
    sequence: u64,
    /// The last message of an offer of everything that the coordinator has not acknowledged yet.
    owes: Option<u64>,
    waiting: HashMap<u64, oneshot::Sender<()>>,
    departures: Departures,
    /// Decides about memberships that are new to this node.
    pub(super) newcomers: Newcomers,
    /// Whether this node's own records are in force elsewhere.
    pub(super) own_word: Acceptance,
    peer_refusals: PeerRefusals,
    lease: Lease,
    /// When this node last requested all records again.
    asked_again: Option<Instant>,
    /// Whether all records were requested and the stream has not closed since. What this stream still brings does not
    /// change the position, or the request would be lost.
    resync: bool,
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
    pub(super) stream: mpsc::Receiver<Event>,
    pub(super) verdicts: mpsc::Receiver<(Key, bool)>,
    pub(super) docker: Option<DockerEvents>,
    pub(super) firewall: watch::Receiver<u64>,
    pub(super) host: watch::Receiver<u64>,
    pub(super) peers: mpsc::Receiver<Ask>,
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
            log.append(&new, &ledger)
                .map_err(super::state::StateError::from)?;
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

        let (stream_events, stream) = mpsc::channel(256);
        let (verdict_events, verdicts) = mpsc::channel(256);
        let control = Stream::start(
            StreamConfig {
                urls: coordinators(&ledger, &identity),
                pin: identity.pin,
                identity: identity.keys.identity.clone(),
            },
            position.clone(),
            stream_events,
        );
        let (peers, peer_asks) = Peers::start(
            identity.keys.identity.clone(),
            identity.block.node_v4(),
            config.tunnel.interface.clone(),
        );
        let stream_state = StreamState {
            url: identity
                .urls
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
            connected: false,
            synced: None,
            refusal: None,
            revoked: false,
            cloned: false,
            called_copy: false,
        };
        // Records that were lost on disk are sent again with old dates: they are accepted like all records at a join.
        let is_new = loaded.damaged > 0 || fresh.is_some();
        let members = ledger.memberships().map(|m| m.id);
        let newcomers = dir.newcomers(is_new, members, Instant::now());
        let own_word = Acceptance::new(
            &identity.keys.identity.public(),
            next_version(0, SystemTime::now()),
        );
        let (lease, leases) = Lease::new();
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
            stream: stream_state,
            troubles: BTreeMap::new(),
            sequence: 0,
            owes: None,
            waiting: HashMap::new(),
            departures: Departures::held_in(&ledger),
            newcomers,
            own_word,
            peer_refusals: PeerRefusals::default(),
            lease,
            asked_again: None,
            resync: false,
            first_word: None,
            config,
            identity,
            ledger,
            registry,
            tunnel,
            dns,
            upstream,
            plan,
            position,
            dir,
            log,
            unwritten: Unwritten::default(),
            network,
            allowed,
            control,
            peers,
        };
        mesh.keep_again();
        mesh.refresh_surroundings();
        mesh.listen().await;
        mesh.publish_own();
        mesh.refresh();
        if goes_on {
            let key = mesh.identity.keys.wireguard.clone();
            mesh.tunnel.rotate(key, Instant::now());
        }
        mesh.checker
            .set(mesh.registry.targets(&mesh.identity.block));
        for problem in mesh.registry.problems(&mesh.identity.block) {
            tracing::warn!(why = %problem.why, "{}", problem.what);
        }
        let events = Events {
            stream,
            verdicts,
            docker: docker_events,
            firewall: looks,
            host: host_looks,
            peers: peer_asks,
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

    /// Something came from the control stream.
    pub(super) fn handle_stream(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Opened {
                url,
                store,
                revision,
            } => {
                tracing::info!(%url, "connected to the coordinator");
                self.newcomers.handle_opened(revision);
                self.own_word.handle_opened(now);
                let another = self.owes.is_some() || self.position.store.as_deref() != Some(&store);
                let cloned = self.stream.cloned;
                self.stream = StreamState {
                    url: url.to_string(),
                    connected: true,
                    synced: Some(now),
                    refusal: None,
                    revoked: false,
                    cloned: false,
                    called_copy: false,
                };
                if cloned {
                    self.refresh();
                }
                self.offer(another);
                self.leave_farewell();
                self.publish_departures();
            }
            Event::Changes { records, position } => {
                self.stream.synced = Some(now);
                self.take_in_of_coordinator(records);
                if !self.resync {
                    self.position = position;
                    self.note_position();
                    self.note_in_step();
                }
            }
            Event::Admitted { revision } => {
                self.stream.synced = Some(now);
                self.newcomers.handle_opened(revision);
            }
            Event::Published {
                sequence,
                refused,
                refused_records,
            } => {
                self.stream.synced = Some(now);
                self.handle_answer(sequence, &refused, refused_records);
                self.note_in_step();
                let stored = refused.is_empty();
                let settled = super::departing::is_settled(&refused);
                self.departures.handle_published(sequence, settled);
                // Dropping the sender tells the waiting task that the records were refused.
                if let Some(waiting) = self.waiting.remove(&sequence).filter(|_| stored) {
                    let _ = waiting.send(());
                }
                if sequence == self.sequence && stored {
                    self.peers.handle_confirmed();
                }
                if self.owes == Some(sequence) {
                    self.owes = None;
                    self.note_position();
                }
            }
            Event::Alive => {
                self.stream.synced = Some(now);
                self.note_in_step();
            }
            Event::Closed {
                url,
                why,
                refusal,
                copied,
            } => {
                if self.stream.connected || self.stream.refusal.as_deref() != Some(&why) {
                    tracing::warn!(%url, %why, "not connected to the coordinator; names and tunnels go on");
                }
                self.stream.url = url.to_string();
                self.stream.connected = false;
                self.resync = false;
                // Until a coordinator takes this node again: one that cannot be reached changes nothing.
                self.stream.revoked |= refusal == Some(Refusal::Revoked);
                self.stream.called_copy |= refusal == Some(Refusal::Clone);
                self.departures.handle_closed();
                self.newcomers.handle_closed();
                self.own_word.handle_closed();
                self.stream.refusal = Some(why);
                // Who was connected since its start is the original, whatever a coordinator says.
                if copied && self.stream.synced.is_none() && !self.stream.cloned {
                    self.stream.cloned = true;
                    self.refresh();
                }
                self.waiting.clear();
                if self.peers.unconfirmed.is_some() {
                    self.peers.spread_news(now);
                    self.dial_peers(now);
                }
            }
        }
    }

    /// A node that may be removed when it stays away says so in advance: nobody else can sign for it.
    fn leave_farewell(&self) {
        let id = self.id();
        let token = self
            .ledger
            .membership(&id)
            .and_then(|membership| self.ledger.token(&membership.token));
        if token.is_some_and(|token| token.ephemeral) {
            let departure = Record::Departure(Departure::of(id));
            let departure = Envelope::seal(&departure, &self.identity.keys.identity);
            self.control.leave_farewell(departure);
        }
    }

    /// Notes how far this node has got in the coordinator's store. Not before that store has all this node owes it: by
    /// the note it is known to have.
    fn note_position(&mut self) {
        if self.owes.is_some() {
            return;
        }
        self.control.set_position(self.position.clone());
        // What is not on disk must come again after a restart.
        if self.log.is_whole() {
            let written = self.dir.set_position(&self.position);
            self.unwritten.note(Part::Position, written);
        }
    }

    /// Whether this node is removed or a copy, by what is signed: a coordinator's word alone silences nobody.
    fn is_out(&self) -> bool {
        self.stream.cloned || self.ledger.is_revoked(&self.id())
    }

    /// Whether this node was removed from the mesh, by its records or by the answer of a coordinator.
    pub(super) fn is_removed(&self) -> bool {
        self.stream.revoked || self.ledger.is_revoked(&self.id())
    }

    /// Brings those peers up to date that are due.
    fn dial_peers(&mut self, now: Instant) {
        if self.is_out() {
            return;
        }
        let away = !self.stream.connected && self.stream.refusal.is_some();
        let ledger = &self.ledger;
        self.peers.dial(away, now, |keys| {
            keys.filter_map(|key| ledger.entry(key))
                .map(|entry| entry.envelope.clone())
                .collect()
        });
    }

    /// Writes records to disk. What cannot be written is still acted on, and said.
    fn keep(&mut self, new: &[Envelope]) {
        let written = self.log.append(new, &self.ledger);
        self.unwritten.note(Part::Records, written);
    }

    /// Writes what the disk refused before.
    fn keep_again(&mut self) {
        if !self.log.is_whole() {
            self.keep(&[]);
        }
        if self.unwritten.has(Part::Position) {
            self.note_position();
        }
        if self.unwritten.has(Part::OldKey) {
            self.forget_old_key();
        }
        self.forget_newcomers();
        self.keep_newcomers();
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
    pub(super) fn publish_own(&mut self) -> Option<oneshot::Receiver<()>> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let id = self.id();
        let mut own_node = None;
        if let Some(mesh) = self.ledger.mesh() {
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
            let held = self.ledger.node(&id);
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
            let floor = self.ledger.node(&id).map_or(0, |held| held.services_from);
            let mut draft = own_records::Draft::new(id, floor, &self.own_word, now, wall);
            draft.services(self.ledger.services_of(&id), wanted);
            if let Some((node, is_new)) = own_node {
                draft.node(node, is_new);
            }
            draft.name(self.ledger.wanted_name(&id), &self.identity.name);
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
    ) -> Result<Option<oneshot::Receiver<()>>, ApiError> {
        let id = self.id();
        if self.ledger.is_name_of_another(&name, &id) {
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
        let held = self.ledger.wanted_name(&id).map_or(0, |held| held.version);
        let held = self.own_word.last_version(&RecordKey::Name(id), held);
        let word = self.publish(vec![Record::Name(Name {
            id,
            version: next_version(held, SystemTime::now()),
            name,
        })]);
        // Instances are called after their node.
        Ok(self.publish_own().or(word))
    }

    /// Gives the tunnel a new key; the one before goes on for a while. Gives the key and what [`Mesh::publish_own`] does.
    ///
    /// # Errors
    /// It was changed a moment ago, or the disk refuses.
    pub(super) fn rotate_key(
        &mut self,
    ) -> Result<(WireGuardKey, Option<oneshot::Receiver<()>>), ApiError> {
        if self.tunnel.is_rotating() {
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
        self.tunnel.rotate(key, Instant::now());
        tracing::info!(key = %self.identity.keys.wireguard_public(), "the tunnel has a new key");
        Ok((self.identity.keys.wireguard_public(), self.publish_own()))
    }

    /// Forgets the key before, once it does not go on any more.
    fn end_rotation(&mut self, now: Instant) {
        self.tunnel.settle(now);
        if self.identity.previous.is_some() && !self.tunnel.is_rotating() {
            self.identity.previous = None;
            self.forget_old_key();
        }
    }

    /// Signs what this node says, keeps it and spreads it.
    fn publish(&mut self, changed: Vec<Record>) -> Option<oneshot::Receiver<()>> {
        if changed.is_empty() {
            return None;
        }
        let key = self.identity.keys.identity.clone();
        let now = Instant::now();
        let (mut envelopes, mut keys) = (Vec::new(), Vec::new());
        for record in changed {
            let envelope = Envelope::seal(&record, &key);
            match self.ledger.apply(envelope.clone()) {
                Ok(applied) => {
                    envelopes.push(envelope);
                    if let Applied::Changed(key) = applied {
                        self.own_records.handle_accepted(&key);
                        let version = self.ledger.entry(&key).map_or(0, |entry| entry.version);
                        self.own_word.handle_published(&key, version, now);
                        keys.push(key);
                    }
                }
                Err(refused) => {
                    self.own_word.handle_unpublished(now);
                    self.own_records.handle_refused(&envelope, refused);
                }
            }
        }
        if envelopes.is_empty() {
            return None;
        }
        self.keep(&envelopes);
        self.refresh_after(&keys);
        self.peers.note_news(keys.into_iter(), now);
        if !(self.stream.connected && self.offer_own(envelopes)) {
            // At the start it is not known yet whether the coordinator is there.
            if self.stream.refusal.is_some() {
                self.peers.spread_news(now);
                self.dial_peers(now);
            }
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert(self.sequence, sender);
        Some(receiver)
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
            for held in self.ledger.services_of(&id) {
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
        let plan = self.ledger.mesh().map(|mesh| mesh.addresses);
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
        let Some(mesh) = self.ledger.mesh() else {
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
    pub(super) async fn stop(mut self) {
        self.keep_service_addresses();
        if let Some(resolved) = self.dns.as_mut().and_then(|dns| dns.resolved.as_mut()) {
            resolved.stop().await;
        }
        self.firewall.stop().await;
        drop(self.docker.take());
        if let Some(docker) = self.config.docker.as_ref().filter(|d| d.network) {
            network::take_away(&docker.sockets).await;
        }
    }

    /// The services of this node changed: keep them, check them, say so.
    pub(super) fn services_changed(&mut self) -> Result<Option<oneshot::Receiver<()>>, ApiError> {
        self.dir.set_services(&self.registry.stored())?;
        self.checker
            .set(self.registry.targets(&self.identity.block));
        Ok(self.publish_own())
    }

    /// Brings tunnel, watch and zone in step with the ledger.
    fn refresh(&mut self) {
        let before = std::mem::replace(&mut self.netmap, self.ledger.netmap());
        self.peers.holdings = None;
        let now = Instant::now();
        let id = self.id();
        for (id, member) in self.netmap.members.iter().filter(|(m, _)| **m != id) {
            if let Some(before) = before.members.get(id)
                && before.wireguard_key != member.wireguard_key
            {
                self.tunnel
                    .replace_key(&before.wireguard_key.0, member.wireguard_key.0, now);
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
            .filter(|_| !self.stream.cloned)
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
        self.peers
            .set_peers(members().map(|m| (m.block.node_v4(), m.id)).collect());
        let ways = members().map(|m| (m.name.to_string(), m.addresses()));
        self.network.set(|wanted| wanted.peers = ways.collect());
        self.rebuild_zone();
    }

    /// Brings everything in step with records that changed; if they are of services alone, at no more than their cost.
    fn refresh_after(&mut self, changed: &[RecordKey]) {
        self.peers.holdings = None;
        if !changed
            .iter()
            .all(|key| matches!(key, RecordKey::Service(_)))
        {
            return self.refresh();
        }
        let ids: BTreeSet<_> = changed.iter().map(RecordKey::id).collect();
        let mut replaced = Vec::new();
        for id in &ids {
            let Some(node) = self.ledger.service(id).map(|service| service.node) else {
                return self.refresh();
            };
            let served = self.netmap.serves(&node);
            replaced.push((id, self.ledger.renew(&mut self.netmap, id)));
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
        let away = !self.stream.connected && self.stream.refusal.is_some();
        for (id, reach) in self.paths.reach() {
            self.peers
                .handle_reach(id, *reach == Reach::Reachable, away, now);
        }
        if self
            .peers
            .unconfirmed
            .is_some_and(|since| away || now.duration_since(since) >= CONFIRM)
        {
            self.peers.spread_news(now);
        }
        self.follow_word(now);
        self.dial_peers(now);
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
            let answered = searching.then(|| self.tunnel.take_answered_size(key));
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
            self.carry_out(action);
        }
        regrouped
    }

    fn carry_out(&self, action: PathAction) {
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
            PathAction::Probe(_) => self.tunnel.probe(key, own, address),
            PathAction::Try(_, endpoint) => {
                self.tunnel.set_endpoint(key, endpoint);
                self.tunnel.initiate(key);
            }
            PathAction::ProbeSizes(_, sizes) => self.tunnel.probe_sizes(key, own, address, &sizes),
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
        if let Some(mesh) = self.ledger.mesh() {
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

/// Where the coordinators are: what the mesh says, and what this node's token said. The latter may be out of date, and is
/// what is left if the former is wrong.
fn coordinators(ledger: &Ledger, identity: &Identity) -> Vec<CoordinatorUrl> {
    let said = ledger.mesh().map_or(&[][..], |mesh| &mesh.coordinators);
    let mut urls: Vec<CoordinatorUrl> = said.iter().filter_map(|url| url.parse().ok()).collect();
    for url in &identity.urls {
        if !urls.contains(url) {
            urls.push(url.clone());
        }
    }
    urls
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

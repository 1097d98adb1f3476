//! Brings a joined node up from what is on disk, in stages. Each stage takes the value of the stage before:
//!
//! 1. [`Loaded`]: what is on disk.
//! 2. [`Equipped`]: the tunnel runs, and its device has addresses and routes.
//! 3. [`JoinedNode`] and its [`Events`]: all tasks run.
//!
//! Nothing is left behind when a stage fails: dropping the value of a stage undoes it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::config::Config;
use super::connections::Connections;
use super::control::stream::{Stream, StreamConfig};
use super::device::{self, Device, DeviceEvents, PathEvents};
use super::disk::Disk;
use super::docker::{self, Docker};
use super::gossip::{Gossip, PeerEvent};
use super::host::{self, HostNetwork, Interface, NetworkPlan, Upkeep, Wanted};
use super::joined::{Events, JoinedNode, ReachEvents, ServiceEvents};
use super::names::{Names, NamesConfig};
use super::own_records::OwnRecords;
use super::paths::Paths;
use super::policy::PolicyInForce;
use super::reach::Reach;
use super::replica::{self, Own, Position, Replica, StreamEvent};
use super::resolver::{NodeResolver, ResolverScope};
use super::routing::Routing;
use super::settle::Dirty;
use super::state::records::RecordLog;
use super::state::writer::Writer;
use super::state::{self, Identity, StateDir, StateError};
use super::streams::{RelayStreamEvent, RelayStreams};
use super::workloads::Workloads;
use crate::containers::network;
use crate::firewall::Firewall;
use crate::model::MeshAddresses;
use crate::model::time::UnixSeconds;
use crate::os::clock;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::url::CoordinatorUrl;
use crate::records::ledger::Applied;
use crate::records::netmap::Netmap;
use crate::records::{Envelope, Ledger};
use crate::services::registry::Registry;
use crate::tunnel::{Tunnel, TunnelConfig};

/// Brings everything up from what is on disk, with `fresh` records besides.
///
/// # Errors
/// One line on what is missing, or on what prevents it.
pub(super) async fn start(
    config: Arc<Config>,
    dir: StateDir,
    identity: Identity,
    registry: Registry,
    fresh: Option<&Ledger>,
) -> Result<(JoinedNode, Events), ApiError> {
    let loaded = Loaded::read(dir, identity, fresh)?;
    let equipped = Equipped::set_up(&config, &loaded).await?;
    let continues_rotation = equipped.continues_rotation;
    let (mut node, events) = run(config, loaded, equipped, registry);
    node.begin();
    if continues_rotation {
        let key = node.identity.keys.wireguard.clone();
        node.device.tunnel.keys().rotate(key, Instant::now());
    }
    Ok((node, events))
}

fn internal(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Internal, error.to_string())
}

/// What is on disk.
struct Loaded {
    dir: StateDir,
    identity: Identity,
    log: RecordLog,
    ledger: Ledger,
    position: Position,
    /// The policy that was in force.
    policy: PolicyInForce,
    /// The number of damaged lines of the records.
    damaged: usize,
    /// Whether records were lost, or the node has just joined. Records that were lost are sent again with old dates: they are
    /// accepted like all records at a join.
    is_new: bool,
    scope: ResolverScope,
}

impl Loaded {
    fn read(dir: StateDir, identity: Identity, fresh: Option<&Ledger>) -> Result<Self, ApiError> {
        let (mut log, loaded) = RecordLog::open(&dir.path("records.jsonl"), identity.mesh_key)
            .map_err(StateError::from)?;
        let mut ledger = loaded.ledger;
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
            written.map_err(StateError::from)?;
        }
        let stored = state::policy::read(&dir);
        // The record was lost among the others, if the ledger does not hold it or a later one.
        if let Some(record) = &stored
            && let Ok(Applied::Changed(_)) = ledger.apply(record.clone())
        {
            // If the disk is full, the record is in its own file still.
            let _ = log.append(std::slice::from_ref(record));
        }
        let policy = PolicyInForce::new(stored, &identity.mesh_key);
        let Some(mesh) = ledger.mesh() else {
            return Err(ApiError::new(
                ErrorCode::Configuration,
                "the mesh record on disk is lost; run `meshctl leave`, then join again with a new token",
            ));
        };
        let scope = ResolverScope {
            addresses: mesh.addresses,
            domain: mesh.domain.clone(),
            block: identity.block,
        };
        // What was lost on disk is received again, from the beginning.
        let position = if loaded.damaged > 0 || fresh.is_some() {
            Position::default()
        } else {
            dir.position()
        };
        Ok(Self {
            is_new: loaded.lost > 0 || fresh.is_some(),
            damaged: loaded.damaged,
            position,
            policy,
            scope,
            dir,
            identity,
            log,
            ledger,
        })
    }
}

/// The running tunnel, whose device has addresses and routes.
struct Equipped {
    device: Device,
    events: (DeviceEvents, PathEvents),
    stream_events: mpsc::Receiver<RelayStreamEvent>,
    /// The network of the container engine whose containers have mesh addresses of their own, if it is wanted.
    native: Option<network::NativePlan>,
    /// The addresses of this machine before the device had any.
    interfaces: Vec<Interface>,
    /// Whether the tunnel began with its previous key, which is still accepted for a while.
    continues_rotation: bool,
}

impl Equipped {
    async fn set_up(config: &Config, loaded: &Loaded) -> Result<Self, ApiError> {
        let (identity, addresses) = (&loaded.identity, loaded.scope.addresses);
        let network = HostNetwork::open().map_err(|e| internal(&e))?;
        let survey = network.survey().await.map_err(|e| internal(&e))?;
        let interfaces = host::interfaces()
            .map_err(|error| internal(&format!("cannot list the interfaces: {error}")))?;
        let mtu = config
            .tunnel
            .mtu
            .unwrap_or_else(|| host::tunnel_mtu(&interfaces, &survey, &config.tunnel.interface));
        let (tunnel, continues_rotation) = start_tunnel(config, identity, mtu).await?;
        let events = DeviceEvents::of(&tunnel)
            .and_then(|gone| Ok((gone, PathEvents::of(&tunnel)?)))
            .map_err(|error| internal(&format!("cannot watch the tunnel device: {error}")))?;
        let (streams, stream_events) = RelayStreams::start(
            &config.relay,
            &identity.keys.identity,
            &tunnel.steering().stream_opener(),
            &config.state_dir,
        );
        let mut plan = NetworkPlan::new(&config.tunnel.interface, mtu, &identity.block, &addresses);
        let native = native_network(config, identity, &addresses, mtu);
        if native.is_some() {
            plan.halve_v4_route();
        }
        network.set_discipline(tunnel.index()).await;
        let applied = network.apply(&plan, tunnel.index()).await;
        let applied = applied.map_err(|e| internal(&e))?;
        let applied = applied.ok_or_else(|| internal(&"the tunnel device is gone already"))?;
        // Without IPv4 there is no node. Without IPv6 there is a node, and a problem.
        if let Some(refused) = applied.refused.iter().find(|refused| !refused.is_ipv6()) {
            return Err(internal(refused));
        }
        let wanted = Wanted {
            plan,
            index: tunnel.index(),
            device_revision: 0,
            mesh: addresses,
            block: identity.block,
            peers: Vec::new(),
        };
        let network = Upkeep::start(network, wanted, &applied);
        Ok(Self {
            device: Device::new(
                tunnel,
                loaded.policy.clone(),
                network,
                mtu,
                reach_of(config, identity),
                streams,
                Routing::new(config.path.routes.clone()),
            ),
            events,
            stream_events,
            native,
            interfaces,
            continues_rotation,
        })
    }
}

fn reach_of(config: &Config, identity: &Identity) -> Reach {
    // A node asks for the same port after a restart, and two nodes behind one router for two ports.
    let [first, second, ..] = identity.keys.identity.public().0;
    let seed = u16::from_be_bytes([first, second]);
    Reach::start(config.path.clone(), config.relay.clone(), seed)
}

/// Starts the tunnel. Returns whether it began with the previous key of this node.
async fn start_tunnel(
    config: &Config,
    identity: &Identity,
    mtu: u16,
) -> Result<(Tunnel, bool), ApiError> {
    let wall = UnixSeconds::from_system(clock::wall());
    let previous = identity
        .previous
        .as_ref()
        .filter(|p| p.until > wall && p.until <= wall.plus(crate::tunnel::OVERLAP));
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
        .map_err(|error| ApiError::new(device::code_of(&error), error.to_string()))?;
    let block = &identity.block;
    tunnel.set_local_addresses(identity.addresses().to_vec());
    tunnel
        .filter()
        .set_own_networks(&[block.v4.into(), block.v6.into()]);
    tunnel.keys().set_guest_key(identity.keys.guest());
    Ok((tunnel, previous.is_some()))
}

fn native_network(
    config: &Config,
    identity: &Identity,
    addresses: &MeshAddresses,
    mtu: u16,
) -> Option<network::NativePlan> {
    let wanted = config.docker.as_ref().is_some_and(|docker| docker.network);
    wanted.then(|| network::NativePlan {
        prefix: addresses.prefix_v4,
        block: identity.block.v4,
        node: identity.block.node_v4(),
        mtu,
    })
}

/// The channels on which answers about the addresses of this node arrive.
fn reach_events(device: &mut Device) -> ReachEvents {
    ReachEvents {
        mappings: device.reach.mapping.take_answers(),
        pinholes: device.pinhole.take_answers(),
        stun_servers: device.reach.stun.take_servers(),
    }
}

/// Starts all tasks.
fn run(
    config: Arc<Config>,
    loaded: Loaded,
    equipped: Equipped,
    registry: Registry,
) -> (JoinedNode, Events) {
    let Loaded { dir, identity, .. } = loaded;
    let mut device = equipped.device;
    let reach = reach_events(&mut device);
    let received = &mut device.asked.calls.received;
    received.restore(state::calls::read(&dir));
    let names = start_names(&config, &identity, &dir);
    let mut resolver = NodeResolver::start(
        Arc::clone(&config),
        &loaded.scope,
        names.zone(),
        &device.tunnel,
        &equipped.interfaces,
    );
    let own = own_of(&identity);
    let urls = own.coordinators(&loaded.ledger);
    let (control, stream) = start_control(urls, &identity, loaded.position.clone());
    let (gossip, peers) = start_gossip(&config, &identity);
    let members = loaded.ledger.memberships().map(|m| m.id);
    let start = replica::Start {
        own,
        newcomers: dir.newcomers(loaded.is_new, members, Instant::now()),
        ledger: loaded.ledger,
        position: loaded.position,
        record_lines: loaded.log.lines(),
        records_whole: loaded.log.is_whole(),
    };
    let replica = Replica::new(start, clock::now());
    let (lease_answers, leases) = mpsc::channel(1);
    let (verdict_events, verdicts) = mpsc::channel(256);
    let (docker, docker_events) = start_docker(&config, &identity, equipped.native, &dir).unzip();
    let (writer, writes) = Writer::start(loaded.log, dir.clone());
    let firewall = Firewall::start();
    let events = Events {
        stream,
        writes,
        services: ServiceEvents::new(verdicts, resolver.lookups.take_answers()),
        docker: docker_events,
        firewall: firewall.changes(),
        host: device.network.changes(),
        peers,
        device: equipped.events.0,
        paths: equipped.events.1,
        relay_streams: equipped.stream_events,
        leases,
        reach,
    };
    let node = JoinedNode {
        replica,
        netmap: Netmap::default(),
        paths: Paths::new(device.mtu, device.reach.uses_relays()),
        names,
        resolver,
        workloads: Workloads::new(config, registry, docker, firewall, verdict_events),
        connections: Connections::new(control, gossip, identity.pin, lease_answers),
        disk: Disk::new(writer, loaded.damaged, dir.audit),
        own_records: OwnRecords::default(),
        dirty: Dirty::all(),
        identity,
        device,
    };
    (node, events)
}

fn own_of(identity: &Identity) -> Own {
    Own {
        key: identity.keys.identity.clone(),
        block: identity.block,
        urls: identity.urls.clone(),
    }
}

/// The zone, which is empty at first.
fn start_names(config: &Config, identity: &Identity, dir: &StateDir) -> Names {
    let config = NamesConfig {
        own: identity.keys.identity.public(),
        when_none_usable: config.dns.when_none_usable,
        max_addresses: config.dns.max_addresses,
    };
    Names::new(config, dir.service_addresses())
}

/// The conversations with other nodes.
fn start_gossip(config: &Config, identity: &Identity) -> (Gossip, mpsc::Receiver<PeerEvent>) {
    Gossip::start(
        identity.keys.identity.clone(),
        identity.block.node_v4(),
        config.tunnel.interface.clone(),
    )
}

/// The control stream, which opens at `position`.
fn start_control(
    urls: Vec<CoordinatorUrl>,
    identity: &Identity,
    position: Position,
) -> (Stream, mpsc::Receiver<StreamEvent>) {
    let (sender, events) = mpsc::channel(256);
    let config = StreamConfig {
        urls,
        pin: identity.pin,
        identity: identity.keys.identity.clone(),
    };
    (Stream::start(config, position, sender), events)
}

fn start_docker(
    config: &Config,
    identity: &Identity,
    native: Option<network::NativePlan>,
    dir: &StateDir,
) -> Option<(Docker, docker::DockerEvents)> {
    let settings = config.docker.as_ref()?;
    let (own, block) = (identity.addresses(), identity.block);
    let around = docker::context(settings, &identity.name, &own, block, native);
    Some(Docker::start(settings, around, dir))
}

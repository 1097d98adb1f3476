//! A tunnel: its peers, its threads, and what can be asked of it.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use nix::sys::eventfd::{EfdFlags, EventFd};
use x25519_dalek::StaticSecret;

use super::allowed_ips::AllowedIps;
use super::drops::{Counters, DropCounters, DropReason};
use super::endpoint::Endpoint;
use super::limiter::HandshakeLimiter;
use super::local_service::{LocalService, write_datagram};
use super::noise::StaticKeys;
use super::peer::{Peer, PeerState};
use super::probe::{self, RoundTrip};
use super::rotation::Elder;
use super::routes::{self, Recheck};
use super::split::VnetHeader;
use super::timer::{self, Live};
use super::tun::Device;
use super::udp::{Sender, Sockets};
use super::worker::{self, Duty, Pair, Worker};
use crate::os::watchdog::Progress;

/// The least MTU of a link that carries IPv6 (RFC 8200 section 5).
const LEAST_MTU: u16 = 1280;

/// What a tunnel starts with.
#[derive(Clone)]
pub struct TunnelConfig {
    /// The device's name, at most 15 octets.
    pub interface: String,
    /// Octets of a packet in the tunnel at most.
    pub mtu: u16,
    /// UDP port; 0 for any.
    pub listen_port: u16,
    /// The node's key; without one nothing is sealed or opened.
    pub private_key: Option<StaticSecret>,
    /// How many data threads; none: as many as the machine's cores warrant.
    pub workers: Option<usize>,
}

/// A peer as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Who it is.
    pub public_key: [u8; 32],
    /// A secret both have besides (WireGuard section 5.2).
    pub preshared_key: Option<[u8; 32]>,
    /// Where it is at first; it may move.
    pub endpoint: Option<SocketAddr>,
    /// The addresses it owns.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds after which something is sent in any case.
    pub persistent_keepalive: Option<u16>,
}

/// A peer as it is.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// As configured.
    pub config: PeerConfig,
    /// Where it was last heard from, or is sent to.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake ended.
    pub last_handshake: Option<SystemTime>,
    /// When the last authentic datagram came.
    pub last_receive: Option<Instant>,
    /// Octets received, tunnel headers included.
    pub rx_bytes: u64,
    /// Octets sent, tunnel headers included.
    pub tx_bytes: u64,
    /// When a packet of the device was last sent to it, or waited for a session.
    pub last_send: Option<Instant>,
    /// The last round trip under a session: no handshake is in it.
    pub round_trip: Option<RoundTrip>,
    /// Octets of a packet in the tunnel that fit through the path, as set.
    pub path_mtu: u16,
}

/// Why a tunnel cannot start or change.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The kernel has no TUN device to give.
    #[error(
        "there is no /dev/net/tun; load the module with `modprobe tun`, or give the container `--device /dev/net/tun`"
    )]
    NoTun,
    /// The right is missing.
    #[error("making a network device needs CAP_NET_ADMIN; run as root")]
    Permission,
    /// The name cannot be one.
    #[error("`{0}` cannot be an interface name: 1 to 15 letters, digits, `-`, `_` or `.`")]
    Name(String),
    /// Somebody has it.
    #[error(
        "the interface {0} exists already; remove it (`ip link delete {0}`) or set another `interface`"
    )]
    InterfaceTaken(String),
    /// Somebody has it.
    #[error(
        "UDP port {0} is in use; find out by whom with `ss -ulpn`, or set another `listen_port`"
    )]
    PortTaken(u16),
    /// The system refuses.
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
}

/// What the data threads read once per batch.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) identity: Option<Arc<StaticKeys>>,
    /// The key before, while it goes on, and when it goes.
    pub(super) previous: Option<(Arc<StaticKeys>, Instant)>,
    pub(super) elders: Vec<Elder>,
    pub(super) by_key: HashMap<[u8; 32], Arc<Peer>>,
    pub(super) by_index: HashMap<u32, Arc<Peer>>,
    pub(super) allowed: AllowedIps<Arc<Peer>>,
    pub(super) here: Option<Arc<LocalService>>,
    /// Where packets from peers may go; anywhere if empty.
    pub(super) own: Arc<[IpNet]>,
}

impl Table {
    pub(super) fn takes_in(&self, destination: IpAddr) -> bool {
        let answered = self.here.as_ref().is_some_and(|here| here.has(destination));
        let own = || self.own.is_empty() || self.own.iter().any(|net| net.contains(&destination));
        !answered && own()
    }
}

/// What the threads share.
pub(super) struct Shared {
    pub(super) table: ArcSwap<Table>,
    /// One for each pair of threads, all on one port.
    pub(super) sockets: ArcSwap<Vec<Sockets>>,
    pub(super) local: ArcSwap<Vec<IpAddr>>,
    pub(super) device: ArcSwap<Device>,
    /// Written to once for each device that the kernel removes.
    gone: EventFd,
    /// The firewall mark of outer packets.
    pub(super) mark: AtomicU32,
    pub(super) recheck: Arc<Recheck>,
    pub(super) drops: DropCounters,
    pub(super) limiter: Mutex<HandshakeLimiter>,
    pub(super) live: Arc<Live>,
    /// How many members there have been.
    members: AtomicU64,
    pub(super) mtu: AtomicU16,
    pub(super) started: Instant,
    /// Milliseconds since the start at which a lost session was last looked into.
    pub(super) revived: AtomicU64,
    stop: AtomicBool,
    pub(super) pairs: Vec<Pair>,
}

impl Shared {
    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn mtu(&self) -> usize {
        usize::from(self.mtu.load(Ordering::Relaxed))
    }

    /// The kernel has removed `device`.
    pub(super) fn note_gone(&self, device: &Device) {
        if device.note_gone() {
            let _ = self.gone.write(1);
        }
    }

    /// Takes over the MTU that somebody gave the device.
    pub(super) fn follow_mtu(&self) {
        let device = self.device.load();
        if let Some(mtu) = device.mtu().filter(|_| !device.is_gone()) {
            self.mtu.store(mtu, Ordering::Relaxed);
        }
    }

    /// Hands a packet made here to the kernel.
    pub(super) fn inject(&self, packet: &[u8]) {
        let header = VnetHeader::default().to_bytes();
        let parts = [IoSlice::new(&header), IoSlice::new(packet)];
        if self.device.load().queues[0].write(&parts).is_err() {
            self.drops.add(DropReason::WriteFailed);
        }
    }

    /// Begins a handshake with `peer` now, if its endpoint is known.
    pub(super) fn initiate(
        &self,
        table: &Table,
        peer: &Peer,
        state: &mut PeerState,
        sender: &mut Sender,
        now: Instant,
    ) {
        let (Some(identity), Some(endpoint)) = (table.identity_of(peer), state.endpoint()) else {
            return;
        };
        if let Some(length) = state
            .noise(identity, peer.index, now)
            .initiate(sender.space())
        {
            peer.count_tx(length);
            sender.commit(length, endpoint);
        }
    }

    /// Seals a packet made here and sends it to `peer`. Gives whether it left at once: without a session it waits for one.
    pub(super) fn send_own(
        &self,
        table: &Table,
        peer: &Peer,
        state: &mut PeerState,
        packet: &[u8],
        sender: &mut Sender,
        now: Instant,
    ) -> bool {
        let (Some(identity), Some(endpoint)) = (table.identity_of(peer), state.endpoint()) else {
            self.drops.add(DropReason::NoEndpoint);
            return false;
        };
        let noise = state.noise(identity, peer.index, now);
        let sealed = noise.seal(packet, sender.space(), now);
        if let Some((length, _)) = sealed {
            peer.count_tx(length);
            sender.commit(length, endpoint);
        }
        self.drops.add_many(DropReason::NoAnswer, noise.take_lost());
        sealed.is_some_and(|(_, left)| left)
    }
}

/// A running tunnel. Dropping it ends its threads and removes the device.
pub struct Tunnel {
    shared: Arc<Shared>,
    interface: String,
    threads: Vec<JoinHandle<()>>,
    /// The progress of each data thread and of the timer thread.
    progress: Vec<Arc<Progress>>,
    /// One change of the peers at a time.
    changing: Mutex<()>,
}

impl Tunnel {
    /// Makes the device, down and without addresses, binds the sockets and starts the threads.
    ///
    /// # Errors
    /// Says what is missing or taken; nothing is left behind.
    pub fn start(config: TunnelConfig) -> Result<Self, TunnelError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = worker::workers(config.workers, cores);
        let queues = workers.len().div_ceil(2);
        let recheck = Recheck::new().map_err(|e| TunnelError::Io("make an event", e))?;
        let (sockets, device) = open(
            &config.interface,
            config.mtu,
            config.listen_port,
            queues,
            &recheck,
        )?;
        let gone = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| TunnelError::Io("make an event", e.into()))?;
        let pairs = (0..queues)
            .map(|queue| {
                let second = Worker {
                    duty: Duty::Out,
                    queue,
                };
                Pair::new(queue, workers.contains(&second))
            })
            .collect::<Result<_, _>>()
            .map_err(|e| TunnelError::Io("make an event", e.into()))?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|e| TunnelError::Io("make a random number", e.into()))?;
        let shared = Arc::new(Shared {
            table: ArcSwap::from_pointee(Table {
                identity: config.private_key.map(|key| Arc::new(StaticKeys::new(key))),
                previous: None,
                elders: Vec::new(),
                by_key: HashMap::new(),
                by_index: HashMap::new(),
                allowed: AllowedIps::new([]),
                here: None,
                own: Arc::default(),
            }),
            sockets: ArcSwap::from_pointee(sockets),
            local: ArcSwap::default(),
            device: ArcSwap::from_pointee(device),
            gone,
            mark: AtomicU32::new(0),
            recheck,
            drops: DropCounters::default(),
            limiter: Mutex::new(HandshakeLimiter::new(seed, Instant::now())),
            live: Arc::default(),
            members: AtomicU64::new(0),
            mtu: AtomicU16::new(config.mtu),
            started: Instant::now(),
            revived: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            pairs,
        });
        let mut tunnel = Self {
            shared,
            interface: config.interface,
            threads: Vec::new(),
            progress: Vec::new(),
            changing: Mutex::new(()),
        };
        for worker in workers {
            let name = match worker.duty {
                Duty::Both => format!("mesh-data-{}", worker.queue),
                Duty::Out => format!("mesh-out-{}", worker.queue),
            };
            let progress = tunnel.watched(&name);
            tunnel.spawn(name, move |shared| worker::run(shared, worker, &progress))?;
        }
        let progress = tunnel.watched("mesh-timer");
        tunnel.spawn("mesh-timer".to_owned(), move |shared| {
            timer::run(shared, &progress);
        })?;
        tunnel.spawn("mesh-routes".to_owned(), routes::run)?;
        Ok(tunnel)
    }

    /// Adds the progress of a thread that is about to start.
    fn watched(&mut self, name: &str) -> Arc<Progress> {
        let progress = Arc::new(Progress::new(name));
        self.progress.push(Arc::clone(&progress));
        progress
    }

    /// The progress of the data threads and of the timer thread. An idle thread sleeps until there is work, or until
    /// [`Tunnel::wake_threads`] wakes it.
    #[must_use]
    pub fn progress(&self) -> &[Arc<Progress>] {
        &self.progress
    }

    /// Wakes each thread of [`Tunnel::progress`], so that it runs its loop once even if it has nothing to do.
    pub fn wake_threads(&self) {
        self.wake();
        self.shared.live.wake();
    }

    fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<(), TunnelError> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                let _abort = AbortOnPanic;
                run(&shared);
            })
            .map_err(|e| TunnelError::Io("start a thread", e))?;
        self.threads.push(thread);
        Ok(())
    }

    /// The name that the device is made with.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The device's index. It is another one after [`Tunnel::reopen`], and after a move to another namespace and back.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.shared.device.load().index()
    }

    /// Becomes readable, and counts one, when the kernel removes the device: somebody deleted it, or the namespace it
    /// was moved to has ended. Reading resets it.
    #[must_use]
    pub fn gone_event(&self) -> BorrowedFd<'_> {
        self.shared.gone.as_fd()
    }

    /// Whether the kernel has removed the device.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.shared.device.load().is_gone()
    }

    /// Whether the device is in another network namespace than this thread.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.shared.device.load().is_elsewhere()
    }

    /// Makes a removed device again, down and without addresses. Peers and sessions stay as they are.
    ///
    /// # Errors
    /// Says what is missing or taken; the tunnel then stays without a device.
    pub fn reopen(&self) -> Result<(), TunnelError> {
        let _one = self.change();
        let queues = self.shared.device.load().queues.len();
        let mtu = self.shared.mtu.load(Ordering::Relaxed);
        let device = open_device(&self.interface, mtu, queues)?;
        self.shared.device.store(Arc::new(device));
        self.wake();
        Ok(())
    }

    /// The UDP port.
    #[must_use]
    pub fn listen_port(&self) -> u16 {
        self.shared.sockets.load()[0].port()
    }

    /// The firewall mark of outer packets; 0 for none.
    #[must_use]
    pub fn mark(&self) -> u32 {
        self.shared.mark.load(Ordering::Relaxed)
    }

    /// The private key.
    #[must_use]
    pub fn private_key(&self) -> Option<StaticSecret> {
        self.shared
            .table
            .load()
            .identity
            .as_ref()
            .map(|identity| identity.secret().clone())
    }

    /// Octets of a packet in the tunnel at most.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TunnelError> {
        self.shared.device.load().queues[0]
            .set_mtu(mtu)
            .map_err(|e| TunnelError::Io("set the MTU", e))?;
        self.shared.mtu.store(mtu, Ordering::Relaxed);
        Ok(())
    }

    /// Moves to another UDP port; 0 for any.
    ///
    /// # Errors
    /// It is taken; the old one is then still in use.
    pub fn set_listen_port(&self, port: u16) -> Result<(), TunnelError> {
        if port != 0 && port == self.listen_port() {
            return Ok(());
        }
        let queues = self.shared.pairs.len();
        let sockets = bind(port, self.mark(), queues, &self.shared.recheck)?;
        self.shared.sockets.store(Arc::new(sockets));
        self.wake();
        Ok(())
    }

    /// Marks outer packets, so that the host's routing rules can tell them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mark(&self, mark: u32) -> Result<(), TunnelError> {
        for sockets in self.shared.sockets.load().iter() {
            sockets
                .set_mark(mark)
                .map_err(|e| TunnelError::Io("mark the sockets", e))?;
        }
        self.shared.mark.store(mark, Ordering::Relaxed);
        Ok(())
    }

    /// Changes the node's key; all sessions end.
    pub fn set_private_key(&self, key: Option<StaticSecret>) {
        let _one = self.change();
        let old = self.shared.table.load_full();
        for peer in old.by_key.values() {
            let lost = peer.lock().forget();
            self.shared.drops.add_many(DropReason::NoAnswer, lost);
        }
        let identity = key.map(|key| Arc::new(StaticKeys::new(key)));
        self.shared.table.store(Arc::new(Table {
            identity,
            previous: None,
            elders: Vec::new(),
            ..(*old).clone()
        }));
        // A session made between the two steps has the old key.
        for peer in old.by_key.values() {
            let lost = peer.lock().forget();
            self.shared.drops.add_many(DropReason::NoAnswer, lost);
        }
    }

    /// The addresses at which this node answers probes.
    pub fn set_local_addresses(&self, addresses: Vec<IpAddr>) {
        self.shared.local.store(Arc::new(addresses));
    }

    /// The addresses that are answered inside the device from now on. Packets from peers never reach them.
    pub fn set_local_service(&self, here: Option<LocalService>) {
        let _one = self.change();
        let old = self.shared.table.load_full();
        self.shared.table.store(Arc::new(Table {
            here: here.map(Arc::new),
            ..(*old).clone()
        }));
    }

    /// The networks of this node: peers reach nothing else through it from now on, whatever the host would forward. An
    /// empty list lets them send anywhere.
    pub fn set_own_networks(&self, networks: &[IpNet]) {
        let _one = self.change();
        let old = self.shared.table.load_full();
        self.shared.table.store(Arc::new(Table {
            own: networks.into(),
            ..(*old).clone()
        }));
    }

    /// Puts packets into the device from elsewhere.
    #[must_use]
    pub fn injector(&self) -> Injector {
        Injector(Arc::downgrade(&self.shared))
    }

    /// Makes `peers` the peers. Those that stay keep their sessions, and their endpoint unless another one is
    /// configured than before.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) {
        let one = self.change();
        let old = self.shared.table.load_full();
        let mut by_key = HashMap::with_capacity(peers.len());
        let mut by_index = HashMap::with_capacity(peers.len());
        let mut prefixes = Vec::new();
        for config in peers {
            let peer = match old.by_key.get(&config.public_key) {
                Some(peer) => {
                    let mut state = peer.lock();
                    if config.endpoint != state.config.endpoint && config.endpoint.is_some() {
                        state.set_endpoint(config.endpoint.map(Endpoint::from));
                    }
                    let before = &state.config;
                    if config.preshared_key != before.preshared_key
                        || config.persistent_keepalive != before.persistent_keepalive
                    {
                        let lost = state.forget();
                        self.shared.drops.add_many(DropReason::NoAnswer, lost);
                    }
                    state.config = config.clone();
                    drop(state);
                    Arc::clone(peer)
                }
                None => {
                    let index =
                        free_index(|i| by_index.contains_key(&i) || old.by_index.contains_key(&i));
                    Arc::new(Peer::new(
                        config.clone(),
                        index,
                        self.shared.members.fetch_add(1, Ordering::Relaxed),
                        Arc::clone(&self.shared.live),
                    ))
                }
            };
            prefixes.extend(
                config
                    .allowed_ips
                    .iter()
                    .map(|net| (*net, Arc::clone(&peer))),
            );
            by_index.insert(peer.index, Arc::clone(&peer));
            by_key.insert(peer.public_key, peer);
        }
        self.store(Table {
            by_key,
            by_index,
            allowed: AllowedIps::new(prefixes),
            ..(*old).clone()
        });
        drop(one);
        self.keep_alive();
    }

    /// The table as it is.
    pub(super) fn table(&self) -> Arc<Table> {
        self.shared.table.load_full()
    }

    /// Changes the table. `fresh` makes the heir of a peer, with another key.
    pub(super) fn change_table(
        &self,
        change: impl FnOnce(&Table, &dyn Fn(&Peer, [u8; 32]) -> Arc<Peer>) -> Table,
    ) {
        let _one = self.change();
        let old = self.table();
        let made = std::cell::RefCell::new(std::collections::HashSet::new());
        let fresh = |peer: &Peer, key: [u8; 32]| {
            let taken = |i| old.by_index.contains_key(&i) || made.borrow().contains(&i);
            let index = free_index(taken);
            made.borrow_mut().insert(index);
            let before = peer.lock();
            let config = PeerConfig {
                public_key: key,
                ..before.config.clone()
            };
            let mut heir = Peer::new(config, index, peer.member, Arc::clone(&self.shared.live));
            heir.probes = Arc::clone(&peer.probes);
            let mut state = heir.lock();
            state.set_endpoint(before.endpoint());
            state.path_mtu = before.path_mtu;
            drop(state);
            Arc::new(heir)
        };
        self.store(change(&old, &fresh));
        // The heirs have sources whose routes nobody has asked for.
        self.shared.recheck.wake();
    }

    /// Puts a table in force once its peers are indexed and each prefix is with who carries it.
    fn store(&self, mut table: Table) {
        let members: HashMap<u64, Arc<Peer>> = table
            .by_key
            .values()
            .map(|peer| (peer.member, Arc::clone(peer)))
            .collect();
        table
            .elders
            .retain(|elder| members.contains_key(&elder.peer.member));
        let elders = table.elders.iter().map(|elder| &elder.peer);
        table.by_index = table
            .by_key
            .values()
            .chain(elders)
            .map(|peer| (peer.index, Arc::clone(peer)))
            .collect();
        let old = self.shared.table.load();
        for Elder { peer, .. } in &old.elders {
            // What it carried was the member's, whose counts only grow.
            if !table.by_index.contains_key(&peer.index)
                && let Some(heir) = members.get(&peer.member)
            {
                heir.count_rx(peer.rx_bytes.load(Ordering::Relaxed) as usize);
                heir.count_tx(peer.tx_bytes.load(Ordering::Relaxed) as usize);
            }
        }
        table.allowed = table.allowed.map(|owner| {
            let heir = members.get(&owner.member).unwrap_or(owner);
            Arc::clone(table.carrier(heir))
        });
        self.shared.table.store(Arc::new(table));
    }

    /// Peers that must be heard regularly have a session from the start.
    pub(super) fn keep_alive(&self) {
        let table = self.shared.table.load();
        let mut sender = Sender::new_small();
        let now = Instant::now();
        for peer in table.by_key.values() {
            let mut state = peer.lock();
            if state.noise.is_none() && state.config.persistent_keepalive.is_some() {
                self.shared
                    .initiate(&table, peer, &mut state, &mut sender, now);
            }
            drop(state);
            sender.flush_if_full(&self.shared.sockets.load()[0], &self.shared.drops);
        }
        sender.flush(&self.shared.sockets.load()[0], &self.shared.drops);
    }

    /// Sends to `endpoint` from now on, from the address that the kernel chooses.
    pub fn set_endpoint(&self, peer: &[u8; 32], endpoint: SocketAddr) {
        let table = self.shared.table.load();
        if let Some(peer) = table.by_key.get(peer) {
            let endpoint = Some(Endpoint::from(endpoint));
            peer.lock().set_endpoint(endpoint);
            for elder in table.elders_of(peer) {
                elder.lock().set_endpoint(endpoint);
            }
        }
    }

    /// Begins a handshake now.
    pub fn initiate(&self, peer: &[u8; 32]) {
        let shared = &self.shared;
        self.with_peer(peer, |table, peer, state, sender, now| {
            shared.initiate(table, peer, state, sender, now)
        });
    }

    /// Sends a probe from `source`, an address of this node, to `destination`, one of the peer.
    pub fn probe(&self, peer: &[u8; 32], source: IpAddr, destination: IpAddr) {
        let shared = &self.shared;
        self.with_peer(peer, |table, peer, state, sender, now| {
            let mut packet = [0; probe::MAX_PROBE];
            if let Ok(nonce) = getrandom::u64()
                && let Some(length) = probe::write(source, destination, nonce, None, &mut packet)
            {
                let left = shared.send_own(table, peer, state, &packet[..length], sender, now);
                peer.probes().handle_probe(nonce, now, left);
            }
        });
    }

    /// Sends probes of these sizes, in octets of the packet in the tunnel, in datagrams that are not split on the way.
    /// Without a session nothing is sent: what waits for one would not be sent so.
    pub fn probe_sizes(&self, peer: &[u8; 32], source: IpAddr, destination: IpAddr, sizes: &[u16]) {
        let shared = &self.shared;
        let table = shared.table.load();
        let Some(peer) = table.by_key.get(peer).map(|peer| table.carrier(peer)) else {
            return;
        };
        let (mut packet, mut sender) = (vec![0; usize::from(u16::MAX)], Sender::new());
        let now = Instant::now();
        for size in sizes {
            let mut state = peer.lock();
            let session = state.noise.as_ref().and_then(|noise| noise.session_age());
            if session.is_some()
                && let Ok(nonce) = getrandom::u64()
                && let Some(length) =
                    probe::write(source, destination, nonce, Some(*size), &mut packet)
            {
                peer.probes().handle_sized_probe(nonce, now, *size);
                shared.send_own(
                    &table,
                    peer,
                    &mut state,
                    &packet[..length],
                    &mut sender,
                    now,
                );
            }
            drop(state);
            sender.flush_whole(&shared.sockets.load()[0], &shared.drops);
        }
    }

    /// The largest size of [`Tunnel::probe_sizes`] that was answered since this was last asked.
    #[must_use]
    pub fn take_answered_size(&self, peer: &[u8; 32]) -> Option<u16> {
        let table = self.shared.table.load();
        table.by_key.get(peer)?.probes().take_answered_size()
    }

    /// Refuses packets to `peer` of more than `octets` from now on; what the device's MTU is holds besides.
    pub fn set_path_mtu(&self, peer: &[u8; 32], octets: u16) {
        let table = self.shared.table.load();
        if let Some(peer) = table.by_key.get(peer) {
            peer.lock().path_mtu = octets;
            for elder in table.elders_of(peer) {
                elder.lock().path_mtu = octets;
            }
        }
    }

    /// As [`Tunnel::probe`], and waits for the answer elsewhere.
    #[must_use]
    pub fn ping(&self, peer: [u8; 32], source: IpAddr, destination: IpAddr) -> Waiting {
        let since = Instant::now();
        self.probe(&peer, source, destination);
        Waiting {
            shared: Arc::clone(&self.shared),
            peer,
            since,
        }
    }

    fn with_peer(
        &self,
        peer: &[u8; 32],
        act: impl FnOnce(&Table, &Peer, &mut PeerState, &mut Sender, Instant),
    ) {
        let table = self.shared.table.load();
        if let Some(peer) = table.by_key.get(peer).map(|peer| table.carrier(peer)) {
            let mut sender = Sender::new_small();
            act(&table, peer, &mut peer.lock(), &mut sender, Instant::now());
            sender.flush(&self.shared.sockets.load()[0], &self.shared.drops);
        }
    }

    /// All peers as they are.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let table = self.shared.table.load();
        let peers = table.by_key.values();
        peers.map(|peer| status_of(&table, peer)).collect()
    }

    /// One peer as it is.
    #[must_use]
    pub fn peer(&self, key: &[u8; 32]) -> Option<PeerStatus> {
        let table = self.shared.table.load();
        let peer = table.by_key.get(key)?;
        Some(status_of(&table, peer))
    }

    /// What was dropped so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.drops.read()
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wake(&self) {
        for pair in &self.shared.pairs {
            pair.wake();
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wake();
        self.shared.recheck.wake();
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel")
            .field("interface", &self.interface)
            .field("listen_port", &self.listen_port())
            .finish_non_exhaustive()
    }
}

/// Hands packets to the kernel as if they had come out of the tunnel. Does nothing once the tunnel is gone.
#[derive(Clone)]
pub struct Injector(Weak<Shared>);

impl Injector {
    /// A whole packet with its checksums.
    pub fn packet(&self, packet: &[u8]) {
        if let Some(shared) = self.0.upgrade() {
            shared.inject(packet);
        }
    }

    /// A UDP datagram. One that is longer than a packet, or between families, is not sent.
    pub fn datagram(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
        let mut packet = Vec::with_capacity(48 + payload.len());
        if write_datagram(source, destination, payload, &mut packet).is_some() {
            self.packet(&packet);
        }
    }
}

impl std::fmt::Debug for Injector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Injector").finish_non_exhaustive()
    }
}

/// An answer that is on its way.
pub struct Waiting {
    shared: Arc<Shared>,
    peer: [u8; 32],
    since: Instant,
}

impl Waiting {
    /// Waits for at most `limit`; gives the round trip, if the answer came, and where the peer is.
    #[must_use]
    pub fn wait(self, limit: Duration) -> (Option<Duration>, Option<SocketAddr>) {
        loop {
            let table = self.shared.table.load();
            let Some(heir) = table.by_key.get(&self.peer) else {
                return (None, None);
            };
            let peer = table.carrier(heir);
            let endpoint = peer.lock().endpoint().map(|endpoint| endpoint.address);
            let answered = peer.probes().answered();
            if let Some(trip) = answered.filter(|trip| trip.at >= self.since) {
                return (Some(trip.took), endpoint);
            }
            if self.since.elapsed() >= limit || self.shared.stopping() {
                return (None, endpoint);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}

/// A thread of the data plane that panics takes the process with it: systemd starts a whole one.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// A peer's status, with what its elders add.
fn status_of(table: &Table, peer: &Peer) -> PeerStatus {
    let elders = table.elders_of(peer).map(|elder| status(elder));
    elders.fold(status(peer), |status, elder| PeerStatus {
        last_handshake: status.last_handshake.max(elder.last_handshake),
        last_receive: status.last_receive.max(elder.last_receive),
        last_send: status.last_send.max(elder.last_send),
        rx_bytes: status.rx_bytes + elder.rx_bytes,
        tx_bytes: status.tx_bytes + elder.tx_bytes,
        ..status
    })
}

fn status(peer: &Peer) -> PeerStatus {
    let state = peer.lock();
    let session = state.noise.as_ref().and_then(|noise| noise.session_age());
    PeerStatus {
        config: state.config.clone(),
        endpoint: state.endpoint().map(|endpoint| endpoint.address),
        last_handshake: session
            .and_then(|age| SystemTime::now().checked_sub(age))
            .or(state.last_handshake),
        last_receive: state.last_receive,
        last_send: state.last_send,
        rx_bytes: peer.rx_bytes.load(Ordering::Relaxed),
        tx_bytes: peer.tx_bytes.load(Ordering::Relaxed),
        round_trip: peer.probes().sample(),
        path_mtu: state.path_mtu,
    }
}

/// Tries whether a tunnel could be started, and leaves nothing behind.
///
/// # Errors
/// What [`Tunnel::start`] would say.
pub fn try_open(interface: &str, listen_port: u16) -> Result<(), TunnelError> {
    let recheck = Recheck::new().map_err(|e| TunnelError::Io("make an event", e))?;
    open(interface, LEAST_MTU, listen_port, 1, &recheck).map(drop)
}

fn open(
    interface: &str,
    mtu: u16,
    listen_port: u16,
    queues: usize,
    recheck: &Arc<Recheck>,
) -> Result<(Vec<Sockets>, Device), TunnelError> {
    check_name(interface)?;
    let sockets = bind(listen_port, 0, queues, recheck)?;
    Ok((sockets, open_device(interface, mtu, queues)?))
}

fn open_device(interface: &str, mtu: u16, queues: usize) -> Result<Device, TunnelError> {
    check_name(interface)?;
    Device::open(interface, mtu, queues).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TunnelError::Permission,
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunnelError::NoTun,
        Some(libc::EBUSY) => TunnelError::InterfaceTaken(interface.to_owned()),
        _ => TunnelError::Io("make the network device", error),
    })
}

fn bind(
    port: u16,
    mark: u32,
    count: usize,
    recheck: &Arc<Recheck>,
) -> Result<Vec<Sockets>, TunnelError> {
    Sockets::bind_group(port, mark, count, recheck).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => TunnelError::PortTaken(port),
        io::ErrorKind::PermissionDenied => TunnelError::Permission,
        _ => TunnelError::Io("bind the UDP port", error),
    })
}

fn check_name(name: &str) -> Result<(), TunnelError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 15 || !name.chars().all(plain) || name == "." || name == ".."
    {
        return Err(TunnelError::Name(name.chars().take(40).collect()));
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err(TunnelError::NoTun);
    }
    if nix::net::if_::if_nametoindex(name).is_ok() {
        return Err(TunnelError::InterfaceTaken(name.to_owned()));
    }
    Ok(())
}

/// A random 24-bit number that is not `taken`.
fn free_index(taken: impl Fn(u32) -> bool) -> u32 {
    loop {
        let index = getrandom::u32().unwrap_or_else(|_| rand_from_clock()) & 0x00ff_ffff;
        if !taken(index) {
            return index;
        }
    }
}

/// Only uniqueness is needed where the system has no randomness to give.
fn rand_from_clock() -> u32 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos())
}

//! A running tunnel: how it starts and stops, and its settings.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;

use super::config::{PeerConfig, TunnelConfig, TunnelError};
use super::drops::{Counters, DropCounters};
use super::filter::Filter;
use super::injector::Injector;
use super::keys::StaticKeys;
use super::limiter::{HandshakeLimiter, OpeningLimit, RevivalLimit};
use super::live::Live;
use super::local_service::LocalService;
use super::peers::Peers;
use super::probing::Probing;
use super::relaying::Relaying;
use super::rotation::Keys;
use super::routes;
use super::shared::{Limits, Shared};
use super::sockets::Sockets;
use super::status::{PeerStatus, status_of};
use super::steering::Steering;
use super::streams::Streams;
use super::table::Table;
use super::timer;
use super::tun::{self, Device};
use super::wakes::{Recheck, Wakes};
use super::worker::{self, Role, Worker, WorkerPair};
use crate::model::interface::check_interface;
use crate::os::watchdog::Progress;
use crate::os::{clock, random};

/// The least MTU of a link that carries IPv6 (RFC 8200 section 5).
const LEAST_MTU: u16 = 1280;

/// A running tunnel. Dropping it ends its threads and removes the device.
pub struct Tunnel {
    shared: Arc<Shared>,
    peers: Peers,
    interface: String,
    threads: Threads,
}

impl Tunnel {
    /// Makes the device, down and without addresses, binds the sockets and starts the threads.
    ///
    /// # Errors
    /// The device or the port cannot be had. Nothing is left behind.
    pub fn start(config: TunnelConfig) -> Result<Self, TunnelError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = worker::workers(config.workers, cores);
        let pairs = workers.len().div_ceil(2);
        let recheck = Recheck::new().map_err(|e| TunnelError::Io("make an event", e))?;
        let streams = Streams::new(pairs);
        let (sockets, device) = open(
            &config.interface,
            config.mtu,
            config.listen_port,
            pairs,
            (&recheck, &streams),
        )?;
        let wakes =
            Wakes::new(pairs, recheck, streams).map_err(|e| TunnelError::Io("make an event", e))?;
        let mut seeds = [[0; 32]; 2];
        for seed in &mut seeds {
            random::fill(seed).map_err(|e| TunnelError::Io("make a random number", e.into()))?;
        }
        let keys = config.private_key.map(|key| Arc::new(StaticKeys::new(key)));
        let now = Instant::now();
        let shared = Arc::new(Shared {
            table: ArcSwap::from_pointee(Table::new(keys)),
            sockets: ArcSwap::from_pointee(sockets),
            device: ArcSwap::from_pointee(device),
            local_addresses: ArcSwap::default(),
            wakes,
            live: Arc::<Live>::default(),
            mark: AtomicU32::new(0),
            mtu: AtomicU16::new(config.mtu),
            drops: DropCounters::default(),
            limits: Limits {
                handshakes: Mutex::new(HandshakeLimiter::new(seeds[0], now)),
                revivals: RevivalLimit::new(now),
                openings: Mutex::new(OpeningLimit::new(now)),
            },
            relaying: Relaying::new(seeds[1], now),
            stop: AtomicBool::new(false),
        });
        let mut tunnel = Self {
            peers: Peers::new(Arc::clone(&shared)),
            interface: config.interface,
            threads: Threads::default(),
            shared,
        };
        tunnel.threads.start(&tunnel.shared, &workers)?;
        Ok(tunnel)
    }

    /// The progress of the data threads and of the timer thread. An idle thread sleeps until there is work, or until
    /// [`Tunnel::wake_threads`] wakes it.
    #[must_use]
    pub fn progress(&self) -> &[Arc<Progress>] {
        &self.threads.progress
    }

    /// Wakes each thread of [`Tunnel::progress`], so that it runs its loop once even if it has nothing to do.
    pub fn wake_threads(&self) {
        self.shared.wakes.wake_workers();
        self.shared.live.wake();
    }

    /// The name that the device was made with.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The index of the device. It changes with [`Tunnel::reopen`], and with a move to another namespace and back.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.shared.device.load().index()
    }

    /// Becomes readable, and counts one, when the kernel removes the device: it was deleted, or the namespace to which it
    /// was moved has ended. Reading resets it.
    #[must_use]
    pub fn gone_event(&self) -> BorrowedFd<'_> {
        self.shared.wakes.device_removed.as_fd()
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
    /// The device cannot be made. The tunnel then stays without a device.
    pub fn reopen(&self) -> Result<(), TunnelError> {
        let _changing = self.peers.lock_changes();
        let pairs = self.shared.device.load().pairs.len();
        let mtu = self.shared.mtu.load(Ordering::Relaxed);
        let device = open_device(&self.interface, mtu, pairs)?;
        self.shared.device.store(Arc::new(device));
        self.shared.wakes.wake_workers();
        Ok(())
    }

    /// The UDP port.
    #[must_use]
    pub fn listen_port(&self) -> u16 {
        self.shared.sockets.load()[0].port()
    }

    /// Moves to another UDP port; 0 for any free one.
    ///
    /// # Errors
    /// The port cannot be had. The old one is then still in use.
    pub fn set_listen_port(&self, port: u16) -> Result<(), TunnelError> {
        if port != 0 && port == self.listen_port() {
            return Ok(());
        }
        let wakes = &self.shared.wakes;
        let beside = (&wakes.recheck, &wakes.streams);
        let sockets = bind(port, self.mark(), wakes.pairs.len(), beside)?;
        self.shared.sockets.store(Arc::new(sockets));
        wakes.wake_workers();
        Ok(())
    }

    /// The firewall mark of outer packets; 0 for none.
    #[must_use]
    pub fn mark(&self) -> u32 {
        self.shared.mark.load(Ordering::Relaxed)
    }

    /// Marks outer packets, so that the host's routing rules can match them.
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

    /// Sets the addresses at which this node answers probes.
    pub fn set_local_addresses(&self, addresses: Vec<IpAddr>) {
        self.shared.local_addresses.store(Arc::new(addresses));
    }

    /// Sets the addresses that are served inside the device. Packets from peers never reach them.
    pub fn set_local_service(&self, service: Option<LocalService>) {
        let service = service.map(Arc::new);
        self.peers
            .change_settings(|table| table.local_service = service);
    }

    /// The settings by which packets pass.
    #[must_use]
    pub fn filter(&self) -> Filter<'_> {
        Filter(&self.peers)
    }

    /// Replaces all peers. Those that stay keep their sessions, and their endpoint unless another one is configured than
    /// before.
    pub fn set_peers(&self, peers: Vec<PeerConfig>) {
        self.peers.set(peers, Vec::new());
    }

    /// The status of all peers.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let (table, wall) = (self.shared.table.load(), clock::wall());
        let peers = table.by_key.values();
        peers.map(|peer| status_of(&table, peer, wall)).collect()
    }

    /// The status of the peer with this public key.
    #[must_use]
    pub fn peer(&self, key: &[u8; 32]) -> Option<PeerStatus> {
        let table = self.shared.table.load();
        let peer = table.by_key.get(key)?;
        Some(status_of(&table, peer, clock::wall()))
    }

    /// Sends to `endpoint` from now on, from the address that the kernel chooses.
    pub fn set_endpoint(&self, peer: &[u8; 32], endpoint: SocketAddr) {
        self.peers.set_endpoint(peer, endpoint);
    }

    /// The keys: this node's own and those of its peers.
    #[must_use]
    pub fn keys(&self) -> Keys<'_> {
        Keys(&self.peers)
    }

    /// Probes and handshakes.
    #[must_use]
    pub fn probing(&self) -> Probing<'_> {
        Probing(&self.shared)
    }

    /// The paths of the peers.
    #[must_use]
    pub fn steering(&self) -> Steering<'_> {
        Steering(&self.peers)
    }

    /// Passes packets to the kernel as if they came from a peer.
    #[must_use]
    pub fn injector(&self) -> Injector {
        Injector(Arc::downgrade(&self.shared))
    }

    /// The number of drops so far, for each reason.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.drops.read()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wakes.wake_workers();
        self.shared.wakes.recheck.wake();
        self.threads.join();
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

/// The threads of a tunnel.
#[derive(Default)]
struct Threads {
    handles: Vec<JoinHandle<()>>,
    /// The progress of each data thread and of the timer thread.
    progress: Vec<Arc<Progress>>,
}

impl Threads {
    /// Starts the data threads, the timer thread and the routes thread.
    fn start(&mut self, shared: &Arc<Shared>, workers: &[Worker]) -> Result<(), TunnelError> {
        let has_second = |pair| {
            workers
                .iter()
                .any(|w| w.role == Role::Out && w.pair == pair)
        };
        let pairs: Vec<Arc<WorkerPair>> = (0..shared.wakes.pairs.len())
            .map(|pair| Arc::new(WorkerPair::new(pair, has_second(pair))))
            .collect();
        for worker in workers.iter().copied() {
            let name = match worker.role {
                Role::Both => format!("mesh-data-{}", worker.pair),
                Role::Out => format!("mesh-out-{}", worker.pair),
            };
            let Some(pair) = pairs.get(worker.pair).map(Arc::clone) else {
                continue;
            };
            let progress = self.watch(&name);
            self.spawn(name, shared, move |shared| {
                worker::run(shared, &pair, worker, &progress);
            })?;
        }
        let progress = self.watch("mesh-timer");
        self.spawn("mesh-timer".to_owned(), shared, move |shared| {
            timer::run(shared, &progress);
        })?;
        self.spawn("mesh-routes".to_owned(), shared, routes::run)
    }

    /// Adds the progress of a thread that is about to start.
    fn watch(&mut self, name: &str) -> Arc<Progress> {
        let progress = Arc::new(Progress::new(name));
        self.progress.push(Arc::clone(&progress));
        progress
    }

    fn spawn(
        &mut self,
        name: String,
        shared: &Arc<Shared>,
        run: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<(), TunnelError> {
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                let _abort = AbortOnPanic;
                run(&shared);
            })
            .map_err(|e| TunnelError::Io("start a thread", e))?;
        self.handles.push(thread);
        Ok(())
    }

    /// Waits until all threads have ended.
    fn join(&mut self) {
        for thread in self.handles.drain(..) {
            thread.thread().unpark();
            // A thread that panicked has ended the process.
            let _ = thread.join();
        }
    }
}

/// Ends the process if a thread of the data plane panics: the service manager then starts a whole one.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// Tries whether a tunnel could be started, and leaves nothing behind.
///
/// # Errors
/// The error that [`Tunnel::start`] would return.
pub fn try_open(interface: &str, listen_port: u16) -> Result<(), TunnelError> {
    let recheck = Recheck::new().map_err(|e| TunnelError::Io("make an event", e))?;
    let streams = Streams::new(1);
    open(interface, LEAST_MTU, listen_port, 1, (&recheck, &streams)).map(drop)
}

fn open(
    interface: &str,
    mtu: u16,
    listen_port: u16,
    pairs: usize,
    beside: (&Arc<Recheck>, &Arc<Streams>),
) -> Result<(Vec<Sockets>, Device), TunnelError> {
    check_name(interface)?;
    let sockets = bind(listen_port, 0, pairs, beside)?;
    Ok((sockets, open_device(interface, mtu, pairs)?))
}

fn open_device(interface: &str, mtu: u16, pairs: usize) -> Result<Device, TunnelError> {
    check_name(interface)?;
    tun::check()?;
    Device::open(interface, mtu, pairs).map_err(|error| match error.raw_os_error() {
        // The device could be opened, so the capability to make an interface is missing.
        Some(libc::EPERM | libc::EACCES) => TunnelError::Permission,
        Some(libc::EBUSY) => TunnelError::InterfaceTaken(interface.to_owned()),
        _ => TunnelError::Io("make the network device", error),
    })
}

fn bind(
    port: u16,
    mark: u32,
    count: usize,
    (recheck, streams): (&Arc<Recheck>, &Arc<Streams>),
) -> Result<Vec<Sockets>, TunnelError> {
    Sockets::bind_group(port, mark, count, recheck, streams).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => TunnelError::PortTaken(port),
        io::ErrorKind::PermissionDenied => TunnelError::PortDenied(port),
        _ => TunnelError::Io("bind the UDP port", error),
    })
}

/// Checks that an interface of this name can be made.
fn check_name(name: &str) -> Result<(), TunnelError> {
    check_interface(name)?;
    if nix::net::if_::if_nametoindex(name).is_ok() {
        return Err(TunnelError::InterfaceTaken(name.to_owned()));
    }
    Ok(())
}

//! `meshd wireguard INTERFACE`: a device of its own, configured over its socket until it is told to stop.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use x25519_dalek::StaticSecret;

use super::super::config::{PeerConfig, TunnelConfig, TunnelError};
use super::super::running::Tunnel;
use super::request::{MAX_REQUEST, PeerChange, Request, RequestError, SetRequest, print};

/// Where `wg` looks for sockets.
const DIRECTORY: &str = "/var/run/wireguard";
/// Connections at once at most.
const MAX_CONNECTIONS: usize = 16;
/// How long a socket that another process serves is waited for: that of a deleted interface is about to end.
const TAKEN: Duration = Duration::from_secs(2);
/// How often the file of the socket is looked for, in milliseconds.
const LOOK_MS: i32 = 1000;
/// How long a caller may take for a request.
const PATIENCE: Duration = Duration::from_secs(5);
/// The device's MTU until somebody sets another: what fits through 1,500 octets over IPv6.
const DEFAULT_MTU: u16 = 1420;

/// Why the device ended.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// It could not be made.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// Another process serves it.
    #[error("{0} is served by another process; stop it first")]
    InUse(PathBuf),
    /// The system refuses.
    #[error("cannot serve {0}: {1}")]
    Socket(PathBuf, io::Error),
}

/// Runs the device until SIGTERM, SIGINT, or until its socket or interface is deleted; with so many data `workers`. The
/// interface may be renamed and moved to another network namespace; the UDP sockets stay in this one.
///
/// # Errors
/// The device or its socket cannot be made.
pub fn run(interface: &str, workers: Option<u16>) -> Result<(), StandaloneError> {
    // Before any thread starts, so that all of them leave these signals to this one.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    let path = Path::new(DIRECTORY).join(format!("{interface}.sock"));
    let fault = |error: io::Error| StandaloneError::Socket(path.clone(), error);
    signals.thread_block().map_err(|e| fault(e.into()))?;
    let stop = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|e| fault(e.into()))?;

    let config = TunnelConfig {
        interface: interface.to_owned(),
        mtu: DEFAULT_MTU,
        listen_port: 0,
        private_key: None,
        workers: workers.map(usize::from),
    };
    let tunnel = Arc::new(Tunnel::start(config)?);
    let listener = listen(&path)?;
    tracing::info!(interface, socket = %path.display(), "ready for `wg set`");
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let descriptors = [
            stop.as_raw_fd(),
            tunnel.gone_event().as_raw_fd(),
            listener.as_raw_fd(),
        ];
        let mut polled = descriptors.map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: `polled` is an array of so many valid entries.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, LOOK_MS) };
        if polled[0].revents != 0 {
            break;
        }
        if tunnel.is_gone() {
            tracing::info!(interface, "the interface was deleted; this process ends");
            break;
        }
        if !path.exists() {
            tracing::info!(interface, socket = %path.display(), "the socket was deleted; this process ends");
            break;
        }
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        if connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (tunnel, connections) = (Arc::clone(&tunnel), Arc::clone(&connections));
        std::thread::spawn(move || {
            let _ = converse(stream, &tunnel);
            connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
    // In this order: whoever starts an interface of the same name waits until the file is gone, and may then have the
    // port. After that the file is somebody else's.
    drop(tunnel);
    let _ = std::fs::remove_file(&path);
    drop(listener);
    Ok(())
}

/// Binds the socket under its own name, by which tools look for it in the kernel's list.
fn listen(path: &Path) -> Result<UnixListener, StandaloneError> {
    let fault = |error: io::Error| StandaloneError::Socket(path.to_owned(), error);
    let end = Instant::now() + TAKEN;
    while UnixStream::connect(path).is_ok() {
        if Instant::now() > end {
            return Err(StandaloneError::InUse(path.to_owned()));
        }
        std::thread::sleep(TAKEN / 200);
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(DIRECTORY)
        .map_err(fault)?;
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(fault)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fault)?;
    listener.set_nonblocking(true).map_err(fault)?;
    Ok(listener)
}

/// Answers requests until the caller hangs up.
fn converse(mut stream: UnixStream, tunnel: &Tunnel) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut pending = Vec::new();
    // Octets in which no end of a request was found.
    let mut searched: usize = 0;
    let mut chunk = [0; 16 * 1024];
    loop {
        let rest = pending.get(searched..).unwrap_or_default();
        let end = rest.windows(2).position(|w| w == b"\n\n");
        let Some(end) = end.map(|at| searched + at) else {
            searched = pending.len().saturating_sub(1);
            let read = stream.read(&mut chunk)?;
            if read == 0 || pending.len() + read > MAX_REQUEST {
                return Ok(());
            }
            pending.extend_from_slice(&chunk[..read]);
            continue;
        };
        let request: Vec<u8> = pending.drain(..end + 2).collect();
        searched = 0;
        let answer = std::str::from_utf8(&request)
            .map_err(|_| RequestError {
                errno: libc::EINVAL,
            })
            .and_then(Request::parse);
        let result = answer.and_then(|request| carry_out(request, tunnel));
        let (text, errno) = match result {
            Ok(text) => (text, 0),
            Err(error) => (String::new().into(), error.errno),
        };
        stream.write_all(text.as_bytes())?;
        stream.write_all(format!("errno={errno}\n\n").as_bytes())?;
    }
}

fn carry_out(
    request: Request,
    tunnel: &Tunnel,
) -> Result<zeroize::Zeroizing<String>, RequestError> {
    match request {
        Request::Get => {
            let key = tunnel
                .keys()
                .private_key()
                .map(|key| zeroize::Zeroizing::new(key.to_bytes()));
            Ok(print(
                key.as_deref(),
                tunnel.listen_port(),
                tunnel.mark(),
                &tunnel.peers(),
            ))
        }
        Request::Set(set) => change(*set, tunnel).map(|()| String::new().into()),
    }
}

fn change(set: SetRequest, tunnel: &Tunnel) -> Result<(), RequestError> {
    let errno = |error: TunnelError| RequestError {
        errno: match error {
            TunnelError::PortTaken(_) => libc::EADDRINUSE,
            TunnelError::Permission => libc::EPERM,
            TunnelError::Io(_, error) => error.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EIO,
        },
    };
    if let Some(key) = set.private_key {
        tunnel
            .keys()
            .set_private_key((key != [0; 32]).then(|| StaticSecret::from(key)));
    }
    if let Some(mark) = set.fwmark {
        tunnel.set_mark(mark).map_err(errno)?;
    }
    if let Some(port) = set.listen_port {
        tunnel.set_listen_port(port).map_err(errno)?;
    }
    if !set.replace_peers && set.peers.is_empty() {
        return Ok(());
    }
    let peers = if set.replace_peers {
        Vec::new()
    } else {
        tunnel.peers().into_iter().map(|peer| peer.config).collect()
    };
    let mut changed = Changed::new(peers);
    for change in &set.peers {
        changed.apply(change);
    }
    tunnel.set_peers(changed.into_peers());
    // An endpoint that is given counts, also if it is the one given before and the peer has moved since.
    for change in &set.peers {
        if let Some(endpoint) = change.endpoint {
            tunnel.set_endpoint(&change.public_key, endpoint);
        }
    }
    Ok(())
}

/// Peers as a request changes them, one after the other. A request may name more than 100,000 allowed IPs, so each is
/// looked up.
struct Changed {
    /// In their order; a removed one leaves its place empty.
    peers: Vec<Option<PeerConfig>>,
    places: HashMap<[u8; 32], usize>,
    owners: HashMap<IpNet, usize>,
}

impl Changed {
    fn new(peers: Vec<PeerConfig>) -> Self {
        let mut changed = Self {
            peers: Vec::with_capacity(peers.len()),
            places: HashMap::with_capacity(peers.len()),
            owners: HashMap::new(),
        };
        for (place, peer) in peers.into_iter().enumerate() {
            changed.places.insert(peer.public_key, place);
            let nets = peer.allowed_ips.iter().map(|net| (*net, place));
            changed.owners.extend(nets);
            changed.peers.push(Some(peer));
        }
        changed
    }

    fn into_peers(self) -> Vec<PeerConfig> {
        self.peers.into_iter().flatten().collect()
    }

    fn apply(&mut self, change: &PeerChange) {
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

    /// Adds allowed IPs to the peer at `place` and takes others away. One belongs to one peer: the last to claim it.
    fn change_allowed(&mut self, place: usize, nets: &[(IpNet, bool)]) {
        let mut gained = Vec::new();
        // Those who lose some look through their list once.
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
        let mut changed = Changed::new(std::mem::take(peers));
        changed.apply(change);
        *peers = changed.into_peers();
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
    fn an_allowed_ip_is_there_once_however_often_a_request_names_it() {
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

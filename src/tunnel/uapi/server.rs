//! `meshd wireguard INTERFACE`: a device of its own, configured over its socket until it is told to stop.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use x25519_dalek::StaticSecret;

use super::super::device::{PeerConfig, Tunnel, TunnelConfig, TunnelError};
use super::request::{MAX_REQUEST, PeerChange, Request, RequestError, SetRequest, print};

/// Where `wg` looks for sockets.
const DIRECTORY: &str = "/var/run/wireguard";
/// Connections at once at most.
const MAX_CONNECTIONS: usize = 16;
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

/// Runs the device until SIGTERM, SIGINT, or until its socket or interface is deleted; with so many data `workers`.
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
        let mut polled = [stop.as_raw_fd(), listener.as_raw_fd()].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: two valid entries.
        unsafe { libc::poll(polled.as_mut_ptr(), 2, 1000) };
        let gone = !path.exists() || nix::net::if_::if_nametoindex(interface).is_err();
        if polled[0].revents != 0 || gone {
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
    let _ = std::fs::remove_file(&path);
    Ok(())
}

/// Binds the socket under its own name, by which tools look for it in the kernel's list.
fn listen(path: &Path) -> Result<UnixListener, StandaloneError> {
    let fault = |error: io::Error| StandaloneError::Socket(path.to_owned(), error);
    if UnixStream::connect(path).is_ok() {
        return Err(StandaloneError::InUse(path.to_owned()));
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
    let mut chunk = [0; 16 * 1024];
    loop {
        let end = pending.windows(2).position(|w| w == b"\n\n");
        let Some(end) = end else {
            let read = stream.read(&mut chunk)?;
            if read == 0 || pending.len() + read > MAX_REQUEST {
                return Ok(());
            }
            pending.extend_from_slice(&chunk[..read]);
            continue;
        };
        let request: Vec<u8> = pending.drain(..end + 2).collect();
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
        tunnel.set_private_key((key != [0; 32]).then(|| StaticSecret::from(key)));
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
    let mut peers: Vec<PeerConfig> = if set.replace_peers {
        Vec::new()
    } else {
        tunnel.peers().into_iter().map(|peer| peer.config).collect()
    };
    for change in &set.peers {
        apply(&mut peers, change);
    }
    tunnel.set_peers(peers);
    // An endpoint that is given counts, also if it is the one given before and the peer has moved since.
    for change in &set.peers {
        if let Some(endpoint) = change.endpoint {
            tunnel.set_endpoint(&change.public_key, endpoint);
        }
    }
    Ok(())
}

fn apply(peers: &mut Vec<PeerConfig>, change: &PeerChange) {
    if change.remove {
        peers.retain(|peer| peer.public_key != change.public_key);
        return;
    }
    let at = match peers
        .iter()
        .position(|peer| peer.public_key == change.public_key)
    {
        Some(at) => at,
        None if change.update_only => return,
        None => {
            peers.push(PeerConfig {
                public_key: change.public_key,
                preshared_key: None,
                endpoint: None,
                allowed_ips: Vec::new(),
                persistent_keepalive: None,
            });
            peers.len() - 1
        }
    };
    // An allowed IP belongs to one peer: the last to claim it.
    for (net, add) in &change.allowed_ips {
        if *add {
            peers
                .iter_mut()
                .for_each(|peer| peer.allowed_ips.retain(|other| other != net));
        }
    }
    let Some(peer) = peers.get_mut(at) else {
        return;
    };
    if let Some(key) = change.preshared_key {
        peer.preshared_key = (key != [0; 32]).then_some(key);
    }
    peer.endpoint = change.endpoint.or(peer.endpoint);
    if let Some(seconds) = change.persistent_keepalive {
        peer.persistent_keepalive = (seconds != 0).then_some(seconds);
    }
    if change.replace_allowed_ips {
        peer.allowed_ips.clear();
    }
    for (net, add) in &change.allowed_ips {
        peer.allowed_ips.retain(|other| other != net);
        if *add {
            peer.allowed_ips.push(*net);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

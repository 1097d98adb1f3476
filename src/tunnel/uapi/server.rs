//! `meshd wireguard INTERFACE`: a device that is configured over its socket, until the process is told to stop.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use x25519_dalek::StaticSecret;

use super::super::config::{TunnelConfig, TunnelError};
use super::super::running::Tunnel;
use super::changes::Changes;
use super::request::{MAX_REQUEST, Request, RequestError, SetRequest, print};
use crate::os::readable;

/// The directory in which `wg` looks for sockets.
const DIRECTORY: &str = "/var/run/wireguard";
/// The maximum number of connections at once.
const MAX_CONNECTIONS: usize = 16;
/// How long to wait until another process releases the socket: the process of a deleted interface ends soon.
const TAKEN_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the file of the socket is looked for.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a client may take for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The MTU of the device until another one is set: the size that fits into 1,500 bytes over IPv6.
const DEFAULT_MTU: u16 = 1420;

/// The reason for which the device ended.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// The device cannot be made.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// Another process serves the socket.
    #[error("{0} is served by another process; stop it first")]
    InUse(PathBuf),
    /// A system call failed.
    #[error("cannot serve {0}: {1}")]
    Socket(PathBuf, io::Error),
}

/// Runs the device, with so many data `workers`, until SIGTERM or SIGINT, or until its socket or interface is deleted. The
/// interface may be renamed and moved to another network namespace; the UDP sockets stay in this one.
///
/// # Errors
/// The device or its socket cannot be made.
pub fn run(interface: &str, workers: Option<u16>) -> Result<(), StandaloneError> {
    // Blocked before any thread starts, so that no other thread receives these signals.
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
            Some(stop.as_fd()),
            Some(tunnel.gone_event()),
            Some(listener.as_fd()),
        ];
        let ready = readable::wait(descriptors, Some(FILE_CHECK_INTERVAL));
        if ready.is_some_and(|[stopped, ..]| stopped) {
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
        let (tunnel, open) = (Arc::clone(&tunnel), Arc::clone(&connections));
        let thread = std::thread::Builder::new().name("mesh-uapi".into());
        let started = thread.spawn(move || {
            let _ = converse(stream, &tunnel);
            open.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = started {
            connections.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "a connection to the configuration socket is closed, because no thread can be started for it");
        }
    }
    // The order matters: a process that starts an interface of the same name waits until the file is gone, and needs the port
    // then. The file that is there afterwards belongs to that process.
    drop(tunnel);
    let _ = std::fs::remove_file(&path);
    drop(listener);
    Ok(())
}

/// Binds the socket to its final path: tools look for that path in the kernel's list of sockets.
fn listen(path: &Path) -> Result<UnixListener, StandaloneError> {
    let fault = |error: io::Error| StandaloneError::Socket(path.to_owned(), error);
    let end = Instant::now() + TAKEN_TIMEOUT;
    while UnixStream::connect(path).is_ok() {
        if Instant::now() > end {
            return Err(StandaloneError::InUse(path.to_owned()));
        }
        std::thread::sleep(TAKEN_TIMEOUT / 200);
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

/// Answers requests until the client closes the connection.
fn converse(mut stream: UnixStream, tunnel: &Tunnel) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let mut pending = Vec::new();
    // The number of bytes in which no end of a request was found.
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
            TunnelError::PortDenied(_) => libc::EACCES,
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
    let mut changes = Changes::new(peers);
    for change in &set.peers {
        changes.apply(change);
    }
    tunnel.set_peers(changes.into_peers());
    // A given endpoint is set even if it is the one that was configured before: the peer may have moved since.
    for change in &set.peers {
        if let Some(endpoint) = change.endpoint {
            tunnel.set_endpoint(&change.public_key, endpoint);
        }
    }
    Ok(())
}

//! Serves HTTP on a Unix socket: binds it safely, and answers only permitted callers.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use axum::Json;
use axum::Router;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use super::audit::Who;
use crate::protocol::api::{ApiError, ErrorCode, MAX_BODY};

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers on the socket.
    #[error("another process answers on {0}; stop it, or name another socket and state directory")]
    InUse(PathBuf),
    /// The path is not a socket.
    #[error("{0} exists and is not a socket; move it away")]
    NotASocket(PathBuf),
    /// The system returned an error.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
}

impl SocketError {
    /// The error code, which determines the exit status of the program.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                ErrorCode::Permission
            }
            _ => ErrorCode::Configuration,
        }
    }
}

/// How long to wait for a socket on which another process answers. A program that a killed daemon was just starting
/// holds the daemon's socket until it runs.
const IN_USE_TIMEOUT: Duration = Duration::from_secs(1);

/// The first size of the buffer for supplementary groups. Most users have fewer.
const FEW_GROUPS: usize = 32;
/// The maximum number of supplementary groups of a process (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// Binds `path` with mode 0660. A socket of a process that has ended is replaced.
///
/// # Errors
/// Another process or file is in the way, or the system returns an error.
pub async fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let end = Instant::now() + IN_USE_TIMEOUT;
    loop {
        match bind_now(path) {
            Err(SocketError::InUse(_)) if Instant::now() < end => {
                tokio::time::sleep(IN_USE_TIMEOUT / 20).await;
            }
            ended => return ended,
        }
    }
}

fn bind_now(path: &Path) -> Result<UnixListener, SocketError> {
    let io = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(SocketError::InUse(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(io)?;
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let listener = UnixListener::bind(path).map_err(io)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(io)?;
    Ok(listener)
}

/// Serves `router` to root, this process's user and the members of the socket's group. A handler finds the caller as [`Who`] in the
/// extensions of the request. The kernel recorded the caller's credentials when the caller connected (`SO_PEERCRED`, `SO_PEERGROUPS`).
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: UnixListener, path: &Path, router: Router) -> std::io::Result<()> {
    let rights = Rights {
        user: nix::unistd::geteuid().as_raw(),
        group: std::fs::metadata(path)?.gid(),
    };
    let router = router
        .fallback(|| async {
            failure(ApiError::new(
                ErrorCode::NotFound,
                "there is no such call; check that meshctl and the daemon have the same version",
            ))
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(rights, only_permitted));
    axum::serve(
        listener,
        router.into_make_service_with_connect_info::<Caller>(),
    )
    .await
}

/// The process that called, by the credentials that the kernel recorded when it connected.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    user: Option<u32>,
    process: Option<i32>,
    /// The primary group and the supplementary ones.
    groups: Vec<u32>,
}

impl Caller {
    /// The caller, as events name it.
    #[must_use]
    pub fn who(&self) -> Who {
        Who::Local {
            // A caller without credentials is not served.
            uid: self.user.unwrap_or(u32::MAX),
            pid: self.process,
        }
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let Ok(credentials) = stream.io().peer_cred() else {
            return Self::default();
        };
        let mut groups = supplementary_groups(stream.io().as_fd());
        groups.push(credentials.gid());
        Self {
            user: Some(credentials.uid()),
            process: credentials.pid(),
            groups,
        }
    }
}

/// The caller's supplementary groups (`SO_PEERGROUPS`, Linux 4.13). None if the kernel does not return them.
fn supplementary_groups(stream: BorrowedFd<'_>) -> Vec<u32> {
    let mut groups = vec![0u32; FEW_GROUPS];
    loop {
        let bytes = size_of_val(groups.as_slice());
        let Ok(mut length) = libc::socklen_t::try_from(bytes) else {
            return Vec::new();
        };
        // SAFETY: the kernel writes at most `length` bytes to `groups`, which has as many, and keeps neither pointer.
        // No library has this socket option: nix, rustix and socket2 only have `SO_PEERCRED`, which lacks the
        // supplementary groups.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let too_small = std::io::Error::last_os_error().raw_os_error() == Some(libc::ERANGE);
        let count = length as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return groups;
        }
        if !too_small || count <= groups.len() || count > MAX_GROUPS {
            return Vec::new();
        }
        groups.resize(count, 0);
    }
}

#[derive(Debug, Clone, Copy)]
struct Rights {
    user: u32,
    group: u32,
}

async fn only_permitted(
    State(rights): State<Rights>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    mut request: Request,
    next: Next,
) -> Response {
    let permitted = caller.user == Some(0)
        || caller.user == Some(rights.user)
        || caller.groups.contains(&rights.group);
    if permitted {
        request.extensions_mut().insert(caller.who());
        next.run(request).await
    } else {
        failure(ApiError::new(
            ErrorCode::Permission,
            "only root and the group of the socket may do this; use sudo",
        ))
    }
}

/// The HTTP response for an error.
pub fn failure(error: ApiError) -> Response {
    (status_of(&error), Json(error)).into_response()
}

/// The HTTP status of the answer that reports `error`.
#[must_use]
pub fn status_of(error: &ApiError) -> StatusCode {
    StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_closed_a_moment_later_is_bound_and_one_that_is_held_is_not() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("socket");
        let held = std::os::unix::net::UnixListener::bind(&path).expect("a free path");
        assert!(matches!(bind(&path).await, Err(SocketError::InUse(_))));
        let (taken, ()) = tokio::join!(bind(&path), async {
            tokio::time::sleep(IN_USE_TIMEOUT / 10).await;
            drop(held);
        });
        taken.expect("nobody holds it any more");
    }
    const GROUP: u32 = 4_242;
    const USER: u32 = 65_534;

    /// The status line that a caller with these supplementary groups gets, and with the user and primary group 65534.
    /// None without the rights to become such a caller.
    fn ask_as(path: &Path, groups: &[u32]) -> Option<String> {
        use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
        use std::io::{BufRead as _, Write as _};
        // These change the credentials of this thread alone; the functions of the C library change those of all threads.
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        let (group, user) = (Gid::from_raw(USER), Uid::from_raw(USER));
        let changed = set_thread_groups(&groups)
            .and_then(|()| set_thread_res_gid(group, group, group))
            .and_then(|()| set_thread_res_uid(user, user, user));
        if changed.is_err() {
            return None;
        }
        let mut stream = match std::os::unix::net::UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error) => return Some(error.to_string()),
        };
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: meshd\r\nConnection: close\r\n\r\n")
            .expect("the server reads");
        let mut line = String::new();
        std::io::BufReader::new(stream)
            .read_line(&mut line)
            .expect("the server answers");
        Some(line)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_member_of_the_sockets_group_is_served_whichever_of_its_groups_it_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), readable).expect("ours");
        let path = directory.path().join("socket");
        let listener = bind(&path).await.expect("a free path");
        if std::os::unix::fs::chown(&path, None, Some(GROUP)).is_err() {
            return crate::testbed::skip_test("becoming another user needs root");
        }
        // The server decides, not the mode: callers outside the group come as far as it, too.
        let open = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(&path, open).expect("ours");
        let router = Router::new().route("/", axum::routing::get(|| async { "in" }));
        let served = path.clone();
        let server = tokio::spawn(async move { serve(listener, &served, router).await });
        let many: Vec<u32> = (5_000..5_100).collect();
        for (groups, status) in [
            (vec![], " 403 "),
            (many.clone(), " 403 "),
            (vec![GROUP], " 200 "),
            ([many.as_slice(), &[GROUP]].concat(), " 200 "),
        ] {
            let path = path.clone();
            let asked = std::thread::spawn(move || ask_as(&path, &groups));
            let Some(line) = asked.join().expect("it does not panic") else {
                return crate::testbed::skip_test("becoming another user needs root");
            };
            assert!(line.contains(status), "{line} is not{status}");
        }
        server.abort();
    }
}

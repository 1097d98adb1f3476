//! A unix socket that HTTP is served on: bound safely, answered to permitted callers only.

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

use super::api::{ApiError, ErrorCode, MAX_BODY};

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("another process answers on {0}; stop it, or name another socket and state directory")]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{0} is there and is no socket; move it away")]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl SocketError {
    /// Which kind of failure it is.
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

/// How long a socket that somebody answers on is waited for. A program that a killed daemon was just starting holds the
/// daemon's socket until it runs.
const IN_USE_TIMEOUT: Duration = Duration::from_secs(1);

/// Binds `path` with mode 0660; a socket left by a process that is gone is replaced.
///
/// # Errors
/// Says who or what is in the way.
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

/// Serves `router` to root, this process's user and the socket's group, by the kernel's word on who calls
/// (`SO_PEERCRED`).
///
/// # Errors
/// The listener broke.
pub async fn serve(listener: UnixListener, path: &Path, router: Router) -> std::io::Result<()> {
    let rights = Rights {
        user: nix::unistd::geteuid().as_raw(),
        group: std::fs::metadata(path)?.gid(),
    };
    let router = router
        .fallback(|| async {
            failure(ApiError::new(
                ErrorCode::NotFound,
                "there is no such call; is meshctl of another version than the daemon?",
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

#[derive(Debug, Clone, Copy)]
struct Caller {
    user: Option<u32>,
    group: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self {
            user: credentials.map(|c| c.uid()),
            group: credentials.map(|c| c.gid()),
        }
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
    request: Request,
    next: Next,
) -> Response {
    let permitted = caller.user == Some(0)
        || caller.user == Some(rights.user)
        || caller.group == Some(rights.group);
    if permitted {
        next.run(request).await
    } else {
        failure(ApiError::new(
            ErrorCode::Permission,
            "only root and the group of the socket may do this; use sudo",
        ))
    }
}

/// An error as an answer.
pub fn failure(error: ApiError) -> Response {
    let status =
        StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(error)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_let_go_a_moment_later_is_taken_and_one_that_is_held_is_not() {
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
}

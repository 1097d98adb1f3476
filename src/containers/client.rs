//! Sends requests to the engine over its Unix socket. Every answer has a limit for its size and its time.
//!
//! Decision: the client library bollard is not used. It collects answers of any size in memory, and its types refuse a whole
//! answer because of one enum value of a later engine. Our few requests need only [`crate::os::http`].
//!
//! The paths name no version of the API, so the engine uses its newest one. The fields that meshd reads are the same in all.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use hyper::body::Bytes;
use nix::unistd::{Gid, Group, Uid, User};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::api;
use super::inspect::EngineNetwork;
use crate::model::text;
use crate::os::http::{
    self, HttpError, Limits, Method, Request, StatusCode, Switched, SwitchedStream,
};

/// How long an answer may take. A busy engine sometimes takes a second.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size of a list, in bytes. There may be thousands of containers, and a few have labels of several MiB.
pub(super) const MAX_LIST: usize = 64 << 20;
/// The maximum size of a description, in bytes.
pub(super) const MAX_DESCRIPTION: usize = 32 << 20;
/// The maximum size of the body with the reason of an error, in bytes.
const MAX_REASON: usize = 64 << 10;

/// Why there is no answer of the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineFault {
    #[error("there is no {0}")]
    Absent(String),
    #[error("no program listens on {0}")]
    NotListening(String),
    #[error("meshd may not open {0}")]
    Permission(String, GroupAccess),
    #[error("it did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// The connection ended before the answer was complete.
    #[error("the connection failed: {0}")]
    Broken(String),
    /// It returned an error without a reason. The fields are the status and the path.
    #[error("it answers {0} to {1}")]
    Status(u16, String),
    /// It returned an error. The fields are the status and the reason.
    #[error("it answers: {1} ({0})")]
    Rejected(u16, String),
    #[error("its answer to {0} is longer than {1} bytes")]
    TooLong(String, usize),
    #[error("its answer to {0} cannot be parsed: {1}")]
    Malformed(String, String),
}

/// The names of a socket's group and of the user as which meshd runs. There is none for the group root, which meshd's user must
/// not have, and where the machine knows no name.
pub(super) type GroupAccess = Option<(String, String)>;

/// An answer whose body is read in parts. Dropping it ends the connection.
#[derive(Debug)]
pub struct Stream(http::Response);

impl Stream {
    /// The type of the content, as the engine names it.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.header("content-type")
    }

    /// The value of a header of the answer.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.0.header(name)
    }

    /// The rest of the answer, which has at most `max` bytes.
    pub(super) async fn rest(self, path: &str, max: usize) -> Result<Bytes, EngineFault> {
        let body = self.0.into_body(max).await;
        body.map_err(|error| fault_of(error, path))
    }

    /// The next bytes, or `None` at the end.
    ///
    /// # Errors
    /// The connection was closed before the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, EngineFault> {
        self.0
            .next()
            .await
            .map_err(|error| EngineFault::Broken(error.to_string()))
    }
}

/// Requests `path` and reads the whole answer, which has at most `max` bytes. `None` if the engine has no such thing.
///
/// # Errors
/// The engine is not reachable, does not answer in time, or returns an error.
pub(super) async fn get(
    socket: &Path,
    path: &str,
    max: usize,
) -> Result<Option<Bytes>, EngineFault> {
    let request = Request::new(Method::GET, path);
    let limits = Limits {
        body: max,
        time: ANSWER_TIMEOUT,
    };
    let answer = http::call(connect(socket).await?, request, limits)
        .await
        .map_err(|error| fault_of(error, path))?;
    if answer.status == StatusCode::NOT_FOUND {
        Ok(None)
    } else if answer.status.is_success() {
        Ok(Some(answer.body))
    } else {
        Err(EngineFault::Status(answer.status.as_u16(), path.to_owned()))
    }
}

/// The networks of the engine.
///
/// # Errors
/// The engine is not reachable, does not answer in time, or returns an error, or its answer cannot be parsed.
pub(super) async fn networks(
    socket: &Path,
    podman: bool,
) -> Result<Vec<EngineNetwork>, EngineFault> {
    // Only Podman's own API returns the names of its bridges.
    let path = if podman {
        "/v4.0.0/libpod/networks/json"
    } else {
        "/networks"
    };
    let text = get_required(socket, path, MAX_DESCRIPTION).await?;
    api::networks(&text).map_err(|e| EngineFault::Malformed(path.into(), e.to_string()))
}

/// As [`get`], for something that every engine has.
///
/// # Errors
/// As for [`get`].
pub(super) async fn get_required(
    socket: &Path,
    path: &str,
    max: usize,
) -> Result<Bytes, EngineFault> {
    let missing = || EngineFault::Status(404, path.to_owned());
    get(socket, path, max).await?.ok_or_else(missing)
}

/// Requests `path`, whose answer never ends. There is no limit for the time until the answer begins, since Podman sends nothing
/// before the first event.
///
/// # Errors
/// The engine is not reachable, or returns an error.
pub(super) async fn follow(socket: &Path, path: &str) -> Result<Stream, EngineFault> {
    let stream = connect(socket).await?;
    let response = http::open(stream, Request::new(Method::GET, path))
        .await
        .map_err(|error| fault_of(error, path))?;
    let status = response.status();
    if status.is_success() {
        Ok(Stream(response))
    } else {
        Err(EngineFault::Status(status.as_u16(), path.to_owned()))
    }
}

/// A request that changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Post,
    Delete,
}

/// Requests a change. `text` is JSON, or empty.
///
/// # Errors
/// The engine is not reachable, does not answer in time, or returns an error.
pub(super) async fn send(
    socket: &Path,
    verb: Verb,
    path: &str,
    text: String,
) -> Result<(), EngineFault> {
    let method = match verb {
        Verb::Post => Method::POST,
        Verb::Delete => Method::DELETE,
    };
    let whole = async {
        let request = Request::new(method, path).json(text);
        let response = http::open(connect(socket).await?, request)
            .await
            .map_err(|error| fault_of(error, path))?;
        let status = response.status();
        // The status alone decides. The body is only read for its reason, so that it may be cut off or too long.
        let body = response.into_body(MAX_REASON).await;
        if status.is_success() {
            return Ok(());
        }
        Err(rejection(status, &body.unwrap_or_default(), path))
    };
    timeout(ANSWER_TIMEOUT, whole)
        .await
        .unwrap_or(Err(EngineFault::Silent))
}

/// Requests `path` with a body, which is JSON or empty, and reads the whole answer.
///
/// # Errors
/// The engine is not reachable, does not answer within `limits`, or returns an error.
pub(super) async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    text: String,
    limits: Limits,
) -> Result<Bytes, EngineFault> {
    let request = Request::new(method, path).json(text);
    let answer = http::call(connect(socket).await?, request, limits).await;
    let answer = answer.map_err(|error| fault_of(error, path))?;
    // The engine has nothing to do if a container runs already, or has stopped already.
    if answer.status.is_success() || answer.status == StatusCode::NOT_MODIFIED {
        return Ok(answer.body);
    }
    Err(rejection(answer.status, &answer.body, path))
}

/// Requests `path`, and reads the beginning of the answer within `head`. The caller reads the rest.
///
/// # Errors
/// The engine is not reachable, does not begin to answer in time, or returns an error.
pub(super) async fn open(
    socket: &Path,
    method: Method,
    path: &str,
    head: Duration,
) -> Result<Stream, EngineFault> {
    let opened = async {
        let request = Request::new(method, path);
        let response = http::open(connect(socket).await?, request).await;
        let response = response.map_err(|error| fault_of(error, path))?;
        if response.status().is_success() {
            return Ok(Stream(response));
        }
        Err(rejected(response, path).await)
    };
    timeout(head, opened)
        .await
        .unwrap_or(Err(EngineFault::Silent))
}

/// Requests `path` with a body, which is JSON or empty, and a connection that carries bytes in both directions afterwards.
///
/// # Errors
/// The engine is not reachable, does not answer in time, or returns an error.
pub(super) async fn switch(
    socket: &Path,
    path: &str,
    text: String,
) -> Result<SwitchedStream, EngineFault> {
    let switched = async {
        let request = Request::new(Method::POST, path).json(text).upgrade("tcp");
        let switched = http::upgrade(connect(socket).await?, request).await;
        match switched.map_err(|error| fault_of(error, path))? {
            Switched::Stream(stream) => Ok(stream),
            Switched::Refused(response) => Err(rejected(response, path).await),
        }
    };
    timeout(ANSWER_TIMEOUT, switched)
        .await
        .unwrap_or(Err(EngineFault::Silent))
}

async fn rejected(response: http::Response, path: &str) -> EngineFault {
    let status = response.status();
    // Without its body, the answer has no reason.
    let body = response.into_body(MAX_REASON).await.unwrap_or_default();
    rejection(status, &body, path)
}

fn rejection(status: StatusCode, body: &[u8], path: &str) -> EngineFault {
    match reason(body) {
        Some(reason) => EngineFault::Rejected(status.as_u16(), reason),
        None => EngineFault::Status(status.as_u16(), path.to_owned()),
    }
}

/// The engine's reason, on one line.
fn reason(text: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(text).ok()?;
    Some(text::message(answer.get("message")?.as_str()?))
}

async fn connect(socket: &Path) -> Result<UnixStream, EngineFault> {
    UnixStream::connect(socket)
        .await
        .map_err(|error| unconnected(socket, &error))
}

fn fault_of(error: HttpError, path: &str) -> EngineFault {
    match error {
        HttpError::TooLong(max) => EngineFault::TooLong(path.to_owned(), max),
        HttpError::TimedOut(_) => EngineFault::Silent,
        HttpError::Request(_) | HttpError::Broken(_) | HttpError::NotHttp => {
            EngineFault::Broken(error.to_string())
        }
    }
}

fn unconnected(socket: &Path, error: &std::io::Error) -> EngineFault {
    let path = socket.display().to_string();
    match error.kind() {
        std::io::ErrorKind::NotFound => EngineFault::Absent(path),
        std::io::ErrorKind::ConnectionRefused => EngineFault::NotListening(path),
        std::io::ErrorKind::PermissionDenied => EngineFault::Permission(path, group_access(socket)),
        _ => EngineFault::Broken(error.to_string()),
    }
}

fn group_access(socket: &Path) -> GroupAccess {
    let gid = std::fs::metadata(socket).ok()?.gid();
    if gid == 0 {
        return None;
    }
    let group = Group::from_gid(Gid::from_raw(gid)).ok()??;
    let user = User::from_uid(Uid::effective()).ok()??;
    Some((group.name, user.name))
}

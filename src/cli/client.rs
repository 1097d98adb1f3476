//! Sends requests over a Unix socket to meshd or the coordinator, or to the API over the network ([`super::remote`]).

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::exit::CliError;
use super::remote::Remote;
use crate::os::http::{self, Answer, HttpError, Limits, Method, Request, StatusCode};
use crate::protocol::api::{ApiError, ErrorCode};

/// The time limit of an answer, unless the caller sets another one. The daemons answer within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit for finding out which program listens on a socket.
const GREETING_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum size of an answer, in bytes. The list of the services of a large mesh is the longest.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// A client of one daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    daemon: Daemon,
    limit: Duration,
    /// The API over the network, to which requests are sent in place of the socket.
    remote: Option<Remote>,
}

/// The program that is expected to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    Meshd,
    Coordinator,
}

impl Daemon {
    fn name(self) -> &'static str {
        match self {
            Self::Meshd => "meshd",
            Self::Coordinator => "mesh-coordinator",
        }
    }

    /// What to do if the daemon does not run.
    fn remedy(self) -> &'static str {
        match self {
            Self::Meshd => {
                "start it with `systemctl start meshd`, or name its socket with --socket"
            }
            Self::Coordinator => {
                "run this where it runs, start it with `systemctl start mesh-coordinator`, or name its socket with --admin-socket"
            }
        }
    }

    /// The option that names its socket.
    fn option(self) -> &'static str {
        match self {
            Self::Meshd => "--socket",
            Self::Coordinator => "--admin-socket",
        }
    }

    /// A request that every version of the daemon answers.
    fn greeting(self) -> &'static str {
        match self {
            Self::Meshd => "/v1/status",
            Self::Coordinator => "/v1/mesh",
        }
    }

    /// Whether `document` is its answer to [`Daemon::greeting`].
    fn is_answer(self, document: &serde_json::Value) -> bool {
        let fields = match self {
            Self::Meshd => ["schema", "state"],
            Self::Coordinator => ["urls", "pin"],
        };
        fields.iter().all(|field| document.get(field).is_some())
    }
}

impl Client {
    /// A client of `daemon` with its socket at `path`.
    #[must_use]
    pub fn new(path: &Path, daemon: Daemon) -> Self {
        Self {
            path: path.to_owned(),
            daemon,
            limit: ANSWER_TIMEOUT,
            remote: None,
        }
    }

    /// Sends requests to `remote` in place of the socket, if there is one.
    #[must_use]
    pub(super) fn over(self, remote: Option<Remote>) -> Self {
        Self { remote, ..self }
    }

    /// Sets the time limit of an answer.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Sends a GET request.
    ///
    /// # Errors
    /// The daemon is not reachable, or returns an error.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.call(Method::GET, path, Vec::new()).await
    }

    /// Sends a POST request.
    ///
    /// # Errors
    /// The daemon is not reachable, or returns an error.
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, CliError> {
        self.call(
            Method::POST,
            path,
            serde_json::to_vec(body).map_err(CliError::failed)?,
        )
        .await
    }

    /// Sends a DELETE request.
    ///
    /// # Errors
    /// The daemon is not reachable, or returns an error.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.call(Method::DELETE, path, Vec::new()).await
    }

    /// Sends a GET request that daemons of earlier versions do not know. Returns nothing if this one does not.
    ///
    /// # Errors
    /// The daemon is not reachable, or returns another error.
    pub async fn get_if_known<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<T>, CliError> {
        let answer = self.exchange(Method::GET, path, Vec::new()).await?;
        if answer.status == StatusCode::NOT_FOUND && api_error(&answer).is_none() {
            return Ok(None);
        }
        self.parse(&answer, path).await.map(Some)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, CliError> {
        let answer = self.exchange(method, path, body).await?;
        self.parse(&answer, path).await
    }

    async fn parse<T: DeserializeOwned>(&self, answer: &Answer, path: &str) -> Result<T, CliError> {
        if let Some(remote) = &self.remote {
            return remote.parse(answer);
        }
        if !answer.status.is_success() {
            return Err(match api_error(answer) {
                Some(error) => error.into(),
                None => self.other_program(answer, path).await,
            });
        }
        match serde_json::from_slice(&answer.body) {
            Ok(document) => Ok(document),
            Err(_) => Err(self.other_program(answer, path).await),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<Answer, CliError> {
        let limits = Limits {
            body: MAX_ANSWER,
            time: self.limit,
        };
        if let Some(remote) = &self.remote {
            return remote.exchange(method, path, body, limits).await;
        }
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let request = Request::new(method, path).json(body);
        http::call(stream, request, limits)
            .await
            .map_err(|error| self.no_answer(&error))
    }

    fn unreachable(&self, error: &std::io::Error) -> CliError {
        let (path, daemon, remedy) = (
            self.path.display(),
            self.daemon.name(),
            self.daemon.remedy(),
        );
        let is_socket = std::fs::metadata(&self.path).map(|found| found.file_type().is_socket());
        if let Ok(false) = is_socket {
            return CliError::new(
                ErrorCode::Unreachable,
                format!("{path} is not a socket, so {daemon} does not listen there; {remedy}"),
            );
        }
        let (code, text) = match error.kind() {
            ErrorKind::PermissionDenied => (
                ErrorCode::Permission,
                format!("only root and the group of {path} may use {daemon}; use sudo"),
            ),
            ErrorKind::NotFound => (
                ErrorCode::Unreachable,
                format!("{daemon} is not running (there is no {path}); {remedy}"),
            ),
            ErrorKind::ConnectionRefused => (
                ErrorCode::Unreachable,
                format!("{daemon} is not running (no program listens on {path}); {remedy}"),
            ),
            ErrorKind::InvalidInput => (
                ErrorCode::BadRequest,
                format!(
                    "{path} cannot be the path of a socket: one has at most 107 bytes; give a shorter path with {}",
                    self.daemon.option()
                ),
            ),
            _ => (
                ErrorCode::Unreachable,
                format!("{daemon} does not answer on {path} ({error}); {remedy}"),
            ),
        };
        CliError::new(code, text)
    }

    /// Explains an answer that the daemon does not give to `request`: another program may listen on the socket, or a daemon
    /// of another version.
    async fn other_program(&self, answer: &Answer, request: &str) -> CliError {
        let (path, daemon) = (self.path.display(), self.daemon.name());
        let other = match self.daemon {
            Daemon::Meshd => Daemon::Coordinator,
            Daemon::Coordinator => Daemon::Meshd,
        };
        if self.greets_as(self.daemon, answer, request).await {
            return CliError::new(
                ErrorCode::Version,
                format!(
                    "the {daemon} on {path} has another version than this meshctl ({}) and does not know this request; install the same version of both, and restart {daemon}",
                    env!("CARGO_PKG_VERSION")
                ),
            );
        }
        let text = if self.greets_as(other, answer, request).await {
            format!(
                "{path} is the socket of {}, and this command needs that of {daemon}; name it with {}",
                other.name(),
                self.daemon.option()
            )
        } else {
            format!(
                "the program that listens on {path} is not {daemon} (HTTP status {}); name the socket of {daemon} with {}",
                answer.status.as_u16(),
                self.daemon.option()
            )
        };
        CliError::new(ErrorCode::Unreachable, text)
    }

    /// Whether the program on the socket is `daemon`. `answer` is its answer to `request`.
    async fn greets_as(&self, daemon: Daemon, answer: &Answer, request: &str) -> bool {
        let is_answer = |body: &[u8]| {
            serde_json::from_slice(body).is_ok_and(|document| daemon.is_answer(&document))
        };
        if request == daemon.greeting() {
            return is_answer(&answer.body);
        }
        let client = Self {
            path: self.path.clone(),
            daemon,
            limit: GREETING_TIMEOUT,
            remote: None,
        };
        let greeted = client.exchange(Method::GET, daemon.greeting(), Vec::new());
        greeted
            .await
            .is_ok_and(|greeted| greeted.status.is_success() && is_answer(&greeted.body))
    }

    fn no_answer(&self, error: &HttpError) -> CliError {
        let (daemon, limit) = (self.daemon.name(), self.limit.as_secs());
        let (code, text) = match error {
            HttpError::Request(_) => return CliError::unsendable_name(),
            HttpError::TimedOut(_) => (
                ErrorCode::Unreachable,
                format!(
                    "{daemon} did not answer within {limit} s; look at its log: journalctl -u {daemon}"
                ),
            ),
            HttpError::NotHttp => (
                ErrorCode::Unreachable,
                format!(
                    "the program that listens on {} is not {daemon} (it does not speak HTTP); name the socket of {daemon} with {}",
                    self.path.display(),
                    self.daemon.option()
                ),
            ),
            HttpError::TooLong(_) => (
                ErrorCode::Unreachable,
                format!(
                    "the answer of the program on {} is too long for {daemon}; check with {} that this is its socket",
                    self.path.display(),
                    self.daemon.option()
                ),
            ),
            HttpError::Broken(_) => (
                ErrorCode::Unreachable,
                format!(
                    "{daemon} closed the connection before its answer was complete; look at its log: journalctl -u {daemon}"
                ),
            ),
        };
        CliError::new(code, text)
    }
}

/// The error in the body of an answer of one of our daemons.
fn api_error(answer: &Answer) -> Option<ApiError> {
    serde_json::from_slice(&answer.body).ok()
}

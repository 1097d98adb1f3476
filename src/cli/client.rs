//! Sends requests over a Unix socket to meshd or the coordinator.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::exit::CliError;
use crate::os::http::{self, Answer, HttpError, Limits, Method, Request};
use crate::protocol::api::{ApiError, ErrorCode};

/// The time limit of an answer, unless the caller sets another one. The daemons answer within milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum size of an answer, in bytes. The list of the services of a large mesh is the longest.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// A client of one daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    daemon: &'static str,
    remedy: &'static str,
    limit: Duration,
}

impl Client {
    /// A client of the daemon called `daemon` with its socket at `path`. `remedy` tells the user what to do if it is
    /// not reachable.
    #[must_use]
    pub fn new(path: &Path, daemon: &'static str, remedy: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            daemon,
            remedy,
            limit: ANSWER_TIMEOUT,
        }
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

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, CliError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let request = Request::new(method, path).json(body);
        let limits = Limits {
            body: MAX_ANSWER,
            time: self.limit,
        };
        let Answer { status, body } = http::call(stream, request, limits)
            .await
            .map_err(|error| self.no_answer(&error))?;
        if status.is_success() {
            serde_json::from_slice(&body).map_err(|e| self.malformed(&e))
        } else {
            Err(serde_json::from_slice::<ApiError>(&body)
                .map_or_else(|e| self.malformed(&e), CliError::from))
        }
    }

    fn unreachable(&self, error: &std::io::Error) -> CliError {
        let (path, daemon, remedy) = (self.path.display(), self.daemon, self.remedy);
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
            _ => (
                ErrorCode::Unreachable,
                format!("{daemon} does not answer on {path} ({error}); {remedy}"),
            ),
        };
        CliError::new(code, text)
    }

    fn malformed(&self, error: &serde_json::Error) -> CliError {
        CliError::failed(format!(
            "the answer of {} cannot be parsed ({error}); check that meshctl has the same version",
            self.daemon
        ))
    }

    fn no_answer(&self, error: &HttpError) -> CliError {
        let (daemon, limit) = (self.daemon, self.limit.as_secs());
        let (code, text) = match error {
            HttpError::Request(_) => (
                ErrorCode::BadRequest,
                "a given name cannot be part of a request; use letters, digits and hyphens"
                    .to_owned(),
            ),
            HttpError::TimedOut(_) => (
                ErrorCode::Unreachable,
                format!(
                    "{daemon} did not answer within {limit} s; look at its log: journalctl -u {daemon}"
                ),
            ),
            HttpError::Broken(_) | HttpError::TooLong(_) => (
                ErrorCode::Unreachable,
                format!("the connection to {daemon} failed ({error}); look at its log"),
            ),
        };
        CliError::new(code, text)
    }
}

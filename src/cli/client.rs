//! HTTP over a unix socket, to meshd or the coordinator.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::exit::CliError;
use crate::protocol::api::{ApiError, ErrorCode};

/// How long an answer may take, unless the caller says otherwise. The daemons answer within milliseconds.
const LIMIT: Duration = Duration::from_secs(30);
/// Octets of an answer at most: the services of a large mesh.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Speaks to one daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    daemon: &'static str,
    remedy: &'static str,
    limit: Duration,
}

impl Client {
    /// The daemon called `daemon` behind the socket at `path`; `remedy` says what to do if it is not there.
    #[must_use]
    pub fn new(path: &Path, daemon: &'static str, remedy: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            daemon,
            remedy,
            limit: LIMIT,
        }
    }

    /// For calls that may take up to `limit`.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Asks without a body.
    ///
    /// # Errors
    /// The daemon is away, or says no.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.call(Method::GET, path, Vec::new()).await
    }

    /// Asks with a body.
    ///
    /// # Errors
    /// The daemon is away, or says no.
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

    /// Asks for something to be taken away.
    ///
    /// # Errors
    /// The daemon is away, or says no.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.call(Method::DELETE, path, Vec::new()).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, CliError> {
        tokio::time::timeout(self.limit, self.exchange(method, path, body))
            .await
            .unwrap_or_else(|_| {
                let text = format!(
                    "{} did not answer within {} s; look at its log: journalctl -u {}",
                    self.daemon,
                    self.limit.as_secs(),
                    self.daemon
                );
                Err(CliError::new(ErrorCode::Unreachable, text))
            })
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, CliError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(&e))?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .map_err(|_| CliError::new(ErrorCode::BadRequest, "a name given here cannot be part of a request; letters, digits and hyphens can"))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| self.broken(&e))?;
        let success = response.status().is_success();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| self.broken(&*e))?
            .to_bytes();
        driver.abort();
        if success {
            serde_json::from_slice(&body).map_err(|e| self.not_understood(&e))
        } else {
            Err(serde_json::from_slice::<ApiError>(&body)
                .map_or_else(|e| self.not_understood(&e), CliError::from))
        }
    }

    fn unreachable(&self, error: &std::io::Error) -> CliError {
        let (path, daemon, remedy) = (self.path.display(), self.daemon, self.remedy);
        let (code, text) = match error.kind() {
            ErrorKind::PermissionDenied => (
                ErrorCode::Permission,
                format!("only root and the group of {path} may speak to {daemon}; use sudo"),
            ),
            ErrorKind::NotFound => (
                ErrorCode::Unreachable,
                format!("{daemon} is not running (there is no {path}); {remedy}"),
            ),
            ErrorKind::ConnectionRefused => (
                ErrorCode::Unreachable,
                format!("{daemon} is not running (nobody listens on {path}); {remedy}"),
            ),
            _ => (
                ErrorCode::Unreachable,
                format!("{daemon} does not answer on {path} ({error}); {remedy}"),
            ),
        };
        CliError::new(code, text)
    }

    fn not_understood(&self, error: &serde_json::Error) -> CliError {
        CliError::failed(format!(
            "what {} answers is not understood ({error}); is meshctl of the same version?",
            self.daemon
        ))
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> CliError {
        CliError::new(
            ErrorCode::Unreachable,
            format!("{} broke off ({error}); look at its log", self.daemon),
        )
    }
}

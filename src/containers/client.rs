//! Asks the engine: HTTP over its unix socket, every answer bounded in octets and time.
//!
//! A client library was looked at (bollard): it reads answers of any length whole, and its strict types refuse an answer
//! for one field of a later version. A few requests with hyper, which is here anyway, do neither.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long an answer may take. A busy engine takes a second now and then.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// Octets of a reason at most.
const MOST_WORD: usize = 64 << 10;

/// Why the engine gives no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineFault {
    /// There is no socket.
    #[error("there is no {0}")]
    Absent(String),
    /// Nobody listens.
    #[error("nobody listens on {0}")]
    Refused(String),
    /// The socket is not for us.
    #[error("{0} may not be opened")]
    Permission(String),
    /// It does not answer.
    #[error("it did not answer within {} s", LIMIT.as_secs())]
    Silent,
    /// It broke off.
    #[error("it broke off: {0}")]
    Broken(String),
    /// It said no.
    #[error("it answers {0} to {1}")]
    Status(u16, String),
    /// It said no, and why.
    #[error("it says: {1} ({0})")]
    Said(u16, String),
    /// An answer longer than any can be.
    #[error("its answer to {0} is longer than {1} octets")]
    TooLong(String, usize),
    /// An answer that makes no sense.
    #[error("its answer to {0} is not understood: {1}")]
    NotUnderstood(String, String),
}

/// An answer whose body is read bit by bit. Dropping it ends the connection.
#[derive(Debug)]
pub(super) struct Stream {
    response: Response<Incoming>,
    connection: Connection,
}

impl Stream {
    /// The next octets; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, EngineFault> {
        loop {
            match self.response.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(EngineFault::Broken(error.to_string())),
                // Trailers are no octets of the body.
                Some(Ok(frame)) => {
                    if let Ok(octets) = frame.into_data() {
                        return Ok(Some(octets));
                    }
                }
            }
        }
    }
}

#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks for `path` and reads the whole answer, of up to `most` octets. Nothing, if there is no such thing.
///
/// # Errors
/// The engine is away, silent, or says no.
pub(super) async fn get(
    socket: &Path,
    path: &str,
    most: usize,
) -> Result<Option<Bytes>, EngineFault> {
    let whole = async {
        let Stream {
            response,
            connection,
        } = open(socket, Method::GET, path, Bytes::new()).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !response.status().is_success() {
            let status = response.status().as_u16();
            return Err(EngineFault::Status(status, path.to_owned()));
        }
        let body = Limited::new(response.into_body(), most)
            .collect()
            .await
            .map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    EngineFault::TooLong(path.to_owned(), most)
                } else {
                    EngineFault::Broken(error.to_string())
                }
            })?;
        drop(connection);
        Ok(Some(body.to_bytes()))
    };
    timeout(LIMIT, whole)
        .await
        .unwrap_or(Err(EngineFault::Silent))
}

/// Asks for `path`, whose answer never ends. Its beginning may be long in coming: Podman says nothing before there is
/// something to say.
///
/// # Errors
/// The engine is away, silent, or says no.
pub(super) async fn follow(socket: &Path, path: &str) -> Result<Stream, EngineFault> {
    let stream = open(socket, Method::GET, path, Bytes::new()).await?;
    let status = stream.response.status();
    if status.is_success() {
        Ok(stream)
    } else {
        Err(EngineFault::Status(status.as_u16(), path.to_owned()))
    }
}

/// What the engine is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// To make something.
    Post,
    /// To take something away.
    Delete,
}

/// Asks the engine to do something; `text` is JSON that says more of it, or nothing.
///
/// # Errors
/// The engine is away, silent, or says no and why.
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
        let Stream {
            response,
            connection,
        } = open(socket, method, path, text.into()).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_WORD)
            .collect()
            .await;
        drop(connection);
        if status.is_success() {
            return Ok(());
        }
        let word = body.ok().and_then(|body| word(&body.to_bytes()));
        Err(match word {
            Some(word) => EngineFault::Said(status.as_u16(), word),
            None => EngineFault::Status(status.as_u16(), path.to_owned()),
        })
    };
    timeout(LIMIT, whole)
        .await
        .unwrap_or(Err(EngineFault::Silent))
}

/// The engine's reason, on one line.
fn word(text: &[u8]) -> Option<String> {
    let said: serde_json::Value = serde_json::from_slice(text).ok()?;
    Some(super::labels::printable(said.get("message")?.as_str()?))
}

async fn open(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Stream, EngineFault> {
    let broken = |error: &dyn std::fmt::Display| EngineFault::Broken(error.to_string());
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| unconnected(socket, &error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| broken(&e))?;
    let connection = Connection(tokio::spawn(async move {
        let _ = connection.await;
    }));
    // Without a version in the path the engine speaks its newest, whose fields here are those of all others.
    let mut request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost");
    if !body.is_empty() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(body)).map_err(|e| broken(&e))?;
    let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
    Ok(Stream {
        response,
        connection,
    })
}

fn unconnected(socket: &Path, error: &std::io::Error) -> EngineFault {
    let path = socket.display().to_string();
    match error.kind() {
        std::io::ErrorKind::NotFound => EngineFault::Absent(path),
        std::io::ErrorKind::ConnectionRefused => EngineFault::Refused(path),
        std::io::ErrorKind::PermissionDenied => EngineFault::Permission(path),
        _ => EngineFault::Broken(error.to_string()),
    }
}

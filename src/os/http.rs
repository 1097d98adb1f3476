//! The one HTTP/1.1 client: one request over one connection, with a limit for the size of the answer and one for its time.
//!
//! The caller connects: a TCP socket, a TLS session and a Unix socket differ only there. The future that
//! waits for the answer drives the connection, so no task can outlive it, and dropping the answer closes the connection.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE, USER_AGENT,
};
use hyper::upgrade::Upgraded;
pub use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// The maximum size of the head of an answer, and of what is read of its body before somebody takes it, in bytes.
const MAX_BUFFER: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The path or the host cannot be part of a request.
    #[error("the request cannot be written: {0}")]
    Request(String),
    /// The connection was closed too early.
    #[error("{0}")]
    Broken(String),
    /// The answer is not HTTP.
    #[error("the answer is not HTTP")]
    NotHttp,
    /// The answer has more bytes than its limit.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// The answer was not complete in time.
    #[error("no answer within {} seconds", .0.as_secs())]
    TimedOut(Duration),
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    method: Method,
    path: String,
    host: String,
    user_agent: Option<&'static str>,
    authorization: Option<HeaderValue>,
    /// The protocol that the connection is to have after the answer.
    upgrade: Option<&'static str>,
    json: Bytes,
}

/// The limits for a complete answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The maximum size of the body, in bytes.
    pub body: usize,
    /// The maximum time from the first byte of the request to the last byte of the answer.
    pub time: Duration,
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    /// The whole body.
    pub body: Bytes,
}

impl Request {
    /// A request for `path`. The host is `localhost` until [`Request::host`] is called.
    #[must_use]
    pub fn new(method: Method, path: &str) -> Self {
        Self {
            method,
            path: path.to_owned(),
            host: "localhost".into(),
            user_agent: None,
            authorization: None,
            upgrade: None,
            json: Bytes::new(),
        }
    }

    /// Names the host that the request is for.
    #[must_use]
    pub fn host(self, host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            ..self
        }
    }

    /// Names the program that sends the request.
    #[must_use]
    pub fn user_agent(self, program: &'static str) -> Self {
        Self {
            user_agent: Some(program),
            ..self
        }
    }

    /// Sends an API token (RFC 6750). `Debug` does not show it.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        // A text that no header can have is no token, and the server says that it received none.
        let value = HeaderValue::from_str(&format!("Bearer {token}")).ok();
        let authorization = value.map(|mut value| {
            value.set_sensitive(true);
            value
        });
        Self {
            authorization,
            ..self
        }
    }

    /// Asks for another protocol on the connection after the answer. [`upgrade`] sends such a request.
    #[must_use]
    pub fn upgrade(self, protocol: &'static str) -> Self {
        Self {
            upgrade: Some(protocol),
            ..self
        }
    }

    /// Sends `body`, which is JSON. An empty body is sent without a content type.
    #[must_use]
    pub fn json(self, body: impl Into<Bytes>) -> Self {
        Self {
            json: body.into(),
            ..self
        }
    }

    fn into_hyper(self) -> Result<hyper::Request<Full<Bytes>>, HttpError> {
        let mut request = hyper::Request::builder()
            .method(self.method)
            .uri(self.path)
            .header(HOST, self.host);
        if let Some(program) = self.user_agent {
            request = request.header(USER_AGENT, program);
        }
        if let Some(credentials) = self.authorization {
            request = request.header(AUTHORIZATION, credentials);
        }
        if let Some(protocol) = self.upgrade {
            request = request.header(CONNECTION, "Upgrade");
            request = request.header(UPGRADE, protocol);
        }
        if !self.json.is_empty() {
            let json = HeaderValue::from_static("application/json");
            request = request.header(CONTENT_TYPE, json);
        }
        request
            .body(Full::new(self.json))
            .map_err(|error| HttpError::Request(error.to_string()))
    }
}

/// Sends `request` over `stream` and reads the whole answer.
///
/// # Errors
/// There is no answer within the limits.
pub async fn call<S>(stream: S, request: Request, limits: Limits) -> Result<Answer, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let whole = async {
        let response = open(stream, request).await?;
        let status = response.status();
        let body = response.into_body(limits.body).await?;
        Ok(Answer { status, body })
    };
    timeout(limits.time, whole)
        .await
        .unwrap_or(Err(HttpError::TimedOut(limits.time)))
}

/// Sends `request` over `stream` and reads the head of the answer. There is no limit for the time; the caller sets one where it
/// is needed.
///
/// # Errors
/// The request cannot be written, or the connection was closed before the body.
pub async fn open<S>(stream: S, request: Request) -> Result<Response, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = request.into_hyper()?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let mut connection = Connection::new(async move {
        // The request and the body report the same error.
        let _ = connection.with_upgrades().await;
    });
    let response = connection
        .drive(sender.send_request(request))
        .await
        .map_err(broken)?;
    Ok(Response {
        response,
        connection,
    })
}

/// The answer to a request for another protocol.
#[derive(Debug)]
pub enum Switched {
    /// The connection has the other protocol from here on.
    Stream(SwitchedStream),
    /// The server answered in HTTP.
    Refused(Response),
}

/// A connection after the answer that switched its protocol. Dropping it closes the connection.
#[derive(Debug)]
pub struct SwitchedStream {
    /// The bytes in both directions.
    pub io: TokioIo<Upgraded>,
    /// The type of the content that the server named in its answer.
    pub content_type: Option<String>,
}

/// Sends `request`, which asks for another protocol, over `stream`. There is no limit for the time; the caller sets one where it is
/// needed.
///
/// # Errors
/// The request cannot be written, or the connection was closed too early.
pub async fn upgrade<S>(stream: S, request: Request) -> Result<Switched, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let response = open(stream, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Switched::Refused(response));
    }
    let content_type = response.header(CONTENT_TYPE.as_str()).map(str::to_owned);
    let Response {
        response,
        mut connection,
    } = response;
    let upgraded = connection.drive(hyper::upgrade::on(response)).await;
    Ok(Switched::Stream(SwitchedStream {
        io: TokioIo::new(upgraded.map_err(broken)?),
        content_type,
    }))
}

/// An answer whose body is read in parts. Dropping it closes the connection.
pub struct Response {
    response: hyper::Response<Incoming>,
    connection: Connection,
}

impl Response {
    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The value of a header, if the answer has it and it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The next bytes of the body, or `None` at its end.
    ///
    /// # Errors
    /// The connection was closed within the body.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            match self.connection.drive(self.response.frame()).await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(error)),
                Some(Ok(frame)) => {
                    // The other kind of frame holds trailers.
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// The whole body, which has at most `max` bytes.
    ///
    /// # Errors
    /// The body is longer, or the connection was closed within it.
    pub async fn into_body(mut self, max: usize) -> Result<Bytes, HttpError> {
        let body = Limited::new(self.response.into_body(), max).collect();
        match self.connection.drive(body).await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(HttpError::TooLong(max)),
            Err(error) => Err(HttpError::Broken(error.to_string())),
        }
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// The connection, which makes progress only while it is polled. `None` once it is closed.
struct Connection(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Connection {
    fn new(connection: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Some(Box::pin(connection)))
    }

    /// Waits for `wanted`, which needs the connection to make progress.
    async fn drive<F: Future>(&mut self, wanted: F) -> F::Output {
        let mut wanted = pin!(wanted);
        poll_fn(|context| {
            if let Some(connection) = &mut self.0
                && connection.as_mut().poll(context).is_ready()
            {
                self.0 = None;
            }
            wanted.as_mut().poll(context)
        })
        .await
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it stands in for a closure in map_err"
)]
fn broken(error: hyper::Error) -> HttpError {
    if error.is_parse() {
        return HttpError::NotHttp;
    }
    HttpError::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const LIMITS: Limits = Limits {
        body: 16,
        time: Duration::from_secs(10),
    };

    /// The client's end of a connection to a server that reads a whole head, then writes `answer` and closes the connection.
    fn server_with(answer: &'static [u8]) -> DuplexStream {
        let (client, mut server) = duplex(4096);
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(server.read_u8().await.expect("a whole head"));
            }
            // The client may have closed the connection before it has read everything.
            let _ = server.write_all(answer).await;
        });
        client
    }

    fn request() -> Request {
        Request::new(Method::GET, "/v1/status")
    }

    #[tokio::test]
    async fn an_answer_is_its_status_and_its_whole_body() {
        let stream = server_with(b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone");
        let answer = call(stream, request(), LIMITS).await;
        let expected = Answer {
            status: StatusCode::NOT_FOUND,
            body: Bytes::from_static(b"none"),
        };
        assert_eq!(answer, Ok(expected));
    }

    #[tokio::test]
    async fn a_body_over_its_limit_is_refused_with_and_without_a_length() {
        for answer in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n0123456789abcdefg"[..],
            &b"HTTP/1.1 200 OK\r\n\r\n0123456789abcdefg"[..],
        ] {
            let answer = call(server_with(answer), request(), LIMITS).await;
            assert_eq!(answer, Err(HttpError::TooLong(16)));
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_complete_in_time_is_given_up() {
        let limits = Limits {
            time: Duration::from_millis(50),
            ..LIMITS
        };
        // The server reads nothing and keeps the connection open.
        let (client, _server) = duplex(4096);
        let answer = call(client, request(), limits).await;
        assert_eq!(answer, Err(HttpError::TimedOut(limits.time)));
    }

    #[tokio::test]
    async fn a_connection_that_is_closed_too_early_and_garbage_are_errors() {
        for answer in [
            &b""[..],
            &b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"[..],
        ] {
            let answer = call(server_with(answer), request(), LIMITS).await;
            assert!(matches!(answer, Err(HttpError::Broken(_))), "{answer:?}");
        }
        let garbage = call(server_with(b"garbage\r\n\r\n"), request(), LIMITS).await;
        assert_eq!(garbage, Err(HttpError::NotHttp));
    }

    #[tokio::test]
    async fn a_body_is_read_in_parts_while_the_server_still_writes() {
        let (client, mut server) = duplex(4096);
        let opened = tokio::spawn(open(client, request()));
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(server.read_u8().await.expect("a whole head"));
        }
        let text = String::from_utf8(head).expect("text");
        assert!(text.starts_with("GET /v1/status HTTP/1.1\r\nhost: localhost\r\n"));
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n";
        server.write_all(head).await.expect("there is room");
        let opened = opened.await.expect("no panic");
        let mut response = opened.expect("a head");
        assert_eq!(response.next().await, Ok(Some(Bytes::from_static(b"one"))));
        let rest = b"3\r\ntwo\r\n0\r\n\r\n";
        server.write_all(rest).await.expect("there is room");
        assert_eq!(response.next().await, Ok(Some(Bytes::from_static(b"two"))));
        assert_eq!(response.next().await, Ok(None));
    }

    #[tokio::test]
    async fn a_connection_that_switched_its_protocol_carries_bytes_in_both_directions() {
        let (client, mut server) = duplex(4096);
        let asked = request().upgrade("tcp");
        let switched = tokio::spawn(upgrade(client, asked));
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(server.read_u8().await.expect("a whole head"));
        }
        let text = String::from_utf8(head).expect("text");
        assert!(text.contains("\r\nconnection: Upgrade\r\nupgrade: tcp\r\n"));
        let head = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nout";
        server.write_all(head).await.expect("there is room");
        let switched = switched.await.expect("no panic").expect("an answer");
        let Switched::Stream(mut stream) = switched else {
            panic!("the server has switched");
        };
        let kind = stream.content_type.as_deref();
        assert_eq!(kind, Some("application/vnd.docker.raw-stream"));
        let mut out = [0; 3];
        stream.io.read_exact(&mut out).await.expect("bytes");
        assert_eq!(&out, b"out");
        stream.io.write_all(b"in").await.expect("there is room");
        stream.io.shutdown().await.expect("it is open");
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.expect("bytes");
        assert_eq!(rest, b"in");
    }

    #[tokio::test]
    async fn an_answer_in_http_to_a_request_for_another_protocol_is_a_refusal() {
        let stream = server_with(b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone");
        let switched = upgrade(stream, request().upgrade("tcp")).await;
        let Ok(Switched::Refused(response)) = switched else {
            panic!("the server has not switched");
        };
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let body = response.into_body(16).await;
        assert_eq!(body, Ok(Bytes::from_static(b"none")));
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_written_is_an_error_of_the_request() {
        let request = Request::new(Method::GET, "/v1/a name");
        let answer = call(server_with(b""), request, LIMITS).await;
        assert!(matches!(answer, Err(HttpError::Request(_))), "{answer:?}");
    }
}

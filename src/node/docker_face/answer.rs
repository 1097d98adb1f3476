//! The answers of the face of Docker's API: JSON, nothing, bytes that go on, and failures in Docker's form, `{"message": ".."}`.

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_TYPE, HeaderName, UPGRADE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use hyper::ext::ReasonPhrase;
use serde_json::{Value, json};

use super::documents::newest_version;
use super::query::BadQuery;
use super::routes::NoRoute;
use crate::containers::engine::EngineFault;
use crate::model::text::message;
use crate::node::spawn::Failed;
use crate::protocol::api::{ApiError, ErrorCode};

/// The types of the bytes of attached containers and commands: without and with a head before each part.
const RAW: &str = "application/vnd.docker.raw-stream";
const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    status: u16,
    message: String,
}

impl Failure {
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self {
            status: 400,
            message: message.into(),
        }
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self {
            status: 404,
            message: message.into(),
        }
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self {
            status: 409,
            message: message.into(),
        }
    }

    pub(super) fn too_many_streams(most: usize) -> Self {
        Self {
            status: 429,
            message: format!(
                "{most} streams of this caller are open, which are the most; end one of them"
            ),
        }
    }

    pub(super) fn too_many_commands(most: usize) -> Self {
        Self {
            status: 429,
            message: format!(
                "{most} commands of this container are prepared and not started, which are the most; start one of them"
            ),
        }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// The answer that reports the failure.
    pub(super) fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_with(status, &json!({"message": self.message}));
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self {
            status: error.code.status(),
            message: error.message,
        }
    }
}

impl From<NoRoute> for Failure {
    fn from(error: NoRoute) -> Self {
        Self {
            status: error.status(),
            message: message(&error.to_string()),
        }
    }
}

impl From<BadQuery> for Failure {
    fn from(error: BadQuery) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Engine(fault) => fault.into(),
            other => Self {
                status: other.code().status(),
                message: other.to_string(),
            },
        }
    }
}

impl From<EngineFault> for Failure {
    fn from(fault: EngineFault) -> Self {
        match fault {
            // The engine refuses what the caller asked for, with a reason for the caller.
            EngineFault::Rejected(status @ 400..=499, message) => Self { status, message },
            other => Self {
                status: ErrorCode::Unreachable.status(),
                message: format!("the container engine of this node cannot do that: {other}"),
            },
        }
    }
}

/// An answer with a document.
pub(super) fn json(document: &Value) -> Response {
    json_with(StatusCode::OK, document)
}

/// An answer that something was created.
pub(super) fn created(document: &Value) -> Response {
    json_with(StatusCode::CREATED, document)
}

fn json_with(status: StatusCode, document: &Value) -> Response {
    let mut text = document.to_string();
    text.push('\n');
    let mut response = of(status, Body::from(text));
    set_type(&mut response, "application/json");
    response
}

/// The answer to a call that has no other one.
pub(super) fn done() -> Response {
    of(StatusCode::NO_CONTENT, Body::empty())
}

/// The answer to the start of a command whose output nobody reads.
pub(super) fn started() -> Response {
    of(StatusCode::OK, Body::empty())
}

/// The answer to `/_ping`, by which clients find the version to speak.
pub(super) fn pong() -> Response {
    let mut response = of(StatusCode::OK, Body::from("OK"));
    set_type(&mut response, "text/plain; charset=utf-8");
    let headers = response.headers_mut();
    let no_store = HeaderValue::from_static("no-cache, no-store, must-revalidate");
    headers.insert("cache-control", no_store);
    response
}

/// An answer whose body goes on, with JSON texts in it.
pub(super) fn json_stream(body: Body) -> Response {
    let mut response = of(StatusCode::OK, body);
    set_type(&mut response, "application/json");
    response
}

/// An answer whose body is the output of a container. `engine_type` is the type that the engine named.
pub(super) fn output(engine_type: Option<&str>, body: Body) -> Response {
    let mut response = of(StatusCode::OK, body);
    set_type(&mut response, known_type(engine_type));
    response
}

/// An answer with a tar archive, and the description of what is in it.
pub(super) fn archive(stat: Option<&str>, body: Body) -> Response {
    let mut response = of(StatusCode::OK, body);
    set_type(&mut response, "application/x-tar");
    if let Some(stat) = stat.and_then(|stat| HeaderValue::from_str(stat).ok()) {
        let name = HeaderName::from_static("x-docker-container-path-stat");
        response.headers_mut().insert(name, stat);
    }
    response
}

/// The answer after which the connection carries bytes in both directions.
pub(super) fn upgraded(engine_type: Option<&str>) -> Response {
    let mut response = of(StatusCode::SWITCHING_PROTOCOLS, Body::empty());
    set_type(&mut response, known_type(engine_type));
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
    let reason = ReasonPhrase::from_static(b"UPGRADED");
    response.extensions_mut().insert(reason);
    response
}

fn known_type(engine_type: Option<&str>) -> &'static str {
    match engine_type {
        Some(MULTIPLEXED) => MULTIPLEXED,
        _ => RAW,
    }
}

/// An answer with the headers that each answer of Docker has.
fn of(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let Ok(version) = HeaderValue::from_str(&newest_version()) {
        headers.insert(HeaderName::from_static("api-version"), version);
    }
    let linux = HeaderValue::from_static("linux");
    headers.insert(HeaderName::from_static("ostype"), linux);
    response
}

fn set_type(response: &mut Response, kind: &'static str) {
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    #[tokio::test]
    async fn a_failure_is_a_message_as_docker_writes_it() {
        let error = ApiError::new(ErrorCode::Unauthorized, "it needs a token");
        let response = Failure::from(error).into_response();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(response.headers().contains_key(WWW_AUTHENTICATE));
        let body = to_bytes(response.into_body(), 1000).await.expect("short");
        assert_eq!(&body[..], b"{\"message\":\"it needs a token\"}\n");
    }

    #[test]
    fn only_what_the_engine_says_to_the_caller_is_a_fault_of_the_caller() {
        let status = |fault: EngineFault| Failure::from(fault).status;
        assert_eq!(status(EngineFault::Rejected(409, "x".into())), 409);
        assert_eq!(status(EngineFault::Rejected(500, "x".into())), 503);
        assert_eq!(status(EngineFault::Silent), 503);
    }

    #[test]
    fn an_upgrade_names_the_type_of_the_engine_if_docker_has_it() {
        for (engine, expected) in [
            (Some(MULTIPLEXED), MULTIPLEXED),
            (Some(RAW), RAW),
            (Some("text/html"), RAW),
            (None, RAW),
        ] {
            let response = upgraded(engine);
            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            assert_eq!(response.headers()[CONTENT_TYPE], expected);
            assert_eq!(response.headers()[UPGRADE], "tcp");
        }
    }
}

//! The answers of the API over the network. Each failure is a problem (RFC 9457), whether a handler, the router or the
//! parser of the request found it.

use axum::body::{Body, to_bytes};
use axum::http::header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

use crate::os::unix_server::status_of;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::web::problem::{self, Problem};

/// The maximum size of the body of a failure, in bytes. The programs write one line.
const MAX_FAILURE: usize = 16 * 1024;

/// An answer with a JSON document.
#[must_use]
pub fn json(document: &Value) -> Response {
    axum::Json(document).into_response()
}

/// The answer that reports `error`.
pub(super) fn failure(error: ApiError) -> Response {
    with_status(status_of(&error), error)
}

/// The answer for a path that has other methods.
pub(super) fn other_methods(methods: &[&str]) -> Response {
    let methods = methods.join(", ");
    let error = ApiError::new(
        ErrorCode::BadRequest,
        format!("this path has no such method; it has {methods}"),
    );
    let mut response = with_status(StatusCode::METHOD_NOT_ALLOWED, error);
    if let Ok(methods) = HeaderValue::from_str(&methods) {
        response.headers_mut().insert(ALLOW, methods);
    }
    response
}

/// Turns a failure of a handler into a problem. Another answer stays as it is.
pub(super) async fn normalized(response: Response) -> Response {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let body = to_bytes(response.into_body(), MAX_FAILURE).await;
    let body = body.unwrap_or_default();
    let error = serde_json::from_slice(&body).unwrap_or_else(|_| unexplained(status));
    with_status(status, error)
}

/// The error of an answer without one, which the parser of the request gave.
fn unexplained(status: StatusCode) -> ApiError {
    let (code, text) = match status {
        StatusCode::PAYLOAD_TOO_LARGE => (
            ErrorCode::BadRequest,
            "the body of the request is too long; 64 KiB are the most, and 240 KiB for a policy that is checked",
        ),
        status if status.is_client_error() => (
            ErrorCode::BadRequest,
            "the request cannot be read; see the description of the API",
        ),
        _ => (ErrorCode::Internal, "the program failed; look at its log"),
    };
    ApiError::new(code, text)
}

fn with_status(status: StatusCode, error: ApiError) -> Response {
    let title = status.canonical_reason().unwrap_or("Failure");
    let problem = Problem::new(status.as_u16(), title, error);
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static(problem::CONTENT_TYPE);
    headers.insert(CONTENT_TYPE, kind);
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::unix_server;

    async fn problem_of(response: Response) -> (u16, String, Problem) {
        let status = response.status().as_u16();
        let kind = response.headers().get(CONTENT_TYPE).cloned();
        let kind = kind.expect("a type").to_str().expect("text").to_owned();
        let body = to_bytes(response.into_body(), MAX_FAILURE).await;
        let body = body.expect("it is short");
        (
            status,
            kind,
            serde_json::from_slice(&body).expect("a problem"),
        )
    }

    #[tokio::test]
    async fn each_failure_is_a_problem_with_its_status() {
        let error = ApiError::new(ErrorCode::NotFound, "there is no service web");
        let response = normalized(unix_server::failure(error.clone())).await;
        let (status, kind, problem) = problem_of(response).await;
        assert_eq!((status, kind.as_str()), (404, "application/problem+json"));
        assert_eq!((problem.status, problem.title.as_str()), (404, "Not Found"));
        assert_eq!(ApiError::from(problem), error);

        let mut bare = Response::new(Body::from("length limit exceeded"));
        *bare.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        let (status, _, problem) = problem_of(normalized(bare).await).await;
        assert_eq!(status, 413);
        assert!(problem.detail.contains("64 KiB"), "{problem:?}");

        let long = axum::http::Response::builder()
            .status(500)
            .body(Body::from("x".repeat(100_000)));
        let (status, _, problem) = problem_of(normalized(long.expect("valid")).await).await;
        assert_eq!((status, problem.code), (500, ErrorCode::Internal));
    }

    #[tokio::test]
    async fn a_missing_token_and_a_wrong_method_say_what_is_needed() {
        let response = failure(ApiError::new(ErrorCode::Unauthorized, "no token; show one"));
        assert_eq!(
            response
                .headers()
                .get(WWW_AUTHENTICATE)
                .map(HeaderValue::as_bytes),
            Some(&b"Bearer"[..])
        );
        let response = other_methods(&["GET", "POST"]);
        assert_eq!(
            response.headers().get(ALLOW).map(HeaderValue::as_bytes),
            Some(&b"GET, POST"[..])
        );
        assert_eq!(problem_of(response).await.0, 405);
    }

    #[tokio::test]
    async fn an_answer_that_is_no_failure_stays_as_it_is() {
        let response = normalized(json(&serde_json::json!({"schema": 1}))).await;
        assert_eq!(response.status(), StatusCode::OK);
        let body = to_bytes(response.into_body(), 100).await.expect("short");
        assert_eq!(&body[..], br#"{"schema":1}"#);
    }
}

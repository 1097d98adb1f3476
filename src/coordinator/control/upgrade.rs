//! Accepts the HTTP request that opens a WebSocket (RFC 6455 section 4.2).

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::Response;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::frames::{Bound, Bounded};
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::control::MAX_MESSAGE;

/// The initial size of each connection's buffers, in bytes. They grow with a larger message, and most messages are smaller.
const BUFFER: usize = 4096;

/// A connection of a node that sends and receives WebSocket messages.
pub(super) type Socket = WebSocketStream<Bounded<TokioIo<Upgraded>>>;

/// Accepts a request for a WebSocket. Returns the answer, and a future of the connection, which is ready once the answer is sent.
pub(super) fn accept(request: &mut Request) -> Result<(Response, OnUpgrade), ApiError> {
    let key = requested(request.headers())
        .ok_or_else(|| ApiError::new(ErrorCode::BadRequest, "this path is a WebSocket"))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("upgrade"),
    );
    headers.insert(
        header::UPGRADE,
        header::HeaderValue::from_static("websocket"),
    );
    let accepted = derive_accept_key(key.as_bytes());
    if let Ok(accepted) = accepted.parse() {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    }
    Ok((response, hyper::upgrade::on(request)))
}

/// The `Sec-WebSocket-Key` of a request for a WebSocket; none, if the request asks for something else.
fn requested(headers: &HeaderMap) -> Option<String> {
    let has = |name: HeaderName, wanted: &str| {
        let mut values = headers.get_all(name).iter();
        values.any(|value| {
            let words = value.to_str().unwrap_or_default().split(',');
            words
                .map(str::trim)
                .any(|word| word.eq_ignore_ascii_case(wanted))
        })
    };
    let is_wanted = has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    is_wanted.then(|| key.to_owned())
}

/// Makes the WebSocket of an accepted request.
pub(super) async fn socket(upgraded: Upgraded, bound: Bound) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER);
    let bounded = Bounded::new(TokioIo::new(upgraded), bound);
    WebSocketStream::from_raw_socket(bounded, Role::Server, Some(config)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[(HeaderName, &'static str)]) -> HeaderMap {
        values
            .iter()
            .map(|(name, value)| (name.clone(), header::HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn a_websocket_is_asked_for_as_the_standard_says() {
        let mut asked = vec![
            (header::CONNECTION, "keep-alive, Upgrade"),
            (header::UPGRADE, "WebSocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let key = requested(&headers(&asked)).expect("all that is needed");
        // The example of RFC 6455 section 1.3.
        assert_eq!(
            derive_accept_key(key.as_bytes()),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        for missing in 0..asked.len() {
            let mut asked = asked.clone();
            asked.remove(missing);
            assert_eq!(requested(&headers(&asked)), None);
        }
        asked[2].1 = "12";
        assert_eq!(requested(&headers(&asked)), None);
    }
}

//! The join call.

use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::model::text::message;
use crate::os::dial::{DialError, dial};
use crate::os::http::{self, Answer, Limits, Method, Request};
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::join::{CHECK_PATH, JoinCheck, JoinRequest, JoinResponse, PATH};
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;

/// The coordinator waits for its disk before it answers. The answer holds four records and little more.
const ANSWER_LIMITS: Limits = Limits {
    body: 512 * 1024,
    time: Duration::from_secs(15),
};

/// Why a join did not happen.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The coordinator says no.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The connection ended in the middle; whether the node was admitted is not known, and asking again is safe.
    #[error(
        "the coordinator at {url} did not answer: {why}; run the same `meshctl join` again, the token is not lost"
    )]
    Broken {
        /// Where.
        url: CoordinatorUrl,
        /// What went wrong.
        why: String,
    },
}

/// Asks the coordinators of `urls`, in a random order, until one answers: all are equal, and asking another again what
/// one may have granted is safe.
///
/// # Errors
/// A refusal ends the search; a coordinator that cannot be reached, breaks off or cannot say now does not.
pub async fn join(
    urls: &[CoordinatorUrl],
    pin: SpkiPin,
    request: &JoinRequest,
) -> Result<JoinResponse, JoinError> {
    ask_any(urls, pin, PATH, request).await
}

/// Asks the coordinators of `urls` whether they would grant `request`. Nothing is spent. None, if they are of a version
/// that cannot say.
///
/// # Errors
/// As for [`join`].
pub async fn check(
    urls: &[CoordinatorUrl],
    pin: SpkiPin,
    request: &JoinRequest,
) -> Result<Option<JoinCheck>, JoinError> {
    match ask_any(urls, pin, CHECK_PATH, request).await {
        Ok(check) => Ok(Some(check)),
        Err(JoinError::Refused(refusal)) if refusal.code == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn ask_any<T: DeserializeOwned>(
    urls: &[CoordinatorUrl],
    pin: SpkiPin,
    path: &'static str,
    request: &JoinRequest,
) -> Result<T, JoinError> {
    let mut last = None;
    let random = super::stream::random().checked_rem(urls.len() as u64);
    let (before, from) = urls.split_at(random.unwrap_or_default() as usize);
    for url in from.iter().chain(before) {
        let answer = match dial(url, pin).await {
            Ok(stream) => ask(url, stream, path, request).await,
            Err(error) => Err(error.into()),
        };
        match answer {
            Ok(response) => return Ok(response),
            Err(JoinError::Refused(refusal)) if !is_passing(&refusal) => {
                return Err(refusal.into());
            }
            // Of several failures one that tells more than that nobody answers is told.
            Err(JoinError::Dial(_)) if last.is_some() => {}
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| {
        ApiError::new(ErrorCode::BadRequest, "the token names no coordinator").into()
    }))
}

/// Whether another coordinator may answer otherwise.
fn is_passing(refusal: &ApiError) -> bool {
    matches!(refusal.code, ErrorCode::Busy | ErrorCode::Internal)
}

async fn ask<T: DeserializeOwned>(
    url: &CoordinatorUrl,
    stream: tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
    path: &'static str,
    request: &JoinRequest,
) -> Result<T, JoinError> {
    let body = serde_json::to_vec(request).map_err(|e| broken(url, e))?;
    let request = Request::new(Method::POST, path)
        .host(url.authority())
        .json(body);
    let Answer { status, body } = http::call(stream, request, ANSWER_LIMITS)
        .await
        .map_err(|e| broken(url, e))?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|e| broken(url, e));
    }
    match serde_json::from_slice::<ApiError>(&body) {
        Ok(refusal) => Err(JoinError::Refused(refusal)),
        Err(_) => Err(JoinError::Dial(DialError::NotACoordinator {
            url: url.clone(),
            why: format!("it answers HTTP {}", status.as_u16()),
        })),
    }
}

fn broken(url: &CoordinatorUrl, why: impl std::fmt::Display) -> JoinError {
    JoinError::Broken {
        url: url.clone(),
        why: message(&why.to_string()),
    }
}

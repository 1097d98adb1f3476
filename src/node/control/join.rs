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

/// The reason why there is no answer to a request to join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is no connection to the coordinator.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The coordinator refuses.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The connection ended before the answer was complete. The coordinator may have admitted the node. Asking again is safe.
    #[error(
        "the coordinator at {url} did not answer: {why}; run the same `meshctl join` again, the token is not lost"
    )]
    Broken {
        /// The URL of the coordinator.
        url: CoordinatorUrl,
        /// The reason, in one line.
        why: String,
    },
}

/// Asks the coordinators of `urls` for a membership, in a random order, until one grants or refuses it. A request that one may have granted
/// already can safely be sent to another.
///
/// # Errors
/// A coordinator refuses, or none of them answers now.
pub async fn join(
    urls: &[CoordinatorUrl],
    pin: SpkiPin,
    request: &JoinRequest,
) -> Result<JoinResponse, JoinError> {
    ask_any(urls, pin, PATH, request).await
}

/// Asks the coordinators of `urls` whether they would grant `request`. The token loses no use by this. Returns `None` if the coordinator is of a
/// version without this call.
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
            Err(error) => last = Some(to_report(last, error)),
        }
    }
    Err(last.unwrap_or_else(|| {
        ApiError::new(ErrorCode::BadRequest, "the token names no coordinator").into()
    }))
}

/// Returns the failure, out of two, that the user reads.
fn to_report(first: Option<JoinError>, second: JoinError) -> JoinError {
    match first {
        Some(first) if priority(&first) > priority(&second) => first,
        _ => second,
    }
}

/// The priority of a failure in a report: lowest if no coordinator is reached, and highest if one may have admitted the node.
fn priority(error: &JoinError) -> u8 {
    match error {
        JoinError::Dial(DialError::Unresolved { .. } | DialError::Unreachable { .. }) => 0,
        JoinError::Dial(DialError::NotACoordinator { .. } | DialError::Pin { .. }) => 1,
        JoinError::Refused(_) => 2,
        JoinError::Broken { .. } => 3,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::dial::Obstacle;

    #[test]
    fn the_most_specific_failure_is_reported_whatever_the_order_of_the_coordinators() {
        let url: CoordinatorUrl = "https://192.0.2.1:7443".parse().expect("a literal");
        let unreached = || {
            JoinError::Dial(DialError::Unreachable {
                url: url.clone(),
                why: "no route".to_owned(),
                obstacle: Obstacle::Other,
            })
        };
        let other_key = || JoinError::Dial(DialError::Pin { url: url.clone() });
        let busy = || JoinError::Refused(ApiError::new(ErrorCode::Busy, "too many joins"));
        let cut_off = || broken(&url, "cut off");
        let rising: [&dyn Fn() -> JoinError; 4] = [&unreached, &other_key, &busy, &cut_off];
        for (at, more) in rising.iter().enumerate() {
            for less in &rising[..=at] {
                let expected = more().to_string();
                let one_way = to_report(Some(less()), more());
                let other_way = to_report(Some(more()), less());
                assert_eq!(one_way.to_string(), expected);
                assert_eq!(other_way.to_string(), expected);
            }
        }
        let only = to_report(None, unreached());
        assert_eq!(only.to_string(), unreached().to_string());
    }
}

//! Ends a stream whose caller may not have it any more: its token was revoked or has expired, its address is free or belongs to another caller now,
//! or the time of the container is over.
//!
//! The check runs beside the stream and cuts the connection, so it does not depend on what the caller reads. An engine may keep a
//! container, locked, for as long as a client reads a copy out of it, and could not remove it at the end of its time.

use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use tokio::time::sleep;

use super::Face;
use crate::model::time::UnixSeconds;
use crate::node::spawn::Call;
use crate::os::clock;
use crate::os::web::{Knowledge, LongAnswer};
use crate::protocol::api::ErrorCode;
use crate::spawn::Entry;

/// The time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// After how many looks in a row at which the address gives no template its stream ends. A service is missing for a moment if its node
/// starts again.
const PATIENCE: u32 = 20;
/// How long the engine has to remove a container whose time is over. Its streams end properly then.
const EXPIRY_GRACE: Duration = Duration::from_secs(5);

/// Returns when a caller may not make its call any more.
pub(super) type Lost = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The part of a request's headers that proves its caller.
pub(super) fn proof_of(headers: &HeaderMap) -> HeaderMap {
    let mut proof = HeaderMap::new();
    if let Some(token) = headers.get(AUTHORIZATION) {
        proof.insert(AUTHORIZATION, token.clone());
    }
    proof
}

/// Returns when the caller may not make its call any more, or is somebody else.
pub(super) async fn lost<K: Knowledge>(
    face: Face<K>,
    call: Call,
    source: IpAddr,
    proof: HeaderMap,
) {
    let Ok(before) = face.spawner.granted(&call) else {
        return;
    };
    let has_token = proof.contains_key(AUTHORIZATION);
    let mut unknown = 0;
    while unknown < PATIENCE {
        sleep(LOOK_INTERVAL).await;
        match face.guard.check_again(source, &proof).await {
            Ok(caller) => {
                let by = call.by.clone();
                let now = Call { by, caller };
                // Unlike the next call, this one notes no refusal.
                if face.spawner.owned(&now).is_err() {
                    unknown += 1;
                    continue;
                }
                let granted = face.spawner.granted(&now);
                if granted.is_ok_and(|granted| granted == before) {
                    unknown = 0;
                } else {
                    return;
                }
            }
            Err(error) if has_token && is_refusal(error.code) => return,
            Err(_) => unknown += 1,
        }
    }
}

/// Whether a token is refused, and not only the check impossible for now.
fn is_refusal(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Unauthorized | ErrorCode::Forbidden)
}

/// How long a stream of a container may last.
pub(super) fn left_of(entry: &Entry) -> Duration {
    let now = UnixSeconds::from_system(clock::now().wall);
    let left = Duration::from_secs(entry.expires_at.0.saturating_sub(now.0));
    left.saturating_add(EXPIRY_GRACE)
}

/// Cuts a connection when its caller is `lost`, or after `left`.
pub(super) async fn watch(lost: Lost, left: Option<Duration>, long: LongAnswer) {
    let expired = async {
        match left {
            Some(left) => sleep(left).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = lost => {}
        () = expired => {}
    }
    long.cut();
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// Whether a connection is cut within some seconds.
    async fn is_cut(lost: Lost, left: Option<Duration>, limit: Duration) -> bool {
        let long = LongAnswer::default();
        let watching = tokio::spawn(watch(lost, left, long.clone()));
        let is_cut = timeout(limit, long.has_to_end()).await.is_ok();
        watching.abort();
        is_cut
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_permission_or_with_the_time_of_its_container() {
        let never = || -> Lost { Box::pin(std::future::pending()) };
        let now: Lost = Box::pin(std::future::ready(()));
        let long = Duration::from_secs(60);
        assert!(is_cut(now, None, long).await);
        assert!(is_cut(never(), Some(Duration::ZERO), long).await);
        let short = Duration::from_millis(50);
        assert!(!is_cut(never(), Some(long), short).await);
        assert!(!is_cut(never(), None, short).await);
    }
}

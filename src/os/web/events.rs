//! Events: a stream that says when the mesh has another revision (`text/event-stream`, section 9.2 of the HTML standard).
//!
//! A program that shows the mesh requests its data again when an event arrives. The id of an event is the revision. So a program
//! whose connection ended sends the last id (`Last-Event-ID`), and receives an event at once if the mesh has changed in the meantime. A
//! stream ends after a while, as each connection does, and the program opens the next one.

use std::convert::Infallible;
use std::future::Future;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use futures_util::stream;

/// The time between two looks at the revision.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// The beginning of a stream. After the end of the stream, a program waits for this number of milliseconds before it opens the next one.
const HEAD: &str = "retry: 1000\n\n";

/// A stream that has not ended.
struct Events<F> {
    /// The revision that the program knows.
    last: Option<u64>,
    /// Returns the present revision. None ends the stream.
    revision: F,
    end: Instant,
    has_begun: bool,
}

/// The answer with the events of a request with `headers`. The stream ends after `lifetime`, or when `revision` returns none.
pub fn events<F, R>(headers: &HeaderMap, lifetime: Duration, revision: F) -> Response
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = Option<u64>> + Send + 'static,
{
    let last = headers.get("last-event-id");
    let last = last.and_then(|id| id.to_str().ok()?.parse().ok());
    let events = Events {
        last,
        revision,
        end: Instant::now() + lifetime,
        has_begun: false,
    };
    let mut response = Response::new(Body::from_stream(stream::unfold(events, next)));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream");
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn next<F, R>(mut events: Events<F>) -> Option<(Result<Bytes, Infallible>, Events<F>)>
where
    F: Fn() -> R,
    R: Future<Output = Option<u64>>,
{
    if !events.has_begun {
        events.has_begun = true;
        return Some((Ok(Bytes::from_static(HEAD.as_bytes())), events));
    }
    loop {
        let asked = (events.revision)();
        let revision = asked.await?;
        if events.last != Some(revision) {
            events.last = Some(revision);
            return Some((Ok(Bytes::from(text_of(revision))), events));
        }
        if Instant::now() >= events.end {
            return None;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn text_of(revision: u64) -> String {
    format!("id: {revision}\nevent: revision\ndata: {{\"revision\":{revision}}}\n\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::body::to_bytes;

    use super::*;

    /// The whole stream for a program that knows the revision `last`, while the mesh has the revision 7.
    async fn stream_after(last: &str) -> String {
        let mut headers = HeaderMap::new();
        let last = HeaderValue::from_str(last).expect("ASCII");
        headers.insert("last-event-id", last);
        let response = events(&headers, Duration::ZERO, || async { Some(7) });
        text(response).await
    }

    async fn text(response: Response) -> String {
        let body = to_bytes(response.into_body(), 4096).await.expect("short");
        String::from_utf8(body.to_vec()).expect("text")
    }

    #[tokio::test]
    async fn a_program_that_was_away_receives_an_event_if_the_mesh_has_changed() {
        let event = "id: 7\nevent: revision\ndata: {\"revision\":7}\n\n";
        assert_eq!(stream_after("7").await, HEAD);
        for other in ["6", "8", "", "x"] {
            assert_eq!(stream_after(other).await, format!("{HEAD}{event}"));
        }
        let first = events(&HeaderMap::new(), Duration::ZERO, || async { Some(7) });
        assert_eq!(first.headers()[CONTENT_TYPE], "text/event-stream");
        assert_eq!(text(first).await, format!("{HEAD}{event}"));
    }

    #[tokio::test]
    async fn each_revision_that_is_seen_is_an_event_until_the_server_stops() {
        let looks = Arc::new(AtomicU64::new(0));
        let revision = move || {
            let look = looks.fetch_add(1, Ordering::Relaxed);
            async move { [1, 1, 2].get(usize::try_from(look).ok()?).copied() }
        };
        let stream = events(&HeaderMap::new(), Duration::from_secs(3600), revision);
        let ids: Vec<String> = text(stream)
            .await
            .lines()
            .filter_map(|line| line.strip_prefix("id: ").map(str::to_owned))
            .collect();
        assert_eq!(ids, ["1", "2"]);
    }
}

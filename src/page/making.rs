//! Makes views. However many pages show a view, it is made once at a time, and the others receive the same text.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use maud::Markup;
use tokio::sync::Mutex;

use super::table::Filter;
use crate::protocol::api::{ApiError, ErrorCode};

/// How long others receive a view that was made. It is short, because a change of the mesh is to be on a page within a second.
const SHOWN_FOR: Duration = Duration::from_millis(200);
/// A view that takes long to make is shown this many times as long, so that a view takes no more than this part of one core.
const TIMES: u32 = 4;
/// The longest time for which others receive a view.
const MAX_SHOWN_FOR: Duration = Duration::from_secs(5);
/// The maximum number of views that are kept. Pages with different filters show different views.
const MAX_KEPT: usize = 8;

/// The view that a page asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub view: &'static str,
    pub filter: Filter,
}

impl Asked {
    /// A view without a filter.
    #[must_use]
    pub fn whole(view: &'static str) -> Self {
        Self {
            view,
            filter: Filter::default(),
        }
    }
}

/// Makes views, one after the other, so that they take one core at most. A clone refers to the same views.
#[derive(Debug, Clone, Default)]
pub struct Maker(Arc<Mutex<Made>>);

impl Maker {
    /// Returns the view that is asked for. It is made of `values`, in a thread where it may take its time. It keeps its turn until it is
    /// made, also if the caller hangs up.
    ///
    /// # Errors
    /// `values` or `render` failed.
    pub async fn make<T: Send + 'static>(
        &self,
        asked: Asked,
        values: impl Future<Output = Result<T, ApiError>>,
        render: impl FnOnce(T) -> Result<Markup, ApiError> + Send + 'static,
    ) -> Result<Bytes, ApiError> {
        let mut made = Arc::clone(&self.0).lock_owned().await;
        let begun = Instant::now();
        if let Some(text) = made.find(&asked, begun) {
            return Ok(text);
        }
        let values = values.await?;
        let making = tokio::task::spawn_blocking(move || -> Result<Bytes, ApiError> {
            let text = Bytes::from(render(values)?.into_string());
            made.keep(asked, text.clone(), begun, Instant::now());
            Ok(text)
        });
        making.await.unwrap_or_else(|_| {
            let text = "the program failed; look at its log";
            Err(ApiError::new(ErrorCode::Internal, text))
        })
    }
}

/// The views that were made lately. Pure.
#[derive(Debug, Default)]
struct Made(Vec<MadeView>);

#[derive(Debug)]
struct MadeView {
    asked: Asked,
    text: Bytes,
    shown_until: Instant,
}

impl Made {
    fn find(&self, asked: &Asked, now: Instant) -> Option<Bytes> {
        let mut views = self.0.iter();
        let found = views.find(|view| view.shown_until > now && view.asked == *asked);
        found.map(|view| view.text.clone())
    }

    /// Keeps a view. Its values are those of the time `begun`.
    fn keep(&mut self, asked: Asked, text: Bytes, begun: Instant, now: Instant) {
        let took = now.saturating_duration_since(begun);
        let shown_for = took.saturating_mul(TIMES).clamp(SHOWN_FOR, MAX_SHOWN_FOR);
        self.0
            .retain(|view| view.shown_until > now && view.asked != asked);
        if self.0.len() >= MAX_KEPT {
            self.0.remove(0);
        }
        self.0.push(MadeView {
            asked,
            text,
            shown_until: begun + shown_for,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use maud::html;

    use super::*;

    fn busy() -> ApiError {
        ApiError::new(ErrorCode::Busy, "later")
    }

    fn filtered(filter: &str) -> Asked {
        Asked {
            view: "nodes",
            filter: Filter::parse(filter),
        }
    }

    #[tokio::test]
    async fn of_ten_thousand_pages_that_ask_at_once_few_cost_anything() {
        let maker = Maker::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let made = Arc::new(AtomicUsize::new(0));
        let pages = (0..10_000).map(|_| {
            let (asked, made) = (Arc::clone(&asked), Arc::clone(&made));
            let values = async move {
                asked.fetch_add(1, Ordering::Relaxed);
                // A view that takes this long is shown for two seconds.
                tokio::time::sleep(Duration::from_millis(500)).await;
                Ok("a value")
            };
            maker.make(Asked::whole("nodes"), values, move |value| {
                made.fetch_add(1, Ordering::Relaxed);
                Ok(html! { (value) })
            })
        });
        let texts = futures_util::future::join_all(pages).await;
        assert!(
            texts
                .into_iter()
                .all(|text| text.is_ok_and(|t| t == "a value"))
        );
        let (asked, made) = (asked.load(Ordering::Relaxed), made.load(Ordering::Relaxed));
        assert_eq!(asked, made);
        assert!((1..100).contains(&made), "{made}");
    }

    #[tokio::test]
    async fn a_failure_is_told_to_its_caller_and_not_kept() {
        let maker = Maker::default();
        let failed = maker
            .make(
                Asked::whole("nodes"),
                async { Err::<(), _>(busy()) },
                |()| Ok(html! {}),
            )
            .await;
        assert_eq!(failed, Err(busy()));
        let values = || async { Ok(()) };
        let failed = maker
            .make(Asked::whole("nodes"), values(), |()| Err(busy()))
            .await;
        assert_eq!(failed, Err(busy()));
        let made = maker
            .make(Asked::whole("nodes"), values(), |()| Ok(html! { "made" }))
            .await;
        assert_eq!(made, Ok(Bytes::from("made")));
    }

    #[test]
    fn a_view_is_shown_for_a_moment_to_those_who_ask_for_the_same() {
        let begun = Instant::now();
        let mut made = Made::default();
        made.keep(filtered("web"), "one".into(), begun, begun);
        let soon = begun + SHOWN_FOR / 2;
        assert_eq!(made.find(&filtered("web"), soon), Some("one".into()));
        assert_eq!(made.find(&filtered("db"), soon), None);
        let of_services = Asked {
            view: "services",
            ..filtered("web")
        };
        assert_eq!(made.find(&of_services, soon), None);
        assert_eq!(made.find(&filtered("web"), begun + SHOWN_FOR), None);
    }

    #[test]
    fn a_view_that_took_long_is_shown_longer_up_to_a_bound() {
        let begun = Instant::now();
        let mut made = Made::default();
        let took = Duration::from_millis(400);
        made.keep(filtered(""), "slow".into(), begun, begun + took);
        let found = |made: &Made, after: u64| {
            let at = begun + Duration::from_millis(after);
            made.find(&filtered(""), at).is_some()
        };
        assert!(found(&made, 1599) && !found(&made, 1600));
        let took = Duration::from_secs(100);
        made.keep(filtered(""), "very slow".into(), begun, begun + took);
        assert!(found(&made, 4999) && !found(&made, 5000));
    }

    #[test]
    fn few_views_are_kept_whatever_pages_ask_for() {
        let begun = Instant::now();
        let mut made = Made::default();
        for n in 0..1000 {
            made.keep(filtered(&n.to_string()), "x".into(), begun, begun);
        }
        assert_eq!(made.0.len(), MAX_KEPT);
        let later = begun + MAX_SHOWN_FOR;
        made.keep(filtered("last"), "x".into(), later, later);
        assert_eq!(made.0.len(), 1);
    }
}

//! The answers of a server: the frame with its files, the views, and the headers of all answers.

use std::future::{Future, ready};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware;
use axum::response::Response;
use axum::routing::get;
use maud::Markup;

use super::frame::{Program, frame};
use super::history::{Chart, History, Sample};
use super::making::{Asked, Maker};
use super::policy::PolicyFacts;
use super::table::MAX_ROWS;
use super::{audit, policy};
use crate::os::audit::reading;
use crate::os::unix_server::failure;
use crate::protocol::api::{ApiError, ErrorCode};

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
const ICON: &str = include_str!("icon.svg");

/// The headers of all answers of a server that has the page. Scripts, styles, pictures and connections are those of this server alone. No
/// other page may show this one in a frame or load a part of it, and no form is sent anywhere.
pub const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// Puts the page before the other handlers of a server. `views` are the handlers of the views, behind the check of their tokens.
pub fn with_page(program: &Program, views: Router, others: Router) -> Router {
    secured(files(program).fallback_service(views.fallback_service(others)))
}

/// The handlers of the frame and of its files, which need no token.
fn files(program: &Program) -> Router {
    let page = Bytes::from(frame(program).into_string());
    let whole = move || {
        let page = page.clone();
        async move { file(HTML, page) }
    };
    let style = || async { file("text/css; charset=utf-8", STYLE.into()) };
    let script = || async { file("text/javascript; charset=utf-8", SCRIPT.into()) };
    let icon = || async { file("image/svg+xml", ICON.into()) };
    Router::new()
        .route("/page", get(whole))
        .route("/page/style.css", get(style))
        .route("/page/script.js", get(script))
        .route("/page/icon.svg", get(icon))
}

/// Adds the headers to all answers of a router.
pub fn secured(router: Router) -> Router {
    router.layer(middleware::map_response(secure))
}

async fn secure(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        let name = HeaderName::from_static(name);
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A file of the frame. A browser asks for it again each time, so that a new version of the program has its own files.
fn file(kind: &'static str, content: Bytes) -> Response {
    answer(kind, "no-cache", Body::from(content))
}

/// The answer with a view, which no browser keeps.
#[must_use]
pub fn view(markup: Markup) -> Response {
    view_with(markup.into_string())
}

fn view_with(text: impl Into<Body>) -> Response {
    answer(HTML, "no-store", text.into())
}

fn answer(kind: &'static str, cache: &'static str, content: Body) -> Response {
    let mut response = Response::new(content);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}

/// The answer with a view of a result.
pub fn view_of<T>(result: Result<T, ApiError>, render: impl FnOnce(T) -> Markup) -> Response {
    match result {
        Ok(value) => view(render(value)),
        Err(error) => failure(error),
    }
}

/// What a server keeps for its page. A clone refers to the same.
#[derive(Debug, Clone)]
pub struct Kept {
    history: Arc<Mutex<History>>,
    /// The directory of the audit log. None if the program keeps none.
    audit: Option<PathBuf>,
    /// The views that take a moment.
    quick: Maker,
    /// The views that may take long. They hold up none of the others.
    slow: Maker,
}

impl Kept {
    #[must_use]
    pub fn new(charts: &'static [Chart], audit: Option<&Path>) -> Self {
        Self {
            history: Arc::new(Mutex::new(History::new(charts))),
            audit: audit.map(Path::to_owned),
            quick: Maker::default(),
            slow: Maker::default(),
        }
    }

    fn history(&self) -> MutexGuard<'_, History> {
        // No code under the lock can panic while the samples are half changed.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a measurement.
    pub fn add(&self, sample: Sample) {
        self.history().add(sample);
    }

    /// The view with the graphs.
    #[must_use]
    pub fn history_view(&self) -> Response {
        let history = self.history().clone();
        view(history.view())
    }

    /// The answer with a view of `values`.
    pub async fn view<T: Send + 'static>(
        &self,
        asked: Asked,
        values: impl Future<Output = Result<T, ApiError>>,
        render: impl FnOnce(T) -> Markup + Send + 'static,
    ) -> Response {
        let render = move |values| Ok(render(values));
        answered(self.quick.make(asked, values, render).await)
    }

    /// The view of the audit log.
    pub async fn audit_view(&self) -> Response {
        let directory = ready(Ok(self.audit.clone()));
        let asked = Asked::whole("audit");
        answered(self.slow.make(asked, directory, render_audit).await)
    }

    /// The view of the policy.
    pub async fn policy_view(
        &self,
        facts: impl Future<Output = Result<PolicyFacts, ApiError>>,
    ) -> Response {
        let asked = Asked::whole("policy");
        let render = |facts: PolicyFacts| Ok(policy::view(&facts));
        answered(self.slow.make(asked, facts, render).await)
    }
}

fn answered(made: Result<Bytes, ApiError>) -> Response {
    match made {
        Ok(text) => view_with(text),
        Err(error) => failure(error),
    }
}

/// The view of the audit log in a directory. None if the program keeps no log.
fn render_audit(directory: Option<PathBuf>) -> Result<Markup, ApiError> {
    let Some(directory) = directory else {
        return Ok(audit::view(None));
    };
    let lines = match reading::latest(&directory, MAX_ROWS) {
        // There is no file before the first event.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        lines => lines.map_err(|error| unreadable(&error))?,
    };
    Ok(audit::view(Some(&lines)))
}

fn unreadable(error: &io::Error) -> ApiError {
    let text = format!("the audit log cannot be read: {error}");
    ApiError::new(ErrorCode::Internal, text)
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::http::Request;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::os::audit::{Audit, Event, What, Who};
    use crate::page::frame::NODE;
    use crate::page::samples;

    async fn get_from(router: &Router, path: &str) -> Response {
        let request = Request::builder().uri(path).body(Body::empty());
        let router = TowerToHyperService::new(router.clone());
        let answer = router.call(request.expect("a valid request")).await;
        answer.expect("it never fails")
    }

    async fn text(response: Response) -> String {
        let body = to_bytes(response.into_body(), 1 << 20)
            .await
            .expect("short");
        String::from_utf8(body.to_vec()).expect("text")
    }

    fn server() -> Router {
        let views = Router::new().route("/page/view/nodes", get(|| async { "a view" }));
        let others = Router::new().route("/v1/status", get(|| async { "a call" }));
        with_page(&NODE, views, others)
    }

    #[tokio::test]
    async fn each_answer_has_the_headers_that_keep_other_scripts_and_pages_out() {
        let server = server();
        for (path, status) in [
            ("/page", 200),
            ("/page/style.css", 200),
            ("/page/script.js", 200),
            ("/page/view/nodes", 200),
            ("/v1/status", 200),
            ("/page/view/nothing", 404),
            ("/nothing", 404),
        ] {
            let answer = get_from(&server, path).await;
            assert_eq!(answer.status().as_u16(), status, "{path}");
            for (name, value) in HEADERS {
                assert_eq!(answer.headers()[name], value, "{path}");
            }
        }
        let policy = HEADERS[0].1;
        for part in [
            "default-src 'self'",
            "frame-ancestors 'none'",
            "form-action 'none'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }

    #[tokio::test]
    async fn the_frame_and_its_files_are_small_and_have_their_types() {
        let server = server();
        let mut size = 0;
        for (path, kind) in [
            ("/page", "text/html"),
            ("/page/style.css", "text/css"),
            ("/page/script.js", "text/javascript"),
            ("/page/icon.svg", "image/svg+xml"),
        ] {
            let answer = get_from(&server, path).await;
            let found = answer.headers()[CONTENT_TYPE].to_str().expect("ASCII");
            assert!(found.starts_with(kind), "{path}: {found}");
            size += text(answer).await.len();
        }
        assert!(size < 32 * 1024, "{size} bytes");
    }

    #[tokio::test]
    async fn the_last_events_of_the_log_are_shown() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        let shown = async |path| {
            let kept = Kept::new(samples::OF_NODE, path);
            text(kept.audit_view().await).await
        };
        let page = shown(Some(path)).await;
        assert!(page.contains("Events, the latest first"), "{page}");
        let audit = Audit::open(path);
        let reason = crate::os::audit::Text::from("a test");
        audit.record(Event::done(Who::Daemon, What::StoreWentBack { reason }));
        audit.flush();
        let page = shown(Some(path)).await;
        assert!(page.contains(">store went back<"), "{page}");
        let page = shown(None).await;
        assert!(page.contains("keeps no audit log"), "{page}");
    }
}

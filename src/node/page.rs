//! The page of a node ([`crate::page`]): its views, from what the local API returns, and the measurements for its graphs.

use std::time::Instant;

use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::api::{self, ApiQuery, Command, EVENTS_LIFETIME, LocalApi};
use crate::model::time::unix_milliseconds;
use crate::os::clock;
use crate::os::tasks::Tasks;
use crate::os::unix_server::failure;
use crate::os::web::{self, Guard, Knowledge, guarded};
use crate::page::changes::{Changes, ShownByNode};
use crate::page::making::Asked;
use crate::page::paths::PathsBetween;
use crate::page::server::{Kept, view_of};
use crate::page::services::Place;
use crate::page::table::Filter;
use crate::page::{calls, history, nodes, paths, problems, samples, services, why};
use crate::protocol::api::ApiError;
use crate::protocol::local::{ServiceList, Status, WhyRequest};

/// What the views need.
#[derive(Debug, Clone)]
struct Page {
    commands: mpsc::Sender<Command>,
    kept: Kept,
    changes: Changes<ShownByNode>,
}

impl Page {
    fn new(commands: mpsc::Sender<Command>, kept: Kept) -> Self {
        Self {
            commands,
            kept,
            changes: Changes::new(unix_milliseconds(clock::wall())),
        }
    }

    /// The number of the last change of what the page shows.
    async fn change(&self) -> Result<u64, ApiError> {
        let look = async {
            let records = |reply| Command::Api(ApiQuery::Records(reply));
            let records = api::send(&self.commands, records).await?;
            let status = api::send(&self.commands, Command::Status).await?;
            Ok::<_, ApiError>(ShownByNode::of(&status, records))
        };
        self.changes.number(look).await
    }
}

/// Starts the measurements. Returns the handlers of all views, behind the check of their tokens.
pub(super) fn start<K: Knowledge>(api: &LocalApi, guard: &Guard<K>) -> Router {
    let kept = Kept::new(samples::OF_NODE, api.audit.directory());
    let page = Page::new(api.commands.clone(), kept);
    Tasks::current().spawn("measurements for the page", measure(page.clone()));
    guarded(views(page), guard.of_calls(calls::OF_NODE))
}

/// The handlers of the views. They check no caller.
fn views(page: Page) -> Router {
    Router::new()
        .route(calls::CHANGES, get(follow))
        .route("/page/view/nodes", get(all_nodes))
        .route("/page/view/nodes/{filter}", get(some_nodes))
        .route("/page/view/paths", get(all_paths))
        .route("/page/view/paths/{filter}", get(some_paths))
        .route("/page/view/why/{node}", get(explain))
        .route("/page/view/services", get(all_services))
        .route("/page/view/services/{filter}", get(some_services))
        .route("/page/view/problems", get(list_problems))
        .route("/page/view/policy", get(show_policy))
        .route("/page/view/audit", get(show_audit))
        .route("/page/view/history", get(show_history))
        .with_state(page)
}

async fn measure(page: Page) {
    let mut samples = samples::NodeSamples::default();
    loop {
        if let Ok(status) = api::send(&page.commands, Command::Status).await {
            page.kept.add(samples.sample(&status, Instant::now()));
        }
        sleep(history::INTERVAL).await;
    }
}

/// A stream of the changes. The number of a change is in the place of the revision.
async fn follow(State(page): State<Page>, headers: HeaderMap) -> Response {
    let place = match page.changes.follow() {
        Ok(place) => place,
        Err(error) => return failure(error),
    };
    // A node without a mesh says so, and opens no stream.
    if let Err(error) = page.change().await {
        return failure(error);
    }
    web::events(&headers, EVENTS_LIFETIME, move || {
        let _ = &place;
        let page = page.clone();
        async move { page.change().await.ok() }
    })
}

async fn all_nodes(page: State<Page>) -> Response {
    show_nodes(page, Filter::default()).await
}

async fn some_nodes(page: State<Page>, UrlPath(filter): UrlPath<String>) -> Response {
    show_nodes(page, Filter::parse(&filter)).await
}

async fn show_nodes(State(page): State<Page>, filter: Filter) -> Response {
    let asked = Asked {
        view: "nodes",
        filter: filter.clone(),
    };
    let status = api::send(&page.commands, Command::Status);
    let render = move |status: Status| nodes::of_node(&status, &filter);
    page.kept.view(asked, status, render).await
}

async fn all_paths(page: State<Page>) -> Response {
    show_paths(page, Filter::default()).await
}

async fn some_paths(page: State<Page>, UrlPath(filter): UrlPath<String>) -> Response {
    show_paths(page, Filter::parse(&filter)).await
}

async fn show_paths(State(page): State<Page>, filter: Filter) -> Response {
    let asked = Asked {
        view: "paths",
        filter: filter.clone(),
    };
    let facts = |reply| Command::Api(ApiQuery::Paths(reply));
    let facts = api::send(&page.commands, facts);
    let render = move |facts: PathsBetween| paths::view(&facts, &filter);
    page.kept.view(asked, facts, render).await
}

async fn explain(State(page): State<Page>, UrlPath(node): UrlPath<String>) -> Response {
    let request = WhyRequest {
        from: None,
        to: node,
    };
    let command = |reply| Command::Why(request, reply);
    let explained = api::send(&page.commands, command).await;
    view_of(explained, |explained| why::view(&explained))
}

async fn all_services(page: State<Page>) -> Response {
    show_services(page, Filter::default()).await
}

async fn some_services(page: State<Page>, UrlPath(filter): UrlPath<String>) -> Response {
    show_services(page, Filter::parse(&filter)).await
}

async fn show_services(State(page): State<Page>, filter: Filter) -> Response {
    let asked = Asked {
        view: "services",
        filter: filter.clone(),
    };
    let list = api::send(&page.commands, Command::Services);
    let render = move |list: ServiceList| services::view(&list, &filter, Place::Node);
    page.kept.view(asked, list, render).await
}

async fn list_problems(State(page): State<Page>) -> Response {
    let asked = Asked::whole("problems");
    let status = api::send(&page.commands, Command::Status);
    let render = |status: Status| problems::view(&status.problems);
    page.kept.view(asked, status, render).await
}

async fn show_policy(State(page): State<Page>) -> Response {
    let facts = |reply| Command::Api(ApiQuery::Policy(reply));
    let facts = api::send(&page.commands, facts);
    page.kept.policy_view(facts).await
}

async fn show_audit(State(page): State<Page>) -> Response {
    page.kept.audit_view().await
}

async fn show_history(State(page): State<Page>) -> Response {
    page.kept.history_view()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::model::PublicKey;
    use crate::os::audit::Audit;
    use crate::os::web::{Facts, Source};
    use crate::page::frame::NODE;
    use crate::page::server::with_page;
    use crate::protocol::api::ErrorCode;
    use crate::protocol::web::openapi;

    /// The knowledge of a node that is in no mesh.
    #[derive(Debug, Clone)]
    struct Nothing;

    impl Knowledge for Nothing {
        async fn facts(
            &self,
            _: Option<PublicKey>,
            _: std::net::IpAddr,
        ) -> Result<Facts, ApiError> {
            Err(ApiError::new(ErrorCode::Conflict, "there is no mesh"))
        }
    }

    async fn ask(router: &Router, path: &str) -> (u16, String) {
        let source: std::net::IpAddr = [10, 210, 1, 9].into();
        let request = Request::builder()
            .uri(path)
            .extension(Source(source))
            .body(Body::empty());
        let router = TowerToHyperService::new(router.clone());
        let answer = router.call(request.expect("a valid request")).await;
        let answer = answer.expect("it never fails");
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 1 << 20).await.expect("short");
        let text = String::from_utf8(body.to_vec()).expect("text");
        (status, text)
    }

    fn page() -> Page {
        // Nobody receives the commands, so a handler that sends one answers that meshd is stopping.
        let (commands, _) = mpsc::channel(1);
        Page::new(commands, Kept::new(samples::OF_NODE, None))
    }

    /// The path of a view, with something in the place of its parameter.
    fn path_of(path: &str) -> String {
        path.replace(['{', '}'], "")
    }

    #[tokio::test]
    async fn each_view_has_a_handler() {
        let router = views(page());
        for view in calls::OF_NODE {
            let (status, text) = ask(&router, &path_of(view.path)).await;
            let is_kept = ["/page/view/audit", "/page/view/history"].contains(&view.path);
            let expected = if is_kept { 200 } else { 503 };
            assert_eq!(status, expected, "{}: {text}", view.path);
        }
    }

    #[tokio::test]
    async fn without_a_token_there_is_the_frame_and_no_view() {
        let guard = Guard::new(Nothing, &[], openapi::PATH_OF_NODE, Audit::none());
        let views = guarded(views(page()), guard.of_calls(calls::OF_NODE));
        let others = guarded(Router::new(), guard);
        let router = with_page(&NODE, views, others);
        let (status, frame) = ask(&router, "/page").await;
        assert_eq!(status, 200);
        assert!(frame.contains("meshctl api-token create"), "{frame}");
        for view in calls::OF_NODE {
            let (status, text) = ask(&router, &path_of(view.path)).await;
            assert_eq!(status, 401, "{}: {text}", view.path);
            assert!(text.contains("\"code\":\"unauthorized\""), "{text}");
        }
        for path in [
            "/page/view",
            "/page/view/",
            "/page/view/tokens",
            "/page/view/nodes/a/b",
        ] {
            let (status, text) = ask(&router, path).await;
            assert_eq!(status, 404, "{path}: {text}");
        }
    }
}

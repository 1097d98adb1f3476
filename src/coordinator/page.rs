//! The page of a coordinator ([`crate::page`]): its views, from what the admin API returns, and the measurements for its graphs.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use maud::Markup;
use tokio::sync::watch;
use tokio::time::sleep;

use super::hub::{self, Hub};
use super::reply::crashed;
use crate::model::time::unix_milliseconds;
use crate::os::clock;
use crate::os::tasks::Tasks;
use crate::os::unix_server::failure;
use crate::os::web::{self, Guard, Knowledge, guarded};
use crate::page::changes::Changes;
use crate::page::making::Asked;
use crate::page::samples::{CoordinatorSamples, MeshSize};
use crate::page::server::Kept;
use crate::page::services::Place;
use crate::page::table::Filter;
use crate::page::{calls, history, nodes, problems, samples, services, tokens};

/// How long one stream of events lasts. It ends before the deadline of its connection.
pub(super) const EVENTS_LIFETIME: Duration = Duration::from_secs(10);

/// What the views need.
#[derive(Clone)]
struct Page {
    hub: Arc<Hub>,
    kept: Kept,
    changes: Changes<MeshSize>,
    /// Becomes true when the coordinator stops.
    stop: watch::Receiver<bool>,
}

impl Page {
    fn size(&self) -> MeshSize {
        let size = self.hub.size();
        MeshSize {
            connections: size.connections,
            members: size.members,
            records: size.records,
            revision: size.revision,
        }
    }

    /// The number of the last change of what the page shows. None if the coordinator stops.
    async fn change(&self) -> Option<u64> {
        if *self.stop.borrow() {
            return None;
        }
        let look = async { Ok::<_, Infallible>(self.size()) };
        self.changes.number(look).await.ok()
    }

    /// The answer with a view that is made of what the hub knows.
    async fn view(
        &self,
        asked: Asked,
        render: impl FnOnce(&Hub) -> Markup + Send + 'static,
    ) -> Response {
        let hub = ready(Ok(Arc::clone(&self.hub)));
        let render = move |hub: Arc<Hub>| render(&hub);
        self.kept.view(asked, hub, render).await
    }
}

/// Starts the measurements. Returns the handlers of all views, behind the check of their tokens. When `stop` becomes true, the streams of
/// changes end.
pub(super) fn start<K: Knowledge>(
    hub: &Arc<Hub>,
    guard: &Guard<K>,
    stop: watch::Receiver<bool>,
) -> Router {
    let page = Page {
        hub: Arc::clone(hub),
        kept: Kept::new(samples::OF_COORDINATOR, hub.audit().directory()),
        changes: Changes::new(unix_milliseconds(clock::wall())),
        stop,
    };
    Tasks::current().spawn("measurements for the page", measure(page.clone()));
    guarded(views(page), guard.of_calls(calls::OF_COORDINATOR))
}

/// The handlers of the views. They check no caller.
fn views(page: Page) -> Router {
    Router::new()
        .route(calls::CHANGES, get(follow))
        .route("/page/view/nodes", get(all_nodes))
        .route("/page/view/nodes/{filter}", get(some_nodes))
        .route("/page/view/services", get(all_services))
        .route("/page/view/services/{filter}", get(some_services))
        .route("/page/view/problems", get(list_problems))
        .route("/page/view/tokens", get(list_tokens))
        .route("/page/view/policy", get(show_policy))
        .route("/page/view/audit", get(show_audit))
        .route("/page/view/history", get(show_history))
        .with_state(page)
}

async fn measure(page: Page) {
    let mut samples = CoordinatorSamples::default();
    loop {
        page.kept.add(samples.sample(page.size(), Instant::now()));
        sleep(history::INTERVAL).await;
    }
}

/// A stream of the changes. The number of a change is in the place of the revision.
async fn follow(State(page): State<Page>, headers: HeaderMap) -> Response {
    let place = match page.changes.follow() {
        Ok(place) => place,
        Err(error) => return failure(error),
    };
    web::events(&headers, EVENTS_LIFETIME, move || {
        let _ = &place;
        let page = page.clone();
        async move { page.change().await }
    })
}

async fn all_nodes(State(page): State<Page>) -> Response {
    show_nodes(&page, Filter::default()).await
}

async fn some_nodes(State(page): State<Page>, UrlPath(filter): UrlPath<String>) -> Response {
    show_nodes(&page, Filter::parse(&filter)).await
}

async fn show_nodes(page: &Page, filter: Filter) -> Response {
    let asked = Asked {
        view: "nodes",
        filter: filter.clone(),
    };
    let render = move |hub: &Hub| nodes::of_coordinator(&hub.nodes(clock::now()), &filter);
    page.view(asked, render).await
}

async fn all_services(State(page): State<Page>) -> Response {
    show_services(&page, Filter::default()).await
}

async fn some_services(State(page): State<Page>, UrlPath(filter): UrlPath<String>) -> Response {
    show_services(&page, Filter::parse(&filter)).await
}

async fn show_services(page: &Page, filter: Filter) -> Response {
    let asked = Asked {
        view: "services",
        filter: filter.clone(),
    };
    let render =
        move |hub: &Hub| services::view(&hub::api::services(hub), &filter, Place::Coordinator);
    page.view(asked, render).await
}

async fn list_problems(State(page): State<Page>) -> Response {
    let render = |hub: &Hub| {
        let urls = hub.url_problems.read();
        let nodes = hub.nodes(clock::now()).nodes;
        problems::view(&problems::of_coordinator(&urls, &nodes))
    };
    page.view(Asked::whole("problems"), render).await
}

async fn list_tokens(State(page): State<Page>) -> Response {
    let render = |hub: &Hub| {
        let revoked = hub::api::revoked_api_tokens(hub);
        tokens::view(&hub.tokens(clock::now()), &revoked)
    };
    page.view(Asked::whole("tokens"), render).await
}

async fn show_policy(State(page): State<Page>) -> Response {
    let hub = Arc::clone(&page.hub);
    let facts = async {
        let facts = tokio::task::spawn_blocking(move || hub::api::policy_facts(&hub)).await;
        facts.map_err(|_| crashed())
    };
    page.kept.policy_view(facts).await
}

async fn show_audit(State(page): State<Page>) -> Response {
    page.kept.audit_view().await
}

async fn show_history(State(page): State<Page>) -> Response {
    page.kept.history_view()
}

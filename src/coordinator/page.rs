//! The page of a coordinator ([`crate::page`]): its views, from what the admin API returns, and the measurements for its graphs.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::response::Response;
use axum::routing::get;
use tokio::time::sleep;

use super::hub::{self, Hub};
use super::reply::crashed;
use crate::os::clock;
use crate::os::tasks::Tasks;
use crate::os::unix_server::failure;
use crate::os::web::{Guard, Knowledge, guarded};
use crate::page::samples::{CoordinatorSamples, MeshSize};
use crate::page::server::{Kept, view};
use crate::page::services::Place;
use crate::page::table::Filter;
use crate::page::{calls, history, nodes, problems, samples, services, tokens};

/// What the views need.
#[derive(Clone)]
struct Page {
    hub: Arc<Hub>,
    kept: Kept,
}

/// Starts the measurements. Returns the handlers of all views, behind the check of their tokens.
pub(super) fn start<K: Knowledge>(hub: &Arc<Hub>, guard: &Guard<K>) -> Router {
    let page = Page {
        hub: Arc::clone(hub),
        kept: Kept::new(samples::OF_COORDINATOR, hub.audit().directory()),
    };
    Tasks::current().spawn("measurements for the page", measure(page.clone()));
    guarded(views(page), guard.of_calls(calls::OF_COORDINATOR))
}

/// The handlers of the views. They check no caller.
fn views(page: Page) -> Router {
    Router::new()
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
        let size = page.hub.size();
        let size = MeshSize {
            connections: size.connections,
            members: size.members,
            records: size.records,
            revision: size.revision,
        };
        page.kept.add(samples.sample(size, Instant::now()));
        sleep(history::INTERVAL).await;
    }
}

async fn all_nodes(State(page): State<Page>) -> Response {
    show_nodes(&page, &Filter::default())
}

async fn some_nodes(State(page): State<Page>, UrlPath(filter): UrlPath<String>) -> Response {
    show_nodes(&page, &Filter::parse(&filter))
}

fn show_nodes(page: &Page, filter: &Filter) -> Response {
    let list = page.hub.nodes(clock::now());
    view(nodes::of_coordinator(&list, filter))
}

async fn all_services(State(page): State<Page>) -> Response {
    show_services(&page, &Filter::default())
}

async fn some_services(State(page): State<Page>, UrlPath(filter): UrlPath<String>) -> Response {
    show_services(&page, &Filter::parse(&filter))
}

fn show_services(page: &Page, filter: &Filter) -> Response {
    let list = hub::api::services(&page.hub);
    view(services::view(&list, filter, Place::Coordinator))
}

async fn list_problems(State(page): State<Page>) -> Response {
    let urls = page.hub.url_problems.read();
    let nodes = page.hub.nodes(clock::now()).nodes;
    view(problems::view(&problems::of_coordinator(&urls, &nodes)))
}

async fn list_tokens(State(page): State<Page>) -> Response {
    let revoked = hub::api::revoked_api_tokens(&page.hub);
    view(tokens::view(&page.hub.tokens(clock::now()), &revoked))
}

async fn show_policy(State(page): State<Page>) -> Response {
    let hub = Arc::clone(&page.hub);
    let facts = tokio::task::spawn_blocking(move || hub::api::policy_facts(&hub)).await;
    match facts {
        Ok(facts) => page.kept.policy_view(facts).await,
        Err(_) => failure(crashed()),
    }
}

async fn show_audit(State(page): State<Page>) -> Response {
    page.kept.audit_view().await
}

async fn show_history(State(page): State<Page>) -> Response {
    page.kept.history_view()
}

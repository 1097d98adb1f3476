//! The API over the network, on the port of the nodes. Its calls are in [`crate::protocol::web::calls`]. The page ([`super::page`]) is
//! served with it.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use tokio::sync::watch;

use super::hub::{self, Hub};
use super::reply::document;
use super::{metrics, page};
use crate::model::PublicKey;
use crate::os::clock;
use crate::os::web::{self, Facts, Guard, Knowledge, guarded, json};
use crate::page::frame::COORDINATOR;
use crate::page::server::with_page;
use crate::protocol::api::ApiError;
use crate::protocol::web::calls::OF_COORDINATOR;
use crate::protocol::web::openapi;

/// The handlers of all calls and of the page, behind the check of their tokens. When `stop` becomes true, the streams of events end.
pub(super) fn router(hub: Arc<Hub>, stop: watch::Receiver<bool>) -> Router {
    let audit = hub.audit().clone();
    let knowledge = OfHub(Arc::clone(&hub));
    let guard = Guard::new(
        knowledge,
        OF_COORDINATOR,
        openapi::PATH_OF_COORDINATOR,
        audit,
    );
    let stopping = stop.clone();
    let events = move |State(hub): State<Arc<Hub>>, headers: HeaderMap| async move {
        events(hub, &headers, stopping)
    };
    let views = page::start(&hub, &guard, stop);
    let router = Router::new()
        .route("/v1/api/nodes", get(nodes))
        .route("/v1/api/services", get(services))
        .route("/v1/api/metrics", get(scrape))
        .route("/v1/api/events", get(events))
        .route(
            openapi::PATH_OF_COORDINATOR,
            get(|| async { json(&openapi::of_coordinator()) }),
        )
        .with_state(hub);
    with_page(&COORDINATOR, views, guarded(router, guard))
}

/// Where the check of a call gets its facts.
#[derive(Clone)]
struct OfHub(Arc<Hub>);

impl Knowledge for OfHub {
    async fn facts(&self, token: Option<PublicKey>, _: IpAddr) -> Result<Facts, ApiError> {
        let (place, domain) = hub::api::place(&self.0, token.as_ref())?;
        Ok(Facts {
            place,
            domain,
            names: hub::api::hosts(&self.0),
        })
    }
}

async fn nodes(State(hub): State<Arc<Hub>>) -> Response {
    document(hub.nodes(clock::now()))
}

async fn services(State(hub): State<Arc<Hub>>) -> Response {
    document(hub::api::services(&hub))
}

fn events(hub: Arc<Hub>, headers: &HeaderMap, stop: watch::Receiver<bool>) -> Response {
    web::events(headers, page::EVENTS_LIFETIME, move || {
        let revision = (!*stop.borrow()).then(|| hub.revision());
        async move { revision }
    })
}

async fn scrape(State(hub): State<Arc<Hub>>) -> Response {
    crate::os::metrics::answer(metrics::text(&hub))
}

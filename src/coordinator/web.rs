//! The API over the network, on the port of the nodes. Its calls are in [`crate::protocol::web::calls`]. The page ([`super::page`]) is
//! served with it.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{get, post};
use tokio::sync::{Semaphore, watch};

use super::hub::{self, Hub};
use super::reply::{answer, crashed, document};
use super::{metrics, page};
use crate::model::PublicKey;
use crate::os::clock;
use crate::os::unix_server::failure;
use crate::os::web::{self, Facts, Guard, Knowledge, guarded, json};
use crate::page::frame::COORDINATOR;
use crate::page::server::with_page;
use crate::policy::MAX_POLICY;
use crate::protocol::api::{ApiError, ErrorCode};
use crate::protocol::policy_check::PolicyCheckRequest;
use crate::protocol::web::calls::OF_COORDINATOR;
use crate::protocol::web::openapi;

/// How many policies are checked at once. A check can occupy a core of the processor for seconds.
const MAX_CHECKS: usize = 1;
/// The maximum size of a request to check a policy, in bytes. JSON makes a text longer, most of all one with letters outside ASCII.
const MAX_CHECK: usize = 4 * MAX_POLICY;

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
    let turns = Arc::new(Semaphore::new(MAX_CHECKS));
    let check = move |State(hub): State<Arc<Hub>>, body: Bytes| async move {
        check_policy(hub, turns, &body).await
    };
    let views = page::start(&hub, &guard, stop);
    let router = Router::new()
        .route("/v1/api/nodes", get(nodes))
        .route("/v1/api/services", get(services))
        .route(
            "/v1/api/policy/check",
            post(check).layer(DefaultBodyLimit::max(MAX_CHECK)),
        )
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

/// Checks the policy in a request. `turns` has a place for each check that may run now.
async fn check_policy(hub: Arc<Hub>, turns: Arc<Semaphore>, body: &[u8]) -> Response {
    let request: PolicyCheckRequest = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => return failure(ApiError::unreadable(&error)),
    };
    let Ok(turn) = turns.try_acquire_owned() else {
        let text = "the coordinator checks another policy at the moment; try again in a second";
        return failure(ApiError::new(ErrorCode::Busy, text));
    };
    let check = move || {
        let checked = hub::api::check_policy(&hub, &request.policy);
        drop(turn);
        checked
    };
    let checked = tokio::task::spawn_blocking(check).await;
    answer(checked.unwrap_or_else(|_| Err(crashed())))
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

//! The calls with which other programs follow the services of the mesh: Prometheus, and an ingress.
//!
//! | call | answer |
//! |---|---|
//! | `GET /v1/sd/prometheus` | targets, for its HTTP service discovery |
//! | `GET /v1/traefik` | dynamic configuration, for its HTTP provider |
//! | `GET /v1/caddy`, `?listen=:8080&https=off` | a configuration, for its HTTP loader |
//!
//! A thin shell: it asks the agent and writes the answer. The local API has these calls, and the address of the metrics if the operator
//! wants that.

use axum::Router;
use axum::extract::{RawQuery, Request, State};
use axum::http::HeaderMap;
use axum::http::header::HOST;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use tokio::sync::mpsc;

use super::api::{Command, answer, send};
use crate::discovery::{caddy, traefik};
use crate::model::authority;
use crate::os::unix_server::failure;
use crate::protocol::api::{ApiError, ErrorCode};

type Commands = State<mpsc::Sender<Command>>;

/// The handlers of the calls.
pub(super) fn router(commands: mpsc::Sender<Command>) -> Router {
    Router::new()
        .route("/v1/sd/prometheus", get(prometheus))
        .route("/v1/traefik", get(traefik))
        .route(caddy::PATH, get(caddy))
        .with_state(commands)
}

/// The handlers of the calls, for every program that reaches a TCP port. A request is answered only if it names an address as its host: a
/// site whose name leads to this address (DNS rebinding) could otherwise read the answer in a visitor's browser.
pub(super) fn open_router(commands: mpsc::Sender<Command>) -> Router {
    router(commands).route_layer(middleware::from_fn(only_addresses))
}

async fn only_addresses(request: Request, next: Next) -> Response {
    if names_address(host_of(request.headers())) {
        return next.run(request).await;
    }
    let text = "write the address of this server in the URL, such as http://127.0.0.1:9560, in place of a name";
    failure(ApiError::new(ErrorCode::Forbidden, text))
}

/// Whether the value of the header `Host` is an address or `localhost`.
fn names_address(host: Option<&str>) -> bool {
    let host = host.and_then(authority::split);
    host.is_some_and(|(host, _)| {
        host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok()
    })
}

fn host_of(headers: &HeaderMap) -> Option<&str> {
    headers.get(HOST)?.to_str().ok()
}

async fn prometheus(State(commands): Commands) -> Response {
    answer(send(&commands, Command::Targets).await)
}

async fn traefik(State(commands): Commands) -> Response {
    let sites = send(&commands, Command::Sites).await;
    answer(sites.map(|sites| traefik::configuration(&sites)))
}

async fn caddy(
    State(commands): Commands,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let wanted = caddy::Wanted::parse(query.as_deref(), host_of(&headers));
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return failure(ApiError::new(ErrorCode::BadRequest, error.to_string())),
    };
    let sites = send(&commands, Command::Sites).await;
    answer(sites.map(|sites| caddy::configuration(&sites, &wanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_over_tcp_names_an_address_as_its_host() {
        for host in [
            "127.0.0.1:9560",
            "10.210.1.1",
            "[::1]:9560",
            "LOCALHOST:9560",
        ] {
            assert!(names_address(Some(host)), "{host}");
        }
        for host in [
            "",
            "rebound.example:9560",
            "127.0.0.1.example",
            "localhost.example",
        ] {
            assert!(!names_address(Some(host)), "{host}");
        }
        assert!(!names_address(None));
    }
}

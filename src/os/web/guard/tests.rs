use axum::Json;
use axum::body::{Body, to_bytes};
use axum::http::HeaderValue;
use axum::routing::{delete, get, post};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

use super::*;
use crate::model::ServiceName;
use crate::policy::{Offered, Subject};
use crate::protocol::api_token::{ApiCertificate, Scope};
use crate::protocol::token::SpkiPin;
use crate::protocol::web::calls::OF_NODE;
use crate::protocol::web::openapi;
use crate::testbed::records as build;
use crate::testbed::records::label;

/// The address of the service `runner` of the project `ci`, which tokens in these tests are bound to.
const RUNNER: [u8; 4] = [10, 210, 1, 9];

/// What the node `web-1` knows.
#[derive(Debug, Clone)]
struct Known {
    revoked: Vec<PublicKey>,
}

impl Knowledge for Known {
    async fn facts(&self, token: Option<PublicKey>, address: IpAddr) -> Result<Facts, ApiError> {
        let runner = Subject {
            addresses: vec![RUNNER.into()],
            node: label("ci-1"),
            tags: vec![],
            services: vec![Offered {
                service: ServiceName::parse("runner.ci").expect("a literal"),
                ports: vec![],
                allow: vec![],
            }],
            is_node: false,
            guest: None,
            network: None,
        };
        Ok(Facts {
            place: Place {
                mesh_key: build::id(1),
                node: Some(label("web-1")),
                is_revoked: token.is_some_and(|token| self.revoked.contains(&token)),
                caller: (address == IpAddr::from(RUNNER)).then_some(runner),
            },
            domain: label("mesh"),
            names: vec![],
        })
    }
}

/// A server whose handlers return the caller, as they find it.
fn server() -> Router {
    let caller = |Extension(by): Extension<Who>| async move { Json(json!(by)) };
    let spawner = |Extension(caller): Extension<ApiCaller>| async move {
        let templates = caller.token.map(|token| token.scopes);
        Json(json!([
            templates,
            caller.subject.map(|subject| subject.to_string())
        ]))
    };
    let length = |body: axum::body::Bytes| async move { Json(json!(body.len())) };
    let router = Router::new()
        .route("/v1/status", get(caller))
        .route("/v1/services", post(length))
        .route("/v1/services/{name}", delete(caller))
        .route("/v1/join", post(caller))
        .route("/v1/spawn", get(spawner))
        .route(openapi::PATH_OF_NODE, get(|| async { Json(json!({})) }));
    let known = Known {
        revoked: vec![PublicKey([8; 32])],
    };
    let guard = Guard::new(known, OF_NODE, openapi::PATH_OF_NODE, Audit::none());
    guarded(router, guard)
}

fn certificate(scopes: &[Scope]) -> ApiCertificate {
    ApiCertificate {
        id: PublicKey([7; 32]),
        name: label("ci"),
        scopes: scopes.to_vec(),
        nodes: vec![label("web-1")],
        from: vec!["ci/runner".to_owned()],
        created_at: UnixSeconds(0),
        expires_at: UnixSeconds(u64::MAX),
    }
}

fn sign(certificate: ApiCertificate) -> String {
    let token = ApiToken::sign(certificate, SpkiPin([9; 32]), &build::key(1));
    token.text().to_string()
}

/// A request of the runner with its token.
fn request(method: &str, path: &str, token: &str) -> Request {
    let request = axum::http::Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "web-1.node.mesh:7447")
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .extension(Source(RUNNER.into()));
    request.body(Body::empty()).expect("a valid request")
}

async fn send(server: &Router, request: Request) -> (u16, Value) {
    let answer = TowerToHyperService::new(server.clone()).call(request).await;
    let answer = answer.expect("it never fails");
    let status = answer.status().as_u16();
    let body = to_bytes(answer.into_body(), 1 << 20).await.expect("short");
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn a_handler_learns_who_calls_with_which_token() {
    let token = sign(certificate(&[Scope::StatusRead]));
    let (status, by) = send(&server(), request("GET", "/v1/status", &token)).await;
    assert_eq!(status, 200, "{by}");
    let expected = json!({
        "kind": "api_caller", "address": "10.210.1.9", "token": PublicKey([7; 32]), "name": "ci"
    });
    assert_eq!(by, expected);
}

#[tokio::test]
async fn without_the_scope_of_a_call_it_does_not_reach_its_handler() {
    let server = server();
    let token = sign(certificate(&[Scope::Drain, Scope::ServicesRead]));
    for (method, path, expected) in [
        ("GET", "/v1/status", 403),
        ("DELETE", "/v1/services/web", 403),
        ("POST", "/v1/services", 403),
        // These exist for the socket of the machine alone, or not at all.
        ("POST", "/v1/join", 404),
        ("POST", "/v1/leave", 404),
        ("GET", "/", 404),
        ("PUT", "/v1/status", 405),
    ] {
        let (status, problem) = send(&server, request(method, path, &token)).await;
        assert_eq!(status, expected, "{method} {path}: {problem}");
        assert!(problem["detail"].is_string(), "{method} {path}: {problem}");
    }
}

#[tokio::test]
async fn a_call_about_spawned_containers_needs_a_template_in_the_token_or_a_mesh_address() {
    let server = server();
    let spawn = Scope::Spawn(label("job"));
    let token = sign(certificate(&[spawn, Scope::Drain]));
    let (status, caller) = send(&server, request("GET", "/v1/spawn", &token)).await;
    let scopes = json!(["spawn:job", "drain"]);
    assert_eq!(
        (status, caller),
        (200, json!([scopes, "ci/runner on ci-1"]))
    );

    let other = sign(certificate(&[Scope::StatusRead]));
    let (status, problem) = send(&server, request("GET", "/v1/spawn", &other)).await;
    assert_eq!(status, 403, "{problem}");

    let without = |path: &str, source: [u8; 4]| {
        let mut asked = request("GET", path, "");
        asked.headers_mut().remove(AUTHORIZATION);
        asked.extensions_mut().insert(Source(source.into()));
        asked
    };
    let (status, caller) = send(&server, without("/v1/spawn", RUNNER)).await;
    assert_eq!((status, caller), (200, json!([null, "ci/runner on ci-1"])));
    // A page in a browser of that machine is not the program.
    let mut page = without("/v1/spawn", RUNNER);
    let origin = HeaderValue::from_static("https://evil.example");
    page.headers_mut().insert("origin", origin);
    assert_eq!(send(&server, page).await.0, 403);
    // An address that the mesh does not have proves nothing, and other calls need a token in any case.
    assert_eq!(
        send(&server, without("/v1/spawn", [10, 210, 1, 8])).await.0,
        401
    );
    assert_eq!(send(&server, without("/v1/status", RUNNER)).await.0, 401);
    // A token that is wrong is not passed over for the address.
    assert_eq!(send(&server, request("GET", "/v1/spawn", "x")).await.0, 401);
}

#[tokio::test]
async fn the_description_needs_no_token() {
    let mut asked = request("GET", openapi::PATH_OF_NODE, "");
    asked.headers_mut().remove(AUTHORIZATION);
    assert_eq!(send(&server(), asked).await, (200, json!({})));
}

#[tokio::test]
async fn credentials_of_another_form_are_no_token() {
    let server = server();
    let token = sign(certificate(&[Scope::StatusRead]));
    for value in [
        String::new(),
        "Bearer".to_owned(),
        token.clone(),
        format!("Basic {token}"),
        format!("Bearer {token}x"),
        format!("Bearer mesh1_{token}"),
        format!("Bearer {token} {token}"),
    ] {
        let mut asked = request("GET", "/v1/status", &token);
        let header = HeaderValue::from_str(&value).expect("ASCII");
        asked.headers_mut().insert(AUTHORIZATION, header);
        let (status, problem) = send(&server, asked).await;
        assert_eq!(status, 401, "{value}: {problem}");
    }
    let mut twice = request("GET", "/v1/status", &token);
    let header = HeaderValue::from_str(&format!("Bearer {token}")).expect("ASCII");
    twice.headers_mut().append(AUTHORIZATION, header);
    assert_eq!(send(&server, twice).await.0, 401);
    let mut lower = request("GET", "/v1/status", "");
    let header = HeaderValue::from_str(&format!("bearer {token}")).expect("ASCII");
    lower.headers_mut().insert(AUTHORIZATION, header);
    assert_eq!(send(&server, lower).await.0, 200);
}

#[tokio::test]
async fn a_request_that_names_another_site_is_refused() {
    let server = server();
    let token = sign(certificate(&[Scope::StatusRead]));
    for host in ["evil.example", "web-1.node.mesh.evil.example", "", "mesh"] {
        let mut asked = request("GET", "/v1/status", &token);
        let header = HeaderValue::from_str(host).expect("ASCII");
        asked.headers_mut().insert(HOST, header);
        assert_eq!(send(&server, asked).await.0, 403, "{host}");
    }
    let mut without = request("GET", "/v1/status", &token);
    without.headers_mut().remove(HOST);
    assert_eq!(send(&server, without).await.0, 403);
}

#[tokio::test]
async fn a_body_over_its_bound_is_a_problem() {
    let server = server();
    let token = sign(certificate(&[Scope::ServicesWrite]));
    let post = |length: usize| {
        let mut asked = request("POST", "/v1/services", &token);
        *asked.body_mut() = Body::from(vec![b' '; length]);
        asked
    };
    assert_eq!(send(&server, post(MAX_BODY)).await, (200, json!(MAX_BODY)));
    for length in [MAX_BODY + 1, 10 << 20] {
        let (status, problem) = send(&server, post(length)).await;
        assert_eq!(
            (status, &problem["status"]),
            (413, &json!(413)),
            "{problem}"
        );
    }
}

#[tokio::test]
async fn more_than_fifty_calls_at_once_with_one_token_have_to_wait() {
    let server = server();
    let token = sign(certificate(&[Scope::StatusRead]));
    let mut statuses = Vec::new();
    for _ in 0..2000 {
        statuses.push(send(&server, request("GET", "/v1/status", &token)).await.0);
    }
    let passed = statuses.iter().filter(|status| **status == 200).count();
    assert!(passed >= 50, "{passed}");
    assert!(statuses.contains(&429), "{statuses:?}");
}

#[tokio::test]
async fn a_call_that_goes_on_is_checked_again_and_a_revoked_token_is_refused_then() {
    let spawn = certificate(&[Scope::Spawn(label("job"))]);
    let token = sign(spawn.clone());
    let expired = sign(ApiCertificate {
        expires_at: UnixSeconds(1),
        ..spawn
    });
    let guard = |revoked: Vec<PublicKey>| {
        let known = Known { revoked };
        Guard::new(known, OF_NODE, openapi::PATH_OF_NODE, Audit::none())
    };
    let (runner, stranger) = (IpAddr::from(RUNNER), IpAddr::from([10, 210, 1, 10]));
    let of = |token: &str| request("GET", "/v1/spawn", token).headers().clone();
    let good = guard(vec![]);
    // It counts for no limit.
    for _ in 0..100 {
        assert!(good.check_again(runner, &of(&token)).await.is_ok());
    }
    assert!(good.check_again(stranger, &of(&token)).await.is_err());
    assert!(good.check_again(runner, &of(&expired)).await.is_err());
    let revoked = guard(vec![PublicKey([7; 32])]);
    let refused = revoked.check_again(runner, &of(&token)).await;
    let refused = refused.expect_err("it is revoked");
    assert_eq!(refused.code, ErrorCode::Unauthorized);
    let bare = HeaderMap::new();
    assert!(good.check_again(runner, &bare).await.is_ok());
    assert!(good.check_again(stranger, &bare).await.is_err());
}

/// A token that somebody stole, at each place and in each form in which it is not to work.
#[tokio::test]
async fn of_1000_calls_with_a_stolen_token_none_is_accepted() {
    let all = [Scope::StatusRead, Scope::ServicesWrite, Scope::Drain];
    let good = certificate(&all);
    let token = sign(good.clone());
    let elsewhere = [
        sign(ApiCertificate {
            id: PublicKey([8; 32]),
            ..good.clone()
        }),
        sign(ApiCertificate {
            nodes: vec![label("web-2")],
            ..good.clone()
        }),
        sign(ApiCertificate {
            expires_at: UnixSeconds(1),
            ..good.clone()
        }),
        sign(ApiCertificate {
            from: vec!["tag:ops".to_owned()],
            ..good.clone()
        }),
        sign(ApiCertificate {
            from: vec!["node:ci-1".to_owned()],
            ..good.clone()
        }),
        sign(ApiCertificate {
            scopes: vec![],
            ..good.clone()
        }),
        ApiToken::sign(good, SpkiPin([9; 32]), &build::key(2))
            .text()
            .to_string(),
    ];
    let mut accepted = 0;
    let mut asked = 0;
    let mut try_from = async |token: &str, source: IpAddr| {
        // Each server has limits of its own, so no call is refused for those before it alone.
        let server = server();
        for (method, path) in [("GET", "/v1/status"), ("DELETE", "/v1/services/web")] {
            let mut stolen = request(method, path, token);
            stolen.extensions_mut().insert(Source(source));
            let (status, problem) = send(&server, stolen).await;
            assert!([401, 403].contains(&status), "{source}: {status} {problem}");
            accepted += usize::from(status < 400);
            asked += 1;
        }
    };
    for n in 0..=255 {
        let near = if n == RUNNER[3] { 0 } else { n };
        for source in [[10, 210, 1, near], [10, 210, 2, n]] {
            try_from(&token, source.into()).await;
        }
    }
    for source in [
        "127.0.0.1",
        "::1",
        "172.17.0.2",
        "192.0.2.7",
        "fd00::9",
        "2001:db8::9",
    ] {
        try_from(&token, source.parse().expect("a literal")).await;
    }
    for token in &elsewhere {
        try_from(token, RUNNER.into()).await;
    }
    assert!(asked >= 1000, "{asked}");
    assert_eq!(accepted, 0);
    // The token itself is valid: it permits the call from the address of its caller.
    let (status, problem) = send(&server(), request("GET", "/v1/status", &token)).await;
    assert_eq!(status, 200, "{problem}");
}

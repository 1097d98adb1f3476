//! API tokens at a coordinator: what they permit, and that a stolen or outdated one permits nothing.

use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use meshd::model::time::UnixSeconds;
use meshd::model::{Label, PublicKey, SigningKey};
use meshd::os::dial::dial;
use meshd::protocol::JoinToken;
use meshd::protocol::api_token::{ApiCertificate, ApiToken, Scope};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::coordinator::Coordinator;

/// An open connection to a coordinator.
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
}

impl Connection {
    pub(crate) async fn open(at: &JoinToken) -> Option<Self> {
        let stream = dial(&at.urls[0], at.pin).await.ok()?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .ok()?;
        let driver = tokio::spawn(connection);
        Some(Self { sender, driver })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A request for `path` with a token.
pub(crate) fn request(at: &JoinToken, path: &str, token: &str) -> Request<Empty<Bytes>> {
    Request::builder()
        .uri(path)
        .header("host", at.urls[0].authority())
        .header("authorization", format!("Bearer {token}"))
        .body(Empty::new())
        .expect("a request")
}

/// The status and the document of the answer to a call of the API. None if the connection ended without an answer.
async fn call(at: &JoinToken, path: &str, token: &str) -> Option<(u16, Value)> {
    let mut connection = Connection::open(at).await?;
    let answer = async {
        let request = request(at, path, token);
        let response = connection.sender.send_request(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, serde_json::from_slice(&body).unwrap_or_default()))
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), answer);
    answer.await.expect("no hang")
}

/// The status of a call that has an answer.
async fn status_of(at: &JoinToken, path: &str, token: &str) -> u16 {
    call(at, path, token).await.expect("an answer").0
}

pub(crate) fn create(coordinator: &Coordinator, words: &[&str]) -> String {
    let words = [&["api-token", "create"][..], words].concat();
    coordinator.admin(&words).trim().to_owned()
}

/// A certificate that permits reading the nodes and the services for an hour.
fn certificate(name: &str) -> ApiCertificate {
    let now = UnixSeconds::from_system(SystemTime::now());
    let mut id = [0; 32];
    getrandom::fill(&mut id).expect("the system has randomness");
    ApiCertificate {
        id: PublicKey(id),
        name: Label::parse(name).expect("a literal"),
        scopes: vec![Scope::NodesRead, Scope::ServicesRead],
        nodes: vec![],
        from: vec![],
        created_at: now,
        expires_at: now.plus(Duration::from_secs(3600)),
    }
}

/// Runs a command of meshctl with `--api`. No variable of the environment names a socket.
fn remotely(coordinator: &Coordinator, file: &str, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .env_clear()
        .arg("--api")
        .arg(format!("https://127.0.0.1:{}", coordinator.port()))
        .args(["--api-token-file", file])
        .args(words)
        .output()
        .expect("it is built")
}

#[tokio::test]
async fn a_token_permits_the_calls_of_its_scopes_until_it_is_revoked() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let token = create(&coordinator, &["--name", "ci", "--scope", "nodes:read"]);
    let (status, nodes) = call(&at, "/v1/api/nodes", &token).await.expect("an answer");
    assert_eq!(status, 200, "{nodes}");
    assert_eq!(nodes, serde_json::json!({"schema": 1, "nodes": []}));
    let (status, problem) = call(&at, "/v1/api/services", &token)
        .await
        .expect("an answer");
    assert_eq!(status, 403, "{problem}");
    assert_eq!(problem["code"], "forbidden");
    let detail = problem["detail"].as_str().expect("a sentence");
    assert!(detail.contains("services:read"), "{detail}");
    for path in [
        "/v1/api/",
        "/v1/api/mesh",
        "/v1/api/nodes/",
        "/v1/api/records",
    ] {
        assert_eq!(status_of(&at, path, &token).await, 404, "{path}");
    }
    // The calls of the admin socket are not on this port.
    assert_eq!(status_of(&at, "/v1/nodes", &token).await, 404);
    coordinator.admin(&["api-token", "revoke", "ci"]);
    assert_eq!(status_of(&at, "/v1/api/nodes", &token).await, 401);
    let listed = coordinator.admin(&["api-token", "list"]);
    assert!(listed.contains("revoked"), "{listed}");
}

#[tokio::test]
async fn the_description_needs_no_token_and_names_all_calls() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let path = "/v1/api/openapi.json";
    let (status, description) = call(&at, path, "").await.expect("an answer");
    assert_eq!(status, 200);
    assert_eq!(description["openapi"], "3.1.0");
    let paths = description["paths"].as_object().expect("an object");
    let token = create(&coordinator, &["--name", "ci", "--scope", "policy:read"]);
    for (path, methods) in paths {
        for method in methods.as_object().expect("an object").keys() {
            let mut connection = Connection::open(&at).await.expect("it listens");
            let mut request = request(&at, path, &token);
            *request.method_mut() = method.to_uppercase().parse().expect("a method");
            let answer = connection.sender.send_request(request).await;
            assert_eq!(answer.expect("an answer").status(), 403, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_program_learns_of_a_new_revision_and_continues_after_the_last_one() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let token = create(&coordinator, &["--name", "page", "--scope", "status:read"]);
    let first = id_of(&event(&at, &token, None).await);
    assert!(first > 0, "{first}");
    let (next, ()) = tokio::join!(event(&at, &token, Some(first)), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        coordinator.admin(&["token", "create"]);
    });
    assert!(id_of(&next) > first, "{next}");
}

#[tokio::test]
async fn a_coordinator_that_stops_ends_the_streams_of_events_and_cuts_none_off() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let token = create(&coordinator, &["--name", "page", "--scope", "status:read"]);
    let answer = async {
        let mut events = events(&at, &token, None).await;
        let begin = events.body.frame().await.expect("the stream has begun");
        assert!(begin.is_ok(), "{begin:?}");
        coordinator.terminate();
        while let Some(frame) = events.body.frame().await {
            assert!(frame.is_ok(), "{frame:?}");
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(60), answer).await;
    ended.expect("no hang");
}

/// The beginning of a stream of events after the revision `last`, up to the first event.
async fn event(at: &JoinToken, token: &str, last: Option<u64>) -> String {
    let answer = async {
        let mut events = events(at, token, last).await;
        let mut text = String::new();
        while !text.contains("data: ") {
            let frame = events.body.frame().await;
            let frame = frame.expect("an event").expect("readable");
            if let Ok(bytes) = frame.into_data() {
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        text
    };
    let text = tokio::time::timeout(Duration::from_secs(60), answer).await;
    text.expect("no hang")
}

/// A stream of events, and the connection on which it arrives.
struct Events {
    body: Incoming,
    _connection: Connection,
}

/// Opens a stream of events after the revision `last`.
async fn events(at: &JoinToken, token: &str, last: Option<u64>) -> Events {
    let mut connection = Connection::open(at).await.expect("it listens");
    let mut request = request(at, "/v1/api/events", token);
    if let Some(last) = last {
        request.headers_mut().insert("last-event-id", last.into());
    }
    let answer = connection.sender.send_request(request).await;
    let response = answer.expect("an answer");
    assert_eq!(response.status(), 200);
    Events {
        body: response.into_body(),
        _connection: connection,
    }
}

fn id_of(event: &str) -> u64 {
    let mut lines = event.lines();
    let id = lines.find_map(|line| line.strip_prefix("id: "));
    let id = id.unwrap_or_else(|| panic!("no event: {event}"));
    id.parse().expect("a revision")
}

#[tokio::test]
async fn a_revocation_survives_a_loss_of_power() {
    let mut coordinator = Coordinator::start();
    let at = coordinator.token();
    let [kept, revoked] = ["kept", "gone"]
        .map(|name| create(&coordinator, &["--name", name, "--scope", "nodes:read"]));
    coordinator.admin(&["api-token", "revoke", "gone"]);
    coordinator.kill();
    coordinator.restart();
    assert_eq!(status_of(&at, "/v1/api/nodes", &kept).await, 200);
    assert_eq!(status_of(&at, "/v1/api/nodes", &revoked).await, 401);
}

#[tokio::test]
async fn of_1000_calls_with_tokens_that_are_stolen_or_outdated_none_is_accepted() {
    let mut coordinator = Coordinator::start();
    let at = coordinator.token();
    let mesh_key = coordinator.mesh_key();
    let bound = |from: &str| ApiCertificate {
        from: vec![from.to_owned()],
        ..certificate("bound")
    };
    let sign = |certificate| {
        ApiToken::sign(certificate, at.pin, &mesh_key)
            .text()
            .to_string()
    };
    let good = sign(certificate("good"));
    assert_eq!(status_of(&at, "/v1/api/nodes", &good).await, 200);
    create(&coordinator, &["--name", "old", "--scope", "nodes:read"]);
    let stranger = SigningKey::from_seed(&[9; 32]);
    let useless = [
        // Bound to callers in the mesh, and this caller is outside of it.
        sign(bound("ci/runner")),
        sign(bound("tag:ops")),
        sign(bound("node:web-1")),
        sign(bound("*")),
        sign(ApiCertificate {
            nodes: vec![Label::parse("web-1").expect("a literal")],
            ..certificate("node")
        }),
        sign(ApiCertificate {
            expires_at: UnixSeconds(1),
            ..certificate("expired")
        }),
        sign(ApiCertificate {
            scopes: vec![],
            ..certificate("nothing")
        }),
        ApiToken::sign(certificate("forged"), at.pin, &stranger)
            .text()
            .to_string(),
        good[..good.len() - 2].to_owned(),
        String::new(),
    ];
    let mut accepted = 0;
    for n in 0..1000 {
        let token = &useless[n % useless.len()];
        let path = ["/v1/api/nodes", "/v1/api/services"][n / useless.len() % 2];
        if let Some((status, answer)) = call(&at, path, token).await {
            assert!([401, 403, 429].contains(&status), "{status} {answer}");
            accepted += usize::from(status < 400);
        }
    }
    assert_eq!(accepted, 0);
    assert!(coordinator.runs());
    let log = std::fs::read_to_string(coordinator.state_dir().join("audit.jsonl"));
    let log = log.expect("there");
    let refused = log.matches(r#""what":"api_refused""#).count();
    assert!((1..300).contains(&refused), "{refused}");
}

#[tokio::test]
async fn the_log_says_who_made_a_token_and_holds_no_token() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let token = create(&coordinator, &["--name", "ci", "--scope", "nodes:read"]);
    assert_eq!(status_of(&at, "/v1/api/services", &token).await, 403);
    coordinator.admin(&["api-token", "revoke", "ci"]);
    // The coordinator may answer a caller before the event is in the log.
    let path = coordinator.state_dir().join("audit.jsonl");
    let end = std::time::Instant::now() + Duration::from_secs(30);
    let log = loop {
        let log = std::fs::read_to_string(&path).expect("there");
        if log.contains("api_refused") || std::time::Instant::now() > end {
            break log;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let events: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let of = |what: &str| {
        let found = events.iter().find(|event| event["what"] == what);
        found.unwrap_or_else(|| panic!("no {what}: {log}"))
    };
    let id = ApiToken::parse(&token).expect("a token").certificate().id;
    assert_eq!(of("api_token_made")["who"]["kind"], "local");
    assert_eq!(of("api_token_made")["object"]["token"], id.to_string());
    assert_eq!(of("api_token_made")["object"]["scopes"][0], "nodes:read");
    assert_eq!(of("api_token_revoked")["object"]["token"], id.to_string());
    let refused = of("api_refused");
    assert_eq!(refused["who"]["kind"], "api_caller");
    assert_eq!(refused["who"]["name"], "ci");
    assert_eq!(refused["object"]["call"], "GET /v1/api/services");
    assert!(!log.contains(&token));
}

#[test]
fn meshctl_asks_a_coordinator_with_a_token_and_without_a_socket() {
    let coordinator = Coordinator::start();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("token");
    let words = ["--name", "laptop", "--scope", "nodes:read", "--json"];
    let created: Value = serde_json::from_str(&create(&coordinator, &words)).expect("one document");
    let token = created["token"].as_str().expect("a text");
    std::fs::write(&file, token).expect("writable");
    let file = file.to_str().expect("a plain path");
    let listed = remotely(&coordinator, file, &["node", "list", "--json"]);
    assert!(listed.status.success(), "{listed:?}");
    let nodes: Value = serde_json::from_slice(&listed.stdout).expect("one document");
    assert_eq!(nodes["nodes"], serde_json::json!([]));
    for (words, code, part) in [
        (&["service", "list"][..], 1, "services:read"),
        (
            &["token", "create"][..],
            64,
            "does not work over the network",
        ),
        (&["join", "-"][..], 64, "does not work over the network"),
        (&["netcheck"][..], 2, "no such call"),
    ] {
        let output = remotely(&coordinator, file, words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(part), "{words:?}: {said}");
    }
}

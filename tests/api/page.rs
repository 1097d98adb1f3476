//! The page of a coordinator: its frame needs no token, and each of its views needs one with its scope.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use meshd::page::calls::{CHANGES, OF_COORDINATOR};
use meshd::page::server::HEADERS;
use meshd::protocol::JoinToken;

use crate::coordinator::Coordinator;
use crate::tokens::{Connection, create, request};

/// The status and the text of the answer. Each answer has the headers of the page.
async fn answer_to(at: &JoinToken, request: Request<Empty<Bytes>>) -> (u16, String) {
    let mut connection = Connection::open(at).await.expect("a connection");
    let answer = async {
        let response = connection.sender.send_request(request).await;
        let response = response.expect("an answer");
        for (name, value) in HEADERS {
            assert_eq!(response.headers()[name], value);
        }
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body");
        let text = String::from_utf8(body.to_bytes().to_vec()).expect("text");
        (status, text)
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), answer);
    answer.await.expect("no hang")
}

async fn get(at: &JoinToken, path: &str, token: &str) -> (u16, String) {
    answer_to(at, request(at, path, token)).await
}

/// The paths of all views, with something in the place of their parameters.
fn views() -> impl Iterator<Item = String> {
    let paths = OF_COORDINATOR.iter().map(|view| view.path);
    paths.map(|path| path.replace(['{', '}'], ""))
}

#[tokio::test]
async fn without_a_token_there_is_the_frame_and_no_view() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let (status, frame) = get(&at, "/page", "").await;
    assert_eq!(status, 200);
    assert!(frame.contains("mesh-coordinator"), "{frame}");
    for file in ["/page/style.css", "/page/script.js", "/page/icon.svg"] {
        assert_eq!(get(&at, file, "").await.0, 200, "{file}");
    }
    for path in views() {
        let (status, text) = get(&at, &path, "").await;
        assert_eq!(status, 401, "{path}: {text}");
        assert!(!text.contains("<h2"), "{path}: {text}");
    }
}

#[tokio::test]
async fn a_token_shows_the_views_of_its_scopes() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let scopes = ["status", "nodes", "services", "policy", "audit", "metrics"];
    let scopes = scopes.map(|scope| format!("{scope}:read"));
    let options = scopes.iter().flat_map(|scope| ["--scope", scope.as_str()]);
    let options: Vec<&str> = ["--name", "page"].into_iter().chain(options).collect();
    let token = create(&coordinator, &options);
    for path in views().filter(|path| path != CHANGES) {
        let (status, text) = get(&at, &path, &token).await;
        assert_eq!(status, 200, "{path}: {text}");
        assert!(text.starts_with("<h2 id=\"title\""), "{path}: {text}");
    }
    let (_, tokens) = get(&at, "/page/view/tokens", &token).await;
    assert!(
        tokens.contains("valid"),
        "the join token is there: {tokens}"
    );
    let (_, audit) = get(&at, "/page/view/audit", &token).await;
    assert!(audit.contains("token"), "{audit}");

    let drain = create(&coordinator, &["--name", "ci", "--scope", "drain"]);
    for path in views() {
        assert_eq!(get(&at, &path, &drain).await.0, 403, "{path}");
    }
}

#[tokio::test]
async fn a_page_of_another_site_does_not_reach_the_views() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let token = create(&coordinator, &["--name", "page", "--scope", "nodes:read"]);
    let mut rebound = request(&at, "/page/view/nodes", &token);
    let host = hyper::header::HeaderValue::from_static("evil.example");
    rebound.headers_mut().insert("host", host);
    let (status, text) = answer_to(&at, rebound).await;
    assert_eq!(status, 403, "{text}");
    assert!(text.contains("`Host`"), "{text}");
}

/// Reads a stream of events until it has another id than `last`. Returns that one.
async fn id_after(last: Option<&str>, body: &mut Incoming) -> String {
    let mut text = String::new();
    loop {
        let frame = body.frame().await.expect("it goes on");
        let frame = frame.expect("a connection").into_data().expect("data");
        text.push_str(std::str::from_utf8(&frame).expect("text"));
        let mut ids = text.lines().filter_map(|line| line.strip_prefix("id: "));
        if let Some(id) = ids.find(|id| Some(*id) != last) {
            return id.to_owned();
        }
    }
}

#[tokio::test]
async fn a_change_of_the_mesh_is_an_event_for_the_page() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let token = create(&coordinator, &["--name", "page", "--scope", "status:read"]);
    let mut connection = Connection::open(&at).await.expect("a connection");
    let asked = request(&at, CHANGES, &token);
    let events = async {
        let response = connection.sender.send_request(asked).await;
        let response = response.expect("an answer");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut body = response.into_body();
        let first = id_after(None, &mut body).await;
        // A join token is a record.
        coordinator.token();
        id_after(Some(&first), &mut body).await
    };
    let events = tokio::time::timeout(Duration::from_secs(30), events);
    events.await.expect("no hang");
}

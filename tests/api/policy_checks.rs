//! The check of a policy over the network, for programs with the scope `policy:check`.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use meshd::os::dial::dial;
use meshd::policy::MAX_POLICY;
use meshd::protocol::JoinToken;
use meshd::protocol::web::calls::OF_COORDINATOR;
use serde_json::{Value, json};

use crate::coordinator::Coordinator;
use crate::tokens::create;

/// Web reaches the database. A test follows.
const POLICY: &str = "language = 1\n[[allow]]\nfrom = [\"web\"]\nto = [\"db:5432\"]\n";

/// The status and the document of the answer to a request.
async fn ask(at: &JoinToken, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", at.urls[0].authority())
        .header("authorization", format!("Bearer {token}"))
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .expect("a request");
    let answer = async {
        let stream = dial(&at.urls[0], at.pin).await.expect("it listens");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("it speaks HTTP");
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await.expect("an answer");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body");
        driver.abort();
        let document = serde_json::from_slice(&body.to_bytes());
        (status, document.unwrap_or_default())
    };
    let answer = tokio::time::timeout(Duration::from_secs(60), answer);
    answer.await.expect("no hang")
}

/// The answer to the check of a policy.
async fn check(at: &JoinToken, token: &str, policy: &str) -> (u16, Value) {
    let body = json!({"policy": policy}).to_string();
    ask(at, token, "POST", "/v1/api/policy/check", &body).await
}

fn test(is: &str) -> String {
    format!("[[test]]\nfrom = \"web\"\nto = \"db:5432\"\nis = \"{is}\"\n")
}

#[tokio::test]
async fn a_policy_is_checked_for_a_token_and_does_not_come_into_force() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let token = create(&coordinator, &["--name", "ci", "--scope", "policy:check"]);

    let (status, checked) = check(&at, &token, &format!("{POLICY}{}", test("allow"))).await;
    let selector = |selector: &str| json!({"line": 2, "selector": selector, "nearest": null});
    let expected = json!({
        "schema": 1, "ok": true, "errors": [], "failed": [],
        "unmatched": [selector("db"), selector("web")], "without": [],
    });
    assert_eq!((status, checked), (200, expected));

    let (status, checked) = check(&at, &token, &format!("{POLICY}{}", test("deny"))).await;
    assert_eq!((status, &checked["ok"]), (200, &json!(false)), "{checked}");
    assert_eq!(checked["failed"][0]["line"], 5, "{checked}");
    assert_eq!(checked["failed"][0]["column"], Value::Null, "{checked}");

    let (status, checked) = check(&at, &token, "language = 1\nallow = 7\n").await;
    assert_eq!((status, &checked["ok"]), (200, &json!(false)), "{checked}");
    assert_eq!(checked["errors"][0]["line"], 2, "{checked}");

    let shown = coordinator.admin(&["policy", "show", "--json"]);
    let shown: Value = serde_json::from_str(&shown).expect("one document");
    assert_eq!(shown["version"], Value::Null, "{shown}");
    assert_eq!(shown["tried"], Value::Null, "{shown}");
}

#[tokio::test]
async fn a_policy_of_the_maximum_length_is_checked_although_its_request_is_longer() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let token = create(&coordinator, &["--name", "ci", "--scope", "policy:check"]);
    // Each line break is two characters in JSON.
    let of_length = |length: usize| format!("{POLICY}{}", "\n".repeat(length - POLICY.len()));
    let (status, checked) = check(&at, &token, &of_length(MAX_POLICY)).await;
    assert_eq!((status, &checked["ok"]), (200, &json!(true)), "{checked}");
    let (status, checked) = check(&at, &token, &of_length(MAX_POLICY + 1)).await;
    assert_eq!((status, &checked["ok"]), (200, &json!(false)), "{checked}");
}

#[tokio::test]
async fn a_request_to_check_no_policy_or_too_much_is_refused() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let token = create(&coordinator, &["--name", "ci", "--scope", "policy:check"]);
    let path = "/v1/api/policy/check";
    for body in ["", "language = 1", r#"{"policy":1}"#] {
        let (status, problem) = ask(&at, &token, "POST", path, body).await;
        assert_eq!(status, 400, "{problem}");
        assert_eq!(problem["code"], "bad_request", "{problem}");
    }
    let many = format!("{POLICY}{}", test("allow").repeat(1_001));
    let (status, problem) = check(&at, &token, &many).await;
    assert_eq!(status, 422, "{problem}");
    let detail = problem["detail"].as_str().expect("a sentence");
    assert!(detail.contains("fewer"), "{detail}");
}

#[tokio::test]
async fn a_token_for_checks_permits_nothing_else_and_no_other_token_permits_checks() {
    let coordinator = Coordinator::start();
    let at = coordinator.token();
    let token = create(&coordinator, &["--name", "ci", "--scope", "policy:check"]);
    for call in OF_COORDINATOR {
        let (status, _) = ask(&at, &token, call.method, call.path, "").await;
        let expected = if call.path == "/v1/api/policy/check" {
            400
        } else {
            403
        };
        assert_eq!(status, expected, "{}", call.path);
    }
    let others = [
        "status:read",
        "services:read",
        "nodes:read",
        "policy:read",
        "audit:read",
        "metrics:read",
        "services:write",
        "drain",
        "spawn:job",
    ];
    let options = others.iter().flat_map(|scope| ["--scope", *scope]);
    let options: Vec<&str> = ["--name", "others"].into_iter().chain(options).collect();
    let other = create(&coordinator, &options);
    assert_eq!(check(&at, &other, POLICY).await.0, 403);
    assert_eq!(check(&at, "", POLICY).await.0, 401);
}

//! The coordinator refuses input that is no valid request, and continues.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use meshd::node::control::join::join;
use meshd::os::dial::dial;
use meshd::protocol::JoinToken;

use crate::coordinator::Coordinator;
use crate::joins::request;

/// Status and text of an answer; nothing, if the connection was cut instead.
async fn ask(
    token: &JoinToken,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Option<(u16, String)> {
    let stream = dial(&token.urls[0], token.pin).await.expect("it listens");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("HTTP");
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::<Bytes>::from(body))
        .expect("a request");
    let answer = async {
        let response = sender.send_request(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), answer)
        .await
        .expect("no hang");
    driver.abort();
    answer
}

#[tokio::test]
async fn bodies_that_are_too_large_too_deep_or_garbage_are_refused_in_one_line() {
    let mut coordinator = Coordinator::start();
    let token = coordinator.token();
    let good = serde_json::to_string(&request(&token, "web")).expect("JSON");
    let deep = format!(
        "{{\"protocol\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let bodies = [
        Vec::new(),
        vec![0xff; 1000],
        vec![b' '; 10 << 20],
        deep.into_bytes(),
        good.replace("\"protocol\":1", "\"protocol\":-1")
            .into_bytes(),
        good.replace("\"protocol\":1", "\"protocol\":\"1\"")
            .into_bytes(),
        good.as_bytes()[..good.len() - 1].to_vec(),
        good.replace("payload\":\"", "payload\":\"\\u0000")
            .into_bytes(),
        format!(
            "{{\"protocol\":1,\"membership\":{{\"payload\":\"{}\"}}}}",
            "x".repeat(200_000)
        )
        .into_bytes(),
    ];
    for (number, body) in bodies.into_iter().enumerate() {
        // A body over the bound may find the connection closed before all of it is sent.
        if let Some((status, text)) = ask(&token, Method::POST, "/v1/join", body).await {
            assert_eq!(status, 400, "body {number}: {text}");
            let error: meshd::protocol::api::ApiError =
                serde_json::from_str(&text).expect("an error");
            assert_eq!(error.message.lines().count(), 1, "body {number}: {text}");
        }
    }
    for (method, path) in [
        (Method::GET, "/v1/join"),
        (Method::GET, "/"),
        (Method::POST, "/v1/records"),
        (Method::GET, "/v1/control"),
        (Method::DELETE, "/../../etc/passwd"),
    ] {
        let (status, _) = ask(&token, method, path, Vec::new())
            .await
            .expect("an answer");
        assert!((400..500).contains(&status), "{path}: {status}");
    }
    assert!(coordinator.runs());
    join(&token.urls, token.pin, &request(&token, "web"))
        .await
        .expect("the token is not lost by all this");
}

#[tokio::test]
async fn what_does_not_speak_tls_is_cut_off() {
    let mut coordinator = Coordinator::start();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 5000],
        &[0x16, 3, 1, 0xff, 0xff],
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", coordinator.port())).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a socket");
        let _ = stream.write_all(garbage);
        let mut answer = Vec::new();
        // A TLS alert at most, and the end; the second may be a reset.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 100, "{answer:?}");
    }
    assert!(coordinator.runs());
    assert_eq!(
        coordinator
            .admin(&["node", "list", "--json"])
            .matches("\"id\"")
            .count(),
        0
    );
}

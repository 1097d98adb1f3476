//! Tests with a stand-in for the engine.

use std::collections::HashMap;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;

use super::*;
use crate::containers::fixture::Standin;

const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn id() -> ContainerId {
    ContainerId::parse(ID).expect("hexadecimal digits")
}

#[tokio::test]
async fn a_container_is_created_with_the_body_and_the_name_that_are_given() {
    let created = format!(r#"{{"Id":"{ID}","Warnings":[]}}"#);
    let standin = Standin::new(&[("/containers/create", 201, created.as_str())]);
    let body = json!({"Image": "sha256:1"});
    let created = standin.engine().create("meshd-ci-1?x", &body).await;
    assert_eq!(created, Ok(id()));
    let expected = (
        "POST /containers/create?name=meshd-ci-1%3Fx".to_owned(),
        r#"{"Image":"sha256:1"}"#.to_owned(),
    );
    assert_eq!(standin.received(), [expected]);
}

#[tokio::test]
async fn the_reason_of_the_engine_reaches_the_caller() {
    let reason = r#"{"message":"No such image: x\n"}"#;
    let standin = Standin::new(&[("/containers/create", 404, reason)]);
    let refused = standin.engine().create("x", &json!({})).await;
    let expected = EngineFault::Rejected(404, "No such image: x?".to_owned());
    assert_eq!(refused, Err(expected));
}

#[tokio::test]
async fn what_is_done_already_is_no_error() {
    let start = format!("/containers/{ID}/start");
    let stop = format!("/containers/{ID}/stop");
    let standin = Standin::new(&[(start.as_str(), 304, ""), (stop.as_str(), 304, "")]);
    let engine = &standin.engine();
    assert_eq!(engine.start(&id()).await, Ok(()));
    assert_eq!(engine.stop(&id(), Duration::ZERO).await, Ok(()));
    // These are gone.
    assert_eq!(engine.remove(&id()).await, Ok(()));
    assert_eq!(engine.remove_network("meshd-spawn-1").await, Ok(()));
    assert_eq!(engine.inspect(&id()).await, Ok(None));
    assert!(engine.kill(&id(), "SIGTERM").await.is_err());
}

#[tokio::test]
async fn a_wait_returns_the_exit_code_and_has_a_limit() {
    let path = format!("/containers/{ID}/wait");
    let standin = Standin::new(&[(path.as_str(), 200, r#"{"StatusCode":3}"#)]);
    let limit = Duration::from_secs(10);
    let code = standin
        .engine()
        .wait(&id(), WaitUntil::NextExit, limit)
        .await;
    assert_eq!(code, Ok(3));
    let asked = &standin.received()[0].0;
    assert_eq!(*asked, format!("POST {path}?condition=next-exit"));

    // Nobody answers here.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("s");
    let _listener = UnixListener::bind(&socket).expect("a free path");
    let engine = EngineControl::new(vec![socket]);
    let limit = Duration::from_millis(50);
    let code = engine.wait(&id(), WaitUntil::Removed, limit).await;
    assert_eq!(code, Err(EngineFault::Silent));
}

#[tokio::test]
async fn a_download_that_fails_after_its_beginning_is_an_error() {
    let progress = "{\"status\":\"Pulling\"}\n{\"error\":\"manifest unknown\"}";
    let standin = Standin::new(&[("/images/create", 200, progress)]);
    let pulled = standin.engine().pull("docker.io/library/alpine:3.20").await;
    let failed = EngineFault::Rejected(500, "manifest unknown".to_owned());
    assert_eq!(pulled, Err(failed));
    let asked = &standin.received()[0].0;
    let query = "fromImage=docker.io%2Flibrary%2Falpine&tag=3.20";
    assert_eq!(*asked, format!("POST /images/create?{query}"));
    let standin = Standin::new(&[("/images/create", 200, "{\"status\":\"done\"}\n")]);
    assert_eq!(standin.engine().pull("a:1").await, Ok(()));
}

#[tokio::test]
async fn attached_bytes_pass_in_both_directions() {
    let head = "HTTP/1.1 101 UPGRADED\r\ncontent-type: application/vnd.docker.raw-stream\r\nconnection: Upgrade\r\nupgrade: tcp\r\n\r\nhi";
    let path = format!("/containers/{ID}/attach");
    let standin = Standin::with(HashMap::from([(path.clone(), head.to_owned())]));
    let wanted = AttachWanted {
        stdout: true,
        stream: true,
        ..AttachWanted::default()
    };
    let attached = standin.engine().attach(&id(), wanted).await;
    let mut attached = attached.expect("the engine switches");
    let mut bytes = Vec::new();
    attached.io.read_to_end(&mut bytes).await.expect("bytes");
    assert_eq!(bytes, b"hi");
    let query = "stdin=false&stdout=true&stderr=false&logs=false&stream=true";
    assert_eq!(standin.received()[0].0, format!("POST {path}?{query}"));
}

#[tokio::test]
async fn a_file_of_a_container_comes_with_its_description_if_that_is_base64() {
    let path = format!("/containers/{ID}/archive");
    for (stat, expected) in [("e30=", Some("e30=")), ("a b", None)] {
        let answer = format!(
            "HTTP/1.1 200 x\r\nX-Docker-Container-Path-Stat: {stat}\r\ncontent-length: 3\r\n\r\ntar"
        );
        let standin = Standin::with(HashMap::from([(path.clone(), answer)]));
        let archive = standin.engine().archive(&id(), "/etc/a b&c").await;
        let mut archive = archive.expect("an answer");
        assert_eq!(archive.stat.as_deref(), expected);
        let content = archive.content.next().await;
        assert_eq!(content, Ok(Some(Bytes::from_static(b"tar"))));
        let asked = &standin.received()[0].0;
        assert_eq!(*asked, format!("GET {path}?path=%2Fetc%2Fa%20b%26c"));
    }
}

#[tokio::test]
async fn events_are_read_line_by_line() {
    let event = format!(r#"{{"Type":"container","Action":"start","Actor":{{"ID":"{ID}"}}}}"#);
    let text = format!("{event}\nno event\n{event}\n");
    let standin = Standin::new(&[("/events", 200, text.as_str())]);
    let mut events = standin
        .engine()
        .events(None, Some(7))
        .await
        .expect("a stream");
    let mut count = 0;
    while let Some(some) = events.next().await.expect("no fault") {
        count += some.len();
    }
    assert_eq!(count, 2);
    assert!(standin.received()[0].0.ends_with("&until=7"));
}

#[test]
fn an_image_is_split_into_its_repository_and_its_tag_or_digest() {
    let query = |reference| {
        pull_query(reference)
            .replace("%3A", ":")
            .replace("%2F", "/")
    };
    for (reference, expected) in [
        ("alpine", "fromImage=alpine&tag=latest"),
        ("alpine:3", "fromImage=alpine&tag=3"),
        ("r.example:5000/a", "fromImage=r.example:5000/a&tag=latest"),
        ("r.example:5000/a:1", "fromImage=r.example:5000/a&tag=1"),
        ("a@sha256:1", "fromImage=a&tag=sha256:1"),
        (
            "r.example:5000/a:1@sha256:2",
            "fromImage=r.example:5000/a&tag=sha256:2",
        ),
    ] {
        assert_eq!(query(reference), expected);
    }
}

#[test]
fn a_name_of_an_image_cannot_leave_its_place_in_a_path() {
    assert_eq!(in_path("r.example:5000/a:1"), "r.example:5000/a:1");
    for escaping in ["../../containers/x", "a?b", "a#b", "a b", "a%2f"] {
        let path = in_path(escaping);
        assert!(!path.contains(['/', '?', '#', ' ']), "{path}");
    }
}

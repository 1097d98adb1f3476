//! Tests of the whole way of a request, with a stand-in for the engine.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::routing::get;
use clap::Parser as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;
use crate::containers::fixture::Standin;
use crate::model::{PublicKey, ServiceName};
use crate::node::config::{Arguments, Config};
use crate::node::state::StateDir;
use crate::os::audit::Audit;
use crate::os::tasks::Tasks;
use crate::os::web::Facts;
use crate::policy::{Offered, Subject};
use crate::protocol::api::ApiError;
use crate::protocol::api_token::Place;
use crate::protocol::web::calls::OF_NODE;
use crate::protocol::web::openapi;
use crate::testbed::records as build;
use crate::testbed::records::label;

const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// The id of a command in that container, and of one in another container.
const EXEC: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee";
const FOREIGN_EXEC: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
/// The address of the service `runner` of the project `ci`, for which the template is, and one that nobody has.
const RUNNER: [u8; 4] = [10, 210, 1, 9];
const STRANGER: [u8; 4] = [10, 210, 1, 10];

/// A node that knows who has the address of the service. Another service has it once that is set.
#[derive(Debug, Clone)]
struct Known(Arc<AtomicBool>);

impl Knowledge for Known {
    async fn facts(&self, _: Option<PublicKey>, address: IpAddr) -> Result<Facts, ApiError> {
        let is_other = self.0.load(Ordering::Relaxed);
        let service = if is_other { "other.ci" } else { "runner.ci" };
        let runner = Subject {
            addresses: vec![RUNNER.into()],
            node: label("ci-1"),
            tags: vec![],
            services: vec![Offered {
                service: ServiceName::parse(service).expect("a literal"),
                ports: vec![],
                allow: vec![],
            }],
            guest: None,
            network: None,
            is_node: false,
        };
        Ok(Facts {
            place: Place {
                mesh_key: build::id(1),
                node: Some(label("web-1")),
                is_revoked: false,
                caller: (address == IpAddr::from(RUNNER)).then_some(runner),
            },
            domain: label("mesh"),
            names: vec![],
        })
    }
}

/// A node with one template, before an engine that is a stand-in.
struct Node {
    engine: Standin,
    router: Router,
    /// Whether another service has the address of the caller.
    is_other: Arc<AtomicBool>,
    directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let created = format!(r#"{{"Id":"{ID}"}}"#);
        let described = format!(
            r#"{{"Id":"{ID}","Image":"sha256:1","State":{{"Status":"running","Running":true}},"Config":{{"Cmd":["true"]}}}}"#
        );
        let exec = |container: &str| format!(r#"{{"ContainerID":"{container}","ExitCode":3}}"#);
        let (own, foreign) = (exec(ID), exec(&"b".repeat(64)));
        let image = r#"{"Id":"sha256:1","RepoTags":["box:latest","secret:1"]}"#;
        let images = format!(
            "[{image},{}]",
            r#"{"Id":"sha256:2","RepoTags":["other:1"]}"#
        );
        let list = format!(
            r#"[{{"Id":"{ID}","State":"running"}},{{"Id":"{}","State":"running"}}]"#,
            "b".repeat(64)
        );
        let of = |below: &str| format!("/containers/{ID}{below}");
        let exec_created = format!(r#"{{"Id":"{EXEC}"}}"#);
        let answers = [
            (
                "/images/docker.io/library/box:latest/json".to_owned(),
                200,
                image,
            ),
            ("/images/json".to_owned(), 200, images.as_str()),
            ("/containers/create".to_owned(), 201, created.as_str()),
            ("/containers/json".to_owned(), 200, list.as_str()),
            (of("/json"), 200, described.as_str()),
            (of("/start"), 204, ""),
            (of("/stop"), 204, ""),
            (of("/kill"), 204, ""),
            (of("/wait"), 200, r#"{"StatusCode":3}"#),
            (of("/logs"), 200, "text"),
            (of("/archive"), 200, "tar"),
            (of("/exec"), 201, exec_created.as_str()),
            (of("?force"), 204, ""),
            (format!("/exec/{EXEC}/json"), 200, own.as_str()),
            (format!("/exec/{EXEC}/start"), 200, ""),
            (format!("/exec/{FOREIGN_EXEC}/json"), 200, foreign.as_str()),
        ];
        let answers: Vec<(&str, u16, &str)> = answers
            .iter()
            .map(|(path, status, body)| (path.as_str(), *status, *body))
            .collect();
        let engine = Standin::new(&answers);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let is_other = Arc::new(AtomicBool::new(false));
        let known = Known(Arc::clone(&is_other));
        let router = router(&engine, directory.path(), known);
        Self {
            engine,
            router,
            is_other,
            directory,
        }
    }

    /// Sends a request. Returns the status and the body.
    async fn send(&self, from: [u8; 4], method: &str, path: &str, body: &str) -> (u16, String) {
        let long = LongAnswer::default();
        let answer = self.open(from, method, path, body, long).await;
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 1 << 20).await;
        let body = body.expect("the engine sends all").to_vec();
        (status, String::from_utf8(body).expect("text"))
    }

    /// Sends a request. `long` is the mark of its connection.
    async fn open(
        &self,
        from: [u8; 4],
        method: &str,
        path: &str,
        body: &str,
        long: LongAnswer,
    ) -> Response {
        let request = axum::http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "10.210.1.1:7447")
            .extension(Source(IpAddr::from(from)))
            .extension(long)
            .body(Body::from(body.to_owned()));
        let router = TowerToHyperService::new(self.router.clone());
        let answer = router.call(request.expect("a valid request")).await;
        answer.expect("it never fails")
    }

    /// Creates a container of the name `job`.
    async fn create(&self) {
        let body = r#"{"Image":"box","Cmd":["true"]}"#;
        let path = "/v1.43/containers/create?name=job";
        let (status, answer) = self.send(RUNNER, "POST", path, body).await;
        assert_eq!(status, 201, "{answer}");
        let answer: Value = serde_json::from_str(&answer).expect("a document");
        assert_eq!(answer, json!({"Id": ID, "Warnings": []}));
    }

    /// The methods and paths that the engine was asked for.
    fn asked(&self) -> Vec<String> {
        let received = self.engine.received();
        received.into_iter().map(|(asked, _)| asked).collect()
    }
}

fn router(engine: &Standin, directory: &std::path::Path, known: Known) -> Router {
    let text = format!(
        "[docker]\nsocket = {:?}\n[api]\nenabled = true\n[[spawn]]\nname = \"job\"\nfrom = [\"ci/runner\", \"ci/other\"]\nimages = [\"box:latest\"]\ncommand = true\nnetwork = \"none\"\n",
        engine.socket()
    );
    let file = directory.join("meshd.toml");
    std::fs::write(&file, text).expect("writable");
    let file = file.to_str().expect("a plain path");
    let arguments = Arguments::try_parse_from(["meshd", "--config", file]);
    let config = Config::load(&arguments.expect("valid arguments")).expect("it is valid");
    let state = directory.join("state");
    let mut dir = StateDir::open(&state).expect("a new directory");
    dir.audit = Audit::open(&state);
    let spawner = Spawner::open(&config, &dir, &Tasks::new("test")).expect("a template");
    let guard = Guard::new(known, OF_NODE, openapi::PATH_OF_NODE, Audit::none());
    let own = Router::new().route("/v1/status", get(|| async { "own" }));
    beside(own, Some(Face::new(guard, spawner)))
}

#[tokio::test]
async fn each_call_asks_the_engine_for_what_it_says_and_for_nothing_else() {
    let node = Node::new();
    node.create().await;
    let label = "%7B%22label%22%3A%5B%22meshd.spawn%22%5D%7D";
    let list = format!("GET /containers/json?all=true&filters={label}");
    let image = "GET /images/docker.io/library/box:latest/json".to_owned();
    let of = |method: &str, below: &str| format!("{method} /containers/{ID}{below}");
    let exec = format!("GET /exec/{EXEC}/json");
    let start_exec = format!("/exec/{EXEC}/start");
    let calls = [
        ("GET", "/_ping", "", 200, vec![]),
        ("HEAD", "/_ping", "", 200, vec![]),
        ("GET", "/v1.24/version", "", 200, vec![]),
        ("GET", "/info", "", 200, vec![list.clone()]),
        (
            "GET",
            "/v1.51/containers/json?all=1&size=0",
            "",
            200,
            vec![list],
        ),
        (
            "POST",
            "/docker/v1.43/containers/job/start",
            "",
            204,
            vec![of("POST", "/start")],
        ),
        (
            "GET",
            "/containers/job/json",
            "",
            200,
            vec![of("GET", "/json")],
        ),
        (
            "GET",
            "/containers/aaaaaaaaaaaa/json",
            "",
            200,
            vec![of("GET", "/json")],
        ),
        (
            "POST",
            "/containers/job/stop?t=3",
            "",
            204,
            vec![of("POST", "/stop?t=3")],
        ),
        (
            "POST",
            "/containers/job/kill",
            "",
            204,
            vec![of("POST", "/kill?signal=SIGKILL")],
        ),
        (
            "POST",
            "/containers/job/wait?condition=next-exit",
            "",
            200,
            vec![of("POST", "/wait?condition=next-exit")],
        ),
        (
            "GET",
            "/containers/job/logs?stdout=1&tail=7",
            "",
            200,
            vec![of(
                "GET",
                "/logs?stdout=true&stderr=false&follow=false&timestamps=false&tail=7",
            )],
        ),
        (
            "GET",
            "/containers/job/archive?path=/etc/a%20b%26c",
            "",
            200,
            vec![of("GET", "/archive?path=%2Fetc%2Fa%20b%26c")],
        ),
        (
            "POST",
            "/containers/job/exec",
            r#"{"Container":"x","Cmd":["id"]}"#,
            201,
            vec![of("POST", "/exec")],
        ),
        ("GET", &exec[4..], "", 200, vec![exec.clone()]),
        (
            "POST",
            &start_exec,
            r#"{"Detach":true}"#,
            200,
            vec![exec.clone(), format!("POST {start_exec}")],
        ),
        (
            "GET",
            "/images/json",
            "",
            200,
            vec!["GET /images/json?digests=true".to_owned()],
        ),
        ("GET", "/images/box/json", "", 200, vec![image.clone()]),
        (
            "POST",
            "/images/create?fromImage=box&tag=latest",
            "",
            200,
            vec![image],
        ),
        (
            "DELETE",
            "/containers/job",
            "",
            409,
            vec![of("GET", "/json")],
        ),
        ("POST", "/containers/job/kill?signal=a%26b", "", 400, vec![]),
        (
            "POST",
            "/containers/job/start?checkpoint=x",
            "",
            400,
            vec![],
        ),
        (
            "GET",
            "/containers/job/logs?stdout=1&tail=x",
            "",
            400,
            vec![],
        ),
        ("POST", "/containers/job/wait?condition=x", "", 400, vec![]),
    ];
    for (method, path, body, status, expected) in calls {
        let before = node.asked().len();
        let (answered, answer) = node.send(RUNNER, method, path, body).await;
        assert_eq!(answered, status, "{method} {path}: {answer}");
        let asked = node.asked().split_off(before);
        assert_eq!(asked, expected, "{method} {path}");
    }
    let (status, _) = node
        .send(RUNNER, "DELETE", "/containers/job?force=1", "")
        .await;
    assert_eq!(status, 204);
    let removed = of("DELETE", "?force=true&v=true");
    assert!(node.asked().contains(&removed), "{:?}", node.asked());
    let (status, _) = node.send(RUNNER, "GET", "/containers/job/json", "").await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_start_a_stop_and_a_signal_have_an_event_before_they_are_answered() {
    let node = Node::new();
    node.create().await;
    let log = node.directory.path().join("state").join("audit.jsonl");
    for (call, what, signal) in [
        ("start", "spawn_started", None),
        ("stop?t=3", "spawn_stopped", None),
        ("kill?signal=SIGHUP", "spawn_killed", Some("SIGHUP")),
    ] {
        let path = format!("/containers/job/{call}");
        let (status, answer) = node.send(RUNNER, "POST", &path, "").await;
        assert_eq!(status, 204, "{call}: {answer}");
        let lines = std::fs::read_to_string(&log).expect("there is a log");
        let last = lines.lines().next_back().expect("an event");
        let event: Value = serde_json::from_str(last).expect("a document");
        assert_eq!(event["what"], what, "{lines}");
        assert_eq!(event["who"]["address"], "10.210.1.9", "{lines}");
        assert_eq!(event["object"]["owner"], "service:runner.ci", "{lines}");
        assert_eq!(event["object"]["signal"].as_str(), signal, "{lines}");
    }
}

#[tokio::test]
async fn a_caller_sees_its_containers_and_its_images_alone() {
    let node = Node::new();
    node.create().await;
    let text = |path: &'static str| {
        let node = &node;
        async move { node.send(RUNNER, "GET", path, "").await.1 }
    };
    let parsed = |text: String| -> Value { serde_json::from_str(&text).expect("a document") };
    let list = parsed(text("/containers/json").await);
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list[0]["Id"], ID);
    assert_eq!(list[0]["Names"], json!(["/job"]));
    let images = parsed(text("/images/json").await);
    assert_eq!(images.as_array().map(Vec::len), Some(1), "{images}");
    assert_eq!(images[0]["RepoTags"], json!(["box:latest"]));
    let wait = node.send(RUNNER, "POST", "/containers/job/wait", "").await;
    assert_eq!(wait, (200, r#"{"StatusCode":3}"#.to_owned()));
    let exec = parsed(
        node.send(RUNNER, "GET", &format!("/exec/{EXEC}/json"), "")
            .await
            .1,
    );
    assert_eq!(exec["ExitCode"], 3);

    let other = "b".repeat(64);
    for (method, path) in [
        ("GET", format!("/containers/{other}/json")),
        ("POST", format!("/containers/{other}/start")),
        ("POST", format!("/containers/{other}/exec")),
        ("DELETE", format!("/containers/{other}?force=1")),
        ("GET", format!("/exec/{FOREIGN_EXEC}/json")),
        ("POST", format!("/exec/{FOREIGN_EXEC}/start")),
    ] {
        let (status, answer) = node.send(RUNNER, method, &path, "{}").await;
        assert_eq!(status, 404, "{method} {path}: {answer}");
    }
    let of_other = |asked: &String| asked.contains(&other) || asked.ends_with("/start");
    assert!(!node.asked().iter().any(of_other), "{:?}", node.asked());
}

#[tokio::test]
async fn a_container_named_like_the_id_of_another_one_opens_no_command_in_that() {
    let node = Node::new();
    let path = format!("/containers/create?name={}", "b".repeat(64));
    let body = r#"{"Image":"box","Cmd":["true"]}"#;
    assert_eq!(node.send(RUNNER, "POST", &path, body).await.0, 201);
    let describe = format!("/exec/{FOREIGN_EXEC}/json");
    let start = format!("/exec/{FOREIGN_EXEC}/start");
    assert_eq!(node.send(RUNNER, "GET", &describe, "").await.0, 404);
    assert_eq!(node.send(RUNNER, "POST", &start, "{}").await.0, 404);
    let of_start = |asked: &String| asked.ends_with("/start");
    assert!(!node.asked().iter().any(of_start), "{:?}", node.asked());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_cut_once_its_address_belongs_to_another_caller() {
    let node = Node::new();
    node.create().await;
    let long = LongAnswer::default();
    let path = "/containers/job/archive?path=/etc";
    let opened = node.open(RUNNER, "GET", path, "", long.clone()).await;
    assert_eq!(opened.status().as_u16(), 200);
    let looks = Duration::from_secs(3);
    assert!(timeout(looks, long.has_to_end()).await.is_err());
    node.is_other.store(true, Ordering::Relaxed);
    let cut = timeout(Duration::from_secs(60), long.has_to_end()).await;
    assert!(cut.is_ok(), "the stream goes on");
    drop(opened);
}

#[tokio::test]
async fn commands_that_nobody_starts_are_not_prepared_without_an_end() {
    let node = Node::new();
    node.create().await;
    let path = "/containers/job/exec";
    let body = r#"{"Cmd":["id"]}"#;
    // The bound of the calls of one address is below it, so the clock has to go on for the last ones.
    let mut refused = None;
    for _ in 0..200 {
        let (status, answer) = node.send(RUNNER, "POST", path, body).await;
        if status == 429 && answer.contains("prepared") {
            refused = Some(answer);
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(refused.is_some(), "all are prepared");
    let asked = node.asked();
    let prepared = asked.iter().filter(|asked| asked.ends_with("/exec"));
    assert_eq!(prepared.count(), prepared::MAX_OF_CONTAINER);
}

#[tokio::test]
async fn a_refusal_has_the_form_of_docker_and_the_engine_learns_nothing_of_it() {
    let node = Node::new();
    let create = "/v1.43/containers/create";
    let privileged = r#"{"Image":"box","HostConfig":{"Privileged":true}}"#;
    for (from, method, path, body, status, part) in [
        (
            RUNNER,
            "POST",
            create,
            privileged,
            403,
            "HostConfig.Privileged",
        ),
        (RUNNER, "POST", create, r#"{"Image":"other"}"#, 403, "other"),
        (RUNNER, "POST", create, "x", 400, "cannot be read"),
        (
            RUNNER,
            "POST",
            "/v1.43/networks/create",
            "{}",
            403,
            "POST /networks/create",
        ),
        (RUNNER, "GET", "/v1.99/version", "", 400, "v1.99"),
        (
            RUNNER,
            "POST",
            "/images/create?fromImage=other&tag=1",
            "",
            403,
            "other:1",
        ),
        (STRANGER, "POST", create, "{}", 401, "API token"),
        (STRANGER, "GET", "/_ping", "", 401, "API token"),
    ] {
        let (answered, answer) = node.send(from, method, path, body).await;
        assert_eq!(answered, status, "{method} {path}: {answer}");
        let answer: Value = serde_json::from_str(&answer).expect("a document");
        let message = answer["message"].as_str().expect("a message");
        assert!(message.contains(part), "{method} {path}: {message}");
    }
    let long = format!(r#"{{"Image":"{}"}}"#, "x".repeat(MAX_BODY));
    assert_eq!(node.send(RUNNER, "POST", create, &long).await.0, 400);
    assert_eq!(node.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn the_own_api_is_answered_as_before() {
    let node = Node::new();
    let own = node.send(STRANGER, "GET", "/v1/status", "").await;
    assert_eq!(own, (200, "own".to_owned()));
    assert_eq!(node.send(STRANGER, "GET", "/v1/other", "").await.0, 404);
}

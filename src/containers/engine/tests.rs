//! Tests with a stand-in for the engine on a Unix socket. It is missing, hangs, closes connections too early, or sends
//! garbage.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::*;

/// What the stand-in does with a request.
#[derive(Clone)]
enum Step {
    Answer(String),
    Status(u16),
    /// Send these bytes, then close the connection.
    Bytes(Vec<u8>),
    /// Send these bytes, and leave the connection open.
    Stream(Vec<u8>),
    Hang,
}

/// A stand-in, and the paths that were requested.
struct Standin {
    directory: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Standin {
    /// Starts a stand-in. `step` returns how it handles a request, from the path and the number of earlier requests for
    /// that path.
    fn new(step: impl Fn(&str, usize) -> Step + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join("s")).expect("a free path");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (paths, step) = (Arc::clone(&asked), Arc::new(step));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (paths, step) = (Arc::clone(&paths), Arc::clone(&step));
                tokio::spawn(async move { serve(stream, &paths, &*step).await });
            }
        });
        Self {
            directory,
            asked,
            task,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    fn follow(&self) -> Followed {
        follow_engine(vec![self.socket()])
    }
}

async fn serve(
    mut stream: UnixStream,
    paths: &Mutex<Vec<String>>,
    step: &(impl Fn(&str, usize) -> Step + ?Sized),
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match stream.read(&mut byte).await {
            Ok(1) => request.push(byte[0]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let length = request
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let before = {
        let mut paths = paths.lock().expect("nobody panics with it");
        paths.push(path.clone());
        paths.iter().filter(|p| **p == path).count() - 1
    };
    let bytes = match step(&path, before) {
        Step::Answer(body) => format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
        Step::Status(status) => {
            format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").into_bytes()
        }
        Step::Bytes(bytes) => bytes,
        Step::Stream(bytes) => {
            let _ = stream.write_all(&bytes).await;
            return std::future::pending().await;
        }
        Step::Hang => return std::future::pending().await,
    };
    let _ = stream.write_all(&bytes).await;
}

/// A task that follows the engine, and its reports.
struct Followed {
    reports: mpsc::Receiver<Report>,
    _task: EngineTask,
}

fn follow_engine(sockets: Vec<PathBuf>) -> Followed {
    follow_with(sockets, None)
}

fn follow_with(sockets: Vec<PathBuf>, network: Option<network::NativePlan>) -> Followed {
    let (sender, reports) = mpsc::channel(64);
    let _task = EngineTask::start(sockets, Rules::default(), network, sender);
    Followed { reports, _task }
}

impl Followed {
    async fn next(&mut self) -> Report {
        timeout(Duration::from_secs(60), self.reports.recv())
            .await
            .expect("a report within a minute")
            .expect("the task lives")
    }

    /// Returns short forms of the reports up to the first for which `last` is true.
    async fn until(&mut self, last: impl Fn(&Report) -> bool) -> Vec<String> {
        let mut shown = Vec::new();
        loop {
            let report = self.next().await;
            shown.push(show(&report));
            if last(&report) {
                return shown;
            }
        }
    }

    async fn fault(&mut self) -> EngineFault {
        loop {
            if let Report::Lost(fault) = self.next().await {
                return fault;
            }
        }
    }
}

fn show(report: &Report) -> String {
    match report {
        Report::Engine(engine) => format!("engine {}", engine.version),
        Report::Networks(networks) => format!("{} networks", networks.len()),
        Report::Native(native) => format!("native {native:?}"),
        Report::Listed(ids) => format!("{} listed", ids.len()),
        Report::Inspected(inspected) => {
            let image = inspected.image.labels.as_ref().map(Labels::len);
            format!("inspected {} {image:?}", inspected.id.short())
        }
        Report::Unreadable(id, _) => format!("unreadable {}", id.short()),
        Report::Event(id, action) => format!("{action:?} {}", id.short()),
        Report::InventoryKnown => "inventory_known".into(),
        Report::Lost(_) => "lost".into(),
    }
}

fn id(fill: char) -> String {
    fill.to_string().repeat(64)
}

fn chunked(body: &str) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = if body.is_empty() {
        String::new()
    } else {
        format!("{:x}\r\n{body}\r\n", body.len())
    };
    format!("{head}{chunk}").into_bytes()
}

fn event(action: &str, fill: char) -> String {
    let id = id(fill);
    format!("{{\"Type\":\"container\",\"Action\":\"{action}\",\"Actor\":{{\"ID\":\"{id}\"}}}}\n")
}

/// An engine with one labelled container `a` that runs, one without labels, and one that does not run.
fn sound(path: &str) -> Step {
    let container = |fill: char| {
        format!(
            "{{\"Id\":\"{}\",\"Image\":\"sha256:1\",\"State\":{{\"Running\":true}},\"Config\":{{\"Labels\":{{\"mesh.service\":\"db\"}}}}}}",
            id(fill)
        )
    };
    let labels = "\"Labels\":{\"mesh.service\":\"db\"}";
    match path {
        "/version" => Step::Answer("{\"Version\":\"20.10\"}".into()),
        "/info" => Step::Status(403),
        "/networks" => Step::Answer("[]".into()),
        "/containers/json?all=true" => Step::Answer(format!(
            "[{{\"Id\":\"{}\",\"State\":\"running\",{labels}}},{{\"Id\":\"{}\",\"State\":\"running\"}},{{\"Id\":\"{}\",\"State\":\"exited\",{labels}}}]",
            id('a'),
            id('b'),
            id('c')
        )),
        "/images/sha256:1/json" => Step::Answer("{\"Config\":{\"Labels\":null}}".into()),
        path if path == format!("/containers/{}/json", id('a')) => Step::Answer(container('a')),
        path if path == format!("/containers/{}/json", id('d')) => Step::Answer(container('d')),
        EVENTS => Step::Stream(chunked("")),
        _ => Step::Status(404),
    }
}

#[tokio::test]
async fn all_containers_are_reported_first_and_then_events() {
    let standin = Standin::new(|path, _| match path {
        EVENTS => Step::Stream(chunked(
            &[event("start", 'd'), event("start", 'e')].concat(),
        )),
        path => sound(path),
    });
    let mut followed = standin.follow();
    let mut shown = followed
        .until(|r| matches!(r, Report::InventoryKnown))
        .await;
    assert_eq!(shown[..2], ["engine 20.10", "0 networks"]);
    shown.sort();
    assert_eq!(
        shown,
        [
            "0 networks",
            "5 listed",
            "Die cccccccccccc",
            "Start dddddddddddd",
            "Start eeeeeeeeeeee",
            "engine 20.10",
            "inspected aaaaaaaaaaaa Some(0)",
            "inspected dddddddddddd Some(0)",
            "inventory_known",
        ],
        "e was removed before its description was requested, which is no fault"
    );
    let asked = standin.asked.lock().expect("nobody panics with it").clone();
    assert!(!asked.contains(&format!("/containers/{}/json", id('b'))));
}

#[tokio::test]
async fn many_changes_of_networks_at_once_cause_two_requests() {
    let created = "{\"Type\":\"network\",\"Action\":\"create\",\"Actor\":{\"ID\":\"x\"}}\n";
    let standin = Standin::new(move |path, _| match path {
        EVENTS => Step::Stream(chunked(&created.repeat(50))),
        path => sound(path),
    });
    let mut followed = standin.follow();
    // The first list is requested before the events.
    for _ in 0..3 {
        followed.until(|r| matches!(r, Report::Networks(_))).await;
    }
    sleep(Duration::from_millis(200)).await;
    let asked = standin.asked.lock().expect("nobody panics with it").clone();
    let networks = asked.iter().filter(|path| *path == "/networks");
    assert_eq!(networks.count(), 3, "{asked:?}");
}

#[tokio::test]
async fn without_a_socket_the_engine_is_absent_and_another_socket_is_tried() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let absent = directory.path().join("none");
    let mut followed = follow_engine(vec![absent.clone()]);
    assert_eq!(
        followed.fault().await,
        EngineFault::Absent(absent.display().to_string())
    );
    let standin = Standin::new(|path, _| sound(path));
    let mut followed = follow_engine(vec![absent, standin.socket()]);
    assert_eq!(show(&followed.next().await), "engine 20.10");
}

#[tokio::test]
async fn a_socket_without_a_listener_is_a_fault_and_is_followed_later() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("s");
    drop(UnixListener::bind(&path).expect("a free path"));
    let mut followed = follow_engine(vec![path.clone()]);
    assert_eq!(
        followed.fault().await,
        EngineFault::NotListening(path.display().to_string())
    );
    std::fs::remove_file(&path).expect("it is there");
    let standin = Standin::new(|path, _| sound(path));
    std::os::unix::fs::symlink(standin.socket(), &path).expect("free again");
    followed
        .until(|r| matches!(r, Report::InventoryKnown))
        .await;
}

#[tokio::test]
async fn an_engine_that_hangs_is_a_fault_after_the_time_limit() {
    let standin = Standin::new(|_, _| Step::Hang);
    assert_eq!(standin.follow().fault().await, EngineFault::Silent);
}

#[tokio::test]
async fn a_container_that_the_engine_does_not_describe_in_time_keeps_none_of_the_others() {
    let stuck = format!("/containers/{}/json", id('a'));
    let standin = Standin::new(move |path, _| match path {
        EVENTS => Step::Stream(chunked(&event("start", 'd'))),
        path if path == stuck => Step::Hang,
        path => sound(path),
    });
    let mut followed = standin.follow();
    let last = |r: &Report| matches!(r, Report::InventoryKnown | Report::Lost(_));
    let mut shown = followed.until(last).await;
    shown.sort();
    assert_eq!(
        shown,
        [
            "0 networks",
            "4 listed",
            "Die cccccccccccc",
            "Start dddddddddddd",
            "engine 20.10",
            "inspected dddddddddddd Some(0)",
            "inventory_known",
        ]
    );
}

#[tokio::test]
async fn a_stream_that_ends_within_a_chunk_is_opened_again_and_no_container_is_removed() {
    let standin = Standin::new(|path, before| match path {
        EVENTS if before == 0 => {
            let mut bytes = chunked(&event("start", 'd'));
            bytes.extend_from_slice(b"ff\r\n{\"Type\":");
            Step::Bytes(bytes)
        }
        path => sound(path),
    });
    let mut followed = standin.follow();
    assert!(matches!(followed.fault().await, EngineFault::Broken(_)));
    let shown = followed
        .until(|r| matches!(r, Report::InventoryKnown))
        .await;
    assert_eq!(shown[0], "engine 20.10");
    assert!(shown.contains(&"inspected aaaaaaaaaaaa Some(0)".to_owned()));
    assert!(
        !shown
            .iter()
            .any(|s| s.starts_with("Die a") || s.starts_with("Die d"))
    );
}

#[tokio::test]
async fn garbage_is_a_fault_in_every_answer() {
    for garbled in ["/version", "/networks", "/containers/json?all=true", EVENTS] {
        let standin = Standin::new(move |path, _| match path {
            path if path == garbled && path == EVENTS => {
                Step::Stream(chunked("\u{1}\u{2}garbage\n"))
            }
            path if path == garbled => Step::Answer("{garbage".into()),
            path => sound(path),
        });
        let fault = standin.follow().fault().await;
        assert!(
            matches!(fault, EngineFault::Malformed(..)),
            "{garbled}: {fault:?}"
        );
    }
    let standin = Standin::new(|_, _| Step::Bytes(b"\x00\xffnot http\r\n\r\n".to_vec()));
    assert!(matches!(
        standin.follow().fault().await,
        EngineFault::Broken(_)
    ));
}

#[tokio::test]
async fn an_unreadable_container_does_not_hide_the_others() {
    let standin = Standin::new(|path, _| match path {
        EVENTS => Step::Stream(chunked(&event("start", 'd'))),
        path if path.contains(&id('d')) => Step::Answer("[]".into()),
        path => sound(path),
    });
    let shown = standin
        .follow()
        .until(|r| matches!(r, Report::InventoryKnown))
        .await;
    assert!(
        shown.contains(&"unreadable dddddddddddd".to_owned()),
        "{shown:?}"
    );
    assert!(shown.contains(&"inspected aaaaaaaaaaaa Some(0)".to_owned()));
}

#[tokio::test]
async fn after_an_event_that_is_too_long_a_list_is_requested() {
    let huge = format!("{{\"x\":\"{}\"}}\n", "y".repeat(MAX_EVENT + 1));
    let standin = Standin::new(move |path, before| match path {
        EVENTS => Step::Stream(chunked(&huge)),
        "/containers/json?all=true" if before == 0 => Step::Answer("[]".into()),
        path => sound(path),
    });
    let mut followed = standin.follow();
    let last = |r: &Report| matches!(r, Report::Inspected(_));
    let shown = followed.until(last).await;
    assert!(!shown.contains(&"lost".to_owned()), "{shown:?}");
}

#[tokio::test]
async fn an_endless_answer_is_a_fault() {
    let standin = Standin::new(|path, _| match path {
        "/version" => {
            let mut bytes = chunked("");
            bytes.extend_from_slice(b"7fffffff\r\n");
            bytes.resize(3 << 20, b' ');
            Step::Stream(bytes)
        }
        path => sound(path),
    });
    let fault = standin.follow().fault().await;
    assert!(matches!(fault, EngineFault::TooLong(..)), "{fault:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_of_an_engine_that_does_not_create_the_network_is_shown() {
    let body = r#"{"message":"Pool overlaps with other one"}"#;
    is_refused_because(body, "Pool overlaps").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_the_network_without_a_reason_ends_nothing_else() {
    let body = "<h1>403 Forbidden</h1>";
    is_refused_because(body, "it answers 403 to /networks/create").await;
}

/// Checks that an engine which answers the creation of the network with this body is followed all the same, and that `why` is shown.
async fn is_refused_because(body: &'static str, why: &str) {
    let standin = Standin::new(move |path, _| match path {
        "/version" => Step::Answer(r#"{"Version":"26.1.5"}"#.into()),
        "/networks" => Step::Answer("[]".into()),
        "/networks/create" => {
            let head = format!("HTTP/1.1 403 x\r\ncontent-length: {}\r\n\r\n", body.len());
            Step::Bytes(format!("{head}{body}").into_bytes())
        }
        "/info" => Step::Answer("{}".into()),
        path if path.starts_with("/containers/json") => Step::Answer("[]".into()),
        _ => Step::Hang,
    });
    let plan = network::NativePlan {
        prefix: "10.210.0.0/16".parse().expect("a literal"),
        block: "10.210.1.0/24".parse().expect("a literal"),
        node: "10.210.1.1".parse().expect("a literal"),
        mtu: 1420,
    };
    let mut followed = follow_with(vec![standin.socket()], Some(plan));
    loop {
        match followed.next().await {
            Report::Native(Err(unusable)) => {
                assert!(unusable.why.contains(why), "{}", unusable.why);
                break;
            }
            Report::Native(Ok(_)) | Report::InventoryKnown => panic!("there is none"),
            Report::Lost(fault) => panic!("{fault}"),
            _ => {}
        }
    }
}

//! Against a stand-in for the engine on a unix socket, which is away, hangs, breaks off and talks nonsense.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::*;

/// What the stand-in does with a request.
#[derive(Clone)]
enum Deed {
    Answer(String),
    Status(u16),
    /// Octets as they are, then the end.
    Octets(Vec<u8>),
    /// Octets as they are, and the connection stays open.
    Stream(Vec<u8>),
    Hang,
}

/// A stand-in, and the paths it was asked for.
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
    /// Deals with the request for a path, of which so many came before, as `deed` says.
    fn new(deed: impl Fn(&str, usize) -> Deed + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join("s")).expect("a free path");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (paths, deed) = (Arc::clone(&asked), Arc::new(deed));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (paths, deed) = (Arc::clone(&paths), Arc::clone(&deed));
                tokio::spawn(async move { serve(stream, &paths, &*deed).await });
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
    deed: &(impl Fn(&str, usize) -> Deed + ?Sized),
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        match stream.read(&mut octet).await {
            Ok(1) => request.push(octet[0]),
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
    let octets = match deed(&path, before) {
        Deed::Answer(body) => format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
        Deed::Status(status) => {
            format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").into_bytes()
        }
        Deed::Octets(octets) => octets,
        Deed::Stream(octets) => {
            let _ = stream.write_all(&octets).await;
            return std::future::pending().await;
        }
        Deed::Hang => return std::future::pending().await,
    };
    let _ = stream.write_all(&octets).await;
}

/// A task that follows, and what it reports.
struct Followed {
    reports: mpsc::Receiver<Report>,
    _task: EngineTask,
}

fn follow_engine(sockets: Vec<PathBuf>) -> Followed {
    follow_with(sockets, None)
}

fn follow_with(sockets: Vec<PathBuf>, network: Option<network::Plan>) -> Followed {
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

    /// Reports up to the first of which `last` is true, in short.
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
        Report::Happened(id, action) => format!("{action:?} {}", id.short()),
        Report::Settled => "settled".into(),
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
fn sound(path: &str) -> Deed {
    let container = |fill: char| {
        format!(
            "{{\"Id\":\"{}\",\"Image\":\"sha256:1\",\"State\":{{\"Running\":true}},\"Config\":{{\"Labels\":{{\"mesh.service\":\"db\"}}}}}}",
            id(fill)
        )
    };
    let labels = "\"Labels\":{\"mesh.service\":\"db\"}";
    match path {
        "/version" => Deed::Answer("{\"Version\":\"20.10\"}".into()),
        "/info" => Deed::Status(403),
        "/networks" => Deed::Answer("[]".into()),
        "/containers/json?all=true" => Deed::Answer(format!(
            "[{{\"Id\":\"{}\",\"State\":\"running\",{labels}}},{{\"Id\":\"{}\",\"State\":\"running\"}},{{\"Id\":\"{}\",\"State\":\"exited\",{labels}}}]",
            id('a'),
            id('b'),
            id('c')
        )),
        "/images/sha256:1/json" => Deed::Answer("{\"Config\":{\"Labels\":null}}".into()),
        path if path == format!("/containers/{}/json", id('a')) => Deed::Answer(container('a')),
        path if path == format!("/containers/{}/json", id('d')) => Deed::Answer(container('d')),
        EVENTS => Deed::Stream(chunked("")),
        _ => Deed::Status(404),
    }
}

#[tokio::test]
async fn everything_there_is_is_reported_and_then_what_happens() {
    let standin = Standin::new(|path, _| match path {
        EVENTS => Deed::Stream(chunked(
            &[event("start", 'd'), event("start", 'e')].concat(),
        )),
        path => sound(path),
    });
    let mut followed = standin.follow();
    let mut shown = followed.until(|r| matches!(r, Report::Settled)).await;
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
            "settled",
        ],
        "e was gone before it was looked at, which is no fault"
    );
    let asked = standin.asked.lock().expect("nobody panics with it").clone();
    assert!(!asked.contains(&format!("/containers/{}/json", id('b'))));
}

#[tokio::test]
async fn without_a_socket_it_is_absent_and_another_is_tried() {
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
async fn a_socket_nobody_listens_on_is_refused_and_followed_once_somebody_does() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("s");
    drop(UnixListener::bind(&path).expect("a free path"));
    let mut followed = follow_engine(vec![path.clone()]);
    assert_eq!(
        followed.fault().await,
        EngineFault::Refused(path.display().to_string())
    );
    std::fs::remove_file(&path).expect("it is there");
    let standin = Standin::new(|path, _| sound(path));
    std::os::unix::fs::symlink(standin.socket(), &path).expect("free again");
    followed.until(|r| matches!(r, Report::Settled)).await;
}

#[tokio::test]
async fn an_engine_that_hangs_is_given_up_in_time() {
    let standin = Standin::new(|_, _| Deed::Hang);
    assert_eq!(standin.follow().fault().await, EngineFault::Silent);
}

#[tokio::test]
async fn a_stream_that_breaks_off_in_a_chunk_is_opened_again_and_nothing_is_taken_back() {
    let standin = Standin::new(|path, before| match path {
        EVENTS if before == 0 => {
            let mut octets = chunked(&event("start", 'd'));
            octets.extend_from_slice(b"ff\r\n{\"Type\":");
            Deed::Octets(octets)
        }
        path => sound(path),
    });
    let mut followed = standin.follow();
    assert!(matches!(followed.fault().await, EngineFault::Broken(_)));
    let shown = followed.until(|r| matches!(r, Report::Settled)).await;
    assert_eq!(shown[0], "engine 20.10");
    assert!(shown.contains(&"inspected aaaaaaaaaaaa Some(0)".to_owned()));
    assert!(
        !shown
            .iter()
            .any(|s| s.starts_with("Die a") || s.starts_with("Die d"))
    );
}

#[tokio::test]
async fn garbage_is_a_fault_wherever_it_comes() {
    for place in ["/version", "/networks", "/containers/json?all=true", EVENTS] {
        let standin = Standin::new(move |path, _| match path {
            path if path == place && path == EVENTS => Deed::Stream(chunked("\u{1}\u{2}garbage\n")),
            path if path == place => Deed::Answer("{garbage".into()),
            path => sound(path),
        });
        let fault = standin.follow().fault().await;
        assert!(
            matches!(fault, EngineFault::NotUnderstood(..)),
            "{place}: {fault:?}"
        );
    }
    let standin = Standin::new(|_, _| Deed::Octets(b"\x00\xffnot http\r\n\r\n".to_vec()));
    assert!(matches!(
        standin.follow().fault().await,
        EngineFault::Broken(_)
    ));
}

#[tokio::test]
async fn one_container_that_cannot_be_read_does_not_hide_the_others() {
    let standin = Standin::new(|path, _| match path {
        EVENTS => Deed::Stream(chunked(&event("start", 'd'))),
        path if path.contains(&id('d')) => Deed::Answer("[]".into()),
        path => sound(path),
    });
    let shown = standin
        .follow()
        .until(|r| matches!(r, Report::Settled))
        .await;
    assert!(
        shown.contains(&"unreadable dddddddddddd".to_owned()),
        "{shown:?}"
    );
    assert!(shown.contains(&"inspected aaaaaaaaaaaa Some(0)".to_owned()));
}

#[tokio::test]
async fn an_event_too_long_to_keep_is_made_up_for_by_a_list() {
    let huge = format!("{{\"x\":\"{}\"}}\n", "y".repeat(MAX_EVENT + 1));
    let standin = Standin::new(move |path, before| match path {
        EVENTS => Deed::Stream(chunked(&huge)),
        "/containers/json?all=true" if before == 0 => Deed::Answer("[]".into()),
        path => sound(path),
    });
    let mut followed = standin.follow();
    let last = |r: &Report| matches!(r, Report::Inspected(_));
    let shown = followed.until(last).await;
    assert!(!shown.contains(&"lost".to_owned()), "{shown:?}");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let standin = Standin::new(|path, _| match path {
        "/version" => {
            let mut octets = chunked("");
            octets.extend_from_slice(b"7fffffff\r\n");
            octets.resize(3 << 20, b' ');
            Deed::Stream(octets)
        }
        path => sound(path),
    });
    let fault = standin.follow().fault().await;
    assert!(matches!(fault, EngineFault::TooLong(..)), "{fault:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_does_not_make_the_network_is_quoted() {
    let standin = Standin::new(|path, _| match path {
        "/version" => Deed::Answer(r#"{"Version":"26.1.5"}"#.into()),
        "/networks" => Deed::Answer("[]".into()),
        "/networks/create" => {
            let said = r#"{"message":"Pool overlaps with other one"}"#;
            let head = format!("HTTP/1.1 403 x\r\ncontent-length: {}\r\n\r\n", said.len());
            Deed::Octets(format!("{head}{said}").into_bytes())
        }
        "/info" => Deed::Answer("{}".into()),
        path if path.starts_with("/containers/json") => Deed::Answer("[]".into()),
        _ => Deed::Hang,
    });
    let plan = network::Plan {
        prefix: "10.210.0.0/16".parse().expect("a literal"),
        block: "10.210.1.0/24".parse().expect("a literal"),
        node: "10.210.1.1".parse().expect("a literal"),
        mtu: 1420,
    };
    let mut followed = follow_with(vec![standin.socket()], Some(plan));
    loop {
        match followed.next().await {
            Report::Native(Err(unusable)) => {
                assert!(unusable.why.contains("Pool overlaps"), "{}", unusable.why);
                break;
            }
            Report::Native(Ok(_)) | Report::Settled => panic!("there is none"),
            _ => {}
        }
    }
}

//! A stand-in for meshd: answers each request with the next prepared answer, and keeps what it was asked.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The answer to a join.
pub(crate) const JOINED: &str =
    r#"{"schema":1,"name":"a","address_v4":"10.210.1.1","address_v6":"fd00::1","notes":[]}"#;

/// The status of a node in no mesh.
pub(crate) const UNJOINED: &str = r#"{"schema":1,"version":"9.9.9","state":"unjoined","node":null,"interface":null,
    "coordinator":null,"dns":null,"policy":null,"peers":[],"routes":[],"services":{"local":0,"mesh":0,"local_instances":0,"mesh_instances":0},"problems":[]}"#;

/// A listening stand-in.
pub(crate) struct Daemon {
    directory: tempfile::TempDir,
    thread: JoinHandle<Vec<String>>,
}

impl Daemon {
    /// Gives `answers`, status and body, one per request, then stops listening.
    pub(crate) fn answering(answers: Vec<(u16, String)>) -> Self {
        Self::answering_after(Duration::ZERO, answers)
    }

    /// Gives each answer so long after the request.
    pub(crate) fn answering_after(pause: Duration, answers: Vec<(u16, String)>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join("s")).expect("a free path");
        listener.set_nonblocking(true).expect("a socket");
        let thread = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for (status, body) in answers {
                match accept(&listener) {
                    Some(stream) => asked.push(answer(stream, pause, status, &body)),
                    None => break,
                }
            }
            asked
        });
        Self { directory, thread }
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(self.directory.path())
    }

    /// Method, path and body of each request, once all answers are given.
    pub(crate) fn asked(self) -> Vec<String> {
        self.thread.join().expect("the stand-in does not panic")
    }
}

/// The next connection; nothing, if nobody comes.
fn accept(listener: &UnixListener) -> Option<UnixStream> {
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).expect("a socket");
            return Some(stream);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}

fn socket_in(directory: &Path) -> PathBuf {
    directory.join("s")
}

fn answer(stream: UnixStream, pause: Duration, status: u16, body: &str) -> String {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).expect("a request line");
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().expect("a number");
        }
    }
    let mut request = vec![0; length];
    reader.read_exact(&mut request).expect("the body");
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    std::thread::sleep(pause);
    let stream = reader.get_mut();
    // meshctl may hang up early; what it made of that is what the test looks at.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body.as_bytes());
    let target = first.trim_end().trim_end_matches(" HTTP/1.1");
    format!("{target} {}", String::from_utf8_lossy(&request))
        .trim_end()
        .to_owned()
}

//! A stand-in for the engine on a Unix socket, for tests. It answers each path with one text.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::control::EngineControl;

/// The stand-in. Dropping it ends it.
pub(crate) struct Standin {
    socket: PathBuf,
    received: Arc<Mutex<Vec<(String, String)>>>,
    _directory: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Standin {
    /// Answers a request for a path that begins like a key with the status and the body. Other paths are not found.
    pub(crate) fn new(answers: &[(&str, u16, &str)]) -> Self {
        let head = |status: u16, body: &str| {
            format!(
                "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        let answers = answers
            .iter()
            .map(|(path, status, body)| ((*path).to_owned(), head(*status, body)));
        Self::with(answers.collect())
    }

    /// As [`Standin::new`], with the bytes of the whole answers.
    pub(crate) fn with(answers: HashMap<String, String>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a free path");
        let received = Arc::new(Mutex::new(Vec::new()));
        let (requests, answers) = (Arc::clone(&received), Arc::new(answers));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (requests, answers) = (Arc::clone(&requests), Arc::clone(&answers));
                tokio::spawn(async move { serve(stream, &requests, &answers).await });
            }
        });
        Self {
            socket,
            received,
            _directory: directory,
            task,
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn engine(&self) -> EngineControl {
        EngineControl::new(vec![self.socket.clone()])
    }

    /// The requests so far: the method and the path, and the body.
    pub(crate) fn received(&self) -> Vec<(String, String)> {
        self.received.lock().expect("nobody panics with it").clone()
    }
}

async fn serve(
    mut stream: UnixStream,
    requests: &Mutex<Vec<(String, String)>>,
    answers: &HashMap<String, String>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    let line = head.lines().next().unwrap_or_default();
    let asked = line.trim_end_matches(" HTTP/1.1").to_owned();
    let path = asked.split(' ').nth(1).unwrap_or_default().to_owned();
    let body = String::from_utf8_lossy(&body).into_owned();
    requests
        .lock()
        .expect("nobody panics with it")
        .push((asked, body));
    let answer = answers.iter().find(|(key, _)| path.starts_with(*key));
    let missing = "HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n";
    let answer = answer.map_or(missing, |(_, answer)| answer.as_str());
    let _ = stream.write_all(answer.as_bytes()).await;
}

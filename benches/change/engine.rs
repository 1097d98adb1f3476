//! A stand-in for a container engine, whose only container starts and ends when the bench calls for it.

use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use meshd::testbed::Host;
use serde_json::{Value, json};

use crate::system_engine::requested;

/// The engine of a host.
pub(crate) struct Engine {
    state: Arc<Mutex<State>>,
}

/// The container, and the connections that follow the events.
struct State {
    service: String,
    /// The first process of the container.
    pid: u32,
    /// The number of the container that runs.
    running: Option<u64>,
    listeners: Vec<UnixStream>,
}

impl Engine {
    /// Answers at the host's `/run/docker.sock`. Its container is a program of the service `service` at 172.17.0.2, behind the bridge
    /// `docker0`; `pid` is a process of it.
    pub(crate) fn start(host: &Host, service: &str, pid: u32) -> Self {
        let listener = UnixListener::bind(host.path("/run/docker.sock")).expect("a free path");
        let state = Arc::new(Mutex::new(State {
            service: service.to_owned(),
            pid,
            running: None,
            listeners: Vec::new(),
        }));
        let answering = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&answering);
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { state }
    }

    /// Whether a connection follows the events.
    pub(crate) fn is_followed(&self) -> bool {
        !self.state.lock().expect("no panic").listeners.is_empty()
    }

    /// Container number `number` starts.
    pub(crate) fn start_container(&self, number: u64) {
        let mut state = self.state.lock().expect("no panic");
        state.running = Some(number);
        state.send_event("start", number);
    }

    /// Container number `number` ends and is removed.
    pub(crate) fn remove_container(&self, number: u64) {
        let mut state = self.state.lock().expect("no panic");
        state.running = None;
        state.send_event("die", number);
        state.send_event("destroy", number);
    }
}

impl State {
    fn send_event(&mut self, action: &str, number: u64) {
        let event = json!({"Type": "container", "Action": action, "Actor": {"ID": id(number)}});
        let chunk = format!("{event}\n");
        let chunk = format!("{:x}\r\n{chunk}\r\n", chunk.len());
        // A connection that is closed is removed.
        let is_open = |listener: &mut UnixStream| listener.write_all(chunk.as_bytes()).is_ok();
        self.listeners.retain_mut(is_open);
    }

    /// The answer to a request for `path`. None if there is no such thing.
    fn answer(&self, path: &str) -> Option<Value> {
        let labels = json!({"mesh.service": self.service, "mesh.port": "80"});
        let network = "f".repeat(64);
        Some(match path {
            "/version" => json!({"Version": "28.0.0"}),
            "/networks" => json!([{
                "Id": network, "Name": "bridge", "Driver": "bridge",
                "Options": {"com.docker.network.bridge.name": "docker0"},
                "IPAM": {"Config": [{"Subnet": "172.17.0.0/16"}]},
            }]),
            "/containers/json" => {
                let running = self.running.into_iter();
                let listed =
                    running.map(|n| json!({"Id": id(n), "State": "running", "Labels": labels}));
                Value::Array(listed.collect())
            }
            path if path.starts_with("/containers/") => {
                let number = self.running.filter(|n| path.contains(&id(*n)))?;
                json!({
                    "Id": id(number), "Name": format!("/c{number}"), "Image": "sha256:1",
                    "State": {"Running": true, "Status": "running", "Pid": self.pid, "StartedAt": "2026-01-01T00:00:00Z"},
                    "Config": {"Labels": labels},
                    "HostConfig": {"NetworkMode": "bridge"},
                    "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2", "NetworkID": network}}},
                })
            }
            _ => json!({}),
        })
    }
}

fn id(number: u64) -> String {
    format!("{number:064x}")
}

/// Answers one request.
fn serve(mut stream: UnixStream, state: &Mutex<State>) {
    let path = requested(&mut stream);
    let path = path.split('?').next().unwrap_or_default();
    let mut state = state.lock().expect("no panic");
    if path == "/events" {
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        if stream.write_all(head).is_ok() {
            state.listeners.push(stream);
        }
        return;
    }
    let (status, body) = match state.answer(path) {
        Some(body) => ("200 OK", body.to_string()),
        None => ("404 Not Found", "{}".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all((head + &body).as_bytes());
}

//! What stands for a container engine: a socket that gives fixed answers.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use meshd::lab::Host;

/// The id of the container.
fn id() -> String {
    "c".repeat(64)
}

/// Answers at a host's `/run/docker.sock` for as long as the test runs: there is a network on `bridge` with `subnet`, and a
/// container of the service `web` on it at `address`, if that is given.
pub(crate) fn start(host: &Host, bridge: &str, subnet: &str, address: Option<&str>) {
    let listener = UnixListener::bind(host.path("/run/docker.sock")).expect("a free path");
    let networks = serde_json::json!([{
        "Id": "f".repeat(64), "Name": "bridge", "Driver": "bridge",
        "Options": {"com.docker.network.bridge.name": bridge},
        "IPAM": {"Config": [{"Subnet": subnet}]},
    }]);
    let labels =
        serde_json::json!({"mesh.service": "web", "mesh.port": "80", "mesh.check": "none"});
    let list = match address {
        Some(_) => serde_json::json!([{"Id": id(), "State": "running", "Labels": labels}]),
        None => serde_json::json!([]),
    };
    let container = serde_json::json!({
        "Id": id(), "Name": "/web", "Image": "sha256:1",
        "State": {"Running": true, "Status": "running", "Pid": host.pid(), "StartedAt": "2026-01-01T00:00:00Z"},
        "Config": {"Labels": labels},
        "HostConfig": {"NetworkMode": "bridge"},
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": address, "NetworkID": "f".repeat(64)}}},
    });
    std::thread::spawn(move || {
        let mut streams = Vec::new();
        for stream in listener.incoming().flatten() {
            let mut stream: UnixStream = stream;
            let path = requested(&mut stream);
            let body = match path.split('?').next().unwrap_or_default() {
                "/version" => serde_json::json!({"Version": "28.0.0"}),
                "/info" => serde_json::json!({}),
                "/networks" => networks.clone(),
                "/containers/json" => list.clone(),
                "/events" => {
                    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                    let _ = stream.write_all(head);
                    // It goes on for ever, and nothing happens.
                    streams.push(stream);
                    continue;
                }
                path if path.starts_with("/containers/") => container.clone(),
                _ => serde_json::json!({}),
            }
            .to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
}

/// The path of a request.
fn requested(stream: &mut UnixStream) -> String {
    let (mut request, mut octet) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut octet), Ok(1)) {
        request.push(octet[0]);
    }
    let request = String::from_utf8_lossy(&request);
    request.split(' ').nth(1).unwrap_or_default().to_owned()
}

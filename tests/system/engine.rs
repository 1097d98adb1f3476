//! A stand-in for a container engine: a socket that gives fixed answers.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};

use meshd::testbed::Host;

/// The id of the container.
fn id() -> String {
    "c".repeat(64)
}

/// Runs `ip` on a host and asserts that it succeeds.
pub(crate) fn ip(host: &Host, arguments: &str) {
    let mut command = host.command("ip").expect("a namespace");
    let status = command.args(arguments.split(' ')).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "ip {arguments}"
    );
}

/// Makes the bridge `docker0` on a host.
fn make_docker0(host: &Host) {
    for arguments in [
        "link add docker0 type bridge",
        "address add 172.17.0.1/16 dev docker0",
        "link set docker0 up",
    ] {
        ip(host, arguments);
    }
}

/// Makes the bridge `docker0` on a host, and starts an engine with a container of the service `web` on that bridge, at
/// 172.17.0.2.
pub(crate) fn start_on_docker0(host: &Host) {
    make_docker0(host);
    start(host, "docker0", "172.17.0.0/16", Some("172.17.0.2"));
}

/// Makes the host `container` a container of `host`: it is connected to the bridge `docker0` with the address
/// 172.17.0.2, and sends to the mesh through `host`.
pub(crate) fn attach(host: &Host, container: &Host) {
    make_docker0(host);
    for arguments in [
        "link add v0 type veth peer name ct0",
        "link set v0 master docker0 up",
        &format!("link set ct0 netns {}", container.pid()),
    ] {
        ip(host, arguments);
    }
    for arguments in [
        "address add 172.17.0.2/16 dev ct0",
        "link set ct0 up",
        "route add 10.210.0.0/16 via 172.17.0.1",
    ] {
        ip(container, arguments);
    }
    host.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
        .expect("a namespace")
        .expect("root");
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

/// Reads a request, and returns its path.
pub(crate) fn requested(stream: &mut UnixStream) -> String {
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        request.push(byte[0]);
    }
    let request = String::from_utf8_lossy(&request);
    request.split(' ').nth(1).unwrap_or_default().to_owned()
}

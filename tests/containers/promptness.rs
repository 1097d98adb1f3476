//! How long it takes from a container's start to the answer on another host, and from its stop signal to none.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use crate::hosts::{ECHO, Hosts, IMAGE, PORT};

/// Starts that are measured with a HEALTHCHECK, and with a probe; `STARTS` overrides both.
const STARTS: (usize, usize) = (100, 34);
/// Only a hang takes that long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The events of containers, with the time in nanoseconds that the engine reports for each one.
fn events(hosts: &Hosts, n: usize) -> mpsc::Receiver<(String, u128)> {
    let (sender, receiver) = mpsc::channel();
    let socket = hosts.nodes[n].host().path("/run/docker.sock");
    let mut stream = UnixStream::connect(socket).expect("the engine");
    stream
        .write_all(b"GET /events HTTP/1.0\r\n\r\n")
        .expect("it hears");
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else {
                continue;
            };
            let (Some(action), Some(at)) = (event["Action"].as_str(), event["timeNano"].as_u64())
            else {
                continue;
            };
            if sender.send((action.to_owned(), u128::from(at))).is_err() {
                return;
            }
        }
    });
    receiver
}

/// How many addresses `web.svc.mesh` has, by the resolver of the host that the socket is of.
fn answers(socket: &UdpSocket) -> u16 {
    let query = b"\x07\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x03svc\x04mesh\x00\x00\x01\x00\x01";
    let mut buffer = [0; 1500];
    socket.send(query).expect("a route");
    socket.recv(&mut buffer).expect("an answer");
    u16::from_be_bytes([buffer[6], buffer[7]])
}

fn now() -> u128 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("after 1970").as_nanos()
}

fn print(what: &str, mut took: Vec<f64>) {
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    let count = took.len();
    println!(
        "{what}: p50 {:.0} ms, p99 {:.0} ms of {count}",
        at(50),
        at(99)
    );
}

#[test]
fn starts_and_stops_are_known_elsewhere_promptly() {
    let Some(hosts) = Hosts::joined(2) else {
        return;
    };
    let starts = std::env::var("STARTS").ok().and_then(|n| n.parse().ok());
    let (checked, probed) = starts.map_or(STARTS, |n| (n, n));
    let resolver = hosts.nodes[0].host().inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("10.210.0.53:53")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        std::io::Result::Ok(socket)
    });
    let resolver = resolver.expect("a namespace").expect("a route");
    let happened = events(&hosts, 1);
    let port = PORT.to_string();
    let health = ["--health-cmd", "true", "--health-interval", "100ms"];
    for (check, event, arguments, count) in [
        (
            "HEALTHCHECK",
            "health_status: healthy",
            &health[..],
            checked,
        ),
        ("a probe", "start", &[], probed),
    ] {
        let create = ["create", "--name", "web"];
        let labels = ["--label", "mesh.service=web", "--label", "mesh.port=7777"];
        let program = [IMAGE, ECHO, "serve", &port, "50"];
        hosts.docker(1, &[&create[..], &labels, arguments, &program].concat());
        let wait = |event: &str, wanted: u16| {
            let end = Instant::now() + WAIT_TIMEOUT;
            while answers(&resolver) != wanted {
                assert!(Instant::now() < end, "{wanted} answers after {event}");
                std::thread::sleep(Duration::from_millis(1));
            }
            let seen = now();
            let mut left = WAIT_TIMEOUT;
            let at = loop {
                let (action, at) = happened.recv_timeout(left).expect("an event");
                if action == event {
                    break at;
                }
                left = end.saturating_duration_since(Instant::now());
            };
            seen.saturating_sub(at) as f64 / 1e6
        };
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for _ in 0..count {
            hosts.docker(1, &["start", "web"]);
            up.push(wait(event, 1));
            let stop = std::thread::scope(|scope| {
                let stop = scope.spawn(|| hosts.docker(1, &["stop", "web"]));
                down.push(wait("kill", 0));
                stop.join()
            });
            stop.expect("it stops");
            while happened.try_recv().is_ok() {}
        }
        print(
            &format!("from {event:?} ({check}) to the answer elsewhere"),
            up,
        );
        print("from the stop signal to none", down);
        hosts.docker(1, &["rm", "web"]);
    }
}

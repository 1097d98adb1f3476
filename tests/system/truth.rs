//! A node reports the truth about itself and its peers: blocked ports, removed nodes, lost peers, distances.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meshd::protocol::local::{NodeState, PeerState, PeerStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::mesh::{Mesh, SOCKET};

/// Makes node `n` drop the tunnel's datagrams in the given directions.
fn block(mesh: &Mesh, n: usize, hooks: &[&str]) {
    for hook in hooks {
        let rules = format!(
            "table inet closed {{ chain {hook} {{ type filter hook {hook} priority -300; udp dport 51820 drop; }}; }}"
        );
        assert!(mesh.succeeds(n, "nft", &[&rules]), "nft {rules}");
    }
}

fn unblock(mesh: &Mesh, n: usize) {
    assert!(mesh.succeeds(n, "nft", &["delete table inet closed"]));
}

/// The status and body of a health endpoint of node `n`.
fn health(mesh: &Mesh, n: usize, path: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:9560")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let host = &mesh.nodes[n].host;
    host.inside(ask).expect("a namespace").expect("an answer")
}

fn ready(mesh: &Mesh, n: usize) -> (i32, String) {
    let ended = mesh.on(n, &["status", "--check", "ready"]);
    (ended.code, ended.stderr)
}

/// The only peer of node `n`.
fn peer(mesh: &Mesh, n: usize) -> PeerStatus {
    let peers = mesh.status(n).peers;
    assert_eq!(peers.len(), 1, "{peers:?}");
    peers.into_iter().next().expect("one")
}

fn never_heard(mesh: &Mesh, n: usize) -> Option<meshd::protocol::local::Problem> {
    let problems = mesh.status(n).problems.into_iter();
    let mut found = problems.filter(|p| p.what.contains("no packet was ever received"));
    found.next()
}

#[test]
fn udp_blocked_on_both_hosts_is_a_problem_on_both_that_names_the_ports_and_clears_itself() {
    let Some(mesh) = Mesh::start(2) else { return };
    for n in 0..2 {
        block(&mesh, n, &["input", "output"]);
    }
    let token = mesh.token(&["--uses", "2"]);
    let first = mesh.on(0, &["join", &token]);
    assert_eq!(first.code, 0, "{first:?}");
    assert!(first.stderr.contains("no other node yet"), "{first:?}");
    assert_eq!(ready(&mesh, 0).0, 0, "a node alone has nobody to reach");
    let second = mesh.on(1, &["join", &token]);
    assert_eq!(
        second.code, 0,
        "tunnel, addresses and names are up: {second:?}"
    );
    let endpoints = [0, 1].map(|n| format!("{}:51820", mesh.nodes[n].host.v4()));
    for part in [
        "warning: n1 is not reached: no packet from it was received yet",
        "UDP port 51820",
        &endpoints[0],
    ] {
        assert!(second.stderr.contains(part), "{part}: {second:?}");
    }

    for n in 0..2 {
        let (other, endpoint) = (format!("n{}", 2 - n), &endpoints[1 - n]);
        mesh.wait_until("the block is a problem", || never_heard(&mesh, n).is_some());
        let problem = never_heard(&mesh, n).expect("just seen");
        assert_eq!(
            problem.what,
            format!("no packet was ever received from {other}")
        );
        assert!(
            problem.fix.contains("open UDP port 51820 of this host"),
            "{problem:?}"
        );
        assert!(problem.fix.contains(endpoint), "{problem:?}");
        let (code, why) = ready(&mesh, n);
        assert_eq!(code, 2, "{why}");
        assert!(why.contains("UDP port 51820"), "{why}");
        assert!(health(&mesh, n, "/healthz").starts_with("HTTP/1.1 200"));
        let readyz = health(&mesh, n, "/readyz");
        assert!(
            readyz.starts_with("HTTP/1.1 503") && readyz.contains("51820"),
            "{readyz}"
        );
        let lost = peer(&mesh, n);
        assert_eq!(lost.state, PeerState::Unreachable, "{lost:?}");
        assert_eq!((lost.rtt_ms, lost.last_heard_seconds_ago), (None, None));
        assert!(lost.reason.is_some_and(|why| why.contains(endpoint)));
        let table = mesh.on(n, &["status"]).stdout;
        assert!(table.contains("never"), "{table}");
        let doctor = mesh.on(n, &["doctor"]);
        assert_eq!(doctor.code, 2, "{doctor:?}");
        assert!(
            doctor
                .stdout
                .contains(&format!("tunnel to {other}: does not work")),
            "{doctor:?}"
        );
    }

    (0..2).for_each(|n| unblock(&mesh, n));
    for n in 0..2 {
        mesh.wait_until("the problem goes away", || {
            never_heard(&mesh, n).is_none() && ready(&mesh, n).0 == 0
        });
        assert!(health(&mesh, n, "/readyz").starts_with("HTTP/1.1 200"));
        let doctor = mesh.on(n, &["doctor"]).stdout;
        assert!(
            doctor.contains(&format!("tunnel to n{}: works", 2 - n)),
            "{doctor}"
        );
    }
    // The probes that waited for the handshake for all that time are no round trips.
    mesh.wait_until("the peers are measured", || {
        (0..2).all(|n| peer(&mesh, n).rtt_ms.is_some())
    });
    for n in 0..2 {
        let reached = peer(&mesh, n);
        assert!(
            reached.rtt_ms.is_some_and(|rtt| rtt < 2_000.0),
            "{reached:?}"
        );
    }
}

#[test]
fn udp_blocked_in_one_direction_is_a_problem_on_both_sides() {
    let Some(mesh) = Mesh::start(2) else { return };
    block(&mesh, 1, &["input"]);
    let token = mesh.token(&["--uses", "2"]);
    for n in 0..2 {
        assert_eq!(mesh.on(n, &["join", &token]).code, 0);
    }
    for n in 0..2 {
        mesh.wait_until("the block is a problem", || never_heard(&mesh, n).is_some());
        assert_eq!(ready(&mesh, n).0, 2);
        let offered = mesh.status(n).node.expect("it has joined").endpoints;
        let address = SocketAddr::from((mesh.nodes[n].host.v4(), 51820));
        assert!(offered.contains(&address), "{offered:?}");
    }
    // The other one may have sent its first handshake after the problem was shown.
    mesh.wait_until("the handshakes that arrive are in the problem", || {
        never_heard(&mesh, 0).is_some_and(|problem| problem.why.contains("its handshakes arrive"))
    });
    let why = never_heard(&mesh, 1).expect("a problem").why;
    assert!(why.contains("is blocked"), "{why}");
    unblock(&mesh, 1);
    mesh.wait_until("both reach each other", || {
        (0..2).all(|n| never_heard(&mesh, n).is_none() && ready(&mesh, n).0 == 0)
    });
}

#[test]
fn a_removed_node_shows_its_removal_first_is_not_ready_and_joins_again_with_a_new_token() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    assert_eq!(ready(&mesh, 1).0, 0);
    assert_eq!(mesh.admin(&["node", "remove", "n2"]).code, 0);
    mesh.wait_until("it is told", || mesh.status(1).state == NodeState::Removed);
    let removed = |mesh: &Mesh| {
        let status = mesh.status(1);
        let first = status.problems.first().expect("a problem");
        assert_eq!(first.what, "this node was removed from the mesh");
        assert!(first.fix.contains("meshctl leave") && first.fix.contains("new token"));
        assert_eq!(status.state, NodeState::Removed);
        let (code, why) = ready(mesh, 1);
        assert_eq!(code, 2, "{why}");
        assert!(
            why.contains("removed") && why.contains("meshctl leave"),
            "{why}"
        );
    };
    removed(&mesh);
    assert!(health(&mesh, 1, "/readyz").contains("removed"));
    let doctor = mesh.on(1, &["doctor"]);
    assert_eq!(doctor.code, 2, "{doctor:?}");
    assert!(
        doctor.stderr.contains("removed") && doctor.stderr.contains("leave"),
        "{doctor:?}"
    );
    let table = mesh.on(1, &["status"]).stdout;
    assert!(
        table
            .lines()
            .next()
            .is_some_and(|line| line.contains("this node was removed")),
        "{table}"
    );

    // That the coordinator is away now says nothing else.
    mesh.coordinator.take().expect("it runs").kill();
    mesh.wait_until("it tried the coordinator in vain", || {
        let log = mesh.nodes[1].daemon.as_ref().expect("it runs").log();
        log.matches("coordinator away").count() > 1
    });
    removed(&mesh);
    mesh.start_coordinator();
    assert_eq!(mesh.on(1, &["leave"]).code, 0);
    let token = mesh.token(&[]);
    let again = mesh.on(1, &["join", &token]);
    assert_eq!(again.code, 0, "{again:?}");
    mesh.wait_until("it is ready again", || ready(&mesh, 1).0 == 0);
}

#[test]
fn a_peer_that_is_killed_while_it_is_sent_to_is_not_shown_as_direct_with_an_old_round_trip() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    let address = mesh.addresses(1).0.to_string();
    mesh.wait_until("the peer is measured", || {
        mesh.pings(0, &address) && peer(&mesh, 0).rtt_ms.is_some()
    });
    assert!(peer(&mesh, 0).last_heard_seconds_ago.is_some());
    mesh.kill_node(1);
    mesh.wait_until("the peer is unreachable", || {
        mesh.succeeds(0, "ping", &["-c", "1", "-W", "0.2", &address]);
        let lost = peer(&mesh, 0);
        let heard = lost.last_heard_seconds_ago.expect("it was heard before");
        match lost.state {
            // An idle peer is found out after 20 s; this one is sent to.
            PeerState::Direct | PeerState::Idle => assert!(heard < 12.0, "{lost:?}"),
            _ => {
                assert_eq!(lost.rtt_ms, None, "{lost:?}");
                assert!(
                    lost.reason
                        .as_ref()
                        .is_some_and(|why| why.contains("s ago"))
                );
            }
        }
        lost.state == PeerState::Unreachable
    });
    let table = mesh.on(0, &["status"]).stdout;
    assert!(
        table.contains("LAST HEARD") && table.contains("s ago"),
        "{table}"
    );
    assert_eq!(ready(&mesh, 0).0, 0, "a peer was reached since the start");
    let problems = mesh.status(0).problems;
    let cut_off =
        |p: &meshd::protocol::local::Problem| p.what == "this node reaches no other node any more";
    assert!(problems.iter().any(cut_off), "{problems:?}");
    mesh.start_node(1);
    mesh.wait_until("it is direct again", || {
        let direct = mesh.pings(0, &address) && peer(&mesh, 0).state == PeerState::Direct;
        direct && !mesh.status(0).problems.iter().any(cut_off)
    });
}

#[test]
fn the_service_manager_is_shown_whether_the_node_is_ready() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    mesh.kill_node(0);
    let host = &mesh.nodes[0].host;
    let manager = UnixDatagram::bind(host.path("/run/notify")).expect("the host's own files");
    let limit = Some(Duration::from_secs(60));
    manager.set_read_timeout(limit).expect("a socket");
    let wait_for = |wanted: &str| {
        let mut message = [0; 4096];
        let mut seen = String::new();
        while !seen.contains(wanted) {
            let length = manager.recv(&mut message).unwrap_or_else(|error| {
                panic!("{error} while waiting for {wanted}, after: {seen}")
            });
            seen.push_str(&String::from_utf8_lossy(&message[..length]));
        }
    };
    let mut command = host
        .command(env!("CARGO_BIN_EXE_meshd"))
        .expect("a namespace");
    command
        .args(["--state-dir", "/run/state", "--socket", SOCKET])
        .env("NOTIFY_SOCKET", "/run/notify");
    let daemon = host.start(&mut command, &mesh.log(0)).expect("a program");
    mesh.nodes[0].daemon = Some(daemon);
    // The unit is started although the node is in no mesh.
    wait_for("READY=1");
    wait_for("STATUS=not joined to a mesh");
    let token = mesh.token(&[]);
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    wait_for("STATUS=ready");
}

/// Stops a program for most of the time: what waits for its answers waits long.
struct Sluggish {
    end: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sluggish {
    fn new(mesh: &Mesh, n: usize) -> Self {
        let pid = mesh.nodes[n].daemon.as_ref().expect("it runs").pid();
        let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let _ = kill(pid, Signal::SIGSTOP);
                std::thread::sleep(Duration::from_millis(150));
                let _ = kill(pid, Signal::SIGCONT);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            end,
            thread: Some(thread),
        }
    }
}

impl Drop for Sluggish {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn names_are_answered_nearest_first_again_when_distances_change_and_nothing_else_does() {
    let Some(mesh) = Mesh::joined(3) else { return };
    for n in 1..3 {
        assert_eq!(
            mesh.on(n, &["service", "add", "web", "--port", "80"]).code,
            0
        );
    }
    let addresses = [1, 2].map(|n| mesh.addresses(n).0.to_string());
    // Some round trips are needed until an estimate has followed: more than other waits here take.
    let wait_for_nearest = |near: &str, far: &str| {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let found = mesh.on(0, &["resolve", "nearest.web.svc.mesh"]);
            let records = found.stdout.lines().filter(|line| line.contains(" IN A "));
            let records: Vec<&str> = records.collect();
            if let [record] = records[..]
                && record.ends_with(near)
            {
                return;
            }
            assert!(
                Instant::now() < end,
                "{far} is still as near: {found:?} {:?}",
                mesh.status(0).peers
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    let slow = Sluggish::new(&mesh, 2);
    wait_for_nearest(&addresses[0], &addresses[1]);
    drop(slow);
    let _slow = Sluggish::new(&mesh, 1);
    wait_for_nearest(&addresses[1], &addresses[0]);
}

//! Machines in a bad state: no TUN, no rights, a full disk, a wrong clock, a kill at the worst moment. Nothing is lost.

use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use meshd::protocol::local::NodeState;

use crate::bad_input::assert_refused;
use crate::mesh::{Ended, Mesh, SOCKET, run, write};

/// Mounts an empty file system of this size over a directory of a node.
pub(crate) fn cover(mesh: &Mesh, n: usize, path: &str, size: &str) {
    let pid = mesh.nodes[n].host.pid().to_string();
    let done = Command::new("nsenter")
        .args(["-t", &pid, "-m", "mount", "-t", "tmpfs", "-o"])
        .arg(format!("mode=700,size={size}"))
        .args(["none", path])
        .status();
    assert!(done.is_ok_and(|status| status.success()));
}

pub(crate) fn fill(directory: &Path) {
    let file = directory.join("ballast");
    // Until nothing more goes in.
    let _ = std::fs::write(&file, vec![0; 4 << 20]);
    let _ = std::fs::write(directory.join("more"), vec![0; 4096]);
}

pub(crate) fn empty(directory: &Path) {
    for name in ["ballast", "more"] {
        let _ = std::fs::remove_file(directory.join(name));
    }
}

#[test]
fn the_error_on_a_machine_without_tun_names_the_remedy() {
    let Some(mesh) = Mesh::start(1) else { return };
    let token = mesh.token(&[]);
    cover(&mesh, 0, "/dev/net", "64k");
    assert_refused(
        &mesh.on(0, &["join", &token]),
        78,
        &["/dev/net/tun", "modprobe tun"],
    );
    let pid = mesh.nodes[0].host.pid().to_string();
    let uncovered = Command::new("nsenter")
        .args(["-t", &pid, "-m", "umount", "/dev/net"])
        .status();
    assert!(uncovered.is_ok_and(|status| status.success()));
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
}

/// Gives node `n` a device file of its own at /dev/net/tun, with this mode. Returns false, and skips the test, where that is not
/// permitted.
fn has_tun_device(mesh: &Mesh, n: usize, mode: &str) -> bool {
    let script = format!("mknod -m {mode} /run/tun c 10 200 && mount --bind /run/tun /dev/net/tun");
    let is_made = mesh.succeeds(n, "sh", &["-c", &script]);
    if !is_made {
        meshd::testbed::skip_test("making a device file is not permitted here");
    }
    is_made
}

#[test]
fn a_meshd_without_rights_names_those_it_needs() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    let token = mesh.token(&[]);
    mesh.kill_node(0);
    if !has_tun_device(&mesh, 0, "666") {
        return;
    }
    let host = &mesh.nodes[0].host;
    let home = host.path("/run/nobody");
    std::fs::create_dir(&home).expect("the host's own file system");
    chown(&home, Some(65_534), Some(65_534)).expect("root");
    // The build directory may be closed to others.
    let program = home.join("meshd");
    std::fs::copy(env!("CARGO_BIN_EXE_meshd"), &program).expect("it is built");
    let as_nobody = |arguments: &[&str]| {
        let mut command = host.command("setpriv").expect("a namespace");
        command
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "/run/nobody/meshd",
            ])
            .args(arguments);
        command
    };
    let ended = run(&mut as_nobody(&[
        "--state-dir",
        "/run/forbidden",
        "--socket",
        "/run/nobody/s",
    ]));
    assert_refused(
        &ended,
        77,
        &[
            "/run/forbidden",
            "needs root or CAP_NET_ADMIN",
            "systemctl start meshd",
        ],
    );
    assert!(!ended.stderr.contains("chown"), "{ended:?}");
    // A directory of another user is no reason to give it away.
    let ended = run(&mut as_nobody(&[
        "--state-dir",
        "/run/state",
        "--socket",
        "/run/nobody/s",
    ]));
    assert_refused(
        &ended,
        77,
        &[
            "/run/state",
            "needs root or CAP_NET_ADMIN",
            "systemctl start meshd",
        ],
    );
    assert!(!ended.stderr.contains("chown"), "{ended:?}");

    let mut command = as_nobody(&[
        "--state-dir",
        "/run/nobody/state",
        "--socket",
        "/run/nobody/s",
    ]);
    let _daemon = host
        .start(&mut command, &mesh.logs.path().join("nobody"))
        .expect("a program");
    let socket = host.path("/run/nobody/s");
    mesh.wait_until("meshd answers", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    assert_refused(
        &mesh.on(0, &["--socket", "/run/nobody/s", "join", &token]),
        77,
        &["CAP_NET_ADMIN"],
    );
    mesh.start_node(0);
    assert_eq!(
        mesh.on(0, &["join", &token]).code,
        0,
        "the token is not lost"
    );
}

#[test]
fn a_tun_device_that_meshd_may_not_open_is_named_and_not_a_missing_capability() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    let token = mesh.token(&[]);
    mesh.kill_node(0);
    let host = &mesh.nodes[0].host;
    let home = host.path("/run/nobody");
    std::fs::create_dir(&home).expect("the host's own file system");
    chown(&home, Some(65_534), Some(65_534)).expect("root");
    std::fs::copy(env!("CARGO_BIN_EXE_meshd"), home.join("meshd")).expect("it is built");
    if !has_tun_device(&mesh, 0, "600") {
        return;
    }
    let mut command = host.command("setpriv").expect("a namespace");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=+net_admin",
        "--ambient-caps=+net_admin",
        "/run/nobody/meshd",
        "--state-dir=/run/nobody/state",
        "--socket=/run/nobody/s",
    ]);
    let log = mesh.logs.path().join("nobody");
    let _daemon = host.start(&mut command, &log).expect("a program");
    let socket = host.path("/run/nobody/s");
    mesh.wait_until("meshd answers", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let ended = mesh.on(0, &["--socket", "/run/nobody/s", "join", &token]);
    assert_refused(&ended, 77, &["/dev/net/tun", "mode 0600", "chmod 666"]);
    assert!(!ended.stderr.contains("CAP_NET_ADMIN"), "{ended:?}");
}

#[test]
fn a_full_disk_on_a_node_is_reported_and_loses_nothing() {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    let token = mesh.token(&["--uses", "2"]);
    assert_eq!(mesh.on(1, &["join", &token]).code, 0);
    mesh.kill_node(0);
    cover(&mesh, 0, "/run/state", "256k");
    mesh.start_node(0);
    let directory = mesh.nodes[0].host.path("/run/state");
    fill(&directory);
    assert_refused(
        &mesh.on(0, &["join", &token]),
        78,
        &["/run/state", "No space left", "make room"],
    );
    empty(&directory);
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    let add = |port: &str| mesh.on(0, &["service", "add", "web", "--port", port]);
    assert_eq!(add("80").code, 0);
    fill(&directory);
    // Each attempt is an event as well. The last page of the log has room for some of them.
    for _ in 0..20 {
        assert_refused(&add("81"), 78, &["/run/state", "No space left"]);
    }
    mesh.wait_until("the audit log is a problem", || {
        let problems = mesh.status(0).problems;
        problems.iter().any(|p| p.what.contains("audit log"))
    });
    // The node still accepts changes of others, and reports that they are not on disk. The last page of the file may
    // have some room left.
    for n in 0..30 {
        let name = format!("db-{n}");
        let ended = mesh.on(1, &["service", "add", &name, "--port", "5432"]);
        assert_eq!(ended.code, 0);
    }
    mesh.wait_until("the node knows of them", || {
        mesh.on(0, &["resolve", "db-29.svc.mesh"]).code == 0
    });
    mesh.wait_until("the full disk is a problem", || {
        mesh.status(0)
            .problems
            .iter()
            .any(|p| p.why.contains("No space left"))
    });
    empty(&directory);
    assert_eq!(add("82").code, 0);
    mesh.wait_until("the problem is gone", || {
        mesh.status(0)
            .problems
            .iter()
            .all(|p| !p.why.contains("No space left"))
    });
    assert_lost_events_are_counted(&mesh.on(0, &["audit", "--json", "--file", "/run/state"]));
    assert_eq!(
        mesh.on(0, &["audit", "--verify", "--file", "/run/state"])
            .code,
        0
    );
    mesh.coordinator.take().expect("it runs").kill();
    mesh.kill_node(0);
    mesh.start_node(0);
    mesh.wait_until("all services are there from disk alone", || {
        let services = mesh.on(0, &["service", "list"]).stdout;
        services.contains(":82/") && services.matches(":5432/").count() == 30
    });
}

#[test]
fn a_coordinator_with_a_full_disk_reports_that_and_writes_again_when_there_is_room() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    mesh.coordinator.take().expect("it runs").stop();
    let pid = mesh.coordinator_host.pid().to_string();
    let script = "cp -a /run/coordinator /run/kept && mount -t tmpfs -o mode=700,size=1m none /run/coordinator && cp -a /run/kept/. /run/coordinator";
    let done = Command::new("nsenter")
        .args(["-t", &pid, "-m", "sh", "-c", script])
        .status();
    assert!(done.is_ok_and(|status| status.success()));
    mesh.start_coordinator();
    let token = mesh.token(&[]);
    let directory = mesh.coordinator_host.path("/run/coordinator");
    fill(&directory);
    let refused = |ended: &Ended| {
        assert_ne!(ended.code, 0);
        assert!(ended.stderr.contains("full"), "{ended:?}");
    };
    // For a while, writes fit into space that the store already has.
    let mut full = mesh.admin(&["token", "create"]);
    for _ in 0..200 {
        if full.code != 0 {
            break;
        }
        full = mesh.admin(&["token", "create"]);
    }
    refused(&full);
    refused(&mesh.on(0, &["join", &token]));
    assert_eq!(mesh.admin(&["token", "list"]).code, 0, "reads go on");
    empty(&directory);
    mesh.wait_until("the coordinator writes again", || {
        mesh.admin(&["token", "create"]).code == 0
    });
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
    let log = ["audit", "--file", "/run/coordinator"];
    assert_eq!(mesh.admin(&[&log[..], &["--verify"]].concat()).code, 0);
}

/// Holds that the log of events, which was on a full disk, says how many events it does not have.
fn assert_lost_events_are_counted(audit: &Ended) {
    let document: serde_json::Value = serde_json::from_str(&audit.stdout).expect("a document");
    let events = document["events"].as_array().expect("a list");
    let lost: Vec<u64> = events
        .iter()
        .filter(|event| event["what"] == "events_lost")
        .filter_map(|event| event["object"]["count"].as_u64())
        .collect();
    assert!(lost.iter().any(|count| *count > 0), "{events:?}");
    let is_failure = |event: &serde_json::Value| {
        let result = event["result"].as_str().unwrap_or_default();
        event["what"] == "local_call"
            && event["object"] == serde_json::json!({"call": "add_service", "name": "web"})
            && event["who"]["uid"] == 0
            && result.starts_with("failed: ")
    };
    assert!(events.iter().any(is_failure), "{events:?}");
}

#[test]
fn a_clock_that_is_an_hour_off_is_named_where_it_matters() {
    if Command::new("faketime").arg("--version").output().is_err() {
        meshd::testbed::skip_test("faketime is not installed");
        return;
    }
    let Some(mut mesh) = Mesh::start(3) else {
        return;
    };
    let token = mesh.token(&["--ttl", "3h", "--uses", "3"]);
    let restart = |mesh: &mut Mesh, offsets: [&str; 2]| {
        for (n, offset) in offsets.into_iter().enumerate() {
            mesh.kill_node(n);
            start_with(mesh, n, &[&format!("FAKETIME={offset}")]);
        }
    };
    restart(&mut mesh, ["+1h", "-1h"]);
    for (n, which) in ["clock is 60 min ahead", "clock is 60 min behind"]
        .into_iter()
        .enumerate()
    {
        assert_refused(&mesh.on(n, &["join", &token]), 78, &[which, "timesyncd"]);
    }
    restart(&mut mesh, ["+9m", "-9m"]);
    for n in 0..3 {
        let ended = mesh.on(n, &["join", &token]);
        assert_eq!(ended.code, 0, "{ended:?}");
    }
    let all_reach = |mesh: &Mesh| (0..3).all(|n| mesh.reaches(n) == 2);
    mesh.wait_until("all nodes reach each other", || all_reach(&mesh));
    // A clock that becomes wrong after the join ends no tunnel.
    restart(&mut mesh, ["+1h", "-1h"]);
    mesh.wait_until("all nodes reach each other again", || all_reach(&mesh));
}

/// Starts meshd on a node under libfaketime with such variables, and waits until it answers. The program `faketime` would stay
/// between, and be ended in its place.
fn start_with(mesh: &mut Mesh, n: usize, variables: &[&str]) {
    let host = &mesh.nodes[n].host;
    let mut command = host.command("env").expect("a namespace");
    command
        .arg("LD_PRELOAD=/usr/$LIB/faketime/libfaketimeMT.so.1")
        .args(variables)
        .args([
            env!("CARGO_BIN_EXE_meshd"),
            "--state-dir",
            "/run/state",
            "--socket",
            SOCKET,
        ]);
    let daemon = host.start(&mut command, &mesh.log(n)).expect("a program");
    let socket = host.path(SOCKET);
    mesh.nodes[n].daemon = Some(daemon);
    mesh.wait_until("meshd answers", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
}

/// Starts meshd on a node under a clock that is off by what the file `/run/clock` says, as `+3600`, from one second to
/// the next; only the wall clock, as when somebody sets it.
fn start_under_clock(mesh: &mut Mesh, n: usize) {
    let variables = [
        "FAKETIME_TIMESTAMP_FILE=/run/clock",
        "FAKETIME_CACHE_DURATION=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    ];
    start_with(mesh, n, &variables);
}

#[test]
fn handshakes_and_records_survive_a_clock_that_jumps_an_hour_either_way() {
    if Command::new("faketime").arg("--version").output().is_err() {
        meshd::testbed::skip_test("faketime is not installed");
        return;
    }
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    mesh.kill_node(0);
    let set_clock = |mesh: &Mesh, offset: &str| {
        write(&mesh.nodes[0].host, "/run/clock", offset);
        // Until the program has read it.
        std::thread::sleep(Duration::from_secs(2));
    };
    write(&mesh.nodes[0].host, "/run/clock", "+0");
    start_under_clock(&mut mesh, 0);
    for n in 0..2 {
        let token = mesh.token(&[]);
        assert_eq!(mesh.on(n, &["join", &token]).code, 0);
    }
    let addresses = [0, 1].map(|n| mesh.addresses(n).0.to_string());
    let works = |mesh: &Mesh, port: &str| {
        mesh.wait_until("packets pass both ways", || {
            mesh.pings(0, &addresses[1]) && mesh.pings(1, &addresses[0])
        });
        let added = mesh.on(0, &["service", "add", "web", "--port", port]);
        assert_eq!(added.code, 0, "{added:?}");
        mesh.wait_until("the other node hears of it", || {
            let listed = mesh.on(1, &["service", "list"]).stdout;
            listed.contains(&format!(":{port}/"))
        });
    };
    works(&mesh, "8000");
    let mut port = 8000;
    // Forward and back, twice an hour back at once, and right again.
    for offset in ["+3600", "-3600", "+0"] {
        set_clock(&mesh, offset);
        port += 1;
        works(&mesh, &port.to_string());
        // Sessions are made anew, begun by either end, under the clock as it is now.
        mesh.kill_node(1);
        mesh.start_node(1);
        port += 1;
        works(&mesh, &port.to_string());
        mesh.kill_node(0);
        start_under_clock(&mut mesh, 0);
        port += 1;
        works(&mesh, &port.to_string());
    }
    let status = mesh.status(0);
    assert!(status.coordinator.is_some_and(|c| c.connected));
}

#[test]
fn a_join_that_is_killed_half_way_is_done_again_with_the_same_token() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    for delay in [0, 1, 2, 4, 6, 8, 11, 15, 20, 40, 80] {
        let token = mesh.token(&[]);
        std::thread::scope(|scope| {
            let joining = scope.spawn(|| mesh.on(0, &["join", &token]));
            std::thread::sleep(Duration::from_millis(delay));
            let pid = mesh.nodes[0].daemon.as_ref().expect("it runs").pid();
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid")),
                nix::sys::signal::Signal::SIGKILL,
            )
            .expect("ours");
            joining.join().expect("no panic")
        });
        mesh.kill_node(0);
        mesh.start_node(0);
        // It goes on with what it was granted, or nothing was granted.
        mesh.wait_until("the join that was cut off is decided", || {
            mesh.status(0).state != NodeState::Joining
        });
        let is_up = mesh.status(0).state == NodeState::Up;
        let listed = mesh.admin(&["node", "list"]).stdout;
        assert_eq!(listed.contains("\nn1"), is_up, "after {delay} ms: {listed}");
        let ended = mesh.on(0, &["join", &token]);
        let joined_before = ended.code == 1 && ended.stderr.contains("already");
        assert!(
            ended.code == 0 || joined_before,
            "after {delay} ms: {ended:?}\n{}",
            mesh.nodes[0].daemon.as_ref().expect("it runs").log()
        );
        mesh.wait_until("the node is up", || {
            mesh.on(0, &["status", "--check", "ready"]).code == 0
        });
        assert_eq!(mesh.on(0, &["leave"]).code, 0);
        let nodes = mesh.admin(&["node", "list"]).stdout;
        assert_eq!(nodes.matches("\nn1").count(), 0, "{nodes}");
    }
}

#[test]
fn garbage_from_the_network_changes_nothing() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let target = mesh.nodes[0].host.v4();
    let (v4, _) = mesh.addresses(0);
    mesh.nodes[1]
        .host
        .inside(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
            let mut state = 1u64;
            let mut random = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            };
            for length in (0..1500).chain([9000, 65_000]) {
                for first in [1, 2, 3, 4, random()] {
                    let mut datagram: Vec<u8> = (0..length).map(|_| random()).collect();
                    if let [kind, a, b, c, ..] = &mut datagram[..] {
                        (*kind, *a, *b, *c) = (first, 0, 0, 0);
                    }
                    let _ = socket.send_to(&datagram, (target, 51_820));
                    let _ = socket.send_to(&datagram, (v4, 53));
                }
            }
        })
        .expect("a namespace");
    assert!(mesh.pings(1, &v4.to_string()));
    assert_eq!(mesh.on(0, &["resolve", "n2.node.mesh"]).code, 0);
    assert_eq!(mesh.reaches(0), 1);
}

#[test]
fn what_is_no_request_on_the_local_sockets_is_refused() {
    use std::io::{Read as _, Write as _};
    let Some(mesh) = Mesh::joined(1) else { return };
    let deep = "[".repeat(200_000);
    let large = "x".repeat(2 << 20);
    for socket in [
        mesh.nodes[0].host.path(SOCKET),
        mesh.coordinator_host.path("/run/admin.sock"),
    ] {
        for (path, body) in [
            ("/v1/services", deep.as_str()),
            ("/v1/records", deep.as_str()),
            ("/v1/join", large.as_str()),
            ("/v1/services", "{\"name\":1}"),
            ("/nothing", ""),
        ] {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("it runs");
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .expect("a socket");
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(body.as_bytes());
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
        }
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("it runs");
        let _ = stream.write_all(&[0; 100_000]);
    }
    assert_eq!(mesh.on(0, &["status", "--check", "ready"]).code, 0);
    assert_eq!(mesh.admin(&["node", "list"]).code, 0);
    let file = write(
        &mesh.nodes[0].host,
        "/run/meshd.toml",
        "[[service]]\nname = \"a.b\"\nport = 0\n",
    );
    let mut command = mesh.nodes[0]
        .host
        .command(env!("CARGO_BIN_EXE_meshd"))
        .expect("a namespace");
    let ended = run(command.args(["--config", &file, "--check-config"]));
    assert_eq!(ended.code, 78);
    assert!(ended.stderr.contains("a.b"), "{ended:?}");
}

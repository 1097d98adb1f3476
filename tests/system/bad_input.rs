//! Mistakes of users: each one gives one clear line and the right exit code, and loses nothing.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::mesh::{Ended, Mesh, SOCKET, run, write};

/// The command failed with this code and one line that has all these words in it.
pub(crate) fn assert_refused(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(
        (ended.code, ended.stderr.trim_end().lines().count()),
        (code, 1),
        "{ended:?}"
    );
    for word in words {
        assert!(ended.stderr.contains(word), "`{word}` in {ended:?}");
    }
}

#[test]
fn an_unusable_token_is_refused_with_the_reason() {
    let Some(mesh) = Mesh::start(2) else { return };
    assert_refused(&mesh.on(0, &["join", "hello"]), 64, &["mesh1_"]);
    let token = mesh.token(&[]);
    assert_refused(
        &mesh.on(0, &["join", &token[..token.len() - 3]]),
        64,
        &["garbled"],
    );

    let expired = mesh.token(&["--ttl", "1s"]);
    std::thread::sleep(Duration::from_millis(2100));
    assert_refused(
        &mesh.on(0, &["join", &expired]),
        1,
        &["expired", "meshctl token create"],
    );

    let revoked = mesh.token(&["--ttl", "2h"]);
    let listed = mesh.admin(&["token", "list", "--json"]).stdout;
    let list: meshd::protocol::admin::TokenList = serde_json::from_str(&listed).expect("a list");
    let id = list
        .tokens
        .iter()
        .max_by_key(|t| t.expires_at)
        .expect("three tokens")
        .id
        .to_string();
    assert_eq!(mesh.admin(&["token", "revoke", &id[..10]]).code, 0);
    assert_refused(&mesh.on(0, &["join", &revoked]), 1, &["revoked"]);

    assert_eq!(
        mesh.on(0, &["join", &token]).code,
        0,
        "nothing was lost by all this"
    );
    assert_refused(
        &mesh.on(1, &["join", &token]),
        1,
        &["spent", "meshctl token create"],
    );
    let fresh = mesh.token(&[]);
    assert_refused(
        &mesh.on(0, &["join", &fresh]),
        1,
        &["already", "meshctl leave"],
    );
    assert_eq!(mesh.on(1, &["join", &fresh]).code, 0);
}

#[test]
fn an_unreachable_coordinator_another_one_and_another_program_cause_different_errors() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    let token = mesh.token(&[]);
    mesh.coordinator.take().expect("it runs").kill();
    assert_refused(
        &mesh.on(0, &["join", &token]),
        69,
        &["cannot reach the coordinator", "198.51.100.10:7443"],
    );

    let listener = mesh
        .coordinator_host
        .inside(|| TcpListener::bind("0.0.0.0:7443"))
        .expect("a namespace")
        .expect("a free port");
    let other = std::thread::spawn(move || {
        for mut stream in listener.incoming().take(1).flatten() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    assert_refused(&mesh.on(0, &["join", &token]), 69, &["no mesh-coordinator"]);
    other.join().expect("it only waits");

    std::fs::remove_dir_all(mesh.coordinator_host.path("/run/coordinator"))
        .expect("the host's own file system");
    mesh.start_coordinator();
    assert_refused(
        &mesh.on(0, &["join", &token]),
        1,
        &["its key is not the one pinned", "Nothing was sent"],
    );
}

#[test]
fn a_join_with_the_name_of_another_node_is_refused_with_a_free_name() {
    let Some(mesh) = Mesh::start(2) else { return };
    let token = mesh.token(&["--uses", "2"]);
    assert_eq!(mesh.on(0, &["join", &token, "--name", "web"]).code, 0);
    assert_refused(
        &mesh.on(1, &["join", &token, "--name", "WEB"]),
        1,
        &["web", "--name web-2", "meshctl node remove web"],
    );
    for wrong in ["a.b", "a_b", "bücher", "-a", &"a".repeat(64), ""] {
        let ended = mesh.on(1, &["join", &token, &format!("--name={wrong}")]);
        assert_eq!(ended.code, 64, "{ended:?}");
    }
    assert_eq!(mesh.on(1, &["join", &token, "--name", "web-2"]).code, 0);
    assert_refused(&mesh.on(1, &["ping", "nobody"]), 2, &["no node nobody"]);
}

#[test]
fn service_names_and_lookups_that_are_none_are_refused() {
    let Some(mesh) = Mesh::joined(1) else { return };
    for wrong in ["a.b", "a_b", "é", &"a".repeat(64)] {
        assert_refused(
            &mesh.on(0, &["service", "add", wrong, "--port", "80"]),
            64,
            &["name"],
        );
    }
    assert_eq!(
        mesh.on(0, &["service", "add", "web", "--port", "0"]).code,
        64
    );
    assert_refused(
        &mesh.on(0, &["service", "remove", "nope"]),
        2,
        &["no service nope"],
    );
    assert_refused(
        &mesh.on(0, &["resolve", "a..svc.mesh"]),
        64,
        &["a domain name has labels of at most 63 bytes"],
    );
    assert_refused(
        &mesh.on(0, &["resolve", "a.svc.mesh", "BOGUS"]),
        64,
        &["record type"],
    );
    assert_eq!(mesh.on(0, &["resolve", "nope.svc.mesh"]).code, 2);
    assert_eq!(mesh.on(0, &["status", "--check", "ready"]).code, 0);
}

#[test]
fn a_network_in_the_way_is_named_and_the_token_is_not_lost() {
    let Some(mesh) = Mesh::start(1) else { return };
    let token = mesh.token(&[]);
    mesh.nodes[0]
        .host
        .add_address("10.210.77.1".parse().expect("a literal"), 24)
        .expect("root");
    assert_refused(
        &mesh.on(0, &["join", &token]),
        78,
        &["10.210.0.0/16", "10.210.77.", "eth0", "token was not used"],
    );
    let nodes = mesh.admin(&["node", "list"]).stdout;
    assert!(!nodes.contains("\nn1"), "nobody was admitted: {nodes}");
    assert!(mesh.succeeds(0, "ip", &["addr", "del", "10.210.77.1/24", "dev", "eth0"]));
    assert_eq!(mesh.on(0, &["join", &token]).code, 0);
}

#[test]
fn a_used_port_or_name_and_a_missing_device_are_named() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    let token = mesh.token(&[]);
    assert!(mesh.succeeds(0, "ip", &["tuntap", "add", "mesh0", "mode", "tun"]));
    assert_refused(
        &mesh.on(0, &["join", &token]),
        78,
        &["mesh0", "exists already"],
    );
    assert!(mesh.succeeds(0, "ip", &["link", "delete", "mesh0"]));

    let socket = mesh.nodes[0]
        .host
        .inside(|| std::net::UdpSocket::bind("0.0.0.0:51820"))
        .expect("a namespace")
        .expect("a free port");
    assert_refused(
        &mesh.on(0, &["join", &token]),
        78,
        &["51820", "in use", "listen_port"],
    );
    drop(socket);

    let listener = mesh.nodes[0]
        .host
        .inside(|| TcpListener::bind("0.0.0.0:53"))
        .expect("a namespace")
        .expect("a free port");
    assert_eq!(
        mesh.on(0, &["join", &token]).code,
        0,
        "nothing was lost by all this, and port 53 is not needed"
    );
    let problems = mesh.status(0).problems;
    assert!(
        problems
            .iter()
            .any(|p| p.why.contains("port 53") && p.fix.contains("ss -ulpn")),
        "{problems:?}"
    );
    drop(listener);

    let starts = audited_starts(&mesh);
    let second = mesh
        .spawn_node(0, &[])
        .wait(Duration::from_secs(20))
        .expect("it ends by itself");
    assert_eq!(second.code(), Some(78), "two daemons on one socket");
    assert_eq!(audited_starts(&mesh), starts, "the log has one writer");
    let taken = mesh
        .coordinator_host
        .command(env!("CARGO_BIN_EXE_mesh-coordinator"))
        .map(|mut command| {
            run(command.args([
                "--state-dir",
                "/run/other",
                "--admin-socket",
                "/run/other.sock",
            ]))
        });
    let taken = taken.expect("a namespace");
    assert_eq!(taken.code, 78);
    assert!(
        taken.stderr.contains("TCP port 7443 is in use"),
        "{taken:?}"
    );
    mesh.kill_node(0);
}

/// The number of starts of meshd in the audit log of node 0.
fn audited_starts(mesh: &Mesh) -> usize {
    let events = mesh.on(0, &["audit", "--json", "--file", "/run/state"]);
    assert_eq!(events.code, 0, "{events:?}");
    events.stdout.matches(r#""what":"started""#).count()
}

#[test]
fn missing_rights_are_reported() {
    let Some(mesh) = Mesh::start(1) else { return };
    let host = &mesh.nodes[0].host;
    let as_nobody = |arguments: &[&str]| {
        let mut command = host.command("setpriv").expect("a namespace");
        run(command
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                env!("CARGO_BIN_EXE_meshctl"),
            ])
            .args(arguments))
    };
    // The tests' build directory may be closed to others; then nobody can run the program at all.
    if as_nobody(&["--version"]).code == 0 {
        assert_refused(&as_nobody(&["status"]), 77, &["sudo"]);
    }
    let missing = ["--socket", "/run/none.sock", "status"];
    assert_refused(
        &mesh.on(0, &missing),
        69,
        &["meshd is not running", "systemctl start meshd"],
    );

    // An empty directory becomes private by itself.
    std::fs::write(host.path("/run/state/something"), "secret").expect("root");
    std::fs::set_permissions(
        host.path("/run/state"),
        std::fs::Permissions::from_mode(0o755),
    )
    .expect("root");
    let mut command = host
        .command(env!("CARGO_BIN_EXE_meshd"))
        .expect("a namespace");
    let ended = run(command.args(["--state-dir", "/run/state", "--socket", "/run/second.sock"]));
    assert_eq!(ended.code, 78);
    assert!(
        ended
            .stderr
            .contains("can be read by others (mode 0755); run: chmod 700"),
        "{ended:?}"
    );
    let wrong = write(host, "/run/wrong.toml", "[dns]\nenabld = true\n");
    let mut command = host
        .command(env!("CARGO_BIN_EXE_meshd"))
        .expect("a namespace");
    let ended = run(command.args(["--config", &wrong, "--check-config"]));
    assert_eq!(ended.code, 78);
    assert!(
        ended.stderr.contains("enabld")
            && ended.stderr.contains("`enabled`")
            && ended.stderr.contains("line 2"),
        "{ended:?}"
    );
}

#[test]
fn only_the_damaged_part_of_the_state_is_lost() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    assert_eq!(
        mesh.on(0, &["service", "add", "web", "--port", "80"]).code,
        0
    );
    mesh.coordinator.take().expect("it runs").kill();
    mesh.kill_node(0);
    let path = mesh.nodes[0].host.path("/run/state/records.jsonl");
    let mut bytes = std::fs::read(&path).expect("root");
    bytes[40] ^= 1;
    bytes.truncate(bytes.len() - 20);
    std::fs::write(&path, &bytes).expect("root");
    mesh.start_node(0);
    mesh.wait_until("the node is up", || {
        mesh.on(0, &["status", "--check", "ready"]).code == 0
    });
    let status = mesh.status(0);
    assert!(
        status
            .problems
            .iter()
            .any(|p| p.what.contains("records on disk were lost")),
        "{:?}",
        status.problems
    );
    assert_eq!(status.services.local, 1);
    mesh.start_coordinator();
    mesh.wait_until("what was lost comes again", || mesh.reaches(0) == 1);

    mesh.kill_node(0);
    let identity = mesh.nodes[0].host.path("/run/state/identity.json");
    let text = std::fs::read_to_string(&identity).expect("root");
    let damaged = text.replacen(": \"", ": \"0", 1);
    std::fs::write(&identity, &damaged).expect("root");
    let ended = mesh
        .spawn_node(0, &[])
        .wait(Duration::from_secs(20))
        .expect("it ends by itself");
    assert_eq!(ended.code(), Some(78));
    let log = std::fs::read_to_string(mesh.log(0)).expect("our directory");
    assert!(
        log.contains("identity in /run/state/identity.json is damaged"),
        "{log}"
    );
    assert_eq!(
        std::fs::read_to_string(&identity).expect("root"),
        damaged,
        "nothing was overwritten"
    );
    assert!(!mesh.nodes[0].host.path(SOCKET).exists() || mesh.on(0, &["status"]).code == 69);
}

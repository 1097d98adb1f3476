//! Nodes that leave, and joins that fail: no member stays behind that is not there, and the name is free.

use std::process::Command;

use meshd::protocol::local::NodeState;

use crate::bad_input::assert_refused;
use crate::mesh::{Mesh, SOCKET};

/// The names of the members, as the coordinator lists them.
fn members(mesh: &Mesh) -> Vec<String> {
    let listed = mesh.admin(&["node", "list", "--json"]);
    assert_eq!(listed.code, 0, "{listed:?}");
    let list: meshd::protocol::admin::NodeList =
        serde_json::from_str(&listed.stdout).expect("a list");
    list.nodes.iter().map(|n| n.name.to_string()).collect()
}

/// The names of the peers of node `n`.
fn peers(mesh: &Mesh, n: usize) -> Vec<String> {
    let peers = mesh.status(n).peers;
    let mut names: Vec<String> = peers.iter().map(|p| p.name.to_string()).collect();
    names.sort();
    names
}

/// Whether node `n` answers anything for `web`.
fn has_web(mesh: &Mesh, n: usize) -> bool {
    mesh.on(n, &["service", "list"]).stdout.contains("web")
}

fn serve_web(mesh: &Mesh, n: usize) {
    let ended = mesh.on(n, &["service", "add", "web", "--port", "80"]);
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[test]
fn a_node_that_leaves_is_gone_everywhere_and_joins_again_by_its_name() {
    let Some(mesh) = Mesh::joined(3) else { return };
    serve_web(&mesh, 0);
    mesh.wait_until("the others have the service", || {
        has_web(&mesh, 1) && has_web(&mesh, 2)
    });
    for round in 0..3 {
        let left = mesh.on(0, &["leave"]);
        assert_eq!(left.code, 0, "{left:?}");
        assert_eq!(
            left.stderr,
            "left the mesh; n1 and its addresses are free\n"
        );
        assert_eq!(members(&mesh), ["n2", "n3"], "in round {round}");
        mesh.wait_until("the others are without it", || {
            peers(&mesh, 1) == ["n3"]
                && peers(&mesh, 2) == ["n2"]
                && !has_web(&mesh, 1)
                && !has_web(&mesh, 2)
        });
        assert_refused(&mesh.on(0, &["leave"]), 1, &["not joined"]);
        let joined = mesh.on(0, &["join", &mesh.token(&[])]);
        assert_eq!(joined.code, 0, "{joined:?}");
        assert!(joined.stderr.starts_with("joined as n1 "), "{joined:?}");
        assert_eq!(members(&mesh), ["n1", "n2", "n3"]);
        mesh.wait_until("it reaches the others", || mesh.reaches(0) == 2);
        serve_web(&mesh, 0);
    }
}

#[test]
fn a_node_with_another_name_frees_both_when_it_leaves() {
    let Some(mesh) = Mesh::joined(2) else { return };
    assert_eq!(mesh.on(0, &["rename", "alpha"]).code, 0);
    mesh.wait_until("it has the name", || members(&mesh) == ["alpha", "n2"]);
    assert_eq!(mesh.on(0, &["leave"]).code, 0);
    assert_eq!(mesh.on(1, &["rename", "n1"]).code, 0);
    mesh.wait_until("the first name is free", || members(&mesh) == ["n1"]);
    let joined = mesh.on(0, &["join", &mesh.token(&[]), "--name", "alpha"]);
    assert_eq!(joined.code, 0, "{joined:?}");
    assert_eq!(members(&mesh), ["alpha", "n1"]);
}

#[test]
fn peers_deliver_the_departure_of_a_node_that_left_without_a_coordinator() {
    let Some(mut mesh) = Mesh::joined(3) else {
        return;
    };
    serve_web(&mesh, 0);
    mesh.wait_until("the others have the service", || {
        has_web(&mesh, 1) && has_web(&mesh, 2)
    });
    mesh.coordinator.take().expect("it runs").kill();
    mesh.wait_until("the node notices", || {
        mesh.status(0).coordinator.is_some_and(|c| !c.connected)
    });
    let left = mesh.on(0, &["leave"]);
    assert_eq!(left.code, 0, "{left:?}");
    for words in ["n1 stays taken", "2 peer(s)"] {
        assert!(left.stderr.contains(words), "{left:?}");
    }
    mesh.wait_until("the others are without it", || {
        peers(&mesh, 1) == ["n3"] && !has_web(&mesh, 1) && peers(&mesh, 2) == ["n2"]
    });
    // Its machine is switched off, and one of the peers has restarted since.
    mesh.kill_node(0);
    mesh.kill_node(2);
    mesh.kill_node(1);
    mesh.start_node(1);
    mesh.start_coordinator();
    mesh.wait_until("the coordinator has the departure", || {
        members(&mesh) == ["n2", "n3"]
    });
}

#[test]
fn a_node_that_left_without_a_coordinator_delivers_its_departure_later() {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    mesh.coordinator.take().expect("it runs").kill();
    mesh.wait_until("the node notices", || {
        mesh.status(0).coordinator.is_some_and(|c| !c.connected)
    });
    assert_eq!(mesh.on(0, &["leave"]).code, 0);
    assert_eq!(mesh.status(0).state, NodeState::Unjoined);
    mesh.kill_node(0);
    mesh.start_node(0);
    assert_eq!(mesh.status(0).state, NodeState::Unjoined);
    mesh.start_coordinator();
    mesh.wait_until("the coordinator has the departure", || {
        members(&mesh).is_empty()
    });
    let joined = mesh.on(0, &["join", &mesh.token(&[])]);
    assert!(joined.stderr.starts_with("joined as n1 "), "{joined:?}");
}

#[test]
fn a_copy_that_leaves_does_not_affect_the_original() {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    assert_eq!(mesh.on(0, &["join", &mesh.token(&[])]).code, 0);
    mesh.kill_node(1);
    let (from, to) = (
        mesh.nodes[0].host.path("/run/state"),
        mesh.nodes[1].host.path("/run"),
    );
    let copied = Command::new("cp").arg("-a").args([&from, &to]).status();
    assert!(copied.is_ok_and(|status| status.success()));
    mesh.start_node(1);
    mesh.wait_until("the copy is told", || {
        let problems = mesh.status(1).problems;
        problems.iter().any(|p| p.what.contains("copy of another"))
    });
    let left = mesh.on(1, &["leave"]);
    assert_eq!(left.code, 0, "{left:?}");
    assert!(left.stderr.contains("continues as n1"), "{left:?}");
    assert_eq!(members(&mesh), ["n1"]);
    assert!(mesh.status(0).coordinator.is_some_and(|c| c.connected));
    let joined = mesh.on(1, &["join", &mesh.token(&[])]);
    assert_eq!(joined.code, 0, "{joined:?}");
    mesh.wait_until("both are members", || mesh.reaches(0) == 1);
}

#[test]
fn a_node_whose_join_fails_after_its_admission_departs_again() {
    let Some(mesh) = Mesh::start(1) else { return };
    // Records cannot be kept where a directory is in the way.
    let obstacle = mesh.nodes[0].host.path("/run/state/records.jsonl");
    std::fs::create_dir(&obstacle).expect("the host's own file system");
    let refused = mesh.on(0, &["join", &mesh.token(&[])]);
    assert_ne!(refused.code, 0, "{refused:?}");
    for words in ["records.jsonl", "departs again", "token"] {
        assert!(refused.stderr.contains(words), "{refused:?}");
    }
    mesh.wait_until("its place is free", || members(&mesh).is_empty());
    assert_eq!(mesh.status(0).state, NodeState::Unjoined);
    std::fs::remove_dir(&obstacle).expect("the host's own file system");
    let joined = mesh.on(0, &["join", &mesh.token(&[])]);
    assert_eq!(joined.code, 0, "{joined:?}");
    assert!(joined.stderr.starts_with("joined as n1 "), "{joined:?}");
    assert_eq!(members(&mesh), ["n1"]);
}

#[test]
fn leave_ends_a_join_that_waits_for_its_coordinator_and_two_joins_do_not_mix() {
    let Some(mut mesh) = Mesh::start(1) else {
        return;
    };
    let (token, other) = (mesh.token(&[]), mesh.token(&[]));
    // A coordinator that takes connections and answers nothing.
    mesh.coordinator.take().expect("it runs").kill();
    let listener = mesh
        .coordinator_host
        .inside(|| std::net::TcpListener::bind("0.0.0.0:7443"))
        .expect("a namespace")
        .expect("a free port");
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| mesh.on(0, &["join", &token]));
        mesh.wait_until("it joins", || mesh.status(0).state == NodeState::Joining);
        assert_refused(
            &mesh.on(0, &["join", &other]),
            1,
            &["joining already", "wait"],
        );
        let left = mesh.on(0, &["leave"]);
        assert_eq!(left.code, 0, "{left:?}");
        assert_refused(&joining.join().expect("no panic"), 1, &["meshctl leave"]);
    });
    assert_eq!(mesh.status(0).state, NodeState::Unjoined);
    drop(listener);
    mesh.start_coordinator();
    assert_eq!(mesh.on(0, &["join", &other]).code, 0);
    assert_eq!(members(&mesh), ["n1"]);
}

/// Turns a node's state into what a kill right after its admission leaves: a join that was asked for, and no answer.
fn forget_the_answer(mesh: &mut Mesh, n: usize) {
    mesh.kill_node(n);
    // A program that it was just starting holds its socket for a moment.
    let socket = mesh.nodes[n].host.path(SOCKET);
    mesh.wait_until("its socket is closed", || {
        std::os::unix::net::UnixStream::connect(&socket).is_err()
    });
    let path = |name: &str| mesh.nodes[n].host.path(&format!("/run/state/{name}"));
    let read = |name: &str| std::fs::read_to_string(path(name)).expect("a joined node's state");
    let identity: serde_json::Value = serde_json::from_str(&read("identity.json")).expect("JSON");
    let own = identity["keys"]["identity"].as_str().expect("a key");
    let records = read("records.jsonl");
    let membership = records
        .lines()
        .filter_map(|line| serde_json::from_str::<meshd::records::Envelope>(line).ok())
        .find(|e| e.payload.contains("\"kind\":\"membership\"") && e.payload.contains(own))
        .expect("its membership");
    let pending = serde_json::json!({
        "keys": identity["keys"],
        "token": membership.signer,
        "membership": membership,
        "asked": true,
        "way": {
            "mesh_key": identity["mesh_key"],
            "urls": identity["urls"],
            "pin": identity["pin"],
        },
    });
    for name in ["identity.json", "records.jsonl", "position.json"] {
        std::fs::remove_file(path(name)).expect("it is there");
    }
    std::fs::write(path("pending.json"), pending.to_string()).expect("ours");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path("pending.json"), private).expect("ours");
}

#[test]
fn a_meshd_killed_between_admission_and_start_continues_as_the_same_member() {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    let before = mesh.addresses(0);
    forget_the_answer(&mut mesh, 0);
    mesh.start_node(0);
    mesh.wait_until("it is up", || {
        mesh.on(0, &["status", "--check", "ready"]).code == 0
    });
    assert_eq!(mesh.addresses(0), before);
    assert_eq!(members(&mesh), ["n1"]);
    assert_eq!(mesh.status(0).problems, []);
}

#[test]
fn an_interrupted_join_is_shown_and_ended_by_leave() {
    let Some(mut mesh) = Mesh::joined(1) else {
        return;
    };
    forget_the_answer(&mut mesh, 0);
    mesh.coordinator.take().expect("it runs").kill();
    mesh.start_node(0);
    let status = mesh.status(0);
    assert_eq!(status.state, NodeState::Joining);
    assert!(
        status
            .problems
            .iter()
            .any(|p| p.fix.contains("meshctl leave")),
        "{status:?}"
    );
    let left = mesh.on(0, &["leave"]);
    assert_eq!(left.code, 0, "{left:?}");
    assert!(left.stderr.contains("stays taken"), "{left:?}");
    assert_eq!(mesh.status(0).state, NodeState::Unjoined);
    mesh.start_coordinator();
    mesh.wait_until("its place is free", || members(&mesh).is_empty());
    let joined = mesh.on(0, &["join", &mesh.token(&[])]);
    assert!(joined.stderr.starts_with("joined as n1 "), "{joined:?}");
}

#[test]
fn a_node_that_was_removed_while_it_was_off_joins_again_under_its_name() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    mesh.kill_node(0);
    assert_eq!(mesh.admin(&["node", "remove", "n1"]).code, 0);
    mesh.start_node(0);
    mesh.wait_until("it is told", || {
        let problems = mesh.status(0).problems;
        problems.iter().any(|p| p.fix.contains("meshctl leave"))
    });
    let left = mesh.on(0, &["leave"]);
    assert_eq!(left.code, 0, "{left:?}");
    assert!(
        left.stderr
            .contains("no coordinator has this node as a member"),
        "{left:?}"
    );
    let joined = mesh.on(0, &["join", &mesh.token(&[])]);
    assert!(joined.stderr.starts_with("joined as n1 "), "{joined:?}");
    assert_eq!(members(&mesh), ["n1", "n2"]);
}

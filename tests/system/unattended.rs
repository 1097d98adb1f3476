//! Nodes that join by themselves, with the token in a file: what is in the way is said, and tried again.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use meshd::protocol::local::{NodeState, Problem};

use crate::mesh::{Mesh, write};

/// How long a coordinator whose store was emptied may take until it holds its members again.
const REFILL: Duration = Duration::from_secs(90);

/// The one thing that keeps node 0 from joining.
fn problem(mesh: &Mesh) -> Option<Problem> {
    mesh.status(0).problems.into_iter().next()
}

/// Waits until the reason is one with `words` in it; it comes with a way out, and with one line in the log.
fn wait_for_reason(mesh: &Mesh, words: &str) {
    mesh.wait_until(&format!("the problem is `{words}`"), || {
        problem(mesh).is_some_and(|p| p.why.contains(words) && !p.fix.is_empty())
    });
    let log = std::fs::read_to_string(mesh.log(0)).expect("a log");
    let lines = log.lines().filter(|line| line.contains("not joined with"));
    let lines: Vec<&str> = lines.filter(|line| line.contains(words)).collect();
    assert_eq!(lines.len(), 1, "{log}");
}

#[test]
fn an_unattended_join_shows_its_problem_and_continues_when_it_is_corrected() {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    let taken = mesh.on(1, &["join", &mesh.token(&[]), "--name", "taken"]);
    assert_eq!(taken.code, 0, "{taken:?}");
    mesh.kill_node(0);
    let text = "name = \"taken\"\n[join]\ntoken_file = \"/run/join-token\"\n";
    let config = write(&mesh.nodes[0].host, "/run/meshd.toml", text);
    mesh.start_node_with(0, &["--config", &config]);
    wait_for_reason(&mesh, "/run/join-token cannot be read");
    let ready = mesh.on(0, &["status", "--check", "ready"]);
    assert_eq!(ready.code, 2, "{ready:?}");
    assert!(ready.stderr.contains("/run/join-token"), "{ready:?}");
    let shown = mesh.on(0, &["status"]).stdout;
    assert!(shown.contains("/run/join-token"), "{shown}");

    let put = |mesh: &Mesh, text: &str| {
        write(&mesh.nodes[0].host, "/run/join-token", text);
    };
    put(&mesh, "garbage\n");
    wait_for_reason(&mesh, "not a join token");

    // A token that is revoked, and one that is spent.
    let revoked = mesh.token(&["--ttl", "2h"]);
    let listed = mesh.admin(&["token", "list", "--json"]).stdout;
    let list: meshd::protocol::admin::TokenList = serde_json::from_str(&listed).expect("a list");
    let last = list.tokens.iter().max_by_key(|t| t.expires_at);
    let id = last.expect("two tokens").id.to_string();
    assert_eq!(mesh.admin(&["token", "revoke", &id[..10]]).code, 0);
    put(&mesh, &revoked);
    wait_for_reason(&mesh, "revoked");

    // The coordinator was set up anew and has no mesh, and no node is there to tell it what there was.
    let token = mesh.token(&["--uses", "2"]);
    mesh.kill_node(1);
    mesh.coordinator.take().expect("it runs").kill();
    let store = mesh.coordinator_host.path("/run/coordinator");
    for name in ["records.db", "records.db-wal", "records.db-shm"] {
        let _ = std::fs::remove_file(store.join(name));
    }
    put(&mesh, &token);
    mesh.start_coordinator();
    wait_for_reason(&mesh, "has no mesh yet");
    assert_eq!(mesh.admin(&["init"]).code, 0);
    wait_for_reason(&mesh, "does not know this token");
    put(&mesh, "garbage again\n");
    mesh.start_node(1);
    // The other node fills the coordinator up again, and its name is taken.
    mesh.wait_within(REFILL, "the other node is a member again", || {
        mesh.admin(&["node", "list"]).stdout.contains("taken")
    });
    put(&mesh, &mesh.token(&[]));
    wait_for_reason(&mesh, "another node is called taken");
    assert_eq!(mesh.status(0).state, NodeState::Unjoined);
    assert_eq!(mesh.admin(&["node", "remove", "taken"]).code, 0);
    mesh.wait_until("it joins by itself", || {
        mesh.status(0).state == NodeState::Up
    });
    let status = mesh.status(0);
    assert_eq!(
        status.node.map(|n| n.name.to_string()).as_deref(),
        Some("taken")
    );

    // Others could use what is left of the token, also once this node is a member.
    let exposed = |mesh: &Mesh, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        let file = mesh.nodes[0].host.path("/run/join-token");
        std::fs::set_permissions(file, mode).expect("ours");
        let mut problems = mesh.status(0).problems.into_iter();
        problems.find(|p| p.what == "the join token is readable by others")
    };
    let problem = exposed(&mesh, 0o644).expect("every user can read it");
    assert!(problem.fix.contains("chmod 600 /run/join-token"));
    assert_eq!(exposed(&mesh, 0o600), None);

    // Once it is a member the file may go.
    std::fs::remove_file(mesh.nodes[0].host.path("/run/join-token")).expect("it is there");
    mesh.kill_node(0);
    mesh.start_node_with(0, &["--config", &config]);
    assert_eq!(mesh.status(0).state, NodeState::Up);
    let log = std::fs::read_to_string(mesh.log(0)).expect("a log");
    assert_eq!(log.matches("cannot be read").count(), 1, "{log}");
}

//! A coordinator that is lost and comes back from an old backup, step by step.

use std::time::{Duration, Instant};

use meshd::protocol::JoinToken;
use meshd::protocol::admin::NodeList;

use crate::mesh::{Ended, Mesh, run};

/// How long nodes have to fill a restored coordinator up again.
const REFILL: Duration = Duration::from_secs(30);

fn program(mesh: &Mesh, words: &[&str]) -> Ended {
    let host = &mesh.coordinator_host;
    let mut command = host
        .command(env!("CARGO_BIN_EXE_mesh-coordinator"))
        .expect("a namespace");
    run(command
        .args(words)
        .args(["--state-dir", "/run/coordinator"]))
}

fn nodes(mesh: &Mesh) -> Vec<(String, String)> {
    let list: NodeList =
        serde_json::from_str(&mesh.admin(&["node", "list", "--json"]).stdout).expect("a list");
    let address = |v4: Option<std::net::Ipv4Addr>| v4.map_or_else(String::new, |v4| v4.to_string());
    list.nodes
        .into_iter()
        .map(|node| (node.name.to_string(), address(node.address_v4)))
        .collect()
}

#[test]
fn a_coordinator_restored_from_an_old_backup_is_told_by_the_nodes_what_it_missed() {
    let Some(mut mesh) = Mesh::start(5) else {
        return;
    };
    // A week ago: three nodes, and a token that nobody has used.
    for n in 0..3 {
        let token = mesh.token(&[]);
        assert_eq!(mesh.on(n, &["join", &token]).code, 0);
    }
    let token = mesh.token(&[]);
    let taken_back = mesh.token(&["--uses", "9"]);
    assert_eq!(program(&mesh, &["backup", "/run/backup"]).code, 0);
    let again = program(&mesh, &["backup", "/run/backup"]);
    assert_eq!(again.code, 78);
    assert!(again.stderr.contains("exists already"), "{again:?}");

    // Since then: the token admitted a node, another token was taken back, a node removed and one renamed, services changed.
    assert_eq!(mesh.on(3, &["join", &token]).code, 0);
    let id = JoinToken::parse(&taken_back).expect("a token").key.public();
    let revoked = mesh.admin(&["token", "revoke", &id.to_string()]);
    assert_eq!(revoked.code, 0, "{revoked:?}");
    assert_eq!(mesh.admin(&["node", "remove", "n3"]).code, 0);
    let renamed = mesh.on(1, &["rename", "store"]);
    assert_eq!(renamed.code, 0, "{renamed:?}");
    let added = mesh.on(0, &["service", "add", "web", "--port", "80"]);
    assert_eq!(added.code, 0, "{added:?}");
    mesh.wait_until("all know the service", || {
        [1, 3]
            .iter()
            .all(|n| mesh.on(*n, &["resolve", "web.svc.mesh"]).code == 0)
    });
    let before = nodes(&mesh);
    assert_eq!(before.len(), 3);
    assert!(before.iter().any(|(name, _)| name == "store"));
    let removed = mesh.addresses(2).0.to_string();

    // No restoration under a running coordinator.
    let refused = program(&mesh, &["restore", "/run/backup"]);
    assert_eq!(refused.code, 78);
    assert!(
        refused.stderr.contains("another mesh-coordinator"),
        "{refused:?}"
    );
    assert_eq!(nodes(&mesh), before);

    // The machine is lost, the backup put back.
    mesh.coordinator.take().expect("it runs").kill();
    let restored = program(&mesh, &["restore", "/run/backup"]);
    assert_eq!(restored.code, 0, "{restored:?}");
    mesh.start_coordinator();
    let started = Instant::now();

    // At first the spent token admits nobody.
    let early = mesh.on(4, &["join", &token]);
    assert_eq!(early.code, 1);
    assert!(early.stderr.contains("restored from a backup"), "{early:?}");

    // The nodes bring what it missed: who joined has the same address, who was removed stays out.
    mesh.wait_until("the coordinator is filled up again", || {
        nodes(&mesh) == before
    });
    let took = started.elapsed();
    eprintln!("refilled {:.1} s after the start", took.as_secs_f64());
    assert!(took < REFILL, "{took:?}");
    // The coordinator tells the removed node again that it is removed, and no node has it as a peer.
    mesh.wait_until("the removed node is told again", || {
        mesh.status(2).coordinator.is_some_and(|c| !c.connected)
    });
    for n in [0, 1, 3] {
        let peers = mesh.status(n).peers;
        assert_eq!(peers.len(), 2, "{peers:?}");
        assert!(peers.iter().all(|p| p.address_v4.to_string() != removed));
    }

    // Once they all have, the token is known to be spent, and another admits with an address of nobody's.
    let end = Instant::now() + 2 * REFILL;
    let spent = loop {
        let ended = mesh.on(4, &["join", &token]);
        assert_eq!(ended.code, 1, "{ended:?}");
        if !ended.stderr.contains("restored from a backup") {
            break ended;
        }
        assert!(Instant::now() < end, "{ended:?}");
        std::thread::sleep(Duration::from_secs(1));
    };
    assert!(spent.stderr.contains("spent"), "{spent:?}");
    let refused = mesh.on(4, &["join", &taken_back]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("revoked"), "{refused:?}");
    let token = mesh.token(&[]);
    assert_eq!(mesh.on(4, &["join", &token]).code, 0);
    let address = mesh.addresses(4).0.to_string();
    assert!(before.iter().all(|(_, other)| *other != address));
    mesh.wait_until("the new node finds the service", || {
        mesh.on(4, &["resolve", "web.svc.mesh"]).code == 0
    });
}

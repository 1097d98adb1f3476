//! With a stolen coordinator and an expired token, an attacker adds no node to a mesh whose nodes were connected before.

use meshd::model::SigningKey;
use meshd::records::Envelope;
use serde_json::json;

use crate::kit::{Identity, Stolen, record};
use crate::mesh::Mesh;
use crate::node_kit::mesh_key;

const HOUR: u64 = 3600;

/// The records of a node that joined two days ago with a token that expired yesterday: the token's certificate, the membership
/// and the node record.
fn ghost(mesh: &Mesh, name: &str) -> Vec<Envelope> {
    let leaked = SigningKey::from_seed(&[77; 32]);
    let ghost = Identity::new();
    let (now, own) = (record::now(), mesh.status(0).node.expect("it has joined"));
    let certificate = record::token(leaked.public())
        .with("uses", 9)
        .with("created_at", now - 72 * HOUR)
        .with("expires_at", now - 24 * HOUR)
        .version(1)
        .signed_by(&mesh_key(mesh));
    let membership = record::membership(leaked.public(), &ghost, name)
        .with("issued_at", now - 48 * HOUR)
        .signed_by(&leaked);
    let prefix_v6 = ipnet::Ipv6Net::new(own.block_v6.network(), 48);
    let plan = record::plan(prefix_v6.expect("a length").trunc());
    let block = plan.block(99).expect("in the plan");
    let node = record::node(ghost.id(), ghost.wireguard_key(), &block)
        .with("endpoints", [record::endpoint()])
        .signed_by(ghost.key());
    vec![certificate, membership, node]
}

fn knows(mesh: &Mesh, n: usize, name: &str) -> bool {
    mesh.status(n).peers.iter().any(|p| p.name.as_str() == name)
}

fn is_held_back(mesh: &Mesh, n: usize) -> bool {
    let log = std::fs::read_to_string(mesh.log(n)).unwrap_or_default();
    log.contains("is held back until a peer vouches for it")
}

/// Waits until node `n` has written to disk when it last held all that its coordinator holds.
fn await_in_step(mesh: &Mesh, n: usize) {
    let file = mesh.nodes[n].host.path("/run/state/in_step.json");
    mesh.wait_until("the node was in step with its coordinator", || {
        file.exists()
    });
}

#[test]
fn an_old_token_adds_nobody_to_nodes_that_were_there_whoever_has_the_coordinator() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    (0..2).for_each(|n| await_in_step(&mesh, n));
    let records = ghost(&mesh, "ghost");
    let stolen = Stolen::coordinator_of(&mut mesh);
    stolen.send(records);
    mesh.wait_until("both nodes hold the membership back", || {
        (0..2).all(|n| is_held_back(&mesh, n))
    });
    assert!(!(0..2).any(|n| knows(&mesh, n, "ghost")));
    // The membership is held back after a restart as well.
    mesh.kill_node(0);
    mesh.start_node(0);
    stolen.await_streams(3);
    let file = mesh.nodes[0].host.path("/run/state/newcomers.json");
    let text = std::fs::read_to_string(file).expect("what is held back is on disk");
    assert!(text.contains("ghost"), "{text}");
    assert!(!knows(&mesh, 0, "ghost"));
    mesh.wait_until("the node shows a problem with its fix", || {
        mesh.status(0)
            .problems
            .iter()
            .any(|p| p.what.contains("ghost") && p.fix.contains("clock"))
    });
    assert!(!knows(&mesh, 0, "ghost"));
    // The tunnel between the honest nodes still works.
    assert!(mesh.pings(0, &mesh.addresses(1).0.to_string()));
}

#[test]
fn a_node_that_is_held_back_is_let_in_once_a_peer_vouches_for_it() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    (0..2).for_each(|n| await_in_step(&mesh, n));
    let records = ghost(&mesh, "late");
    mesh.kill_node(1);
    // Node 1 no longer knows when it was last in step with a coordinator, so it cannot judge the dates of what it receives first.
    let state = mesh.nodes[1].host.path("/run/state");
    std::fs::remove_file(state.join("in_step.json")).expect("it was there");
    let stolen = Stolen::coordinator_of(&mut mesh);
    stolen.send(records);
    mesh.wait_until("node 0 holds the membership back", || {
        is_held_back(&mesh, 0)
    });
    mesh.start_node(1);
    mesh.wait_until("node 1 accepts the member", || knows(&mesh, 1, "late"));
    assert!(!knows(&mesh, 0, "late"));
    // A node does not vouch for a member that it accepted in that way. Without the list of such members, it vouches.
    mesh.kill_node(1);
    let seen = json!({"held_back": [], "on_trust": []});
    std::fs::write(state.join("newcomers.json"), seen.to_string()).expect("its own directory");
    mesh.start_node(1);
    mesh.wait_until("node 0 accepts the member", || knows(&mesh, 0, "late"));
}

#[test]
fn two_nodes_find_each_other_after_a_long_absence_of_one() {
    let Some(mut mesh) = Mesh::start(2) else {
        return;
    };
    let first = mesh.token(&[]);
    assert_eq!(mesh.on(0, &["join", &first]).code, 0);
    await_in_step(&mesh, 0);
    mesh.kill_node(0);
    let second = mesh.token(&[]);
    assert_eq!(mesh.on(1, &["join", &second]).code, 0);
    // Node 0 was last in step with its coordinator long before node 1 joined.
    let state = mesh.nodes[0].host.path("/run/state/in_step.json");
    let long_ago = json!({"in_step": record::now() - 1000 * HOUR});
    std::fs::write(state, long_ago.to_string()).expect("its own directory");
    mesh.start_node(0);
    mesh.wait_until("both reach each other", || {
        mesh.reaches(0) == 1 && mesh.reaches(1) == 1
    });
}

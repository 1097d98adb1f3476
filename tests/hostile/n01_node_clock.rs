//! A stolen coordinator and an old token add no node to those that would know it.

use meshd::model::SigningKey;
use meshd::wire::Envelope;
use serde_json::json;

use crate::kit::{Identity, Stolen, record};
use crate::mesh::Mesh;
use crate::node_kit::mesh_key;

const HOUR: u64 = 3600;

/// A node that a token admits which ended yesterday: the token's certificate, the membership and where the node is.
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
    let plan = meshd::model::address::MeshAddresses {
        prefix_v4: "10.210.0.0/16".parse().expect("a literal"),
        prefix_v6: ipnet::Ipv6Net::new(own.block_v6.network(), 48)
            .expect("a length")
            .trunc(),
        node_block_v4: 24,
        node_block_v6: 64,
    };
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

/// Waits until node `n` was in step with its coordinator, so that the time is on its disk.
fn await_in_step(mesh: &Mesh, n: usize) {
    let file = mesh.nodes[n].host.path("/run/state/in_step.json");
    mesh.wait_until("it was in step", || file.exists());
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
    mesh.wait_until("both hold it back", || {
        (0..2).all(|n| is_held_back(&mesh, n))
    });
    assert!(!(0..2).any(|n| knows(&mesh, n, "ghost")));
    // A restart makes nothing new of it.
    mesh.kill_node(0);
    mesh.start_node(0);
    stolen.await_streams(3);
    let file = mesh.nodes[0].host.path("/run/state/newcomers.json");
    let text = std::fs::read_to_string(file).expect("what is held back is on disk");
    assert!(text.contains("ghost"), "{text}");
    assert!(!knows(&mesh, 0, "ghost"));
    mesh.wait_until("it is a problem, with what to do", || {
        mesh.status(0)
            .problems
            .iter()
            .any(|p| p.what.contains("ghost") && p.fix.contains("clock"))
    });
    // The tunnel between those that belong there goes on.
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
    // Node 1 was away for days: what it receives first it cannot compare with anything.
    let state = mesh.nodes[1].host.path("/run/state");
    std::fs::remove_file(state.join("in_step.json")).expect("it was there");
    let stolen = Stolen::coordinator_of(&mut mesh);
    stolen.send(records);
    mesh.wait_until("node 0 holds it back", || is_held_back(&mesh, 0));
    mesh.start_node(1);
    mesh.wait_until("node 1 lets it in", || knows(&mesh, 1, "late"));
    assert!(!knows(&mesh, 0, "late"));
    // It vouches for nobody that it did not see itself. As if it had:
    mesh.kill_node(1);
    let seen = json!({"held_back": [], "on_trust": []});
    std::fs::write(state.join("newcomers.json"), seen.to_string()).expect("its own directory");
    mesh.start_node(1);
    mesh.wait_until("node 0 lets it in", || knows(&mesh, 0, "late"));
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
    // The other was away since long before.
    let state = mesh.nodes[0].host.path("/run/state/in_step.json");
    let long_ago = json!({"in_step": record::now() - 1000 * HOUR});
    std::fs::write(state, long_ago.to_string()).expect("its own directory");
    mesh.start_node(0);
    mesh.wait_until("both reach each other", || {
        mesh.reaches(0) == 1 && mesh.reaches(1) == 1
    });
}

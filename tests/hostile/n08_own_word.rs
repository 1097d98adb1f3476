//! A node notices when newer records with its signature displace its own, shows a problem, and publishes its own records again.

use meshd::model::time::next_version;

use crate::kit::{Identity, record};
use crate::mesh::Mesh;
use crate::node_kit::{Intruder, problems, stolen_keys};

#[test]
fn a_node_whose_keys_were_stolen_says_so_and_is_not_silenced() {
    let Some(mesh) = Mesh::joined(2) else { return };
    let thief = Intruder::join(&mesh, "thief");
    let keys = stolen_keys(&mesh, 0).keys.identity;
    let (id, block) = (keys.public(), stolen_keys(&mesh, 0).block);
    let address = block.node_v4().to_string();
    assert!(mesh.pings(1, &address));
    // The version is a minute ahead, so no record that the node makes by the clock is newer.
    let version = next_version(0, std::time::SystemTime::now()) + 60_000;
    let elsewhere = record::node(id, Identity::new().wireguard_key(), &block)
        .with("endpoints", [record::endpoint()])
        .version(version)
        .signed_by(&keys);
    let made_up = record::service(
        id,
        "evil",
        &[record::instance("evil-1", block.node_v4(), 80)],
    )
    .version(version)
    .signed_by(&keys);
    assert_eq!(thief.publish(&mesh, vec![elsewhere, made_up]), 2);
    mesh.wait_until("the node says that another machine has its keys", || {
        mesh.has_problem(0, &["another machine speaks with this node's keys"])
    });
    assert!(mesh.has_problem(0, &["meshctl leave"]));
    mesh.wait_until("the other node reaches the node again", || {
        mesh.reaches(1) == 1 && mesh.pings(1, &address)
    });
    mesh.wait_until("the service of the thief is gone", || {
        !mesh.on(1, &["service", "list"]).stdout.contains("evil")
    });
    // The thief publishes once more, as a copy of the node that goes on running would.
    let again = record::node(id, Identity::new().wireguard_key(), &block)
        .with("endpoints", [record::endpoint()])
        .version(version + 120_000)
        .signed_by(&keys);
    assert_eq!(thief.publish(&mesh, vec![again]), 1);
    mesh.wait_until("the other node reaches the node again", || {
        mesh.pings(1, &address)
    });
}

#[test]
fn a_state_directory_from_before_a_key_rotation_comes_back_by_itself_and_says_why() {
    let Some(mut mesh) = Mesh::joined(2) else {
        return;
    };
    let address = mesh.addresses(0).0.to_string();
    let state = mesh.nodes[0].host.path("/run/state");
    let copy = mesh.nodes[0].host.path("/run/state.before");
    let cp = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status();
        assert!(copied.is_ok_and(|status| status.success()));
    };
    cp(&state, &copy);
    let before = mesh.status(0).node.expect("it has joined").public_key;
    let rotated = mesh.on(0, &["rotate-key"]);
    assert_eq!(rotated.code, 0, "{rotated:?}");
    mesh.wait_until("the tunnel works with the new key", || {
        mesh.pings(1, &address)
    });
    mesh.kill_node(0);
    cp(&copy, &state);
    mesh.start_node(0);
    assert_eq!(
        mesh.status(0).node.expect("it has joined").public_key,
        before,
        "the node has the old key again"
    );
    mesh.wait_until("the status shows the cause", || {
        mesh.has_problem(0, &["older than what it published"])
    });
    assert!(
        mesh.has_problem(0, &["WireGuard key"]),
        "{:?}",
        problems(&mesh, 0)
    );
    mesh.wait_until("the tunnel works again", || {
        mesh.reaches(0) == 1 && mesh.pings(1, &address)
    });
}

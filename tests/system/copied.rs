//! A machine whose disk was copied: two have the same keys.

use std::time::Duration;

use crate::mesh::Mesh;

#[test]
fn a_copy_of_a_machine_is_refused_and_told_why_and_the_original_goes_on() {
    let Some(mut mesh) = Mesh::start(3) else {
        return;
    };
    for n in 0..2 {
        let token = mesh.token(&[]);
        assert_eq!(mesh.on(n, &["join", &token]).code, 0);
    }
    let address = mesh.addresses(0).0.to_string();
    mesh.wait_until("the tunnel works", || mesh.pings(1, &address));

    // Its state is copied to another machine.
    mesh.kill_node(2);
    let (from, to) = (
        mesh.nodes[0].host.path("/run/state"),
        mesh.nodes[2].host.path("/run"),
    );
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&from, &to])
        .status();
    assert!(copied.is_ok_and(|status| status.success()));
    mesh.start_node(2);
    mesh.wait_until("the copy is told", || {
        mesh.status(2)
            .problems
            .iter()
            .any(|p| p.what.contains("copy of another node") && p.fix.contains("meshctl leave"))
    });

    // The original is connected, and reached at its address.
    assert!(mesh.status(0).coordinator.is_some_and(|c| c.connected));
    mesh.wait_until("the original is reached", || mesh.pings(1, &address));
    let added = mesh.on(0, &["service", "add", "web", "--port", "80"]);
    assert_eq!(added.code, 0, "{added:?}");
    std::thread::sleep(Duration::from_secs(2));
    assert!(mesh.pings(1, &address));

    // It restarts, and has its place again though the copy is still there.
    mesh.kill_node(0);
    mesh.start_node(0);
    mesh.wait_until("the original is connected again", || {
        mesh.status(0).coordinator.is_some_and(|c| c.connected)
    });
    assert!(mesh.status(2).coordinator.is_some_and(|c| !c.connected));
    mesh.wait_until("the original is reached", || mesh.pings(1, &address));
}

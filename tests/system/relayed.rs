//! Two nodes without a path of their own, and a third one that both reach.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::mesh::Mesh;

/// How long the nodes may take to find the relay: both must have measured it, and the ledgers must have met.
const FOUND_WITHIN: Duration = Duration::from_secs(60);

/// Drops all datagrams of tunnels between node `n` and the host of node `other`, in both directions.
fn cut(mesh: &Mesh, n: usize, other: usize) {
    let host = &mesh.nodes[other].host;
    for command in [
        "add table inet cut",
        "add chain inet cut in { type filter hook input priority -300 ; }",
        "add chain inet cut out { type filter hook output priority -300 ; }",
    ] {
        assert!(mesh.succeeds(n, "nft", &[command]), "{command}");
    }
    for address in [IpAddr::from(host.v4()), host.v6().into()] {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        for (chain, side) in [("in", "saddr"), ("out", "daddr")] {
            let rule = format!(
                "add rule inet cut {chain} {family} {side} {address} meta l4proto udp drop"
            );
            assert!(mesh.succeeds(n, "nft", &[&rule]), "{rule}");
        }
    }
}

/// The endpoint of the peer with the name of node `other`, as node `n` shows it.
fn endpoint(mesh: &Mesh, n: usize, other: usize) -> Option<IpAddr> {
    let name = mesh.nodes[other].host.name().to_owned();
    let status = mesh.status(n);
    let peer = status.peers.iter().find(|peer| peer.name.as_str() == name);
    Some(peer.expect("a peer").endpoint?.ip())
}

#[test]
fn nodes_without_a_path_of_their_own_reach_each_other_through_one_that_both_reach() {
    let Some(mut mesh) = Mesh::joined(3) else {
        return;
    };
    cut(&mesh, 1, 2);
    let address = mesh.addresses(2).0.to_string();
    mesh.wait_within(FOUND_WITHIN, "a packet through the relay", || {
        mesh.pings(1, &address)
    });
    mesh.wait_until("both ends to use no endpoint of their own", || {
        endpoint(&mesh, 1, 2).is_none() && endpoint(&mesh, 2, 1).is_none()
    });
    assert!(mesh.pings(2, &mesh.addresses(1).0.to_string()));
    // The relay itself is reached directly.
    assert!(endpoint(&mesh, 1, 0).is_some());

    // A relay that was started again has forgotten the nodes, and is found again.
    mesh.kill_node(0);
    mesh.start_node(0);
    let start = Instant::now();
    mesh.wait_until("a packet through the relay after its restart", || {
        mesh.pings(1, &address)
    });
    eprintln!("the relay forwards {:?} after its restart", start.elapsed());

    // With a path of their own again, they use that.
    assert!(mesh.succeeds(1, "nft", &["delete table inet cut"]));
    mesh.wait_within(FOUND_WITHIN, "a direct path", || {
        endpoint(&mesh, 1, 2).is_some() && endpoint(&mesh, 2, 1).is_some()
    });
    assert!(mesh.pings(1, &address));
}
